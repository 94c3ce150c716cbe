package bpf

import (
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/cilium/ebpf"
)

var (
	ssh  = Port{"tcp", 22}
	dns  = Port{"udp", 53}
	http = Port{"tcp", 80}
)

// portPackets are frames to port 22/tcp, unless their name says otherwise,
// from an address; hit says whether the port can be told.
func portPackets(a4, a6 string) []struct {
	description string
	frame       []byte
	hit         bool
} {
	udp22 := l4(22)
	first, later := ext(tcp, 0, 1, 0, 0, 0, 1), ext(tcp, 5, 0xc9, 0, 0, 0, 1)
	return []struct {
		description string
		frame       []byte
		hit         bool
	}{
		{"IPv4, TCP", frame(eth(etherIP4), ip4(a4, ip4opt{proto: tcp}, l4(22)...)), true},
		{"IPv4, TCP to 23", frame(eth(etherIP4), ip4(a4, ip4opt{proto: tcp}, l4(23)...)), false},
		{"IPv4, UDP", frame(eth(etherIP4), ip4(a4, ip4opt{proto: udp}, udp22...)), false},
		{"IPv4, ICMP that looks like it", frame(eth(etherIP4), ip4(a4, ip4opt{proto: icmp}, l4(22)...)), false},
		{"IPv4, 40 bytes of options", frame(eth(etherIP4), ip4(a4, ip4opt{proto: tcp, options: make([]byte, 40)}, l4(22)...)), true},
		{"VLAN, IPv4", frame(eth(etherIP4, etherVLAN), ip4(a4, ip4opt{proto: tcp}, l4(22)...)), true},
		{"IPv4, first fragment", frame(eth(etherIP4), ip4(a4, ip4opt{proto: tcp, fragment: 0x2000}, l4(22)...)), true},
		{"IPv4, later fragment", frame(eth(etherIP4), ip4(a4, ip4opt{proto: tcp, fragment: 0x0001}, l4(22)...)), false},
		{"IPv4, cut behind the source port", frame(eth(etherIP4), ip4(a4, ip4opt{proto: tcp}, l4(22)[:2]...)), false},
		{"IPv6, TCP", frame(eth(etherIP6), ip6(a6, tcp, l4(22)...)), true},
		{"IPv6, TCP to 23", frame(eth(etherIP6), ip6(a6, tcp, l4(23)...)), false},
		{"IPv6, UDP", frame(eth(etherIP6), ip6(a6, udp, udp22...)), false},
		{"IPv6, hop-by-hop options", frame(eth(etherIP6), ip6(a6, hopByHop, frame(ext(tcp), l4(22))...)), true},
		{"IPv6, hop-by-hop, destination options, routing", frame(eth(etherIP6), ip6(a6, hopByHop, frame(ext(destOpts), ext(routing), ext(tcp), l4(22))...)), true},
		{"IPv6, long destination options", frame(eth(etherIP6), ip6(a6, destOpts, frame([]byte{tcp, 31}, make([]byte, 254), l4(22))...)), true},
		{"IPv6, authentication header", frame(eth(etherIP6), ip6(a6, ah, frame([]byte{tcp, 4}, make([]byte, 22), l4(22))...)), true},
		{"IPv6, first fragment", frame(eth(etherIP6), ip6(a6, fragment, frame(first, l4(22))...)), true},
		{"IPv6, later fragment", frame(eth(etherIP6), ip6(a6, fragment, frame(later, l4(22))...)), false},
		{"IPv6, fragment behind hop-by-hop", frame(eth(etherIP6), ip6(a6, hopByHop, frame(ext(fragment), first, l4(22))...)), true},
		{"IPv6, seven extension headers", frame(eth(etherIP6), ip6(a6, hopByHop, frame(ext(destOpts), ext(destOpts), ext(destOpts), ext(destOpts), ext(destOpts), ext(destOpts), ext(tcp), l4(22))...)), true},
		{"IPv6, nine extension headers", frame(eth(etherIP6), ip6(a6, hopByHop, frame(ext(destOpts), ext(destOpts), ext(destOpts), ext(destOpts), ext(destOpts), ext(destOpts), ext(destOpts), ext(destOpts), ext(tcp), l4(22))...)), false},
		{"IPv6, extension header cut short", frame(eth(etherIP6), ip6(a6, hopByHop, 6, 0)), false},
		{"IPv6, no next header", frame(eth(etherIP6), ip6(a6, noNext)), false},
		{"ARP", frame(eth(etherARP), make([]byte, 28)), false},
	}
}

func verdict(hit bool) uint32 {
	if hit {
		return xdpDrop
	}
	return xdpPass
}

func TestBlockedPorts(t *testing.T) {
	b := open(t, Options{})
	must(t, b.SetAllow(Allow{pfx("192.0.2.7"), "manual"}, Allow{pfx("2001:db8::7"), "manual"}))
	must(t, b.BlockPort(ssh, dns))
	p := program(t, b)
	dropped := uint64(0)
	for _, tt := range portPackets("192.0.2.1", "2001:db8::1") {
		if got := run(t, p, tt.frame); got != verdict(tt.hit) {
			t.Errorf("%s: verdict %d, want %d", tt.description, got, verdict(tt.hit))
		}
		if tt.hit {
			dropped++
		}
	}
	for _, tt := range portPackets("192.0.2.7", "2001:db8::7") {
		if got := run(t, p, tt.frame); got != xdpPass {
			t.Errorf("allowed: %s: verdict %d", tt.description, got)
		}
	}
	for range 3 {
		run(t, p, frame(eth(etherIP6), ip6("2001:db8::1", udp, l4(53)...)))
	}
	must(t, b.BlockPort(ssh)) // again: counts stay
	list, err := b.BlockedPorts()
	if err != nil || len(list) != 2 || list[0].Port != ssh || list[0].Packets != dropped || list[1].Port != dns || list[1].Packets != 3 {
		t.Errorf("blocked %+v, %v; want %d to 22/tcp and 3 to 53/udp", list, err, dropped)
	}
	if n := outcomesOf(t, b)[DroppedPort].Packets; n != dropped+3 {
		t.Errorf("%s counts %d", DroppedPort, n)
	}
	for _, port := range []Port{ssh, dns} {
		if was, ok, err := b.UnblockPort(port); !ok || err != nil || was.Port != port || was.Packets == 0 {
			t.Errorf("unblock: %+v, %v, %v", was, ok, err)
		}
	}
	if _, ok, err := b.UnblockPort(ssh); ok || err != nil {
		t.Errorf("unblock again: %v, %v", ok, err)
	}
	if run(t, program(t, b), from4("192.0.2.1")) != xdpPass {
		t.Error("still blocked")
	}
}

func TestBadPorts(t *testing.T) {
	b := open(t, Options{})
	for _, p := range []Port{{"tcp", 0}, {"sctp", 22}, {"", 22}} {
		if err := b.BlockPort(p); err == nil {
			t.Errorf("BlockPort %v: no error", p)
		}
		if err := b.Add(Ban{Prefix: pfx("192.0.2.1"), Ports: []Port{p}}); err == nil {
			t.Errorf("Add for %v: no error", p)
		}
	}
	for s, want := range map[string]Port{"22/tcp": ssh, "53/udp": dns, "0/tcp": {}, "70000/tcp": {}, "22": {}, "22/sctp": {}, "": {}, "-1/tcp": {}, "22/tcp/x": {}} {
		if got, err := ParsePort(s); got != want || (err == nil) != (want != Port{}) {
			t.Errorf("ParsePort %q: %v, %v", s, got, err)
		}
	}
}

// TestScopedBans bans sources for some ports only.
func TestScopedBans(t *testing.T) {
	b := open(t, Options{})
	scoped := func(s string, ports ...Port) Ban {
		ban := until(s, time.Hour)
		ban.Ports = ports
		return ban
	}
	mustAdd(t, b, scoped("192.0.2.66", ssh), scoped("2001:db8::66", ssh), scoped("198.51.100.0/24", ssh), scoped("2001:db8:66::/48", ssh),
		scoped("192.0.2.67", http, dns), forever("192.0.2.0/25"))
	p := program(t, b)
	for _, from := range [][2]string{{"198.51.100.1", "2001:db8::66"}, {"198.51.100.2", "2001:db8:66::1"}} {
		for _, tt := range portPackets(from[0], from[1]) {
			if got := run(t, p, tt.frame); got != verdict(tt.hit) {
				t.Errorf("%v: %s: verdict %d, want %d", from, tt.description, got, verdict(tt.hit))
			}
		}
	}
	// What the address's own ban lets through the subnet's drops.
	before := outcomesOf(t, b)
	run(t, p, frame(eth(etherIP4), ip4("192.0.2.66", ip4opt{proto: tcp}, l4(22)...)))
	run(t, p, frame(eth(etherIP4), ip4("192.0.2.66", ip4opt{proto: tcp}, l4(80)...)))
	after := outcomesOf(t, b)
	if after[DroppedBan].Packets != before[DroppedBan].Packets+1 || after[DroppedNet].Packets != before[DroppedNet].Packets+1 {
		t.Errorf("before %v, after %v", before, after)
	}
	e, _ := find(t, b, "192.0.2.67")
	if fmt.Sprint(e.Ports) != "[53/udp 80/tcp]" {
		t.Errorf("ports %v", e.Ports)
	}
	// The same set is the same scope, in whatever order; a ban may change
	// from one to another and to all ports, keeping its counts.
	mustAdd(t, b, scoped("192.0.2.68", dns, http, dns))
	if s, err := b.scopes(); err != nil || len(s) != 2 {
		t.Errorf("scopes %v, %v", s, err)
	}
	mustAdd(t, b, scoped("192.0.2.66", http))
	if e, _ := find(t, b, "192.0.2.66"); fmt.Sprint(e.Ports) != "[80/tcp]" || e.Packets != 1 {
		t.Errorf("entry %+v", e)
	}
	mustAdd(t, b, forever("192.0.2.66"))
	if e, _ := find(t, b, "192.0.2.66"); len(e.Ports) != 0 || e.Packets != 1 {
		t.Errorf("entry %+v", e)
	}
	// Sync knows them apart.
	want := []Ban{scoped("192.0.2.66", dns), forever("192.0.2.67"), scoped("192.0.2.69", ssh)}
	must(t, b.Sync(want))
	for _, w := range want {
		if e, ok := find(t, b, w.Prefix.String()); !ok || !samePorts(e.Ports, w.Ports) {
			t.Errorf("%+v, want %+v", e, w)
		}
	}
	// They end like others.
	short := scoped("192.0.2.70", ssh)
	short.Until = time.Now().Add(50 * time.Millisecond)
	mustAdd(t, b, short)
	waitPass(t, program(t, b), from4("192.0.2.70"))
	// For ever, too.
	short.Until = time.Time{}
	mustAdd(t, b, short)
	if e, ok := find(t, b, "192.0.2.70"); !ok || !e.Until.IsZero() || fmt.Sprint(e.Ports) != "[22/tcp]" {
		t.Errorf("entry %+v, %v", e, ok)
	}
}

func TestPolicy(t *testing.T) {
	b := open(t, Options{})
	must(t, b.SetAllow(Allow{pfx("192.0.2.7"), "manual"}, Allow{pfx("2001:db8::7"), "manual"}))
	must(t, b.SetPolicy(true, 0))
	p := program(t, b)
	icmpv6 := func(kind byte) []byte { return frame(eth(etherIP6), ip6("fe80::1", 58, kind, 0, 0, 0)) }
	dhcp := func(sport, dport uint16) []byte {
		h := l4(dport)
		h[0], h[1] = byte(sport>>8), byte(sport)
		return h
	}
	for _, tt := range []struct {
		description string
		frame       []byte
		want        Outcome
	}{
		{"IPv4, stranger", from4("192.0.2.1"), DroppedPolicy},
		{"IPv6, stranger", from6("2001:db8::1"), DroppedPolicy},
		{"IPv4, allowed", from4("192.0.2.7"), PassedAllowed},
		{"IPv6, allowed", from6("2001:db8::7"), PassedAllowed},
		{"ARP", frame(eth(etherARP), make([]byte, 28)), Passed},
		{"IPv4, ping", frame(eth(etherIP4), ip4("192.0.2.1", ip4opt{proto: icmp}, 8, 0, 0, 0)), DroppedPolicy},
		{"IPv4, fragmentation needed", frame(eth(etherIP4), ip4("192.0.2.1", ip4opt{proto: icmp}, 3, 4, 0, 0)), Passed},
		{"IPv6, ping", icmpv6(128), DroppedPolicy},
		{"IPv6, packet too big", icmpv6(2), Passed},
		{"IPv6, router advertisement", icmpv6(134), Passed},
		{"IPv6, neighbour solicitation", icmpv6(135), Passed},
		{"IPv6, neighbour advertisement", icmpv6(136), Passed},
		{"IPv6, MLD query behind hop-by-hop options", frame(eth(etherIP6), ip6("fe80::1", hopByHop, frame(ext(58), []byte{130, 0, 0, 0})...)), Passed},
		{"IPv4, DHCP answer", frame(eth(etherIP4), ip4("192.0.2.1", ip4opt{proto: udp}, dhcp(67, 68)...)), Passed},
		{"IPv4, DHCP request", frame(eth(etherIP4), ip4("192.0.2.1", ip4opt{proto: udp}, dhcp(68, 67)...)), DroppedPolicy},
		{"IPv6, DHCP answer", frame(eth(etherIP6), ip6("fe80::1", udp, dhcp(547, 546)...)), Passed},
		{"IPv4, GRE", frame(eth(etherIP4), ip4("192.0.2.1", ip4opt{proto: gre}, 0, 0, 8, 0)), DroppedPolicy},
		{"IPv4, later fragment", frame(eth(etherIP4), ip4("192.0.2.1", ip4opt{proto: tcp, fragment: 1}, l4(22)...)), DroppedPolicy},
	} {
		before := outcomesOf(t, b)
		run(t, p, tt.frame)
		if after := outcomesOf(t, b); after[tt.want].Packets != before[tt.want].Packets+1 {
			t.Errorf("%s: not %s; before %v, after %v", tt.description, tt.want, before, after)
		}
	}
	must(t, b.SetPolicy(false, 0))
	if run(t, program(t, b), from4("192.0.2.1")) != xdpPass {
		t.Error("still denied")
	}
}

// TestPolicyFallsBack is for those who lock themselves out.
func TestPolicyFallsBack(t *testing.T) {
	b := open(t, Options{})
	f := from4("192.0.2.1")
	var p *ebpf.Program
	for trial := time.Second; ; trial *= 3 { // a slow machine needs longer to look
		must(t, b.SetPolicy(true, trial))
		pol, err := b.Policy()
		p = program(t, b)
		if err == nil && pol.Deny && !pol.Until.IsZero() && run(t, p, f) == xdpDrop {
			break
		}
		if trial > 5*time.Second {
			t.Fatalf("not denied; policy %+v, %v", pol, err)
		}
	}
	waitPass(t, p, f)
	for deadline := time.Now().Add(5 * time.Second); ; {
		if pol, err := b.Policy(); err != nil {
			t.Fatal(err)
		} else if !pol.Deny {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("policy %+v", pol)
		}
	}
	if err := b.ConfirmPolicy(); !errors.Is(err, ErrNothingToConfirm) {
		t.Errorf("confirmed after its end: %v", err)
	}
	must(t, b.SetPolicy(true, time.Hour))
	must(t, b.ConfirmPolicy())
	if pol, err := b.Policy(); err != nil || !pol.Deny || !pol.Until.IsZero() {
		t.Errorf("policy %+v, %v", pol, err)
	}
	if run(t, program(t, b), f) != xdpDrop {
		t.Error("not denied")
	}
}

// TestPolicyKeepsConnections turns deny on in the middle of a connection that
// came in, and makes one that goes out: both live, a new one from outside
// doesn't.
func TestPolicyKeepsConnections(t *testing.T) {
	v := newVeth(t, "xdpt0")
	b := open(t, Options{})
	_, err := b.Attach(v.name, ModeNative)
	must(t, err)
	echo := func(l net.Listener) {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				buf := make([]byte, 16)
				for {
					n, err := c.Read(buf)
					if err != nil {
						return
					}
					c.Write(buf[:n])
				}
			}()
		}
	}
	for host, peer := range map[string]string{hostEnd: peerEnd, hostEnd6: peerEnd6} {
		l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
		must(t, err)
		defer l.Close()
		go echo(l)
		var out net.Listener
		var in net.Conn
		v.inPeer(t, func() {
			out, err = net.Listen("tcp", net.JoinHostPort(peer, "0"))
			must(t, err)
			in, err = net.Dial("tcp", l.Addr().String())
			must(t, err)
		})
		defer out.Close()
		defer in.Close()
		go echo(out)
		talk := func(c net.Conn) error {
			c.SetDeadline(time.Now().Add(5 * time.Second))
			if _, err := c.Write([]byte("hello")); err != nil {
				return err
			}
			_, err := c.Read(make([]byte, 16))
			return err
		}
		must(t, talk(in))
		must(t, b.SetPolicy(true, 0))
		if err := talk(in); err != nil {
			t.Errorf("%s: the connection that was there: %v", host, err)
		}
		c, err := net.DialTimeout("tcp", out.Addr().String(), 5*time.Second)
		if err != nil {
			t.Errorf("%s: a connection to outside: %v", host, err)
		} else {
			if err := talk(c); err != nil {
				t.Errorf("%s: a connection to outside: %v", host, err)
			}
			c.Close()
		}
		v.inPeer(t, func() {
			if c, err := net.DialTimeout("tcp", l.Addr().String(), 300*time.Millisecond); err == nil {
				c.Close()
				t.Errorf("%s: a connection from outside", host)
			}
		})
		must(t, b.SetPolicy(false, 0))
	}
}
