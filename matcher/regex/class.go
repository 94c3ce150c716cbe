package regex

import (
	"encoding/binary"
	"slices"
	"sync"
	"unicode"
	"unicode/utf8"
)

// ranges is a set of code points: pairs of first and last, sorted, not
// touching.
type ranges []rune

func newRanges(pairs ...rune) ranges {
	r := ranges(slices.Clone(pairs))
	return r.normal()
}

// normal sorts the pairs and joins those that overlap or touch.
func (r ranges) normal() ranges {
	type pair struct{ lo, hi rune }
	p := make([]pair, 0, len(r)/2)
	for i := 0; i < len(r); i += 2 {
		p = append(p, pair{r[i], r[i+1]})
	}
	slices.SortFunc(p, func(a, b pair) int { return int(a.lo - b.lo) })
	out := r[:0:0]
	for _, q := range p {
		if n := len(out); n > 0 && q.lo <= out[n-1]+1 {
			out[n-1] = max(out[n-1], q.hi)
			continue
		}
		out = append(out, q.lo, q.hi)
	}
	return out
}

func (r ranges) union(o ranges) ranges {
	return append(slices.Clone(r), o...).normal()
}

func (r ranges) negate() ranges {
	out := ranges{}
	next := rune(0)
	for i := 0; i < len(r); i += 2 {
		if r[i] > next {
			out = append(out, next, r[i]-1)
		}
		next = r[i+1] + 1
	}
	if next <= unicode.MaxRune {
		out = append(out, next, unicode.MaxRune)
	}
	return out
}

func (r ranges) has(c rune) bool {
	lo, hi := 0, len(r)/2
	for lo < hi {
		m := (lo + hi) / 2
		switch {
		case c < r[2*m]:
			hi = m
		case c > r[2*m+1]:
			lo = m + 1
		default:
			return true
		}
	}
	return false
}

// fromTable adds a Unicode table to r (call normal when all are in).
func (r ranges) fromTable(t *unicode.RangeTable) ranges {
	add := func(lo, hi, stride rune) {
		if stride == 1 {
			r = append(r, lo, hi)
			return
		}
		for c := lo; c <= hi; c += stride {
			r = append(r, c, c)
		}
	}
	for _, x := range t.R16 {
		add(rune(x.Lo), rune(x.Hi), rune(x.Stride))
	}
	for _, x := range t.R32 {
		add(rune(x.Lo), rune(x.Hi), rune(x.Stride))
	}
	return r
}

// The large sets, made once and shared: they are never changed.
var (
	decimals = sync.OnceValue(func() ranges { return ranges{}.fromTable(unicode.Nd).normal() })
	letters  = sync.OnceValue(func() ranges {
		return newRanges('_', '_').fromTable(unicode.L).fromTable(unicode.N).normal()
	})
	words      = sync.OnceValue(func() *set { return newSet(letters()) })
	asciiWords = sync.OnceValue(func() *set { return newSet(category('w', true)) })
)

// category is the set of \d, \w or \s as Python's str patterns see them:
// isdecimal, isalnum or "_", isspace.
func category(c byte, ascii bool) ranges {
	switch c {
	case 'd':
		if ascii {
			return newRanges('0', '9')
		}
		return decimals()
	case 'w':
		if ascii {
			return newRanges('0', '9', 'A', 'Z', '_', '_', 'a', 'z')
		}
		return letters()
	default: // 's'
		if ascii {
			return newRanges('\t', '\r', ' ', ' ')
		}
		return newRanges('\t', '\r', 0x1c, ' ', 0x85, 0x85, 0xa0, 0xa0, 0x1680, 0x1680,
			0x2000, 0x200a, 0x2028, 0x2029, 0x202f, 0x202f, 0x205f, 0x205f, 0x3000, 0x3000)
	}
}

// key tells sets apart.
func (r ranges) key() string {
	b := make([]byte, 0, 4*len(r))
	for _, c := range r {
		b = binary.LittleEndian.AppendUint32(b, uint32(c))
	}
	return string(b)
}

// folder answers what (?i) makes of a set. Python compares lower(c), and
// besides takes lower-case letters that share an upper case as equal.
type folder struct {
	cased []rune // pairs: a letter and its other, lower case
}

func newFolder() *folder {
	f := &folder{}
	for _, cr := range unicode.CaseRanges {
		for c := rune(cr.Lo); c <= rune(cr.Hi); c++ {
			if l := unicode.ToLower(c); l != c {
				f.cased = append(f.cased, c, l)
			}
		}
	}
	return f
}

// sharedUpper are the lower-case letters that have one upper case (or one
// full upper case) between them.
func sharedUpper() [][]rune {
	return [][]rune{
		{'i', 0x131}, {'s', 0x17f}, {0xb5, 0x3bc}, {0x345, 0x3b9, 0x1fbe}, {0x390, 0x1fd3},
		{0x3b0, 0x1fe3}, {0x3b2, 0x3d0}, {0x3b5, 0x3f5}, {0x3b8, 0x3d1}, {0x3ba, 0x3f0},
		{0x3c0, 0x3d6}, {0x3c1, 0x3f1}, {0x3c2, 0x3c3}, {0x3c6, 0x3d5}, {0x432, 0x1c80},
		{0x434, 0x1c81}, {0x43e, 0x1c82}, {0x441, 0x1c83}, {0x442, 0x1c84, 0x1c85},
		{0x44a, 0x1c86}, {0x463, 0x1c87}, {0x1c88, 0xa64b}, {0x1e61, 0x1e9b}, {0xfb05, 0xfb06},
	}
}

// fold returns every character that matches a member of r when case is
// ignored.
func (f *folder) fold(r ranges, ascii bool) ranges {
	out := slices.Clone(r)
	if ascii {
		for c := 'a'; c <= 'z'; c++ {
			if r.has(c) || r.has(c-32) {
				out = append(out, c, c, c-32, c-32)
			}
		}
		return out.normal()
	}
	for i := 0; i < len(f.cased); i += 2 {
		if r.has(f.cased[i]) {
			out = append(out, f.cased[i+1], f.cased[i+1])
		}
	}
	lower := out.normal()
	out = slices.Clone(lower)
	for _, g := range sharedUpper() {
		if slices.ContainsFunc(g, lower.has) {
			for _, c := range g {
				out = append(out, c, c)
			}
		}
	}
	lower = out.normal()
	out = slices.Clone(lower)
	for i := 0; i < len(f.cased); i += 2 {
		if lower.has(f.cased[i+1]) {
			out = append(out, f.cased[i], f.cased[i])
		}
	}
	return out.normal()
}

// Entries of set.tab: what the first byte of a character says about it.
const (
	outside = 0
	inside  = 1
	decode  = 2 // not ASCII: ask the ranges
)

// set is a character set ready to match UTF-8. An invalid byte counts as
// the character U+FFFD.
type set struct {
	tab [256]uint8
	r   ranges
	// all and none say that every, or no, character outside ASCII is in.
	all, none bool
	// except is the one ASCII byte that is not in the set, else -1.
	except int
}

func newSet(r ranges) *set {
	s := &set{r: r, except: -1}
	missing := 0
	for c := range utf8.RuneSelf {
		if r.has(rune(c)) {
			s.tab[c] = inside
		} else {
			missing++
			s.except = c
		}
	}
	var wide ranges
	for i := 0; i < len(r); i += 2 {
		if r[i+1] >= utf8.RuneSelf {
			wide = append(wide, max(r[i], utf8.RuneSelf), r[i+1])
		}
	}
	s.none = len(wide) == 0
	s.all = len(wide) == 2 && wide[0] == utf8.RuneSelf && wide[1] == unicode.MaxRune
	if missing != 1 || !s.all {
		s.except = -1
	}
	for c := utf8.RuneSelf; c < 256; c++ {
		switch {
		case s.all:
			s.tab[c] = inside
		case !s.none:
			s.tab[c] = decode
		}
	}
	return s
}

// size is the length of the character at text[i] if it is in the set, else
// 0.
func (s *set) size(text []byte, i int) int {
	b := text[i]
	if b < utf8.RuneSelf {
		return int(s.tab[b])
	}
	if s.none {
		return 0
	}
	r, n := utf8.DecodeRune(text[i:])
	if s.all || s.r.has(r) {
		return n
	}
	return 0
}

// single is the one character of the set, if it has one only.
func (r ranges) single() (rune, bool) {
	if len(r) == 2 && r[0] == r[1] && r[0] != utf8.RuneError {
		return r[0], true
	}
	return 0, false
}
