package jails

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"
)

// The widest prefixes that may be banned by hand or by a feed. Wider ones
// are more likely a slip (0.0.0.0/0) than meant.
const (
	MinBits4 = 8
	MinBits6 = 16
)

// The widest prefixes that a jail may ban: what it bans comes from a log.
const (
	MinAuto4 = 16
	MinAuto6 = 32
)

// OriginOwn is the origin of the host's own addresses, which a jail with
// BanSelf doesn't heed.
const OriginOwn = "own"

// Allowed is what keeps a prefix from being banned.
type Allowed struct {
	Prefix netip.Prefix
	Origin string // "config", "own", "session", …, or "jail NAME"
}

// special are the addresses that no ban may touch, whoever asks: they aren't
// a stranger's, or the host couldn't live without them (fe80::/10 carries
// neighbour discovery, 169.254.0.0/16 the metadata services of clouds).
var special = []struct {
	prefix netip.Prefix
	what   string
	err    error
}{
	{netip.MustParsePrefix("127.0.0.0/8"), "loopback", ErrAllowed},
	{netip.MustParsePrefix("::1/128"), "loopback", ErrAllowed},
	{netip.MustParsePrefix("0.0.0.0/8"), "no address of a host", ErrPrefix},
	{netip.MustParsePrefix("::/128"), "no address of a host", ErrPrefix},
	{netip.MustParsePrefix("169.254.0.0/16"), "link-local", ErrPrefix},
	{netip.MustParsePrefix("fe80::/10"), "link-local", ErrPrefix},
	{netip.MustParsePrefix("224.0.0.0/4"), "multicast", ErrPrefix},
	{netip.MustParsePrefix("ff00::/8"), "multicast", ErrPrefix},
	{netip.MustParsePrefix("255.255.255.255/32"), "broadcast", ErrPrefix},
	{netip.MustParsePrefix("::ffff:0:0/96"), "IPv4 in IPv6", ErrPrefix},
}

// Bannable says why a prefix can't be banned by hand whatever the allowlist
// says: it is too wide, or not that of a host out there. The error wraps
// ErrPrefix or ErrAllowed.
func Bannable(p netip.Prefix) error { return bannable(unmap(p), MinBits4, MinBits6) }

func bannable(p netip.Prefix, min4, min6 int) error {
	if !p.IsValid() {
		return fmt.Errorf("%w: it is not an address", ErrPrefix)
	}
	least := min6
	if p.Addr().Is4() {
		least = min4
	}
	if p.Bits() < least {
		return fmt.Errorf("%w: /%d is too wide, the widest is /%d", ErrPrefix, p.Bits(), least)
	}
	for _, s := range special {
		if s.prefix.Overlaps(p) {
			return fmt.Errorf("%w: %s is %s", s.err, short(s.prefix), s.what)
		}
	}
	return nil
}

// unmap makes ::ffff:192.0.2.1 the IPv4 address that it is on the wire, and
// clears the bits behind the prefix.
func unmap(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked()
}

// short writes a single address without its prefix length.
func short(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

func setOf(prefixes []netip.Prefix) *bart.Lite {
	set := &bart.Lite{}
	for _, p := range prefixes {
		if p.IsValid() {
			set.Insert(unmap(p))
		}
	}
	return set
}

// SetAllowed replaces the addresses that are never banned besides the
// configured ones, by origin ("own", "session", "manual").
func (j *Judge) SetAllowed(origin string, p []netip.Prefix) {
	if _, ok := j.allowed[origin]; !ok {
		at, _ := slices.BinarySearch(j.origins, origin)
		j.origins = slices.Insert(j.origins, at, origin)
	}
	j.allowed[origin] = setOf(p)
}

// SetJailAllowed replaces what a jail's IgnoreNames stand for.
func (j *Judge) SetJailAllowed(name string, p []netip.Prefix) {
	j.jail(name).named = setOf(p)
}

// immune says what keeps all of p from being banned in a jail.
func (j *Judge) immune(js *jail, p netip.Prefix) (Allowed, bool) {
	for _, origin := range j.origins {
		if origin == OriginOwn && js != nil && js.conf != nil && js.conf.BanSelf {
			continue
		}
		if by, ok := j.allowed[origin].LookupPrefixLPM(p); ok {
			return Allowed{by, origin}, true
		}
	}
	if js == nil {
		return Allowed{}, false
	}
	for _, set := range []*bart.Lite{js.ignore, js.named} {
		if set == nil {
			continue
		}
		if by, ok := set.LookupPrefixLPM(p); ok {
			return Allowed{by, "jail " + js.name}, true
		}
	}
	return Allowed{}, false
}

// offender is who a failure counts against: the source, or its subnet if the
// jail aggregates. A subnet that isn't the attacker's alone, but holds
// something allowed, is left in peace.
func (j *Judge) offender(js *jail, src netip.Prefix) netip.Prefix {
	bits := js.conf.Aggregate6
	if src.Addr().Is4() {
		bits = js.conf.Aggregate4
	}
	if bits <= 0 || bits >= src.Bits() {
		return src
	}
	net := netip.PrefixFrom(src.Addr(), bits).Masked()
	if bannable(net, MinAuto4, MinAuto6) != nil {
		return src
	}
	for _, origin := range j.origins {
		if j.allowed[origin].OverlapsPrefix(net) {
			return src
		}
	}
	for _, set := range []*bart.Lite{js.ignore, js.named} {
		if set != nil && set.OverlapsPrefix(net) {
			return src
		}
	}
	return net
}

// Check says why p may not be banned by hand under a jail's name; nil if it
// may. The error wraps ErrPrefix or ErrAllowed.
func (j *Judge) Check(p netip.Prefix, jail string) error {
	p = unmap(p)
	if err := bannable(p, MinBits4, MinBits6); err != nil {
		return fmt.Errorf("ban %s: %w", short(p), err)
	}
	if by, ok := j.immune(j.jails[jail], p); ok {
		return fmt.Errorf("ban %s: %w: %s (%s)", short(p), ErrAllowed, short(by.Prefix), by.Origin)
	}
	return nil
}
