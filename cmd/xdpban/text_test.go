package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"xdpban/jails"
)

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"Failed password for root": "Failed password for root",
		"Grüße, 世界 ☃":              "Grüße, 世界 ☃",
		"a\x1b[2Jb":                `a\x1b[2Jb`,
		"\x1b]0;title\x07":         `\x1b]0;title\a`,
		"a\r\nb\tc\x00\x7f":        `a\r\nb\tc\x00\x7f`,
		"\u009b31m":                `\u009b31m`,             // CSI in one character
		"\xff\x9b":                 `\xff\x9b`,              // not UTF-8
		"abc\u202edcba":            `abc\u202edcba`,         // right to left
		"a\u200bb\ufeffc\u2028":    `a\u200bb\ufeffc\u2028`, // no width; line separator
		`back\slash`:               `back\slash`,
	} {
		if got := printable(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func FuzzPrintable(f *testing.F) {
	f.Add("a\x1b[2J\u009b\u202e\xff世界")
	f.Fuzz(func(t *testing.T, s string) {
		for _, r := range printable(s) {
			if r == unicode.ReplacementChar && !strings.ContainsRune(s, r) || !unicode.IsPrint(r) {
				t.Errorf("%q became %q", s, printable(s))
			}
		}
		b, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		out := printableJSON(b)
		for _, r := range string(out) {
			if !unicode.IsPrint(r) {
				t.Errorf("JSON of %q became %q", s, out)
			}
		}
		var before, after string
		if json.Unmarshal(b, &before) != nil || json.Unmarshal(out, &after) != nil || before != after {
			t.Errorf("JSON of %q changed its meaning: %q", s, out)
		}
	})
}

func TestSpan(t *testing.T) {
	for in, want := range map[string]time.Duration{
		"90s": 90 * time.Second, "10m": 10 * time.Minute, "1h30m": 90 * time.Minute,
		"1d12h": 36 * time.Hour, "2w": 14 * 24 * time.Hour, "forever": jails.Forever,
	} {
		var s span
		if err := s.UnmarshalText([]byte(in)); err != nil || time.Duration(s) != want {
			t.Errorf("%s: %v, %v", in, time.Duration(s), err)
		}
	}
	for _, in := range []string{"", "0s", "-1h", "1", "h", "1x", "1h 30m", "99999999999w", "9223372036854775807w", "1.5h"} {
		var s span
		if err := s.UnmarshalText([]byte(in)); err == nil {
			t.Errorf("%q passed as %v", in, time.Duration(s))
		}
	}
	for d, want := range map[time.Duration]string{
		time.Second: "1s", 3599 * time.Second: "59m59s", 36 * time.Hour: "1d12h", time.Hour: "1h",
		7*24*time.Hour - time.Second: "6d23h", jails.Forever: "forever", 0: "0s",
	} {
		if got := span(d).String(); got != want {
			t.Errorf("%d: %s, want %s", d, got, want)
		}
	}
}

func TestParsePrefix(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.1": "192.0.2.1/32", "2001:db8::1": "2001:db8::1/128", "192.0.2.0/24": "192.0.2.0/24",
		"::ffff:192.0.2.1": "192.0.2.1/32", "::ffff:192.0.2.0/120": "192.0.2.0/24",
	} {
		if p, err := parsePrefix(in); err != nil || p.String() != want {
			t.Errorf("%s: %v, %v", in, p, err)
		}
	}
	for in, want := range map[string]string{
		"1.2.3": "too short", "": "unable to parse", "192.0.2.256": "value >255", "192.0.2.1/24": "write 192.0.2.0/24 for the subnet",
		"192.0.2.0/33": "prefix length out of range", "fe80::1%eth0": "zone", "192.0.2.01": "leading", "example.org": "unexpected character", "::ffff:0:0/80": "as IPv4",
	} {
		if p, err := parsePrefix(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, %v", in, p, err)
		}
	}
}

func TestParseList(t *testing.T) {
	const list = "\ufeff# a list\n; another comment\n// and another\n\n" +
		"192.0.2.1\r\n  192.0.2.2  # trailing\n198.51.100.0/24 ; SBL1\n2001:db8::/32 // x\n" +
		"192.0.2.3,2026-01-01,12\n\"192.0.2.4\",\"x\"\n192.0.2.5\t17\n" +
		"create bad hash:ip family inet\nadd bad 192.0.2.6 timeout 300\n" +
		"deny 192.0.2.7;\nDeny from 192.0.2.8\n" +
		"203.0.113.0-203.0.113.3\n203.0.113.5-203.0.113.6\n192.0.2.1\n192.0.2.9"
	want := "192.0.2.1/32 192.0.2.2/32 198.51.100.0/24 2001:db8::/32 192.0.2.3/32 192.0.2.4/32 192.0.2.5/32 192.0.2.6/32 192.0.2.7/32 192.0.2.8/32 " +
		"203.0.113.0/30 203.0.113.5/32 203.0.113.6/32 192.0.2.9/32"
	got, err := parseList(strings.NewReader(list), func(line int, err error) error { t.Errorf("line %d: %v", line, err); return nil })
	if err != nil || join(got) != want {
		t.Errorf("%v\n got %s\nwant %s", err, join(got), want)
	}

	// A bad line among a million is found.
	many := strings.Repeat("192.0.2.1\n", 777_776) + "192.0.2.300\n" + strings.Repeat("192.0.2.1\n", 222_223)
	if _, err := parseList(strings.NewReader(many), func(line int, err error) error { return fmt.Errorf("line %d: %w", line, err) }); err == nil || !strings.Contains(err.Error(), `line 777777: "192.0.2.300" is no address`) {
		t.Errorf("a bad line among a million: %v", err)
	}

	var bad []int
	got, err = parseList(strings.NewReader("192.0.2.1\n1.2.3\n192.0.2.2-192.0.2.1\n192.0.2.2\n"), func(line int, err error) error { bad = append(bad, line); return nil })
	if err != nil || join(got) != "192.0.2.1/32 192.0.2.2/32" || !slices.Equal(bad, []int{2, 3}) {
		t.Errorf("%v %v %v", got, bad, err)
	}
}

func join(ps []netip.Prefix) string {
	s := make([]string, len(ps))
	for i, p := range ps {
		s[i] = p.String()
	}
	return strings.Join(s, " ")
}

func FuzzParseList(f *testing.F) {
	f.Add([]byte("192.0.2.1\nadd x 192.0.2.2\n::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff\n0.0.0.1-255.255.255.254\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := parseList(bytes.NewReader(b), func(int, error) error { return nil })
		if err != nil {
			return
		}
		seen := map[netip.Prefix]bool{}
		for _, p := range got {
			if !p.IsValid() || p != p.Masked() || p.Addr().Is4In6() || p.Addr().Zone() != "" || seen[p] {
				t.Errorf("%v from %q", p, b)
			}
			seen[p] = true
		}
	})
}

func TestAggregate(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.0/25 192.0.2.128/25":                         "192.0.2.0/24",
		"192.0.2.2/32 192.0.2.3/32 192.0.2.1/32 192.0.2.0/32": "192.0.2.0/30",
		"192.0.2.1/32 192.0.2.2/32":                           "192.0.2.1/32 192.0.2.2/32",
		"192.0.2.5/32 192.0.0.0/16 192.0.2.0/24":              "192.0.0.0/16",
		"2001:db8::/33 2001:db8:8000::/33 ::/128":             "::/128 2001:db8::/32",
		"0.0.0.0/1 128.0.0.0/1":                               "0.0.0.0/0",
	} {
		var ps []netip.Prefix
		for _, s := range strings.Fields(in) {
			ps = append(ps, netip.MustParsePrefix(s))
		}
		if got := join(aggregate(ps)); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}

func TestReadExport(t *testing.T) {
	now := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	strict := func(err error) error { return err }
	e, err := readExport([]byte(`{"version":1,"bans":[{"prefix":"192.0.2.1/32","jail":"sshd","since":"2026-01-01T00:00:00Z","until":null}]}`), now, strict)
	if err != nil || len(e.Bans) != 1 || !e.Bans[0].Until.IsZero() || e.Bans[0].Jail != "sshd" {
		t.Errorf("export: %+v %v", e, err)
	}
	e, err = readExport([]byte(`{"192.0.2.1" : 12, "80" : {"UDP" : 3}}`), now, strict)
	if err != nil || len(e.Bans) != 1 || e.Bans[0].Since != now {
		t.Errorf("talk: %+v %v", e, err)
	}
	for in, want := range map[string]string{
		`{"bans":[{"prefix":"192.0.2.1/32"`:                      "line 1, byte",
		"{\n\"bans\": 3}":                                        "line 2, byte",
		`{"version":2,"bans":[]}`:                                "newer xdpban",
		`{"bans":[{"prefix":"192.0.2.1/24","jail":"x"}]}`:        "ban 1: prefix: 192.0.2.1/24 has bits",
		`{"bans":[{"jail":"x"}]}`:                                "ban 1: prefix: missing",
		`{"bans":[{"prefix":"192.0.2.1/32","jail":"x\u001b"}]}`:  "control characters",
		`{"bans":[{"prefix":"192.0.2.1/32","ports":["0/tcp"]}]}`: `"0/tcp" is no port`,
		`{"x":1}`: "neither an export",
		`[]`:      "line 1",
	} {
		if _, err := readExport([]byte(in), now, strict); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", in, err)
		}
	}
}

func FuzzReadExport(f *testing.F) {
	f.Add([]byte(`{"version":1,"bans":[{"prefix":"192.0.2.1/32","jail":"sshd","since":"2026-01-01T00:00:00Z","until":null}]}`))
	f.Add([]byte(`{"192.0.2.1" : 12, "80" : {"UDP" : 3}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := readExport(b, time.Now(), func(error) error { return nil })
		if err != nil {
			return
		}
		for _, ban := range e.Bans {
			if p := ban.Prefix; !p.IsValid() || p != p.Masked() || p.Addr().Is4In6() {
				t.Errorf("%v from %q", p, b)
			}
		}
	})
}

// TestManualNamesCommands: xdpban(1) has each command.
func TestManualNamesCommands(t *testing.T) {
	page, err := os.ReadFile("../../packaging/man/xdpban.1")
	if err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	if code := execute([]string{"completion", "bash"}, nil, &said, &said); code != exitDone {
		t.Fatal(said.String())
	}
	words := regexp.MustCompile(`(?m)^\t''\) w="([^"]*)"`).FindStringSubmatch(said.String())
	if words == nil {
		t.Fatalf("no commands in\n%s", &said)
	}
	for _, w := range strings.Fields(words[1]) {
		if !strings.HasPrefix(w, "-") && !regexp.MustCompile(`(?m)^\.It Cm (\w+ , )*`+w+`\b`).Match(page) {
			t.Errorf("xdpban(1) doesn't have %s", w)
		}
	}
}
