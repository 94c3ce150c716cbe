package jails

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"xdpban/matcher"
)

func TestSpares(t *testing.T) {
	here := Place{"DK", 64500, "Example"}
	for _, c := range []struct {
		where Where
		at    Place
		want  string
	}{
		{Where{}, here, ""},
		{Where{OnlyCountries: []string{"DE", "DK"}}, here, ""},
		{Where{OnlyCountries: []string{"DE"}}, here, "country DK"},
		{Where{OnlyCountries: []string{"DE"}}, Place{ASN: 64500}, ""}, // not known: as without the condition
		{Where{ExceptCountries: []string{"DK"}}, here, "country DK"},
		{Where{ExceptCountries: []string{"DE"}}, here, ""},
		{Where{ExceptCountries: []string{"DK"}}, Place{}, ""},
		{Where{OnlyASN: []uint32{64500}}, here, ""},
		{Where{OnlyASN: []uint32{64501}}, here, "AS64500"},
		{Where{OnlyASN: []uint32{64501}}, Place{Country: "DK"}, ""},
		{Where{ExceptASN: []uint32{64500}}, here, "AS64500"},
		{Where{OnlyCountries: []string{"DK"}, ExceptASN: []uint32{64500}}, here, "AS64500"},
		{Where{ExceptASN: []uint32{64501}, ExceptCountries: []string{"DE"}}, here, ""},
	} {
		if got := c.where.Spares(c.at); got != c.want {
			t.Errorf("%+v, %v: %q, want %q", c.where, c.at, got, c.want)
		}
	}
}

// TestElsewhere: also the bans of others count, in a jail that watches them,
// by the place of who was banned.
func TestElsewhere(t *testing.T) {
	now := time.Unix(1_780_000_000, 0)
	j := NewJudge(&Config{Jails: []Jail{
		{Name: "a", Enabled: true, MaxRetry: 2, FindTime: time.Hour, BanTime: time.Hour, Aggregate4: 24},
		{Name: "again", Enabled: true, WatchesBans: true, MaxRetry: 1, FindTime: time.Hour, BanTime: Forever, Where: Where{OnlyCountries: []string{"DE"}}},
	}})
	j.SetPlaces(func(a netip.Addr) Place {
		if netip.MustParsePrefix("192.0.2.0/24").Contains(a) {
			return Place{Country: "DK"}
		}
		return Place{Country: "DE"}
	})
	fail := func(addr string) (by []string) {
		f := matcher.Failure{Source: netip.MustParsePrefix(addr + "/32"), Pattern: -1}
		j.Failure("a", &f, now)
		for _, b := range j.Failure("a", &f, now) {
			by = append(by, b.Jail)
		}
		return by
	}
	if got := fail("192.0.2.1"); !slices.Equal(got, []string{"a"}) {
		t.Errorf("banned by %v", got)
	}
	if got := fail("198.51.100.1"); !slices.Equal(got, []string{"a", "again"}) {
		t.Errorf("banned by %v", got)
	}
	s := j.Stats()
	if s.Elsewhere != 1 || s.Jails["again"].Elsewhere != 1 {
		t.Errorf("%+v", s)
	}
}

func TestReadWhere(t *testing.T) {
	load := func(settings, jail string) (*Config, Problems) {
		t.Helper()
		dir := t.TempDir()
		for name, text := range map[string]string{SettingsFile: settings, JailFolder + "/x.toml": jail} {
			path := filepath.Join(dir, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		return Load(nil, dir)
	}
	const places = "places = '/x.mmdb'\n"
	const rest = "\nfiles = ['/x']\nfailregex = ['^<ADDR>$']\n"
	for _, c := range []struct{ keys, want string }{
		{`only_countries = "UK"`, `write "GB"`},
		{`only_countries = ["DE", "dk"]`, `jail.x.only_countries[1]: "dk" is no country's code; write "DK"`},
		{`only_countries = ["ZZ"]`, `write the two letters of ISO 3166-1`},
		{`only_countries = ["Germany"]`, `write the two letters of ISO 3166-1`},
		{`except_countries = 49`, `is the number 49; write a list of texts`},
		{"only_countries = ['DE']\nexcept_countries = ['DK']", "jail.x.except_countries: stands beside only_countries"},
		{"only_asn = 64500\nexcept_asn = 64501", "stands beside only_asn"},
		{`except_asn = ["AS64500"]`, `jail.x.except_asn[0]: is the text "AS64500"; write the numbers of autonomous systems, without AS`},
		{`except_asn = [0]`, "write the numbers"},
		{`except_asn = [4294967295]`, "write the numbers"},
	} {
		if _, problems := load(places, "[jail.x]\n"+c.keys+rest); len(problems) != 1 || !strings.Contains(problems.Error(), c.want) {
			t.Errorf("%s: %v\nwant %s", c.keys, problems, c.want)
		}
	}
	if _, problems := load("", "[jail.x]\nonly_countries = 'DE'"+rest); len(problems) != 1 || !strings.Contains(problems.Error(), "x.toml:2: jail.x.only_countries: needs a database") {
		t.Errorf("without a database: %v", problems)
	}
	c, problems := load(places, "[defaults]\nexcept_countries = ['DK']\nexcept_asn = 64500\n[jail.x]\nonly_countries = ['DE', 'FR']"+rest+"[jail.y]\nexcept_asn = []\n"+rest)
	if problems != nil {
		t.Fatal(problems)
	}
	x, _ := c.Jail("x")
	y, _ := c.Jail("y")
	if w := x.Where; !slices.Equal(w.OnlyCountries, []string{"DE", "FR"}) || w.ExceptCountries != nil || !slices.Equal(w.ExceptASN, []uint32{64500}) {
		t.Errorf("%+v", w)
	}
	if w := y.Where; !slices.Equal(w.ExceptCountries, []string{"DK"}) || len(w.ExceptASN) != 0 {
		t.Errorf("%+v", w)
	}
}
