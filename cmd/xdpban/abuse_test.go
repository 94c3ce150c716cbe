package main

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"xdpban/internal/control"
)

// TestAbuse: a ban counts once, however often it was made longer, with each of
// its lines, in the order of time; a wider ban's drops are others'.
func TestAbuse(t *testing.T) {
	at := func(minutes int) time.Time { return fakeSince.Add(time.Duration(minutes) * time.Minute) }
	p := netip.MustParsePrefix("203.0.113.5/32")
	made := func(jail string, since, until int, lines ...string) control.Ban {
		b := control.Ban{Prefix: p, Jail: jail, Since: at(since), Until: control.Time{Time: at(until)}, Failures: len(lines), Evidence: lines}
		for i := range lines {
			b.EvidenceAt = append(b.EvidenceAt, at(since-len(lines)+1+i))
		}
		return b
	}
	old, now := made("sshd", 0, 10, "a", "b"), made("sshd", 100, 200, "c", "d")
	old.Packets, old.Bytes = 7, 700
	longer := now
	longer.Until.Time = at(300)
	standing := longer
	standing.Packets, standing.Bytes = 5, 500
	wider := control.Ban{Prefix: netip.MustParsePrefix("203.0.113.0/24"), Jail: "manual", Since: at(50), Packets: 1000}
	events := []control.Event{
		{Kind: "ban", Ban: old}, {Kind: "expire", Ban: old}, {Kind: "ban", Ban: now}, {Kind: "ban", Ban: longer},
		{Kind: "ban", Ban: made("recidive", 101, 102)},
	}
	r := newAbuse(p, events, control.Why{Bans: []control.Ban{standing, wider}}, at(150), 3)
	if r.Bans != 3 || r.Failures != 4 || r.Packets != 12 || r.Bytes != 1200 || !r.First.Equal(at(0)) || !r.Last.Equal(at(101)) || !r.Banned || !r.Until.IsZero() ||
		strings.Join(r.Jails, " ") != "sshd recidive" || r.Left != 1 {
		t.Errorf("%+v", r)
	}
	var lines []string
	for _, l := range r.Lines {
		lines = append(lines, l.Text)
	}
	if got := strings.Join(lines, ""); got != "bcd" {
		t.Errorf("lines %q", got)
	}
	// A fleet's ban knows no times of its lines.
	r = newAbuse(p, nil, control.Why{Bans: []control.Ban{{Prefix: p, Jail: "fleet", Since: at(0), From: "web2/sshd", Evidence: []string{"web2: x"}}}}, at(1), 0)
	var out strings.Builder
	printAbuse(&out, r)
	if !strings.Contains(out.String(), "at a time that isn't known, fleet\n> web2: x\n") {
		t.Errorf("%s", out.String())
	}
	if got := contactOf(netip.MustParsePrefix("2001:db8::5/128")).DNS; !strings.HasPrefix(got, "dig +short TXT 5.0.0.0.0") || !strings.Contains(got, ".8.b.d.0.1.0.0.2.abuse-contacts") {
		t.Errorf("%s", got)
	}
}
