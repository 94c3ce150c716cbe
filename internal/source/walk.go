package source

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

// maxLinks is the kernel's own limit of symlinks in one lookup.
const maxLinks = 40

// tree finds the pathnames that patterns lead to, and watches every
// directory on the way, those of symlinks included: whatever makes a pattern
// lead elsewhere (a file created, a directory that appears, a symlink
// swapped) is an event in one of them.
type tree struct {
	in       *inotify
	patterns []string
	dirty    []bool // by pattern: must be walked again
	// watched is, by watch descriptor, the names that matter to a pattern
	// in that directory.
	watched map[int]map[int][]string
	// blind says that some directory can't be watched: it has to be polled.
	blind bool
}

func newTree(in *inotify, patterns []string) *tree {
	t := &tree{in: in, patterns: patterns, dirty: make([]bool, len(patterns)), watched: map[int]map[int][]string{}}
	t.all()
	return t
}

// all marks every pattern for a new walk.
func (t *tree) all() {
	for i := range t.dirty {
		t.dirty[i] = true
	}
}

func (t *tree) isDirty() bool {
	for _, d := range t.dirty {
		if d {
			return true
		}
	}
	return false
}

// event takes note of a directory's event.
func (t *tree) event(e event) {
	for pattern, names := range t.watched[e.wd] {
		if e.name == "" {
			t.dirty[pattern] = true
			continue
		}
		for _, name := range names {
			if ok, _ := filepath.Match(name, e.name); ok || name == e.name {
				t.dirty[pattern] = true
			}
		}
	}
	if e.mask&unix.IN_IGNORED != 0 {
		delete(t.watched, e.wd)
	}
}

// walk looks a pattern up anew and returns the pathnames it leads to now, a
// literal pattern's always, whether there is anything or not.
func (t *tree) walk(pattern int) []string {
	t.dirty[pattern] = false
	before := map[int]bool{}
	for wd, patterns := range t.watched {
		if _, ok := patterns[pattern]; ok {
			before[wd] = true
			delete(patterns, pattern)
		}
	}
	var paths []string
	t.descend(pattern, "/", strings.Split(t.patterns[pattern][1:], "/"), &paths)
	for wd := range before {
		if len(t.watched[wd]) == 0 {
			t.in.remove(wd)
			delete(t.watched, wd)
		}
	}
	if !isGlob(t.patterns[pattern]) {
		return []string{t.patterns[pattern]}
	}
	sort.Strings(paths)
	return paths
}

func (t *tree) descend(pattern int, dir string, rest []string, paths *[]string) {
	// Watch first, look then: what changes in between is an event.
	if !t.watch(pattern, dir, rest[0]) {
		return
	}
	names := []string{rest[0]}
	if isGlob(rest[0]) {
		names = nil
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.blind = true
		}
		for _, e := range entries {
			ok, _ := filepath.Match(rest[0], e.Name())
			if ok && (e.Name()[0] != '.' || rest[0][0] == '.') && !(len(rest) == 1 && isPacked(e.Name())) {
				names = append(names, e.Name())
			}
		}
	}
	for _, name := range names {
		path := filepath.Join(dir, name)
		t.links(pattern, path, 0)
		info, err := os.Stat(path)
		switch {
		case len(rest) > 1 && err == nil && info.IsDir():
			t.descend(pattern, path, rest[1:], paths)
		case len(rest) == 1 && (err == nil || !errors.Is(err, fs.ErrNotExist)):
			*paths = append(*paths, path)
		}
	}
}

// links watches the directories that the symlink path, if it is one, goes
// through.
func (t *tree) links(pattern int, path string, depth int) {
	target, err := os.Readlink(path)
	if err != nil || depth > maxLinks {
		return
	}
	if !filepath.IsAbs(target) {
		dir, err := filepath.EvalSymlinks(filepath.Dir(path))
		if err != nil {
			return
		}
		target = filepath.Join(dir, target)
	}
	dir := "/"
	for _, name := range strings.Split(filepath.Clean(target)[1:], "/") {
		if name == "" || !t.watch(pattern, dir, name) {
			return
		}
		dir = filepath.Join(dir, name)
		t.links(pattern, dir, depth+1)
	}
}

// watch says whether the directory could be looked into at all.
func (t *tree) watch(pattern int, dir, name string) bool {
	wd, err := t.in.watchDir(dir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
			return false
		}
		// No read permission, or no more watches: names in it can still be
		// looked up.
		t.blind = true
		return true
	}
	if t.watched[wd] == nil {
		t.watched[wd] = map[int][]string{}
	}
	t.watched[wd][pattern] = append(t.watched[wd][pattern], name)
	return true
}

func isGlob(s string) bool { return strings.ContainsAny(s, `*?[\`) }

// isPacked says whether a name is that of a compressed file: a glob such as
// access.log* doesn't mean those.
func isPacked(name string) bool {
	switch filepath.Ext(name) {
	case ".gz", ".xz", ".zst", ".bz2":
		return true
	}
	return false
}
