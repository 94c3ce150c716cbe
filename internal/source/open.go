package source

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

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
