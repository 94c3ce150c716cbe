package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"xdpban/bpf"
	"xdpban/internal/lab"
)

var bansTable = table{
	name:  "bans",
	title: "Ban and unban many addresses at once, and restart with them in force",
	goal:  "1,000,000 in under 3 s; restart with 100,000 in under 0.3 s",
	unit:  "cpu-s",
	run:   runBans,
}

// list writes addresses one a line.
func (b *bench) list(name string, addrs []netip.Addr) (string, error) {
	var s strings.Builder
	for _, a := range addrs {
		s.WriteString(a.String())
		s.WriteByte('\n')
	}
	path := b.path(name)
	return path, os.WriteFile(path, []byte(s.String()), 0o644)
}

// manyAddrs are n addresses of 198.18.0.0/15, and, when these are all used up,
// IPv6 ones.
func manyAddrs(n int) []netip.Addr {
	all := bannedAddrs(min(n, 1<<17), false)
	if n > 1<<17 {
		all = append(all, bannedAddrs(n-1<<17, true)...)
	}
	return all
}

// inForce counts what stands in the kernel of a host.
func inForce(h *lab.Host) (n int, err error) {
	bl, err := bpf.Open(bpf.Options{Dir: h.Path("/sys/fs/bpf/xdpban"), MustExist: true})
	if err != nil {
		return 0, err
	}
	defer bl.Close()
	for _, err := range bl.List() {
		if err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

func mustBe(h *lab.Host, want int) error {
	n, err := inForce(h)
	if err == nil && n != want {
		err = fmt.Errorf("%d bans stand in the kernel, want %d", n, want)
	}
	return err
}

// took times a command in a host: by the clock, and what it used.
func (b *bench) took(h *lab.Host, argv ...string) (figures, error) {
	began := time.Now()
	// Its shell tells what the command and its children have used.
	out, err := h.Run(b.ctx, append([]string{"sh", "-c", `"$@" >/run/lab/out 2>&1 || { cat /run/lab/out; exit 1; }; times`, "sh"}, argv...)...)
	if err != nil {
		return nil, err
	}
	v := figures{"s": time.Since(began).Seconds()}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	var m1, m2 int
	var s1, s2 float64
	if _, err := fmt.Sscanf(lines[len(lines)-1], "%dm%fs %dm%fs", &m1, &s1, &m2, &s2); err != nil {
		return nil, fmt.Errorf("read the times of %q: %w: %q", argv, err, out)
	}
	v["cpu-s"] = float64(60*(m1+m2)) + s1 + s2
	return v, nil
}

func runBans(b *bench) error {
	h, err := lab.Boot("server")
	if err != nil {
		return err
	}
	defer h.Close()
	for _, n := range []int{100_000, 1_000_000} {
		n = b.scale(n)
		addrs := manyAddrs(n)
		list, err := b.list("list", addrs)
		if err != nil {
			return err
		}
		four, six := splitFamilies(addrs)
		sets := strings.ReplaceAll(ipsetOf(four), "banned", "banned4")
		if len(six) > 0 {
			sets += strings.ReplaceAll(ipsetOf(six), "banned", "banned6")
		}
		if err := os.WriteFile(b.path("sets"), []byte(sets), 0o644); err != nil {
			return err
		}
		if err := os.WriteFile(b.path("nft"), []byte(nftOf(four, six)), 0o644); err != nil {
			return err
		}
		if err := b.compareBans(h, n, list); err != nil {
			return err
		}
	}
	return b.restart()
}

func (b *bench) compareBans(h *lab.Host, n int, list string) error {
	for range b.rounds {
		for _, x := range []struct {
			name       string
			ban, unban []string
		}{
			{"xdpban", []string{b.xdpban, "ban", "--for", "1d", "--file", list}, []string{b.xdpban, "unban", "--all"}},
			{"ipset_restore", []string{"ipset", "restore", "-f", b.path("sets")}, []string{"ipset", "destroy"}},
			{"nft_-f", []string{"nft", "-f", b.path("nft")}, []string{"nft", "delete", "table", "inet", "bench"}},
		} {
			v, err := b.took(h, x.ban...)
			if err != nil {
				return err
			}
			b.note(fmt.Sprintf("%s/ban_%d", x.name, n), v)
			if x.name == "xdpban" {
				if err := mustBe(h, n); err != nil {
					return err
				}
			}
			if v, err = b.took(h, x.unban...); err != nil {
				return err
			}
			b.note(fmt.Sprintf("%s/unban_all_%d", x.name, n), v)
			if x.name == "xdpban" {
				if err := mustBe(h, 0); err != nil {
					return err
				}
				if _, err := h.Run(b.ctx, "rm", "-r", "/sys/fs/bpf/xdpban"); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func splitFamilies(addrs []netip.Addr) (four, six []netip.Addr) {
	for _, a := range addrs {
		if a.Is4() {
			four = append(four, a)
		} else {
			six = append(six, a)
		}
	}
	return four, six
}

func nftOf(four, six []netip.Addr) string {
	var t strings.Builder
	t.WriteString("table inet bench {\n")
	for _, set := range []struct {
		name, kind string
		addrs      []netip.Addr
	}{{"b4", "ipv4_addr", four}, {"b6", "ipv6_addr", six}} {
		if len(set.addrs) == 0 {
			continue
		}
		fmt.Fprintf(&t, " set %s { type %s; size %d; elements = { ", set.name, set.kind, 1<<21)
		for i, a := range set.addrs {
			if i > 0 {
				t.WriteString(", ")
			}
			t.WriteString(a.String())
		}
		t.WriteString(" } }\n")
	}
	t.WriteString("}\n")
	return t.String()
}

// server is a host with an interface that xdpban protects, and a log.
func (b *bench) server() (h *lab.Host, closed func(), err error) {
	w, closed, err := b.wire()
	if err != nil {
		return nil, nil, err
	}
	if err = w.run("sh", "-c", "ip route add default via 192.0.2.2 && : >/var/log/auth.log && : >/run/settings"); err != nil {
		closed()
		return nil, nil, err
	}
	return w.srv, closed, nil
}

// settings gives a host's xdpban lines of xdpban.toml, and of a jail.
func settings(h *lab.Host, main, jail string) error {
	dir := h.Path("/etc/xdpban/jail.d")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(h.Path("/etc/xdpban/xdpban.toml"), []byte(main), 0o644),
		os.WriteFile(h.Path("/etc/xdpban/jail.d/bench.toml"), []byte(jail), 0o644))
}

// protect starts xdpban's daemon on a host, and returns once it says that all
// is in force.
func (b *bench) protect(h *lab.Host) (*lab.Service, error) {
	return h.StartNotify(b.ctx, "xdpban.service", nil, b.xdpban, "run")
}

// restart times starting again until all bans are in force: with the kernel's
// standing, as after an upgrade, and with none, as after a boot.
func (b *bench) restart() error {
	h, closed, err := b.server()
	if err != nil {
		return err
	}
	defer closed()
	n := b.scale(100_000)
	list, err := b.list("list", manyAddrs(n))
	if err != nil {
		return err
	}
	daemon, err := b.protect(h)
	if err != nil {
		return err
	}
	if _, err := h.Run(b.ctx, b.xdpban, "ban", "--for", "1d", "--file", list); err != nil {
		return err
	}
	// A stop writes everything down.
	for range b.rounds {
		for _, kind := range []string{"restart", "boot"} {
			if err := stopDaemon(daemon); err != nil {
				return err
			}
			if kind == "boot" {
				if _, err := h.Run(b.ctx, "rm", "-r", "/sys/fs/bpf/xdpban"); err != nil {
					return err
				}
			}
			began := time.Now()
			if daemon, err = b.protect(h); err != nil {
				return err
			}
			v := figures{"s": time.Since(began).Seconds()}
			use, err := usage(daemon.PID())
			if err != nil {
				return err
			}
			v["cpu-s"] = use.cpu.Seconds()
			if err := mustBe(h, n); err != nil {
				return err
			}
			b.note(fmt.Sprintf("xdpban/%s_with_%d", kind, n), v)
		}
	}
	return nil
}
