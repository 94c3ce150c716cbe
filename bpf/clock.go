package bpf

import (
	"time"

	"golang.org/x/sys/unix"
)

// scopeMask are the low bits of a ban's end in the kernel that aren't time,
// never the others of an end that doesn't come.
const (
	scopeMask        = 1<<10 - 1
	never     uint64 = 1<<64 - 1 - scopeMask
)

// instant is one moment on both clocks: ours are wall times, the kernel's
// are monotonic.
type instant struct {
	wall time.Time
	mono int64 // ns
}

func now() instant {
	var ts unix.Timespec
	// It can't fail: the clock exists and the pointer is good.
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return instant{wall: time.Now().Round(0), mono: ts.Nano()}
}

// expires is the kernel's form of an end.
func (at instant) expires(until time.Time) uint64 {
	if until.IsZero() {
		return never
	}
	const latest = 1 << 62
	left := int64(until.Sub(at.wall)) // saturates at 292 years
	if left > latest-at.mono {
		return latest &^ scopeMask
	}
	return uint64(max(at.mono+left, 0)) &^ scopeMask
}

// ended says that a ban is over.
func (at instant) ended(expires uint64) bool {
	return expires <= uint64(at.mono)
}

// until is the wall time of a ban's end. The kernel's end is the truth; the
// one that was asked for stands in for it unless the wall clock has been set
// meanwhile, so that an end reads the same each time.
func (at instant) until(expires uint64, asked int64) time.Time {
	if expires >= never {
		return time.Time{}
	}
	computed := at.wall.Add(time.Duration(int64(expires) - at.mono))
	if asked != 0 {
		if t := time.Unix(0, asked); computed.Sub(t).Abs() < clockSlack {
			return t
		}
	}
	return computed.Round(time.Millisecond)
}

// clockSlack is how far the clocks may drift apart before we take it for a
// step of the wall clock.
const clockSlack = time.Second

func unixNano(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func fromUnixNano(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n)
}
