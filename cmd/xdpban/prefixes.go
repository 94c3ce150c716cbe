package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
)

// parsePrefix reads an address or a prefix; an IPv4 address in IPv6's form
// is taken for what it is.
func parsePrefix(s string) (netip.Prefix, error) {
	if !strings.Contains(s, "/") {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return netip.Prefix{}, fmt.Errorf("%q is no address: %s; write one like 203.0.113.5, 2001:db8::5 or 203.0.113.0/24", s, reason(err))
		}
		if a.Zone() != "" {
			return netip.Prefix{}, fmt.Errorf("%q has a zone: an address to ban has none", s)
		}
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%q is no prefix: %s; write one like 203.0.113.0/24 or 2001:db8::/64", s, reason(err))
	}
	if p.Addr().Is4In6() {
		if p.Bits() < 96 {
			return netip.Prefix{}, fmt.Errorf("%q reaches beyond the IPv4 addresses in IPv6's form; write it as IPv4", s)
		}
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	if m := p.Masked(); m != p {
		return netip.Prefix{}, fmt.Errorf("%q has bits beyond its length; write %s for the subnet or %s for the address", s, m, p.Addr())
	}
	return p, nil
}

// reason is what netip says beside the text that we name ourselves.
func reason(err error) string {
	s := err.Error()
	if i := strings.LastIndex(s, "): "); i >= 0 {
		return s[i+3:]
	}
	return s
}

func parsePrefixes(args []string) ([]netip.Prefix, error) {
	ps := make([]netip.Prefix, len(args))
	for i, s := range args {
		p, err := parsePrefix(s)
		if err != nil {
			return nil, usageError{err}
		}
		ps[i] = p
	}
	return ps, nil
}

// parseList reads a blocklist: an address, a prefix or a range a-b a line,
// at its start or as `ipset save` and the web servers' deny lists write it.
// What follows it is not looked at, nor are comments (#, ;, //) and blank
// lines. A bad line is given to bad, whose error ends the reading.
func parseList(r io.Reader, bad func(line int, err error) error) ([]netip.Prefix, error) {
	var list []netip.Prefix
	seen := map[netip.Prefix]struct{}{}
	sc := bufio.NewScanner(r)
	n := 0
	for sc.Scan() {
		n++
		field := listField(sc.Text())
		if field == "" {
			continue
		}
		ps, err := parseEntry(field)
		if err != nil {
			if err := bad(n, err); err != nil {
				return nil, err
			}
			continue
		}
		for _, p := range ps {
			if _, ok := seen[p]; !ok {
				seen[p] = struct{}{}
				list = append(list, p)
			}
		}
	}
	if err := sc.Err(); err != nil {
		if errors.Is(err, bufio.ErrTooLong) {
			err = usageError{errors.New("it is longer than any address")}
		}
		return nil, fmt.Errorf("line %d: %w", n+1, err)
	}
	return list, nil
}

// listField is the part of a line that says whom it means, or "".
func listField(line string) string {
	line = strings.TrimSpace(strings.TrimPrefix(line, "\ufeff"))
	if i := strings.IndexAny(line, "#;"); i >= 0 {
		line = line[:i]
	}
	if i := strings.Index(line, "//"); i >= 0 {
		line = line[:i]
	}
	first, rest := cutField(line)
	switch first {
	case "create", "flush", "COMMIT": // ipset's
		return ""
	case "add": // ipset: add SET ADDR …
		_, rest = cutField(rest)
		first, _ = cutField(rest)
	case "deny", "Deny": // nginx: deny ADDR; Apache: Deny from ADDR
		if first, rest = cutField(rest); first == "from" {
			first, _ = cutField(rest)
		}
	}
	return first
}

// cutField takes the first field off a line: fields end at blanks, commas
// and quotes.
func cutField(line string) (field, rest string) {
	line = strings.TrimLeft(line, " \t,\"")
	if i := strings.IndexAny(line, " \t,\""); i >= 0 {
		return line[:i], line[i:]
	}
	return line, ""
}

// parseEntry reads an address, a prefix, or a range.
func parseEntry(s string) ([]netip.Prefix, error) {
	first, last, ok := strings.Cut(s, "-")
	if !ok {
		p, err := parsePrefix(s)
		return []netip.Prefix{p}, err
	}
	a, err := netip.ParseAddr(first)
	if err == nil {
		var b netip.Addr
		b, err = netip.ParseAddr(last)
		if err == nil {
			return rangePrefixes(a.Unmap(), b.Unmap())
		}
	}
	return nil, fmt.Errorf("%q is no range of addresses: %s", s, reason(err))
}

// rangePrefixes cuts a range into the fewest prefixes.
func rangePrefixes(first, last netip.Addr) ([]netip.Prefix, error) {
	if first.BitLen() != last.BitLen() || last.Less(first) || first.Zone() != "" || last.Zone() != "" {
		return nil, fmt.Errorf("%s-%s is no range: its first address must come before its last", first, last)
	}
	var ps []netip.Prefix
	for {
		bits := first.BitLen()
		for bits > 0 {
			p, _ := first.Prefix(bits - 1) // can't fail within BitLen
			if p.Addr() != first || last.Less(lastOf(p)) {
				break
			}
			bits--
		}
		p := netip.PrefixFrom(first, bits)
		ps = append(ps, p)
		end := lastOf(p)
		if end == last {
			return ps, nil
		}
		first = end.Next()
	}
}

// lastOf is the last address of a prefix.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b) // as long as an address
	return a
}

// aggregate drops prefixes that others cover and joins neighbours into one.
func aggregate(ps []netip.Prefix) []netip.Prefix {
	ps = slices.Clone(ps)
	slices.SortFunc(ps, netip.Prefix.Compare)
	var out []netip.Prefix
	for _, p := range ps {
		if n := len(out); n > 0 && out[n-1].Bits() <= p.Bits() && out[n-1].Contains(p.Addr()) {
			continue
		}
		out = append(out, p)
		for len(out) > 1 {
			a, b := out[len(out)-2], out[len(out)-1]
			if a.Bits() != b.Bits() || a.Bits() == 0 || a.Addr().BitLen() != b.Addr().BitLen() {
				break
			}
			wide := netip.PrefixFrom(a.Addr(), a.Bits()-1).Masked()
			if !wide.Contains(b.Addr()) {
				break
			}
			out = append(out[:len(out)-2], wide)
		}
	}
	return out
}
