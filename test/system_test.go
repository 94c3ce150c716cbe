// Package test holds the tests of the whole: the built binary on throwaway
// hosts with real daemons and real packets, and the rules of the source tree.
package test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"xdpban/internal/lab"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if built.dir != "" {
		os.RemoveAll(built.dir)
	}
	os.Exit(code)
}

var built struct {
	once sync.Once
	dir  string
	err  error
}

// program builds xdpban as it is shipped and returns its path.
func program(t testing.TB) string {
	t.Helper()
	built.once.Do(func() {
		if built.dir, built.err = os.MkdirTemp("", "xdpban-test-"); built.err != nil {
			return
		}
		cmd := exec.Command("go", "build", "-buildvcs=false", "-trimpath", "-o", filepath.Join(built.dir, "xdpban"), "./cmd/xdpban")
		cmd.Dir = ".."
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			built.err = fmt.Errorf("%w\n%s", err, out)
		}
	})
	if built.err != nil {
		t.Fatalf("build xdpban: %v", built.err)
	}
	return filepath.Join(built.dir, "xdpban")
}

// bed is a server and an attacker on one wire.
type bed struct {
	testing.TB
	ctx              context.Context
	server, attacker *lab.Host
}

const (
	server4, server6     = "192.0.2.1", "2001:db8::1"
	attacker4, attacker6 = "192.0.2.66", "2001:db8::66"
	bystander4           = "192.0.2.7" // a second address of the attacker's host
)

func newBed(t testing.TB, more ...netip.Prefix) *bed {
	t.Helper()
	return newBedFor(t, 3*time.Minute, more...)
}

// newBedFor is newBed for a test that takes longer.
func newBedFor(t testing.TB, most time.Duration, more ...netip.Prefix) *bed {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root to make name spaces")
	}
	ctx, cancel := context.WithTimeout(t.Context(), most)
	t.Cleanup(cancel)
	b := &bed{TB: t, ctx: ctx}
	for name, h := range map[string]**lab.Host{"server": &b.server, "attacker": &b.attacker} {
		host, err := lab.Boot(name)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := host.Close(); err != nil {
				t.Error(err)
			}
		})
		*h = host
	}
	prefixes := func(addrs ...string) (p []netip.Prefix) {
		for _, a := range addrs {
			a := netip.MustParseAddr(a)
			p = append(p, netip.PrefixFrom(a, map[bool]int{true: 24, false: 64}[a.Is4()]))
		}
		return p
	}
	err := lab.Join(ctx, "eth0",
		b.server, prefixes(server4, server6),
		b.attacker, append(prefixes(attacker4, attacker6, bystander4), more...))
	if err != nil {
		t.Fatal(err)
	}
	// The default route is how xdpban knows its interface.
	b.run(b.server, "ip", "route", "add", "default", "via", attacker4)
	return b
}

func (b *bed) run(h *lab.Host, argv ...string) string {
	b.Helper()
	out, err := h.Run(b.ctx, argv...)
	if err != nil {
		b.Fatal(err)
	}
	return out
}

// protect starts xdpban on the server as its unit would; by is a command
// that starts it in turn.
func (b *bed) protect(by ...string) *lab.Service {
	b.Helper()
	s, err := b.server.StartNotify(b.ctx, "xdpban.service", nil, append(by, program(b), "run")...)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if b.Failed() {
			b.Logf("xdpban said:\n%s", s.Output())
		}
	})
	return s
}

// ban is one line of xdpban list --json.
type ban struct {
	Prefix  netip.Prefix `json:"prefix"`
	Jail    string       `json:"jail"`
	Packets uint64       `json:"packets"`
	Strikes int          `json:"strikes"`
}

// bans is what the server says is banned, by address.
func (b *bed) bans() map[string]ban {
	b.Helper()
	var list struct{ Bans []ban }
	out := b.run(b.server, program(b), "list", "--json")
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		b.Fatalf("xdpban list --json: %v\n%s", err, out)
	}
	m := map[string]ban{}
	for _, e := range list.Bans {
		m[e.Prefix.Addr().String()] = e
	}
	return m
}

func (b *bed) untilBanned(addr string) {
	b.Helper()
	if err := lab.Until(b.ctx, addr+" is banned", func() bool {
		_, ok := b.bans()[addr]
		return ok
	}); err != nil {
		b.Fatal(err)
	}
}

// pings says whether the server answers the attacker's host.
func (b *bed) pings(from, to string) bool {
	_, err := b.attacker.Run(b.ctx, "ping", "-n", "-c", "2", "-i", "0.1", "-W", "1", "-I", from, to)
	return err == nil
}

// failure is a line of auth.log as rsyslog writes it for one failed login.
func failure(at time.Time, addr string) string {
	return fmt.Sprintf("%s server sshd[4711]: Failed password for root from %s port 40022 ssh2\n",
		at.Format("2006-01-02T15:04:05.000000-07:00"), addr)
}

// appendTo writes text to a file of a host, in one write.
func appendTo(t testing.TB, h *lab.Host, path, text string) {
	t.Helper()
	f, err := os.OpenFile(h.Path(path), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
	if err != nil {
		t.Error(err)
		return
	}
	defer f.Close()
	if _, err := f.WriteString(text); err != nil {
		t.Error(err)
	}
}

// TestWithNoConfiguration: `xdpban run` alone protects ssh on the interface
// of the default route, from whichever log there is.
func TestWithNoConfiguration(t *testing.T) {
	for _, log := range []struct {
		name  string
		start func(*lab.Host, context.Context) (*lab.Service, error)
	}{
		{"journal", (*lab.Host).Journald},
		{"auth.log", (*lab.Host).Rsyslog},
	} {
		t.Run(log.name, func(t *testing.T) {
			b := newBed(t)
			if _, err := log.start(b.server, b.ctx); err != nil {
				t.Fatal(err)
			}
			if _, err := b.server.Sshd(b.ctx); err != nil {
				t.Fatal(err)
			}
			b.protect()
			for _, a := range []struct{ from, to string }{{attacker4, server4}, {attacker6, server6}} {
				if !b.pings(a.from, a.to) {
					t.Fatalf("%s can't reach %s before any ban", a.from, a.to)
				}
				var logins sync.WaitGroup
				for range 5 {
					logins.Go(func() { b.attacker.SSH(b.ctx, a.from, "root", "wrong", a.to) })
				}
				logins.Wait()
			}
			b.untilBanned(attacker4)
			if b.pings(attacker4, server4) {
				t.Errorf("%s is banned and still served", attacker4)
			}
			if !b.pings(bystander4, server4) {
				t.Errorf("%s did nothing and isn't served", bystander4)
			}
			// An IPv6 attacker owns its /64, so that is what the jail bans.
			if err := lab.Until(b.ctx, attacker6+" is banned", func() bool { return !b.pings(attacker6, server6) }); err != nil {
				t.Fatal(err)
			}
			for addr, e := range b.bans() {
				if e.Jail != "sshd" {
					t.Errorf("%s was banned by %s", addr, e.Jail)
				}
			}
		})
	}
}

// TestKillAndRestart: after SIGKILL the bans go on in the kernel, with their
// counts, and the next start knows them, reads what was written meanwhile,
// and counts no line twice.
func TestKillAndRestart(t *testing.T) {
	b := newBed(t)
	const log = "/var/log/auth.log"
	var (
		banned   = attacker4
		catchup  = "192.0.2.101" // four failures before the kill, the fifth while down
		innocent = "192.0.2.102" // four before the kill, none later: a line counted twice would ban it
		later    = "192.0.2.103" // four while down, the fifth after the restart
		gone     = "192.0.2.104" // banned, and unbanned by hand before the kill
	)
	write := func(addr string, n int) {
		t.Helper()
		for range n {
			appendTo(t, b.server, log, failure(time.Now(), addr))
		}
	}
	write("192.0.2.200", 1)
	daemon := b.protect()
	write(gone, 5)
	b.untilBanned(gone)
	b.run(b.server, program(b), "unban", gone)
	write(catchup, 4)
	write(innocent, 4)
	write(banned, 5)
	b.untilBanned(banned)
	if b.pings(banned, server4) {
		t.Fatalf("%s is banned and still served", banned)
	}
	before := b.bans()[banned].Packets
	if before == 0 {
		t.Fatalf("no packet of %s was counted", banned)
	}

	if err := daemon.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-daemon.Ended()
	if b.pings(banned, server4) {
		t.Errorf("%s is served while the daemon is down", banned)
	}
	if _, ok := b.bans()[banned]; !ok {
		t.Errorf("list doesn't show %s with the daemon down", banned)
	}
	write(catchup, 1)
	write(later, 4)

	b.protect()
	b.untilBanned(catchup)
	write(later, 1)
	b.untilBanned(later)
	after := b.bans()
	if got := after[banned].Packets; got <= before {
		t.Errorf("%s: %d packets counted after the restart, %d before", banned, got, before)
	}
	for _, addr := range []string{banned, catchup, later} {
		if e, ok := after[addr]; !ok || e.Jail != "sshd" {
			t.Errorf("%s should be banned by sshd: %+v", addr, e)
		}
	}
	for _, addr := range []string{innocent, gone} {
		if e, ok := after[addr]; ok {
			t.Errorf("%s should not be banned: %+v", addr, e)
		}
	}
}

// TestWithFewCapabilities: the daemon needs no more of root's powers than its
// unit leaves it, at the first start and at one that finds its pins.
func TestWithFewCapabilities(t *testing.T) {
	unit, err := os.ReadFile("../packaging/xdpban.service")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^CapabilityBoundingSet=(.*)$`).FindSubmatch(unit)
	if m == nil {
		t.Fatal("the unit doesn't bound its capabilities")
	}
	set := "-all"
	for c := range strings.FieldsSeq(strings.ToLower(string(m[1]))) {
		set += ",+" + strings.TrimPrefix(c, "cap_")
	}
	b := newBed(t)
	appendTo(t, b.server, "/var/log/auth.log", "")
	for i, addr := range []string{attacker4, "192.0.2.201"} {
		daemon := b.protect("setpriv", "--no-new-privs", "--inh-caps=-all", "--bounding-set="+set)
		for range 5 {
			appendTo(t, b.server, "/var/log/auth.log", failure(time.Now(), addr))
		}
		b.untilBanned(addr)
		if b.pings(attacker4, server4) {
			t.Errorf("start %d: %s is banned and still served", i+1, attacker4)
		}
		if err := daemon.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		<-daemon.Ended()
		if !daemon.Status().Success() {
			t.Errorf("start %d ended with %v:\n%s", i+1, daemon.Status(), daemon.Output())
		}
	}
}
