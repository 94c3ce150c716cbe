package source

import (
	"context"
	"fmt"
	"io"
	"log/slog"
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

// maxLeaving is how many rotated files may wait for that: each read looks at
// those of its stream.
const maxLeaving = 256

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
		r.pace.wait(ctx, time.Now())
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
	pace    pace
	begun   int64 // Unix nanoseconds
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
	waiting := slices.Clone(r.leaving)
	for i, f := range waiting {
		if at := f.touched.Add(r.linger); at.After(now) && i >= len(waiting)-maxLeaving {
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
