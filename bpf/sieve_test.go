package bpf

import (
	"fmt"
	"math/bits"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// bitsSet is how many bits of the sieve are set.
func bitsSet(t *testing.T, b *Blocklist) (n int) {
	t.Helper()
	set, err := b.current()
	must(t, err)
	words := make([]byte, 8*set.Sieve.MaxEntries())
	_, err = set.sieve.memory.ReadAt(words, 0)
	must(t, err)
	for _, w := range words {
		n += bits.OnesCount8(w)
	}
	return n
}

// TestSieveMissesNone bans sources of each kind, of all lengths, so that the
// program's way to a bit and ours have to agree on each of them, through the
// maps' growth and in the sieve that is made anew.
func TestSieveMissesNone(t *testing.T) {
	dir := bpffs(t)
	b := open(t, Options{Dir: dir, MaxBans: 1 << 15, MaxNets: 1 << 12})
	rnd := rand.New(rand.NewPCG(1, 2))
	var bans []Ban
	var frames [][]byte
	for i := range 6000 {
		a4 := netip.AddrFrom4([4]byte{byte(rnd.IntN(250)), byte(rnd.IntN(256)), byte(rnd.IntN(256)), byte(rnd.IntN(256))})
		a6 := netip.MustParseAddr("2001:db8::").As16()
		for j := 4; j < 16; j++ {
			a6[j] = byte(rnd.IntN(256))
		}
		p4, p6 := netip.PrefixFrom(a4, 32), netip.PrefixFrom(netip.AddrFrom16(a6), 128)
		if i%10 == 0 {
			p4, p6 = netip.PrefixFrom(a4, 20+i/10%12).Masked(), netip.PrefixFrom(netip.AddrFrom16(a6), 40+i/10%88).Masked()
		}
		bans = append(bans, forever(p4.String()), forever(p6.String()))
		frames = append(frames, from4(a4.String()), from6(netip.AddrFrom16(a6).String()))
	}
	for part := range 4 {
		n := len(bans) / 4
		mustAdd(t, b, bans[part*n:(part+1)*n]...)
		p := program(t, b)
		for i, f := range frames[:(part+1)*n] {
			if run(t, p, f) != xdpDrop {
				t.Fatalf("%s isn't dropped", bans[i].Prefix)
			}
		}
	}
	if _, err := b.Sweep(); err != nil {
		t.Fatal(err)
	}
	p := program(t, b)
	for i, f := range frames {
		if run(t, p, f) != xdpDrop {
			t.Fatalf("%s isn't dropped after a sweep", bans[i].Prefix)
		}
	}

	// What is gone leaves it, whoever removed it.
	if n := bitsSet(t, b); n < len(bans)/2 || n > len(bans) {
		t.Errorf("%d bits are set for %d bans", n, len(bans))
	}
	var all []netip.Prefix
	for _, e := range list(t, b) {
		all = append(all, e.Prefix)
	}
	other := open(t, Options{Dir: dir, MustExist: true})
	if were, err := other.RemoveBatch(all[:len(all)-1]); err != nil || len(were) != len(all)-1 {
		t.Fatalf("removed %d of %d: %v", len(were), len(all)-1, err)
	}
	if n := bitsSet(t, b); n != 1 {
		t.Errorf("%d bits are set for one ban", n)
	}
	if _, ok, err := other.Remove(all[len(all)-1]); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if _, err := b.Sweep(); err != nil {
		t.Fatal(err)
	}
	if n := bitsSet(t, b); n != 0 {
		t.Errorf("%d bits are set for no ban", n)
	}
}

// TestSieveHoldsBack bans a neighbourhood: other neighbourhoods, which differ
// from it in a few bits, must not all have bits that it has set.
func TestSieveHoldsBack(t *testing.T) {
	needKernel(t)
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: sieveWords(1 << 16), Flags: unix.BPF_F_MMAPABLE})
	must(t, err)
	defer m.Close()
	s, err := openSieve(m)
	must(t, err)
	for _, tt := range []struct {
		net    string
		source func(i int) netip.Addr
	}{
		{"10.%d.", func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}) }},
		{"%d.10.", func(i int) netip.Addr { return netip.AddrFrom4([4]byte{1, 10, byte(i >> 8), byte(i)}) }},
		{"2001:db8:%d::", func(i int) netip.Addr {
			a := netip.MustParseAddr("2001:db8:1::").As16()
			a[14], a[15] = byte(i>>8), byte(i)
			return netip.AddrFrom16(a)
		}},
		{"2001:db8:0:x:%d::/64", func(i int) netip.Addr {
			a := netip.MustParseAddr("2001:db8:0:0:1::").As16()
			a[6], a[7] = byte(i>>8), byte(i)
			return netip.AddrFrom16(a)
		}},
	} {
		set := map[uint64]bool{}
		for i := range 1 << 16 {
			a := tt.source(i)
			set[s.bit(netip.PrefixFrom(a, a.BitLen()))] = true
		}
		for other := range 250 {
			in := 0
			for i := range 1 << 12 {
				a := tt.source(i * 16).AsSlice()
				switch tt.net {
				case "10.%d.":
					a[1] = byte(other + 2)
				case "%d.10.":
					a[0] = byte(other + 2)
				case "2001:db8:%d::":
					a[5] = byte(other + 2)
				default:
					a[9] = byte(other + 2)
				}
				addr, _ := netip.AddrFromSlice(a)
				if set[s.bit(netip.PrefixFrom(addr, addr.BitLen()))] {
					in++
				}
			}
			if in > 1<<12/5 {
				t.Errorf("%s: of 4096 neighbours %d have a bit that is set", fmt.Sprintf(tt.net, other+2), in)
			}
		}
	}
}
