package source

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

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
	r.pace.size += end
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
