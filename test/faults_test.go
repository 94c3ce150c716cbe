package test

import (
	"encoding/json"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"xdpban/internal/lab"
)

// status is what xdpban status --json says, as far as tests ask.
type status struct {
	Bans       int
	Braked     bool
	Checkpoint time.Time
	Problems   []string
	Interfaces []struct{ Name, Mode, Error string }
	Sources    []struct {
		Stream string
		Lines  uint64
		Lag    string
	}
	Jails []struct {
		Name     string
		Tracked  int
		Failures uint64
	}
}

func (b *bed) status() (s status) {
	b.Helper()
	out := b.run(b.server, program(b), "status", "--json")
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		b.Fatalf("xdpban status --json: %v\n%s", err, out)
	}
	return s
}

func (b *bed) until(what string, f func() bool) {
	b.Helper()
	if err := lab.Until(b.ctx, what, f); err != nil {
		b.Fatalf("%v; status %+v", err, b.status())
	}
}

// untilProblem waits for a problem with these words in the status, or with
// gone for its end.
func (b *bed) untilProblem(words string, gone bool) {
	b.Helper()
	b.until(words, func() bool { return strings.Contains(strings.Join(b.status().Problems, "\n"), words) != gone })
}

// attacked is a bed whose attacker is banned by a running daemon.
func attacked(t *testing.T) (*bed, *lab.Service) {
	b := newBed(t)
	appendTo(t, b.server, "/var/log/auth.log", failure(time.Now(), "192.0.2.200"))
	daemon := b.protect()
	b.attack(attacker4)
	return b, daemon
}

// attack fails until the address is banned.
func (b *bed) attack(addr string) {
	b.Helper()
	for range 5 {
		appendTo(b, b.server, "/var/log/auth.log", failure(time.Now(), addr))
	}
	b.untilBanned(addr)
}

// guarded checks that the banned one is dropped and nobody else.
func (b *bed) guarded(when string) {
	b.Helper()
	b.until("others get through "+when, func() bool { return b.pings(bystander4, server4) })
	if b.pings(attacker4, server4) {
		b.Errorf("%s: the banned one gets through", when)
	}
}

func (b *bed) on(name string) bool {
	for _, i := range b.status().Interfaces {
		if i.Name == name && i.Mode == "native" && i.Error == "" {
			return true
		}
	}
	return false
}

// TestInterfaceFaults: the interface goes down, gets another name, goes into
// another name space, is deleted, and each time comes back.
func TestInterfaceFaults(t *testing.T) {
	b, daemon := attacked(t)
	ip := func(args ...string) { t.Helper(); b.run(b.server, append([]string{"ip"}, args...)...) }
	route := func(name string) { t.Helper(); ip("route", "replace", "default", "via", attacker4, "dev", name) }
	b.guarded("at first")

	ip("link", "set", "eth0", "down")
	ip("link", "set", "eth0", "up")
	route("eth0")
	b.guarded("after down and up")

	ip("link", "set", "eth0", "down")
	ip("link", "set", "eth0", "name", "wan0")
	ip("link", "set", "wan0", "up")
	route("wan0")
	b.until("wan0 is protected", func() bool { return b.on("wan0") })
	b.guarded("under another name")

	ip("netns", "add", "elsewhere")
	ip("link", "set", "wan0", "netns", "elsewhere")
	b.untilProblem("no interface to protect", false)
	// There it has lost its addresses and its name's meaning, but not its
	// program; back here it is one of ours.
	ip("-n", "elsewhere", "link", "set", "wan0", "netns", "1")
	ip("addr", "add", server4+"/24", "dev", "wan0")
	ip("link", "set", "wan0", "up")
	route("wan0")
	b.untilProblem("no interface to protect", true)
	b.until("wan0 is protected", func() bool { return b.on("wan0") })
	b.guarded("back from another name space")

	ip("link", "del", "wan0")
	b.untilProblem("no interface to protect", false)
	prefix := func(a string) netip.Prefix { return netip.PrefixFrom(netip.MustParseAddr(a), 24) }
	err := lab.Join(b.ctx, "eth0", b.server, []netip.Prefix{prefix(server4)},
		b.attacker, []netip.Prefix{prefix(attacker4), prefix(bystander4)})
	if err != nil {
		t.Fatal(err)
	}
	route("eth0")
	b.until("eth0 is protected", func() bool { return b.on("eth0") })
	b.untilProblem("no interface to protect", true)
	b.guarded("on a new interface")
	b.attack("192.0.2.201")
	b.alive(daemon)
}

func (b *bed) alive(s *lab.Service) {
	b.Helper()
	select {
	case <-s.Ended():
		b.Errorf("%s has ended:\n%s", s.Unit, s.Output())
	default:
	}
}

// TestPinsTakenAway: somebody detaches the program, deletes pins, unmounts
// the bpffs; it is noticed, said, and put back.
func TestPinsTakenAway(t *testing.T) {
	b, daemon := attacked(t)
	pins := strings.TrimSpace(b.run(b.server, "sh", "-c", "echo /sys/fs/bpf/xdpban/v*"))
	said := 0
	for _, fault := range []struct{ command, says string }{
		{program(t) + " detach --force eth0", "eth0 was unprotected"},
		{"rm " + pins + "/links/eth0", "eth0 was unprotected"},
		{"rm " + pins + "/ban4", "the maps are no longer pinned: ban4 is gone"},
		{"rm -r " + pins, "the maps are no longer pinned in " + pins},
		{"umount --lazy /sys/fs/bpf", "the maps are no longer pinned in " + pins},
	} {
		b.run(b.server, "sh", "-c", fault.command)
		b.until("it is noticed: "+fault.command, func() bool { return strings.Contains(daemon.Output()[said:], fault.says) })
		b.until("it is repaired: "+fault.command, func() bool {
			_, err := os.Stat(b.server.Path(pins + "/links/eth0"))
			return err == nil && b.on("eth0")
		})
		b.guarded("after " + fault.command)
		if list := b.bans(); len(list) != 1 || list[attacker4].Jail != "sshd" {
			t.Errorf("banned after %s: %v", fault.command, list)
		}
		said = len(daemon.Output())
	}
	// What is pinned now outlives the daemon.
	b.attack("192.0.2.201")
	if err := daemon.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-daemon.Ended()
	b.guarded("with the daemon dead")
	if list := b.bans(); len(list) != 2 {
		t.Errorf("banned with the daemon dead: %v", list)
	}
	b.protect()
	if list := b.bans(); len(list) != 2 {
		t.Errorf("banned after the next start: %v", list)
	}
}

// TestJournaldFaults: journald is restarted, killed, and its journal vacuumed
// past what was read; what is written afterwards is read.
func TestJournaldFaults(t *testing.T) {
	b := newBed(t)
	journald, err := b.server.Journald(b.ctx)
	if err != nil {
		t.Fatal(err)
	}
	logs := func(addr string) {
		t.Helper()
		// journald asks whose unit it is as it reads: logger has to be there
		// still.
		s, err := b.server.Start("ssh.service", nil, "sh", "-c",
			`{ for i in 1 2 3 4 5; do echo "Failed password for root from $0 port 40022 ssh2"; done; sleep 600; } | logger -t sshd`, addr)
		if err != nil {
			t.Fatal(err)
		}
		b.untilBanned(addr)
		s.Kill()
	}
	daemon := b.protect()
	logs("198.51.100.1")

	for i, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		if err := journald.Signal(sig); err != nil {
			t.Fatal(err)
		}
		<-journald.Ended()
		os.Remove(b.server.Path("/run/systemd/journal/socket"))
		if journald, err = b.server.Journald(b.ctx); err != nil {
			t.Fatal(err)
		}
		logs("198.51.100." + string(rune('2'+i)))
	}

	// Rotated and vacuumed while the daemon is down: its cursor is gone.
	if err := daemon.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-daemon.Ended()
	b.run(b.server, "journalctl", "--rotate")
	b.run(b.server, "journalctl", "--vacuum-time=1us")
	daemon = b.protect()
	logs("198.51.100.9")
	if !strings.Contains(daemon.Output(), "vacuumed past the stored cursor") {
		t.Errorf("it didn't say that entries may be lost:\n%s", daemon.Output())
	}
	if got := len(b.bans()); got != 4 {
		t.Errorf("%d banned: %v", got, b.bans())
	}
}

// TestReloads: a broken configuration is refused and the old one goes on; a
// changed one keeps the windows and the bans.
func TestReloads(t *testing.T) {
	b, daemon := attacked(t)
	const half = "198.51.100.1"
	for range 3 {
		appendTo(t, b.server, "/var/log/auth.log", failure(time.Now(), half))
	}
	b.until("failures are counted", func() bool {
		for _, j := range b.status().Jails {
			if j.Name == "sshd" && j.Failures >= 8 {
				return true
			}
		}
		return false
	})

	b.put("/etc/xdpban/jail.d/sshd.toml", "[jail.sshd]\nmaxretry = \"lots\"\n")
	if out, err := b.server.Run(b.ctx, program(t), "reload"); err == nil || !strings.Contains(out, "sshd.toml:2: jail.sshd.maxretry") {
		t.Errorf("reload of a broken file: %v\n%s", err, out)
	}
	if err := daemon.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	b.untilProblem("the old one goes on", false)
	b.attack("198.51.100.2")

	b.put("/etc/xdpban/jail.d/sshd.toml", "[jail.sshd]\nmaxretry = 4\nbantime = \"2h\"\n")
	if err := daemon.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	b.untilProblem("the old one goes on", true)
	// Three before, one after.
	appendTo(t, b.server, "/var/log/auth.log", failure(time.Now(), half))
	b.untilBanned(half)
	if list := b.bans(); len(list) != 3 {
		t.Errorf("banned: %v", list)
	}
	b.guarded("after the reloads")
	b.alive(daemon)
}
