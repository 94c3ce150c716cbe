package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"
)

func until(s string, d time.Duration) Ban {
	ban := forever(s)
	ban.Until = time.Now().Add(d)
	return ban
}

var (
	from4 = func(a string) []byte { return frame(eth(etherIP4), ip4(a, ip4opt{proto: tcp}, l4(22)...)) }
	from6 = func(a string) []byte { return frame(eth(etherIP6), ip6(a, tcp, l4(22)...)) }
)

// waitPass sends a frame until it passes: the kernel's clock decides when.
func waitPass(t *testing.T, p *ebpf.Program, f []byte) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); run(t, p, f) != xdpPass; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("still dropped")
		}
	}
}

func TestBanEndsInTheKernel(t *testing.T) {
	for _, tt := range []struct {
		prefix string
		frame  []byte
	}{
		{"192.0.2.66", from4("192.0.2.66")},
		{"198.51.100.0/24", from4("198.51.100.1")},
		{"2001:db8::66", from6("2001:db8::66")},
		{"2001:db8:66::/48", from6("2001:db8:66::1")},
	} {
		b := open(t, Options{})
		// Loading the program may take longer than the ban is to last.
		mustAdd(t, b, forever(tt.prefix))
		p := program(t, b)
		ban := until(tt.prefix, time.Second)
		mustAdd(t, b, ban)
		if run(t, p, tt.frame) != xdpDrop {
			t.Fatalf("%s: not dropped", tt.prefix)
		}
		waitPass(t, p, tt.frame)
		// The coarse clock is late by up to a tick, never early.
		if early := time.Until(ban.Until); early > time.Millisecond {
			t.Errorf("%s: ended %s early", tt.prefix, early)
		}
		if l := list(t, b); len(l) > 0 {
			t.Errorf("%s: listed after its end: %v", tt.prefix, l)
		}
		if e, ok, err := b.Remove(pfx(tt.prefix)); ok || err != nil || e.Packets < 1 || e.Jail != "test" {
			t.Errorf("%s: removed after its end: %+v, %v, %v", tt.prefix, e, ok, err)
		}
		mustAdd(t, b, until(tt.prefix, time.Nanosecond))
		swept, err := b.Sweep()
		if err != nil || len(swept) != 1 || swept[0].Prefix != pfx(tt.prefix) {
			t.Errorf("%s: swept %v, %v", tt.prefix, swept, err)
		}
		if swept, err = b.Sweep(); err != nil || len(swept) != 0 {
			t.Errorf("%s: swept again %v, %v", tt.prefix, swept, err)
		}
	}
}

func TestSweepReturnsLastCounts(t *testing.T) {
	b := open(t, Options{})
	mustAdd(t, b, forever("192.0.2.66"), forever("192.0.2.67"))
	p, f := program(t, b), from4("192.0.2.66")
	mustAdd(t, b, until("192.0.2.66", time.Second))
	if run(t, p, f) != xdpDrop {
		t.Fatal("not dropped")
	}
	waitPass(t, p, f)
	swept, err := b.Sweep()
	if err != nil || len(swept) != 1 || swept[0].Packets < 1 || swept[0].Jail != "test" {
		t.Fatalf("swept %+v, %v", swept, err)
	}
	if l := list(t, b); len(l) != 1 || l[0].Prefix != pfx("192.0.2.67") {
		t.Errorf("left: %v", l)
	}
}

// TestEndedSubnetHidesNothing is what an LPM trie gets wrong.
func TestEndedSubnetHidesNothing(t *testing.T) {
	for _, tt := range []struct {
		narrow, wide string
		frame        []byte
	}{
		{"198.51.100.0/24", "198.51.0.0/16", from4("198.51.100.1")},
		{"198.51.100.1", "198.51.100.0/24", from4("198.51.100.1")},
		{"2001:db8:66::/48", "2001:db8::/32", from6("2001:db8:66::1")},
		{"2001:db8:66::1", "2001:db8:66::/64", from6("2001:db8:66::1")},
	} {
		b := open(t, Options{})
		mustAdd(t, b, until(tt.narrow, 50*time.Millisecond), forever(tt.wide))
		p := program(t, b)
		for deadline := time.Now().Add(10 * time.Second); ; {
			if run(t, p, tt.frame) != xdpDrop {
				t.Fatalf("%s in %s: let through", tt.narrow, tt.wide)
			}
			if e, ok := find(t, b, tt.wide); ok && e.Packets > 0 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s still counts in place of %s", tt.narrow, tt.wide)
			}
		}
	}
}

func TestAddKeepsCounts(t *testing.T) {
	for prefix, f := range map[string][]byte{"192.0.2.66": from4("192.0.2.66"), "2001:db8:66::/48": from6("2001:db8:66::1")} {
		b := open(t, Options{})
		mustAdd(t, b, until(prefix, time.Hour))
		p := program(t, b)
		for range 5 {
			run(t, p, f)
		}
		longer := until(prefix, 2*time.Hour)
		longer.Jail, longer.Since = "other", time.Unix(1700000001, 5)
		mustAdd(t, b, longer)
		run(t, p, f)
		e, _ := find(t, b, prefix)
		if e.Packets != 6 || e.Bytes != 6*uint64(len(f)) {
			t.Errorf("%s: counts %d packets, %d bytes", prefix, e.Packets, e.Bytes)
		}
		if e.Jail != "other" || !e.Since.Equal(longer.Since) || !e.Until.Equal(longer.Until) {
			t.Errorf("%s: %+v, want %+v", prefix, e.Ban, longer)
		}
		// Shortened to now, it ends.
		mustAdd(t, b, until(prefix, -time.Second))
		waitPass(t, p, f)
		mustAdd(t, b, forever(prefix))
		if run(t, p, f) != xdpDrop {
			t.Errorf("%s: not dropped after an end that was taken back", prefix)
		}
		if e, ok := find(t, b, prefix); !ok || !e.Until.IsZero() {
			t.Errorf("%s: %+v, want no end", prefix, e)
		}
	}
}

// TestLengthenUnderFire changes a ban's end while it counts, on all CPUs: no
// count may be lost.
func TestLengthenUnderFire(t *testing.T) {
	needLinux(t, 5, 19, "changing every CPU's end in place")
	b := open(t, Options{})
	for prefix, f := range map[string][]byte{"192.0.2.66": from4("192.0.2.66"), "198.51.100.0/24": from4("198.51.100.1"),
		"2001:db8::66": from6("2001:db8::66"), "2001:db8:66::/48": from6("2001:db8:66::1")} {
		mustAdd(t, b, until(prefix, time.Hour))
		p := program(t, b)
		stop, done := make(chan struct{}), make(chan uint64)
		shooters := max(runtime.NumCPU(), 2)
		for range shooters {
			go func() {
				n := uint64(0)
				for {
					select {
					case <-stop:
						done <- n
						return
					default:
					}
					// One packet a system call: a run of many is cut off by
					// a signal, such as Go's own to a goroutine, and begun
					// again, and then the map has counted more than we know.
					if v, err := p.Run(&ebpf.RunOptions{Data: f}); err != nil || v != xdpDrop {
						t.Errorf("%s: verdict %d, %v", prefix, v, err)
					}
					n++
				}
			}()
		}
		for i := range 500 {
			mustAdd(t, b, until(prefix, time.Hour+time.Duration(i)*time.Second))
		}
		close(stop)
		sent := uint64(0)
		for range shooters {
			sent += <-done
		}
		if e, _ := find(t, b, prefix); e.Packets != sent {
			t.Errorf("%s: %d packets counted of %d", prefix, e.Packets, sent)
		}
	}
}

func TestAddTwiceInABatch(t *testing.T) {
	b := open(t, Options{})
	last := until("192.0.2.66", 2*time.Hour)
	mustAdd(t, b, until("192.0.2.66", time.Hour), forever("192.0.2.67"), last)
	if e, _ := find(t, b, "192.0.2.66"); !e.Until.Equal(last.Until) {
		t.Errorf("ends %s, want %s", e.Until, last.Until)
	}
	if n := len(list(t, b)); n != 2 {
		t.Errorf("%d entries", n)
	}
}

// TestEveryCPUCounts sends a packet from each CPU: the sum is what the entry
// shows, whichever CPU a later change comes from.
func TestEveryCPUCounts(t *testing.T) {
	b := open(t, Options{})
	mustAdd(t, b, forever("192.0.2.66"))
	p, f := program(t, b), from4("192.0.2.66")
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var all unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		t.Fatal(err)
	}
	defer unix.SchedSetaffinity(0, &all)
	sent := uint64(0)
	for cpu := range runtime.NumCPU() {
		if !all.IsSet(cpu) {
			continue
		}
		var one unix.CPUSet
		one.Set(cpu)
		if err := unix.SchedSetaffinity(0, &one); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			run(t, p, f)
			sent++
		}
		mustAdd(t, b, until("192.0.2.66", time.Hour))
	}
	if e, _ := find(t, b, "192.0.2.66"); e.Packets != sent {
		t.Errorf("%d packets, want %d", e.Packets, sent)
	}
	if c, err := b.Counts(); err != nil || c["XDP_DROP"].Packets != sent {
		t.Errorf("Counts: %v, %v", c, err)
	}
}

// TestManyCPUs has the verifier follow write_bans over all CPUs of a large
// machine.
func TestManyCPUs(t *testing.T) {
	needLinux(t, 5, 19, "reaching every CPU's value")
	b := open(t, Options{})
	for _, table := range b.maps.Load().tables {
		if table, ok := table.(*bans[kernPrefix6, kernPrefix6]); ok {
			table.cpus = 1024
			must(t, table.load(table.writer))
		}
	}
}

func TestReopenKeepsEverything(t *testing.T) {
	dir := bpffs(t)
	b := open(t, Options{Dir: dir})
	bans := []Ban{until("192.0.2.66", time.Hour), forever("198.51.100.0/24"), forever("2001:db8::66"), until("2001:db8:66::/48", time.Hour)}
	mustAdd(t, b, bans...)
	if err := b.SetAllow(Allow{pfx("198.51.100.7"), "own"}); err != nil {
		t.Fatal(err)
	}
	run(t, program(t, b), from4("198.51.100.1"))
	before, epoch := list(t, b), b.Epoch()
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}

	b = open(t, Options{Dir: dir, MustExist: true})
	if epoch == 0 || b.Epoch() != epoch {
		t.Errorf("epoch %d, was %d", b.Epoch(), epoch)
	}
	if after := list(t, b); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("entries\n%v, were\n%v", after, before)
	}
	p := program(t, b)
	for f, want := range map[string]uint32{
		string(from4("192.0.2.66")): xdpDrop, string(from4("198.51.100.1")): xdpDrop,
		string(from4("198.51.100.7")): xdpPass, string(from6("2001:db8:66::1")): xdpDrop,
	} {
		if got := run(t, p, []byte(f)); got != want {
			t.Errorf("verdict %d, want %d: %x", got, want, f)
		}
	}

	if err := os.Remove(filepath.Join(dir, Schema, "ban4")); err != nil {
		t.Fatal(err)
	}
	if again := open(t, Options{Dir: dir}); again.Epoch() == epoch {
		t.Error("a set that has lost a map keeps its epoch")
	}
}

func TestRemove(t *testing.T) {
	b := open(t, Options{})
	mustAdd(t, b, forever("192.0.2.66"), forever("192.0.2.0/24"))
	p, f := program(t, b), from4("192.0.2.66")
	run(t, p, f)
	if _, ok, err := b.Remove(pfx("192.0.2.64/26")); ok || err != nil {
		t.Errorf("removed a prefix that isn't there: %v, %v", ok, err)
	}
	e, ok, err := b.Remove(pfx("192.0.2.66"))
	if !ok || err != nil || e.Packets != 1 || e.Jail != "test" {
		t.Errorf("removed %+v, %v, %v", e, ok, err)
	}
	if run(t, p, f) != xdpDrop {
		t.Error("the subnet that still covers it lets it through")
	}
	if _, ok, err := b.Remove(pfx("::ffff:192.0.2.0/120")); !ok || err != nil {
		t.Errorf("the subnet written as IPv6: %v, %v", ok, err)
	}
	if run(t, p, f) != xdpPass {
		t.Error("still dropped")
	}
}

func TestCovering(t *testing.T) {
	b := open(t, Options{})
	mustAdd(t, b, forever("192.0.2.66"), forever("192.0.2.0/24"), until("192.0.0.0/16", -time.Second), forever("192.0.0.0/8"), forever("192.0.3.0/24"),
		forever("2001:db8::66"), forever("2001:db8::/32"))
	for addr, want := range map[string]string{
		"192.0.2.66": "192.0.2.66/32 192.0.2.0/24 192.0.0.0/8", "192.0.2.67": "192.0.2.0/24 192.0.0.0/8",
		"192.0.2.0/24": "192.0.2.0/24 192.0.0.0/8", "198.51.100.1": "", "::ffff:192.0.2.66": "192.0.2.66/32 192.0.2.0/24 192.0.0.0/8",
		"2001:db8::66": "2001:db8::66/128 2001:db8::/32", "2001:db8::/48": "2001:db8::/32", "2001:db9::": "",
	} {
		entries, err := b.Covering(pfx(addr))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, e := range entries {
			got = append(got, e.Prefix.String())
		}
		if s := strings.Join(got, " "); s != want {
			t.Errorf("%s is covered by %q, want %q", addr, s, want)
		}
	}
}

func TestSync(t *testing.T) {
	b := open(t, Options{})
	end := until("192.0.2.3", time.Hour)
	mustAdd(t, b, forever("192.0.2.1"), forever("192.0.2.2"), until("192.0.2.3", time.Minute), forever("198.51.100.0/24"),
		forever("2001:db8::1"), forever("2001:db8:66::/48"), until("192.0.2.9", -time.Second))
	p := program(t, b)
	for _, a := range []string{"192.0.2.2", "192.0.2.3"} {
		run(t, p, from4(a))
	}
	want := []Ban{forever("192.0.2.2"), end, forever("192.0.2.4"), forever("198.51.100.0/25"), forever("2001:db8::1"), forever("2001:db8::/48")}
	if err := b.Sync(want); err != nil {
		t.Fatal(err)
	}
	got := list(t, b)
	if len(got) != len(want) {
		t.Errorf("%d entries, want %d: %v", len(got), len(want), got)
	}
	for _, w := range want {
		e, ok := find(t, b, w.Prefix.String())
		if !ok || e.Jail != w.Jail || !e.Since.Equal(w.Since) || !e.Until.Equal(w.Until) {
			t.Errorf("%+v, want %+v", e, w)
		}
	}
	for _, a := range []string{"192.0.2.2", "192.0.2.3"} {
		if e, _ := find(t, b, a); e.Packets != 1 {
			t.Errorf("%s: %d packets, want 1", a, e.Packets)
		}
	}
	if swept, err := b.Sweep(); err != nil || len(swept) != 1 || swept[0].Prefix != pfx("192.0.2.9") {
		t.Errorf("ended before Sync: %v, %v", swept, err)
	}
	if err := b.Sync(nil); err != nil || len(list(t, b)) != 0 {
		t.Errorf("Sync(nil): %v, left %v", err, list(t, b))
	}
}

// TestSyncIsSeamless hits a source that is in both sets all the while: once
// by address, once by a subnet that takes the address's place.
func TestSyncIsSeamless(t *testing.T) {
	b := open(t, Options{})
	sets := [][]Ban{{forever("192.0.2.66")}, {forever("192.0.2.0/24")}, {forever("192.0.2.66"), forever("192.0.2.0/24")}}
	for i := range 500 {
		sets[0] = append(sets[0], forever(fmt.Sprintf("198.51.100.%d", i%250)))
	}
	mustAdd(t, b, sets[2]...) // the program knows the length
	p, f := program(t, b), from4("192.0.2.66")
	stop, done := make(chan struct{}), make(chan int)
	go func() {
		passed := 0
		for {
			select {
			case <-stop:
				done <- passed
				return
			default:
				if v, err := p.Run(&ebpf.RunOptions{Data: f}); err != nil || v == xdpPass {
					passed++
				}
			}
		}
	}()
	for i := range 30 {
		if err := b.Sync(sets[i%2]); err != nil {
			t.Error(err)
		}
		if _, err := b.Sweep(); err != nil { // clears the bits of what is gone
			t.Error(err)
		}
	}
	close(stop)
	if n := <-done; n > 0 {
		t.Errorf("%d packets passed", n)
	}
}

func TestFull(t *testing.T) {
	b := open(t, Options{MaxBans: 64, MaxNets: 64, MaxAllow: 2})
	var bans []Ban
	for i := range 64 {
		bans = append(bans, until(fmt.Sprintf("192.0.2.%d", i), time.Hour+time.Duration(i)*time.Minute))
	}
	bans[10].Until = time.Time{}
	bans[20].Until = time.Now().Add(-time.Second) // nobody has swept it
	mustAdd(t, b, bans...)

	given := func(err error) (out []string) {
		t.Helper()
		var full *FullError
		if !errors.As(err, &full) || !errors.Is(err, ErrFull) {
			t.Fatalf("error %v, want a FullError", err)
		}
		for _, e := range full.GivenUp {
			out = append(out, e.Prefix.String())
			if e.Jail != "test" {
				t.Errorf("given up %+v without its jail", e)
			}
		}
		return out
	}
	// The ended one makes room, and comes out of the next Sweep.
	if err := b.Add(forever("198.51.100.1")); err != nil {
		t.Errorf("with one that has ended: %v", err)
	}
	if swept, err := b.Sweep(); err != nil || len(swept) != 1 || swept[0].Prefix != pfx("192.0.2.20") {
		t.Errorf("swept %v, %v", swept, err)
	}
	// Then those that end soonest.
	if got := given(b.Add(forever("198.51.100.2"))); fmt.Sprint(got) != "[192.0.2.0/32]" {
		t.Errorf("gave up %v", got)
	}
	// One that ends soonest itself is the one.
	if got := given(b.Add(until("198.51.100.3", time.Minute))); fmt.Sprint(got) != "[198.51.100.3/32]" {
		t.Errorf("gave up %v", got)
	}
	if _, ok := find(t, b, "198.51.100.3"); ok {
		t.Error("given up, but in force")
	}
	// A longer ban of one that would be next saves it, a newer short one
	// goes ahead of it, and a removed one makes room.
	mustAdd(t, b, until("192.0.2.1", 100*time.Hour))
	if _, ok, err := b.Remove(pfx("192.0.2.2")); !ok || err != nil {
		t.Fatal(ok, err)
	}
	mustAdd(t, b, until("198.51.100.4", 61*time.Minute))
	n, err := b.AddBatch([]Ban{forever("198.51.100.5"), until("198.51.100.6", time.Second), forever("198.51.100.7")})
	if got := given(err); n != 3 || fmt.Sprint(got) != "[198.51.100.4/32 192.0.2.3/32 198.51.100.6/32]" {
		t.Errorf("gave up %v of %d", got, n)
	}
	// A standing entry can be changed in a full map.
	mustAdd(t, b, until("192.0.2.4", 200*time.Hour))
	if n := len(list(t, b)); n != 64 {
		t.Errorf("%d entries", n)
	}
	// Where all are for ever, the new one finds no place.
	for i := range 64 {
		bans[i].Until = time.Time{}
	}
	if err := b.Sync(bans); err != nil {
		t.Fatal(err)
	}
	if got := given(b.Add(forever("198.51.100.8"))); fmt.Sprint(got) != "[198.51.100.8/32]" {
		t.Errorf("gave up %v", got)
	}
	// Sync to another full set has to remove first.
	for i := range bans {
		bans[i].Prefix = pfx(fmt.Sprintf("203.0.113.%d", i))
	}
	if err := b.Sync(bans); err != nil || len(list(t, b)) != 64 {
		t.Errorf("Sync of another full set: %v, %d entries", err, len(list(t, b)))
	}

	if err := b.SetAllow(Allow{pfx("127.0.0.0/8"), "own"}, Allow{pfx("10.0.0.0/8"), "own"}, Allow{pfx("192.0.2.1"), "own"}); !errors.Is(err, ErrFull) {
		t.Errorf("third allowed prefix of two: %v", err)
	}
}

func TestAllow(t *testing.T) {
	b := open(t, Options{})
	mustAdd(t, b, forever("192.0.2.0/24"), forever("2001:db8::/32"))
	if err := b.SetAllow(Allow{pfx("::ffff:192.0.2.7"), "own"}, Allow{pfx("2001:db8:7::1/48"), "config"}); err != nil {
		t.Fatal(err)
	}
	if err := b.SetAllow(Allow{pfx("192.0.2.7"), "manual"}); err != nil {
		t.Fatal(err)
	}
	got, err := b.Allowed()
	if want := fmt.Sprint([]Allow{{pfx("192.0.2.7"), "manual"}, {pfx("2001:db8:7::/48"), "config"}}); err != nil || fmt.Sprint(got) != want {
		t.Errorf("allowed %v, %v; want %v", got, err, want)
	}
	p := program(t, b)
	for f, want := range map[string]uint32{string(from4("192.0.2.7")): xdpPass, string(from4("192.0.2.8")): xdpDrop,
		string(from6("2001:db8:7:8::9")): xdpPass, string(from6("2001:db8:8::")): xdpDrop} {
		if got := run(t, p, []byte(f)); got != want {
			t.Errorf("verdict %d, want %d: %x", got, want, f)
		}
	}
	if ok, err := b.RemoveAllow(pfx("192.0.2.8")); ok || err != nil {
		t.Errorf("removed what isn't there: %v, %v", ok, err)
	}
	for _, s := range []string{"192.0.2.7", "2001:db8:7::/48"} {
		if ok, err := b.RemoveAllow(pfx(s)); !ok || err != nil {
			t.Errorf("remove %s: %v, %v", s, ok, err)
		}
	}
	if run(t, program(t, b), from4("192.0.2.7")) != xdpDrop {
		t.Error("passes without being allowed")
	}
}

// TestBadInput leaves the set as it was.
func TestBadInput(t *testing.T) {
	b := open(t, Options{})
	mustAdd(t, b, forever("192.0.2.66"))
	before := fmt.Sprint(list(t, b))
	for _, tt := range []struct {
		ban  Ban
		want string
	}{
		{Ban{}, "not an address"},
		{Ban{Prefix: netip.PrefixFrom(netip.MustParseAddr("192.0.2.1"), 33)}, "not an address"},
		{forever("0.0.0.0/0"), "0.0.0.0/0"},
		{forever("::/0"), "::/0"},
		{forever("::ffff:0:0/96"), "everybody"},
		{Ban{Prefix: pfx("192.0.2.1"), Jail: strings.Repeat("x", 64)}, "jail name"},
	} {
		if n, err := b.AddBatch([]Ban{forever("192.0.2.1"), tt.ban}); err == nil || n != 0 || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("AddBatch %v: %d, %v", tt.ban.Prefix, n, err)
		}
		if err := b.Sync([]Ban{forever("192.0.2.1"), tt.ban}); err == nil {
			t.Errorf("Sync %v: no error", tt.ban.Prefix)
		}
	}
	if after := fmt.Sprint(list(t, b)); after != before {
		t.Errorf("the set is %s, was %s", after, before)
	}
	if err := b.SetAllow(Allow{}); err == nil {
		t.Error("SetAllow: no error")
	}
}

func TestOpenErrors(t *testing.T) {
	dir := bpffs(t)
	if _, err := Open(Options{Dir: filepath.Join(dir, "none"), MustExist: true}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("MustExist: %v", err)
	}
	plain := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{plain, filepath.Join(plain, "below"), "/proc/xdpban-test"} {
		if _, err := Open(Options{Dir: bad}); err == nil || !strings.Contains(err.Error(), bad) {
			t.Errorf("%s: %v", bad, err)
		}
	}
	// A folder that isn't in a bpffs gets one.
	own := filepath.Join(t.TempDir(), "made")
	t.Cleanup(func() {
		if err := unix.Unmount(own, 0); err != nil {
			t.Error(err)
		}
	})
	b := open(t, Options{Dir: own})
	mustAdd(t, b, forever("192.0.2.66"))
}

// TestForeignPins puts what isn't ours under our names: an error names it
// and it stays as it was.
func TestForeignPins(t *testing.T) {
	spec, err := loadKern()
	if err != nil {
		t.Fatal(err)
	}
	swapped := func(name string) *ebpf.MapSpec {
		s := spec.Maps[name].Copy()
		value := s.Value.(*btf.Struct)
		other := &btf.Struct{Name: value.Name, Size: value.Size, Members: append([]btf.Member(nil), value.Members...)}
		other.Members[1].Name, other.Members[2].Name = other.Members[2].Name, other.Members[1].Name
		s.Value = other
		return s
	}
	untyped := spec.Maps["ban4"].Copy()
	untyped.Key, untyped.Value = nil, nil
	for _, tt := range []struct {
		name, want string
		spec       *ebpf.MapSpec
	}{
		{"ban4", "type Array", &ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 24, MaxEntries: 1}},
		{"ban4", "type Hash", &ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 24, MaxEntries: 1}},
		{"ban6", "key has 4 bytes", &ebpf.MapSpec{Type: ebpf.PerCPUHash, KeySize: 4, ValueSize: 24, MaxEntries: 1}},
		{"net4", "value has 8 bytes", &ebpf.MapSpec{Type: ebpf.PerCPUHash, KeySize: 8, ValueSize: 8, MaxEntries: 1}},
		{"net6", "flags", &ebpf.MapSpec{Type: ebpf.PerCPUHash, KeySize: 20, ValueSize: 24, MaxEntries: 1, Flags: 1}},
		{"origin4", "type PerCPUHash", &ebpf.MapSpec{Type: ebpf.PerCPUHash, KeySize: 8, ValueSize: 40, MaxEntries: 1}},
		{"ban4", "type information", untyped},
		{"ban4", "expires @0+8, bytes @8+8, packets @16+8", swapped("ban4")},
		{"ban6", "bytes @8+8, packets @16+8", swapped("ban6")},
	} {
		dir := bpffs(t)
		path := filepath.Join(dir, Schema, tt.name)
		if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		m, err := ebpf.NewMap(tt.spec)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		if err := m.Pin(path); err != nil {
			t.Fatal(err)
		}
		_, err = Open(Options{Dir: dir})
		var pin *PinError
		if !errors.As(err, &pin) || pin.Path != path || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}

	dir := bpffs(t)
	if err := os.MkdirAll(filepath.Join(dir, Schema, "ban4"), 0o700); err != nil {
		t.Fatal(err)
	}
	var pin *PinError
	if _, err := Open(Options{Dir: dir}); !errors.As(err, &pin) {
		t.Errorf("a folder: %v", err)
	}
}

// TestWriters lets several processes' worth of blocklists write at once.
func TestWriters(t *testing.T) {
	dir := bpffs(t)
	first := open(t, Options{Dir: dir})
	var wg sync.WaitGroup
	for w := range 4 {
		b := open(t, Options{Dir: dir})
		wg.Go(func() {
			for i := range 50 {
				ban := forever(fmt.Sprintf("10.%d.0.%d", w, i))
				ban.Jail = fmt.Sprintf("jail%d", i%20)
				if err := b.Add(ban); err != nil {
					t.Error(err)
				}
				net := forever(fmt.Sprintf("10.%d.0.0/%d", w, 8+(i+w)%24))
				if err := b.Add(net); err != nil {
					t.Error(err)
				}
				if _, _, err := b.Remove(net.Prefix); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	entries := list(t, first)
	if len(entries) != 200 {
		t.Errorf("%d entries, want 200", len(entries))
	}
	for _, e := range entries {
		a := e.Prefix.Addr().As4()
		if want := fmt.Sprintf("jail%d", a[3]%20); e.Jail != want {
			t.Errorf("%s has jail %q, want %q", e.Prefix, e.Jail, want)
		}
	}
}

func TestManyBans(t *testing.T) {
	const n = 30_000
	b := open(t, Options{MaxBans: n, MaxNets: 1, MaxAllow: 1})
	bans := make([]Ban, n)
	for i := range bans {
		bans[i] = until(fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255), time.Hour)
		if i%2 == 1 {
			bans[i].Prefix = pfx(fmt.Sprintf("2001:db8::%x:%x", i>>16, i&0xffff))
		}
	}
	mustAdd(t, b, bans...)
	seen := map[netip.Prefix]int{}
	for e, err := range b.List() {
		if err != nil {
			t.Fatal(err)
		}
		seen[e.Prefix]++
	}
	for _, ban := range bans {
		if seen[ban.Prefix] != 1 {
			t.Fatalf("%s is listed %d times", ban.Prefix, seen[ban.Prefix])
		}
	}
}
