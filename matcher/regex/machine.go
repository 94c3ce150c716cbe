package regex

import (
	"bytes"
	"unicode"
	"unicode/utf8"
)

// Result is the outcome of a search.
type Result uint8

const (
	NoMatch Result = iota
	Matched
	// Exceeded: the step budget ran out before the answer was known. The
	// line is neither a match nor a miss: count it and skip it.
	Exceeded
)

func (r Result) String() string {
	switch r {
	case NoMatch:
		return "no match"
	case Matched:
		return "matched"
	}
	return "exceeded"
}

// The budget of the fast mode. Real patterns on real lines stay below one
// step a byte; a pattern that is guaranteed linear starts again in the
// memoised mode when it is used up, any other gets the second budget and no
// second chance.
const (
	fastSteps, fastStepsPerByte = 1 << 10, 16
	hardSteps, hardStepsPerByte = 1 << 17, 4
	// maxMemo bounds the memo table, in bits.
	maxMemo = 1 << 28
	// Hostile lines must not leave their memory behind.
	keepFrames, keepWords = 1 << 13, 1 << 16
)

type frameKind uint8

const (
	fAlt     frameKind = iota // go on at pc, pos
	fLoop                     // opLoop at pc is at pos, and may give back down to lo
	fLazy                     // opLazy at pc is at pos, and may take lo more
	fList                     // lists[pc], from element lo, at pos
	fCapture                  // group pc was pos, lo
	fOpen                     // group pc was open at pos
	fSlot                     // slot pc was pos
	fMemo                     // the state pos is being tried
)

type frame struct {
	kind    frameKind
	pc      int32
	pos, lo int32
}

// Machine is the working memory of searches, to be reused. It is for one
// goroutine. The zero value is ready.
type Machine struct {
	stack   []frame
	caps    []int
	open    []int32
	slots   []int32
	left    int // steps left
	visited []uint64
	proven  []uint64 // states of a lookaround that have led to its success
	conds   []int    // groups whose being set is part of a state
	loops   []int32  // slots that are part of a state by being the position
}

// outcome of one run.
type outcome uint8

const (
	failed outcome = iota
	ended
	exhausted
)

// owner says whose states a run's memo entries are.
type owner uint8

const (
	whole  owner = iota // the match itself: what was tried has failed
	redone              // a body whose way to success must be gone again
	proved              // a body whose success may be remembered
)

// Match searches text for the leftmost match, as Python's re.search does,
// the first of several alternatives first. caps is reused if it is large
// enough: caps2[2*i] and caps2[2*i+1] are where group i starts and ends, -1
// if it took no part. If there is no match, caps2 holds nothing of use.
func (m *Machine) Match(re *Regexp, text []byte, caps []int) (caps2 []int, r Result) {
	n := len(text)
	if n < re.minLen {
		return caps, NoMatch
	}
	if re.anchor == anchorText {
		return m.MatchAt(re, text, 0, caps)
	}
	s := search{m: m, re: re, text: text, caps: caps}
	if re.anchor == anchorLine {
		for at := 0; ; {
			if r = s.at(at); r != NoMatch {
				break
			}
			i := bytes.IndexByte(text[at:], '\n')
			if i < 0 {
				break
			}
			at += i + 1
		}
		s.close()
		return s.caps, r
	}
	for at := 0; ; {
		if at = re.candidate(text, at); at < 0 {
			break
		}
		if r = s.at(at); r != NoMatch || at == n {
			break
		}
		if text[at] < utf8.RuneSelf {
			at++
		} else {
			_, k := utf8.DecodeRune(text[at:])
			at += k
		}
	}
	s.close()
	return s.caps, r
}

// MatchAt is Match for a match that starts at an offset of text. What comes
// before it is still seen by ^, \b and lookbehinds.
func (m *Machine) MatchAt(re *Regexp, text []byte, at int, caps []int) (caps2 []int, r Result) {
	s := search{m: m, re: re, text: text, caps: caps}
	if r = s.at(at); s.on {
		s.close()
	}
	return s.caps, r
}

// search is one call of Match: it may try several starts, which share the
// budget, and the memo once there is one.
type search struct {
	m    *Machine
	re   *Regexp
	text []byte
	caps []int
	on   bool // the machine is set up
	memo bool
}

func (s *search) at(at int) Result {
	re, m := s.re, s.m
	if at < len(s.text) {
		if re.start[s.text[at]] == 0 {
			return NoMatch
		}
	} else if !re.startEnd {
		return NoMatch
	}
	p := re.fast
	if !s.on {
		if len(s.text) >= infinite {
			return Exceeded
		}
		s.on = true
		m.prepare(re, s.caps)
		s.caps = m.caps
		m.left = fastSteps + fastStepsPerByte*len(s.text)
		if re.memo == nil {
			m.left = hardSteps + hardStepsPerByte*len(s.text)
		}
	} else if s.memo {
		p = re.memo()
	}
	end, o := m.run(p, s.text, 0, at, whole)
	if o == exhausted && re.memo != nil && !s.memo {
		m.unwind(0, redone)
		if !m.prepareMemo(re, len(s.text)) {
			return Exceeded
		}
		s.memo = true
		m.left = 1<<63 - 1
		end, o = m.run(re.memo(), s.text, 0, at, whole)
	}
	switch o {
	case failed:
		return NoMatch
	case exhausted:
		return Exceeded
	}
	m.caps[0], m.caps[1] = at, end
	return Matched
}

func (s *search) close() {
	m := s.m
	m.stack = m.stack[:0]
	if cap(m.stack) > keepFrames {
		m.stack = nil
	}
	if cap(m.visited) > keepWords {
		m.visited, m.proven = nil, nil
	}
}

// prepare sets the machine up to catch groups in caps.
func (m *Machine) prepare(re *Regexp, caps []int) {
	m.stack = m.stack[:0]
	n := 2 * (re.groups + 1)
	if cap(caps) < n {
		caps = make([]int, n)
	}
	m.caps = caps[:n]
	for i := range m.caps {
		m.caps[i] = -1
	}
	if len(m.open) < n/2 {
		m.open = make([]int32, n/2)
	}
	if len(m.slots) < re.slots {
		m.slots = make([]int32, re.slots)
	}
}

func (m *Machine) prepareMemo(re *Regexp, n int) bool {
	memo := re.memo()
	m.conds, m.loops = re.conds, memo.loops
	states := memo.memos << (len(m.conds) + len(m.loops))
	if states > 0 && n+1 > maxMemo/states {
		return false
	}
	words := (states*(n+1) + 63) / 64
	m.visited = zeroed(m.visited, words)
	if memo.looks {
		m.proven = zeroed(m.proven, words)
	} else {
		m.proven = m.proven[:0]
	}
	return true
}

func zeroed(s []uint64, n int) []uint64 {
	if cap(s) < n {
		return make([]uint64, n)
	}
	s = s[:n]
	clear(s)
	return s
}

// state is the number, in the memo, of an instruction at a position, with
// whatever else decides how it goes on: whether the groups of conditionals
// are set, and whether a loop's round is still empty (without that, an
// empty round would look as if it had failed before).
func (m *Machine) state(memo int32, text []byte, pos int) int {
	k := int(memo)
	for _, g := range m.conds {
		k <<= 1
		if m.caps[2*g+1] >= 0 {
			k |= 1
		}
	}
	for _, l := range m.loops {
		k <<= 1
		if m.slots[l] == int32(pos) {
			k |= 1
		}
	}
	return k*(len(text)+1) + pos
}

// unwind takes back what the frames above base have changed, and drops
// them.
func (m *Machine) unwind(base int, o owner) {
	for i := len(m.stack) - 1; i >= base; i-- {
		f := m.stack[i]
		switch f.kind {
		case fCapture:
			m.caps[2*f.pc], m.caps[2*f.pc+1] = int(f.pos), int(f.lo)
		case fOpen:
			m.open[f.pc] = f.pos
		case fSlot:
			m.slots[f.pc] = f.pos
		case fMemo:
			m.settle(f, o)
		}
	}
	m.stack = m.stack[:base]
}

// cut drops the choices above base but keeps what is needed to take back
// changes later.
func (m *Machine) cut(base int, o owner) {
	k := base
	for _, f := range m.stack[base:] {
		switch f.kind {
		case fCapture, fOpen, fSlot:
			m.stack[k] = f
			k++
		case fMemo:
			m.settle(f, o)
		}
	}
	m.stack = m.stack[:k]
}

// settle records what is known of a state on a body's way to success: it
// has not failed, though it was visited.
func (m *Machine) settle(f frame, o owner) {
	if o == proved {
		m.proven[f.pos/64] |= 1 << (f.pos % 64)
	} else {
		m.visited[f.pos/64] &^= 1 << (f.pos % 64)
	}
}

// verdict of looking up a state in the memo.
type verdict uint8

const (
	fresh verdict = iota
	hopeless
	promising // leads to the end of the lookaround
)

// visit looks a state up, and enters it if it is new.
func (m *Machine) visit(s int) verdict {
	w, bit := &m.visited[s/64], uint64(1)<<(s%64)
	if *w&bit == 0 {
		*w |= bit
		return fresh
	}
	if len(m.proven) > 0 && m.proven[s/64]&bit != 0 {
		return promising
	}
	return hopeless
}

// run matches the program from pc at pos; on failure everything it changed
// has been taken back.
func (m *Machine) run(p *program, text []byte, pc, pos int, own owner) (int, outcome) {
	prog := p.insts
	stack := m.stack
	base := len(stack)
	left := m.left
	for {
		in := &prog[pc]
		switch in.op {
		case opByte:
			if pos < len(text) && text[pos] == in.b {
				pos++
				pc++
				continue
			}
		case opStr:
			if s := in.s; len(text)-pos >= len(s) && string(text[pos:pos+len(s)]) == s {
				pos += len(s)
				pc++
				continue
			}
		case opFold:
			if k := foldPrefix(text[pos:], in.s, in.ascii); k >= 0 {
				pos += k
				pc++
				continue
			}
		case opSet:
			if pos < len(text) {
				if k := in.set.size(text, pos); k > 0 {
					pos += k
					pc++
					continue
				}
			}
		case opRun:
			if in.max == infinite && in.set.except < 0 && in.min <= 1 {
				// The commonest loop, in place.
				tab := &in.set.tab
				end := pos
				for end < len(text) && tab[text[end]] == inside {
					end++
				}
				if end == len(text) || tab[text[end]] == outside {
					if end == pos && in.min > 0 {
						break
					}
					left -= (end - pos) >> 4
					pos = end
					pc++
					continue
				}
			}
			lo, end := in.scan(text, pos)
			if lo < 0 {
				break
			}
			left -= (end - pos) >> 4
			pos = end
			pc++
			if in = &prog[pc]; in.op == opByte {
				// As in \d{1,3}\. and [^"]*".
				if pos == len(text) || text[pos] != in.b {
					break
				}
				pos++
				pc++
			}
			continue
		case opLoop:
			lo, end := in.scan(text, pos)
			if lo < 0 {
				break
			}
			at := in.last(text, lo, end)
			left -= (end-pos)>>4 + (end-at)>>4
			if at < 0 {
				break
			}
			if at > lo {
				stack = append(stack, frame{fLoop, int32(pc), int32(at), int32(lo)})
			}
			pos = at
			pc++
			continue
		case opLazy:
			at := in.least(text, pos)
			if at < 0 {
				break
			}
			more := in.max
			if more != infinite {
				more -= in.min
			}
			to, more := in.first(text, at, more)
			if to < 0 {
				left -= (len(text) - at) >> 4
				break
			}
			left -= (to - at) >> 4
			if more > 0 {
				stack = append(stack, frame{fLazy, int32(pc), int32(to), more})
			}
			pos = to
			pc++
			continue
		case opSplitMemo, opSplit:
			if in.op == opSplitMemo {
				s := m.state(in.memo, text, pos)
				if v := m.visit(s); v == promising {
					m.stack, m.left = stack, left
					return pos, ended
				} else if v == hopeless {
					break
				}
				if own != whole {
					stack = append(stack, frame{fMemo, 0, int32(s), 0})
				}
			}
			can := in.eot
			if pos < len(text) {
				can = in.tab[text[pos]]
			}
			if can == 0 {
				break
			}
			left--
			if can == 2 {
				pc = int(in.y)
				continue
			}
			if can == 3 {
				stack = append(stack, frame{fAlt, in.y, int32(pos), 0})
			}
			pc = int(in.x)
			continue
		case opAltMemo, opAlt:
			if in.op == opAltMemo {
				s := m.state(in.memo, text, pos)
				if v := m.visit(s); v == promising {
					m.stack, m.left = stack, left
					return pos, ended
				} else if v == hopeless {
					break
				}
				if own != whole {
					stack = append(stack, frame{fMemo, 0, int32(s), 0})
				}
			}
			k := int(in.x) + int(in.eot)
			if pos < len(text) {
				k = int(in.x) + int(in.tab[text[pos]])
			}
			l := p.lists[k]
			if len(l) == 0 {
				break
			}
			left--
			if len(l) > 1 {
				stack = append(stack, frame{fList, int32(k), int32(pos), 1})
			}
			pc = int(l[0])
			continue
		case opRunMemo:
			// Whoever comes through a character of the run ends where the
			// first one did, which led to nothing.
			v := fresh
			for {
				s := m.state(in.memo, text, pos)
				if v = m.visit(s); v != fresh {
					break
				}
				left--
				if own != whole {
					stack = append(stack, frame{fMemo, 0, int32(s), 0})
				}
				k := 0
				if pos < len(text) {
					k = in.set.size(text, pos)
				}
				if k == 0 {
					break
				}
				pos += k
			}
			if v == promising {
				m.stack, m.left = stack, left
				return pos, ended
			}
			if v == hopeless {
				break
			}
			pc++
			continue
		case opJump:
			pc = int(in.x)
			continue
		case opOpen:
			if in.keep {
				stack = append(stack, frame{fOpen, in.x, m.open[in.x], 0})
			}
			m.open[in.x] = int32(pos)
			pc++
			continue
		case opClose:
			c := m.caps[2*in.x : 2*in.x+2 : 2*in.x+2]
			if in.keep {
				stack = append(stack, frame{fCapture, in.x, int32(c[0]), int32(c[1])})
			}
			c[0], c[1] = int(m.open[in.x]), pos
			pc++
			continue
		case opMark:
			stack = append(stack, frame{fSlot, in.x, m.slots[in.x], 0})
			m.slots[in.x] = int32(pos)
			pc++
			continue
		case opCheck:
			if m.slots[in.x] == int32(pos) {
				pc = int(in.y)
			} else {
				pc++
			}
			continue
		case opLook:
			found, start := true, pos
			if in.behind {
				start = stepBack(text, pos, int(in.max))
				found = start >= 0
			} else if pos < len(text) {
				found = in.tab[text[pos]] != 0
			} else {
				found = in.eot != 0
			}
			if found && left < 0 {
				m.stack, m.left = stack, left
				return 0, exhausted
			}
			if found {
				o := redone
				if in.frees {
					o = proved
				}
				m.stack, m.left = stack, left-1
				inner := len(stack)
				_, got := m.run(p, text, pc+1, start, o)
				switch {
				case got == exhausted:
					return 0, exhausted
				case got == ended && in.neg:
					m.unwind(inner, o)
				case got == ended:
					m.cut(inner, o)
				}
				stack, left = m.stack, m.left
				found = got == ended
			}
			if found != in.neg {
				pc = int(in.y)
				continue
			}
		case opLookStr:
			at := pos
			if in.behind {
				at -= len(in.s)
			}
			if (at >= 0 && len(text)-at >= len(in.s) && string(text[at:at+len(in.s)]) == in.s) != in.neg {
				pc++
				continue
			}
		case opLookSet:
			at := pos
			if in.behind {
				at = stepBack(text, pos, 1)
			}
			if (at >= 0 && at < len(text) && in.set.size(text, at) > 0) != in.neg {
				pc++
				continue
			}
		case opAtomic:
			m.stack, m.left = stack, left-1
			inner := len(stack)
			end, got := m.run(p, text, pc+1, pos, redone)
			if got == exhausted {
				return 0, exhausted
			}
			if got == ended {
				m.cut(inner, redone)
			}
			stack, left = m.stack, m.left
			if got == ended {
				pos = end
				pc = int(in.y)
				continue
			}
		case opBackref:
			from, to := m.caps[2*in.x], m.caps[2*in.x+1]
			if to < 0 {
				break
			}
			left -= (to - from) >> 4
			if k := sameText(text[pos:], text[from:to], in.fold, in.ascii); k >= 0 {
				pos += k
				pc++
				continue
			}
		case opCond:
			if m.caps[2*in.x+1] >= 0 {
				pc++
			} else {
				pc = int(in.y)
			}
			continue
		case opBeginText:
			if pos == 0 {
				pc++
				continue
			}
		case opBeginLine:
			if pos == 0 || text[pos-1] == '\n' {
				pc++
				continue
			}
		case opEndText:
			if pos == len(text) {
				pc++
				continue
			}
		case opEndTextOrNL:
			if pos == len(text) || pos == len(text)-1 && text[pos] == '\n' {
				pc++
				continue
			}
		case opEndLine:
			if pos == len(text) || text[pos] == '\n' {
				pc++
				continue
			}
		case opWord, opNotWord:
			// Python: neither holds in an empty text.
			if len(text) > 0 && (in.wordBefore(text, pos) != in.wordAt(text, pos)) == (in.op == opWord) {
				pc++
				continue
			}
		case opEnd, opMatch:
			m.stack, m.left = stack, left
			return pos, ended
		}
		// The instruction failed: back to the last choice.
	back:
		for {
			if left--; left < 0 {
				m.stack, m.left = stack, left
				return 0, exhausted
			}
			if len(stack) == base {
				m.stack, m.left = stack, left
				return 0, failed
			}
			f := stack[len(stack)-1]
			stack = stack[:len(stack)-1]
			switch f.kind {
			case fAlt:
				pc, pos = int(f.pc), int(f.pos)
				break back
			case fLoop:
				in := &prog[f.pc]
				lo := int(f.lo)
				at := in.last(text, lo, previous(text, lo, int(f.pos)))
				left -= (int(f.pos) - at) >> 4
				if at < 0 {
					continue
				}
				if at > lo {
					stack = append(stack, frame{fLoop, f.pc, int32(at), f.lo})
				}
				pc, pos = int(f.pc)+1, at
				break back
			case fLazy:
				in := &prog[f.pc]
				at := int(f.pos)
				if at == len(text) {
					continue
				}
				k := in.set.size(text, at)
				if k == 0 {
					continue
				}
				more := f.lo
				if more != infinite {
					more--
				}
				to, more := in.first(text, at+k, more)
				if to < 0 {
					left -= (len(text) - at) >> 4
					continue
				}
				left -= (to - at) >> 4
				if more > 0 {
					stack = append(stack, frame{fLazy, f.pc, int32(to), more})
				}
				pc, pos = int(f.pc)+1, to
				break back
			case fList:
				l := p.lists[f.pc]
				if int(f.lo)+1 < len(l) {
					stack = append(stack, frame{fList, f.pc, f.pos, f.lo + 1})
				}
				pc, pos = int(l[f.lo]), int(f.pos)
				break back
			case fCapture:
				m.caps[2*f.pc], m.caps[2*f.pc+1] = int(f.pos), int(f.lo)
			case fOpen:
				m.open[f.pc] = f.pos
			case fSlot:
				m.slots[f.pc] = f.pos
			}
		}
	}
}

// scan takes as many characters as it may: lo is where the least number of
// them ends (-1 if there are fewer), end where the last one does.
func (in *inst) scan(text []byte, pos int) (lo, end int) {
	s := in.set
	lo, end = pos, pos
	if in.max != infinite || in.min > 1 {
		if !s.all {
			// As long as it is ASCII, bytes are characters.
			most := min(len(text), pos+int(min(in.max, 1<<16)))
			for end < most && s.tab[text[end]] == inside {
				end++
			}
			if end == most && end-pos == int(in.max) || end < len(text) && s.tab[text[end]] == outside || end == len(text) {
				if end-pos < int(in.min) {
					return -1, end
				}
				return pos + int(in.min), end
			}
			end = pos
		}
		if in.min > 0 {
			lo = -1
		}
		for k := int32(1); k <= in.max && end < len(text); k++ {
			n := s.size(text, end)
			if n == 0 {
				break
			}
			end += n
			if k == in.min {
				lo = end
			}
		}
		return lo, end
	}
	if in.min == 1 {
		if pos == len(text) {
			return -1, pos
		}
		n := s.size(text, pos)
		if n == 0 {
			return -1, pos
		}
		lo, end = pos+n, pos+n
	}
	if s.except >= 0 {
		if i := bytes.IndexByte(text[end:], byte(s.except)); i >= 0 {
			return lo, end + i
		}
		return lo, len(text)
	}
	for end < len(text) {
		switch s.tab[text[end]] {
		case inside:
			end++
			continue
		case decode:
			if r, n := utf8.DecodeRune(text[end:]); s.r.has(r) {
				end += n
				continue
			}
		}
		break
	}
	return lo, end
}

// last is the last place from hi down to lo where what follows can start;
// -1 if there is none.
func (in *inst) last(text []byte, lo, hi int) int {
	if s := in.s; s != "" {
		for at := min(hi, len(text)-len(s)); at >= lo; at-- {
			if text[at] == s[0] && string(text[at:at+len(s)]) == s {
				return at
			}
		}
		return -1
	}
	for {
		if hi < len(text) {
			if in.tab[text[hi]] != 0 {
				return hi
			}
		} else if in.eot != 0 {
			return hi
		}
		if hi <= lo {
			return -1
		}
		hi = previous(text, lo, hi)
	}
}

// least takes the least number of characters: where they end, or -1.
func (in *inst) least(text []byte, pos int) int {
	for range in.min {
		if pos == len(text) {
			return -1
		}
		n := in.set.size(text, pos)
		if n == 0 {
			return -1
		}
		pos += n
	}
	return pos
}

// first is the first place from pos on, and at most more characters of the
// set away, where what follows can start; -1 if there is none.
func (in *inst) first(text []byte, pos int, more int32) (int, int32) {
	if s := in.s; s != "" && more == infinite {
		for tab := &in.set.tab; pos < len(text); pos++ {
			if text[pos] == s[0] && len(text)-pos >= len(s) && string(text[pos:pos+len(s)]) == s {
				return pos, more
			}
			if tab[text[pos]] != inside {
				break
			}
		}
	}
	for {
		switch {
		case pos == len(text):
			if in.eot != 0 {
				return pos, more
			}
			return -1, 0
		case in.tab[text[pos]] != 0 && (in.s == "" || len(text)-pos >= len(in.s) && string(text[pos:pos+len(in.s)]) == in.s):
			return pos, more
		case more == 0:
			return -1, 0
		}
		n := in.set.size(text, pos)
		if n == 0 {
			return -1, 0
		}
		pos += n
		if more != infinite {
			more--
		}
	}
}

// previous is the start of the character that ends at pos.
func previous(text []byte, lo, pos int) int {
	if pos <= lo {
		return lo
	}
	if text[pos-1] < utf8.RuneSelf {
		return pos - 1
	}
	_, n := utf8.DecodeLastRune(text[lo:pos])
	return pos - n
}

// stepBack goes n characters back; -1 if there aren't as many.
func stepBack(text []byte, pos, n int) int {
	for range n {
		if pos == 0 {
			return -1
		}
		pos = previous(text, 0, pos)
	}
	return pos
}

func (in *inst) wordAt(text []byte, pos int) bool {
	return pos < len(text) && in.set.size(text, pos) > 0
}

func (in *inst) wordBefore(text []byte, pos int) bool {
	return pos > 0 && in.wordAt(text, previous(text, 0, pos))
}

// foldPrefix is the length of the prefix of text that is s but for case;
// -1 if there is none. Four characters outside ASCII count as letters.
func foldPrefix(text []byte, s string, ascii bool) int {
	at := 0
	for i := range len(s) {
		if at == len(text) {
			return -1
		}
		b := text[at]
		if b == s[i] || b|0x20 == s[i] && isLetter(b) {
			at++
			continue
		}
		if b < utf8.RuneSelf || ascii {
			return -1
		}
		r, n := utf8.DecodeRune(text[at:])
		switch r {
		case 0x130, 0x131:
			r = 'i'
		case 0x17f:
			r = 's'
		case 0x212a:
			r = 'k'
		}
		if r != rune(s[i]) {
			return -1
		}
		at += n
	}
	return at
}

// sameText is the length of the prefix of text that repeats s; -1 if it
// doesn't.
func sameText(text, s []byte, fold, ascii bool) int {
	at := 0
	for len(s) > 0 {
		if at == len(text) {
			return -1
		}
		a, n := rune(text[at]), 1
		b, k := rune(s[0]), 1
		if a|b >= utf8.RuneSelf {
			a, n = utf8.DecodeRune(text[at:])
			b, k = utf8.DecodeRune(s)
		}
		if a != b {
			if !fold || ascii && a|b >= utf8.RuneSelf || unicode.ToLower(a) != unicode.ToLower(b) {
				return -1
			}
		}
		at += n
		s = s[k:]
	}
	return at
}
