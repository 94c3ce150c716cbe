package fail2ban

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"xdpban/jails"
	"xdpban/matcher"
)

// The corpus is fail2ban's collection of annotated log lines. It is read
// where the package put it, or from XDPBAN_CORPUS_FILTERS (a filter.d) and
// XDPBAN_CORPUS_LOGS (a folder of annotated logs); see "make corpus".

// corpusNow is what the annotations take for now: noon of 14 August 2005, in
// the summer time of corpusZone.
var corpusNow = time.Unix(1124013600, 0)

// corpusZone is what the annotations take for local time: the POSIX rule
// CET-1CEST,M3.5.0,M10.5.0 in every year, which no named zone follows.
func corpusZone(t *testing.T) *time.Location {
	t.Helper()
	// RFC 8536: no transitions and one type, before the rule in the footer.
	head := []byte("TZif2" + strings.Repeat("\x00", 15+4*4+3) + "\x01" + "\x00\x00\x00\x04")
	block := append([]byte{0, 0, 0x0e, 0x10, 0, 0}, "CET\x00"...)
	data := bytes.Join([][]byte{head, block, head, block, []byte("\nCET-1CEST,M3.5.0,M10.5.0\n")}, nil)
	z, err := time.LoadLocationFromTZData("CET-1CEST", data)
	if err != nil {
		t.Fatal(err)
	}
	if name, offset := corpusNow.In(z).Zone(); name != "CEST" || offset != 7200 {
		t.Fatalf("now is %s %d in the corpus's zone", name, offset)
	}
	return z
}

// TestCorpus runs every sample in every option set it names through the
// filter as converted.
func TestCorpus(t *testing.T) {
	filters, logs := os.Getenv("XDPBAN_CORPUS_FILTERS"), os.Getenv("XDPBAN_CORPUS_LOGS")
	type place struct {
		tree *Tree
		dir  string
		pick func(name string) bool
	}
	var places []place
	notCommon := func(n string) bool { return !strings.HasSuffix(n, "common") }
	if filters != "" && logs != "" {
		abs, err := filepath.Abs(filters)
		if err != nil {
			t.Fatal(err)
		}
		dir := filepath.Dir(abs)
		if filepath.Base(abs) != "filter.d" {
			dir = t.TempDir()
			if err := os.Symlink(abs, filepath.Join(dir, "filter.d")); err != nil {
				t.Fatal(err)
			}
		}
		places = []place{{Open(os.DirFS("/"), dir), abs, notCommon}}
	} else {
		tests := filepath.Join(installed(t), "tests")
		logs = filepath.Join(tests, "files/logs")
		config := filepath.Join(tests, "config")
		places = []place{
			{Open(os.DirFS("/"), stockDir), stockDir + "/filter.d", notCommon},
			// The package's own test filters include common.conf by a path
			// of its source tree.
			{Open(stockIncludes{os.DirFS("/")}, config), config + "/filter.d", func(n string) bool { return strings.HasPrefix(n, "zzz-") }},
		}
	}
	zone := corpusZone(t)
	var total tally
	table := &bytes.Buffer{}
	w := tabwriter.NewWriter(table, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "filter\tlines\truns\tagree\t")
	for _, p := range places {
		files, err := filepath.Glob(p.dir + "/*.conf")
		if err != nil || len(files) == 0 {
			t.Fatalf("no filters in %s: %v", p.dir, err)
		}
		for _, f := range files {
			name := strings.TrimSuffix(filepath.Base(f), ".conf")
			if !p.pick(name) {
				continue
			}
			c := &corpus{t: t, tree: p.tree, logs: logs, zone: zone, name: name, sets: map[string]*corpusFilter{}}
			c.run()
			fmt.Fprintf(w, "%s\t%d\t%d\t%d\t\n", name, c.lines, c.runs, c.agree)
			total.add(c.tally)
		}
	}
	fmt.Fprintf(w, "all\t%d\t%d\t%d\t\n", total.lines, total.runs, total.agree)
	w.Flush()
	t.Logf("corpus by filter:\n%s", table)
	if total.agree != total.runs {
		t.Errorf("%d of %d runs disagree", total.runs-total.agree, total.runs)
	}
}

// stockIncludes finds the config/filter.d of fail2ban's source tree in the
// installed one.
type stockIncludes struct{ fs.FS }

func (s stockIncludes) Open(name string) (fs.File, error) {
	if i := strings.LastIndex(name, "config/filter.d/"); i >= 0 {
		if _, err := fs.Stat(s.FS, name); err != nil {
			name = stockDir[1:] + "/" + name[i+len("config/"):]
		}
	}
	return s.FS.Open(name)
}

type tally struct{ lines, runs, agree int }

func (t *tally) add(u tally) { t.lines += u.lines; t.runs += u.runs; t.agree += u.agree }

// corpus is one filter's run through its files.
type corpus struct {
	tally
	t    *testing.T
	tree *Tree
	logs string
	zone *time.Location
	name string
	sets map[string]*corpusFilter // by options: state lives on between files
	use  []*corpusFilter
}

// corpusFilter is the filter in one option set.
type corpusFilter struct {
	options map[string]any
	set     *matcher.Set
	err     error
}

// sample is an annotation of the line below it.
type sample struct {
	Match      bool     `json:"match"`
	Host       *string  `json:"host"`
	Time       *string  `json:"time"`
	User       *string  `json:"user"`
	Users      []string `json:"users"`
	Attempts   *int     `json:"attempts"`
	DNS        *string  `json:"dns"`
	IP4        *string  `json:"ip4"`
	IP6        *string  `json:"ip6"`
	Constraint string   `json:"constraint"`
	Desc       string   `json:"desc"`
}

var directive = regexp.MustCompile(`^#+ ?(failJSON|fileOptions|filterOptions|addFILE):(.+)$`)

func (c *corpus) run() {
	files := []string{c.name}
	common := map[string]any{}
	for i := 0; i < len(files); i++ {
		path := filepath.Join(c.logs, files[i])
		data, err := os.ReadFile(path)
		if err != nil {
			c.t.Errorf("%s: no samples: %v", c.name, err)
			return
		}
		ignore := false
		lines := strings.Split(strings.ToValidUTF8(string(data), "\uFFFD"), "\n")
		for n := 0; n < len(lines); n++ {
			line := strings.TrimRight(lines[n], "\r")
			var s sample
			annotated := false
			if m := directive.FindStringSubmatch(line); m != nil {
				var err error
				switch m[1] {
				case "fileOptions":
					err = decode(m[2], &common)
				case "filterOptions":
					var list []map[string]any
					if err = decode(m[2], &list); err != nil {
						list = []map[string]any{{}}
						err = decode(m[2], &list[0])
					}
					c.use, ignore = nil, false
					for _, o := range list {
						all := map[string]any{}
						for k, v := range common {
							all[k] = v
						}
						for k, v := range o {
							all[k] = v
						}
						if cond, ok := all["test.condition"].(string); ok {
							ignore = !c.holds(cond, all)
						}
						if !ignore {
							c.use = append(c.use, c.filter(all))
						}
					}
				case "addFILE":
					var name string
					err = decode(m[2], &name)
					files = append(files, name)
				case "failJSON":
					if err = decode(m[2], &s); err == nil {
						annotated = true
						n++
						line = strings.TrimRight(lines[n], "\r")
					}
				}
				if err != nil {
					c.t.Fatalf("%s:%d: %v", path, n+1, err)
				}
				if !annotated {
					continue
				}
			} else if strings.HasPrefix(line, "#") || strings.TrimSpace(line) == "" {
				continue
			}
			if ignore {
				continue
			}
			c.lines++
			if c.use == nil {
				c.use = []*corpusFilter{c.filter(nil)}
			}
			for _, f := range c.use {
				if s.Constraint != "" && !c.holds(s.Constraint, f.options) {
					continue
				}
				c.runs++
				got := line
				if p, ok := f.options["test.prefix-line"].(string); ok && f.options["logtype"] == "journal" {
					got = p + line
				}
				if err := c.check(f, got, s); err != nil {
					c.t.Errorf("%s %v: %s:%d: %v\n  %s", c.name, f.options, files[i], n+1, err, line)
				} else {
					c.agree++
				}
			}
		}
	}
}

func decode(text string, into any) error {
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	return d.Decode(into)
}

var comparison = regexp.MustCompile(`^\s*(name|opts\.get\('([\w.-]+)'\))\s*(==|!=)\s*['"]([^'"]*)['"]\s*$`)

// holds evaluates an annotation's condition: comparisons joined by and, or
// by or.
func (c *corpus) holds(condition string, options map[string]any) bool {
	one := func(s string) bool {
		m := comparison.FindStringSubmatch(s)
		if m == nil {
			c.t.Fatalf("%s: condition %q isn't understood", c.name, condition)
		}
		left := c.name
		if m[2] != "" {
			left, _ = options[m[2]].(string)
		}
		return (left == m[4]) == (m[3] == "==")
	}
	for alternative := range strings.SplitSeq(condition, " or ") {
		all := true
		for part := range strings.SplitSeq(alternative, " and ") {
			all = all && one(part)
		}
		if all {
			return true
		}
	}
	return false
}

func (c *corpus) filter(options map[string]any) *corpusFilter {
	var given Options
	var keys []string
	for k := range options {
		if !strings.HasPrefix(k, "test.") {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	for _, k := range keys {
		given = given.With(k, fmt.Sprint(options[k]))
	}
	id := fmt.Sprint(keys, given.vals)
	if name, ok := options["test.filter-name"].(string); ok {
		id = name
	}
	known := c.sets[id]
	if known == nil {
		known = &corpusFilter{}
		known.set, known.err = c.load(given)
		c.sets[id] = known
	}
	return &corpusFilter{options: options, set: known.set, err: known.err}
}

func (c *corpus) load(given Options) (*matcher.Set, error) {
	f, err := c.tree.Filter(c.name, given)
	if err != nil {
		return nil, err
	}
	// All the way round: through the file that an operator would get, and
	// its reader.
	backend := "auto"
	if t, _ := given.Get("logtype"); t == "journal" {
		backend = "systemd"
	}
	j := &Jail{Name: c.name, Enabled: true, Filter: f, Actions: []Action{{Name: "iptables-allports"}}}
	j.Options = j.Options.With("backend", backend).With("logpath", "/var/log/x")
	out, err := c.tree.Convert(j)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(c.t.TempDir(), jails.JailFolder)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, c.name+".toml"), out.TOML, 0o644); err != nil {
		return nil, err
	}
	conf, problems := jails.Load(nil, filepath.Dir(dir))
	if len(problems) > 0 {
		return nil, fmt.Errorf("%w\n%s", problems, out.TOML)
	}
	return matcher.NewSet(matcher.SetOptions{Location: c.zone, Journal: backend == "systemd"}, conf.Jails[0].Filter), nil
}

func (c *corpus) check(f *corpusFilter, line string, want sample) error {
	if f.err != nil {
		return f.err
	}
	if f.options["logtype"] == "journal" {
		// As source writes a journal entry: its time, then the text.
		line = corpusNow.UTC().Format("2006-01-02T15:04:05.000000Z07:00 ") + line
	}
	var got []*matcher.Failure
	f.set.Scan([]byte(line+"\n"), corpusNow, func(x *matcher.Failure) {
		// The annotations are of what a trial finds, not of what a server counts.
		if !x.NoFail {
			got = append(got, clone(x))
		}
	})
	switch {
	case want.Match && len(got) == 0:
		return fmt.Errorf("didn't match (%s)", want.Desc)
	case !want.Match && len(got) > 0:
		return fmt.Errorf("matched, and shouldn't have (%s): %+v", want.Desc, *got[0])
	case !want.Match:
		return nil
	case len(got) > 1:
		return fmt.Errorf("matched %d times", len(got))
	}
	g := got[0]
	who := g.ID
	if who == "" {
		who = g.Host
	}
	if g.Source.IsValid() {
		who = g.Source.String()
		if g.Source.IsSingleIP() {
			who = g.Source.Addr().String()
		}
	}
	if want.Host != nil && !sameHost(who, *want.Host) {
		return fmt.Errorf("host %q, want %q", who, *want.Host)
	}
	if want.Time != nil {
		at, err := time.ParseInLocation("2006-1-2T15:04:05", *want.Time, c.zone)
		if err != nil {
			return err
		}
		// The annotations are as precise as fail2ban's clock, which drops
		// fractions of a second; ours keeps them.
		unit := time.Second
		if strings.Contains(*want.Time, ".") && !strings.HasSuffix(*want.Time, ".000") {
			unit = time.Microsecond
		}
		if !g.Time.Truncate(unit).Equal(at) {
			return fmt.Errorf("time %v, want %v", g.Time.In(c.zone), at)
		}
	}
	user := ""
	if len(g.Users) > 0 {
		user = g.Users[0]
	}
	if want.User != nil && user != *want.User {
		return fmt.Errorf("user %q, want %q", user, *want.User)
	}
	if want.Users != nil {
		a, b := slices.Sorted(slices.Values(g.Users)), slices.Sorted(slices.Values(want.Users))
		if !slices.Equal(a, b) {
			return fmt.Errorf("users %q, want %q", a, b)
		}
	}
	if want.Attempts != nil && g.Count != *want.Attempts {
		return fmt.Errorf("attempts %d, want %d", g.Count, *want.Attempts)
	}
	if want.IP4 != nil && !(g.Source.Addr().Is4() && sameHost(who, *want.IP4)) {
		return fmt.Errorf("ip4 %q, want %q", who, *want.IP4)
	}
	if want.IP6 != nil && !(g.Source.Addr().Is6() && sameHost(who, *want.IP6)) {
		return fmt.Errorf("ip6 %q, want %q", who, *want.IP6)
	}
	if want.DNS != nil && g.Host != *want.DNS {
		return fmt.Errorf("dns %q, want %q", g.Host, *want.DNS)
	}
	return nil
}

// clone keeps a failure beyond its emit call.
func clone(f *matcher.Failure) *matcher.Failure {
	c := *f
	c.Users = slices.Clone(f.Users)
	for i := range c.Users {
		c.Users[i] = strings.Clone(c.Users[i])
	}
	c.Host, c.ID, c.Line = strings.Clone(f.Host), strings.Clone(f.ID), bytes.Clone(f.Line)
	return &c
}

func sameHost(got, want string) bool {
	if a, err := netip.ParseAddr(want); err == nil {
		b, err := netip.ParseAddr(got)
		return err == nil && a.Unmap() == b
	}
	return got == want
}
