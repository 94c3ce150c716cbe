// Package jails holds the jails, as TOML defines them, and the policy that
// turns failures into bans. It is pure: no I/O but reading configuration,
// and now is always an argument.
package jails

import (
	"net/netip"
	"time"

	"xdpban/matcher"
)

// Manual is the jail name of bans made by hand.
const Manual = "manual"

// Ban is a decision: this prefix, by this jail, from then to then.
type Ban struct {
	Prefix   netip.Prefix
	Jail     string
	Since    time.Time // time of the deciding failure
	Until    time.Time // zero: forever
	Strikes  int       // past bans of this prefix when it was made
	Failures int       // failures that led to it
	Pattern  string    // the failregex that matched last
	Evidence []string  // the lines behind it, bounded, oldest first
}

// Forever says that the ban has no end.
func (b Ban) Forever() bool { return b.Until.IsZero() }

// Over says that the ban has ended at now.
func (b Ban) Over(now time.Time) bool { return !b.Forever() && !b.Until.After(now) }

// Jail is one jail: where it reads, what it matches, when it bans.
type Jail struct {
	Name     string
	Enabled  bool
	Programs []string
	Journal  []string // journalctl matches, "FIELD=value"; same field: or, different fields: and
	Files    []string // paths and globs
	Filter   *matcher.Compiled

	MaxRetry int
	FindTime time.Duration
	BanTime  time.Duration // Forever: no end
	// Increment is the growth of the ban time for those who come back.
	Increment Increment
	// IgnoreIP are the addresses the jail never bans, besides the global
	// ones.
	IgnoreIP []netip.Prefix
	// Aggregate4 and Aggregate6 are the prefix lengths that are counted and
	// banned as one offender: 32 and 128 mean single addresses.
	Aggregate4, Aggregate6 int
	// WatchesBans makes the jail read xdpban's own bans instead of a log
	// (recidive): every ban by another jail is a failure here.
	WatchesBans bool
}

// Forever is the ban time without an end.
const Forever = time.Duration(-1)

// Increment says how ban time grows: BanTime · 2^min(strikes,20) · Factor,
// at most Max, as fail2ban's bantime.increment does.
type Increment struct {
	Enabled bool
	Factor  float64
	Max     time.Duration // 0: no limit
}

// Config is everything configuration says.
type Config struct {
	Settings Settings
	Jails    []Jail // enabled and disabled, by name
}

// Settings are xdpban.toml's: one host's.
type Settings struct {
	Interfaces []string       // empty: the default route's
	Mode       string         // auto, native, generic
	BPFDir     string         // where the maps are pinned
	Socket     string         // the API's unix socket
	StateDir   string         // the ledger's folder
	IgnoreIP   []netip.Prefix // never banned, by any jail
	IgnoreSelf bool           // the host's own addresses are never banned (default true)
	// IgnoreSessions keeps the peers of established SSH sessions at start
	// from being banned (default true).
	IgnoreSessions bool
	MaxBans        uint32 // capacity of the kernel's address maps
	MaxTracked     int    // failure windows held in memory
	MaxBansPerMin  int    // the global brake on new bans
}
