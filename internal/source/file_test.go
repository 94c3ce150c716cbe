package source

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// ledger takes blocks as the daemon does: lines and position in one step.
type ledger struct {
	mu        sync.Mutex
	changed   *sync.Cond
	lines     map[string][]string // by stream
	positions map[string]Position
	blocks    int
	stopAfter int // blocks; then the emit that would be next fails, uncommitted
	allowed   int // blocks until emit is held up; -1: any number
}

var errKilled = errors.New("killed")

func newLedger() *ledger {
	l := &ledger{lines: map[string][]string{}, positions: map[string]Position{}, stopAfter: -1, allowed: -1}
	l.changed = sync.NewCond(&l.mu)
	return l
}

func (l *ledger) emit(b Block) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.allowed == 0 {
		l.changed.Wait()
	}
	if l.allowed > 0 {
		l.allowed--
	}
	if l.stopAfter == 0 {
		return errKilled
	}
	l.stopAfter--
	if len(b.Lines) > 0 {
		if b.Lines[len(b.Lines)-1] != '\n' {
			return fmt.Errorf("block of %s doesn't end in a line end", b.Stream)
		}
		for line := range bytes.Lines(b.Lines) {
			l.lines[b.Stream] = append(l.lines[b.Stream], string(line[:len(line)-1]))
		}
	}
	l.positions[b.Key] = b.Position
	l.blocks++
	l.changed.Broadcast()
	return nil
}

// allow lets so many blocks pass before emit is held up.
func (l *ledger) allow(blocks int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.allowed = blocks
	l.changed.Broadcast()
}

// wait returns once ok holds. A reader that has lost a line never gets there:
// the guard only turns the hang into a message.
func (l *ledger) wait(t testing.TB, ok func() bool) {
	t.Helper()
	stuck := false
	guard := time.AfterFunc(20*time.Second, func() {
		l.mu.Lock()
		stuck = true
		l.mu.Unlock()
		l.changed.Broadcast()
	})
	defer guard.Stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	for !ok() {
		if stuck {
			for stream, lines := range l.lines {
				i := 0
				for i < len(lines) && lines[i] == number(i) {
					i++
				}
				t.Logf("%s: %d lines, the first %d in order; position %+v", stream, len(lines), i, l.positions[stream])
				if i < len(lines) {
					t.Logf("then %.60q", lines[i])
				}
			}
			t.Fatal("lines are missing")
		}
		l.changed.Wait()
	}
}

func (l *ledger) waitLines(t testing.TB, stream string, n int) {
	t.Helper()
	l.wait(t, func() bool { return len(l.lines[stream]) >= n })
}

func (l *ledger) resume() map[string]Position {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.positions)
}

func (l *ledger) get(stream string) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.lines[stream])
}

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// follower is a running Files.
type follower struct {
	*ledger
	files *Files
	log   *logBuffer
	stop  func() error
}

// follow starts to follow and returns when all positions are known.
func follow(t *testing.T, l *ledger, opt FilesOptions, tweak ...func(*Files)) *follower {
	t.Helper()
	log := &logBuffer{}
	opt.Log = slog.New(slog.NewTextHandler(log, nil))
	files, err := NewFiles(opt)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range tweak {
		f(files)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	started := make(chan struct{})
	go func() {
		// The first pass ends with the last pattern's position.
		last := files.opt.Patterns[len(files.opt.Patterns)-1]
		var once sync.Once
		done <- files.Run(ctx, l.resume(), func(b Block) error {
			err := l.emit(b)
			if b.Key == last || err != nil {
				once.Do(func() { close(started) })
			}
			return err
		})
	}()
	<-started
	f := &follower{ledger: l, files: files, log: log}
	f.stop = sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() {
		f.stop()
		if t.Failed() {
			t.Log(log.String())
		}
	})
	return f
}

// numbers writes lines that are numbered without a gap.
type numbers struct {
	t    *testing.T
	path string
	f    *os.File
	n    int
	days int
}

// date is for the name of a rotated file.
func (w *numbers) date() string {
	w.days++
	return fmt.Sprintf("-20261124-%06d", w.days)
}

func openNumbers(t *testing.T, path string) *numbers {
	w := &numbers{t: t, path: path}
	w.reopen()
	t.Cleanup(func() { w.f.Close() })
	return w
}

// reopen comes with every rotation.
func (w *numbers) reopen() {
	if w.f != nil {
		w.f.Close()
	}
	f, err := os.OpenFile(w.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		w.t.Error(err)
		return
	}
	w.f = f
}

func number(n int) string { return fmt.Sprintf("%07d %s", n, strings.Repeat("x", n%97)) }

func (w *numbers) write(count int) {
	for range count {
		if _, err := io.WriteString(w.f, number(w.n)+"\n"); err != nil {
			w.t.Error(err)
			return
		}
		w.n++
	}
}

func checkNumbers(t *testing.T, got []string, n int) {
	t.Helper()
	for i, line := range got {
		if i >= n || line != number(i) {
			t.Fatalf("line %d is %.60q, want %.60q; %d lines, want %d", i, line, number(i), len(got), n)
		}
	}
	if len(got) != n {
		t.Fatalf("%d lines, want %d", len(got), n)
	}
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Error(err)
	}
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Errorf("%s %v: %v\n%s", name, args, err, out)
	}
}

// rotation is one way in which files are rotated. drained returns once all that
// was written so far is read.
type rotation struct {
	name   string
	rotate func(t *testing.T, w *numbers, drained func())
}

// rotations are the ways a log changes its file. Each returns when it is done;
// the writer goes on in the file that is there then.
var rotations = []rotation{
	{"rename and create", func(t *testing.T, w *numbers, _ func()) {
		shift(t, w.path)
		rename(t, w.path, w.path+".1")
		w.reopen()
	}},
	{"written to after the rename", func(t *testing.T, w *numbers, _ func()) {
		shift(t, w.path)
		rename(t, w.path, w.path+".1")
		w.write(40)
		if err := os.WriteFile(w.path, nil, 0o644); err != nil {
			t.Error(err)
		}
		w.write(40)
		w.reopen()
	}},
	{"rename, create and gzip", func(t *testing.T, w *numbers, _ func()) {
		shift(t, w.path)
		rename(t, w.path, w.path+".1")
		w.reopen()
		run(t, "gzip", "-f", w.path+".1")
	}},
	{"dated name and xz", func(t *testing.T, w *numbers, _ func()) {
		dated := w.path + w.date()
		rename(t, w.path, dated)
		w.reopen()
		run(t, "xz", "-0", dated)
	}},
	{"dated stem and zstd", func(t *testing.T, w *numbers, _ func()) {
		dated := strings.TrimSuffix(w.path, ".log") + w.date() + ".log"
		rename(t, w.path, dated)
		w.reopen()
		run(t, "zstd", "-q", "--rm", dated)
	}},
	{"copytruncate", copytruncate},
	{"copytruncate and gzip", func(t *testing.T, w *numbers, drained func()) {
		copytruncate(t, w, drained)
		run(t, "gzip", "-f", w.path+".1")
	}},
	{"delete and create", func(t *testing.T, w *numbers, drained func()) {
		w.write(1)
		drained() // what is deleted unread is gone
		if err := os.Remove(w.path); err != nil {
			t.Error(err)
		}
		w.write(20)
		w.reopen()
		drained()
	}},
}

// copytruncate writes nothing between the copy and the truncation: no reader can
// close that window.
func copytruncate(t *testing.T, w *numbers, _ func()) {
	shift(t, w.path)
	text, err := os.ReadFile(w.path)
	if err == nil {
		err = os.WriteFile(w.path+".1", text, 0o644)
	}
	if err == nil {
		err = os.Truncate(w.path, 0)
	}
	if err != nil {
		t.Error(err)
	}
}

// shift moves .1 to .2 and so on, packed or not.
func shift(t *testing.T, path string) {
	for i := 99; i > 0; i-- {
		for _, ext := range []string{"", ".gz"} {
			from := fmt.Sprintf("%s.%d%s", path, i, ext)
			if _, err := os.Lstat(from); err == nil {
				rename(t, from, fmt.Sprintf("%s.%d%s", path, i+1, ext))
			}
		}
	}
}

func TestRotationWhileFollowing(t *testing.T) {
	for _, c := range rotations {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "auth.log")
			w := openNumbers(t, path)
			f := follow(t, newLedger(), FilesOptions{Patterns: []string{path}})
			random := rand.New(rand.NewPCG(1, 2))
			for range 20 {
				w.write(random.IntN(400))
				c.rotate(t, w, func() { f.waitLines(t, path, w.n) })
			}
			w.write(100)
			f.waitLines(t, path, w.n)
			checkNumbers(t, f.get(path), w.n)
		})
	}
}

// TestRotationUnderBackPressure holds the reader up at random, so that it is
// files behind.
func TestRotationUnderBackPressure(t *testing.T) {
	for _, c := range rotations {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "auth.log")
			w := openNumbers(t, path)
			f := follow(t, newLedger(), FilesOptions{Patterns: []string{path}}, func(f *Files) { f.block = 512 })
			random := rand.New(rand.NewPCG(3, 4))
			drained := func() {
				f.allow(-1)
				f.waitLines(t, path, w.n)
			}
			for range 20 {
				f.allow(random.IntN(8))
				w.write(random.IntN(100))
				c.rotate(t, w, drained)
			}
			w.write(10)
			drained()
			checkNumbers(t, f.get(path), w.n)
		})
	}
}

// TestResume kills the reader at random blocks, and starts it again at once or
// after one to three rotations that nobody saw. A glob that catches the rotated
// files too makes no difference, nor does closing them at once.
func TestResume(t *testing.T) {
	for _, c := range rotations {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			for seed := range uint64(6) {
				resume(t, c, seed)
			}
		})
	}
}

func resume(t *testing.T, c rotation, seed uint64) {
	dir := t.TempDir()
	path := filepath.Join(dir, "auth.log")
	pattern := path
	if seed%2 == 1 {
		pattern = filepath.Join(dir, "auth*")
	}
	w := openNumbers(t, path)
	l := newLedger()
	l.positions[path] = Position{}
	random := rand.New(rand.NewPCG(5, seed))
	var f *follower
	start := func() {
		if f != nil {
			return
		}
		l.stopAfter = -1
		f = follow(t, l, FilesOptions{Patterns: []string{pattern}}, func(f *Files) {
			f.block = 512
			if seed%3 == 2 && c.name != "delete and create" { // which is written to after it
				f.linger = 0
			}
		})
	}
	stop := func() {
		if f != nil {
			f.stop()
			f = nil
		}
	}
	drained := func() {
		start()
		f.waitLines(t, path, w.n)
	}
	start()
	for range 25 {
		w.write(random.IntN(60))
		switch random.IntN(3) {
		case 0:
			if f != nil {
				l.mu.Lock()
				l.stopAfter = random.IntN(5)
				l.mu.Unlock()
				w.write(60)
				stop()
				if random.IntN(2) == 0 {
					c.rotate(t, w, drained)
				}
			}
		case 1:
			for range 1 + random.IntN(3) {
				c.rotate(t, w, drained)
				w.write(random.IntN(30))
			}
		case 2:
			start()
		}
	}
	stop()
	start()
	w.write(1)
	f.waitLines(t, path, w.n)
	stop()
	checkNumbers(t, l.get(path), w.n)
	if n := len(l.lines); n != 1 {
		t.Errorf("streams %v, want %s alone", slices.Collect(maps.Keys(l.lines)), path)
	}
}

func TestSymlinkSwap(t *testing.T) {
	for _, name := range []string{"link", "folder link"} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "app.log")
			// day returns the file of that day and makes the link lead to it.
			day := func(n int) string {
				target := fmt.Sprintf("app-2026-11-%02d.log", n)
				link := path
				real := filepath.Join(dir, target)
				if name == "folder link" {
					target = fmt.Sprintf("release-%02d", n)
					link = filepath.Join(dir, "current")
					path = filepath.Join(link, "app.log")
					real = filepath.Join(dir, target, "app.log")
					if err := os.MkdirAll(filepath.Dir(real), 0o755); err != nil {
						t.Fatal(err)
					}
				}
				if f, err := os.OpenFile(real, os.O_CREATE|os.O_WRONLY, 0o644); err != nil {
					t.Fatal(err)
				} else {
					f.Close()
				}
				if err := os.Symlink(target, link+".new"); err != nil {
					t.Fatal(err)
				}
				rename(t, link+".new", link)
				return real
			}
			w := openNumbers(t, day(1))
			l := newLedger()
			f := follow(t, l, FilesOptions{Patterns: []string{path}})
			for n := 2; n < 9; n++ {
				w.write(200)
				w.path = day(n)
				w.write(50)
				w.reopen()
				if name == "folder link" {
					// A folder that the link left again unseen can't be found.
					w.write(1)
					f.waitLines(t, path, w.n)
				}
			}
			w.write(10)
			f.waitLines(t, path, w.n)
			f.stop()
			if name == "link" {
				// While down as well, twice.
				for n := 10; n < 12; n++ {
					w.write(30)
					w.path = day(n)
					w.reopen()
				}
				w.write(30)
				f = follow(t, l, FilesOptions{Patterns: []string{path}})
				f.waitLines(t, path, w.n)
			}
			checkNumbers(t, f.get(path), w.n)
		})
	}
}

func TestStartsAtEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "auth.log")
	if err := os.WriteFile(path, []byte("old\nhalf"), 0o644); err != nil {
		t.Fatal(err)
	}
	f := follow(t, newLedger(), FilesOptions{Patterns: []string{path}})
	if p := f.resume()[path]; p.Offset != 4 || p.Inode == 0 {
		t.Fatalf("first position %+v, want offset 4: a line that is being written is new", p)
	}
	appendTo(t, path, "way\nnew\n")
	f.waitLines(t, path, 2)
	if got := f.get(path); !slices.Equal(got, []string{"halfway", "new"}) {
		t.Fatalf("%q", got)
	}
}

func TestFromStart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "auth.log")
	if err := os.WriteFile(path, []byte("old\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	f := follow(t, newLedger(), FilesOptions{Patterns: []string{path}, FromStart: true})
	f.waitLines(t, path, 1)
}

func appendTo(t *testing.T, path, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err == nil {
		_, err = f.WriteString(text)
		f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestFoldersAndGlobsAppear(t *testing.T) {
	dir := t.TempDir()
	glob := filepath.Join(dir, "sites/*/logs/*.log")
	plain := filepath.Join(dir, "a/b/c.log")
	l := newLedger()
	f := follow(t, l, FilesOptions{Patterns: []string{glob, plain}})
	var paths []string
	for i := range 5 {
		sub := filepath.Join(dir, fmt.Sprintf("sites/%d/logs", i))
		if err := os.MkdirAll(sub, 0o755); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(sub, "x.log")
		appendTo(t, path, "first\n")
		appendTo(t, filepath.Join(sub, "x.log.gz"), "not this\n")
		paths = append(paths, path)
	}
	if err := os.MkdirAll(filepath.Dir(plain), 0o755); err != nil {
		t.Fatal(err)
	}
	appendTo(t, plain, "first\n")
	for _, path := range append(paths, plain) {
		f.waitLines(t, path, 1)
	}
	f.stop()

	// What appears while nobody looks is new as well.
	late := filepath.Join(dir, "sites/late/logs/y.log")
	if err := os.MkdirAll(filepath.Dir(late), 0o755); err != nil {
		t.Fatal(err)
	}
	appendTo(t, late, "late\n")
	f = follow(t, l, FilesOptions{Patterns: []string{glob, plain}})
	f.waitLines(t, late, 1)

	// A whole tree moved away and made again.
	if err := os.RemoveAll(filepath.Join(dir, "a")); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(plain), 0o755); err != nil {
		t.Fatal(err)
	}
	appendTo(t, plain, "second\n")
	f.waitLines(t, plain, 2)
	if len(l.lines) != 7 {
		t.Fatalf("streams %v", slices.Collect(maps.Keys(l.lines)))
	}
}

// TestGlobCatchesRotated: access.log* names the rotated files too; their
// lines count once.
func TestGlobCatchesRotated(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "access.log")
	w := openNumbers(t, path)
	l := newLedger()
	f := follow(t, l, FilesOptions{Patterns: []string{path + "*"}})
	count := func() int {
		n := 0
		for _, lines := range l.lines {
			n += len(lines)
		}
		return n
	}
	for i := range 10 {
		w.write(100)
		shift(t, path)
		rename(t, path, path+".1")
		w.write(50)
		w.reopen()
		if i%4 == 3 {
			f.wait(t, func() bool { return count() >= w.n })
			f.stop()
			f = follow(t, l, FilesOptions{Patterns: []string{path + "*"}})
		}
	}
	w.write(100)
	f.wait(t, func() bool { return count() >= w.n })
	f.stop()
	// All are the log's own, whatever name its files have today.
	checkNumbers(t, l.get(path), w.n)
}

// TestLogAppearsBesideRotated: while only rotated files are there, a glob
// follows each by itself; once their log is there, they are part of it.
func TestLogAppearsBesideRotated(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "access.log")
	glob := []string{path + "*"}
	appendTo(t, path+".1", "old\n")
	l := newLedger()
	f := follow(t, l, FilesOptions{Patterns: glob})
	appendTo(t, path+".1", "late\n")
	f.waitLines(t, path+".1", 1)
	appendTo(t, path, "one\n")
	f.waitLines(t, path, 1)
	appendTo(t, path+".1", "later\n")
	f.waitLines(t, path, 2)
	rename(t, path+".1", path+".2")
	rename(t, path, path+".1")
	appendTo(t, path, "two\n")
	f.waitLines(t, path, 3)
	f.stop()
	f = follow(t, l, FilesOptions{Patterns: glob})
	appendTo(t, path, "three\n")
	f.waitLines(t, path, 4)
	f.stop()
	if got := append(l.get(path+".1"), l.get(path)...); !slices.Equal(got, []string{"late", "one", "later", "two", "three"}) {
		t.Errorf("%q", got)
	}
}

// TestVirtualHosts: digits in a name don't make it a rotated one.
func TestVirtualHosts(t *testing.T) {
	dir := t.TempDir()
	names := []string{"access.log", "access-192.0.2.10.log", "access-1234567.log", "access.log.example"}
	for _, name := range names {
		appendTo(t, filepath.Join(dir, name), "old\n")
	}
	l := newLedger()
	f := follow(t, l, FilesOptions{Patterns: []string{filepath.Join(dir, "access*")}})
	for _, name := range names {
		appendTo(t, filepath.Join(dir, name), name+"\n")
		f.waitLines(t, filepath.Join(dir, name), 1)
	}
}

// TestCopiedInPlace: an editor that writes a log anew, unchanged but for its
// inode, makes nothing count twice.
func TestCopiedInPlace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "auth.log")
	l := newLedger()
	f := follow(t, l, FilesOptions{Patterns: []string{path}})
	appendTo(t, path, "one\ntwo\n")
	f.waitLines(t, path, 2)
	for i := range 2 {
		run(t, "cp", path, path+".new")
		if i == 1 {
			f.stop()
		}
		rename(t, path+".new", path)
		appendTo(t, path, "three\n")
		if i == 1 {
			f = follow(t, l, FilesOptions{Patterns: []string{path}})
		}
		f.waitLines(t, path, 3+i)
	}
	if got := l.get(path); !slices.Equal(got, []string{"one", "two", "three", "three"}) {
		t.Errorf("%q", got)
	}
}

func TestHalfLineWaits(t *testing.T) {
	path := filepath.Join(t.TempDir(), "auth.log")
	l := newLedger()
	f := follow(t, l, FilesOptions{Patterns: []string{path}})
	appendTo(t, path, "one\nhal")
	f.waitLines(t, path, 1)
	if p := f.resume()[path]; p.Offset != 4 {
		t.Fatalf("position %d has moved past the half line", p.Offset)
	}
	f.stop()
	f = follow(t, l, FilesOptions{Patterns: []string{path}})
	appendTo(t, path, "f\x00\r\n")
	f.waitLines(t, path, 2)
	if got := f.get(path); !slices.Equal(got, []string{"one", "half\x00\r"}) {
		t.Fatalf("%q", got)
	}
}

// TestLongLine: the tail of a line that is too long must not pass for a line.
func TestLongLine(t *testing.T) {
	for _, long := range []int{100, 101, 102, 199, 200, 201, 202, 203, 1000} {
		path := filepath.Join(t.TempDir(), "auth.log")
		l := newLedger()
		opt := FilesOptions{Patterns: []string{path}, MaxLine: 200}
		small := func(f *Files) { f.block = 50 }
		f := follow(t, l, opt, small)
		appendTo(t, path, "one\n"+strings.Repeat("x", long))
		f.waitLines(t, path, 1)
		f.stop()
		if p := l.positions[path]; p.Offset != 4 {
			t.Fatalf("position %d is inside the long line", p.Offset)
		}
		f = follow(t, l, opt, small)
		appendTo(t, path, "\ntwo\n")
		want := []string{"one", strings.Repeat("x", long), "two"}
		if long > 200 {
			want = []string{"one", "two"}
		}
		f.waitLines(t, path, len(want))
		f.stop()
		if got := f.get(path); !slices.Equal(got, want) {
			t.Fatalf("%d: %q", long, got)
		}
		if dropped := f.files.Dropped(); dropped != uint64(3-len(want)) {
			t.Fatalf("%d: %d dropped", long, dropped)
		}
	}
}

// TestTornByTruncation: the second half of a line whose first half was
// truncated away must not pass for a line.
func TestTornByTruncation(t *testing.T) {
	for _, copied := range []bool{false, true} {
		path := filepath.Join(t.TempDir(), "auth.log")
		f := follow(t, newLedger(), FilesOptions{Patterns: []string{path}})
		appendTo(t, path, "one one one one one\nFailed password for user ")
		f.waitLines(t, path, 1)
		if copied {
			run(t, "cp", path, path+".1")
		}
		if err := os.Truncate(path, 0); err != nil {
			t.Fatal(err)
		}
		appendTo(t, path, "Failed password for root from 192.0.2.1\ntwo\n")
		f.waitLines(t, path, 2)
		if got := f.get(path); !slices.Equal(got, []string{"one one one one one", "two"}) {
			t.Fatalf("copied %v: %q", copied, got)
		}
	}
}

// TestWriterWithoutAppend goes on at its old offset after a truncation and
// leaves a hole.
func TestWriterWithoutAppend(t *testing.T) {
	path := filepath.Join(t.TempDir(), "auth.log")
	f := follow(t, newLedger(), FilesOptions{Patterns: []string{path}})
	w, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	var want []string
	for i := range 4 {
		long := strings.Repeat("y", 300_000)
		for j := range 10 {
			line := fmt.Sprintf("%d %d %s", i, j, long)
			want = append(want, line)
			fmt.Fprintln(w, line)
		}
		f.waitLines(t, path, len(want))
		if err := w.Truncate(0); err != nil {
			t.Fatal(err)
		}
	}
	if got := f.get(path); !slices.Equal(got, want) {
		t.Fatalf("%d lines, want %d", len(got), len(want))
	}
}

// TestOddFiles: what isn't a regular file is told once and never waited for.
func TestOddFiles(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "auth.log")
	odd := map[string]func() error{
		"FIFO":      func() error { return unix.Mkfifo(path, 0o644) },
		"directory": func() error { return os.Mkdir(path, 0o755) },
		"device":    func() error { return os.Symlink("/dev/zero", path) },
		"socket": func() error {
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			return unix.Bind(fd, &unix.SockaddrUnix{Name: path})
		},
		"loop": func() error { return os.Symlink("auth.log", path) },
	}
	l := newLedger()
	f := follow(t, l, FilesOptions{Patterns: []string{path, filepath.Join(dir, "other.log")}})
	n := 0
	for name, replace := range odd {
		os.RemoveAll(path)
		if err := replace(); err != nil {
			t.Fatal(err)
		}
		// Its turn is over when a later file is read.
		appendTo(t, filepath.Join(dir, "other.log"), "x\n")
		f.waitLines(t, filepath.Join(dir, "other.log"), n+1)
		os.RemoveAll(path)
		appendTo(t, path, name+"\n")
		n++
		f.waitLines(t, path, n)
	}
	f.stop()
	for name := range odd {
		if name != "loop" && !strings.Contains(f.log.String(), name) {
			t.Errorf("no word of the %s in the log:\n%s", name, f.log)
		}
	}
}

// TestPermissionLost runs itself as nobody, since root may read anything.
func TestPermissionLost(t *testing.T) {
	if os.Geteuid() == 0 {
		dir, err := os.MkdirTemp("", "permission")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		binary := filepath.Join(dir, "test")
		program, err := os.ReadFile("/proc/self/exe")
		if err != nil {
			t.Fatal(err)
		}
		const nobody = 65534
		if err := errors.Join(os.WriteFile(binary, program, 0o755), os.Chown(dir, nobody, nobody)); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(binary, "-test.run=^TestPermissionLost$", "-test.v")
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "TMPDIR="+dir)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		if out, err := cmd.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("--- PASS: TestPermissionLost")) {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "auth.log")
	w := openNumbers(t, path)
	l := newLedger()
	l.positions[path] = Position{}
	f := follow(t, l, FilesOptions{Patterns: []string{path, filepath.Join(dir, "other.log")}})
	forbid := func(mode os.FileMode) {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	w.write(10)
	f.waitLines(t, path, w.n)
	// What is open stays readable.
	forbid(0)
	w.write(10)
	f.waitLines(t, path, w.n)
	// A new one isn't, until it is allowed.
	rename(t, path, path+".1")
	w.write(10)
	w.reopen()
	forbid(0)
	w.write(10)
	appendTo(t, filepath.Join(dir, "other.log"), "x\n")
	f.waitLines(t, filepath.Join(dir, "other.log"), 1)
	forbid(0o600)
	f.waitLines(t, path, w.n)
	// The position outlives a start at which it can't be read.
	f.stop()
	w.write(10)
	forbid(0)
	f = follow(t, l, FilesOptions{Patterns: []string{path, filepath.Join(dir, "other.log")}})
	if !strings.Contains(f.log.String(), "permission denied") {
		t.Errorf("not told:\n%s", f.log)
	}
	w.write(10)
	f.stop()
	f = follow(t, l, FilesOptions{Patterns: []string{path, filepath.Join(dir, "other.log")}})
	forbid(0o600)
	f.waitLines(t, path, w.n)
	checkNumbers(t, f.get(path), w.n)
}

// TestFilesCostNoGoroutines: neither do files that are followed nor rotations.
func TestFilesCostNoGoroutines(t *testing.T) {
	dir := t.TempDir()
	for i := range 200 {
		appendTo(t, filepath.Join(dir, fmt.Sprintf("%d.log", i)), "old\n")
	}
	before := runtime.NumGoroutine()
	l := newLedger()
	f := follow(t, l, FilesOptions{Patterns: []string{filepath.Join(dir, "*.log")}})
	path := filepath.Join(dir, "7.log")
	rename(t, path, path+".1")
	appendTo(t, path, "new\n")
	f.waitLines(t, path, 1)
	if more := runtime.NumGoroutine() - before; more > 1 {
		t.Errorf("%d goroutines for 200 files", more)
	}
}

func TestManyFiles(t *testing.T) {
	dir := t.TempDir()
	l := newLedger()
	f := follow(t, l, FilesOptions{Patterns: []string{filepath.Join(dir, "*.log")}})
	const files, lines = 64, 300
	var wg sync.WaitGroup
	for i := range files {
		wg.Go(func() {
			w := openNumbers(t, filepath.Join(dir, fmt.Sprintf("%d.log", i)))
			w.write(lines)
		})
	}
	wg.Wait()
	for i := range files {
		path := filepath.Join(dir, fmt.Sprintf("%d.log", i))
		f.waitLines(t, path, lines)
		checkNumbers(t, f.get(path), lines)
	}
}

func TestPatternErrors(t *testing.T) {
	for _, p := range []string{"auth.log", "/var/log/[a", ""} {
		if _, err := NewFiles(FilesOptions{Patterns: []string{p}}); err == nil || !strings.Contains(err.Error(), p) {
			t.Errorf("%q: %v", p, err)
		}
	}
}
