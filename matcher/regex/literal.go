package regex

import (
	"slices"
	"strings"
)

// maxLiterals is how many literals a pattern may ask its caller to look for.
const maxLiterals = 16

// lits is what is known of the text that a piece of the pattern matches.
type lits struct {
	exact []string   // the piece matches just these; nil: not known
	sets  [][]string // every match contains one of each set
	fold  bool       // they are in lower case
}

// required are sets of strings, the one that narrows most first: every match
// of n contains one of each set.
func required(n *node) ([][][]byte, bool) {
	l := analyse(n)
	l.add(l.exact)
	slices.SortStableFunc(l.sets, func(a, b []string) int { return score(b) - score(a) })
	var out [][][]byte
	for _, set := range l.sets {
		bytes := make([][]byte, len(set))
		for i, s := range set {
			bytes[i] = []byte(s)
		}
		out = append(out, bytes)
	}
	return out, l.fold && out != nil
}

// score says how much a set of literals narrows: the worst of them counts,
// and each more costs.
func score(set []string) int {
	if len(set) == 0 {
		return -1
	}
	worst := 1 << 30
	for _, s := range set {
		w := 0
		for i := range len(s) {
			w += rarity(s[i])
		}
		worst = min(worst, w)
	}
	if worst == 0 {
		return -1
	}
	return worst*8 - 6*len(set)
}

// rarity weighs a byte by how seldom it is in logs.
func rarity(b byte) int {
	switch {
	case strings.IndexByte(" etaoinsr.:0123456789", b) >= 0:
		return 2
	case 'a' <= b && b <= 'z', b == '-' || b == '/' || b == '[' || b == ']':
		return 3
	}
	return 4
}

// add notes a set of which every match contains one, if it narrows at all.
func (l *lits) add(set []string) {
	if score(set) >= 0 {
		l.sets = append(l.sets, set)
	}
}

// best is the set that narrows most.
func (l *lits) best() []string {
	var best []string
	for _, set := range l.sets {
		if score(set) > score(best) {
			best = set
		}
	}
	return best
}

func analyse(n *node) lits {
	switch n.kind {
	case nLit:
		return lits{exact: []string{n.s}}
	case nFold:
		// i, k and s have partners outside ASCII, so they may not be there.
		if n.ascii || !strings.ContainsAny(n.s, "iks") {
			return lits{exact: []string{n.s}, fold: true}
		}
		l := lits{fold: true}
		for _, part := range strings.FieldsFunc(n.s, func(r rune) bool { return strings.ContainsRune("iks", r) }) {
			l.add([]string{part})
		}
		return l
	case nSet:
		count := 0
		for i := 0; i < len(n.set.r); i += 2 {
			count += int(n.set.r[i+1]-n.set.r[i]) + 1
			if count > maxLiterals {
				return lits{}
			}
		}
		var l lits
		for i := 0; i < len(n.set.r); i += 2 {
			for c := n.set.r[i]; c <= n.set.r[i+1]; c++ {
				if c == '\uFFFD' {
					return lits{} // any invalid byte is this character
				}
				l.exact = append(l.exact, string(c))
			}
		}
		return l
	case nGroup, nAtomic:
		return analyse(n.subs[0])
	case nRepeat:
		l := analyse(n.subs[0])
		if n.min == 0 {
			if n.max == 1 && l.exact != nil && len(l.exact) < maxLiterals {
				return lits{exact: append([]string{""}, l.exact...), fold: l.fold}
			}
			return lits{}
		}
		if n.min == n.max && n.min <= 4 && l.exact != nil {
			all := make([]*node, n.min)
			for i := range all {
				all[i] = n.subs[0]
			}
			return analyse(&node{kind: nCat, subs: all})
		}
		l.add(l.exact)
		l.exact = nil
		return l
	case nAlt:
		var out lits
		exact, best := []string{}, []string{}
		for _, s := range n.subs {
			l := analyse(s)
			out.fold = out.fold || l.fold
			if exact != nil && l.exact != nil && len(exact)+len(l.exact) <= maxLiterals {
				exact = append(exact, l.exact...)
			} else {
				exact = nil
			}
			l.add(l.exact)
			b := l.best()
			if b == nil {
				best = nil
			}
			if best != nil {
				best = append(best, b...)
			}
		}
		out.exact = exact
		if len(best) <= 8*maxLiterals {
			out.add(best)
		}
		return out.lower()
	case nEmpty, nLook, nAssert:
		return lits{exact: []string{""}}
	case nCat:
		var out lits
		run := []string{""}
		whole := true
		for _, s := range n.subs {
			l := analyse(s)
			out.fold = out.fold || l.fold
			out.sets = append(out.sets, l.sets...)
			out.add(l.exact)
			if l.exact != nil && len(run)*len(l.exact) <= maxLiterals {
				run = cross(run, l.exact)
				continue
			}
			whole = false
			out.add(run)
			run = []string{""}
			if l.exact != nil {
				run = l.exact
			}
		}
		if whole {
			out.exact = run
		} else {
			out.add(run)
		}
		return out.lower()
	}
	return lits{} // nBackref, nCond
}

// lower makes all literals of l lower case if some of them are.
func (l lits) lower() lits {
	if l.fold {
		l.exact = lowered(l.exact)
		for i, set := range l.sets {
			l.sets[i] = lowered(set)
		}
	}
	return l
}

func lowered(set []string) []string {
	if set == nil {
		return nil
	}
	out := make([]string, len(set))
	for i, s := range set {
		b := []byte(s)
		for k, c := range b {
			if 'A' <= c && c <= 'Z' {
				b[k] = c + 32
			}
		}
		out[i] = string(b)
	}
	return out
}

func cross(a, b []string) []string {
	out := make([]string, 0, len(a)*len(b))
	for _, x := range a {
		for _, y := range b {
			out = append(out, x+y)
		}
	}
	return out
}
