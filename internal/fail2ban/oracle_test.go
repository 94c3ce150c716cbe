package fail2ban

import (
	"bytes"
	"encoding/json"
	"math"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"xdpban/jails"
	"xdpban/matcher"
)

// The Debian package's places; another python3 may come first in PATH.
const (
	stockDir = "/etc/fail2ban"
	python   = "/usr/bin/python3"
)

// installed gives the folder of fail2ban's Python package. Without the
// package a test can't run: that is a skip, and a failure when CI=true.
func installed(t testing.TB) string {
	t.Helper()
	out, err := exec.Command(python, "-c", "import fail2ban, os; print(os.path.dirname(fail2ban.__file__))").Output()
	if err == nil {
		_, err = os.Stat(stockDir + "/jail.conf")
	}
	if err == nil {
		return strings.TrimSpace(string(out))
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("fail2ban is not installed (apt-get install fail2ban): %v", err)
	}
	t.Skipf("fail2ban is not installed (apt-get install fail2ban): %v", err)
	return ""
}

// request is one question to testdata/oracle.py.
type request struct {
	Dir     string            `json:"dir"`
	Jail    string            `json:"jail,omitempty"`
	Filter  string            `json:"filter,omitempty"`
	Options map[string]string `json:"options,omitempty"`
	Time    string            `json:"time,omitempty"`
	Growth  map[string]string `json:"growth,omitempty"`
	Count   int               `json:"count,omitempty"`
}

// reading is what a configuration comes to.
type reading struct {
	Failregex    []string          `json:"failregex"`
	Ignoreregex  []string          `json:"ignoreregex"`
	JournalMatch [][]string        `json:"journalmatch"`
	Options      map[string]string `json:"options"`
	Seconds      float64           `json:"seconds,omitempty"`
	Error        string            `json:"error,omitempty"`
}

func askOracle(t *testing.T, requests []request) []reading {
	t.Helper()
	var in, errs bytes.Buffer
	for _, r := range requests {
		if err := json.NewEncoder(&in).Encode(r); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(python, "testdata/oracle.py")
	cmd.Stdin, cmd.Stderr = &in, &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("oracle: %v\n%s", err, errs.String())
	}
	var list []reading
	for dec := json.NewDecoder(bytes.NewReader(out)); dec.More(); {
		var r reading
		if err := dec.Decode(&r); err != nil {
			t.Fatal(err)
		}
		list = append(list, r)
	}
	if len(list) != len(requests) {
		t.Fatalf("oracle gave %d answers to %d requests", len(list), len(requests))
	}
	return list
}

func readOurs(tree *Tree, r request) reading {
	var (
		f       *Filter
		options Options
		err     error
	)
	if r.Jail != "" {
		var j *Jail
		if j, err = tree.Jail(r.Jail, true); err == nil {
			f, options = j.Filter, j.Options
		}
	} else {
		var given Options
		for _, n := range sortedKeys(r.Options) {
			given = given.With(n, r.Options[n])
		}
		f, err = tree.Filter(r.Filter, given)
	}
	if err != nil {
		return reading{Error: err.Error()}
	}
	out := reading{Failregex: []string{}, Ignoreregex: []string{}, JournalMatch: [][]string{}, Options: map[string]string{}}
	for _, n := range options.names {
		switch n {
		case "ignoreip":
			out.Options[n] = strings.Join(splitWords(options.vals[n].text), " ")
		case "action", "filter", "enabled", "logpath", "backend":
		case "failregex", "ignoreregex", "journalmatch":
		default:
			out.Options[n] = options.vals[n].text
		}
	}
	if f == nil {
		return out
	}
	out.Failregex = append(out.Failregex, f.Failregex...)
	out.Ignoreregex = append(out.Ignoreregex, f.Ignoreregex...)
	out.JournalMatch = append(out.JournalMatch, f.JournalMatch...)
	for n, v := range map[string]string{"usedns": f.UseDNS, "prefregex": f.Prefregex, "datepattern": f.DatePattern} {
		if v != "" {
			out.Options[n] = v
		}
	}
	return out
}

// TestTimesAsFail2ban compares the arithmetic of times with fail2ban's.
func TestTimesAsFail2ban(t *testing.T) {
	installed(t)
	times := []string{
		"600", "-1", "10m", "1d12h", "1h 30m", "1year-6mo", "60*60", "6 months", "1W", "2 * 3h + 5", "1hour+30min",
		"0", "5 5", "1d 2h 3m 4s", "(1 + 2) * 60", "1.5h", "90 se", "1wee", "2yea", "12mon", "1mi1s", "-1h", "+5", "10 / 4",
		"", "h", "10x", "1h)", "(1h", "1..2", "10m;", "1 h 1", "mo", "1mo1mi", "__import__('os')", "٣",
	}
	var requests []request
	for _, s := range times {
		requests = append(requests, request{Time: s})
	}
	for i, r := range askOracle(t, requests) {
		got, err := parseSeconds(times[i])
		switch {
		case (err != nil) != (r.Error != ""):
			t.Errorf("%q: fail2ban %v %q, xdpban %v %v", times[i], r.Seconds, r.Error, got, err)
		case err == nil && got != r.Seconds:
			t.Errorf("%q: fail2ban %v, xdpban %v", times[i], r.Seconds, got)
		}
	}
}

// TestGrowthAsFail2ban: with every way of writing how ban times grow, what the
// conversion comes to grows as fail2ban makes it.
func TestGrowthAsFail2ban(t *testing.T) {
	installed(t)
	options := []map[string]string{
		{"increment": "True"},
		{"factor": "1.5"},
		{"factor": "2.0 / 5 * math.exp(1)"},
		{"multipliers": "1 2 4 8 16 32 64"},
		{"multipliers": "1 5 30", "factor": "2", "formula": "ban.Time * 1000"},
		{"maxtime": "5h"},
		{"factor": "3", "maxtime": "1w"},
		{"formula": "ban.Time * (1<<(ban.Count if ban.Count<20 else 20)) * banFactor"},
		{"formula": "ban.Time * math.exp(float(ban.Count+1)*banFactor)/math.exp(1*banFactor)"},
		{"formula": "ban.Time * math.exp(float(ban.Count+1)*banFactor)/math.exp(1*banFactor)", "factor": "2.0 / 7", "maxtime": "2w"},
		{"formula": "ban.Time * ban.Count ** 2 // 3 % 100000"},
		{"formula": "max(3600, ban.Time) if ban.Count > 2 and not ban.Count == 4 else ban.Time + 60 * ban.Count"},
		{"formula": "ban.Time * math.sqrt(ban.Count + 1) - (-ban.Count) % 7 + (ban.Count << 3 >> 1)"},
		{"formula": "int(ban.Time * 1.7 ** ban.Count) + round(ban.Count / 2)"},
		{"formula": "ban.Time * (0 < ban.Count < 3 or 5)"},
		{"formula": "ban.Time / 2"},
	}
	var requests []request
	for _, o := range options {
		for count := 1; count <= 25; count++ {
			requests = append(requests, request{Growth: o, Time: "1h", Count: count})
		}
	}
	answers := askOracle(t, requests)
	for i, o := range options {
		all := Options{}.With("bantime", "1h").With("bantime.increment", "True")
		for _, k := range sortedKeys(o) {
			all = all.With("bantime."+k, o[k])
		}
		conf := load(t, &Conversion{Jails: []*Converted{convertOne(t, all)}})
		judge := jails.NewJudge(conf)
		now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
		for count := 0; count <= 25; count++ {
			bans := judge.Failure("x", &matcher.Failure{Source: netip.MustParsePrefix("192.0.2.1/32"), Time: now}, now)
			if len(bans) != 1 {
				t.Fatalf("%v: %d bans", o, len(bans))
			}
			got := bans[0].Until.Sub(now).Seconds()
			want := 3600.0
			if count > 0 {
				a := answers[i*25+count-1]
				if a.Error != "" {
					t.Fatalf("%v: %s", o, a.Error)
				}
				// fail2ban never shortens a ban by it either.
				want = max(a.Seconds, want)
			}
			const longest = 100 * 365 * 86400
			if math.Abs(got-min(want, longest)) > 1e-6*want {
				t.Errorf("%v after %d bans: %v s, fail2ban %v s", o, count, got, want)
			}
			if got > 10*365*86400 {
				break // the next one begins beyond our lives
			}
			now = bans[0].Until.Add(time.Hour)
			judge.Expire(now, math.MaxInt)
		}
	}
}

// convertOne converts a jail x that bans at once, with these options.
func convertOne(t *testing.T, o Options) *Converted {
	t.Helper()
	j := &Jail{
		Name: "x", Enabled: true, Options: o.With("maxretry", "1").With("logpath", "/var/log/x"),
		Filter:  &Filter{Name: "x", Failregex: []string{"^x <ADDR>$"}, Origins: map[string]Origin{}},
		Actions: []Action{{Name: "iptables-allports"}},
	}
	c, err := Open(os.DirFS("/"), "/nowhere").Convert(j)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func sortedKeys(m map[string]string) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// TestReadsAsFail2ban compares every filter in every mode, and every jail,
// with fail2ban's own reader.
func TestReadsAsFail2ban(t *testing.T) {
	tests := filepath.Join(installed(t), "tests")
	var requests []request
	own, err := filepath.Abs("testdata/tricky")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{stockDir, own, filepath.Join(tests, "config"), filepath.Join(tests, "files")} {
		requests = append(requests, allFilters(t, dir)...)
	}
	for _, dir := range []string{stockDir, own, filepath.Join(tests, "config")} {
		names, err := Open(os.DirFS("/"), dir).JailNames()
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range names {
			requests = append(requests, request{Dir: dir, Jail: n})
		}
	}
	compare(t, requests)
}

func allFilters(t *testing.T, dir string) []request {
	t.Helper()
	files, err := filepath.Glob(dir + "/filter.d/*.conf")
	if err != nil || len(files) == 0 {
		t.Fatalf("no filters in %s: %v", dir, err)
	}
	sets := []map[string]string{nil, {"logtype": "journal"}, {"logtype": "short"}}
	modes := map[string]bool{}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`(?m)^\w*-(\w+)\s*=`).FindAllSubmatch(data, -1) {
			modes[string(m[1])] = true
		}
	}
	for m := range modes {
		sets = append(sets, map[string]string{"mode": m}, map[string]string{"mode": m, "logtype": "journal"})
	}
	var list []request
	for _, f := range files {
		for _, s := range sets {
			list = append(list, request{Dir: dir, Filter: strings.TrimSuffix(filepath.Base(f), ".conf"), Options: s})
		}
	}
	return list
}

func compare(t *testing.T, requests []request) {
	t.Helper()
	trees := map[string]*Tree{}
	bad, failed := 0, 0
	for i, want := range askOracle(t, requests) {
		r := requests[i]
		if trees[r.Dir] == nil {
			trees[r.Dir] = Open(os.DirFS("/"), r.Dir)
		}
		got := readOurs(trees[r.Dir], r)
		delete(want.Options, "maxlines")
		delete(got.Options, "maxlines")
		if want.Options["maxretry"] == "None" {
			want.Error = "a warning, then a command that its server refuses"
		}
		if strings.Contains(want.Error, "Unable to read action") {
			continue // actions are reported, not read: a lost one loses no jail
		}
		if want.Error != "" && got.Error != "" {
			failed++
			continue
		}
		for n, v := range want.Options {
			if v == "" {
				delete(want.Options, n) // not set, to fail2ban and to us
			}
		}
		for n, v := range got.Options {
			if v == "" {
				delete(got.Options, n)
			}
		}
		a, _ := json.MarshalIndent(want, "", " ")
		b, _ := json.MarshalIndent(got, "", " ")
		if !bytes.Equal(a, b) {
			if bad++; bad <= 10 {
				t.Errorf("%+v\nfail2ban: %s\nxdpban:   %s", r, a, b)
			}
		}
	}
	t.Logf("%d readings: %d equal (%d of them refused by both), %d different", len(requests), len(requests)-bad, failed, bad)
}
