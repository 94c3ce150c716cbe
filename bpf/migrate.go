package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"structs"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// v2Ban is a ban in schema v2: one value for all CPUs, and nothing beside it.
// An end with none of the bits above the scope set never came.
type v2Ban struct {
	_                       structs.HostLayout
	Expires, Packets, Bytes uint64
	Since, Until            int64
	Jail, Pad               uint32
}

// v2 is the pins of an xdpban of that schema, locked against its writers.
type v2 struct {
	dir    string
	folder *os.File
	meta   kernMeta
	maps   map[string]*ebpf.Map // of bans; also with oldPin, if it died while they grew
}

const (
	v2Name = "v2"
	// v2Gone is what is yet to be removed of it.
	v2Gone = "v2-gone"
)

// errNeverComplete says that an older xdpban died while it made its maps, of
// which meta is the last: nothing is in force by them.
var errNeverComplete = errors.New("there is no meta")

// openV2 finds what an older xdpban has left: nil if there is nothing. The
// maps that are the same get a pin in our folder, too.
func (b *Blocklist) openV2() (old *v2, err error) {
	root := filepath.Dir(b.dir)
	if err := os.RemoveAll(filepath.Join(root, v2Gone)); err != nil {
		return nil, err
	}
	old = &v2{dir: filepath.Join(root, v2Name), maps: map[string]*ebpf.Map{}}
	if old.folder, err = os.Open(old.dir); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	if err := old.open(b); errors.Is(err, errNeverComplete) {
		return nil, old.Close()
	} else if err != nil {
		return nil, errors.Join(fmt.Errorf("take over from %s: %w", old.dir, err), old.Close())
	}
	return old, nil
}

func (old *v2) open(b *Blocklist) error {
	if err := unix.Flock(int(old.folder.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock it: %w", err)
	}
	if _, err := mendPins(old.dir); err != nil {
		return err
	}
	meta, err := ebpf.LoadPinnedMap(filepath.Join(old.dir, kernMapMeta), nil)
	if errors.Is(err, fs.ErrNotExist) {
		return errNeverComplete
	} else if err != nil {
		return fmt.Errorf("open %s: %w", kernMapMeta, err)
	}
	defer meta.Close()
	if err := meta.Lookup(uint32(0), &old.meta); err != nil {
		return fmt.Errorf("read %s: %w", kernMapMeta, err)
	}
	for _, name := range []string{kernMapBan4, kernMapBan6, kernMapNet4, kernMapNet6} {
		for _, pin := range []string{name, name + oldPin} {
			m, err := ebpf.LoadPinnedMap(filepath.Join(old.dir, pin), nil)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			} else if err != nil {
				return fmt.Errorf("open %s: %w", pin, err)
			}
			old.maps[pin] = m
		}
		if m := old.maps[name]; m != nil {
			b.spec.Maps[name].MaxEntries = m.MaxEntries()
		}
	}
	for _, name := range []string{
		kernMapAllow4, kernMapAllow6, kernMapVerdicts, kernMapJails, kernMapPorts,
		kernMapPipeline, kernMapEvents, kernMapIfaces,
	} {
		err := os.Link(filepath.Join(old.dir, name), b.pin(name))
		if err != nil && !errors.Is(err, fs.ErrExist) && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func (old *v2) Close() error {
	err := old.folder.Close()
	for _, m := range old.maps {
		err = errors.Join(err, m.Close())
	}
	return err
}

// migrationStep is a part of the migration.
type migrationStep struct {
	name string
	do   func() error
}

// migration takes over the bans and the links of schema v2, while traffic
// flows: up to the replacement of a link's program the old one decides, from
// then on ours. Each step can be done again, with the same result, so whoever
// dies leaves it to the next one, who begins anew: what the old maps have
// counted is written, not added, and their folder goes at once. The lock is
// held.
func (b *Blocklist) migration(old *v2) []migrationStep {
	return []migrationStep{
		{"copy the bans", func() error { return b.copyBans(old) }},
		{"move the links", func() error { return b.moveLinks(old) }},
		{"replace the programs", func() error {
			meta, err := b.readMeta()
			if err != nil {
				return err
			}
			return b.reload(meta)
		}},
		{"take over the counts", func() error { return b.takeCounts(old) }},
		{"let go of the old pins", func() error {
			gone := filepath.Join(filepath.Dir(old.dir), v2Gone)
			if err := os.Rename(old.dir, gone); err != nil {
				return err
			}
			return os.RemoveAll(gone)
		}},
	}
}

// copyBans makes the old bans ours, without their counts.
func (b *Blocklist) copyBans(old *v2) error {
	for _, t := range b.maps.Load().tables {
		m := old.maps[t.String()]
		if m == nil {
			continue
		}
		var list []pending
		err := t.walkV2(m, func(p pending) {
			p.ban.Packets, p.ban.Bytes = 0, 0
			list = append(list, p)
		})
		if err != nil {
			return err
		}
		if _, err := t.write(list); err != nil {
			return err
		}
	}
	return nil
}

// moveLinks moves the pins of the links, and gives ours their owners and modes.
func (b *Blocklist) moveLinks(old *v2) error {
	if err := os.MkdirAll(b.linksDir(), 0o700); err != nil {
		return err
	}
	owners := map[string]string{"": "", "links": "links", kernMapOrigin4: kernMapBan4, kernMapOrigin6: kernMapBan6}
	for _, name := range []string{kernMapBan4, kernMapBan6, kernMapNet4, kernMapNet6, kernMapSieve, kernMapMeta} {
		owners[name] = name
	}
	for to, from := range owners {
		if err := sameOwner(filepath.Join(old.dir, from), b.pin(to)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	links, err := os.ReadDir(filepath.Join(old.dir, "links"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, l := range links {
		if err := os.Rename(filepath.Join(old.dir, "links", l.Name()), filepath.Join(b.linksDir(), l.Name())); err != nil {
			return err
		}
	}
	return nil
}

// takeCounts writes what the old maps have counted, once they count no more, to
// the origins.
func (b *Blocklist) takeCounts(old *v2) error {
	waitForPrograms()
	for _, t := range b.maps.Load().tables {
		m := old.maps[t.String()]
		if m == nil {
			continue
		}
		// What growing was to add yet.
		more := map[netip.Prefix]kernBan{}
		if grown := old.maps[t.String()+oldPin]; grown != nil {
			if err := t.walkV2(grown, func(p pending) { more[p.prefix] = p.ban }); err != nil {
				return err
			}
		}
		var list []pending
		err := t.walkV2(m, func(p pending) {
			p.ban.Packets += more[p.prefix].Packets
			p.ban.Bytes += more[p.prefix].Bytes
			if p.ban.Packets > 0 {
				list = append(list, p)
			}
		})
		if err != nil {
			return err
		}
		if err := t.writeOrigins(list); err != nil {
			return err
		}
	}
	return nil
}

func (t *bans[K, O]) walkV2(m *ebpf.Map, f func(pending)) error {
	return walk(m, 1, func(k K, v []v2Ban) bool {
		w := v[0]
		if w.Expires <= scopeMask {
			w.Expires |= never
		}
		f(pending{
			prefix: t.prefix(k),
			ban:    kernBan{Expires: w.Expires, Packets: w.Packets, Bytes: w.Bytes},
			origin: kernOrigin{Since: w.Since, Until: w.Until, Jail: w.Jail},
		})
		return true
	})
}
