package fleet

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"xdpban/jails"
)

// maxHosts bounds a fleet: a name costs who invents it nothing.
const maxHosts = 1000

// table is what all hosts of the fleet have banned, and what follows from it
// for this one. It has no clock and does nothing: see diff.
type table struct {
	conf     jails.Fleet
	places   map[netip.Prefix]*place
	hosts    map[string]*host
	self     *host
	ejected  map[string]bool
	pardons  map[netip.Prefix]pardon
	touched  map[netip.Prefix]struct{} // since diff
	rejected map[rejection]uint64
	refused  uint64 // by this host's allowlist
	round    uint32 // of reading the whole bucket
	inForce  int
	minute   int64 // of what was released
}

// host is one host of the fleet.
type host struct {
	name     string
	bans     int
	held     []netip.Prefix
	rejected uint64
	made     window // by the server's clock, when they were written
	released window // by ours
	reported window // failures

	version, instance string
	heard             time.Time
	lag               time.Duration
}

// window counts what happens in a minute.
type window struct {
	minute int64
	n      int
}

func (w *window) take(at time.Time, most int) bool {
	if m := at.Unix() / 60; m != w.minute {
		*w = window{minute: m}
	}
	if most > 0 && w.n >= most {
		return false
	}
	w.n++
	return true
}

// place is what is known of one prefix.
type place struct {
	reports []report
	// What this host was last told to do.
	inForce bool
	until   time.Time
	from    string
}

// report is one host's ban.
type report struct {
	host         *host
	jail         string
	since, until time.Time // zero: forever
	failures     int
	evidence     []string
	held         bool
	round        uint32
}

// pardon is an unban by hand, here, of what others banned: until these bans
// are made anew.
type pardon struct {
	Since map[string]time.Time `json:"since"` // of the bans, by host
	Until time.Time            `json:"until"` // zero: forever
}

func newTable(conf jails.Fleet) *table {
	t := &table{
		conf: conf, places: map[netip.Prefix]*place{}, hosts: map[string]*host{}, ejected: map[string]bool{},
		pardons: map[netip.Prefix]pardon{}, touched: map[netip.Prefix]struct{}{}, rejected: map[rejection]uint64{},
	}
	t.self = t.host(conf.Host)
	return t
}

// host finds or makes a host; nil if there are too many.
func (t *table) host(name string) *host {
	h := t.hosts[name]
	if h == nil && len(t.hosts) < maxHosts {
		h = &host{name: name}
		t.hosts[name] = h
	}
	return h
}

// standing notes what is in force here already.
func (t *table) standing(b jails.Ban) {
	pl := t.place(b.Prefix)
	pl.inForce, pl.until, pl.from = true, b.Until, b.From
	t.inForce++
}

func (t *table) place(p netip.Prefix) *place {
	pl := t.places[p]
	if pl == nil {
		pl = &place{}
		t.places[p] = pl
	}
	return pl
}

func (t *table) reject(h *host, why rejection) {
	t.rejected[why]++
	if h != nil {
		h.rejected++
	}
}

// take notes what stands under a key: written is when by the server's clock.
// It returns why it isn't heeded.
func (t *table) take(key string, value []byte, written, now time.Time) rejection {
	name, p, err := parseKey(key)
	if err != nil {
		t.reject(t.hosts[name], badKey)
		return badKey
	}
	h := t.host(name)
	if h == nil {
		t.reject(nil, tooMany)
		return tooMany
	}
	e, why := parseEntry(value)
	if why == "" && h != t.self {
		why = t.judge(h, p)
	}
	if why != "" {
		// What stood there before is gone, whatever this is.
		t.remove(name, p)
		t.reject(h, why)
		return why
	}
	r := report{host: h, jail: e.Jail, since: time.UnixMilli(e.Since), until: e.until(), failures: e.Failures, evidence: e.Evidence, round: t.round}
	if h != t.self {
		if !jails.Shares(t.conf.Subscribe, r.jail) {
			t.remove(name, p)
			return ""
		}
		if r.since.After(now) {
			r.since = now
		}
		if t.conf.MaxBan != jails.Forever {
			if most := r.since.Add(t.conf.MaxBan); r.until.IsZero() || r.until.After(most) {
				r.until = most
			}
		}
	}
	pl := t.place(p)
	i := slices.IndexFunc(pl.reports, func(o report) bool { return o.host == h })
	switch {
	case i >= 0 && pl.reports[i].until.Equal(r.until) && pl.reports[i].since.Equal(r.since):
		r.held = pl.reports[i].held
		pl.reports[i] = r
	case i < 0 && h != t.self && h.bans >= t.conf.PeerBans:
		t.reject(h, tooMany)
		t.forget(p)
		return tooMany
	default:
		if h != t.self && !h.made.take(written, t.conf.PeerBansPerMin) {
			r.held = true
			h.held = append(h.held, p)
		}
		if i >= 0 {
			pl.reports[i] = r
		} else {
			pl.reports = append(pl.reports, r)
			h.bans++
		}
	}
	t.touched[p] = struct{}{}
	return ""
}

// judge says what a peer may not ban whatever its entry says.
func (t *table) judge(h *host, p netip.Prefix) rejection {
	widest := t.conf.Widest6
	if p.Addr().Is4() {
		widest = t.conf.Widest4
	}
	switch {
	case t.ejected[h.name]:
		return ejected
	case p.Bits() < widest:
		return tooWide
	case jails.Bannable(p) != nil:
		return noStranger
	}
	return ""
}

// remove forgets a host's ban of a prefix.
func (t *table) remove(name string, p netip.Prefix) {
	pl, h := t.places[p], t.hosts[name]
	if pl == nil || h == nil {
		return
	}
	pl.reports = slices.DeleteFunc(pl.reports, func(r report) bool {
		if r.host == h {
			h.bans--
		}
		return r.host == h
	})
	t.touched[p] = struct{}{}
}

// forget drops a place that holds nothing.
func (t *table) forget(p netip.Prefix) {
	if pl := t.places[p]; pl != nil && len(pl.reports) == 0 && !pl.inForce {
		delete(t.places, p)
	}
}

// begin starts reading the whole bucket; finish forgets what it didn't have.
func (t *table) begin() { t.round++ }

func (t *table) finish() {
	for p, pl := range t.places {
		for _, r := range slices.Clone(pl.reports) {
			if r.round != t.round {
				t.remove(r.host.name, p)
			}
		}
		t.touched[p] = struct{}{} // what stood at the start may be nobody's
	}
}

// tick forgets what is over, and lets go of what was held back.
func (t *table) tick(now time.Time) {
	for _, h := range t.hosts {
		for len(h.held) > 0 {
			p := h.held[0]
			pl := t.places[p]
			i := -1
			if pl != nil {
				i = slices.IndexFunc(pl.reports, func(r report) bool { return r.host == h && r.held })
			}
			if i >= 0 {
				if !h.released.take(now, t.conf.PeerBansPerMin) {
					break
				}
				pl.reports[i].held = false
				t.touched[p] = struct{}{}
			}
			h.held = h.held[1:]
		}
	}
	if m := now.Unix() / 60; m == t.minute {
		return
	} else {
		t.minute = m
	}
	for p, pl := range t.places {
		for _, r := range slices.Clone(pl.reports) {
			if !r.until.IsZero() && !r.until.After(now) {
				t.remove(r.host.name, p)
			}
		}
	}
	maps.DeleteFunc(t.pardons, func(_ netip.Prefix, d pardon) bool { return !d.Until.IsZero() && !d.Until.After(now) })
}

// pardon forgives what others report of a prefix now; false: nobody does.
func (t *table) pardon(p netip.Prefix) (pardon, bool) {
	pl := t.places[p]
	if pl == nil {
		return pardon{}, false
	}
	d := pardon{Since: map[string]time.Time{}, Until: time.Unix(0, 0)}
	for _, r := range pl.reports {
		if r.host == t.self {
			continue
		}
		d.Since[r.host.name] = r.since
		if r.until.IsZero() || !d.Until.IsZero() && r.until.After(d.Until) {
			d.Until = r.until
		}
	}
	if pl.inForce {
		pl.inForce = false
		t.inForce--
	}
	if len(d.Since) == 0 {
		t.forget(p)
		return d, false
	}
	t.pardons[p] = d
	t.touched[p] = struct{}{}
	return d, true
}

// eject says whether a host is heeded no more. Its bans that are known go; they
// come back by reading the bucket again.
func (t *table) eject(name string, out bool) {
	if !out {
		delete(t.ejected, name)
		return
	}
	t.ejected[name] = true
	for p, pl := range t.places {
		if slices.ContainsFunc(pl.reports, func(r report) bool { return r.host.name == name }) {
			t.remove(name, p)
		}
	}
}

// wanted is the ban that follows from what is reported of a prefix.
func (t *table) wanted(p netip.Prefix, pl *place, now time.Time) (jails.Ban, bool) {
	var counted []report
	others := false
	for _, r := range pl.reports {
		if r.held || !r.until.IsZero() && !r.until.After(now) {
			continue
		}
		if at, ok := t.pardons[p].Since[r.host.name]; ok && !r.since.After(at) {
			continue
		}
		others = others || r.host != t.self
		counted = append(counted, r)
	}
	if !others || len(counted) < t.conf.Quorum {
		return jails.Ban{}, false
	}
	// As many hosts as the quorum asks for want it until then.
	slices.SortFunc(counted, func(a, b report) int {
		switch {
		case a.until.IsZero() != b.until.IsZero():
			if a.until.IsZero() {
				return -1
			}
			return 1
		case !a.until.Equal(b.until):
			return b.until.Compare(a.until)
		}
		return strings.Compare(a.host.name, b.host.name)
	})
	b := jails.Ban{Prefix: p, Jail: jails.ByFleet, Until: counted[t.conf.Quorum-1].until}
	var from []string
	for _, r := range counted {
		if r.host == t.self {
			continue
		}
		from = append(from, r.host.name+"/"+r.jail)
		if b.Since.IsZero() || r.since.Before(b.Since) {
			b.Since = r.since
		}
		b.Failures = max(b.Failures, r.failures)
		for _, l := range r.evidence {
			b.Evidence = append(b.Evidence, r.host.name+": "+l)
		}
	}
	slices.Sort(from)
	if n := len(from); n > maxFrom {
		from = append(from[:maxFrom], "…")
	}
	b.From = strings.Join(from, ", ")
	b.Evidence = b.Evidence[:min(len(b.Evidence), maxLines)]
	return b, true
}

// maxFrom is how many hosts a ban names.
const maxFrom = 5

// diff says what this host has to do to be as the fleet wants it, for at most
// so many prefixes, and whether there is more. Until all that stands in the
// bucket has been read nothing ends.
func (t *table) diff(now time.Time, most int, complete bool) (bans []jails.Ban, over []netip.Prefix, more bool) {
	for p := range t.touched {
		if len(bans)+len(over) >= most {
			return bans, over, true
		}
		delete(t.touched, p)
		pl := t.places[p]
		if pl == nil {
			continue
		}
		b, want := t.wanted(p, pl, now)
		switch {
		case want && (!pl.inForce || !pl.until.Equal(b.Until) || pl.from != b.From):
			if !pl.inForce {
				t.inForce++
			}
			pl.inForce, pl.until, pl.from = true, b.Until, b.From
			bans = append(bans, b)
		case !want && pl.inForce && complete:
			t.inForce--
			pl.inForce = false
			if pl.until.IsZero() || pl.until.After(now) {
				over = append(over, p)
			}
		}
		t.forget(p)
	}
	return bans, over, false
}

// own is what this host has written about a prefix, as far as it was read.
func (t *table) own(p netip.Prefix) (report, bool) {
	if pl := t.places[p]; pl != nil {
		for _, r := range pl.reports {
			if r.host == t.self {
				return r, true
			}
		}
	}
	return report{}, false
}
