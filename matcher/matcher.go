// Package matcher turns log lines into failures: who did what, when, by
// which filter. It is pure: no I/O, no clock, no goroutines of its own. It
// imports nothing of xdpban's own.
package matcher

import (
	"net/netip"
	"time"
)

// Filter is one filter as configuration gives it. The zero value of each
// optional field means what fail2ban's default means.
type Filter struct {
	Name string
	// Programs are the syslog tags the filter reads. If any is given, the
	// line's date, host and tag are taken off and the patterns see only the
	// message; lines of other programs are not looked at. If none is given,
	// the patterns see the line with its date cut out.
	Programs    []string
	Prefregex   string
	Failregex   []string
	Ignoreregex []string
	// DatePattern, if given, replaces the default templates.
	DatePattern []string
	// MaxLines is how many lines a pattern with <SKIPLINES> may span; 0 and
	// 1 mean one.
	MaxLines int
	// Location is the zone of dates that name none; nil: the Set's.
	Location *time.Location
}

// Compiled is a filter ready to match. It is immutable and may be shared.
type Compiled struct{ Filter Filter }

// Compile checks and compiles a filter. Its errors say which option and
// which pattern is wrong and what to write instead.
func Compile(f Filter) (*Compiled, error) { return &Compiled{Filter: f}, nil }

// Failure is one line (or a session of lines) that a filter counts against
// a source. A Failure handed to an emit function is valid until it returns;
// Clone keeps it.
type Failure struct {
	Filter  int          // index of the filter in its Set
	Pattern int          // index into Failregex
	Source  netip.Prefix // the offender: one address, or the subnet that <SUBNET> or <CIDR> caught; zero if ID or Host holds it
	Host    string       // a host name that <HOST> or <DNS> caught and nobody resolved
	ID      string       // what <F-ID> caught, if it isn't an address
	Users   []string     // users named by the line, F-USER first
	Time    time.Time    // the line's own date, else its arrival
	Dated   bool         // the line had a date of its own
	Count   int          // lines that this failure stands for, at least 1
	Line    []byte       // the deciding line as written, without its end
}

// Set matches the lines of one stream (a file, or one selection of the
// journal) against the filters that read it, in one pass. It keeps what
// must be remembered between lines: sessions, the last date, the year. It
// is for one goroutine.
type Set struct{}

// SetOptions are the facts about a stream that lines alone don't tell.
type SetOptions struct {
	// Location is the zone of dates that name none; nil: time.Local.
	Location *time.Location
}

// NewSet makes a Set of filters; Failure.Filter indexes them.
func NewSet(o SetOptions, filters ...*Compiled) *Set { return &Set{} }

// Scan matches a block of whole lines, each ended by "\n". arrival is when
// they were read: the time of lines without a date, and the reference for
// dates without a year. emit is called in the order of lines.
func (s *Set) Scan(block []byte, arrival time.Time, emit func(*Failure)) {}

// Stats counts what Scan has seen so far.
func (s *Set) Stats() Stats { return Stats{} }

// Stats are a Set's counters since it was made.
type Stats struct {
	Lines   uint64 // lines scanned
	Ignored uint64 // lines that an ignoreregex took out
	Skipped uint64 // lines on which a pattern exceeded its step budget
}
