// Package jails holds the jails, as TOML defines them, and the policy that
// turns failures into bans. It is pure: no I/O but reading configuration,
// and now is always an argument.
package jails

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
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
	// EvidenceAt says when each of these failures was, in milliseconds of Unix
	// time; none, if that isn't known.
	EvidenceAt []int64 `json:",omitempty"`
	// Observed says that the jail only observes: nothing may be dropped.
	Observed bool
	// Ports are what it is limited to; none: everything of the source.
	Ports []PortRange `json:",omitempty"`
	// From says which hosts of the fleet made it, by which jails; empty: it
	// was made here.
	From string `json:",omitempty"`
	// Bulk says that it came as one of very many, as a list does: neither the
	// history nor the log has an entry for each of them.
	Bulk bool `json:",omitempty"`
}

// Forever says that the ban has no end.
func (b Ban) Forever() bool { return b.Until.IsZero() }

// Over says that the ban has ended at now.
func (b Ban) Over(now time.Time) bool { return !b.Forever() && !b.Until.After(now) }

// Jail is one jail: where it reads, what it matches, when it bans.
type Jail struct {
	Name string
	// Enabled says whether the jail runs. With Auto too it runs only while
	// one of its sources exists: enabled = "auto".
	Enabled, Auto bool
	// Observe makes a jail that judges and remembers, but doesn't ban:
	// enabled = "observe".
	Observe  bool
	Programs []string
	// Journal are journalctl's matches, "FIELD=value"; the same field: or,
	// different fields: and; "+" between them: or.
	Journal  []string
	Files    []string // paths and globs
	Encoding string   // of the files: empty or "utf-8", "latin1", …
	UseDNS   UseDNS
	Filter   *matcher.Compiled

	MaxRetry int
	FindTime time.Duration
	BanTime  time.Duration // Forever: no end
	// Increment is the growth of the ban time for those who come back.
	Increment Increment
	// MaxMatches is how many lines are kept as a ban's evidence: 0 for as
	// many as MaxRetry, but at most 10; negative for none.
	MaxMatches int
	// Ports are what a ban is limited to; none: everything of the source.
	Ports []PortRange
	// IgnoreIP are the addresses the jail never bans, besides the global
	// ones, and IgnoreNames host names that stand for such addresses.
	IgnoreIP    []netip.Prefix
	IgnoreNames []string
	// IgnoreCommand is a program and its arguments that is asked ahead of a
	// ban, when IgnoreIP doesn't decide: 0 as its exit status spares the
	// address. Empty: none. See IgnoreArgs.
	IgnoreCommand []string
	IgnoreCache   IgnoreCache
	// Where narrows the jail to sources in some places.
	Where Where
	// OnBan and OnUnban are programs and their arguments, run when it has
	// banned somebody and when that has ended: see Notice. nil: the settings'
	// ones; empty: none.
	OnBan, OnUnban []string
	// BanSelf lets the jail ban the host's own addresses: ignoreself = false.
	BanSelf bool
	// Aggregate4 and Aggregate6 are the prefix lengths that are counted and
	// banned as one offender: 32 and 128, or 0, mean single addresses.
	Aggregate4, Aggregate6 int
	// WatchesBans makes the jail read xdpban's own bans instead of a log
	// (recidive): every ban by another jail that doesn't watch is a failure
	// here.
	WatchesBans bool
}

// IgnoreCache says how long answers of IgnoreCommand serve again, and how many
// are kept; with the zero value each question is asked.
type IgnoreCache struct {
	Time time.Duration
	Max  int
}

// ignoreTags are what IgnoreCommand's arguments may hold.
var ignoreTags = []string{"<ip>", "<family>", "<jail>", "<user>"}

// IgnoreArgs are the program and arguments to ask about a failure: with <ip>,
// <family> (inet4 or inet6), <jail> and <user> filled in. No shell may see
// them: the user's name is the attacker's choice.
func (j *Jail) IgnoreArgs(f *matcher.Failure) []string {
	src, user := unmap(f.Source), ""
	if len(f.Users) > 0 {
		// What follows a NUL would never reach the program.
		user = strings.ReplaceAll(f.Users[0], "\x00", "\uFFFD")
	}
	tags := strings.NewReplacer("<ip>", short(src), "<family>", family(src), "<jail>", j.Name, "<user>", user)
	args := slices.Clone(j.IgnoreCommand)
	for i := range args {
		args[i] = tags.Replace(args[i])
	}
	return args
}

// UseDNS says what becomes of a host name in the place of an address.
type UseDNS string

// Names aren't looked up unless a jail says so: whoever owns a name's zone
// decides which address it names, so a name in a log can ban anybody.
const (
	DNSNo   UseDNS = "no"   // the failure is dropped
	DNSWarn UseDNS = "warn" // looked up, and said so in the log
	DNSYes  UseDNS = "yes"  // looked up
)

// PortRange is a range of destination ports of one protocol.
type PortRange struct {
	First, Last uint16
	Proto       string // "tcp" or "udp"
}

func (r PortRange) String() string {
	if r.First == r.Last {
		return fmt.Sprintf("%d/%s", r.First, r.Proto)
	}
	return fmt.Sprintf("%d-%d/%s", r.First, r.Last, r.Proto)
}

// ParsePortRange reads what String writes.
func ParsePortRange(s string) (PortRange, error) {
	m := portText.FindStringSubmatch(s)
	var first, last uint64
	if m != nil {
		first, _ = strconv.ParseUint(m[1], 10, 16)
		last = first
		if m[2] != "" {
			last, _ = strconv.ParseUint(m[2], 10, 16)
		}
	}
	if m == nil || first == 0 || last < first || len(m[1]) > 5 || len(m[2]) > 5 ||
		m[1] != strconv.FormatUint(first, 10) || m[2] != "" && m[2] != strconv.FormatUint(last, 10) {
		return PortRange{}, fmt.Errorf(`%q is no port; write a number from 1 to 65535, or a range, and the protocol, such as "22/tcp" or "8000-8100/udp"`, s)
	}
	return PortRange{uint16(first), uint16(last), m[3]}, nil
}

// Forever is the ban time without an end.
const Forever = time.Duration(-1)

// Increment says how the ban time grows with the strikes, as fail2ban's
// bantime.increment does: BanTime · 2^min(strikes,20) · Factor, or with
// Multipliers BanTime · Multipliers[min(strikes,last)] · Factor, or what
// Formula says; at most Max, plus up to Random, and at least BanTime. A first
// ban doesn't grow.
//
// It also makes the failures of those who were banned before count more:
// with 1, 2, 3, 4 strikes as 2, 3, 5, 9.
type Increment struct {
	Enabled     bool
	Factor      float64 // 0: 1
	Multipliers []float64
	Formula     *Formula      // nil: none
	Max         time.Duration // 0: no limit
	// Random spreads the ends, so that a botnet can't tell when it is let in
	// again.
	Random time.Duration
	// AllJails counts the strikes of all jails, not only the jail's own.
	AllJails bool
}

// Config is everything configuration says.
type Config struct {
	Settings Settings
	Jails    []Jail // enabled and disabled, by name
	// Files are what was read, in order; shipped ones begin with "built in".
	Files []string
	// Warnings name patterns that an attacker could turn, and programs that
	// can't be run.
	Warnings Problems
}

// Settings are xdpban.toml's: one host's.
type Settings struct {
	Interfaces []string // empty: the default route's
	Mode       string   // auto, native or generic
	BPFDir     string   // where the maps are pinned
	Socket     string   // the API's unix socket
	// SocketGroup is the group whose members may read through the socket;
	// empty: root alone. With SocketGroupBans they may ban and reload too.
	SocketGroup     string
	SocketGroupBans bool
	// Metrics is where Prometheus may scrape; the zero value: nowhere.
	Metrics netip.AddrPort
	Web     netip.AddrPort // where the page is; the zero value: nowhere
	Publish netip.AddrPort // where the lists for other firewalls are; the zero value: nowhere
	// TokenFile holds the secret that others than this host's own users must
	// show; empty: there is none.
	TokenFile string
	StateDir  string         // the ledger's folder
	IgnoreIP  []netip.Prefix // never banned, by any jail
	// IgnoreNames are host names in ignoreip, for the daemon to look up.
	IgnoreNames []string
	IgnoreSelf  bool // the host's own addresses are never banned (default true)
	// IgnoreSessions keeps the peers of established SSH sessions at start
	// from being banned (default true).
	IgnoreSessions bool
	// IgnoreGateways keeps the gateways of the default routes from being
	// banned, IgnoreResolvers the DNS servers that this host asks.
	IgnoreGateways, IgnoreResolvers bool
	// Small bounds what the kernel's maps and the daemon hold, for a machine
	// with little memory: it makes the defaults of MaxBans and MaxTracked
	// small ones, and the other maps small.
	Small   bool
	MaxBans uint32 // capacity of the kernel's address maps
	// MaxTracked bounds the failure windows held in memory, and apart from
	// them the offenders remembered for their past bans; 0: no bound.
	MaxTracked int
	// MaxBansPerMin is the global brake on new bans; 0: none.
	MaxBansPerMin int
	// Remember is how long a past ban counts as a strike, from its end on;
	// 0: always.
	Remember time.Duration
	// Places are database files that tell where addresses are; none: nothing
	// is known about that.
	Places []string
	// Feeds are lists of others that are banned.
	Feeds []Feed
	// OnBan and OnUnban are the programs of bans by hand, and by jails that
	// have none of their own.
	OnBan, OnUnban []string
	Webhooks       []Webhook
	// Fleet says with whom bans are shared.
	Fleet Fleet
}

// Jail finds a jail by its name.
func (c *Config) Jail(name string) (*Jail, bool) {
	for i := range c.Jails {
		if c.Jails[i].Name == name {
			return &c.Jails[i], true
		}
	}
	return nil, false
}
