package matcher

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// sessionFilter follows a program that names connection, user and address
// in lines of their own.
func sessionFilter(t testing.TB) *Compiled {
	return compile(t, Filter{
		Prefregex: `^ c<F-MLFID>\d+</F-MLFID>: <F-CONTENT>.+</F-CONTENT>$`,
		Failregex: []string{
			`^<F-NOFAIL>open</F-NOFAIL> from <ADDR>$`,
			`^bad login <F-USER>\S+</F-USER>$`,
			`^bad login <F-USER>\S+</F-USER> from <ADDR>$`,
			`^<F-MLFGAINED>good login</F-MLFGAINED> <F-USER>\S+</F-USER>$`,
			`^<F-NOFAIL><F-MLFFORGET>close</F-MLFFORGET></F-NOFAIL>$`,
			`^<F-MLFFORGET>abort</F-MLFFORGET> by <ADDR>$`,
			`^noise$`,
		},
		Ignoreregex: []string{`^bad login friend`},
	})
}

// sessionLines scans lines of sessionFilter's program, one second apart.
func sessionLines(t testing.TB, lines ...string) []string {
	var b strings.Builder
	for i, l := range lines {
		fmt.Fprintf(&b, "2026-11-24 11:00:%02d %s\n", i, l)
	}
	return scan(t, b.String(), sessionFilter(t))
}

func TestSessions(t *testing.T) {
	// The address of an earlier line counts, and that line with it.
	expect(t, sessionLines(t, "c1: open from 192.0.2.1", "c1: bad login bob"), "0.1 192.0.2.1 bob x2")
	// Each further failure stands for itself.
	expect(t, sessionLines(t, "c1: open from 192.0.2.1", "c1: bad login bob", "c1: bad login bob"),
		"0.1 192.0.2.1 bob x2", "0.1 192.0.2.1 bob")
	// Sessions don't mix.
	expect(t, sessionLines(t, "c1: open from 192.0.2.1", "c2: open from 192.0.2.2", "c1: bad login bob", "c2: bad login eve"),
		"0.1 192.0.2.1 bob x2", "0.1 192.0.2.2 eve x2")
	// A failure waits for its address, which a later line names.
	expect(t, sessionLines(t, "c1: bad login bob", "c1: bad login bob", "c1: abort by 192.0.2.1"), "0.5 192.0.2.1 bob x3")
	expect(t, sessionLines(t, "c1: bad login bob", "c1: close"))
	// Without a session there is no address.
	expect(t, sessionLines(t, "c1: open from 192.0.2.1", "c1: close", "c1: bad login bob"))
	expect(t, sessionLines(t, "c1: open from 192.0.2.1", "c1: close"))
	// A login that succeeds is no failure, unless others were tried before.
	expect(t, sessionLines(t, "c1: open from 192.0.2.1", "c1: good login bob"))
	expect(t, sessionLines(t, "c1: open from 192.0.2.1", "c1: bad login bob", "c1: good login bob"), "0.1 192.0.2.1 bob x2")
	expect(t, sessionLines(t, "c1: open from 192.0.2.1", "c1: bad login bob", "c1: good login eve"),
		"0.1 192.0.2.1 bob x2", "0.3 192.0.2.1 eve,bob")
	// What ignoreregex takes out doesn't touch the session.
	expect(t, sessionLines(t, "c1: open from 192.0.2.1", "c1: bad login friend", "c1: bad login bob"), "0.1 192.0.2.1 bob x2")
	// The address of the failing line itself.
	expect(t, sessionLines(t, "c1: bad login bob from 192.0.2.9"), "0.2 192.0.2.9 bob")
}

func TestSessionsEnd(t *testing.T) {
	c := sessionFilter(t)
	s := NewSet(SetOptions{Location: time.UTC}, c)
	expect(t, scanWith(s, "2026-11-24 11:00:00 c1: open from 192.0.2.1\n2026-11-24 11:05:01 c1: bad login bob\n"))
	// As many as there may be, and then the oldest goes.
	s = NewSet(SetOptions{Location: time.UTC}, c)
	var b strings.Builder
	for i := range 3*maxSessions + 1 {
		fmt.Fprintf(&b, "2026-11-24 11:00:00 c%d: open from 192.0.2.1\n", i)
	}
	fmt.Fprintf(&b, "2026-11-24 11:00:00 c%d: bad login old\n", 2*maxSessions)
	fmt.Fprintf(&b, "2026-11-24 11:00:00 c%d: bad login new\n", 3*maxSessions)
	expect(t, scanWith(s, b.String()), "0.1 192.0.2.1 new x2")
	if n := len(s.filters[0].sessions.open); n > maxSessions {
		t.Errorf("%d sessions are remembered", n)
	}
	if n := len(s.filters[0].sessions.queue); n > 2*maxSessions {
		t.Errorf("%d sessions are queued", n)
	}
	// Opened and closed for ever.
	s = NewSet(SetOptions{Location: time.UTC}, c)
	for i := range 3 * maxSessions {
		scanWith(s, fmt.Sprintf("2026-11-24 11:00:00 c%d: open from 192.0.2.1\n2026-11-24 11:00:00 c%d: close\n", i, i))
	}
	if n := len(s.filters[0].sessions.queue); n > 2*maxSessions {
		t.Errorf("%d sessions are queued", n)
	}
}

func TestPrefregexContent(t *testing.T) {
	c := compile(t, Filter{
		Prefregex: `^ app: <ADDR> says <F-CONTENT>.+</F-CONTENT> \(end\)$`,
		Failregex: []string{`^bad <F-USER>\w+</F-USER>$`},
	})
	expect(t, scan(t, "2026-11-24 11:00:00 app: 192.0.2.1 says bad bob (end)\n2026-11-24 11:00:00 app: 192.0.2.1 says bad bob (end) (end)\nbad bob\n", c), "0.0 192.0.2.1 bob")
}

func TestIgnoreregex(t *testing.T) {
	few := Filter{Failregex: []string{`^ a <ADDR>`, `^ b <ADDR>`, `^ c <ADDR>`, `^ d <ADDR>`}, Ignoreregex: []string{`friend`}}
	many := Filter{Failregex: []string{`^ a <ADDR>`}, Ignoreregex: []string{`pal`, `friend`}}
	for _, f := range []Filter{few, many} {
		s := NewSet(SetOptions{Location: time.UTC}, compile(t, f))
		got := scanWith(s, "2026-11-24 11:00:00 a 192.0.2.1 foe\n2026-11-24 11:00:00 a 192.0.2.2 friend\n2026-11-24 11:00:00 x friend\n")
		expect(t, got, "0.0 192.0.2.1")
		if n := s.Stats().Ignored; n != 1 {
			t.Errorf("%d lines counted as ignored", n)
		}
	}
}

func TestLinesThatBelongTogether(t *testing.T) {
	c := compile(t, Filter{
		MaxLines:  4,
		Failregex: []string{`^ conn=<F-ID>\d+</F-ID> from <ADDR>$<SKIPLINES>^ conn=(?P=fid) denied$`},
	})
	at := "2026-11-24 11:00:00 "
	expect(t, scan(t, at+"conn=1 from 192.0.2.1\n"+at+"conn=1 denied\n", c), "0.0 192.0.2.1 id=1 x2")
	expect(t, scan(t, at+"conn=1 from 192.0.2.1\n"+at+"x\n"+at+"conn=2 from 192.0.2.2\n"+at+"conn=1 denied\n"+at+"conn=2 denied\n", c),
		"0.0 192.0.2.1 id=1 x2", "0.0 192.0.2.2 id=2 x2")
	// Lines of a match are used up.
	expect(t, scan(t, at+"conn=1 from 192.0.2.1\n"+at+"conn=1 denied\n"+at+"conn=1 denied\n", c), "0.0 192.0.2.1 id=1 x2")
	// Out of reach.
	expect(t, scan(t, at+"conn=1 from 192.0.2.1\n"+at+"x\n"+at+"x\n"+at+"x\n"+at+"conn=1 denied\n", c))
	// Across blocks.
	s := NewSet(SetOptions{Location: time.UTC}, c)
	expect(t, scanWith(s, at+"conn=1 from 192.0.2.1\n"))
	expect(t, scanWith(s, at+"conn=1 denied\n"), "0.0 192.0.2.1 id=1 x2")

	two := compile(t, Filter{MaxLines: 2, Failregex: []string{`^.*\n^WARNING: from <HOST>$`}, Ignoreregex: []string{`quiet`}, DatePattern: []string{`^%b %d, %Y %I:%M:%S %p`, `^WARNING:()**`}})
	expect(t, scan(t, "Nov 24, 2026 11:00:00 AM x\nWARNING: from 192.0.2.1\nNov 24, 2026 11:00:00 AM quiet\nWARNING: from 192.0.2.2\n", two), "0.0 192.0.2.1 x2")
}
