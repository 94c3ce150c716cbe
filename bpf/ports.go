package bpf

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Port is a destination port of TCP or UDP, over IPv4 and IPv6. It is found
// behind IP options and up to eight extension headers. A later fragment of a
// packet has no port and passes what is judged by port; without its first
// fragment the receiver can make nothing of it.
type Port struct {
	Proto string // "tcp" or "udp"
	Port  uint16
}

// ParsePort reads "22/tcp".
func ParsePort(s string) (Port, error) {
	number, proto, _ := strings.Cut(s, "/")
	n, err := strconv.ParseUint(number, 10, 16)
	if err != nil || n == 0 || proto != "tcp" && proto != "udp" {
		return Port{}, fmt.Errorf("port %q: write a number from 1 to 65535 and the protocol, as in 22/tcp or 53/udp", s)
	}
	return Port{proto, uint16(n)}, nil
}

func (p Port) String() string { return fmt.Sprintf("%d/%s", p.Port, p.Proto) }

func (p Port) compare(q Port) int {
	return cmp.Or(cmp.Compare(p.Port, q.Port), cmp.Compare(p.Proto, q.Proto))
}

// BlockedPort is a port that is closed to everybody, with what it has
// dropped.
type BlockedPort struct {
	Port
	Packets, Bytes uint64
}

func (p Port) key(scope uint32) (kernPort, error) {
	var be [2]byte
	binary.BigEndian.PutUint16(be[:], p.Port)
	k := kernPort{Port: binary.NativeEndian.Uint16(be[:]), Scope: scope}
	switch p.Proto {
	case "tcp":
		k.Proto = unix.IPPROTO_TCP
	case "udp":
		k.Proto = unix.IPPROTO_UDP
	default:
		return k, fmt.Errorf("port %s: the protocol is tcp or udp", p)
	}
	if p.Port == 0 {
		return k, fmt.Errorf("port %s: ports go from 1 to 65535", p)
	}
	return k, nil
}

func portOf(k kernPort) Port {
	var be [2]byte
	binary.NativeEndian.PutUint16(be[:], k.Port)
	proto := "tcp"
	if k.Proto == unix.IPPROTO_UDP {
		proto = "udp"
	}
	return Port{proto, binary.BigEndian.Uint16(be[:])}
}

// BlockPort closes ports to everybody who isn't on the allowlist. A port
// that is blocked already keeps its counts.
func (b *Blocklist) BlockPort(ports ...Port) error {
	keys := make([]kernPort, len(ports))
	for i, p := range ports {
		var err error
		if keys[i], err = p.key(0); err != nil {
			return err
		}
	}
	set, unlock, err := b.lock()
	if err != nil {
		return err
	}
	defer unlock()
	for i, k := range keys {
		if err := set.addPort(k); err != nil {
			return fmt.Errorf("block port %s: %w", ports[i], err)
		}
	}
	return b.setFeature(kernFeatureFEATURE_PORTS, true)
}

func (s *mapSet) addPort(k kernPort) error {
	err := s.Ports.Update(k, make([]kernCounter, ebpf.MustPossibleCPU()), ebpf.UpdateNoExist)
	if errors.Is(err, ebpf.ErrKeyExist) {
		return nil
	}
	return full(err)
}

// UnblockPort opens a port again and returns what it was; ok is false if it
// wasn't blocked.
func (b *Blocklist) UnblockPort(p Port) (was BlockedPort, ok bool, err error) {
	k, err := p.key(0)
	if err != nil {
		return BlockedPort{}, false, err
	}
	set, unlock, err := b.lock()
	if err != nil {
		return BlockedPort{}, false, err
	}
	defer unlock()
	list, err := b.BlockedPorts()
	if err != nil {
		return BlockedPort{}, false, err
	}
	i := slices.IndexFunc(list, func(q BlockedPort) bool { return q.Port == p })
	if i < 0 {
		return BlockedPort{}, false, nil
	}
	if err := set.Ports.Delete(k); err != nil {
		return BlockedPort{}, false, fmt.Errorf("unblock port %s: %w", p, err)
	}
	if len(list) == 1 {
		err = b.setFeature(kernFeatureFEATURE_PORTS, false)
	}
	return list[i], true, err
}

// BlockedPorts lists the ports that are closed to everybody, in order.
func (b *Blocklist) BlockedPorts() ([]BlockedPort, error) {
	var out []BlockedPort
	err := b.walkPorts(func(k kernPort, v []kernCounter) {
		if k.Scope != 0 {
			return
		}
		p := BlockedPort{Port: portOf(k)}
		for _, c := range v {
			p.Packets += c.Packets
			p.Bytes += c.Bytes
		}
		out = append(out, p)
	})
	slices.SortFunc(out, func(p, q BlockedPort) int { return p.compare(q.Port) })
	return out, err
}

func (b *Blocklist) walkPorts(f func(kernPort, []kernCounter)) error {
	set, err := b.current()
	if err != nil {
		return err
	}
	return walk(set.Ports, ebpf.MustPossibleCPU(), func(k kernPort, v []kernCounter) bool {
		f(k, v)
		return true
	})
}

// A scope is a set of ports that bans may be limited to; its number is in
// the low bits of their ends. Numbers are never used again.

// scopes reads all scopes.
func (b *Blocklist) scopes() (map[uint32][]Port, error) {
	out := map[uint32][]Port{}
	err := b.walkPorts(func(k kernPort, _ []kernCounter) {
		if k.Scope != 0 {
			out[k.Scope] = append(out[k.Scope], portOf(k))
		}
	})
	for _, ports := range out {
		slices.SortFunc(ports, Port.compare)
	}
	return out, err
}

// scopeID finds or makes the scope of some ports; no ports are scope 0, all
// of a source's packets. The lock is held.
func (b *Blocklist) scopeID(ports []Port) (uint32, error) {
	if len(ports) == 0 {
		return 0, nil
	}
	ports = slices.Clone(ports)
	slices.SortFunc(ports, Port.compare)
	ports = slices.Compact(ports)
	scopes, err := b.scopes()
	if err != nil {
		return 0, err
	}
	id := uint32(1)
	for n, have := range scopes {
		if slices.Equal(have, ports) {
			return n, nil
		}
		id = max(id, n+1)
	}
	if id > scopeMask {
		return 0, fmt.Errorf("limit a ban to %v: there are %d such sets of ports already: %w", ports, scopeMask, ErrFull)
	}
	for _, p := range ports {
		k, err := p.key(id)
		if err != nil {
			return 0, err
		}
		if err := b.maps.Load().addPort(k); err != nil {
			return 0, fmt.Errorf("limit a ban to %s: %w", p, err)
		}
	}
	return id, b.setFeature(kernFeatureFEATURE_SCOPES, true)
}

// scopePorts are the ports of a scope. A number keeps its ports for as long
// as the maps live, so what is known stays known.
func (b *Blocklist) scopePorts(id uint32) ([]Port, error) {
	if ports, ok := b.scopeCache.Load(id); ok {
		return ports.([]Port), nil
	}
	scopes, err := b.scopes()
	if err != nil {
		return nil, err
	}
	for n, ports := range scopes {
		b.scopeCache.Store(n, ports)
	}
	return scopes[id], nil
}

func samePorts(a, b []Port) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	slices.SortFunc(a, Port.compare)
	slices.SortFunc(b, Port.compare)
	return slices.Equal(slices.Compact(a), slices.Compact(b))
}
