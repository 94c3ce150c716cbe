package matcher

import (
	"bytes"
	"encoding/binary"
)

// scanner finds, in a block of lines, where one of many strings stands. It
// looks at two or three bytes a window's length apart and skips ahead by how far
// they are from the end of any window that holds them (Wu and Manber, 1994):
// most bytes of a log are never looked at, which is what makes it cheaper
// than an automaton that takes every byte. Letters are compared without
// regard to case, since a false hit costs only a regex.
type scanner struct {
	window int
	gram   int            // bytes to look at: two or three
	mask   uint32         // takes the third of three bytes out, if it is two
	shift  [1 << 15]uint8 // by those bytes, folded; 0: a window ends here
	heads  []head         // by hash of those bytes: open addressing
	words  []word
	lanes  [3][]hit
}

// head leads to the words whose windows end with the same bytes.
type head struct {
	key   uint16
	words []int32 // empty: none
}

// bucket is the head for the bytes of k.
func (s *scanner) bucket(k uint16) int {
	for i := int(k ^ k>>5); ; i++ {
		i &= len(s.heads) - 1
		if h := &s.heads[i]; h.key == k || len(h.words) == 0 {
			return i
		}
	}
}

// word is one string to find: its window decides the hit, the rest is
// compared.
type word struct {
	text   []byte // folded
	offset int    // where its window starts
	marks  []mark
}

// A window has at least minWindow bytes: three to hash. Words of at least
// longWindow get a scanner of their own, so that a few short ones don't take
// away its long strides.
const (
	minWindow  = 3
	longWindow = 6
	maxWindow  = 16
)

// fold makes letters of both cases alike, and leaves other bytes apart from
// them well enough.
func fold(b byte) byte { return b | 0x20 }

func newScanner(words []word) *scanner {
	size := 16
	for size < 4*len(words) {
		size *= 2
	}
	s := &scanner{window: maxWindow, heads: make([]head, size), words: words}
	for _, w := range words {
		s.window = min(s.window, len(w.text))
	}
	// Two bytes allow for a longer stride, three are less often in a window.
	s.gram, s.mask = 3, 1<<15-1
	if s.window < longWindow {
		s.gram, s.mask = 2, s.mask&^0x1f
	}
	for i := range s.shift {
		s.shift[i] = uint8(s.window - s.gram + 1)
	}
	for i := range words {
		w := &words[i]
		w.offset = rarest(w.text, s.window)
		win := w.text[w.offset : w.offset+s.window]
		for e := s.gram - 1; e < len(win); e++ {
			k := key3(win[max(e-2, 0)], win[e-1], win[e]) & uint16(s.mask)
			s.shift[k] = min(s.shift[k], uint8(len(win)-1-e))
			if e == len(win)-1 {
				h := &s.heads[s.bucket(k)]
				h.key, h.words = k, append(h.words, int32(i))
			}
		}
	}
	return s
}

func key3(a, b, c byte) uint16 {
	return uint16(a&0x1f) | uint16(b&0x1f)<<5 | uint16(c&0x1f)<<10
}

// hit is a place in a block where a window ends of a word that stands there.
type hit struct {
	end  int32 // the window's last byte
	head int32 // the words whose windows may end there, one of them for sure
}

// find finds all the hits in a block, in order. What it looks at next depends
// on what it has just looked up, so a single search mostly waits: four parts
// of the block are searched in step. The block must not end with a word.
func (s *scanner) find(b []byte, hits []hit) []hit {
	const lanes, worthwhile = 4, 1 << 10
	first, end := s.window-1, len(b)-1
	if end-first < worthwhile {
		return s.lane(b, first, end, hits)
	}
	part := (end - first) / lanes
	i, j, k, l := first, first+part, first+2*part, first+3*part
	ends := [lanes]int{j, k, l, end}
	for n := range s.lanes {
		s.lanes[n] = s.lanes[n][:0]
	}
	mask := s.mask & (1<<15 - 1)
	for i < ends[0] && j < ends[1] && k < ends[2] && l < ends[3] {
		d0, d1 := s.shift[key(b, i)&mask], s.shift[key(b, j)&mask]
		d2, d3 := s.shift[key(b, k)&mask], s.shift[key(b, l)&mask]
		if d0 == 0 {
			hits = s.confirm(b, i, hits)
			d0 = 1
		}
		if d1 == 0 {
			s.lanes[0] = s.confirm(b, j, s.lanes[0])
			d1 = 1
		}
		if d2 == 0 {
			s.lanes[1] = s.confirm(b, k, s.lanes[1])
			d2 = 1
		}
		if d3 == 0 {
			s.lanes[2] = s.confirm(b, l, s.lanes[2])
			d3 = 1
		}
		i += int(d0)
		j += int(d1)
		k += int(d2)
		l += int(d3)
	}
	hits = s.lane(b, i, ends[0], hits)
	hits = s.lane(b, j, ends[1], append(hits, s.lanes[0]...))
	hits = s.lane(b, k, ends[2], append(hits, s.lanes[1]...))
	return s.lane(b, l, ends[3], append(hits, s.lanes[2]...))
}

// lane finds the hits from i to end.
func (s *scanner) lane(b []byte, i, end int, hits []hit) []hit {
	mask := s.mask & (1<<15 - 1)
	for i < end {
		d := s.shift[key(b, i)&mask]
		if d == 0 {
			hits = s.confirm(b, i, hits)
			d = 1
		}
		i += int(d)
	}
	return hits
}

// key is key3 of the three bytes that end at i; the byte behind them must be
// there.
func key(b []byte, i int) uint32 {
	v := binary.LittleEndian.Uint32(b[i-2:])
	return (v&0x1f | v>>3&0x3e0 | v>>6&0x7c00) & (1<<15 - 1)
}

// confirm adds a hit if a word stands where a window may end at i.
func (s *scanner) confirm(b []byte, i int, hits []hit) []hit {
	h := s.bucket(uint16(key(b, i) & s.mask))
	for _, n := range s.heads[h].words {
		if s.stands(n, b, i) {
			return append(hits, hit{int32(i), int32(h)})
		}
	}
	return hits
}

// stands says whether word n is in the block with its window ending at end.
func (s *scanner) stands(n int32, b []byte, end int) bool {
	w := &s.words[n]
	return w.stands(b, end-s.window+1-w.offset)
}

func (w *word) stands(b []byte, at int) bool {
	if at < 0 || at+len(w.text) > len(b) {
		return false
	}
	for i, x := range w.text {
		if fold(b[at+i]) != x {
			return false
		}
	}
	return true
}

// rarest is where the window of a word starts that logs hold least often, by
// its letters; the last three count most, since they are what is looked up.
func rarest(text []byte, window int) int {
	best, at := -1, 0
	for i := 0; i+window <= len(text); i++ {
		score := 0
		for k, x := range text[i : i+window] {
			n := rarity(x)
			if k >= window-3 {
				n *= 3
			}
			score += n
		}
		if score > best {
			best, at = score, i
		}
	}
	return at
}

func rarity(x byte) int {
	switch {
	case bytes.IndexByte([]byte(" etaoinsr.:/"), x) >= 0:
		return 1
	case 'a' <= x && x <= 'z':
		return 3
	}
	return 2
}
