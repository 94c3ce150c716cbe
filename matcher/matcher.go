// Package matcher turns log lines into failures: who did what, when, by
// which filter. It is pure: no I/O, no clock, no goroutines of its own. It
// imports nothing of xdpban's own but its regex engine.
package matcher

import (
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Failure is one line (or a session of lines) that a filter counts against
// a source. A Failure handed to an emit function is valid until it returns;
// Clone keeps it.
type Failure struct {
	Filter  int          // index of the filter in its Set
	Pattern int          // index into Failregex
	Source  netip.Prefix // the offender: one address, or the subnet that <SUBNET> or <CIDR> caught; zero if only ID or Host holds it
	Host    string       // a host name that <HOST> or <DNS> caught and nobody resolved
	ID      string       // what <F-ID> caught, if it isn't the address: failures count under it
	Users   []string     // users named by the line, F-USER first, then those its session named before
	Time    time.Time    // the line's own date, else that of the lines before it if fresh, else its arrival
	Dated   bool         // the line had a date of its own
	// Count is the number of lines that this failure stands for, at least 1:
	// more if a session's earlier lines waited for an address. It is one
	// failure all the same, as in fail2ban.
	Count int
	// NoFail says that its pattern has <F-NOFAIL>, but the line belongs to no
	// session. fail2ban's server counts it, its tools for trying filters
	// don't.
	NoFail bool
	Line   []byte // the deciding line as written, without its end
}

// Clone returns a copy that stays valid.
func (f *Failure) Clone() *Failure {
	c := *f
	c.Host, c.ID = strings.Clone(f.Host), strings.Clone(f.ID)
	c.Users = slices.Clone(f.Users)
	for i, u := range c.Users {
		c.Users[i] = strings.Clone(u)
	}
	c.Line = slices.Clone(f.Line)
	return &c
}

// Batch keeps copies of failures in few pieces of memory, which serve again
// after Reset: what a log of an attack costs is mostly this. The zero value is
// empty.
type Batch struct {
	failures []Failure
	users    []string
	text     []byte
}

// Add copies a failure.
func (b *Batch) Add(f *Failure) {
	c := *f
	c.Line = b.copy(f.Line)
	c.Host, c.ID = b.copyString(f.Host), b.copyString(f.ID)
	first := len(b.users)
	for _, u := range f.Users {
		b.users = append(b.users, b.copyString(u))
	}
	c.Users = b.users[first:len(b.users):len(b.users)]
	b.failures = append(b.failures, c)
}

// copy puts text behind what is there. What was there before stays where it
// is, even if the rest had to move.
func (b *Batch) copy(text []byte) []byte {
	first := len(b.text)
	b.text = append(b.text, text...)
	return b.text[first:len(b.text):len(b.text)]
}

func (b *Batch) copyString(s string) string {
	if s == "" {
		return ""
	}
	first := len(b.text)
	b.text = append(b.text, s...)
	return asString(b.text[first:])
}

// Failures are those that were added, valid until Reset.
func (b *Batch) Failures() []Failure { return b.failures }

// Reset empties the batch.
func (b *Batch) Reset() {
	b.failures, b.users, b.text = b.failures[:0], b.users[:0], b.text[:0]
}

// Stats are a Set's counters since it was made.
type Stats struct {
	Lines   uint64 // lines scanned
	Missed  uint64 // lines that no pattern matched, nor are in any of the following
	Ignored uint64 // lines that an ignoreregex took out
	Skipped uint64 // lines on which a pattern exceeded its step budget
	TooLong uint64 // lines longer than MaxLine that a pattern might have matched
}

// MaxLine is the longest line that patterns see, in bytes. Longer ones are
// dropped whole: what is left of a line that was cut could be made to look
// like a line of its own.
const MaxLine = 64 << 10
