package bpf

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cilium/ebpf"
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

	var servers []net.PacketConn
	stop, done := make(chan struct{}), make(chan [2]uint64)
	sent := [2]uint64{}
	for i, addr := range []string{hostEnd, hostEnd6} {
		server, err := net.ListenPacket("udp", net.JoinHostPort(addr, "0"))
		must(t, err)
		defer server.Close()
		servers = append(servers, server)
		var client net.Conn
		v.inPeer(t, func() { client, err = net.Dial("udp", server.LocalAddr().String()) })
		must(t, err)
		defer client.Close()
		go func() {
			var n [2]uint64
			for {
				select {
				case <-stop:
					done <- n
					return
				default:
					if _, err := client.Write([]byte("flood")); err == nil {
						n[i]++
					}
				}
			}
		}()
	}
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
	close(stop)
	for range servers {
		n := <-done
		sent[0] += n[0]
		sent[1] += n[1]
	}
	for i, server := range servers {
		server.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		if _, _, err := server.ReadFrom(make([]byte, 16)); err == nil {
			t.Errorf("a packet came through to server %d", i)
		}
	}
	// The verdicts are counted in a map that isn't replaced. What was sent
	// need not have arrived: a veth drops what its queue has no room for.
	counted := outcomesOf(t, b)
	for p, o := range map[string]Outcome{peerEnd: DroppedBan, "2001:db8::/64": DroppedNet} {
		if e, _ := find(t, other, p); (Verdict{e.Packets, e.Bytes}) != counted[o] {
			t.Errorf("%s: counts %d packets, %d bytes; dropped were %+v", p, e.Packets, e.Bytes, counted[o])
		}
	}
	t.Logf("sent %v", sent)
	if names, err := filepath.Glob(filepath.Join(dir, Schema, "*-*")); err != nil || len(names) > 0 {
		t.Errorf("left behind: %v", names)
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

// TestResizeCutShort leaves pins as a process that dies in the middle of a
// replacement does.
func TestResizeCutShort(t *testing.T) {
	for _, killed := range []string{"before the new map has the name", "between two maps", "before the program was replaced"} {
		t.Run(killed, func(t *testing.T) {
			dir := bpffs(t)
			b := open(t, Options{Dir: dir})
			v := newVeth(t, "xdpt0")
			_, err := b.Attach(v.name, ModeAuto)
			must(t, err)
			mustAdd(t, b, forever(peerEnd))
			v.reaches(t, hostEnd, 50*time.Millisecond)
			was, _ := find(t, b, peerEnd)

			set := b.maps.Load()
			for name, from := range map[string]*ebpf.Map{kernMapBan4: set.Ban4, kernMapNet4: set.Net4} {
				spec := b.spec.Maps[name].Copy()
				spec.MaxEntries = 2 * from.MaxEntries()
				m, _, err := openMap(b.pin(name+newPin), spec, false)
				must(t, err)
				must(t, copyMap(from, m))
				must(t, m.Close())
			}
			swap := func(name string) {
				must(t, os.Link(b.pin(name), b.pin(name+oldPin)))
				must(t, os.Rename(b.pin(name+newPin), b.pin(name)))
			}
			switch killed {
			case "before the new map has the name":
				must(t, os.Link(b.pin(kernMapBan4), b.pin(kernMapBan4+oldPin)))
			case "between two maps":
				swap(kernMapBan4)
			default:
				swap(kernMapBan4)
				swap(kernMapNet4)
			}

			again := open(t, Options{Dir: dir})
			e, ok := find(t, again, peerEnd)
			if !ok || e.Packets < was.Packets || e.Jail != "test" {
				t.Errorf("entry %+v, %v; was %+v", e, ok, was)
			}
			if v.reaches(t, hostEnd, 100*time.Millisecond) {
				t.Error("the banned one gets through")
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
