package main

import (
	"strings"
	"testing"
)

// What differs from run to run is settled; what must not differ stays.
func TestSettle(t *testing.T) {
	const shown = `192.0.2.66  sshd  59m59s  17       1302   2026-11-25 00:21:03
XDP_DROP       2          2                  1.001785   19             1446
XDP_TX         0          0                  1.001785   0              0
3 packets transmitted, 0 received, 100% packet loss, time 412ms
`
	const want = `192.0.2.66 sshd TIME N N DATE
XDP_DROP N N
XDP_TX 0 0
3 packets transmitted, 0 received, 100% packet loss
`
	if got := settle(shown); got != want {
		t.Errorf("settled is\n%s", got)
	}
	for _, wrong := range []struct{ what, old, new string }{
		{"an answered ping", "0 received, 100%", "1 received, 66%"},
		{"nothing dropped", "17       1302", "0       0"},
		{"another jail", "sshd", "recidive"},
		{"no drop counted", "19             1446", "0              0"},
		{"another address", "192.0.2.66", "192.0.2.67"},
	} {
		if d := firstDifference(want, settle(strings.Replace(shown, wrong.old, wrong.new, 1))); d == "" {
			t.Errorf("%s is taken for what should happen", wrong.what)
		}
	}
	if d := firstDifference(want, want+"more\n"); d == "" {
		t.Error("a longer transcript is taken for what should happen")
	}
}
