package matcher

import (
	"bytes"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// fields are what the groups of a match say. They share the line's memory.
type fields struct {
	addr                   netip.Addr
	seen                   bool   // an address pattern took part
	odd                    []byte // what it caught, if it is whole and like IPv4, but no address: 192.0.2.09
	cidr                   []byte
	dns, fid, mlfid, user  []byte
	nofail, forget, gained bool
}

// read takes what the groups of p's match caught into f. What p has no group
// for, or what took no part in the match, stays as it is: the prefregex may
// have caught it, as fail2ban has it since 1.1.1.
func (f *fields) read(p *pattern, text []byte, caps []int) {
	for _, r := range [2]role{p.ip4, p.ip6} {
		if s, e, ok := r.span(caps); ok {
			f.addr, _ = parseAddr(text, s, e)
			f.seen, f.odd = true, nil
			if !f.addr.IsValid() && bytes.IndexByte(text[s:e], ':') < 0 && !isCut(text, s, e, false) {
				f.odd = text[s:e]
			}
			break
		}
	}
	take := func(dst *[]byte, r role) {
		if v := r.of(text, caps); v != nil {
			*dst = v
		}
	}
	flag := func(dst *bool, r role) {
		if v := r.of(text, caps); v != nil {
			*dst = len(v) > 0
		}
	}
	take(&f.cidr, p.cidr)
	take(&f.dns, p.dns)
	take(&f.fid, p.fid)
	take(&f.mlfid, p.mlfid)
	take(&f.user, p.user)
	flag(&f.nofail, p.nofail)
	flag(&f.forget, p.forget)
	flag(&f.gained, p.gained)
}

// session is what the lines with one <F-MLFID> have said so far.
type session struct {
	fields           // cloned from the lines
	users   []string // all that tried, in order
	lines   int      // lines that wait to be counted
	quiet   int      // lines of <F-NOFAIL>: counted if a failure follows
	pending bool     // a failure waits for its address
	started time.Time
}

// sessions are a filter's open sessions. They are forgotten after a while, and
// the oldest first when there are too many: an attacker opens as many as he
// likes.
type sessions struct {
	open  map[string]*session
	queue []queued // by age; may hold sessions that were closed since
}

type queued struct {
	id string
	s  *session
}

const (
	sessionTime = 5 * time.Minute
	maxSessions = 4096
)

func (t *sessions) get(id []byte, now time.Time) *session {
	s := t.open[asString(id)]
	if s != nil && now.Sub(s.started) > sessionTime {
		delete(t.open, asString(id))
		return nil
	}
	return s
}

func (t *sessions) add(id []byte, s *session) {
	if t.open == nil {
		t.open = map[string]*session{}
	}
	if len(t.queue) >= 2*maxSessions {
		t.queue = slices.DeleteFunc(t.queue, func(q queued) bool { return t.open[q.id] != q.s })
	}
	for len(t.open) >= maxSessions {
		if q := t.queue[0]; t.open[q.id] == q.s {
			delete(t.open, q.id)
		}
		t.queue = t.queue[1:]
	}
	k := strings.Clone(asString(id))
	t.open[k] = s
	t.queue = append(t.queue, queued{k, s})
}

// merge adds a line of a session to what the session knows, by fail2ban's
// rules, and returns the session as it now is; lines is what the match
// spans. If the result is nofail, the line is no failure (yet).
//
// A session that a <F-NOFAIL> line opened keeps that line back: a failure
// that follows counts it too. <F-MLFGAINED> (the login succeeded) drops what
// is pending, unless another user was tried in the session before.
// <F-MLFFORGET> ends the session after this line.
func (t *sessions) merge(f *fields, lines int, now time.Time) *session {
	// What this line says of itself, against what the session kept.
	nofail := f.nofail || f.gained
	gained := f.gained
	wasQuiet := false
	s := t.get(f.mlfid, now)
	if s != nil {
		s.addUser(f.user)
		wasQuiet = s.nofail || s.gained
		s.nofail, s.gained = false, false
		if gained {
			s.pending = false
		}
		if !wasQuiet && !s.pending {
			s.lines = 0 // they were counted with the failure before
		}
		s.update(f)
		s.nofail, s.gained = nofail, gained
		if f.forget {
			delete(t.open, asString(f.mlfid))
		}
	} else {
		s = &session{started: now}
		s.update(f)
		s.nofail, s.gained = nofail, gained
		if !f.forget {
			s.addUser(f.user)
			t.add(f.mlfid, s)
		}
	}
	if s.pending || len(s.users) > 1 {
		s.pending = false
		s.nofail, s.gained = false, false
		nofail, gained = false, false
	}
	switch {
	case !nofail:
		s.lines += s.quiet
		s.quiet = 0
		s.lines += lines
	case !f.forget:
		s.quiet += lines
	}
	return s
}

func (s *session) addUser(u []byte) {
	if len(u) > 0 && !slices.Contains(s.users, asString(u)) && len(s.users) < maxUsers {
		s.users = append(s.users, string(u))
	}
}

// maxUsers bounds what one session can make us remember.
const maxUsers = 64

// update takes over what f has, cloned.
func (s *session) update(f *fields) {
	if f.seen {
		s.addr, s.seen, s.odd = f.addr, true, slices.Clone(f.odd)
	}
	keep := func(dst *[]byte, v []byte) {
		if v != nil {
			*dst = slices.Clone(v)
			if *dst == nil {
				*dst = []byte{}
			}
		}
	}
	keep(&s.cidr, f.cidr)
	keep(&s.dns, f.dns)
	keep(&s.fid, f.fid)
	keep(&s.user, f.user)
}
