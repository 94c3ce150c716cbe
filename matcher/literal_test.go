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
		block := append(text(r.IntN(60)), '\n')
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
		for hits, end := s.next(block, s.first()); end >= 0; hits, end = s.next(block, end+1) {
			for _, n := range hits {
				if s.stands(n, block, end) {
					got = append(got, fmt.Sprint(n, end-s.window+1-words[n].offset))
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
