package matcher

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// TestScannerFindsEveryWord compares the scanner with a search for each word:
// a word that it misses is a pattern that never runs. The alphabet is small,
// so that windows of several words end at one place.
func TestScannerFindsEveryWord(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	text := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = "abc"[r.IntN(3)]
		}
		return b
	}
	for range 2000 {
		var words []word
		for range 1 + r.IntN(6) {
			words = append(words, word{text: text(minWindow + r.IntN(6))})
		}
		size := r.IntN(60)
		if r.IntN(10) == 0 {
			size = r.IntN(4000) // searched in parts
		}
		block := append(text(size), '\n')
		var want, got []string
		for i, w := range words {
			for at := 0; ; at++ {
				k := bytes.Index(block[at:], w.text)
				if k < 0 {
					break
				}
				at += k
				want = append(want, fmt.Sprint(i, at))
			}
		}
		s := newScanner(words)
		last := int32(-1)
		for _, h := range s.find(block, nil) {
			if h.end <= last {
				t.Fatalf("hits out of order")
			}
			last = h.end
			for _, n := range s.heads[h.head].words {
				if s.stands(n, block, int(h.end)) {
					got = append(got, fmt.Sprint(n, int(h.end)-s.window+1-words[n].offset))
				}
			}
		}
		slices.Sort(want)
		slices.Sort(got)
		if !slices.Equal(got, want) {
			var texts []string
			for _, w := range words {
				texts = append(texts, string(w.text))
			}
			t.Fatalf("words %q in %q: found %q, want %q", texts, block, got, want)
		}
	}
}
