package bpf

import (
	"errors"
	"fmt"
	"sync"

	"github.com/cilium/ebpf"
)

// maxJailName is the room for a jail's name and the NUL behind it.
const maxJailName = len(kernJailName{}.Name)

// jailNames is what the map jails holds: a ban names its jail by a number.
// A number keeps its name for as long as the maps live.
type jailNames struct {
	ids   map[string]uint32 // guarded by the lock
	names sync.Map          // uint32 → string
}

// jailID finds or makes a jail's number; the lock is held.
func (b *Blocklist) jailID(name string) (uint32, error) {
	if id, ok := b.jails.ids[name]; ok {
		return id, nil
	}
	ids, last := map[string]uint32{}, uint32(0)
	err := walk(b.maps.Load().Jails, 1, func(id uint32, v []kernJailName) bool {
		ids[text(v[0].Name[:])] = id
		last = max(last, id)
		return true
	})
	if err != nil {
		return 0, err
	}
	if _, ok := ids[name]; !ok {
		var value kernJailName
		for i := range len(name) {
			value.Name[i] = int8(name[i])
		}
		if err := b.maps.Load().Jails.Update(last+1, value, ebpf.UpdateNoExist); err != nil {
			return 0, fmt.Errorf("write jail %q to the kernel: %w", name, err)
		}
		ids[name] = last + 1
	}
	b.jails.ids = ids
	return ids[name], nil
}

// jailName is the name behind a number, empty for one that nobody knows.
func (b *Blocklist) jailName(id uint32) (string, error) {
	if name, ok := b.jails.names.Load(id); ok {
		return name.(string), nil
	}
	var value kernJailName
	if err := b.maps.Load().Jails.Lookup(id, &value); errors.Is(err, ebpf.ErrKeyNotExist) {
		return "", nil
	} else if err != nil {
		return "", fmt.Errorf("look up jail %d: %w", id, err)
	}
	name := text(value.Name[:])
	b.jails.names.Store(id, name)
	return name, nil
}

// text reads a C string.
func text(c []int8) string {
	var out []byte
	for _, ch := range c {
		if ch == 0 {
			break
		}
		out = append(out, byte(ch))
	}
	return string(out)
}
