package regex

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// oracle asks Python what its re makes of patterns on texts. The texts are
// bytes, decoded as fail2ban does.
const oracle = `
import sys, re, json, warnings, signal
warnings.simplefilter("ignore")
class Slow(Exception): pass
def late(*a): raise Slow()
signal.signal(signal.SIGALRM, late)
for line in sys.stdin.buffer:
    q = json.loads(line)
    texts = [bytes.fromhex(t) for t in q["Texts"]]
    try:
        rx = re.compile(q["Expr"], q["Flags"])
    except Exception as e:
        print(json.dumps({"Err": str(e)}), flush=True)
        continue
    caps = []
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        for t in texts:
            s = t.decode("utf-8", "surrogateescape")
            d = "".join("\ufffd" if 0xdc80 <= ord(c) <= 0xdcff else c for c in s)
            m = rx.search(d)
            if m is None:
                caps.append(None)
                continue
            off = [0]
            for c in s:
                off.append(off[-1] + len(c.encode("utf-8", "surrogateescape")))
            l = []
            for g in range(rx.groups + 1):
                a, b = m.span(g)
                l += [-1, -1] if a < 0 else [off[a], off[b]]
            caps.append(l)
    except Slow:
        print(json.dumps({"Slow": True}), flush=True)
        continue
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    print(json.dumps({"Caps": caps}), flush=True)
`

type question struct {
	Expr  string
	Flags int
	Texts []string
}

type answer struct {
	Err  string
	Slow bool // Python hung; we must not
	Caps [][]int
}

func needPython(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("python3"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("python3 is needed as the oracle")
		}
		t.Skip("no python3 to compare with")
	}
}

func askPython(t *testing.T, qs []question) []answer {
	t.Helper()
	needPython(t)
	var in bytes.Buffer
	enc := json.NewEncoder(&in)
	for _, q := range qs {
		q.Texts = slices.Clone(q.Texts)
		for i, s := range q.Texts {
			q.Texts[i] = fmt.Sprintf("%x", s)
		}
		if err := enc.Encode(q); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("python3", "-c", oracle)
	cmd.Stdin = &in
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("python3: %v\n%s", err, stderr.String())
	}
	dec := json.NewDecoder(bytes.NewReader(out))
	as := make([]answer, len(qs))
	for i := range as {
		if err := dec.Decode(&as[i]); err != nil {
			t.Fatal(err)
		}
	}
	return as
}

func pythonFlags(f Flags) int {
	v := 0
	for bit, py := range map[Flags]int{CaseInsensitive: 2, Multiline: 8, DotAll: 16, ASCII: 256, Verbose: 64} {
		if f&bit != 0 {
			v |= py
		}
	}
	return v
}

// bothModes searches in the fast mode and, where there is one, in the
// memoised mode, and fails if they differ.
func bothModes(t *testing.T, m *Machine, re *Regexp, text string) ([]int, Result) {
	t.Helper()
	caps, r := m.Match(re, []byte(text), nil)
	if r != Matched {
		caps = nil
	}
	if re.memo != nil {
		slow := *re
		slow.fast = re.memo()
		s := search{m: m, re: &slow, text: []byte(text), on: true, memo: true}
		m.prepare(&slow, nil)
		if !m.prepareMemo(re, len(text)) {
			t.Fatal("memo too large")
		}
		m.left = 1 << 60
		var r2 Result
		for at, n := 0, 0; at <= len(text); at += max(n, 1) {
			_, n = utf8.DecodeRuneInString(text[at:])
			if re.anchor == anchorText && at > 0 {
				break
			}
			if r2 = s.at(at); r2 != NoMatch {
				break
			}
		}
		s.close()
		caps2 := m.caps
		if r2 != Matched {
			caps2 = nil
		}
		if r != r2 || !slices.Equal(caps, caps2) {
			t.Errorf("%q on %q: fast mode %v %v, memoised mode %v %v\n%v\n%v", re.expr, text, r, caps, r2, caps2, re.fast, re.memo())
		}
	}
	return caps, r
}

func compare(t *testing.T, m *Machine, q question, f Flags, a answer) (compiled bool) {
	t.Helper()
	re, err := Compile(q.Expr, f)
	if (err != nil) != (a.Err != "") {
		t.Errorf("%q: error %v, Python %q", q.Expr, err, a.Err)
		return false
	}
	if err != nil {
		return false
	}
	for i, text := range q.Texts {
		caps, r := bothModes(t, m, re, text)
		if r == Exceeded {
			if re.Linear() {
				t.Errorf("%q on %q: exceeded", q.Expr, text)
			}
			continue
		}
		if !a.Slow && !slices.Equal(caps, a.Caps[i]) {
			t.Errorf("%q flags %d on %q: %v %v, Python %v", q.Expr, f, text, r, caps, a.Caps[i])
		}
		checkLiterals(t, re, text, r)
	}
	return true
}

func checkLiterals(t *testing.T, re *Regexp, text string, r Result) {
	t.Helper()
	if r != Matched {
		return
	}
	if re.Folded() {
		text = strings.Map(func(r rune) rune {
			if 'A' <= r && r <= 'Z' {
				r += 32
			}
			return r
		}, text)
	}
	for _, set := range re.Required() {
		if !slices.ContainsFunc(set, func(l []byte) bool { return strings.Contains(text, string(l)) }) {
			t.Errorf("%q matches %q, which has none of %q", re.expr, text, set)
		}
	}
}

// generator makes patterns at random, most of them valid.
type generator struct {
	r      *rand.Rand
	groups int
	python bool // constructs that only Python has
	depth  int
}

func (g *generator) pick(s ...string) string { return s[g.r.IntN(len(s))] }

func (g *generator) atom() string {
	g.depth++
	defer func() { g.depth-- }()
	if g.depth > 4 {
		return g.pick("a", "b", "c", "ab")
	}
	n := 14
	if g.python {
		n = 22
	}
	switch g.r.IntN(n) {
	case 0, 1, 2, 3:
		return g.pick("a", "b", "c", "ab", "abc", " ", "é", "aé")
	case 4:
		return g.pick("[ab]", "[^a]", "[a-c]", "[^é]", "[b-é]", "[^a ]")
	case 5:
		return "."
	case 6:
		return g.pick("^", "$", `\b`, `\B`, `\A`)
	case 7:
		return g.pick(`\n`, `\x61`)
	case 8, 9:
		g.groups++
		return "(" + g.alt() + ")"
	case 10, 11, 12:
		return "(?:" + g.alt() + ")"
	case 13:
		return g.pick(`[^\n]`, "a", "b")
	case 14:
		return g.pick(`\d`, `\w`, `\s`, `\W`, `\S`, `\D`, `[\w]`, `[^\s]`)
	case 15:
		return "(?" + g.pick("=", "!") + g.alt() + ")"
	case 16:
		return "(?" + g.pick("<=", "<!") + g.pick("a", "b", "ab", "[ab]", "é", "(?:ab|bc)", ".", `\b`, "^a", "[ab]c") + ")"
	case 17:
		if g.groups > 0 {
			return fmt.Sprintf(`\%d`, 1+g.r.IntN(g.groups))
		}
		return "b"
	case 18:
		if g.groups > 0 {
			return fmt.Sprintf(`(?(%d)%s|%s)`, 1+g.r.IntN(g.groups), g.seq(), g.seq())
		}
		return "c"
	case 19:
		return "(?>" + g.alt() + ")"
	case 20:
		return "(?i:" + g.alt() + ")"
	default:
		return g.pick("Ab", "[^b]", "é", "\u017f", "k", `\Z`)
	}
}

func (g *generator) piece() string {
	a := g.atom()
	if strings.HasPrefix(a, `\`) && strings.ContainsAny(a[1:2], "bBAZ") || a == "^" || a == "$" {
		return a
	}
	if g.r.IntN(2) == 0 {
		return a
	}
	if len(a) > 1 && a[0] != '[' && a[0] != '(' && a[0] != '\\' {
		a = "(?:" + a + ")"
	}
	q := g.pick("*", "+", "?", "{2}", "{1,3}", "{,2}", "{2,}")
	if !g.python && q == "{,2}" {
		q = "{0,2}"
	}
	switch g.r.IntN(6) {
	case 0:
		q += "?"
	case 1:
		// CPython doesn't restore groups when a possessive round fails.
		if g.python && !strings.Contains(strings.ReplaceAll(a, "(?", ""), "(") {
			q += "+"
		}
	}
	return a + q
}

func (g *generator) seq() string {
	var b strings.Builder
	for range g.r.IntN(4) {
		b.WriteString(g.piece())
	}
	return b.String()
}

func (g *generator) alt() string {
	s := g.seq()
	for g.r.IntN(3) == 0 {
		s += "|" + g.seq()
	}
	return s
}

func (g *generator) text() string {
	var b strings.Builder
	for range g.r.IntN(12) {
		b.WriteString(g.pick("a", "b", "c", "a", "b", "ab", "abc", " ", "\n", "é", "A", "1", "\xff", "\u017f", "\xe9"))
	}
	return b.String()
}

func TestPython(t *testing.T) {
	g := &generator{r: rand.New(rand.NewPCG(1, 2)), python: true}
	var qs []question
	var fs []Flags
	for range 3000 {
		g.groups = 0
		q := question{Expr: g.seq() + g.piece()}
		if g.r.IntN(3) == 0 {
			q.Expr = g.alt()
		}
		f := Flags(0)
		for _, bit := range []Flags{Multiline, CaseInsensitive, DotAll, ASCII} {
			if g.r.IntN(4) == 0 {
				f |= bit
			}
		}
		q.Flags = pythonFlags(f)
		for range 12 {
			q.Texts = append(q.Texts, g.text())
		}
		qs = append(qs, q)
		fs = append(fs, f)
	}
	var m Machine
	n := 0
	for i, a := range askPython(t, qs) {
		if compare(t, &m, qs[i], fs[i], a) {
			n++
		}
	}
	t.Logf("%d of %d patterns compile", n, len(qs))
}

func (p *program) String() string {
	names := [...]string{"byte", "str", "fold", "set", "loop", "run", "lazy", "split", "alt", "jump", "open", "close", "mark", "check",
		"look", "lookstr", "lookset", "atomic", "end", "backref", "cond", "begintext", "beginline", "endtext", "endtextornl", "endline",
		"word", "notword", "match", "splitmemo", "altmemo", "runmemo"}
	var b strings.Builder
	for i, in := range p.insts {
		fmt.Fprintf(&b, "%d\t%s x=%d y=%d min=%d max=%d b=%q s=%q\n", i, names[in.op], in.x, in.y, in.min, in.max, in.b, in.s)
	}
	return b.String()
}
