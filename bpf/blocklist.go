// Package bpf is the kernel blocklist: the XDP program, its pinned maps, and
// its attachment to interfaces. It imports nothing of xdpban's own.
//
// A ban ends in the kernel: the program compares its end with the monotonic
// clock. Here ends are wall times, converted when they are written and read;
// a step of the wall clock doesn't move a standing ban, Sync does.
package bpf

import (
	"cmp"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"time"
)

// ErrFull says that a map has no room for another entry.
var ErrFull = errors.New("blocklist is full")

// A FullError lists the bans that were given up because a map is full: of
// all, standing and new, those that ended soonest. The others are in force.
// It is an ErrFull.
type FullError struct {
	GivenUp []Entry
}

func (e *FullError) Error() string {
	first := e.GivenUp[0].Prefix
	if n := len(e.GivenUp); n > 1 {
		return fmt.Sprintf("%v: gave up %s and %d others that ended soonest; raise max_bans", ErrFull, first, n-1)
	}
	return fmt.Sprintf("%v: gave up %s, which ended soonest; raise max_bans", ErrFull, first)
}

func (e *FullError) Is(target error) bool { return target == ErrFull }

// Ban is one banned source. A full-length prefix is a single address; an
// IPv4-mapped IPv6 one means the IPv4 one.
type Ban struct {
	Prefix netip.Prefix
	Jail   string    // who banned it; at most 63 bytes
	Since  time.Time // when
	Until  time.Time // zero: forever
	// Ports limits the ban to what is sent to these ports; none: everything
	// from the source is dropped. There is one ban a prefix: adding one with
	// other ports replaces them.
	Ports []Port
}

// Entry is a ban with what it has dropped so far, summed over the CPUs.
type Entry struct {
	Ban
	Packets, Bytes uint64
}

// Add bans one prefix, or sets the end, jail and since of a standing ban,
// keeping its counts. A FullError tells what was given up for it, or that it
// was itself.
func (b *Blocklist) Add(ban Ban) error {
	_, err := b.AddBatch([]Ban{ban})
	return err
}

// batch is how many bans are turned into the kernel's terms at a time.
const batch = 4096

// AddBatch is Add for many. It returns how many are dealt with: all of them
// if the error is nil or a FullError. On another error the first n are in
// force; of those behind some may be.
func (b *Blocklist) AddBatch(bans []Ban) (n int, err error) {
	prefixes := make([]netip.Prefix, len(bans))
	for i, ban := range bans {
		if prefixes[i], err = check(ban); err != nil {
			return 0, err
		}
	}
	_, unlock, err := b.lock()
	if err != nil {
		return 0, err
	}
	defer unlock()
	return b.add(bans, prefixes)
}

// add does the work of AddBatch, and of Sync; the lock is held.
func (b *Blocklist) add(bans []Ban, prefixes []netip.Prefix) (n int, err error) {
	if err := b.use(prefixes); err != nil {
		return 0, err
	}
	if err := b.makeRoom(prefixes); err != nil {
		return 0, err
	}
	at := now()
	var full FullError
	scopes := map[string]uint32{}
	var parts [4][]pending
	for n < len(bans) {
		for i := range parts {
			parts[i] = parts[i][:0]
		}
		end := min(n+batch, len(bans))
		for i := n; i < end; i++ {
			jail, err := b.jailID(bans[i].Jail)
			if err != nil {
				return n, err
			}
			scope := uint32(0)
			if len(bans[i].Ports) > 0 {
				name := fmt.Sprint(bans[i].Ports)
				if scope = scopes[name]; scope == 0 {
					if scope, err = b.scopeID(bans[i].Ports); err != nil {
						return n, err
					}
					scopes[name] = scope
				}
			}
			t := tableIndex(prefixes[i])
			parts[t] = append(parts[t], pending{
				prefix: prefixes[i],
				ban:    kernBan{Expires: at.expires(bans[i].Until) | uint64(scope)},
				origin: kernOrigin{Since: unixNano(bans[i].Since), Until: unixNano(bans[i].Until), Jail: jail},
			})
		}
		for i, list := range parts {
			if len(list) == 0 {
				continue
			}
			gone, err := b.put(i, list, at)
			full.GivenUp = append(full.GivenUp, gone...)
			if err != nil {
				if len(full.GivenUp) > 0 {
					err = errors.Join(err, &full)
				}
				return n, err
			}
		}
		n = end
	}
	if len(full.GivenUp) > 0 {
		return n, &full
	}
	return n, nil
}

// makeRoom lets tables into which much is to be written grow at once: all of
// it may be new.
func (b *Blocklist) makeRoom(prefixes []netip.Prefix) error {
	var more [4]int
	for _, p := range prefixes {
		more[tableIndex(p)]++
	}
	for i, n := range more {
		if n > b.maps.Load().tables[i].capacity() {
			if err := b.grow(i, n); err != nil {
				return err
			}
		}
	}
	return nil
}

// put writes to one table. If that is full and can't grow any more, the bans
// that end soonest make room, among the new and the standing ones, and are
// returned.
func (b *Blocklist) put(table int, list []pending, at instant) (gone []Entry, err error) {
	for {
		t := b.maps.Load().tables[table]
		left, err := t.write(list)
		if !errors.Is(err, ErrFull) {
			return gone, err
		}
		if t.capacity() < t.limit() {
			if err := b.grow(table, 2*t.capacity()); err != nil {
				return gone, err
			}
			list = left
			continue
		}
		left = lastOfEach(left)
		displaced, n, err := b.displace(t, left, at)
		gone = append(gone, displaced...)
		if err != nil || n == 0 {
			return gone, err
		}
		list = left[:n]
	}
}

// lastOfEach leaves out what is overridden further on.
func lastOfEach(list []pending) []pending {
	last := make(map[netip.Prefix]int, len(list))
	for i, p := range list {
		last[p.prefix] = i
	}
	out := make([]pending, 0, len(last))
	for i, p := range list {
		if last[p.prefix] == i {
			out = append(out, p)
		}
	}
	return out
}

// displace removes the standing entries that end soonest for the pending
// ones that end last. It returns what is given up, standing and pending, and
// the number of pending ones that have room now; list is sorted so that they
// are its first.
func (b *Blocklist) displace(t table, list []pending, at instant) (gone []Entry, n int, err error) {
	victims, err := t.victims(len(list))
	if err != nil {
		return nil, 0, err
	}
	slices.SortFunc(list, func(x, y pending) int { return cmp.Compare(dearness(y.ban.Expires), dearness(x.ban.Expires)) })
	var out []netip.Prefix
	for n < min(len(victims), len(list)) {
		v := victims[n]
		if !at.ended(v.expires) && dearness(v.expires) >= dearness(list[n].ban.Expires) {
			break
		}
		out = append(out, v.prefix)
		n++
	}
	were, err := t.remove(out)
	if err != nil {
		return nil, 0, err
	}
	for _, p := range append(were, list[n:]...) {
		e, err := b.entry(p, at)
		if err != nil {
			return nil, 0, err
		}
		if at.ended(p.ban.Expires) {
			b.swept = append(b.swept, e)
		} else {
			gone = append(gone, e)
		}
	}
	return gone, n, nil
}

// entry is a ban in our terms.
func (b *Blocklist) entry(p pending, at instant) (Entry, error) {
	jail, err := b.jailName(p.origin.Jail)
	if err != nil {
		return Entry{}, err
	}
	var ports []Port
	if scope := uint32(p.ban.Expires & scopeMask); scope != 0 {
		if ports, err = b.scopePorts(scope); err != nil {
			return Entry{}, err
		}
	}
	return Entry{
		Ban: Ban{
			Prefix: p.prefix,
			Jail:   jail,
			Since:  fromUnixNano(p.origin.Since),
			Until:  at.until(p.ban.Expires, p.origin.Until),
			Ports:  ports,
		},
		Packets: p.ban.Packets + p.origin.Packets,
		Bytes:   p.ban.Bytes + p.origin.Bytes,
	}, nil
}

// check refuses what can't be a ban and returns the prefix in the form that
// is written: masked, IPv4 as IPv4.
func check(ban Ban) (netip.Prefix, error) {
	p, err := Canonical(ban.Prefix)
	if err != nil {
		return p, fmt.Errorf("ban %s: %w", ban.Prefix, err)
	}
	if p.Bits() == 0 {
		return p, fmt.Errorf("ban %s: that is everybody; use policy deny for that", ban.Prefix)
	}
	for _, port := range ban.Ports {
		if _, err := port.key(0); err != nil {
			return p, fmt.Errorf("ban %s: %w", p, err)
		}
	}
	if len(ban.Jail) >= maxJailName {
		return p, fmt.Errorf("ban %s: jail name %q is longer than %d bytes", p, ban.Jail, maxJailName-1)
	}
	return p, nil
}

// Canonical is the form in which a prefix is kept: its host bits cleared, no
// zone, an IPv4-mapped IPv6 prefix as IPv4.
func Canonical(p netip.Prefix) (netip.Prefix, error) {
	if !p.IsValid() {
		return p, errors.New("not an address or prefix")
	}
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		return netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96).Masked(), nil
	}
	return p.Masked(), nil
}

// Remove unbans exactly this prefix and returns what the entry was; ok is
// false if there was none, or only one that had ended: then that is returned.
func (b *Blocklist) Remove(p netip.Prefix) (e Entry, ok bool, err error) {
	standing, ended, err := b.remove([]netip.Prefix{p})
	switch {
	case err != nil:
		return Entry{}, false, err
	case len(standing) > 0:
		return standing[0], true, nil
	case len(ended) > 0:
		return ended[0], false, nil
	}
	return Entry{}, false, nil
}

// RemoveBatch is Remove for many: it returns what was banned. On an error
// that is what has been removed.
func (b *Blocklist) RemoveBatch(prefixes []netip.Prefix) ([]Entry, error) {
	standing, _, err := b.remove(prefixes)
	return standing, err
}

func (b *Blocklist) remove(prefixes []netip.Prefix) (standing, ended []Entry, err error) {
	var parts [4][]netip.Prefix
	for _, given := range prefixes {
		p, err := Canonical(given)
		if err != nil {
			return nil, nil, fmt.Errorf("unban %s: %w", given, err)
		}
		parts[tableIndex(p)] = append(parts[tableIndex(p)], p)
	}
	set, unlock, err := b.lock()
	if err != nil {
		return nil, nil, err
	}
	defer unlock()
	at := now()
	for i, list := range parts {
		gone, removeErr := set.tables[i].remove(list)
		for _, p := range gone {
			e, err := b.entry(p, at)
			if err != nil {
				return standing, ended, errors.Join(err, removeErr)
			}
			if at.ended(p.ban.Expires) {
				ended = append(ended, e)
			} else {
				standing = append(standing, e)
			}
		}
		if removeErr != nil {
			return standing, ended, removeErr
		}
	}
	return standing, ended, b.sift(len(standing) + len(ended))
}

// List walks all entries, expired ones that nobody swept yet left out. The
// order is the kernel's.
func (b *Blocklist) List() iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		set, err := b.current()
		if err != nil {
			yield(Entry{}, err)
			return
		}
		for _, t := range set.tables {
			at, stopped := now(), false
			err := t.walkWhole(func(p pending) bool {
				if at.ended(p.ban.Expires) {
					return true
				}
				e, err := b.entry(p, at)
				stopped = !yield(e, err)
				return !stopped
			})
			if stopped {
				return
			}
			if err != nil && !yield(Entry{}, err) {
				return
			}
		}
	}
}

// Sweep deletes what has expired and returns it with its last counts. It
// walks everything: once a minute or so is often enough, since an ended ban
// drops nothing.
func (b *Blocklist) Sweep() ([]Entry, error) {
	set, unlock, err := b.lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	at, lens, mesh := now(), lengths{}, set.sieve.mesh()
	out := b.swept
	b.swept = nil
	for _, t := range set.tables {
		var ended []netip.Prefix
		err := t.walk(func(p netip.Prefix, ban kernBan) bool {
			if at.ended(ban.Expires) {
				ended = append(ended, p)
			} else {
				lens.add(p)
				mesh.add(p)
			}
			return true
		})
		if err != nil {
			return out, err
		}
		were, removeErr := t.remove(ended)
		for _, p := range were {
			e, err := b.entry(p, at)
			if err != nil {
				return out, errors.Join(err, removeErr)
			}
			out = append(out, e)
		}
		if removeErr != nil {
			return out, removeErr
		}
	}
	if err := mesh.use(); err != nil {
		return out, err
	}
	// What isn't in use any more leaves the program.
	return out, b.setLengths(lens)
}

// Sync makes the set exactly this one: adds, changes, removes, in batches,
// keeping the counts of what stays. A source in both sets is banned
// throughout. Of a prefix given twice the later end counts.
func (b *Blocklist) Sync(bans []Ban) error {
	wanted := make(map[netip.Prefix]Ban, len(bans))
	for _, ban := range bans {
		p, err := check(ban)
		if err != nil {
			return err
		}
		if old, ok := wanted[p]; ok && !old.Until.IsZero() && (ban.Until.IsZero() || ban.Until.After(old.Until)) || !ok {
			wanted[p] = ban
		}
	}
	set, unlock, err := b.lock()
	if err != nil {
		return err
	}
	defer unlock()

	at := now()
	var removed [4][]netip.Prefix
	standing := [4]int{}
	for i, t := range set.tables {
		var entryErr error
		err := t.walkWhole(func(have pending) bool {
			p := have.prefix
			standing[i]++
			ban, ok := wanted[p]
			var e Entry
			if e, entryErr = b.entry(have, at); entryErr != nil {
				return false
			}
			switch {
			case !ok:
				removed[i] = append(removed[i], p)
				if at.ended(have.ban.Expires) {
					b.swept = append(b.swept, e)
				}
			case e.Jail == ban.Jail && e.Since.Equal(ban.Since) && e.Until.Equal(ban.Until) && samePorts(e.Ports, ban.Ports):
				delete(wanted, p)
			}
			return true
		})
		if err := errors.Join(err, entryErr); err != nil {
			return err
		}
	}

	add := make([]Ban, 0, len(wanted))
	prefixes := make([]netip.Prefix, 0, len(wanted))
	var more [4]int
	for p, ban := range wanted {
		add, prefixes = append(add, ban), append(prefixes, p)
		more[tableIndex(p)]++
	}
	remove := func() error {
		n := 0
		for i, list := range removed {
			n += len(list)
			// Adding may have replaced the maps.
			if _, err := b.maps.Load().tables[i].remove(list); err != nil {
				return err
			}
		}
		return b.sift(n)
	}
	// Adding first leaves no gap where a subnet takes the place of its
	// addresses; only if that doesn't fit, removing goes first.
	roomy := true
	for i, t := range set.tables {
		roomy = roomy && standing[i]+more[i] <= t.limit()
	}
	if !roomy {
		if err := remove(); err != nil {
			return err
		}
		_, err := b.add(add, prefixes)
		return err
	}
	if _, err := b.add(add, prefixes); err != nil {
		return err
	}
	// A packet that has looked for the new entries before they were made is
	// yet to look for the old ones.
	waitForPrograms()
	return remove()
}

// Covering lists the live entries that cover p, the address's own first,
// then wider and wider subnets.
func (b *Blocklist) Covering(p netip.Prefix) ([]Entry, error) {
	given := p
	p, err := Canonical(p)
	if err != nil {
		return nil, fmt.Errorf("look for what covers %s: %w", given, err)
	}
	set, err := b.current()
	if err != nil {
		return nil, err
	}
	meta, err := b.readMeta()
	if err != nil {
		return nil, err
	}
	var out []Entry
	at, lens := now(), lengthsOf(meta)
	for bits := p.Bits(); bits > 0; bits-- {
		q := netip.PrefixFrom(p.Addr(), bits).Masked()
		if bits < p.Addr().BitLen() && !lens.has(q) {
			continue
		}
		have, ok, err := set.tableOf(q).get(q)
		if err != nil {
			return out, err
		}
		if !ok || at.ended(have.ban.Expires) {
			continue
		}
		e, err := b.entry(have, at)
		if err != nil {
			return out, err
		}
		out = append(out, e)
	}
	return out, nil
}
