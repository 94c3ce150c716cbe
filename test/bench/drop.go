package main

import (
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"xdpban/bpf"
)

var dropTable = table{
	name:  "dropping",
	title: "Drop a flood of 100,000 banned addresses' packets on veth, native XDP, one core for sender and receiver",
	goal:  "256 sources: 0.9 of the empty program, 4 × ipset in INPUT; 65,536 sources: 0.4 of the empty program",
	unit:  "Mpps", more: true,
	run: runDrop,
}

// filter is a way of dropping. on puts it in place, for the banned addresses
// of a family, off takes it away.
type filter struct {
	name string
	on   func(w *wire, addrs []netip.Addr) (off func() error, err error)
	// only the sources that it can hold
	only256 bool
}

var filters = []filter{
	{name: "xdpban", on: onXdpban},
	{name: "empty_XDP_DROP", on: onEmpty},
	{name: "xdp-filter", on: onXDPFilter, only256: true},
	{name: "nft_ingress_set", on: nftSet("netdev", "ingress device eth0 priority 0")},
	{name: "nft_prerouting_set", on: nftSet("inet", "prerouting priority raw")},
	{name: "ipset_raw_PREROUTING", on: ipset("raw", "PREROUTING")},
	{name: "ipset_INPUT", on: ipset("filter", "INPUT")},
	{name: "1,000_iptables_rules", on: linear},
}

func onXdpban(w *wire, addrs []netip.Addr) (func() error, error) {
	bl, err := w.blocklist(1 << 17)
	if err != nil {
		return nil, err
	}
	off := func() error {
		err := w.srv.In(func() error { return bl.Detach("eth0") })
		bl.Close()
		if err == nil {
			err = w.run("rm", "-r", "/sys/fs/bpf/xdpban")
		}
		return err
	}
	if n, err := bl.AddBatch(bansOf(addrs)); err != nil || n != len(addrs) {
		off()
		return nil, fmt.Errorf("ban: %d of %d: %w", n, len(addrs), err)
	}
	return off, w.srv.In(func() error {
		a, err := bl.Attach("eth0", bpf.ModeNative)
		if err == nil && a.Mode != bpf.ModeNative {
			err = fmt.Errorf("it runs as %v", a.Mode)
		}
		return err
	})
}

func onEmpty(w *wire, _ []netip.Addr) (off func() error, err error) {
	p, err := newXDP(asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()})
	if err != nil {
		return nil, err
	}
	defer p.Close()
	err = w.srv.In(func() error {
		i, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		l, err := link.AttachXDP(link.XDPOptions{Program: p, Interface: i.Index})
		if err == nil {
			off = l.Close
		}
		return err
	})
	return off, err
}

func onXDPFilter(w *wire, addrs []netip.Addr) (func() error, error) {
	feature := map[bool]string{true: "ipv4", false: "ipv6"}[addrs[0].Is4()]
	if err := w.run("xdp-filter", "load", "-m", "native", "-f", feature, "eth0"); err != nil {
		return nil, err
	}
	var add strings.Builder
	for _, a := range addrs[:256] {
		fmt.Fprintf(&add, "xdp-filter ip -m src %s || exit 1\n", a)
	}
	return func() error { return w.run("xdp-filter", "unload", "--all") }, w.feed("xdp-filter", add.String(), "sh", "-s")
}

// nftSet drops a set's members in a chain of one rule.
func nftSet(family, hook string) func(*wire, []netip.Addr) (func() error, error) {
	return func(w *wire, addrs []netip.Addr) (func() error, error) {
		kind, field := "ipv4_addr", "ip saddr"
		if addrs[0].Is6() {
			kind, field = "ipv6_addr", "ip6 saddr"
		}
		var t strings.Builder
		fmt.Fprintf(&t, "table %s bench {\n set banned { type %s; size %d; elements = { ", family, kind, 1<<17)
		for i, a := range addrs {
			if i > 0 {
				t.WriteString(", ")
			}
			t.WriteString(a.String())
		}
		fmt.Fprintf(&t, " } }\n chain c { type filter hook %s; %s @banned drop; }\n}\n", hook, field)
		return func() error { return w.run("nft", "delete", "table", family, "bench") }, w.feed("nft", t.String(), "nft", "-f", "-")
	}
}

func iptables(addrs []netip.Addr) string {
	if addrs[0].Is6() {
		return "ip6tables"
	}
	return "iptables"
}

func ipset(table, chain string) func(*wire, []netip.Addr) (func() error, error) {
	return func(w *wire, addrs []netip.Addr) (func() error, error) {
		off := func() error {
			if err := w.run(iptables(addrs), "-t", table, "-F", chain); err != nil {
				return err
			}
			return w.run("ipset", "destroy", "banned")
		}
		if err := w.feed("ipset", ipsetOf(addrs), "ipset", "restore"); err != nil {
			return nil, err
		}
		return off, w.run(iptables(addrs), "-t", table, "-A", chain, "-m", "set", "--match-set", "banned", "src", "-j", "DROP")
	}
}

func ipsetOf(addrs []netip.Addr) string {
	family := "inet"
	if addrs[0].Is6() {
		family = "inet6"
	}
	var s strings.Builder
	fmt.Fprintf(&s, "create banned hash:ip family %s hashsize %d maxelem %d\n", family, 1<<16, 1<<21)
	for _, a := range addrs {
		fmt.Fprintf(&s, "add banned %s\n", a)
	}
	return s.String()
}

// linear has a rule for an address, a thousand of them, and one for all.
func linear(w *wire, addrs []netip.Addr) (func() error, error) {
	var s strings.Builder
	s.WriteString("*raw\n")
	for _, a := range addrs[banned-999:] {
		fmt.Fprintf(&s, "-A PREROUTING -s %s -j DROP\n", a)
	}
	bits := 15
	if addrs[0].Is6() {
		bits = 64
	}
	fmt.Fprintf(&s, "-A PREROUTING -s %s -j DROP\nCOMMIT\n", netip.PrefixFrom(addrs[0], bits).Masked())
	return func() error { return w.run(iptables(addrs), "-t", "raw", "-F", "PREROUTING") },
		w.feed("rules", s.String(), iptables(addrs)+"-restore", "-n")
}

func runDrop(b *bench) error {
	w, closed, err := b.wire()
	if err != nil {
		return err
	}
	defer closed()
	for _, v6 := range []bool{false, true} {
		family := map[bool]string{false: "IPv4", true: "IPv6"}[v6]
		addrs := bannedAddrs(banned, v6)
		for range b.rounds {
			for _, f := range filters {
				off, err := f.on(w, addrs)
				if err != nil {
					return fmt.Errorf("%s: %w", f.name, err)
				}
				for _, sources := range []int{256, 65536} {
					if f.only256 && sources != 256 {
						continue
					}
					rate, err := w.dropped(f.name, addrs, sources)
					if err != nil {
						return fmt.Errorf("%s, %s, %d sources: %w", f.name, family, sources, err)
					}
					b.note(fmt.Sprintf("%s/%s,_%d_sources", f.name, family, sources), figures{"Mpps": rate})
				}
				if err := off(); err != nil {
					return fmt.Errorf("take %s away: %w", f.name, err)
				}
			}
		}
	}
	return nil
}

// dropped floods the server, sees that nothing of it comes through, and
// returns the rate.
func (w *wire) dropped(name string, addrs []netip.Addr, sources int) (float64, error) {
	n := w.b.scale(2_000_000)
	if name == "1,000_iptables_rules" {
		n /= 10
	}
	through, err := w.through()
	if err != nil {
		return 0, err
	}
	if _, err := w.flood(addrs[0], sources, 10_000); err != nil { // warm
		return 0, err
	}
	rate, err := w.flood(addrs[0], sources, n)
	if err != nil {
		return 0, err
	}
	after, err := w.through()
	if err != nil {
		return 0, err
	}
	if after > through {
		return 0, fmt.Errorf("%d packets came through", after-through)
	}
	return rate / 1e6, nil
}

// through is how many packets have reached a transport protocol of the
// server's: UDP ones for which there is no port.
func (w *wire) through() (int, error) {
	out, err := w.srv.Run(w.b.ctx, "sh", "-c", `
		awk '/^Udp:/ && $2 ~ /^[0-9]/ {n += $3} END {print n}' /proc/net/snmp
		awk '/^Udp6NoPorts/ {print $2}' /proc/net/snmp6`)
	if err != nil {
		return 0, err
	}
	n := 0
	for f := range strings.FieldsSeq(out) {
		var v int
		if _, err := fmt.Sscan(f, &v); err != nil {
			return 0, err
		}
		n += v
	}
	return n, nil
}
