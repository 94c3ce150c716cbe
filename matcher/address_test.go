package matcher

import (
	"testing"
	"time"
)

func TestAddressIsWhole(t *testing.T) {
	for _, c := range []struct{ pattern, line, want string }{
		{`from <ADDR>`, "from 198.51.100.25", "0.0 198.51.100.25"},
		{`from .*<ADDR>`, "from 198.51.100.250", ""},
		{`from <ADDR>0$`, "from 198.51.100.250", ""},
		{`from <ADDR>(?::\d+)? x`, "from 2001:db8::1234:58430 x", "0.0 2001:db8::1234"},
		{`from <ADDR>:\d+ x`, "from 2001:db8::1:22 x", "0.0 2001:db8::1"},
		{`\[IPv6:<IP6>\]`, "[IPv6:2001:DB8::1]", "0.0 2001:db8::1"},
		{`from \S+?<IP6> x`, "from 2001:db8:1::1 x", ""},
		{`from <ADDR>:1:1$`, "from 2001:db8::1:1:1", ""},
		{`from <ADDR>:1`, "from 2001:db8::1:192.0.2.1", ""},
	} {
		var want []string
		if c.want != "" {
			want = []string{c.want}
		}
		expect(t, scan(t, c.line+"\n", compile(t, Filter{Failregex: []string{c.pattern}})), want...)
	}
}

// TestOddAddress: what only looks like an address is a failure of nobody who
// could be banned, as in fail2ban, unless another pattern finds an address.
func TestOddAddress(t *testing.T) {
	f := compile(t, Filter{Failregex: []string{`^x <ADDR>`, `y <ADDR>$`}})
	expect(t, scan(t, "x 192.0.2.09\nx 192.0.2.999 y 203.0.113.5\nz\n", f), "0.0 id=192.0.2.09", "0.1 203.0.113.5")
}

// TestNoFailWithoutSession: <F-NOFAIL> only has a meaning within a session;
// elsewhere fail2ban's server counts what has it like anything else.
func TestNoFailWithoutSession(t *testing.T) {
	f := compile(t, Filter{Failregex: []string{`^(?:<F-NOFAIL>key</F-NOFAIL>|\w+) refused for <ADDR>`}})
	expect(t, scan(t, "key refused for 192.0.2.1\npassword refused for 192.0.2.2\n", f), "0.0 192.0.2.1 nofail", "0.0 192.0.2.2")
}

func TestEpochOfAudit(t *testing.T) {
	f := compile(t, Filter{DatePattern: []string{"EPOCH"}, Failregex: []string{`^type=X msg=audit\(:\d+\): <ADDR>`}})
	s := NewSet(SetOptions{Location: time.UTC}, f)
	var at time.Time
	s.Scan([]byte("type=X msg=audit(1700000000.123:4070): 192.0.2.1\n"), noon, func(f *Failure) { at = f.Time })
	if want := time.UnixMilli(1700000000123); !at.Equal(want) {
		t.Errorf("time %v, want %v", at, want)
	}
}

func TestJournalLines(t *testing.T) {
	f := compile(t, Filter{DatePattern: []string{`^<W>{DATE}`}, Failregex: []string{`^host d\[1\]: <W>2019-09-08 13:00:05 <ADDR>$`}})
	s := NewSet(SetOptions{Location: time.UTC, Journal: true}, f)
	var got []*Failure
	s.Scan([]byte("2026-11-24T11:59:58.5+01:00 host d[1]: <W>2019-09-08 13:00:05 192.0.2.1\n"), noon, func(f *Failure) {
		c := *f
		got = append(got, &c)
	})
	want := time.Date(2026, 11, 24, 10, 59, 58, 5e8, time.UTC)
	if len(got) != 1 || !got[0].Time.Equal(want) || !got[0].Dated {
		t.Fatalf("got %+v, want one failure at %v", got, want)
	}
}

// TestPrefregexKeepsItsGroups: a group of the failregex that took no part
// doesn't wipe out what the prefregex caught.
func TestPrefregexKeepsItsGroups(t *testing.T) {
	f := compile(t, Filter{Prefregex: `^auth(?:\(<ADDR>\))?: <F-CONTENT>.+</F-CONTENT>$`, Failregex: []string{`^(?:sql\(<ADDR>\): )?wrong password`}})
	expect(t, scan(t, "auth(192.0.2.1): wrong password\nauth: sql(192.0.2.2): wrong password\nauth(192.0.2.3): sql(192.0.2.4): wrong password\n", f),
		"0.0 192.0.2.1", "0.0 192.0.2.2", "0.0 192.0.2.4")
}

func TestAddressAllocatesNothing(t *testing.T) {
	for _, line := range []string{"from 2001:db8::1234:5678 port", "from 198.51.100.250 port", "from 2001:db8::192.0.2.1 port", "from ::ffff:192.0.2.1 port"} {
		b := []byte(line)
		if n := testing.AllocsPerRun(100, func() { parseAddr(b, len("from "), len(b)-len(" port")) }); n > 0 {
			t.Errorf("%s: %v allocations", line, n)
		}
		if a, ok := parseAddr(b, len("from "), len(b)-len(" port")); !ok || !a.IsValid() {
			t.Errorf("%s is no address", line)
		}
	}
}
