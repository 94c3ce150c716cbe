package bpf

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
)

// TestSmall fills all maps of a small set, and asks the kernel what they
// take: no more than is promised.
func TestSmall(t *testing.T) {
	needLinux(t, 6, 4, "telling all that a map takes")
	b := open(t, Options{Dir: bpffs(t)}.Small())
	l, err := b.Limits()
	must(t, err)
	var bans []Ban
	var allow []Allow
	var ports []Port
	for i := range int(l.MaxBans) {
		a4 := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
		a6 := netip.MustParseAddr("2001:db8::").As16()
		binary.BigEndian.PutUint16(a6[14:], uint16(i))
		bans = append(bans, Ban{Prefix: netip.PrefixFrom(a4, 32)}, Ban{Prefix: netip.PrefixFrom(netip.AddrFrom16(a6), 128)})
		if i < int(l.MaxNets) {
			n4 := netip.AddrFrom4([4]byte{11, byte(i >> 8), byte(i), 0})
			a6[4], a6[5] = byte(1+i>>8), byte(i)
			n6 := netip.AddrFrom16(a6)
			bans = append(bans, Ban{Prefix: netip.PrefixFrom(n4, 24)}, Ban{Prefix: netip.PrefixFrom(n6, 48)})
			allow = append(allow, Allow{netip.PrefixFrom(a4, 32), "own"}, Allow{netip.PrefixFrom(n6, 128), "own"})
		}
		if i < 1<<8 {
			ports = append(ports, Port{"tcp", uint16(1 + i)})
		}
	}
	mustAdd(t, b, bans...)
	must(t, b.SetAllow(allow...))
	must(t, b.BlockPort(ports...))
	if n := len(list(t, b)); n != len(bans) {
		t.Errorf("%d entries, want %d", n, len(bans))
	}
	total := uint64(0)
	for _, m := range b.maps.Load().all() {
		info, err := (*m.m).Info()
		must(t, err)
		n, ok := info.Memlock()
		if !ok {
			t.Fatalf("the kernel doesn't say what %s takes", m.name)
		}
		t.Logf("%s: %d bytes, %d an entry", m.name, n, n/uint64((*m.m).MaxEntries()))
		total += n
	}
	if most := uint64(9<<19 + 454<<10*ebpf.MustPossibleCPU()); total > most {
		t.Errorf("all maps take %d bytes, more than %d", total, most)
	}
}
