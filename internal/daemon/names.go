package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"xdpban/jails"
	"xdpban/matcher"
)

const (
	lookupTime   = 5 * time.Second // of one name
	lookupQueue  = 1000            // failures that wait for their name's address
	lookupKeep   = time.Minute     // an answer is used again so long
	lookupCache  = 10_000          // answers kept
	namesRefresh = 5 * time.Minute // names in ignoreip
	namesRetry   = 5 * time.Second // those that couldn't be looked up: at boot the network may come later
)

// named is a failure of a host name in a jail that looks names up.
type named struct {
	key     string // in the ledger
	jail    string
	failure *matcher.Failure
}

// byName hands a failure with a host name in the place of an address to the
// resolver, if its jail wants that. It never waits: whoever controls a name's
// zone could hold up all jails otherwise.
func (d *Daemon) byName(jail string, f *matcher.Failure) bool {
	if f.Host == "" || f.Source.IsValid() {
		return false
	}
	j, ok := d.config.Jail(jail)
	if !ok || j.UseDNS != jails.DNSYes && j.UseDNS != jails.DNSWarn {
		return false
	}
	// The one that is being looked up counts, too: they must all have room again
	// after a restart.
	if d.unnamed < lookupQueue {
		d.unnamed++
		f = f.Clone()
		d.named <- named{d.keep(kindNamed, jail, f), jail, f}
		d.problem("names", nil)
	} else {
		d.problem("names", fmt.Errorf("more host names than can be looked up: failures are dropped in jail %s; set usedns = \"no\" there", jail))
	}
	return true
}

// resumeNames hands those failures to the resolver again whose names had no
// answer when the daemon ended.
func (d *Daemon) resumeNames() error {
	again, err := d.waited(kindNamed)
	for _, r := range again {
		d.byName(r.Jail, r.Failure)
	}
	return err
}

// resolveFailures looks up the names of failures, one after the other, and
// has them judged.
func (d *Daemon) resolveFailures(ctx context.Context) {
	type answer struct {
		addrs []netip.Addr
		until time.Time
	}
	cache := map[string]answer{}
	for {
		select {
		case <-ctx.Done():
			return
		case n := <-d.named:
			host := n.failure.Host
			a, ok := cache[host]
			if !ok || d.o.Now().After(a.until) {
				if len(cache) >= lookupCache {
					clear(cache)
				}
				a.addrs, _ = d.lookup(ctx, host) // a name without an address is nobody
				a.until = d.o.Now().Add(lookupKeep)
				cache[host] = a
			}
			if ctx.Err() != nil {
				return // it is looked up again at the next start
			}
			_ = d.do(ctx, func() { // only ended together with ctx
				d.unnamed--
				d.drop(kindNamed, n.key)
				for _, addr := range a.addrs {
					f := n.failure.Clone()
					f.Source = netip.PrefixFrom(addr, addr.BitLen())
					if j, ok := d.config.Jail(n.jail); ok && j.UseDNS == jails.DNSWarn {
						d.log.Warn("a name in the log stands for "+addr.String()+", as its owner says", "jail", n.jail, "name", host, "addr", addr.String())
					}
					if d.ask(n.jail, f) {
						continue
					}
					d.decided(d.failure(n.jail, f, d.o.Now()))
				}
			})
		}
	}
}

func (d *Daemon) lookup(ctx context.Context, name string) ([]netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTime)
	defer cancel()
	addrs, err := d.o.Lookup(ctx, name)
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	return addrs, err
}

// OriginName is the origin of addresses that names in ignoreip stand for.
const OriginName = "name"

// refreshNames keeps the addresses of the names in ignoreip up to date. A name
// that can't be looked up keeps its last addresses.
func (d *Daemon) refreshNames(ctx context.Context) {
	known := map[string][]netip.Prefix{}
	for {
		var config *jails.Config
		if d.do(ctx, func() { config = d.config }) != nil {
			return
		}
		names := slices.Clone(config.Settings.IgnoreNames)
		for _, j := range config.Jails {
			names = append(names, j.IgnoreNames...)
		}
		slices.Sort(names)
		var failures []error
		for _, name := range slices.Compact(names) {
			addrs, err := d.lookup(ctx, name)
			if err != nil {
				failures = append(failures, fmt.Errorf("look up %s of ignoreip: %w", name, err))
				continue
			}
			known[name] = nil
			for _, a := range addrs {
				known[name] = append(known[name], netip.PrefixFrom(a, a.BitLen()))
			}
		}
		of := func(names []string) (all []netip.Prefix) {
			for _, name := range names {
				all = append(all, known[name]...)
			}
			return all
		}
		err := d.do(ctx, func() {
			d.problem("ignoreip", errors.Join(failures...))
			d.names = of(d.config.Settings.IgnoreNames)
			for i := range d.config.Jails {
				j := &d.config.Jails[i]
				d.judge.SetJailAllowed(j.Name, of(j.IgnoreNames))
			}
			d.problem("allowlist", d.refreshAllowed())
		})
		if err != nil {
			return
		}
		again := time.NewTimer(namesRefresh)
		if len(failures) > 0 {
			again.Reset(namesRetry)
		}
		select {
		case <-ctx.Done():
		case <-again.C:
		case <-d.reloaded:
		}
		again.Stop()
	}
}
