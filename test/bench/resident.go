package main

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cilium/ebpf"

	"xdpban/internal/lab"
)

var memoryTable = table{
	name:  "memory",
	title: "Memory with many bans: of the daemon, and of the kernel for its maps",
	goal:  "daemon under 20 MB with none, under 60 MB with 100,000",
	unit:  "daemon-MB",
	run:   runMemory,
}

func runMemory(b *bench) error {
	for _, n := range []int{0, b.scale(100_000), b.scale(1_000_000)} {
		if err := b.byHand(n); err != nil {
			return err
		}
	}
	if err := b.byLines(b.scale(100_000)); err != nil {
		return err
	}
	return b.fail2banMemory(b.scale(10_000))
}

// byHand has addresses banned by command.
func (b *bench) byHand(n int) error {
	h, closed, err := b.server()
	if err != nil {
		return err
	}
	defer closed()
	daemon, err := b.protect(h)
	if err != nil {
		return err
	}
	if n > 0 {
		list, err := b.list("list", manyAddrs(n))
		if err != nil {
			return err
		}
		if _, err := h.Run(b.ctx, b.xdpban, "ban", "--for", "1d", "--file", list); err != nil {
			return err
		}
	}
	return b.noteMemory(h, daemon, fmt.Sprintf("xdpban/%d_bans_by_hand", n), n)
}

// byLines has addresses banned for what they did: five lines each, which
// `xdpban why` shows afterwards.
func (b *bench) byLines(n int) error {
	h, closed, err := b.server()
	if err != nil {
		return err
	}
	defer closed()
	if err := settings(h, "max_bans_per_minute = 0\n", "[jail.sshd]\nfindtime = \"1h\"\nbantime = \"1d\"\n"); err != nil {
		return err
	}
	daemon, err := b.protect(h)
	if err != nil {
		return err
	}
	log, err := os.OpenFile(h.Path("/var/log/auth.log"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer log.Close()
	for i, a := range manyAddrs(n) {
		var lines strings.Builder
		for k := range 5 {
			fmt.Fprintf(&lines, "%s server sshd[%d]: Failed password for invalid user u%x from %s port %d ssh2\n",
				time.Now().Format("2006-01-02T15:04:05.000000-07:00"), 5*i+k, 5*i+k, a, 1024+(5*i+k)%60000)
		}
		if _, err := log.WriteString(lines.String()); err != nil {
			return err
		}
	}
	if err := lab.Until(b.ctx, "all are banned", func() bool {
		time.Sleep(200 * time.Millisecond) // counting them is work, too
		got, err := inForce(h)
		return err == nil && got >= n
	}); err != nil {
		return err
	}
	return b.noteMemory(h, daemon, fmt.Sprintf("xdpban/%d_bans_by_lines", n), n)
}

// noteMemory writes down what a daemon has once it has settled: Go gives
// memory back some time after it was used.
func (b *bench) noteMemory(h *lab.Host, daemon *lab.Service, name string, bans int) error {
	if err := mustBe(h, bans); err != nil {
		return err
	}
	settled, err := settle(b, daemon.PID())
	if err != nil {
		return err
	}
	peak, err := status(daemon.PID(), "VmHWM")
	if err != nil {
		return err
	}
	var maps uint64
	pins, err := filepath.Glob(h.Path("/sys/fs/bpf/xdpban/v*/*"))
	if err != nil {
		return err
	}
	for _, pin := range pins {
		m, err := ebpf.LoadPinnedMap(pin, &ebpf.LoadPinOptions{ReadOnly: true})
		if err != nil {
			continue // a folder, or no map
		}
		if info, err := m.Info(); err == nil {
			if size, ok := info.Memlock(); ok {
				maps += size
			}
		}
		m.Close()
	}
	b.note(name, figures{"daemon-MB": float64(settled) / 1e6, "peak-MB": float64(peak) / 1e6, "kernel-MB": float64(maps) / 1e6})
	return nil
}

// settle waits until a process gives no more memory back, a quarter of a
// minute at most.
func settle(b *bench, pid int) (int64, error) {
	var last int64
	for range 15 {
		now, err := status(pid, "VmRSS")
		if err != nil {
			return 0, err
		}
		last = now
		select {
		case <-b.ctx.Done():
			return 0, b.ctx.Err()
		case <-time.After(time.Second):
		}
	}
	return last, nil
}

// fail2banMemory has a fail2ban with no action know of that many bans.
func (b *bench) fail2banMemory(n int) error {
	for _, n := range []int{0, n} {
		if err := os.WriteFile(b.path("empty.log"), nil, 0o644); err != nil {
			return err
		}
		f, err := b.startFail2ban(fmt.Sprintf("[sshd]\nenabled = true\nbackend = polling\nfilter = sshd\nlogpath = %s\naction =\nbantime = 1d\n", b.path("empty.log")))
		if err != nil {
			return err
		}
		err = func() error {
			defer f.stop()
			if err := f.waitFor(b, "Jail 'sshd' started"); err != nil {
				return err
			}
			addrs := manyAddrs(n)
			for len(addrs) > 0 {
				part := addrs[:min(500, len(addrs))]
				addrs = addrs[len(part):]
				args := []string{"fail2ban-client", "-c", f.dir, "set", "sshd", "banip"}
				for _, a := range part {
					args = append(args, a.String())
				}
				if _, _, err := b.time(b.command(args...)); err != nil {
					return err
				}
			}
			if n > 0 {
				if err := f.waitFor(b, "Ban "+netip.Addr(manyAddrs(n)[n-1]).String()); err != nil {
					return err
				}
			}
			pid, err := f.pid()
			if err != nil {
				return err
			}
			settled, err := settle(b, pid)
			if err != nil {
				return err
			}
			peak, err := status(pid, "VmHWM")
			b.note(fmt.Sprintf("fail2ban_server/%d_bans_by_hand", n), figures{"daemon-MB": float64(settled) / 1e6, "peak-MB": float64(peak) / 1e6})
			return err
		}()
		if err != nil {
			return err
		}
	}
	return nil
}

var idleTable = table{
	name:  "processor",
	title: "Share of a core: idle with 20 jails on 20 files, and at 10,000 lines/s of sshd's log",
	goal:  "idle no wakeups; 10,000 lines/s under 5 % of a core",
	unit:  "core-%",
	run:   runIdle,
}

const idleJails = 20

func runIdle(b *bench) error {
	h, closed, err := b.server()
	if err != nil {
		return err
	}
	defer closed()
	var ours, theirs strings.Builder
	theirs.WriteString("[DEFAULT]\naction =\nusedns = no\nbackend = polling\n")
	for i := range idleJails {
		path := h.Path(fmt.Sprintf("/var/log/app%d.log", i))
		if err := os.WriteFile(path, []byte("nothing yet\n"), 0o644); err != nil {
			return err
		}
		fmt.Fprintf(&ours, "[jail.app%d]\nenabled = true\nfiles = [\"/var/log/app%d.log\"]\nfailregex = ['^app%d: no entry for <ADDR>$']\n", i, i, i)
		fmt.Fprintf(&theirs, "[app%d]\nenabled = true\nfilter = sshd\nlogpath = %s\n", i, path)
	}
	if err := settings(h, "max_bans_per_minute = 0\n", "[jail.sshd]\nfindtime = \"1h\"\n"+ours.String()); err != nil {
		return err
	}
	for range b.rounds {
		daemon, err := b.protect(h)
		if err != nil {
			return err
		}
		if err := b.watchIdle("xdpban/idle", daemon.PID()); err != nil {
			return err
		}
		if err := stopDaemon(daemon); err != nil {
			return err
		}
		f, err := b.startFail2ban(theirs.String())
		if err != nil {
			return err
		}
		err = f.waitFor(b, fmt.Sprintf("Jail 'app%d' started", idleJails-1))
		if err == nil {
			var pid int
			if pid, err = f.pid(); err == nil {
				err = b.watchIdle("fail2ban_server/idle", pid)
			}
		}
		f.stop()
		if err != nil {
			return err
		}
	}
	return b.busy(h)
}

// watchIdle notes what a process does while nothing happens.
func (b *bench) watchIdle(name string, pid int) error {
	const pause, watch = 3 * time.Second, 10 * time.Second
	select { // what starting has left to do
	case <-b.ctx.Done():
		return b.ctx.Err()
	case <-time.After(pause):
	}
	before, err := schedOf(pid)
	if err != nil {
		return err
	}
	began := time.Now()
	select {
	case <-b.ctx.Done():
		return b.ctx.Err()
	case <-time.After(watch):
	}
	after, err := schedOf(pid)
	if err != nil {
		return err
	}
	took := time.Since(began).Seconds()
	b.note(name, figures{
		"core-%":    100 * (after.cpu - before.cpu).Seconds() / took,
		"wakeups/s": float64(after.switches-before.switches) / took,
	})
	return nil
}

// busy has a log grow by 10,000 lines a second, and notes what each line cost.
func (b *bench) busy(h *lab.Host) error {
	const rate, seconds = 10_000, 10
	for range b.rounds {
		daemon, err := b.protect(h)
		if err != nil {
			return err
		}
		before, err := schedOf(daemon.PID())
		if err != nil {
			return err
		}
		log, err := makeAuthLog(b.path("auth.log"), rate*seconds, 30)
		if err != nil {
			return err
		}
		if err := b.grow(log.path, h.Path("/var/log/auth.log"), rate); err != nil {
			return err
		}
		if err := lab.Until(b.ctx, "all are banned", func() bool {
			n, err := inForce(h)
			return err == nil && n >= len(log.banned)
		}); err != nil {
			return err
		}
		after, err := schedOf(daemon.PID())
		if err != nil {
			return err
		}
		b.note("xdpban/10,000_lines/s", figures{"core-%": 100 * (after.cpu - before.cpu).Seconds() / seconds})
		if _, err := h.Run(b.ctx, b.xdpban, "unban", "--all"); err != nil {
			return err
		}
		if err := stopDaemon(daemon); err != nil {
			return err
		}
		// The next round's lines are as old as these: an unban forgives them.
		if _, err := h.Run(b.ctx, "rm", "-r", "/var/lib/xdpban"); err != nil {
			return err
		}
		use, err := b.fail2banServer(log) // the lines at once: it can't follow them at that rate
		if err != nil {
			return err
		}
		b.note("fail2ban_server/10,000_lines/s", figures{"core-%": 100 * use.cpu.Seconds() / seconds})
	}
	return nil
}

// grow appends a file's lines to another at a rate.
func (b *bench) grow(from, to string, rate int) error {
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(to, os.O_APPEND|os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	lines := strings.SplitAfter(string(content), "\n")
	const every = 10 * time.Millisecond
	tick := time.NewTicker(every)
	defer tick.Stop()
	for len(lines) > 0 {
		part := lines[:min(rate/100, len(lines))]
		lines = lines[len(part):]
		if _, err := f.WriteString(strings.Join(part, "")); err != nil {
			return err
		}
		select {
		case <-b.ctx.Done():
			return b.ctx.Err()
		case <-tick.C:
		}
	}
	return nil
}
