package feed

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

var noon = time.Date(2026, 5, 8, 12, 0, 0, 0, time.UTC)

func source(format string) *Source {
	return &Source{Name: "x", Format: format, Column: "1", Path: "[]", MaxBytes: 1 << 20, MaxEntries: 1000, MaxChange: 50, Interval: time.Hour, BanTime: 24 * time.Hour}
}

func prefixes(list ...string) (all []netip.Prefix) {
	for _, s := range list {
		p, err := ParsePrefix(s)
		if err != nil {
			panic(err)
		}
		all = append(all, p)
	}
	slices.SortFunc(all, netip.Prefix.Compare)
	return all
}

func TestParse(t *testing.T) {
	two := []string{"192.0.2.1", "2001:db8::/32"}
	for _, c := range []struct {
		format, column, separator, path string
		text                            string
		want                            []string
		bad                             int
		err                             string
	}{
		{format: Plain, text: "\ufeff# a list\r\n192.0.2.1\r\n\r\n 2001:db8::1/32 ; why\n192.0.2.1 # again\n", want: two},
		{format: Plain, text: "::ffff:192.0.2.1\n2001:db8::/32", want: two},
		{format: Plain, text: "", want: nil},
		{format: Plain, text: strings.Repeat("192.0.2.1\n", 9) + "fe80::1%eth0\n", want: []string{"192.0.2.1"}, bad: 1},
		{format: Plain, text: "192.0.2.1\n192.0.2.0 - 192.0.2.255\n", err: `1 of 2 entries make no sense, the first: "192.0.2.0 - 192.0.2.255" is no`},
		{format: Plain, text: "<html><body>Not found</body></html>\n", err: "1 of 1 entries make no sense"},
		{format: Plain, text: strings.Repeat("x", 100_000), err: "a line is longer than 65536 bytes"},
		{format: Plain, text: strings.Repeat("# \n", 400_000), err: "it is longer than max_bytes = 1048576"},
		{format: Plain, text: many(1001), err: "line 1001: too many entries: more than max_entries = 1000"},
		{format: CIDR, text: "192.0.2.1/32\n2001:db8::/32\n", want: two},
		{format: CIDR, text: "192.0.2.1\n", err: `"192.0.2.1" is no subnet`},
		{format: CSV, column: "2", text: "first,ip\na,192.0.2.1\nb, 2001:db8::/32\n", want: two},
		{format: CSV, column: "ip", separator: "\t", text: "# made today\nfirst\tip\n\"a b\"\t\"192.0.2.1\"\nb\t2001:db8::/32\textra\n", want: two},
		{format: CSV, column: "addr", text: "first,ip\na,192.0.2.1\n", err: `it has no column "addr"`},
		{format: CSV, column: "3", text: "a,192.0.2.1\n", err: "a line has 2 columns, and not 3"},
		{format: CSV, column: "ip", text: "", err: "no line with the names of its columns"},
		{format: JSON, path: "data.blocks[].cidr", text: `{"n":[1,{"a":[]}],"data":{"blocks":[{"cidr":"192.0.2.1","x":{"cidr":"203.0.113.1"}},{"x":1},{"cidr":null},{"cidr":"2001:db8::/32"}]}}`, want: two},
		{format: JSON, path: "[]", text: `["192.0.2.1","2001:db8::/32"]`, want: two},
		{format: JSON, path: "ip", text: "{\"ip\":\"192.0.2.1\"}\n{\"ip\":\"2001:db8::/32\"}\n", want: two},
		{format: JSON, path: "[]", text: `[]`, want: nil},
		{format: JSON, path: "blocks[]", text: `{"error":"too many requests"}`, err: "there is nothing at the path blocks[]"},
		{format: JSON, path: "[]", text: `["192.0.2.1","2001:db8`, err: "unexpected EOF"},
		{format: JSON, path: "[]", text: ``, err: "it has no JSON value"},
		{format: JSON, path: "[]", text: `[1]`, err: "1 stands where a text should"},
		{format: JSON, path: "[]", text: `[{}]`, err: "a list or an object stands"},
		{format: Spamhaus, text: "; Spamhaus DROP List\n192.0.2.0/24 ; SBL1\n198.51.100.0/24 ; SBL2\n", want: []string{"192.0.2.0/24", "198.51.100.0/24"}},
		{format: Spamhaus, text: `{"cidr":"192.0.2.0/24","sblid":"SBL1","rir":"ripencc"}` + "\n" + `{"type":"metadata","timestamp":1,"size":64,"records":1}` + "\n", want: []string{"192.0.2.0/24"}},
		{format: Spamhaus, text: `{"cidr":"192.0.2.0/24"}` + "\n", err: "it was cut off"},
		{format: Spamhaus, text: `{"cidr":"192.0.2.0/24"}` + "\n" + `{"type":"metadata","records":2}`, err: "it has 1 entries, but says that there are 2"},
		{format: Spamhaus, text: " \n", err: "it is empty"},
		{format: Spamhaus, text: "<!doctype html>", err: "make no sense"},
		{format: IPSet, text: "create x hash:net family inet hashsize 1024 maxelem 65536\nadd x 192.0.2.1 comment \"a b\"\nadd x 2001:db8::/32\n", want: two},
		{format: IPSet, text: "# FireHOL\n192.0.2.1\n2001:db8::/32\n", want: two},
		{format: IPSet, text: many(9) + "add x 192.0.2.1 nomatch\n", want: strings.Fields(many(9)), bad: 1},
		{format: IPSet, text: "add x 192.0.2.1,tcp:80\n", err: "is no address"},
		{format: IPSet, text: "flush x\n", err: "isn't of an ipset"},
	} {
		s := source(c.format)
		s.Column, s.Separator, s.Path = c.column, c.separator, c.path
		got, err := parse(strings.NewReader(c.text), s, noon)
		name := fmt.Sprintf("%s %.60q", c.format, c.text)
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: %v, want %q", name, err, c.err)
			}
			continue
		}
		if err != nil || got.bad != c.bad || !slices.Equal(prefixesOf(got.entries), prefixes(c.want...)) {
			t.Errorf("%s: %v, %v, want %v", name, got, err, c.want)
		}
	}
}

// many are lines with so many addresses.
func many(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "2001:db8::%x\n", i+1)
	}
	return b.String()
}

func TestIPSetTimeout(t *testing.T) {
	got, err := parse(strings.NewReader("add x 192.0.2.1 timeout 60\nadd x 192.0.2.2 timeout 0\nadd x 192.0.2.1 timeout 90\n"), source(IPSet), noon)
	want := []Entry{{prefixes("192.0.2.1")[0], noon.Add(90 * time.Second)}, {Prefix: prefixes("192.0.2.2")[0]}}
	if err != nil || !slices.Equal(got.entries, want) {
		t.Errorf("%v, %v", got.entries, err)
	}
}

// fuzz tries a format with any bytes: they are refused, or what comes out of
// them is a sorted list within its bounds.
func fuzz(f *testing.F, s *Source, seeds ...string) {
	for _, seed := range seeds {
		f.Add([]byte(seed))
	}
	s.MaxBytes, s.MaxEntries = 1<<16, 100
	f.Fuzz(func(t *testing.T, text []byte) {
		got, err := parse(strings.NewReader(string(text)), s, noon)
		if len(text) > int(s.MaxBytes) && err == nil {
			t.Fatalf("%d bytes are taken", len(text))
		}
		if err != nil {
			return
		}
		if len(got.entries) > s.MaxEntries || got.bad*badShare > len(text) {
			t.Fatalf("%d entries, %d bad", len(got.entries), got.bad)
		}
		for i, e := range got.entries {
			p := e.Prefix
			if !p.IsValid() || p != p.Masked() || p.Addr().Is4In6() && p.Bits() >= 96 || p.Addr().Zone() != "" || i > 0 && got.entries[i-1].Prefix.Compare(p) >= 0 {
				t.Fatalf("entry %d is %v", i, e)
			}
		}
	})
}

func FuzzPlain(f *testing.F) { fuzz(f, source(Plain), "192.0.2.1\n2001:db8::/32 # x\n") }
func FuzzCIDR(f *testing.F)  { fuzz(f, source(CIDR), "192.0.2.0/24\n") }
func FuzzCSV(f *testing.F)   { fuzz(f, source(CSV), "192.0.2.1,x\n\"192.0.2.2\",y\n") }
func FuzzCSVName(f *testing.F) {
	s := source(CSV)
	s.Column = "ip"
	fuzz(f, s, "ip,x\n192.0.2.1,x\n")
}
func FuzzJSON(f *testing.F) {
	s := source(JSON)
	s.Path = "a[].b"
	fuzz(f, s, `{"a":[{"b":"192.0.2.1"}]}`)
}
func FuzzSpamhaus(f *testing.F) {
	fuzz(f, source(Spamhaus), "192.0.2.0/24 ; SBL1\n", `{"cidr":"192.0.2.0/24"}{"type":"metadata","records":1}`)
}
func FuzzIPSet(f *testing.F) { fuzz(f, source(IPSet), "add x 192.0.2.1 timeout 1\n192.0.2.2\n") }

// FuzzDecisions tries what a CrowdSec API may answer.
func FuzzDecisions(f *testing.F) {
	f.Add([]byte(`{"new":[{"type":"ban","scope":"Ip","value":"192.0.2.1","duration":"1h"}],"deleted":null}`))
	s := source(CrowdSec)
	f.Fuzz(func(t *testing.T, text []byte) {
		d, err := readDecisions(strings.NewReader(string(text)), s)
		if err != nil {
			return
		}
		for _, x := range d.New {
			if p, ok := x.prefix(); ok && (!p.IsValid() || p != p.Masked()) {
				t.Fatalf("%+v is %v", x, p)
			}
		}
	})
}

func TestParsePath(t *testing.T) {
	for _, c := range []struct {
		path string
		want []string
	}{
		{"ip", []string{"ip"}}, {"[]", []string{"[]"}}, {"[].ip", []string{"[]", "ip"}}, {"a.b[][].c", []string{"a", "b", "[]", "[]", "c"}},
		{"", nil}, {"a..b", nil}, {"a[", nil}, {"a]", nil}, {"a[0]", nil}, {".", nil},
	} {
		got, err := ParsePath(c.path)
		if (err == nil) != (c.want != nil) || !slices.Equal(got, c.want) {
			t.Errorf("%q: %q, %v", c.path, got, err)
		}
	}
}
