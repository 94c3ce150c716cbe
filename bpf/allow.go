package bpf

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Allow is one allowlisted prefix: what comes from it passes, whatever bans
// it. Origin says who put it there: "config", "own", "session" or "manual";
// at most 15 bytes.
type Allow struct {
	Prefix netip.Prefix
	Origin string
}

// SetAllow adds to the allowlist or changes an entry's origin.
func (b *Blocklist) SetAllow(list ...Allow) error {
	prefixes := make([]netip.Prefix, len(list))
	for i, a := range list {
		p, err := Canonical(a.Prefix)
		if err != nil {
			return fmt.Errorf("allow %s: %w", a.Prefix, err)
		}
		if n := len(kernAllowed{}.Origin); len(a.Origin) >= n {
			return fmt.Errorf("allow %s: origin %q is longer than %d bytes", p, a.Origin, n-1)
		}
		prefixes[i] = p
	}
	set, unlock, err := b.lock()
	if err != nil {
		return err
	}
	defer unlock()
	for i, p := range prefixes {
		var value kernAllowed
		for j := range len(list[i].Origin) {
			value.Origin[j] = int8(list[i].Origin[j])
		}
		m, key, feature := set.allowKey(p)
		if err := m.Put(key, value); err != nil {
			return fmt.Errorf("allow %s: %w", p, full(err))
		}
		if err := b.setFeature(feature, true); err != nil {
			return fmt.Errorf("allow %s: %w", p, err)
		}
	}
	return nil
}

func (s *mapSet) allowKey(p netip.Prefix) (*ebpf.Map, any, kernFeature) {
	if p.Addr().Is4() {
		return s.Allow4, key4(p), kernFeatureFEATURE_ALLOW4
	}
	return s.Allow6, key6(p), kernFeatureFEATURE_ALLOW6
}

// RemoveAllow takes a prefix off the allowlist.
func (b *Blocklist) RemoveAllow(p netip.Prefix) (ok bool, err error) {
	given := p
	if p, err = Canonical(p); err != nil {
		return false, fmt.Errorf("remove %s from the allowlist: %w", given, err)
	}
	set, unlock, err := b.lock()
	if err != nil {
		return false, err
	}
	defer unlock()
	m, key, feature := set.allowKey(p)
	if err := m.Delete(key); errors.Is(err, ebpf.ErrKeyNotExist) {
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("remove %s from the allowlist: %w", p, err)
	}
	list, err := b.Allowed()
	if err != nil {
		return true, err
	}
	for _, a := range list {
		if a.Prefix.Addr().Is4() == p.Addr().Is4() {
			return true, nil
		}
	}
	return true, b.setFeature(feature, false)
}

// Allowed lists the allowlist.
func (b *Blocklist) Allowed() ([]Allow, error) {
	s, err := b.current()
	if err != nil {
		return nil, err
	}
	var out []Allow
	var value kernAllowed
	var k4 kernPrefix4
	it := s.Allow4.Iterate()
	for it.Next(&k4, &value) {
		out = append(out, Allow{prefixOf4(k4), text(value.Origin[:])})
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("walk allow4: %w", err)
	}
	var k6 kernPrefix6
	it = s.Allow6.Iterate()
	for it.Next(&k6, &value) {
		out = append(out, Allow{prefixOf6(k6), text(value.Origin[:])})
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("walk allow6: %w", err)
	}
	return out, nil
}

// full turns the kernel's word for a full map into ours.
func full(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.E2BIG) {
		return ErrFull
	}
	return err
}
