package source

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// journald tells its readers of new entries up to half a second late. An
	// attacker's failures come within seconds of each other, so after each
	// entry the end of the journal is looked at this often for that long; an
	// idle journal isn't looked at.
	hastenEvery = 2 * time.Millisecond
	hastenFor   = 10 * time.Second

	// entryCount is where a journal file's header has the number of its
	// entries (https://systemd.io/JOURNAL_FILE_FORMAT).
	entryCount = 152
)

// hastener wakes a journalctl that follows the journal as soon as there is
// something new in the system's file: a touched modification time is an event
// for whoever watches the folder, and true besides, since journald writes by
// mmap. Without the right to touch it, entries come when journald says so.
type hastener struct {
	woken chan struct{}
	done  chan struct{}
}

func hasten(dir string) *hastener {
	h := &hastener{woken: make(chan struct{}, 1), done: make(chan struct{})}
	go h.run(dir)
	return h
}

// active starts or prolongs the watch.
func (h *hastener) active() {
	select {
	case h.woken <- struct{}{}:
	default:
	}
}

func (h *hastener) stop() { close(h.done) }

func (h *hastener) run(dir string) {
	for {
		select {
		case <-h.done:
			return
		case <-h.woken:
		}
		if path := systemJournal(dir); path != "" && !h.watch(path) {
			return
		}
	}
}

// watch looks at the file until nothing has come for a while. It says false
// if it is of no use.
func (h *hastener) watch(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	opened, err := f.Stat()
	if err != nil {
		return false
	}
	tick := time.NewTicker(hastenEvery)
	defer tick.Stop()
	var last uint64
	until := time.Now().Add(hastenFor)
	checked := time.Now()
	for {
		var now time.Time
		select {
		case <-h.done:
			return false
		case <-h.woken:
			until = time.Now().Add(hastenFor)
			continue
		case now = <-tick.C:
		}
		if now.After(until) {
			return true
		}
		if now.Sub(checked) > time.Second {
			// Rotated: journald has a new file of that name.
			checked = now
			if info, err := os.Stat(path); err != nil || !os.SameFile(info, opened) {
				h.active()
				return true
			}
		}
		var b [8]byte
		if _, err := f.ReadAt(b[:], entryCount); err != nil {
			return true
		}
		if n := binary.LittleEndian.Uint64(b[:]); n != last {
			last = n
			times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Nsec: unix.UTIME_NOW}}
			if unix.UtimesNanoAt(unix.AT_FDCWD, path, times, 0) != nil {
				return false
			}
		}
	}
}

// systemJournal is the file that journald writes system entries to.
func systemJournal(dir string) string {
	id, err := os.ReadFile("/etc/machine-id")
	if err != nil {
		return ""
	}
	dirs := []string{"/var/log/journal", "/run/log/journal"}
	if dir != "" {
		dirs = []string{dir, filepath.Dir(filepath.Clean(dir))}
	}
	for _, d := range dirs {
		path := filepath.Join(d, strings.TrimSpace(string(id)), "system.journal")
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	return ""
}
