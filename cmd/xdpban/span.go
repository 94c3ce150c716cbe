package main

import (
	"fmt"
	"time"

	"xdpban/jails"
)

// span is a duration as people write it: "90s", "1h30m", "1d12h", "forever".
type span time.Duration

// spanUnits are those that people count in; nobody says three weeks.
var spanUnits = []struct {
	name string
	unit time.Duration
}{
	{"d", 24 * time.Hour},
	{"h", time.Hour},
	{"m", time.Minute},
	{"s", time.Second},
}

// UnmarshalText reads a span as the configuration has them.
func (s *span) UnmarshalText(b []byte) error {
	d, err := jails.ParseDuration(string(b))
	if err != nil {
		return fmt.Errorf(`%w: write it like "90s", "10m", "1d12h" or "forever"`, err)
	}
	*s = span(d)
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
	for i, u := range spanUnits {
		if d < u.unit {
			continue
		}
		text := fmt.Sprintf("%d%s", d/u.unit, u.name)
		if i+1 < len(spanUnits) {
			if n := d % u.unit / spanUnits[i+1].unit; n > 0 {
				text += fmt.Sprintf("%d%s", n, spanUnits[i+1].name)
			}
		}
		return text
	}
	return d.String()
}
