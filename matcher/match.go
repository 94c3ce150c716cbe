package matcher

import (
	"net/netip"
	"slices"

	"xdpban/matcher/regex"
)

// Outcome is what a filter made of a line.
type Outcome uint8

const (
	Missed    Outcome = iota // no pattern matched
	NotRead                  // the line is of another program, or has no syslog header
	Matched                  // it is a failure
	Ignored                  // an ignoreregex took it out
	NoFail                   // a pattern matched, but with <F-NOFAIL> or <F-MLFGAINED>
	Pending                  // it is a failure whose session has named no address yet
	NoAddress                // a pattern matched, but what it took for an address is none
	Exceeded                 // a pattern exceeded its step budget
	TooLong                  // the line is longer than MaxLine
)

func (o Outcome) String() string {
	switch o {
	case NotRead:
		return "not read"
	case Matched:
		return "matched"
	case Ignored:
		return "ignored"
	case NoFail:
		return "no failure"
	case Pending:
		return "pending"
	case NoAddress:
		return "no address"
	case Exceeded:
		return "exceeded"
	case TooLong:
		return "too long"
	}
	return "missed"
}

// verdict is an Outcome and the pattern behind it.
type verdict struct {
	outcome Outcome
	fail    int // index of the failregex that matched, -1: none
	ignore  int // of the ignoreregex, -1: none
}

// try asks one filter about the line at hand. If the outcome is Matched,
// s.failure is the failure.
func (s *Set) try(n int, raw []byte) verdict {
	f := &s.filters[n]
	v := &s.views[f.view]
	if !s.show(v, raw) || v.header && !f.reads(v.head.tag) {
		return verdict{NotRead, -1, -1}
	}
	text := v.text
	if f.multiline() {
		f.lines.push(text, s.cand, f.first, len(f.fail))
		if text = f.lines.text(); text == nil {
			return verdict{Missed, -1, -1}
		}
	}
	whole := text
	var common fields
	if f.pref != nil {
		var r regex.Result
		if s.prefCaps, r = s.machine.Match(f.pref.re, text, s.prefCaps); r != regex.Matched {
			return s.failed(r)
		}
		common.read(f.pref, text, s.prefCaps)
		if from, to, ok := f.pref.content.span(s.prefCaps); ok && to > from {
			if to == len(text)-1 {
				text = text[from:]
			} else {
				s.content = append(append(s.content[:0], text[from:to]...), '\n')
				text = s.content
			}
		}
	}
	out := verdict{Missed, -1, -1}
	var odd *Failure // what to say if no pattern finds a real address
	for k, p := range f.fail {
		if f.multiline() {
			if f.lines.hits[k] == 0 {
				continue
			}
		} else if b := f.first + k; s.cand[b/64]&(1<<(b%64)) == 0 {
			continue
		}
		var r regex.Result
		if s.caps, r = s.machine.Match(p.re, text, s.caps); r != regex.Matched {
			if r == regex.Exceeded {
				out = s.failed(r)
			}
			continue
		}
		if f.ignoreWhole {
			if i := s.ignores(f, whole); i >= 0 {
				return verdict{Ignored, k, i}
			}
		}
		lines, about := 1, text
		if f.multiline() {
			about, lines = f.lines.take(p, text, s.caps)
		}
		if i := s.ignores(f, about); i >= 0 {
			return verdict{Ignored, k, i}
		}
		g := common
		g.read(p, text, s.caps)
		o := s.judge(f, v, &g, lines)
		s.failure.Filter, s.failure.Pattern = n, k
		s.failure.Line = raw[:len(raw)-1]
		if o == NoAddress {
			// Maybe the next pattern finds one.
			if odd == nil && s.failure.ID != "" {
				c := s.failure
				c.Users = slices.Clone(c.Users)
				odd, out = &c, verdict{Matched, k, -1}
			} else if odd == nil {
				out = verdict{o, k, -1}
			}
			continue
		}
		return verdict{o, k, -1}
	}
	if odd != nil {
		s.failure = *odd
		out.outcome = Matched
	}
	return out
}

// failed is the verdict of a pattern without a match.
func (s *Set) failed(r regex.Result) verdict {
	if r == regex.Exceeded {
		s.skipped = true
		return verdict{Exceeded, -1, -1}
	}
	return verdict{Missed, -1, -1}
}

// ignores returns the first ignoreregex that matches, or -1. One that
// exceeds its budget counts as a match: a line that may have to be ignored
// bans nobody.
func (s *Set) ignores(f *setFilter, text []byte) int {
	for i, p := range f.ignore {
		var r regex.Result
		if s.ignoreCaps, r = s.machine.Match(p.re, text, s.ignoreCaps); r != regex.NoMatch {
			if r == regex.Exceeded {
				s.skipped = true
			}
			return i
		}
	}
	return -1
}

// judge turns the fields of a match into s.failure, through the line's
// session if it has one.
func (s *Set) judge(f *setFilter, v *view, g *fields, lines int) Outcome {
	x := &s.failure
	x.Users = x.Users[:0]
	x.NoFail = g.mlfid == nil && g.nofail
	var session *session
	if g.mlfid != nil {
		session = f.sessions.merge(g, lines, s.when(v))
		if session.nofail {
			return NoFail
		}
		lines = session.lines
		g = &session.fields
	}
	x.Source, x.Host, x.ID = netip.Prefix{}, "", ""
	outcome := Matched
	switch {
	case g.seen && len(g.odd) > 0:
		// It is a failure, but of nobody who could be banned.
		x.ID, outcome = asString(g.odd), NoAddress
	case g.seen:
		if !g.addr.IsValid() {
			return NoAddress
		}
		var ok bool
		if x.Source, ok = parsePrefix(g.addr, g.cidr); !ok {
			return NoAddress
		}
		if len(g.fid) > 0 {
			if a, ok := parseAddr(g.fid, 0, len(g.fid)); !ok || a != g.addr {
				x.ID = asString(g.fid)
			}
		}
	case g.dns != nil:
		if !x.setAddress(g.dns) {
			if !isHostName(g.dns) {
				return NoAddress
			}
			x.Host = asString(g.dns)
		}
	case len(g.fid) > 0:
		if !x.setAddress(g.fid) {
			x.ID = asString(g.fid)
		}
	case session != nil:
		session.pending = true
		return Pending
	default:
		return NoAddress
	}
	if len(g.user) > 0 {
		x.Users = append(x.Users, asString(g.user))
	}
	if session != nil {
		for _, u := range session.users {
			if !slices.Contains(x.Users, asString(u)) {
				x.Users = append(x.Users, asString(u))
			}
		}
	}
	x.Time = s.when(v)
	x.Dated = v.found.dated
	x.Count = max(lines, 1)
	return outcome
}

// setAddress takes an address or subnet, maybe in brackets, for the source.
func (x *Failure) setAddress(b []byte) bool {
	if n := len(b); n > 2 && b[0] == '[' && b[n-1] == ']' {
		b = b[1 : n-1]
	}
	if a, err := netip.ParseAddr(asString(b)); err == nil && a.Zone() == "" {
		a = a.Unmap()
		x.Source = netip.PrefixFrom(a, a.BitLen())
		return true
	}
	p, err := netip.ParsePrefix(asString(b))
	if err != nil || p.Addr().Is4In6() {
		return false
	}
	x.Source = p.Masked()
	return true
}
