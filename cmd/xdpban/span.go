package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"xdpban/jails"
)

// span is a duration as people write it: "90s", "1h30m", "1d12h", "2w",
// "forever".
type span time.Duration

var spanUnits = []struct {
	name string
	unit time.Duration
}{
	{"w", 7 * 24 * time.Hour},
	{"d", 24 * time.Hour},
	{"h", time.Hour},
	{"m", time.Minute},
	{"s", time.Second},
}

// UnmarshalText reads a span that is longer than zero.
func (s *span) UnmarshalText(b []byte) error {
	text := string(b)
	if text == "forever" {
		*s = span(jails.Forever)
		return nil
	}
	var sum time.Duration
	rest := text
	for rest != "" {
		digits := len(rest) - len(strings.TrimLeft(rest, "0123456789"))
		n, err := strconv.ParseInt(rest[:digits], 10, 64)
		var unit time.Duration
		for _, u := range spanUnits {
			if strings.HasPrefix(rest[digits:], u.name) {
				unit = u.unit
			}
		}
		if err != nil || unit == 0 || n > int64(math.MaxInt64-sum)/int64(unit) {
			return fmt.Errorf(`%q is no time: write it like "90s", "10m", "1d12h" or "forever"`, text)
		}
		sum += time.Duration(n) * unit
		rest = rest[digits+1:]
	}
	if sum <= 0 {
		return fmt.Errorf(`%q is no time: it must be longer than zero`, text)
	}
	*s = span(sum)
	return nil
}

// String writes the two largest units.
func (s span) String() string {
	d := time.Duration(s)
	if d == jails.Forever {
		return "forever"
	}
	if d < time.Second {
		return d.String()
	}
	units := spanUnits[1:] // nobody counts in weeks
	for i, u := range units {
		if d < u.unit {
			continue
		}
		text := fmt.Sprintf("%d%s", d/u.unit, u.name)
		if i+1 < len(units) {
			if n := d % u.unit / units[i+1].unit; n > 0 {
				text += fmt.Sprintf("%d%s", n, units[i+1].name)
			}
		}
		return text
	}
	return d.String()
}
