package regex

import (
	"errors"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/dlclark/regexp2/v2"
)

func mustCompile(tb testing.TB, expr string, f Flags) *Regexp {
	tb.Helper()
	re, err := Compile(expr, f)
	if err != nil {
		tb.Fatal(err)
	}
	return re
}

// submatches are the texts of all groups, "-" for one that took no part.
func submatches(text string, caps []int) []string {
	var out []string
	for i := 0; i < len(caps); i += 2 {
		if caps[i] < 0 {
			out = append(out, "-")
		} else {
			out = append(out, text[caps[i]:caps[i+1]])
		}
	}
	return out
}

// TestConstructs holds one place for each construct of Python's re. What is
// expected is what CPython 3.11 answers.
func TestConstructs(t *testing.T) {
	tests := []struct {
		expr  string
		flags Flags
		text  string
		want  []string // nil: no match
	}{
		// Groups and references.
		{`(?P<n>a+)b(?P=n)`, 0, "aabaa", []string{"aabaa", "aa"}},
		{`(?P<n>a+)b(?P=n)`, 0, "xaabab", []string{"aba", "a"}},
		{`(a)|\1b`, 0, "b", nil}, // unset: fails
		{`(a)?\1b`, 0, "b", nil},
		{`(a*)\1b`, 0, "b", []string{"b", ""}},
		{`(?i)(a)\1`, 0, "aA", []string{"aA", "a"}},
		{`(é)\1`, 0, "éé", []string{"éé", "é"}},
		{"(\xef\xbf\xbd)\\1", 0, "\xff\xfe", []string{"\xff\xfe", "\xff"}}, // both decode to U+FFFD
		{`(a)(?(1)b|c)`, 0, "ab", []string{"ab", "a"}},
		{`(a)?(?(1)b|c)`, 0, "c", []string{"c", "-"}},
		{`(?P<q>")?\w+(?(q)")$`, 0, `"ab"`, []string{`"ab"`, `"`}},
		{`^(?P<q>")?\w+(?(q)")$`, 0, `"ab`, nil},
		{`(?:(a)|b)*`, 0, "ab", []string{"ab", "a"}}, // keeps what an earlier round caught
		{`(a|b)*?c`, 0, "abc", []string{"abc", "b"}},
		{`(a){0}b`, 0, "ab", []string{"b", "-"}},
		// Lookaround.
		{`a(?=b)`, 0, "acab", []string{"a"}},
		{`(?=(a+))a*b\1`, 0, "baaabac", []string{"aba", "a"}},
		{`(?!(a))b`, 0, "b", []string{"b", "-"}},
		{`(?<=:)\d+`, 0, "1:22", []string{"22"}},
		{`(?<!:)\b\d+`, 0, ":22 33", []string{"33"}},
		{`(?<=é.)x`, 0, "éüx", []string{"x"}},
		{`(?<=ab|cd)e`, 0, "cde", []string{"e"}},
		{`^(?:(?! from ).)*$`, 0, "a from b", nil},
		{`^(?:(?! from ).)*$`, 0, "a fro b", []string{"a fro b"}},
		{`(?<=^|a)b`, 0, "ab", nil}, // see TestErrors: not fixed width
		// Quantifiers.
		{`a{2,3}`, 0, "aaaa", []string{"aaa"}},
		{`a{2,3}?`, 0, "aaaa", []string{"aa"}},
		{`a{,2}b`, 0, "aaab", []string{"aab"}},
		{`a{,}b`, 0, "aaab", []string{"aaab"}},
		{`a{x}`, 0, "a{x}", []string{"a{x}"}},
		{`a{}`, 0, "a{}", []string{"a{}"}},
		{`a{1`, 0, "a{1", []string{"a{1"}},
		{`a*+a`, 0, "aaa", nil},
		{`(?>a+)b`, 0, "aab", []string{"aab"}},
		{`(?>a|ab)c`, 0, "abc", nil},
		{`(?>|a)b`, 0, "ab", []string{"b"}},
		{`"[^"]*"`, 0, `x "a b" "c"`, []string{`"a b"`}},
		{`".*"`, 0, `x "a b" "c"`, []string{`"a b" "c"`}},
		{`<.+?>`, 0, "<a><b>", []string{"<a>"}},
		{`(?:a|b|cd)+`, 0, "xabcdc", []string{"abcd"}},
		{`(a*)*`, 0, "aa", []string{"aa", ""}}, // an empty round is the last
		{`(a|b*)*`, 0, "ab", []string{"ab", ""}},
		{`(?:a?){3}`, 0, "aa", []string{"aa"}},
		{`(?:\d{1,3}\.){3}\d{1,3}`, 0, "at 203.0.113.255!", []string{"203.0.113.255"}},
		// Positions.
		{`a$`, 0, "a\n", []string{"a"}},
		{`a$`, 0, "a\n\n", nil},
		{`a$`, Multiline, "a\nb", []string{"a"}},
		{`^b`, 0, "a\nb", nil},
		{`^b`, Multiline, "a\nb", []string{"b"}},
		{`\Ab`, Multiline, "a\nb", nil},
		{`a\Z`, 0, "a\n", nil},
		{`$`, 0, "", []string{""}},
		{`\bfoo\b`, 0, "foot foo", []string{"foo"}},
		{`\Boo`, 0, "oo foo", []string{"oo"}},
		{`\b`, 0, "", nil},
		{`\B`, 0, "", nil}, // so in CPython before 3.14
		{`é\b`, 0, "éa é", []string{"é"}},
		// Characters.
		{`[]a]+`, 0, "x]a]", []string{"]a]"}},
		{`[^]a]+`, 0, "]xa", []string{"x"}},
		{`[a\-z]+`, 0, "b-az", []string{"-az"}},
		{`[a-]+`, 0, "b-a", []string{"-a"}},
		{`[\]\\]+`, 0, `a]\`, []string{`]\`}},
		{`[\b]`, 0, "a\b", []string{"\b"}},
		{`[\w.]+`, 0, "!a.é!", []string{"a.é"}},
		{`[^\W\d]+`, 0, "12ab", []string{"ab"}},
		{`\d+`, 0, "a٣4", []string{"٣4"}},
		{`\d+`, ASCII, "a٣4", []string{"4"}},
		{`\s+`, 0, "a\u2003\u00a0\x1c", []string{"\u2003\u00a0\x1c"}},
		{`\w+`, ASCII, "éa", []string{"a"}},
		{`\x41\u00e9\101\0`, 0, "AéA\x00", []string{"AéA\x00"}},
		{`\-\:\/\ \"`, 0, `-:/ "`, []string{`-:/ "`}},
		{`a.c`, 0, "a\nc aéc", []string{"aéc"}},
		{`a.c`, DotAll, "a\nc", []string{"a\nc"}},
		{`a.c`, 0, "a\xffc", []string{"a\xffc"}},
		{`a\wc`, 0, "a\xffc", nil},
		{`a..c`, 0, "a\xc3\xffc", []string{"a\xc3\xffc"}}, // two characters, not one
		{`^.$`, 0, "\xc3\xa9", []string{"\xc3\xa9"}},
		{`[é-ü]+`, 0, "aéôz", []string{"éô"}},
		// Case.
		{`straße`, CaseInsensitive, "STRAßE", []string{"STRAßE"}},
		{`k`, CaseInsensitive, "\u212a", []string{"\u212a"}},
		{`k`, CaseInsensitive | ASCII, "\u212a", nil},
		{`s`, CaseInsensitive, "\u017f", []string{"\u017f"}},
		{`É`, CaseInsensitive, "é", []string{"é"}},
		{`σ+`, CaseInsensitive, "Σςσ", []string{"Σςσ"}},
		{`[a-c]+`, CaseInsensitive, "xABc", []string{"ABc"}},
		{`[^a]`, CaseInsensitive, "Aab", []string{"b"}},
		{`a(?i:b)c`, 0, "aBC aBc", []string{"aBc"}},
		{`(?i)a(?-i:b)`, 0, "AB Ab", []string{"Ab"}},
		{`(?is)A.b`, 0, "a\nB", []string{"a\nB"}},
		{`(?#note)(?m)^b`, 0, "a\nb", []string{"b"}},
		// Verbose and comments.
		{"(?x) a b # c\n [ ] c", 0, "ab c", []string{"ab c"}},
		{"a(?#b)c", 0, "ac", []string{"ac"}},
		{`a|`, 0, "b", []string{""}},
		{``, 0, "b", []string{""}},
		// The first alternative that works, not the longest.
		{`a|ab`, 0, "ab", []string{"a"}},
		{`(?:Failed|Failing|Fa)(x?)`, 0, "Failingx", []string{"Failingx", "x"}},
	}
	var m Machine
	for _, tt := range tests {
		re, err := Compile(tt.expr, tt.flags)
		if err != nil {
			if tt.expr == `(?<=^|a)b` {
				continue
			}
			t.Errorf("%q: %v", tt.expr, err)
			continue
		}
		caps, r := bothModes(t, &m, re, tt.text)
		if got := submatches(tt.text, caps); !slices.Equal(got, tt.want) {
			t.Errorf("%q on %q: %v %q, want %q", tt.expr, tt.text, r, got, tt.want)
		}
		checkLiterals(t, re, tt.text, r)
	}
	// The table itself must not be wrong about Python.
	var qs []question
	for _, tt := range tests {
		qs = append(qs, question{tt.expr, pythonFlags(tt.flags), []string{tt.text}})
	}
	for i, a := range askPython(t, qs) {
		compare(t, &m, qs[i], tests[i].flags, a)
	}
}

func TestErrors(t *testing.T) {
	tests := []struct {
		expr string
		pos  int
		msg  string // part of the error
	}{
		{`a(b`, 1, "missing )"},
		{`ab)`, 2, "unbalanced parenthesis"},
		{`a[b`, 1, "unterminated character set"},
		{`[b-a]`, 1, "bad character range b-a"},
		{`[\d-a]`, 1, "bad character range"},
		{`*a`, 0, "nothing to repeat"},
		{`a|*`, 2, "nothing to repeat"},
		{`^*`, 1, "nothing to repeat"},
		{`a**`, 2, "multiple repeat"},
		{`a{3,2}`, 1, "min repeat greater"},
		{`a\`, 1, "end of pattern"},
		{`\z`, 0, `write \Z`},
		{`\N{DASH}`, 0, `\u....`},
		{`\pL`, 0, "bad escape"},
		{`\x1`, 0, "incomplete escape"},
		{`\U00110000`, 0, "beyond the last code point"},
		{`\400`, 0, "outside of range"},
		{`(a)\2`, 3, "invalid group reference 2"},
		{`(a\1)`, 2, "open group"},
		{`(?P=x)`, 0, `unknown group name "x"`},
		{`(?(x)a)`, 3, `unknown group name "x"`},
		{`(?(2)a)(b)`, 3, "group 2"},
		{`(?(1)a|b|c)(d)`, 8, "more than two branches"},
		{`(?P<a>x)(?P<a>y)`, 8, "redefinition"},
		{`(?P<1>x)`, 4, "bad character in group name"},
		{`(?<n>x)`, 0, "(?P<name>...)"},
		{`(?<=a*)b`, 0, "fixed-width"},
		{`(?<=^|a)b`, 0, "fixed-width"},
		{`(?<=(a)\1)b`, 7, "same lookbehind"},
		{`a(?i)b`, 1, "(?i:...)"},
		{`(?z)`, 0, "unknown extension or flag"},
		{`(?L)a`, 0, "'L'"},
		{`(?au)a`, 0, "incompatible"},
		{`(?i-i:a)`, 0, "turned on and off"},
		{`(?:a{1000}){1000}`, 0, ""},
		{`(?:ab{0,500}c){1000}`, 0, ""},
		{"a\xff", 1, "UTF-8"},
		{strings.Repeat("(", 300) + strings.Repeat(")", 300), 250, "nested"},
		{`(?:(?:(?:(?:ab|cd){30}){30}){30}){30}`, 0, "lower the numbers"},
	}
	for _, tt := range tests {
		_, err := Compile(tt.expr, 0)
		if tt.msg == "" {
			if err != nil {
				t.Errorf("%.40q: %v", tt.expr, err)
			}
			continue
		}
		var e *Error
		if !errors.As(err, &e) {
			t.Errorf("%.40q: %v, want an error", tt.expr, err)
			continue
		}
		if e.Pos != tt.pos || !strings.Contains(e.Error(), tt.msg) {
			t.Errorf("%.40q: offset %d, %v; want offset %d and %q", tt.expr, e.Pos, err, tt.pos, tt.msg)
		}
	}
}

func TestRegexp(t *testing.T) {
	re := mustCompile(t, `^(?P<who>\S+) (x)(?P<what>y)?`, 0)
	if re.NumGroups() != 3 || !slices.Equal(re.GroupNames(), []string{"", "who", "", "what"}) {
		t.Errorf("%d groups, %q", re.NumGroups(), re.GroupNames())
	}
	for expr, want := range map[string]bool{
		`^a`: true, `a`: false, `^a|^b`: true, `^a|b`: false, `(?:^a)`: true, `(^a)`: true, `(?m)^a`: true,
		`\Aa`: true, `(?=x)^a`: true, `(?:^a)?b`: false, `(?>^a)`: true, `a^`: false, `$^`: true,
	} {
		if got := mustCompile(t, expr, 0).Anchored(); got != want {
			t.Errorf("%q: anchored is %v", expr, got)
		}
	}
	for expr, want := range map[string]bool{
		`a*`: true, `(a)\1`: false, `(a)?(?(1)b)`: true, `(?!.*x)a`: true, `(?=(.*)x)a`: false, `(?=(.)x)a`: true,
		`(?>a*)b`: false, `(?>a?)b`: true, `a*+b`: true, `(?:ab)*+c`: false, `(?:(a)|b*)*`: true,
		`(a)?(b)?(c)?(d)?(e)?(f)?(?(1)x)(?(2)x)(?(3)x)(?(4)x)(?(5)x)(?(6)x)`: false,
	} {
		if got := mustCompile(t, expr, 0).Linear(); got != want {
			t.Errorf("%q: linear is %v", expr, got)
		}
	}
}

func TestLiterals(t *testing.T) {
	for _, tt := range []struct {
		expr   string
		folded bool
		want   []string
	}{
		{`^Failed password for .* from \d+`, false, []string{"Failed password for "}},
		{`^Failed (?:password|publickey) for `, false, []string{"Failed password for ", "Failed publickey for "}},
		{`^[iI]nvalid user (\S*) from`, false, []string{"Invalid user ", "invalid user "}},
		{`\d+|abc`, false, nil},
		{`a|b`, false, []string{"a", "b"}},
		{`.*`, false, nil},
		{`(?:abc)?def`, false, []string{"def"}},
		{`(?:abc)+x*`, false, []string{"abc"}},
		{`(?i)Login Attempt`, true, []string{"n attempt"}},      // no i, k, s
		{`(?ia)Login Attempt`, true, []string{"login attempt"}}, // but here
		{`(?i:auth) Failed`, true, []string{"auth failed"}},
		{`x(?!abcdef)y`, false, []string{"xy"}},
		{`(a)?\1(?(1)bcdef|ghijk)`, false, nil},
		{`[a-z]+`, false, nil},
	} {
		re := mustCompile(t, tt.expr, 0)
		var got []string
		for _, l := range re.Literals() {
			got = append(got, string(l))
		}
		slices.Sort(got)
		if !slices.Equal(got, tt.want) || got != nil && re.Folded() != tt.folded {
			t.Errorf("%q: %q folded %v, want %q", tt.expr, got, re.Folded(), tt.want)
		}
	}
}

func TestMatchAt(t *testing.T) {
	var m Machine
	for _, tt := range []struct {
		expr string
		at   int
		want Result
	}{
		{`b`, 1, Matched}, {`b`, 0, NoMatch}, {`^b`, 1, NoMatch}, {`(?<=a)b`, 1, Matched}, {`\bb`, 1, NoMatch}, {`$`, 2, Matched}, {`.`, 2, NoMatch},
	} {
		caps, r := m.MatchAt(mustCompile(t, tt.expr, 0), []byte("ab"), tt.at, nil)
		if r != tt.want || r == Matched && caps[0] != tt.at {
			t.Errorf("%q at %d: %v %v", tt.expr, tt.at, r, caps)
		}
	}
}

// steps are what the last search of m cost.
func steps(m *Machine, text string) int {
	fast := fastSteps + fastStepsPerByte*len(text)
	if m.left > 1<<60 {
		return fast + (1<<63 - 1 - m.left)
	}
	return fast - m.left
}

// bound is what any search of a Linear pattern may cost.
func bound(re *Regexp, text string) int {
	memo := re.memo()
	states := len(memo.insts) << (len(re.conds) + len(memo.loops))
	for _, l := range memo.lists {
		states += len(l) << (len(re.conds) + len(memo.loops))
	}
	return fastSteps + fastStepsPerByte*(len(text)+1) + 4*states*(len(text)+1)
}

// TestHostile has the patterns and the lines that make a backtracker hang.
func TestHostile(t *testing.T) {
	long := func(s string) string { return strings.Repeat(s, 5000) }
	tests := []struct {
		expr, text string
		want       Result
	}{
		{`(a+)+$`, long("a") + "!", NoMatch},
		{`(a|a)*b`, long("a"), NoMatch},
		{`(a|aa)+$`, long("a") + "!", NoMatch},
		{`(.*)*x`, long("a"), NoMatch},
		{`(a*)*b`, long("a"), NoMatch},
		{`.*.*.*=x`, long("="), NoMatch},
		{`^(?:.*?,){11}P`, long("1,"), NoMatch},
		{`\s+$`, long(" ") + "x", NoMatch},
		{`"(?:[^"\\]|\\.)*"`, long(`"\`), NoMatch},
		{`(?=.*x)a`, long("a"), NoMatch},
		{`(?:(?!.*x)a)*b`, long("a"), NoMatch},
		{`(?:(?=a*b|a*c)a)*d`, long("a") + "b", NoMatch},
		{`\w*+x`, long("a"), NoMatch},
		{`(?:a*+|b)*c`, long("a"), NoMatch},
		{`(a)?(?:(?(1)a|b)+)+c`, long("a"), NoMatch},
		{`(?:x?)*y`, long("x"), NoMatch},
		{`(?:(a?)b?)*c`, long("ab"), NoMatch},
		{`^(?:(?:\S+\s+)*)*relay`, long("a "), NoMatch},
		// After the advisory on fail2ban's filters for Domino and Dovecot:
		// unbounded parts that overlap, ahead of the address.
		{`^(?:\s*\S+)*\s+SMTP (?:\S+ )*from (?P<ip>[\d.]+)`, long("x ") + "y", NoMatch},
		{`^(?:(?:\S+ )*auth(?:\([^)]+\))?: )*(?:\S+,\S+,)*(?P<ip>[\d.]+)$`, long("auth: a,b,"), NoMatch},
		// Not linear: cut off.
		{`(a*)*\1b`, long("a"), Exceeded},
		{`(?=(a*))(?:a|\1)*b`, long("a"), Exceeded},
		{`(.+)+\1\1!`, long("ab"), Exceeded},
	}
	var m Machine
	for _, tt := range tests {
		re := mustCompile(t, tt.expr, 0)
		_, r := m.Match(re, []byte(tt.text), nil)
		if r != tt.want {
			t.Errorf("%q: %v, want %v", tt.expr, r, tt.want)
		}
		if re.Linear() {
			if n, b := steps(&m, tt.text), bound(re, tt.text); n > b {
				t.Errorf("%q: %d steps, bound is %d", tt.expr, n, b)
			}
		} else if tt.want != Exceeded {
			t.Errorf("%q isn't linear", tt.expr)
		}
	}
	if cap(m.stack) > keepFrames || cap(m.visited) > keepWords {
		t.Errorf("hostile lines left %d frames and %d words behind", cap(m.stack), cap(m.visited))
	}
}

// TestShared has one Regexp used by several goroutines at once, the making of
// its second program included.
func TestShared(t *testing.T) {
	re := mustCompile(t, `(?:(a)|a)*b`, 0)
	text := []byte(strings.Repeat("a", 3000))
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			var m Machine
			if _, r := m.Match(re, text, nil); r != NoMatch {
				t.Error(r)
			}
		})
	}
	wg.Wait()
}

func TestNoAllocations(t *testing.T) {
	var m Machine
	var caps []int
	for _, p := range benchPatterns {
		re := mustCompile(t, p.expr, 0)
		for _, text := range []string{p.hit, p.miss, strings.Repeat("from ", 40)} {
			b := []byte(text)
			caps, _ = m.Match(re, b, caps)
			if n := testing.AllocsPerRun(10, func() { caps, _ = m.Match(re, b, caps) }); n != 0 {
				t.Errorf("%s: %v allocations on %q", p.name, n, text)
			}
		}
	}
	// The memoised mode allocates nothing either.
	re := mustCompile(t, `(a|a)*b`, 0)
	b := []byte(strings.Repeat("a", 1000))
	if n := testing.AllocsPerRun(10, func() { caps, _ = m.Match(re, b, caps) }); n != 0 {
		t.Errorf("memoised mode: %v allocations", n)
	}
}

// emptyRounds says whether a loop of n may have an empty round, where the
// engines differ in what they then do.
func emptyRounds(n *node) bool {
	return n.kind == nRepeat && nullable(n.subs[0]) || slices.ContainsFunc(n.subs, emptyRounds)
}

func TestGo(t *testing.T) {
	g := &generator{r: rand.New(rand.NewPCG(5, 6))}
	var m Machine
	compared := 0
	for range 20000 {
		g.groups = 0
		expr := g.seq() + g.piece()
		if compareGo(t, &m, expr, g.text()) {
			compared++
		}
	}
	if compared < 8000 {
		t.Errorf("only %d patterns compared", compared)
	}
}

var leadingZero = regexp.MustCompile(`\{(\d+,)?0\d`)

// compareGo compares with Go's regexp, if both know expr and mean the same.
func compareGo(t *testing.T, m *Machine, expr, text string) bool {
	for _, s := range []string{`(?i`, `(?-i`, `(?mi`, `(?si`, `(?U`, `{,`, `[:`, `\z`, `\p`, `\P`, `\Q`, `\C`, `(?x`, `(?a`, `(?u`} {
		if strings.Contains(expr, s) {
			return false
		}
	}
	// To Go a count that begins with 0 is text, to Python a number.
	if leadingZero.MatchString(expr) {
		return false
	}
	if strings.ContainsAny(text, "\v") || text == "" || strings.HasSuffix(text, "\n") {
		return false
	}
	re, err := Compile(expr, ASCII)
	if err != nil || !re.Linear() {
		return false
	}
	n, _, _ := parse(expr, ASCII)
	if emptyRounds(n) {
		return false
	}
	std, err := regexp.Compile(expr)
	if err != nil {
		return false
	}
	caps, r := bothModes(t, m, re, text)
	if want := std.FindStringSubmatchIndex(text); !slices.Equal(caps, want) {
		t.Errorf("%q on %q: %v %v, Go's regexp %v", expr, text, r, caps, want)
	}
	checkLiterals(t, re, text, r)
	return true
}

// TestRegexp2 compares with an engine that has lookaround, backreferences
// and conditionals, on what both mean alike.
func TestRegexp2(t *testing.T) {
	g := &generator{r: rand.New(rand.NewPCG(7, 8)), python: true}
	var m Machine
	compared := 0
	for range 6000 {
		g.groups = 0
		expr := g.seq() + g.piece()
		text := strings.ToValidUTF8(g.text(), "")
		if strings.Contains(expr, "(?i") || strings.Contains(expr, "{,") || strings.Contains(expr, `\Z`) || strings.Contains(expr, "(?(") || strings.Contains(expr, `\B`) {
			continue
		}
		re, err := Compile(expr, 0)
		if err != nil {
			continue
		}
		n, _, _ := parse(expr, 0)
		if emptyRounds(n) {
			continue
		}
		other, err := regexp2.Compile(expr, regexp2.None)
		if err != nil {
			continue
		}
		mt, err := other.FindStringMatch(text)
		if err != nil {
			t.Fatal(err)
		}
		caps, r := bothModes(t, &m, re, text)
		compared++
		if (mt != nil) != (r == Matched) || mt != nil && mt.String() != text[caps[0]:caps[1]] {
			t.Errorf("%q on %q: %v %v, regexp2 %v", expr, text, r, caps, mt)
		}
	}
	if compared < 2000 {
		t.Errorf("only %d patterns compared", compared)
	}
}

func FuzzGo(f *testing.F) {
	for _, p := range benchPatterns {
		f.Add(p.expr, p.hit)
		f.Add(p.expr, p.miss)
	}
	f.Add(`(a|b)*c|(?:a|ab)(?:c|bcd)`, "abcd")
	f.Fuzz(func(t *testing.T, expr, text string) {
		if len(expr) > 200 || len(text) > 500 {
			return
		}
		var m Machine
		compareGo(t, &m, expr, text)
	})
}

func FuzzMatch(f *testing.F) {
	for _, p := range benchPatterns {
		f.Add(p.expr, p.hit, uint(0))
	}
	for _, expr := range []string{`(?P<n>a+)b(?P=n)`, `(a)?(?(1)b|c)`, `(?<=é.)x`, `(?<!a)(?>a*)b*+`, `(?i:é|s)[^\w-]{2,}?`, `(?x) a # b`, `(.*)*x`, `\u00e9\101\x41$`} {
		f.Add(expr, "aaab \xffé\nx", uint(3))
	}
	f.Fuzz(func(t *testing.T, expr, text string, flags uint) {
		if len(expr) > 200 || len(text) > 500 {
			return
		}
		re, err := Compile(expr, Flags(flags)&(Verbose<<1-1))
		if err != nil {
			var e *Error
			if !errors.As(err, &e) || e.Pos < 0 || e.Pos > len(expr) {
				t.Errorf("%q: %v", expr, err)
			}
			return
		}
		if len(re.fast.insts) > 2000 || re.memo != nil && len(re.memo().insts) > 2000 {
			return
		}
		var m Machine
		caps, r := m.Match(re, []byte(text), nil)
		if re.Linear() {
			if r == Exceeded {
				t.Errorf("%q on %q: exceeded", expr, text)
			}
			if n, b := steps(&m, text), bound(re, text); n > b {
				t.Errorf("%q on %q: %d steps, bound is %d", expr, text, n, b)
			}
			bothModes(t, &m, re, text)
		}
		if r == Matched {
			for i := 0; i < len(caps); i += 2 {
				a, b := caps[i], caps[i+1]
				if (a < 0) != (b < 0) || a > b || b > len(text) {
					t.Errorf("%q on %q: group %d is %d:%d", expr, text, i/2, a, b)
				}
			}
			checkLiterals(t, re, text, r)
		}
	})
}
