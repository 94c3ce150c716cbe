package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"time"

	"xdpban/internal/control"
	"xdpban/jails"
)

var _ control.Daemon = (*Daemon)(nil)

// chunk is how many prefixes one turn of the loop takes on, so that a long
// list by hand doesn't hold up what the logs say.
const chunk = 2000

// Status tells the daemon's state at a glance.
func (d *Daemon) Status(ctx context.Context) (control.Status, error) {
	var s control.Status
	err := d.do(ctx, func() {
		s = control.Status{
			Version: d.o.Version, PID: os.Getpid(), Started: d.started,
			Config:     slices.Clone(d.config.Files),
			Capacity:   int(d.config.Settings.MaxBans),
			Interfaces: slices.Clone(d.interfaces),
			Checkpoint: control.Time{Time: d.checkpoint.last}, CheckpointTook: control.Duration(d.checkpoint.took),
			Matching: d.matching.wire(),
			Braked:   d.judge.Braked(d.o.Now()),
			Errors:   d.errors,
		}
		stats := d.judge.Stats()
		s.Held = stats.Braked
		s.Bans = stats.Standing
		for i := range d.config.Jails {
			j := &d.config.Jails[i]
			st := stats.Jails[j.Name]
			s.Jails = append(s.Jails, control.Jail{
				Name: j.Name, Enabled: j.Enabled, Observe: j.Observe,
				Waits: d.waits(j),
				Bans:  st.Standing, Total: st.Banned, Failures: st.Failures, Elsewhere: st.Elsewhere, Tracked: st.Tracked,
				MaxRetry: j.MaxRetry, FindTime: control.Duration(j.FindTime), BanTime: control.Duration(j.BanTime),
				Dropped: d.drops[j.Name],
			})
		}
		for _, name := range slices.Sorted(maps.Keys(d.streams)) {
			st := d.streams[name]
			s.Sources = append(s.Sources, control.Source{
				Stream: name, Jails: st.jails, Lines: st.stats.Lines, Missed: st.stats.Missed, Ignored: st.stats.Ignored, Skipped: st.stats.Skipped,
				TooLong: st.stats.TooLong, Failures: st.failures,
				Lag: control.Duration(st.lag), Left: control.Duration(st.backlog.left),
			})
		}
		for _, key := range slices.Sorted(maps.Keys(d.problems)) {
			s.Problems = append(s.Problems, d.problems[key])
		}
		s.Feeds = d.o.Feeds.Status()
		d.counted(s.Feeds, stats, d.drops)
	})
	if d.o.Fleet != nil {
		s.Fleet = d.o.Fleet.Status()
	}
	s.Hooks = d.o.Hooks.Status()
	return s, err
}

// List walks the kernel's bans, with what the judge knows of them. The loop is
// asked a chunk at a time.
func (d *Daemon) List(ctx context.Context, q control.ListQuery) iter.Seq2[control.Ban, error] {
	return func(yield func(control.Ban, error) bool) {
		if q.Jail != "" && q.Jail != jails.Manual && q.Jail != jails.ByFleet {
			known := false
			if err := d.do(ctx, func() { known = d.known(q.Jail) }); err != nil {
				yield(control.Ban{}, err)
				return
			}
			if !known {
				yield(control.Ban{}, fmt.Errorf("%w: there is no jail %q", control.ErrNotFound, q.Jail))
				return
			}
		}
		bans := make([]control.Ban, 0, chunk)
		flush := func() bool {
			err := d.do(ctx, func() {
				for i := range bans {
					if b, ok := d.judge.Find(bans[i].Prefix); ok && b.Jail == bans[i].Jail {
						bans[i].Strikes, bans[i].Failures, bans[i].From = b.Strikes, b.Failures, b.From
					}
				}
			})
			if err != nil {
				yield(control.Ban{}, err)
				return false
			}
			for _, b := range bans {
				if !yield(b, nil) {
					return false
				}
			}
			bans = bans[:0]
			return true
		}
		for e, err := range d.o.Blocklist.List() {
			if err != nil {
				yield(control.Ban{}, err)
				return
			}
			if q.Jail != "" && e.Jail != q.Jail {
				continue
			}
			if bans = append(bans, wire(e)); len(bans) == chunk && !flush() {
				return
			}
		}
		flush()
	}
}

// known says that there is a jail, or a feed, whose bans are called so.
func (d *Daemon) known(jail string) bool {
	if _, ok := d.config.Jail(jail); ok {
		return true
	}
	return slices.ContainsFunc(d.config.Settings.Feeds, func(f jails.Feed) bool { return jails.FeedPrefix+f.Name == jail })
}

// Ports lists the blocked ports with what they have dropped.
func (d *Daemon) Ports(ctx context.Context) ([]control.Port, error) { return d.o.Blocklist.Ports() }

// change is do for a part of what changes very much: it waits as long as the
// ledger doesn't keep up, as the logs wait, too.
func (d *Daemon) change(ctx context.Context, f func()) error {
	for {
		var busy <-chan struct{}
		err := d.do(ctx, func() {
			if d.checkpoint.writing != nil && d.crowded() {
				busy = d.checkpoint.written
				return
			}
			f()
		})
		if err != nil || busy == nil {
			return err
		}
		select {
		case <-busy:
		case <-d.done:
			return errStopped
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// bulk says that a request is about so many that each by itself is no event.
func bulk(prefixes int) bool { return prefixes > control.MaxEcho }

// refuse says which prefixes may not be banned; it changes nothing.
func (d *Daemon) refuse(ctx context.Context, jail string, prefixes []netip.Prefix) ([]control.Refusal, error) {
	var refused []control.Refusal
	for part := range slices.Chunk(prefixes, chunk) {
		err := d.do(ctx, func() {
			for _, p := range part {
				if err := d.judge.Check(p, jail); err != nil {
					refused = append(refused, control.Refusal{Prefix: p, Reason: err.Error()})
					if len(refused) <= control.MaxEcho {
						d.log.Warn("refused to ban "+short(p)+": "+err.Error(), "event", EventRefuse, "jail", jail, "addr", short(p))
					}
				}
			}
		})
		if err != nil {
			return nil, err
		}
	}
	return refused, nil
}

func refusal(refused []control.Refusal) error {
	first := refused[0]
	if len(refused) == 1 {
		return fmt.Errorf("%w: %s", control.ErrRefused, first.Reason)
	}
	return fmt.Errorf("%w: %s, and %d more; nothing was banned", control.ErrRefused, first.Reason, len(refused)-1)
}

// Ban bans by hand.
func (d *Daemon) Ban(ctx context.Context, r control.BanRequest) (control.BanResult, error) {
	jail := r.Jail
	if jail == "" {
		jail = jails.Manual
	}
	var result control.BanResult
	refused, err := d.refuse(ctx, jail, r.Prefixes)
	if err != nil {
		return result, err
	}
	if len(refused) > 0 && !r.SkipRefused {
		return result, refusal(refused)
	}
	result.Refused = refused
	many := bulk(len(r.Prefixes))
	prefixes, ban := r.Prefixes, d.judge.Ban
	if many {
		ban = d.judge.BanBulk
		// The ledger takes in neighbours faster.
		prefixes = slices.SortedFunc(slices.Values(prefixes), netip.Prefix.Compare)
		defer func() {
			d.log.Info(fmt.Sprintf("ban %d prefixes", result.Banned), "event", EventBan, "jail", jail, "for", r.For, "kept", result.Kept, "refused", len(refused))
		}()
	}
	for part := range slices.Chunk(prefixes, chunk) {
		var failed error
		err := d.change(ctx, func() {
			now := d.o.Now()
			var news []jails.Ban
			for _, p := range part {
				if d.judge.Check(p, jail) != nil {
					continue
				}
				before, stood := d.judge.Find(p)
				b, err := ban(p, jail, time.Duration(r.For), now)
				if err != nil {
					failed = err
					break
				}
				if !stood || !before.Until.Equal(b.Until) {
					news = append(news, b)
				} else {
					result.Kept++
				}
				if !many {
					result.Bans = append(result.Bans, control.FromJail(b))
				}
			}
			d.enforce(news)
			result.Banned += len(news)
			if text, bad := d.problems["apply"]; bad && failed == nil {
				failed = errors.New(text)
			}
		})
		if err = errors.Join(err, failed); err != nil {
			return result, err
		}
	}
	return result, nil
}

// Unban ends bans.
func (d *Daemon) Unban(ctx context.Context, r control.UnbanRequest) (control.UnbanResult, error) {
	var result control.UnbanResult
	prefixes := r.Prefixes
	if r.All {
		var err error
		if prefixes, err = d.all(ctx, r.Jail); err != nil {
			return result, err
		}
	}
	many := bulk(len(prefixes))
	if many {
		prefixes = slices.SortedFunc(slices.Values(prefixes), netip.Prefix.Compare)
		defer func() {
			d.log.Info(fmt.Sprintf("unban %d prefixes", result.Unbanned), "event", EventUnban)
		}()
	}
	for part := range slices.Chunk(prefixes, chunk) {
		var failed error
		err := d.change(ctx, func() {
			var ended [][]Entry
			ended, failed = d.unban(part, r.Jail, many)
			result.Unbanned += len(ended)
			if many {
				d.armExpiry()
				return
			}
			for _, list := range ended {
				for _, e := range list {
					result.Bans = append(result.Bans, wire(e))
				}
			}
			for _, p := range part {
				if len(result.Covered) < control.MaxEcho {
					covering, err := d.o.Blocklist.Covering(p)
					failed = errors.Join(failed, err)
					for _, e := range covering {
						result.Covered = append(result.Covered, wire(e))
					}
				}
			}
			d.armExpiry()
		})
		if err = errors.Join(err, failed); err != nil {
			return result, err
		}
	}
	return result, nil
}

// all are the prefixes that stand, in the kernel or only decided; of one jail,
// if it is named.
func (d *Daemon) all(ctx context.Context, jail string) ([]netip.Prefix, error) {
	found := map[netip.Prefix]bool{}
	for e, err := range d.o.Blocklist.List() {
		if err != nil {
			return nil, err
		}
		if jail == "" || e.Jail == jail {
			found[e.Prefix] = true
		}
	}
	err := d.do(ctx, func() {
		standing := d.judge.Standing()
		if jail != "" {
			standing = d.judge.StandingOf(jail)
		}
		for b := range standing {
			found[b.Prefix] = true
		}
	})
	return slices.Collect(maps.Keys(found)), err
}

// unban ends the bans of some prefixes, all or those of one jail, the kernel's
// too if only it knew one, and returns what has ended, by prefix. Of many, bans
// that came as one of many are told of neither in the log nor in the history.
func (d *Daemon) unban(list []netip.Prefix, jail string, many bool) (ended [][]Entry, err error) {
	var shared []netip.Prefix // with another jail, whose ban goes on
	if jail != "" {
		if list, shared, err = d.held(list, jail); err != nil {
			return nil, fmt.Errorf("unban: %w", err)
		}
	}
	were, err := d.o.Blocklist.RemoveBatch(list)
	if err != nil {
		// Those that the kernel still has stay decided.
		list = nil
		for _, e := range were {
			list = append(list, e.Prefix)
		}
		err = fmt.Errorf("unban: %w", err)
	}
	kernel := make(map[netip.Prefix]Entry, len(were))
	for _, e := range were {
		kernel[e.Prefix] = e
	}
	for _, p := range list {
		e, stood := kernel[p]
		if of := d.unbanned(p, e, stood, jail, many); len(of) > 0 {
			ended = append(ended, of)
		}
	}
	var still []jails.Ban
	for _, p := range shared {
		ended = append(ended, d.unbanned(p, Entry{}, false, jail, many))
		if b, ok := d.judge.Find(p); ok {
			still = append(still, b)
		}
	}
	if len(still) > 0 {
		d.apply(still)
	}
	return ended, err
}

// held picks those of some prefixes that a jail bans: alone, or together with
// another.
func (d *Daemon) held(list []netip.Prefix, jail string) (alone, shared []netip.Prefix, err error) {
	for _, p := range list {
		_, held := d.judge.StandingBy(p, jail)
		_, stands := d.judge.Find(p)
		switch {
		case held && d.judge.StandsBut(p, jail):
			shared = append(shared, p)
		case held:
			alone = append(alone, p)
		case !stands: // but perhaps in the kernel, from before the daemon
			kernel, err := d.o.Blocklist.Covering(p)
			if err != nil {
				return nil, nil, err
			}
			if len(kernel) > 0 && kernel[0].Prefix == p && kernel[0].Jail == jail {
				alone = append(alone, p)
			}
		}
	}
	return alone, shared, nil
}

// unbanned ends what has been decided about a prefix that is out of the
// kernel, where it was e if it stood; or what one jail has decided.
func (d *Daemon) unbanned(p netip.Prefix, e Entry, stood bool, jail string, many bool) []Entry {
	delete(d.unapplied, p)
	var ended []Entry
	for _, b := range d.judge.UnbanOf(p, jail, many, d.o.Now()) {
		ended = append(ended, Entry{Ban: b})
	}
	if len(ended) == 0 && stood {
		ended = []Entry{e}
	}
	for i := range ended {
		if i == 0 {
			ended[0].Packets, ended[0].Bytes = e.Packets, e.Bytes
			d.dropped(ended[0])
		}
		if !many || !ended[i].Bulk {
			d.log.Info("unban "+short(p), "event", EventUnban, "jail", ended[i].Jail, "addr", short(p), "packets", ended[i].Packets)
		}
		d.changed(EventUnban, ended[i])
	}
	return ended
}

// Allow puts prefixes on the allowlist by hand; bans within them end.
func (d *Daemon) Allow(ctx context.Context, prefixes []netip.Prefix) (int, error) {
	added := 0
	var failed error
	err := d.do(ctx, func() {
		for _, p := range prefixes {
			if !d.manual[p] {
				d.setManual(p, true)
				added++
			}
		}
		if failed = d.refreshAllowed(); failed != nil {
			return
		}
		var within []netip.Prefix
		for b := range d.judge.Standing() {
			for _, p := range prefixes {
				if p.Bits() <= b.Prefix.Bits() && p.Contains(b.Prefix.Addr()) {
					within = append(within, b.Prefix)
					break
				}
			}
		}
		_, failed = d.unban(within, "", bulk(len(within)))
	})
	return added, errors.Join(err, failed)
}

// Disallow takes entries made by hand off the allowlist.
func (d *Daemon) Disallow(ctx context.Context, prefixes []netip.Prefix) (int, error) {
	removed := 0
	var failed error
	err := d.do(ctx, func() {
		for _, p := range prefixes {
			if d.manual[p] {
				d.setManual(p, false)
				removed++
			}
		}
		failed = d.refreshAllowed()
	})
	return removed, errors.Join(err, failed)
}

// Allowed lists the allowlist.
func (d *Daemon) Allowed(ctx context.Context) ([]control.Allow, error) {
	var list []control.Allow
	err := d.do(ctx, func() {
		for p, origin := range d.allowed {
			list = append(list, control.Allow{Prefix: p, Origin: origin})
		}
	})
	slices.SortFunc(list, func(a, b control.Allow) int { return a.Prefix.Compare(b.Prefix) })
	return list, err
}

// Stats reads the kernel's counters.
func (d *Daemon) Stats(ctx context.Context) (control.Stats, error) {
	s, err := d.o.Blocklist.Stats()
	if err != nil {
		return s, err
	}
	err = d.do(ctx, func() {
		s.Bans = d.judge.Stats().Standing
	})
	return s, err
}

// whyHistory bounds the history that Why tells.
const whyHistory = 20

// Why explains what holds for a prefix.
func (d *Daemon) Why(ctx context.Context, p netip.Prefix) (control.Why, error) {
	w := control.Why{Prefix: p}
	covering, err := d.o.Blocklist.Covering(p)
	if err != nil {
		return w, err
	}
	err = d.do(ctx, func() {
		for _, e := range covering {
			if b, ok := d.judge.Find(e.Prefix); ok && b.Jail == e.Jail {
				e.Ban = b
			}
			w.Bans = append(w.Bans, wire(e))
		}
		why := d.judge.Why(p, d.o.Now())
		w.Strikes = why.Strikes
		if at := control.Place(d.o.Places.Find(p.Addr())); at != (control.Place{}) {
			w.Place = &at
		}
		for _, a := range why.Allowed {
			w.Allowed = append(w.Allowed, control.Allow(a))
		}
		for _, win := range why.Windows {
			w.Windows = append(w.Windows, control.Window{
				Jail: win.Jail, Failures: win.Failures, MaxRetry: win.MaxRetry, FindTime: control.Duration(win.FindTime),
				First: win.First, Last: win.Last,
			})
		}
	})
	if err != nil {
		return w, err
	}
	w.History, err = d.History(ctx, control.HistoryQuery{Prefix: p, Limit: whyHistory})
	return w, err
}

// History reads past events.
func (d *Daemon) History(ctx context.Context, q control.HistoryQuery) ([]control.Event, error) {
	if err := d.flush(ctx); err != nil {
		return nil, err
	}
	dropped := map[string]control.Verdict{}
	err := d.ledger.Walk(kindDropped, func(key string, value []byte) error {
		var v control.Verdict
		if err := json.Unmarshal(value, &v); err != nil {
			return fmt.Errorf("read what %s dropped: %w", key, err)
		}
		dropped[key] = v
		return nil
	})
	if err != nil {
		return nil, err
	}
	// The newest first, until there are enough.
	var events []control.Event
	since := jails.HistoryKey(q.Since.Time)
	err = d.ledger.WalkBack(jails.KindHistory, func(key string, value []byte) error {
		if !q.Since.IsZero() && key < since {
			return errEnough
		}
		var e jails.Event
		if err := json.Unmarshal(value, &e); err != nil {
			return fmt.Errorf("read event %s: %w", key, err)
		}
		if q.Prefix.IsValid() && !q.Prefix.Overlaps(e.Ban.Prefix) {
			return nil
		}
		v := dropped[droppedKey(e.Ban.Since, e.Ban.Prefix)]
		events = append(events, control.Event{Time: e.Time, Kind: e.Kind, Ban: wire(Entry{e.Ban, v.Packets, v.Bytes})})
		if len(events) == q.Limit {
			return errEnough
		}
		return nil
	})
	if err != nil && !errors.Is(err, errEnough) {
		return nil, err
	}
	slices.Reverse(events)
	return events, nil
}

// Import takes over bans with their own ends.
func (d *Daemon) Import(ctx context.Context, r control.ImportRequest) (control.ImportResult, error) {
	var result control.ImportResult
	prefixes := make([]netip.Prefix, len(r.Bans))
	for i, b := range r.Bans {
		prefixes[i] = b.Prefix
	}
	refused, err := d.refuse(ctx, jails.Manual, prefixes)
	if err != nil {
		return result, err
	}
	if len(refused) > 0 && !r.SkipRefused {
		return result, refusal(refused)
	}
	result.Refused = refused
	keep := make(map[netip.Prefix]bool, len(prefixes))
	many := bulk(len(r.Bans))
	bans := r.Bans
	if many {
		bans = slices.SortedFunc(slices.Values(bans), func(a, b control.Ban) int { return a.Prefix.Compare(b.Prefix) })
	}
	if !r.DryRun {
		defer func() {
			d.log.Info(fmt.Sprintf("import %d bans", result.Added+result.Extended), "event", EventBan, "kept", result.Kept, "over", result.Over, "refused", len(refused), "removed", result.Removed)
		}()
	}
	for part := range slices.Chunk(bans, chunk) {
		var failed error
		err := d.change(ctx, func() {
			now := d.o.Now()
			var news []jails.Ban
			for _, w := range part {
				if d.judge.Check(w.Prefix, jails.Manual) != nil {
					continue
				}
				b := jails.Ban{Prefix: w.Prefix, Jail: w.Jail, Since: w.Since, Until: w.Until.Time, Bulk: many}
				if b.Ports, failed = w.PortRanges(); failed != nil {
					return
				}
				if b.Jail == "" {
					b.Jail = jails.Manual
				}
				if b.Over(now) {
					result.Over++
					continue
				}
				keep[b.Prefix] = true
				standing, ok := d.judge.Find(b.Prefix)
				switch {
				case !ok:
					result.Added++
				case !standing.Forever() && (b.Forever() || b.Until.After(standing.Until)):
					result.Extended++
				default:
					result.Kept++
					continue
				}
				news = append(news, b)
			}
			if r.DryRun {
				return
			}
			for _, b := range news {
				if _, err := d.judge.Import(b, now); err != nil {
					failed = err
					return
				}
			}
			d.enforce(news)
			if text, bad := d.problems["apply"]; bad {
				failed = errors.New(text)
			}
		})
		if err = errors.Join(err, failed); err != nil {
			return result, err
		}
	}
	if r.Replace {
		var extra []netip.Prefix
		err := d.do(ctx, func() {
			for b := range d.judge.Standing() {
				if !keep[b.Prefix] {
					extra = append(extra, b.Prefix)
				}
			}
		})
		if err != nil || r.DryRun {
			result.Removed = len(extra)
			return result, err
		}
		slices.SortFunc(extra, netip.Prefix.Compare)
		for part := range slices.Chunk(extra, chunk) {
			var failed error
			err := d.change(ctx, func() {
				var ended [][]Entry
				ended, failed = d.unban(part, "", bulk(len(extra)))
				result.Removed += len(ended)
				d.armExpiry()
			})
			if err = errors.Join(err, failed); err != nil {
				return result, err
			}
		}
	}
	return result, nil
}

// Reload reads the configuration again. On an error the old one goes on.
func (d *Daemon) Reload(ctx context.Context) (control.ReloadResult, error) {
	var result control.ReloadResult
	var failed error
	err := d.do(ctx, func() { result, failed = d.reload() })
	return result, errors.Join(err, failed)
}

func (d *Daemon) reload() (control.ReloadResult, error) {
	config, err := d.o.Load()
	if err != nil {
		err = fmt.Errorf("%w, the old one goes on: %w", control.ErrConfig, err)
		d.problem("reload", err)
		return control.ReloadResult{}, err
	}
	old := d.config
	d.stopReading()
	d.config = config
	if err := d.startReading(); err != nil {
		d.config = old
		if again := d.startReading(); again != nil {
			d.fail(again)
		}
		err = fmt.Errorf("the new configuration can't be used, the old one goes on: %w", err)
		d.problem("reload", err)
		return control.ReloadResult{}, err
	}
	d.judge.Reload(config)
	d.o.Hooks.Configure(config)
	d.followPlaces()
	d.o.Feeds.Configure(config.Settings.Feeds)
	d.problem("reload", nil)
	d.problem("allowlist", d.refreshAllowed())
	d.repair()
	result := control.ReloadResult{}
	for i := range config.Jails {
		if config.Jails[i].Enabled {
			result.Jails = append(result.Jails, config.Jails[i].Name)
		}
	}
	select {
	case d.reloaded <- struct{}{}:
	default:
	}
	if was, is := old.Settings, config.Settings; was.BPFDir != is.BPFDir || was.Socket != is.Socket || was.StateDir != is.StateDir || was.MaxBans != is.MaxBans || was.Mode != is.Mode || was.Metrics != is.Metrics || was.Web != is.Web || was.Publish != is.Publish || was.TokenFile != is.TokenFile || !reflect.DeepEqual(was.Fleet, is.Fleet) {
		result.Warnings = append(result.Warnings, "bpf_dir, socket, state_dir, metrics, web, publish, token_file, fleet, max_bans and mode are taken at a restart, not at a reload")
		d.log.Warn(result.Warnings[0])
	}
	d.log.Info("configuration reloaded", "event", EventReload, "jails", len(result.Jails))
	return result, nil
}
