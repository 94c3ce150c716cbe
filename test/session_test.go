package test

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"
)

// TestSessionStaysIn: who is logged in over SSH when xdpban starts isn't banned
// for what he mistypes, nor is his session cut off. A connection that nobody is
// logged in on protects nobody.
func TestSessionStaysIn(t *testing.T) {
	b := newBed(t)
	b.run(b.server, "useradd", "--no-create-home", "--home-dir", "/", "--shell", "/bin/sh", "op")
	b.run(b.server, "sh", "-c", "echo op:secret | chpasswd && : >/run/utmp && mkdir -p /run/systemd")
	if _, err := b.server.Sshd(b.ctx); err != nil {
		t.Fatal(err)
	}
	login := []string{"ssh", "-F", "none", "-tt", "-b", attacker4,
		"-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "-o", "PreferredAuthentications=password"}
	session, err := b.attacker.Start("session.service", nil, append([]string{"sshpass", "-p", "secret"}, append(login, "op@"+server4, "echo in; while sleep 0.1; do echo still; done")...)...)
	if err != nil {
		t.Fatal(err)
	}
	if err := session.WaitFor(b.ctx, "in"); err != nil {
		t.Fatal(err)
	}
	var connected net.Conn
	if err := b.attacker.In(func() (err error) {
		from := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(bystander4)}}
		connected, err = from.DialContext(b.ctx, "tcp", server4+":22")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer connected.Close()
	appendTo(t, b.server, "/var/log/auth.log", "")
	daemon := b.protect()
	b.untilAllowed(attacker4, "session")
	b.spared("logged in", bystander4, attacker4)
	said := len(session.Output())
	ctx, cancel := context.WithTimeout(b.ctx, 10*time.Second)
	defer cancel()
	for strings.Count(session.Output()[said:], "still") < 5 {
		select {
		case <-ctx.Done():
			t.Fatalf("the session is cut off: %s", session.Output())
		case <-session.Ended():
			t.Fatalf("the session has ended: %s", session.Output())
		case <-time.After(50 * time.Millisecond):
		}
	}
	b.alive(daemon)
}
