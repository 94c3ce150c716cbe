package bpf

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
)

// pinV1 makes the pins that an xdpban of schema v1 leaves: two bans of each
// kind for ever, counted in both places, and a program on an interface.
func pinV1(t *testing.T, dir, iface string) {
	t.Helper()
	v1 := filepath.Join(dir, "v1")
	must(t, os.MkdirAll(filepath.Join(v1, "links"), 0o700))
	spec, err := loadKern()
	must(t, err)
	make := func(name string, s *ebpf.MapSpec) *ebpf.Map {
		m, err := ebpf.NewMap(s)
		must(t, err)
		t.Cleanup(func() { m.Close() })
		must(t, m.Pin(filepath.Join(v1, name)))
		return m
	}
	same := map[string]*ebpf.Map{}
	for _, name := range []string{"allow4", "allow6", "verdicts", "jails", "ports", "pipeline", "events", "ifaces", "meta"} {
		s := spec.Maps[name].Copy()
		if name == "allow4" || name == "allow6" {
			s.MaxEntries = 16
		}
		same[name] = make(name, s)
	}
	must(t, same["meta"].Put(uint32(0), kernMeta{Epoch: 7, MaxBans: 1 << 12, MaxNets: 1 << 10, Lens4: 1 << 24, Lens6: [2]uint64{1 << 48, 0}, Features: uint32(kernFeatureFEATURE_ALLOW4)}))
	must(t, same["jails"].Put(uint32(1), kernJailName{Name: [64]int8{'s', 's', 'h', 'd'}}))
	must(t, same["allow4"].Put(key4(pfx("198.51.100.7")), kernAllowed{Origin: [16]int8{'o', 'w', 'n'}}))
	origins := map[bool]*ebpf.Map{
		true:  make("origin4", &ebpf.MapSpec{Type: ebpf.Hash, KeySize: 8, ValueSize: 40, MaxEntries: 64, Flags: 1}),
		false: make("origin6", &ebpf.MapSpec{Type: ebpf.Hash, KeySize: 20, ValueSize: 40, MaxEntries: 64, Flags: 1}),
	}
	for name, keySize := range map[string]uint32{"ban4": 4, "ban6": 16, "net4": 8, "net6": 20} {
		m := make(name, &ebpf.MapSpec{Type: ebpf.PerCPUHash, KeySize: keySize, ValueSize: 24, MaxEntries: 64})
		for _, prefix := range map[string][]string{
			"ban4": {"192.0.2.2", "192.0.2.66"}, "ban6": {"2001:db8::66", "2001:db8::67"},
			"net4": {"198.51.100.0/24", "203.0.113.0/24"}, "net6": {"2001:db8:66::/48", "2001:db8:67::/48"},
		}[name] {
			p := pfx(prefix)
			var key, originKey any
			switch name {
			case "ban4":
				key, originKey = p.Addr().As4(), key4(p)
			case "ban6":
				key, originKey = p.Addr().As16(), key6(p)
			case "net4":
				key, originKey = key4(p), key4(p)
			default:
				key, originKey = key6(p), key6(p)
			}
			cpus := []v1Ban{}
			for range ebpf.MustPossibleCPU() {
				cpus = append(cpus, v1Ban{Packets: 1, Bytes: 60})
			}
			must(t, m.Put(key, cpus))
			must(t, origins[p.Addr().Is4()].Put(originKey, v1Origin{Since: 1700000000e9, Packets: 10, Bytes: 600, Jail: 1}))
		}
	}
	dev, err := netlink.LinkByName(iface)
	must(t, err)
	l, err := link.AttachXDP(link.XDPOptions{Program: returns(t, xdpDrop), Interface: dev.Attrs().Index})
	must(t, err)
	must(t, l.Pin(filepath.Join(v1, "links", iface)))
	must(t, l.Close())
}

// TestMigrate opens what an older schema has left, whole and after another
// try that ended half way.
func TestMigrate(t *testing.T) {
	for _, before := range []string{"whole", "the maps are shared", "the links have moved"} {
		t.Run(before, func(t *testing.T) {
			v, dir := newVeth(t, "xdpt0"), bpffs(t)
			pinV1(t, dir, v.name)
			old, here := filepath.Join(dir, "v1"), filepath.Join(dir, Schema)
			switch before {
			case "the maps are shared":
				must(t, os.Mkdir(here, 0o700))
				must(t, os.Link(filepath.Join(old, "meta"), filepath.Join(here, "meta")))
			case "the links have moved":
				must(t, os.MkdirAll(filepath.Join(here, "links"), 0o700))
				must(t, os.Rename(filepath.Join(old, "links", v.name), filepath.Join(here, "links", v.name)))
			}
			b := open(t, Options{Dir: dir})
			if b.Epoch() != 7 {
				t.Errorf("epoch %d: nothing has been interrupted", b.Epoch())
			}
			entries := list(t, b)
			n := uint64(ebpf.MustPossibleCPU()) + 10
			for _, e := range entries {
				if e.Jail != "sshd" || !e.Since.Equal(time.Unix(1700000000, 0)) || !e.Until.IsZero() || e.Packets != n || e.Bytes != 60*n {
					t.Errorf("%+v; want %d packets", e, n)
				}
			}
			if len(entries) != 8 {
				t.Errorf("%d entries: %v", len(entries), entries)
			}
			p := program(t, b)
			for what, f := range map[string][]byte{"an address": from4("192.0.2.66"), "a subnet": from4("203.0.113.1"), "an IPv6 address": from6("2001:db8::66"), "an IPv6 subnet": from6("2001:db8:67::1")} {
				if run(t, p, f) != xdpDrop {
					t.Errorf("%s isn't dropped", what)
				}
			}
			if run(t, p, from4("198.51.100.7")) != xdpPass {
				t.Error("the allowlist is lost")
			}
			// The interface has our program: it drops the peer until that
			// is unbanned.
			if at, err := b.Attachments(); err != nil || len(at) != 1 || at[0].Interface != v.name || at[0].Severed {
				t.Errorf("attachments %+v, %v", at, err)
			}
			if v.reaches(t, hostEnd, 50*time.Millisecond) {
				t.Error("the banned peer gets through")
			}
			if _, ok, err := b.Remove(pfx(peerEnd)); !ok || err != nil {
				t.Errorf("unban %s: %v, %v", peerEnd, ok, err)
			}
			if !v.reaches(t, hostEnd, 5*time.Second) {
				t.Error("the old program is still there")
			}
			if _, err := os.Stat(old); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the old folder: %v", err)
			}
		})
	}
}
