package matcher

import (
	"bytes"
	"slices"
)

// lineBuffer holds the last lines for patterns that span several.
type lineBuffer struct {
	max    int
	lines  []bufferedLine
	joined []byte // all of them
	hits   []int  // by pattern: lines with one of its literals
	taken  []byte
}

type bufferedLine struct {
	text []byte // as the patterns see it, with its "\n"
	hits []bool // by pattern: one of its literals is in it
}

// push adds a line, and drops the oldest if there are too many. cand has the
// patterns, from bit first on, with a literal in it.
func (b *lineBuffer) push(text []byte, cand []uint64, first, patterns int) {
	if len(b.hits) == 0 {
		b.hits = make([]int, patterns)
	}
	var l bufferedLine
	if len(b.lines) >= b.max {
		l = b.drop(0)
	}
	l.text = append(l.text[:0], text...)
	if l.hits == nil {
		l.hits = make([]bool, patterns)
	}
	for k := range l.hits {
		bit := first + k
		if l.hits[k] = cand[bit/64]&(1<<(bit%64)) != 0; l.hits[k] {
			b.hits[k]++
		}
	}
	b.lines = append(b.lines, l)
}

// text is all the lines; nil if no pattern has one of its literals in them.
func (b *lineBuffer) text() []byte {
	if !slices.ContainsFunc(b.hits, func(n int) bool { return n > 0 }) {
		return nil
	}
	b.joined = b.joined[:0]
	for _, l := range b.lines {
		b.joined = append(b.joined, l.text...)
	}
	return b.joined
}

// drop removes a line, whose memory may be used again.
func (b *lineBuffer) drop(i int) bufferedLine {
	l := b.lines[i]
	for k, h := range l.hits {
		if h {
			b.hits[k]--
		}
	}
	b.lines = append(b.lines[:i], b.lines[i+1:]...)
	return l
}

// take removes the lines of a match: they are used up. Those that it skipped
// (by <SKIPLINES>) stay. It returns the text of the lines taken, and how many
// they are. If the text isn't the buffer's (a prefregex took a part of it),
// the last line is taken.
func (b *lineBuffer) take(p *pattern, text []byte, caps []int) (taken []byte, lines int) {
	from, to := len(b.lines)-1, len(b.lines)
	if len(text) == len(b.joined) {
		from = bytes.Count(text[:min(caps[0]+1, len(text))], newline)
		to = bytes.Count(text[:max(caps[1]-1, 0)], newline) + 1
	}
	b.taken = b.taken[:0]
	at := 0
	for i := 0; i < len(b.lines); from, to = from-1, to-1 {
		l := b.lines[i].text
		end := at + len(l)
		if from <= 0 && to > 0 && !p.skipped(caps, at, end) {
			b.taken = append(b.taken, l...)
			b.drop(i)
			lines++
		} else {
			i++
		}
		at = end
	}
	return b.taken, lines
}

// skipped says that a line lies within what <SKIPLINES> caught.
func (p *pattern) skipped(caps []int, start, end int) bool {
	for _, g := range p.skips {
		if caps[2*g] <= start && end <= caps[2*g+1] {
			return true
		}
	}
	return false
}
