package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Maps can't be resized; they are replaced while traffic flows:
//
//  1. a new map is filled with the bans of the old one, but not their counts;
//  2. the old map gets a second pin (suffix oldPin), and the new one takes
//     over the name in one step;
//  3. the program on each interface is replaced atomically by one that reads
//     the new map: up to then the old one decides, from then on the new one;
//  4. when no CPU runs the old program any more, what it has counted is added
//     to the new map, and the old map's pin removed.
//
// The sieve is replaced with them, filled before any packet reads it.
//
// A process that dies anywhere in between leaves pins from which the next one
// to open the set undoes 2 or carries out 3 and 4.
const (
	newPin = "-new"
	oldPin = "-old"
)

// Limits are how many entries the maps may hold, for IPv4 and IPv6 each.
type Limits struct {
	MaxBans, MaxNets uint32
}

// Limits returns the limits in force.
func (b *Blocklist) Limits() (Limits, error) {
	meta, err := b.readMeta()
	return Limits{meta.MaxBans, meta.MaxNets}, err
}

// Capacity is the number of entries that there is room for now: it grows by
// itself up to the limits.
func (b *Blocklist) Capacity() (Limits, error) {
	set, err := b.current()
	if err != nil {
		return Limits{}, err
	}
	return Limits{max(set.Ban4.MaxEntries(), set.Ban6.MaxEntries()), max(set.Net4.MaxEntries(), set.Net6.MaxEntries())}, nil
}

// Resize sets the limits, while traffic flows; zero leaves one as it is.
// Maps that are larger than their limit are made smaller if what they hold
// fits, else that is an ErrFull and nothing has changed.
func (b *Blocklist) Resize(l Limits) error {
	set, unlock, err := b.lock()
	if err != nil {
		return err
	}
	defer unlock()
	meta, err := b.readMeta()
	if err != nil {
		return err
	}
	old := meta
	if l.MaxBans > 0 {
		meta.MaxBans = l.MaxBans
	}
	if l.MaxNets > 0 {
		meta.MaxNets = l.MaxNets
	}
	sizes := map[int]uint32{}
	for i, t := range set.tables {
		limit := []uint32{meta.MaxBans, meta.MaxBans, meta.MaxNets, meta.MaxNets}[i]
		if t.capacity() <= int(limit) {
			continue
		}
		n := 0
		if err := t.walk(func(netip.Prefix, kernBan) bool { n++; return true }); err != nil {
			return err
		}
		if n > int(limit) {
			return fmt.Errorf("resize %s to %d: it holds %d: %w", t, limit, n, ErrFull)
		}
		sizes[i] = limit
	}
	if err := b.writeMeta(meta); err != nil {
		return err
	}
	if err := b.replace(sizes); err != nil {
		return errors.Join(err, b.writeMeta(old))
	}
	_, err = b.remakeTables(meta)
	return err
}

// remakeTables replaces the tables by some that know the limits in meta, and
// remember nothing.
func (b *Blocklist) remakeTables(meta kernMeta) (*mapSet, error) {
	set := *b.maps.Load()
	if err := set.makeTables(b, meta); err != nil {
		return nil, err
	}
	b.maps.Store(&set)
	return &set, nil
}

// grow makes room for n entries in a table, as far as its limit allows; the
// lock is held.
func (b *Blocklist) grow(table, n int) error {
	t := b.maps.Load().tables[table]
	size := min(1<<bits.Len(uint(n-1)), t.limit())
	if size <= t.capacity() {
		return nil
	}
	return b.replace(map[int]uint32{table: uint32(size)})
}

// replace makes tables, and the sieve if it has to be larger or may be
// smaller, anew with other sizes; the lock is held.
func (b *Blocklist) replace(sizes map[int]uint32) error {
	if len(sizes) == 0 {
		return nil
	}
	old := b.maps.Load()
	set := *old
	var names []string
	undo := func(err error) error {
		for _, name := range names {
			os.Remove(b.pin(name + newPin))
			// If the name is the new map's already, this takes it back.
			os.Rename(b.pin(name+oldPin), b.pin(name))
			os.Remove(b.pin(name + oldPin))
		}
		return fmt.Errorf("resize the maps: %w", err)
	}

	want := map[string]uint32{}
	room := 0
	for i, t := range old.tables {
		size := uint32(t.capacity())
		if n, ok := sizes[i]; ok {
			size = n
			want[t.String()] = n
		}
		room += int(size)
	}
	want[kernMapSieve] = sieveWords(room)
	for _, m := range set.all() {
		size, ok := want[m.name]
		if !ok || m.name == kernMapSieve && (*m.m).MaxEntries() == size {
			continue
		}
		spec := b.spec.Maps[m.name].Copy()
		spec.MaxEntries = size
		fresh, err := ebpf.NewMap(spec)
		if err != nil {
			return undo(err)
		}
		names = append(names, m.name)
		if m.name == kernMapSieve {
			set.sieve = nil // the tables' entries are added further down
		} else if err := copyMap(*m.m, fresh); err != nil {
			return undo(fmt.Errorf("fill %s: %w", m.name, err))
		}
		if err := fresh.Pin(b.pin(m.name + newPin)); err != nil {
			return undo(err)
		}
		if err := sameOwner(b.pin(m.name), b.pin(m.name+newPin)); err != nil {
			return undo(err)
		}
		*m.m = fresh
	}
	meta, err := b.readMeta()
	if err != nil {
		return undo(err)
	}
	meta.Maps++
	set.generation = meta.Maps
	refill := set.sieve == nil
	if err := set.makeTables(b, meta); err != nil {
		return undo(err)
	}
	if refill {
		if err := set.sift(); err != nil {
			return undo(err)
		}
	}
	for _, name := range names {
		if err := os.Link(b.pin(name), b.pin(name+oldPin)); err != nil {
			return undo(err)
		}
		if err := os.Rename(b.pin(name+newPin), b.pin(name)); err != nil {
			return undo(err)
		}
	}
	b.maps.Store(&set)
	if err := errors.Join(b.writeMeta(meta), b.reload(meta)); err != nil {
		err = undo(err)
		meta.Maps++
		old.generation = meta.Maps
		b.maps.Store(old)
		return errors.Join(err, b.writeMeta(meta), b.reload(meta))
	}
	return b.settle()
}

func (b *Blocklist) pin(name string) string { return filepath.Join(b.dir, name) }

func copyMap(from, to *ebpf.Map) error {
	switch from.KeySize() {
	case 4:
		return copyEntries[[4]byte](from, to)
	case 8:
		return copyEntries[[8]byte](from, to)
	case 16:
		return copyEntries[[16]byte](from, to)
	default:
		return copyEntries[[20]byte](from, to)
	}
}

// copyEntries copies bans without their counts.
func copyEntries[K comparable](from, to *ebpf.Map) error {
	var keys []K
	var values []kernBan
	var failed error
	flush := func() bool {
		if len(keys) > 0 {
			_, failed = to.BatchUpdate(keys, values, nil)
		}
		keys, values = keys[:0], values[:0]
		return failed == nil
	}
	err := walk(from, 1, func(k K, v []kernBan) bool {
		ban := v[0]
		ban.Packets, ban.Bytes = 0, 0
		keys, values = append(keys, k), append(values, ban)
		return len(keys) < batch || flush()
	})
	if err == nil && failed == nil {
		flush()
	}
	return errors.Join(err, failed)
}

// settle adds the counts of replaced maps to the new ones, when their program
// has made its last count, and removes their pins.
func (b *Blocklist) settle() error {
	waitForPrograms()
	set := b.maps.Load()
	for _, t := range set.tables {
		path := b.pin(t.String() + oldPin)
		old, err := ebpf.LoadPinnedMap(path, nil)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return fmt.Errorf("open %s: %w", path, err)
		}
		err = t.takeCounts(old)
		old.Close()
		if err != nil {
			return err
		}
	}
	return b.removePins(oldPin)
}

// waitForPrograms waits for an RCU grace period: until then, a CPU may be in
// the middle of a program that has been replaced.
func waitForPrograms() {
	// Kernels with nohz_full don't offer it.
	const membarrierGlobal = 1
	if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, membarrierGlobal, 0, 0); errno != 0 {
		time.Sleep(100 * time.Millisecond)
	}
}

// mendPins looks for a replacement of maps that was cut short. If the new
// maps hadn't all taken over, they are given up; else it says so, and the
// rest has to be done.
func (b *Blocklist) mendPins() (interrupted bool, err error) {
	names, err := os.ReadDir(b.dir)
	if err != nil {
		return false, err
	}
	var undone bool
	for _, n := range names {
		undone = undone || strings.HasSuffix(n.Name(), newPin)
		interrupted = interrupted || strings.HasSuffix(n.Name(), oldPin)
	}
	if !undone {
		return interrupted, nil
	}
	for _, n := range names {
		if name, ok := strings.CutSuffix(n.Name(), oldPin); ok {
			if err := os.Rename(b.pin(n.Name()), b.pin(name)); err != nil {
				return false, err
			}
			// Renaming a pin over another of the same map does nothing.
			if err := os.Remove(b.pin(n.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return false, err
			}
		}
	}
	return false, b.removePins(newPin)
}

func (b *Blocklist) removePins(suffix string) error {
	names, err := os.ReadDir(b.dir)
	if err != nil {
		return err
	}
	for _, n := range names {
		if strings.HasSuffix(n.Name(), suffix) {
			if err := os.Remove(b.pin(n.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}
