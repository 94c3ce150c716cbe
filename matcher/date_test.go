package matcher

import (
	"testing"
	"time"

	"xdpban/matcher/regex"
)

func location(t testing.TB, name string) *time.Location {
	t.Helper()
	l, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestDefaultDates(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for _, tc := range []struct{ line, want, rest string }{
		{"2026-02-28T21:59:59.981746 x", "2026-02-28T21:59:59.981746Z", " x"},
		{"2026-02-28 21:59:59,5 x", "2026-02-28T21:59:59.5Z", " x"},
		{"2026-02-28T21:59:59+01:00 x", "2026-02-28T20:59:59Z", " x"},
		{"2026-02-28T21:59:59-0130 x", "2026-02-28T23:29:59Z", " x"},
		{"2026-02-28T21:59:59-03 x", "2026-03-01T00:59:59Z", " x"},
		{"2026-02-28T21:59:59Z x", "2026-02-28T21:59:59Z", " x"},
		{"2026-02-28 21:59:59 UTC x", "2026-02-28T21:59:59Z", " x"},
		{"2026/02/28  8:59:59 x", "2026-02-28T08:59:59Z", " x"},
		{"2026.02.28 21:59:59 x", "2026-02-28T21:59:59Z", " x"},
		{"2026-02-28T21:59:59.1234567 x", "2026-02-28T21:59:59Z", ".1234567 x"}, // more than six digits are no fraction
		{"Feb 28 21:59:59 x", "2026-02-28T21:59:59Z", " x"},
		{"Feb  8 21:59:59 x", "2026-02-08T21:59:59Z", " x"},
		{"feb 8  1:59:59 x", "2026-02-08T01:59:59Z", " x"},
		{"Sat Feb 28 21:59:59.011 2026 x", "2026-02-28T21:59:59.011Z", " x"},
		{"Sat Feb 28 2026 21:59:59.5 x", "2026-02-28T21:59:59.5Z", " x"},
		{"28/02/2026 21:59:59 x", "2026-02-28T21:59:59Z", " x"},
		{"28-02-26 21:59:59 x", "2026-02-28T21:59:59Z", " x"},
		{"28/Feb/2026:21:59:59 +0100 x", "2026-02-28T20:59:59Z", " x"},
		{"28-Feb-2026 21:59:59.252 x", "2026-02-28T21:59:59.252Z", " x"},
		{"02/28/2026:21:59:59 x", "2026-02-28T21:59:59Z", " x"},
		{"02-28-2026 21:59:59.252 x", "2026-02-28T21:59:59.252Z", " x"},
		{"1772315999 x", "2026-02-28T21:59:59Z", " x"},
		{"1772315999.250 x", "2026-02-28T21:59:59.25Z", " x"},
		{"[1772315999] x", "2026-02-28T21:59:59Z", "[] x"},
		{"type=X msg=audit(1772315999.250:77): x", "2026-02-28T21:59:59.25Z", "type=X msg=audit(:77): x"},
		{"id 1772315999 x", "", "id 1772315999 x"},
		{"11:59:59 x", "2026-03-01T11:59:59Z", " x"},
		{"12:59:59 x", "2026-02-28T12:59:59Z", " x"}, // ahead: yesterday's
		{"<02/28/26@21:59:59> x", "2026-02-28T21:59:59Z", " x"},
		{"260228 21:59:59 x", "2026-02-28T21:59:59Z", " x"},
		{"260228  1:59:59 x", "2026-02-28T01:59:59Z", " x"},
		{"Feb 28, 2026 9:59:59 PM x", "2026-02-28T21:59:59Z", " x"},
		{"Feb 28, 2026 12:59:59 AM x", "2026-02-28T00:59:59Z", " x"},
		{"Feb 28, 2026 12:59:59 PM x", "2026-02-28T12:59:59Z", " x"},
		{"Feb-28-26 21:59:59 x", "2026-02-28T21:59:59Z", " x"},
		{"20260228T215959 x", "2026-02-28T21:59:59Z", " x"},
		{"20260228 215959.5 +0100 x", "2026-02-28T20:59:59.5Z", " x"},
		{"PDT Feb 28 21:59:59 x", "2026-03-01T04:59:59Z", " x"},
		{"+01:00 Feb 28 21:59:59.011 2026 x", "2026-02-28T20:59:59.011Z", " x"},
		{"@4000000069a3655f00000000 x", "2026-02-28T21:59:59Z", " x"},
		{"[Sat Feb 28 21:59:59 2026] x", "2026-02-28T21:59:59Z", "[] x"},
		{"192.0.2.1 - - [28/Feb/2026:21:59:59 +0000] x", "2026-02-28T21:59:59Z", "192.0.2.1 - - [] x"},
		// No year: last year's, if this year's is more than a day ahead.
		{"Mar  2 11:59:59 x", "2026-03-02T11:59:59Z", " x"},
		{"Mar  2 12:00:01 x", "2025-03-02T12:00:01Z", " x"},
		{"Dec 31 23:59:59 x", "2025-12-31T23:59:59Z", " x"},
		{"Feb 29 21:59:59 x", "2024-02-29T21:59:59Z", " x"},
		{"2026-02-30 21:59:59 x", "", " x"}, // cut out, but no date
		{"2026-13-01 21:59:59 x", "", "2026-13-01 21:59:59 x"},
		{"1926-02-28 21:59:59 x", "", "1926-02-28 21:59:59 x"},
		{"x", "", "x"},
		{"", "", ""},
	} {
		d := newDetector([]dateStage{{defaults: true}}, time.UTC)
		f := d.find(new(regex.Machine), []byte(tc.line), now)
		got := ""
		if f.dated {
			got = f.time.UTC().Format(time.RFC3339Nano)
		}
		if rest := tc.line[:f.start] + tc.line[f.end:]; got != tc.want || rest != tc.rest {
			t.Errorf("%q: got %q, rest %q (%s); want %q, rest %q", tc.line, got, rest, d.name(f.template), tc.want, tc.rest)
		}
	}
}

func TestDatesInZones(t *testing.T) {
	berlin, lordHowe := location(t, "Europe/Berlin"), location(t, "Australia/Lord_Howe")
	for _, tc := range []struct {
		line string
		loc  *time.Location
		want string
	}{
		{"2026-07-01 12:00:00", berlin, "2026-07-01T10:00:00Z"},
		{"2026-12-01 12:00:00", berlin, "2026-12-01T11:00:00Z"},
		{"2026-12-01 12:00:00 +0300", berlin, "2026-12-01T09:00:00Z"},
		{"2026-03-29 01:59:59", berlin, "2026-03-29T00:59:59Z"},
		{"2026-03-29 03:00:00", berlin, "2026-03-29T01:00:00Z"},
		{"2026-10-25 01:59:59", berlin, "2026-10-24T23:59:59Z"},
		{"2026-10-25 03:00:00", berlin, "2026-10-25T02:00:00Z"},
		// Half an hour of daylight saving, so an hour has two offsets.
		{"2026-04-05 01:29:59", lordHowe, "2026-04-04T14:29:59Z"},
		{"2026-04-05 02:30:00", lordHowe, "2026-04-04T16:00:00Z"},
		// Today is the day of the zone.
		{"00:30:00", lordHowe, "2026-11-23T13:30:00Z"},
	} {
		d := newDetector([]dateStage{{defaults: true}}, tc.loc)
		// Twice, since the offset of an hour is remembered.
		for range 2 {
			f := d.find(new(regex.Machine), []byte(tc.line), noon)
			if got := f.time.UTC().Format(time.RFC3339Nano); got != tc.want {
				t.Errorf("%s in %s: got %s, want %s", tc.line, tc.loc, got, tc.want)
			}
		}
	}
}

// The remembered offset must give what time.Date gives, hour by hour through
// a year's changes.
func TestClockAgainstTimeDate(t *testing.T) {
	for _, zone := range []string{"Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe", "Asia/Kathmandu", "UTC"} {
		loc := location(t, zone)
		k := clock{loc: loc}
		k.set(noon)
		for h := range 366 * 48 {
			want := time.Date(2026, 1, 1, 0, 30*h, h%60, 0, loc)
			y, m, d := want.Date()
			c := civil{year: y, month: int(m), day: d, hour: want.Hour(), min: want.Minute(), sec: want.Second()}
			got, ok := k.time(&c)
			if again := time.Date(y, m, d, c.hour, c.min, c.sec, 0, loc); !ok || !got.Equal(again) {
				t.Fatalf("%s: got %s, want %s", zone, got, again)
			}
		}
	}
}

func TestDatePatterns(t *testing.T) {
	type list = []string
	for _, tc := range []struct {
		patterns   []string
		line, want string
		rest       string
	}{
		{list{`^%Y-%m-%d %H:%M:%S`}, "2026-02-28 21:59:59 x", "2026-02-28T21:59:59Z", " x"},
		{list{`^%Y-%m-%d %H:%M:%S`}, "x 2026-02-28 21:59:59 x", "", "x 2026-02-28 21:59:59 x"},
		{list{`%Y-%m-%d %H:%M:%S`}, "x 1999-02-28 21:59:59 x", "1999-02-28T21:59:59Z", "x  x"},
		{list{`{^LN-BEG}%Y-%m-%d %H:%M`}, "[2026-02-28 21:59] x", "2026-02-28T21:59:00Z", "[] x"},
		{list{`{^LN-BEG}`}, "x 2026-02-28 21:59:59 x", "", "x 2026-02-28 21:59:59 x"},
		{list{`{^LN-BEG}`}, "<2026-02-28 21:59:59> x", "2026-02-28T21:59:59Z", "<> x"},
		{list{`^[^\[]*\[({DATE})`, `{^LN-BEG}`}, "a [28/Feb/2026:21:59:59 +0000] x", "2026-02-28T21:59:59Z", "a [] x"},
		{list{`^[^\[]*\[({DATE})`, `{^LN-BEG}`}, "2026-02-28 21:59:59 [x]", "2026-02-28T21:59:59Z", " [x]"},
		{list{`^[^\[]*(\[{DATE}\s*\])`}, "a [Sat Feb 28 21:59:59 2026] x", "2026-02-28T21:59:59Z", "a  x"},
		// A user name in front of an access log's date can hold a date; a quote
		// it can't, so the last date ahead of the first quote is the true one.
		{list{`^[^"]*(\[%d/%b/%Y:%H:%M:%S %z\]) "`}, `192.0.2.1 - [28/Feb/2020:21:59:59 +0000] [28/Feb/2026:21:59:59 +0000] "GET /[28/Feb/2020:21:59:59 +0000]`,
			"2026-02-28T21:59:59Z", `192.0.2.1 - [28/Feb/2020:21:59:59 +0000]  "GET /[28/Feb/2020:21:59:59 +0000]`},
		{list{`{NONE}`}, "2026-02-28 21:59:59 x", "", "2026-02-28 21:59:59 x"},
		{list{`{DEFAULT}`}, "x 2026-02-28 21:59:59 x", "2026-02-28T21:59:59Z", "x  x"},
		{list{`^WARNING:()**`, `{^LN-BEG}`}, "WARNING: x", "", "WARNING: x"},
		{list{`EPOCH`}, "1772315999 x", "2026-02-28T21:59:59Z", " x"},
		{list{`LEPOCH`}, "1772315999250 x", "2026-02-28T21:59:59.25Z", " x"},
		{list{`^LEPOCH`}, "1772315999250125 x", "2026-02-28T21:59:59.250125Z", " x"},
		{list{`{^LN-BEG}EPOCH`}, "<1772315999.125> x", "2026-02-28T21:59:59.125Z", "<> x"},
		{list{`^t={EPOCH}`}, "t=1772315999 x", "2026-02-28T21:59:59Z", " x"},
		{list{`^TAI64N`}, "@4000000069a3655f00000000 x", "2026-02-28T21:59:59Z", " x"},
		{list{`^%d\.%m\.%y %I:%M %p`}, "28.02.26 09:59 pm x", "2026-02-28T21:59:00Z", " x"},
		{list{`^%Y:%j %H:%M`}, "2026:059 21:59 x", "2026-02-28T21:59:00Z", " x"},
		{list{`^%Y week %W %a`}, "2026 week 08 Sat x", "2026-02-28T00:00:00Z", " x"},
		{list{`^%B %d %Y %H:%M %Z`}, "february 28 2026 21:59 CET x", "2026-02-28T20:59:00Z", " x"},
		{list{`^%H:%M:%S %Exz`}, "10:59:59 EST+0100 x", "2026-03-01T14:59:59Z", " x"},
	} {
		stages, err := parseDatePattern(tc.patterns)
		if err != nil {
			t.Errorf("%q: %v", tc.patterns, err)
			continue
		}
		d := newDetector(stages, time.UTC)
		f := d.find(new(regex.Machine), []byte(tc.line), time.Date(2026, 3, 1, 15, 0, 0, 0, time.UTC))
		got := ""
		if f.dated {
			got = f.time.UTC().Format(time.RFC3339Nano)
		}
		if rest := tc.line[:f.start] + tc.line[f.end:]; got != tc.want || rest != tc.rest {
			t.Errorf("%q on %q: got %q, rest %q; want %q, rest %q", tc.patterns, tc.line, got, rest, tc.want, tc.rest)
		}
	}
}

// The format that matched last goes on being preferred where a line fits two.
func TestLastFormatIsPreferred(t *testing.T) {
	d := newDetector([]dateStage{{defaults: true}}, time.UTC)
	var m regex.Machine
	for _, tc := range []struct{ line, want string }{
		{"07-08-2026 12:00:00", "2026-08-07T12:00:00Z"}, // day first, as the order says
		{"08-27-2026 12:00:00", "2026-08-27T12:00:00Z"}, // must be month first
		{"07-08-2026 12:00:00", "2026-07-08T12:00:00Z"}, // so this is too
		{"17-08-2026 12:00:00", "2026-08-17T12:00:00Z"}, // can't be
	} {
		if got := d.find(&m, []byte(tc.line), noon).time.UTC().Format(time.RFC3339Nano); got != tc.want {
			t.Errorf("%s: got %s, want %s", tc.line, got, tc.want)
		}
	}
}

func TestUndatedLines(t *testing.T) {
	c := compile(t, Filter{Failregex: []string{`^\s*bad <ADDR>$`}})
	times := func(block string) (got []string) {
		s := NewSet(SetOptions{Location: time.UTC}, c)
		s.Scan([]byte(block), noon, func(f *Failure) {
			x := f.Time.Format("15:04:05")
			if !f.Dated {
				x += "?"
			}
			got = append(got, x)
		})
		return got
	}
	// Fresh: the last date, even of a line that no pattern looked at.
	expect(t, times("2026-11-24 11:59:30 bad 192.0.2.1\nbad 192.0.2.2\n"), "11:59:30", "11:59:30?")
	expect(t, times("2026-11-24 11:59:30 fine\nbad 192.0.2.2\n"), "11:59:30?")
	expect(t, times("2026-11-24 11:59:30 fine\nfine\n2026-11-24 11:59:40 fine\nfine\nbad 192.0.2.2\n"), "11:59:40?")
	// Old, or none: now.
	expect(t, times("2026-11-24 11:58:30 fine\nbad 192.0.2.2\n"), "12:00:00?")
	expect(t, times("bad 192.0.2.2\n"), "12:00:00?")
	// From the block before.
	s := NewSet(SetOptions{Location: time.UTC}, c)
	s.Scan([]byte("2026-11-24 11:59:30 fine\nfine\n"), noon, func(*Failure) {})
	s.Scan([]byte("bad 192.0.2.2\n"), noon, func(f *Failure) {
		if got := f.Time.Format("15:04:05"); got != "11:59:30" {
			t.Error(got)
		}
	})
}

// The hand-written parsers must read what the formats' own patterns read.
func TestParsersAgainstPatterns(t *testing.T) {
	for n, f := range defaultFormats() {
		if n == fmtTAI64N || n == fmtEpoch {
			continue
		}
		tmpl, err := newDateTemplate(f.name)
		if err != nil {
			t.Fatal(err)
		}
		d := newDetector(nil, time.UTC)
		var m regex.Machine
		for _, line := range dateSamples() {
			c := cursor{b: []byte(line)}
			s, ok := d.match(&m, tmpl, &c)
			if !ok || s != 0 {
				continue
			}
			if (n == fmtNamedZone || n == fmtOffsetZone) && !c.zoned {
				continue // without its zone it is the second format
			}
			d.clock.set(noon)
			want, wantOK := d.clock.time(&c.civil)
			end := c.i
			h := cursor{b: []byte(line)}
			if !f.parse(&h) || h.i != end {
				t.Errorf("%s: %q: by hand to %d, by pattern to %d", f.name, line, h.i, end)
				continue
			}
			if got, gotOK := d.clock.time(&h.civil); gotOK != wantOK || !got.Equal(want) {
				t.Errorf("%s: %q: by hand %v, by pattern %v", f.name, line, got, want)
			}
		}
	}
}

func dateSamples() []string {
	at := time.Date(2026, 2, 8, 9, 5, 7, 0, time.UTC)
	var out []string
	for _, layout := range []string{
		"2006-01-02T15:04:05", "2006/01/02 15:04:05", "2006.01.02  15:04:05", "2006-1-2 15:04:05", "Jan _2 15:04:05", "Jan 02 15:04:05",
		"Mon Jan _2 15:04:05", "Jan 2 2006 15:04:05", "Mon Jan 02 2006 15:04:05", "02/01/2006 15:04:05", "02-01-06 15:04:05", "2/1/2006 15:04:05",
		"02/Jan/2006:15:04:05", "02-Jan-2006 15:04:05", "01/02/2006:15:04:05", "01-02-2006 15:04:05", "15:04:05",
		"<01/02/06@15:04:05>", "060102 15:04:05", "060102  15:04:05", "Jan 02, 2006 3:04:05 PM", "Jan-02-06 15:04:05", "20060102T150405", "20060102 150405",
		"CET Jan 02 15:04:05", "UTC Mon Jan 02 15:04:05", "+01:00 Jan 02 15:04:05",
	} {
		for _, t := range []time.Time{at, at.Add(250 * 24 * time.Hour), at.Add(13*time.Hour + 29*24*time.Hour)} {
			for _, tail := range []string{"", ".5", ".123456", ".1234567", ",25", " 2025", " +0100", "-03:30", "Z", " UTC", ".5 -0800", ".5Z", " x", "x", "]", "9", ": x", ".x", ",x", " 99", "+0x"} {
				out = append(out, t.Format(layout)+tail)
			}
		}
	}
	return out
}

func FuzzDate(f *testing.F) {
	for _, s := range dateSamples()[:400:400] {
		f.Add(s)
	}
	f.Add("type=X msg=audit(1772315999.250:77): x")
	f.Add("192.0.2.1 - - [28/Feb/2026:21:59:59 +0000] x")
	stages, err := parseDatePattern([]string{`^[^\[]*\[({DATE})`, `LEPOCH`, `{DEFAULT}`})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, line string) {
		for _, st := range [][]dateStage{{{defaults: true}}, stages} {
			d := newDetector(st, time.UTC)
			var m regex.Machine
			a := d.find(&m, []byte(line), noon)
			if a.start < 0 || a.end < a.start || a.end > len(line) {
				t.Fatalf("%q: cut %d-%d", line, a.start, a.end)
			}
			// A line has the same date again.
			if b := d.find(&m, []byte(line), noon); a.dated && (b.start != a.start || b.end != a.end || !b.time.Equal(a.time)) {
				t.Fatalf("%q: first %+v, then %+v", line, a, b)
			}
		}
	})
}

func TestDatesAllocateNothing(t *testing.T) {
	stages, err := parseDatePattern(nil)
	if err != nil {
		t.Fatal(err)
	}
	var m regex.Machine
	for _, line := range []string{
		"2026-11-24T11:00:00.123456+01:00 x", "Nov 24 11:00:00 x", "Tue Nov 24 11:00:00.1 2026 x", "24/Nov/2026:11:00:00 +0100 x",
		"11/24/2026:11:00:00 x", "1795518000 x", "20261124T110000 x", "x [24/Nov/2026:11:00:00 +0100] y", "nothing of a date",
	} {
		d := newDetector(stages, time.UTC)
		b := []byte(line)
		d.find(&m, b, noon)
		if n := testing.AllocsPerRun(100, func() { d.find(&m, b, noon) }); n > 0 {
			t.Errorf("%s: %v allocations", line, n)
		}
		if d.find(&m, b, noon).dated != (line != "nothing of a date") {
			t.Errorf("%s: the date isn't found, or is", line)
		}
	}
}
