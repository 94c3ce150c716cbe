package matcher

import (
	"net/netip"
	"unsafe"
)

// parseAddr reads text[from:to] as an address, strictly: what stands right
// before and after it must not be more of the same, or a pattern that isn't
// anchored could be led to cut 198.51.100.250 into 198.51.100.25. An IPv4
// address in IPv6 clothes is the IPv4 address.
func parseAddr(text []byte, from, to int) (netip.Addr, bool) {
	a, err := netip.ParseAddr(asString(text[from:to]))
	if err != nil || a.Zone() != "" || isCut(text, from, to, a.Is6()) {
		return netip.Addr{}, false
	}
	return a.Unmap(), true
}

// isCut says that text[from:to] is a part of a longer address. A colon isn't
// always more of an IPv6 address: logs write 2001:db8::1:58430 for a port,
// and IPv6:2001:db8::1.
func isCut(text []byte, from, to int, six bool) bool {
	if !six {
		return from > 0 && isDigit(text[from-1]) || to < len(text) && isDigit(text[to])
	}
	more := func(c byte) bool { return isHex(c) || c == ':' }
	if to < len(text) && more(text[to]) {
		port := 0
		for port < 5 && to+1+port < len(text) && isDigit(text[to+1+port]) {
			port++
		}
		after := to + 1 + port
		if text[to] != ':' || after < len(text) && (more(text[after]) || text[after] == '.') {
			return true
		}
	}
	if from > 0 && more(text[from-1]) {
		word := from - 1
		for word > 0 && more(text[word-1]) {
			word--
		}
		return text[from-1] != ':' || word == 0 || !isWord(text[word-1])
	}
	return false
}

// parsePrefix applies a length that <CIDR> caught to an address. A length
// written for the IPv4-mapped form doesn't carry over.
func parsePrefix(a netip.Addr, cidr []byte) (netip.Prefix, bool) {
	if cidr == nil {
		return netip.PrefixFrom(a, a.BitLen()), true
	}
	n := 0
	for _, c := range cidr {
		if !isDigit(c) || n > 128 {
			return netip.Prefix{}, false
		}
		n = n*10 + int(c-'0')
	}
	p, err := a.Prefix(n)
	return p, err == nil
}

// isHostName says that a name could be one: a last label of digits alone is
// an address gone wrong (1.2.3, 256.0.0.1), and resolvers would take it for
// one.
func isHostName(b []byte) bool {
	i := len(b)
	for i > 0 && isDigit(b[i-1]) {
		i--
	}
	return len(b) <= 255 && i > 0 && (i == len(b) || b[i-1] != '.')
}

func isDigit(c byte) bool { return c-'0' < 10 }
func isAlpha(c byte) bool { return c|0x20-'a' < 26 }
func isHex(c byte) bool   { return isDigit(c) || c|0x20-'a' < 6 }

// isWord says what \w matches in ASCII; of other bytes it says no.
func isWord(c byte) bool { return isDigit(c) || isAlpha(c) || c == '_' }

// inWord takes any byte of a character outside ASCII for part of a word.
func inWord(c byte) bool { return isWord(c) || c >= 0x80 }

// asString is the string that shares b's memory: valid as long as b is.
func asString(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }
