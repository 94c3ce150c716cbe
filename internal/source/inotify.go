package source

import (
	"errors"
	"fmt"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// inotify is the kernel's queue, bare. nxadm/tail's watch package exits the
// process when the queue can't be made or a stat fails and costs goroutines
// per file; fsnotify knows a watch by its pathname, but after a rotation two
// inodes of one pathname are followed at once.
type inotify struct {
	fd   int
	file *os.File // owns fd; parks the goroutine in the runtime's poller
	buf  [64 << 10]byte
}

type event struct {
	wd   int
	mask uint32
	name string
}

const (
	// IN_ATTRIB of a file tells of its unlinking, that of a directory's
	// entry of a permission given.
	fileEvents = unix.IN_MODIFY | unix.IN_ATTRIB
	dirEvents  = unix.IN_CREATE | unix.IN_MOVED_TO | unix.IN_MOVED_FROM | unix.IN_DELETE |
		unix.IN_ATTRIB | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR
)

func newInotify() (*inotify, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("inotify: %w (sysctl fs.inotify.max_user_instances sets the limit)", err)
	}
	return &inotify{fd: fd, file: os.NewFile(uintptr(fd), "inotify")}, nil
}

func (in *inotify) close() { in.file.Close() }

// watchDir adds or renews the watch of the directory that path leads to.
func (in *inotify) watchDir(path string) (int, error) {
	return unix.InotifyAddWatch(in.fd, path, dirEvents)
}

// watchFile watches the inode behind an open descriptor: by its pathname
// the watch could land on the next file.
func (in *inotify) watchFile(fd int) (int, error) {
	return unix.InotifyAddWatch(in.fd, fmt.Sprintf("/proc/self/fd/%d", fd), fileEvents)
}

func (in *inotify) remove(wd int) {
	// EINVAL: the kernel has dropped it with the inode.
	_, _ = unix.InotifyRmWatch(in.fd, uint32(wd))
}

// poll hands every queued event to f and returns at once.
func (in *inotify) poll(f func(event)) error {
	for {
		n, err := unix.Read(in.fd, in.buf[:])
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return nil
		case err != nil:
			return fmt.Errorf("read inotify queue: %w", err)
		}
		in.parse(n, f)
	}
}

// wait blocks until there are events, the deadline (zero: none) or interrupt.
// interrupted is asked once the deadline is set, so that no interrupt is lost.
func (in *inotify) wait(deadline time.Time, interrupted func() bool, f func(event)) error {
	if err := in.file.SetReadDeadline(deadline); err != nil {
		return fmt.Errorf("inotify deadline: %w", err)
	}
	if interrupted() {
		return nil
	}
	n, err := in.file.Read(in.buf[:])
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read inotify queue: %w", err)
	}
	in.parse(n, f)
	return nil
}

// interrupt ends a wait that is under way.
func (in *inotify) interrupt() { _ = in.file.SetReadDeadline(time.Unix(1, 0)) }

func (in *inotify) parse(n int, f func(event)) {
	for b := in.buf[:n]; len(b) >= unix.SizeofInotifyEvent; {
		raw := (*unix.InotifyEvent)(unsafe.Pointer(&b[0]))
		end := unix.SizeofInotifyEvent + int(raw.Len)
		name := b[unix.SizeofInotifyEvent:end]
		for len(name) > 0 && name[len(name)-1] == 0 {
			name = name[:len(name)-1]
		}
		f(event{wd: int(raw.Wd), mask: raw.Mask, name: string(name)})
		b = b[end:]
	}
}
