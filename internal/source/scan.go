package source

import (
	"bytes"
	"errors"
	"io/fs"
	"slices"

	"golang.org/x/sys/unix"
)

// maxKnown is how many files that were read to their end a stream remembers.
const maxKnown = 16

// maxScans is how often a folder is looked at again that changes meanwhile.
const maxScans = 100

// entry is a rotated file in the folder of a log.
type candidate struct {
	sibling
	head []byte // the first bytes of its text
	kind kind
	lost int // which of the lost it is
}

type kind int

const (
	unknown kind = iota // nothing is known of it: it is new
	open                // it is open already
	twin                // a copy of an open one, or one under way
	done                // it was read to its end
	found               // one of the lost
)

// scan finds out what files the stream consists of now, and opens those that
// are to be read: the one that the pathname leads to, the lost ones (open no
// longer, but not read to their end), and those that came and went unseen.
//
// A file is known by its inode or, copied or compressed, by its first bytes.
// What is known is the anchor: whatever the names say was rotated after it is
// new. No file's time is looked at: copies and compressors set it late, to the
// second only or not at all, and two rotations may share one tick of the clock.
func (r *reader) scan(s *stream, lost ...lostFile) {
	all := false
	for try := 1; ; try++ {
		if f := s.current(); f != nil && !bytes.HasPrefix(f.head(), f.start) {
			lost = append(lost, f.lose())
		}
		c := scan{r: r, s: s, lost: lost, all: all, last: try == maxScans}
		if c.look() && c.open() {
			if all || !c.missing() {
				c.commit()
				return
			}
			all = true
		}
		for _, f := range c.opened {
			r.closeFile(f)
		}
	}
}

// lostFile is a file that was read in part and is no longer open.
type lostFile struct {
	Position
	truncated *file // it is what this one held before
	torn      bool  // it ended in half a line
}

// lose goes back to the start of a truncated file, and returns what it was.
func (f *file) lose() lostFile {
	lost := lostFile{f.position(), f, f.half}
	f.off, f.scan, f.start, f.print = 0, 0, nil, ""
	f.half, f.skipping, f.hole = false, false, false
	f.pending = true
	return lost
}

type scan struct {
	r    *reader
	s    *stream
	lost []lostFile
	all  bool // whatever the names of the files are
	last bool // take it as it is, though the folder changes

	names      []name      // what the folder held
	live       fileID      // what the pathname leads to
	kept       *file       // its file, if that was open already
	current    *file       // its file; nil if there is none that can be read
	candidates []candidate // the rotated ones
	heads      [][]byte    // of s.files

	where  []int   // by lost: its entry, or absent, or isCurrent
	reread int     // which of the known the pathname leads to again, or absent
	opened []*file // by this scan
	added  []*file // rotated ones to be read
	gone   []*file // open ones that proved to be copies of others
	proved []proof // open ones that proved to be lost ones
}

type proof struct {
	f   *file
	off int64
}

const (
	absent    = -1
	isCurrent = -2
)

// name is what makes two looks at a folder alike.
type name struct {
	path string
	id   fileID
}

func namesOf(list []sibling) []name {
	var names []name
	for _, x := range list {
		names = append(names, name{x.path, x.id})
	}
	return names
}

// look takes in what there is, and says false if it changed meanwhile. What is
// known is looked at after the rest: it then has all that a copy of it may have.
func (c *scan) look() bool {
	s := c.s
	before := s.heads()
	list := siblings(s.path, c.all)
	c.names = namesOf(list)
	if id, err := idAt(s.path); err == nil {
		c.live = id
		if !c.openCurrent() && !c.last {
			return false
		}
	}
	if !c.gather(list) && !c.last {
		return false
	}
	c.heads = s.heads()
	c.addUnlisted()
	for i, head := range before {
		if !bytes.HasPrefix(c.heads[i], head) && !c.last {
			return false // truncated just now
		}
	}
	return true
}

// openCurrent opens what the pathname leads to, and says false if that is
// another file now.
func (c *scan) openCurrent() bool {
	c.kept = c.s.opened(c.live)
	if c.current = c.kept; c.kept != nil {
		return true
	}
	f, err := c.r.openLive(c.s)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return false
		}
		c.r.complain(c.s, err)
		return true
	}
	c.opened = append(c.opened, f)
	if f.id != c.live {
		return false
	}
	c.current = f
	return true
}

// gather keeps the candidates that matter, oldest first: from the newest back to
// the first that is known, once all the lost are found. It says false if one
// vanished.
func (c *scan) gather(list []sibling) bool {
	missing := map[int]bool{}
	for i, p := range c.lost {
		if p.Offset > 0 && !c.isCurrent(p.Position) {
			missing[i] = true
		}
	}
	seen := map[fileID]bool{c.live: true}
	anchored := false
	var candidates []candidate
	for i := len(list) - 1; i >= 0 && !(anchored && len(missing) == 0); i-- {
		e := candidate{sibling: list[i]}
		if e.id == c.live && e.date != "" {
			// A symlink leads to it; later ones are for its next turns.
			candidates, anchored = nil, false
		}
		if seen[e.id] || !e.series && !slices.ContainsFunc(c.lost, func(p lostFile) bool { return p.id() == e.id }) {
			continue
		}
		seen[e.id] = true
		e.head = e.start()
		if e.gone {
			return false
		}
		for j := range missing {
			if isOf(c.lost[j].Fingerprint, e.head) {
				delete(missing, j)
				anchored = true
			}
		}
		anchored = anchored ||
			slices.ContainsFunc(c.s.known, func(p Position) bool { return isOf(p.Fingerprint, e.head) }) ||
			slices.ContainsFunc(c.s.files, func(f *file) bool { return f.id == e.id && !f.unsure() })
		candidates = append(candidates, e)
	}
	slices.Reverse(candidates)
	for _, e := range candidates {
		// Not those that are being compressed or just were: the original is
		// there still.
		if !isPacked(e.path) || len(e.head) > 0 && !slices.ContainsFunc(candidates, func(o candidate) bool {
			return !isPacked(o.path) && bytes.HasPrefix(o.head, e.head)
		}) {
			c.candidates = append(c.candidates, e)
		}
	}
	return true
}

// addUnlisted puts open files that may be copies and have left the folder since
// (they were compressed) ahead of the candidates.
func (c *scan) addUnlisted() {
	for i, f := range c.s.files {
		listed := func(e candidate) bool { return e.id == f.id }
		if f.unsure() && !slices.ContainsFunc(c.candidates, listed) {
			e := candidate{sibling: sibling{id: f.id, size: f.size()}, head: c.heads[i]}
			c.candidates = slices.Insert(c.candidates, 0, e)
		}
	}
}

// isCurrent says whether the pathname leads to the file of a position.
func (c *scan) isCurrent(p Position) bool {
	return c.current != nil && p.id() == c.live && c.current.continues(p)
}

// twinOf returns the open file (other than one) of which the first bytes are a
// copy, whole or under way, or nil. The original may be truncated by now.
func (c *scan) twinOf(head []byte, than *file) *file {
	if len(head) == 0 {
		return nil
	}
	for i, f := range c.s.files {
		if f == than {
			continue
		}
		if c.intact(f) && bytes.HasPrefix(c.heads[i], head) ||
			!c.intact(f) && f.off > 0 && (f.print != "" && isOf(f.print, head) || bytes.HasPrefix(f.start, head)) {
			return f
		}
	}
	return nil
}

// intact says whether the open file is still the one that was read.
func (c *scan) intact(f *file) bool {
	return bytes.HasPrefix(c.heads[slices.Index(c.s.files, f)], f.start)
}

// sort finds out what each entry is, by inode first, then by content.
func (c *scan) sort() {
	s := c.s
	c.where = slices.Repeat([]int{absent}, len(c.lost))
	for j, p := range c.lost {
		if c.isCurrent(p.Position) {
			c.where[j] = isCurrent
		}
	}
	taken := make([]bool, len(s.known))
	c.reread = absent
	for k, p := range s.known {
		if c.isCurrent(p) {
			c.reread, taken[k] = k, true
		}
	}
	for i := range c.candidates {
		e := &c.candidates[i]
		if f := s.opened(e.id); f != nil && !f.unsure() {
			e.kind = open
			continue
		}
		for j, p := range c.lost {
			if p.Offset > 0 && c.where[j] == absent && p.id() == e.id && e.continues(p.Position) {
				c.find(j, i)
			}
		}
		for k, p := range s.known {
			if p.id() == e.id && isOf(p.Fingerprint, e.head) {
				e.kind, taken[k] = done, true
			}
		}
	}
	for i := range c.candidates {
		e := &c.candidates[i]
		if e.kind == unknown && c.twinOf(e.head, s.opened(e.id)) != nil {
			e.kind = twin
		}
		for j, p := range c.lost {
			if e.kind == unknown && c.where[j] == absent && p.Offset > 0 && e.continues(p.Position) {
				c.find(j, i)
			}
		}
	}
	// A file that was read whole has no more now than it had then. But a
	// writer may have gone on with it for long.
	for _, exact := range []bool{true, false} {
		for i := range c.candidates {
			e := &c.candidates[i]
			for k, p := range s.known {
				if e.kind == unknown && !taken[k] && p.Fingerprint != "" && isOf(p.Fingerprint, e.head) &&
					(!exact || fingerprint(e.head) == p.Fingerprint) {
					e.kind, taken[k] = done, true
				}
			}
		}
	}
	// What nobody has read of may be a copy of what somebody has, made just
	// before: only what is nothing else is such a file.
	for i := range c.candidates {
		e := &c.candidates[i]
		for j, p := range c.lost {
			if e.kind == unknown && c.where[j] == absent && p.Offset == 0 && p.id() == e.id {
				c.find(j, i)
			}
		}
	}
}

// missing says whether one of the lost wasn't found.
func (c *scan) missing() bool {
	for j, p := range c.lost {
		if c.where[j] == absent && p.Offset > 0 {
			return true
		}
	}
	return false
}

func (c *scan) find(lost, at int) {
	c.where[lost] = at
	c.candidates[at].kind, c.candidates[at].lost = found, lost
}

// continues says whether the entry is the file of a position, and not cut
// short since.
func (e *candidate) continues(p Position) bool {
	return isOf(p.Fingerprint, e.head) && (isPacked(e.path) || e.size >= p.Offset)
}

// continues says the same of an open file.
func (f *file) continues(p Position) bool {
	return isOf(p.Fingerprint, f.head()) && f.size() >= p.Offset
}

func (f *file) size() int64 {
	var st unix.Stat_t
	if unix.Fstat(f.fd, &st) != nil {
		return 0
	}
	return st.Size
}

// open opens what is to be read, and says false if the folder has changed
// since it was looked at.
func (c *scan) open() bool {
	s := c.s
	c.sort()
	// While the pathname leads to what it led to before, nothing was rotated.
	rotated := true
	if c.kept != nil {
		rotated = c.kept.off == 0 || !c.intact(c.kept)
	} else if c.current != nil {
		c.resumeCurrent()
		rotated = c.current.off == 0
	}
	// What nobody has read of is no anchor: its predecessors may be unread too.
	anchor := absent
	for i, e := range c.candidates {
		switch e.kind {
		case open, done:
			anchor = i
		case found:
			if c.lost[e.lost].Offset > 0 {
				anchor = i
			}
		case twin:
			if f := c.twinOf(e.head, s.opened(e.id)); f != c.kept && !f.unsure() || !c.intact(f) {
				anchor = i
			}
		}
	}
	copied := c.kept != nil || c.current != nil && slices.ContainsFunc(c.lost, func(p lostFile) bool { return p.id() == c.live })
	for i := range c.candidates {
		e := &c.candidates[i]
		f := s.opened(e.id)
		switch {
		case e.kind == found && f != nil: // opened before there was anything in it
			c.proved = append(c.proved, proof{f, c.lost[e.lost].Offset})
		case e.kind == found:
			p := c.lost[e.lost]
			if f = c.add(e, p.Offset); f != nil {
				f.copied = e.id != p.id() && c.current != nil && p.id() == c.live
				f.found = f.off == 0
			}
		case e.kind == unknown && f == nil && i > anchor && rotated:
			if f = c.add(e, 0); f != nil {
				f.found, f.copied = true, copied
			}
		case (e.kind == twin || e.kind == done) && f != nil:
			c.gone = append(c.gone, f)
		}
		if e.gone && !c.last {
			return false
		}
	}
	now, _ := idAt(s.path)
	return c.last || now == c.live && slices.Equal(namesOf(siblings(s.path, c.all)), c.names)
}

func (c *scan) add(e *candidate, off int64) *file {
	f := c.r.openAt(c.s, &e.sibling, off)
	if f != nil {
		c.opened = append(c.opened, f)
		c.added = append(c.added, f)
	}
	return f
}

// resumeCurrent sets where the pathname's file, just opened, is read on from:
// it may be one of the lost, a known one that was renamed back, or a copy that
// was put in an old one's place.
func (c *scan) resumeCurrent() {
	f := c.current
	inFolder := func(p Position) bool {
		return slices.ContainsFunc(c.names, func(n name) bool { return n.id == p.id() })
	}
	for j, p := range slices.Backward(c.lost) {
		if c.where[j] == isCurrent || c.where[j] == absent && p.Offset > 0 && f.continues(p.Position) && !inFolder(p.Position) {
			c.where[j] = isCurrent
			f.resumeAt(p.Offset)
			return
		}
	}
	if c.reread != absent {
		f.resumeAt(c.s.known[c.reread].Offset)
		return
	}
	if old := c.s.current(); old != nil {
		if old.stat(); old.links == 0 && sameBefore(old, f, old.off) {
			f.resumeAt(old.off)
		}
	}
}

func (f *file) resumeAt(off int64) {
	if f.off = off; off > 0 {
		f.setStart(f.head())
	}
}

// sameBefore says whether both files have the same text ahead of off, as far
// as their starts and the last bytes tell.
func sameBefore(a, b *file, off int64) bool {
	if off == 0 || a.packed != nil || !bytes.HasPrefix(b.head(), a.start) {
		return false
	}
	size := min(off, 4096)
	x, y := make([]byte, size), make([]byte, size)
	n, err := pread(a.fd, x, off-size)
	m, err2 := pread(b.fd, y, off-size)
	return err == nil && err2 == nil && n == int(size) && m == n && bytes.Equal(x, y)
}

// commit makes what was found the stream's.
func (c *scan) commit() {
	s, r := c.s, c.r
	for _, f := range c.gone {
		r.forget(f)
		r.closeFile(f)
	}
	for _, p := range c.proved {
		p.f.off, p.f.found = p.off, false
	}
	s.files = slices.DeleteFunc(s.files, func(f *file) bool { return f == c.current })
	s.files = append(s.files, c.added...)
	if c.current != nil {
		s.files = append(s.files, c.current)
		if c.reread != absent {
			s.known = slices.Delete(slices.Clone(s.known), c.reread, c.reread+1)
		}
		if s.problem != "" {
			r.opt.Log.Info("log file can be read again", "file", s.path)
			s.problem = ""
		}
	}
	for _, e := range c.candidates {
		if f := s.opened(e.id); f != nil && f.found && slices.Contains(c.added, f) {
			r.opt.Log.Info("reading a rotated log file from its start", "file", e.path)
		}
	}
	for j, p := range c.lost {
		at := c.where[j]
		log := r.opt.Log.With("file", s.path, "read_to", p.Offset)
		switch {
		case p.truncated != nil && at >= 0:
			log.Info("log file was truncated: reading on in its copy", "copy", c.candidates[at].path)
		case p.truncated != nil && at == absent:
			log.Info("log file was truncated: reading from its start")
			p.truncated.skipping = p.torn
		case at == absent && p.Offset > 0 && j == len(c.lost)-1:
			log.Warn("log file was deleted or truncated while nobody was reading: its last lines may be lost")
		}
		if at == absent && p.Offset > 0 {
			s.remember(p.Position)
		}
	}
	r.setLive(s, c.current != nil)
}

// current returns the file that the pathname led to when last looked at.
func (s *stream) current() *file {
	if !s.live {
		return nil
	}
	return s.files[len(s.files)-1]
}

// heads are the first bytes of all open files, oldest first.
func (s *stream) heads() [][]byte {
	heads := make([][]byte, len(s.files))
	for i, f := range s.files {
		heads[i] = f.head()
	}
	return heads
}

// opened returns the open file of that inode.
func (s *stream) opened(id fileID) *file {
	for _, f := range s.files {
		if f.id == id {
			return f
		}
	}
	return nil
}

// remember keeps the position of a file that is done with.
func (s *stream) remember(p Position) {
	p.Done, p.Older = true, nil
	s.known = append(s.known, p)
	s.known = slices.Clone(s.known[max(0, len(s.known)-maxKnown):])
	s.older = nil
}
