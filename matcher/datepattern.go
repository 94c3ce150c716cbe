package matcher

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"xdpban/matcher/regex"
)

// dateTemplate is one date format. It has either a hand-written parser (the
// defaults) or a regex.
type dateTemplate struct {
	name  string
	parse func(*cursor) bool

	re        *regex.Regexp
	cut       int // the group that is cut out of the line
	fields    []dateField
	epoch     int  // the group with seconds since 1970
	long      bool // … or milli- or microseconds, by its length
	lineStart bool // found at the start of the line only
	atTop     bool // … and what is cut out starts there, or nothing is
}

type dateField struct {
	group int
	key   byte // strptime's letter
}

// defaultFormat is one of the formats that are tried when a filter names
// none. The order is fail2ban's: formats that one line could both fit are
// told apart by it.
type defaultFormat struct {
	name    string // strptime form: shown to people, and put in for {DATE}
	parse   func(*cursor) bool
	onlyTop bool // at the start of the line only, without the leeway of {^LN-BEG}
	second  bool // at the start of the line only, and after the others
}

func defaultFormats() []defaultFormat {
	const sep = `(?P<_sep>[-/])`
	const asc = `(?:%a )?%b %d %k:%M:%S(?:\.%f)?(?: %ExY)?`
	return []defaultFormat{
		fmtISO:          {name: `%ExY(?P<_sep>[-/.])%m(?P=_sep)%d(?:T|  ?)%H:%M:%S(?:[.,]%f)?(?:\s*%z)?`, parse: (*cursor).iso},
		fmtAsctime:      {name: asc, parse: (*cursor).asctime},
		fmtAsctimeYear:  {name: `(?:%a )?%b %d %ExY %k:%M:%S(?:\.%f)?`, parse: (*cursor).asctimeYear},
		fmtDayMonthYear: {name: `%d` + sep + `%m(?P=_sep)(?:%ExY|%Exy) %k:%M:%S`, parse: (*cursor).dayMonthYear},
		fmtApache:       {name: `%d` + sep + `%b(?P=_sep)%ExY[ :]?%H:%M:%S(?:\.%f)?(?: %z)?`, parse: (*cursor).apache},
		fmtCPanel:       {name: `%m/%d/%ExY:%H:%M:%S`, parse: (*cursor).cpanel},
		fmtMonthDayYear: {name: `%m-%d-%ExY %k:%M:%S(?:\.%f)?`, parse: (*cursor).monthDayYear},
		fmtEpoch:        {name: `EPOCH`, parse: (*cursor).epochSeconds},
		fmtMySQL:        {name: `%Exy%Exm%Exd  ?%H:%M:%S`, parse: (*cursor).mysql},
		fmtTomcat:       {name: `%b %d, %ExY %I:%M:%S %p`, parse: (*cursor).tomcat},
		fmtCompact:      {name: `%ExY%Exm%Exd(?:T|  ?)%ExH%ExM%ExS(?:[.,]%f)?(?:\s*%z)?`, parse: (*cursor).compact},
		fmtNamedZone:    {name: `(?:%Z )?` + asc, parse: (*cursor).namedZone},
		fmtOffsetZone:   {name: `(?:%z )?` + asc, parse: (*cursor).offsetZone},
		fmtTAI64N:       {name: `TAI64N`, parse: (*cursor).tai64n},
		fmtTimeOnly:     {name: `{^LN-BEG}%H:%M:%S`, parse: (*cursor).timeOnly, second: true},
		fmtAngle:        {name: `^<%m/%d/%Exy@%H:%M:%S>`, parse: (*cursor).angle, second: true, onlyTop: true},
		fmtASSP:         {name: `^%b-%d-%Exy %k:%M:%S`, parse: (*cursor).assp, second: true, onlyTop: true},
	}
}

const (
	fmtISO = iota
	fmtAsctime
	fmtAsctimeYear
	fmtDayMonthYear
	fmtApache
	fmtCPanel
	fmtMonthDayYear
	fmtEpoch
	fmtMySQL
	fmtTomcat
	fmtCompact
	fmtNamedZone
	fmtOffsetZone
	fmtTAI64N
	fmtTimeOnly
	fmtAngle
	fmtASSP
)

// parseDatePattern compiles the entries of a filter's datepattern. No entry
// at all means the default formats anywhere in the line.
func parseDatePattern(entries []string) ([]dateStage, error) {
	if len(entries) == 0 {
		return []dateStage{{defaults: true}}, nil
	}
	var stages []dateStage
	for _, e := range entries {
		e = strings.TrimSpace(e)
		up := e
		if !strings.Contains(e, "%") {
			up = strings.ToUpper(e)
		}
		switch {
		case e == "":
			continue
		case up == "{DEFAULT}":
			stages = append(stages, dateStage{defaults: true})
		case up == "{^LN-BEG}":
			stages = append(stages, dateStage{defaults: true, topOnly: true})
		case up == "{NONE}":
			t, err := newDateTemplate("{UNB}^()")
			if err != nil {
				return nil, err
			}
			t.name = e
			stages = append(stages, dateStage{template: t})
		case datePlaceRE.MatchString(e):
			for _, d := range defaultFormats() {
				p := datePlaceRE.ReplaceAllLiteralString(e, strings.TrimPrefix(d.name, "{^LN-BEG}"))
				if (d.name == "EPOCH" || d.name == "TAI64N") && !isNamedDate(p) {
					continue // not expressible within a regex
				}
				t, err := newDateTemplate(p)
				if err != nil {
					return nil, fmt.Errorf("datepattern %q: %w", e, err)
				}
				stages = append(stages, dateStage{template: t})
			}
		default:
			t, err := newDateTemplate(e)
			if err != nil {
				return nil, fmt.Errorf("datepattern %q: %w", e, err)
			}
			stages = append(stages, dateStage{template: t})
		}
	}
	return stages, nil
}

// dateStage is one entry of a datepattern: a template, or all the defaults.
type dateStage struct {
	template *dateTemplate
	defaults bool
	topOnly  bool // the defaults at the start of the line only
}

var (
	datePlaceRE  = regexp.MustCompile(`(?i)\{DATE\}`)
	epochPlaceRE = regexp.MustCompile(`(?i)\{L?EPOCH\}`)
	dateFieldRE  = regexp.MustCompile(`%(%|Ex[A-Za-z]|.)`)
	dateFlagsRE  = regexp.MustCompile(`\(\?[a-z]+\)`)
	alphaFieldRE = regexp.MustCompile(`(^|[^%])%[aAbBpc]`)
	// A pattern that brings its own boundary gets none added.
	ownStartRE = regexp.MustCompile(`^\(*(?:\(\?\w+\))?(?:\^|\(*\*\*|\((?:\?:)?\^)`)
	ownEndRE   = regexp.MustCompile(`(?:^|[^\\])(?:\$\)?|\\b|\\s|\*\*\)*)$`)
	lineStrtRE = regexp.MustCompile(`^(?:\(\?\w+\))?(?:\^|\((?:\?:)?\^(?:[^|]|$))`)
	noBoundRE  = regexp.MustCompile(`^\(*(?:\(\?\w+\))?\(*\*\*|\*\*\)*$`)
	wrapRE     = regexp.MustCompile(`^((?:\(\?\w+\))?\^?(?:\(\?\w+\))?)(.*?)(\$?)$`)
)

func isNamedDate(p string) bool {
	p = strings.TrimPrefix(strings.TrimPrefix(strings.ToUpper(p), "{^LN-BEG}"), "^")
	return p == "EPOCH" || p == "LEPOCH" || p == "TAI64N"
}

// newDateTemplate compiles one template: a regex with strptime's %-fields,
// or one of the names EPOCH, LEPOCH and TAI64N, each maybe behind {^LN-BEG},
// {UNB} or ^.
func newDateTemplate(pattern string) (*dateTemplate, error) {
	t := &dateTemplate{name: pattern, cut: 1}
	up := strings.ToUpper(pattern)
	top := strings.HasPrefix(up, "^") || strings.HasPrefix(up, "{^LN-BEG}")
	if isNamedDate(pattern) && (strings.HasSuffix(up, "TAI64N") || top && !strings.HasSuffix(up, "LEPOCH")) {
		t.lineStart, t.atTop, t.parse = top, top, (*cursor).epochSeconds
		if strings.HasSuffix(up, "TAI64N") {
			t.parse = (*cursor).tai64n
		}
		return t, nil
	}

	expr := pattern
	wordStart, wordEnd := true, true
	top = false
	if s, ok := strings.CutPrefix(expr, "{UNB}"); ok {
		expr, wordStart, wordEnd = s, false, false
	}
	if s, ok := strings.CutPrefix(expr, "{^LN-BEG}"); ok && wordStart {
		expr, top = s, true
	}
	switch {
	case isNamedDate(pattern): // anywhere, or LEPOCH
		e := epochExpr
		if t.long = strings.HasSuffix(up, "LEPOCH"); t.long {
			e = longEpochExpr
		}
		expr, t.epoch = `(`+e+`)`, 1
		if top = up[0] == '^' || up[0] == '{'; !top {
			// Digits elsewhere in the line are anything but a date.
			expr = `((?:^|(?<=^\[)|(?<=\baudit\()(?=[\d.]+:\d+\)))` + e + `)`
			wordStart = false
		}
	case epochPlaceRE.MatchString(expr):
		t.long = strings.Contains(strings.ToUpper(expr), "{LEPOCH}")
		e := epochExpr
		if t.long {
			e = longEpochExpr
		}
		expr = `(` + epochPlaceRE.ReplaceAllLiteralString(expr, `(`+e+`)`) + `)`
		t.epoch = 2
	default:
		var err error
		if expr, err = expandDateFields(expr); err != nil {
			return nil, err
		}
	}
	expr = strings.TrimSpace(expr)

	flags := ""
	if f := dateFlagsRE.FindStringIndex(expr); f != nil && strings.Contains(expr[f[0]:f[1]], "i") {
		flags, expr = "(?i)", expr[:f[0]]+expr[f[1]:]
	}
	if alphaFieldRE.MatchString(pattern) {
		flags = "(?i)"
	}
	wordStart = wordStart && !ownStartRE.MatchString(expr)
	wordEnd = wordEnd && !ownEndRE.MatchString(expr)
	if !hasPlainGroup(expr) {
		expr = wrapRE.ReplaceAllString(expr, "${1}(${2})${3}")
	}
	t.lineStart = lineStrtRE.MatchString(expr)
	expr = noBoundRE.ReplaceAllStringFunc(expr, func(s string) string { return strings.ReplaceAll(s, "**", "") })
	switch {
	case wordStart && top:
		expr = `^(?:\W{0,2})?` + expr
		t.lineStart = true
	case wordStart:
		expr = `(?=^|\b|\W)` + expr
	}
	group, ok := strings.CutPrefix(expr, `^(?:\W{0,2})?`)
	if !ok {
		group, ok = strings.CutPrefix(expr, "^")
	}
	t.atTop = ok && strings.HasPrefix(group, "(") && !strings.HasPrefix(group, "(?")
	if wordEnd {
		expr += `(?=\b|\W|$)`
	}
	re, err := regex.Compile(flags+expr, 0)
	if err != nil {
		return nil, err
	}
	t.re = re
	for g, n := range re.GroupNames() {
		if len(n) == 1 {
			t.fields = append(t.fields, dateField{g, n[0]})
		}
	}
	return t, nil
}

const (
	epochExpr     = `\d{10,11}\b(?:\.\d{3,6})?`
	longEpochExpr = `\d{10,11}(?:\d{3}(?:\.\d{1,6}|\d{3})?)?`
)

// hasPlainGroup says that a regex has an unnamed capture group: the first
// such group is what is cut out of the line.
func hasPlainGroup(expr string) bool {
	for i := 0; i < len(expr); i++ {
		switch expr[i] {
		case '\\':
			i++
		case '(':
			if i+1 >= len(expr) || expr[i+1] != '?' {
				return true
			}
		}
	}
	return false
}

// expandDateFields turns %-fields into named groups.
func expandDateFields(pattern string) (string, error) {
	var bad string
	s := dateFieldRE.ReplaceAllStringFunc(pattern, func(f string) string {
		e, ok := dateFieldExpr(f[1:])
		if !ok && bad == "" {
			bad = f
		}
		return e
	})
	if bad != "" {
		return "", fmt.Errorf("%s is no date field; write %%%% for a percent sign", bad)
	}
	return s, nil
}

// dateFieldExpr is the regex of a strptime field. Fields that start with Ex
// are fail2ban's: of exact width, or of this century.
func dateFieldExpr(f string) (string, bool) {
	const zoneName = `[A-Z](?:[A-Z]{2,4})?`
	const offset = `[+-][01]\d(?::?\d{2})?`
	switch f {
	case "%":
		return "%", true
	case "a":
		return `(?P<a>mon|tue|wed|thu|fri|sat|sun)`, true
	case "A":
		return `(?P<A>monday|tuesday|wednesday|thursday|friday|saturday|sunday)`, true
	case "b":
		return `(?P<b>jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)`, true
	case "B":
		return `(?P<B>january|february|march|april|may|june|july|august|september|october|november|december)`, true
	case "d":
		return `(?P<d>[1-2]\d|[0 ]?[1-9]|3[0-1])`, true
	case "Exd":
		return `(?P<d>[1-2]\d|0[1-9]|3[0-1])`, true
	case "m":
		return `(?P<m>0?[1-9]|1[0-2])`, true
	case "Exm":
		return `(?P<m>0[1-9]|1[0-2])`, true
	case "Y":
		return `(?P<Y>\d{4})`, true
	case "ExY":
		return `(?P<Y>20\d{2})`, true
	case "y", "Exy":
		return `(?P<y>\d{2})`, true
	case "H":
		return `(?P<H>[0-1]?\d|2[0-3])`, true
	case "ExH":
		return `(?P<H>[0-1]\d|2[0-3])`, true
	case "k", "Exk":
		return ` ?(?P<H>[0-1]?\d|2[0-3])`, true
	case "I":
		return `(?P<I>1[0-2]|0[1-9]|[1-9])`, true
	case "l", "Exl":
		return ` ?(?P<I>1[0-2]|\d)`, true
	case "M":
		return `(?P<M>[0-5]?\d)`, true
	case "ExM":
		return `(?P<M>[0-5]\d)`, true
	case "S":
		return `(?P<S>[0-5]?\d|6[0-1])`, true
	case "ExS":
		return `(?P<S>[0-5]\d|6[0-1])`, true
	case "f":
		return `(?P<f>[0-9]{1,6})`, true
	case "p":
		return `(?P<p>am|pm)`, true
	case "j":
		return `(?P<j>36[0-6]|3[0-5]\d|[1-2]\d\d|0[1-9]\d|00[1-9]|[1-9]\d|0[1-9]|[1-9])`, true
	case "U", "W":
		return `(?P<` + f + `>5[0-3]|[0-4]\d|\d)`, true
	case "w":
		return `(?P<w>[0-6])`, true
	case "z":
		return `(?P<z>Z|UTC|GMT|` + offset + `)`, true
	case "Z":
		return `(?P<Z>Z|[A-Z]{3,5})`, true
	case "ExZ":
		return `(?P<Z>` + zoneName + `)`, true
	case "Exz":
		return `(?P<z>(?:` + zoneName + `)?` + offset + `|` + zoneName + `)`, true
	case "c":
		return expandKnown(`%a %b %d %H:%M:%S %Y`), true
	case "x":
		return expandKnown(`%m/%d/%y`), true
	case "X":
		return expandKnown(`%H:%M:%S`), true
	}
	return "", false
}

// expandKnown expands a pattern whose fields all exist.
func expandKnown(p string) string {
	s, _ := expandDateFields(p)
	return s
}

// read fills c from what the template's regex caught.
func (t *dateTemplate) read(text []byte, caps []int, k *clock, c *civil) bool {
	if t.epoch > 0 {
		return readEpoch(text[caps[2*t.epoch]:caps[2*t.epoch+1]], t.long, c)
	}
	var pm, half bool
	week, weekday, weekStart := -1, -1, 0
	cur := cursor{}
	for _, f := range t.fields {
		if caps[2*f.group] < 0 {
			continue
		}
		v := text[caps[2*f.group]:caps[2*f.group+1]]
		cur.b, cur.i = v, 0
		n := number(v)
		switch f.key {
		case 'Y':
			c.year = n
			if n == 0 {
				c.year = noYear
			}
		case 'y':
			c.year = 2000 + n
		case 'm':
			c.month = n
		case 'b', 'B':
			if !cur.monthName() {
				return false
			}
			c.month = cur.month
		case 'd':
			c.day = n
		case 'H':
			c.hour = n
		case 'I':
			c.hour, half = n%12, true
		case 'p':
			pm = v[0]|0x20 == 'p'
		case 'M':
			c.min = n
		case 'S':
			c.sec = n
		case 'f':
			for range 9 - len(v) {
				n *= 10
			}
			c.nsec = n
		case 'j':
			c.yearday = n
		case 'a', 'A':
			for weekday = 0; weekday < 7 && string("montuewedthufrisatsun"[3*weekday:3*weekday+3]) != lower3(v); weekday++ {
			}
		case 'w':
			weekday = (n + 6) % 7
		case 'U':
			week, weekStart = n, 6
		case 'W':
			week, weekStart = n, 0
		case 'z', 'Z':
			if !readZone(v, c) {
				return false
			}
		}
	}
	if half && pm {
		c.hour += 12
	}
	if week >= 0 && weekday >= 0 && c.yearday == 0 {
		y := c.year
		if y == 0 {
			y = k.year
		}
		c.yearday = weekDay(y, week, weekday, weekStart)
		if c.yearday < 1 {
			return false
		}
	}
	return true
}

// number reads the digits of a field of at most six; it may be padded.
func number(v []byte) int {
	n := 0
	for _, x := range v[:min(len(v), 7)] {
		if isDigit(x) {
			n = n*10 + int(x-'0')
		}
	}
	return n
}

func lower3(v []byte) string {
	if len(v) < 3 {
		return ""
	}
	b := [3]byte{v[0] | 0x20, v[1] | 0x20, v[2] | 0x20}
	return string(b[:])
}

// readZone reads a zone's name, offset, or name and offset.
func readZone(v []byte, c *civil) bool {
	i := 0
	for i < len(v) && isAlpha(v[i]) {
		i++
	}
	base := 0
	if i > 0 {
		var ok bool
		if base, ok = zoneOffset(asString(v[:i])); !ok {
			return false
		}
	}
	c.zoned, c.offset = true, base
	if i == len(v) {
		return i > 0
	}
	cur := cursor{b: v, i: i}
	if !cur.zoneOffset() {
		return false
	}
	c.offset += cur.offset
	return true
}

// readEpoch reads seconds, or in the long form milli- or microseconds.
func readEpoch(v []byte, long bool, c *civil) bool {
	whole, frac := v, []byte(nil)
	for i, x := range v {
		if x == '.' {
			whole, frac = v[:i], v[i+1:]
			break
		}
	}
	n, err := strconv.ParseInt(asString(whole), 10, 64)
	if err != nil {
		return false
	}
	unit := int64(1e9)
	if long && len(v) >= 13 {
		unit = 1e6
		if len(v) >= 16 && frac == nil {
			unit = 1e3
		}
	}
	c.absolute = true
	per := int64(1e9) / unit
	c.epoch = n / per
	sub := (n % per) * unit
	for _, x := range frac {
		unit /= 10
		sub += int64(x-'0') * unit
	}
	c.nsec = int(sub)
	return true
}
