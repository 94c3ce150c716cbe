package regex

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// dump makes Debian's fail2ban print the patterns of all its filters, in
// all their modes, as it would hand them to Python's re.
const dump = `
import sys, os, glob, json, logging
sys.path.insert(0, "/usr/lib/python3/dist-packages")
logging.disable(logging.CRITICAL)
from fail2ban.client.filterreader import FilterReader
from fail2ban.server.failregex import Regex
seen = set()
for f in sorted(glob.glob("/etc/fail2ban/filter.d/*.conf")):
    name = os.path.basename(f)[:-5]
    for mode in (None, "normal", "ddos", "aggressive", "extra"):
        reader = FilterReader(name, "jail", {"mode": mode} if mode else {}, share_config=None, basedir="/etc/fail2ban")
        try:
            reader.read()
            reader.getOptions(None)
            cmds = reader.convert()
        except Exception:
            continue
        for c in cmds:
            pats = c[3] if c[0] == "multi-set" else [c[3]]
            if c[2] not in ("prefregex", "addfailregex", "addignoreregex"):
                continue
            for p in pats:
                if (name, p) in seen:
                    continue
                seen.add((name, p))
                try:
                    rx = Regex(p, multiline=True).getRegex()
                except Exception:
                    continue
                print(json.dumps({"Filter": name, "Expr": rx}))
`

type fail2banPattern struct{ Filter, Expr string }

const fail2banLogs = "/usr/lib/python3/dist-packages/fail2ban/tests/files/logs"

// fail2banPatterns are the patterns of the fail2ban that is installed here.
func fail2banPatterns(tb testing.TB) []fail2banPattern {
	tb.Helper()
	if _, err := os.Stat(fail2banLogs); err != nil {
		if os.Getenv("CI") == "true" {
			tb.Fatal("Debian's package fail2ban is needed: ", err)
		}
		tb.Skip("no fail2ban here: ", err)
	}
	out, err := exec.Command("python3", "-c", dump).Output()
	if err != nil {
		tb.Fatal("fail2ban's filters: ", err)
	}
	var ps []fail2banPattern
	for dec := json.NewDecoder(bytes.NewReader(out)); dec.More(); {
		var p fail2banPattern
		if err := dec.Decode(&p); err != nil {
			tb.Fatal(err)
		}
		ps = append(ps, p)
	}
	return ps
}

// corpus are the sample lines of a log file, without the annotations.
func corpus(tb testing.TB, file string) []string {
	tb.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		tb.Fatal(err)
	}
	var lines []string
	for l := range strings.Lines(string(b)) {
		l = strings.TrimRight(l, "\r\n")
		if l != "" && !strings.HasPrefix(l, "#") {
			lines = append(lines, l)
		}
	}
	return lines
}

// TestFail2ban compares with Python on every pattern of Debian's filters:
// on the samples of its own filter, cut at each of the first words (for
// where the date ends is fail2ban's affair), and on some of all others.
func TestFail2ban(t *testing.T) {
	needPython(t)
	files, _ := filepath.Glob(filepath.Join(fail2banLogs, "*"))
	var all []string
	own := map[string][]string{}
	for _, f := range files {
		if fi, err := os.Stat(f); err != nil || fi.IsDir() {
			continue
		}
		lines := corpus(t, f)
		for i := 0; i < len(lines); i += 9 {
			all = append(all, lines[i])
		}
		name := filepath.Base(f)
		for i, l := range lines {
			for k := range len(l) {
				if k > 0 && (k > 40 || l[k-1] != ' ' && l[k] != ' ' && l[k] != '[') {
					continue
				}
				own[name] = append(own[name], l[k:])
				if k < 20 && i%4 == 0 && i+1 < len(lines) {
					own[name] = append(own[name], l[k:]+"\n"+lines[i+1]+"\n")
				}
			}
		}
	}
	ps := fail2banPatterns(t)
	var qs []question
	for _, p := range ps {
		texts := append([]string{}, own[p.Filter]...)
		qs = append(qs, question{Expr: p.Expr, Flags: pythonFlags(Multiline), Texts: append(texts, all...)})
	}
	var m Machine
	searches, matches, linear, bare := 0, 0, 0, 0
	for i, a := range askPython(t, qs) {
		if !compare(t, &m, qs[i], Multiline, a) {
			t.Errorf("%s: %s", ps[i].Filter, a.Err)
			continue
		}
		searches += len(a.Caps)
		for _, c := range a.Caps {
			if c != nil {
				matches++
			}
		}
		re, _ := Compile(qs[i].Expr, Multiline)
		if re.Linear() {
			linear++
		} else {
			t.Logf("not linear: %s: %s", ps[i].Filter, re)
		}
		if re.Literals() == nil {
			bare++
			t.Logf("no literals: %s: %s", ps[i].Filter, re)
		}
	}
	t.Logf("%d patterns (%d linear, %d without literals), %d searches, %d matches", len(ps), linear, bare, searches, matches)
}

// TestPumped blows up samples that match, as an attacker would who knows the
// filter: a piece repeated hundreds of times, and an end that doesn't match.
func TestPumped(t *testing.T) {
	var m Machine
	searches := 0
	for _, p := range fail2banPatterns(t) {
		file := filepath.Join(fail2banLogs, p.Filter)
		if _, err := os.Stat(file); err != nil {
			continue
		}
		re := mustCompile(t, p.Expr, Multiline)
		found := 0
		for _, l := range corpus(t, file) {
			for _, cut := range []int{0, 15, 16, 19, 20, 21} {
				if cut > len(l) || found == 2 {
					break
				}
				text := l[cut:]
				if _, r := m.Match(re, []byte(text), nil); r != Matched {
					continue
				}
				found++
				for i := 0; i+5 <= len(text); i += 5 {
					for _, n := range []int{1, 2, 5} {
						hostile := text[:i] + strings.Repeat(text[i:i+n], 1000/n) + text[i:] + "\x01!"
						_, r := m.Match(re, []byte(hostile), nil)
						searches++
						if !re.Linear() {
							continue
						}
						if s, b := steps(&m, hostile), bound(re, hostile); r == Exceeded || s > b {
							t.Errorf("%q on %q: %v, %d steps, bound is %d", p.Expr, hostile, r, s, b)
						}
					}
				}
			}
		}
	}
	t.Logf("%d hostile lines", searches)
}
