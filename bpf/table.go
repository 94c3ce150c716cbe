package bpf

import (
	"cmp"
	"container/heap"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// table is one of the maps of bans, with the origins that belong to it.
type table interface {
	// String is the map's name.
	String() string
	// capacity is the size of the map, limit how far it may grow.
	capacity() int
	limit() int
	// get gives an entry with its origin.
	get(netip.Prefix) (pending, bool, error)
	// write makes entries, or changes all but the counts of standing ones.
	// What found no room is returned, together with ErrFull.
	write(list []pending) (left []pending, err error)
	// writeOrigins writes the origins of standing entries, with all of their
	// counts.
	writeOrigins([]pending) error
	// remove returns those that were there, as they were.
	remove([]netip.Prefix) ([]pending, error)
	// walk yields each entry once, without its origin; it sees or misses what
	// changes meanwhile.
	walk(func(netip.Prefix, kernBan) bool) error
	// walkWhole is walk with the origins.
	walkWhole(func(pending) bool) error
	// victims are the entries that end soonest, soonest first; they are
	// remembered so that a flood of bans doesn't walk a full map each time.
	victims(n int) ([]victim, error)
	// walkV2 walks the map that this one was in schema v2.
	walkV2(*ebpf.Map, func(pending)) error
}

// pending is a ban in the kernel's terms. What it has dropped is the counts in
// ban, summed over the CPUs, and those in origin.
type pending struct {
	prefix netip.Prefix
	ban    kernBan
	origin kernOrigin
}

func sum(cpus []kernBan) kernBan {
	s := kernBan{Expires: cpus[0].Expires}
	for _, c := range cpus {
		s.Packets += c.Packets
		s.Bytes += c.Bytes
	}
	return s
}

type victim struct {
	prefix  netip.Prefix
	expires uint64
}

// dearness orders ends.
func dearness(expires uint64) uint64 { return expires &^ scopeMask }

// bans is a table with keys K, and O in its map of origins.
type bans[K, O comparable] struct {
	b       *Blocklist
	set     *mapSet
	index   uint32 // among the tables
	title   string
	cpus    int
	m       *ebpf.Map
	origins *ebpf.Map
	max     uint32 // how far it may grow
	key     func(netip.Prefix) K
	prefix  func(K) netip.Prefix

	originKey    func(netip.Prefix) O
	originPrefix func(O) netip.Prefix

	writer, reader *runner

	// soonest are the entries that end soonest, soonest first; nil: not
	// known. Every entry that isn't in it ends no sooner than horizon.
	soonest []victim
	horizon uint64
}

// makeTables completes a set of maps.
func (s *mapSet) makeTables(b *Blocklist, meta kernMeta) error {
	if s.sieve == nil {
		var err error
		if s.sieve, err = openSieve(s.Sieve); err != nil {
			return err
		}
	}
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return err
	}
	if s.writers == nil {
		s.writers, s.readers = new(runners), new(runners)
	}
	s.tables = []table{
		&bans[[4]byte, kernPrefix4]{
			b: b, set: s, index: 0, title: kernMapBan4, cpus: cpus, m: s.Ban4, origins: s.Origin4, max: meta.MaxBans,
			key:       func(p netip.Prefix) [4]byte { return p.Addr().As4() },
			prefix:    func(k [4]byte) netip.Prefix { return netip.PrefixFrom(netip.AddrFrom4(k), 32) },
			originKey: key4, originPrefix: prefixOf4, writer: &s.writers[0], reader: &s.readers[0],
		},
		&bans[[16]byte, kernPrefix6]{
			b: b, set: s, index: 1, title: kernMapBan6, cpus: cpus, m: s.Ban6, origins: s.Origin6, max: meta.MaxBans,
			key:       func(p netip.Prefix) [16]byte { return p.Addr().As16() },
			prefix:    func(k [16]byte) netip.Prefix { return netip.PrefixFrom(netip.AddrFrom16(k), 128) },
			originKey: key6, originPrefix: prefixOf6, writer: &s.writers[1], reader: &s.readers[1],
		},
		&bans[kernPrefix4, kernPrefix4]{
			b: b, set: s, index: 2, title: kernMapNet4, cpus: cpus, m: s.Net4, origins: s.Origin4, max: meta.MaxNets,
			key: key4, prefix: prefixOf4,
			originKey: key4, originPrefix: prefixOf4, writer: &s.writers[2], reader: &s.readers[2],
		},
		&bans[kernPrefix6, kernPrefix6]{
			b: b, set: s, index: 3, title: kernMapNet6, cpus: cpus, m: s.Net6, origins: s.Origin6, max: meta.MaxNets,
			key: key6, prefix: prefixOf6,
			originKey: key6, originPrefix: prefixOf6, writer: &s.writers[3], reader: &s.readers[3],
		},
	}
	return nil
}

// tableOf is the table a prefix belongs to.
func (s *mapSet) tableOf(p netip.Prefix) table { return s.tables[tableIndex(p)] }

func tableIndex(p netip.Prefix) int {
	i := 0
	if p.Addr().Is6() {
		i++
	}
	if p.Bits() < p.Addr().BitLen() {
		i += 2
	}
	return i
}

// Addresses are in the packet's byte order, whatever the machine's.

func key4(p netip.Prefix) kernPrefix4 {
	a := p.Addr().As4()
	return kernPrefix4{Len: uint32(p.Bits()), Addr: binary.NativeEndian.Uint32(a[:])}
}

func prefixOf4(k kernPrefix4) netip.Prefix {
	var a [4]byte
	binary.NativeEndian.PutUint32(a[:], k.Addr)
	return netip.PrefixFrom(netip.AddrFrom4(a), int(k.Len))
}

func key6(p netip.Prefix) kernPrefix6 {
	a := p.Addr().As16()
	k := kernPrefix6{Len: uint32(p.Bits())}
	for i := range k.Addr {
		k.Addr[i] = binary.NativeEndian.Uint32(a[4*i:])
	}
	return k
}

func prefixOf6(k kernPrefix6) netip.Prefix {
	var a [16]byte
	for i, w := range k.Addr {
		binary.NativeEndian.PutUint32(a[4*i:], w)
	}
	return netip.PrefixFrom(netip.AddrFrom16(a), int(k.Len))
}

// requestKey has an IPv4 address where an IPv6 one begins.
func requestKey(p netip.Prefix) kernPrefix6 {
	if p.Addr().Is6() {
		return key6(p)
	}
	k := key4(p)
	return kernPrefix6{Len: k.Len, Addr: [4]uint32{k.Addr}}
}

func (t *bans[K, O]) String() string { return t.title }

func (t *bans[K, O]) capacity() int { return int(t.m.MaxEntries()) }

func (t *bans[K, O]) limit() int { return max(int(t.max), t.capacity()) }

func (t *bans[K, O]) get(p netip.Prefix) (pending, bool, error) {
	out := pending{prefix: p}
	for again := false; ; again = true {
		var values []kernBan
		if there, err := exists(t.m.Lookup(t.key(p), &values)); err != nil || !there {
			return out, false, wrap(err, "look up %s in %s", p, t.title)
		}
		out.ban = sum(values)
		there, err := exists(t.origins.Lookup(t.originKey(p), &out.origin))
		// An entry whose origin has gone goes, too.
		if err != nil || there || again {
			return out, true, wrap(err, "look up the origin of %s in %s", p, t.origins)
		}
	}
}

// wrap says what was attempted, if it failed.
func wrap(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf(format+": %w", append(args, err)...)
}

func (t *bans[K, O]) write(list []pending) ([]pending, error) {
	if err := t.set.sieve.add(list); err != nil {
		return list, err
	}
	for len(list) > 0 {
		n, err := t.request(kernOperationBAN, list, nil)
		for _, p := range list[:n] {
			t.remember(p)
		}
		list = list[n:]
		if err != nil {
			return list, fmt.Errorf("write %s to %s: %w", list[0].prefix, t.title, full(err))
		}
	}
	return nil, nil
}

func (t *bans[K, O]) writeOrigins(list []pending) error {
	for part := range slices.Chunk(list, batch) {
		keys, values := make([]O, len(part)), make([]kernOrigin, len(part))
		for i, p := range part {
			keys[i], values[i] = t.originKey(p.prefix), p.origin
			values[i].Packets += p.ban.Packets
			values[i].Bytes += p.ban.Bytes
		}
		if _, err := t.origins.BatchUpdate(keys, values, nil); err != nil {
			return fmt.Errorf("write to %s: %w", t.origins, err)
		}
	}
	return nil
}

func (t *bans[K, O]) remove(list []netip.Prefix) (were []pending, err error) {
	want := make([]pending, 0, min(len(list), maxRequests))
	for part := range slices.Chunk(list, maxRequests) {
		want = want[:0]
		for _, p := range part {
			want = append(want, pending{prefix: p})
		}
		n, err := t.request(kernOperationREMOVE, want, func(_ int, p pending) { were = append(were, p) })
		if err != nil {
			return were, fmt.Errorf("delete %s from %s: %w", want[n].prefix, t.title, err)
		}
	}
	return were, nil
}

func (t *bans[K, O]) walk(yield func(netip.Prefix, kernBan) bool) error {
	return walk(t.m, t.cpus, func(k K, v []kernBan) bool { return yield(t.prefix(k), sum(v)) })
}

func (t *bans[K, O]) walkWhole(yield func(pending) bool) error {
	part, has := make([]pending, 0, maxRequests), [maxRequests]bool{}
	var failed error
	flush := func() bool {
		clear(has[:])
		_, failed = t.request(kernOperationORIGIN, part, func(i int, p pending) { part[i].origin, has[i] = p.origin, true })
		for i := 0; i < len(part) && failed == nil; i++ {
			there := true
			if !has[i] {
				part[i], there, failed = t.get(part[i].prefix)
			}
			if failed == nil && there && !yield(part[i]) {
				return false
			}
		}
		part = part[:0]
		return failed == nil
	}
	going := true
	err := t.walk(func(p netip.Prefix, ban kernBan) bool {
		part = append(part, pending{prefix: p, ban: ban})
		if len(part) == maxRequests {
			going = flush()
		}
		return going
	})
	if going && err == nil && len(part) > 0 {
		flush()
	}
	return errors.Join(err, failed)
}

// dropOrphans removes origins whose entry was never made, or is gone.
func (t *bans[K, O]) dropOrphans() error {
	var alone []O
	var failed error
	err := walk(t.origins, 1, func(k O, _ []kernOrigin) bool {
		p := t.originPrefix(k)
		_, there, err := t.set.tableOf(p).get(p)
		if err == nil && !there {
			alone = append(alone, k)
		}
		failed = err
		return err == nil
	})
	for _, k := range alone {
		failed = errors.Join(failed, t.origins.Delete(k))
	}
	return errors.Join(err, failed)
}

// walk reads a hash map in batches; values has perKey elements.
func walk[K, V any](m *ebpf.Map, perKey int, yield func(key K, values []V) bool) error {
	size := 1024
	keys, values := make([]K, size), make([]V, size*perKey)
	var cursor ebpf.MapBatchCursor
	for {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		if errors.Is(err, unix.ENOSPC) {
			// A bucket holds more than that.
			size *= 2
			keys, values = make([]K, size), make([]V, size*perKey)
			continue
		}
		last := errors.Is(err, ebpf.ErrKeyNotExist)
		if err != nil && !last {
			return fmt.Errorf("walk %s: %w", m, err)
		}
		for i := range n {
			if !yield(keys[i], values[i*perKey:(i+1)*perKey]) {
				return nil
			}
		}
		if last {
			return nil
		}
	}
}

// memory is how many victims are looked for at once.
const memory = 1024

// remember keeps soonest right when an entry is written.
func (t *bans[K, O]) remember(p pending) {
	if t.soonest == nil || dearness(p.ban.Expires) >= t.horizon {
		return
	}
	v := victim{p.prefix, p.ban.Expires}
	i, _ := slices.BinarySearchFunc(t.soonest, v, victim.compare)
	t.soonest = slices.Insert(t.soonest, i, v)
}

func (v victim) compare(w victim) int { return cmp.Compare(dearness(v.expires), dearness(w.expires)) }

func (t *bans[K, O]) victims(n int) ([]victim, error) {
	if t.soonest != nil {
		// Some may have been removed since, or been lengthened.
		good := t.soonest[:0]
		for i, v := range t.soonest {
			if len(good) == n {
				good = append(good, t.soonest[i:]...)
				break
			}
			r, ok, err := t.get(v.prefix)
			if err != nil {
				return nil, err
			}
			if ok && r.ban.Expires == v.expires {
				good = append(good, v)
			}
		}
		t.soonest = good
		if len(good) >= n {
			return slices.Clone(good[:n]), nil
		}
	}

	size := max(n, memory)
	var h victimHeap
	err := t.walk(func(p netip.Prefix, r kernBan) bool {
		v := victim{p, r.Expires}
		if len(h) < size {
			heap.Push(&h, v)
		} else if v.compare(h[0]) < 0 {
			h[0] = v
			heap.Fix(&h, 0)
		}
		return true
	})
	if err != nil {
		return nil, err
	}
	t.horizon = math.MaxUint64
	if len(h) == size {
		t.horizon = dearness(h[0].expires)
	}
	t.soonest = h
	slices.SortFunc(t.soonest, victim.compare)
	return slices.Clone(t.soonest[:min(n, len(t.soonest))]), nil
}

// victimHeap has the one that ends last on top.
type victimHeap []victim

func (h victimHeap) Len() int           { return len(h) }
func (h victimHeap) Less(i, j int) bool { return h[i].compare(h[j]) > 0 }
func (h victimHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *victimHeap) Push(x any)        { *h = append(*h, x.(victim)) }
func (h *victimHeap) Pop() any          { panic("never popped") }
