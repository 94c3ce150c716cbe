package matcher

import (
	"bytes"
	"math/bits"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"xdpban/matcher/regex"
)

// Set matches the lines of one stream (a file, or one selection of the
// journal) against the filters that read it, in one pass. It keeps what
// must be remembered between lines: sessions, the last date, which format it
// had. It is for one goroutine.
type Set struct {
	filters []setFilter
	views   []view
	owner   []int // filter by pattern number
	machine regex.Machine
	stats   Stats  // but Missed
	heeded  uint64 // lines that aren't missed

	scanners []lookout
	journal  bool // see SetOptions
	// everyLine: some pattern has no literal to search for, or spans lines.
	everyLine bool
	always    []uint64 // what planes hold before a line is looked at
	planes    []uint64 // what the line holds of the patterns' clauses

	block   []byte   // the block at hand
	start   int      // where the line at hand starts in it
	cand    []uint64 // patterns to try on the line at hand
	line    uint64   // its number
	arrival time.Time
	skipped bool   // a pattern exceeded its budget on it
	scratch []byte // for a line that can't be used where it stands

	caps, prefCaps, ignoreCaps []int
	content                    []byte // for a prefregex's content
	failure                    Failure
}

// lookout is a scanner and the hits it found in the block that are still
// ahead.
type lookout struct {
	*scanner
	hits []hit
	all  []hit // the memory of hits
}

// setFilter is a filter in a Set, with its state.
type setFilter struct {
	*Compiled
	// Its patterns' numbers in the Set; if it is multiline, one more stands
	// for its wish to see every line.
	first, end int
	view       int
	sessions   sessions
	lines      lineBuffer
}

// view is how some filters see the line: the message behind the header, or
// the line without its date. It is worked out once for all of them.
type view struct {
	header bool // see the message only
	latin1 bool
	dates  string // the datepattern
	loc    *time.Location

	head  header
	clock clock     // of the header's date
	det   *detector // of a line without one

	line  uint64 // the line it shows
	ok    bool   // it has a header, if it needs one
	text  []byte // what patterns see; ends with "\n"
	found found
	timed bool   // found.time is worked out
	seen  int    // what det knows of the block
	buf   []byte // for text, if it isn't a part of the line
	utf8  []byte // the line, converted
}

// SetOptions are the facts about a stream that lines alone don't tell.
type SetOptions struct {
	// Location is the zone of dates that name none; nil: time.Local.
	Location *time.Location
	// Journal says that the lines are journal entries as package source
	// writes them: the entry's time in RFC 3339 and a blank, then what syslog
	// would show. The time is the entry's own, so no filter's datepattern
	// applies, and patterns see what follows the blank.
	Journal bool
}

// NewSet makes a Set of filters; Failure.Filter indexes them.
func NewSet(o SetOptions, filters ...*Compiled) *Set {
	s := &Set{filters: make([]setFilter, len(filters)), journal: o.Journal}
	total := 0
	for _, c := range filters {
		c.ready()
		total += len(c.fail) + 1
	}
	n := (total + 63) / 64
	s.cand = make([]uint64, n)
	s.always, s.planes = make([]uint64, planes*n), make([]uint64, planes*n)
	needs := map[string][]mark{}
	always := func(plane, bit int) { s.always[plane*n+bit/64] |= 1 << (bit % 64) }
	for i, c := range filters {
		f := &s.filters[i]
		f.Compiled, f.first = c, len(s.owner)
		f.view = s.viewFor(c, o.Location)
		cut := c.cutting()
		if o.Journal && cut == cutAnywhere {
			cut = cutTop // the entry's own time
		}
		for k := range c.fail {
			bit := len(s.owner)
			s.owner = append(s.owner, i)
			clauses := c.clauses(k, cut)
			if len(clauses) == 0 {
				s.everyLine = true
			}
			for plane := range planes {
				if plane >= len(clauses) {
					always(plane, bit)
					continue
				}
				for _, w := range clauses[plane] {
					needs[w] = append(needs[w], mark{int32(plane*n + bit/64), 1 << (bit % 64)})
				}
			}
		}
		if c.multiline() {
			bit := len(s.owner)
			s.owner = append(s.owner, i)
			for plane := range planes {
				always(plane, bit)
			}
			s.everyLine = true
			f.lines.max = c.Filter.MaxLines
		}
		f.end = len(s.owner)
	}
	var long, short []word
	for w, marks := range needs {
		x := word{text: []byte(w), marks: joinMarks(marks)}
		if len(w) >= longWindow {
			long = append(long, x)
		} else {
			short = append(short, x)
		}
	}
	for _, ws := range [][]word{long, short} {
		if len(ws) > 0 {
			s.scanners = append(s.scanners, lookout{scanner: newScanner(ws)})
		}
	}
	return s
}

// joinMarks makes one mark of those that are in one word of the planes.
func joinMarks(marks []mark) []mark {
	slices.SortFunc(marks, func(a, b mark) int { return int(a.word - b.word) })
	out := marks[:1]
	for _, m := range marks[1:] {
		if l := &out[len(out)-1]; l.word == m.word {
			l.bits |= m.bits
		} else {
			out = append(out, m)
		}
	}
	return out
}

// viewFor finds or makes the view of a filter.
func (s *Set) viewFor(c *Compiled, loc *time.Location) int {
	if c.Filter.Location != nil {
		loc = c.Filter.Location
	}
	if loc == nil {
		loc = time.Local
	}
	v := view{header: len(c.Filter.Programs) > 0, latin1: c.latin1, dates: strings.Join(c.Filter.DatePattern, "\n"), loc: loc}
	dates := c.dates
	if s.journal {
		v.dates, dates = "", []dateStage{{defaults: true, topOnly: true}}
	}
	for i := range s.views {
		if o := &s.views[i]; o.header == v.header && o.latin1 == v.latin1 && o.dates == v.dates && o.loc == v.loc {
			return i
		}
	}
	v.clock.loc = loc
	if !v.header {
		v.det = newDetector(dates, loc)
	}
	s.views = append(s.views, v)
	return len(s.views) - 1
}

// Stats counts what Scan has seen so far.
func (s *Set) Stats() Stats {
	stats := s.stats
	stats.Missed = stats.Lines - s.heeded
	return stats
}

// Scan matches a block of whole lines, each ended by "\n". arrival is when
// they were read: the time of lines without a date, and the reference for
// dates without a year. emit is called in the order of lines, and for one
// line in the order of filters.
func (s *Set) Scan(block []byte, arrival time.Time, emit func(*Failure)) {
	s.arrival = arrival
	if n := len(block); n > 0 && block[n-1] != '\n' {
		whole := bytes.LastIndexByte(block, '\n') + 1
		s.Scan(block[:whole], arrival, emit)
		s.scratch = append(append(s.scratch[:0], block[whole:]...), '\n')
		s.scan(s.scratch, emit)
		return
	}
	for len(block) > maxBlock {
		n := bytes.LastIndexByte(block[:maxBlock], '\n') + 1
		if n == 0 {
			n = maxBlock + bytes.IndexByte(block[maxBlock:], '\n') + 1
		}
		s.scan(block[:n], emit)
		block = block[n:]
	}
	s.scan(block, emit)
}

// maxBlock is how many bytes are searched before what was found is used.
const maxBlock = 256 << 10

func (s *Set) scan(block []byte, emit func(*Failure)) {
	if len(block) == 0 {
		return
	}
	s.stats.Lines += uint64(bytes.Count(block, newline))
	s.block = block
	for i := range s.views {
		s.views[i].seen = 0
	}
	for i := range s.scanners {
		l := &s.scanners[i]
		l.all = l.find(block, l.all[:0])
		l.hits = l.all
	}
	for pos := 0; pos < len(block); {
		start := pos
		if !s.everyLine {
			hit := -1
			for i := range s.scanners {
				if h := s.scanners[i].hits; len(h) > 0 && (hit < 0 || int(h[0].end) < hit) {
					hit = int(h[0].end)
				}
			}
			if hit < 0 {
				break
			}
			start = pos + bytes.LastIndexByte(block[pos:hit], '\n') + 1
			pos = hit
		}
		end := pos + bytes.IndexByte(block[pos:], '\n') + 1
		copy(s.planes, s.always)
		for i := range s.scanners {
			l := &s.scanners[i]
			for len(l.hits) > 0 && int(l.hits[0].end) < end {
				h := l.hits[0]
				for _, n := range l.heads[h.head].words {
					if l.stands(n, block, int(h.end)) {
						for _, m := range l.words[n].marks {
							s.planes[m.word] |= m.bits
						}
					}
				}
				l.hits = l.hits[1:]
			}
		}
		n := len(s.cand)
		some := uint64(0)
		for k := range s.cand {
			s.cand[k] = s.planes[k] & s.planes[n+k] & s.planes[2*n+k]
			some |= s.cand[k]
		}
		if some != 0 {
			s.start = start
			s.match(block[start:end], emit)
		}
		pos = end
	}
	for i := range s.views {
		if v := &s.views[i]; v.det != nil {
			s.lookBack(v, len(block), 8)
		}
	}
}

var newline = []byte("\n")

// match tries the candidates on one line, which ends with "\n".
func (s *Set) match(raw []byte, emit func(*Failure)) {
	raw, ok := s.begin(raw)
	if !ok {
		return
	}
	ignored, heeded := false, false
	for k := 0; k < len(s.cand); {
		if s.cand[k] == 0 {
			k++
			continue
		}
		n := s.owner[k*64+bits.TrailingZeros64(s.cand[k])]
		v := s.try(n, raw)
		ignored = ignored || v.outcome == Ignored
		heeded = heeded || v.outcome != Missed && v.outcome != NotRead
		if v.outcome == Matched {
			emit(&s.failure)
		}
		// Go on behind the filter's patterns.
		next := s.filters[n].end
		for ; k < next/64; k++ {
			s.cand[k] = 0
		}
		if k < len(s.cand) {
			s.cand[k] &^= 1<<(next%64) - 1
		}
	}
	s.finish(ignored, heeded)
}

// begin starts a new line, and returns it as the filters are to see it; no
// if they aren't.
func (s *Set) begin(raw []byte) ([]byte, bool) {
	if len(raw) > MaxLine {
		s.stats.TooLong++
		s.heeded++
		return nil, false
	}
	s.line++
	s.skipped = false
	if n := len(raw); n > 1 && raw[n-2] == '\r' {
		s.scratch = append(append(s.scratch[:0], bytes.TrimRight(raw, "\r\n")...), '\n')
		raw = s.scratch
	}
	return raw, true
}

// finish counts what came of the line.
func (s *Set) finish(ignored, heeded bool) {
	if heeded {
		s.heeded++
	}
	if ignored {
		s.stats.Ignored++
	}
	if s.skipped {
		s.stats.Skipped++
	}
}

// show works out the view of the line at hand, unless it shows it already.
// It says no if the line has no header and the view wants one.
func (s *Set) show(v *view, raw []byte) bool {
	if v.line == s.line {
		return v.ok
	}
	v.line, v.ok, v.timed = s.line, true, false
	if v.latin1 {
		raw = v.decode(raw)
	}
	body := raw[:len(raw)-1]
	if v.header {
		if v.ok = v.head.parse(body); v.ok {
			v.text = raw[v.head.message:]
		}
		return v.ok
	}
	v.found = v.det.find(&s.machine, body, s.arrival)
	v.timed = v.found.dated
	switch f := &v.found; {
	case f.start == f.end:
		v.text = raw
	case f.start == 0:
		v.text = raw[f.end:]
		if s.journal && v.text[0] == ' ' {
			v.text = v.text[1:]
		}
	default:
		v.buf = append(append(v.buf[:0], raw[:f.start]...), raw[f.end:]...)
		v.text = v.buf
	}
	return true
}

// when is the time of the line that v shows.
func (s *Set) when(v *view) time.Time {
	if v.timed {
		return v.found.time
	}
	v.timed = true
	f := &v.found
	if v.header {
		v.clock.set(s.arrival)
		if f.time, f.dated = v.clock.time(&v.head.civil); !f.dated {
			f.time = s.arrival
		}
		return f.time
	}
	s.lookBack(v, s.start, 64)
	f.time = v.det.undated(s.arrival)
	return f.time
}

// Dated tells the date that a line bears, as the filters read it; no: none.
// It is not a line of Scan's: nothing is matched or counted.
func (s *Set) Dated(line []byte, arrival time.Time) (at time.Time, ok bool) {
	if len(line) > MaxLine {
		return time.Time{}, false
	}
	s.arrival, s.block, s.start = arrival, nil, 0
	line, _ = s.begin(line)
	for i := range s.views {
		v := &s.views[i]
		v.seen = 0
		if !s.show(v, line) {
			continue
		}
		if at := s.when(v); v.found.dated {
			return at, true
		}
	}
	return time.Time{}, false
}

// lookBack tells v's detector the date of the last dated line before an
// offset of the block, which no pattern had reason to look at until now. It
// looks at so many lines at most: few without a date stand in a row.
func (s *Set) lookBack(v *view, to, most int) {
	end := to
	for n := 0; n < most && end > v.seen; n++ {
		start := bytes.LastIndexByte(s.block[:end-1], '\n') + 1
		if end-start <= MaxLine && v.det.note(&s.machine, s.block[start:end-1], s.arrival) {
			break
		}
		end = start
	}
	v.seen = to
}

// decode converts a Latin-1 line to UTF-8.
func (v *view) decode(raw []byte) []byte {
	v.utf8 = v.utf8[:0]
	for _, b := range raw {
		v.utf8 = utf8.AppendRune(v.utf8, rune(b))
	}
	return v.utf8
}
