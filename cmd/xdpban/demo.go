package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"time"

	"xdpban/internal/lab"
)

// demoTranscript is what the demo must show, as settle leaves it.
//
//go:embed demo.txt
var demoTranscript string

// Who is who in the demo.
const (
	demoServer    = "192.0.2.1"
	demoAttacker  = "192.0.2.66"
	demoBystander = "192.0.2.7" // a second address of the attacker's host
)

type demoCmd struct {
	Settled bool `help:"Print only what must be the same each time, and compare it with nothing: what demo.txt in the source is made with."`
}

func (c *demoCmd) Run(a *app) error {
	if !c.Settled {
		return demo(a.ctx, a.stdout)
	}
	said, err := playDemo(a.ctx, io.Discard)
	if err != nil {
		return err
	}
	_, err = io.WriteString(a.stdout, settle(said))
	return err
}

// demo shows the main job for real on two throwaway hosts: a server that
// xdpban protects, and an attacker. It fails if anything differs from the
// transcript that is built in.
func demo(ctx context.Context, out io.Writer) error {
	said, err := playDemo(ctx, out)
	if err != nil {
		return err
	}
	if d := firstDifference(demoTranscript, settle(said)); d != "" {
		return fmt.Errorf("this is not what should have happened: %s", d)
	}
	fmt.Fprintln(out, "\nAll as expected; both hosts are gone again.")
	return nil
}

// playDemo plays it to out, and returns what was shown.
func playDemo(ctx context.Context, out io.Writer) (shown string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find our own program: %w", err)
	}
	var said strings.Builder
	s := &stage{ctx: ctx, out: io.MultiWriter(out, &said)}
	defer func() {
		if down := s.close(); err == nil {
			err = down
		}
	}()
	if err := s.set(self); err != nil {
		return "", err
	}
	if err := s.play(); err != nil {
		return "", err
	}
	return said.String(), nil
}

// stage is where the demo plays.
type stage struct {
	ctx              context.Context
	out              io.Writer
	server, attacker *lab.Host
}

func (s *stage) set(self string) (err error) {
	if s.server, err = lab.Boot("server"); err != nil {
		return err
	}
	if s.attacker, err = lab.Boot("attacker"); err != nil {
		return err
	}
	prefix := func(a string) netip.Prefix { return netip.PrefixFrom(netip.MustParseAddr(a), 24) }
	if err := lab.Join(s.ctx, "eth0",
		s.server, []netip.Prefix{prefix(demoServer)},
		s.attacker, []netip.Prefix{prefix(demoAttacker), prefix(demoBystander)}); err != nil {
		return err
	}
	if err := s.server.Install("xdpban", self); err != nil {
		return err
	}
	if _, err := s.server.Journald(s.ctx); err != nil {
		return err
	}
	// An account to log in to, and a client that doesn't ask about host keys.
	for _, c := range []struct {
		h       *lab.Host
		command string
	}{
		{s.server, "ip route add default via " + demoAttacker},
		{s.server, "useradd --no-create-home --home-dir / alice && echo alice:correct-horse | chpasswd"},
		{s.attacker, `printf 'StrictHostKeyChecking no\nUserKnownHostsFile /dev/null\nLogLevel ERROR\n` +
			`PreferredAuthentications password\nNumberOfPasswordPrompts 1\nConnectTimeout 3\n' >/etc/ssh/ssh_config`},
	} {
		if _, err := c.h.Run(s.ctx, "sh", "-c", c.command); err != nil {
			return err
		}
	}
	_, err = s.server.Sshd(s.ctx)
	return err
}

func (s *stage) close() error {
	var errs []error
	for _, h := range []*lab.Host{s.attacker, s.server} {
		if h != nil {
			errs = append(errs, h.Close())
		}
	}
	return errors.Join(errs...)
}

func (s *stage) play() error {
	s.say("A server (%s) with a real sshd and journald, and an attacker (%s):", demoServer, demoAttacker)
	s.say("two network namespaces of this machine, joined by a veth pair.")
	s.say("")
	s.say("The server starts xdpban, with no configuration at all.")
	s.say("")
	s.say("server$ xdpban run &")
	run, err := s.server.StartNotify(s.ctx, "xdpban.service", nil, "xdpban", "run")
	if err != nil {
		return err
	}
	s.show(s.server, "xdpban status sshd")

	s.say("The attacker guesses passwords.")
	s.say("")
	for _, user := range []string{"root", "backup", "www-data", "root", "root"} {
		s.show(s.attacker, "sshpass -p 123456 ssh "+user+"@"+demoServer)
	}
	if err := lab.Until(s.ctx, demoAttacker+" is banned", func() bool {
		out, err := s.server.Run(s.ctx, "xdpban", "list", "--json")
		return err == nil && strings.Contains(out, demoAttacker)
	}); err != nil {
		return fmt.Errorf("%w\nxdpban said:\n%s", err, run.Output())
	}
	s.say("What sshd wrote about it, and what xdpban made of it:")
	s.say("")
	s.show(s.server, "journalctl -o cat _SYSTEMD_UNIT=ssh.service | grep ^Failed")
	s.show(s.server, "xdpban why "+demoAttacker)

	s.say("From now on the attacker's packets end in the network driver: pings,")
	s.say("new connections, everything. Nobody else notices.")
	s.say("")
	s.show(s.attacker, "ping -q -c 3 -i 0.2 -W 1 "+demoServer)
	s.show(s.attacker, "sshpass -p 123456 ssh root@"+demoServer)
	s.show(s.attacker, "ping -q -c 3 -i 0.2 -W 1 -I "+demoBystander+" "+demoServer)
	s.say("The kernel counted what it dropped.")
	s.say("")
	s.show(s.server, "xdpban list")
	s.show(s.server, "xdpban stats")

	s.say("A mistake? Unbanned by hand, and the service is back.")
	s.say("")
	s.show(s.server, "xdpban unban "+demoAttacker)
	s.show(s.server, "xdpban list")
	s.show(s.attacker, "ping -q -c 3 -i 0.2 -W 1 "+demoServer)
	s.show(s.attacker, "sshpass -p correct-horse ssh alice@"+demoServer+" hostname")
	return s.ctx.Err()
}

func (s *stage) say(format string, args ...any) { fmt.Fprintf(s.out, format+"\n", args...) }

// show runs a command on a host and shows it with what it prints, as a
// terminal would. A command that fails is part of the show: what it says
// tells.
func (s *stage) show(h *lab.Host, command string) {
	s.say("%s$ %s", h.Name, command)
	out, _ := h.Run(s.ctx, "sh", "-c", command)
	fmt.Fprintf(s.out, "%s\n", out)
}

// settled are the parts of the transcript that differ from run to run.
var settled = []struct {
	what *regexp.Regexp
	with string
}{
	{regexp.MustCompile(`[ \t\r]+`), " "}, // ssh ends its lines for a terminal
	{regexp.MustCompile(`(?m) $`), ""},
	{regexp.MustCompile(` port \d+ ssh2`), " port N ssh2"},
	{regexp.MustCompile(`, time \d+ms`), ""},
	{regexp.MustCompile(`(?m)^( *pattern) \^Failed .*<ADDR>.*$`), "$1 REGEX"},
	{regexp.MustCompile(`(?m)^rtt .*$`), "rtt N"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\d \d\d:\d\d:\d\d`), "DATE"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\dT\S+ server sshd\[\d+\]`), "DATE server sshd[N]"},
	{regexp.MustCompile(`\b(\d+[dhms])+\b`), "TIME"},
	// At once after the ban nothing may have been dropped yet.
	{regexp.MustCompile(`dropped \d+ packets?, \d+ bytes`), "dropped N packets, N bytes"},
	// Counts: which number is chance, that there is one is not.
	{regexp.MustCompile(`(?m)^(\S+ \S+ TIME) [1-9]\d* [1-9]\d* DATE$`), "$1 N N DATE"},
	{regexp.MustCompile(`(?m)^(\S+) [\d.]+ [\d,]+ [\d.]+ 0 0$`), "$1 0 0"},
	{regexp.MustCompile(`(?m)^(\S+) [\d.]+ [\d,]+ [\d.]+ [1-9]\d* [1-9]\d*$`), "$1 N N"},
	{regexp.MustCompile(`[1-9]\d* packets dropped`), "N packets dropped"},
}

// settle replaces what differs from run to run.
func settle(transcript string) string {
	for _, r := range settled {
		transcript = r.what.ReplaceAllString(transcript, r.with)
	}
	return strings.TrimSpace(transcript) + "\n"
}

// firstDifference tells where got leaves want; empty: nowhere.
func firstDifference(want, got string) string {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range max(len(w), len(g)) {
		var wl, gl string
		if i < len(w) {
			wl = w[i]
		}
		if i < len(g) {
			gl = g[i]
		}
		if wl != gl {
			return fmt.Sprintf("in line %d\n  expected: %s\n  got:      %s", i+1, wl, gl)
		}
	}
	return ""
}
