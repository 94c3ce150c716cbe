package matcher

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

var noon = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

func compile(t testing.TB, f Filter) *Compiled {
	t.Helper()
	c, err := Compile(f)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// scan returns what a fresh Set emits for a block, one line a failure.
func scan(t testing.TB, block string, filters ...*Compiled) []string {
	t.Helper()
	s := NewSet(SetOptions{Location: time.UTC}, filters...)
	return scanWith(s, block)
}

func scanWith(s *Set, block string) []string {
	var got []string
	s.Scan([]byte(block), noon, func(f *Failure) { got = append(got, show(f)) })
	return got
}

func show(f *Failure) string {
	who := f.Host
	if f.Source.IsValid() {
		who = f.Source.String()
		if f.Source.IsSingleIP() {
			who = f.Source.Addr().String()
		}
	}
	if f.ID != "" {
		who = strings.TrimSpace(who + " id=" + f.ID)
	}
	s := fmt.Sprintf("%d.%d %s", f.Filter, f.Pattern, who)
	if len(f.Users) > 0 {
		s += " " + strings.Join(f.Users, ",")
	}
	if f.Count > 1 {
		s += fmt.Sprintf(" x%d", f.Count)
	}
	if f.NoFail {
		s += " nofail"
	}
	return s
}

func expect(t *testing.T, got []string, want ...string) {
	t.Helper()
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

const sshdFailed = `^Failed (?:password|publickey) for (?:invalid user )?<F-USER>.*</F-USER> from <ADDR> port \d+(?: ssh\d*)?$`

func TestHeaderSelectsTheFilter(t *testing.T) {
	sshd := compile(t, Filter{Name: "sshd", Programs: []string{"sshd", "sshd-session"}, Failregex: []string{sshdFailed}})
	const msg = "Failed password for root from 192.0.2.7 port 22 ssh2"
	for _, tc := range []struct {
		line string
		ok   bool
	}{
		{"Nov 24 11:57:28 host sshd[12]: " + msg, true},
		{"Nov  4 11:57:28 host sshd[12]: " + msg, true},
		{"2026-11-24T11:57:28.123456+00:00 host sshd-session[12]: " + msg, true},
		{"2026-11-24T11:57:28Z host sshd: " + msg, true},
		{"<86>1 2026-11-24T11:57:28.1Z host sshd 12 - - " + msg, true},
		{"<86>1 2026-11-24T11:57:28.1Z host sshd 12 ID [x@1 a=\"]\\\"\"][y] " + msg, true},
		{"Nov 24 11:57:28 host cron[12]: " + msg, false},
		{"Nov 24 11:57:28 host xsshd[12]: " + msg, false},
		{"Nov 24 11:57:28 host sshdx[12]: " + msg, false},
		{msg, false},
		{"sshd[12]: " + msg, false},
		// What a program logs can't pass for a header.
		{"Nov 24 11:57:28 host web[1]: Nov 24 11:57:28 host sshd[12]: " + msg, false},
		{"Nov 24 11:57:28 host web[1]: sshd[12]: " + msg, false},
		{"Nov 24 11:57:28 host web[1]:\tsshd[12]: " + msg, false},
		{"Nov 24 11:57:28 host web[ sshd[12]: " + msg, false},
		{"Nov 24 11:57:28 2026 web[1]: sshd[12]: " + msg, false},
		{"Nov 24 11:57:28 2026 web: sshd: " + msg, false},
		{"Nov 24 11:57:28 host  sshd[12]: " + msg, false},
		{"x Nov 24 11:57:28 host sshd[12]: " + msg, false},
		{" Nov 24 11:57:28 host sshd[12]: " + msg, false},
	} {
		if got := scan(t, tc.line+"\n", sshd); (len(got) == 1) != tc.ok {
			t.Errorf("%q: got %v, want a match: %v", tc.line, got, tc.ok)
		}
	}
}

func TestInjection(t *testing.T) {
	sshd := compile(t, Filter{Name: "sshd", Programs: []string{"sshd"}, Failregex: []string{sshdFailed}})
	got := scan(t, "Nov 24 11:57:28 host sshd[12]: Failed password for invalid user a from 203.0.113.5 port 22 ssh2 from 192.0.2.7 port 22 ssh2\n"+
		"Nov 24 11:57:28 host sshd[12]: Failed password for invalid user Failed password for a from 203.0.113.5 port 22 from 192.0.2.7 port 22\n", sshd)
	expect(t, got, "0.0 192.0.2.7 a from 203.0.113.5 port 22 ssh2", "0.0 192.0.2.7 Failed password for a from 203.0.113.5 port 22")
}
