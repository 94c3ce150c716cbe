package source

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// linger is how long a rotated file must have been quiet before it is closed,
// if it was deleted or is no longer the latest one.
const linger = time.Minute

// FilesOptions says which files to follow.
type FilesOptions struct {
	// Patterns are absolute pathnames or globs (as path/filepath.Match, each
	// folder too). What they lead to is followed live: files and folders may
	// appear, vanish and rotate. A glob leaves out compressed files.
	Patterns []string
	// FromStart reads files that no position is known of from their start,
	// not from their end. Files that appear later are always read whole.
	FromStart bool
	// MaxLine is the longest line in bytes; longer ones are dropped whole and
	// counted. Zero means DefaultMaxLine.
	MaxLine int
	// Log hears of rotations, of files that can't be read and of dropped
	// lines. Nil means slog.Default.
	Log *slog.Logger
}

// Files follows files by pathname through every kind of rotation: one inotify
// queue, one goroutine.
type Files struct {
	opt     FilesOptions
	linger  time.Duration
	block   int // bytes read at a time
	dropped atomic.Uint64
}

// NewFiles checks the patterns; it opens nothing.
func NewFiles(opt FilesOptions) (*Files, error) {
	opt.Patterns = slices.Clone(opt.Patterns)
	for i, p := range opt.Patterns {
		if !filepath.IsAbs(p) {
			return nil, fmt.Errorf("log file %q: write the whole path, from /", p)
		}
		if _, err := filepath.Match(p, ""); err != nil {
			return nil, fmt.Errorf("log file %q: %w", p, err)
		}
		opt.Patterns[i] = filepath.Clean(p)
	}
	slices.Sort(opt.Patterns)
	opt.Patterns = slices.Compact(opt.Patterns)
	if opt.MaxLine == 0 {
		opt.MaxLine = DefaultMaxLine
	}
	if opt.Log == nil {
		opt.Log = slog.Default()
	}
	return &Files{opt: opt, linger: linger, block: min(blockSize, opt.MaxLine+1)}, nil
}

// Dropped counts the lines that were dropped, since they were too long or
// never got their end.
func (f *Files) Dropped() uint64 { return f.dropped.Load() }

// Run implements Source. Keys are pathnames; a glob has a key of its own that
// says it is known, so that files which appeared while nobody was watching are
// read whole.
func (f *Files) Run(ctx context.Context, resume map[string]Position, emit Emit) error {
	in, err := newInotify()
	if err != nil {
		return err
	}
	defer in.close()
	r := &reader{
		Files:   f,
		emit:    emit,
		in:      in,
		tree:    newTree(in, f.opt.Patterns),
		streams: map[string]*stream{},
		watches: map[int][]*file{},
		buf:     make([]byte, f.block),
	}
	defer r.close()
	defer context.AfterFunc(ctx, in.interrupt)()
	if err := r.begin(resume); err != nil {
		return err
	}
	for ctx.Err() == nil {
		if err := r.in.poll(r.event); err != nil {
			return err
		}
		if r.tree.isDirty() {
			if err := r.rescan(); err != nil {
				return err
			}
		}
		if len(r.queue) > 0 {
			s := r.queue[0]
			r.queue = r.queue[1:]
			s.queued = false
			if err := r.read(s); err != nil {
				return err
			}
			continue
		}
		deadline, err := r.retire(time.Now())
		if err != nil {
			return err
		}
		if len(r.queue) > 0 {
			continue
		}
		if err := r.sleep(ctx, deadline); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// reader is the state of one Run.
type reader struct {
	*Files
	emit    Emit
	in      *inotify
	tree    *tree
	streams map[string]*stream
	watches map[int][]*file
	queue   []*stream // those that have something to read, in turn
	leaving []*file   // rotated files that are closed once they are quiet
	deaf    bool      // some file can't be watched
	begun   int64     // Unix nanoseconds
	buf     []byte
}

// stream is one pathname and the files it has been.
type stream struct {
	path string
	// files are oldest first. The last one is what the pathname leads to now
	// if live is set.
	files []*file
	live  bool
	// stored is the position to go on from, while the pathname can't be read.
	stored *Position
	// known are the positions of the last files that were read to their end
	// and closed, oldest first.
	known   []Position
	older   []Position // those, and of all files but the last; nil: make anew
	queued  bool
	problem string // told already
}

// file is one open file of a stream.
type file struct {
	s  *stream
	fd int
	id fileID
	wd int // -1: not watched

	off   int64  // everything before it was emitted or dropped
	start []byte // the first bytes, of those before off
	print string // fingerprint of start
	seen  int64  // how far it was looked at
	links uint64

	pending  bool // there may be something to read
	hole     bool // inside a hole at its start
	half     bool // it ended in a line without an end
	skipping bool // inside a line to be dropped
	scan     int64
	touched  time.Time // when it last yielded something, or became a rotated one

	packed *packed // it is compressed: read once, then closed
	copied bool    // a copy made before the original was truncated
	found  bool    // it was found rotated: nobody has seen it before
}

// unsure says that the file may prove to be a copy of another, made just now.
func (f *file) unsure() bool { return f.found && f.off == 0 && f.packed == nil }

// packed is the text of a compressed file.
type packed struct {
	path string
	f    *os.File
	text io.ReadCloser
	skip int64 // to be passed over first
	head []byte
	blocks
}

func (r *reader) close() {
	for _, s := range r.streams {
		for _, f := range s.files {
			r.closeFile(f)
		}
	}
}

// begin opens everything there is, each at its position.
func (r *reader) begin(resume map[string]Position) error {
	r.begun = time.Now().UnixNano()
	paths := map[string]int{} // by the first pattern that leads there
	for i, pattern := range slices.Backward(r.opt.Patterns) {
		for _, path := range r.tree.walk(i) {
			paths[path] = i
		}
		for path := range resume {
			// What it led to when its position was stored.
			if ok, _ := filepath.Match(pattern, path); path == pattern && !isGlob(pattern) || ok && path != pattern {
				paths[path] = i
			}
		}
	}
	taken := r.byLog(slices.Sorted(maps.Keys(paths)))
	for path := range taken {
		if p, ok := resume[path]; ok {
			resume[taken[path]] = resume[taken[path]].after(p)
		}
	}
	for i, pattern := range r.opt.Patterns {
		_, known := resume[pattern]
		for _, path := range slices.Sorted(maps.Keys(paths)) {
			if paths[path] != i {
				continue
			}
			if taken[path] != "" {
				if err := r.emit(Block{Stream: path, Key: path, Arrival: time.Now()}); err != nil {
					return err
				}
				continue
			}
			s := &stream{path: path}
			r.streams[path] = s
			if p, ok := resume[path]; ok {
				s.stored = &p
			}
			isNew := s.stored == nil && !known && !r.opt.FromStart
			if s.stored == nil && (!known || r.opt.FromStart) {
				r.rememberAll(s, math.MaxInt64)
			}
			r.follow(s)
			if f := s.current(); isNew && f != nil {
				r.toEnd(f)
			}
			if err := r.tell(s); err != nil {
				return err
			}
		}
		if isGlob(pattern) {
			if err := r.emit(Block{Stream: pattern, Key: pattern, Arrival: time.Now()}); err != nil {
				return err
			}
		}
	}
	return nil
}

// byLog says which of the pathnames are rotated files of another one that is
// there or was followed, and of which: a glob such as access.log* catches
// those too. They are read as part of their log.
func (r *reader) byLog(paths []string) map[string]string {
	logs := map[string]string{}
	for _, log := range paths {
		s := r.streams[log]
		if _, err := os.Stat(log); err != nil && (s == nil || len(s.files) == 0) {
			continue
		}
		series := seriesOf(log)
		for _, path := range paths {
			if path != log && series.has(path, slices.Contains(r.opt.Patterns, path)) {
				logs[path] = log
			}
		}
	}
	return logs
}

// after puts the files of an earlier position ahead of p's.
func (p Position) after(earlier Position) Position {
	before := earlier.Older
	if earlier.Inode != 0 {
		earlier.Older = nil
		before = append(slices.Clone(before), earlier)
	}
	p.Older = append(slices.Clone(before), p.Older...)
	return p
}

// rememberAll takes the rotated files there are for read, if they were last
// written to before a time: they are older than what is followed.
func (r *reader) rememberAll(s *stream, before int64) {
	list := slices.DeleteFunc(siblings(s.path), func(x sibling) bool { return !x.series || x.modified >= before })
	for _, x := range list[max(0, len(list)-maxKnown):] {
		if print := fingerprint(x.start()); print != "" {
			s.remember(Position{Dev: x.id.dev, Inode: x.id.ino, Born: x.id.born, Fingerprint: print})
		}
	}
}

// resume opens the files of the stored position, wherever they are now, and
// says false if that has to wait: while the file can't be read, its position
// must not be forgotten.
func (r *reader) resume(s *stream) bool {
	_, err := os.Stat(s.path)
	if err == nil {
		err = unix.Access(s.path, unix.R_OK)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		r.complain(s, &fs.PathError{Op: "open", Path: s.path, Err: err})
		return false
	}
	p := *s.stored
	s.stored = nil
	var lost []lostFile
	for _, old := range append(slices.Clone(p.Older), p) {
		switch {
		case old.Done:
			s.remember(old)
		case old.Inode != 0:
			old.Older = nil
			lost = append(lost, lostFile{Position: old})
		}
	}
	r.scan(s, lost...)
	return true
}

// rescan follows the pathnames of every pattern that something happened to.
func (r *reader) rescan() error {
	paths := map[string]bool{}
	for path := range r.streams {
		paths[path] = false
	}
	for i, pattern := range r.opt.Patterns {
		if !r.tree.dirty[i] {
			continue
		}
		for path := range r.streams {
			if ok, _ := filepath.Match(pattern, path); ok || path == pattern {
				paths[path] = true
			}
		}
		for _, path := range r.tree.walk(i) {
			paths[path] = true
		}
	}
	sorted := slices.Sorted(maps.Keys(paths))
	logs := r.byLog(sorted)
	for _, path := range sorted {
		if log := logs[path]; log != "" && r.streams[path] != nil {
			if err := r.join(r.streams[path], log); err != nil {
				return err
			}
		}
	}
	for _, path := range sorted {
		if !paths[path] || logs[path] != "" {
			continue
		}
		s := r.streams[path]
		if s == nil {
			s = &stream{path: path}
			r.streams[path] = s
			r.rememberAll(s, r.begun)
		}
		if r.follow(s) {
			if err := r.tell(s); err != nil {
				return err
			}
		}
		if !slices.Contains(r.opt.Patterns, path) && len(s.files) == 0 && s.problem == "" && s.stored == nil &&
			!slices.ContainsFunc(siblings(path), func(x sibling) bool { return x.series }) {
			delete(r.streams, path) // nothing is left of it
		}
	}
	return nil
}

// join makes a stream part of the log that has appeared beside it, whose
// rotated file it is.
func (r *reader) join(s *stream, log string) error {
	to := r.streams[log]
	if to == nil {
		to = &stream{path: log}
		r.streams[log] = to
		r.rememberAll(to, r.begun)
	}
	to.files = append(s.files, to.files...)
	for _, f := range s.files {
		f.s = to
	}
	if s.stored != nil {
		p := Position{}
		if to.stored != nil {
			p = *to.stored
		}
		p = p.after(*s.stored)
		to.stored = &p
	}
	to.known = append(slices.Clone(s.known), to.known...)
	to.older = nil
	delete(r.streams, s.path)
	if s.queued {
		r.queue = slices.DeleteFunc(r.queue, func(x *stream) bool { return x == s })
	}
	for _, f := range to.files {
		if f.pending {
			r.wake(f)
		}
	}
	return r.emit(Block{Stream: s.path, Key: s.path, Arrival: time.Now()})
}

// follow finds out what the pathname leads to now. It says whether that has
// changed.
func (r *reader) follow(s *stream) bool {
	if s.stored != nil {
		return r.resume(s)
	}
	info, err := os.Stat(s.path)
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("it is a %s, not a regular file", kindOf(info.Mode()))
	}
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			s.problem = ""
		} else {
			r.complain(s, err)
		}
		changed := s.live
		r.setLive(s, false)
		return changed
	}
	if id, err := idAt(s.path); err == nil && s.live && s.current().id == id {
		return false
	}
	r.scan(s)
	return true
}

func (r *reader) complain(s *stream, err error) {
	if s.problem != err.Error() {
		s.problem = err.Error()
		r.opt.Log.Warn("log file can't be read", "file", s.path, "error", err)
	}
}

func kindOf(m fs.FileMode) string {
	switch {
	case m.IsDir():
		return "directory"
	case m&fs.ModeNamedPipe != 0:
		return "FIFO"
	case m&fs.ModeDevice != 0:
		return "device"
	case m&fs.ModeSocket != 0:
		return "socket"
	}
	return "special file"
}

// setLive says whether the last file is the pathname's own, and sends off
// those that are no longer its latest predecessor.
func (r *reader) setLive(s *stream, live bool) {
	s.live = live
	s.older = nil
	for _, f := range s.files {
		if f.off > 0 && (!live || f != s.files[len(s.files)-1]) {
			f.setStart(f.head()) // it is known by it, once compressed
		}
		r.check(f)
	}
}

// check sends a rotated file off if it was deleted or a later one was rotated
// as well. The latest one stays: its writer may go on with it for days.
func (r *reader) check(f *file) {
	n := len(f.s.files)
	if f.s.live {
		n--
	}
	i := slices.Index(f.s.files, f)
	if f.packed == nil && i < n && (i < n-1 || f.links == 0) && !slices.Contains(r.leaving, f) {
		f.touched = time.Now()
		r.leaving = append(r.leaving, f)
	}
}

// openLive opens what the pathname leads to.
func (r *reader) openLive(s *stream) (*file, error) {
	// A FIFO or a terminal put there meanwhile must not hold us up.
	fd, err := unix.Open(s.path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: s.path, Err: err}
	}
	f, err := r.adopt(s, fd)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("open %s: %w", s.path, err)
	}
	return f, nil
}

// adopt makes a file of an open descriptor.
func (r *reader) adopt(s *stream, fd int) (*file, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, errors.New("it is no longer a regular file")
	}
	id, err := idOf(fd)
	if err != nil {
		return nil, err
	}
	f := &file{s: s, fd: fd, id: id, touched: time.Now()}
	f.links = uint64(st.Nlink)
	wd, err := r.in.watchFile(fd)
	if err != nil {
		wd = -1
		if !r.deaf {
			r.opt.Log.Warn("log file can't be watched: looking at it every second instead (sysctl fs.inotify.max_user_watches sets the limit)",
				"file", s.path, "error", err)
		}
		r.deaf = true
	} else {
		r.watches[wd] = append(r.watches[wd], f)
	}
	f.wd = wd
	r.wake(f)
	return f, nil
}

// openAt opens a sibling where its text was read to. It logs and returns nil
// if that is impossible.
func (r *reader) openAt(s *stream, at *sibling, off int64) *file {
	if isPacked(at.path) {
		text, osf, err := at.open()
		if err != nil {
			if !at.gone {
				r.opt.Log.Warn("rotated log file can't be read: its lines are lost", "file", at.path, "error", err)
			}
			return nil
		}
		f := &file{s: s, fd: -1, wd: -1, id: at.id, off: off, links: 1}
		f.packed = &packed{path: at.path, f: osf, text: text, skip: off, head: at.start()}
		f.packed.blocks = blocks{r: text, max: r.opt.MaxLine}
		f.setStart(f.packed.head)
		r.wake(f)
		return f
	}
	osf, err := at.openFile()
	if err == nil {
		var fd int
		fd, err = unix.FcntlInt(osf.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		osf.Close()
		if err == nil {
			var f *file
			if f, err = r.adopt(s, fd); err == nil {
				f.off = off
				f.setStart(f.head())
				return f
			}
			unix.Close(fd)
		}
	}
	if !at.gone {
		r.opt.Log.Warn("rotated log file can't be read: its lines are lost", "file", at.path, "error", err)
	}
	return nil
}

// head returns the file's first bytes, read or not.
func (f *file) head() []byte {
	if f.packed != nil {
		return f.packed.head
	}
	b := make([]byte, startSize)
	n, _ := unix.Pread(f.fd, b, 0)
	return b[:max(n, 0)]
}

func (f *file) stat() {
	var st unix.Stat_t
	if f.packed == nil && unix.Fstat(f.fd, &st) == nil {
		f.links = uint64(st.Nlink)
	}
}

// toEnd begins after the last whole line there is.
func (r *reader) toEnd(f *file) {
	var st unix.Stat_t
	if unix.Fstat(f.fd, &st) != nil {
		return
	}
	for end := st.Size; end > 0; {
		from := max(0, end-int64(len(r.buf)))
		n, err := pread(f.fd, r.buf[:end-from], from)
		if err != nil {
			return // reading it will tell
		}
		if i := bytes.LastIndexByte(r.buf[:n], '\n'); i >= 0 {
			f.off = from + int64(i) + 1
			break
		}
		end = from
	}
	f.setStart(f.head())
}

func pread(fd int, b []byte, off int64) (int, error) {
	for {
		n, err := unix.Pread(fd, b, off)
		if err != unix.EINTR {
			return n, err
		}
	}
}

// setStart takes what of the file's first bytes is known now into its
// fingerprint.
func (f *file) setStart(head []byte) {
	if len(head) > len(f.start) {
		f.start = append(f.start[:0], head...)
		f.print = fingerprint(f.start)
	}
}

// wake has a file read in its turn.
func (r *reader) wake(f *file) {
	f.pending = true
	if !f.s.queued {
		f.s.queued = true
		r.queue = append(r.queue, f.s)
	}
}

func (r *reader) event(e event) {
	if e.mask&unix.IN_Q_OVERFLOW != 0 {
		r.everything()
		return
	}
	if files, ok := r.watches[e.wd]; ok {
		for _, f := range files {
			r.wake(f)
		}
		return
	}
	r.tree.event(e)
}

// everything looks at all of it: events were lost, or there are none.
func (r *reader) everything() {
	r.tree.all()
	for _, s := range r.streams {
		for _, f := range s.files {
			r.wake(f)
		}
	}
}

// sleep waits for the next event.
func (r *reader) sleep(ctx context.Context, deadline time.Time) error {
	poll := r.deaf || r.tree.blind
	if poll {
		if next := time.Now().Add(time.Second); deadline.IsZero() || next.Before(deadline) {
			deadline = next
		}
	}
	events := false
	err := r.in.wait(deadline, func() bool { return ctx.Err() != nil }, func(e event) {
		events = true
		r.event(e)
	})
	if poll && !events {
		r.everything()
	}
	return err
}

// retire closes rotated files that have been quiet for long enough, and
// returns when to look again (zero: never).
func (r *reader) retire(now time.Time) (next time.Time, err error) {
	for _, f := range slices.Clone(r.leaving) {
		if at := f.touched.Add(r.linger); at.After(now) {
			if next.IsZero() || at.Before(next) {
				next = at
			}
			continue
		}
		if err := r.drop(f); err != nil {
			return next, err
		}
	}
	return next, nil
}

// drop is done with a rotated file, unless there is more in it.
func (r *reader) drop(f *file) error {
	var st unix.Stat_t
	if f.packed == nil && unix.Fstat(f.fd, &st) == nil && st.Size > f.seen {
		f.touched = time.Now()
		r.wake(f)
		return nil
	}
	if f.half {
		r.dropped.Add(1)
		r.opt.Log.Warn("rotated log file ended in half a line: dropped", "file", f.s.path)
	}
	return r.finish(f)
}

// finish closes a file that was read to its end, and remembers it.
func (r *reader) finish(f *file) error {
	r.forget(f)
	f.setStart(f.head())
	if f.print != "" {
		f.s.remember(f.position())
	}
	r.closeFile(f)
	return r.tell(f.s)
}

// forget takes a file out of its stream.
func (r *reader) forget(f *file) {
	is := func(x *file) bool { return x == f }
	r.leaving = slices.DeleteFunc(r.leaving, is)
	f.s.files = slices.DeleteFunc(f.s.files, is)
	f.s.older = nil
}

func (r *reader) closeFile(f *file) {
	if f.packed != nil {
		f.packed.text.Close()
		f.packed.f.Close()
		return
	}
	if f.wd >= 0 {
		others := slices.DeleteFunc(r.watches[f.wd], func(x *file) bool { return x == f })
		if len(others) > 0 {
			r.watches[f.wd] = others
		} else {
			r.in.remove(f.wd)
			delete(r.watches, f.wd)
		}
	}
	unix.Close(f.fd)
}

// position is where the stream goes on.
func (s *stream) position() Position {
	if s.stored != nil {
		return *s.stored
	}
	last := len(s.files) - 1
	if s.older == nil {
		s.older = slices.Clone(s.known)
		for i := range max(last, 0) {
			s.older = append(s.older, s.files[i].position())
		}
	}
	var p Position
	if last >= 0 {
		p = s.files[last].position()
	}
	p.Older = s.older
	return p
}

func (f *file) position() Position {
	return Position{Dev: f.id.dev, Inode: f.id.ino, Born: f.id.born, Fingerprint: f.print, Offset: f.off}
}

// tell emits the position alone.
func (r *reader) tell(s *stream) error {
	return r.emit(Block{Stream: s.path, Key: s.path, Arrival: time.Now(), Position: s.position()})
}

// read reads one block of the stream, of its oldest file first.
func (r *reader) read(s *stream) error {
	i := slices.IndexFunc(s.files, func(f *file) bool { return f.pending })
	if i < 0 {
		return nil
	}
	f := s.files[i]
	f.pending = false
	var err error
	if f.packed != nil {
		err = r.readPacked(f)
	} else {
		err = r.readPlain(f)
	}
	if err != nil {
		return err
	}
	for _, f := range s.files {
		if f.pending {
			r.wake(f)
		}
	}
	return nil
}

func (r *reader) readPlain(f *file) error {
	at := f.off
	if f.skipping {
		at = f.scan
	}
	n, err := pread(f.fd, r.buf, at)
	now := time.Now()
	if err != nil {
		r.complain(f.s, fmt.Errorf("read at %d: %w", at, err))
		return nil
	}
	// Looked at after the read: if it is still the same file then, so it was
	// before.
	if truncated, err := r.truncated(f, at+int64(n)); err != nil {
		r.complain(f.s, err)
		return nil
	} else if truncated {
		return r.restart(f)
	}
	f.seen = at + int64(n)
	if r.olderHasMore(f) {
		f.pending = true
		return nil
	}
	if f.links == 0 {
		r.check(f)
	}
	b := r.buf[:n]
	f.pending = n == len(r.buf)
	if f.skipping {
		i := bytes.IndexByte(b, '\n')
		if i < 0 {
			f.scan += int64(n)
			f.half = true
			return nil
		}
		f.off = f.scan + int64(i) + 1
		f.skipping = false
		f.pending = true
		f.setStart(f.head())
		f.touched = now
		f.s.older = nil
		r.dropped.Add(1)
		r.opt.Log.Warn("line dropped: too long, or its first half is in a truncated file", "file", f.s.path, "ends_at", f.off)
		return r.tell(f.s)
	}
	if (f.off == 0 || f.hole) && n > 0 && b[0] == 0 {
		// A writer without O_APPEND goes on at its old offset in a truncated
		// file: the hole before it is no part of the line.
		return r.skipHole(f, b)
	}
	f.hole = f.hole && n == 0
	end := bytes.LastIndexByte(b, '\n') + 1
	f.half = end < n
	if end == 0 {
		switch {
		case n < len(r.buf):
			if f.half && f.copied {
				r.tornBy(f)
			}
		case len(r.buf) <= r.opt.MaxLine:
			r.grow()
		default:
			f.skipping = true
			f.scan = at + int64(n)
		}
		return nil
	}
	if at == 0 && r.recheck(f) {
		return nil
	}
	f.off += int64(end)
	if at == int64(len(f.start)) && at < startSize {
		f.setStart(append(f.start[:at:at], b[:min(end, startSize-int(at))]...))
	} else if at < startSize && len(f.start) < startSize {
		f.setStart(f.head())
	}
	f.touched = now
	if f != f.s.files[len(f.s.files)-1] {
		f.s.older = nil
	}
	if f.half && !f.pending && f.copied {
		r.tornBy(f)
	}
	r.buf = r.buf[:r.block]
	return r.emit(Block{Stream: f.s.path, Lines: b[:end], Arrival: now, Key: f.s.path, Position: f.s.position()})
}

// recheck looks at the folder again before anything of a file is read, and
// says whether something else comes first. The file may have been copied and
// truncated meanwhile, or be a copy itself: no fingerprint could tell before.
func (r *reader) recheck(f *file) bool {
	at := slices.Index(f.s.files, f)
	f.pending = true
	r.scan(f.s)
	return slices.Index(f.s.files, f) != at || f.off != 0 || f.skipping
}

// olderHasMore says whether a predecessor has got more since it was read. Its
// lines come first: its writer has changed over to f after them.
func (r *reader) olderHasMore(f *file) bool {
	for _, o := range f.s.files {
		if o == f {
			return false
		}
		var st unix.Stat_t
		if o.packed == nil && unix.Fstat(o.fd, &st) == nil && st.Size > o.seen {
			r.wake(o)
			return true
		}
	}
	return false
}

// grow makes room for a long line.
func (r *reader) grow() {
	size := min(2*len(r.buf), r.opt.MaxLine+1)
	if cap(r.buf) < size {
		r.buf = make([]byte, size)
	}
	r.buf = r.buf[:size]
}

// truncated notes the file's state and says whether it isn't the one any more
// that was read up to off.
func (r *reader) truncated(f *file, off int64) (bool, error) {
	var st unix.Stat_t
	if err := unix.Fstat(f.fd, &st); err != nil {
		return false, fmt.Errorf("stat: %w", err)
	}
	f.links = uint64(st.Nlink)
	if st.Size < off {
		return true, nil
	}
	var b [startSize]byte
	n, err := pread(f.fd, b[:len(f.start)], 0)
	if err != nil {
		return false, fmt.Errorf("read its start: %w", err)
	}
	return !bytes.Equal(b[:n], f.start), nil
}

// restart goes back to the start of a truncated file, after what is left in
// the copy that was made of it.
func (r *reader) restart(f *file) error {
	s := f.s
	if len(f.start) > 0 && bytes.HasPrefix(f.head(), f.start) {
		r.opt.Log.Warn("log file was cut short: reading on from its end", "file", s.path, "read_to", f.off)
		f.off, f.half, f.skipping = 0, false, false
		r.toEnd(f)
		return r.tell(s)
	}
	r.scan(s, f.lose())
	r.wake(f)
	return r.tell(s)
}

// tornBy drops the first line of the file that follows a copy which ends in
// half a line: it is the other half, and must not pass for a line.
func (r *reader) tornBy(f *file) {
	i := slices.Index(f.s.files, f)
	if i+1 < len(f.s.files) {
		if next := f.s.files[i+1]; next.off == 0 && !next.skipping && next.packed == nil {
			next.skipping, next.scan = true, 0
			f.half = false
		}
	}
}

func (r *reader) skipHole(f *file, b []byte) error {
	end := int64(len(b)) - int64(len(bytes.TrimLeft(b, "\x00")))
	if end == int64(len(b)) {
		if data, err := unix.Seek(f.fd, f.off+end, unix.SEEK_DATA); err == nil {
			end = data - f.off
		}
	}
	f.off += end
	f.hole = true
	f.setStart(f.head())
	f.pending = true
	return r.tell(f.s)
}

func (r *reader) readPacked(f *file) error {
	p := f.packed
	if p.skip > 0 {
		n, err := io.CopyN(io.Discard, p.text, min(p.skip, 16<<20))
		p.skip -= n
		if err == nil {
			f.pending = true
			return nil
		}
		return r.endPacked(f, err)
	}
	lines, n, err := p.next()
	f.off += n
	r.dropped.Add(uint64(p.dropped))
	p.dropped = 0
	if err != nil {
		f.half = len(p.rest()) > 0
		return r.endPacked(f, err)
	}
	f.pending = true
	f.s.older = nil
	return r.emit(Block{Stream: f.s.path, Lines: lines, Arrival: time.Now(), Key: f.s.path, Position: f.s.position()})
}

func (r *reader) endPacked(f *file, err error) error {
	if err != io.EOF {
		r.opt.Log.Warn("rotated log file can't be read on: its last lines are lost", "file", f.packed.path, "error", err)
	}
	if f.half && f.copied {
		r.tornBy(f)
	}
	return r.finish(f)
}
