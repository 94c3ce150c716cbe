package source

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

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
// those too. They are read as part of their log. The pathnames are sorted.
func (r *reader) byLog(paths []string) map[string]string {
	asked := func(path string) bool { return slices.Contains(r.opt.Patterns, path) }
	logs := map[string]string{}
	for _, log := range paths {
		s := r.streams[log]
		if _, err := os.Stat(log); err != nil && (s == nil || len(s.files) == 0) {
			continue
		}
		for _, path := range seriesOf(log).among(paths, asked) {
			if path != log {
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
	list := slices.DeleteFunc(siblings(s.path, false), func(x sibling) bool { return !x.series || x.modified >= before })
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
			!slices.ContainsFunc(siblings(path, false), func(x sibling) bool { return x.series }) {
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
