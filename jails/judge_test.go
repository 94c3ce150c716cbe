package jails

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"xdpban/matcher"
)

var t0 = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

func at(seconds float64) time.Time { return t0.Add(time.Duration(seconds * float64(time.Second))) }

func addr(s string) netip.Prefix {
	if strings.Contains(s, "/") {
		return netip.MustParsePrefix(s)
	}
	a := netip.MustParseAddr(s)
	return netip.PrefixFrom(a, a.BitLen())
}

// bench is a judge with its jails and a clock.
type bench struct {
	*Judge
	t   testing.TB
	now time.Time
}

func newBench(t testing.TB, s Settings, jails ...Jail) *bench {
	return &bench{NewJudge(&Config{Settings: s, Jails: jails}), t, t0}
}

func simple(name string, maxretry int) Jail {
	return Jail{Name: name, Enabled: true, MaxRetry: maxretry, FindTime: 10 * time.Minute, BanTime: time.Hour}
}

// fail tells of failures at these seconds, with now no earlier than them,
// and gives the bans as text.
func (b *bench) fail(jail, source string, seconds ...float64) string {
	b.t.Helper()
	var out []string
	for _, s := range seconds {
		if at(s).After(b.now) {
			b.now = at(s)
		}
		out = append(out, texts(b.Failure(jail, failure(source, s), b.now))...)
	}
	return strings.Join(out, "; ")
}

func failure(source string, s float64) *matcher.Failure {
	return &matcher.Failure{Source: addr(source), Time: at(s), Count: 1, Line: fmt.Appendf(nil, "%s at %g", source, s)}
}

// text is a ban as "sshd 192.0.2.1 4+1h0m0s".
func text(b Ban) string {
	end := "forever"
	if !b.Forever() {
		end = b.Until.Sub(b.Since).String()
	}
	return fmt.Sprintf("%s %s %g+%s", b.Jail, short(b.Prefix), b.Since.Sub(t0).Seconds(), end)
}

func texts(bans []Ban) []string {
	var out []string
	for _, b := range bans {
		out = append(out, text(b))
	}
	return out
}

func (b *bench) expire(seconds float64) string {
	b.now = at(seconds)
	return strings.Join(texts(b.Expire(b.now, math.MaxInt)), "; ")
}

func (b *bench) standing() string {
	s := texts(slices.Collect(b.Standing()))
	slices.Sort(s)
	return strings.Join(s, "; ")
}

func want(t testing.TB, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
}

func TestWindow(t *testing.T) {
	for _, c := range []struct {
		what    string
		seconds []float64
		want    string
	}{
		{"too few", []float64{0, 1}, ""},
		{"enough", []float64{0, 1, 2}, "sshd 192.0.2.1 2+1h0m0s"},
		{"the last just inside", []float64{0, 1, 599.999}, "sshd 192.0.2.1 599.999+1h0m0s"},
		{"the last just outside", []float64{0, 1, 600}, ""},
		{"it slides", []float64{0, 500, 700, 1000}, "sshd 192.0.2.1 1000+1h0m0s"},
		{"a rate that never fills it", []float64{0, 300, 600, 900, 1200, 1500}, ""},
		{"late lines", []float64{5, 4, 3}, "sshd 192.0.2.1 5+1h0m0s"},
		{"a late line completes an older window", []float64{0, 700, 1, 2}, "sshd 192.0.2.1 2+1h0m0s"},
		{"banned already", []float64{0, 1, 2, 3, 4, 5, 6}, "sshd 192.0.2.1 2+1h0m0s"},
		{"again after the end", []float64{0, 1, 2, 3601, 3602, 3603}, "sshd 192.0.2.1 2+1h0m0s"},
		{"again after the end, it counts anew", []float64{0, 1, 2, 3602, 3603, 3604}, "sshd 192.0.2.1 2+1h0m0s; sshd 192.0.2.1 3604+1h0m0s"},
	} {
		t.Run(c.what, func(t *testing.T) {
			want(t, "bans", newBench(t, Settings{}, simple("sshd", 3)).fail("sshd", "192.0.2.1", c.seconds...), c.want)
		})
	}
}

func TestFailuresOfOthersDontCount(t *testing.T) {
	b := newBench(t, Settings{}, simple("sshd", 2), simple("nginx", 2))
	want(t, "first", b.fail("sshd", "192.0.2.1", 0), "")
	want(t, "another address", b.fail("sshd", "192.0.2.2", 1), "")
	want(t, "another jail", b.fail("nginx", "192.0.2.1", 2), "")
	want(t, "no such jail", b.fail("ftp", "192.0.2.1", 3, 3, 3), "")
	want(t, "mapped into IPv6", b.fail("sshd", "::ffff:192.0.2.1", 4), "sshd 192.0.2.1 4+1h0m0s")
}

func TestEvidence(t *testing.T) {
	b := newBench(t, Settings{}, simple("sshd", 3))
	b.fail("sshd", "192.0.2.1", 0)
	f := failure("192.0.2.1", 2)
	f.Count = 2 // lines of one session: one failure
	b.Failure("sshd", f, at(2))
	bans := b.Failure("sshd", failure("192.0.2.1", 1), at(3))
	if len(bans) != 1 || bans[0].Failures != 3 || !slices.Equal(bans[0].Evidence, []string{"192.0.2.1 at 0", "192.0.2.1 at 1", "192.0.2.1 at 2"}) ||
		!slices.Equal(bans[0].EvidenceAt, []int64{at(0).UnixMilli(), at(1).UnixMilli(), at(2).UnixMilli()}) {
		t.Errorf("bans %+v", bans)
	}

	long := failure("192.0.2.2", 0)
	long.Line = []byte(strings.Repeat("x", 511) + "\xff\x1b[31m" + strings.Repeat("y", 1<<20))
	jail := simple("web", 1)
	b = newBench(t, Settings{}, jail)
	if e := b.Failure("web", long, t0)[0].Evidence; len(e) != 1 || e[0] != strings.Repeat("x", 511)+"\uFFFD" {
		t.Errorf("a long line with bad bytes is kept as %q", e)
	}
	jail.MaxRetry, jail.MaxMatches = 5, 2
	b = newBench(t, Settings{}, jail)
	for i := range 4 {
		b.fail("web", "192.0.2.2", float64(i))
	}
	if e := b.Failure("web", failure("192.0.2.2", 4), at(4))[0].Evidence; !slices.Equal(e, []string{"192.0.2.2 at 3", "192.0.2.2 at 4"}) {
		t.Errorf("with maxmatches 2: %q", e)
	}
}

func TestNobodyIsLockedOut(t *testing.T) {
	jail := simple("sshd", 1)
	jail.IgnoreIP = []netip.Prefix{addr("203.0.113.128/25")}
	other := simple("nginx", 1)
	b := newBench(t, Settings{IgnoreIP: []netip.Prefix{addr("198.51.100.0/24"), addr("2001:db8:1::/48")}}, jail, other)
	b.SetAllowed(OriginOwn, []netip.Prefix{addr("192.0.2.10")})
	b.SetAllowed("session", []netip.Prefix{addr("::ffff:192.0.2.20")})
	b.SetJailAllowed("sshd", []netip.Prefix{addr("203.0.113.7")})
	for _, source := range []string{
		"127.0.0.1", "127.8.8.8", "::1", "0.0.0.0", "::", "fe80::1", "169.254.169.254", "224.0.0.1", "ff02::1",
		"255.255.255.255", "::ffff:127.0.0.1", "198.51.100.77", "2001:db8:1:2::3", "::ffff:198.51.100.77",
		"192.0.2.10", "192.0.2.20", "203.0.113.7", "203.0.113.200", "192.0.0.0/15", "2001::/16",
	} {
		want(t, source, b.fail("sshd", source, 0), "")
	}
	if got := b.Failure("sshd", &matcher.Failure{ID: "alice", Time: t0}, t0); got != nil {
		t.Errorf("no address: %v", got)
	}
	want(t, "the jail's own list is its own", b.fail("nginx", "203.0.113.7", 0), "nginx 203.0.113.7 0+1h0m0s")
	b.SetAllowed("session", nil)
	want(t, "a session that ended", b.fail("sshd", "192.0.2.20", 0), "sshd 192.0.2.20 0+1h0m0s")
	jail.BanSelf = true
	b = newBench(t, Settings{}, jail)
	b.SetAllowed(OriginOwn, []netip.Prefix{addr("192.0.2.10")})
	want(t, "ignoreself = false", b.fail("sshd", "192.0.2.10", 0), "sshd 192.0.2.10 0+1h0m0s")
}

func TestBanByHand(t *testing.T) {
	b := newBench(t, Settings{IgnoreIP: []netip.Prefix{addr("198.51.100.0/24")}})
	b.SetAllowed(OriginOwn, []netip.Prefix{addr("192.0.2.10")})
	for p, target := range map[string]error{
		"0.0.0.0/0": ErrPrefix, "10.0.0.0/7": ErrPrefix, "::/0": ErrPrefix, "2000::/3": ErrPrefix, "224.0.0.0/8": ErrPrefix,
		"fe80::/64": ErrPrefix, "127.0.0.0/8": ErrAllowed, "127.0.0.1": ErrAllowed, "192.0.2.10": ErrAllowed,
		"198.51.100.0/24": ErrAllowed, "198.51.100.128/25": ErrAllowed, "::ffff:192.0.2.10": ErrAllowed, "::ffff:0:0/96": ErrPrefix,
	} {
		if got, err := b.Ban(addr(p), Manual, Forever, t0); !errors.Is(err, target) {
			t.Errorf("%s: %v, %v, want %v", p, got, err, target)
		} else if b.standing() != "" {
			t.Fatalf("%s: refused, but stands", p)
		}
	}
	if _, err := b.Ban(netip.Prefix{}, Manual, Forever, t0); !errors.Is(err, ErrPrefix) {
		t.Errorf("no prefix: %v", err)
	}
	if _, err := b.Ban(addr("192.0.2.1"), Manual, -time.Hour, t0); err == nil {
		t.Error("a negative time was accepted")
	}

	ban := func(p string, d time.Duration, now time.Time) string {
		t.Helper()
		got, err := b.Ban(addr(p), Manual, d, now)
		if err != nil {
			t.Fatal(err)
		}
		return text(got)
	}
	want(t, "an hour", ban("192.0.2.1", time.Hour, t0), "manual 192.0.2.1 0+1h0m0s")
	want(t, "a shorter one", ban("192.0.2.1", time.Minute, at(1)), "manual 192.0.2.1 0+1h0m0s")
	want(t, "a longer one", ban("192.0.2.1", 2*time.Hour, at(1)), "manual 192.0.2.1 0+2h0m1s")
	want(t, "a subnet with host bits", ban("203.0.113.7/24", time.Hour, t0), "manual 203.0.113.0/24 0+1h0m0s")
	want(t, "forever", ban("192.0.2.1", Forever, at(2)), "manual 192.0.2.1 0+forever")
	want(t, "no end is later than any", ban("192.0.2.1", time.Hour, at(3)), "manual 192.0.2.1 0+forever")
	want(t, "ended", b.expire(4000), "manual 203.0.113.0/24 0+1h0m0s")
	want(t, "standing", b.standing(), "manual 192.0.2.1 0+forever")
	if !b.Next().IsZero() {
		t.Errorf("next end %v, want none", b.Next())
	}
}

func TestEndsComeInOrder(t *testing.T) {
	b := newBench(t, Settings{})
	r := rand.New(rand.NewPCG(1, 2))
	var ends []time.Time
	for i := range 500 {
		d := time.Duration(r.IntN(1000)+1) * time.Second
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, byte(2 + i>>8), byte(i)}), 32)
		if _, err := b.Ban(p, Manual, d, t0); err != nil {
			t.Fatal(err)
		}
		if i%3 == 0 { // lengthened
			d += time.Duration(r.IntN(1000)) * time.Second
			if _, err := b.Ban(p, Manual, d, t0); err != nil {
				t.Fatal(err)
			}
		}
		if i%7 == 0 {
			b.Unban(p, t0)
			continue
		}
		ends = append(ends, t0.Add(d))
	}
	slices.SortFunc(ends, time.Time.Compare)
	for i := 0; i < len(ends); {
		next := b.Next()
		if !next.Equal(ends[i]) {
			t.Fatalf("end %d is %v, want %v", i, next, ends[i])
		}
		if early := b.Expire(next.Add(-1), math.MaxInt); len(early) > 0 {
			t.Fatalf("%v ended early", early)
		}
		for _, e := range b.Expire(next, math.MaxInt) {
			if !e.Until.Equal(ends[i]) {
				t.Fatalf("ended %v, want %v", e.Until, ends[i])
			}
			i++
		}
	}
	want(t, "standing", b.standing(), "")
}

func TestTwoJailsOnOnePrefix(t *testing.T) {
	long := simple("web", 1)
	long.BanTime = 2 * time.Hour
	b := newBench(t, Settings{}, simple("sshd", 1), long)
	b.fail("sshd", "192.0.2.1", 0)
	b.fail("web", "192.0.2.1", 1)
	want(t, "standing", b.standing(), "web 192.0.2.1 1+2h0m0s")
	want(t, "ended", b.expire(3600), "sshd 192.0.2.1 0+1h0m0s")
	if got, ok := b.Find(addr("192.0.2.1")); !ok || got.Jail != "web" {
		t.Errorf("after the first end: %v, %v", got, ok)
	}
	b.fail("sshd", "192.0.2.1", 3601)
	if got := texts(b.Unban(addr("192.0.2.1"), at(3602))); len(got) != 2 {
		t.Errorf("unbanned %v", got)
	}
	want(t, "standing", b.standing(), "")
	want(t, "ended later", b.expire(10000), "")
}

func TestUnbanForgives(t *testing.T) {
	jail := simple("sshd", 2)
	jail.Increment = Increment{Enabled: true}
	b := newBench(t, Settings{}, jail)
	b.fail("sshd", "192.0.2.1", 0, 1)
	want(t, "unbanned", strings.Join(texts(b.Unban(addr("192.0.2.1"), at(10))), "; "), "sshd 192.0.2.1 1+1h0m0s")
	if got := b.Unban(addr("192.0.2.1"), at(10)); got != nil {
		t.Errorf("unbanned twice: %v", got)
	}
	b.now = at(11)
	want(t, "lines from before", b.fail("sshd", "192.0.2.1", 8, 9), "")
	want(t, "a new one", b.fail("sshd", "192.0.2.1", 12), "")
	want(t, "the second, no strike left", b.fail("sshd", "192.0.2.1", 13), "sshd 192.0.2.1 13+1h0m0s")
	b.fail("sshd", "192.0.2.2", 20)
	b.Unban(addr("192.0.2.2"), at(21))
	want(t, "failures of one that wasn't banned", b.fail("sshd", "192.0.2.2", 22), "")
}

func TestGrowth(t *testing.T) {
	for _, c := range []struct {
		what    string
		inc     Increment
		ban     time.Duration
		strikes []time.Duration
	}{
		{"off", Increment{}, time.Hour, []time.Duration{0: time.Hour, 5: time.Hour}},
		{"doubles", Increment{Enabled: true}, time.Hour, []time.Duration{time.Hour, 2 * time.Hour, 4 * time.Hour, 8 * time.Hour, 16 * time.Hour}},
		{"factor", Increment{Enabled: true, Factor: 1.5}, time.Hour, []time.Duration{time.Hour, 3 * time.Hour, 6 * time.Hour}},
		{"never shorter", Increment{Enabled: true, Factor: 0.1}, time.Hour, []time.Duration{time.Hour, time.Hour, time.Hour, time.Hour, 96 * time.Minute}},
		{"max", Increment{Enabled: true, Max: 3 * time.Hour}, time.Hour, []time.Duration{time.Hour, 2 * time.Hour, 3 * time.Hour, 3 * time.Hour}},
		{"multipliers", Increment{Enabled: true, Multipliers: []float64{1, 5, 30}}, time.Minute, []time.Duration{time.Minute, 5 * time.Minute, 30 * time.Minute, 30 * time.Minute}},
		{"forever stays", Increment{Enabled: true, Max: time.Hour}, Forever, []time.Duration{Forever, Forever}},
	} {
		jail := Jail{Name: "sshd", BanTime: c.ban, Increment: c.inc}
		for n, want := range c.strikes {
			if want == 0 {
				continue
			}
			if got := jail.banTime(n, addr("192.0.2.1"), 0); got != want {
				t.Errorf("%s, %d strikes: %v, want %v", c.what, n, got, want)
			}
		}
	}
	// 2^20 weeks are more than 64 bits of nanoseconds hold.
	jail := Jail{BanTime: 7 * 24 * time.Hour, Increment: Increment{Enabled: true}}
	if got := jail.banTime(1000, addr("192.0.2.1"), t0.UnixNano()); got != maxBan {
		t.Errorf("after 1000 strikes: %v", got)
	}
	jail = Jail{BanTime: time.Hour, Increment: Increment{Enabled: true, Max: time.Hour, Random: time.Minute}}
	seen := map[time.Duration]bool{}
	for i := range 100 {
		d := jail.banTime(1, addr("192.0.2.1"), int64(i))
		if d < time.Hour || d >= time.Hour+time.Minute || d != jail.banTime(1, addr("192.0.2.1"), int64(i)) {
			t.Fatalf("random part: %v", d)
		}
		seen[d] = true
	}
	if len(seen) < 90 {
		t.Errorf("only %d ends of 100", len(seen))
	}
}

func TestStrikes(t *testing.T) {
	jail := simple("sshd", 5)
	jail.Increment = Increment{Enabled: true}
	other := simple("web", 1)
	other.Increment = Increment{Enabled: true, AllJails: true}
	b := newBench(t, Settings{Remember: 24 * time.Hour}, jail, other)
	want(t, "first", b.fail("sshd", "192.0.2.1", 0, 1, 2, 3, 4), "sshd 192.0.2.1 4+1h0m0s")
	b.expire(3604)
	// One strike: each failure counts as two.
	want(t, "second", b.fail("sshd", "192.0.2.1", 3610, 3611), "")
	want(t, "second", b.fail("sshd", "192.0.2.1", 3612), "sshd 192.0.2.1 3612+2h0m0s")
	b.expire(20000)
	want(t, "third", b.fail("sshd", "192.0.2.1", 20000, 20001), "sshd 192.0.2.1 20001+4h0m0s")
	want(t, "strikes of all jails", b.fail("web", "192.0.2.1", 20002), "web 192.0.2.1 20002+8h0m0s")
	end := 20001 + 4*3600 + 24*3600 + 10.
	b.expire(end)
	want(t, "forgotten", b.fail("sshd", "192.0.2.1", end, end+1, end+2, end+3), "")
	want(t, "forgotten", b.fail("sshd", "192.0.2.1", end+4), fmt.Sprintf("sshd 192.0.2.1 %g+1h0m0s", end+4))
}

func TestCatchUp(t *testing.T) {
	jail := simple("sshd", 2)
	jail.Increment = Increment{Enabled: true}
	watch := simple("recidive", 2)
	watch.FindTime, watch.BanTime, watch.WatchesBans = 24*time.Hour, 7*24*time.Hour, true
	b := newBench(t, Settings{}, jail, watch)
	b.now = at(8 * 3600)
	want(t, "over long since", b.fail("sshd", "192.0.2.1", 0, 1), "")
	b.Expire(b.now, math.MaxInt)
	want(t, "what came while it lasted", b.fail("sshd", "192.0.2.1", 2, 3, 4), "")
	want(t, "the second is over too, but not recidive's", b.fail("sshd", "192.0.2.1", 4000, 4001), "recidive 192.0.2.1 4000+168h0m0s")
	want(t, "still due", b.fail("sshd", "192.0.2.1", 8*3600-5), "sshd 192.0.2.1 28795+4h0m0s")
	want(t, "ends", b.expire(28795+4*3600), "sshd 192.0.2.1 28795+4h0m0s")
	want(t, "the rest", b.standing(), "recidive 192.0.2.1 4000+168h0m0s")
}

func TestBacklogKeepsItsWindows(t *testing.T) {
	b := newBench(t, Settings{}, simple("sshd", 3))
	b.now = at(86400)
	for i := range 3 {
		want(t, "old failures", b.fail("sshd", "192.0.2.1", float64(i)), "")
		b.expire(86400 + float64(i))
	}
	if s := b.Stats(); s.Over != 1 {
		t.Errorf("%d bans that are over, want 1", s.Over)
	}
}

func TestDatesAhead(t *testing.T) {
	b := newBench(t, Settings{}, simple("sshd", 2))
	for range 2 {
		for _, got := range b.Failure("sshd", failure("192.0.2.1", 1e6), t0) {
			want(t, "ban", text(got), "sshd 192.0.2.1 0+1h0m0s")
		}
	}
	if s := b.Stats(); s.Future != 2 || s.Standing != 1 {
		t.Errorf("stats %+v", s)
	}
}

func TestAggregate(t *testing.T) {
	jail := simple("sshd", 3)
	jail.Aggregate4, jail.Aggregate6 = 24, 64
	b := newBench(t, Settings{IgnoreIP: []netip.Prefix{addr("203.0.113.200")}}, jail)
	b.fail("sshd", "192.0.2.1", 0)
	b.fail("sshd", "192.0.2.77", 1)
	want(t, "IPv4", b.fail("sshd", "192.0.2.200", 2), "sshd 192.0.2.0/24 2+1h0m0s")
	b.fail("sshd", "2001:db8::1", 0)
	b.fail("sshd", "2001:db8::ffff:1", 1)
	want(t, "IPv6", b.fail("sshd", "2001:db8:0:0:8::", 2), "sshd 2001:db8::/64 2+1h0m0s")
	want(t, "a subnet with an allowed address", b.fail("sshd", "203.0.113.1", 0, 1), "")
	want(t, "counts by address", b.fail("sshd", "203.0.113.2", 2), "")
	want(t, "and bans it", b.fail("sshd", "203.0.113.1", 3), "sshd 203.0.113.1 3+1h0m0s")
	want(t, "a wider subnet from the log", b.fail("sshd", "198.51.0.0/16", 4, 5, 6), "sshd 198.51.0.0/16 6+1h0m0s")
}

func TestRecidive(t *testing.T) {
	watch := simple("recidive", 3)
	watch.FindTime, watch.BanTime, watch.WatchesBans = 24*time.Hour, 7*24*time.Hour, true
	second := watch
	second.Name, second.MaxRetry = "second", 1
	off := second
	off.Name, off.Enabled = "off", false
	watching := simple("quiet", 1)
	watching.Observe = true
	b := newBench(t, Settings{}, simple("sshd", 1), simple("web", 1), watching, watch, off)
	want(t, "a ban", b.fail("sshd", "192.0.2.1", 0), "sshd 192.0.2.1 0+1h0m0s")
	want(t, "an observed one doesn't count", b.fail("quiet", "192.0.2.1", 1), "")
	want(t, "another jail's", b.fail("web", "192.0.2.1", 2), "web 192.0.2.1 2+1h0m0s")
	if _, err := b.Judge.Ban(addr("192.0.2.1"), Manual, time.Hour, at(3)); err != nil {
		t.Fatal(err)
	}
	want(t, "the third", b.fail("sshd", "192.0.2.1", 3600), "sshd 192.0.2.1 3600+1h0m0s; recidive 192.0.2.1 3600+168h0m0s")
	w := b.Why(addr("192.0.2.1"), b.now)
	if len(w.Bans) != 5 || w.Bans[2].Jail != "recidive" || w.Bans[2].Evidence[0] != "192.0.2.1 banned by sshd after 1 failures" {
		t.Errorf("why %+v", w.Bans)
	}
	// Two that watch don't feed each other.
	b = newBench(t, Settings{}, simple("sshd", 1), watch, second)
	want(t, "two watch", b.fail("sshd", "192.0.2.1", 0), "sshd 192.0.2.1 0+1h0m0s; second 192.0.2.1 0+168h0m0s")
}

func TestObserve(t *testing.T) {
	jail := simple("sshd", 2)
	jail.Observe = true
	b := newBench(t, Settings{}, jail)
	want(t, "bans", b.fail("sshd", "192.0.2.1", 0, 1, 2, 3), "")
	want(t, "standing", b.standing(), "")
	got := b.Observed()
	want(t, "observed", strings.Join(texts(got), "; "), "sshd 192.0.2.1 1+1h0m0s")
	if !got[0].Observed || b.Observed() != nil {
		t.Errorf("observed %+v", got)
	}
	want(t, "its end is silent", b.expire(3601), "")
	b.fail("sshd", "192.0.2.1", 3602, 3603)
	want(t, "again", strings.Join(texts(b.Observed()), "; "), "sshd 192.0.2.1 3603+1h0m0s")
	if got := b.Unban(addr("192.0.2.1"), at(3604)); got != nil {
		t.Errorf("unbanned %v", got)
	}
	b.fail("sshd", "192.0.2.1", 3605, 3606)
	jail.Observe = false
	b.Reload(&Config{Jails: []Jail{jail}})
	want(t, "once it bans, at the next time", b.fail("sshd", "192.0.2.1", 3607, 3608), "sshd 192.0.2.1 3608+1h0m0s")
	if _, err := b.Judge.Ban(addr("192.0.2.9"), "sshd", time.Hour, at(1)); err != nil {
		t.Fatal(err)
	}
}

func TestBrake(t *testing.T) {
	b := newBench(t, Settings{MaxBansPerMin: 2}, simple("sshd", 2))
	for i := range 4 {
		b.fail("sshd", fmt.Sprintf("192.0.2.%d", i), 0, float64(i+1))
	}
	want(t, "standing", b.standing(), "sshd 192.0.2.0 1+1h0m0s; sshd 192.0.2.1 2+1h0m0s")
	if s := b.Stats(); s.Braked != 2 || !b.Braked(at(60)) || b.Braked(at(61)) {
		t.Errorf("braked %d, %v, %v", s.Braked, b.Braked(at(60)), b.Braked(at(61)))
	}
	if _, err := b.Judge.Ban(addr("192.0.2.100"), Manual, time.Hour, at(5)); err != nil {
		t.Errorf("by hand: %v", err)
	}
	want(t, "the next failure bans, for its whole time", b.fail("sshd", "192.0.2.2", 70), "sshd 192.0.2.2 70+1h0m0s")
	if b.Braked(t0.Add(-time.Hour)) {
		t.Error("braked by bans from before the clock was set back")
	}
}

// TestBrakeInABacklog: what a day's lines may ban, its backlog may.
func TestBrakeInABacklog(t *testing.T) {
	b := newBench(t, Settings{MaxBansPerMin: 2}, simple("sshd", 1))
	now := at(3000)
	for i := range 100 {
		f := failure(fmt.Sprintf("192.0.2.%d", i), float64(i/2*60))
		if bans := b.Judge.Failure("sshd", f, now); len(bans) != 1 {
			t.Errorf("failure %d of a backlog led to %d bans", i, len(bans))
		}
	}
	for i := range 100 {
		b.Judge.Failure("sshd", failure(fmt.Sprintf("198.51.100.%d", i), float64(i/2*60)), now)
	}
	if s := b.Stats(); s.Braked != 100 {
		t.Errorf("%d held back, want those above 2 in a minute of the lines, 100", s.Braked)
	}
}

func TestBrakeForgets(t *testing.T) {
	k := newBrake(1)
	for i := range 10 * brakeMemory {
		k.release(time.Unix(int64(i), 0))
	}
	if len(k.made) > brakeMemory+60*60 {
		t.Errorf("%d seconds remembered", len(k.made))
	}
}

func TestMemoryIsBounded(t *testing.T) {
	short := simple("web", 2)
	short.FindTime = time.Minute
	b := newBench(t, Settings{MaxTracked: 100}, simple("sshd", 2), short)
	b.fail("sshd", "198.51.100.1", 0)
	for i := range 5000 {
		p := netip.AddrFrom4([4]byte{203, 0, byte(i >> 8), byte(i)})
		b.fail("web", p.String(), 1)
	}
	if s := b.Stats(); s.Tracked != 100 || s.Evicted != 5001-100 || s.Jails["web"].Tracked != 99 {
		t.Errorf("stats %+v", s)
	}
	want(t, "a window that lasts longer is kept", b.fail("sshd", "198.51.100.1", 2), "sshd 198.51.100.1 2+1h0m0s")
	// Past bans are remembered up to the same number.
	for i := range 500 {
		p := netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)})
		b.fail("web", p.String(), 3, 3)
	}
	b.expire(10000)
	b.fail("sshd", "192.0.2.1", 10000)
	n := 0
	for _, js := range b.jails {
		n += len(js.tracks)
	}
	if n != 101 {
		t.Errorf("%d offenders remembered, want 101", n)
	}
	b.expire(20000)
	if s := b.Stats(); s.Tracked != 0 {
		t.Errorf("%d windows after their time", s.Tracked)
	}
}

func TestReload(t *testing.T) {
	b := newBench(t, Settings{}, simple("sshd", 3), simple("web", 2))
	b.fail("sshd", "192.0.2.1", 0, 1)
	b.fail("web", "192.0.2.2", 0, 1)
	b.fail("web", "192.0.2.3", 0)
	b.Reload(&Config{Jails: []Jail{simple("sshd", 3)}})
	want(t, "a window goes on", b.fail("sshd", "192.0.2.1", 2), "sshd 192.0.2.1 2+1h0m0s")
	want(t, "bans of a jail that went", b.standing(), "sshd 192.0.2.1 2+1h0m0s; web 192.0.2.2 1+1h0m0s")
	b.Reload(&Config{Jails: []Jail{simple("sshd", 3), simple("web", 2)}})
	want(t, "its windows went", b.fail("web", "192.0.2.3", 3), "")
	want(t, "its bans end", b.expire(3601), "web 192.0.2.2 1+1h0m0s")
}

func TestAdoptAndImport(t *testing.T) {
	b := newBench(t, Settings{IgnoreIP: []netip.Prefix{addr("192.0.2.0/24")}}, simple("sshd", 2))
	b.Adopt(Ban{Prefix: addr("203.0.113.1"), Jail: "sshd", Since: at(-100), Until: at(100)})
	b.Adopt(Ban{Prefix: addr("203.0.113.2"), Jail: Manual, Since: at(-100)})
	b.Adopt(Ban{Prefix: addr("203.0.113.1"), Jail: "sshd", Since: at(-100), Until: at(50)})
	want(t, "standing", b.standing(), "manual 203.0.113.2 -100+forever; sshd 203.0.113.1 -100+3m20s")
	want(t, "banned already", b.fail("sshd", "203.0.113.1", 0, 1, 2), "")
	want(t, "ended", b.expire(100), "sshd 203.0.113.1 -100+3m20s")
	if b.Stats().Banned != 0 || b.Why(addr("203.0.113.1"), t0).Strikes != 0 {
		t.Error("an adopted ban is no strike")
	}
	if _, err := b.Import(Ban{Prefix: addr("192.0.2.1"), Jail: "feed"}, b.now); !errors.Is(err, ErrAllowed) {
		t.Errorf("import of an allowed address: %v", err)
	}
	if _, err := b.Import(Ban{Prefix: addr("203.0.113.9"), Jail: "feed", Since: at(0), Until: at(10)}, b.now); err != nil {
		t.Errorf("import of a ban that is over: %v", err)
	}
	got, err := b.Import(Ban{Prefix: addr("203.0.113.9"), Jail: "feed", Since: at(0), Until: at(1000)}, b.now)
	want(t, "imported", fmt.Sprint(text(got), err), "feed 203.0.113.9 0+16m40s<nil>")
}

func TestWhy(t *testing.T) {
	jail := simple("sshd", 5)
	b := newBench(t, Settings{IgnoreIP: []netip.Prefix{addr("198.51.100.0/24")}}, jail)
	b.fail("sshd", "192.0.2.1", 0, 500, 601)
	if _, err := b.Judge.Ban(addr("192.0.2.0/24"), Manual, time.Hour, b.now); err != nil {
		t.Fatal(err)
	}
	w := b.Why(addr("192.0.2.1"), b.now)
	if len(w.Bans) != 1 || w.Bans[0].Prefix != addr("192.0.2.0/24") || len(w.Windows) != 1 {
		t.Fatalf("why %+v", w)
	}
	got := w.Windows[0]
	if got.Failures != 2 || got.MaxRetry != 5 || got.Next != 3 || !got.First.Equal(at(500)) || !got.Last.Equal(at(601)) || len(got.Lines) != 2 {
		t.Errorf("window %+v", got)
	}
	if w := b.Why(addr("198.51.100.7"), b.now); len(w.Allowed) != 1 || w.Allowed[0] != (Allowed{addr("198.51.100.0/24"), "config"}) {
		t.Errorf("allowed %+v", w.Allowed)
	}
	if w := b.Why(addr("::1"), b.now); len(w.Allowed) != 1 || w.Allowed[0].Origin != "loopback" {
		t.Errorf("loopback %+v", w.Allowed)
	}
}

// book stands for the ledger.
type book map[string]string

func (k book) take(records []Record) {
	for _, r := range records {
		if r.Value == nil {
			delete(k, r.Kind+"\x00"+r.Key)
		} else {
			k[r.Kind+"\x00"+r.Key] = string(r.Value)
		}
	}
}

func (k book) records() []Record {
	var out []Record
	for key, v := range k {
		kind, key, _ := strings.Cut(key, "\x00")
		out = append(out, Record{kind, key, []byte(v)})
	}
	return out
}

func TestChangesAreKeptUntilSaved(t *testing.T) {
	b := newBench(t, Settings{}, simple("sshd", 2))
	k := book{}
	b.fail("sshd", "192.0.2.1", 0)
	if len(b.Changes()) != 1 {
		t.Fatal("a failure is one change")
	}
	b.fail("sshd", "192.0.2.2", 0, 1)
	k.take(b.Changes()) // the first was never saved
	b.Saved()
	if len(k) != 3 || len(b.Changes()) != 0 {
		t.Errorf("records %v", slices.Collect(maps.Keys(k)))
	}
	b.expire(700)
	k.take(b.Changes())
	if len(k) != 2 {
		t.Errorf("a stale window stays: %v", slices.Collect(maps.Keys(k)))
	}
	for _, bad := range []Record{{KindOffender, "sshd", []byte("{}")}, {KindOffender, "sshd x", []byte("{}")}, {KindOffender, "sshd 192.0.2.1/32", []byte("{")}, {KindBrake, "soon", []byte("1")}} {
		if err := newBench(t, Settings{}).Restore([]Record{bad}, t0); err == nil || !strings.Contains(err.Error(), bad.Key) {
			t.Errorf("restore %s %s: %v", bad.Key, bad.Value, err)
		}
	}
}

// TestChangesAreTheState: what was written, whichever writes fail, is what
// there is, no more and no less.
func TestChangesAreTheState(t *testing.T) {
	for seed := range uint64(30) {
		r := rand.New(rand.NewPCG(seed, 2))
		w := randomWorld(r, 500, 7200)
		b := newBench(t, Settings{MaxTracked: 4, Remember: time.Hour}, w.jails...)
		disk := book{}
		for _, f := range w.failures {
			b.fail(f.jail, f.source, f.at)
			switch r.IntN(20) {
			case 0:
				b.expire(f.at)
			case 1:
				b.Unban(addr(f.source), b.now)
			case 2:
				b.Changes() // not written
			case 3, 4:
				// While it is written, more happens.
				changes := b.Changes()
				b.fail(f.jail, f.source, f.at)
				b.fail(f.jail, "198.51.100.7", f.at)
				if r.IntN(2) == 0 {
					disk.take(changes)
					b.Saved()
				}
			}
		}
		disk.take(b.Changes())
		is := book{}
		for name, js := range b.jails {
			for p, track := range js.tracks {
				is.take([]Record{{KindOffender, name + " " + p.String(), track.marshal()}})
			}
		}
		maps.DeleteFunc(disk, func(key, _ string) bool { return !strings.HasPrefix(key, KindOffender+"\x00") })
		if a, b := disk.state(), is.state(); a != b {
			t.Fatalf("seed %d: written\n%s\nis\n%s", seed, a, b)
		}
	}
}

// TestNoJailStarves: windows that last longest, as recidive's, don't take all
// the room there is.
func TestNoJailStarves(t *testing.T) {
	watch := simple("recidive", 5)
	watch.FindTime, watch.WatchesBans = 24*time.Hour, true
	b := newBench(t, Settings{MaxTracked: 100}, simple("sshd", 2), watch)
	for i := range 500 {
		if source := fmt.Sprintf("203.0.%d.%d", i>>8, i&255); b.fail("sshd", source, float64(i), float64(i)) == "" {
			t.Fatalf("the ban number %d didn't come about: %+v", i+1, b.Stats())
		}
	}
}

// TestFloodLeavesLittleToWrite: sources that are forgotten before they were
// written need no record, whether writing is slow or doesn't work at all.
func TestFloodLeavesLittleToWrite(t *testing.T) {
	const tracked = 100
	b := newBench(t, Settings{MaxTracked: tracked}, simple("sshd", 2))
	flood := func(net byte) {
		for i := range 5000 {
			b.fail("sshd", netip.AddrFrom4([4]byte{203, net, byte(i >> 8), byte(i)}).String(), float64(net))
		}
	}
	flood(0)
	if n := b.Unsaved(); n > tracked {
		t.Errorf("%d changes of %d windows", n, tracked)
	}
	for i := range 20 {
		flood(byte(i))
		if n := len(b.Changes()); n > 2*tracked {
			t.Fatalf("%d records after %d writes that failed", n, i)
		}
	}
}

// world is a run of failures by a few attackers in a few jails.
type world struct {
	jails    []Jail
	failures []told
}

type told struct {
	jail, source string
	at           float64
}

func randomWorld(r *rand.Rand, n int, span float64) world {
	grow := simple("grow", 3)
	grow.BanTime, grow.Increment = 5*time.Minute, Increment{Enabled: true, Random: time.Minute}
	wide := simple("wide", 4)
	wide.Aggregate4 = 24
	watch := simple("recidive", 2)
	watch.FindTime, watch.WatchesBans = 24*time.Hour, true
	quiet := simple("quiet", 2)
	quiet.Observe = true
	w := world{jails: []Jail{simple("sshd", 5), grow, wide, watch, quiet}}
	for range n {
		w.failures = append(w.failures, told{
			[]string{"sshd", "grow", "wide", "quiet"}[r.IntN(4)],
			fmt.Sprintf("192.0.%d.%d", r.IntN(2), r.IntN(3)),
			float64(int(r.Float64()*span*1000)) / 1000,
		})
	}
	slices.SortFunc(w.failures, func(a, b told) int { return int((a.at - b.at) * 1000) })
	return w
}

// state is everything a judge would leave to the ledger.
func (k book) state() string {
	keys := slices.Sorted(maps.Keys(k))
	var s strings.Builder
	for _, key := range keys {
		fmt.Fprintf(&s, "%q\t%s\n", key, k[key])
	}
	return s.String()
}

// Killed at any moment and replayed from the last checkpoint, the state is
// that of a run without disturbance.
func TestRestoreAndReplay(t *testing.T) {
	for seed := range uint64(30) {
		r := rand.New(rand.NewPCG(seed, 1))
		w := randomWorld(r, 300, 7200)
		settings := Settings{Remember: time.Hour, MaxBansPerMin: int(seed % 3)}
		run := func(kills bool) string {
			disk := book{}
			b := newBench(t, settings, w.jails...)
			saved := 0
			for i := 0; i < len(w.failures); i++ {
				f := w.failures[i]
				b.fail(f.jail, f.source, f.at)
				b.Expire(b.now, math.MaxInt)
				if kills && r.IntN(10) == 0 {
					disk.take(b.Changes())
					b.Saved()
					saved = i + 1
				}
				if kills && r.IntN(15) == 0 {
					b.Changes() // a transaction that didn't make it
					now := b.now
					b = newBench(t, settings, w.jails...)
					if err := b.Restore(disk.records(), now); err != nil {
						t.Fatal(err)
					}
					i = saved - 1
				}
			}
			b.Expire(b.now.Add(1000*time.Hour), math.MaxInt)
			disk.take(b.Changes())
			return disk.state()
		}
		if a, b := run(false), run(true); a != b {
			t.Fatalf("seed %d: undisturbed\n%s\nkilled\n%s", seed, a, b)
		}
	}
}

// Files that are read side by side hand over their failures in any order:
// the same are banned, from the same moment on, for as long.
func TestOrderDoesntMatter(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 2))
		w := randomWorld(r, 60, 500) // less than any findtime: one ban each
		for i := range w.jails {
			w.jails[i].BanTime = time.Hour
		}
		run := func() string {
			b := newBench(t, Settings{}, w.jails...)
			b.now = at(500)
			for i, f := range w.failures {
				b.fail(f.jail, f.source, f.at)
				if r.IntN(5) == 0 || i == len(w.failures)-1 {
					b.Expire(b.now, math.MaxInt)
				}
			}
			var out []string
			for _, js := range b.jails {
				for _, t := range js.tracks {
					if t.ban != nil && t.jail.conf.WatchesBans {
						// A ban that moved was told of as it was first.
						out = append(out, fmt.Sprint(t.jail.name, t.prefix, t.ban.failures, t.strikes))
					} else if t.ban != nil {
						out = append(out, fmt.Sprint(text(t.asBan(t.ban)), t.ban.failures, t.strikes, t.asBan(t.ban).Evidence, t.ban.standing))
					}
				}
			}
			slices.Sort(out)
			return strings.Join(out, "\n")
		}
		ordered := run()
		for range 5 {
			r.Shuffle(len(w.failures), func(i, j int) { w.failures[i], w.failures[j] = w.failures[j], w.failures[i] })
			if got := run(); got != ordered {
				t.Fatalf("seed %d: in order\n%s\nshuffled\n%s", seed, ordered, got)
			}
		}
	}
}

// What a failure allocates, where it counts: its line, kept as evidence, and
// once in a while the window's room. One of a banned source costs nothing.
func TestFailureAllocates(t *testing.T) {
	j := NewJudge(&Config{Jails: []Jail{simple("sshd", 1000)}})
	f := failure("192.0.2.1", 0)
	count := func() { j.Failure("sshd", f, t0) }
	for range 600 {
		count()
	}
	if n := testing.AllocsPerRun(100, count); n > 1 {
		t.Errorf("a failure that counts allocates %v times", n)
	}
	if _, err := j.Ban(f.Source, "sshd", time.Hour, t0); err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(100, count); n > 0 {
		t.Errorf("a failure of a banned source allocates %v times", n)
	}
	j.SetAllowed("own", []netip.Prefix{f.Source})
	if n := testing.AllocsPerRun(100, count); n > 0 {
		t.Errorf("a failure of an allowed source allocates %v times", n)
	}
	f.Source = addr("198.51.100.7")
	if n := testing.AllocsPerRun(100, func() {
		count()
		j.Discard()
		j.remove(j.jails["sshd"].tracks[f.Source])
		j.Discard()
	}); n > 3 {
		t.Errorf("the first failure of somebody allocates %v times, want its track, window and line", n)
	}
}

func BenchmarkFailure(b *testing.B) {
	for _, n := range []int{1_000, 100_000, 1_000_000} {
		b.Run(fmt.Sprint(n, "_tracked"), func(b *testing.B) {
			j := NewJudge(&Config{Settings: Settings{MaxTracked: n}, Jails: []Jail{simple("sshd", 1<<30)}})
			f := failure("192.0.2.1", 0)
			var raw [16]byte
			copy(raw[:], netip.MustParseAddr("2001:db8::").AsSlice())
			r := rand.New(rand.NewPCG(1, 1))
			one := func(i int) {
				raw[12], raw[13], raw[14], raw[15] = byte(i>>24), byte(i>>16), byte(i>>8), byte(i)
				f.Source = netip.PrefixFrom(netip.AddrFrom16(raw), 128)
				j.Failure("sshd", f, t0)
			}
			for i := range n {
				one(i)
			}
			j.Changes()
			j.Saved()
			b.ReportAllocs()
			for b.Loop() {
				one(r.IntN(2 * n))
			}
		})
	}
}

// consistent checks that the judge's indexes say the same.
func (j *Judge) consistent() error {
	windows, past, standing, finite := 0, 0, map[netip.Prefix]int{}, 0
	for name, js := range j.jails {
		for p, t := range js.tracks {
			stands := t.ban != nil && t.ban.standing
			var list *trackList
			switch {
			case len(t.window) > 0:
				list = &js.windows
				windows++
			case t.ban != nil && !stands:
				list = &js.past
				past++
			case !stands:
				return fmt.Errorf("%s %s: nothing to remember", name, p)
			}
			if t.list != list || t.prefix != p || t.jail != js {
				return fmt.Errorf("%s %s: in the wrong list", name, p)
			}
			if !slices.IsSortedFunc(t.window, func(a, b entry) int { return a.compare(b.at) }) {
				return fmt.Errorf("%s %s: window out of order", name, p)
			}
			if js.conf != nil && len(t.window) > js.conf.MaxRetry {
				return fmt.Errorf("%s %s: %d failures kept", name, p, len(t.window))
			}
			if stands && !t.ban.observed {
				standing[p]++
			}
			if stands && t.ban.until != forever {
				finite++
				if j.ends[t.ban.index] != t {
					return fmt.Errorf("%s %s: not in the heap", name, p)
				}
			}
		}
		n := 0
		for t := js.windows.front; t != nil; t = t.next {
			n++
		}
		if n != js.windows.len {
			return fmt.Errorf("%s: %d windows in a list of %d", name, n, js.windows.len)
		}
	}
	if windows != j.tracked || past != j.past || finite != len(j.ends) || len(standing) != len(j.standing) {
		return fmt.Errorf("%d windows, %d past, %d ends, %d standing; counted %d, %d, %d, %d",
			windows, past, finite, len(standing), j.tracked, j.past, len(j.ends), len(j.standing))
	}
	for p, n := range standing {
		got := 0
		for t := j.standing[p]; t != nil; t = t.sibling {
			got++
		}
		if got != n {
			return fmt.Errorf("%s: %d bans stand, %d are listed", p, n, got)
		}
	}
	return nil
}

func FuzzJudge(f *testing.F) {
	for seed := range uint64(40) {
		r := rand.New(rand.NewPCG(seed, 3))
		ops := make([]byte, 400)
		for i := range ops {
			ops[i] = byte(r.Uint32())
		}
		f.Add(ops)
	}
	w := randomWorld(rand.New(rand.NewPCG(1, 1)), 0, 1)
	settings := Settings{MaxTracked: 8, MaxBansPerMin: 3, Remember: time.Hour}
	f.Fuzz(func(t *testing.T, ops []byte) {
		j, now, disk := NewJudge(&Config{Settings: settings, Jails: w.jails}), t0, book{}
		for len(ops) >= 3 {
			op, a, b := ops[0], ops[1], ops[2]
			ops = ops[3:]
			source := fmt.Sprintf("192.0.%d.%d", a&1, a>>1&7)
			name := w.jails[int(b)%len(w.jails)].Name
			when := now.Add(-time.Duration(b) * 10 * time.Second)
			switch op % 16 {
			default:
				for _, ban := range j.Failure(name, &matcher.Failure{Source: addr(source), Time: when, Line: []byte(source)}, now) {
					if found, ok := j.Find(ban.Prefix); !ok || ban.Observed || ban.Over(now) || !found.Forever() && found.Until.Before(ban.Until) {
						t.Fatalf("returned %+v, found %+v", ban, found)
					}
				}
			case 8, 9:
				now = now.Add(time.Duration(a) * time.Duration(b) * time.Second)
				for _, ban := range j.Expire(now, math.MaxInt) {
					if ban.Observed || !ban.Over(now) {
						t.Fatalf("expired %+v at %v", ban, now)
					}
				}
			case 10:
				d := (time.Duration(b) + 1) * time.Minute
				if b == 0 {
					d = Forever
				}
				if _, err := j.Ban(addr(source), Manual, d, now); err != nil {
					t.Fatal(err)
				}
			case 11:
				j.Unban(addr(source), now)
				if _, ok := j.Find(addr(source)); ok {
					t.Fatal("stands after Unban")
				}
			case 12:
				conf := slices.Clone(w.jails)
				conf[4].Observe = a&1 == 0
				if a&2 == 0 {
					conf = conf[1:]
				}
				j.Reload(&Config{Settings: settings, Jails: conf})
			case 13:
				disk.take(j.Changes())
				j.Saved()
				j = NewJudge(&Config{Settings: settings, Jails: w.jails})
				if err := j.Restore(disk.records(), now); err != nil {
					t.Fatal(err)
				}
			case 14:
				j.Adopt(Ban{Prefix: addr(source), Jail: name, Since: when, Until: when.Add(time.Hour)})
			case 15:
				now = now.Add(-time.Duration(b) * time.Second) // a clock set back
			}
			if err := j.consistent(); err != nil {
				t.Fatal(err)
			}
			j.Why(addr(source), now)
			if next := j.Next(); !next.IsZero() {
				for ban := range j.Standing() {
					if !ban.Forever() && ban.Until.Before(next) {
						t.Fatalf("%+v ends before %v", ban, next)
					}
				}
			}
		}
	})
}

// Several jails may limit their bans of one prefix to their ports; what has to
// hold is all of them together, and everything once one isn't limited.
func TestPortsOfSeveralJails(t *testing.T) {
	ssh, web := PortRange{22, 22, "tcp"}, PortRange{80, 443, "tcp"}
	a, b, c := simple("sshd", 1), simple("nginx", 1), simple("all", 1)
	a.Ports, b.Ports = []PortRange{ssh}, []PortRange{web, ssh}
	b.BanTime = 2 * time.Hour
	j := newBench(t, Settings{}, a, b, c)
	ports := func() []PortRange {
		t.Helper()
		ban, ok := j.Find(addr("192.0.2.1"))
		if !ok {
			t.Fatal("not banned")
		}
		return ban.Ports
	}
	j.fail("sshd", "192.0.2.1", 0)
	if got := ports(); !slices.Equal(got, []PortRange{ssh}) {
		t.Errorf("by sshd: %v", got)
	}
	j.fail("nginx", "192.0.2.1", 1)
	if got := ports(); len(got) != 2 || !slices.Contains(got, ssh) || !slices.Contains(got, web) {
		t.Errorf("by both: %v", got)
	}
	j.fail("all", "192.0.2.1", 2)
	if got := ports(); got != nil {
		t.Errorf("by one that isn't limited, too: %v", got)
	}
	j.expire(2*3600 - 1)
	if got := ports(); !slices.Equal(got, []PortRange{web, ssh}) {
		t.Errorf("by nginx, when the others are over: %v", got)
	}
}

// TestMayBan: asking is worth it exactly when the failure would ban.
func TestMayBan(t *testing.T) {
	spared := addr("192.0.2.200")
	conf := &Config{Jails: []Jail{
		{Name: "a", Enabled: true, MaxRetry: 3, FindTime: time.Hour, BanTime: time.Hour, IgnoreIP: []netip.Prefix{spared}},
		{Name: "b", Enabled: true, MaxRetry: 1, FindTime: time.Hour, BanTime: time.Hour},
	}}
	j := NewJudge(conf)
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	f := func(p netip.Prefix) *matcher.Failure { return &matcher.Failure{Source: p, Time: now, Pattern: -1} }
	one := f(addr("192.0.2.1"))
	for n, want := range []bool{false, false, true} {
		if got := j.MayBan("a", one); got != want {
			t.Errorf("failure %d: %v", n+1, got)
		}
		if bans := j.Failure("a", one, now); (len(bans) > 0) != want {
			t.Errorf("failure %d: bans %v", n+1, bans)
		}
	}
	if !j.MayBan("b", one) || j.MayBan("none", one) || j.MayBan("b", f(addr("127.0.0.1"))) || j.MayBan("b", f(netip.Prefix{})) {
		t.Error("b, none or a source that can't be banned")
	}
	for range 5 {
		if j.MayBan("a", f(spared)) {
			t.Error("ignoreip decides alone")
		}
		j.Failure("a", f(spared), now)
	}
}

func TestIgnoreArgs(t *testing.T) {
	j := Jail{Name: "web", IgnoreCommand: []string{"/bin/x", "<ip>", "--<family>=<jail>", "<user>", "<ip> <ip>"}}
	got := j.IgnoreArgs(&matcher.Failure{Source: netip.MustParsePrefix("::ffff:192.0.2.1/128"), Users: []string{"; <ip> $(id)\x00", "b"}})
	if want := []string{"/bin/x", "192.0.2.1", "--inet4=web", "; <ip> $(id)\uFFFD", "192.0.2.1 192.0.2.1"}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	got = j.IgnoreArgs(&matcher.Failure{Source: netip.MustParsePrefix("2001:db8::/64")})
	if want := []string{"/bin/x", "2001:db8::/64", "--inet6=web", "", "2001:db8::/64 2001:db8::/64"}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}
