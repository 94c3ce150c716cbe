package regex

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Error says what Python's re would reject too, or what is beyond this
// engine, and what to write instead.
type Error struct {
	Expr string
	Pos  int    // byte offset into Expr
	Msg  string // what is wrong
	Hint string // what to write instead, if there is something to say
}

func (e *Error) Error() string {
	s := fmt.Sprintf("pattern %q, offset %d: %s", e.Expr, e.Pos, e.Msg)
	if e.Hint != "" {
		s += ": " + e.Hint
	}
	return s
}

type kind uint8

const (
	nEmpty   kind = iota
	nLit          // s
	nFold         // s, lower-case ASCII, matched without regard to case
	nSet          // set
	nCat          // subs in order
	nAlt          // one of subs, first preferred
	nRepeat       // subs[0], min to max times
	nGroup        // subs[0], captured as n
	nAtomic       // subs[0], first match only
	nLook         // subs[0], looked for ahead or behind
	nBackref      // what group n caught
	nCond         // subs[0] if group n is set, else subs[1]
	nAssert       // a position
)

type mode uint8

const (
	greedy mode = iota
	lazy
	possessive
)

type assertion uint8

const (
	beginText    assertion = iota // \A, ^
	beginLine                     // ^ of Multiline
	endText                       // \Z
	endTextOrNL                   // $
	endLine                       // $ of Multiline
	wordBoundary                  // \b
	notBoundary                   // \B
)

const infinite = 1<<31 - 1

type node struct {
	kind     kind
	subs     []*node
	s        string
	set      *set
	min, max int
	mode     mode
	n        int
	assert   assertion
	ascii    bool // nFold, nAssert, nBackref: only ASCII has case or word characters
	fold     bool // nBackref: without regard to case
	neg      bool // nLook
	behind   bool // nLook
	back     int  // nLook behind: characters to step back
}

// maxDepth bounds nesting, since parsing recurses.
const maxDepth = 250

type parser struct {
	expr   string
	pos    int
	flags  Flags
	names  map[string]int
	groups int          // groups opened so far
	open   map[int]bool // groups not closed yet
	widths map[int][2]int
	folder *folder
	sets   map[string]*set
	depth  int
	// behind is, within lookbehinds, the number of groups there were before
	// the outermost; -1 outside: Python refuses references into it.
	behind int
	// later are conditionals on groups that had not come yet.
	later []laterRef
}

type laterRef struct{ n, pos int }

type syntax struct{ err *Error }

func (p *parser) fail(pos int, hint, format string, args ...any) {
	panic(syntax{&Error{Expr: p.expr, Pos: pos, Msg: fmt.Sprintf(format, args...), Hint: hint}})
}

func parse(expr string, f Flags) (n *node, p *parser, err error) {
	p = &parser{expr: expr, flags: f, names: map[string]int{}, open: map[int]bool{}, widths: map[int][2]int{}, sets: map[string]*set{}, behind: -1}
	defer func() {
		if r := recover(); r != nil {
			s, ok := r.(syntax)
			if !ok {
				panic(r)
			}
			err = s.err
		}
	}()
	if i := strings.IndexFunc(expr, func(r rune) bool { return r == utf8.RuneError }); i >= 0 && !utf8.ValidString(expr) {
		p.fail(i, `write the bytes as \x.. escapes of characters, or save the file as UTF-8`, "not valid UTF-8")
	}
	n = p.alternation(true)
	if p.pos < len(expr) {
		p.fail(p.pos, `write \) for a parenthesis in the text`, "unbalanced parenthesis")
	}
	for _, l := range p.later {
		if l.n > p.groups {
			p.fail(l.pos, "", "conditional on group %d, which doesn't exist", l.n)
		}
	}
	return n, p, nil
}

func (p *parser) more() bool { return p.pos < len(p.expr) }

func (p *parser) peek(s string) bool { return strings.HasPrefix(p.expr[p.pos:], s) }

func (p *parser) accept(s string) bool {
	if p.peek(s) {
		p.pos += len(s)
		return true
	}
	return false
}

func (p *parser) rune() rune {
	r, n := utf8.DecodeRuneInString(p.expr[p.pos:])
	p.pos += n
	return r
}

func (p *parser) alternation(top bool) *node {
	p.depth++
	defer func() { p.depth-- }()
	if p.depth > maxDepth {
		p.fail(p.pos, "", "nested more than %d deep", maxDepth)
	}
	alts := []*node{p.sequence(top)}
	for p.accept("|") {
		alts = append(alts, p.sequence(false))
	}
	if len(alts) == 1 {
		return alts[0]
	}
	// A choice of single characters is a set, which costs no backtracking.
	all := ranges{}
	for _, a := range alts {
		r, ok := a.char()
		if !ok {
			return &node{kind: nAlt, subs: alts}
		}
		all = append(all, r...)
	}
	return &node{kind: nSet, set: p.set(all.normal())}
}

// char is the set that n is, if n is one character.
func (n *node) char() (ranges, bool) {
	switch n.kind {
	case nLit:
		if utf8.RuneCountInString(n.s) == 1 {
			r, _ := utf8.DecodeRuneInString(n.s)
			return ranges{r, r}, true
		}
	case nSet:
		return n.set.r, true
	}
	return nil, false
}

func (p *parser) sequence(first bool) *node {
	var items []*node
	var whole []bool // the item can't be repeated: a bare assertion, or repeated already
	verbose := func() bool { return p.flags&Verbose != 0 }
	for p.more() {
		start := p.pos
		c := p.expr[p.pos]
		if c == '|' || c == ')' {
			break
		}
		if verbose() {
			if strings.IndexByte(" \t\n\r\v\f", c) >= 0 {
				p.pos++
				continue
			}
			if c == '#' {
				if i := strings.IndexByte(p.expr[p.pos:], '\n'); i >= 0 {
					p.pos += i + 1
				} else {
					p.pos = len(p.expr)
				}
				continue
			}
		}
		if lo, hi, ok := p.quantifier(); ok {
			m := greedy
			switch {
			case p.accept("?"):
				m = lazy
			case p.accept("+"):
				m = possessive
			}
			k := len(items) - 1
			if k < 0 || whole[k] && items[k].kind == nAssert {
				p.fail(start, `write \`+string(c)+" for the character itself", "nothing to repeat")
			}
			if whole[k] {
				p.fail(start, "put the first repeat into (?:...)", "multiple repeat")
			}
			items[k] = repeat(items[k], lo, hi, m)
			whole[k] = true
			continue
		}
		n := p.item(first && len(items) == 0)
		if n == nil {
			continue // a comment, or flags
		}
		items = append(items, n)
		whole = append(whole, n.kind == nAssert && c != '(')
	}
	return cat(items)
}

// cat joins items, merging literals next to each other.
func cat(items []*node) *node {
	var out []*node
	for _, n := range items {
		switch n.kind {
		case nEmpty:
			continue
		case nCat:
			for _, s := range n.subs {
				out = join(out, s)
			}
		default:
			out = join(out, n)
		}
	}
	switch len(out) {
	case 0:
		return &node{kind: nEmpty}
	case 1:
		return out[0]
	}
	return &node{kind: nCat, subs: out}
}

func join(out []*node, n *node) []*node {
	if k := len(out) - 1; k >= 0 && out[k].kind == n.kind && (n.kind == nLit || n.kind == nFold && out[k].ascii == n.ascii) {
		m := *out[k]
		m.s += n.s
		out[k] = &m
		return out
	}
	return append(out, n)
}

func repeat(n *node, lo, hi int, m mode) *node {
	switch {
	case n.kind == nEmpty || lo == 1 && hi == 1:
		return n
	case hi == 0:
		// Its groups exist, but never match.
		return &node{kind: nEmpty}
	}
	return &node{kind: nRepeat, subs: []*node{n}, min: lo, max: hi, mode: m}
}

// quantifier reads * + ? or {..}; a { that opens none is a literal.
func (p *parser) quantifier() (lo, hi int, ok bool) {
	start := p.pos
	switch p.expr[p.pos] {
	case '*':
		p.pos++
		return 0, infinite, true
	case '+':
		p.pos++
		return 1, infinite, true
	case '?':
		p.pos++
		return 0, 1, true
	case '{':
		p.pos++
		if p.peek("}") {
			break
		}
		a := p.digits()
		b := a
		if p.accept(",") {
			b = p.digits()
			if b == "" {
				hi = infinite
			}
		}
		if !p.accept("}") {
			break
		}
		num := func(s string) int {
			v, err := strconv.Atoi(s)
			if err != nil || v >= infinite {
				p.fail(start, "", "the repetition number %s is too large", s)
			}
			return v
		}
		if a != "" {
			lo = num(a)
		}
		if b != "" {
			hi = num(b)
		}
		if a == "" && b == "" {
			hi = infinite
		}
		if hi < lo {
			p.fail(start, "swap the two numbers", "min repeat greater than max repeat")
		}
		return lo, hi, true
	}
	p.pos = start
	return 0, 0, false
}

func (p *parser) digits() string {
	start := p.pos
	for p.more() && isDigit(p.expr[p.pos]) {
		p.pos++
	}
	return p.expr[start:p.pos]
}

func isDigit(b byte) bool { return '0' <= b && b <= '9' }
func isOctal(b byte) bool { return '0' <= b && b <= '7' }
func isLetter(b byte) bool {
	return 'a' <= b|0x20 && b|0x20 <= 'z'
}

// item reads one item without its quantifier; nil if it is none.
func (p *parser) item(first bool) *node {
	switch p.expr[p.pos] {
	case '(':
		return p.group(first)
	case '[':
		return p.class()
	case '.':
		p.pos++
		if p.flags&DotAll != 0 {
			return &node{kind: nSet, set: p.set(newRanges(0, unicode.MaxRune))}
		}
		return &node{kind: nSet, set: p.set(newRanges('\n', '\n').negate())}
	case '^':
		p.pos++
		if p.flags&Multiline != 0 {
			return &node{kind: nAssert, assert: beginLine}
		}
		return &node{kind: nAssert, assert: beginText}
	case '$':
		p.pos++
		if p.flags&Multiline != 0 {
			return &node{kind: nAssert, assert: endLine}
		}
		return &node{kind: nAssert, assert: endTextOrNL}
	case '\\':
		return p.escape()
	}
	return p.literal(p.rune())
}

func (p *parser) literal(c rune) *node {
	if p.flags&CaseInsensitive != 0 {
		if c < utf8.RuneSelf {
			return &node{kind: nFold, s: string(unicode.ToLower(c)), ascii: p.flags&ASCII != 0}
		}
		return p.setNode(p.fold(newRanges(c, c)))
	}
	return p.setNode(newRanges(c, c))
}

func (p *parser) setNode(r ranges) *node {
	if c, ok := r.single(); ok {
		return &node{kind: nLit, s: string(c)}
	}
	return &node{kind: nSet, set: p.set(r)}
}

// set is newSet, but equal sets of a pattern are one.
func (p *parser) set(r ranges) *set {
	key := r.key()
	s := p.sets[key]
	if s == nil {
		s = newSet(r)
		p.sets[key] = s
	}
	return s
}

func (p *parser) fold(r ranges) ranges {
	if p.folder == nil {
		p.folder = newFolder()
	}
	return p.folder.fold(r, p.flags&ASCII != 0)
}

// escape reads a backslash outside a class.
func (p *parser) escape() *node {
	start := p.pos
	p.pos++
	if !p.more() {
		p.fail(start, `write \\ for a backslash`, "bad escape (end of pattern)")
	}
	c := p.expr[p.pos]
	at := func(a assertion) *node {
		p.pos++
		return &node{kind: nAssert, assert: a, ascii: p.flags&ASCII != 0}
	}
	switch c {
	case 'A':
		return at(beginText)
	case 'Z':
		return at(endText)
	case 'b':
		return at(wordBoundary)
	case 'B':
		return at(notBoundary)
	case 'd', 'w', 's', 'D', 'W', 'S':
		p.pos++
		return &node{kind: nSet, set: p.set(p.category(c))}
	case '0':
		p.pos++
		v := rune(0)
		for k := 0; k < 2 && p.more() && isOctal(p.expr[p.pos]); k++ {
			v = v*8 + rune(p.expr[p.pos]-'0')
			p.pos++
		}
		return p.literal(v)
	}
	if isDigit(c) {
		rest := p.expr[p.pos:]
		if len(rest) >= 3 && isOctal(rest[0]) && isOctal(rest[1]) && isOctal(rest[2]) {
			p.pos += 3
			return p.literal(p.octal(start, rest[:3]))
		}
		n := int(c - '0')
		p.pos++
		if p.more() && isDigit(p.expr[p.pos]) {
			n = n*10 + int(p.expr[p.pos]-'0')
			p.pos++
		}
		return p.backref(start, n)
	}
	return p.literal(p.char(start))
}

func (p *parser) octal(start int, digits string) rune {
	v, _ := strconv.ParseUint(digits, 8, 32)
	if v > 0o377 {
		p.fail(start, `write \u.... instead`, `octal escape value \%s outside of range 0-0o377`, digits)
	}
	return rune(v)
}

func (p *parser) category(c byte) ranges {
	r := category(c|0x20, p.flags&ASCII != 0)
	if c&0x20 == 0 {
		return r.negate()
	}
	return r
}

// char reads the escapes that mean one character wherever they stand; pos
// is behind the backslash.
func (p *parser) char(start int) rune {
	c := p.rune()
	hex := func(n int) rune {
		s := p.expr[p.pos:min(p.pos+n, len(p.expr))]
		v, err := strconv.ParseUint(s, 16, 32)
		if len(s) < n || err != nil || strings.ContainsAny(s, "+_") {
			p.fail(start, "", `incomplete escape \%c: %d hexadecimal digits must follow`, c, n)
		}
		if v > unicode.MaxRune {
			p.fail(start, "", `bad escape \U%s: beyond the last code point`, s)
		}
		p.pos += n
		return rune(v)
	}
	switch c {
	case 'a':
		return '\a'
	case 'f':
		return '\f'
	case 'n':
		return '\n'
	case 'r':
		return '\r'
	case 't':
		return '\t'
	case 'v':
		return '\v'
	case 'x':
		return hex(2)
	case 'u':
		return hex(4)
	case 'U':
		return hex(8)
	}
	if c < utf8.RuneSelf && isLetter(byte(c)) {
		hint := ""
		switch c {
		case 'z':
			hint = `write \Z for the end of the text`
		case 'N':
			hint = `write the character as \u....`
		case 'h':
			hint = `write [ \t]`
		case 'Q', 'E':
			hint = `put a backslash before each special character`
		case 'K':
			hint = `use a lookbehind (?<=...)`
		case 'p', 'P':
			hint = `write the characters as a class, or \w`
		case 'R':
			hint = `write \r?\n`
		}
		p.fail(start, hint, `bad escape \%c`, c)
	}
	return c
}

func (p *parser) backref(start, n int) *node {
	if n > p.groups {
		p.fail(start, "", "invalid group reference %d", n)
	}
	if p.open[n] {
		p.fail(start, "", "cannot refer to an open group")
	}
	p.checkBehind(start, n)
	return &node{kind: nBackref, n: n, fold: p.flags&CaseInsensitive != 0, ascii: p.flags&ASCII != 0}
}

func (p *parser) checkBehind(start, n int) {
	if p.behind >= 0 && n > p.behind {
		p.fail(start, "", "cannot refer to group defined in the same lookbehind subpattern")
	}
}

// class reads [...].
func (p *parser) class() *node {
	start := p.pos
	p.pos++
	neg := p.accept("^")
	var chars, cats ranges
	first := true
	one := func() (c rune, cat ranges) {
		at := p.pos
		if !p.more() {
			p.fail(start, `write \[ for a bracket in the text`, "unterminated character set")
		}
		if p.expr[p.pos] != '\\' {
			return p.rune(), nil
		}
		p.pos++
		if !p.more() {
			p.fail(start, `write \\ for a backslash`, "unterminated character set")
		}
		switch e := p.expr[p.pos]; {
		case strings.IndexByte("dwsDWS", e) >= 0:
			p.pos++
			return 0, p.category(e)
		case e == 'b':
			p.pos++
			return '\b', nil
		case isOctal(e):
			k := p.pos
			for p.more() && p.pos-k < 3 && isOctal(p.expr[p.pos]) {
				p.pos++
			}
			return p.octal(at, p.expr[k:p.pos]), nil
		case isDigit(e):
			p.fail(at, "", `bad escape \%c`, e)
		}
		return p.char(at), nil
	}
	for first || !p.peek("]") {
		first = false
		at := p.pos
		c, cat := one()
		if p.peek("-") && !p.peek("-]") {
			p.pos++
			hi, hicat := one()
			if cat != nil || hicat != nil || hi < c {
				p.fail(at, `write \- for a minus sign in a set`, "bad character range %s", p.expr[at:p.pos])
			}
			chars = append(chars, c, hi)
			continue
		}
		if cat != nil {
			cats = append(cats, cat...)
		} else {
			chars = append(chars, c, c)
		}
	}
	p.pos++
	r := chars.normal()
	if p.flags&CaseInsensitive != 0 && len(r) > 0 {
		r = p.fold(r)
	}
	r = r.union(cats)
	if neg {
		r = r.negate()
		return &node{kind: nSet, set: p.set(r)}
	}
	return p.setNode(r)
}

// group reads everything that starts with a parenthesis.
func (p *parser) group(first bool) *node {
	start := p.pos
	p.pos++
	closing := func() {
		if !p.accept(")") {
			p.fail(start, `write \( for a parenthesis in the text`, "missing ), unterminated subpattern")
		}
	}
	if !p.accept("?") {
		return p.capture("", start, closing)
	}
	if !p.more() {
		p.fail(start, "", "unexpected end of pattern")
	}
	c := p.expr[p.pos]
	p.pos++
	switch c {
	case ':':
		n := p.alternation(false)
		closing()
		return n
	case 'P':
		switch {
		case p.accept("<"):
			return p.capture(p.name(">"), start, closing)
		case p.accept("="):
			name := p.name(")")
			g, ok := p.names[name]
			if !ok {
				p.fail(start, "", "unknown group name %q", name)
			}
			return p.backref(start, g)
		}
		p.fail(start, "write (?P<name>...) or (?P=name)", "unknown extension ?P")
	case '#':
		i := strings.IndexByte(p.expr[p.pos:], ')')
		if i < 0 {
			p.fail(start, "", "missing ), unterminated comment")
		}
		p.pos += i + 1
		return nil
	case '=', '!':
		n := p.alternation(false)
		closing()
		return &node{kind: nLook, subs: []*node{n}, neg: c == '!'}
	case '<':
		if !p.peek("=") && !p.peek("!") {
			p.fail(start, "write (?P<name>...) for a named group", "unknown extension ?<")
		}
		neg := p.expr[p.pos] == '!'
		p.pos++
		outer := p.behind
		if outer < 0 {
			p.behind = p.groups
		}
		n := p.alternation(false)
		closing()
		p.behind = outer
		lo, hi := p.width(n)
		if lo != hi {
			p.fail(start, "give each alternative the same fixed length, or use several lookbehinds", "look-behind requires fixed-width pattern")
		}
		return &node{kind: nLook, subs: []*node{n}, neg: neg, behind: true, back: lo}
	case '>':
		n := p.alternation(false)
		closing()
		return &node{kind: nAtomic, subs: []*node{n}}
	case '(':
		return p.conditional(start, closing)
	default:
		p.pos--
		if isLetter(c) || c == '-' {
			saved := p.flags
			if global := p.inlineFlags(start); global {
				if !first {
					p.fail(start, "write (?"+p.expr[start+2:p.pos-1]+":...) around what they are for", "global flags not at the start of the expression")
				}
				return nil
			}
			n := p.alternation(false)
			closing()
			p.flags = saved
			return n
		}
		p.fail(start, `write \( for a parenthesis in the text`, "unknown extension ?%c", c)
	}
	return nil
}

func (p *parser) capture(name string, start int, closing func()) *node {
	p.groups++
	g := p.groups
	if name != "" {
		if _, dup := p.names[name]; dup {
			p.fail(start, "give each group a name of its own", "redefinition of group name %q", name)
		}
		p.names[name] = g
	}
	p.open[g] = true
	n := p.alternation(false)
	closing()
	delete(p.open, g)
	n = &node{kind: nGroup, subs: []*node{n}, n: g}
	lo, hi := p.width(n)
	p.widths[g] = [2]int{lo, hi}
	return n
}

func (p *parser) name(end string) string {
	i := strings.Index(p.expr[p.pos:], end)
	if i < 0 {
		p.fail(p.pos, "", "missing %s, unterminated name", end)
	}
	s := p.expr[p.pos : p.pos+i]
	p.checkName(s)
	p.pos += i + len(end)
	return s
}

func (p *parser) checkName(s string) {
	if s == "" {
		p.fail(p.pos, "", "missing group name")
	}
	for i, r := range s {
		if r != '_' && !unicode.IsLetter(r) && (i == 0 || !unicode.IsDigit(r) && !unicode.Is(unicode.M, r)) {
			p.fail(p.pos, "use letters, digits and _ only", "bad character in group name %q", s)
		}
	}
}

func (p *parser) conditional(start int, closing func()) *node {
	i := strings.IndexByte(p.expr[p.pos:], ')')
	if i < 0 {
		p.fail(p.pos, "", "missing ), unterminated name")
	}
	s := p.expr[p.pos : p.pos+i]
	g, err := strconv.Atoi(s)
	switch {
	case err != nil || !isDigit(s[0]):
		p.checkName(s)
		var ok bool
		if g, ok = p.names[s]; !ok {
			p.fail(p.pos, "", "unknown group name %q", s)
		}
	case g == 0:
		p.fail(p.pos, "", "bad group number")
	case g > p.groups:
		p.later = append(p.later, laterRef{g, p.pos})
	}
	p.checkBehind(p.pos, g)
	p.pos += i + 1
	yes, no := p.sequence(false), &node{kind: nEmpty}
	if p.accept("|") {
		no = p.sequence(false)
		if p.peek("|") {
			p.fail(p.pos, "put each branch with a choice into (?:...)", "conditional backref with more than two branches")
		}
	}
	closing()
	return &node{kind: nCond, n: g, subs: []*node{yes, no}}
}

// inlineFlags reads the flags of (?flags) or (?flags-flags:, its end
// included, and sets them; it says whether they were the first form.
func (p *parser) inlineFlags(start int) (global bool) {
	on, off, minus := Flags(0), Flags(0), false
	unicodeOn := false
	seen := false
	for p.more() {
		c := p.expr[p.pos]
		p.pos++
		var f Flags
		switch c {
		case 'i':
			f = CaseInsensitive
		case 'm':
			f = Multiline
		case 's':
			f = DotAll
		case 'x':
			f = Verbose
		case 'a':
			f = ASCII
			if minus {
				p.fail(start, "", "bad inline flags: cannot turn off flags 'a', 'u' and 'L'")
			}
		case 'u':
			if minus {
				p.fail(start, "", "bad inline flags: cannot turn off flags 'a', 'u' and 'L'")
			}
			unicodeOn = true
		case 'L':
			p.fail(start, "leave it out", "bad inline flags: cannot use 'L' flag with a str pattern")
		case '-':
			if minus {
				p.fail(start, "", "missing flag")
			}
			minus, seen = true, false
			continue
		case ')', ':':
			if minus && !seen {
				p.fail(start, "", "missing flag")
			}
			if c == ')' && minus {
				p.fail(start, "", "missing :")
			}
			if on&ASCII != 0 && unicodeOn {
				p.fail(start, "", "bad inline flags: flags 'a', 'u' and 'L' are incompatible")
			}
			if on&off != 0 {
				p.fail(start, "", "bad inline flags: flag turned on and off")
			}
			if unicodeOn {
				off |= ASCII
			}
			p.flags = p.flags&^off | on
			return c == ')'
		default:
			hint := ""
			if c == 'U' {
				hint = "make the single quantifiers lazy: .*?"
			}
			p.fail(start, hint, "unknown extension or flag %q", c)
		}
		seen = true
		if minus {
			off |= f
		} else {
			on |= f
		}
	}
	p.fail(start, "", "missing -, : or )")
	return false
}

// width is the least and the greatest length of n in characters.
func (p *parser) width(n *node) (lo, hi int) {
	switch n.kind {
	case nLit, nFold:
		k := utf8.RuneCountInString(n.s)
		return k, k
	case nSet:
		return 1, 1
	case nCat:
		for _, s := range n.subs {
			a, b := p.width(s)
			lo, hi = sum(lo, a), sum(hi, b)
		}
		return lo, hi
	case nAlt, nCond:
		lo = infinite
		for _, s := range n.subs {
			a, b := p.width(s)
			lo, hi = min(lo, a), max(hi, b)
		}
		return lo, hi
	case nRepeat:
		a, b := p.width(n.subs[0])
		return times(a, n.min), times(b, n.max)
	case nGroup, nAtomic:
		return p.width(n.subs[0])
	case nBackref:
		w := p.widths[n.n]
		return w[0], w[1]
	}
	return 0, 0
}

func sum(a, b int) int { return min(a+b, infinite) }

func times(a, b int) int {
	if a == 0 || b == 0 {
		return 0
	}
	if a > infinite/b {
		return infinite
	}
	return min(a*b, infinite)
}
