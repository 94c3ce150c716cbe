package jails

import (
	"net/netip"
	"time"
)

// Why explains what holds for a prefix.
type Why struct {
	Prefix  netip.Prefix
	Bans    []Ban     // that cover it, observed ones too: its own first, then wider and wider
	Allowed []Allowed // what keeps it from being banned
	Windows []Window  // of it and of wider prefixes
	Strikes int       // past bans of exactly this prefix, by all jails
}

// Window is the state of one offender in one jail: Failures of MaxRetry in
// the last FindTime.
type Window struct {
	Jail        string
	Prefix      netip.Prefix
	Failures    int
	MaxRetry    int
	FindTime    time.Duration
	First, Last time.Time
	Lines       []string // oldest first
	// Next is how many failures more, now, would ban.
	Next int
}

// Why explains what holds for a prefix at now.
func (j *Judge) Why(p netip.Prefix, now time.Time) Why {
	p = unmap(p)
	w := Why{Prefix: p}
	if !p.IsValid() {
		return w
	}
	if a, ok := j.immune(nil, p); ok {
		w.Allowed = append(w.Allowed, a)
	}
	for _, s := range special {
		if s.prefix.Overlaps(p) {
			w.Allowed = append(w.Allowed, Allowed{s.prefix, s.what})
		}
	}
	for bits := p.Bits(); bits >= 0; bits-- {
		cover := netip.PrefixFrom(p.Addr(), bits).Masked()
		for _, name := range j.names {
			js := j.jails[name]
			t := js.tracks[cover]
			if t == nil {
				continue
			}
			if bits == p.Bits() {
				w.Strikes += t.strikes
			}
			if t.ban != nil && t.ban.standing && !t.ban.over(now) {
				w.Bans = append(w.Bans, t.asBan(t.ban))
			}
			if open, ok := t.openWindow(now); ok {
				w.Windows = append(w.Windows, open)
			}
		}
	}
	for _, name := range j.names {
		js := j.jails[name]
		if a, ok := j.immune(js, p); ok && a.Origin == "jail "+name {
			w.Allowed = append(w.Allowed, a)
		}
		if reason := j.elsewhere(js, p); reason != "" {
			w.Allowed = append(w.Allowed, Allowed{p, "jail " + name + ", for " + reason})
		}
	}
	return w
}

// openWindow is the part of a window that still counts at now.
func (t *track) openWindow(now time.Time) (Window, bool) {
	conf := t.jail.conf
	if conf == nil {
		return Window{}, false
	}
	w := Window{Jail: t.jail.name, Prefix: t.prefix, MaxRetry: max(conf.MaxRetry, 1), FindTime: conf.FindTime}
	for _, e := range t.window {
		if now.UnixNano()-e.at >= int64(conf.FindTime) {
			continue
		}
		if w.Failures == 0 {
			w.First = time.Unix(0, e.at)
		}
		w.Last = time.Unix(0, e.at)
		w.Failures += e.weight
		if e.line != "" {
			w.Lines = append(w.Lines, e.line)
		}
	}
	each := conf.known(t.strikes)
	w.Next = max((w.MaxRetry-w.Failures+each-1)/each, 1)
	return w, w.Failures > 0
}
