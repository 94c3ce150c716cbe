// Package export writes bans in the forms that other programs read, one by
// one, as they come: there may be millions.
package export

import (
	"bufio"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"xdpban/internal/control"
)

// Version is that of the JSON's shape. A newer one isn't read.
const Version = 1

// A Format is how bans are written.
type Format string

// The formats. All but CSV and JSON leave a ban's ports out: who is banned
// from some of them is banned there from all.
const (
	Plain Format = "plain" // a line each: an address, or a subnet in CIDR form
	CIDR  Format = "cidr"  // a line each, addresses with /32 or /128 too
	CSV   Format = "csv"   // with a first line that names the columns
	JSON  Format = "json"  // what `xdpban import` reads
	NFT   Format = "nft"   // for nft -f: a table of its own that drops
	IPSet Format = "ipset" // for ipset restore: two sets
)

// Formats are all of them.
func Formats() []Format { return []Format{Plain, CIDR, CSV, JSON, NFT, IPSet} }

// ContentType is the format's media type.
func (f Format) ContentType() string {
	switch f {
	case CSV:
		return "text/csv; charset=utf-8; header=present"
	case JSON:
		return "application/json"
	}
	return "text/plain; charset=utf-8"
}

// Bans are walked in any order; an error ends them.
type Bans = iter.Seq2[control.Ban, error]

// Write writes bans that stand at now. Where it fails halfway, what nft, ipset
// and readers of JSON got changes nothing; the others have to heed the error.
func Write(w io.Writer, f Format, bans Bans, now time.Time) error {
	switch f {
	case Plain, CIDR:
		return writeLines(w, f, bans)
	case CSV:
		return writeCSV(w, bans)
	case JSON:
		return WriteJSON(w, bans, nil)
	case NFT:
		return writeNFT(w, bans, now)
	case IPSet:
		return writeIPSet(w, bans, now)
	}
	return fmt.Errorf("write bans: there is no format %q", f)
}

func writeLines(to io.Writer, f Format, bans Bans) error {
	w := bufio.NewWriter(to)
	line := make([]byte, 0, 64)
	for b, err := range bans {
		if err != nil {
			return err
		}
		if f == Plain && b.Prefix.IsSingleIP() {
			line = b.Prefix.Addr().AppendTo(line[:0])
		} else {
			line = b.Prefix.AppendTo(line[:0])
		}
		if _, err := w.Write(append(line, '\n')); err != nil {
			return err
		}
	}
	return w.Flush()
}

func writeCSV(to io.Writer, bans Bans) error {
	w := csv.NewWriter(to)
	if err := w.Write([]string{"prefix", "jail", "since", "until", "packets", "bytes", "ports", "from"}); err != nil {
		return err
	}
	for b, err := range bans {
		if err != nil {
			return err
		}
		until := "forever"
		if !b.Until.IsZero() {
			until = b.Until.UTC().Format(time.RFC3339)
		}
		err := w.Write([]string{
			b.Prefix.String(), b.Jail, b.Since.UTC().Format(time.RFC3339), until,
			strconv.FormatUint(b.Packets, 10), strconv.FormatUint(b.Bytes, 10), strings.Join(b.Ports, " "), b.From,
		})
		if err != nil {
			return err
		}
	}
	w.Flush()
	return w.Error()
}

// Rest is what a whole export has besides bans.
type Rest struct {
	Ports []control.Port  `json:"ports"`
	Allow []control.Allow `json:"allow"`
}

// WriteJSON writes bans, a line each, and the rest, if there is one. Each of its
// writes to w begins and ends between characters.
func WriteJSON(w io.Writer, bans Bans, rest *Rest) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	before := fmt.Sprintf(`{"version":%d,"bans":[`, Version)
	for b, err := range bans {
		if err != nil {
			return err
		}
		if _, err := io.WriteString(w, before); err != nil {
			return err
		}
		if err := enc.Encode(b); err != nil {
			return err
		}
		before = ","
	}
	if before != "," {
		if _, err := io.WriteString(w, before); err != nil {
			return err
		}
	}
	if rest == nil {
		_, err := io.WriteString(w, "]}\n")
		return err
	}
	more, err := json.Marshal(rest)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "],%s\n", more[1:])
	return err
}

// seconds is how long a ban still lasts, rounded up; 0: forever.
func seconds(until, now time.Time) int64 {
	if until.IsZero() {
		return 0
	}
	return max(int64((until.Sub(now)+time.Second-1)/time.Second), 1)
}

// over says that a ban has ended: the kernel's list may have it for a while.
func over(until, now time.Time) bool { return !until.IsZero() && !until.After(now) }

// maxTimeout is the longest that ipset knows, in seconds: 24 days.
const maxTimeout = 2147483

// writeIPSet fills new sets and then puts them in the place of the old ones,
// so that what breaks off changes nothing. Where the sets are in use they stay.
func writeIPSet(to io.Writer, bans Bans, now time.Time) error {
	w := bufio.NewWriter(to)
	sets := [2]string{"xdpban4", "xdpban6"}
	for i, name := range sets {
		family := [2]string{"inet", "inet6"}[i]
		for _, n := range []string{name, name + ".new"} {
			fmt.Fprintf(w, "create %s hash:net family %s maxelem 134217728 timeout 0 -exist\n", n, family)
		}
		fmt.Fprintf(w, "flush %s.new\n", name)
	}
	line := make([]byte, 0, 100)
	for b, err := range bans {
		if err != nil {
			return err
		}
		if over(b.Until.Time, now) {
			continue
		}
		name := sets[0]
		if b.Prefix.Addr().Is6() {
			name = sets[1]
		}
		line = append(append(append(line[:0], "add "...), name...), ".new "...)
		line = b.Prefix.AppendTo(line)
		if s := seconds(b.Until.Time, now); s > 0 {
			line = strconv.AppendInt(append(line, " timeout "...), min(s, maxTimeout), 10)
		}
		if _, err := w.Write(append(line, " -exist\n"...)); err != nil {
			return err
		}
	}
	for _, name := range sets {
		fmt.Fprintf(w, "swap %s.new %[1]s\ndestroy %[1]s.new\n", name)
	}
	return w.Flush()
}

// nftHead makes the table, the same each time; the elements follow in the same
// transaction.
const nftHead = `add table inet xdpban
add set inet xdpban addresses4 { type ipv4_addr; flags timeout; }
add set inet xdpban addresses6 { type ipv6_addr; flags timeout; }
add set inet xdpban subnets4 { type ipv4_addr; flags interval, timeout; }
add set inet xdpban subnets6 { type ipv6_addr; flags interval, timeout; }
add chain inet xdpban prerouting { type filter hook prerouting priority raw; policy accept; }
flush chain inet xdpban prerouting
flush set inet xdpban addresses4
flush set inet xdpban addresses6
flush set inet xdpban subnets4
flush set inet xdpban subnets6
add rule inet xdpban prerouting ip saddr @addresses4 counter drop
add rule inet xdpban prerouting ip6 saddr @addresses6 counter drop
add rule inet xdpban prerouting ip saddr @subnets4 counter drop
add rule inet xdpban prerouting ip6 saddr @subnets6 counter drop
`

// writeNFT writes the IPv4 addresses as they come, in a list that is closed
// after the last: nft takes nothing of what breaks off. It keeps the others
// until then.
func writeNFT(to io.Writer, bans Bans, now time.Time) error {
	w := bufio.NewWriter(to)
	w.WriteString(nftHead)
	elements := nftElements{w: w, now: now, set: "addresses4"}
	var addrs6 []subnet
	var nets4, nets6 []subnet
	for b, err := range bans {
		if err != nil {
			return err
		}
		switch n := (subnet{b.Prefix, b.Until.Time}); {
		case over(n.until, now):
		case n.prefix.Addr().Is4() && n.prefix.IsSingleIP():
			if err := elements.add(n.prefix.Addr(), n.prefix.Addr(), n.until); err != nil {
				return err
			}
		case n.prefix.IsSingleIP():
			addrs6 = append(addrs6, n)
		case n.prefix.Addr().Is4():
			nets4 = append(nets4, n)
		default:
			nets6 = append(nets6, n)
		}
	}
	elements.end()
	elements.set = "addresses6"
	for _, n := range addrs6 {
		if err := elements.add(n.prefix.Addr(), n.prefix.Addr(), n.until); err != nil {
			return err
		}
	}
	elements.end()
	for i, nets := range [][]subnet{nets4, nets6} {
		elements.set = [2]string{"subnets4", "subnets6"}[i]
		for s := range flat(nets) {
			if err := elements.add(s.first, s.last, s.until); err != nil {
				return err
			}
		}
		elements.end()
	}
	return w.Flush()
}

// nftElements writes the elements of one set after the other.
type nftElements struct {
	w    *bufio.Writer
	now  time.Time
	set  string
	open bool
	line []byte
}

func (e *nftElements) add(first, last netip.Addr, until time.Time) error {
	e.line = e.line[:0]
	if e.open {
		e.line = append(e.line, ",\n\t"...)
	} else {
		e.line = fmt.Appendf(e.line, "add element inet xdpban %s {\n\t", e.set)
		e.open = true
	}
	switch p, ok := prefixOf(first, last); {
	case first == last:
		e.line = first.AppendTo(e.line)
	case ok:
		e.line = p.AppendTo(e.line)
	default:
		e.line = last.AppendTo(append(first.AppendTo(e.line), '-'))
	}
	if s := seconds(until, e.now); s > 0 {
		unit := byte('s')
		if s >= 100_000_000 { // nft takes no longer number
			s, unit = (s+24*60*60-1)/(24*60*60), 'd'
		}
		e.line = append(strconv.AppendInt(append(e.line, " timeout "...), s, 10), unit)
	}
	_, err := e.w.Write(e.line)
	return err
}

func (e *nftElements) end() {
	if e.open {
		e.w.WriteString("\n}\n")
		e.open = false
	}
}
