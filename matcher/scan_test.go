package matcher

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

func TestLineEnds(t *testing.T) {
	c := compile(t, Filter{Failregex: []string{`^ bad <ADDR>$`}})
	const l = "2026-11-24 11:00:00 bad 192.0.2.1"
	for _, tc := range []struct {
		block string
		lines uint64
		found int
	}{
		{l + "\n", 1, 1},
		{l + "\r\n", 1, 1},
		{l + "\r\r\n", 1, 1},
		{l, 1, 1},
		{l + "\r", 1, 1},
		{"\n\n" + l + "\n\n", 4, 1},
		{l + "\n" + l, 2, 2},
		{"\n", 1, 0},
		{"\r\n", 1, 0},
		{"", 0, 0},
		{l + "\x00\n", 1, 0},
		{"\x00" + l + "\n", 1, 0},
		{l + " \n", 1, 0},
		{l + "\rx\n", 1, 0},
	} {
		s := NewSet(SetOptions{Location: time.UTC}, c)
		n := 0
		s.Scan([]byte(tc.block), noon, func(f *Failure) {
			n++
			if want := l; string(f.Line) != want {
				t.Errorf("%q: line %q", tc.block, f.Line)
			}
		})
		if n != tc.found || s.Stats().Lines != tc.lines {
			t.Errorf("%q: %d found, %d lines; want %d, %d", tc.block, n, s.Stats().Lines, tc.found, tc.lines)
		}
	}
}

func TestLongLinesAreDroppedWhole(t *testing.T) {
	c := compile(t, Filter{Programs: []string{"sshd"}, Failregex: []string{sshdFailed}})
	fresh := "Nov 24 11:00:00 host sshd[1]: Failed password for root from 192.0.2.1 port 1"
	pad := strings.Repeat("x", MaxLine)
	for _, line := range []string{fresh + pad, pad + fresh, pad + " " + fresh, "Nov 24 11:00:00 host sshd[1]: Failed password for " + pad + " from 192.0.2.1 port 1"} {
		s := NewSet(SetOptions{Location: time.UTC}, c)
		if got := scanWith(s, line+"\n"); len(got) != 0 || s.Stats().TooLong != 1 {
			t.Errorf("%.40q…: %v, %+v", line, got, s.Stats())
		}
	}
	// What comes after one is read again, also after one that is longer than
	// what is searched at a time.
	for _, n := range []int{1, 5, 40} {
		s := NewSet(SetOptions{Location: time.UTC}, c, compile(t, Filter{Failregex: []string{`^never <ADDR>`}}))
		expect(t, scanWith(s, fresh+"\n"+fresh+strings.Repeat(pad, n)+"\n"+fresh+"\n"), "0.0 192.0.2.1 root", "0.0 192.0.2.1 root")
		if s.Stats().Lines != 3 {
			t.Errorf("%d lines", s.Stats().Lines)
		}
	}
	// As long as may be.
	user := strings.Repeat("x", MaxLine-len(fresh)+len("root")-1)
	if got := scan(t, strings.Replace(fresh, "root", user, 1)+"\n", c); len(got) != 1 {
		t.Error("a line of MaxLine bytes isn't read")
	}
}

func TestLatin1(t *testing.T) {
	f := Filter{Failregex: []string{`^ Zugriff für <F-USER>\w+</F-USER> von <ADDR>$`}}
	line := "2026-11-24 11:00:00 Zugriff f\xfcr J\xf6rg von 192.0.2.1\n"
	expect(t, scan(t, line, compile(t, f)))
	f.Encoding = "ISO-8859-1"
	expect(t, scan(t, line, compile(t, f)), "0.0 192.0.2.1 Jörg")
}

func TestExceededLinesAreCounted(t *testing.T) {
	c := compile(t, Filter{Failregex: []string{`^ (a*)*(b|a)*\1x <ADDR>$`}})
	s := NewSet(SetOptions{Location: time.UTC}, c)
	got := scanWith(s, "2026-11-24 11:00:00 "+strings.Repeat("a", 3000)+" 192.0.2.1\n2026-11-24 11:00:00 ax 192.0.2.1\n")
	expect(t, got, "0.0 192.0.2.1")
	if n := s.Stats().Skipped; n != 1 {
		t.Errorf("%d lines counted as skipped", n)
	}
}

func TestMissedLinesAreCounted(t *testing.T) {
	s := NewSet(SetOptions{Location: time.UTC},
		compile(t, Filter{Failregex: []string{`^ bad <ADDR>$`}, Ignoreregex: []string{`192\.0\.2\.9$`}}),
		compile(t, Filter{Failregex: []string{`^ bad <ADDR>$`, `^ none <F-NOFAIL>of</F-NOFAIL> <ADDR>$`}}))
	const at = "2026-11-24 11:00:00 "
	got := scanWith(s, at+"bad 192.0.2.1\n"+at+"good 192.0.2.2\n"+at+"bad 192.0.2.9\n"+at+"bad luck 192.0.2.3\n"+
		at+"bad "+strings.Repeat("x", MaxLine)+"\n\n")
	if n := s.Stats(); n.Lines != 6 || n.Missed != 3 {
		t.Errorf("%v: %+v; want 3 of 6 lines missed", got, n)
	}
}

// Two filters see one line: in the order of filters, lines before that.
func TestOrder(t *testing.T) {
	a := compile(t, Filter{Failregex: []string{`^ x <ADDR>`}})
	b := compile(t, Filter{Failregex: []string{`<ADDR>`}}) // no literal at all
	at := "2026-11-24 11:00:00 "
	expect(t, scan(t, at+"x 192.0.2.1\n"+at+"y 192.0.2.2\n"+at+"x 192.0.2.3\n", a, b, a),
		"0.0 192.0.2.1", "1.0 192.0.2.1", "2.0 192.0.2.1", "1.0 192.0.2.2", "0.0 192.0.2.3", "1.0 192.0.2.3", "2.0 192.0.2.3")
}

// jailSet is a mix of filters of every kind: by program, with and without
// literals, short ones, with sessions, over several lines.
func jailSet(t testing.TB) []*Compiled {
	return []*Compiled{
		sshdFilter(t),
		compile(t, Filter{Failregex: []string{`^<HOST> \S+ \S+ \[\] "(?:GET|POST) [^"]*/wp-login\.php[^"]*" [45]\d\d`, `^<HOST> .* "[^"]*" 418`}}),
		compile(t, Filter{Failregex: []string{`^ \[\] \[client <ADDR>\] (?:denied|AH\d+)`}}),
		sessionFilter(t),
		compile(t, Filter{Programs: []string{"x"}, Failregex: []string{`^<ADDR>$`}}),
		compile(t, Filter{Failregex: []string{`(?i)^\s*(?:nok|No Key) <ADDR>`}}),
		compile(t, Filter{Programs: []string{"postfix/*"}, Prefregex: `^NOQUEUE: <F-CONTENT>.+</F-CONTENT>$`, Failregex: []string{`^reject: .* from \S+\[<ADDR>\]`, `from <ADDR>: 55[04]`}}),
	}
}

func fragments() []string {
	return []string{
		"2026-11-24 11:00:00", "Nov 24 11:00:00", "[24/Nov/2026:11:00:00 +0000]", "@4000000069a3655f00000000", "1772315999", "11:00:00",
		" ", " ", " ", " ", ": ", "[", "]", "\"", "host", "sshd[12]: ", "sshd", "x: ", "postfix/smtpd[1]: ",
		"192.0.2.1", "2001:db8::1", "1.2.3", "mail.example.org", "root", "Failed password for ", "invalid user ", " from ", " port 22 ssh2",
		"Invalid user ", "- - ", "\"GET /wp-login.php HTTP/1.1\" 404", " 418", "[client ", "denied", "AH01", "] ",
		" c1: ", " c2: ", "open from ", "bad login bob", "good login eve", "close", "noise", "friend",
		"nok ", "NO KEY ", "No \u212aey ", "NOQUEUE: ", "reject: ", "55", "554", "\n", "\n", "\n", "\r\n", "\x00", "\xff", "é", "audit(1772315999.1:2)",
	}
}

// byLine is what Scan must find: every pattern on every line.
func byLine(t testing.TB, block []byte, filters []*Compiled) []string {
	s := NewSet(SetOptions{Location: time.UTC}, filters...)
	var got []string
	for len(block) > 0 {
		n := bytes.IndexByte(block, '\n') + 1
		if n == 0 {
			n = len(block)
		}
		for _, e := range s.Explain(block[:n], noon) {
			if e.Failure != nil {
				got = append(got, show(e.Failure)+e.Failure.Time.Format(" 15:04:05"))
			}
		}
		block = block[n:]
	}
	return got
}

// checkScan scans block in pieces and compares.
func checkScan(t testing.TB, block []byte, filters []*Compiled, cut int) {
	t.Helper()
	want := byLine(t, block, filters)
	s := NewSet(SetOptions{Location: time.UTC}, filters...)
	var got []string
	for rest := block; len(rest) > 0; {
		n := min(cut, len(rest))
		if i := bytes.IndexByte(rest[n-1:], '\n'); i >= 0 {
			n += i
		} else {
			n = len(rest)
		}
		s.Scan(rest[:n], noon, func(f *Failure) { got = append(got, show(f)+f.Time.Format(" 15:04:05")) })
		rest = rest[n:]
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Fatalf("block of %d in pieces of %d: %q\nscan:\n\t%s\nline by line:\n\t%s", len(block), cut, block, strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

func TestScanFindsWhatPatternsFind(t *testing.T) {
	filters := jailSet(t)
	some := filters[:4:4]
	for i, c := range filters {
		if !NewSet(SetOptions{}, c).everyLine {
			some = append(some, filters[i])
		}
	}
	r := rand.New(rand.NewPCG(3, 4))
	parts := fragments()
	lines := []string{
		"Nov 24 11:00:00 host sshd[12]: Failed password for root from 192.0.2.1 port 22 ssh2\n",
		"192.0.2.3 - - [24/Nov/2026:11:00:00 +0000] \"GET /wp-login.php HTTP/1.1\" 404 1\n",
		"2026-11-24 11:00:00 [] [client 192.0.2.4] denied\n", "[2026-11-24 11:00:00] [client 192.0.2.4] denied\n", " [2026-11-24 11:00:00] [client 192.0.2.4] AH1\n",
		"2026-11-24 11:00:00 c1: open from 192.0.2.1\n", "2026-11-24 11:00:00 c1: bad login bob\n",
		"2026-11-24 11:00:00 No Key 192.0.2.7\n", "x nok 192.0.2.7\n", " no key 192.0.2.7\n",
		"Nov 24 11:00:00 host postfix/smtpd[1]: NOQUEUE: reject: RCPT from x[192.0.2.8]: 554\n",
		"Nov 24 11:00:00 host x: 192.0.2.9\n",
	}
	for range 500 {
		var b bytes.Buffer
		for range 1 + r.IntN(60) {
			if r.IntN(4) == 0 {
				b.WriteString(lines[r.IntN(len(lines))])
			} else {
				b.WriteString(parts[r.IntN(len(parts))])
			}
		}
		checkScan(t, b.Bytes(), filters, 1+r.IntN(200))
		checkScan(t, b.Bytes(), some, 1+r.IntN(200))
	}
	log := append(sshdLog(2000, .3, syslogStamp), sshdLog(2000, .3, isoStamp)...)
	for _, cut := range []int{1, 100, 4096, 1 << 20} {
		checkScan(t, log, filters[:1], cut)
		checkScan(t, log, filters, cut)
	}
}

func FuzzScan(f *testing.F) {
	filters := jailSet(f)
	for i := range 200 {
		r := rand.New(rand.NewPCG(uint64(i), 5))
		var b bytes.Buffer
		for range 20 {
			b.WriteString(fragments()[r.IntN(len(fragments()))])
		}
		f.Add(b.Bytes(), uint8(r.IntN(256)))
	}
	f.Fuzz(func(t *testing.T, block []byte, cut uint8) {
		checkScan(t, block, filters, int(cut)+1)
	})
}

func FuzzHeader(f *testing.F) {
	for _, s := range fragments() {
		f.Add("Nov 24 11:57:28 host " + s)
		f.Add("<86>1 2026-11-24T11:57:28.1Z host " + s + " 1 - [x a=\"]\"] y")
		f.Add("2026-11-24T11:57:28.123456+00:00 h " + s + "[1]: m")
	}
	f.Fuzz(func(t *testing.T, line string) {
		var h header
		if !h.parse([]byte(line)) {
			return
		}
		if h.message > len(line) || len(h.tag) == 0 || bytes.ContainsAny(h.tag, " ") {
			t.Fatalf("%q: tag %q, message at %d", line, h.tag, h.message)
		}
		// Nothing in front of the message may come from it: the header is the
		// same whatever the message says.
		var g header
		if !g.parse([]byte(line[:h.message]+"sshd[1]: x")) || string(g.tag) != string(h.tag) || g.message != h.message {
			if line[0] != '<' { // structured data ends where it ends
				t.Fatalf("%q: tag %q, but with another message %q", line, h.tag, g.tag)
			}
		}
	})
}

func FuzzAddress(f *testing.F) {
	for _, s := range []string{"192.0.2.1", "::ffff:192.0.2.1", "[2001:db8::1]", "1.2.3", "a.example.org", "2001:db8::/33", "fe80::1%eth0"} {
		f.Add("from " + s + " port")
	}
	c := compile(f, Filter{Failregex: []string{`from <HOST>`, `net <SUBNET>`}})
	f.Fuzz(func(t *testing.T, line string) {
		s := NewSet(SetOptions{Location: time.UTC}, c)
		s.Scan([]byte(line), noon, func(x *Failure) {
			if x.Source.IsValid() == (x.Host != "" || x.ID != "") || x.Source.IsValid() && (x.Source != x.Source.Masked() || x.Source.Addr().Is4In6() || x.Source.Addr().Zone() != "") {
				t.Fatalf("%q: %+v", line, x)
			}
		})
	})
}

func TestAllocations(t *testing.T) {
	misses, failures := sshdLog(500, 0, syslogStamp), sshdLog(500, 1, syslogStamp)
	iso := sshdLog(500, 0, isoStamp)
	access := bytes.Repeat([]byte("192.0.2.3 - bob [24/Nov/2026:11:00:00 +0100] \"GET /wp-login.php HTTP/1.1\" 404 1\n"), 500)
	web := compile(t, Filter{
		DatePattern: []string{`^[^"]*(\[%d/%b/%Y:%H:%M:%S %z\]) "`},
		Failregex:   []string{`^<ADDR> [^"]*"GET /+wp-login\.php[^"]*" 404 `},
	})
	sshd := sshdFilter(t)
	var whole []*Compiled
	for _, c := range jailSet(t) {
		if c.pref == nil || c.pref.mlfid == nil {
			whole = append(whole, c)
		}
	}
	for _, tc := range []struct {
		name    string
		log     []byte
		filters []*Compiled
	}{
		{"misses", misses, []*Compiled{sshd}},
		{"misses, ISO dates", iso, []*Compiled{sshd}},
		{"failures", failures, []*Compiled{sshd}},
		{"access log", access, []*Compiled{web}},
		{"misses, many filters", misses, whole},
		{"failures, many filters", failures, whole},
	} {
		s := NewSet(SetOptions{Location: time.UTC}, tc.filters...)
		emit := func(*Failure) {}
		s.Scan(tc.log, noon, emit)
		if tc.name == "access log" && scanWith(s, string(tc.log[:100])) == nil {
			t.Error("nothing found")
		}
		if n := testing.AllocsPerRun(10, func() { s.Scan(tc.log, noon, emit) }); n > 0 {
			t.Errorf("%s: %.1f allocations a block of 500 lines", tc.name, n)
		}
	}
}

func TestClone(t *testing.T) {
	c := sessionFilter(t)
	block := []byte("2026-11-24 11:00:00 c1: open from 192.0.2.1\n2026-11-24 11:00:01 c1: bad login bob\n")
	var kept *Failure
	NewSet(SetOptions{Location: time.UTC}, c).Scan(block, noon, func(f *Failure) { kept = f.Clone() })
	want := show(kept)
	for i := range block {
		block[i] = '#'
	}
	if got := show(kept); got != want || kept.Users[0] != "bob" || !bytes.HasSuffix(kept.Line, []byte("bad login bob")) {
		t.Errorf("got %s, %q", got, kept.Line)
	}
}

func TestExplain(t *testing.T) {
	web := compile(t, Filter{Failregex: []string{`^<HOST> - \S+ \[\] "GET /bad`, `^<HOST> - \S+ \[\] "GET /worse`}, Ignoreregex: []string{`friend`}})
	s := NewSet(SetOptions{Location: time.UTC}, web, sshdFilter(t), sessionFilter(t))
	for _, tc := range []struct{ line, want string }{
		{`192.0.2.1 - - [24/Nov/2026:11:00:00 +0000] "GET /worse`, `matched 1 -1 "192.0.2.1 - - [] \"GET /worse" %d(?P<_sep>[-/])%b(?P=_sep)%ExY[ :]?%H:%M:%S(?:\.%f)?(?: %z)?`},
		{`192.0.2.1 - friend [24/Nov/2026:11:00:00 +0000] "GET /bad`, `ignored 0 0`},
		{`192.0.2.1 - - "GET /fine`, `missed -1 -1`},
		{`1.2.3 - - [] "GET /bad`, `no address 0 -1`},
		{strings.Repeat("x", MaxLine) + "\n", `too long -1 -1`},
	} {
		e := s.Explain([]byte(tc.line), noon)[0]
		if got := fmt.Sprintf("%s %d %d %q %s", e.Outcome, e.Pattern, e.Ignore, e.Text, e.Template); !strings.HasPrefix(got, tc.want) {
			t.Errorf("%.60q: got %s, want %s", tc.line, got, tc.want)
		}
	}
	e := s.Explain([]byte("Nov 24 11:57:28 host sshd[12]: Invalid user bob from 192.0.2.1\r\n"), noon)[1]
	if e.Outcome != Matched || e.Program != "sshd" || string(e.Text) != "Invalid user bob from 192.0.2.1" || e.Template != "%b %d %H:%M:%S" || e.Failure.Source.String() != "192.0.2.1/32" {
		t.Errorf("%+v", e)
	}
	if e := s.Explain([]byte("Nov 24 11:57:28 host cron[12]: x"), noon)[1]; e.Outcome != NotRead || e.Program != "cron" {
		t.Errorf("%+v", e)
	}
	for _, tc := range []struct {
		line string
		want Outcome
	}{{"c1: open from 192.0.2.1", NoFail}, {"c2: bad login bob", Pending}, {"c1: bad login bob", Matched}} {
		if e := s.Explain([]byte("2026-11-24 11:00:00 "+tc.line), noon)[2]; e.Outcome != tc.want {
			t.Errorf("%s: %s", tc.line, e.Outcome)
		}
	}
}

func TestDated(t *testing.T) {
	c := func(f Filter) *Compiled {
		t.Helper()
		f.Failregex = []string{`^bad <ADDR>$`}
		out, err := Compile(f)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	now := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	s := NewSet(SetOptions{Location: time.UTC}, c(Filter{Programs: []string{"d"}}), c(Filter{}))
	for _, tt := range []struct {
		line string
		want time.Time
	}{
		{"Nov 25 11:00:00 host d[1]: nothing of interest\n", now.Add(-time.Hour)},
		{"2026-11-25T11:30:00+00:00 host other: nothing\n", now.Add(-30 * time.Minute)},
		{"[25/Nov/2026:11:45:00 +0000] GET /\n", now.Add(-15 * time.Minute)},
		{"no date at all\n", time.Time{}},
		{strings.Repeat("x", MaxLine+1), time.Time{}},
	} {
		at, ok := s.Dated([]byte(tt.line), now)
		if ok == tt.want.IsZero() || !at.Equal(tt.want) {
			t.Errorf("%.40q: %v, %v, want %v", tt.line, at, ok, tt.want)
		}
	}
	if got := s.Stats(); got != (Stats{}) {
		t.Errorf("counted: %+v", got)
	}
}
