package bpf

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// needKernel skips what can't run here; in CI that is a failure.
func needKernel(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("needs root")
	}
	t.Skip("needs root")
}

// needLinux skips what an older kernel doesn't offer. test/gate accepts such a
// skip, also in CI: the kernel's release is a fact.
func needLinux(t testing.TB, major, minor int, what string) {
	t.Helper()
	var u unix.Utsname
	must(t, unix.Uname(&u))
	release := unix.ByteSliceToString(u.Release[:])
	var x, y int
	if _, err := fmt.Sscanf(release, "%d.%d", &x, &y); err != nil {
		t.Fatalf("Linux %s: %v", release, err)
	}
	if x < major || x == major && y < minor {
		t.Skipf("needs Linux %d.%d for %s; this is Linux %s", major, minor, what, release)
	}
}

// TestObjects: both byte orders are committed, and hold the same.
func TestObjects(t *testing.T) {
	little, err := ebpf.LoadCollectionSpec("xdpban_bpfel.o")
	must(t, err)
	big, err := ebpf.LoadCollectionSpec("xdpban_bpfeb.o")
	must(t, err)
	if little.ByteOrder != binary.LittleEndian || big.ByteOrder != binary.BigEndian {
		t.Errorf("byte orders %v, %v", little.ByteOrder, big.ByteOrder)
	}
	for name, p := range little.Programs {
		if q := big.Programs[name]; q == nil || p.Type != q.Type || len(p.Instructions) == 0 || len(q.Instructions) == 0 {
			t.Errorf("program %s: %v, %v", name, p, q)
		}
	}
	for name, m := range little.Maps {
		if n := big.Maps[name]; n == nil || m.Type != n.Type || m.KeySize != n.KeySize || m.ValueSize != n.ValueSize {
			t.Errorf("map %s: %v, %v", name, m, n)
		}
	}
	if len(little.Programs) < 2 || len(little.Programs) != len(big.Programs) || len(little.Maps) != len(big.Maps) {
		t.Errorf("%d and %d programs, %d and %d maps", len(little.Programs), len(big.Programs), len(little.Maps), len(big.Maps))
	}
}

// bpffs mounts a bpffs of the test's own.
func bpffs(t testing.TB) string {
	t.Helper()
	needKernel(t)
	dir := filepath.Join(t.TempDir(), "xdpban-test-bpf")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("bpf", dir, "bpf", 0, "mode=0700"); err != nil {
		t.Fatalf("mount a bpffs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}

func open(t testing.TB, o Options) *Blocklist {
	t.Helper()
	if o.Dir == "" {
		o.Dir = bpffs(t)
	}
	if o.MaxBans == 0 {
		o.MaxBans, o.MaxNets, o.MaxAllow = 1<<12, 1<<10, 1<<8
	}
	b, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

// program is the program as it would be attached now.
func program(t testing.TB, b *Blocklist) *ebpf.Program {
	t.Helper()
	meta, err := b.readMeta()
	if err != nil {
		t.Fatal(err)
	}
	p, err := b.load(meta, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// namespace moves the test into a network namespace of its own.
func namespace(t testing.TB) {
	t.Helper()
	needKernel(t)
	runtime.LockOSThread()
	old, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	ns, err := netns.New()
	if err != nil {
		t.Fatalf("make a network namespace: %v", err)
	}
	t.Cleanup(func() {
		if err := netns.Set(old); err != nil {
			t.Fatal(err) // the thread is lost, don't unlock it
		}
		ns.Close()
		old.Close()
		runtime.UnlockOSThread()
	})
}

func pfx(s string) netip.Prefix {
	if p, err := netip.ParsePrefix(s); err == nil {
		return p
	}
	a := netip.MustParseAddr(s)
	return netip.PrefixFrom(a, a.BitLen())
}

func forever(s string) Ban { return Ban{Prefix: pfx(s), Jail: "test", Since: time.Unix(1700000000, 0)} }

func mustAdd(t testing.TB, b *Blocklist, bans ...Ban) {
	t.Helper()
	if n, err := b.AddBatch(bans); err != nil || n != len(bans) {
		t.Fatalf("AddBatch: %d of %d: %v", n, len(bans), err)
	}
}

func list(t testing.TB, b *Blocklist) []Entry {
	t.Helper()
	var out []Entry
	for e, err := range b.List() {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, e)
	}
	slices.SortFunc(out, func(x, y Entry) int { return x.Prefix.Compare(y.Prefix) })
	return out
}

func find(t testing.TB, b *Blocklist, prefix string) (Entry, bool) {
	t.Helper()
	for _, e := range list(t, b) {
		if e.Prefix == pfx(prefix) {
			return e, true
		}
	}
	return Entry{}, false
}

// Frames. A frame is put together from parts, each of them bytes.

func frame(parts ...[]byte) []byte { return slices.Concat(parts...) }

// eth is an Ethernet header with the tags ahead of the protocol.
func eth(proto uint16, tags ...uint16) []byte {
	f := []byte{2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1}
	for _, tpid := range tags {
		f = binary.BigEndian.AppendUint16(f, tpid)
		f = binary.BigEndian.AppendUint16(f, 100) // VLAN 100
	}
	return binary.BigEndian.AppendUint16(f, proto)
}

const (
	etherIP4  = 0x0800
	etherIP6  = 0x86dd
	etherARP  = 0x0806
	etherVLAN = 0x8100
	etherQinQ = 0x88a8
)

type ip4opt struct {
	proto    byte
	options  []byte // a multiple of four
	fragment uint16 // flags and offset
}

func ip4(src string, o ip4opt, payload ...byte) []byte {
	h := make([]byte, 20, 20+len(o.options)+len(payload))
	h[0] = 0x40 | byte(5+len(o.options)/4)
	binary.BigEndian.PutUint16(h[2:], uint16(cap(h)))
	binary.BigEndian.PutUint16(h[6:], o.fragment)
	h[8], h[9] = 64, o.proto
	copy(h[12:], netip.MustParseAddr(src).AsSlice())
	copy(h[16:], []byte{192, 0, 2, 1})
	return slices.Concat(h, o.options, payload)
}

// ip6 is an IPv6 header and what follows it; next is the first header's
// number.
func ip6(src string, next byte, payload ...byte) []byte {
	h := make([]byte, 40, 40+len(payload))
	h[0] = 0x60
	binary.BigEndian.PutUint16(h[4:], uint16(len(payload)))
	h[6], h[7] = next, 64
	s := netip.MustParseAddr(src).As16()
	copy(h[8:], s[:])
	d := netip.MustParseAddr("2001:db8::1").As16()
	copy(h[24:], d[:])
	return append(h, payload...)
}

// ext is an extension header of eight bytes.
func ext(next byte, rest ...byte) []byte {
	h := make([]byte, 8)
	h[0] = next
	copy(h[2:], rest)
	return h
}

// l4 is the start of a TCP or UDP header.
func l4(dport uint16) []byte {
	h := make([]byte, 20)
	binary.BigEndian.PutUint16(h, 40000)
	binary.BigEndian.PutUint16(h[2:], dport)
	h[12], h[13] = 0x50, 0x02 // TCP: header length, SYN
	return h
}

func run(t testing.TB, p *ebpf.Program, frame []byte) uint32 {
	t.Helper()
	if len(frame) < 14 {
		frame = append(frame, make([]byte, 14-len(frame))...)
	}
	verdict, err := p.Run(&ebpf.RunOptions{Data: frame})
	if err != nil {
		t.Fatal(err)
	}
	return verdict
}
