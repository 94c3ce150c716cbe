package daemon

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"xdpban/internal/source"
	"xdpban/jails"
)

// restore reads the checkpoint.
func (d *Daemon) restore() error {
	l := d.ledger
	err := l.Walk(kindPosition, func(key string, value []byte) error {
		var p source.Position
		if err := json.Unmarshal(value, &p); err != nil {
			return fmt.Errorf("restore the position in %s: %w", key, err)
		}
		d.checkpoint.position[key] = p
		return nil
	})
	if err != nil {
		return err
	}
	err = l.Walk(kindAllow, func(key string, _ []byte) error {
		p, err := netip.ParsePrefix(key)
		if err != nil {
			return fmt.Errorf("restore the allowlist: %w", err)
		}
		d.manual[p] = true
		return nil
	})
	if err != nil {
		return err
	}
	err = l.Walk(jails.KindHistory, func(string, []byte) error {
		d.checkpoint.history++
		return nil
	})
	if err != nil {
		return err
	}
	var state []jails.Record
	for _, kind := range []string{jails.KindOffender, jails.KindBrake} {
		err = l.Walk(kind, func(key string, value []byte) error {
			state = append(state, jails.Record{Kind: kind, Key: key, Value: slices.Clone(value)})
			return nil
		})
		if err != nil {
			return err
		}
	}
	if err := d.judge.Restore(state, d.o.Now()); err != nil {
		return fmt.Errorf("restore from ledger %s: %w", d.o.LedgerPath, err)
	}
	return nil
}

// endsAbout is how exactly the end of a ban is known: the kernel has a clock of
// its own, and looks at it at another time. What it has ended already must not
// pass for unbanned by hand, which would forgive the strikes.
const endsAbout = time.Second

// reconcile makes the kernel's bans and the judge's the same. As long as the
// kernel's set has been standing since the last checkpoint, it is the truth
// for what has been banned and unbanned by hand while no daemon ran: the
// checkpoint is always behind it. After a reboot the checkpoint is.
func (d *Daemon) reconcile() error {
	var known uint64
	err := d.ledger.Walk(kindKernel, func(key string, value []byte) (err error) {
		if key == keyEpoch {
			known, err = strconv.ParseUint(string(value), 16, 64)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("restore the kernel's epoch: %w", err)
	}
	now := d.o.Now()
	stood := known == d.o.Blocklist.Epoch()
	kernel := map[netip.Prefix]Entry{}
	for e, err := range d.o.Blocklist.List() {
		if err != nil {
			return fmt.Errorf("read the kernel's bans: %w", err)
		}
		kernel[e.Prefix] = e
	}
	var missing []jails.Ban
	for b := range d.judge.Standing() {
		if _, ok := kernel[b.Prefix]; !ok && !b.Over(d.o.Now().Add(endsAbout)) {
			missing = append(missing, b)
		}
	}
	if stood {
		for _, b := range missing {
			d.judge.Unban(b.Prefix, now)
			d.log.Info("unbanned while xdpban was down", "jail", b.Jail, "addr", short(b.Prefix))
		}
		if err := d.adoptAllowed(); err != nil {
			return err
		}
	} else if len(missing) > 0 {
		d.apply(missing)
		d.log.Info("bans are in force again", "bans", len(missing))
	}
	adopted := 0
	for _, e := range kernel {
		if b, ok := d.judge.Find(e.Prefix); ok && (b.Jail == e.Jail || b.Until.Equal(e.Until)) {
			continue
		}
		if _, ok := d.config.Jail(e.Jail); ok {
			// Decided after the last checkpoint: reading on from there decides
			// it again, and counts it as the strike that it is.
			d.orphans[e.Prefix] = true
			continue
		}
		d.judge.Adopt(e.Ban)
		adopted++
	}
	if adopted > 0 {
		d.log.Info("took over bans that stand in the kernel", "bans", adopted)
	}
	d.checkpoint.put(epochRecord(d.o.Blocklist.Epoch()))
	return nil
}

// adoptOrphans takes over the kernel's bans that nothing has accounted for: a
// damaged ledger, say, was begun anew.
func (d *Daemon) adoptOrphans() {
	if len(d.orphans) == 0 {
		return
	}
	for p := range d.orphans {
		if _, ok := d.judge.Find(p); ok {
			continue
		}
		standing, err := d.o.Blocklist.Covering(p)
		if err != nil {
			d.problem("orphans", fmt.Errorf("take over the ban of %s: %w", short(p), err))
			return
		}
		if len(standing) > 0 && standing[0].Prefix == p {
			d.judge.Adopt(standing[0].Ban)
			d.log.Info("took over a ban that stands in the kernel", "jail", standing[0].Jail, "addr", short(p))
		}
	}
	clear(d.orphans)
	d.armExpiry()
}
