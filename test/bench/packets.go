package main

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"xdpban/bpf"
	"xdpban/internal/lab"
)

const banned = 100_000

// bannedAddrs are n addresses of one family. The first 65,536 differ in their
// last two bytes only: the generator takes its sources from them.
func bannedAddrs(n int, v6 bool) []netip.Addr {
	out := make([]netip.Addr, n)
	for i := range out {
		if v6 {
			a := netip.MustParseAddr("2001:db8:ffff::").As16()
			a[13], a[14], a[15] = byte(i>>16), byte(i>>8), byte(i)
			out[i] = netip.AddrFrom16(a)
		} else {
			out[i] = netip.AddrFrom4([4]byte{198, byte(18 + i>>16), byte(i >> 8), byte(i)})
		}
	}
	return out
}

func bansOf(addrs []netip.Addr) []bpf.Ban {
	out := make([]bpf.Ban, len(addrs))
	for i, a := range addrs {
		out[i] = bpf.Ban{Prefix: netip.PrefixFrom(a, a.BitLen()), Jail: "bench", Until: time.Now().Add(24 * time.Hour)}
	}
	return out
}

// frame is a UDP packet of 60 or 78 bytes, from the first banned address.
func frame(to net.HardwareAddr, source netip.Addr) []byte {
	f := append([]byte{}, to...)
	f = append(f, 2, 0, 0, 0, 0, 1)
	udp := []byte{0x9c, 0x40, 0, 9, 0, 24, 0, 0}
	body := make([]byte, 16)
	if source.Is4() {
		f = binary.BigEndian.AppendUint16(f, 0x0800)
		ip := []byte{0x45, 0, 0, 44, 0, 0, 0, 0, 64, 17, 0, 0}
		ip = append(ip, source.AsSlice()...)
		ip = append(ip, 192, 0, 2, 1)
		binary.BigEndian.PutUint16(ip[4:], ^binary.BigEndian.Uint16(ip[14:]))
		var sum uint32
		for i := 0; i < 20; i += 2 {
			sum += uint32(binary.BigEndian.Uint16(ip[i:]))
		}
		for sum>>16 != 0 {
			sum = sum>>16 + sum&0xffff
		}
		binary.BigEndian.PutUint16(ip[10:], ^uint16(sum))
		f = append(f, ip...)
	} else {
		f = binary.BigEndian.AppendUint16(f, 0x86dd)
		f = append(f, 0x60, 0, 0, 0, 0, 24, 17, 64)
		f = append(f, source.AsSlice()...)
		f = append(f, netip.MustParseAddr("2001:db8::1").AsSlice()...)
	}
	return append(append(f, udp...), body...)
}

// at is where the last two bytes of the source are.
func at(source netip.Addr) int16 {
	if source.Is4() {
		return 14 + 12 + 2
	}
	return 14 + 8 + 14
}

// scramble are instructions that put a random one of 256 or 65,536 sources
// into the packet at R6. IPv4's header checksum stays right: the packet's
// number takes up the difference.
func scramble(source netip.Addr, sources int) asm.Instructions {
	insns := asm.Instructions{
		asm.FnGetPrandomU32.Call(),
		asm.And.Imm(asm.R0, 0xffff),
	}
	if sources == 256 {
		// Of the two bytes, as they lie in memory, the second.
		insns = append(insns, asm.And.Imm(asm.R0, int32(binary.NativeEndian.Uint16([]byte{0, 0xff}))))
	}
	insns = append(insns,
		asm.LoadMem(asm.R2, asm.R6, 0, asm.Word),
		asm.LoadMem(asm.R3, asm.R6, 4, asm.Word),
		asm.Mov.Reg(asm.R4, asm.R2),
		asm.Add.Imm(asm.R4, int32(at(source))+2),
		asm.JGT.Reg(asm.R4, asm.R3, "out"),
		asm.StoreMem(asm.R2, at(source), asm.R0, asm.Half),
	)
	if source.Is4() {
		insns = append(insns, asm.Xor.Imm(asm.R0, 0xffff), asm.StoreMem(asm.R2, 14+4, asm.R0, asm.Half))
	}
	return insns
}

func newXDP(insns asm.Instructions) (*ebpf.Program, error) {
	return ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.XDP, AttachType: ebpf.AttachXDP, License: "GPL", Instructions: insns,
	})
}

// wire is a server and what floods it.
type wire struct {
	b         *bench
	srv, gen  *lab.Host
	mac       net.HardwareAddr
	generates int // the interface's number
}

func (b *bench) wire() (w *wire, closed func(), err error) {
	w = &wire{b: b}
	var hosts []*lab.Host
	var passing link.Link
	closed = func() {
		if passing != nil {
			passing.Close()
		}
		for _, h := range hosts {
			h.Close()
		}
	}
	undo := closed // a return with an error has none
	defer func() {
		if err != nil {
			undo()
		}
	}()
	for name, h := range map[string]**lab.Host{"server": &w.srv, "generator": &w.gen} {
		if *h, err = lab.Boot(name); err != nil {
			return nil, nil, err
		}
		hosts = append(hosts, *h)
	}
	p := netip.MustParsePrefix
	if err = lab.Join(b.ctx, "eth0", w.srv, []netip.Prefix{p("192.0.2.1/24"), p("2001:db8::1/64")},
		w.gen, []netip.Prefix{p("192.0.2.2/24"), p("2001:db8::2/64")}); err != nil {
		return nil, nil, err
	}
	// A veth takes frames if its other end has a program or GRO, and the
	// kernel runs frames on an interface that has a program.
	for _, h := range hosts {
		if _, err = h.Run(b.ctx, "ethtool", "-K", "eth0", "gro", "on"); err != nil {
			return nil, nil, err
		}
	}
	for _, key := range []string{"all", "eth0"} {
		if _, err = w.srv.Run(b.ctx, "sysctl", "-qw", "net.ipv4.conf."+key+".rp_filter=0"); err != nil {
			return nil, nil, err
		}
	}
	err = w.srv.In(func() error {
		i, err := net.InterfaceByName("eth0")
		if err == nil {
			w.mac = i.HardwareAddr
		}
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	pass, err := newXDP(asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()})
	if err != nil {
		return nil, nil, err
	}
	defer pass.Close()
	err = w.gen.In(func() error {
		i, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		w.generates = i.Index
		passing, err = link.AttachXDP(link.XDPOptions{Program: pass, Interface: i.Index})
		return err
	})
	return w, closed, err
}

// xdpMd is the kernel's struct xdp_md.
type xdpMd struct {
	Data, DataEnd, DataMeta, Ingress, Queue, Egress uint32
}

// flood sends n packets of that many sources, as fast as one core can, and
// returns how many of them were received in a second: what receives them runs
// on the same core.
func (w *wire) flood(source netip.Addr, sources, n int) (rate float64, err error) {
	insns := append(asm.Instructions{asm.Mov.Reg(asm.R6, asm.R1)}, scramble(source, sources)...)
	insns = append(insns,
		asm.Mov.Imm(asm.R0, 3), asm.Return(), // XDP_TX
		asm.Mov.Imm(asm.R0, 0).WithSymbol("out"), asm.Return(),
	)
	p, err := newXDP(insns)
	if err != nil {
		return 0, err
	}
	defer p.Close()
	data := frame(w.mac, source)
	err = w.gen.In(func() error {
		if err := ownCore(); err != nil {
			return err
		}
		before, err := w.received()
		if err != nil {
			return err
		}
		began := time.Now()
		const liveFrames = 1 << 1
		if _, err := p.Run(&ebpf.RunOptions{
			Data: data, Repeat: uint32(n), Flags: liveFrames,
			Context: xdpMd{DataEnd: uint32(len(data)), Ingress: uint32(w.generates)},
		}); err != nil {
			return err
		}
		took := time.Since(began)
		after, err := w.received()
		rate = float64(after-before) / took.Seconds()
		return err
	})
	return rate, err
}

// received is how many packets the server's interface has taken up, dropped
// ones included. A veth loses some of a flood ahead of that: they cost the
// sender nearly nothing and count for nothing.
func (w *wire) received() (int, error) {
	out, err := os.ReadFile(w.srv.Path("/sys/class/net/eth0/statistics/rx_packets"))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(out)))
}

// run runs a command at the server.
func (w *wire) run(argv ...string) error {
	_, err := w.srv.Run(w.b.ctx, argv...)
	return err
}

// feed runs a command at the server that reads a file.
func (w *wire) feed(name, text string, argv ...string) error {
	path := w.b.path(name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		return err
	}
	return w.run(append([]string{"sh", "-c", `f=$0; exec "$@" <"$f"`, path}, argv...)...)
}

// at home in the server's network, with its bpffs.
func (w *wire) blocklist(max uint32) (*bpf.Blocklist, error) {
	return bpf.Open(bpf.Options{Dir: w.srv.Path("/sys/fs/bpf/xdpban"), MaxBans: max, MaxNets: 1 << 17})
}

// pinned runs f on one core.
func pinned(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and ends with it
		if err := ownCore(); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// ownCore gives this thread a core for the moment, ahead of everybody else:
// the packets of a machine that does other things besides would be counted as
// slow. It ends with the thread.
func ownCore() error {
	var set unix.CPUSet
	set.Set(cpus() - 1)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return fmt.Errorf("stay on one core: %w", err)
	}
	if err := unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}, 0); err != nil {
		return fmt.Errorf("have a core alone: %w", err)
	}
	return nil
}

// programOn is the XDP program on an interface of this name space.
func programOn(iface string) (ebpf.ProgramID, error) {
	l, err := netlink.LinkByName(iface)
	if err != nil {
		return 0, err
	}
	x := l.Attrs().Xdp
	if x == nil || !x.Attached {
		return 0, fmt.Errorf("there is no program on %s", iface)
	}
	return ebpf.ProgramID(x.ProgId), nil
}
