package matcher

// cursor reads the parts of a date off a line, left to right. A method that
// says no leaves the position undefined.
type cursor struct {
	b []byte
	i int
	civil
}

func (c *cursor) peek() byte {
	if c.i < len(c.b) {
		return c.b[c.i]
	}
	return 0
}

func (c *cursor) lit(x byte) bool {
	if c.i < len(c.b) && c.b[c.i] == x {
		c.i++
		return true
	}
	return false
}

// one reads one of two bytes.
func (c *cursor) one(x, y byte) bool { return c.lit(x) || c.lit(y) }

// num reads one or two digits.
func (c *cursor) num(v *int, min, max int) bool {
	if c.i >= len(c.b) || !isDigit(c.b[c.i]) {
		return false
	}
	n := int(c.b[c.i] - '0')
	c.i++
	if c.i < len(c.b) && isDigit(c.b[c.i]) {
		n = n*10 + int(c.b[c.i]-'0')
		c.i++
	}
	*v = n
	return min <= n && n <= max
}

// num2 reads exactly two digits.
func (c *cursor) num2(v *int, min, max int) bool {
	if c.i+2 > len(c.b) || !isDigit(c.b[c.i]) || !isDigit(c.b[c.i+1]) {
		return false
	}
	*v = int(c.b[c.i]-'0')*10 + int(c.b[c.i+1]-'0')
	c.i += 2
	return min <= *v && *v <= max
}

func (c *cursor) monthNum() bool { return c.num(&c.month, 1, 12) }

// dayNum reads a day, padded with nothing, a zero or a blank.
func (c *cursor) dayNum() bool {
	if c.lit(' ') && !(c.i+1 >= len(c.b) || !isDigit(c.b[c.i+1])) {
		return false // a padded day has one digit
	}
	return c.num(&c.day, 1, 31)
}

// year4 reads a year of this century. Older ones aren't dates of log lines,
// and taking any four digits would find dates where there are none.
func (c *cursor) year4() bool {
	var century int
	if !c.num2(&century, 20, 20) || !c.num2(&c.year, 0, 99) {
		return false
	}
	c.year += 2000
	return true
}

func (c *cursor) year2() bool {
	ok := c.num2(&c.year, 0, 99)
	c.year += 2000
	return ok
}

// hms reads hours, minutes and seconds. A leap second counts on.
func (c *cursor) hms() bool {
	return c.num(&c.hour, 0, 23) && c.lit(':') &&
		c.num(&c.min, 0, 59) && c.lit(':') && c.num(&c.sec, 0, 61)
}

// khms is hms with an hour that a blank may pad.
func (c *cursor) khms() bool {
	c.lit(' ')
	return c.hms()
}

// blanks reads one or two blanks.
func (c *cursor) blanks() bool {
	ok := c.lit(' ')
	c.lit(' ')
	return ok
}

// fraction reads what may follow the seconds: up to six digits behind a
// point (or, if comma, a comma).
func (c *cursor) fraction(comma bool) bool {
	if !(c.lit('.') || comma && c.lit(',')) {
		return false
	}
	from, n := c.i, 0
	for c.i < len(c.b) && isDigit(c.b[c.i]) && c.i < from+6 {
		n = n*10 + int(c.b[c.i]-'0')
		c.i++
	}
	for k := c.i - from; k < 9; k++ {
		n *= 10
	}
	c.nsec = n
	return c.i > from
}

// zone reads Z, UTC, GMT or an offset with hours and maybe minutes.
func (c *cursor) zone() bool {
	rest := c.b[c.i:]
	switch {
	case len(rest) >= 3 && (string(rest[:3]) == "UTC" || string(rest[:3]) == "GMT"):
		c.i += 3
	case len(rest) >= 1 && rest[0] == 'Z':
		c.i++
	default:
		return c.zoneOffset()
	}
	c.zoned, c.offset = true, 0
	return true
}

func (c *cursor) zoneOffset() bool {
	minus := c.peek() == '-'
	if !c.one('+', '-') {
		return false
	}
	var h, m int
	if !c.num2(&h, 0, 19) {
		return false
	}
	at := c.i
	c.lit(':')
	if !c.num2(&m, 0, 99) {
		c.i, m = at, 0
	}
	c.zoned, c.offset = true, h*3600+m*60
	if minus {
		c.offset = -c.offset
	}
	return true
}

// name3 packs three letters, folded, or says 0.
func (c *cursor) name3() uint32 {
	if c.i+3 > len(c.b) {
		return 0
	}
	p := c.b[c.i : c.i+3]
	return pack3(p[0]|0x20, p[1]|0x20, p[2]|0x20)
}

func pack3(a, b, c byte) uint32 { return uint32(a)<<16 | uint32(b)<<8 | uint32(c) }

func (c *cursor) monthName() bool {
	switch c.name3() {
	case 'j'<<16 | 'a'<<8 | 'n':
		c.month = 1
	case 'f'<<16 | 'e'<<8 | 'b':
		c.month = 2
	case 'm'<<16 | 'a'<<8 | 'r':
		c.month = 3
	case 'a'<<16 | 'p'<<8 | 'r':
		c.month = 4
	case 'm'<<16 | 'a'<<8 | 'y':
		c.month = 5
	case 'j'<<16 | 'u'<<8 | 'n':
		c.month = 6
	case 'j'<<16 | 'u'<<8 | 'l':
		c.month = 7
	case 'a'<<16 | 'u'<<8 | 'g':
		c.month = 8
	case 's'<<16 | 'e'<<8 | 'p':
		c.month = 9
	case 'o'<<16 | 'c'<<8 | 't':
		c.month = 10
	case 'n'<<16 | 'o'<<8 | 'v':
		c.month = 11
	case 'd'<<16 | 'e'<<8 | 'c':
		c.month = 12
	default:
		return false
	}
	c.i += 3
	return true
}

func (c *cursor) dayName() bool {
	switch c.name3() {
	case 'm'<<16 | 'o'<<8 | 'n', 't'<<16 | 'u'<<8 | 'e', 'w'<<16 | 'e'<<8 | 'd', 't'<<16 | 'h'<<8 | 'u',
		'f'<<16 | 'r'<<8 | 'i', 's'<<16 | 'a'<<8 | 't', 's'<<16 | 'u'<<8 | 'n':
		c.i += 3
		return true
	}
	return false
}

// end says whether a date may end here: not within a word or number.
func (c *cursor) end() bool {
	return c.i >= len(c.b) || !inWord(c.b[c.i]) || !inWord(c.b[c.i-1])
}

// tail reads the optional parts behind the seconds: a fraction, and what
// more reads. It takes as much as still ends well, in the order of preference
// that a greedy regex has.
func (c *cursor) tail(comma bool, more func(*cursor) bool) bool {
	if c.i >= len(c.b) {
		return true
	}
	bare, civil := c.i, c.civil
	for _, fraction := range [2]bool{true, false} {
		if fraction && !c.fraction(comma) {
			c.i, c.civil = bare, civil
			continue
		}
		at, nsec := c.i, c.nsec
		if more != nil && more(c) && c.end() {
			return true
		}
		c.i, c.civil, c.nsec = at, civil, nsec
		if c.end() {
			return true
		}
		c.i, c.civil = bare, civil
	}
	return false
}

func blanksZone(c *cursor) bool {
	for c.i < len(c.b) && (c.b[c.i] == ' ' || c.b[c.i] >= '\t' && c.b[c.i] <= '\r') {
		c.i++
	}
	return c.zone()
}

func blankZone(c *cursor) bool { return c.lit(' ') && c.zone() }

func blankYear(c *cursor) bool { return c.lit(' ') && c.year4() }

// The default formats, in fail2ban's order.

func (c *cursor) iso() bool {
	if !c.year4() {
		return false
	}
	sep := c.peek()
	return c.oneOf3('-', '/', '.') && c.monthNum() && c.lit(sep) && c.dayNum() &&
		(c.lit('T') || c.blanks()) && c.hms() && c.tail(true, blanksZone)
}

func (c *cursor) oneOf3(x, y, z byte) bool { return c.lit(x) || c.lit(y) || c.lit(z) }

func (c *cursor) weekday() bool {
	at := c.i
	if c.dayName() && c.lit(' ') {
		return true
	}
	c.i = at
	return true
}

func (c *cursor) asctime() bool {
	return c.weekday() && c.monthName() && c.lit(' ') && c.dayNum() && c.lit(' ') &&
		c.khms() && c.tail(false, blankYear)
}

func (c *cursor) asctimeYear() bool {
	return c.weekday() && c.monthName() && c.lit(' ') && c.dayNum() && c.lit(' ') &&
		c.year4() && c.lit(' ') && c.khms() && c.tail(false, nil)
}

func (c *cursor) dayMonthYear() bool {
	if !c.dayNum() {
		return false
	}
	sep := c.peek()
	if !c.one('-', '/') || !c.monthNum() || !c.lit(sep) {
		return false
	}
	at := c.i
	if !(c.year4() && c.lit(' ')) {
		c.i = at
		if !c.year2() || !c.lit(' ') {
			return false
		}
	}
	return c.khms() && c.end()
}

func (c *cursor) apache() bool {
	if !c.dayNum() {
		return false
	}
	sep := c.peek()
	if !c.one('-', '/') || !c.monthName() || !c.lit(sep) || !c.year4() {
		return false
	}
	c.one(' ', ':')
	return c.hms() && c.tail(false, blankZone)
}

func (c *cursor) cpanel() bool {
	return c.monthNum() && c.lit('/') && c.dayNum() && c.lit('/') && c.year4() && c.lit(':') &&
		c.hms() && c.end()
}

func (c *cursor) monthDayYear() bool {
	return c.monthNum() && c.lit('-') && c.dayNum() && c.lit('-') && c.year4() && c.lit(' ') &&
		c.khms() && c.tail(false, nil)
}

// epochSeconds reads ten or eleven digits and maybe a fraction of three to
// six.
func (c *cursor) epochSeconds() bool {
	from := c.i
	for c.i < len(c.b) && isDigit(c.b[c.i]) {
		c.epoch = c.epoch*10 + int64(c.b[c.i]-'0')
		if c.i++; c.i > from+11 {
			return false
		}
	}
	if c.i < from+10 || !c.end() {
		return false
	}
	c.absolute = true
	at := c.i
	if !c.fraction(false) || c.i < at+4 || !c.end() {
		c.i, c.nsec = at, 0
	}
	return true
}

func (c *cursor) timeOnly() bool { return c.hms() && c.end() }

func (c *cursor) angle() bool {
	return c.lit('<') && c.monthNum() && c.lit('/') && c.dayNum() && c.lit('/') && c.year2() &&
		c.lit('@') && c.hms() && c.lit('>')
}

func (c *cursor) mysql() bool {
	return c.year2() && c.num2(&c.month, 1, 12) && c.num2(&c.day, 1, 31) && c.blanks() && c.hms() && c.end()
}

func (c *cursor) tomcat() bool {
	if !c.monthName() || !c.lit(' ') || !c.dayNum() || !c.lit(',') || !c.lit(' ') || !c.year4() || !c.lit(' ') ||
		!c.num(&c.hour, 1, 12) || !c.lit(':') || !c.num(&c.min, 0, 59) || !c.lit(':') || !c.num(&c.sec, 0, 61) ||
		!c.lit(' ') {
		return false
	}
	return c.ampm() && c.end()
}

func (c *cursor) ampm() bool {
	half := c.peek() | 0x20
	c.i++
	if half != 'a' && half != 'p' || c.peek()|0x20 != 'm' {
		return false
	}
	c.i++
	c.hour %= 12
	if half == 'p' {
		c.hour += 12
	}
	return true
}

func (c *cursor) assp() bool {
	return c.monthName() && c.lit('-') && c.dayNum() && c.lit('-') && c.year2() && c.lit(' ') && c.khms() && c.end()
}

func (c *cursor) compact() bool {
	return c.year4() && c.num2(&c.month, 1, 12) && c.num2(&c.day, 1, 31) && (c.lit('T') || c.blanks()) &&
		c.num2(&c.hour, 0, 23) && c.num2(&c.min, 0, 59) && c.num2(&c.sec, 0, 61) && c.tail(true, blanksZone)
}

func (c *cursor) namedZone() bool {
	from := c.i
	for c.i < len(c.b) && isAlpha(c.b[c.i]) {
		if c.i++; c.i > from+5 {
			return false
		}
	}
	if n := c.i - from; n != 1 && n < 3 {
		return false
	}
	off, ok := zoneOffset(asString(c.b[from:c.i]))
	return ok && c.lit(' ') && c.zonedAsctime(off)
}

func (c *cursor) offsetZone() bool {
	return c.zone() && c.lit(' ') && c.zonedAsctime(c.offset)
}

// zonedAsctime is asctime with the zone that stood in front.
func (c *cursor) zonedAsctime(offset int) bool {
	ok := c.asctime()
	c.zoned, c.offset = true, offset
	return ok
}

// tai64n reads an external TAI64N label; its seconds are taken as UTC's, as
// fail2ban does.
func (c *cursor) tai64n() bool {
	if !c.lit('@') || c.i+24 > len(c.b) {
		return false
	}
	for k := range 24 {
		x := c.b[c.i+k]
		switch {
		case isDigit(x):
			x -= '0'
		case 'a' <= x && x <= 'f':
			x -= 'a' - 10
		default:
			return false
		}
		if k >= 1 && k < 16 {
			c.epoch = c.epoch<<4 | int64(x)
		}
	}
	c.i += 24
	c.absolute = true
	return c.end()
}
