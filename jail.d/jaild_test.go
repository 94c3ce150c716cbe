package jaild_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	jaild "xdpban/jail.d"
	"xdpban/jails"
	"xdpban/matcher"
)

// load loads the shipped jails, one of them in a mode.
func load(t testing.TB, jail, mode string) *jails.Config {
	t.Helper()
	dir := t.TempDir()
	if mode != "" {
		if err := os.Mkdir(filepath.Join(dir, jails.JailFolder), 0o755); err != nil {
			t.Fatal(err)
		}
		text := fmt.Sprintf("[jail.%s]\nmode = %q\n", jail, mode)
		if err := os.WriteFile(filepath.Join(dir, jails.JailFolder, "mode.toml"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	c, problems := jails.Load(jaild.FS, dir)
	if problems != nil {
		t.Fatal(problems)
	}
	return c
}

func find(t testing.TB, c *jails.Config, name string) *jails.Jail {
	t.Helper()
	for i := range c.Jails {
		if c.Jails[i].Name == name {
			return &c.Jails[i]
		}
	}
	t.Fatalf("no jail %q", name)
	return nil
}

// No shipped pattern may be one that check warns of. Load takes them as they
// are, so all of them, of each mode, have to be right.
func TestShippedJailsLoad(t *testing.T) {
	files, err := fs.Glob(jaild.FS, "*.toml")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, name := range files {
		text, err := fs.ReadFile(jaild.FS, name)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range jails.Check(name, text) {
			t.Error(p)
		}
	}
	c := load(t, "", "")
	for _, j := range c.Jails {
		if j.Filter != nil {
			for _, w := range j.Filter.Warnings() {
				t.Errorf("%s: %s", j.Name, w)
			}
		}
		if !j.Enabled || !j.Auto && j.Name != "sshd" && j.Name != "recidive" {
			t.Errorf("%s: enabled %v, auto %v", j.Name, j.Enabled, j.Auto)
		}
	}
}

var arrival = time.Date(2026, 11, 24, 12, 30, 0, 0, time.UTC)

func newSet(j *jails.Jail) *matcher.Set {
	return matcher.NewSet(matcher.SetOptions{Location: time.UTC}, j.Filter)
}

// match gives who a line counts against and when, and the user it names.
func match(set *matcher.Set, line string) (sources []netip.Prefix, at time.Time, user string) {
	set.Scan([]byte(line+"\n"), arrival, func(f *matcher.Failure) {
		if !f.Source.IsValid() {
			return // it only looked like an address: nobody is banned
		}
		f = f.Clone()
		sources, at = append(sources, f.Source), f.Time
		if len(f.Users) > 0 {
			user = f.Users[0]
		}
	})
	return sources, at, user
}

// samples are the files in testdata, one a jail:
//
//	# a comment
//	@ mode aggressive        the lines that follow are for this mode
//	= 192.0.2.1 "the user"   who the next line counts against; the user may be left out
//	= none                   the next line counts against nobody
//	~ raw …{}…               a line for TestInjection, with the attacker's text at {};
//	                         raw says what the server lets him write
type sample struct {
	where      string
	jail, mode string
	addr       netip.Addr // zero: none
	user       string     // checked if given
	hasUser    bool
	line       string
}

type template struct {
	where         string
	jail, mode    string
	writes        string // what the server lets him write
	before, after string
}

func samples(t testing.TB) (all []sample, templates []template) {
	t.Helper()
	files, err := filepath.Glob("testdata/*.samples")
	if err != nil || len(files) == 0 {
		t.Fatalf("no samples: %v", err)
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		jail := strings.TrimSuffix(filepath.Base(name), ".samples")
		mode := ""
		var next *sample
		n := 0
		for s := bufio.NewScanner(bytes.NewReader(text)); s.Scan(); {
			n++
			line, where := s.Text(), fmt.Sprintf("%s:%d", name, n)
			switch {
			case next != nil:
				next.line, next.where = line, where
				all = append(all, *next)
				next = nil
			case line == "" || line[0] == '#':
			case strings.HasPrefix(line, "@ mode "):
				mode = line[len("@ mode "):]
			case strings.HasPrefix(line, "~ "):
				writes, text, _ := strings.Cut(line[2:], " ")
				before, after, ok := strings.Cut(text, "{}")
				if !ok {
					t.Fatalf("%s: no {}", where)
				}
				templates = append(templates, template{where: where, jail: jail, mode: mode, writes: writes, before: before, after: after})
			case strings.HasPrefix(line, "= "):
				next = &sample{jail: jail, mode: mode}
				addr, user, hasUser := strings.Cut(line[2:], " ")
				if addr != "none" {
					if next.addr, err = netip.ParseAddr(addr); err != nil {
						t.Fatalf("%s: %v", where, err)
					}
				}
				if next.hasUser = hasUser; hasUser {
					if next.user, err = strconv.Unquote(user); err != nil {
						t.Fatalf("%s: user %s: %v", where, user, err)
					}
				}
			default:
				t.Fatalf("%s: %q is neither a sample nor what comes before one", where, line)
			}
		}
	}
	return all, templates
}

func TestSamples(t *testing.T) {
	all, _ := samples(t)
	confs := map[string]*jails.Jail{}
	hit := map[string]bool{}
	for _, s := range all {
		key := s.jail + " " + s.mode
		if confs[key] == nil {
			confs[key] = find(t, load(t, s.jail, s.mode), s.jail)
		}
		j := confs[key]
		got, _, user := match(newSet(j), s.line)
		switch {
		case !s.addr.IsValid() && len(got) > 0:
			t.Errorf("%s: counts against %v, want nobody\n%s", s.where, got, s.line)
		case s.addr.IsValid() && (len(got) != 1 || got[0] != netip.PrefixFrom(s.addr, s.addr.BitLen())):
			t.Errorf("%s: counts against %v, want %v\n%s", s.where, got, s.addr, s.line)
		case s.hasUser && user != s.user:
			t.Errorf("%s: user %q, want %q\n%s", s.where, user, s.user, s.line)
		}
		newSet(j).Scan([]byte(s.line+"\n"), arrival, func(f *matcher.Failure) {
			hit[s.jail+" "+j.Filter.Filter.Failregex[f.Pattern]] = true
			if !f.Dated || f.Time.Year() != 2026 {
				t.Errorf("%s: dated %v: %v", s.where, f.Dated, f.Time)
			}
		})
	}
	// Every pattern of every mode has a sample that needs it.
	for _, mode := range []string{"", "normal", "ddos", "aggressive"} {
		for _, name := range []string{"sshd", "wordpress"} {
			if name == "wordpress" && mode == "ddos" {
				continue
			}
			for _, j := range load(t, name, mode).Jails {
				if j.Filter == nil {
					continue
				}
				for _, p := range j.Filter.Filter.Failregex {
					if !hit[j.Name+" "+p] {
						t.Errorf("%s: no sample for %s", j.Name, p)
						hit[j.Name+" "+p] = true
					}
				}
			}
		}
	}
}

const (
	client = "192.0.2.9"   // the attacker's own address in the templates
	victim = "203.0.113.5" // the one he would like to have banned
)

// written is what the server makes of a text before it logs it.
func written(how, s string) string {
	s = strings.NewReplacer("\n", "#012", "\r", "#015", "\x00", "#000").Replace(s)
	hex := func(bad string) string {
		var out strings.Builder
		for _, c := range []byte(s) {
			if strings.IndexByte(bad, c) >= 0 {
				fmt.Fprintf(&out, `\x%02X`, c)
			} else {
				out.WriteByte(c)
			}
		}
		return out.String()
	}
	keep := func(re string) string { return regexp.MustCompile(re).ReplaceAllString(s, "") }
	switch how {
	case "raw":
		return s
	case "short": // OpenSSH logs 100 bytes of a name
		return s[:min(len(s), 100)]
	case "nginx":
		return hex(`"\`)
	case "apache":
		return strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s)
	case "nocolon": // a name in basic authentication
		return keep(`:`)
	case "nginx-user":
		return written("nginx", keep(`:`))
	case "apache-user":
		return written("apache", keep(`:`))
	case "word":
		return keep(`\s`)
	case "host":
		return keep(`[^\w.-]`)
	case "mailbox":
		return keep(`[<>\s]`)
	}
	panic("unknown way to write: " + how)
}

// Whatever an attacker writes wherever he can: only his own address counts.
func TestInjection(t *testing.T) {
	all, templates := samples(t)
	r := rand.New(rand.NewPCG(1, 2))
	sets := map[string]*matcher.Set{}
	for _, tpl := range templates {
		key := tpl.jail + " " + tpl.mode
		if sets[key] == nil {
			sets[key] = newSet(find(t, load(t, tpl.jail, tpl.mode), tpl.jail))
		}
		set := sets[key]
		own := netip.MustParsePrefix(client + "/32")
		plain := tpl.before + "alice" + tpl.after
		got, when, _ := match(set, plain)
		if len(got) != 1 || got[0] != own {
			t.Errorf("%s: a plain name counts against %v\n%s", tpl.where, got, plain)
		}
		pieces := piecesFor(tpl, all, templates)
		try := func(text string) {
			line := tpl.before + written(tpl.writes, text) + tpl.after
			got, at, _ := match(set, line)
			for _, p := range got {
				if p != own {
					t.Fatalf("%s: counts against %v\n%s", tpl.where, p, line)
				}
				// With a date of his own he could make his ban be over.
				if !at.Equal(when) {
					t.Fatalf("%s: counts at %v, want %v\n%s", tpl.where, at, when, line)
				}
			}
		}
		for _, p := range pieces {
			try(p)
			try("x" + p)
			try(p + "x")
			try("x " + p + " x")
		}
		rounds := 300
		if testing.Short() {
			rounds = 300
		}
		for range rounds {
			var s strings.Builder
			for range 1 + r.IntN(5) {
				p := pieces[r.IntN(len(pieces))]
				switch r.IntN(6) {
				case 0:
					p = p[:r.IntN(len(p)+1)]
				case 1:
					p = p[r.IntN(len(p)+1):]
				}
				s.WriteString(p)
			}
			try(s.String())
		}
	}
	for _, j := range load(t, "", "").Jails {
		if j.Filter != nil && !slices.ContainsFunc(templates, func(tpl template) bool { return tpl.jail == j.Name }) {
			t.Errorf("%s: nothing is injected", j.Name)
		}
	}
}

// piecesFor are texts to build an attack on a template from: all that its own
// line and its jail's other lines hold ahead of and behind the address, with
// the victim's in its place.
func piecesFor(tpl template, all []sample, templates []template) []string {
	pieces := []string{
		victim, " " + victim, "::ffff:" + victim, "2001:db8:dead::5", "[" + victim + "]", victim + " port 22", " from " + victim + " port 22",
		" from " + victim + " port 22 ssh2", "invalid user ", "invalid user x from " + victim + " port 22 ssh2", "root from " + victim, " ", "  ", `"`, "'", `\`, `\"`,
		"#012", "\n", "\r\n", "\x00", "\x1b[2J", "\xff", "(", ")", "[", "]", "<", ">", ",", ":", ": ", "[preauth]", " [preauth]", "é", "%n", "", "$", "Nov 24 12:00:00", "[24/Nov/2026:12:00:00 +0000]",
		"24/Nov/2026:12:00:00 +0000", "2025-11-24 12:00:00", "20200101T000000", "20200101 000000", "1500000000", "[1500000000]", "@400000004c91b044077a9e94", "Mon Nov 23 10:00:00 2020", "01/02/20@10:00:00", "2026-11-24T12:00:00.000000+00:00 host sshd[1]: ",
	}
	add := func(line, addr string) {
		line = strings.ReplaceAll(line, addr, victim)
		i := strings.Index(line, victim)
		if i < 0 {
			return
		}
		message := line
		if k := strings.Index(line, ": "); k > 0 && k < i {
			message = line[k+2:]
		}
		pieces = append(pieces, line, message, line[i:], line[:i+len(victim)])
		for k := i - 1; k > 0 && len(pieces) < 250; k-- {
			if c := line[k]; c == ' ' || c == '"' || c == '\'' || c == '[' || c == '<' || c == '(' || c == ',' {
				pieces = append(pieces, line[k:], line[k:i+len(victim)])
			}
		}
	}
	for _, other := range templates {
		if other.jail == tpl.jail {
			add(other.before+"alice"+other.after, client)
			add(other.after, client)
			add(other.before, client)
			// The line once more from where the attacker's text stands.
			pieces = append(pieces, strings.ReplaceAll(other.after, client, victim), strings.ReplaceAll(other.after+other.before, client, victim))
		}
	}
	for _, s := range all {
		if s.jail == tpl.jail && s.addr.IsValid() {
			add(s.line, s.addr.String())
		}
	}
	return pieces
}

func FuzzInjection(f *testing.F) {
	_, templates := samples(f)
	sets := map[string]*matcher.Set{}
	for i, tpl := range templates {
		key := tpl.jail + " " + tpl.mode
		if sets[key] == nil {
			sets[key] = newSet(find(f, load(f, tpl.jail, tpl.mode), tpl.jail))
		}
		f.Add(i, " from "+victim+" port 22"+tpl.before)
		f.Add(i, strings.ReplaceAll(tpl.after, client, victim))
	}
	own := netip.MustParsePrefix(client + "/32")
	f.Fuzz(func(t *testing.T, n int, text string) {
		tpl := templates[uint(n)%uint(len(templates))]
		line := tpl.before + written(tpl.writes, text) + tpl.after
		got, _, _ := match(sets[tpl.jail+" "+tpl.mode], line)
		for _, p := range got {
			if p != own {
				t.Fatalf("%s: counts against %v\n%s", tpl.where, p, line)
			}
		}
	})
}
