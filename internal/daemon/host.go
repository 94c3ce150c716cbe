package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"xdpban/internal/control"
	"xdpban/internal/ledger"
	"xdpban/jails"
)

// findSessions allowlists where logged-in SSH users come from: the operator
// who starts xdpban must not be locked out by yesterday's typing errors.
func (d *Daemon) findSessions(ctx context.Context) {
	peers, err := d.o.Host.SessionPeers(ctx)
	if err != nil {
		d.problem("sessions", fmt.Errorf("find the SSH sessions that must not be locked out: %w", err))
		return
	}
	d.session = nil
	for _, a := range peers {
		d.session = append(d.session, single(a))
		d.log.Info("never banned, since a user is logged in from there", "addr", a.String())
	}
}

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// watchResolvers follows the DNS servers.
func (d *Daemon) watchResolvers() {
	if !d.config.Settings.IgnoreResolvers {
		return
	}
	if now, err := d.o.Host.Resolvers(); err != nil || !slices.Equal(now, d.resolvers) {
		d.problem("allowlist", d.refreshAllowed())
	}
}

// refreshAllowed brings the judge's and the kernel's allowlists up to date
// with the configuration, the host's addresses, sessions and what was allowed
// by hand.
func (d *Daemon) refreshAllowed() error {
	own, err := d.o.Host.Own()
	if err != nil {
		return err
	}
	if !d.config.Settings.IgnoreSelf {
		own = nil
	}
	var gateways, resolvers []netip.Prefix
	if d.config.Settings.IgnoreGateways {
		list, err := d.o.Host.Gateways()
		if err != nil {
			return err
		}
		for _, a := range list {
			gateways = append(gateways, single(a))
		}
	}
	d.resolvers = nil
	if d.config.Settings.IgnoreResolvers {
		if d.resolvers, err = d.o.Host.Resolvers(); err != nil {
			return err
		}
		for _, a := range d.resolvers {
			resolvers = append(resolvers, single(a))
		}
	}
	d.judge.SetAllowed(OriginOwn, own)
	d.judge.SetAllowed(OriginGateway, gateways)
	d.judge.SetAllowed(OriginResolver, resolvers)
	d.judge.SetAllowed(OriginSession, d.session)
	manual := slices.Collect(maps.Keys(d.manual))
	d.judge.SetAllowed(OriginManual, manual)
	d.judge.SetAllowed(OriginName, d.names)

	want := map[netip.Prefix]string{}
	for _, group := range []struct {
		origin   string
		prefixes []netip.Prefix
	}{
		// Where one prefix has several reasons, the last one is shown.
		{OriginOwn, own},
		{OriginGateway, gateways},
		{OriginResolver, resolvers},
		{OriginSession, d.session},
		{OriginName, d.names},
		{OriginConfig, d.config.Settings.IgnoreIP},
		{OriginManual, manual},
	} {
		for _, p := range group.prefixes {
			want[p] = group.origin
		}
	}
	have := map[netip.Prefix]string{}
	list, err := d.o.Blocklist.Allowed()
	if err != nil {
		return fmt.Errorf("read the kernel's allowlist: %w", err)
	}
	for _, a := range list {
		have[a.Prefix] = a.Origin
	}
	var add []Allow
	for p, origin := range want {
		if have[p] != origin {
			add = append(add, Allow{p, origin})
		}
	}
	if err := d.o.Blocklist.SetAllow(add); err != nil {
		return fmt.Errorf("put %d prefixes on the kernel's allowlist: %w", len(add), err)
	}
	for p := range have {
		if _, ok := want[p]; !ok {
			if _, err := d.o.Blocklist.RemoveAllow(p); err != nil {
				return fmt.Errorf("take %s off the kernel's allowlist: %w", p, err)
			}
		}
	}
	d.allowed = want
	return nil
}

// adoptAllowed takes over what was allowed or disallowed by hand in the
// pinned maps while no daemon ran.
func (d *Daemon) adoptAllowed() error {
	list, err := d.o.Blocklist.Allowed()
	if err != nil {
		return fmt.Errorf("read the kernel's allowlist: %w", err)
	}
	standing := map[netip.Prefix]bool{}
	for _, a := range list {
		if a.Origin == OriginManual {
			standing[a.Prefix] = true
		}
	}
	for p := range standing {
		if !d.manual[p] {
			d.setManual(p, true)
		}
	}
	for p := range maps.Clone(d.manual) {
		if !standing[p] {
			d.setManual(p, false)
		}
	}
	return nil
}

func (d *Daemon) setManual(p netip.Prefix, allow bool) {
	r := ledger.Record{Kind: kindAllow, Key: p.String()}
	if allow {
		d.manual[p] = true
		r.Value = []byte("{}")
	} else {
		delete(d.manual, p)
	}
	d.checkpoint.put(r)
}

// ErrNoInterface says that there is nothing to protect.
var ErrNoInterface = errors.New("no interface to protect")

// errNoRoute is an ErrNoInterface that time may mend: none is configured, and
// the host has no network yet.
var errNoRoute = fmt.Errorf("%w yet", ErrNoInterface)

// attach puts the program on the configured interfaces, or the default
// route's. It is an error if it can be put on none of them; those that fail
// while others don't are tried again when the host changes.
func (d *Daemon) attach() error {
	names := d.config.Settings.Interfaces
	if len(names) == 0 {
		var err error
		if names, err = d.o.Host.DefaultInterfaces(); err != nil {
			return fmt.Errorf("%w: %w; waiting for one; or name an interface with interfaces = [\"eth0\"] in xdpban.toml or --interface", errNoRoute, err)
		}
	}
	protected := map[string]bool{}
	for _, i := range d.interfaces {
		protected[i.Name] = i.Error == ""
	}
	d.interfaces = nil
	var failures []error
	attached := 0
	for _, name := range names {
		shown := control.Interface{Name: name}
		mode, changed, err := d.o.Blocklist.Attach(name)
		if err != nil {
			shown.Error = err.Error()
			failures = append(failures, err)
		} else {
			attached++
			shown.Mode = mode
			switch {
			case changed && protected[name]:
				d.log.Warn("interface "+name+" was unprotected: it was made anew, or somebody took the program or its pin away; it is protected again",
					"event", EventGuard, "interface", name, "mode", mode)
			case changed:
				d.log.Info("protecting interface "+name, "event", EventGuard, "interface", name, "mode", mode)
			}
			if mode == "generic" {
				d.problem("generic "+name, fmt.Errorf("interface %s is protected in generic mode, which is slower: its driver has no native XDP for this configuration", name))
			}
		}
		d.problem("attach "+name, err)
		d.interfaces = append(d.interfaces, shown)
	}
	if attached == 0 {
		return fmt.Errorf("%w: %w", ErrNoInterface, errors.Join(failures...))
	}
	return nil
}

// repair puts back what somebody or something has taken away.
func (d *Daemon) repair() {
	lost, err := d.o.Blocklist.Mend()
	d.problem("pins", err)
	if lost != nil {
		d.log.Error("somebody removed the kernel's bans; they are put back, but what they have dropped, closed ports, the policy and pipelines are lost", "error", lost)
		now := d.o.Now()
		d.apply(slices.DeleteFunc(slices.Collect(d.judge.Standing()), func(b jails.Ban) bool { return b.Over(now) }))
		d.problem("allowlist", d.refreshAllowed())
		d.checkpoint.put(epochRecord(d.o.Blocklist.Epoch()))
	}
	if err := d.attach(); err != nil {
		d.problem("attach", err)
		return
	}
	d.problem("attach", nil)
}

// watchHost follows the host's addresses and interfaces.
func (d *Daemon) watchHost(ctx context.Context) {
	for ctx.Err() == nil {
		err := d.o.Host.Watch(ctx, func() { d.do(ctx, d.hostChanged) })
		if err == nil {
			return
		}
		// The kernel drops notifications when they come too fast; what was
		// missed is seen by looking again.
		d.do(ctx, func() {
			d.log.Warn("network changes are followed anew", "error", err)
			d.hostChanged()
		})
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
		}
	}
}

func (d *Daemon) hostChanged() {
	d.problem("allowlist", d.refreshAllowed())
	d.repair()
}
