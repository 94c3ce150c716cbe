package daemon

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"time"

	"xdpban/internal/control"
	"xdpban/jails"
)

// Enlist puts entries of a feed in force until their ends, or changes these, a
// chunk at a time. This host's allowlist goes first: how many it and good sense
// keep from being banned is returned.
func (d *Daemon) Enlist(ctx context.Context, feed string, entries iter.Seq2[netip.Prefix, time.Time]) (refused int, err error) {
	jail := jails.FeedPrefix + feed
	type entry struct {
		prefix netip.Prefix
		until  time.Time
	}
	part := make([]entry, 0, chunk)
	flush := func() error {
		var failed error
		err := d.do(ctx, func() {
			now := d.o.Now()
			var news []jails.Ban
			var out []netip.Prefix
			for _, e := range part {
				if !e.until.After(now) {
					continue
				}
				b, changed, err := d.judge.Enlist(e.prefix, jail, e.until, now)
				switch {
				case err != nil:
					refused++
					out = append(out, e.prefix)
				case changed:
					news = append(news, b)
				}
			}
			d.delist(jail, out)
			if len(news) > 0 {
				d.apply(news)
			}
			if text, bad := d.problems["apply"]; bad {
				failed = errors.New(text)
			}
			d.armExpiry()
		})
		part = part[:0]
		return errors.Join(err, failed)
	}
	for p, until := range entries {
		if part = append(part, entry{p, until}); len(part) == chunk {
			if err := flush(); err != nil {
				return refused, err
			}
		}
	}
	return refused, flush()
}

// Delist ends a feed's bans of prefixes, a chunk at a time.
func (d *Daemon) Delist(ctx context.Context, feed string, prefixes iter.Seq[netip.Prefix]) error {
	part := make([]netip.Prefix, 0, chunk)
	flush := func() error {
		err := d.do(ctx, func() {
			d.delist(jails.FeedPrefix+feed, part)
			d.armExpiry()
		})
		part = part[:0]
		return err
	}
	for p := range prefixes {
		if part = append(part, p); len(part) == chunk {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}

func (d *Daemon) delist(jail string, prefixes []netip.Prefix) {
	var ended []jails.Ban
	for _, p := range prefixes {
		if b, ok := d.judge.Delist(p, jail); ok {
			ended = append(ended, b)
		}
	}
	d.lift(ended)
}

// Enlisted are the prefixes in force of each feed, as the kernel has them: those
// of feeds that aren't configured any more, too.
func (d *Daemon) Enlisted(ctx context.Context) (map[string][]netip.Prefix, error) {
	any := false
	err := d.do(ctx, func() { any = slices.ContainsFunc(d.judge.Jails(), jails.ByFeed) })
	if err != nil || !any {
		return nil, err
	}
	found := map[string][]netip.Prefix{}
	for e, err := range d.o.Blocklist.List() {
		if err != nil {
			return nil, fmt.Errorf("read the kernel's bans: %w", err)
		}
		if jails.ByFeed(e.Jail) {
			name := e.Jail[len(jails.FeedPrefix):]
			found[name] = append(found[name], e.Prefix)
		}
	}
	return found, nil
}

// Feeds tells of the feeds, with what the bans of each have dropped.
func (d *Daemon) Feeds(ctx context.Context) ([]control.Feed, error) {
	list := d.o.Feeds.Status()
	if len(list) == 0 {
		return []control.Feed{}, nil
	}
	sum := map[string]control.Verdict{}
	for e, err := range d.o.Blocklist.List() {
		if err != nil {
			return nil, err
		}
		if jails.ByFeed(e.Jail) {
			v := sum[e.Jail]
			sum[e.Jail] = control.Verdict{Packets: v.Packets + e.Packets, Bytes: v.Bytes + e.Bytes}
		}
	}
	var stats jails.Stats
	var drops map[string]control.Verdict
	err := d.do(ctx, func() { stats, drops = d.judge.Stats(), maps.Clone(d.drops) })
	d.counted(list, stats, drops)
	for i := range list {
		v := &list[i].Dropped
		standing := sum[jails.FeedPrefix+list[i].Name]
		v.Packets += standing.Packets
		v.Bytes += standing.Bytes
	}
	return list, err
}

// counted adds what the daemon counts of feeds.
func (d *Daemon) counted(list []control.Feed, stats jails.Stats, drops map[string]control.Verdict) {
	for i := range list {
		jail := jails.FeedPrefix + list[i].Name
		list[i].Bans, list[i].Dropped = stats.Jails[jail].Standing, drops[jail]
	}
}

// ConfirmFeed takes the list of a feed that waits to be confirmed.
func (d *Daemon) ConfirmFeed(ctx context.Context, r control.FeedRequest) error {
	return d.o.Feeds.Confirm(ctx, r.Name)
}

// FetchFeed looks at a feed's source now.
func (d *Daemon) FetchFeed(ctx context.Context, r control.FeedRequest) error {
	return d.o.Feeds.Fetch(ctx, r.Name)
}
