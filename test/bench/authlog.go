package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// authLog is a log of sshd and others, with what is to be found in it.
type authLog struct {
	path     string
	lines    int
	failures map[netip.Addr]int
	banned   map[netip.Prefix]bool // maxretry 5, a window as long as the log
}

// failed are the ways in which sshd says that somebody failed, all that
// fail2ban and xdpban count in their usual mode.
var failed = []func(user, addr string, port int) string{
	func(u, a string, p int) string {
		return fmt.Sprintf("Failed password for %s from %s port %d ssh2", u, a, p)
	},
	func(u, a string, p int) string {
		return fmt.Sprintf("Failed password for invalid user %s from %s port %d ssh2", u, a, p)
	},
	func(u, a string, p int) string { return fmt.Sprintf("Invalid user %s from %s port %d", u, a, p) },
	func(u, a string, p int) string {
		return fmt.Sprintf("Failed keyboard-interactive/pam for invalid user %s from %s port %d ssh2", u, a, p)
	},
	func(u, a string, p int) string {
		return fmt.Sprintf("Failed none for invalid user %s from %s port %d ssh2", u, a, p)
	},
	func(u, a string, p int) string {
		return fmt.Sprintf("error: maximum authentication attempts exceeded for %s from %s port %d ssh2 [preauth]", u, a, p)
	},
	func(u, a string, p int) string {
		return fmt.Sprintf("User %s from %s not allowed because not listed in AllowUsers", u, a)
	},
	func(u, a string, p int) string {
		return fmt.Sprintf("error: PAM: Authentication failure for %s from %s", u, a)
	},
	func(u, a string, p int) string { return fmt.Sprintf("ROOT LOGIN REFUSED FROM %s port %d", a, p) },
}

// harmless are lines of an auth.log that nothing is to be found in.
var harmless = []func(user, addr string, port, pid int) string{
	func(u, a string, p, pid int) string {
		return fmt.Sprintf("sshd[%d]: Accepted publickey for %s from %s port %d ssh2: ED25519 SHA256:%016x%016x", pid, u, a, p, pid, p)
	},
	func(u, a string, p, pid int) string {
		return fmt.Sprintf("sshd[%d]: pam_unix(sshd:session): session opened for user %s(uid=%d) by (uid=0)", pid, u, p)
	},
	func(u, a string, p, pid int) string {
		return fmt.Sprintf("sshd[%d]: pam_unix(sshd:session): session closed for user %s", pid, u)
	},
	func(u, a string, p, pid int) string {
		return fmt.Sprintf("CRON[%d]: pam_unix(cron:session): session opened for user %s(uid=%d) by (uid=0)", pid, u, p)
	},
	func(u, a string, p, pid int) string {
		return fmt.Sprintf("sudo:  %s : TTY=pts/%d ; PWD=/home/%s ; USER=root ; COMMAND=/usr/bin/journalctl -n %d", u, p%64, u, pid)
	},
	func(u, a string, p, pid int) string {
		return fmt.Sprintf("systemd-logind[611]: New session %d of user %s.", pid, u)
	},
	func(u, a string, p, pid int) string {
		return fmt.Sprintf("sshd[%d]: Received disconnect from %s port %d:11: disconnected by user", pid, a, p)
	},
	func(u, a string, p, pid int) string {
		return fmt.Sprintf("sshd[%d]: Disconnected from user %s %s port %d", pid, u, a, p)
	},
}

// benchAddr is the nth of the addresses for measurements: of 198.18.0.0/15,
// and each fourth of a /64 of its own.
func benchAddr(n int) netip.Addr {
	if n%4 == 3 {
		return netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 0, byte(n >> 16), byte(n >> 8), byte(n), 0, 0, 0, 0, 0, 0, 0, 1})
	}
	return netip.AddrFrom4([4]byte{198, byte(18 + n>>16&1), byte(n >> 8), byte(n)})
}

func subject(a netip.Addr) netip.Prefix {
	bits := 32
	if a.Is6() {
		bits = 64
	}
	return netip.PrefixFrom(a, bits).Masked()
}

func user(r *rand.Rand) string {
	names := []string{"root", "admin", "test", "oracle", "postgres", "git", "deploy", "ubuntu", "pi", "www", "backup", "jenkins"}
	return names[r.IntN(len(names))] + fmt.Sprintf("%x", r.IntN(1<<20))
}

// makeAuthLog writes a log whose lines end now and began half an hour ago. A
// share of percent are failures: four of five are of somebody who fails eight
// times, the others of one who fails once.
func makeAuthLog(path string, lines, percent int) (*authLog, error) {
	l := &authLog{path: path, lines: lines, failures: map[netip.Addr]int{}, banned: map[netip.Prefix]bool{}}
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	w := bufio.NewWriter(f)
	r := rand.New(rand.NewPCG(1, 2))
	const span = 30 * time.Minute
	start := time.Now().Add(-span)
	share := lines * percent / 100
	repeaters := max(1, share/10) // eight failures each, eight tenths of all
	written := 0
	for i := range lines {
		at := start.Add(span / time.Duration(lines) * time.Duration(i)).UTC().Format("2006-01-02T15:04:05.000000-07:00")
		u, port, pid := user(r), 1024+r.IntN(64000), 1000+i
		// As evenly spread as can be.
		if percent > 0 && (i+1)*percent/100 > i*percent/100 {
			n := repeaters + written
			if written%5 != 4 {
				n = written / 5 * 4 % repeaters
				n = (n + written%5) % repeaters
			}
			written++
			a := benchAddr(n)
			fmt.Fprintf(w, "%s server sshd[%d]: %s\n", at, pid, failed[r.IntN(len(failed))](u, a.String(), port))
			if l.failures[a]++; l.failures[a] == 5 {
				l.banned[subject(a)] = true
			}
			continue
		}
		a := benchAddr(100_000 + r.IntN(30_000)).String()
		fmt.Fprintf(w, "%s server %s\n", at, harmless[r.IntN(len(harmless))](u, a, port, pid))
	}
	if err := w.Flush(); err != nil {
		return nil, err
	}
	return l, f.Close()
}

// sshdConfig is a folder of xdpban's with the window of that log.
func (b *bench) sshdConfig() (string, error) {
	dir := b.path("xdpban")
	if err := os.MkdirAll(filepath.Join(dir, "jail.d"), 0o755); err != nil {
		return "", err
	}
	return dir, os.WriteFile(filepath.Join(dir, "jail.d", "sshd.toml"), []byte("[jail.sshd]\nfindtime = \"1h\"\n"), 0o644)
}

// replay has xdpban say whom it would have banned.
func (b *bench) replay(config, log string, jails ...string) (map[netip.Prefix]bool, spent, error) {
	args := []string{b.xdpban, "replay", "--json", "--config", config, log}
	for _, j := range jails {
		args = append(args, "--jail", j)
	}
	out, s, err := b.time(b.command(args...))
	if err != nil {
		return nil, s, err
	}
	var res struct {
		Bans []struct{ Prefix netip.Prefix }
	}
	if err := json.Unmarshal(out, &res); err != nil {
		return nil, s, fmt.Errorf("what replay said: %w", err)
	}
	bans := map[netip.Prefix]bool{}
	for _, e := range res.Bans {
		bans[subject(e.Prefix.Addr())] = true
	}
	return bans, s, nil
}

// failuresOf has xdpban say which lines are failures, by address.
func (b *bench) failuresOf(config, log string, jails ...string) (map[netip.Addr]int, error) {
	args := []string{b.xdpban, "test", "--json", "--config", config, log}
	for _, j := range jails {
		args = append(args, "--jail", j)
	}
	out, _, err := b.time(b.command(args...))
	if err != nil {
		return nil, err
	}
	var res struct{ Failures []struct{ Addr netip.Addr } }
	if err := json.Unmarshal(out, &res); err != nil {
		return nil, fmt.Errorf("what test said: %w", err)
	}
	found := map[netip.Addr]int{}
	for _, f := range res.Failures {
		found[f.Addr]++
	}
	return found, nil
}

// fail2banRegex has fail2ban-regex name the address of each failure.
func (b *bench) fail2banRegex(log, filter string) (map[netip.Addr]int, spent, error) {
	out, s, err := b.time(b.command("fail2ban-regex", "-o", "ip", log, filter))
	if err != nil {
		return nil, s, err
	}
	found := map[netip.Addr]int{}
	for word := range strings.FieldsSeq(string(out)) {
		if a, err := netip.ParseAddr(word); err == nil {
			found[a]++
		}
	}
	return found, s, nil
}

// same says how two findings differ.
func same[K comparable, V comparable](who string, got, want map[K]V) error {
	for k, v := range want {
		if got[k] != v {
			return fmt.Errorf("%s found %v for %v, want %v (%d found in all, want %d)", who, got[k], k, v, len(got), len(want))
		}
	}
	for k, v := range got {
		if _, ok := want[k]; !ok {
			return fmt.Errorf("%s found %v for %v, who did nothing", who, v, k)
		}
	}
	return nil
}
