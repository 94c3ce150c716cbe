package bpf

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// The benchmarks run programs in the kernel by BPF_PROG_TEST_RUN and report
// ns/packet. Each has an empty program beside it: the difference is what
// counts, since a run itself costs some 40 ns. "random" takes the source
// from 65,536 addresses, so that hash tables are looked up with cold caches;
// "hot" takes always the same.

const benchBans = 100_000

// scrambled is a program that writes a random source into the packet, of the
// 65,536 that start with the bytes of an address, and goes on to another.
func scrambled(b testing.TB, next *ebpf.Program, at int16) *ebpf.Program {
	b.Helper()
	arr, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	must(b, err)
	b.Cleanup(func() { arr.Close() })
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.XDP, AttachType: ebpf.AttachXDP, License: "GPL", Flags: 0x20, // frags, as the program behind it
		Instructions: asm.Instructions{
			asm.Mov.Reg(asm.R6, asm.R1),
			asm.FnGetPrandomU32.Call(),
			asm.LoadMem(asm.R2, asm.R6, 0, asm.Word),
			asm.LoadMem(asm.R3, asm.R6, 4, asm.Word),
			asm.Mov.Reg(asm.R4, asm.R2),
			asm.Add.Imm(asm.R4, int32(at)+2),
			asm.JGT.Reg(asm.R4, asm.R3, "out"),
			asm.StoreMem(asm.R2, at, asm.R0, asm.Half),
			asm.Mov.Reg(asm.R1, asm.R6),
			asm.LoadMapPtr(asm.R2, arr.FD()),
			asm.Mov.Imm(asm.R3, 0),
			asm.FnTailCall.Call(),
			asm.Mov.Imm(asm.R0, 0).WithSymbol("out"),
			asm.Return(),
		},
	})
	must(b, err)
	b.Cleanup(func() { p.Close() })
	must(b, arr.Put(uint32(0), next))
	return p
}

// returns is the empty program.
func returns(b testing.TB, verdict int32) *ebpf.Program {
	b.Helper()
	spec := &ebpf.ProgramSpec{
		Type: ebpf.XDP, AttachType: ebpf.AttachXDP, License: "MIT", Flags: unix.BPF_F_XDP_HAS_FRAGS,
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, verdict), asm.Return()},
	}
	_, err := fitFragments(spec)
	must(b, err)
	p, err := ebpf.NewProgram(spec)
	must(b, err)
	b.Cleanup(func() { p.Close() })
	return p
}

// benchRun runs a program in the kernel, time for time the fastest of ten
// rounds: the rest is other people's noise.
func benchRun(b *testing.B, p *ebpf.Program, f []byte, want uint32) {
	b.Helper()
	const rounds = 10
	best := time.Duration(1 << 62)
	for b.Loop() {
		for range rounds {
			got, d, err := p.Benchmark(f, 100_000, nil)
			if err != nil {
				b.Fatal(err)
			}
			if got != want {
				b.Fatalf("verdict %d, want %d", got, want)
			}
			best = min(best, d)
		}
	}
	b.ReportMetric(float64(best.Nanoseconds()), "ns/packet")
	b.ReportMetric(0, "ns/op")
}

// bench4 are n addresses: the banned ones share their first two bytes with
// 10.1.0.0/16 and 10.2.0.0/16, what comes from 192.0.0.0/16 is good.
func bench4(n int) []Ban {
	out := make([]Ban, n)
	for i := range out {
		a := netip.AddrFrom4([4]byte{10, byte(1 + i>>16), byte(i >> 8), byte(i)})
		out[i] = Ban{Prefix: netip.PrefixFrom(a, 32), Jail: "bench", Until: time.Now().Add(time.Hour)}
	}
	return out
}

func bench6(n int) []Ban {
	out := make([]Ban, n)
	for i := range out {
		a := netip.MustParseAddr("2001:db8::").As16()
		binary.BigEndian.PutUint32(a[12:], uint32(1<<16+i))
		out[i] = Ban{Prefix: netip.PrefixFrom(netip.AddrFrom16(a), 128), Jail: "bench", Until: time.Now().Add(time.Hour)}
	}
	return out
}

// benchNets are n subnets of two lengths that hold none of the addresses
// above.
func benchNets(n int) []Ban {
	out := make([]Ban, n)
	for i := range out {
		a, bits := netip.AddrFrom4([4]byte{byte(20 + i>>16), byte(i >> 8), byte(i), 0}), 24
		if i%2 == 1 {
			a, bits = netip.AddrFrom4([4]byte{byte(120 + i>>16), byte(i >> 8), byte(i), 0}), 28
		}
		out[i] = Ban{Prefix: netip.PrefixFrom(a, bits), Jail: "bench", Until: time.Now().Add(time.Hour)}
	}
	return out
}

func BenchmarkPacket(b *testing.B) {
	good4, bad4 := from4("192.0.2.1"), from4("10.1.2.3")
	good6, bad6 := from6("2001:db8:1::1"), from6("2001:db8::1:203")
	const at4, at6 = 14 + 12 + 2, 14 + 8 + 14

	for _, verdict := range []int32{xdpPass, xdpDrop} {
		name := map[int32]string{xdpPass: "empty-pass", xdpDrop: "empty-drop"}[verdict]
		b.Run(name+"/hot", func(b *testing.B) { benchRun(b, returns(b, verdict), good4, uint32(verdict)) })
		b.Run(name+"/random", func(b *testing.B) {
			benchRun(b, scrambled(b, returns(b, verdict), at4), good4, uint32(verdict))
		})
	}
	bl := open(b, Options{MaxBans: 1 << 17, MaxNets: 1 << 17, MaxAllow: 1 << 8})
	mustAdd(b, bl, bench4(benchBans)...)
	mustAdd(b, bl, bench6(benchBans)...)
	for _, with := range []string{"bans", "bans+allow", "bans+nets"} {
		switch with {
		case "bans+allow":
			for _, a := range []string{"127.0.0.0/8", "192.0.2.0/24", "10.250.0.1", "::1", "fe80::/10"} {
				must(b, bl.SetAllow(Allow{pfx(a), "own"}))
			}
		case "bans+nets":
			mustAdd(b, bl, benchNets(benchBans)...)
		}
		for _, tt := range []struct {
			name  string
			frame []byte
			at    int16
			want  uint32
		}{
			{"good4", good4, at4, xdpPass}, {"banned4", bad4, at4, xdpDrop},
			{"good6", good6, at6, xdpPass}, {"banned6", bad6, at6, xdpDrop},
		} {
			b.Run(with+"/"+tt.name+"/hot", func(b *testing.B) { benchRun(b, program(b, bl), tt.frame, tt.want) })
			b.Run(with+"/"+tt.name+"/random", func(b *testing.B) {
				benchRun(b, scrambled(b, program(b, bl), tt.at), tt.frame, tt.want)
			})
		}
	}
}

// BenchmarkMapKinds looks random addresses up in bare maps: what ban4 and
// net4 are made of, and what they might be. "miss" is good traffic.
func BenchmarkMapKinds(b *testing.B) {
	const n = benchBans
	cpus := ebpf.MustPossibleCPU()
	make4 := func(t ebpf.MapType) *ebpf.Map {
		m, err := ebpf.NewMap(&ebpf.MapSpec{Type: t, KeySize: 4, ValueSize: 24, MaxEntries: 1 << 17, Flags: 1})
		must(b, err)
		b.Cleanup(func() { m.Close() })
		per := 1
		if t == ebpf.PerCPUHash {
			per = cpus
		}
		keys, values := make([][4]byte, n), make([]kernBan, n*per)
		for i, ban := range bench4(n) {
			keys[i] = ban.Prefix.Addr().As4()
		}
		_, err = m.BatchUpdate(keys, values, nil)
		must(b, err)
		return m
	}
	makeNet := func(t ebpf.MapType) *ebpf.Map {
		m, err := ebpf.NewMap(&ebpf.MapSpec{Type: t, KeySize: 8, ValueSize: 24, MaxEntries: 1 << 17, Flags: 1})
		must(b, err)
		b.Cleanup(func() { m.Close() })
		for _, ban := range benchNets(n) {
			var value any = kernBan{}
			if t == ebpf.PerCPUHash {
				value = make([]kernBan, cpus)
			}
			must(b, m.Put(key4(ban.Prefix), value))
		}
		return m
	}
	lookup := func(m *ebpf.Map, stack int32) asm.Instructions {
		return asm.Instructions{
			asm.LoadMapPtr(asm.R1, m.FD()),
			asm.Mov.Reg(asm.R2, asm.R10), asm.Add.Imm(asm.R2, stack),
			asm.FnMapLookupElem.Call(),
		}
	}
	// A random source of the 65,536 below two bytes is at -4, and behind a
	// prefix length at -8.
	source := func(first, second byte) asm.Instructions {
		var high uint16 = binary.NativeEndian.Uint16([]byte{first, second})
		return asm.Instructions{
			asm.FnGetPrandomU32.Call(),
			asm.StoreMem(asm.R10, -2, asm.R0, asm.Half),
			asm.StoreImm(asm.R10, -4, int64(high), asm.Half),
			asm.StoreImm(asm.R10, -8, 32, asm.Word),
		}
	}
	masked := func(bits int64, mask []byte) asm.Instructions {
		return asm.Instructions{
			asm.LoadMem(asm.R1, asm.R10, -4, asm.Word),
			asm.And.Imm(asm.R1, int32(binary.NativeEndian.Uint32(mask))),
			asm.StoreMem(asm.R10, -12, asm.R1, asm.Word),
			asm.StoreImm(asm.R10, -16, bits, asm.Word),
		}
	}
	end := asm.Instructions{asm.Mov.Imm(asm.R0, xdpPass), asm.Return()}
	kinds := []struct {
		name string
		body asm.Instructions
	}{
		{"nothing", nil},
		{"PERCPU_HASH", lookup(make4(ebpf.PerCPUHash), -4)},
		{"HASH", lookup(make4(ebpf.Hash), -4)},
		{"LPM_TRIE", lookup(makeNet(ebpf.LPMTrie), -8)},
		{"hash-per-length", nil},
	}
	nets := makeNet(ebpf.PerCPUHash)
	for _, l := range []asm.Instructions{masked(28, []byte{255, 255, 255, 240}), lookup(nets, -16), masked(24, []byte{255, 255, 255, 0}), lookup(nets, -16)} {
		kinds[4].body = append(kinds[4].body, l...)
	}
	for _, kind := range kinds {
		for what, src := range map[string]asm.Instructions{"miss": source(192, 0), "hit": source(10, 1)} {
			if what == "hit" && kind.name != "HASH" && kind.name != "PERCPU_HASH" && kind.name != "nothing" {
				src = source(20, 1) // in a subnet
			}
			b.Run(kind.name+"/"+what, func(b *testing.B) {
				insns := append(append(append(asm.Instructions{}, src...), kind.body...), end...)
				p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "GPL", Instructions: insns})
				must(b, err)
				defer p.Close()
				benchRun(b, p, from4("192.0.2.1"), xdpPass)
			})
		}
	}
}

// BenchmarkBan bans many addresses at once, from nothing.
func BenchmarkBan(b *testing.B) {
	for _, n := range []int{1, 1000, 100_000, 1_000_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			bl := open(b, Options{MaxBans: 1 << 20, MaxNets: 1, MaxAllow: 1})
			bans := bench4(n)
			b.ReportAllocs()
			for b.Loop() {
				mustAdd(b, bl, bans...)
				b.StopTimer()
				must(b, bl.Sync(nil))
				b.StartTimer()
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*n), "µs/ban")
		})
	}
}

// BenchmarkList walks a full set.
func BenchmarkList(b *testing.B) {
	bl := open(b, Options{MaxBans: 1 << 17, MaxNets: 1, MaxAllow: 1})
	mustAdd(b, bl, bench4(benchBans)...)
	b.ReportAllocs()
	for b.Loop() {
		n := 0
		for _, err := range bl.List() {
			must(b, err)
			n++
		}
		if n != benchBans {
			b.Fatal(n)
		}
	}
}

// BenchmarkEveryCPU drops one banned source on all CPUs at once: each counts
// in the same entry.
func BenchmarkEveryCPU(b *testing.B) {
	bl := open(b, Options{MaxBans: 1 << 17, MaxNets: 1, MaxAllow: 1})
	mustAdd(b, bl, bench4(benchBans)...)
	p, f := program(b, bl), from4("10.1.2.3")
	best := time.Duration(1 << 62)
	for b.Loop() {
		for range 10 {
			var slowest time.Duration
			took := make(chan time.Duration)
			for cpu := range runtime.NumCPU() {
				go func() {
					// The thread ends with the goroutine, and its CPU with it.
					runtime.LockOSThread()
					var one unix.CPUSet
					one.Set(cpu)
					if err := unix.SchedSetaffinity(0, &one); err != nil {
						b.Error(err)
					}
					_, d, err := p.Benchmark(f, 1_000_000, nil)
					if err != nil {
						b.Error(err)
					}
					took <- d
				}()
			}
			for range runtime.NumCPU() {
				slowest = max(slowest, <-took)
			}
			best = min(best, slowest)
		}
	}
	b.ReportMetric(float64(best.Nanoseconds()), "ns/packet")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkRestart opens a set of 100,000 and brings it to what it is.
func BenchmarkRestart(b *testing.B) {
	dir := bpffs(b)
	bans := bench4(benchBans)
	mustAdd(b, open(b, Options{Dir: dir, MaxBans: 1 << 17, MaxNets: 1, MaxAllow: 1}), bans...)
	for b.Loop() {
		bl, err := Open(Options{Dir: dir, MaxBans: 1 << 17, MaxNets: 1, MaxAllow: 1})
		must(b, err)
		must(b, bl.Sync(bans))
		must(b, bl.Close())
	}
}
