package lab

import (
	"context"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

func needRoot(t *testing.T) context.Context {
	if os.Getuid() != 0 {
		t.Skip("needs root to make name spaces")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// TestAHostsOwnSshLog is the ground that the other system tests stand on:
// two hosts, a real failed login, the journal's line about it under ssh's
// unit, and nothing left afterwards.
func TestAHostsOwnSshLog(t *testing.T) {
	ctx := needRoot(t)
	server, err := Boot("server")
	if err != nil {
		t.Fatal(err)
	}
	slice := server.slice
	attacker, err := Boot("attacker")
	if err != nil {
		server.Close()
		t.Fatal(err)
	}
	defer func() {
		for _, h := range []*Host{server, attacker} {
			if h == nil {
				continue
			}
			if err := h.Close(); err != nil {
				t.Error(err)
			}
		}
	}()

	if err := Join(ctx, "eth0",
		server, []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24"), netip.MustParsePrefix("2001:db8::1/64")},
		attacker, []netip.Prefix{netip.MustParsePrefix("192.0.2.66/24"), netip.MustParsePrefix("2001:db8::66/64")},
	); err != nil {
		t.Fatal(err)
	}
	if _, err := server.Journald(ctx); err != nil {
		t.Fatal(err)
	}
	sshd, err := server.Sshd(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, from := range []string{"192.0.2.66", "2001:db8::66"} {
		to := map[bool]string{true: "2001:db8::1", false: "192.0.2.1"}[strings.Contains(from, ":")]
		said, ok, err := attacker.SSH(ctx, from, "nobody-here", "wrong", to)
		if err != nil {
			t.Fatal(err)
		}
		if ok || !strings.Contains(said, "Permission denied") {
			t.Fatalf("login from %s: ok %v, client said %q", from, ok, said)
		}
		out, err := server.Run(ctx, "journalctl", "-o", "cat", "_SYSTEMD_UNIT=ssh.service")
		if err != nil {
			t.Fatal(err)
		}
		if want := "Failed password for invalid user nobody-here from " + from + " port "; !strings.Contains(out, want) {
			t.Fatalf("no %q in the journal of ssh.service:\n%s", want, out)
		}
	}

	pid := sshd.PID()
	if err := server.Close(); err != nil {
		t.Error(err)
	}
	server = nil
	if _, err := os.Stat("/proc/" + strconv.Itoa(pid)); !os.IsNotExist(err) {
		t.Errorf("sshd (process %d) outlived its host: %v", pid, err)
	}
	// The cgroup tree is the machine's: the other host sees the same one.
	left, err := filepath.Glob(filepath.Join(filepath.Dir(attacker.slice), filepath.Base(slice)))
	if err != nil || len(left) > 0 {
		t.Errorf("cgroups outlived their host: %v %v", left, err)
	}
	if _, err := os.Stat(attacker.slice); err != nil {
		t.Errorf("that check looks in the wrong place: %v", err)
	}
}

func TestSocketsOfAHost(t *testing.T) {
	needRoot(t)
	h, err := Boot("alone")
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if err := h.In(func() error {
		ifs, err := net.Interfaces()
		if err == nil && (len(ifs) == 0 || ifs[0].Name != "lo" || ifs[0].Flags&net.FlagUp == 0) {
			t.Errorf("interfaces of a new host: %v", ifs)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

func TestAServiceThatDiesAtOnce(t *testing.T) {
	ctx := needRoot(t)
	h, err := Boot("alone")
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	_, err = h.StartNotify(ctx, "bad.service", nil, "sh", "-c", "echo no such luck; exit 3")
	if err == nil || !strings.Contains(err.Error(), "no such luck") {
		t.Fatalf("got %v, want an error with the service's last words", err)
	}
	s, err := h.StartNotify(ctx, "good.service", nil, "sh", "-c", "systemd-notify --ready; echo said; exec sleep 60")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.WaitFor(ctx, "said"); err != nil {
		t.Fatal(err)
	}
	s.Kill()
	if s.PID() != 0 {
		t.Error("alive after Kill")
	}
}
