package jails

import (
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func loadSettings(t *testing.T, text string) (Settings, Problems) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, SettingsFile), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return LoadSettings(dir)
}

func TestReadFeeds(t *testing.T) {
	s, problems := loadSettings(t, `
[[feed]]
name = "drop"
url  = "https://lists.example.org/drop.json"
format = "spamhaus"

[[feed]]
name = "cs"
url  = "http://127.0.0.1:8080/"
format = "crowdsec"
key_file = "/etc/xdpban/cs.key"

[[feed]]
name = "table"
file = "/var/lib/x.csv"
format = "csv"
column = 3
separator = "\t"
interval = "5s"
bantime = "1h"
max_change = 10
`)
	want := []Feed{
		{Name: "drop", URL: "https://lists.example.org/drop.json", Format: "spamhaus", Interval: time.Hour, BanTime: 7 * 24 * time.Hour, MaxBytes: 64 << 20, MaxEntries: 200_000, MaxChange: 50},
		{Name: "cs", URL: "http://127.0.0.1:8080/", Format: "crowdsec", KeyFile: "/etc/xdpban/cs.key", Interval: 10 * time.Second, BanTime: 7 * 24 * time.Hour, MaxBytes: 64 << 20, MaxEntries: 200_000, MaxChange: 50},
		{Name: "table", File: "/var/lib/x.csv", Format: "csv", Column: "3", Separator: "\t", Interval: 5 * time.Second, BanTime: time.Hour, MaxBytes: 64 << 20, MaxEntries: 200_000, MaxChange: 10},
	}
	if problems != nil || !reflect.DeepEqual(s.Feeds, want) {
		t.Errorf("%+v, %v", s.Feeds, problems)
	}
	const url = "url = 'https://lists.example.org/x'\n"
	for _, c := range []struct{ text, want string }{
		{"feed = 1", "feed: is the number 1; write [[feed]]"},
		{"[feed]\nname = 'x'", "feed: is a table; write [[feed]]"},
		{"feed = ['x']", "write [[feed]]"},
		{"[[feed]]\n" + url, "1: feed[0]: has no name"},
		{"[[feed]]\nname = 'x'", "1: feed[0]: has nothing to read"},
		{"[[feed]]\nname = 'a b'\n" + url, "2: feed[0].name: \"a b\" can't name a feed"},
		{"[[feed]]\nname = 'x'\n" + url + "[[feed]]\nname = 'x'\n" + url, "5: feed[1].name: \"x\" is another feed's name too"},
		{"[[feed]]\nname = 'x'\n" + url + "file = '/x'", "feed[0].file: stands beside url"},
		{"[[feed]]\nname = 'x'\nurl = 'ftp://lists.example.org'", "is no address of a list"},
		{"[[feed]]\nname = 'x'\nurl = 'http://lists.example.org/x'", "isn't encrypted: who is on the way could ban anybody; write https://lists.example.org:443"},
		{"[[feed]]\nname = 'x'\nurl = 'https://a:b@lists.example.org/x'", "has a password in it"},
		{"[[feed]]\nname = 'x'\nformat = 'xml'\n" + url, `"xml" is no format; write one of plain, cidr, csv`},
		{"[[feed]]\nname = 'x'\nformat = 'csv'\n" + url, `has no column, which format = "csv" needs`},
		{"[[feed]]\nname = 'x'\nformat = 'json'\n" + url, `has no path, which format = "json" needs`},
		{"[[feed]]\nname = 'x'\nformat = 'json'\npath = 'a[0]'\n" + url, `"a[0]" is no path`},
		{"[[feed]]\nname = 'x'\ncolumn = 1\n" + url, `feed[0].column: has no meaning but with format = "csv"`},
		{"[[feed]]\nname = 'x'\nformat = 'csv'\ncolumn = '1'\n" + url, "write a number without quotes"},
		{"[[feed]]\nname = 'x'\nformat = 'csv'\ncolumn = 1\nseparator = '||'\n" + url, "write one character"},
		{"[[feed]]\nname = 'x'\nformat = 'crowdsec'\n" + url, `needs both, or neither, of format = "crowdsec" and key_file`},
		{"[[feed]]\nname = 'x'\nkey_file = '/x'\n" + url, "needs both, or neither"},
		{"[[feed]]\nname = 'x'\nformat = 'crowdsec'\nkey_file = '/x'\nfile = '/x'\n", "can't be with format"},
		{"[[feed]]\nname = 'x'\ninterval = '10s'\n" + url, `write at least "1m"`},
		{"[[feed]]\nname = 'x'\ninterval = '5d'\n" + url, "is shorter than two intervals"},
		{"[[feed]]\nname = 'x'\nfile = 'x'\n", "doesn't begin with /"},
		{"[[feed]]\nname = 'x'\n" + url + "intervall = '1h'", "4: feed[0].intervall: there is no such key; did you mean interval?"},
	} {
		if _, problems := loadSettings(t, c.text); len(problems) != 1 || !strings.Contains(problems.Error(), c.want) {
			t.Errorf("%s\n%v\nwant %s", c.text, problems, c.want)
		}
	}
}

// TestFeedsLeaveNoTrace: what a feed has banned is neither in the ledger nor in
// the history nor among past offenders, and adds no strike.
func TestFeedsLeaveNoTrace(t *testing.T) {
	now := time.Unix(1_780_000_000, 0)
	j := NewJudge(&Config{Settings: Settings{MaxTracked: 10}})
	p := netip.MustParsePrefix("192.0.2.1/32")
	for i, c := range []struct {
		until time.Duration
		news  bool
	}{{time.Hour, true}, {time.Hour, false}, {2 * time.Hour, true}, {time.Minute, true}} {
		b, news, err := j.Enlist(p, "feed:x", now.Add(c.until), now)
		if err != nil || news != c.news || !b.Until.Equal(now.Add(c.until)) || !b.Bulk {
			t.Errorf("%d: %+v, %v, %v", i, b, news, err)
		}
	}
	if next := j.Next(); !next.Equal(now.Add(time.Minute)) {
		t.Errorf("the next end is %s", next)
	}
	if ended := j.Expire(now.Add(time.Minute), 10); len(ended) != 1 || ended[0].Jail != "feed:x" {
		t.Errorf("%+v", ended)
	}
	if _, _, err := j.Enlist(p, "feed:x", now.Add(time.Hour), now); err != nil {
		t.Error(err)
	}
	if b, ok := j.Delist(p, "feed:x"); !ok || b.Prefix != p {
		t.Errorf("%+v, %v", b, ok)
	}
	if _, ok := j.Delist(p, "feed:x"); ok {
		t.Error("it ended twice")
	}
	if _, _, err := j.Enlist(p, "feed:x", now.Add(time.Hour), now); err != nil {
		t.Error(err)
	}
	j.Unban(p, now)
	if records := j.Changes(); len(records) != 0 {
		t.Errorf("for the ledger: %+v", records)
	}
	if s := j.Stats(); s.Standing != 0 || s.Jails["feed:x"].Standing != 0 || j.past != 0 || len(j.jails["feed:x"].tracks) != 0 || len(j.ends) != 0 {
		t.Errorf("%+v, %d past", s, j.past)
	}
	// One that stood in the kernel is taken over as the feed's.
	j.Adopt(Ban{Prefix: p, Jail: "feed:x", Since: now, Until: now.Add(time.Hour)})
	if b, ok := j.StandingBy(p, "feed:x"); !ok || !b.Bulk || len(j.Changes()) != 0 {
		t.Errorf("%+v, %v", b, ok)
	}
}
