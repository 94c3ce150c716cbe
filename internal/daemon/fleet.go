package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"xdpban/internal/control"
	"xdpban/jails"
)

// Walk tells, in the loop, of the bans that stand but for feeds': of each jail's,
// where several ban one prefix. done is called in the same turn.
func (d *Daemon) Walk(ctx context.Context, each func(jails.Ban), done func()) error {
	return d.do(ctx, func() {
		now := d.o.Now()
		for _, name := range d.judge.Jails() {
			if jails.ByFeed(name) {
				continue
			}
			for b := range d.judge.StandingOf(name) {
				if !b.Over(now) {
					each(b)
				}
			}
		}
		done()
	})
}

// Shared puts in force what other hosts of the fleet have banned, and ends what
// they no longer ban. This host's allowlist goes first: what it keeps from
// being banned is returned. With quiet, or of very many, the log has one line for
// all, and the history nothing.
func (d *Daemon) Shared(ctx context.Context, bans []jails.Ban, over []netip.Prefix, quiet bool) (refused []netip.Prefix, err error) {
	var failed error
	quiet = quiet || bulk(len(bans)+len(over))
	err = d.change(ctx, func() {
		now := d.o.Now()
		d.withdraw(over, quiet, now)
		var news []jails.Ban
		for _, b := range bans {
			b.Jail, b.Bulk = jails.ByFleet, quiet
			if b.Over(now) {
				continue
			}
			stood, ok := d.judge.StandingBy(b.Prefix, b.Jail)
			if ok && !b.Forever() && (stood.Forever() || stood.Until.After(b.Until)) {
				d.judge.UnbanOf(b.Prefix, b.Jail, false, now) // the later end would win
			}
			made, err := d.judge.Import(b, now)
			if err != nil {
				refused = append(refused, b.Prefix)
				if !quiet {
					d.log.Warn("not banned as "+b.From+" has: "+err.Error(), "event", EventRefuse, "jail", b.Jail, "addr", short(b.Prefix))
				}
				continue
			}
			if !ok || !stood.Until.Equal(made.Until) {
				news = append(news, made)
			}
		}
		if len(news) > 0 {
			d.apply(news)
		}
		for _, b := range news {
			if !quiet {
				d.log.Info("ban "+short(b.Prefix)+" as "+b.From+" has", "event", EventBan, "jail", b.Jail, "addr", short(b.Prefix), "from", b.From, "until", end(b))
			}
			d.changed(EventBan, Entry{Ban: b})
		}
		if quiet && len(news)+len(refused) > 0 {
			d.log.Info(fmt.Sprintf("%d bans of the fleet are in force, %d kept off by the allowlist", len(news), len(refused)))
		}
		if text, bad := d.problems["apply"]; bad {
			failed = errors.New(text)
		}
		d.armExpiry()
	})
	return refused, errors.Join(err, failed)
}

// Reported judges what other hosts have counted.
func (d *Daemon) Reported(ctx context.Context, reports []jails.Report) error {
	return d.do(ctx, func() {
		now := d.o.Now()
		var bans []jails.Ban
		for _, r := range reports {
			bans = append(bans, d.judge.Reported(r, now)...)
		}
		d.decided(bans)
	})
}

// withdraw ends the fleet's bans of prefixes; another jail's ban of one goes on.
func (d *Daemon) withdraw(list []netip.Prefix, quiet bool, now time.Time) {
	var ended, still []jails.Ban
	var remove []netip.Prefix
	for _, p := range list {
		of := d.judge.UnbanOf(p, jails.ByFleet, false, now)
		if len(of) == 0 {
			continue
		}
		if b, ok := d.judge.Find(p); ok {
			still = append(still, b)
		} else {
			delete(d.unapplied, p)
			remove = append(remove, p)
		}
		ended = append(ended, of...)
	}
	if len(ended) == 0 {
		return
	}
	if len(still) > 0 {
		d.apply(still)
	}
	counts := map[netip.Prefix]Entry{}
	were, err := d.o.Blocklist.RemoveBatch(remove)
	if err != nil {
		// They drop until their end, and then go with a sweep.
		d.log.Error("could not take bans that the fleet ended out of the kernel", "error", err)
	}
	for _, e := range were {
		counts[e.Prefix] = e
	}
	for _, b := range ended {
		e := Entry{b, counts[b.Prefix].Packets, counts[b.Prefix].Bytes}
		d.dropped(e)
		if !quiet {
			d.log.Info("ban of "+short(b.Prefix)+" was ended by "+b.From, "event", EventUnban, "jail", b.Jail, "addr", short(b.Prefix), "from", b.From, "packets", e.Packets)
		}
		d.changed(EventOver, e)
	}
	if quiet {
		d.log.Info(fmt.Sprintf("%d bans were ended by the fleet", len(ended)))
	}
}

func end(b jails.Ban) string {
	if b.Forever() {
		return "forever"
	}
	return b.Until.Format(time.RFC3339)
}

// Eject says whether a host of the fleet is no longer to be heeded.
func (d *Daemon) Eject(_ context.Context, r control.EjectRequest) error {
	if d.o.Fleet == nil {
		return fmt.Errorf("%w: this host is in no fleet: xdpban.toml has no [fleet]", control.ErrInvalid)
	}
	return d.o.Fleet.Eject(r.Host, r.Back)
}
