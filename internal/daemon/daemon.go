// Package daemon is the loop that owns all state: sources read and match
// side by side, judging and applying happen here, in one goroutine.
package daemon
