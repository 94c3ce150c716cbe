package source

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// startSize is how many first bytes of a file tell it from others.
const startSize = 1024

// fingerprint names a file by its first bytes.
func fingerprint(start []byte) string {
	if len(start) == 0 {
		return ""
	}
	sum := sha256.Sum256(start)
	return fmt.Sprintf("%d:%x", len(start), sum[:16])
}

// isOf says whether the fingerprint is of a file that starts so.
func isOf(print string, start []byte) bool {
	if print == "" {
		return true
	}
	length, _, _ := strings.Cut(print, ":")
	n, err := strconv.Atoi(length)
	return err == nil && n > 0 && n <= len(start) && fingerprint(start[:n]) == print
}

// sameStart says whether two files that start so are one, copied or
// compressed.
func sameStart(a, b []byte) bool {
	n := min(len(a), len(b))
	return n > 0 && bytes.Equal(a[:n], b[:n])
}

// fileID tells a file from all others of the machine, earlier ones included:
// inodes are used again at once, so its birth belongs to it.
type fileID struct {
	dev, ino uint64
	born     int64 // Unix nanoseconds; zero if the file system doesn't know
}

func (p Position) id() fileID { return fileID{p.Dev, p.Inode, p.Born} }

// idAt is of the file that the path leads to, idOf of an open one.
func idAt(path string) (fileID, error) { return statx(unix.AT_FDCWD, path, 0) }
func idOf(fd int) (fileID, error)      { return statx(fd, "", unix.AT_EMPTY_PATH) }

func statx(dir int, path string, flags int) (fileID, error) {
	var st unix.Statx_t
	if err := unix.Statx(dir, path, flags, unix.STATX_INO|unix.STATX_BTIME, &st); err != nil {
		return fileID{}, err
	}
	id := fileID{dev: unix.Mkdev(st.Dev_major, st.Dev_minor), ino: st.Ino}
	if st.Mask&unix.STATX_BTIME != 0 {
		id.born = st.Btime.Sec*1e9 + int64(st.Btime.Nsec)
	}
	return id, nil
}

// sibling is a regular file in the folder of a log.
type sibling struct {
	log      string // whose sibling it is
	path     string
	id       fileID
	size     int64
	modified int64 // Unix nanoseconds
	// series says that the name is that of a rotated file of the log; number
	// (1 is the newest) or date tells which.
	series bool
	number int
	date   string
	gone   bool // it was deleted since it was listed: compressed, perhaps
}

func anyGone(list []sibling) bool {
	return slices.ContainsFunc(list, func(s sibling) bool { return s.gone })
}

var (
	numbered = regexp.MustCompile(`^\.\d{1,4}$`)
	dated    = regexp.MustCompile(`^[.\-_]?\d[\d.\-_T:]*$`)
	digits   = regexp.MustCompile(`\d+`)
)

// siblings lists the folder of path and, if path is a symlink, that of the
// file it leads to; oldest first.
func siblings(path string) []sibling {
	// A rotation under way shows a file under both of its names or none:
	// what is listed alike twice wasn't torn.
	list := listOnce(path)
	for range 100 {
		again := listOnce(path)
		if slices.EqualFunc(list, again, func(a, b sibling) bool { return a.path == b.path && a.id == b.id }) {
			list = again
			break
		}
		list = again
	}
	sort.SliceStable(list, func(i, j int) bool { return list[i].before(list[j]) })
	return list
}

func listOnce(path string) []sibling {
	places := []string{path}
	if real, err := filepath.EvalSymlinks(path); err == nil && real != path {
		places = append(places, real)
	}
	var list []sibling
	seen := map[string]bool{}
	for _, place := range places {
		dir, base := filepath.Split(place)
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, e := range entries {
			info, err := e.Info()
			if err != nil || !info.Mode().IsRegular() || seen[dir+e.Name()] {
				continue
			}
			s := sibling{log: path, path: dir + e.Name(), size: info.Size(), modified: info.ModTime().UnixNano()}
			if s.id, err = idAt(s.path); err != nil {
				continue
			}
			s.rank(base, place != path)
			if s.series {
				seen[s.path] = true
			}
			list = append(list, s)
		}
	}
	return list
}

// rank finds out from the names whether s is a rotated file of base, as
// logrotate and its like name them: base.1, base-20261124, base.2.gz, and with
// its "extension" stem-20261124.log. A symlink leads to files that have the
// date in their own names.
func (s *sibling) rank(base string, target bool) {
	name := filepath.Base(s.path)
	if name == base {
		return
	}
	if isPacked(name) {
		name = strings.TrimSuffix(name, filepath.Ext(name))
	}
	ext := filepath.Ext(base)
	stem := strings.TrimSuffix(base, ext)
	var middle string
	switch {
	case strings.HasPrefix(name, base):
		middle = name[len(base):]
	case strings.HasPrefix(name, stem) && strings.HasSuffix(name, ext) && len(name) > len(base):
		middle = name[len(stem) : len(name)-len(ext)]
	case target && countDigits(base) >= 6 && digits.ReplaceAllString(name, "0") == digits.ReplaceAllString(base, "0"):
		s.series, s.date = true, name
		return
	}
	switch {
	case middle == ".old" || middle == "-old":
		s.series, s.number = true, 1
	case numbered.MatchString(middle):
		s.series = true
		s.number, _ = strconv.Atoi(middle[1:])
	case dated.MatchString(middle) && countDigits(middle) >= 6:
		s.series, s.date = true, strings.TrimLeft(middle, ".-_")
	}
}

func countDigits(s string) int {
	n := 0
	for _, c := range s {
		if c >= '0' && c <= '9' {
			n++
		}
	}
	return n
}

// before says whether s was rotated away before o: by their names, since a
// file compressed late may have a late time of its own.
func (s sibling) before(o sibling) bool {
	switch {
	case s.date == "" && o.date == "" && s.series && o.series:
		return s.number > o.number
	case s.date != "" && o.date != "":
		return s.date < o.date
	}
	return s.modified < o.modified
}

// start returns the first bytes of its text.
func (s *sibling) start() []byte {
	text, f, err := s.open()
	if err != nil {
		return nil
	}
	defer f.Close()
	defer text.Close()
	b := make([]byte, startSize)
	n, _ := io.ReadFull(text, b)
	return b[:n]
}

// open opens its text, decompressed if its name says so.
func (s *sibling) open() (text io.ReadCloser, f *os.File, err error) {
	f, err = s.openFile()
	if err != nil {
		return nil, nil, err
	}
	if !isPacked(s.path) {
		return io.NopCloser(f), f, nil
	}
	text, err = unpack(f)
	if err != nil {
		f.Close()
		return nil, nil, fmt.Errorf("decompress %s: %w", s.path, err)
	}
	return text, f, nil
}

// openFile opens the very file, even if it was renamed since it was listed.
func (s *sibling) openFile() (*os.File, error) {
	for range 100 {
		// Not held up by a FIFO of that name.
		f, err := os.OpenFile(s.path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
		if err == nil {
			var id fileID
			if id, err = idOf(int(f.Fd())); err == nil && id == s.id {
				return f, nil
			}
			f.Close()
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		list := siblings(s.log)
		i := slices.IndexFunc(list, func(x sibling) bool { return x.id == s.id })
		if i < 0 {
			s.gone = true
			break
		}
		s.path = list[i].path
	}
	return nil, fmt.Errorf("open %s: %w", s.path, os.ErrNotExist)
}

// findIn looks for the file of a position among siblings: under another name,
// copied or compressed.
func findIn(list []sibling, p Position) (sibling, bool) {
	for i := range list {
		s := &list[i]
		if s.id == p.id() && isOf(p.Fingerprint, s.start()) && (isPacked(s.path) || s.size >= p.Offset) {
			return *s, true
		}
	}
	if p.Fingerprint == "" {
		return sibling{}, false
	}
	var best sibling
	found := false
	for i := range list {
		s := &list[i]
		if !s.series || (!isPacked(s.path) && s.size < p.Offset) || !isOf(p.Fingerprint, s.start()) {
			continue
		}
		// Files that start alike: the first that was written to since. Some
		// compressors keep the time to the second only.
		if !found || best.modified < p.Modified-1e9 {
			best, found = *s, true
		}
	}
	return best, found
}
