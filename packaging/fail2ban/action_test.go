// Package fail2ban tests the action for those who keep fail2ban, with a real
// fail2ban-server.
package fail2ban

import (
	"context"
	"encoding/json"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"xdpban/internal/lab"
)

const attacker4, attacker6 = "192.0.2.66", "2001:db8::66"

// TestActionBansInXDP: failed logins at a real sshd make a real fail2ban ban
// a real attacker in XDP, and unbanning, for ever and stopping work as well.
func TestActionBansInXDP(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to make name spaces")
	}
	if _, err := exec.LookPath("fail2ban-server"); err != nil {
		t.Skip("fail2ban is not installed")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	program := filepath.Join(t.TempDir(), "xdpban")
	build := exec.Command("go", "build", "-buildvcs=false", "-o", program, "xdpban/cmd/xdpban")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build xdpban: %v\n%s", err, out)
	}
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
	server, attacker := boot("f2b-server"), boot("f2b-attacker")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	run := func(argv ...string) string {
		t.Helper()
		out, err := server.Run(ctx, argv...)
		must(err)
		return out
	}
	must(lab.Join(ctx, "eth0",
		server, []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24"), netip.MustParsePrefix("2001:db8::1/64")},
		attacker, []netip.Prefix{netip.MustParsePrefix(attacker4 + "/24"), netip.MustParsePrefix(attacker6 + "/64")}))
	must(server.Install("xdpban", program))
	_, err := server.Rsyslog(ctx)
	must(err)
	_, err = server.Sshd(ctx)
	must(err)

	action, err := os.ReadFile("xdpban.conf")
	must(err)
	must(os.WriteFile(server.Path("/etc/fail2ban/action.d/xdpban.conf"), action, 0o644))
	must(os.WriteFile(server.Path("/etc/fail2ban/jail.local"), []byte(`[DEFAULT]
banaction = xdpban[interfaces=eth0]
backend = polling
maxretry = 2
bantime = 1h
[sshd]
[other]
enabled = true
filter = sshd
logpath = /var/log/auth.log
maxretry = 100
`), 0o644))
	run("mkdir", "-p", "/run/fail2ban")
	run("touch", "/var/log/auth.log")
	f2b, err := server.Start("fail2ban.service", nil, "fail2ban-server", "-xf", "--logtarget=STDOUT", "start")
	must(err)
	must(f2b.WaitFor(ctx, "Jail 'other' started"))

	reaches := func(from, to string) bool {
		_, err := attacker.Run(ctx, "ping", "-c1", "-W1", "-I", from, to)
		return err == nil
	}
	type ban struct {
		Prefix string     `json:"prefix"`
		Jail   string     `json:"jail"`
		Until  *time.Time `json:"until"`
	}
	bans := func() map[string]ban {
		t.Helper()
		var l struct{ Bans []ban }
		must(json.Unmarshal([]byte(run("xdpban", "list", "--json")), &l))
		byPrefix := map[string]ban{}
		for _, b := range l.Bans {
			byPrefix[b.Prefix] = b
		}
		return byPrefix
	}
	until := func(what string, f func() bool) {
		t.Helper()
		if err := lab.Until(ctx, what, f); err != nil {
			t.Fatalf("%v\n%s", err, f2b.Output())
		}
	}

	for _, way := range []struct{ from, to, prefix string }{
		{attacker4, "192.0.2.1", attacker4 + "/32"},
		{attacker6, "2001:db8::1", attacker6 + "/128"},
	} {
		if !reaches(way.from, way.to) {
			t.Fatalf("%s doesn't reach the server before any ban", way.from)
		}
		for range 2 {
			if _, ok, err := attacker.SSH(ctx, way.from, "nobody-here", "wrong", way.to); err != nil || ok {
				t.Fatalf("login: ok %v, %v", ok, err)
			}
		}
		until(way.from+" is banned", func() bool { return bans()[way.prefix].Jail == "sshd" })
		if reaches(way.from, way.to) {
			t.Errorf("%s still reaches the server", way.from)
		}
		left := time.Until(*bans()[way.prefix].Until)
		if left < 55*time.Minute || left > 62*time.Minute {
			t.Errorf("the kernel ends the ban in %v, want an hour and a minute", left)
		}
	}

	run("fail2ban-client", "set", "sshd", "unbanip", attacker4)
	if !reaches(attacker4, "192.0.2.1") {
		t.Error("unbanned, but doesn't reach the server")
	}

	// For ever, and a shorter ban of another jail beside it.
	run("fail2ban-client", "set", "sshd", "bantime", "-1")
	run("fail2ban-client", "set", "sshd", "banip", attacker4)
	until("the ban for ever", func() bool { b, ok := bans()[attacker4+"/32"]; return ok && b.Until == nil })
	run("fail2ban-client", "set", "other", "banip", attacker4)
	until("the other jail's ban", func() bool { return strings.Contains(f2b.Output(), "[other] Ban "+attacker4) })
	run("fail2ban-client", "set", "other", "unbanip", attacker4)
	if b := bans()[attacker4+"/32"]; b.Jail != "sshd" || b.Until != nil {
		t.Errorf("after the other jail's unban: %+v, want sshd's ban for ever", b)
	}

	// A ban by hand outlives fail2ban, its own bans don't.
	run("xdpban", "ban", "198.51.100.7")
	run("fail2ban-client", "stop")
	until("fail2ban's end", func() bool {
		select {
		case <-f2b.Ended():
			return true
		default:
			return false
		}
	})
	if got := bans(); len(got) != 1 || got["198.51.100.7/32"].Jail != "manual" {
		t.Errorf("after fail2ban stopped: %v", got)
	}
	if !reaches(attacker4, "192.0.2.1") {
		t.Error("doesn't reach the server after fail2ban stopped")
	}
	for l := range strings.Lines(f2b.Output()) {
		if strings.Contains(l, "ERROR") {
			t.Errorf("fail2ban: %s", l)
		}
	}
}
