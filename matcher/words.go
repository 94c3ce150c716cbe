package matcher

import (
	"bytes"
	"slices"
	"strings"
)

// A pattern runs on a line only if the raw line holds the words it needs:
// clauses, each a choice of words, of which one must be there. Two clauses
// narrow far better than one: "invalid" is in many lines, with "sshd" in
// few. Each of a pattern's clauses has its place in one of the planes.
const planes = 3

// mark is what a word says when it is found: bits of a plane.
type mark struct {
	word int32 // of the planes, one after the other
	bits uint64
}

// cutting says where a date may be cut out of the line before the patterns
// see it: what they take for one string may be two in the raw line.
type cutting uint8

const (
	cutNowhere cutting = iota // the patterns see an unbroken end of the line
	cutTop                    // behind at most two bytes
	cutAnywhere
)

// cutting is where a line's date is, by the filter's datepattern.
func (c *Compiled) cutting() cutting {
	if len(c.Filter.Programs) > 0 {
		return cutNowhere
	}
	for _, st := range c.dates {
		if t := st.template; t != nil && !t.atTop || t == nil && !st.topOnly {
			return cutAnywhere
		}
	}
	return cutTop
}

// clauses are what a raw line must hold for pattern k to match; none if
// nothing is known.
func (c *Compiled) clauses(k int, cut cutting) [][]string {
	sets := c.fail[k].re.Required()
	if c.pref != nil {
		sets = append(slices.Clone(sets), c.pref.re.Required()...)
	}
	var all [][]string
	for _, set := range sets {
		var clause []string
		for _, literal := range set {
			w := usable(literal, cut)
			if len(set) == 1 {
				for _, more := range w[min(len(w), 1):] {
					all = append(all, []string{more})
				}
			}
			if len(w) == 0 {
				clause = nil
				break
			}
			if !slices.Contains(clause, w[0]) {
				clause = append(clause, w[0])
			}
		}
		if clause != nil {
			all = append(all, clause)
		}
	}
	slices.SortStableFunc(all, func(a, b []string) int { return strength(b) - strength(a) })
	most := planes
	if c.multiline() {
		most = 1 // the others may be in another line
	}
	const enough, helpful = 45, 14
	var chosen [][]string
	sum := 0
	for _, clause := range all {
		if len(chosen) == most || sum >= enough {
			break
		}
		if chosen != nil && (short(clause) || strength(clause) < helpful) {
			break // it would cost more than it spares
		}
		if !slices.ContainsFunc(chosen, func(c []string) bool { return implies(c, clause) }) {
			chosen = append(chosen, clause)
			sum += strength(clause)
		}
	}
	if chosen == nil && cut == cutNowhere {
		// The header names one of the programs.
		var clause []string
		for _, p := range c.Filter.Programs {
			w := usable([]byte(strings.TrimSuffix(p, "*")), cutNowhere)
			if w == nil {
				return nil
			}
			clause = append(clause, w[0])
		}
		if clause != nil {
			chosen = [][]string{clause}
		}
	}
	return chosen
}

// strength says how much a clause narrows, and what it costs to look for.
func strength(clause []string) int {
	s := 1 << 10
	for _, w := range clause {
		s = min(s, weight(w))
	}
	if short(clause) {
		s /= 2
	}
	return s - 2*(len(clause)-1)
}

// short says that a word of the clause is too short for long strides.
func short(clause []string) bool {
	return slices.ContainsFunc(clause, func(w string) bool { return len(w) < longWindow })
}

// implies says that where a word of a is, a word of b is too.
func implies(a, b []string) bool {
	for _, x := range a {
		if !slices.ContainsFunc(b, func(y string) bool { return strings.Contains(x, y) }) {
			return false
		}
	}
	return true
}

// usable returns the parts of a literal to search raw lines for, folded, the
// best first. What is searched for must be ASCII (the line's encoding isn't
// known yet) and within a line, and the place where a date is cut out must
// not be within it. A date ends with a word's end, so it can't be followed by
// a letter or digit, and any byte followed only by those is safe; so is what
// comes after the first two bytes, if the cut is at the top.
func usable(literal []byte, cut cutting) []string {
	var parts []string
	take := func(b []byte) {
		if len(b) >= minWindow {
			folded := make([]byte, len(b))
			for i, x := range b {
				folded[i] = fold(x)
			}
			parts = append(parts, string(folded))
		}
	}
	runs := bytes.FieldsFunc(literal, func(r rune) bool { return r == '\n' || r == '\r' || r == 0 || r >= 0x80 })
	for _, run := range runs {
		if cut == cutNowhere {
			take(run)
			continue
		}
		if cut == cutTop {
			take(run[min(2, len(run)):])
		}
		from := 0
		for i, x := range run {
			if i > from && !isWord(x) {
				take(run[from:i])
				from = i
			}
		}
		take(run[from:])
	}
	slices.SortStableFunc(parts, func(a, b string) int { return weight(b) - weight(a) })
	return parts
}

func weight(b string) int {
	n := 0
	for i := range len(b) {
		n += rarity(b[i])
	}
	return n
}
