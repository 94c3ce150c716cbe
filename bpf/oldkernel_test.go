package bpf

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// TestEachLikeAll does on this kernel what older ones do for want of
// write_bans: the answers are the same, and so are the entries.
func TestEachLikeAll(t *testing.T) {
	needLinux(t, 5, 19, "reaching every CPU's value")
	b := open(t, Options{MaxBans: 3, MaxNets: 1, MaxAllow: 1})
	table := b.maps.Load().tables[0].(*bans[[4]byte, kernPrefix4])
	must(t, table.load(table.reader))
	p := program(t, b)
	must(t, table.set.sieve.add([]pending{{prefix: pfx("192.0.2.1")}}))
	ban := func(prefix string, since int64) pending {
		return pending{pfx(prefix), kernBan{Expires: never}, kernOrigin{Since: since}}
	}
	script := func(request func(kernOperation, []pending, func(int, pending)) (int, error)) (out string) {
		for _, step := range []struct {
			op      kernOperation
			list    []pending
			packets int
		}{
			{kernOperationBAN, []pending{ban("192.0.2.1", 1), ban("192.0.2.2", 2), ban("192.0.2.1", 3)}, 5},
			{kernOperationORIGIN, []pending{ban("192.0.2.9", 0), ban("192.0.2.1", 0)}, 0},
			{kernOperationBAN, []pending{{pfx("192.0.2.1"), kernBan{Expires: 1 << 62}, kernOrigin{Since: 7, Until: 8, Jail: 9}}}, 2},
			{kernOperationBAN, []pending{ban("192.0.2.3", 4), ban("192.0.2.4", 5), ban("192.0.2.5", 6)}, 0},
			{kernOperationORIGIN, []pending{ban("192.0.2.3", 0), ban("192.0.2.4", 0)}, 0},
			{kernOperationREMOVE, []pending{ban("192.0.2.1", 0), ban("192.0.2.9", 0), ban("192.0.2.2", 0), ban("192.0.2.3", 0)}, 0},
			{kernOperationORIGIN, []pending{ban("192.0.2.1", 0), ban("192.0.2.2", 0), ban("192.0.2.3", 0)}, 0},
		} {
			n, err := request(step.op, step.list, func(i int, p pending) {
				switch step.op {
				case kernOperationREMOVE:
					out += fmt.Sprintln(i, p)
				case kernOperationORIGIN:
					out += fmt.Sprintln(i, p.prefix, p.origin)
				}
			})
			out += fmt.Sprintln(n, full(err))
			for range step.packets {
				if run(t, p, from4("192.0.2.1")) != xdpDrop {
					t.Error("not dropped")
				}
			}
			out += fmt.Sprintln(entries(t, table))
		}
		return out
	}
	all, each := script(table.request), script(table.requestEach)
	if all != each {
		t.Errorf("one by one\n%s, all at once\n%s", each, all)
	}
}

func entries(t *testing.T, table table) (out []pending) {
	t.Helper()
	must(t, table.walkWhole(func(p pending) bool { out = append(out, p); return true }))
	slices.SortFunc(out, func(x, y pending) int { return x.prefix.Compare(y.prefix) })
	return out
}

// TestOriginAlone leaves origins as a process does that dies before it makes
// their entries, or once it has deleted them: they ban nobody, nobody sees
// them, and they take no room.
func TestOriginAlone(t *testing.T) {
	b := open(t, Options{MaxBans: 3, MaxNets: 1, MaxAllow: 1})
	set := b.maps.Load()
	for i := range set.Origin4.MaxEntries() {
		must(t, set.Origin4.Put(key4(pfx(fmt.Sprintf("192.0.2.%d", i))), kernOrigin{Since: 1, Packets: 1}))
	}
	if l := list(t, b); len(l) > 0 {
		t.Errorf("listed: %v", l)
	}
	if run(t, program(t, b), from4("192.0.2.1")) != xdpPass {
		t.Error("dropped")
	}
	if _, ok, err := b.Remove(pfx("192.0.2.1")); ok || err != nil {
		t.Errorf("removed: %v, %v", ok, err)
	}
	mustAdd(t, b, forever("198.51.100.1"), forever("198.51.100.2"), forever("192.0.2.0"), forever("203.0.113.0/24"))
	l := list(t, b)
	if len(l) != 4 {
		t.Errorf("%d entries: %v", len(l), l)
	}
	for _, e := range l {
		if e.Jail != "test" {
			t.Errorf("%+v", e)
		}
	}
	n := 0
	must(t, walk(set.Origin4, 1, func(kernPrefix4, []kernOrigin) bool { n++; return true }))
	if n != 4 {
		t.Errorf("%d origins", n)
	}
}

// TestEntryAlone takes an entry's origin away, as nothing of ours does: it
// stands, is listed, and gets another.
func TestEntryAlone(t *testing.T) {
	b := open(t, Options{})
	mustAdd(t, b, until("192.0.2.1", time.Hour), forever("192.0.2.2"))
	must(t, b.maps.Load().Origin4.Delete(key4(pfx("192.0.2.1"))))
	p := program(t, b)
	if run(t, p, from4("192.0.2.1")) != xdpDrop {
		t.Error("not dropped")
	}
	e, ok := find(t, b, "192.0.2.1")
	if !ok || e.Jail != "" || !e.Since.IsZero() || e.Packets != 1 || time.Until(e.Until) < 59*time.Minute {
		t.Errorf("%+v, %v", e, ok)
	}
	mustAdd(t, b, forever("192.0.2.1"))
	if e, ok := find(t, b, "192.0.2.1"); !ok || e.Jail != "test" || !e.Until.IsZero() || e.Packets != 1 {
		t.Errorf("%+v, %v", e, ok)
	}
	must(t, b.maps.Load().Origin4.Delete(key4(pfx("192.0.2.1"))))
	if e, ok, err := b.Remove(pfx("192.0.2.1")); !ok || err != nil || e.Packets != 1 {
		t.Errorf("%+v, %v, %v", e, ok, err)
	}
}
