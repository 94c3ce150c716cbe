package jails

import (
	"container/heap"
	"errors"
	"fmt"
	"hash/fnv"
	"iter"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/gaissmai/bart"

	"xdpban/matcher"
)

// ErrAllowed says that a prefix may not be banned: loopback, an own address
// or one in ignoreip.
var ErrAllowed = errors.New("address is on the allowlist")

// ErrPrefix says that a prefix can't be banned for what it is: too wide, or
// no unicast address that could be a stranger's.
var ErrPrefix = errors.New("prefix can't be banned")

const (
	// grace is how long a window outlives its findtime, so that lines that
	// come late (another file, a backlog) still find it.
	grace = time.Minute
	// maxBan keeps the ends that growth computes within what 64 bits of
	// nanoseconds hold.
	maxBan = 100 * 365 * 24 * time.Hour
	// lineBytes bounds what is kept of one line of evidence.
	lineBytes = 512
)

// Judge is the policy: it counts failures in sliding windows and decides
// bans. What it decides follows from the times of what it is told and hardly
// from the order, never from a clock. It is for one goroutine.
//
// A window is that of one offender in one jail: an address, or with
// aggregation its subnet. MaxRetry failures with less than FindTime between
// the first and the last ban; the time of the last is the ban's Since.
// Failures from Since to Until count no more. A failure that arrives late and
// is older than a standing ban that it would have brought about earlier moves
// the ban's times, as if it had come in order.
type Judge struct {
	conf    *Config
	jails   map[string]*jail
	names   []string              // of jails, sorted
	allowed map[string]*bart.Lite // by origin
	origins []string              // of allowed, sorted

	standing map[netip.Prefix]*track // the first; the others by sibling
	ends     endHeap
	ended    []Ban // ended while a failure was judged, for Expire
	observed []Ban
	brake    brake
	reports  reports
	places   func(netip.Addr) Place // nil: none is known

	tracked, past int // tracks in windows lists and in past lists
	stats         Stats

	changed      []*track            // since Changes
	handed       []*track            // by Changes, since Saved
	events       map[eventKey]*Event // since Changes; nil: it didn't happen
	handedEvents map[eventKey]*Event
}

// Stats count what a Judge has done since it was made.
type Stats struct {
	Failures  uint64 // counted in a window
	Allowed   uint64 // not counted: the source is never banned
	Elsewhere uint64 // not counted: the source is where the jail spares it
	NoAddress uint64 // not counted: no address, or none that can be banned
	Banned    uint64 // bans decided, those that were over already included
	Over      uint64 // of them, over when they were decided
	Braked    uint64 // bans held back by MaxBansPerMin
	Evicted   uint64 // windows forgotten because of MaxTracked
	Future    uint64 // failures dated more than a minute ahead, taken as of now
	Standing  int    // prefixes banned now
	Tracked   int    // windows held now
	Jails     map[string]JailStats
}

// JailStats is the part of Stats that belongs to one jail.
type JailStats struct {
	Failures  uint64
	Elsewhere uint64
	Banned    uint64
	Standing  int
	Tracked   int
}

// jail is what the judge holds of a jail, configured or not.
type jail struct {
	name    string
	conf    *Jail      // nil: not configured, as Manual
	ignore  *bart.Lite // the configured ones
	named   *bart.Lite // what its IgnoreNames stand for
	feed    bool       // a feed's: its list is kept elsewhere, and has no history
	tracks  map[netip.Prefix]*track
	windows trackList // those with failures, stalest first
	past    trackList // those that only have strikes
	stats   JailStats
}

// NewJudge makes a judge for a configuration with an empty state.
func NewJudge(c *Config) *Judge {
	j := &Judge{
		jails:    map[string]*jail{},
		allowed:  map[string]*bart.Lite{},
		standing: map[netip.Prefix]*track{},
		events:   map[eventKey]*Event{},
		brake:    newBrake(0),
		reports:  newReports(),

		handedEvents: map[eventKey]*Event{},
	}
	j.Reload(c)
	return j
}

// Reload changes the configuration; windows and bans of jails that are still
// there stay, and so do the bans of jails that went.
func (j *Judge) Reload(c *Config) {
	j.conf = c
	j.SetAllowed("config", c.Settings.IgnoreIP)
	j.brake.most = c.Settings.MaxBansPerMin
	for _, js := range j.jails {
		js.conf = nil
	}
	for i := range c.Jails {
		js := j.jail(c.Jails[i].Name)
		js.conf = &c.Jails[i]
		js.ignore = setOf(js.conf.IgnoreIP)
	}
	for _, js := range j.jails {
		if js.conf == nil {
			for js.windows.front != nil {
				j.forgetWindow(js.windows.front)
			}
		}
		if js.conf == nil || !js.conf.Observe {
			// What was only observed must not keep the first real ban away.
			for _, t := range js.tracks {
				if t.ban != nil && t.ban.observed {
					j.forgetObserved(t)
				}
			}
		}
	}
}

func (j *Judge) jail(name string) *jail {
	js := j.jails[name]
	if js == nil {
		js = &jail{
			name: name, feed: ByFeed(name), tracks: map[netip.Prefix]*track{},
			windows: trackList{total: &j.tracked}, past: trackList{total: &j.past},
		}
		j.jails[name] = js
		at, _ := slices.BinarySearch(j.names, name)
		j.names = slices.Insert(j.names, at, name)
	}
	return js
}

// Failure counts one failure, whatever its Count of lines, for a jail and returns the bans it leads to:
// none, the jail's own, and those of jails that watch bans. A ban that would
// be over at now is recorded as a strike but not returned, nor is one of a
// jail that only observes (see Observed).
//
// A ban returned may end before one of another jail on the same prefix: what
// has to hold is Find's.
func (j *Judge) Failure(jail string, f *matcher.Failure, now time.Time) []Ban {
	js := j.jails[jail]
	if js == nil || js.conf == nil {
		return nil
	}
	src := unmap(f.Source)
	if bannable(src, MinAuto4, MinAuto6) != nil {
		j.stats.NoAddress++
		return nil
	}
	at := f.Time
	if at.IsZero() {
		at = now
	}
	if at.After(now) {
		// A clock ahead, or a date that the attacker wrote: no ban may begin
		// in the future and outlast its time.
		if at.Sub(now) > time.Minute {
			j.stats.Future++
		}
		at = now
	}
	e := entry{at: at.UnixNano(), weight: 1}
	if js.conf.Filter != nil && f.Pattern >= 0 && f.Pattern < len(js.conf.Filter.Filter.Failregex) {
		e.pattern = js.conf.Filter.Filter.Failregex[f.Pattern]
	}
	bans := j.count(js, src, e, f.Line, now, nil)
	j.evict()
	return bans
}

// MayBan says whether a failure could be the one that bans: it is then worth
// asking whether its source is to be spared. It changes nothing.
func (j *Judge) MayBan(jail string, f *matcher.Failure) bool {
	js := j.jails[jail]
	src := unmap(f.Source)
	if js == nil || js.conf == nil || bannable(src, MinAuto4, MinAuto6) != nil {
		return false
	}
	if _, ok := j.immune(js, src); ok || j.elsewhere(js, src) != "" {
		return false
	}
	sum := 1
	if t := js.tracks[j.offender(js, src)]; t != nil {
		sum = js.conf.known(t.strikes)
		for _, e := range t.window {
			sum += e.weight
		}
	}
	for _, r := range j.reports.of[offence{js.name, j.offender(js, src)}] {
		sum += r.weight
	}
	return sum >= js.conf.MaxRetry
}

// count adds an entry with its line to the window of src in a jail, judges the
// window, and appends the bans.
func (j *Judge) count(js *jail, src netip.Prefix, e entry, line []byte, now time.Time, bans []Ban) []Ban {
	if _, ok := j.immune(js, src); ok {
		j.stats.Allowed++
		return bans
	}
	if j.elsewhere(js, src) != "" {
		j.stats.Elsewhere++
		js.stats.Elsewhere++
		return bans
	}
	j.stats.Failures++
	js.stats.Failures++
	t := j.track(js, j.offender(js, src))
	if b := t.ban; b != nil {
		if e.at >= b.since && (b.until == forever || e.at < b.until) {
			return bans // banned already, or was then
		}
		if b.standing && e.at >= b.until {
			j.finish(t)
		}
		if age := j.conf.Settings.Remember; age > 0 && !b.standing && e.at-b.until > int64(age) {
			t.strikes = 0
		}
		if e.at >= b.since {
			e.weight += js.conf.known(t.strikes) - 1
		}
	}
	j.touch(t)
	for _, r := range j.reports.take(offence{js.name, t.prefix}) {
		if !t.answered(r.at) && e.at-r.at < int64(js.conf.FindTime) {
			t.add(r.entry())
		}
	}
	e.line = evidence(line)
	t.add(e)
	bans = j.judge(t, now, bans)
	t.trim()
	j.enlist(t, now)
	return bans
}

// judge decides the bans that are due in a window.
func (j *Judge) judge(t *track, now time.Time, bans []Ban) []Ban {
	conf := t.jail.conf
	for {
		if t.ban != nil && t.ban.standing {
			if !j.judgeLate(t, now, &bans) {
				return bans
			}
			continue
		}
		var wall int64 // failures before and after the last ban don't add up
		if t.ban != nil {
			wall = t.ban.since
		}
		first, last, ok := decide(t.window, conf, wall, t.braked)
		if !ok {
			return bans
		}
		b := t.newBan(t.window[first:last+1], j.strikes(t))
		over := b.over(now)
		if !over && !b.observed && !j.brake.release(time.Unix(0, b.since)) {
			j.stats.Braked++
			t.braked = true
			return bans
		}
		t.braked = false
		t.ban = b
		if len(b.decided) == len(t.window) {
			t.window = nil // it is the ban's now
		} else {
			b.decided = slices.Clone(b.decided)
			t.drop(b)
		}
		made := j.banned(t, b)
		if over {
			j.stats.Over++
			b.decided, b.pattern = nil, ""
		} else {
			j.stand(t)
			if !b.observed {
				bans = append(bans, made)
			}
		}
		bans = j.watch(t, made, now, bans)
	}
}

// judgeLate judges failures older than the ban that stands, and says whether
// there may be more to do.
func (j *Judge) judgeLate(t *track, now time.Time, bans *[]Ban) bool {
	stands := t.ban
	if len(stands.decided) == 0 {
		return false // made by hand or adopted: nothing to compare with
	}
	older, _ := slices.BinarySearchFunc(t.window, stands.since, entry.compare)
	if older == 0 {
		return false
	}
	entries := slices.Concat(t.window[:older], stands.decided)
	slices.SortStableFunc(entries, func(a, b entry) int { return a.compare(b.at) })
	first, last, ok := decide(entries, t.jail.conf, 0, false)
	if !ok || entries[last].at >= stands.since {
		return false
	}
	b := t.newBan(entries[first:last+1], stands.strikes)
	if entries[last].at < stands.decided[0].at && b.until != forever && b.until <= stands.since {
		// It came and went before the one that stands.
		t.drop(b)
		j.stats.Over++
		*bans = j.watch(t, j.banned(t, b), now, *bans)
		return true
	}
	// In order, this is when the ban would have begun.
	if stands.fixed {
		b.until, b.fixed = stands.until, true
	}
	j.events[banEvent(t.asBan(stands)).key()] = nil
	t.drop(b)
	t.ban, b.standing, b.index = b, true, stands.index
	j.reheap(t)
	j.event(banEvent(t.asBan(b)))
	return false
}

// banned counts and records a ban just decided.
func (j *Judge) banned(t *track, b *ban) Ban {
	t.strikes++
	j.stats.Banned++
	t.jail.stats.Banned++
	made := t.asBan(b)
	if b.observed {
		j.observed = append(j.observed, made)
	}
	j.event(banEvent(made))
	return made
}

// watch tells the jails that watch bans.
func (j *Judge) watch(t *track, made Ban, now time.Time, bans []Ban) []Ban {
	if made.Observed || t.jail.conf.WatchesBans {
		return bans
	}
	for _, name := range j.names {
		w := j.jails[name]
		if w.conf == nil || !w.conf.Enabled || !w.conf.WatchesBans {
			continue
		}
		line := fmt.Appendf(nil, "%s banned by %s after %d failures", short(made.Prefix), made.Jail, made.Failures)
		bans = j.count(w, made.Prefix, entry{at: made.Since.UnixNano(), weight: 1}, line, now, bans)
	}
	return bans
}

// strikes counts the past bans that make the next one longer.
func (j *Judge) strikes(t *track) int {
	if !t.jail.conf.Increment.AllJails {
		return t.strikes
	}
	n := 0
	for _, js := range j.jails {
		if js != t.jail && (js.conf == nil || js.conf.Observe) {
			continue
		}
		if other := js.tracks[t.prefix]; other != nil {
			n += other.strikes
		}
	}
	return n
}

// Ban bans by hand (or for a feed); d is Forever for no end. A longer
// standing ban of the same prefix by the same jail is kept and returned:
// later end wins. Errors wrap ErrAllowed or ErrPrefix.
func (j *Judge) Ban(p netip.Prefix, jail string, d time.Duration, now time.Time) (Ban, error) {
	return j.banFor(Ban{Prefix: p, Jail: jail, Since: now}, d, now)
}

// BanBulk is Ban for one of very many: see Ban.Bulk.
func (j *Judge) BanBulk(p netip.Prefix, jail string, d time.Duration, now time.Time) (Ban, error) {
	return j.banFor(Ban{Prefix: p, Jail: jail, Since: now, Bulk: true}, d, now)
}

func (j *Judge) banFor(b Ban, d time.Duration, now time.Time) (Ban, error) {
	if d <= 0 && d != Forever {
		return Ban{}, fmt.Errorf("ban %s for %s: the time must be positive, or \"forever\"", b.Prefix, d)
	}
	if d != Forever {
		b.Until = now.Add(min(d, maxBan))
	}
	return j.impose(b, now, true)
}

// Import takes over a ban with its own end, as from an export. It is Ban
// otherwise; one that is over at now is returned as it is and changes
// nothing.
func (j *Judge) Import(b Ban, now time.Time) (Ban, error) {
	if b.Over(now) {
		return b, nil
	}
	return j.impose(b, now, true)
}

// Adopt takes over a ban that stands in the kernel and isn't known here. It
// is no strike, and no allowlist is asked: it stands already.
func (j *Judge) Adopt(b Ban) {
	// The only error is that of a prefix which the kernel can't hold either.
	_, _ = j.impose(b, b.Since, false)
}

func (j *Judge) impose(b Ban, now time.Time, strike bool) (Ban, error) {
	p := unmap(b.Prefix)
	js := j.jail(b.Jail)
	if strike {
		if err := bannable(p, MinBits4, MinBits6); err != nil {
			return Ban{}, fmt.Errorf("ban %s: %w", b.Prefix, err)
		}
		if by, ok := j.immune(js, p); ok {
			return Ban{}, fmt.Errorf("ban %s: %w: %s (%s)", b.Prefix, ErrAllowed, short(by.Prefix), by.Origin)
		}
	} else if !p.IsValid() {
		return Ban{}, fmt.Errorf("ban %s: %w", b.Prefix, ErrPrefix)
	}
	t := j.track(js, p)
	j.touch(t)
	until := forever
	if !b.Until.IsZero() {
		until = b.Until.UnixNano()
	}
	if old := t.ban; old != nil && old.standing && !old.observed {
		if b.From != "" {
			old.from, old.evidence = b.From, b.Evidence
		}
		if old.until == forever || until != forever && until <= old.until {
			return t.asBan(old), nil
		}
		old.until, old.fixed, old.bulk = until, true, old.bulk && b.Bulk
		j.reheap(t)
		made := t.asBan(old)
		if strike && !b.Bulk {
			j.event(Event{Time: now, Kind: EventBan, Ban: made})
		}
		return made, nil
	}
	if t.ban != nil && t.ban.standing {
		j.fall(t)
	}
	t.ban = &ban{
		since: b.Since.UnixNano(), until: until, fixed: true,
		strikes: t.strikes, failures: b.Failures, pattern: b.Pattern, evidence: b.Evidence, from: b.From, bulk: b.Bulk || js.feed, index: -1,
	}
	t.window = nil
	j.stand(t)
	j.enlist(t, now)
	made := t.asBan(t.ban)
	if strike {
		j.stats.Banned++
		js.stats.Banned++
		if js.conf != nil {
			t.strikes++
		}
		if !b.Bulk {
			j.event(banEvent(made))
		}
	}
	return made, nil
}

// Unban ends every ban of exactly this prefix, and forgets its failures and
// strikes, and returns what has ended.
func (j *Judge) Unban(p netip.Prefix, now time.Time) []Ban {
	return j.UnbanOf(p, "", false, now)
}

// UnbanOf is Unban for what one jail holds of the prefix; "" is any. For one of
// very many, bulk, the history gets no entry for bans that came so too.
func (j *Judge) UnbanOf(p netip.Prefix, jail string, bulk bool, now time.Time) []Ban {
	p = unmap(p)
	var ended []Ban
	for _, name := range j.names {
		js := j.jails[name]
		t := js.tracks[p]
		if t == nil || jail != "" && jail != name {
			continue
		}
		j.touch(t)
		t.window, t.strikes, t.braked = nil, 0, false
		if b := t.ban; b != nil && b.standing {
			was := t.asBan(b)
			j.fall(t)
			// Lines from before this moment may still come. They are forgiven.
			b.until = max(now.UnixNano(), b.since)
			if !b.observed {
				ended = append(ended, was)
				if !bulk || !was.Bulk {
					j.event(Event{Time: now, Kind: EventUnban, Ban: was})
				}
			}
		}
		j.settle(t)
	}
	return ended
}

// Expire ends what is over at now, at most so many bans, forgets windows that
// can no longer matter, and returns the bans that ended, in the order of their
// ends. A prefix may still be banned by another jail: see Find.
func (j *Judge) Expire(now time.Time, most int) []Ban {
	for ; most > 0 && len(j.ends) > 0 && j.ends[0].ban.over(now); most-- {
		j.finish(j.ends[0])
	}
	ended := j.ended
	j.ended = nil
	var longest time.Duration
	for _, js := range j.jails {
		if js.conf != nil && !js.conf.WatchesBans {
			longest = max(longest, js.conf.FindTime)
		}
	}
	j.reports.forget(now.Add(-longest).UnixNano())
	for _, js := range j.jails {
		for t := js.windows.front; t != nil && t.stale(now); t = js.windows.front {
			j.forgetWindow(t)
		}
		for t := js.past.front; t != nil && j.conf.Settings.Remember > 0 && t.ban.until < now.Add(-j.conf.Settings.Remember).UnixNano(); t = js.past.front {
			j.remove(t)
		}
	}
	return ended
}

// Next is when the next ban ends; zero if none will.
func (j *Judge) Next() time.Time {
	if len(j.ends) == 0 {
		return time.Time{}
	}
	return time.Unix(0, j.ends[0].ban.until)
}

// Standing walks the bans that stand, observed ones left out: per prefix the
// one that ends last. The order is random.
func (j *Judge) Standing() iter.Seq[Ban] {
	return func(yield func(Ban) bool) {
		for _, t := range j.standing {
			if !yield(lastOf(t)) {
				return
			}
		}
	}
}

// StandingOf walks one jail's bans that stand. The order is random.
func (j *Judge) StandingOf(jail string) iter.Seq[Ban] {
	return func(yield func(Ban) bool) {
		js := j.jails[jail]
		if js == nil {
			return
		}
		for _, t := range js.tracks {
			if t.ban != nil && t.ban.standing && !t.ban.observed && !yield(t.asBan(t.ban)) {
				return
			}
		}
	}
}

// StandingBy returns what one jail holds against exactly this prefix.
func (j *Judge) StandingBy(p netip.Prefix, jail string) (Ban, bool) {
	js := j.jails[jail]
	if js == nil {
		return Ban{}, false
	}
	t := js.tracks[unmap(p)]
	if t == nil || t.ban == nil || !t.ban.standing || t.ban.observed {
		return Ban{}, false
	}
	return t.asBan(t.ban), true
}

// StandsBut says whether any but one jail bans exactly this prefix.
func (j *Judge) StandsBut(p netip.Prefix, jail string) bool {
	for t := j.standing[unmap(p)]; t != nil; t = t.sibling {
		if t.jail.name != jail {
			return true
		}
	}
	return false
}

// Jails names those that have held something, configured or not, sorted.
func (j *Judge) Jails() []string { return slices.Clone(j.names) }

// Find returns what has to hold for exactly this prefix: the ban that ends
// last, limited to the ports of all bans that stand, or to none if one of them
// isn't limited.
func (j *Judge) Find(p netip.Prefix) (Ban, bool) {
	t := j.standing[unmap(p)]
	if t == nil {
		return Ban{}, false
	}
	return lastOf(t), true
}

func lastOf(t *track) Ban {
	last := t
	first := t
	for t := t.sibling; t != nil; t = t.sibling {
		if last.ban.until != forever && (t.ban.until == forever || t.ban.until > last.ban.until) {
			last = t
		}
	}
	b := last.asBan(last.ban)
	b.Ports = nil
	for t := first; t != nil; t = t.sibling {
		if t.jail.conf == nil || len(t.jail.conf.Ports) == 0 {
			b.Ports = nil
			break
		}
		for _, r := range t.jail.conf.Ports {
			if !slices.Contains(b.Ports, r) {
				b.Ports = append(b.Ports, r)
			}
		}
	}
	return b
}

// Observed returns the bans that jails which only observe have decided since
// the last call.
func (j *Judge) Observed() []Ban {
	bans := j.observed
	j.observed = nil
	return bans
}

// Braked says that a ban for a failure of now would be held back by
// MaxBansPerMin.
// Stats.Braked counts those that were.
func (j *Judge) Braked(now time.Time) bool { return !j.brake.free(now) }

// Stats counts what has been done so far.
func (j *Judge) Stats() Stats {
	s := j.stats
	s.Standing = len(j.standing)
	s.Tracked = j.tracked
	s.Jails = make(map[string]JailStats, len(j.jails))
	for name, js := range j.jails {
		n := js.stats
		n.Tracked = js.windows.len
		s.Jails[name] = n
	}
	return s
}

// stand puts a track's ban in force.
func (j *Judge) stand(t *track) {
	b := t.ban
	b.standing = true
	j.reheap(t)
	if b.observed {
		return
	}
	t.jail.stats.Standing++
	if head := j.standing[t.prefix]; head != nil {
		t.sibling, head.sibling = head.sibling, t
	} else {
		j.standing[t.prefix] = t
	}
}

// fall ends a track's standing ban without saying so to anybody.
func (j *Judge) fall(t *track) {
	b := t.ban
	b.standing, b.decided, b.evidence, b.pattern = false, nil, nil, ""
	if b.index >= 0 {
		heap.Remove(&j.ends, b.index)
	}
	if b.observed {
		return
	}
	t.jail.stats.Standing--
	if head := j.standing[t.prefix]; head != t {
		for head.sibling != t {
			head = head.sibling
		}
		head.sibling = t.sibling
	} else if t.sibling != nil {
		j.standing[t.prefix] = t.sibling
	} else {
		delete(j.standing, t.prefix)
	}
	t.sibling = nil
}

// finish ends a track's ban because its time is over.
func (j *Judge) finish(t *track) {
	b := t.asBan(t.ban)
	j.touch(t)
	j.fall(t)
	if !b.Observed {
		j.ended = append(j.ended, b)
		if !b.Bulk {
			j.event(Event{Time: b.Until, Kind: EventExpire, Ban: b})
		}
	}
	j.settle(t)
}

func (j *Judge) reheap(t *track) {
	b := t.ban
	switch {
	case b.index >= 0 && b.until == forever:
		heap.Remove(&j.ends, b.index)
	case b.index >= 0:
		heap.Fix(&j.ends, b.index)
	case b.until != forever:
		heap.Push(&j.ends, t)
	}
}

// endHeap has the ban that ends next on top.
type endHeap []*track

func (h endHeap) Len() int { return len(h) }
func (h endHeap) Less(a, b int) bool {
	if h[a].ban.until != h[b].ban.until {
		return h[a].ban.until < h[b].ban.until
	}
	if c := h[a].prefix.Compare(h[b].prefix); c != 0 {
		return c < 0
	}
	return h[a].jail.name < h[b].jail.name
}
func (h endHeap) Swap(a, b int) {
	h[a], h[b] = h[b], h[a]
	h[a].ban.index, h[b].ban.index = a, b
}
func (h *endHeap) Push(x any) {
	t := x.(*track)
	t.ban.index = len(*h)
	*h = append(*h, t)
}
func (h *endHeap) Pop() any {
	last := len(*h) - 1
	t := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	t.ban.index = -1
	return t
}

// brake is the limit on new bans in any minute, by the times at which they
// begin and not by the clock: a backlog of a day may ban what a day may.
type brake struct {
	most   int           // 0: no limit
	made   map[int64]int // bans by the second
	last   int64         // of the seconds
	pruned int64         // the last when made was pruned

	changed map[int64]bool // seconds, since Changes
	handed  map[int64]bool
}

// brakeMemory is how far back a brake remembers, in seconds: lines older than
// that, beside newer ones, are a rare backlog.
const brakeMemory = 24 * 60 * 60

func newBrake(most int) brake {
	return brake{most: most, made: map[int64]int{}, changed: map[int64]bool{}, handed: map[int64]bool{}}
}

func (k *brake) free(at time.Time) bool {
	if k.most <= 0 {
		return true
	}
	n := 0
	for s := at.Unix() - 59; s <= at.Unix(); s++ {
		n += k.made[s]
	}
	return n < k.most
}

func (k *brake) release(at time.Time) bool {
	if !k.free(at) {
		return false
	}
	if k.most <= 0 {
		return true
	}
	k.count(at.Unix(), 1)
	return true
}

func (k *brake) count(second int64, bans int) {
	k.made[second] += bans
	k.changed[second] = true
	k.last = max(k.last, second)
	if k.last >= k.pruned+60*60 {
		k.pruned = k.last
		for s := range k.made {
			if s <= k.last-brakeMemory {
				delete(k.made, s)
				k.changed[s] = true
			}
		}
	}
}

// banTime is how long the next ban lasts for one with so many strikes. The
// random part follows from who and when, so that a replay decides the same.
func (c *Jail) banTime(strikes int, p netip.Prefix, since int64) time.Duration {
	inc := c.Increment
	if c.BanTime == Forever || !inc.Enabled || strikes <= 0 {
		return c.BanTime
	}
	h := fnv.New64a()
	fmt.Fprintf(h, "%s %s %d", c.Name, p, since)
	random := float64(h.Sum64()>>11) / (1 << 53)
	factor := inc.Factor
	if factor == 0 {
		factor = 1
	}
	d := maxBan
	if grown := inc.grow(c.BanTime.Seconds(), strikes, factor, random); grown < maxBan.Seconds() {
		d = time.Duration(grown * float64(time.Second))
	}
	if inc.Max > 0 {
		d = min(d, inc.Max)
	}
	return max(d+time.Duration(random*float64(inc.Random)), c.BanTime)
}

// grow gives the grown ban time in seconds.
func (i *Increment) grow(seconds float64, strikes int, factor, random float64) float64 {
	switch n := len(i.Multipliers); {
	case n > 0:
		return seconds * factor * i.Multipliers[min(strikes, n-1)]
	case i.Formula != nil:
		grown, err := i.Formula.Eval(FormulaVars{seconds, strikes, factor, func() float64 { return random }})
		if err != nil {
			// The first bans were tried when it was read; fail2ban doesn't let
			// a ban grow either when its formula fails.
			return seconds
		}
		return grown
	}
	return seconds * factor * math.Exp2(float64(min(strikes, 20)))
}

// known is what a failure counts for those with past bans.
func (c *Jail) known(strikes int) int {
	if !c.Increment.Enabled || strikes <= 0 {
		return 1
	}
	return min(1<<min(strikes-1, 20)+1, max(c.MaxRetry, 1))
}

// evidence is what is kept of a line.
func evidence(line []byte) string {
	line = line[:min(len(line), lineBytes)]
	if utf8.Valid(line) {
		return string(line)
	}
	return strings.ToValidUTF8(string(line), "\uFFFD")
}
