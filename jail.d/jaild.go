// Package jaild holds the jails that xdpban ships with. They are text: the
// *.toml in this folder.
package jaild

import "embed"

// FS holds the shipped jails, for jails.Load.
//
//go:embed *.toml
var FS embed.FS
