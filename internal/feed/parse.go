package feed

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/csv"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The formats of lists.
const (
	Plain    = "plain"    // an address or subnet on each line
	CIDR     = "cidr"     // a subnet on each line
	CSV      = "csv"      // one column of a table
	JSON     = "json"     // the texts at a path
	Spamhaus = "spamhaus" // DROP, as text or as JSON
	IPSet    = "ipset"    // what ipset saves, or FireHOL's .ipset and .netset
	CrowdSec = "crowdsec" // decisions of a local API; not a list that is read at once
)

// Formats are all of them.
var Formats = []string{Plain, CIDR, CSV, JSON, Spamhaus, IPSet, CrowdSec}

// Entry is one prefix of a list; a zero Until is as long as the list has it.
type Entry struct {
	Prefix netip.Prefix
	Until  time.Time
}

// content is a list as it was read.
type content struct {
	entries []Entry // sorted, each prefix once
	bad     int     // lines and values that are no entries
	sum     string  // SHA-256 of what was read
}

// collector gathers a list's entries within its bounds.
type collector struct {
	entries []Entry
	most    int
	bad     int
	first   error // that is bad
	found   bool  // where JSON was to have a list, there is one
}

// errTooMany ends the reading of a list.
var errTooMany = errors.New("too many entries")

func (c *collector) add(text string, until time.Time) error {
	p, err := ParsePrefix(text)
	if err != nil {
		c.wrong(err)
		return nil
	}
	return c.put(p, until)
}

func (c *collector) put(p netip.Prefix, until time.Time) error {
	if len(c.entries) >= c.most {
		return fmt.Errorf("%w: more than max_entries = %d", errTooMany, c.most)
	}
	c.entries = append(c.entries, Entry{p, until})
	return nil
}

func (c *collector) wrong(err error) {
	c.bad++
	if c.first == nil {
		c.first = err
	}
}

// ParsePrefix reads an address or a subnet. Bits beyond the length are cleared,
// and IPv4 in IPv6's form is IPv4.
func ParsePrefix(s string) (netip.Prefix, error) {
	if strings.IndexByte(s, '/') < 0 {
		a, err := netip.ParseAddr(s)
		if err != nil || a.Zone() != "" {
			return netip.Prefix{}, fmt.Errorf("%.60q is no address", s)
		}
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, fmt.Errorf("%.60q is no subnet", s)
	}
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked(), nil
}

// badShare is the part of a list, one in so many, that may make no sense. More
// is another kind of file.
const badShare = 10

// parse reads a list to its end.
func parse(r io.Reader, s *Source, now time.Time) (content, error) {
	sum := sha256.New()
	r = io.TeeReader(&bounded{r: r, left: s.MaxBytes, most: s.MaxBytes}, sum)
	c := &collector{most: s.MaxEntries}
	var err error
	switch s.Format {
	case Plain, CIDR:
		err = readPlain(r, c, s.Format == CIDR)
	case CSV:
		err = readCSV(r, c, s.Column, s.Separator)
	case JSON:
		err = readJSON(r, c, s.Path)
	case Spamhaus:
		err = readSpamhaus(r, c)
	case IPSet:
		err = readIPSet(r, c, now)
	default:
		err = fmt.Errorf("format %q isn't known", s.Format)
	}
	if err == nil {
		_, err = io.Copy(io.Discard, r) // what a parser left over counts for the sum
	}
	if err == nil && c.bad*badShare > len(c.entries)+c.bad {
		err = fmt.Errorf("%d of %d entries make no sense, the first: %w", c.bad, len(c.entries)+c.bad, c.first)
	}
	if err != nil {
		return content{}, err
	}
	return content{sorted(c.entries), c.bad, hex.EncodeToString(sum.Sum(nil))}, nil
}

// sorted leaves each prefix once, with its latest end.
func sorted(entries []Entry) []Entry {
	slices.SortFunc(entries, func(a, b Entry) int {
		if c := a.Prefix.Compare(b.Prefix); c != 0 || a.Until.Equal(b.Until) {
			return c
		}
		switch {
		case a.Until.IsZero():
			return -1
		case b.Until.IsZero():
			return 1
		}
		return cmp.Compare(b.Until.UnixNano(), a.Until.UnixNano())
	})
	return slices.CompactFunc(entries, func(a, b Entry) bool { return a.Prefix == b.Prefix })
}

// bounded fails where a list is longer than it may be.
type bounded struct {
	r          io.Reader
	left, most int64
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left < 0 {
		return 0, fmt.Errorf("it is longer than max_bytes = %d", b.most)
	}
	n, err := b.r.Read(p[:min(int64(len(p)), b.left+1)])
	if b.left -= int64(n); b.left < 0 {
		return 0, fmt.Errorf("it is longer than max_bytes = %d", b.most)
	}
	return n, err
}

// maxLine is longer than any line of a list.
const maxLine = 64 << 10

// lines walks lines without their comments; empty ones are left out.
func lines(r io.Reader, comments string, each func(line string) error) error {
	s := bufio.NewScanner(r)
	s.Buffer(nil, maxLine)
	for n := 1; s.Scan(); n++ {
		line := s.Text()
		if n == 1 {
			line = strings.TrimPrefix(line, "\ufeff")
		}
		if i := strings.IndexAny(line, comments); i >= 0 {
			line = line[:i]
		}
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		if err := each(line); err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
	}
	if errors.Is(s.Err(), bufio.ErrTooLong) {
		return fmt.Errorf("a line is longer than %d bytes", maxLine)
	}
	return s.Err()
}

func readPlain(r io.Reader, c *collector, subnets bool) error {
	return lines(r, "#;", func(line string) error {
		if subnets && !strings.Contains(line, "/") {
			c.wrong(fmt.Errorf("%.60q is no subnet", line))
			return nil
		}
		return c.add(line, time.Time{})
	})
}

func readCSV(r io.Reader, c *collector, column, separator string) error {
	in := csv.NewReader(r)
	if separator != "" {
		in.Comma = []rune(separator)[0]
	}
	in.Comment, in.FieldsPerRecord, in.LazyQuotes, in.ReuseRecord, in.TrimLeadingSpace = '#', -1, true, true, true
	at, err := strconv.Atoi(column)
	named := err != nil
	if !named && at < 1 {
		return fmt.Errorf("there is no column %d: the first is 1", at)
	}
	for n := 0; ; n++ {
		record, err := in.Read()
		if errors.Is(err, io.EOF) {
			if named && n == 0 {
				return fmt.Errorf("it has no line with the names of its columns, and so no %q", column)
			}
			return nil
		}
		if err != nil {
			return err
		}
		if n == 0 {
			record[0] = strings.TrimPrefix(record[0], "\ufeff")
		}
		if n == 0 && named {
			if at = slices.Index(record, column) + 1; at == 0 {
				return fmt.Errorf("it has no column %q, but %.200q", column, record)
			}
			continue
		}
		if at > len(record) {
			c.wrong(fmt.Errorf("a line has %d columns, and not %d", len(record), at))
			continue
		}
		if n == 0 {
			if _, err := ParsePrefix(strings.TrimSpace(record[at-1])); err != nil {
				continue // names of columns
			}
		}
		if err := c.add(strings.TrimSpace(record[at-1]), time.Time{}); err != nil {
			return err
		}
	}
}

// ParsePath reads "data.blocks[].cidr": the key data, its blocks, of each the
// cidr.
func ParsePath(path string) ([]string, error) {
	var steps []string
	for _, part := range strings.Split(path, ".") {
		name := strings.TrimRight(part, "[]")
		if name != "" {
			steps = append(steps, name)
		}
		rest := part[len(name):]
		for ; strings.HasPrefix(rest, "[]"); rest = rest[2:] {
			steps = append(steps, "[]")
		}
		if rest != "" || part == "" {
			return nil, fmt.Errorf("%q is no path; write such as %q", path, "data.blocks[].cidr")
		}
	}
	return steps, nil
}

// readJSON reads one value, or several one after another, piece by piece.
func readJSON(r io.Reader, c *collector, path string) error {
	steps, err := ParsePath(path)
	if err != nil {
		return err
	}
	dec := json.NewDecoder(r)
	values := 0
	for ; ; values++ {
		err := walkJSON(dec, steps, c)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	if values == 0 {
		return errors.New("it has no JSON value")
	}
	if !c.found {
		return fmt.Errorf("there is nothing at the path %s", path)
	}
	return nil
}

// walkJSON takes the next value, as far as the steps lead into it. The error is
// io.EOF if there is none.
func walkJSON(dec *json.Decoder, steps []string, c *collector) error {
	t, err := dec.Token()
	if err != nil {
		return err
	}
	switch t := t.(type) {
	case json.Delim:
		if len(steps) == 0 {
			c.wrong(errors.New("a list or an object stands where a text should"))
			return within(skipJSON(dec, 1))
		}
		switch {
		case t == '[' && steps[0] == "[]":
			c.found = true
			for dec.More() {
				if err := within(walkJSON(dec, steps[1:], c)); err != nil {
					return err
				}
			}
		case t == '{' && steps[0] != "[]":
			for dec.More() {
				key, err := dec.Token()
				if err != nil {
					return within(err)
				}
				if key == steps[0] {
					err = walkJSON(dec, steps[1:], c)
				} else {
					err = skipJSON(dec, 0)
				}
				if err != nil {
					return within(err)
				}
			}
		default:
			return within(skipJSON(dec, 1))
		}
		_, err := dec.Token() // the end
		return within(err)
	case string:
		if len(steps) == 0 {
			c.found = true
			return c.add(strings.TrimSpace(t), time.Time{})
		}
	case nil:
	default:
		if len(steps) == 0 {
			c.wrong(fmt.Errorf("%v stands where a text should", t))
		}
	}
	return nil
}

// within makes an end of file within a value what it is.
func within(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// skipJSON passes over the rest of a value that is open so deep; 0: a whole one.
func skipJSON(dec *json.Decoder, depth int) error {
	for {
		t, err := dec.Token()
		if err != nil {
			return err
		}
		switch t {
		case json.Delim('['), json.Delim('{'):
			depth++
		case json.Delim(']'), json.Delim('}'):
			depth--
		}
		if depth == 0 {
			return nil
		}
	}
}

// readSpamhaus reads DROP in its two forms: "192.0.2.0/24 ; SBL1" on each line,
// or an object on each line, the last of which says how many there are.
func readSpamhaus(r io.Reader, c *collector) error {
	in := bufio.NewReader(r)
	for {
		first, err := in.ReadByte()
		if err != nil {
			return fmt.Errorf("it is empty: %w", within(err))
		}
		if !bytes.ContainsRune([]byte(" \t\r\n"), rune(first)) {
			if err := in.UnreadByte(); err != nil {
				return err
			}
			if first != '{' {
				return readPlain(in, c, true)
			}
			break
		}
	}
	dec := json.NewDecoder(in)
	said := -1
	for {
		var v struct {
			CIDR    *string `json:"cidr"`
			Type    string  `json:"type"`
			Records *int    `json:"records"`
		}
		if err := dec.Decode(&v); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return err
		}
		switch {
		case v.CIDR != nil:
			if err := c.add(*v.CIDR, time.Time{}); err != nil {
				return err
			}
		case v.Type == "metadata" && v.Records != nil:
			said = *v.Records
		default:
			c.wrong(errors.New("an object has no cidr"))
		}
	}
	switch {
	case said < 0:
		return errors.New("its last line, which says how many entries there are, is missing: it was cut off")
	case said != len(c.entries)+c.bad:
		return fmt.Errorf("it has %d entries, but says that there are %d", len(c.entries)+c.bad, said)
	}
	return nil
}

// readIPSet reads "add SET 192.0.2.0/24 timeout 600", and bare addresses.
func readIPSet(r io.Reader, c *collector, now time.Time) error {
	return lines(r, "#", func(line string) error {
		words := strings.Fields(line)
		if len(words) == 1 {
			return c.add(words[0], time.Time{})
		}
		switch words[0] {
		case "create", "-N":
			return nil
		case "add", "-A":
		default:
			c.wrong(fmt.Errorf("%.60q isn't of an ipset", line))
			return nil
		}
		if len(words) < 3 {
			c.wrong(fmt.Errorf("%.60q adds nothing", line))
			return nil
		}
		var until time.Time
		for i, w := range words[3:] {
			switch w {
			case "nomatch":
				c.wrong(fmt.Errorf("%s is an exception, which is not heeded: use ignoreip", words[2]))
				return nil
			case "timeout":
				if i+4 < len(words) {
					if n, err := strconv.ParseUint(words[i+4], 10, 31); err == nil && n > 0 {
						until = now.Add(time.Duration(n) * time.Second)
					}
				}
			}
		}
		return c.add(words[2], until)
	})
}
