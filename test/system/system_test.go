// Package system tests the packages on a whole Debian with systemd, sshd and
// nginx, attacked from outside. `make test-system` gives it what it needs.
package system

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"xdpban/internal/lab"
)

const (
	server     = "192.0.2.1"
	attacker   = "192.0.2.66"
	scanner    = "192.0.2.77" // a second address of the attacker's host
	bystander  = "192.0.2.7"  // a third one
	pingPeriod = 50 * time.Millisecond
)

// rig is a Debian and an attacker on one wire.
type rig struct {
	*testing.T
	ctx context.Context
	sys *lab.System
	out *lab.Host
}

func (r *rig) run(argv ...string) string {
	r.Helper()
	out, err := r.sys.Run(r.ctx, argv...)
	if err != nil {
		r.Fatal(err)
	}
	return out
}

// show runs a command and puts it into the test's log, as an administrator
// sees it.
func (r *rig) show(argv ...string) string {
	r.Helper()
	out, err := r.sys.Run(r.ctx, argv...)
	if err != nil {
		out = err.Error()
	}
	r.Logf("# %s\n%s", strings.Join(argv, " "), out)
	return out
}

func (r *rig) join() {
	r.Helper()
	p := func(a string) netip.Prefix { return netip.PrefixFrom(netip.MustParseAddr(a), 24) }
	if err := lab.Join(r.ctx, "eth0", r.sys.Host, []netip.Prefix{p(server)}, r.out, []netip.Prefix{p(attacker), p(scanner), p(bystander)}); err != nil {
		r.Fatal(err)
	}
	r.run("ip", "route", "add", "default", "via", attacker)
}

func (r *rig) served(from string) bool {
	_, err := r.out.Run(r.ctx, "ping", "-n", "-c", "2", "-i", "0.1", "-W", "1", "-I", from, server)
	return err == nil
}

func (r *rig) until(what string, f func() bool) {
	r.Helper()
	if err := lab.Until(r.ctx, what, f); err != nil {
		r.show("journalctl", "--no-pager", "-n", "40", "-u", "xdpban")
		r.Fatal(err)
	}
}

func (r *rig) active() {
	r.Helper()
	r.until("xdpban is active", func() bool {
		out, _ := r.sys.Run(r.ctx, "systemctl", "is-active", "xdpban")
		return strings.TrimSpace(out) == "active"
	})
}

func (r *rig) mainPID() int {
	r.Helper()
	n, err := strconv.Atoi(strings.TrimSpace(r.run("systemctl", "show", "--property=MainPID", "--value", "xdpban")))
	if err != nil {
		r.Fatal(err)
	}
	return n
}

var received = regexp.MustCompile(`(\d+) packets transmitted, (\d+) received`)

// withoutAHole does something to xdpban while the banned attacker and the
// bystander ping all the time: none of the one's packets gets through, and
// all of the other's.
func (r *rig) withoutAHole(what string, f func()) {
	r.Helper()
	ctx, stop := context.WithCancel(r.ctx)
	defer stop()
	said := map[string]string{}
	var mu sync.Mutex
	var pings sync.WaitGroup
	for _, from := range []string{attacker, bystander} {
		pings.Go(func() {
			// timeout ends ping with SIGINT, at which it sums up.
			out, _ := r.out.Run(ctx, "sh", "-c", fmt.Sprintf(
				"ping -n -q -i %v -I %s %s & p=$!; while [ ! -e /run/lab/enough ]; do sleep 0.05; done; kill -INT $p; wait $p",
				pingPeriod.Seconds(), from, server))
			mu.Lock()
			said[from] = out
			mu.Unlock()
		})
	}
	os.Remove(r.out.Path("/run/lab/enough"))
	f()
	if err := os.WriteFile(r.out.Path("/run/lab/enough"), nil, 0o600); err != nil {
		r.Fatal(err)
	}
	pings.Wait()
	os.Remove(r.out.Path("/run/lab/enough"))
	for from, want := range map[string]bool{attacker: false, bystander: true} {
		m := received.FindStringSubmatch(said[from])
		if m == nil {
			r.Fatalf("%s: ping from %s said %q", what, from, said[from])
		}
		sent, _ := strconv.Atoi(m[1])
		back, _ := strconv.Atoi(m[2])
		r.Logf("%s: %s sent %d pings, %d came back", what, from, sent, back)
		// The last one may be on its way when ping is stopped.
		if want && back < sent-1 || !want && back > 0 || sent == 0 {
			r.Errorf("%s: %s sent %d pings and %d came back", what, from, sent, back)
		}
	}
}

// get asks the server's nginx for a path, from one of the attacker's
// addresses.
func (r *rig) get(from, path string) error {
	return r.out.In(func() error {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: 2 * time.Second}
		c, err := d.Dial("tcp4", server+":80")
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(2 * time.Second))
		fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: example.org\r\nConnection: close\r\n\r\n", path)
		_, err = io.Copy(io.Discard, bufio.NewReader(c))
		return err
	})
}

// install copies the package into the system and installs it.
func (r *rig) install(deb string) {
	r.Helper()
	b, err := os.ReadFile(deb)
	if err != nil {
		r.Fatal(err)
	}
	if err := os.WriteFile(r.sys.Path("/root/xdpban.deb"), b, 0o644); err != nil {
		r.Fatal(err)
	}
	r.show("dpkg", "--install", "/root/xdpban.deb")
}

func TestPackageOnDebian(t *testing.T) {
	root, debs := os.Getenv("XDPBAN_TEST_ROOT"), os.Getenv("XDPBAN_TEST_DEBS")
	if root == "" || debs == "" {
		t.Skip("needs a Debian root and packages: make test-system makes them and runs this")
	}
	deb := func(which string) string {
		found, err := filepath.Glob(filepath.Join(debs, which, "xdpban_*_"+arch(t)+".deb"))
		if err != nil || len(found) != 1 {
			t.Fatalf("want one %s package in %s: %v %v", which, debs, found, err)
		}
		return found[0]
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	sys, err := lab.BootSystem(ctx, "web", root)
	if err != nil {
		t.Fatal(err)
	}
	defer sys.Close()
	out, err := lab.Boot("attacker")
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	r := &rig{ctx: ctx, sys: sys, out: out}
	step := func(name string, f func(r *rig)) {
		if t.Failed() {
			return
		}
		t.Run(name, func(t *testing.T) {
			here := *r
			here.T = t
			f(&here)
		})
	}

	step("install", func(r *rig) {
		r.join()
		r.install(deb("this"))
		r.active()
		r.show("systemctl", "status", "--no-pager", "--lines=20", "xdpban")
		r.show("xdpban", "status")
		if out := r.show("systemctl", "show", "--property=Type,WatchdogUSec,NotifyAccess", "xdpban"); !strings.Contains(out, "Type=notify") || strings.Contains(out, "WatchdogUSec=0") {
			r.Error("the unit has no watchdog or no readiness protocol")
		}
	})
	step("ssh", func(r *rig) {
		if !r.served(attacker) {
			r.Fatal("not served before any failure")
		}
		for range 5 {
			if _, _, err := r.out.SSH(r.ctx, attacker, "root", "wrong", server); err != nil {
				r.Fatal(err)
			}
		}
		r.until("the attacker is dropped", func() bool { return !r.served(attacker) })
		if !r.served(bystander) {
			r.Error("the bystander isn't served")
		}
		r.show("xdpban", "list")
		if log := r.show("journalctl", "--no-pager", "-u", "xdpban"); !strings.Contains(log, attacker) {
			r.Error("the journal doesn't name whom xdpban banned")
		}
		r.show("journalctl", "--no-pager", "-u", "xdpban", "-o", "verbose", "-n", "1")
	})
	step("nginx", func(r *rig) {
		for i := 0; r.get(scanner, "/wp-login.php") == nil && r.get(scanner, "/.env") == nil; i++ {
			if i > 200 {
				r.show("tail", "-n", "3", "/var/log/nginx/access.log")
				r.Fatal("a scanner may go on for ever")
			}
			time.Sleep(20 * time.Millisecond)
		}
		if out := r.show("xdpban", "list"); !strings.Contains(out, scanner) || !strings.Contains(out, "nginx") {
			r.Error("the scanner isn't on the list")
		}
		if err := r.get(bystander, "/"); err != nil {
			r.Errorf("the bystander isn't served: %v", err)
		}
	})
	step("reload", func(r *rig) {
		pid := r.mainPID()
		r.withoutAHole("reload", func() { r.run("systemctl", "reload", "xdpban") })
		bad := r.sys.Path("/etc/xdpban/jail.d/bad.toml")
		if err := os.WriteFile(bad, []byte("[jail.sshd]\nmaxretry = \"many\"\n"), 0o644); err != nil {
			r.Fatal(err)
		}
		if out, err := r.sys.Run(r.ctx, "systemctl", "reload", "xdpban"); err == nil {
			r.Errorf("a reload with a broken configuration passes for good: %s", out)
		}
		if log := r.show("journalctl", "--no-pager", "-u", "xdpban", "-n", "5"); !strings.Contains(log, "bad.toml") {
			r.Error("the journal doesn't name the broken file")
		}
		os.Remove(bad)
		if r.mainPID() != pid {
			r.Error("reload made a new process")
		}
		r.run("systemctl", "reload", "xdpban")
	})
	step("restart", func(r *rig) {
		r.withoutAHole("restart", func() { r.run("systemctl", "restart", "xdpban") })
		r.active()
	})
	step("security", func(r *rig) {
		out := r.run("systemd-analyze", "security", "--no-pager", "xdpban.service")
		m := regexp.MustCompile(`Overall exposure level for xdpban.service: ([0-9.]+)`).FindStringSubmatch(out)
		if m == nil {
			r.Fatalf("no score in:\n%s", out)
		}
		r.Log(m[0])
		if score, _ := strconv.ParseFloat(m[1], 64); score >= 2 {
			r.Errorf("exposure %s, want below 2.0:\n%s", m[1], out)
		}
	})
	step("crash", func(r *rig) {
		pid := r.mainPID()
		r.withoutAHole("crash", func() {
			r.run("kill", "-KILL", strconv.Itoa(pid))
			r.until("another process runs", func() bool { p := r.mainPID(); return p != 0 && p != pid })
			r.active()
		})
	})
	step("watchdog", func(r *rig) {
		r.run("mkdir", "-p", "/run/systemd/system/xdpban.service.d")
		r.run("sh", "-c", "printf '[Service]\\nWatchdogSec=2s\\n' >/run/systemd/system/xdpban.service.d/test.conf")
		r.run("systemctl", "daemon-reload")
		r.run("systemctl", "restart", "xdpban")
		pid := r.mainPID()
		r.run("kill", "-STOP", strconv.Itoa(pid))
		r.until("the watchdog restarts a hanging daemon", func() bool { p := r.mainPID(); return p != 0 && p != pid })
		r.active()
		r.run("rm", "-r", "/run/systemd/system/xdpban.service.d")
		r.run("systemctl", "daemon-reload")
		r.run("systemctl", "restart", "xdpban")
	})
	step("upgrade", func(r *rig) {
		before := r.run("xdpban", "version")
		r.withoutAHole("upgrade", func() { r.install(deb("next")) })
		r.active()
		if after := r.run("xdpban", "version"); after == before {
			r.Errorf("still %s", before)
		}
	})
	step("reboot", func(r *rig) {
		if err := r.sys.Reboot(r.ctx); err != nil {
			r.Fatal(err)
		}
		// The kernel may still be taking down the old cable.
		r.out.Run(r.ctx, "ip", "link", "del", "eth0")
		r.join()
		r.active()
		r.until("the attacker is banned after the reboot", func() bool { return !r.served(attacker) })
		if !r.served(bystander) {
			r.Error("the bystander isn't served")
		}
		r.show("xdpban", "list")
	})
	step("purge", func(r *rig) {
		r.run("dpkg", "--purge", "xdpban")
		r.until("the attacker is served again", func() bool { return r.served(attacker) })
		left := r.run("sh", "-c", "find / -xdev -name '*xdpban*' -not -path '/proc/*' -not -path '/root/*' -not -path '/tmp/*'; ls /run /sys/fs/bpf | grep xdpban || :")
		if strings.TrimSpace(left) != "" {
			r.Errorf("left after purge:\n%s", left)
		}
	})
}

func arch(t *testing.T) string {
	out, err := exec.Command("dpkg", "--print-architecture").Output()
	if err != nil {
		t.Fatalf("which architecture is this: %v", err)
	}
	return strings.TrimSpace(string(out))
}
