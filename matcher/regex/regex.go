// Package regex matches Python regular expressions, as fail2ban's users
// write them, on log lines, as attackers write them: no line can hang it.
//
// It is a backtracker over bytes that knows beforehand, at each choice, by
// the next byte, which ways can lead on; most patterns then never go back.
// Its steps are counted. When a line uses up the budget, a pattern without
// backreferences starts again in a mode that remembers which (instruction,
// position) has failed, whose cost is bounded by the program's length times
// the line's; one that can't be matched in that way is cut off, and the line
// reported as Exceeded.
//
// Text is UTF-8. Like fail2ban, which decodes with errors="replace", the
// engine takes an invalid byte for one character U+FFFD.
package regex

import (
	"bytes"
	"slices"
	"sync"
	"unicode/utf8"
)

// Flags are those of Python's re; patterns may set them too, as in (?i).
type Flags uint

const (
	CaseInsensitive Flags = 1 << iota // (?i)
	Multiline                         // (?m): ^ and $ also at line ends
	DotAll                            // (?s): . matches "\n" too
	ASCII                             // (?a): \w \d \s \b and case are ASCII's only
	Verbose                           // (?x): white space and comments don't count
)

// maxStateBits bounds what a state is besides instruction and position:
// each bit doubles the table.
const maxStateBits = 5

type anchoring uint8

const (
	anchorNone anchoring = iota
	anchorLine
	anchorText
)

// Regexp is a compiled pattern. It is immutable and may be shared.
type Regexp struct {
	expr   string
	groups int
	names  []string
	fast   *program
	// memo is the program of the memoised mode, made when a hostile line
	// first needs it; nil: cost isn't guaranteed to be linear.
	memo     func() *program
	slots    int
	conds    []int
	anchor   anchoring
	start    [256]uint8 // not 0: a match can start with the byte
	startEnd bool       // a match can start, and end, at the end of the text
	prefix   []byte     // what every match starts with, if it is known
	minLen   int        // bytes
	literals [][][]byte
	folded   bool
}

// Compile compiles a pattern in Python's syntax. Its errors are *Error.
func Compile(expr string, f Flags) (*Regexp, error) {
	n, p, err := parse(expr, f)
	if err != nil {
		return nil, err
	}
	re := &Regexp{expr: expr, groups: p.groups, names: make([]string, p.groups+1)}
	for name, g := range p.names {
		re.names[g] = name
	}
	refs := map[int]bool{}
	backrefs := references(n, refs, &re.conds)
	var ok bool
	if re.fast, ok = generate(n, false, refs); !ok {
		return nil, &Error{Expr: expr, Msg: "too large once its repeats of groups are written out", Hint: "lower the numbers in braces, or repeat a single character class"}
	}
	re.slots = re.fast.slots
	if !backrefs && p.memoisable(n) {
		memo, ok := generate(n, true, refs)
		if ok && len(re.conds)+len(memo.loops) <= maxStateBits {
			re.slots = max(re.slots, memo.slots)
			re.memo = sync.OnceValue(func() *program {
				n, _, _ := parse(expr, f)
				memo, _ := generate(n, true, refs)
				return memo
			})
		}
	}
	re.anchor = anchored(n)
	lo, _ := p.width(n)
	re.minLen = lo
	c := compiler{tables: map[[256]uint8]*[256]uint8{}, sets: map[*set]first{}}
	f0 := c.before(n, follow{first: anything()})
	for b := range 256 {
		if f0.first.has(byte(b)) {
			re.start[b] = 1
		}
	}
	re.startEnd = f0.first.eot
	re.prefix = []byte(f0.lit)
	re.literals, re.folded = required(n)
	return re, nil
}

// String is the pattern as given to Compile.
func (re *Regexp) String() string { return re.expr }

// NumGroups is the number of groups, without the whole match.
func (re *Regexp) NumGroups() int { return re.groups }

// GroupNames are the groups' names by their numbers, "" where there is
// none; 0 is the whole match.
func (re *Regexp) GroupNames() []string { return slices.Clone(re.names) }

// Anchored says that a match can only be at the start of the text, or of a
// line of it if the pattern is Multiline.
func (re *Regexp) Anchored() bool { return re.anchor != anchorNone }

// Linear says that the cost of any search is bounded by the program's length
// times the text's. Where it isn't, a hostile text is cut off by the budget.
// Beyond some 100 kB of text even a Linear pattern may be cut off, when the
// table of states would become too large.
func (re *Regexp) Linear() bool { return re.memo != nil }

// Literals are strings of which every match contains at least one; nil if
// none are known. If Folded, they are in lower case and the text must be
// compared without regard to ASCII case.
func (re *Regexp) Literals() [][]byte {
	if len(re.literals) == 0 {
		return nil
	}
	return re.literals[0]
}

// Required are sets of strings as Literals is one, the one that narrows most
// first: every match contains at least one of each.
func (re *Regexp) Required() [][][]byte { return re.literals }

// Folded says how Literals are to be compared.
func (re *Regexp) Folded() bool { return re.folded }

// candidate is the first place from at on where a match may start; -1 if
// there is none.
func (re *Regexp) candidate(text []byte, at int) int {
	if len(re.prefix) > 0 {
		i := bytes.Index(text[at:], re.prefix)
		if i < 0 {
			return -1
		}
		return at + i
	}
	for ; at < len(text); at++ {
		b := text[at]
		if re.start[b] != 0 {
			return at
		}
		if b >= utf8.RuneSelf {
			_, n := utf8.DecodeRune(text[at:])
			at += n - 1
		}
	}
	if re.startEnd {
		return at
	}
	return -1
}

// references collects the groups that backreferences and conditionals look
// at, and says whether there are backreferences.
func references(n *node, refs map[int]bool, conds *[]int) (backrefs bool) {
	switch n.kind {
	case nBackref:
		refs[n.n] = true
		backrefs = true
	case nCond:
		refs[n.n] = true
		if !slices.Contains(*conds, n.n) {
			*conds = append(*conds, n.n)
		}
	}
	for _, s := range n.subs {
		if references(s, refs, conds) {
			backrefs = true
		}
	}
	return backrefs
}

// memoisable says whether remembering failed states bounds the cost: a body
// of which only the first match counts must be gone through again each time
// it succeeds, unless it is a lookaround that catches nothing.
func (p *parser) memoisable(n *node) bool {
	body := n
	switch {
	case n.kind == nAtomic, n.kind == nLook && catches(n):
	case n.kind == nRepeat && n.mode == possessive:
		if _, single := n.subs[0].char(); single {
			return true
		}
	default:
		body = nil
	}
	if body != nil {
		if _, hi := p.width(&node{kind: nCat, subs: n.subs}); hi == infinite || n.kind == nRepeat && n.max == infinite {
			return false
		}
	}
	for _, s := range n.subs {
		if !p.memoisable(s) {
			return false
		}
	}
	return true
}

// anchored says where matches of n must start.
func anchored(n *node) anchoring {
	switch n.kind {
	case nAssert:
		switch n.assert {
		case beginText:
			return anchorText
		case beginLine:
			return anchorLine
		}
	case nCat:
		for _, s := range n.subs {
			if a := anchored(s); a != anchorNone {
				return a
			}
			if s.kind != nAssert && s.kind != nLook {
				break
			}
		}
	case nAlt, nCond:
		a := anchorText
		for _, s := range n.subs {
			a = min(a, anchored(s))
		}
		return a
	case nGroup, nAtomic:
		return anchored(n.subs[0])
	case nRepeat:
		if n.min > 0 {
			return anchored(n.subs[0])
		}
	}
	return anchorNone
}
