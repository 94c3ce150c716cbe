package bpf

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// programV2 drops what its ban4 holds, and counts it there and in total, as the
// program of schema v2 did; IPv6 it drops altogether.
func programV2(t *testing.T, ban4, total *ebpf.Map) *ebpf.Program {
	t.Helper()
	ethertype := func(n uint16) int32 {
		return int32(binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, n)))
	}
	spec := &ebpf.ProgramSpec{
		Name: kernProgXdpban, Type: ebpf.XDP, AttachType: ebpf.AttachXDP, License: "GPL", Flags: unix.BPF_F_XDP_HAS_FRAGS,
		Instructions: asm.Instructions{
			asm.LoadMem(asm.R2, asm.R1, 0, asm.Word),
			asm.LoadMem(asm.R3, asm.R1, 4, asm.Word),
			asm.Mov.Reg(asm.R4, asm.R2), asm.Add.Imm(asm.R4, 34),
			asm.JGT.Reg(asm.R4, asm.R3, "pass"),
			asm.LoadMem(asm.R4, asm.R2, 12, asm.Half),
			asm.JEq.Imm(asm.R4, ethertype(etherIP6), "drop"),
			asm.JNE.Imm(asm.R4, ethertype(etherIP4), "pass"),
			asm.Mov.Reg(asm.R6, asm.R3), asm.Sub.Reg(asm.R6, asm.R2),
			asm.LoadMem(asm.R4, asm.R2, 26, asm.Word),
			asm.StoreMem(asm.R10, -4, asm.R4, asm.Word),
			asm.StoreImm(asm.R10, -8, 0, asm.Word),
			asm.LoadMapPtr(asm.R1, ban4.FD()),
			asm.Mov.Reg(asm.R2, asm.R10), asm.Add.Imm(asm.R2, -4),
			asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, "pass"),
			asm.Mov.Imm(asm.R1, 1),
			asm.AddAtomic.Mem(asm.R0, asm.R1, asm.DWord, 8),
			asm.AddAtomic.Mem(asm.R0, asm.R6, asm.DWord, 16),
			asm.LoadMapPtr(asm.R1, total.FD()),
			asm.Mov.Reg(asm.R2, asm.R10), asm.Add.Imm(asm.R2, -8),
			asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, "drop"),
			asm.Mov.Imm(asm.R1, 1),
			asm.AddAtomic.Mem(asm.R0, asm.R1, asm.DWord, 0),
			asm.AddAtomic.Mem(asm.R0, asm.R6, asm.DWord, 8),
			asm.Mov.Imm(asm.R0, xdpDrop).WithSymbol("drop"),
			asm.Return(),
			asm.Mov.Imm(asm.R0, xdpPass).WithSymbol("pass"),
			asm.Return(),
		},
	}
	_, err := fitFragments(spec)
	must(t, err)
	p, err := ebpf.NewProgram(spec)
	must(t, err)
	t.Cleanup(func() { p.Close() })
	return p
}

// pinV2 makes the pins that an xdpban of schema v2 leaves: two bans of each
// kind, counted, also in a map that it died while it replaced, and a program on
// an interface. It returns what that program has counted.
func pinV2(t *testing.T, dir, iface string) (counted func() Verdict) {
	t.Helper()
	v2 := filepath.Join(dir, v2Name)
	must(t, os.MkdirAll(filepath.Join(v2, "links"), 0o700))
	spec, err := loadKern()
	must(t, err)
	make := func(name string, s *ebpf.MapSpec) *ebpf.Map {
		m, err := ebpf.NewMap(s)
		must(t, err)
		t.Cleanup(func() { m.Close() })
		must(t, m.Pin(filepath.Join(v2, name)))
		return m
	}
	maps := map[string]*ebpf.Map{}
	for _, name := range []string{"allow4", "allow6", "verdicts", "jails", "ports", "pipeline", "events", "ifaces", "sieve"} {
		s := spec.Maps[name].Copy()
		if name == "allow4" || name == "allow6" {
			s.MaxEntries = 16
		}
		maps[name] = make(name, s)
	}
	must(t, maps["jails"].Put(uint32(1), kernJailName{Name: [64]int8{'s', 's', 'h', 'd'}}))
	must(t, maps["allow4"].Put(key4(pfx("198.51.100.7")), kernAllowed{Origin: [16]int8{'o', 'w', 'n'}}))
	end := uint64(now().mono) + uint64(time.Hour)
	for name, keySize := range map[string]uint32{"ban4": 4, "ban6": 16, "net4": 8, "net6": 20} {
		s := &ebpf.MapSpec{Type: ebpf.Hash, KeySize: keySize, ValueSize: 48, MaxEntries: 8192}
		maps[name] = make(name, s)
		grown := make(name+oldPin, s)
		for i, prefix := range map[string][]string{
			"ban4": {"192.0.2.2", peerEnd}, "ban6": {peerEnd6, "2001:db8::67"},
			"net4": {"198.51.100.0/24", "203.0.113.0/24"}, "net6": {"2001:db8:66::/48", "2001:db8:67::/48"},
		}[name] {
			p := pfx(prefix)
			var key any
			switch name {
			case "ban4":
				key = p.Addr().As4()
			case "ban6":
				key = p.Addr().As16()
			case "net4":
				key = key4(p)
			default:
				key = key6(p)
			}
			ban := v2Ban{Packets: 10, Bytes: 600, Since: 1700000000e9, Jail: 1}
			if i == 0 {
				ban.Expires = end &^ scopeMask
			}
			must(t, maps[name].Put(key, ban))
			ban.Packets, ban.Bytes = 2, 120
			must(t, grown.Put(key, ban))
		}
	}
	total, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 16, MaxEntries: 1})
	must(t, err)
	t.Cleanup(func() { total.Close() })
	dev, err := netlink.LinkByName(iface)
	must(t, err)
	l, err := link.AttachXDP(link.XDPOptions{Program: programV2(t, maps["ban4"], total), Interface: dev.Attrs().Index})
	must(t, err)
	must(t, l.Pin(filepath.Join(v2, "links", iface)))
	must(t, l.Close())
	must(t, make("meta", spec.Maps["meta"].Copy()).Put(uint32(0), kernMeta{
		Epoch: 7, MaxBans: 1 << 12, MaxNets: 1 << 10, Lens4: 1 << 24, Lens6: [2]uint64{1 << 48, 0}, Features: uint32(kernFeatureFEATURE_ALLOW4),
	}))
	return func() Verdict {
		var c kernCounter
		must(t, total.Lookup(uint32(0), &c))
		return Verdict{c.Packets, c.Bytes}
	}
}

// dyingMigration opens what schema v2 has left as Open does, and stops where it
// is told.
func dyingMigration(t *testing.T, dir string, die func(b *Blocklist, old *v2, steps []migrationStep)) {
	t.Helper()
	b := &Blocklist{dir: filepath.Join(dir, Schema)}
	defer b.Close()
	must(t, os.MkdirAll(b.dir, 0o700))
	var err error
	b.folder, err = os.Open(b.dir)
	must(t, err)
	b.spec, err = loadKern()
	must(t, err)
	for _, name := range []string{kernMapSieve, kernMapAllow4, kernMapAllow6} {
		b.spec.Maps[name].MaxEntries = 64
	}
	old, err := b.openV2()
	must(t, err)
	defer old.Close()
	must(t, b.openMaps(Options{}, old))
	die(b, old, b.migration(old))
}

// TestMigrate opens what an older schema has left, whole and after tries that
// died at each step, while the maps count: no ban is ever missing, and no count
// is lost or added twice.
func TestMigrate(t *testing.T) {
	until := func(n int) func(*testing.T, *Blocklist, *v2, []migrationStep) {
		return func(t *testing.T, _ *Blocklist, _ *v2, steps []migrationStep) {
			for _, s := range steps[:n] {
				must(t, s.do())
			}
		}
	}
	for _, d := range []struct {
		at  string
		die func(*testing.T, *Blocklist, *v2, []migrationStep)
	}{
		{"never", nil},
		{"before the first step", until(0)},
		{"while bans are copied", func(t *testing.T, b *Blocklist, old *v2, _ []migrationStep) {
			delete(old.maps, "net4")
			delete(old.maps, "ban4")
			must(t, b.copyBans(old))
		}},
		{"when the bans are copied", until(1)},
		{"when the links are moved", until(2)},
		{"when the programs are replaced", until(3)},
		{"while counts are taken over", func(t *testing.T, b *Blocklist, old *v2, steps []migrationStep) {
			until(3)(t, b, old, steps)
			delete(old.maps, "ban6")
			must(t, b.takeCounts(old))
		}},
		{"when the counts are taken over", until(4)},
		{"while the old pins are removed", func(t *testing.T, b *Blocklist, old *v2, steps []migrationStep) {
			until(4)(t, b, old, steps)
			must(t, os.Rename(old.dir, filepath.Join(filepath.Dir(old.dir), v2Gone)))
			must(t, os.Remove(filepath.Join(filepath.Dir(old.dir), v2Gone, "ban4")))
		}},
		{"at the end", until(5)},
	} {
		t.Run(d.at, func(t *testing.T) {
			v, dir := newVeth(t, "xdpt0"), bpffs(t)
			counted := pinV2(t, dir, v.name)
			end := v.flood(t)
			for range 2 {
				if d.die != nil && standsV2(dir) {
					dyingMigration(t, dir, func(b *Blocklist, old *v2, steps []migrationStep) { d.die(t, b, old, steps) })
				}
			}
			b := open(t, Options{Dir: dir})
			end()
			if b.Epoch() != 7 {
				t.Errorf("epoch %d: nothing has been interrupted", b.Epoch())
			}
			all, outcomes := entriesAndOutcomes(t, b)
			var sum Verdict
			for _, e := range all {
				endless := e.Prefix == pfx(peerEnd) || e.Prefix == pfx("2001:db8::67") || e.Prefix == pfx("203.0.113.0/24") || e.Prefix == pfx("2001:db8:67::/48")
				if e.Jail != "sshd" || !e.Since.Equal(time.Unix(1700000000, 0)) || e.Until.IsZero() != endless || e.Packets < 12 {
					t.Errorf("%+v", e)
				}
				sum.Packets += e.Packets - 12
				sum.Bytes += e.Bytes - 720
			}
			if len(all) != 8 {
				t.Errorf("%d entries: %v", len(all), all)
			}
			before, after := counted(), outcomes[DroppedBan]
			if want := (Verdict{before.Packets + after.Packets, before.Bytes + after.Bytes}); sum != want || before.Packets == 0 {
				t.Errorf("counted %+v, dropped %+v: %+v before and %+v after it", sum, want, before, after)
			}
			p := program(t, b)
			for what, f := range map[string][]byte{"an address": from4(peerEnd), "a subnet": from4("203.0.113.1"), "an IPv6 address": from6("2001:db8::67"), "an IPv6 subnet": from6("2001:db8:67::1")} {
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
			for _, name := range []string{v2Name, v2Gone} {
				if _, err := os.Stat(filepath.Join(dir, name)); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("the old folder: %v", err)
				}
			}
		})
	}
}

func standsV2(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, v2Name))
	return err == nil
}
