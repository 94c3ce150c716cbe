// Package bpf is the kernel blocklist: the XDP program, its pinned maps, and
// its attachment to interfaces. It imports nothing of xdpban's own.
package bpf

import (
	"errors"
	"iter"
	"net/netip"
	"time"
)

// ErrFull says that a map has no room for another entry.
var ErrFull = errors.New("blocklist is full")

// Options says where the blocklist is pinned and how large it may grow.
type Options struct {
	// Dir is the bpffs directory that holds our pins; the schema version is
	// a folder below it. A bpffs is mounted at the nearest fitting parent if
	// there is none yet. Empty means /sys/fs/bpf/xdpban.
	Dir string
	// MaxBans is the capacity of ban4 and of ban6, in addresses.
	MaxBans uint32
	// MaxNets is the capacity of net4 and of net6, in prefixes.
	MaxNets uint32
	// MaxAllow is the capacity of allow4 and of allow6, in prefixes.
	MaxAllow uint32
	// MustExist refuses to create maps: for commands that look at what runs.
	MustExist bool
}

// Ban is one banned source. A full-length prefix is a single address.
type Ban struct {
	Prefix netip.Prefix
	Jail   string    // who banned it; at most 63 bytes
	Since  time.Time // when
	Until  time.Time // zero: forever
}

// Entry is a ban with what it has dropped so far, summed over the CPUs.
type Entry struct {
	Ban
	Packets, Bytes uint64
}

// Allow is one allowlisted prefix. Origin says who put it there: "config",
// "own", "session" or "manual".
type Allow struct {
	Prefix netip.Prefix
	Origin string
}

// Verdict counts packets and bytes that left the program with one outcome.
type Verdict struct {
	Packets, Bytes uint64
}

// Blocklist is an open set of pinned maps and the program that reads them.
// Its methods may be called from several goroutines.
type Blocklist struct{}

// Open opens the pinned maps, or makes and pins them.
func Open(o Options) (*Blocklist, error) { return nil, errors.ErrUnsupported }

// Close lets go of the maps; pins, links and bans stay.
func (b *Blocklist) Close() error { return nil }

// Epoch is a random number made with the maps: as long as it is the same,
// the kernel's set has been standing without interruption (no reboot, no
// removed pins), and what is missing from it has been unbanned by somebody.
func (b *Blocklist) Epoch() uint64 { return 0 }

// Add bans one prefix, or sets the end, jail and since of a standing ban,
// keeping its counts.
func (b *Blocklist) Add(ban Ban) error { return errors.ErrUnsupported }

// AddBatch is Add for many. It returns how many are in force; on an error
// the first n are, and the rest are untouched.
func (b *Blocklist) AddBatch(bans []Ban) (n int, err error) { return 0, errors.ErrUnsupported }

// Remove unbans exactly this prefix and returns what the entry was; ok is
// false if there was none.
func (b *Blocklist) Remove(p netip.Prefix) (e Entry, ok bool, err error) {
	return Entry{}, false, errors.ErrUnsupported
}

// List walks all entries, expired ones that nobody swept yet left out. The
// order is the kernel's.
func (b *Blocklist) List() iter.Seq2[Entry, error] { return nil }

// Sweep deletes what has expired and returns it with its last counts.
func (b *Blocklist) Sweep() ([]Entry, error) { return nil, errors.ErrUnsupported }

// Sync makes the set exactly this one: adds, changes, removes, in batches,
// keeping the counts of what stays. A source in both sets is banned
// throughout.
func (b *Blocklist) Sync(bans []Ban) error { return errors.ErrUnsupported }

// Covering lists the live entries that cover p, the address's own first,
// then wider and wider subnets.
func (b *Blocklist) Covering(p netip.Prefix) ([]Entry, error) { return nil, errors.ErrUnsupported }

// Counts reads the verdict counters by name: the XDP actions
// (XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_TX, XDP_REDIRECT).
func (b *Blocklist) Counts() (map[string]Verdict, error) { return nil, errors.ErrUnsupported }

// SetAllow adds to the allowlist or changes an entry's origin.
func (b *Blocklist) SetAllow(a ...Allow) error { return errors.ErrUnsupported }

// RemoveAllow takes a prefix off the allowlist.
func (b *Blocklist) RemoveAllow(p netip.Prefix) (ok bool, err error) {
	return false, errors.ErrUnsupported
}

// Allowed lists the allowlist.
func (b *Blocklist) Allowed() ([]Allow, error) { return nil, errors.ErrUnsupported }
