package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Maps can't be resized; they are replaced while traffic flows:
//
//  1. meta says so; a new map is filled with the bans of the old one, but not
//     what that counts, and a new map of origins with theirs;
//  2. the old map gets a second pin (suffix oldPin), and the new one takes
//     over the name in one step;
//  3. the program on each interface is replaced atomically by one that reads
//     the new map: up to then the old one decides, from then on the new one;
//  4. when no CPU runs the old program any more, what it has counted goes to
//     the new origins, and the old maps' pins are removed.
//
// The sieve is replaced with them, filled before any packet reads it.
//
// A process that dies anywhere in between leaves pins from which the next one
// to take its turn undoes 2 or carries out 3 and 4. That may be done again: the
// counts of an old map are final, and what they are added to is the old
// origin's, so that the sum is the same each time.
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

// replace makes tables anew with other sizes; the lock is held.
func (b *Blocklist) replace(sizes map[int]uint32) error {
	if len(sizes) == 0 {
		return nil
	}
	meta, err := b.readMeta()
	if err != nil {
		return fmt.Errorf("resize the maps: %w", err)
	}
	old := b.maps.Load()
	meta.Replacing = 1
	if err := b.writeMeta(meta); err != nil {
		return fmt.Errorf("resize the maps: %w", err)
	}
	set, names, err := b.makeReplacements(sizes, meta)
	for i := 0; i < len(names) && err == nil; i++ {
		err = b.swap(names[i])
	}
	meta.Maps++
	reload := err == nil
	if reload {
		set.generation = meta.Maps
		b.maps.Store(set)
		err = errors.Join(b.writeMeta(meta), b.reload(meta))
	}
	if err == nil {
		return errors.Join(b.finishReplacement(meta), old.writers.Close())
	}

	for _, name := range names {
		os.Remove(b.pin(name + newPin))
		// If the name is the new map's already, this takes it back.
		os.Rename(b.pin(name+oldPin), b.pin(name))
		os.Remove(b.pin(name + oldPin))
	}
	meta.Maps, meta.Replacing = meta.Maps+1, 0
	back := *old
	back.generation = meta.Maps
	b.maps.Store(&back)
	err = errors.Join(fmt.Errorf("resize the maps: %w", err), b.writeMeta(meta))
	if reload {
		err = errors.Join(err, b.reload(meta))
	}
	return err
}

// makeReplacements makes, fills and pins new maps: tables, the origins that
// belong to them, and the sieve if it has to be larger or may be smaller. It
// returns the set with them, and their names, on an error those that may be
// pinned.
func (b *Blocklist) makeReplacements(sizes map[int]uint32, meta kernMeta) (set *mapSet, names []string, err error) {
	old := b.maps.Load()
	replaced := *old
	set = &replaced
	set.writers, set.readers = nil, nil

	want := map[string]uint32{}
	var capacity [4]uint32
	var families [2]bool
	for i, t := range old.tables {
		capacity[i] = uint32(t.capacity())
		if n, ok := sizes[i]; ok {
			capacity[i], want[t.String()], families[i%2] = n, n, true
		}
	}
	for i, name := range []string{kernMapOrigin4, kernMapOrigin6} {
		if families[i] {
			want[name] = roomForOrigins(capacity[i], capacity[i+2])
		}
	}
	n := sieveWords(int(capacity[0]) + int(capacity[1]) + int(capacity[2]) + int(capacity[3]))
	newSieve := n != set.Sieve.MaxEntries()
	if newSieve {
		want[kernMapSieve] = n
		set.sieve = nil
	}
	for _, m := range set.all() {
		size, ok := want[m.name]
		if !ok {
			continue
		}
		spec := b.spec.Maps[m.name].Copy()
		spec.MaxEntries = size
		fresh, err := ebpf.NewMap(spec)
		if err != nil {
			return nil, names, err
		}
		names = append(names, m.name)
		if err := fresh.Pin(b.pin(m.name + newPin)); err != nil {
			return nil, names, err
		}
		if err := sameOwner(b.pin(m.name), b.pin(m.name+newPin)); err != nil {
			return nil, names, err
		}
		*m.m = fresh
	}
	if err := set.makeTables(b, meta); err != nil {
		return nil, names, err
	}
	for i, t := range old.tables {
		if !families[i%2] {
			continue
		}
		err := pour(t, func(list []pending) error {
			for j := range list {
				list[j].ban.Packets, list[j].ban.Bytes = 0, 0
			}
			if _, ok := sizes[i]; !ok {
				return set.tables[i].writeOrigins(list)
			}
			_, err := set.tables[i].write(list)
			return err
		})
		if err != nil {
			return nil, names, fmt.Errorf("fill %s: %w", t, err)
		}
	}
	if newSieve {
		err = set.sift()
	}
	return set, names, err
}

// swap gives a new map the name.
func (b *Blocklist) swap(name string) error {
	if err := os.Link(b.pin(name), b.pin(name+oldPin)); err != nil {
		return err
	}
	return os.Rename(b.pin(name+newPin), b.pin(name))
}

// finishReplacement does what is left to do once the new maps have the names
// and their program is in force.
func (b *Blocklist) finishReplacement(meta kernMeta) error {
	if err := b.settle(); err != nil {
		return err
	}
	meta.Replacing = 0
	return b.writeMeta(meta)
}

// mend carries out a replacement whose process has died, or undoes it; the lock
// is held.
func (b *Blocklist) mend(meta kernMeta) (kernMeta, error) {
	interrupted, err := mendPins(b.dir)
	if err != nil {
		return meta, err
	}
	meta.Maps++
	if err := b.writeMeta(meta); err != nil {
		return meta, err
	}
	if _, err := b.current(); err != nil {
		return meta, err
	}
	if interrupted {
		if err := b.reload(meta); err != nil {
			return meta, err
		}
	}
	if err := b.finishReplacement(meta); err != nil {
		return meta, err
	}
	return b.readMeta()
}

func (b *Blocklist) pin(name string) string { return filepath.Join(b.dir, name) }

// settle brings the counts of replaced maps to the new ones, when their program
// has made its last count, and removes their pins.
func (b *Blocklist) settle() error {
	waitForPrograms()
	set := b.maps.Load()
	was := *set
	was.writers, was.readers = nil, nil
	var opened []*ebpf.Map
	defer func() {
		for _, m := range opened {
			m.Close()
		}
		was.readers.Close()
	}()
	replaced := map[string]bool{}
	for _, m := range was.all() {
		old, err := ebpf.LoadPinnedMap(b.pin(m.name+oldPin), nil)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return fmt.Errorf("open %s: %w", b.pin(m.name+oldPin), err)
		}
		opened, replaced[m.name], *m.m = append(opened, old), true, old
	}
	meta, err := b.readMeta()
	if err != nil {
		return err
	}
	if err := was.makeTables(b, meta); err != nil {
		return err
	}
	for i, t := range was.tables {
		if !replaced[t.String()] {
			continue
		}
		err := pour(t, func(list []pending) error {
			list = slices.DeleteFunc(list, func(p pending) bool { return p.ban.Packets == 0 })
			return set.tables[i].writeOrigins(list)
		})
		if err != nil {
			return err
		}
	}
	// In this order, the origins stay until their tables have gone.
	return removePins(b.dir, oldPin)
}

// pour hands the entries of a table on, in parts.
func pour(from table, f func([]pending) error) error {
	var part []pending
	var failed error
	err := from.walkWhole(func(p pending) bool {
		if part = append(part, p); len(part) == batch {
			failed = f(part)
			part = part[:0]
		}
		return failed == nil
	})
	if err == nil && failed == nil && len(part) > 0 {
		failed = f(part)
	}
	return errors.Join(err, failed)
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
func mendPins(dir string) (interrupted bool, err error) {
	names, err := os.ReadDir(dir)
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
			old := filepath.Join(dir, n.Name())
			if err := os.Rename(old, filepath.Join(dir, name)); err != nil {
				return false, err
			}
			// Renaming a pin over another of the same map does nothing.
			if err := os.Remove(old); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return false, err
			}
		}
	}
	return false, removePins(dir, newPin)
}

// removePins removes them in the order of their names.
func removePins(dir, suffix string) error {
	names, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, n := range names {
		if strings.HasSuffix(n.Name(), suffix) {
			if err := os.Remove(filepath.Join(dir, n.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}
