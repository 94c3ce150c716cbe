package matcher

import (
	"bytes"
	"net/netip"
	"slices"
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
	fields           // what they caught last, kept in memory of its own
	users   [][]byte // all that tried, in order
	lines   int      // lines that wait to be counted
	quiet   int      // lines of <F-NOFAIL>: counted if a failure follows
	pending bool     // a failure waits for its address
	started time.Time
	number  uint64    // tells it from others that had the same id
	memory  [5][]byte // of the fields
}

// sessions are a filter's open sessions. They are forgotten after a while, and
// the oldest first when there are too many: an attacker opens as many as he
// likes. What one may hold is bounded for the same reason.
type sessions struct {
	open  map[string]*session
	queue []queued // by age; may name sessions that were closed since
	made  uint64
	spare []*session
}

type queued struct {
	id     string
	number uint64
}

const (
	sessionTime = 5 * time.Minute
	maxSessions = 4096
	maxUsers    = 16
	maxField    = 256 // bytes of an id or a user
)

func (t *sessions) get(id []byte, now time.Time) *session {
	s := t.open[asString(id)]
	if s != nil && now.Sub(s.started) > sessionTime {
		t.close(asString(id), s)
		return nil
	}
	return s
}

// close forgets a session. It may be used until the next is opened.
func (t *sessions) close(id string, s *session) {
	delete(t.open, id)
	if len(t.spare) < maxSessions {
		t.spare = append(t.spare, s)
	}
}

// fresh returns a session that knows nothing, on used memory if there is some.
func (t *sessions) fresh(now time.Time) *session {
	s := &session{}
	if n := len(t.spare); n > 0 {
		s, t.spare = t.spare[n-1], t.spare[:n-1]
		*s = session{memory: s.memory, users: s.users[:0]}
	}
	t.made++
	s.started, s.number = now, t.made
	return s
}

func (t *sessions) alive(q queued) bool {
	s := t.open[q.id]
	return s != nil && s.number == q.number
}

func (t *sessions) add(id []byte, s *session) {
	if t.open == nil {
		t.open = map[string]*session{}
	}
	if len(t.queue) >= 2*maxSessions {
		t.queue = slices.DeleteFunc(t.queue, func(q queued) bool { return !t.alive(q) })
	}
	for len(t.open) >= maxSessions {
		if q := t.queue[0]; t.alive(q) {
			t.close(q.id, t.open[q.id])
		}
		t.queue = t.queue[1:]
	}
	k := string(id)
	t.open[k] = s
	t.queue = append(t.queue, queued{k, s.number})
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
	nofail, gained := f.nofail || f.gained, f.gained
	forget := f.forget || len(f.mlfid) > maxField
	s := t.get(f.mlfid, now)
	if s != nil {
		s.addUser(f.user)
		if gained {
			s.pending = false
		}
		if !s.nofail && !s.gained && !s.pending {
			s.lines = 0 // they were counted with the failure before
		}
		s.update(f)
		if forget {
			t.close(asString(f.mlfid), s)
		}
	} else {
		s = t.fresh(now)
		s.update(f)
		if !forget {
			s.addUser(f.user)
			t.add(f.mlfid, s)
		} else {
			t.spare = append(t.spare, s)
		}
	}
	s.nofail, s.gained = nofail, gained
	if s.pending || len(s.users) > 1 {
		s.pending = false
		s.nofail, s.gained = false, false
		nofail = false
	}
	switch {
	case !nofail:
		s.lines += s.quiet + lines
		s.quiet = 0
	case !f.forget:
		s.quiet += lines
	}
	return s
}

func (s *session) addUser(u []byte) {
	u = u[:min(len(u), maxField)]
	if len(u) == 0 || len(s.users) == maxUsers || slices.ContainsFunc(s.users, func(v []byte) bool { return bytes.Equal(u, v) }) {
		return
	}
	if n := len(s.users); n < cap(s.users) {
		s.users = s.users[:n+1]
		s.users[n] = append(s.users[n][:0], u...)
	} else {
		s.users = append(s.users, slices.Clone(u))
	}
}

// update takes over what f has.
func (s *session) update(f *fields) {
	if f.seen {
		s.addr, s.seen, s.odd = f.addr, true, nil
		s.keep(&s.odd, f.odd, 0)
	}
	s.keep(&s.cidr, f.cidr, 1)
	s.keep(&s.dns, f.dns, 2)
	s.keep(&s.fid, f.fid, 3)
	s.keep(&s.user, f.user, 4)
}

// keep copies v, unless it is nil, into the session's memory. It isn't nil
// then, even if it is empty.
func (s *session) keep(field *[]byte, v []byte, place int) {
	if v == nil {
		return
	}
	v = v[:min(len(v), maxField)]
	if m := &s.memory[place]; *m == nil {
		*m = append(make([]byte, 0, max(16, len(v))), v...)
	} else {
		*m = append((*m)[:0], v...)
	}
	*field = s.memory[place]
}
