package jails

import (
	"errors"
	"iter"
	"net/netip"
	"time"

	"xdpban/matcher"
)

// ErrAllowed says that a prefix may not be banned: loopback, an own address
// or one in ignoreip.
var ErrAllowed = errors.New("address is on the allowlist")

// Judge is the policy: it counts failures in sliding windows and decides
// bans. All its state is in State; what it decides follows from the order
// and the times of what it is told, never from a clock.
type Judge struct{}

// NewJudge makes a judge for a configuration with an empty state.
func NewJudge(c *Config) *Judge { return &Judge{} }

// Reload changes the configuration; windows and bans of jails that are
// still there stay.
func (j *Judge) Reload(c *Config) {}

// SetAllowed replaces the addresses that are never banned besides the
// configured ones, by origin ("own", "session", "manual").
func (j *Judge) SetAllowed(origin string, p []netip.Prefix) {}

// Failure counts one failure for a jail and returns the bans it leads to:
// none, the jail's own, and those of jails that watch bans. A ban that would
// be over at now is recorded as a strike but not returned.
func (j *Judge) Failure(jail string, f *matcher.Failure, now time.Time) []Ban { return nil }

// Ban bans by hand (or for a feed); d is Forever for no end. A longer
// standing ban of the same prefix is kept: later end wins.
func (j *Judge) Ban(p netip.Prefix, jail string, d time.Duration, now time.Time) (Ban, error) {
	return Ban{}, nil
}

// Adopt takes over a ban that stands in the kernel and isn't known here.
func (j *Judge) Adopt(b Ban) {}

// Unban ends every ban of exactly this prefix, and forgets its failures, and
// returns what has ended.
func (j *Judge) Unban(p netip.Prefix, now time.Time) []Ban { return nil }

// Expire ends what is over at now, forgets windows that can no longer
// matter, and returns the bans that ended.
func (j *Judge) Expire(now time.Time) []Ban { return nil }

// Standing walks the bans that stand: per prefix the one that ends last.
func (j *Judge) Standing() iter.Seq[Ban] { return nil }
