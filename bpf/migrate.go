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

// Schema v1 kept a ban in two maps: an end and counts for each CPU in ban4
// and its like, the rest in origin4 and origin6. The other maps are the same.
type (
	v1Ban struct {
		_                       structs.HostLayout
		Expires, Packets, Bytes uint64
	}
	v1Origin struct {
		_              structs.HostLayout
		Since, Until   int64
		Packets, Bytes uint64
		Jail, Pad      uint32
	}
)

// v1 is the pins of an xdpban of that schema, locked against its writers.
type v1 struct {
	dir    string
	folder *os.File
}

// openV1 finds what an older xdpban has left: nil if there is nothing. The
// maps that are the same get a pin in our folder, too.
func (b *Blocklist) openV1() (*v1, error) {
	old := &v1{dir: filepath.Join(filepath.Dir(b.dir), "v1")}
	var err error
	if old.folder, err = os.Open(old.dir); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(old.folder.Fd()), unix.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", old.dir, err), old.folder.Close())
	}
	for _, name := range []string{
		kernMapAllow4, kernMapAllow6, kernMapVerdicts, kernMapJails, kernMapPorts,
		kernMapPipeline, kernMapEvents, kernMapIfaces, kernMapMeta,
	} {
		err := os.Link(filepath.Join(old.dir, name), b.pin(name))
		if err != nil && !errors.Is(err, fs.ErrExist) && !errors.Is(err, fs.ErrNotExist) {
			return nil, errors.Join(fmt.Errorf("take over from %s: %w", old.dir, err), old.folder.Close())
		}
	}
	return old, nil
}

// migrate takes over the bans and the links of schema v1, while traffic
// flows: up to the replacement of the link's program the old one decides,
// from then on ours, and then what the old one has counted is added. Whoever
// dies in between leaves it to the next one, who does it again. The lock is
// held.
func (b *Blocklist) migrate(old *v1) error {
	at := now()
	var maps [4]*ebpf.Map
	for i, t := range b.maps.Load().tables {
		m, err := ebpf.LoadPinnedMap(filepath.Join(old.dir, t.String()), nil)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return err
		}
		defer m.Close()
		maps[i] = m
		origins, err := old.origins(i)
		if err != nil {
			return err
		}
		var list []pending
		err = t.walkV1(m, func(p netip.Prefix, v v1Ban) {
			o := origins[p]
			list = append(list, pending{p, kernBan{Expires: v.Expires, Since: o.Since, Until: o.Until, Jail: o.Jail}})
		})
		if err != nil {
			return err
		}
		if gone, err := b.put(i, list, at); err != nil {
			return err
		} else if len(gone) > 0 {
			return &FullError{GivenUp: gone}
		}
	}

	links, err := os.ReadDir(filepath.Join(old.dir, "links"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(b.linksDir(), 0o700); err != nil {
		return err
	}
	for _, l := range links {
		if err := os.Rename(filepath.Join(old.dir, "links", l.Name()), filepath.Join(b.linksDir(), l.Name())); err != nil {
			return err
		}
	}
	meta, err := b.readMeta()
	if err != nil {
		return err
	}
	if err := b.reload(meta); err != nil {
		return err
	}
	waitForPrograms()

	for i, t := range b.maps.Load().tables {
		if maps[i] == nil {
			continue
		}
		origins, err := old.origins(i)
		if err != nil {
			return err
		}
		var list []pending
		err = t.walkV1(maps[i], func(p netip.Prefix, v v1Ban) {
			o := origins[p]
			if v.Packets += o.Packets; v.Packets > 0 {
				list = append(list, pending{p, kernBan{Packets: v.Packets, Bytes: v.Bytes + o.Bytes}})
			}
		})
		if err != nil {
			return err
		}
		if err := t.count(list); err != nil {
			return err
		}
		// What is added isn't there for another try.
		if err := os.Remove(filepath.Join(old.dir, t.String())); err != nil {
			return err
		}
	}
	return os.RemoveAll(old.dir)
}

// origins reads the rest of a table's bans.
func (old *v1) origins(table int) (map[netip.Prefix]v1Origin, error) {
	name := []string{"origin4", "origin6"}[table%2]
	m, err := ebpf.LoadPinnedMap(filepath.Join(old.dir, name), nil)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	out := map[netip.Prefix]v1Origin{}
	if table%2 == 0 {
		err = walk(m, 1, func(k kernPrefix4, v []v1Origin) bool { out[prefixOf4(k)] = v[0]; return true })
	} else {
		err = walk(m, 1, func(k kernPrefix6, v []v1Origin) bool { out[prefixOf6(k)] = v[0]; return true })
	}
	return out, err
}

func (t *bans[K]) walkV1(m *ebpf.Map, f func(netip.Prefix, v1Ban)) error {
	return walk(m, ebpf.MustPossibleCPU(), func(k K, cpus []v1Ban) bool {
		sum := v1Ban{Expires: cpus[0].Expires}
		for _, c := range cpus {
			sum.Packets += c.Packets
			sum.Bytes += c.Bytes
		}
		f(t.prefix(k), sum)
		return true
	})
}
