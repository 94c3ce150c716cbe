package jails

import (
	"cmp"
	"net/netip"
	"slices"
	"time"
)

// forever is the end of a ban without one.
const forever int64 = 0

// track is what is remembered of one offender in one jail: the failures that
// no ban has answered, the last ban, and how many there were.
type track struct {
	jail    *jail
	prefix  netip.Prefix
	window  []entry // by time
	ban     *ban    // the last; nil: none
	strikes int     // bans decided so far
	// braked says that a ban was due and MaxBansPerMin held it back: the
	// next failure decides it, with its own time.
	braked bool

	sibling    *track // the next standing ban of the same prefix
	list       *trackList
	prev, next *track
	touched    int64 // when it last got a failure, by the clock

	changed, handed bool // it is in the judge's list of that name
	at              int  // where in changed
	saved           bool // the ledger has a record of it
}

// entry is one failure.
type entry struct {
	at      int64 // Unix nanoseconds
	weight  int   // how many failures it counts as
	pattern string
	line    string
}

func (e entry) compare(at int64) int { return cmp.Compare(e.at, at) }

// ban is the last ban of a track.
type ban struct {
	since, until int64
	strikes      int
	failures     int
	pattern      string
	// decided are the failures behind it and evidence the lines of one that
	// came from elsewhere, both only as long as it stands: afterwards the
	// history has them.
	decided  []entry
	evidence []string
	from     string
	standing bool
	observed bool
	fixed    bool // the end was set, not computed
	bulk     bool
	index    int // in the heap of ends, or -1
}

func (b *ban) over(now time.Time) bool {
	return b.until != forever && b.until <= now.UnixNano()
}

// newBan makes the ban that these failures lead to. It keeps the slice.
func (t *track) newBan(decided []entry, strikes int) *ban {
	conf := t.jail.conf
	last := decided[len(decided)-1]
	b := &ban{
		since: last.at, strikes: strikes, pattern: last.pattern,
		decided: decided, observed: conf.Observe, index: -1,
	}
	for _, e := range decided {
		b.failures += e.weight
	}
	if d := conf.banTime(strikes, t.prefix, b.since); d != Forever {
		b.until = b.since + int64(d)
	}
	return b
}

func (t *track) asBan(b *ban) Ban {
	out := Ban{
		Prefix: t.prefix, Jail: t.jail.name, Since: time.Unix(0, b.since),
		Strikes: b.strikes, Failures: b.failures, Pattern: b.pattern, Evidence: b.evidence, Observed: b.observed, From: b.from, Bulk: b.bulk,
	}
	if b.until != forever {
		out.Until = time.Unix(0, b.until)
	}
	most := maxEvidence
	if t.jail.conf != nil {
		most = t.jail.conf.maxMatches()
		out.Ports = t.jail.conf.Ports
	}
	for _, e := range b.decided[max(len(b.decided)-most, 0):] {
		if e.line != "" {
			out.Evidence = append(out.Evidence, e.line)
			out.EvidenceAt = append(out.EvidenceAt, time.Unix(0, e.at).UnixMilli())
		}
	}
	return out
}

// add puts a failure into the window, behind those of the same time.
func (t *track) add(e entry) {
	if n := len(t.window); n == cap(t.window) && n < maxEvidence {
		// Most fail once only; who goes on, does so until he is banned.
		size := 1
		if n > 0 {
			size = min(max(t.jail.conf.MaxRetry, n+1), maxEvidence)
		}
		t.window = append(make([]entry, 0, size), t.window...)
	}
	at, _ := slices.BinarySearchFunc(t.window, e.at+1, entry.compare)
	t.window = slices.Insert(t.window, at, e)
}

// drop takes what a ban answers out of the window: the failures before it
// and those while it lasted.
func (t *track) drop(b *ban) {
	t.window = slices.DeleteFunc(t.window, func(e entry) bool {
		return e.at <= b.since || b.until == forever || e.at < b.until
	})
	if len(t.window) == 0 {
		t.window = nil
	}
}

// trim bounds a window that didn't lead to a ban.
func (t *track) trim() {
	conf := t.jail.conf
	if over := len(t.window) - max(conf.MaxRetry, 1); over > 0 {
		t.window = slices.Delete(t.window, 0, over)
	}
	if over := len(t.window) - conf.maxMatches(); over > 0 {
		for i := range t.window[:over] {
			t.window[i].line = ""
		}
	}
}

// decide looks for failures that ban: as many as MaxRetry, the first and the
// last of them less than FindTime apart and on the same side of wall. It
// finds the earliest such, or with latest those that the last entry ends: what
// was held back before isn't decided with its old time, which would depend on
// when the window was forgotten.
func decide(entries []entry, conf *Jail, wall int64, latest bool) (first, last int, ok bool) {
	sum, start := 0, 0
	for i, e := range entries {
		sum += e.weight
		for e.at-entries[start].at >= int64(conf.FindTime) && start < i || entries[start].at < wall && wall <= e.at {
			sum -= entries[start].weight
			start++
		}
		if sum >= max(conf.MaxRetry, 1) && (!latest || i == len(entries)-1) {
			return start, i, true
		}
	}
	return 0, 0, false
}

// maxEvidence is how many lines a ban keeps at most, unless its jail says.
const maxEvidence = 10

func (c *Jail) maxMatches() int {
	if c.MaxMatches == 0 {
		return min(max(c.MaxRetry, 1), maxEvidence)
	}
	return max(c.MaxMatches, 0)
}

// stale says that a window can matter no more. It goes by the clock and not
// by the failures' times: while a backlog is read these are old, and the next
// one may be about to come.
func (t *track) stale(now time.Time) bool { return t.deadline() < now.UnixNano() }

func (t *track) deadline() int64 {
	d := grace
	if t.jail.conf != nil {
		d += t.jail.conf.FindTime
	}
	return t.touched + int64(d)
}

// trackList is a list of tracks, the one touched longest ago in front.
type trackList struct {
	front, back *track
	len         int
	total       *int // over all jails
}

func (l *trackList) push(t *track) {
	t.list, t.prev, t.next = l, l.back, nil
	if l.back != nil {
		l.back.next = t
	} else {
		l.front = t
	}
	l.back = t
	l.len++
	*l.total++
}

func (t *track) unlink() {
	l := t.list
	if l == nil {
		return
	}
	if t.prev != nil {
		t.prev.next = t.next
	} else {
		l.front = t.next
	}
	if t.next != nil {
		t.next.prev = t.prev
	} else {
		l.back = t.prev
	}
	t.list, t.prev, t.next = nil, nil, nil
	l.len--
	*l.total--
}

// track finds or makes the track of an offender.
func (j *Judge) track(js *jail, p netip.Prefix) *track {
	t := js.tracks[p]
	if t == nil {
		t = &track{jail: js, prefix: p}
		js.tracks[p] = t
	}
	return t
}

// enlist puts a track that was just touched where it belongs.
func (j *Judge) enlist(t *track, now time.Time) {
	t.touched = now.UnixNano()
	j.settle(t)
}

// settle moves a track to the list it belongs to, or forgets it if nothing
// is left of it.
func (j *Judge) settle(t *track) {
	t.unlink()
	switch {
	case len(t.window) > 0:
		t.jail.windows.push(t)
	case t.ban != nil && t.ban.standing:
	case t.ban != nil && (t.jail.conf != nil || t.strikes > 0):
		t.jail.past.push(t)
	default:
		j.remove(t)
	}
}

// forgetWindow drops the failures of a track.
func (j *Judge) forgetWindow(t *track) {
	j.touch(t)
	t.window, t.braked = nil, false
	j.settle(t)
}

// forgetObserved drops the last ban of a track, which was only observed, and
// its strikes.
func (j *Judge) forgetObserved(t *track) {
	j.touch(t)
	if t.ban.standing {
		j.fall(t)
	}
	t.ban, t.strikes = nil, 0
	j.settle(t)
}

// remove forgets a track altogether. One that came and went between two
// checkpoints leaves nothing to write: else a flood of sources that fail once
// would be remembered by what there is to forget.
func (j *Judge) remove(t *track) {
	if t.saved || t.handed {
		j.touch(t)
	} else {
		j.untouch(t)
	}
	t.unlink()
	delete(t.jail.tracks, t.prefix)
}

// evict keeps to MaxTracked. The jail with the most windows loses the one that
// failed longest ago: where windows that last for a day filled the whole room,
// those of other jails would be gone before their second failure. Of the past
// offenders the one goes whose ban ended first.
func (j *Judge) evict() {
	limit := j.conf.Settings.MaxTracked
	if limit <= 0 {
		return
	}
	for j.tracked > limit {
		var victim *track
		for _, name := range j.names {
			js := j.jails[name]
			if t := js.windows.front; t != nil && (victim == nil || js.windows.len > victim.list.len) {
				victim = t
			}
		}
		j.stats.Evicted++
		j.forgetWindow(victim)
	}
	for j.past > limit {
		var victim *track
		for _, js := range j.jails {
			if t := js.past.front; t != nil && (victim == nil || t.ban.until < victim.ban.until) {
				victim = t
			}
		}
		j.remove(victim)
	}
}
