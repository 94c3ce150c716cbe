package matcher

import (
	"slices"
	"time"
)

// Explanation says what one filter made of a line, and why.
type Explanation struct {
	Filter  int // index of the filter in its Set
	Outcome Outcome
	// Pattern and Ignore are indexes into Failregex and Ignoreregex, -1: none
	// matched.
	Pattern, Ignore int
	// Template is the date format that the line fits, as strptime writes it;
	// empty: no date. Time is the line's.
	Template string
	Time     time.Time
	// Program is the syslog tag, if the filter reads the header.
	Program string
	// Text is what the patterns saw: the message behind the header, or the
	// line without its date.
	Text    []byte
	Failure *Failure // if Matched
}

// Explain matches one line, with or without its end, as Scan does, and says
// for each filter what came of it. Sessions and the last date move on as they
// do in Scan. A line that an ignoreregex matches is Ignored here even if no
// failregex matches it. The result stays valid.
func (s *Set) Explain(line []byte, arrival time.Time) []Explanation {
	s.arrival = arrival
	raw := append(slices.Clone(line), '\n')
	if n := len(line); n > 0 && line[n-1] == '\n' {
		raw = raw[:n]
	}
	s.block, s.start = raw, 0
	for i := range s.views {
		s.views[i].seen = 0
	}
	s.stats.Lines++
	for i := range s.cand {
		s.cand[i] = ^uint64(0)
	}
	all := make([]Explanation, len(s.filters))
	raw, ok := s.begin(raw)
	ignored, heeded := false, false
	for i := range all {
		e := &all[i]
		*e = Explanation{Filter: i, Outcome: TooLong, Pattern: -1, Ignore: -1}
		if !ok {
			continue
		}
		r := s.try(i, raw)
		e.Outcome, e.Pattern, e.Ignore = r.outcome, r.fail, r.ignore
		ignored = ignored || e.Outcome == Ignored
		heeded = heeded || e.Outcome != Missed && e.Outcome != NotRead
		f := &s.filters[i]
		v := &s.views[f.view]
		if e.Outcome == Missed {
			if e.Ignore = s.ignores(f, v.text); e.Ignore >= 0 {
				e.Outcome = Ignored
			}
		}
		if v.ok {
			e.Time, e.Text = s.when(v), slices.Clone(v.text[:len(v.text)-1])
			if v.header {
				e.Template, e.Program = v.head.template(), string(v.head.tag)
			} else {
				e.Template = v.det.name(v.found.template)
			}
		}
		if e.Outcome == Matched {
			e.Failure = s.failure.Clone()
		}
	}
	if ok {
		s.finish(ignored, heeded)
	}
	return all
}
