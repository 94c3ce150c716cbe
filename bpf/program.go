package bpf

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"
)

// lengths are the prefix lengths of subnets in use, as meta keeps them: more
// may be noted than are used, never fewer.
type lengths struct {
	v4 uint32
	v6 [2]uint64
}

func lengthsOf(m kernMeta) lengths { return lengths{v4: m.Lens4, v6: m.Lens6} }

// add notes a subnet's length; a single address has none.
func (l *lengths) add(p netip.Prefix) {
	switch n := p.Bits(); {
	case n == p.Addr().BitLen():
	case p.Addr().Is4():
		l.v4 |= 1 << n
	default:
		l.v6[n/64] |= 1 << (n % 64)
	}
}

func (l lengths) has(p netip.Prefix) bool {
	if n := p.Bits(); p.Addr().Is4() {
		return l.v4&(1<<n) != 0
	} else {
		return l.v6[n/64]&(1<<(n%64)) != 0
	}
}

// use makes the program look for the lengths of these prefixes; the lock is
// held.
func (b *Blocklist) use(prefixes []netip.Prefix) error {
	meta, err := b.readMeta()
	if err != nil {
		return err
	}
	lens := lengthsOf(meta)
	for _, p := range prefixes {
		lens.add(p)
	}
	return b.setLengths(lens)
}

func (b *Blocklist) setLengths(lens lengths) error {
	meta, err := b.readMeta()
	if err != nil || lens == lengthsOf(meta) {
		return err
	}
	meta.Lens4, meta.Lens6 = lens.v4, lens.v6
	return b.configure(meta)
}

// setFeature turns a part of the program on or off; the lock is held.
func (b *Blocklist) setFeature(f kernFeature, on bool) error {
	meta, err := b.readMeta()
	if err != nil || (meta.Features&uint32(f) != 0) == on {
		return err
	}
	meta.Features ^= uint32(f)
	return b.configure(meta)
}

// configure puts a changed meta into force, on all interfaces. If that
// fails, meta is as it was, so that the next attempt starts anew.
func (b *Blocklist) configure(meta kernMeta) error {
	old, err := b.readMeta()
	if err != nil {
		return err
	}
	if err := b.writeMeta(meta); err != nil {
		return err
	}
	if err := b.reload(meta); err != nil {
		return errors.Join(err, b.writeMeta(old))
	}
	return nil
}

// load makes the program for one interface: what meta doesn't ask for isn't
// in it.
func (b *Blocklist) load(meta kernMeta, slot uint32) (*ebpf.Program, error) {
	spec := b.spec.Copy()
	coarse, err := hasHelper(asm.FnKtimeGetCoarseNs)
	if err != nil {
		return nil, err
	}
	multiBuffer, err := fitFragments(spec.Programs[kernProgXdpban])
	if err != nil {
		return nil, err
	}

	var probes4 [31]kernProbe4
	n4 := uint32(0)
	for n := 31; n > 0; n-- {
		if meta.Lens4&(1<<n) != 0 {
			probes4[n4] = kernProbe4{Len: uint32(n), Mask: key4(mask(netip.IPv4Unspecified(), n)).Addr}
			n4++
		}
	}
	var probes6 [127]kernProbe6
	n6 := uint32(0)
	for n := 127; n > 0; n-- {
		if meta.Lens6[n/64]&(1<<(n%64)) != 0 {
			probes6[n6] = kernProbe6{Len: uint32(n), Mask: key6(mask(netip.IPv6Unspecified(), n)).Addr}
			n6++
		}
	}
	for name, value := range map[string]any{
		kernVarCoarseClock: coarse,
		kernVarMultiBuffer: multiBuffer,
		kernVarFeatures:    meta.Features,
		kernVarSlot:        slot,
		kernVarDenyUntil:   meta.DenyUntil,
		kernVarSampling:    meta.Sampling,
		kernVarProbes4:     probes4,
		kernVarProbes4Len:  n4,
		kernVarProbes6:     probes6,
		kernVarProbes6Len:  n6,
		kernVarSieveShift:  b.maps.Load().sieve.shift(),
	} {
		if err := spec.Variables[name].Set(value); err != nil {
			return nil, fmt.Errorf("set %s: %w", name, err)
		}
	}

	var out struct {
		Xdpban *ebpf.Program `ebpf:"xdpban"`
	}
	if err := b.maps.Load().assign(spec, &out); err != nil {
		return nil, fmt.Errorf("load the XDP program: %w", explain(err))
	}
	return out.Xdpban, nil
}

// assign loads programs that use these maps.
func (s *mapSet) assign(spec *ebpf.CollectionSpec, to any) error {
	replacements := map[string]*ebpf.Map{}
	for _, m := range s.all() {
		replacements[m.name] = *m.m
		spec.Maps[m.name].MaxEntries = (*m.m).MaxEntries()
	}
	return spec.LoadAndAssign(to, &ebpf.CollectionOptions{MapReplacements: replacements})
}

// mask is the netmask of n bits, in the form of an address.
func mask(zero netip.Addr, n int) netip.Prefix {
	a := zero.AsSlice()
	for i := range n {
		a[i/8] |= 0x80 >> (i % 8)
	}
	addr, _ := netip.AddrFromSlice(a)
	return netip.PrefixFrom(addr, zero.BitLen())
}

// fitFragments loads a program without support for packets of several buffers
// where the kernel, before Linux 5.18, has none.
func fitFragments(p *ebpf.ProgramSpec) (multiBuffer bool, err error) {
	multiBuffer, err = hasHelper(asm.FnXdpGetBuffLen)
	if err == nil && !multiBuffer {
		p.Flags &^= unix.BPF_F_XDP_HAS_FRAGS
	}
	return multiBuffer, err
}

func hasHelper(fn asm.BuiltinFunc) (bool, error) {
	err := features.HaveProgramHelper(ebpf.XDP, fn)
	if errors.Is(err, ebpf.ErrNotSupported) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("ask the kernel for %s: %w", fn, explain(err))
	}
	return true, nil
}
