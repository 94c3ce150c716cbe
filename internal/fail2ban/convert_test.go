package fail2ban

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/BurntSushi/toml"

	"xdpban/jails"
)

var update = flag.Bool("update", false, "write testdata/full/want anew")

func abs(t testing.TB, dir string) string {
	t.Helper()
	p, err := filepath.Abs(dir)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestConvert shows all that a conversion says and writes about a folder
// with every option in it.
func TestConvert(t *testing.T) {
	dir := abs(t, "testdata/full")
	c, err := Open(os.DirFS("/"), dir).ConvertAll(false, []string{"recidive", "sshd", "x.y"}, func(int, int) {})
	if err != nil {
		t.Fatal(err)
	}
	var got strings.Builder
	fmt.Fprintf(&got, "-- shared --\n%s", c.Shared)
	for _, j := range c.Jails {
		fmt.Fprintf(&got, "-- %s.toml --\n%s", j.Name, j.TOML)
		for _, n := range j.Notes {
			fmt.Fprintf(&got, "note: %s\n", n)
		}
	}
	for _, f := range c.Failed {
		fmt.Fprintf(&got, "failed: %s\n", f)
	}
	fmt.Fprintf(&got, "disabled: %v\n", c.Disabled)
	text := strings.ReplaceAll(got.String(), dir, "DIR")
	if *update {
		if err := os.WriteFile("testdata/full/want", []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("testdata/full/want")
	if err != nil {
		t.Fatal(err)
	}
	if text != string(want) {
		t.Errorf("conversion differs from testdata/full/want:\n%s", text)
	}

	conf := load(t, c)
	j := func(name string) jails.Jail {
		i := slices.IndexFunc(conf.Jails, func(j jails.Jail) bool { return j.Name == name })
		if i < 0 {
			t.Fatalf("no jail %s", name)
		}
		return conf.Jails[i]
	}
	e := j("everything")
	if e.MaxRetry != 3 || e.FindTime != 36*time.Hour || e.BanTime != 90*time.Second || !e.BanSelf || e.MaxMatches != 20 ||
		e.UseDNS != jails.DNSYes || e.Encoding != "latin1" || len(e.IgnoreIP) != 3 || len(e.IgnoreNames) != 1 || len(e.Ports) != 4 {
		t.Errorf("%+v", e)
	}
	if i := e.Increment; !i.Enabled || i.Factor != 1.5 || !slices.Equal(i.Multipliers, []float64{1, 5, 30}) ||
		i.Max != 5*7*24*time.Hour || i.Random != 8*time.Minute || !i.AllJails {
		t.Errorf("%+v", i)
	}
	if _, offset := time.Now().In(e.Filter.Filter.Location).Zone(); offset != 3600 {
		t.Errorf("zone %v", e.Filter.Filter.Location)
	}
	if f := j("forever"); f.BanTime != jails.Forever || !f.Increment.Enabled || f.Ports != nil {
		t.Errorf("%+v", f)
	}
	if !slices.Equal(e.IgnoreCommand[1:], []string{"<ip>", "two words", "--user=<user>"}) || e.IgnoreCache != (jails.IgnoreCache{Time: 5 * time.Minute, Max: 10}) {
		t.Errorf("%q %+v", e.IgnoreCommand, e.IgnoreCache)
	}
	if o := j("own-script"); o.Observe || o.IgnoreCommand[0] != dir+"/spare" || o.IgnoreCache.Time != time.Hour || !j("shell").Observe || !j("unknown-tag").Observe {
		t.Errorf("own-script %+v, shell or unknown-tag", o)
	}
	if j("sshd").Enabled || j("x.y").Enabled {
		t.Error("built-in jails are on beside fail2ban's")
	}
	if !j("recidive").WatchesBans || j("mails-only").Enabled || j("opens").Enabled || !j("own-action").Enabled {
		t.Error("recidive, mails-only, opens or own-action is wrong")
	}
}

// TestConvertStock: the whole of Debian's configuration makes files that
// xdpban takes, with nothing left out but what is named here.
func TestConvertStock(t *testing.T) {
	installed(t)
	c, err := Open(os.DirFS("/"), stockDir).ConvertAll(true, nil, func(int, int) {})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range c.Failed {
		t.Error(f)
	}
	for _, j := range c.Jails {
		for _, n := range j.Notes {
			keeps := n.Option == "ignorecommand" && strings.Contains(n.Text, "keep it, or a copy of it")
			missing := n.Option == "logpath" && strings.Contains(n.Text, "is not there")
			if !keeps && !missing && j.Name != "pass2allow-ftp" {
				t.Errorf("jail %s: %s", j.Name, n)
			}
		}
	}
	if conf := load(t, c); len(conf.Jails) != len(c.Jails)+1 { // and the built-in x.y
		t.Errorf("%d jails converted, %d loaded", len(c.Jails), len(conf.Jails))
	}
	t.Logf("%d jails converted and loaded", len(c.Jails))
}

// builtIn are what xdpban has of its own, in these tests.
var builtIn = fstest.MapFS{"own.toml": {Data: []byte(`
[jail.sshd]
files     = ["/var/log/auth.log"]
failregex = ['^refused <ADDR>$']
[jail.recidive]
watches   = "bans"
["jail"."x.y"]
enabled   = "auto"
files     = ["/var/log/xy.log"]
failregex = ['^refused <ADDR>$']
`)}}

// writeAll writes a conversion into a folder of its own.
func writeAll(t *testing.T, c *Conversion) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, jails.JailFolder), 0o755); err != nil {
		t.Fatal(err)
	}
	files := append([]*Converted{{Name: "00-defaults", TOML: c.Shared}}, c.Jails...)
	for _, j := range files {
		if err := os.WriteFile(filepath.Join(dir, jails.JailFolder, j.Name+".toml"), j.TOML, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// load reads a conversion as xdpban does.
func load(t *testing.T, c *Conversion) *jails.Config {
	t.Helper()
	conf, problems := jails.Load(builtIn, writeAll(t, c))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	return conf
}

func FuzzTOMLString(f *testing.F) {
	for _, s := range []string{"", "plain", `a\d`, "it's", `"quoted"`, `'''`, `it's \d'`, "tab\t", "nul\x00", "é\u2028", "\r\n", "'' '"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		s = strings.ToValidUTF8(s, "\uFFFD")
		var got struct {
			X string
			L []string
		}
		text := "x = " + tomlString(s) + "\nl = " + tomlList([]string{s, s}) + "\n"
		if _, err := toml.Decode(text, &got); err != nil || got.X != s || !slices.Equal(got.L, []string{s, s}) {
			t.Errorf("%q is written as %q and read as %q: %v", s, text, got.X, err)
		}
	})
}
