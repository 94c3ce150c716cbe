package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/nats-io/nkeys"

	"xdpban/internal/fleet"
	"xdpban/internal/lab"
	"xdpban/jails"
)

var fleetTable = table{
	name:  "fleet",
	title: "Bans shared by a fleet: from the first host's ban to the last host's",
	goal:  "under 20 ms; a host that joins has 100,000 bans in seconds",
	unit:  "ms",
	run:   runFleet,
}

const (
	fleetServer = "192.0.2.2"
	fleetFast   = 10_000 // bans in a second
	fleetSlow   = 200
)

// fleetRig is a server on a host of its own, and hosts that have no kernel: what
// they ban is counted. Only the one that joins is real.
type fleetRig struct {
	*bench
	srv, gen *lab.Host
	nats     *lab.Service
	keys     []nkeys.KeyPair
	list     []netip.Prefix
	index    map[netip.Prefix]int
}

func runFleet(b *bench) error {
	for range b.rounds {
		for _, n := range []int{3, 10, 25, 50} {
			if err := b.withFleet(n, func(r *fleetRig) error {
				return r.spread(n, fmt.Sprintf("%d_hosts,_%d_bans_a_second", n, fleetSlow), b.scale(2000), fleetSlow)
			}); err != nil {
				return err
			}
		}
		if err := b.withFleet(4, func(r *fleetRig) error {
			if err := r.spread(3, fmt.Sprintf("3_hosts,_%d_bans_a_second", fleetFast), b.scale(100_000), fleetFast); err != nil {
				return err
			}
			return r.joins(b.scale(100_000))
		}); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) withFleet(hosts int, f func(*fleetRig) error) error {
	r := &fleetRig{bench: b, index: map[netip.Prefix]int{}}
	for name, h := range map[string]**lab.Host{"server": &r.srv, "fleet": &r.gen} {
		booted, err := lab.Boot(name)
		if err != nil {
			return err
		}
		defer booted.Close()
		*h = booted
	}
	at := func(s string) []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix(s)} }
	if err := lab.Join(b.ctx, "eth0", r.srv, at("192.0.2.1/24"), r.gen, at(fleetServer+"/24")); err != nil {
		return err
	}
	if _, err := r.srv.Run(b.ctx, "sh", "-c", "ip route add default via "+fleetServer+" && : >/var/log/auth.log"); err != nil {
		return err
	}
	var named []string
	for i := range hosts {
		key, err := nkeys.CreateUser()
		if err != nil {
			return err
		}
		public, err := key.PublicKey()
		if err != nil {
			return err
		}
		seed, err := key.Seed()
		if err != nil {
			return err
		}
		if err := os.WriteFile(r.seed(i), seed, 0o600); err != nil {
			return err
		}
		r.keys = append(r.keys, key)
		named = append(named, fmt.Sprintf("web%d = %q", i, public))
	}
	if err := settings(r.gen, fmt.Sprintf("[fleet]\nname = 'web'\nhost = 'web0'\nembedded = true\nlisten = %q\nhosts = { %s }\n", fleetServer+":4222", strings.Join(named, ", ")), ""); err != nil {
		return err
	}
	var err error
	r.nats, err = r.gen.Start("xdpban-nats.service", nil, filepath.Join(filepath.Dir(b.xdpban), "xdpban-nats"))
	if err != nil {
		return err
	}
	for _, a := range manyAddrs(b.scale(200_000)) {
		p := netip.PrefixFrom(a, a.BitLen())
		r.index[p] = len(r.list)
		r.list = append(r.list, p)
	}
	if err := f(r); err != nil {
		return fmt.Errorf("%w; the server said:\n%s", err, r.nats.Output())
	}
	return nil
}

func (r *fleetRig) seed(i int) string { return r.path(fmt.Sprintf("web%d.nkey", i)) }

// simHost is a host without a kernel.
type simHost struct {
	*fleet.Fleet
	rig  *fleetRig
	wire atomic.Int64 // bytes, both ways
	stop func()

	mu    sync.Mutex
	own   []jails.Ban
	heard func(int) // of the ban of an address, by its place in list
	bans  atomic.Int64
}

func (r *fleetRig) host(i int, heard func(int)) *simHost {
	h := &simHost{rig: r, heard: heard}
	h.Fleet = fleet.New(fleet.Options{
		Settings: jails.Fleet{
			Name: "web", Host: fmt.Sprintf("web%d", i), URLs: []string{"nats://" + fleetServer + ":4222"}, NKey: r.seed(i),
			Publish: []string{"*"}, Subscribe: []string{"*"}, MaxBan: 24 * time.Hour, Quorum: 1, PeerBans: 1 << 20, Widest4: 24, Widest6: 48, Replicas: 1,
		},
		Version: "bench", Dial: h.dial, StatePath: r.path(fmt.Sprintf("web%d.db", i)),
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Now: time.Now,
	})
	ctx, cancel := context.WithCancel(r.ctx)
	ended := make(chan struct{})
	go func() { defer close(ended); h.Run(ctx, h) }()
	h.stop = func() { cancel(); <-ended; os.Remove(r.path(fmt.Sprintf("web%d.db", i))) }
	return h
}

// counted counts what a connection carries.
type counted struct {
	net.Conn
	n *atomic.Int64
}

func (c counted) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.n.Add(int64(n))
	return n, err
}

func (c counted) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.n.Add(int64(n))
	return n, err
}

func (h *simHost) dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	if e := h.rig.srv.In(func() error {
		var d net.Dialer
		conn, err = d.DialContext(ctx, network, address)
		return nil
	}); e != nil {
		return nil, e
	}
	if err != nil {
		return nil, err
	}
	return counted{conn, &h.wire}, nil
}

func (h *simHost) Walk(_ context.Context, each func(jails.Ban), done func()) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, b := range h.own {
		each(b)
	}
	done()
	return nil
}

func (h *simHost) Shared(_ context.Context, bans []jails.Ban, over []netip.Prefix, _ bool) ([]netip.Prefix, error) {
	h.bans.Add(int64(len(bans) - len(over)))
	for _, b := range bans {
		if i, ok := h.rig.index[b.Prefix]; ok && h.heard != nil {
			h.heard(i)
		}
	}
	return nil, nil
}

func (h *simHost) Reported(context.Context, []jails.Report) error { return nil }
func (h *simHost) Problem(context.Context, string, error)         {}

func (h *simHost) ban(p netip.Prefix) {
	now := time.Now()
	b := jails.Ban{Prefix: p, Jail: "sshd", Since: now, Until: now.Add(time.Hour), Failures: 5}
	h.mu.Lock()
	h.own = append(h.own, b)
	h.mu.Unlock()
	h.Banned(b)
}

func (r *fleetRig) until(what string, f func() bool) error {
	return lab.Until(r.ctx, what, func() bool { time.Sleep(10 * time.Millisecond); return f() })
}

// spread has one of n hosts ban so many addresses at a rate, and times each until
// the last host has it.
func (r *fleetRig) spread(n int, name string, bans, rate int) error {
	made, count := make([]atomic.Int64, bans), make([]atomic.Int32, bans)
	took := make([]time.Duration, bans)
	var all atomic.Int64
	heard := func(i int) {
		if i < bans && count[i].Add(1) == int32(n-1) {
			took[i] = time.Duration(time.Now().UnixNano() - made[i].Load())
			all.Add(1)
		}
	}
	var hosts []*simHost
	defer func() {
		for _, h := range hosts {
			h.stop()
		}
	}()
	for i := range n {
		hosts = append(hosts, r.host(i, heard))
	}
	if err := r.until("all are in the fleet", func() bool {
		return !slices.ContainsFunc(hosts, func(h *simHost) bool { return !h.Status().Synced })
	}); err != nil {
		return err
	}
	before, err := usage(r.nats.PID())
	if err != nil {
		return err
	}
	own, sent, got := ownTime(), hosts[0].wire.Load(), hosts[1].wire.Load()
	began := time.Now()
	for i := range bans {
		if wait := time.Until(began.Add(time.Duration(i) * time.Second / time.Duration(rate))); wait > time.Millisecond {
			time.Sleep(wait)
		}
		made[i].Store(time.Now().UnixNano())
		hosts[0].ban(r.list[i])
	}
	offered := time.Since(began)
	if err := r.until("all are banned everywhere", func() bool { return all.Load() == int64(bans) }); err != nil {
		return err
	}
	whole := time.Since(began)
	after, err := usage(r.nats.PID())
	if err != nil {
		return err
	}
	per := func(d time.Duration, n int) float64 { return float64(d.Microseconds()) / float64(n) }
	v := figures{
		"host-cpu-µs/ban": per(ownTime()-own, bans*n), "server-cpu-µs/ban": per(after.cpu-before.cpu, bans),
		"sent-B/ban": float64(hosts[0].wire.Load()-sent) / float64(bans), "received-B/ban": float64(hosts[1].wire.Load()-got) / float64(bans),
		"bans/s": float64(bans) / whole.Seconds(), "offered/s": float64(bans) / offered.Seconds(),
	}
	slices.Sort(took)
	v["ms"], v["p99-ms"], v["max-ms"] = took[bans/2].Seconds()*1e3, took[bans*99/100].Seconds()*1e3, took[bans-1].Seconds()*1e3
	r.note("xdpban/"+name, v)
	return nil
}

func ownTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// joins has a real daemon join a fleet that has banned so many, with all of them
// in its kernel at the end.
func (r *fleetRig) joins(n int) error {
	h := r.host(0, nil)
	defer h.stop()
	for _, p := range r.list[:n] {
		h.ban(p)
	}
	if err := r.until("all are sent", func() bool { s := h.Status(); return s.Synced && s.Waiting == 0 && s.Published >= uint64(n) }); err != nil {
		return err
	}
	seed, err := os.ReadFile(r.seed(3))
	if err != nil {
		return err
	}
	if err := settings(r.srv, "[fleet]\nname = 'web'\nhost = 'web3'\nurl = 'nats://"+fleetServer+":4222'\nnkey = '/etc/xdpban/fleet.nkey'\npeer_bans_per_minute = 0\n", ""); err != nil {
		return err
	}
	if err := os.WriteFile(r.srv.Path("/etc/xdpban/fleet.nkey"), seed, 0o600); err != nil {
		return err
	}
	began := time.Now()
	daemon, err := r.protect(r.srv)
	if err != nil {
		return err
	}
	up := time.Since(began)
	if err := r.until("it has them all", func() bool {
		out, err := r.srv.Run(r.ctx, r.xdpban, "fleet", "status", "--json")
		var s struct {
			Bans   int
			Synced bool
		}
		return err == nil && json.Unmarshal([]byte(out), &s) == nil && s.Synced && s.Bans == n
	}); err != nil {
		return err
	}
	whole := time.Since(began)
	if err := mustBe(r.srv, n); err != nil {
		return err
	}
	use, err := usage(daemon.PID())
	if err != nil {
		return err
	}
	resident, err := settle(r.bench, daemon.PID())
	if err != nil {
		return err
	}
	served, err := status(r.nats.PID(), "VmRSS")
	if err != nil {
		return err
	}
	r.note(fmt.Sprintf("xdpban/joining_with_%d", n), figures{
		"ms": (whole - up).Seconds() * 1e3, "host-cpu-µs/ban": float64(use.cpu.Microseconds()) / float64(n),
		"host-MB": float64(resident) / 1e6, "server-MB": float64(served) / 1e6,
	})
	return stopDaemon(daemon)
}
