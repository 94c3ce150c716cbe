package bpf

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

const (
	tcp      = 6
	udp      = 17
	icmp     = 1
	gre      = 47
	hopByHop = 0
	routing  = 43
	fragment = 44
	ah       = 51
	noNext   = 59
	destOpts = 60
	xdpDrop  = 1
	xdpPass  = 2
)

// TestPackets runs the program on single frames. Banned are 192.0.2.66,
// 198.51.100.0/24, 2001:db8::66 and 2001:db8:66::/48; allowed, though
// banned, are 198.51.100.7, 2001:db8:66::7 and 192.0.2.67.
func TestPackets(t *testing.T) {
	b := open(t, Options{})
	mustAdd(t, b, forever("192.0.2.66"), forever("192.0.2.67"), forever("198.51.100.0/24"),
		forever("2001:db8::66"), forever("2001:db8:66::/48"), forever("::ffff:203.0.113.66"))
	for _, a := range []string{"198.51.100.7", "2001:db8:66::7", "192.0.2.67"} {
		if err := b.SetAllow(Allow{pfx(a), "manual"}); err != nil {
			t.Fatal(err)
		}
	}
	p := program(t, b)

	const bad4, good4, bad6, good6 = "192.0.2.66", "192.0.2.65", "2001:db8::66", "2001:db8::65"
	frag6 := func(next byte, offset uint16) []byte {
		return ext(next, byte(offset>>5), byte(offset<<3)|1, 0, 0, 0, 1)
	}
	for _, tt := range []struct {
		description string
		frame       []byte
		want        Outcome
	}{
		// IPv4
		{"IPv4, TCP, banned address", frame(eth(etherIP4), ip4(bad4, ip4opt{proto: tcp}, l4(22)...)), DroppedBan},
		{"IPv4, TCP, its neighbour", frame(eth(etherIP4), ip4(good4, ip4opt{proto: tcp}, l4(22)...)), Passed},
		{"IPv4, UDP, banned address", frame(eth(etherIP4), ip4(bad4, ip4opt{proto: udp}, l4(53)...)), DroppedBan},
		{"IPv4, ICMP, banned address", frame(eth(etherIP4), ip4(bad4, ip4opt{proto: icmp}, 8, 0, 0, 0)), DroppedBan},
		{"IPv4, GRE, banned address", frame(eth(etherIP4), ip4(bad4, ip4opt{proto: gre}, 0, 0, 8, 0)), DroppedBan},
		{"IPv4, unknown protocol, banned address", frame(eth(etherIP4), ip4(bad4, ip4opt{proto: 253})), DroppedBan},
		{"IPv4, no payload, banned address", frame(eth(etherIP4), ip4(bad4, ip4opt{proto: tcp})), DroppedBan},
		{"IPv4, 4 bytes of options, banned address", frame(eth(etherIP4), ip4(bad4, ip4opt{proto: tcp, options: make([]byte, 4)}, l4(22)...)), DroppedBan},
		{"IPv4, 40 bytes of options, banned address", frame(eth(etherIP4), ip4(bad4, ip4opt{proto: tcp, options: make([]byte, 40)}, l4(22)...)), DroppedBan},
		{"IPv4, options, its neighbour", frame(eth(etherIP4), ip4(good4, ip4opt{proto: tcp, options: make([]byte, 40)}, l4(22)...)), Passed},
		{"IPv4, first fragment, banned address", frame(eth(etherIP4), ip4(bad4, ip4opt{proto: udp, fragment: 0x2000}, l4(53)...)), DroppedBan},
		{"IPv4, later fragment, banned address", frame(eth(etherIP4), ip4(bad4, ip4opt{proto: udp, fragment: 0x2001}, 1, 2, 3, 4)), DroppedBan},
		{"IPv4, last fragment, banned address", frame(eth(etherIP4), ip4(bad4, ip4opt{proto: udp, fragment: 0x0010}, 1)), DroppedBan},
		{"IPv4, header length of 0, banned address", frame(eth(etherIP4), append([]byte{0x40}, ip4(bad4, ip4opt{proto: tcp})[1:]...)), DroppedBan},
		{"IPv4, address in a banned /24", frame(eth(etherIP4), ip4("198.51.100.255", ip4opt{proto: tcp}, l4(22)...)), DroppedNet},
		{"IPv4, address next to a banned /24", frame(eth(etherIP4), ip4("198.51.101.0", ip4opt{proto: tcp}, l4(22)...)), Passed},
		{"IPv4, allowed address in a banned /24", frame(eth(etherIP4), ip4("198.51.100.7", ip4opt{proto: tcp}, l4(22)...)), PassedAllowed},
		{"IPv4, address banned and allowed", frame(eth(etherIP4), ip4("192.0.2.67", ip4opt{proto: tcp}, l4(22)...)), PassedAllowed},
		{"IPv4, address banned as ::ffff:203.0.113.66", frame(eth(etherIP4), ip4("203.0.113.66", ip4opt{proto: tcp}, l4(22)...)), DroppedBan},
		{"IPv4, banned address as the destination only", frame(eth(etherIP4), swap4(ip4(bad4, ip4opt{proto: tcp}, l4(22)...))), Passed},

		// Tags
		{"VLAN, IPv4, banned address", frame(eth(etherIP4, etherVLAN), ip4(bad4, ip4opt{proto: tcp}, l4(22)...)), DroppedBan},
		{"VLAN, IPv4, its neighbour", frame(eth(etherIP4, etherVLAN), ip4(good4, ip4opt{proto: tcp}, l4(22)...)), Passed},
		{"802.1ad tag alone, IPv4, banned address", frame(eth(etherIP4, etherQinQ), ip4(bad4, ip4opt{proto: tcp}, l4(22)...)), DroppedBan},
		{"QinQ, IPv4, banned address", frame(eth(etherIP4, etherQinQ, etherVLAN), ip4(bad4, ip4opt{proto: tcp}, l4(22)...)), DroppedBan},
		{"QinQ, IPv6, banned address", frame(eth(etherIP6, etherQinQ, etherVLAN), ip6(bad6, tcp, l4(22)...)), DroppedBan},
		{"priority tag of two 802.1Q, IPv4, banned address", frame(eth(etherIP4, etherVLAN, etherVLAN), ip4(bad4, ip4opt{proto: tcp}, l4(22)...)), DroppedBan},
		{"three tags, IPv4, banned address", frame(eth(etherIP4, etherQinQ, etherQinQ, etherVLAN), ip4(bad4, ip4opt{proto: tcp}, l4(22)...)), DroppedBan},
		{"four tags, IPv6, address in a banned /48", frame(eth(etherIP6, etherQinQ, etherQinQ, etherQinQ, etherVLAN), ip6("2001:db8:66:1::1", tcp, l4(22)...)), DroppedNet},
		{"five tags are more than we walk", frame(eth(etherIP4, etherQinQ, etherQinQ, etherQinQ, etherQinQ, etherVLAN), ip4(bad4, ip4opt{proto: tcp}, l4(22)...)), PassedUnparsed},
		{"VLAN, ARP", frame(eth(etherARP, etherVLAN), make([]byte, 28)), Passed},
		{"VLAN tag and nothing behind it", eth(etherVLAN), PassedUnparsed},

		// IPv6
		{"IPv6, TCP, banned address", frame(eth(etherIP6), ip6(bad6, tcp, l4(22)...)), DroppedBan},
		{"IPv6, TCP, its neighbour", frame(eth(etherIP6), ip6(good6, tcp, l4(22)...)), Passed},
		{"IPv6, UDP, banned address", frame(eth(etherIP6), ip6(bad6, udp, l4(53)...)), DroppedBan},
		{"IPv6, ICMPv6, banned address", frame(eth(etherIP6), ip6(bad6, 58, 128, 0, 0, 0)), DroppedBan},
		{"IPv6, no next header, banned address", frame(eth(etherIP6), ip6(bad6, noNext)), DroppedBan},
		{"IPv6, hop-by-hop options, banned address", frame(eth(etherIP6), ip6(bad6, hopByHop, frame(ext(tcp), l4(22))...)), DroppedBan},
		{"IPv6, hop-by-hop options, its neighbour", frame(eth(etherIP6), ip6(good6, hopByHop, frame(ext(tcp), l4(22))...)), Passed},
		{"IPv6, routing header, banned address", frame(eth(etherIP6), ip6(bad6, routing, frame(ext(tcp), l4(22))...)), DroppedBan},
		{"IPv6, destination options, banned address", frame(eth(etherIP6), ip6(bad6, destOpts, frame(ext(tcp), l4(22))...)), DroppedBan},
		{"IPv6, authentication header, banned address", frame(eth(etherIP6), ip6(bad6, ah, frame(ext(tcp), make([]byte, 8), l4(22))...)), DroppedBan},
		{"IPv6, all of these in a row, banned address", frame(eth(etherIP6), ip6(bad6, hopByHop, frame(ext(destOpts), ext(routing), frag6(ah, 0), ext(tcp), make([]byte, 8), l4(22))...)), DroppedBan},
		{"IPv6, unknown extension header, banned address", frame(eth(etherIP6), ip6(bad6, 253, 1, 2, 3)), DroppedBan},
		{"IPv6, first fragment, banned address", frame(eth(etherIP6), ip6(bad6, fragment, frame(frag6(tcp, 0), l4(22))...)), DroppedBan},
		{"IPv6, later fragment, banned address", frame(eth(etherIP6), ip6(bad6, fragment, frame(frag6(tcp, 185), l4(22))...)), DroppedBan},
		{"IPv6, later fragment, its neighbour", frame(eth(etherIP6), ip6(good6, fragment, frame(frag6(tcp, 185), l4(22))...)), Passed},
		{"IPv6, address in a banned /48", frame(eth(etherIP6), ip6("2001:db8:66:ffff::1", tcp, l4(22)...)), DroppedNet},
		{"IPv6, address next to a banned /48", frame(eth(etherIP6), ip6("2001:db8:67::1", tcp, l4(22)...)), Passed},
		{"IPv6, allowed address in a banned /48", frame(eth(etherIP6), ip6("2001:db8:66::7", tcp, l4(22)...)), PassedAllowed},

		// Neither
		{"ARP", frame(eth(etherARP), make([]byte, 28)), Passed},
		{"802.3 length in place of a protocol", frame(eth(38), make([]byte, 38)), Passed},
		{"an Ethernet header alone", eth(etherIP4), PassedUnparsed},
	} {
		before := outcomesOf(t, b)
		verdict := run(t, p, tt.frame)
		want := uint32(xdpPass)
		if strings.HasPrefix(string(tt.want), "drop") {
			want = xdpDrop
		}
		if verdict != want {
			t.Errorf("%s: verdict %d, want %d", tt.description, verdict, want)
		}
		for o, n := range outcomesOf(t, b) {
			var wantMore Verdict
			if o == tt.want {
				wantMore = Verdict{1, uint64(len(tt.frame))}
			}
			if more := (Verdict{n.Packets - before[o].Packets, n.Bytes - before[o].Bytes}); more != wantMore {
				t.Errorf("%s: %s counts %+v, want %+v", tt.description, o, more, wantMore)
			}
		}
	}
}

func swap4(ip []byte) []byte {
	src := slices.Clone(ip[12:16])
	copy(ip[12:16], ip[16:20])
	copy(ip[16:20], src)
	return ip
}

func outcomesOf(t testing.TB, b *Blocklist) map[Outcome]Verdict {
	t.Helper()
	list, err := b.CountsByInterface()
	if err != nil {
		t.Fatal(err)
	}
	out := map[Outcome]Verdict{}
	for _, o := range outcomes {
		out[o.outcome] = Verdict{}
	}
	for _, c := range list {
		v := out[c.Outcome]
		v.Packets += c.Packets
		v.Bytes += c.Bytes
		out[c.Outcome] = v
	}
	return out
}

// TestTruncated cuts frames of banned sources at each length: what has lost
// a part of its IP header passes, what hasn't is dropped.
func TestTruncated(t *testing.T) {
	b := open(t, Options{})
	mustAdd(t, b, forever("192.0.2.66"), forever("2001:db8::66"))
	p := program(t, b)
	for name, tt := range map[string]struct {
		frame []byte
		whole int // up to where the IP header goes
	}{
		"IPv4":          {frame(eth(etherIP4), ip4("192.0.2.66", ip4opt{proto: tcp}, l4(22)...)), 34},
		"IPv4, options": {frame(eth(etherIP4), ip4("192.0.2.66", ip4opt{proto: tcp, options: make([]byte, 8)}, l4(22)...)), 34},
		"VLAN, IPv4":    {frame(eth(etherIP4, etherVLAN), ip4("192.0.2.66", ip4opt{proto: tcp}, l4(22)...)), 38},
		"IPv6":          {frame(eth(etherIP6), ip6("2001:db8::66", tcp, l4(22)...)), 54},
		"QinQ, IPv6":    {frame(eth(etherIP6, etherQinQ, etherVLAN), ip6("2001:db8::66", hopByHop, frame(ext(tcp), l4(22))...)), 62},
	} {
		for n := 14; n <= len(tt.frame); n++ {
			want := uint32(xdpPass)
			if n >= tt.whole {
				want = xdpDrop
			}
			if got := run(t, p, tt.frame[:n]); got != want {
				t.Errorf("%s cut at %d: verdict %d, want %d", name, n, got, want)
			}
		}
	}
}

// TestJumbo sends a frame of several buffers: it is dropped, and counted
// with all its bytes.
func TestJumbo(t *testing.T) {
	needLinux(t, 5, 18, "packets of several buffers")
	b := open(t, Options{})
	mustAdd(t, b, forever("192.0.2.66"))
	f := frame(eth(etherIP4), ip4("192.0.2.66", ip4opt{proto: udp}, make([]byte, 8900)...))
	if got := run(t, program(t, b), f); got != xdpDrop {
		t.Errorf("verdict %d, want a drop", got)
	}
	if e, _ := find(t, b, "192.0.2.66"); e.Packets != 1 || e.Bytes != uint64(len(f)) {
		t.Errorf("counts %d packets and %d bytes, want 1 and %d", e.Packets, e.Bytes, len(f))
	}
}

// TestUnusedCostsNothing looks at the program the kernel runs: what isn't in
// use isn't in it.
func TestUnusedCostsNothing(t *testing.T) {
	b := open(t, Options{})
	size := func() int {
		info, err := program(t, b).Info()
		if err != nil {
			t.Fatal(err)
		}
		insns, err := info.Instructions()
		if err != nil {
			t.Fatal(err)
		}
		return len(insns)
	}
	bare := size()
	mustAdd(t, b, forever("192.0.2.66"), forever("2001:db8::66"))
	if n := size(); n != bare {
		t.Errorf("bans of addresses take %d instructions, without any it was %d", n, bare)
	}
	previous := bare
	grow := func(what string) {
		t.Helper()
		n := size()
		if n <= previous {
			t.Errorf("%s: %d instructions, before it %d", what, n, previous)
		}
		t.Logf("%s: %d instructions", what, n)
		previous = n
	}
	t.Logf("addresses alone: %d instructions", bare)
	mustAdd(t, b, forever("198.51.100.0/24"))
	grow("an IPv4 subnet")
	mustAdd(t, b, forever("2001:db8:66::/48"))
	grow("an IPv6 subnet")
	if err := b.SetAllow(Allow{pfx("127.0.0.0/8"), "own"}); err != nil {
		t.Fatal(err)
	}
	grow("IPv4 allowlist")
	if err := b.SetAllow(Allow{pfx("::1"), "own"}); err != nil {
		t.Fatal(err)
	}
	grow("IPv6 allowlist")

	for _, s := range []string{"198.51.100.0/24", "2001:db8:66::/48"} {
		if _, ok, err := b.Remove(pfx(s)); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}
	for _, s := range []string{"127.0.0.0/8", "::1"} {
		if ok, err := b.RemoveAllow(pfx(s)); !ok || err != nil {
			t.Fatal(ok, err)
		}
	}
	if _, err := b.Sweep(); err != nil {
		t.Fatal(err)
	}
	if n := size(); n != bare {
		t.Errorf("with everything off again %d instructions, at the start %d", n, bare)
	}
}

// TestAllPrefixLengths bans a subnet of each length: the verifier must take
// the longest loops there can be, and each length must be found.
func TestAllPrefixLengths(t *testing.T) {
	b := open(t, Options{})
	var bans []Ban
	for n := 1; n < 32; n++ {
		bans = append(bans, forever(fmt.Sprintf("192.0.2.66/%d", n)))
	}
	for n := 1; n < 128; n++ {
		bans = append(bans, forever(fmt.Sprintf("2001:db8::66/%d", n)))
	}
	mustAdd(t, b, bans...)
	p := program(t, b)
	for _, f := range [][]byte{
		frame(eth(etherIP4), ip4("192.0.2.66", ip4opt{proto: tcp})),
		frame(eth(etherIP6), ip6("2001:db8::66", tcp)),
	} {
		// From the longest to the shortest, each counts once.
		for i := range 300 {
			if run(t, p, f) == xdpPass {
				break
			}
			var hit []Entry
			for _, e := range list(t, b) {
				if e.Packets > 0 {
					hit = append(hit, e)
				}
			}
			if len(hit) != 1 {
				t.Fatalf("packet %d was counted by %v", i, hit)
			}
			for _, e := range list(t, b) {
				if e.Prefix.Addr().Is4() == hit[0].Prefix.Addr().Is4() && e.Prefix.Bits() > hit[0].Prefix.Bits() {
					t.Fatalf("%s was hit ahead of %s", hit[0].Prefix, e.Prefix)
				}
			}
			if _, _, err := b.Remove(hit[0].Prefix); err != nil {
				t.Fatal(err)
			}
		}
	}
	if left := list(t, b); len(left) > 0 {
		t.Errorf("not found: %v", left)
	}
}
