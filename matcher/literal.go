package matcher

import (
	"bytes"
	"encoding/binary"
)

// scanner finds, in a block of lines, where one of many strings stands. It
// looks at three bytes a window's length apart and skips ahead by how far
// they are from the end of any window that holds them (Wu and Manber, 1994):
// most bytes of a log are never looked at, which is what makes it cheaper
// than an automaton that takes every byte. Letters are compared without
// regard to case, since a false hit costs only a regex.
type scanner struct {
	window int
	shift  [1 << 15]uint8 // by three folded bytes; 0: a window ends here
	heads  []head         // by hash of the three bytes: open addressing
	words  []word
}

// head leads to the words whose windows end with the same three bytes.
type head struct {
	key   uint16
	words []int32 // empty: none
}

// bucket are the words whose windows end with the three bytes of k.
func (s *scanner) bucket(k uint16) *head {
	for i := int(k ^ k>>5); ; i++ {
		if h := &s.heads[i&(len(s.heads)-1)]; h.key == k || len(h.words) == 0 {
			return h
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
	for i := range s.shift {
		s.shift[i] = uint8(s.window - 2)
	}
	for i := range words {
		w := &words[i]
		w.offset = rarest(w.text, s.window)
		win := w.text[w.offset : w.offset+s.window]
		for e := 2; e < len(win); e++ {
			k := key3(win[e-2], win[e-1], win[e])
			s.shift[k] = min(s.shift[k], uint8(len(win)-1-e))
			if e == len(win)-1 {
				h := s.bucket(k)
				h.key, h.words = k, append(h.words, int32(i))
			}
		}
	}
	return s
}

func key3(a, b, c byte) uint16 {
	return uint16(a&0x1f) | uint16(b&0x1f)<<5 | uint16(c&0x1f)<<10
}

// next finds the first window that ends at or after i and belongs to a word
// that stands there. It returns the words that may stand there, the first of
// them for sure, and the place of the window's last byte, or -1: several
// words can end their windows at one place. The block must not end with a
// word.
func (s *scanner) next(b []byte, i int) (hits []int32, end int) {
	for ; i < len(b)-1; i++ {
		var k uint16
		for {
			v := binary.LittleEndian.Uint32(b[i-2:])
			k = uint16(v&0x1f|v>>3&0x3e0|v>>6&0x7c00) & 0x7fff
			d := int(s.shift[k])
			if d == 0 {
				break
			}
			if i += d; i >= len(b)-1 {
				return nil, -1
			}
		}
		bucket := s.bucket(k).words
		for j, n := range bucket {
			if s.stands(n, b, i) {
				return bucket[j:], i
			}
		}
	}
	return nil, -1
}

// stands says whether word n is in the block with its window ending at end.
func (s *scanner) stands(n int32, b []byte, end int) bool {
	w := &s.words[n]
	return w.stands(b, end-s.window+1-w.offset)
}

// first is the place to start next from, in a block.
func (s *scanner) first() int { return s.window - 1 }

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
