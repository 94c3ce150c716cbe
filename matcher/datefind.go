package matcher

import (
	"time"

	"xdpban/matcher/regex"
)

// detector finds the date of the lines of one stream. It remembers which
// format matched last, since some lines fit several.
type detector struct {
	stages  []dateStage
	formats []defaultFormat
	clock   clock
	cursor  cursor // here, so that it needn't be allocated for each line
	caps    []int

	last      int // format or template that matched last, -1: none
	lastTop   bool
	lastStart int
	lastEnd   int

	// lastTime is the date of the last dated line.
	lastTime time.Time
}

// found is a date in a line.
type found struct {
	start, end int // what is cut out; equal: nothing
	template   int // index for name; -1: no date found
	time       time.Time
	dated      bool // time is the line's own
}

func newDetector(stages []dateStage, loc *time.Location) *detector {
	return &detector{stages: stages, formats: defaultFormats(), clock: clock{loc: loc}, last: -1}
}

// templates are numbered across the stages; the defaults of a stage have
// their numbers from stage*stageSize on.
const stageSize = 32

// name is what people call the template.
func (d *detector) name(template int) string {
	if template < 0 {
		return ""
	}
	if s := d.stages[template/stageSize]; s.template != nil {
		return s.template.name
	}
	return d.formats[template%stageSize].name
}

// find looks for the date of a line. What the date doesn't say comes from
// now. A line without a date has no time yet: see undated.
func (d *detector) find(m *regex.Machine, line []byte, now time.Time) found {
	d.clock.set(now)
	c := &d.cursor
	c.b = line
	start, end, id := d.locate(m, c)
	f := found{start: start, end: end, template: id}
	if id >= 0 && end > start {
		if f.time, f.dated = d.clock.time(&c.civil); f.dated {
			d.lastTime = f.time
		}
	}
	return f
}

// note takes the date of a line for the last date, if the line has one.
func (d *detector) note(m *regex.Machine, line []byte, now time.Time) bool {
	last, top, start, end := d.last, d.lastTop, d.lastStart, d.lastEnd
	dated := d.find(m, line, now).dated
	if !dated {
		d.last, d.lastTop, d.lastStart, d.lastEnd = last, top, start, end
	}
	return dated
}

// undated is the time of a line without a date: that of the last dated one,
// if that is at most a minute old, else now.
func (d *detector) undated(now time.Time) time.Time {
	if d.lastTime.After(now.Add(-time.Minute)) {
		return d.lastTime
	}
	return now
}

// locate finds where the date stands, and leaves its parts in c.
func (d *detector) locate(m *regex.Machine, c *cursor) (start, end, id int) {
	// First where the last line had it.
	if d.last >= 0 {
		st := &d.stages[d.last/stageSize]
		switch {
		case st.template != nil:
			if s, ok := d.match(m, st.template, c); ok && (st.template.lineStart || len(d.stages) == 1 || s == d.lastStart && c.i == d.lastEnd) {
				return d.hit(s, c.i, d.last, st.template.lineStart)
			}
		case d.lastTop:
			if s, ok := d.top(c, d.last%stageSize); ok {
				return d.hit(s, c.i, d.last, true)
			}
		default:
			if d.at(c, d.last%stageSize, d.lastStart) && c.i == d.lastEnd {
				return d.hit(d.lastStart, c.i, d.last, false)
			}
		}
	}
	best := -1
	var bestCursor cursor
	for i := range d.stages {
		st := &d.stages[i]
		if st.template != nil {
			s, ok := d.match(m, st.template, c)
			if !ok {
				continue
			}
			if st.template.lineStart || s <= 1 {
				return d.hit(s, c.i, i*stageSize, st.template.lineStart)
			}
			if best < 0 || s < best || s == best && i*stageSize == d.last {
				best, bestCursor, id = s, *c, i*stageSize
			}
			continue
		}
		for n := range d.formats {
			if s, ok := d.top(c, n); ok {
				return d.hit(s, c.i, i*stageSize+n, true)
			}
		}
		if st.topOnly {
			continue
		}
		prefer := -1
		if d.last/stageSize == i {
			prefer = d.last % stageSize
		}
		if s, n := d.anywhere(c, prefer, best); n >= 0 {
			best, bestCursor, id = s, *c, i*stageSize+n
		}
	}
	if best < 0 {
		return 0, 0, -1
	}
	*c = bestCursor
	return d.hit(best, c.i, id, false)
}

func (d *detector) hit(start, end, id int, top bool) (int, int, int) {
	d.last, d.lastTop, d.lastStart, d.lastEnd = id, top, start, end
	return start, end, id
}

// match runs a template of the filter's own on the whole line.
func (d *detector) match(m *regex.Machine, t *dateTemplate, c *cursor) (start int, ok bool) {
	if t.re == nil {
		for s := range min(3, len(c.b)+1) {
			if s > 0 && inWord(c.b[s-1]) {
				break
			}
			if c.i, c.civil = s, (civil{}); t.parse(c) {
				return s, true
			}
		}
		return 0, false
	}
	caps, r := m.Match(t.re, c.b, d.caps)
	d.caps = caps
	if r != regex.Matched || caps[2*t.cut] < 0 {
		return 0, false
	}
	c.civil = civil{}
	start, c.i = caps[2*t.cut], caps[2*t.cut+1]
	if c.i > start && !t.read(c.b, caps, &d.clock, &c.civil) {
		return 0, false
	}
	return start, true
}

// top tries a default format at the start of the line, after at most two
// bytes that belong to no word.
func (d *detector) top(c *cursor, n int) (int, bool) {
	f := &d.formats[n]
	b := c.b
	lead := 0
	if !f.onlyTop {
		for lead < 2 && lead < len(b) && !inWord(b[lead]) {
			lead++
		}
	}
	for s := lead; s >= 0; s-- {
		if s >= len(b) || !canStart(n, b[s]) {
			continue
		}
		c.i, c.civil = s, civil{}
		if f.parse(c) {
			return s, true
		}
	}
	return 0, false
}

// canStart rules out most formats by the first byte.
func canStart(n int, x byte) bool {
	switch n {
	case fmtISO, fmtCompact:
		return x == '2'
	case fmtAsctime, fmtAsctimeYear, fmtTomcat, fmtNamedZone, fmtASSP:
		return isAlpha(x)
	case fmtDayMonthYear, fmtApache:
		return isDigit(x) || x == ' '
	case fmtOffsetZone:
		return x == '+' || x == '-' || x == 'Z' || x == 'U' || x == 'G'
	case fmtTAI64N:
		return x == '@'
	case fmtAngle:
		return x == '<'
	}
	return isDigit(x)
}

// at tries a default format at one place within the line.
func (d *detector) at(c *cursor, n, s int) bool {
	b := c.b
	if s >= len(b) || s > 0 && inWord(b[s]) && inWord(b[s-1]) {
		return false
	}
	if !canStart(n, b[s]) {
		return false
	}
	c.i, c.civil = s, civil{}
	if n == fmtEpoch {
		return s > 0 && c.auditEpoch()
	}
	return d.formats[n].parse(c)
}

// auditEpoch is an epoch within a line: that of "audit(1700000000.123:45)".
// Ten digits elsewhere are anything but a date.
func (c *cursor) auditEpoch() bool {
	s := c.i
	if s < 6 || string(c.b[s-6:s]) != "audit(" || s > 6 && inWord(c.b[s-7]) || !c.epochSeconds() {
		return false
	}
	e := c.i
	if !c.lit(':') {
		return false
	}
	from := c.i
	for c.i < len(c.b) && isDigit(c.b[c.i]) {
		c.i++
	}
	ok := c.i > from && c.lit(')')
	c.i = e
	return ok
}

// anywhere finds the first place, left of limit if that isn't negative, where
// a default format fits, the preferred one before the others.
func (d *detector) anywhere(c *cursor, prefer, limit int) (start, format int) {
	b := c.b
	if limit < 0 || limit > len(b) {
		limit = len(b)
	}
	for s := 0; s < limit; s++ {
		x := b[s]
		var try []int8
		switch {
		case isDigit(x):
			e := s + 1
			for e < len(b) && isDigit(b[e]) {
				e++
			}
			if s > 0 && inWord(b[s-1]) {
				s = e - 1
				continue
			}
			try = digitFormats(e-s, byteAt(b, e))
			if try == nil {
				s = e - 1
				continue
			}
		case isAlpha(x):
			if s > 0 && inWord(b[s-1]) {
				continue
			}
			try = alphaFormats
		case x == ' ':
			if s+2 >= len(b) || b[s+2] != '/' && b[s+2] != '-' || !isDigit(b[s+1]) {
				continue
			}
			try = blankFormats
		case x == '+' || x == '-':
			try = offsetFormats
		case x == '@':
			try = taiFormats
		default:
			continue
		}
		if prefer >= 0 && d.at(c, prefer, s) {
			return s, prefer
		}
		for _, n := range try {
			if d.at(c, int(n), s) {
				return s, int(n)
			}
		}
	}
	return 0, -1
}

func byteAt(b []byte, i int) byte {
	if i < len(b) {
		return b[i]
	}
	return 0
}

var (
	alphaFormats   = []int8{fmtAsctime, fmtAsctimeYear, fmtTomcat, fmtNamedZone, fmtOffsetZone}
	blankFormats   = []int8{fmtDayMonthYear, fmtApache}
	offsetFormats  = []int8{fmtOffsetZone}
	taiFormats     = []int8{fmtTAI64N}
	isoFormats     = []int8{fmtISO}
	dayFormats     = []int8{fmtDayMonthYear, fmtApache, fmtCPanel, fmtMonthDayYear}
	mysqlFormats   = []int8{fmtMySQL}
	compactFormats = []int8{fmtCompact}
	epochFormats   = []int8{fmtEpoch}
)

// digitFormats are the formats that a run of digits with this byte behind it
// can start.
func digitFormats(run int, next byte) []int8 {
	switch {
	case run == 4 && (next == '-' || next == '/' || next == '.'):
		return isoFormats
	case run <= 2 && (next == '-' || next == '/'):
		return dayFormats
	case run == 6 && next == ' ':
		return mysqlFormats
	case run == 8 && (next == 'T' || next == ' '):
		return compactFormats
	case run == 10 || run == 11:
		return epochFormats
	}
	return nil
}
