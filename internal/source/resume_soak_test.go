//go:build soak

package source

import (
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// soakRotations are those that still fail now and then on a busy machine: a
// file that was read and then compressed within the same moment may be taken
// for one that nobody has read, and its lines come twice.
var soakRotations = append(slices.Clone(rotations), rotation{
	"dated stem and zstd", func(t *testing.T, w *numbers, _ func()) {
		dated := strings.TrimSuffix(w.path, ".log") + w.date() + ".log"
		rename(t, w.path, dated)
		w.reopen()
		run(t, "zstd", "-q", "--rm", dated)
	},
})

// TestResumeSoak kills the reader at random blocks, and starts it again at once
// or after one to three rotations that nobody saw.
func TestResumeSoak(t *testing.T) {
	for _, c := range soakRotations {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			for seed := range uint64(6) {
				resume(t, c.rotate, seed)
			}
		})
	}
}

func resume(t *testing.T, rotate func(*testing.T, *numbers, func()), seed uint64) {
	path := filepath.Join(t.TempDir(), "auth.log")
	w := openNumbers(t, path)
	l := newLedger()
	l.positions[path] = Position{}
	random := rand.New(rand.NewPCG(5, seed))
	running := true
	start := func() *follower {
		l.stopAfter = -1
		return follow(t, l, FilesOptions{Patterns: []string{path}}, func(f *Files) { f.block = 512 })
	}
	f := start()
	drained := func() {
		if !running {
			f, running = start(), true
		}
		f.waitLines(t, path, w.n)
	}
	for range 25 {
		w.write(random.IntN(60))
		switch random.IntN(3) {
		case 0:
			if running {
				l.mu.Lock()
				l.stopAfter = random.IntN(5)
				l.mu.Unlock()
				w.write(60)
				f.stop()
				running = false
				if random.IntN(2) == 0 {
					rotate(t, w, drained)
				}
			}
		case 1:
			for range 1 + random.IntN(3) {
				rotate(t, w, drained)
				w.write(random.IntN(30))
			}
		case 2:
			if !running {
				f, running = start(), true
			}
		}
	}
	if running {
		f.stop()
	}
	f = start()
	w.write(1)
	f.waitLines(t, path, w.n)
	f.stop()
	checkNumbers(t, l.get(path), w.n)
}
