package test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestJailReplacesTheShippedOne: a file in jail.d goes before the built-in
// jail of that name, key by key: its patterns replace those of all modes, and
// what it doesn't name stays.
func TestJailReplacesTheShippedOne(t *testing.T) {
	b := newBed(t)
	path := b.server.Path("/etc/xdpban/jail.d/sshd.toml")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	const jail = `# jail.d/sshd.toml
[jail.sshd]
enabled  = true
program  = ["sshd", "sshd-session"]        # the syslog tag; date, host and tag are taken off before matching,
journal  = ["_SYSTEMD_UNIT=ssh.service"]   # and the journal yields the same text: one pattern serves both
files    = ["/var/log/auth.log"]
maxretry = 5
findtime = "10m"
bantime  = "1h"
failregex = [ '''^Failed (?:password|publickey) for (?:invalid user )?<F-USER>.*</F-USER> from <ADDR> port \d+(?: ssh\d*)?$''' ]
`
	if err := os.WriteFile(path, []byte(jail), 0o644); err != nil {
		t.Fatal(err)
	}
	if out := b.run(b.server, program(t), "check"); strings.Contains(out, "sshd.toml:") {
		t.Errorf("check complains:\n%s", out)
	}
	const password, publickey, both = "198.51.100.1", "198.51.100.2", "198.51.100.3"
	fails := func(addr, how string) {
		line := strings.Replace(failure(time.Now(), addr), "password", how, 1)
		appendTo(t, b.server, "/var/log/auth.log", line)
	}
	fails("192.0.2.200", "password")
	b.protect()
	// Not one of this file's patterns, though the built-in jail's.
	for range 5 {
		appendTo(t, b.server, "/var/log/auth.log", strings.Replace(failure(time.Now(), "198.51.100.4"),
			"Failed password for root from 198.51.100.4 port 40022 ssh2", "ROOT LOGIN REFUSED FROM 198.51.100.4 port 40022", 1))
	}
	for i := range 5 {
		fails(password, "password")
		fails(publickey, "publickey")
		fails(both, []string{"password", "publickey"}[i%2])
	}
	b.untilBanned(both)
	got := b.bans()
	for _, addr := range []string{password, publickey, both} {
		if got[addr].Jail != "sshd" {
			t.Errorf("%s: %+v", addr, got[addr])
		}
	}
	if len(got) != 3 {
		t.Errorf("banned: %v", got)
	}
}
