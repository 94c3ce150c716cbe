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
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// table is one of the maps of bans with the origins that belong to it.
type table interface {
	// String is the map's name.
	String() string
	// takeCounts empties an older map of the same kind into the origins.
	takeCounts(old *ebpf.Map) error
	// capacity is the size of the map, limit how far it may grow.
	capacity() int
	limit() int
	get(netip.Prefix) (record, bool, error)
	// put sets the ends of standing entries and adds the others. What found
	// no room is returned, together with ErrFull. known are the standing
	// entries if not nil: then they aren't asked for one by one.
	put(list []pending, known map[netip.Prefix]bool) (left []pending, err error)
	remove([]netip.Prefix) error
	// walk yields each entry once; it sees or misses what changes meanwhile.
	walk(func(netip.Prefix, record) bool) error
	origin(netip.Prefix) (kernOrigin, error)
	// victims are the entries that end soonest, soonest first; they are
	// remembered so that a flood of bans doesn't walk a full map each time.
	victims(n int) ([]victim, error)
}

// record is an entry of ban or net, summed over the CPUs.
type record struct {
	expires, packets, bytes uint64
}

// pending is a ban in the kernel's terms.
type pending struct {
	prefix  netip.Prefix
	expires uint64
	origin  kernOrigin
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

// bans is a table with keys K, and O in its map of origins.
type bans[K, O comparable] struct {
	b         *Blocklist
	index     uint32 // among the tables
	title     string
	m         *ebpf.Map
	originMap *ebpf.Map
	max       uint32 // how far it may grow
	key       func(netip.Prefix) K
	prefix    func(K) netip.Prefix
	originKey func(netip.Prefix) O

	// soonest are the entries that end soonest, soonest first; nil: not
	// known. Every entry that isn't in it ends no sooner than horizon.
	soonest []victim
	horizon uint64
}

func (s *mapSet) makeTables(b *Blocklist, meta kernMeta) {
	s.tables = []table{
		&bans[[4]byte, kernPrefix4]{
			b: b, index: 0, title: kernMapBan4, m: s.Ban4, max: meta.MaxBans, originMap: s.Origin4,
			key:       func(p netip.Prefix) [4]byte { return p.Addr().As4() },
			prefix:    func(k [4]byte) netip.Prefix { return netip.PrefixFrom(netip.AddrFrom4(k), 32) },
			originKey: key4,
		},
		&bans[[16]byte, kernPrefix6]{
			b: b, index: 1, title: kernMapBan6, m: s.Ban6, max: meta.MaxBans, originMap: s.Origin6,
			key:       func(p netip.Prefix) [16]byte { return p.Addr().As16() },
			prefix:    func(k [16]byte) netip.Prefix { return netip.PrefixFrom(netip.AddrFrom16(k), 128) },
			originKey: key6,
		},
		&bans[kernPrefix4, kernPrefix4]{
			b: b, index: 2, title: kernMapNet4, m: s.Net4, max: meta.MaxNets, originMap: s.Origin4,
			key: key4, prefix: prefixOf4, originKey: key4,
		},
		&bans[kernPrefix6, kernPrefix6]{
			b: b, index: 3, title: kernMapNet6, m: s.Net6, max: meta.MaxNets, originMap: s.Origin6,
			key: key6, prefix: prefixOf6, originKey: key6,
		},
	}
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

// endKey has an IPv4 address where an IPv6 one begins.
func endKey(p netip.Prefix) kernPrefix6 {
	if p.Addr().Is6() {
		return key6(p)
	}
	k := key4(p)
	return kernPrefix6{Len: k.Len, Addr: [4]uint32{k.Addr}}
}

func (t *bans[K, O]) String() string { return t.title }

func (t *bans[K, O]) capacity() int { return int(t.m.MaxEntries()) }

func (t *bans[K, O]) limit() int { return max(int(t.max), t.capacity()) }

func (t *bans[K, O]) get(p netip.Prefix) (record, bool, error) {
	var cpus []kernBan
	if err := t.m.Lookup(t.key(p), &cpus); errors.Is(err, ebpf.ErrKeyNotExist) {
		return record{}, false, nil
	} else if err != nil {
		return record{}, false, fmt.Errorf("look up %s in %s: %w", p, t.title, err)
	}
	return sum(cpus), true, nil
}

func sum(cpus []kernBan) record {
	r := record{expires: cpus[0].Expires}
	for _, c := range cpus {
		r.packets += c.Packets
		r.bytes += c.Bytes
	}
	return r
}

func (t *bans[K, O]) origin(p netip.Prefix) (kernOrigin, error) {
	var o kernOrigin
	err := t.originMap.Lookup(t.originKey(p), &o)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return o, fmt.Errorf("look up the origin of %s: %w", p, err)
	}
	return o, nil
}

func (t *bans[K, O]) put(list []pending, known map[netip.Prefix]bool) ([]pending, error) {
	var fresh []pending
	place := make(map[netip.Prefix]int) // in fresh
	for _, p := range list {
		if i, ok := place[p.prefix]; ok {
			fresh[i] = p
			continue
		}
		standing := known[p.prefix]
		if known == nil {
			var err error
			if standing, err = t.change(p); err != nil {
				return list, err
			}
		} else if standing {
			if _, err := t.change(p); err != nil {
				return list, err
			}
		}
		if !standing {
			place[p.prefix] = len(fresh)
			fresh = append(fresh, p)
		}
	}

	// The origin goes first: an entry always has one, and what is left
	// over by a crash between the two is harmless.
	cpus := ebpf.MustPossibleCPU()
	origins, originKeys := make([]kernOrigin, len(fresh)), make([]O, len(fresh))
	keys, values := make([]K, len(fresh)), make([]kernBan, len(fresh)*cpus)
	for i, p := range fresh {
		originKeys[i], origins[i] = t.originKey(p.prefix), p.origin
		keys[i] = t.key(p.prefix)
		for c := range cpus {
			values[i*cpus+c].Expires = p.expires
		}
	}
	if _, err := update(t.originMap, originKeys, origins, 1); errors.Is(err, unix.E2BIG) {
		return fresh, ErrFull
	} else if err != nil {
		return fresh, fmt.Errorf("write to %s: %w", t.originMap, err)
	}
	done, err := update(t.m, keys, values, cpus)
	for _, p := range fresh[:done] {
		t.remember(p)
	}
	if errors.Is(err, unix.E2BIG) {
		return fresh[done:], ErrFull
	} else if err != nil {
		return fresh[done:], fmt.Errorf("write to %s: %w", t.title, err)
	}
	return nil, nil
}

// change sets the end and the origin of a standing entry, keeping its
// counts, or says that there is none.
func (t *bans[K, O]) change(p pending) (standing bool, err error) {
	key := t.key(p.prefix)
	var cpus []kernBan
	if err := t.m.Lookup(key, &cpus); errors.Is(err, ebpf.ErrKeyNotExist) {
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("look up %s in %s: %w", p.prefix, t.title, err)
	}
	old, err := t.origin(p.prefix)
	if err != nil {
		return false, err
	}
	p.origin.Packets, p.origin.Bytes = old.Packets, old.Bytes
	if p.origin != old {
		if err := t.originMap.Put(t.originKey(p.prefix), p.origin); err != nil {
			return false, fmt.Errorf("write to %s: %w", t.originMap, err)
		}
	}
	if cpus[0].Expires != p.expires {
		err := t.b.setEnd(kernEndRequest{Expires: p.expires, Table: t.index, Key: endKey(p.prefix)})
		if errors.Is(err, errors.ErrUnsupported) {
			// Before Linux 5.19: what is counted between the lookup and
			// this is lost.
			for i := range cpus {
				cpus[i].Expires = p.expires
			}
			err = t.m.Update(key, cpus, ebpf.UpdateExist)
		}
		if err != nil {
			return false, fmt.Errorf("change %s in %s: %w", p.prefix, t.title, err)
		}
	}
	t.remember(p)
	return true, nil
}

// update writes a batch, perKey values a key, and says how many keys are
// written. It goes on where a batch stopped, and waits for the kernel's
// allocator, which answers a burst of inserts with ENOMEM now and then and
// refills itself in the background.
func update[K, V any](m *ebpf.Map, keys []K, values []V, perKey int) (done int, err error) {
	const patience = 200
	for tries := 0; done < len(keys); {
		n, err := m.BatchUpdate(keys[done:], values[done*perKey:], nil)
		done += n
		switch {
		case err == nil:
			return done, nil
		case errors.Is(err, unix.ENOMEM) && (n > 0 || tries < patience):
			if n > 0 {
				tries = 0
			}
			tries++
			time.Sleep(time.Duration(min(tries, 10)) * time.Millisecond)
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
		default:
			return done, err
		}
	}
	return done, nil
}

func (t *bans[K, O]) remove(list []netip.Prefix) error {
	keys := make([]K, len(list))
	origins := make([]O, len(list))
	for i, p := range list {
		keys[i], origins[i] = t.key(p), t.originKey(p)
	}
	if err := deleteAll(t.m, keys); err != nil {
		return fmt.Errorf("delete from %s: %w", t.title, err)
	}
	if err := deleteAll(t.originMap, origins); err != nil {
		return fmt.Errorf("delete from %s: %w", t.originMap, err)
	}
	return nil
}

// deleteAll deletes what there is of the keys.
func deleteAll[K any](m *ebpf.Map, keys []K) error {
	for len(keys) > 0 {
		n, err := m.BatchDelete(keys, nil)
		if err == nil {
			return nil
		}
		if !errors.Is(err, ebpf.ErrKeyNotExist) || n >= len(keys) {
			return err
		}
		keys = keys[n+1:] // that one wasn't there
	}
	return nil
}

func (t *bans[K, O]) walk(yield func(netip.Prefix, record) bool) error {
	cpus := ebpf.MustPossibleCPU()
	return walk(t.m, cpus, func(k K, v []kernBan) bool {
		return yield(t.prefix(k), sum(v))
	})
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
	if t.soonest == nil || dearness(p.expires) >= t.horizon {
		return
	}
	v := victim{p.prefix, p.expires}
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
			if ok && r.expires == v.expires {
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
	err := t.walk(func(p netip.Prefix, r record) bool {
		v := victim{p, r.expires}
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
