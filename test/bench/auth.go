package main

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

var authTable = table{
	name:  "auth-log",
	title: "Find the offenders in an sshd log of 200,000 lines, 30 % failures, on one core",
	goal:  "100 × fail2ban-regex, 5 × sshguard's parser",
	unit:  "lines/s", more: true,
	run: runAuth,
}

func runAuth(b *bench) error {
	log, err := makeAuthLog(b.path("auth.log"), b.scale(200_000), 30)
	if err != nil {
		return err
	}
	config, err := b.sshdConfig()
	if err != nil {
		return err
	}
	// That they find the same.
	if found, err := b.failuresOf(config, log.path, "sshd"); err != nil {
		return err
	} else if err := same("xdpban test", found, log.failures); err != nil {
		return err
	}
	known, _, err := b.sshguard(log)
	if err != nil {
		return err
	}
	fmt.Printf("  sshguard's parser knows %.0f %% of the failures\n", 100*float64(known)/float64(log.lines*30/100))
	return b.compare(
		contender{name: "xdpban", run: func() (figures, error) {
			bans, s, err := b.replay(config, log.path, "sshd")
			if err == nil {
				err = same("xdpban replay", bans, log.banned)
			}
			if err != nil {
				return nil, err
			}
			return s.perSecond(log.lines), nil
		}},
		contender{name: "fail2ban-regex", rarely: true, run: func() (figures, error) {
			found, s, err := b.fail2banRegex(log.path, "sshd")
			if err == nil {
				err = same("fail2ban-regex", found, log.failures)
			}
			if err != nil {
				return nil, err
			}
			return s.perSecond(log.lines), nil
		}},
		contender{name: "fail2ban_server", rarely: true, run: func() (figures, error) {
			s, err := b.fail2banServer(log)
			if err != nil {
				return nil, err
			}
			return s.perSecond(log.lines), nil
		}},
		contender{name: "sshguard_parser", run: func() (figures, error) {
			_, s, err := b.sshguard(log)
			if err != nil {
				return nil, err
			}
			return s.perSecond(log.lines), nil
		}},
	)
}

// sshguard has sshguard's parser read a log, and returns how many failures it
// knew. What it says, it must be right about.
func (b *bench) sshguard(log *authLog) (int, spent, error) {
	cmd := b.command("/usr/libexec/sshguard/sshg-parser")
	in, err := os.Open(log.path)
	if err != nil {
		return 0, spent{}, err
	}
	defer in.Close()
	cmd.Stdin = in
	out, s, err := b.time(cmd)
	if err != nil {
		return 0, s, err
	}
	known := 0
	for l := range strings.Lines(string(out)) {
		fields := strings.Fields(l)
		if len(fields) != 4 {
			return 0, s, fmt.Errorf("sshg-parser said %q", l)
		}
		a, err := netip.ParseAddr(fields[1])
		if err != nil || log.failures[a] == 0 {
			return 0, s, fmt.Errorf("sshg-parser said %q, and nobody there failed", l)
		}
		known++
	}
	return known, s, nil
}

// fail2ban is a fail2ban server with a folder of its own.
type fail2ban struct {
	dir string
	cmd *exec.Cmd
}

// startFail2ban starts a server with jails as given, in a host's name spaces
// if by says so.
func (b *bench) startFail2ban(jails string, by ...string) (*fail2ban, error) {
	dir, err := os.MkdirTemp(b.dir, "fail2ban-")
	if err != nil {
		return nil, err
	}
	f := &fail2ban{dir: dir}
	main := fmt.Sprintf(`[DEFAULT]
[Definition]
loglevel = INFO
logtarget = %[1]s/log
syslogsocket = auto
socket = %[1]s/sock
pidfile = %[1]s/pid
dbfile = %[1]s/db
dbpurgeage = 1d
dbmaxmatches = 10
`, dir)
	if err := os.WriteFile(filepath.Join(dir, "fail2ban.conf"), []byte(main), 0o644); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "jail.conf"), []byte(jails), 0o644); err != nil {
		return nil, err
	}
	for _, d := range []string{"filter.d", "action.d"} {
		if err := os.Symlink(filepath.Join("/etc/fail2ban", d), filepath.Join(dir, d)); err != nil {
			return nil, err
		}
	}
	f.cmd = b.command(append(by, "fail2ban-server", "-f", "-c", dir, "start")...)
	f.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := f.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start fail2ban: %w", err)
	}
	return f, nil
}

// said is its log so far.
func (f *fail2ban) said() []byte {
	b, err := os.ReadFile(filepath.Join(f.dir, "log"))
	if err != nil {
		return nil // not yet
	}
	return b
}

// waitFor waits until its log holds a text.
func (f *fail2ban) waitFor(b *bench, text string) error {
	for start := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		if bytes.Contains(f.said(), []byte(text)) {
			return nil
		}
		if err := b.ctx.Err(); err != nil {
			return err
		}
		if time.Since(start) > 10*time.Minute {
			said := f.said()
			return fmt.Errorf("fail2ban hasn't said %q in ten minutes, but: %s", text, said[max(0, len(said)-500):])
		}
	}
}

// pid is the server's own.
func (f *fail2ban) pid() (pid int, err error) {
	b, err := os.ReadFile(filepath.Join(f.dir, "pid"))
	if err != nil {
		return 0, err
	}
	_, err = fmt.Sscan(string(b), &pid)
	return pid, err
}

func (f *fail2ban) stop() {
	_ = f.cmd.Process.Signal(syscall.SIGTERM)
	_ = f.cmd.Wait()
}

// fail2banServer has a server read the log, with nothing to do about those it
// bans, until it has banned the last of them.
func (b *bench) fail2banServer(log *authLog) (spent, error) {
	f, err := b.startFail2ban(fmt.Sprintf(`[DEFAULT]
backend = polling
[sshd]
enabled = true
filter = sshd
logpath = %s
maxretry = 5
findtime = 1h
bantime = 2h
action =
usedns = no
`, log.path))
	if err != nil {
		return spent{}, err
	}
	defer f.stop()
	want := map[netip.Prefix]bool{}
	for p := range log.banned {
		want[p] = true
	}
	for start := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		if n := bytes.Count(f.said(), []byte("] Ban ")); n >= len(want) {
			break
		}
		if err := b.ctx.Err(); err != nil {
			return spent{}, err
		}
		if time.Since(start) > 10*time.Minute {
			return spent{}, fmt.Errorf("fail2ban has banned %d in ten minutes, want %d", bytes.Count(f.said(), []byte("] Ban ")), len(want))
		}
	}
	pid, err := f.pid()
	if err != nil {
		return spent{}, err
	}
	use, err := usage(pid)
	if err != nil {
		return spent{}, err
	}
	got := map[netip.Prefix]bool{}
	for l := range strings.Lines(string(f.said())) {
		if _, addr, ok := strings.Cut(l, "] Ban "); ok {
			a, err := netip.ParseAddr(strings.TrimSpace(addr))
			if err != nil {
				return spent{}, fmt.Errorf("fail2ban banned %q: %w", addr, err)
			}
			got[subject(a)] = true
		}
	}
	return use, same("fail2ban", got, want)
}

var quietTable = table{
	name:  "quiet-log",
	title: "Read a log of 200,000 lines that hold no failure, on one core",
	goal:  "a third of grep -F",
	unit:  "lines/s", more: true,
	run: runQuiet,
}

func runQuiet(b *bench) error {
	// Not a tenth in the quick form: starting a program is not to be measured.
	log, err := makeAuthLog(b.path("auth.log"), 200_000, 0)
	if err != nil {
		return err
	}
	config, err := b.sshdConfig()
	if err != nil {
		return err
	}
	const times = 10 // the log in a row, so that starting up counts for less
	if err := repeat(log.path, times); err != nil {
		return err
	}
	log.lines *= times
	return b.compare(
		contender{name: "xdpban", run: func() (figures, error) {
			bans, s, err := b.replay(config, log.path, "sshd")
			if err == nil {
				err = same("xdpban replay", bans, log.banned)
			}
			if err != nil {
				return nil, err
			}
			return s.perSecond(log.lines), nil
		}},
		contender{name: "grep_-F", run: func() (figures, error) {
			_, s, err := b.time(b.command("sh", "-c", "! grep -F 'Failed password' "+log.path))
			if err != nil {
				return nil, err
			}
			return s.perSecond(log.lines), nil
		}},
		contender{name: "sshguard_parser", run: func() (figures, error) {
			known, s, err := b.sshguard(log)
			if err == nil && known > 0 {
				err = fmt.Errorf("it found %d failures", known)
			}
			if err != nil {
				return nil, err
			}
			return s.perSecond(log.lines), nil
		}},
	)
}

// repeat makes a file its own content so many times.
func repeat(path string, times int) error {
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return os.WriteFile(path, bytes.Repeat(content, times), 0o644)
}
