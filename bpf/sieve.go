package bpf

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"

	"github.com/cilium/ebpf"
)

// sieve is a bit for each entry of the tables, in the map of that name: a
// packet whose bit isn't set isn't looked up. No ban may be missed: bits are
// set before their entry is made, and only a walk of all entries clears any.
// The lock is held wherever it is written.
type sieve struct {
	m      *ebpf.Map
	memory *ebpf.Memory
}

// sieveWords is the size for tables with room for n entries: 8 to 16 bits
// for each, so that of the others one in ten or fewer is looked up in vain.
func sieveWords(n int) uint32 {
	return 1 << min(bits.Len(uint(max(8*n, 64)-1))-6, 25)
}

func openSieve(m *ebpf.Map) (*sieve, error) {
	memory, err := m.Memory()
	if err != nil {
		return nil, fmt.Errorf("map the sieve into memory: %w", err)
	}
	return &sieve{m, memory}, nil
}

// shift is how many of a hash's 64 bits aren't used.
func (s *sieve) shift() uint32 { return uint32(64 - 6 - bits.Len32(s.m.MaxEntries()-1)) }

// spread, mix and bit are those of xdpban.bpf.c.
const spread = 0x9e3779b97f4a7c15

func mix(h, word uint64) uint64 {
	h = (h ^ word) * spread
	return h ^ h>>32
}

// bit is a prefix's place.
func (s *sieve) bit(p netip.Prefix) uint64 {
	k := requestKey(p)
	h := uint64(k.Len)
	if p.Addr().Is4() {
		h = mix(h, uint64(k.Addr[0]))
	} else {
		h = mix(mix(h, uint64(k.Addr[0])<<32|uint64(k.Addr[1])), uint64(k.Addr[2])<<32|uint64(k.Addr[3]))
	}
	return h * spread >> s.shift()
}

// add sets the bits of what is about to be written.
func (s *sieve) add(list []pending) error {
	var word [8]byte
	for _, p := range list {
		bit := s.bit(p.prefix)
		at := int64(bit / 64 * 8)
		if _, err := s.memory.ReadAt(word[:], at); err != nil {
			return fmt.Errorf("read the sieve: %w", err)
		}
		w := binary.NativeEndian.Uint64(word[:])
		if w&(1<<(bit%64)) != 0 {
			continue
		}
		binary.NativeEndian.PutUint64(word[:], w|1<<(bit%64))
		if _, err := s.memory.WriteAt(word[:], at); err != nil {
			return fmt.Errorf("write the sieve: %w", err)
		}
	}
	return nil
}

// mesh is what a sieve is to be, once all that stands has been added.
type mesh struct {
	s     *sieve
	words []byte
}

func (s *sieve) mesh() mesh { return mesh{s, make([]byte, 8*s.m.MaxEntries())} }

func (m mesh) add(p netip.Prefix) {
	bit := m.s.bit(p)
	word := m.words[bit/64*8:][:8]
	binary.NativeEndian.PutUint64(word, binary.NativeEndian.Uint64(word)|1<<(bit%64))
}

// use writes it. A bit of what stands is set before and after, so no packet
// finds it missing, wherever the copy is just then.
func (m mesh) use() error {
	if _, err := m.s.memory.WriteAt(m.words, 0); err != nil {
		return fmt.Errorf("write the sieve: %w", err)
	}
	return nil
}

// sift clears the bits of what has been removed, if that is so much that it
// is worth a walk of all entries: an eighth of what there is room for, or
// more. The next Sweep clears the others.
func (b *Blocklist) sift(removed int) error {
	set := b.maps.Load()
	if removed < int(set.Sieve.MaxEntries()) {
		return nil
	}
	return set.sift()
}

func (s *mapSet) sift() error {
	m := s.sieve.mesh()
	for _, t := range s.tables {
		err := t.walk(func(p netip.Prefix, _ kernBan) bool {
			m.add(p)
			return true
		})
		if err != nil {
			return err
		}
	}
	return m.use()
}
