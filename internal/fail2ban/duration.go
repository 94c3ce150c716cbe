package fail2ban

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// parseSeconds reads a time as fail2ban writes it: seconds, or groups such
// as "1d12h", "1h 30m", "1year-6mo" or "60*60", added up where no operator
// stands between. It is a small calculator; fail2ban hands the text to
// Python's eval.
func parseSeconds(s string) (float64, error) {
	c := calculator{rest: s, whole: s}
	v, err := c.sum()
	if err == nil && c.rest != "" {
		err = c.wrong()
	}
	if err == nil && (math.IsNaN(v) || math.IsInf(v, 0)) {
		err = c.wrong()
	}
	return v, err
}

// parseTime is parseSeconds as a duration; below zero, for fail2ban's "for
// ever", it is -1.
func parseTime(s string) (time.Duration, error) {
	v, err := parseSeconds(s)
	switch {
	case err != nil:
		return 0, err
	case v < 0:
		return -1, nil
	case v > math.MaxInt64/float64(time.Second):
		return 0, fmt.Errorf("%q is longer than 292 years; write -1 for a ban without end", s)
	}
	return time.Duration(math.Round(v*1000)) * time.Millisecond, nil
}

type calculator struct {
	rest, whole string
	depth       int
}

func (c *calculator) wrong() error {
	return fmt.Errorf("%q is not a time: write seconds, or groups like 1d12h or 10m", c.whole)
}

func (c *calculator) skip() { c.rest = strings.TrimLeftFunc(c.rest, isSpace) }

func (c *calculator) take(op byte) bool {
	c.skip()
	if c.rest == "" || c.rest[0] != op {
		return false
	}
	c.rest = c.rest[1:]
	return true
}

func (c *calculator) sum() (float64, error) {
	v, err := c.product()
	for err == nil {
		var w float64
		switch {
		case c.take('+'):
			w, err = c.product()
			v += w
		case c.take('-'):
			w, err = c.product()
			v -= w
		case c.rest != "" && c.rest[0] >= '0' && c.rest[0] <= '9':
			w, err = c.product()
			v += w
		default:
			return v, nil
		}
	}
	return 0, err
}

func (c *calculator) product() (float64, error) {
	v, err := c.operand()
	for err == nil {
		var w float64
		switch {
		case c.take('*'):
			w, err = c.operand()
			v *= w
		case c.take('/'):
			w, err = c.operand()
			v /= w
		default:
			n := 0
			for n < len(c.rest) && unicode.IsLetter(rune(c.rest[n])) {
				n++
			}
			if n == 0 {
				return v, nil
			}
			u := unitSeconds(strings.ToLower(c.rest[:n]))
			if u == 0 {
				return 0, c.wrong()
			}
			v *= u
			c.rest = c.rest[n:]
		}
	}
	return 0, err
}

func (c *calculator) operand() (float64, error) {
	// An attacker's "((((…" would otherwise decide how deep the stack grows.
	if c.depth++; c.depth > 50 {
		return 0, c.wrong()
	}
	defer func() { c.depth-- }()
	switch {
	case c.take('-'):
		v, err := c.operand()
		return -v, err
	case c.take('+'):
		return c.operand()
	case c.take('('):
		v, err := c.sum()
		if err == nil && !c.take(')') {
			err = c.wrong()
		}
		return v, err
	}
	n := 0
	for n < len(c.rest) && (c.rest[n] >= '0' && c.rest[n] <= '9' || c.rest[n] == '.') {
		n++
	}
	v, err := strconv.ParseFloat(c.rest[:n], 64)
	if err != nil {
		return 0, c.wrong()
	}
	c.rest = c.rest[n:]
	c.skip()
	return v, nil
}

// unitSeconds is the length of a unit by fail2ban's abbreviations of it; 0
// for no unit. A year has 365.25 days, a month is a twelfth of it.
func unitSeconds(name string) float64 {
	switch name {
	case "s", "ss", "se", "sec", "second", "seconds":
		return 1
	case "m", "mm", "mi", "min", "minute", "minutes":
		return 60
	case "h", "hh", "ho", "hou", "hour", "hours":
		return 3600
	case "d", "dd", "da", "day", "days":
		return 86400
	case "w", "ww", "we", "wee", "week", "weeks":
		return 7 * 86400
	case "mo", "mon", "month", "months":
		return 365.25 * 86400 / 12
	case "y", "yy", "ye", "yea", "year", "years":
		return 365.25 * 86400
	}
	return 0
}
