package test

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nkeys"
	"golang.org/x/sys/unix"

	"xdpban/internal/lab"
)

// fleetBed is three hosts, each with its own xdpban, and one between them: with
// a real NATS server, the way to each of them, and the attacker.
type fleetBed struct {
	testing.TB
	ctx     context.Context
	between *lab.Host
	web     []*lab.Host
	xdpban  []*lab.Service
	nats    *lab.Service
	keys    []nkeys.KeyPair
	servers []*lab.Service // the hosts' own
}

const (
	natsAddr    = "203.0.113.5"
	fleetBad    = "198.51.100.66"
	fleetOther  = "198.51.100.67"
	fleetGuest  = "198.51.100.7"
	fleetSpread = "198.51.100.8"
	fleetConfig = "/run/nats.conf"
)

func webAddr(i int) string { return fmt.Sprintf("192.0.2.%d", 16*(i+1)+2) }

// newFleetBed boots it. With embedded each host runs a server itself, the three
// of them a cluster, and there is none between them.
func newFleetBed(t testing.TB, embedded bool, sources ...string) *fleetBed {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root to make name spaces")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	b := &fleetBed{TB: t, ctx: ctx}
	boot := func(name string) *lab.Host {
		h, err := lab.Boot(name)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := h.Close(); err != nil {
				t.Error(err)
			}
		})
		return h
	}
	b.between = boot("between")
	for _, a := range append([]string{natsAddr, fleetBad, fleetOther, fleetGuest, fleetSpread}, sources...) {
		b.run(b.between, "ip", "addr", "add", a+"/32", "dev", "lo")
	}
	for i := range 3 {
		h := boot(fmt.Sprintf("web%d", i+1))
		b.web = append(b.web, h)
		at := func(n int) []netip.Prefix {
			return []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("192.0.2.%d/28", 16*(i+1)+n))}
		}
		if err := lab.Join(ctx, h.Name, b.between, at(1), h, at(2)); err != nil {
			t.Fatal(err)
		}
		b.run(h, "ip", "route", "add", "default", "via", at(1)[0].Addr().String())
		key, err := nkeys.CreateUser()
		if err != nil {
			t.Fatal(err)
		}
		b.keys = append(b.keys, key)
	}
	if embedded {
		b.run(b.between, "sysctl", "-qw", "net.ipv4.ip_forward=1")
	} else {
		b.serve()
	}
	for i, h := range b.web {
		seed, err := b.keys[i].Seed()
		if err != nil {
			t.Fatal(err)
		}
		b.put(h, "/etc/xdpban/fleet.nkey", string(seed))
		b.put(h, "/etc/xdpban/xdpban.toml", `
[fleet]
name = "web"
nkey = "/etc/xdpban/fleet.nkey"
`+b.server(i, embedded))
		b.put(h, "/var/log/auth.log", "")
		if embedded {
			b.put(h, "/etc/xdpban/fleet.secret", "correct horse battery staple\n")
			b.servers = append(b.servers, b.serveAt(i))
		}
		s, err := h.StartNotify(ctx, "xdpban.service", nil, program(t), "run")
		if err != nil {
			t.Fatal(err)
		}
		b.xdpban = append(b.xdpban, s)
		t.Cleanup(func() {
			if t.Failed() {
				t.Logf("xdpban on %s said:\n%s", h.Name, s.Output())
			}
		})
	}
	for i, h := range b.web {
		b.until(h.Name+" is in the fleet", func() bool { return b.status(i).Synced })
	}
	return b
}

// server are the settings of a host that say where the server is.
func (b *fleetBed) server(i int, embedded bool) string {
	b.Helper()
	if !embedded {
		return `url = "nats://` + natsAddr + `:4222"` + "\n"
	}
	var hosts, peers []string
	for i, key := range b.keys {
		public, err := key.PublicKey()
		if err != nil {
			b.Fatal(err)
		}
		hosts = append(hosts, fmt.Sprintf("web%d = %q", i+1, public))
		peers = append(peers, fmt.Sprintf("%q", webAddr(i)+":6222"))
	}
	return fmt.Sprintf("shared_failures = true\nembedded = true\nlisten = %q\nsecret = '/etc/xdpban/fleet.secret'\npeers = [%s]\nhosts = { %s }\n",
		webAddr(i)+":4222", strings.Join(peers, ", "), strings.Join(hosts, ", "))
}

// serveAt starts a host's own server.
func (b *fleetBed) serveAt(i int) *lab.Service {
	b.Helper()
	s, err := b.web[i].Start("xdpban-nats.service", nil, alsoBuilt(b, "./cmd/xdpban-nats", "xdpban-nats"), "-dir", "/run/nats")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if b.Failed() {
			b.Logf("the server of %s said:\n%s", b.web[i].Name, s.Output())
		}
	})
	return s
}

// serve starts the NATS server: each host may write in its own name only, as
// docs/fleet.md has it.
func (b *fleetBed) serve() {
	b.Helper()
	var users strings.Builder
	for i, key := range b.keys {
		public, err := key.PublicKey()
		if err != nil {
			b.Fatal(err)
		}
		fmt.Fprintf(&users, `
    { nkey: %s, permissions: {
      publish: ["$KV.xdpban_web.ban.web%d.>", "xdpban.web.*.web%[2]d", "$JS.API.INFO", "$JS.FC.>",
        "$JS.API.STREAM.INFO.KV_xdpban_web", "$JS.API.STREAM.CREATE.KV_xdpban_web", "$JS.API.CONSUMER.CREATE.KV_xdpban_web.>", "$JS.API.CONSUMER.INFO.KV_xdpban_web.>", "$JS.API.CONSUMER.DELETE.KV_xdpban_web.>"]
      subscribe: ["_INBOX.web%[2]d.>", "xdpban.web.>"] } }`, public, i+1)
	}
	b.put(b.between, fleetConfig, `
listen: `+natsAddr+`:4222
jetstream { store_dir: /run/nats }
authorization { users: [`+users.String()+`
] }
`)
	s, err := b.between.Start("nats.service", nil, alsoBuilt(b, "github.com/nats-io/nats-server/v2", "nats-server"), "-c", fleetConfig)
	if err != nil {
		b.Fatal(err)
	}
	b.nats = s
	b.Cleanup(func() {
		if b.Failed() {
			b.Logf("the NATS server said:\n%s", s.Output())
		}
	})
}

// alsoBuilt builds another program beside xdpban and returns its path.
func alsoBuilt(t testing.TB, pkg, name string) string {
	t.Helper()
	path := filepath.Join(filepath.Dir(program(t)), name)
	if _, err := os.Stat(path); err == nil {
		return path
	}
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", path, pkg)
	cmd.Dir = ".."
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", name, err, out)
	}
	return path
}

func (b *fleetBed) run(h *lab.Host, argv ...string) string {
	b.Helper()
	out, err := h.Run(b.ctx, argv...)
	if err != nil {
		b.Fatal(err)
	}
	return out
}

func (b *fleetBed) put(h *lab.Host, path, text string) {
	b.Helper()
	if err := os.MkdirAll(filepath.Dir(h.Path(path)), 0o755); err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(h.Path(path), []byte(text), 0o600); err != nil {
		b.Fatal(err)
	}
}

func (b *fleetBed) until(what string, f func() bool) {
	b.Helper()
	if err := lab.Until(b.ctx, what, f); err != nil {
		b.Fatal(err)
	}
}

// fleetStatus is what xdpban fleet status --json says.
type fleetStatus struct {
	Server   string
	Synced   bool
	Waiting  int
	Bans     int
	Rejected map[string]uint64
	Hosts    []struct {
		Host string
		Bans int
	}
	Problems []string
}

func (b *fleetBed) status(i int) (s fleetStatus) {
	b.Helper()
	out := b.run(b.web[i], program(b), "fleet", "status", "--json")
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		b.Fatalf("xdpban fleet status --json: %v\n%s", err, out)
	}
	return s
}

// attack has so many failed logins stand in a host's log.
func (b *fleetBed) attack(i int, from string) {
	b.Helper()
	for range 5 {
		appendTo(b, b.web[i], "/var/log/auth.log", failure(time.Now(), from))
	}
}

func (b *fleetBed) serves(i int, from string) bool {
	_, err := b.between.Run(b.ctx, "ping", "-n", "-c", "2", "-i", "0.1", "-W", "1", "-I", from, webAddr(i))
	return err == nil
}

func (b *fleetBed) banned(i int, addr string) (jail string, ok bool) {
	b.Helper()
	var list struct{ Bans []ban }
	out := b.run(b.web[i], program(b), "list", "--json")
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		b.Fatalf("xdpban list --json: %v\n%s", err, out)
	}
	for _, e := range list.Bans {
		if e.Prefix.Addr().String() == addr {
			return e.Jail, true
		}
	}
	return "", false
}

func (b *fleetBed) untilBanned(i int, addr string) {
	b.Helper()
	b.until(addr+" is banned at "+b.web[i].Name, func() bool { _, ok := b.banned(i, addr); return ok })
}

func (b *fleetBed) untilFree(i int, addr string) {
	b.Helper()
	b.until(addr+" is free at "+b.web[i].Name, func() bool { _, ok := b.banned(i, addr); return !ok })
}

// TestAnAttackOnOneIsDroppedOnAll: three hosts with a NATS server between them,
// which knows each by its key.
func TestAnAttackOnOneIsDroppedOnAll(t *testing.T) {
	b := newFleetBed(t, false)
	b.run(b.web[1], program(b), "allow", fleetGuest)
	for i := range b.web {
		if !b.serves(i, fleetBad) || !b.serves(i, fleetGuest) {
			t.Fatalf("%s doesn't answer before any ban", b.web[i].Name)
		}
	}
	b.attack(0, fleetBad)
	b.attack(0, fleetGuest)
	for i := range b.web {
		b.untilBanned(i, fleetBad)
		if b.serves(i, fleetBad) {
			t.Errorf("%s is banned and still served by %s", fleetBad, b.web[i].Name)
		}
		if !b.serves(i, fleetOther) {
			t.Errorf("%s did nothing and isn't served by %s", fleetOther, b.web[i].Name)
		}
	}
	if jail, _ := b.banned(0, fleetBad); jail != "sshd" {
		t.Errorf("banned by %s where it was seen", jail)
	}
	if out := b.run(b.web[2], program(b), "why", fleetBad); !strings.Contains(out, "is banned by fleet\n  seen by  web1/sshd\n") || strings.Contains(out, "Failed password") {
		t.Errorf("why doesn't say who saw it, or has evidence that isn't shared:\n%s", out)
	}
	if out := b.run(b.web[2], program(b), "list"); !strings.Contains(out, "fleet (web1/sshd)") {
		t.Errorf("list doesn't say who saw it:\n%s", out)
	}
	b.untilBanned(2, fleetGuest)
	if !b.serves(1, fleetGuest) || b.serves(2, fleetGuest) {
		t.Errorf("web2 allows %s and web3 doesn't: %v, %v", fleetGuest, b.serves(1, fleetGuest), b.serves(2, fleetGuest))
	}

	b.run(b.web[0], program(b), "unban", fleetBad)
	for i := range b.web {
		b.untilFree(i, fleetBad)
		if !b.serves(i, fleetBad) {
			t.Errorf("%s is unbanned and not served by %s", fleetBad, b.web[i].Name)
		}
	}

	// The server is gone for a while; what one of them bans meanwhile, all have
	// when it is back.
	b.nats.Kill()
	<-b.nats.Ended()
	b.until("web1 notices", func() bool { return b.status(0).Server == "" })
	b.attack(0, fleetOther)
	b.untilBanned(0, fleetOther)
	if s := b.status(0); len(s.Problems) != 1 || !strings.Contains(s.Problems[0], "bans made here go on") {
		t.Errorf("status says %+v", s)
	}
	b.serve()
	b.untilBanned(1, fleetOther)
	b.untilBanned(2, fleetOther)
}

// TestAPartitionHeals: a host that doesn't reach the server bans and unbans on its
// own, and so do the others; when it reaches it again, all have what all want.
func TestAPartitionHeals(t *testing.T) {
	b := newFleetBed(t, false)
	b.attack(0, fleetBad)
	b.untilBanned(2, fleetBad)
	b.run(b.web[2], "ip", "route", "add", "blackhole", natsAddr)
	b.until("web3 notices", func() bool { return b.status(2).Server == "" })
	b.attack(0, fleetOther)
	b.untilBanned(1, fleetOther)
	b.attack(2, fleetGuest)
	b.untilBanned(2, fleetGuest)
	b.run(b.web[0], program(b), "unban", fleetBad)
	b.untilFree(1, fleetBad)
	if b.serves(2, fleetBad) || !b.serves(2, fleetOther) || b.serves(2, fleetGuest) || !b.serves(0, fleetGuest) {
		t.Error("a host that is cut off does something else than it knew and saw itself")
	}
	b.run(b.web[2], "ip", "route", "del", "blackhole", natsAddr)
	for i := range b.web {
		b.untilFree(i, fleetBad)
		b.untilBanned(i, fleetOther)
		b.untilBanned(i, fleetGuest)
		if !b.serves(i, fleetBad) || b.serves(i, fleetOther) || b.serves(i, fleetGuest) {
			t.Errorf("%s doesn't do as all want", b.web[i].Name)
		}
	}
}

// TestNoHostWritesInAnothersName: what a host could do with its own key on a
// server that is set up as docs/fleet.md has it.
func TestNoHostWritesInAnothersName(t *testing.T) {
	b := newFleetBed(t, false)
	b.put(b.web[2], "/etc/xdpban/xdpban.toml", `
[fleet]
name = "web"
host = "web1"
url  = "nats://`+natsAddr+`:4222"
nkey = "/etc/xdpban/fleet.nkey"
`)
	b.xdpban[2].Kill()
	<-b.xdpban[2].Ended()
	s, err := b.web[2].StartNotify(b.ctx, "xdpban.service", nil, program(t), "run")
	if err != nil {
		t.Fatal(err)
	}
	b.attack(2, fleetBad)
	b.untilBanned(2, fleetBad)
	b.until("web3 is told", func() bool {
		return slices.ContainsFunc(b.status(2).Problems, func(p string) bool { return strings.Contains(strings.ToLower(p), "permissions violation") })
	})
	b.attack(0, fleetOther)
	b.untilBanned(1, fleetOther)
	if _, ok := b.banned(1, fleetBad); ok {
		t.Errorf("web3 has written in web1's name:\n%s", s.Output())
	}
}

// TestAFleetsOwnServers: three hosts that are each other's cluster, and count
// failures together. One server less loses nothing, and its host finds another;
// with two less, bans made here go on, and the others have them when a server is
// back.
func TestAFleetsOwnServers(t *testing.T) {
	b := newFleetBed(t, true)
	b.attack(0, fleetBad)
	for i := range b.web {
		b.untilBanned(i, fleetBad)
		if b.serves(i, fleetBad) {
			t.Errorf("%s is banned and still served by %s", fleetBad, b.web[i].Name)
		}
	}
	// Two tries here, two there, one there: nowhere enough.
	for i, tries := range []int{2, 2, 1} {
		for range tries {
			appendTo(b, b.web[i], "/var/log/auth.log", failure(time.Now(), fleetSpread))
		}
	}
	for i := range b.web {
		b.untilBanned(i, fleetSpread)
	}
	b.stop(b.servers[0])
	b.attack(0, fleetOther)
	for i := range b.web {
		b.untilBanned(i, fleetOther)
	}
	b.stop(b.servers[1])
	b.attack(1, fleetGuest)
	b.untilBanned(1, fleetGuest)
	b.servers[0] = b.serveAt(0)
	for i := range b.web {
		b.untilBanned(i, fleetGuest)
		b.until(b.web[i].Name+" has no problem left", func() bool { s := b.status(i); return s.Synced && len(s.Problems) == 0 })
	}
	if _, ok := b.banned(2, fleetBad); !ok {
		t.Errorf("%s isn't banned any more", fleetBad)
	}
}

func (b *fleetBed) stop(s *lab.Service) {
	b.Helper()
	if err := s.Signal(syscall.SIGTERM); err != nil {
		b.Fatal(err)
	}
	<-s.Ended()
}

// BenchmarkFirstToLast measures, over 100 bans, from the first packet that the
// host drops which decided the ban to the first that the last of the others
// drops: the source sends numbered packets to all of them all the while.
func BenchmarkFirstToLast(b *testing.B) {
	b.Run("server", func(b *testing.B) { firstToLast(b, false) })
	b.Run("cluster", func(b *testing.B) { firstToLast(b, true) })
}

func firstToLast(b *testing.B, embedded bool) {
	const n = 100
	var sources []string
	for i := range n {
		sources = append(sources, fmt.Sprintf("198.51.100.%d", i+100))
	}
	bed := newFleetBed(b, embedded, sources...)
	write := func(from string, times int) {
		for range times {
			appendTo(b, bed.web[0], "/var/log/auth.log", failure(time.Now(), from))
		}
	}
	for _, s := range sources {
		write(s, 4)
	}
	write(fleetOther, 5)
	bed.untilBanned(2, fleetOther)
	var receivers []*net.UDPConn
	for i, h := range bed.web {
		if err := h.In(func() error {
			c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(webAddr(i)+":9999")))
			receivers = append(receivers, c)
			return err
		}); err != nil {
			b.Fatal(err)
		}
		receivers[i].SetReadBuffer(4 << 20)
		defer receivers[i].Close()
	}
	var first, last []time.Duration
	b.ResetTimer()
	for range b.N {
		first, last = nil, nil
		for _, s := range sources {
			at, dropped := bed.dropped(receivers, netip.MustParseAddr(s), func() { write(s, 1) })
			first = append(first, dropped[0].Sub(at))
			last = append(last, slices.MaxFunc(dropped[1:], time.Time.Compare).Sub(dropped[0]))
		}
	}
	b.StopTimer()
	slices.Sort(first)
	slices.Sort(last)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(first[n/2].Microseconds()), "µs-line-to-first")
	b.ReportMetric(float64(last[n/2].Microseconds()), "µs-first-to-last-median")
	b.ReportMetric(float64(last[n*99/100-1].Microseconds()), "µs-first-to-last-p99")
	b.ReportMetric(float64(last[n-1].Microseconds()), "µs-first-to-last-max")
}

// dropped sends numbered packets from a source to all hosts, has the deciding
// line written, and returns when that was and when each host's first lost packet
// was sent.
func (b *fleetBed) dropped(receivers []*net.UDPConn, source netip.Addr, write func()) (at time.Time, lost []time.Time) {
	b.Helper()
	fds := make([]int, len(receivers))
	if err := b.between.In(func() (err error) {
		for i := range fds {
			if fds[i], err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
				return err
			}
			if err = unix.Bind(fds[i], &unix.SockaddrInet4{Addr: source.As4()}); err != nil {
				return err
			}
			if err = unix.Connect(fds[i], &unix.SockaddrInet4{Addr: netip.MustParseAddr(webAddr(i)).As4(), Port: 9999}); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		b.Fatal(err)
	}
	last := make([]atomic.Int64, len(receivers))
	stop := make(chan struct{})
	done := make(chan struct{})
	for i, c := range receivers {
		defer unix.Close(fds[i])
		last[i].Store(-1)
		go func() {
			defer func() { done <- struct{}{} }()
			var buf [8]byte
			for {
				select {
				case <-stop:
					return
				default:
				}
				c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
				n, from, err := c.ReadFromUDPAddrPort(buf[:])
				if err == nil && n == 8 && from.Addr().Unmap() == source {
					last[i].Store(int64(binary.BigEndian.Uint64(buf[:])))
				}
			}
		}()
	}
	sent := make([][]time.Time, len(receivers))
	var buf [8]byte
	send := func() {
		for i, fd := range fds {
			binary.BigEndian.PutUint64(buf[:], uint64(len(sent[i])))
			sent[i] = append(sent[i], time.Now())
			if _, err := unix.Write(fd, buf[:]); err != nil && err != unix.ENOBUFS {
				b.Fatalf("send from %s: %v", source, err)
			}
		}
		time.Sleep(20 * time.Microsecond)
	}
	sum := func() (n int64) {
		for i := range last {
			n += last[i].Load()
		}
		return n
	}
	deadline := time.Now().Add(10 * time.Second)
	for slices.ContainsFunc([]int{0, 1, 2}, func(i int) bool { return last[i].Load() < 10 }) {
		send()
		if time.Now().After(deadline) {
			b.Fatalf("%s doesn't reach all hosts before its ban", source)
		}
	}
	written := make(chan time.Time, 1)
	go func() {
		now := time.Now()
		write()
		written <- now
	}()
	// A fifth of a second without an arrival anywhere is a ban, not a hiccup.
	for quiet := time.Now(); time.Since(quiet) < 200*time.Millisecond; {
		before := sum()
		send()
		if sum() != before {
			quiet = time.Now()
		}
		if time.Now().After(deadline) {
			b.Fatalf("%s is never dropped everywhere", source)
		}
	}
	at = <-written
	close(stop)
	for range receivers {
		<-done
	}
	for i := range receivers {
		lost = append(lost, sent[i][last[i].Load()+1])
	}
	return at, lost
}
