package bpf

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// veth moves the test into a namespace that has one end of a veth pair,
// 192.0.2.1 and 2001:db8::1. The other end, in a namespace of its own, is
// 192.0.2.66 and more; dial sends from there.
type veth struct {
	name string
	peer int // the other namespace
	here int
	nl   *netlink.Handle // of the other namespace
}

const (
	hostEnd, hostEnd6 = "192.0.2.1", "2001:db8::1"
	peerEnd, peerEnd6 = "192.0.2.66", "2001:db8::66"
)

func newVeth(t *testing.T, name string) *veth {
	t.Helper()
	namespace(t) // the peer's
	peerNS, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { peerNS.Close() })
	namespace(t) // ours
	hereNS, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { hereNS.Close() })
	v := &veth{name: name, peer: int(peerNS.Fd()), here: int(hereNS.Fd())}

	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "peer0", PeerNamespace: netlink.NsFd(v.peer)}))
	here, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	must(t, err)
	setUp(t, here, name, hostEnd, hostEnd6)
	v.inPeer(t, func() {
		v.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		must(t, err)
		setUp(t, v.nl, "peer0", peerEnd, peerEnd6)
	})
	v.ready(t)
	return v
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func setUp(t *testing.T, h *netlink.Handle, name string, addrs ...string) {
	t.Helper()
	dev, err := h.LinkByName(name)
	must(t, err)
	for _, a := range addrs {
		addr, bits := netip.MustParseAddr(a), 24
		if addr.Is6() {
			bits = 64
		}
		ip := &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(bits, addr.BitLen())}
		must(t, h.AddrAdd(dev, &netlink.Addr{IPNet: ip, Flags: unix.IFA_F_NODAD}))
	}
	must(t, h.LinkSetUp(dev))
}

// ready waits until both ends reach each other.
func (v *veth) ready(t *testing.T) {
	t.Helper()
	for _, to := range []string{hostEnd, hostEnd6} {
		if !v.reaches(t, to, 10*time.Second) {
			t.Fatalf("%s can't be reached", to)
		}
	}
}

func (v *veth) inPeer(t *testing.T, f func()) {
	t.Helper()
	must(t, unix.Setns(v.peer, unix.CLONE_NEWNET))
	defer func() { must(t, unix.Setns(v.here, unix.CLONE_NEWNET)) }()
	f()
}

// reaches says whether a datagram from the other end arrives in time.
func (v *veth) reaches(t *testing.T, to string, patience time.Duration) bool {
	t.Helper()
	server, err := net.ListenPacket("udp", net.JoinHostPort(to, "0"))
	must(t, err)
	defer server.Close()
	var client net.Conn
	v.inPeer(t, func() { client, err = net.Dial("udp", server.LocalAddr().String()) })
	must(t, err)
	defer client.Close()
	buf := make([]byte, 16)
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		client.Write([]byte("hello"))
		server.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		if _, _, err := server.ReadFrom(buf); err == nil {
			return true
		}
	}
	return false
}

func TestAttach(t *testing.T) {
	for _, mode := range []Mode{ModeAuto, ModeNative, ModeGeneric} {
		t.Run(string(mode), func(t *testing.T) {
			v := newVeth(t, "xdpt.100") // a dot, as VLAN interfaces have
			b := open(t, Options{})
			a, err := b.Attach(v.name, mode)
			must(t, err)
			want := mode
			if mode == ModeAuto {
				want = ModeNative
			}
			if a.Mode != want || a.Interface != v.name || a.Index == 0 {
				t.Errorf("attached %+v, want mode %s", a, want)
			}
			if all, err := b.Attachments(); err != nil || len(all) != 1 || all[0] != a {
				t.Errorf("attachments %+v, %v", all, err)
			}
			for to, from := range map[string]string{hostEnd: peerEnd, hostEnd6: peerEnd6} {
				if !v.reaches(t, to, 5*time.Second) {
					t.Fatalf("%s isn't reached without a ban", to)
				}
				mustAdd(t, b, forever(from))
				if v.reaches(t, to, 200*time.Millisecond) {
					t.Errorf("%s is reached by the banned %s", to, from)
				}
				if e, _ := find(t, b, from); e.Packets == 0 || e.Bytes < e.Packets*47 {
					t.Errorf("%s: %d packets, %d bytes", from, e.Packets, e.Bytes)
				}
				if _, ok, err := b.Remove(pfx(from)); !ok || err != nil {
					t.Fatal(ok, err)
				}
				mustAdd(t, b, forever(from+"/24")) // a new length: the program is replaced
				if v.reaches(t, to, 200*time.Millisecond) {
					t.Errorf("%s is reached from a banned subnet", to)
				}
				if _, ok, err := b.Remove(pfx(from + "/24")); !ok || err != nil {
					t.Fatal(ok, err)
				}
				if !v.reaches(t, to, 5*time.Second) {
					t.Errorf("%s isn't reached after the unban", to)
				}
			}
			counts, err := b.CountsByInterface()
			must(t, err)
			for _, c := range counts {
				if c.Interface != v.name {
					t.Errorf("counted at %q: %+v", c.Interface, c)
				}
			}
			if len(counts) < 3 {
				t.Errorf("counts %+v", counts)
			}
			must(t, b.Detach(v.name))
			if all, err := b.Attachments(); err != nil || len(all) != 0 {
				t.Errorf("attachments %+v, %v", all, err)
			}
			if err := b.Detach(v.name); !errors.Is(err, ErrNotAttached) {
				t.Errorf("detached twice: %v", err)
			}
			mustAdd(t, b, forever(peerEnd))
			if !v.reaches(t, hostEnd, 5*time.Second) {
				t.Error("still filtered when detached")
			}
		})
	}
}

func TestAttachErrors(t *testing.T) {
	namespace(t)
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "xdpt0"}, PeerName: "xdpt1"}))
	b := open(t, Options{})
	for _, tt := range []struct {
		iface string
		mode  Mode
		want  string
	}{
		{"nosuch0", ModeAuto, "there is no interface nosuch0; there are lo"},
		{"lo", "turbo", `"turbo"`},
		{"lo", ModeNative, "in native mode: failed to attach link: create link: operation not supported; the driver has no native XDP"},
		{"lo", ModeOffload, "in offload mode: failed to attach link: create link: operation not supported; the network card would have to run the program itself"},
		{"xdpt0", ModeOffload, "in offload mode: failed to attach link: create link: invalid argument; the network card would have to run the program itself"},
	} {
		if _, err := b.Attach(tt.iface, tt.mode); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s, %s: %v", tt.iface, tt.mode, err)
		}
	}
	if all, err := b.Attachments(); err != nil || len(all) != 0 {
		t.Errorf("attachments %+v, %v", all, err)
	}
}

// TestGenericFallback: lo has no native mode.
func TestGenericFallback(t *testing.T) {
	namespace(t)
	b := open(t, Options{})
	a, err := b.Attach("lo", ModeAuto)
	must(t, err)
	if a.Mode != ModeGeneric {
		t.Errorf("mode %q", a.Mode)
	}
	// Again: it stays what it is.
	if a, err = b.Attach("lo", ModeAuto); err != nil || a.Mode != ModeGeneric {
		t.Errorf("again: %+v, %v", a, err)
	}
}

// TestJumboMTU: without xdp.frags the driver would refuse this.
func TestJumboMTU(t *testing.T) {
	needLinux(t, 5, 18, "native XDP with packets of several buffers")
	v := newVeth(t, "xdpt0")
	dev, err := v.nl.LinkByName("peer0")
	must(t, err)
	must(t, v.nl.LinkSetMTU(dev, 9000))
	if a, err := open(t, Options{}).Attach(v.name, ModeAuto); err != nil || a.Mode != ModeNative {
		t.Errorf("%+v, %v", a, err)
	}
}

// TestModeChange takes our own program off and puts it on in another mode.
func TestModeChange(t *testing.T) {
	v := newVeth(t, "xdpt0")
	b := open(t, Options{})
	mustAdd(t, b, forever(peerEnd))
	for _, mode := range []Mode{ModeNative, ModeGeneric, ModeNative} {
		if a, err := b.Attach(v.name, mode); err != nil || a.Mode != mode {
			t.Fatalf("%+v, %v", a, err)
		}
		if all, err := b.Attachments(); err != nil || len(all) != 1 || all[0].Mode != mode {
			t.Errorf("attachments %+v, %v", all, err)
		}
		if v.reaches(t, hostEnd, 100*time.Millisecond) {
			t.Errorf("%s: the banned one gets through", mode)
		}
	}
}

// TestReplaceUnderFlood replaces the program time and again while a banned
// source floods: nothing may come through.
func TestReplaceUnderFlood(t *testing.T) {
	v := newVeth(t, "xdpt0")
	b := open(t, Options{})
	_, err := b.Attach(v.name, ModeNative)
	must(t, err)
	mustAdd(t, b, forever(peerEnd))

	server, err := net.ListenPacket("udp", net.JoinHostPort(hostEnd, "0"))
	must(t, err)
	defer server.Close()
	var client net.Conn
	v.inPeer(t, func() { client, err = net.Dial("udp", server.LocalAddr().String()) })
	must(t, err)
	defer client.Close()

	stop, done := make(chan struct{}), make(chan int)
	go func() {
		sent := 0
		for {
			select {
			case <-stop:
				done <- sent
				return
			default:
				if _, err := client.Write([]byte("flood")); err == nil {
					sent++
				}
			}
		}
	}()
	for i := range 100 {
		if _, err := b.Attach(v.name, ModeAuto); err != nil {
			t.Error(err)
		}
		net := forever(fmt.Sprintf("198.51.100.0/%d", 8+i%24))
		mustAdd(t, b, net)
		if _, _, err := b.Remove(net.Prefix); err != nil {
			t.Error(err)
		}
		if i%10 == 0 {
			if _, err := b.Sweep(); err != nil { // lengths leave the program
				t.Error(err)
			}
		}
	}
	close(stop)
	sent := <-done
	server.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if n, _, err := server.ReadFrom(make([]byte, 16)); err == nil {
		t.Errorf("a packet came through: %d bytes", n)
	}
	e, _ := find(t, b, peerEnd)
	if dropped := outcomesOf(t, b)[DroppedBan]; e.Packets == 0 || dropped != (Verdict{e.Packets, e.Bytes}) {
		t.Errorf("counts %d packets, %d bytes; dropped were %+v", e.Packets, e.Bytes, dropped)
	}
	t.Logf("%d sent, %d dropped", sent, e.Packets)
}

// passer is somebody else's XDP program.
func passer(t *testing.T) *ebpf.Program {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "somebody", Type: ebpf.XDP, License: "MIT",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, xdpPass), asm.Return()},
	})
	must(t, err)
	t.Cleanup(func() { p.Close() })
	return p
}

// TestForeigner leaves another program where it is, and names it.
func TestForeigner(t *testing.T) {
	v := newVeth(t, "xdpt0")
	b := open(t, Options{})
	dev, err := netlink.LinkByName(v.name)
	must(t, err)
	p := passer(t)
	check := func(how string, mode Mode) {
		t.Helper()
		for _, ask := range []Mode{ModeAuto, ModeNative, ModeGeneric} {
			_, err := b.Attach(v.name, ask)
			var f *Foreigner
			if !errors.As(err, &f) || f.Name != "somebody" || f.ID == 0 || f.Tag == "" || f.Mode != mode {
				t.Errorf("%s: %v", how, err)
			}
		}
	}

	l, err := link.AttachXDP(link.XDPOptions{Program: p, Interface: dev.Attrs().Index, Flags: link.XDPDriverMode})
	must(t, err)
	check("by link", ModeNative)
	// The link's pin goes before the program's.
	must(t, mountBPFFS(usualBPFFS)) // systemd does, elsewhere nobody may have
	pins, err := os.MkdirTemp(usualBPFFS, "xdpban-test-")
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(pins)) })
	for _, pinned := range []interface{ Pin(string) error }{p, l} {
		pin := filepath.Join(pins, fmt.Sprintf("%T", pinned)[len("*ebpf."):])
		must(t, pinned.Pin(pin))
		if f, err := Holder(v.name); err != nil || f == nil || f.Pin != pin {
			t.Errorf("the holder is %+v, %v; want the pin %s", f, err, pin)
		}
	}
	// An older kernel lets go of a link some time after its last user.
	must(t, errors.Join(l.Detach(), p.Unpin(), l.Unpin(), l.Close()))

	must(t, netlink.LinkSetXdpFdWithFlags(dev, p.FD(), int(link.XDPGenericMode)))
	check("by netlink", ModeGeneric)
	// Asked to, we replace it; that one is named, too.
	a, f, err := b.Replace(v.name, ModeGeneric)
	if err != nil || a.Mode != ModeGeneric || f == nil || f.Name != "somebody" || f.Link != 0 {
		t.Errorf("replaced %+v by %+v: %v", f, a, err)
	}
	must(t, b.Detach(v.name))

	l, err = link.AttachXDP(link.XDPOptions{Program: p, Interface: dev.Attrs().Index, Flags: link.XDPDriverMode})
	must(t, err)
	defer l.Close()
	a, f, err = b.Replace(v.name, ModeAuto)
	if err != nil || a.Mode != ModeNative || f == nil || f.Name != "somebody" || f.Link == 0 {
		t.Errorf("replaced %+v by %+v: %v", f, a, err)
	}
	// Our own isn't somebody else's.
	if a, f, err = b.Replace(v.name, ModeAuto); err != nil || f != nil || a.Mode != ModeNative {
		t.Errorf("replaced %+v by %+v: %v", f, a, err)
	}
}

// TestInterfaceReturns deletes the interface and makes it anew: the old link
// is severed, and replaced by the next Attach.
func TestInterfaceReturns(t *testing.T) {
	namespace(t)
	b := open(t, Options{})
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "xdpt0"}, PeerName: "xdpt1"}
	must(t, netlink.LinkAdd(pair))
	first, err := b.Attach("xdpt0", ModeAuto)
	must(t, err)
	must(t, netlink.LinkDel(pair))
	if all, err := b.Attachments(); err != nil || len(all) != 1 || !all[0].Severed || all[0].Interface != "xdpt0" {
		t.Errorf("attachments %+v, %v", all, err)
	}
	// A change to the program meanwhile has only severed links to go to.
	mustAdd(t, b, forever("198.51.100.0/24"))

	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "xdpt0"}, PeerName: "xdpt1"}))
	second, err := b.Attach("xdpt0", ModeAuto)
	must(t, err)
	if all, err := b.Attachments(); err != nil || len(all) != 1 || all[0] != second || second.Index == first.Index {
		t.Errorf("attachments %+v, %v", all, err)
	}

	// Renamed, it keeps its link; another one may take the name.
	dev, err := netlink.LinkByName("xdpt0")
	must(t, err)
	must(t, netlink.LinkSetDown(dev))
	must(t, netlink.LinkSetName(dev, "xdpt5"))
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "xdpt0"}, PeerName: "xdpt2"}))
	_, err = b.Attach("xdpt0", ModeAuto)
	must(t, err)
	all, err := b.Attachments()
	if err != nil || len(all) != 2 || all[0].Interface != "xdpt0" || all[1].Interface != "xdpt5" || all[1].Index != second.Index {
		t.Errorf("attachments %+v, %v", all, err)
	}
	must(t, b.Detach("xdpt5"))
	must(t, b.Detach("xdpt0"))
}

// TestKilled kills a process with SIGKILL that has attached and goes on
// writing: what it has pinned goes on filtering and can be opened.
func TestKilled(t *testing.T) {
	if dir := os.Getenv("XDPBAN_TEST_KILLED"); dir != "" {
		b, err := Open(Options{Dir: dir, MaxBans: 1 << 12, MaxNets: 1 << 10, MaxAllow: 1 << 8})
		must(t, err)
		_, err = b.Attach("xdpt0", ModeNative)
		must(t, err)
		mustAdd(t, b, forever(peerEnd))
		fmt.Println("standing")
		for i := 0; ; i++ {
			mustAdd(t, b, forever(fmt.Sprintf("10.0.0.0/%d", 8+i%24)), forever(fmt.Sprintf("10.0.%d.%d", i>>8&255, i&255)))
			_, err := b.Attach("xdpt0", ModeNative)
			must(t, err)
		}
	}
	v := newVeth(t, "xdpt0")
	dir := bpffs(t)
	for range 10 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilled$", "-test.v")
		cmd.Env = append(os.Environ(), "XDPBAN_TEST_KILLED="+dir)
		out, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		var said bytes.Buffer
		for buf := make([]byte, 256); !strings.Contains(said.String(), "standing"); {
			n, err := out.Read(buf)
			said.Write(buf[:n])
			if err != nil {
				t.Fatalf("the process ended: %v\n%s", err, said.String())
			}
		}
		must(t, cmd.Process.Kill())
		cmd.Wait()

		if v.reaches(t, hostEnd, 60*time.Millisecond) {
			t.Error("the banned one gets through")
		}
		b := open(t, Options{Dir: dir, MustExist: true})
		if e, ok := find(t, b, peerEnd); !ok || e.Packets == 0 {
			t.Errorf("entry %+v, %v", e, ok)
		}
		if all, err := b.Attachments(); err != nil || len(all) != 1 || all[0].Mode != ModeNative {
			t.Errorf("attachments %+v, %v", all, err)
		}
		must(t, b.Close())
	}
}

// TestPinsLost: where the maps' pins are removed under a link, a new set is
// made and the link's program replaced by one that reads it.
func TestPinsLost(t *testing.T) {
	v := newVeth(t, "xdpt0")
	dir := bpffs(t)
	b := open(t, Options{Dir: dir})
	_, err := b.Attach(v.name, ModeAuto)
	must(t, err)
	mustAdd(t, b, forever("198.51.100.0/24"), forever(peerEnd))
	must(t, b.Pinned())
	names, err := os.ReadDir(filepath.Join(dir, Schema))
	must(t, err)
	for _, n := range names {
		if !n.IsDir() {
			must(t, os.Remove(filepath.Join(dir, Schema, n.Name())))
		}
	}
	if _, err := Open(Options{Dir: dir, MustExist: true}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("MustExist: %v", err)
	}
	if err := b.Pinned(); !errors.Is(err, ErrUnpinned) {
		t.Errorf("Pinned: %v", err)
	}
	again := open(t, Options{Dir: dir})
	if again.Epoch() == b.Epoch() {
		t.Error("the epoch is the same")
	}
	if !v.reaches(t, hostEnd, 5*time.Second) {
		t.Error("filtered by maps that nobody can reach")
	}
	mustAdd(t, again, forever(peerEnd))
	if v.reaches(t, hostEnd, 100*time.Millisecond) {
		t.Error("the banned one gets through")
	}
}
