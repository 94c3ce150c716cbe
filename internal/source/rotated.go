package source

import (
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
	return idIn(&st), nil
}

func idIn(st *unix.Statx_t) fileID {
	id := fileID{dev: unix.Mkdev(st.Dev_major, st.Dev_minor), ino: st.Ino}
	if st.Mask&unix.STATX_BTIME != 0 {
		id.born = st.Btime.Sec*1e9 + int64(st.Btime.Nsec)
	}
	return id
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

var (
	numbered = regexp.MustCompile(`^\.\d{1,4}$`)
	dated    = regexp.MustCompile(`^[.\-_]?((?:19|20)\d\d[-_.]?(?:0[1-9]|1[0-2])[-_.]?(?:0[1-9]|[12]\d|3[01])(?:[-_.T]?\d[\d\-_.:]*)?|1\d{9})$`)
	digits   = regexp.MustCompile(`\d+`)
)

// siblings lists the rotated files of a log, or all files of its folder (and,
// if it is a symlink, of that of the file it leads to); oldest first. A
// rotation under way may show a file under both of its names or under none.
func siblings(path string, all bool) []sibling {
	var list []sibling
	seen := map[string]bool{}
	for i, place := range seriesOf(path).places {
		dir, base := filepath.Split(place)
		for _, name := range namesIn(dir) {
			x := sibling{log: path, path: dir + name}
			x.rank(base, i > 0)
			// By name first: a folder may hold the logs of a thousand hosts.
			if seen[x.path] || !x.series && x.date == "" && !all || !x.stat() {
				continue
			}
			seen[x.path] = x.series
			list = append(list, x)
		}
	}
	sort.Slice(list, func(i, j int) bool {
		a, b := list[i], list[j]
		return a.before(b) || !b.before(a) && a.path < b.path
	})
	return list
}

func namesIn(dir string) []string {
	f, err := os.Open(dir)
	if err != nil {
		return nil
	}
	defer f.Close()
	names, _ := f.Readdirnames(-1)
	return names
}

// stat takes in the file's state, and says whether it is a regular one.
func (s *sibling) stat() bool {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, s.path, unix.AT_SYMLINK_NOFOLLOW,
		unix.STATX_TYPE|unix.STATX_INO|unix.STATX_SIZE|unix.STATX_MTIME|unix.STATX_BTIME, &st)
	s.id, s.size, s.modified = idIn(&st), int64(st.Size), st.Mtime.Sec*1e9+int64(st.Mtime.Nsec)
	return err == nil && st.Mode&unix.S_IFMT == unix.S_IFREG
}

// series are the names that rotated files of a log have: places are its
// pathname and, if that is a symlink, the file's own.
type series struct{ places []string }

func seriesOf(path string) series {
	s := series{[]string{path}}
	if real, err := filepath.EvalSymlinks(path); err == nil && real != path {
		s.places = append(s.places, real)
	}
	return s
}

// among returns those of the sorted pathnames that are of rotated files, or what
// the symlink leads to. One that somebody asked for by itself has to be named
// after the log.
func (s series) among(sorted []string, asked func(string) bool) (paths []string) {
	for i, place := range s.places {
		dir, base := filepath.Split(place)
		stem := strings.TrimSuffix(base, filepath.Ext(base))
		prefix := dir + stem[:commonStem(stem, i > 0)]
		from, _ := slices.BinarySearch(sorted, prefix)
		for _, path := range sorted[from:] {
			if !strings.HasPrefix(path, prefix) {
				break
			}
			if strings.Contains(path[len(dir):], "/") || i > 0 && asked(path) {
				continue
			}
			x := sibling{path: path}
			x.rank(base, i > 0)
			if x.series || i > 0 && place == path {
				paths = append(paths, path)
			}
		}
	}
	return paths
}

// rank finds out from the names whether s is a rotated file of base, as
// logrotate and its like name them: base.1, base-20261124, base.2.gz, and with
// its "extension" stem-20261124.log. A symlink leads to files that have the
// date in their own names.
func (s *sibling) rank(base string, target bool) {
	name := filepath.Base(s.path)
	if name == base {
		if target {
			s.date = name
		}
		return
	}
	ext := filepath.Ext(base)
	stem := strings.TrimSuffix(base, ext)
	if !strings.HasPrefix(name, stem[:commonStem(stem, target)]) {
		return
	}
	if isPacked(name) {
		name = strings.TrimSuffix(name, filepath.Ext(name))
	}
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
	case dated.MatchString(middle):
		s.series, s.date = true, strings.TrimLeft(middle, ".-_")
	}
}

// commonStem is how much of the stem all names of a series begin with: those of
// a symlink's files differ in their digits.
func commonStem(stem string, target bool) int {
	if i := strings.IndexAny(stem, "0123456789"); target && i >= 0 {
		return i
	}
	return len(stem)
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
		list := siblings(s.log, true)
		i := slices.IndexFunc(list, func(x sibling) bool { return x.id == s.id })
		if i < 0 {
			s.gone = true
			break
		}
		s.path = list[i].path
	}
	return nil, fmt.Errorf("open %s: %w", s.path, os.ErrNotExist)
}
