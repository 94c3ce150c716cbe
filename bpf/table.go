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

// table is one of the maps of bans.
type table interface {
	// String is the map's name.
	String() string
	// capacity is the size of the map, limit how far it may grow.
	capacity() int
	limit() int
	get(netip.Prefix) (kernBan, bool, error)
	// write makes entries, or changes all but the counts of standing ones.
	// What found no room is returned, together with ErrFull.
	write(list []pending) (left []pending, err error)
	// remove returns those that were there, as they were.
	remove([]netip.Prefix) ([]pending, error)
	// count adds to the counts of those that are there.
	count(list []pending) error
	// walkV1 walks the map that this one was in schema v1.
	walkV1(*ebpf.Map, func(netip.Prefix, v1Ban)) error
	// walk yields each entry once; it sees or misses what changes meanwhile.
	walk(func(netip.Prefix, kernBan) bool) error
	// takeCounts empties a map that this one replaced: what it has counted
	// is added to the entries that are still there.
	takeCounts(old *ebpf.Map) error
	// victims are the entries that end soonest, soonest first; they are
	// remembered so that a flood of bans doesn't walk a full map each time.
	victims(n int) ([]victim, error)
}

// pending is a ban in the kernel's terms.
type pending struct {
	prefix netip.Prefix
	ban    kernBan
}

type victim struct {
	prefix  netip.Prefix
	expires uint64
}

// dearness orders ends: for ever is the last.
func dearness(expires uint64) uint64 {
	if expires <= scopeMask {
		return math.MaxUint64
	}
	return expires
}

// bans is a table with keys K.
type bans[K comparable] struct {
	b      *Blocklist
	index  uint32 // among the tables
	sieve  *sieve
	title  string
	m      *ebpf.Map
	max    uint32 // how far it may grow
	key    func(netip.Prefix) K
	prefix func(K) netip.Prefix

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
	s.tables = []table{
		&bans[[4]byte]{
			b: b, index: 0, sieve: s.sieve, title: kernMapBan4, m: s.Ban4, max: meta.MaxBans,
			key:    func(p netip.Prefix) [4]byte { return p.Addr().As4() },
			prefix: func(k [4]byte) netip.Prefix { return netip.PrefixFrom(netip.AddrFrom4(k), 32) },
		},
		&bans[[16]byte]{
			b: b, index: 1, sieve: s.sieve, title: kernMapBan6, m: s.Ban6, max: meta.MaxBans,
			key:    func(p netip.Prefix) [16]byte { return p.Addr().As16() },
			prefix: func(k [16]byte) netip.Prefix { return netip.PrefixFrom(netip.AddrFrom16(k), 128) },
		},
		&bans[kernPrefix4]{
			b: b, index: 2, sieve: s.sieve, title: kernMapNet4, m: s.Net4, max: meta.MaxNets,
			key: key4, prefix: prefixOf4,
		},
		&bans[kernPrefix6]{
			b: b, index: 3, sieve: s.sieve, title: kernMapNet6, m: s.Net6, max: meta.MaxNets,
			key: key6, prefix: prefixOf6,
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

func (t *bans[K]) String() string { return t.title }

func (t *bans[K]) capacity() int { return int(t.m.MaxEntries()) }

func (t *bans[K]) limit() int { return max(int(t.max), t.capacity()) }

func (t *bans[K]) get(p netip.Prefix) (ban kernBan, ok bool, err error) {
	if err := t.m.Lookup(t.key(p), &ban); errors.Is(err, ebpf.ErrKeyNotExist) {
		return ban, false, nil
	} else if err != nil {
		return ban, false, fmt.Errorf("look up %s in %s: %w", p, t.title, err)
	}
	return ban, true, nil
}

func (t *bans[K]) write(list []pending) ([]pending, error) {
	if err := t.sieve.add(list); err != nil {
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

func (t *bans[K]) count(list []pending) error {
	for len(list) > 0 {
		n, err := t.request(kernOperationCOUNT, list, nil)
		if err != nil {
			return fmt.Errorf("add to the counts of %s in %s: %w", list[n].prefix, t.title, err)
		}
		list = list[n:]
	}
	return nil
}

func (t *bans[K]) remove(list []netip.Prefix) (were []pending, err error) {
	want := make([]pending, 0, min(len(list), maxRequests))
	for part := range slices.Chunk(list, maxRequests) {
		want = want[:0]
		for _, p := range part {
			want = append(want, pending{prefix: p})
		}
		n, err := t.request(kernOperationREMOVE, want, func(p pending) { were = append(were, p) })
		if err != nil {
			return were, fmt.Errorf("delete %s from %s: %w", want[n].prefix, t.title, err)
		}
	}
	return were, nil
}

func (t *bans[K]) takeCounts(old *ebpf.Map) error {
	var keys []K
	var list []pending
	// Entries leave the old map when they are added: if we die in between,
	// that many are added twice.
	flush := func() error {
		if len(list) == 0 {
			return nil
		}
		if err := t.count(list); err != nil {
			return err
		}
		if _, err := old.BatchDelete(keys, nil); err != nil {
			return fmt.Errorf("empty %s: %w", old, err)
		}
		keys, list = keys[:0], list[:0]
		return nil
	}
	var failed error
	err := walk(old, 1, func(k K, v []kernBan) bool {
		if v[0].Packets > 0 {
			keys, list = append(keys, k), append(list, pending{t.prefix(k), v[0]})
			if len(list) == maxRequests {
				failed = flush()
			}
		}
		return failed == nil
	})
	if err == nil && failed == nil {
		failed = flush()
	}
	return errors.Join(err, failed)
}

func (t *bans[K]) walk(yield func(netip.Prefix, kernBan) bool) error {
	return walk(t.m, 1, func(k K, v []kernBan) bool { return yield(t.prefix(k), v[0]) })
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
func (t *bans[K]) remember(p pending) {
	if t.soonest == nil || dearness(p.ban.Expires) >= t.horizon {
		return
	}
	v := victim{p.prefix, p.ban.Expires}
	i, _ := slices.BinarySearchFunc(t.soonest, v, victim.compare)
	t.soonest = slices.Insert(t.soonest, i, v)
}

func (v victim) compare(w victim) int { return cmp.Compare(dearness(v.expires), dearness(w.expires)) }

func (t *bans[K]) victims(n int) ([]victim, error) {
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
			if ok && r.Expires == v.expires {
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
