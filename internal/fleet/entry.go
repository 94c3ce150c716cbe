package fleet

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"xdpban/jails"
)

// schema is the version of what stands in the bucket.
const schema = 1

const (
	maxValue    = 8 << 10 // of one entry; the bucket takes no larger one
	maxEvidence = 6 << 10 // of it, all lines together
	maxLines    = 10
	maxJail     = 63
)

// Key is where a host's ban of a prefix stands: ban.HOST.ADDRESS-BITS, the
// address in hexadecimal. A host may write below its own name only.
func Key(host string, p netip.Prefix) string {
	return "ban." + host + "." + hex.EncodeToString(p.Addr().AsSlice()) + "-" + strconv.Itoa(p.Bits())
}

func parseKey(key string) (host string, p netip.Prefix, err error) {
	rest, ok := strings.CutPrefix(key, "ban.")
	host, rest, ok2 := strings.Cut(rest, ".")
	address, length, ok3 := strings.Cut(rest, "-")
	if !ok || !ok2 || !ok3 || !jails.FleetName(host) {
		return "", p, badKeyError(key)
	}
	raw, err := hex.DecodeString(address)
	if err != nil {
		return host, p, badKeyError(key)
	}
	a, ok := netip.AddrFromSlice(raw)
	bits, err := strconv.Atoi(length)
	if !ok || err != nil {
		return host, p, badKeyError(key)
	}
	p = netip.PrefixFrom(a, bits)
	// One prefix has one key: others would be counted twice.
	if !p.IsValid() || p != p.Masked() || a.Is4In6() || Key(host, p) != key {
		return host, p, badKeyError(key)
	}
	return host, p, nil
}

func badKeyError(key string) error {
	return fmt.Errorf("key %.100q is not ban.HOST.ADDRESS-BITS", key)
}

// entry is what a host says of one ban; times are Unix milliseconds.
type entry struct {
	Schema   int      `json:"v"`
	Jail     string   `json:"j"`
	Since    int64    `json:"s"`
	Until    int64    `json:"u,omitempty"` // 0: forever
	Failures int      `json:"f,omitempty"`
	Evidence []string `json:"e,omitempty"`
}

func (e entry) until() time.Time {
	if e.Until == 0 {
		return time.Time{}
	}
	return time.UnixMilli(e.Until)
}

func entryOf(b jails.Ban, evidence bool) entry {
	e := entry{Schema: schema, Jail: b.Jail, Since: b.Since.UnixMilli(), Failures: b.Failures}
	if !b.Forever() {
		e.Until = b.Until.UnixMilli()
	}
	if evidence {
		room := maxEvidence
		for _, l := range b.Evidence[max(len(b.Evidence)-maxLines, 0):] {
			if room -= len(l); room < 0 {
				break
			}
			e.Evidence = append(e.Evidence, l)
		}
	}
	return e
}

func (e entry) encode() ([]byte, error) {
	value, err := json.Marshal(e)
	if err == nil && len(value) > maxValue && len(e.Evidence) > 0 {
		// What JSON escapes takes up to six times its room.
		e.Evidence = nil
		return e.encode()
	}
	return value, err
}

// A rejection is why an entry isn't heeded, as its counter is called.
type rejection string

const (
	badKey     rejection = "key"
	badValue   rejection = "value"
	oldSchema  rejection = "old_schema"
	newSchema  rejection = "new_schema"
	tooWide    rejection = "too_wide"
	noStranger rejection = "address"
	tooMany    rejection = "too_many"
	ejected    rejection = "ejected"
)

// parseEntry reads what a peer wrote. Nothing of it is trusted.
func parseEntry(value []byte) (entry, rejection) {
	var e entry
	if len(value) > maxValue || json.Unmarshal(value, &e) != nil {
		return entry{}, badValue
	}
	switch {
	case e.Schema < schema:
		return entry{}, oldSchema
	case e.Schema > schema:
		return entry{}, newSchema
	case e.Jail == "" || len(e.Jail) > maxJail || !printable(e.Jail),
		e.Since <= 0 || e.Until != 0 && e.Until < e.Since || e.Failures < 0,
		max(e.Since, e.Until) > maxTime, len(e.Evidence) > maxLines:
		return entry{}, badValue
	}
	for _, l := range e.Evidence {
		if !utf8.ValidString(l) {
			return entry{}, badValue
		}
	}
	return e, ""
}

// maxTime is as late as nanoseconds in 64 bits reach, roughly: the year 2262.
const maxTime = int64(9_200_000_000_000)

func printable(s string) bool {
	for _, r := range s {
		if r <= ' ' || r == 0x7f || r == utf8.RuneError {
			return false
		}
	}
	return true
}
