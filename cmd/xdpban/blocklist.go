package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"time"

	"xdpban/bpf"
	"xdpban/internal/control"
	"xdpban/internal/host"
	"xdpban/jails"
)

// blocklist is what the commands work on: the daemon, or without one the
// pinned maps.
type blocklist interface {
	List(ctx context.Context, q control.ListQuery) (control.List, error)
	// Bans is List for many, without the ports.
	Bans(ctx context.Context, q control.ListQuery) iter.Seq2[control.Ban, error]
	Ban(ctx context.Context, r control.BanRequest) (control.BanResult, error)
	Unban(ctx context.Context, r control.UnbanRequest) (control.UnbanResult, error)
	Allow(ctx context.Context, p []netip.Prefix) (int, error)
	Disallow(ctx context.Context, p []netip.Prefix) (int, error)
	Allowed(ctx context.Context) ([]control.Allow, error)
	Ports(ctx context.Context) ([]control.Port, error)
	Stats(ctx context.Context) (control.Stats, error)
	Why(ctx context.Context, p netip.Prefix) (control.Why, error)
	Import(ctx context.Context, r control.ImportRequest) (control.ImportResult, error)
	Close() error
}

// maps says where the maps are, and how large they may be.
func (a *app) maps() bpf.Options {
	o := bpf.Options{Dir: a.BPFDir}
	if a.settings.Small {
		o = o.Small()
	}
	o.MaxBans = a.settings.MaxBans
	return o
}

// openPinned opens the maps that there are.
func (a *app) openPinned() (*bpf.Blocklist, error) {
	o := a.maps()
	o.MustExist = true
	return bpf.Open(o)
}

// open finds the daemon, or opens the maps; those that don't exist yet are
// made if make is set.
func (a *app) open(create bool) (blocklist, error) {
	c := control.NewClient(a.Socket)
	err := c.Ping(a.ctx)
	if err == nil {
		return c, nil
	}
	if !errors.Is(err, control.ErrDown) {
		return nil, err
	}
	o := a.maps()
	o.MustExist = !create
	b, err := bpf.Open(o)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("xdpban isn't running, and there are no pinned maps in %s: nothing is banned", a.BPFDir)
	}
	if errors.Is(err, fs.ErrPermission) {
		return nil, fmt.Errorf("xdpban isn't running, and only root may use the pinned maps: %w", err)
	}
	if err != nil {
		return nil, err
	}
	return &pinned{b}, nil
}

// pinned does on the pinned maps what a daemon would do, but for what only a
// daemon knows: jails, strikes, history.
type pinned struct{ *bpf.Blocklist }

func fromEntry(e bpf.Entry) control.Ban {
	b := control.Ban{
		Prefix: e.Prefix, Jail: e.Jail, Since: e.Since.UTC(), Until: control.Time{Time: e.Until},
		Packets: e.Packets, Bytes: e.Bytes,
	}
	for _, p := range e.Ports {
		b.Ports = append(b.Ports, p.String())
	}
	return b
}

func (m *pinned) Ports(context.Context) ([]control.Port, error) {
	return blockedPorts(m.Blocklist)
}

func (m *pinned) List(ctx context.Context, q control.ListQuery) (l control.List, err error) {
	l.Bans = []control.Ban{}
	if l.Ports, err = m.Ports(ctx); err != nil {
		return l, err
	}
	for b, err := range m.Bans(ctx, q) {
		if err != nil {
			return l, err
		}
		l.Bans = append(l.Bans, b)
	}
	return l, nil
}

func (m *pinned) Bans(_ context.Context, q control.ListQuery) iter.Seq2[control.Ban, error] {
	return func(yield func(control.Ban, error) bool) {
		for e, err := range m.Blocklist.List() {
			if err != nil {
				yield(control.Ban{}, err)
				return
			}
			if (q.Jail == "" || q.Jail == e.Jail) && !yield(fromEntry(e), nil) {
				return
			}
		}
	}
}

// standing are the bans of exactly these prefixes.
func (m *pinned) standing(ps []netip.Prefix) (map[netip.Prefix]bpf.Entry, error) {
	found := map[netip.Prefix]bpf.Entry{}
	if len(ps) <= control.MaxEcho {
		for _, p := range ps {
			covering, err := m.Covering(p)
			if err != nil {
				return nil, err
			}
			if len(covering) > 0 && covering[0].Prefix == p {
				found[p] = covering[0]
			}
		}
		return found, nil
	}
	return m.all()
}

// all is what stands.
func (m *pinned) all() (map[netip.Prefix]bpf.Entry, error) {
	found := map[netip.Prefix]bpf.Entry{}
	for e, err := range m.Blocklist.List() {
		if err != nil {
			return nil, err
		}
		found[e.Prefix] = e
	}
	return found, nil
}

// refuse says which prefixes mustn't be banned.
func (m *pinned) refuse(ps []netip.Prefix) ([]control.Refusal, error) {
	own, err := host.Addrs()
	if err != nil {
		return nil, err
	}
	allowed, err := m.Blocklist.Allowed()
	if err != nil {
		return nil, err
	}
	for _, p := range own {
		allowed = append(allowed, bpf.Allow{Prefix: p, Origin: jails.OriginOwn})
	}
	var refused []control.Refusal
	for _, p := range ps {
		if err := jails.Bannable(p); err != nil {
			refused = append(refused, control.Refusal{Prefix: p, Reason: err.Error()})
			continue
		}
		for _, a := range allowed {
			// A wider ban may stand: within it the allowlist goes first.
			if a.Prefix.Bits() <= p.Bits() && a.Prefix.Overlaps(p) {
				refused = append(refused, control.Refusal{Prefix: p, Reason: notBannable(p, a)})
				break
			}
		}
	}
	return refused, nil
}

func notBannable(p netip.Prefix, a bpf.Allow) string {
	what := fmt.Sprintf("%s is on the allowlist (%s)", short(a.Prefix), a.Origin)
	if a.Origin == jails.OriginOwn {
		what = fmt.Sprintf("%s is this host's own address", a.Prefix.Addr())
	}
	if p == a.Prefix {
		return what
	}
	return fmt.Sprintf("%s: %s", short(p), what)
}

// refusal is the error of a request of which nothing was done.
func refusal(refused []control.Refusal) error {
	more := ""
	if n := len(refused) - 1; n > 0 {
		more = fmt.Sprintf(", and %d more; nothing was banned", n)
	}
	return fmt.Errorf("%w: %s%s", control.ErrRefused, refused[0].Reason, more)
}

func without(ps []netip.Prefix, refused []control.Refusal) []netip.Prefix {
	if len(refused) == 0 {
		return ps
	}
	no := map[netip.Prefix]bool{}
	for _, r := range refused {
		no[r.Prefix] = true
	}
	return slices.DeleteFunc(slices.Clone(ps), func(p netip.Prefix) bool { return no[p] })
}

// lasts says that a ban to until lasts as long as one to other.
func lasts(until, other time.Time) bool {
	return until.IsZero() || !other.IsZero() && !until.Before(other)
}

func (m *pinned) Ban(_ context.Context, r control.BanRequest) (res control.BanResult, err error) {
	if res.Refused, err = m.refuse(r.Prefixes); err != nil {
		return res, err
	}
	if len(res.Refused) > 0 && !r.SkipRefused {
		return res, refusal(res.Refused)
	}
	ps := without(r.Prefixes, res.Refused)
	standing, err := m.standing(ps)
	if err != nil {
		return res, err
	}
	ban := bpf.Ban{Jail: r.Jail, Since: time.Now()}
	if ban.Jail == "" {
		ban.Jail = jails.Manual
	}
	if d := time.Duration(r.For); d != jails.Forever {
		ban.Until = ban.Since.Add(d)
	}
	add := make([]bpf.Ban, 0, len(ps))
	for _, p := range ps {
		if e, ok := standing[p]; ok && lasts(e.Until, ban.Until) {
			res.Kept++
			continue
		}
		ban.Prefix = p
		add = append(add, ban)
	}
	n, err := m.AddBatch(add)
	res.Banned = n
	if err != nil {
		return res, fmt.Errorf("%d of %d are banned: %w", n, len(add), err)
	}
	if len(ps) <= control.MaxEcho {
		standing, err = m.standing(ps)
		for _, p := range ps {
			res.Bans = append(res.Bans, fromEntry(standing[p]))
		}
	}
	return res, err
}

func (m *pinned) Unban(_ context.Context, r control.UnbanRequest) (res control.UnbanResult, err error) {
	ps := r.Prefixes
	if r.All || r.Jail != "" {
		var standing map[netip.Prefix]bpf.Entry
		if r.All {
			standing, err = m.all()
			ps = slices.Collect(maps.Keys(standing))
		} else {
			standing, err = m.standing(ps)
		}
		if err != nil {
			return res, err
		}
		ps = slices.DeleteFunc(slices.Clone(ps), func(p netip.Prefix) bool {
			e, ok := standing[p]
			return !ok || r.Jail != "" && e.Jail != r.Jail
		})
	}
	were, err := m.RemoveBatch(ps)
	res.Unbanned = len(were)
	if err != nil || len(ps) > control.MaxEcho {
		return res, err
	}
	for _, e := range were {
		res.Bans = append(res.Bans, fromEntry(e))
	}
	for _, p := range ps {
		covering, err := m.Covering(p)
		if err != nil {
			return res, err
		}
		for _, e := range covering {
			res.Covered = append(res.Covered, fromEntry(e))
		}
	}
	return res, nil
}

func (m *pinned) Allow(_ context.Context, ps []netip.Prefix) (int, error) {
	had, err := m.Blocklist.Allowed()
	if err != nil {
		return 0, err
	}
	var add []bpf.Allow
	for _, p := range ps {
		if !slices.ContainsFunc(had, func(a bpf.Allow) bool { return a.Prefix == p && a.Origin == "manual" }) {
			add = append(add, bpf.Allow{Prefix: p, Origin: "manual"})
		}
	}
	if err := m.SetAllow(add...); err != nil {
		return 0, err
	}
	var within []netip.Prefix
	for e, err := range m.Blocklist.List() {
		if err != nil {
			return len(add), err
		}
		if slices.ContainsFunc(ps, func(p netip.Prefix) bool { return p.Bits() <= e.Prefix.Bits() && p.Overlaps(e.Prefix) }) {
			within = append(within, e.Prefix)
		}
	}
	_, err = m.RemoveBatch(within)
	return len(add), err
}

func (m *pinned) Disallow(_ context.Context, ps []netip.Prefix) (n int, err error) {
	had, err := m.Blocklist.Allowed()
	if err != nil {
		return 0, err
	}
	for _, a := range had {
		if a.Origin != "manual" || !slices.Contains(ps, a.Prefix) {
			continue
		}
		if _, err := m.RemoveAllow(a.Prefix); err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

func (m *pinned) Allowed(context.Context) ([]control.Allow, error) {
	list, err := m.Blocklist.Allowed()
	allowed := make([]control.Allow, len(list))
	for i, a := range list {
		allowed[i] = control.Allow(a)
	}
	return allowed, err
}

func (m *pinned) Stats(context.Context) (control.Stats, error) {
	s, err := kernelStats(m.Blocklist)
	if err != nil {
		return s, err
	}
	for _, err := range m.Blocklist.List() {
		if err != nil {
			return s, err
		}
		s.Bans++
	}
	return s, nil
}

// kernelStats reads the verdict counters, all but the number of bans.
func kernelStats(b *bpf.Blocklist) (control.Stats, error) {
	s := control.Stats{
		Verdicts: map[string]control.Verdict{}, Reasons: map[string]control.Verdict{},
		Interfaces: map[string]map[string]control.Verdict{},
	}
	counts, err := b.CountsByInterface()
	if err != nil {
		return s, err
	}
	s.At = time.Now().UTC()
	add := func(m map[string]control.Verdict, key string, v bpf.Verdict) {
		sum := m[key]
		m[key] = control.Verdict{Packets: sum.Packets + v.Packets, Bytes: sum.Bytes + v.Bytes}
	}
	for _, c := range counts {
		add(s.Verdicts, c.Action, c.Verdict)
		add(s.Reasons, string(c.Outcome), c.Verdict)
		if c.Interface != "" {
			if s.Interfaces[c.Interface] == nil {
				s.Interfaces[c.Interface] = map[string]control.Verdict{}
			}
			add(s.Interfaces[c.Interface], c.Action, c.Verdict)
		}
	}
	return s, nil
}

func (m *pinned) Why(_ context.Context, p netip.Prefix) (control.Why, error) {
	w := control.Why{Prefix: p, Bans: []control.Ban{}}
	covering, err := m.Covering(p)
	if err != nil {
		return w, err
	}
	for _, e := range covering {
		w.Bans = append(w.Bans, fromEntry(e))
	}
	allowed, err := m.Blocklist.Allowed()
	for _, a := range allowed {
		if a.Prefix.Overlaps(p) {
			w.Allowed = append(w.Allowed, control.Allow(a))
		}
	}
	return w, err
}

func (m *pinned) Import(_ context.Context, r control.ImportRequest) (res control.ImportResult, err error) {
	now := time.Now()
	var ps []netip.Prefix
	for _, b := range r.Bans {
		ps = append(ps, b.Prefix)
	}
	if res.Refused, err = m.refuse(ps); err != nil {
		return res, err
	}
	if len(res.Refused) > 0 && !r.SkipRefused {
		return res, refusal(res.Refused)
	}
	refused := map[netip.Prefix]bool{}
	for _, f := range res.Refused {
		refused[f.Prefix] = true
	}
	standing, err := m.all()
	if err != nil {
		return res, err
	}
	var add []bpf.Ban
	wanted := map[netip.Prefix]bool{}
	for _, b := range r.Bans {
		if refused[b.Prefix] {
			continue
		}
		if !b.Until.IsZero() && !b.Until.After(now) {
			res.Over++
			continue
		}
		wanted[b.Prefix] = true
		e, ok := standing[b.Prefix]
		switch {
		case ok && lasts(e.Until, b.Until.Time):
			res.Kept++
			continue
		case ok:
			res.Extended++
		default:
			res.Added++
		}
		jail := b.Jail
		if jail == "" {
			jail = jails.Manual
		}
		ports, err := b.PortRanges()
		if err != nil {
			return res, err
		}
		add = append(add, toKernel(jails.Ban{Prefix: b.Prefix, Jail: jail, Since: b.Since, Until: b.Until.Time, Ports: ports}))
	}
	var remove []netip.Prefix
	if r.Replace {
		for p := range standing {
			if !wanted[p] {
				remove = append(remove, p)
			}
		}
		res.Removed = len(remove)
	}
	if r.DryRun {
		return res, nil
	}
	if n, err := m.AddBatch(add); err != nil {
		return res, fmt.Errorf("%d of %d are imported: %w", n, len(add), err)
	}
	_, err = m.RemoveBatch(remove)
	return res, err
}
