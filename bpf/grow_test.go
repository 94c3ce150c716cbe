package bpf

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestGrowUnderFlood grows and resizes the maps time and again while a banned
// source and one in a banned subnet flood: nothing may come through, and no
// count may be lost.
func TestGrowUnderFlood(t *testing.T) {
	v := newVeth(t, "xdpt0")
	dir := bpffs(t)
	b := open(t, Options{Dir: dir, MaxBans: 1 << 16, MaxNets: 1 << 12})
	_, err := b.Attach(v.name, ModeNative)
	must(t, err)
	mustAdd(t, b, forever(peerEnd), forever("2001:db8::/64"))

	end := v.flood(t)
	other := open(t, Options{Dir: dir, MustExist: true}) // as another process
	for round := range 3 {
		many := make([]Ban, 10_000)
		for i := range many {
			many[i] = forever(fmt.Sprintf("10.%d.%d.%d", round, i>>8, i&255))
		}
		mustAdd(t, b, many...)
		nets := make([]Ban, 2000)
		for i := range nets {
			nets[i] = forever(fmt.Sprintf("2001:db8:%x:%x::/64", 1+round, i))
		}
		mustAdd(t, b, nets...)
		if c, err := b.Capacity(); err != nil || c.MaxBans < 10_000 || c.MaxNets < 2000 {
			t.Errorf("capacity %+v, %v", c, err)
		}
		if n := len(list(t, other)); n != 12_002 {
			t.Errorf("another process sees %d entries", n)
		}
		must(t, b.Sync([]Ban{forever(peerEnd), forever("2001:db8::/64")}))
		must(t, b.Resize(Limits{MaxBans: 64, MaxNets: 64}))
		if c, err := b.Capacity(); err != nil || c.MaxBans != 64 || c.MaxNets != 64 {
			t.Errorf("capacity %+v, %v", c, err)
		}
		must(t, b.Resize(Limits{MaxBans: 1 << 16, MaxNets: 1 << 12}))
	}
	end()
	// The verdicts are counted in a map that isn't replaced. What was sent
	// need not have arrived: a veth drops what its queue has no room for.
	all, counted := entriesAndOutcomes(t, b)
	for p, o := range map[string]Outcome{peerEnd: DroppedBan, "2001:db8::/64": DroppedNet} {
		if e := all[pfx(p)]; (Verdict{e.Packets, e.Bytes}) != counted[o] {
			t.Errorf("%s: counts %d packets, %d bytes; dropped were %+v", p, e.Packets, e.Bytes, counted[o])
		}
	}
	if names, err := filepath.Glob(filepath.Join(dir, Schema, "*-*")); err != nil || len(names) > 0 {
		t.Errorf("left behind: %v", names)
	}
}

// flood has the banned peer send what it can, over IPv4 and IPv6, until the
// end: nothing may come through.
func (v *veth) flood(t *testing.T) (end func()) {
	t.Helper()
	var servers []net.PacketConn
	stop, done := make(chan struct{}), make(chan struct{})
	for _, addr := range []string{hostEnd, hostEnd6} {
		server, err := net.ListenPacket("udp", net.JoinHostPort(addr, "0"))
		must(t, err)
		t.Cleanup(func() { server.Close() })
		servers = append(servers, server)
		var client net.Conn
		v.inPeer(t, func() { client, err = net.Dial("udp", server.LocalAddr().String()) })
		must(t, err)
		t.Cleanup(func() { client.Close() })
		go func() {
			defer func() { done <- struct{}{} }()
			for n := 1; ; n++ {
				select {
				case <-stop:
					return
				default:
					client.Write([]byte("flood"))
				}
				if n%32 == 0 { // who is flooded needs a processor, too
					time.Sleep(100 * time.Microsecond)
				}
			}
		}()
	}
	return func() {
		t.Helper()
		close(stop)
		for i, server := range servers {
			<-done
			server.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
			if _, _, err := server.ReadFrom(make([]byte, 16)); err == nil {
				t.Errorf("a packet came through to server %d", i)
			}
		}
	}
}

// entriesAndOutcomes reads both from between two packets: neighbours look for
// each other also without a flood.
func entriesAndOutcomes(t *testing.T, b *Blocklist) (map[netip.Prefix]Entry, map[Outcome]Verdict) {
	t.Helper()
	for {
		before, all := outcomesOf(t, b), map[netip.Prefix]Entry{}
		for _, e := range list(t, b) {
			all[e.Prefix] = e
		}
		if maps.Equal(before, outcomesOf(t, b)) {
			return all, before
		}
	}
}

func TestResize(t *testing.T) {
	b := open(t, Options{MaxBans: 128, MaxNets: 16})
	for i := range 100 {
		mustAdd(t, b, forever(fmt.Sprintf("192.0.2.%d", i)))
	}
	if err := b.Resize(Limits{MaxBans: 99}); !errors.Is(err, ErrFull) {
		t.Errorf("smaller than what it holds: %v", err)
	}
	must(t, b.Resize(Limits{MaxBans: 100}))
	if l, err := b.Limits(); err != nil || l != (Limits{100, 16}) {
		t.Errorf("limits %+v, %v", l, err)
	}
	if err := b.Add(forever("192.0.2.200")); !errors.Is(err, ErrFull) {
		t.Errorf("above the limit: %v", err)
	}
	must(t, b.Resize(Limits{MaxBans: 1000}))
	mustAdd(t, b, forever("192.0.2.200"))
	if n := len(list(t, b)); n != 101 {
		t.Errorf("%d entries", n)
	}
}

// TestResizeCutShort dies at each step of a replacement, while the maps count.
// Whoever has the set open, or opens it next, goes on where that was: no ban is
// missing, and no count is lost or added twice.
func TestResizeCutShort(t *testing.T) {
	deaths := []struct {
		at  string
		die func(t *testing.T, b *Blocklist, set *mapSet, names []string, meta kernMeta)
	}{
		{"before a new map has the name", func(t *testing.T, b *Blocklist, _ *mapSet, names []string, _ kernMeta) {
			must(t, os.Link(b.pin(names[0]), b.pin(names[0]+oldPin)))
		}},
		{"between two maps", func(t *testing.T, b *Blocklist, _ *mapSet, names []string, _ kernMeta) {
			must(t, b.swap(names[0]))
		}},
		{"before the program is replaced", func(t *testing.T, b *Blocklist, _ *mapSet, names []string, _ kernMeta) {
			for _, name := range names {
				must(t, b.swap(name))
			}
		}},
		{"before the counts are added", func(t *testing.T, b *Blocklist, set *mapSet, names []string, meta kernMeta) {
			for _, name := range names {
				must(t, b.swap(name))
			}
			b.maps.Store(set)
			must(t, b.reload(meta))
		}},
		{"when the counts are added", func(t *testing.T, b *Blocklist, set *mapSet, names []string, meta kernMeta) {
			for _, name := range names {
				must(t, b.swap(name))
				must(t, os.Link(b.pin(name+oldPin), b.pin(name+"_kept")))
			}
			b.maps.Store(set)
			must(t, b.reload(meta))
			must(t, b.settle())
			for _, name := range names {
				must(t, os.Rename(b.pin(name+"_kept"), b.pin(name+oldPin)))
			}
		}},
		{"while the old pins are removed", func(t *testing.T, b *Blocklist, set *mapSet, names []string, meta kernMeta) {
			for _, name := range names {
				must(t, b.swap(name))
				must(t, os.Link(b.pin(name+oldPin), b.pin(name+"_kept")))
			}
			b.maps.Store(set)
			must(t, b.reload(meta))
			must(t, b.settle())
			for _, name := range names {
				if name == kernMapBan4 {
					must(t, os.Remove(b.pin(name+"_kept")))
				} else {
					must(t, os.Rename(b.pin(name+"_kept"), b.pin(name+oldPin)))
				}
			}
		}},
	}
	for _, d := range deaths {
		for _, next := range []string{"who has it open", "who opens it"} {
			t.Run(d.at+", "+next, func(t *testing.T) {
				dir, v := bpffs(t), newVeth(t, "xdpt0")
				b, other := open(t, Options{Dir: dir}), open(t, Options{Dir: dir})
				_, err := b.Attach(v.name, ModeAuto)
				must(t, err)
				mustAdd(t, b, forever(peerEnd), forever("2001:db8::/64"))
				end := v.flood(t)

				_, unlock, err := b.lock()
				must(t, err)
				meta, err := b.readMeta()
				must(t, err)
				meta.Replacing = 1
				must(t, b.writeMeta(meta))
				set, names, err := b.makeReplacements(map[int]uint32{0: 1 << 13, 1: 1 << 13, 2: 1 << 11, 3: 1 << 11}, meta)
				must(t, err)
				d.die(t, b, set, names, meta)
				unlock()

				if next == "who opens it" {
					other = open(t, Options{Dir: dir})
				}
				mustAdd(t, other, forever("192.0.2.200"))
				end()
				again := open(t, Options{Dir: dir})
				all, counted := entriesAndOutcomes(t, again)
				if counted[DroppedBan].Packets == 0 || counted[DroppedNet].Packets == 0 {
					t.Errorf("nothing dropped: %v", counted)
				}
				for p, o := range map[string]Outcome{peerEnd: DroppedBan, "2001:db8::/64": DroppedNet} {
					if e := all[pfx(p)]; (Verdict{e.Packets, e.Bytes}) != counted[o] || e.Jail != "test" {
						t.Errorf("%+v; dropped were %+v", e, counted[o])
					}
				}
				if _, ok := all[pfx("192.0.2.200")]; !ok {
					t.Error("what was banned after it is lost")
				}
				if m, err := again.readMeta(); err != nil || m.Replacing != 0 {
					t.Errorf("meta %+v, %v", m, err)
				}
				if _, ok, err := again.Remove(pfx(peerEnd)); !ok || err != nil {
					t.Error(ok, err)
				}
				if !v.reaches(t, hostEnd, 5*time.Second) {
					t.Error("the program reads other maps than the pinned ones")
				}
				if names, err := filepath.Glob(filepath.Join(dir, Schema, "*-*")); err != nil || len(names) > 0 {
					t.Errorf("left behind: %v", names)
				}
			})
		}
	}
}
