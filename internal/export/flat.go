package export

import (
	"iter"
	"net/netip"
	"slices"
	"time"
)

// subnet is a banned subnet; a zero until is forever.
type subnet struct {
	prefix netip.Prefix
	until  time.Time
}

// span is a range of addresses, first and last included.
type span struct {
	first, last netip.Addr
	until       time.Time
}

// flat takes subnets of one family apart so that no two ranges overlap: each
// address is in the one that has the latest end of all subnets around it. The
// sets of nft don't take overlapping ranges with ends of their own.
func flat(nets []subnet) iter.Seq[span] {
	slices.SortFunc(nets, func(a, b subnet) int { return a.prefix.Compare(b.prefix) })
	return func(yield func(span) bool) {
		// around are the subnets in which at is, the widest first; each lasts
		// longer than the one around it.
		var around []span
		var at netip.Addr // the first address that isn't told of
		tell := func(last netip.Addr) bool {
			if at.Compare(last) > 0 {
				return true
			}
			s := span{at, last, around[len(around)-1].until}
			at = last.Next()
			return yield(s)
		}
		// leave tells of the subnets that end before next, or of all.
		leave := func(next netip.Addr) bool {
			for n := len(around) - 1; n >= 0 && (!next.IsValid() || around[n].last.Less(next)); n-- {
				// at isn't valid behind the last address that there is.
				if at.IsValid() && !tell(around[n].last) {
					return false
				}
				around = around[:n]
			}
			return true
		}
		for _, n := range nets {
			first := n.prefix.Addr()
			if !leave(first) {
				return
			}
			if len(around) > 0 {
				if !longer(n.until, around[len(around)-1].until) {
					continue
				}
				if at.Less(first) && !tell(first.Prev()) {
					return
				}
			}
			at = first
			around = append(around, span{last: lastOf(n.prefix), until: n.until})
		}
		leave(netip.Addr{})
	}
}

// longer says that an end is later than another.
func longer(until, other time.Time) bool {
	return !other.IsZero() && (until.IsZero() || until.After(other))
}

// lastOf is the last address of a prefix.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	last, _ := netip.AddrFromSlice(b) // of the same length
	return last
}

// prefixOf is the prefix that has exactly the addresses of a range, if there
// is one.
func prefixOf(first, last netip.Addr) (netip.Prefix, bool) {
	for bits := first.BitLen(); bits >= 0; bits-- {
		p := netip.PrefixFrom(first, bits)
		if p.Masked() != p {
			break
		}
		if lastOf(p) == last {
			return p, true
		}
	}
	return netip.Prefix{}, false
}
