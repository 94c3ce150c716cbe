package docs

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	jaild "xdpban/jail.d"
	"xdpban/jails"
)

// option is one row of docs/options.md.
type option struct {
	table        string // the section's
	key          string
	value        string // the default as TOML; empty: not to be written down
	example      string
	defaultWords string
}

var optionRow = regexp.MustCompile("^\\| `([a-z0-9_]+)` \\| (.+?) \\| `(.+?)` \\| (.+) \\|$")

func readOptions(t *testing.T) []option {
	t.Helper()
	page, err := os.ReadFile("../../docs/options.md")
	if err != nil {
		t.Fatal(err)
	}
	var all []option
	table := ""
	for line := range strings.Lines(string(page)) {
		line = strings.TrimSpace(line)
		if name, ok := strings.CutPrefix(line, "## "); ok {
			table = name
		}
		if !strings.HasPrefix(line, "| `") {
			continue
		}
		m := optionRow.FindStringSubmatch(line)
		if m == nil {
			t.Fatalf("docs/options.md: not key, default, example and words: %s", line)
		}
		o := option{table: table, key: m[1], example: m[3], defaultWords: m[2]}
		if v, ok := strings.CutPrefix(m[2], "`"); ok && !strings.Contains(m[2], "normal") {
			o.value = strings.TrimSuffix(v, "`")
		}
		all = append(all, o)
	}
	return all
}

// Where the rows of a section may stand, and what must stand beside them; %s
// is key = value.
var optionPlaces = map[string][]string{
	"xdpban.toml":                {"%s\n"},
	"xdpban.toml: [fleet]":       {"[fleet]\n%s\n"},
	"xdpban.toml: [[feed]]":      {"[[feed]]\n%s\n"},
	"xdpban.toml: [[webhook]]":   {"[[webhook]]\n%s\n"},
	"jail.d/*.toml: [jail.NAME]": {"[jail.x]\n%s\n"},
	"[defaults], and every jail": {"[jail.x]\n%s\nfiles = ['/x']\nfailregex = ['^<ADDR>$']\n", "[defaults]\n%s\n[jail.x]\nfiles = ['/x']\nfailregex = ['^<ADDR>$']\n"},
	"increment":                  {"[jail.x]\nincrement = { %s }\nfiles = ['/x']\nfailregex = ['^<ADDR>$']\n"},
}

// companions are what some keys need beside them, and what else a jail needs.
func companions(key string) string {
	rest := map[string]string{"failregex": "failregex = ['^<ADDR>$']\n", "files": "files = ['/x']\n"}
	switch key {
	case "watches":
		return ""
	case "mode":
		rest["failregex"] = "failregex.normal = ['^<ADDR>$']\nfailregex.aggressive = ['^a <ADDR>$']\n"
	case "modes":
		rest["failregex"] = "failregex.normal = ['^<ADDR>$']\nfailregex.scan = ['^a <ADDR>$']\n"
	}
	delete(rest, key)
	return rest["failregex"] + rest["files"]
}

func load(t *testing.T, place, setting, key string) (*jails.Config, jails.Problems) {
	t.Helper()
	dir := t.TempDir()
	text, file := fmt.Sprintf(place, setting), "jail.d/x.toml"
	switch place {
	case optionPlaces["xdpban.toml"][0]:
		file = "xdpban.toml"
	case optionPlaces["xdpban.toml: [[webhook]]"][0]:
		file = "xdpban.toml"
		for k, v := range map[string]string{"name": "x", "url": "https://x"} {
			if k != key && (k != "url" || key != "url_file") {
				text += fmt.Sprintf("%s = %q\n", k, v)
			}
		}
	case optionPlaces["xdpban.toml: [fleet]"][0]:
		file = "xdpban.toml"
		beside := map[string]string{"name": `"w"`, "host": `"w1"`, "url": `"nats://192.0.2.1:4222"`}
		switch key {
		case "peers":
			beside["secret"] = `"/etc/xdpban/fleet.secret"`
			fallthrough
		case "embedded", "listen", "hosts":
			beside["embedded"], beside["listen"] = "true", `"192.0.2.5:4222"`
			beside["hosts"] = `{ w1 = "` + strings.Repeat("U", 56) + `" }`
		}
		for k, v := range beside {
			if k != key {
				text += k + " = " + v + "\n"
			}
		}
	case optionPlaces["xdpban.toml: [[feed]]"][0]:
		file = "xdpban.toml"
		rest := map[string]string{"name": `"x"`, "url": `"https://lists.example.org/x"`}
		switch key {
		case "file":
			delete(rest, "url")
		case "column":
			rest["format"] = `"csv"`
		case "separator":
			rest["format"], rest["column"] = `"csv"`, "1"
		case "path":
			rest["format"] = `"json"`
		case "key_file":
			rest["format"] = `"crowdsec"`
		}
		delete(rest, key)
		for k, v := range rest {
			text += k + " = " + v + "\n"
		}
	}
	if place == optionPlaces["jail.d/*.toml: [jail.NAME]"][0] {
		text += companions(key)
	}
	if err := os.MkdirAll(filepath.Join(dir, "jail.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	if strings.HasSuffix(key, "_countries") || strings.HasSuffix(key, "_asn") {
		if err := os.WriteFile(filepath.Join(dir, "xdpban.toml"), []byte("places = '/x'"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	var shipped fs.FS
	if key == "filter" {
		shipped = jaild.FS // its example names one
	}
	config, problems := jails.Load(shipped, dir)
	if config != nil {
		// Where they were read from, and what was compiled of them, differs.
		config.Files, config.Warnings = nil, nil
		if file != "xdpban.toml" {
			config.Settings = jails.Settings{}
		}
		for i := range config.Jails {
			config.Jails[i].Filter = nil
		}
	}
	return config, problems
}

// TestOptionsAreTrue: docs/options.md has each key that the program knows and
// no other, writing its default changes nothing, and its example is taken and
// changes something.
func TestOptionsAreTrue(t *testing.T) {
	options := readOptions(t)
	for table, places := range optionPlaces {
		for _, place := range places {
			_, problems := load(t, place, "zzzzzzzzzzzz = 1", "zzzzzzzzzzzz")
			known := regexp.MustCompile(`zzzzzzzzzzzz: there is no such key; write one of (.*)`).FindStringSubmatch(problems.Error())
			if known == nil {
				t.Fatalf("%s: a key that doesn't exist: %v", table, problems)
			}
			var have []string
			for _, o := range options {
				// A jail's own keys are in two tables.
				if o.table == table || table == "jail.d/*.toml: [jail.NAME]" && o.table == "[defaults], and every jail" ||
					strings.HasPrefix(place, "[jail.x]\n%s\nfiles") && o.table == "jail.d/*.toml: [jail.NAME]" {
					have = append(have, o.key)
				}
			}
			slices.Sort(have)
			if want := strings.Split(known[1], ", "); !slices.Equal(have, want) {
				t.Errorf("docs/options.md, %s (%.9q): has\n%s\nbut the program knows\n%s", table, place, strings.Join(have, ", "), known[1])
			}
		}
	}
	for _, o := range options {
		for _, place := range optionPlaces[o.table] {
			unset, problems := load(t, place, "", o.key)
			if slices.Contains([]string{"files", "failregex", "watches", "name", "url", "url_file", "listen", "hosts", "file", "column", "path", "key_file"}, o.key) {
				unset = nil // it can't be without
			} else if problems != nil {
				t.Fatalf("%s without %s: %v", o.table, o.key, problems)
			}
			example, problems := load(t, place, o.key+" = "+o.example, o.key)
			if problems != nil {
				t.Errorf("%s: the example of %s: %v", o.table, o.key, problems)
				continue
			}
			if reflect.DeepEqual(example, unset) && !slices.Contains([]string{"extends", "failregex", "ignoreregex", "prefregex", "datepattern", "maxlines", "mode", "modes", "timezone"}, o.key) {
				t.Errorf("%s: the example of %s changes nothing", o.table, o.key)
			}
			if o.value == "" {
				continue
			}
			written, problems := load(t, place, o.key+" = "+o.value, o.key)
			if problems != nil || !sameBut(written, unset, o) {
				t.Errorf("%s: %s = %s is not the default: %v", o.table, o.key, o.value, problems)
			}
		}
	}
}

// sameBut compares, but for two ways to say the same thing.
func sameBut(a, b *jails.Config, o option) bool {
	if a == nil || b == nil {
		return false
	}
	for i := range a.Jails {
		if o.key == "encoding" {
			a.Jails[i].Encoding, b.Jails[i].Encoding = "", ""
		}
		if o.table == "increment" {
			a.Jails[i].Increment.Factor, b.Jails[i].Increment.Factor = 1, 1
		}
	}
	return reflect.DeepEqual(a, b)
}
