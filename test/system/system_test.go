// Package system tests the packages on a whole Debian with systemd, sshd and
// nginx, attacked from outside. `make test-system` gives it what it needs.
package system

import (
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
	"xdpban/test/docs"
)

const (
	server     = "192.0.2.1"
	attacker   = "192.0.2.66"
	scanner    = "192.0.2.77" // a second address of the attacker's host
	bystander  = "192.0.2.7"  // a third one, of which nothing bad is known
	latecomer  = "192.0.2.88" // a fourth one
	pingPeriod = 50 * time.Millisecond
)

// rig is a Debian and an attacker on one wire.
type rig struct {
	*testing.T
	ctx context.Context
	sys *lab.System
	out *lab.Host
}

// as runs a command as a user who is a member of one group, and nothing else.
func (r *rig) as(group string, argv ...string) (string, error) {
	return r.sys.Run(r.ctx, append([]string{"setpriv", "--reuid=nobody", "--regid=nogroup", "--groups=" + group}, argv...)...)
}

// write makes a file of the system.
func (r *rig) write(path, text string) {
	r.Helper()
	if err := os.WriteFile(r.sys.Path(path), []byte(text), 0o644); err != nil {
		r.Fatal(err)
	}
}

// says fails unless a text has all of the given parts.
func (r *rig) says(text string, parts ...string) {
	r.Helper()
	for _, p := range parts {
		if !strings.Contains(text, p) {
			r.Errorf("no %q in:\n%s", p, text)
		}
	}
}

// exposure is the score of a unit's sandbox: from 0, nothing to gain, to 10.
func (r *rig) exposure(unit string) float64 {
	r.Helper()
	out := r.run("systemd-analyze", "security", "--no-pager", unit)
	m := regexp.MustCompile(`Overall exposure level for \S+: ([0-9.]+)`).FindStringSubmatch(out)
	if m == nil {
		r.Fatalf("no score in:\n%s", out)
	}
	r.Log(m[0])
	score, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		r.Fatal(err)
	}
	return score
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
	if err := lab.Join(r.ctx, "eth0", r.sys.Host, []netip.Prefix{p(server)}, r.out, []netip.Prefix{p(attacker), p(scanner), p(bystander), p(latecomer)}); err != nil {
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
	_, err := r.out.Run(r.ctx, "curl", "--silent", "--output", "/dev/null", "--max-time", "2", "--interface", from, "http://"+server+path)
	return err
}

// guess tries to log in with a wrong password.
func (r *rig) guess(from string) {
	r.Helper()
	if _, ok, err := r.out.SSH(r.ctx, from, "root", "wrong", server); err != nil || ok {
		r.Fatal(ok, err)
	}
}

// serveNames answers on the bystander's address, for the address of every
// name but those that don't end in example.org, as a name server does
// (RFC 1035, section 4).
func (r *rig) serveNames(addr string) io.Closer {
	r.Helper()
	var conn net.PacketConn
	err := r.out.In(func() (err error) {
		conn, err = net.ListenPacket("udp4", bystander+":53")
		return err
	})
	if err != nil {
		r.Fatal(err)
	}
	ip := netip.MustParseAddr(addr).As4()
	go func() {
		buf := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			const header = 12
			end := header
			for end < n && buf[end] != 0 {
				end += 1 + int(buf[end])
			}
			if end += 5; end > n { // the root label, type, class
				continue
			}
			answer := append([]byte(nil), buf[:end]...)
			copy(answer[2:], []byte{0x84, 0, 0, 1, 0, 0, 0, 0, 0, 0}) // an authoritative answer, one question
			if !strings.Contains(string(buf[header:end]), "\x07example\x03org\x00") {
				answer[3] = 3 // no such name
			} else if buf[end-3] == 1 { // type A
				answer[7] = 1
				answer = append(answer, 0xc0, header, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4)
				answer = append(answer, ip[:]...)
			}
			conn.WriteTo(answer, from)
		}
	}()
	return conn
}

// carry copies a file of this machine into the system.
func (r *rig) carry(file, to string) {
	r.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		r.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(r.sys.Path(to)), 0o755); err != nil {
		r.Fatal(err)
	}
	if err := os.WriteFile(r.sys.Path(to), b, 0o644); err != nil {
		r.Fatal(err)
	}
}

// install copies the package into the system and installs it.
func (r *rig) install(deb string) {
	r.Helper()
	r.carry(deb, "/root/xdpban.deb")
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
		r.carry(deb("this"), "/root/dist/"+filepath.Base(deb("this")))
		r.play("../../README.md")
		r.active()
		r.says(r.show("systemctl", "status", "--no-pager", "--lines=20", "xdpban"),
			"; enabled; ", "active (running)", `Status: "guards eth0; `, "is up: guards eth0; ")
		r.says(r.show("xdpban", "status"), "eth0: attached, native", "waiting for what they read: apache-auth, ")
		if out := r.show("systemctl", "show", "--property=Type,WatchdogUSec,NotifyAccess", "xdpban"); !strings.Contains(out, "Type=notify") || strings.Contains(out, "WatchdogUSec=0") {
			r.Error("the unit has no watchdog or no readiness protocol")
		}
		if out := r.run("dpkg-query", "-W", "-f=${Conffiles}", "xdpban"); !strings.Contains(out, "/etc/xdpban/xdpban.toml") || !strings.Contains(out, "/etc/xdpban/jail.d/local.toml") {
			r.Errorf("conffiles: %q", out)
		}
		if out, err := r.sys.Run(r.ctx, "xdpban", "service", "install"); err == nil || !strings.Contains(out, "comes from elsewhere, such as a package") {
			r.Errorf("a service beside the package's: %v\n%s", err, out)
		}
	})
	step("pages", func(r *rig) {
		pages, err := filepath.Glob("../../docs/*.md")
		if err != nil {
			r.Fatal(err)
		}
		for _, page := range pages {
			r.play(page)
		}
	})
	step("ssh", func(r *rig) {
		if !r.served(attacker) {
			r.Fatal("not served before any failure")
		}
		for range 5 {
			r.guess(attacker)
		}
		r.until("the attacker is dropped", func() bool { return !r.served(attacker) })
		if !r.served(bystander) {
			r.Error("the bystander isn't served")
		}
		r.says(r.show("xdpban", "list"), attacker)
		r.says(r.show("journalctl", "--no-pager", "-u", "xdpban"), "ban "+attacker+" jail=sshd ")
		r.says(r.show("journalctl", "--no-pager", "-u", "xdpban", "-o", "verbose", "MESSAGE_ID=3538e9841d3d500300f38a157ea42770"),
			"JAIL=sshd", "ADDR="+attacker, "FAILURES=5", "SYSLOG_IDENTIFIER=xdpban")
	})
	step("nginx", func(r *rig) {
		for i := 0; r.get(scanner, "/wp-login.php") == nil && r.get(scanner, "/.env") == nil; i++ {
			if i > 200 {
				r.show("tail", "-n", "3", "/var/log/nginx/access.log")
				r.Fatal("a scanner may go on for ever")
			}
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
		r.write("/etc/xdpban/jail.d/bad.toml", "[jail.sshd]\nmaxretry = \"many\"\nbantime = 1\n")
		if out, err := r.sys.Run(r.ctx, "systemctl", "reload", "xdpban"); err == nil {
			r.Errorf("a reload with a broken configuration passes for good: %s", out)
		}
		r.says(r.show("journalctl", "--no-pager", "-u", "xdpban", "-n", "6"), "/etc/xdpban/jail.d/bad.toml:2: jail.sshd.maxretry: ", "bad.toml:3: jail.sshd.bantime: ", "Reload failed")
		r.until("systemctl status tells of the problem", func() bool {
			out, _ := r.sys.Run(r.ctx, "systemctl", "show", "--property=ActiveState,StatusText", "xdpban")
			return strings.Contains(out, "ActiveState=active") && strings.Contains(out, "1 problem, see xdpban status")
		})
		r.show("systemctl", "status", "--no-pager", "--lines=0", "xdpban")
		r.run("rm", "/etc/xdpban/jail.d/bad.toml")
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
		for _, unit := range []string{"xdpban.service", "xdpban-net.service", "xdpban-nats.service", "xdpban-hook.service"} {
			if score := r.exposure(unit); score >= 2 {
				r.Errorf("exposure of %s: %v, want below 2.0", unit, score)
			}
		}
	})
	step("hooks", func(r *rig) {
		r.write("/etc/xdpban/told", "#!/bin/sh\n{ echo \"$1 $XDPBAN_EVENT\"; cat; echo; grep -E '^(Uid|Groups|Cap...|NoNewPrivs|Seccomp):' /proc/self/status; } | systemd-cat -t told\n"+
			"touch /etc/xdpban/written /run/xdpban/written && exit 9\nexit 0\n")
		r.run("chmod", "755", "/etc/xdpban/told")
		r.write("/etc/xdpban/xdpban.toml", `on_ban = ["/etc/xdpban/told", "<ip>"]`+"\n"+`on_unban = ["/etc/xdpban/told", "<ip>"]`+"\n"+
			"[[webhook]]\nname = \"here\"\nurl = \"http://127.0.0.1:8085/x\"\n")
		r.run("systemd-run", "--quiet", "--unit=listener", "python3", "-u", "-c", `import http.server
class H(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        print("posted", self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.send_response(204)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", 8085), H).serve_forever()`)
		r.run("systemctl", "reload", "xdpban")
		r.run("xdpban", "ban", "203.0.113.50")
		r.run("xdpban", "unban", "203.0.113.50")
		r.until("the hooks have run", func() bool {
			out, _ := r.sys.Run(r.ctx, "xdpban", "status")
			return regexp.MustCompile(`(?m)^on_unban +/etc/xdpban/told +1 +0 +0 +0 +0$`).MatchString(out) &&
				regexp.MustCompile(`(?m)^webhook +here +1 +0 +0 +0 +0$`).MatchString(out)
		})
		r.says(r.show("journalctl", "--no-pager", "-o", "cat", "-u", "listener"), `posted {"event":"ban","host":"web"`)
		r.run("systemctl", "stop", "listener")
		r.says(r.show("journalctl", "--no-pager", "-o", "cat", "-t", "told"), "203.0.113.50 ban\n", "203.0.113.50 unban\n", `"addr":"203.0.113.50"`,
			"CapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapBnd:\t0000000000000000\nCapAmb:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n")
		if out := r.run("journalctl", "--no-pager", "-o", "cat", "-t", "told"); regexp.MustCompile(`Uid:\t0\t`).MatchString(out) {
			r.Error("a hook runs as root")
		}
		if out, err := r.sys.Run(r.ctx, "ls", "/etc/xdpban/written", "/run/xdpban/written"); err == nil {
			r.Errorf("a hook has written: %s", out)
		}
		r.run("rm", "/etc/xdpban/told")
		r.write("/etc/xdpban/xdpban.toml", "")
		r.run("systemctl", "reload", "xdpban")
	})
	step("names", func(r *rig) {
		names := r.serveNames("203.0.113.5")
		defer names.Close()
		r.write("/etc/resolv.conf", "nameserver "+bystander+"\n")
		r.run("sh", "-c", "echo 203.0.113.6 office.internal >>/etc/hosts")
		r.write("/etc/xdpban/xdpban.toml", `ignoreip = ["admin.example.org", "office.internal", "no.such.name"]`+"\n")
		r.run("systemctl", "reload", "xdpban")
		r.until("the names are looked up", func() bool {
			out, _ := r.sys.Run(r.ctx, "xdpban", "allow")
			return strings.Contains(out, "203.0.113.5") && strings.Contains(out, "203.0.113.6")
		})
		r.show("xdpban", "allow")
		r.says(r.show("xdpban", "status"), "look up no.such.name of ignoreip: ")
		if out, err := r.sys.Run(r.ctx, "xdpban", "ban", "203.0.113.5"); err == nil {
			r.Errorf("a name of ignoreip can be banned: %s", out)
		}
		r.show("systemctl", "status", "--no-pager", "xdpban-net.service")
	})
	step("ports", func(r *rig) {
		r.write("/etc/xdpban/xdpban.toml", "metrics = \""+server+":9477\"\nweb = \"127.0.0.1:9478\"\ntoken_file = \"/etc/xdpban/token\"\n")
		r.run("sh", "-c", "umask 077; openssl rand -hex 32 >/etc/xdpban/token")
		r.run("systemctl", "restart", "xdpban")
		token := strings.TrimSpace(r.run("cat", "/etc/xdpban/token"))
		scrape := func(token string) string {
			out, _ := r.out.Run(r.ctx, "curl", "--silent", "--show-error", "--max-time", "2", "--interface", bystander, "--oauth2-bearer", token, "http://"+server+":9477/metrics")
			return out
		}
		r.until("metrics are served", func() bool { return strings.Contains(scrape(token), "xdpban_bans_active{jail=\"sshd\"} 1") })
		if out := scrape("guessed"); strings.Contains(out, "xdpban_bans") {
			r.Errorf("metrics for everybody: %s", out)
		}
		r.says(r.run("python3", "-c", "import urllib.request as u; print(u.urlopen('http://127.0.0.1:9478/').read().decode())"), "<title>xdpban")
		r.run("rm", "/etc/xdpban/token")
	})
	step("fleet", func(r *rig) {
		if out := r.show("systemctl", "show", "--property=Result,ActiveState", "xdpban-nats"); !strings.Contains(out, "ActiveState=inactive") {
			r.Errorf("a server for a fleet that there isn't: %s", out)
		}
		r.run("xdpban", "fleet", "key") // makes it, and says so
		r.write("/etc/xdpban/xdpban.toml", "[fleet]\nname = \"web\"\nhost = \"web1\"\nnkey = \"/etc/xdpban/fleet.nkey\"\nembedded = true\nlisten = \""+server+
			":4222\"\nhosts = { web1 = \""+strings.TrimSpace(r.run("xdpban", "fleet", "key"))+"\" }\n")
		r.run("systemctl", "restart", "xdpban")
		r.until("the host is in its own fleet", func() bool {
			out, _ := r.sys.Run(r.ctx, "xdpban", "fleet", "status", "--json")
			return strings.Contains(out, `"synced":true`)
		})
		r.run("xdpban", "ban", "203.0.113.60")
		r.until("a ban is sent", func() bool {
			out, _ := r.sys.Run(r.ctx, "xdpban", "fleet", "status", "--json")
			return regexp.MustCompile(`"published":[1-9]`).MatchString(out)
		})
		r.run("xdpban", "unban", "203.0.113.60")
		r.says(r.show("systemctl", "status", "--no-pager", "xdpban-nats"), "active (running)")
		if out, err := r.sys.Run(r.ctx, "nsenter", "--target", strings.TrimSpace(r.run("systemctl", "show", "--property=MainPID", "--value", "xdpban-nats")), "--mount",
			"cat", "/etc/shadow"); err == nil {
			r.Errorf("the server sees what is none of its business: %s", out)
		}
		r.write("/etc/xdpban/xdpban.toml", "")
		r.run("systemctl", "restart", "xdpban")
		if out := r.show("systemctl", "show", "--property=Result,ActiveState", "xdpban-nats"); !strings.Contains(out, "ActiveState=inactive") {
			r.Errorf("the server goes on without embedded: %s", out)
		}
	})
	step("group", func(r *rig) {
		r.write("/etc/xdpban/xdpban.toml", "socket_group = \"adm\"\n")
		r.run("systemctl", "restart", "xdpban")
		if out, err := r.as("adm", "xdpban", "list"); err != nil || !strings.Contains(out, attacker) {
			r.Errorf("a member of the group: %v\n%s", err, out)
		}
		if out, err := r.as("adm", "xdpban", "unban", attacker); err == nil || !strings.Contains(out, "permission denied") {
			r.Errorf("a member of the group may unban: %v\n%s", err, out)
		}
		if out, err := r.as("games", "xdpban", "list"); err == nil {
			r.Errorf("a stranger may look: %s", out)
		}
		if out, err := r.as("adm", "xdpban", "doctor", "eth0"); strings.Contains(out, "another program") {
			r.Errorf("doctor doesn't know its own program: %v\n%s", err, out)
		}
		r.says(r.show("xdpban", "doctor"), "xdpban is attached")
	})
	step("auto", func(r *rig) {
		r.write("/etc/xdpban/jail.d/later.toml", "[jail.later]\nenabled = \"auto\"\njournal = [\"_SYSTEMD_UNIT=later.service\"]\nmaxretry = 1\nprogram = [\"later\"]\nfailregex = ['^bad guess from <ADDR>$']\n")
		r.run("systemctl", "reload", "xdpban")
		r.says(r.run("xdpban", "status", "later"), "later: waits for what it reads")
		r.write("/etc/systemd/system/later.service", "[Service]\nSyslogIdentifier=later\nExecStart=sh -c 'while sleep 0.5; do echo bad guess from 203.0.113.77; done'\n")
		r.run("systemctl", "daemon-reload")
		r.run("systemctl", "start", "later")
		r.until("the jail is on", func() bool {
			out, _ := r.sys.Run(r.ctx, "xdpban", "status", "later")
			return strings.HasPrefix(out, "later: on")
		})
		r.until("it bans", func() bool {
			out, _ := r.sys.Run(r.ctx, "xdpban", "list")
			return strings.Contains(out, "203.0.113.77")
		})
		r.run("systemctl", "stop", "later")
		r.run("rm", "/etc/systemd/system/later.service", "/etc/xdpban/jail.d/later.toml")
		r.run("systemctl", "daemon-reload")
		r.run("systemctl", "reload", "xdpban")
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
		r.write("/run/systemd/system/xdpban.service.d/test.conf", "[Service]\nWatchdogSec=2s\n")
		r.run("systemctl", "daemon-reload")
		r.run("systemctl", "restart", "xdpban")
		pid := r.mainPID()
		r.withoutAHole("watchdog", func() {
			r.run("kill", "-STOP", strconv.Itoa(pid))
			r.until("the watchdog restarts a hanging daemon", func() bool { p := r.mainPID(); return p != 0 && p != pid })
			r.active()
		})
		r.says(r.run("journalctl", "--no-pager", "-u", "xdpban", "-n", "20"), "Failed with result 'watchdog'")
		r.run("rm", "-r", "/run/systemd/system/xdpban.service.d")
		r.run("systemctl", "daemon-reload")
		r.run("systemctl", "restart", "xdpban")
	})
	step("upgrade", func(r *rig) {
		before := r.run("xdpban", "version")
		var guesses sync.WaitGroup
		for range 5 {
			guesses.Go(func() { r.out.SSH(r.ctx, latecomer, "root", "wrong", server) })
		}
		r.withoutAHole("upgrade", func() { r.install(deb("next")) })
		guesses.Wait()
		r.active()
		if after := r.run("xdpban", "version"); after == before {
			r.Errorf("still %s", before)
		}
		r.until("who guessed during the upgrade is banned", func() bool {
			out, _ := r.sys.Run(r.ctx, "xdpban", "list")
			return strings.Contains(out, latecomer)
		})
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
		r.says(r.show("xdpban", "list"), attacker, scanner, latecomer)
	})
	step("remove", func(r *rig) {
		r.run("cp", "/usr/bin/xdpban", "/root/xdpban")
		r.run("dpkg", "--remove", "xdpban")
		r.until("the attacker is served again", func() bool { return r.served(attacker) })
		r.install(deb("next"))
		r.active()
		r.until("the attacker is banned by what the ledger remembers", func() bool { return !r.served(attacker) })
	})
	step("purge", func(r *rig) {
		r.run("dpkg", "--purge", "xdpban")
		r.until("the attacker is served again", func() bool { return r.served(attacker) })
		r.nothingLeft()
	})
	step("service", func(r *rig) {
		if out, err := r.as("adm", "cat", "/root/xdpban"); err == nil {
			r.Fatalf("the test's premise: %s", out)
		}
		r.says(r.show("/root/xdpban", "service", "install"), "wrote /usr/local/bin/xdpban", "wrote /etc/xdpban/xdpban.toml", "wrote /etc/xdpban/jail.d/local.toml", "is enabled and runs")
		r.active()
		r.says(r.show("xdpban", "service", "status"), "/etc/systemd/system/xdpban.service: enabled, active", "guards eth0")
		if score := r.exposure("xdpban.service"); score >= 2 {
			r.Errorf("exposure %v, want below 2.0", score)
		}
		for _, verb := range []string{"install", "uninstall"} {
			if out, err := r.as("adm", "xdpban", "service", verb); err == nil || !strings.Contains(out, "only root may install or uninstall a service") {
				r.Errorf("%s by nobody: %v\n%s", verb, err, out)
			}
		}
		for range 5 {
			r.guess(attacker)
		}
		r.until("the attacker is dropped", func() bool { return !r.served(attacker) })
		r.withoutAHole("installing again", func() { r.run("/root/xdpban", "service", "install") })
		r.show("xdpban", "service", "uninstall", "--purge")
		r.until("the attacker is served again", func() bool { return r.served(attacker) })
		r.nothingLeft()
		if out, err := r.sys.Run(r.ctx, "/root/xdpban", "service", "status"); err == nil || !strings.Contains(out, "no service here") {
			r.Errorf("status of nothing: %v\n%s", err, out)
		}
		// The attacker's host has no systemd.
		binary, err := os.ReadFile(r.sys.Path("/root/xdpban"))
		if err == nil {
			err = os.WriteFile(r.out.Path("/run/lab/bin/xdpban"), binary, 0o755)
		}
		if err != nil {
			r.Fatal(err)
		}
		if out, err := r.out.Run(r.ctx, "xdpban", "service", "install"); err == nil || !strings.Contains(out, "systemd doesn't run this machine") {
			r.Errorf("without systemd: %v\n%s", err, out)
		}
	})
}

// play does what a page of the documentation says for a whole system.
func (r *rig) play(page string) {
	r.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		r.Fatal(err)
	}
	steps, err := docs.Read(string(text))
	if err != nil {
		r.Fatalf("%s: %v", page, err)
	}
	for _, s := range steps {
		switch {
		case !s.System:
		case s.File != "":
			if err := s.Write(r.sys.Path(s.File)); err != nil {
				r.Fatalf("%s: %v", page, err)
			}
		default:
			out, err := r.sys.Run(r.ctx, "sh", "-e", "-c", "cd /root\n"+s.Command)
			r.Logf("%s: # %s\n%s", filepath.Base(page), s.Command, out)
			if err := s.Check(out, err); err != nil {
				r.Errorf("%s: %v", page, err)
			}
		}
	}
}

// nothingLeft looks for traces after a removal.
func (r *rig) nothingLeft() {
	r.Helper()
	left := r.run("sh", "-c", "find / -xdev -name '*xdpban*' -not -path '/proc/*' -not -path '/root/*' -not -path '/tmp/*' -not -path '/var/tmp/*'; ls /run /sys/fs/bpf | grep xdpban || :")
	if strings.TrimSpace(left) != "" {
		r.Errorf("left behind:\n%s", left)
	}
}

func arch(t *testing.T) string {
	out, err := exec.Command("dpkg", "--print-architecture").Output()
	if err != nil {
		t.Fatalf("which architecture is this: %v", err)
	}
	return strings.TrimSpace(string(out))
}
