package daemon

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"xdpban/internal/control"
	"xdpban/jails"
)

// TestSharedBans: what others banned is in force, says who saw it, outlives a
// restart and ends when they say so; but the allowlist wins, and a ban made here
// is its own.
func TestSharedBans(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	var told []string
	w.changed = func(c Change) { told = append(told, c.Event+" "+c.Jail+" "+short(c.Prefix)) }
	d, stop := w.run()
	if _, err := d.Allow(ctx, []netip.Prefix{prefix("192.0.2.0/24")}); err != nil {
		t.Fatal(err)
	}
	until := time.Now().Add(time.Hour)
	of := func(addr string) jails.Ban {
		return jails.Ban{Prefix: prefix(addr), Since: time.Now(), Until: until, From: "web2/sshd", Evidence: []string{"web2: Failed"}}
	}
	refused, err := d.Shared(ctx, []jails.Ban{of("192.0.2.1"), of("203.0.113.1"), of("203.0.113.2"), of("203.0.113.3")}, nil, false)
	if err != nil || len(refused) != 1 || refused[0] != prefix("192.0.2.1") {
		t.Fatalf("refused %v, %v", refused, err)
	}
	if _, err := d.Ban(ctx, control.BanRequest{Prefixes: []netip.Prefix{prefix("203.0.113.2")}, For: control.Duration(time.Minute)}); err != nil {
		t.Fatal(err)
	}
	if e, ok := w.kernel.banned("203.0.113.2"); !ok || !e.Until.Equal(until) {
		t.Errorf("the later end doesn't hold: %+v", e)
	}
	stop()
	d, stop = w.run()
	defer stop()
	for b, err := range d.List(ctx, control.ListQuery{Jail: jails.ByFleet}) {
		if err != nil || b.From != "web2/sshd" {
			t.Errorf("list: %+v, %v", b, err)
		}
	}
	why, err := d.Why(ctx, prefix("203.0.113.1"))
	if err != nil || len(why.Bans) != 1 || why.Bans[0].From != "web2/sshd" || why.Bans[0].Evidence[0] != "web2: Failed" {
		t.Errorf("why: %+v, %v", why, err)
	}
	var standing int
	if err := d.Walk(ctx, func(b jails.Ban) { standing++ }, func() {}); err != nil || standing != 4 {
		t.Errorf("%d bans stand, want 3 of the fleet and 1 by hand; %v", standing, err)
	}
	sooner := of("203.0.113.3")
	sooner.Until = until.Add(-time.Minute)
	if _, err := d.Shared(ctx, []jails.Ban{sooner}, []netip.Prefix{prefix("203.0.113.1"), prefix("203.0.113.2")}, false); err != nil {
		t.Fatal(err)
	}
	if _, ok := w.kernel.banned("203.0.113.1"); ok {
		t.Error("a ban that its host ended stands")
	}
	if e, ok := w.kernel.banned("203.0.113.2"); !ok || e.Until.After(time.Now().Add(2*time.Minute)) {
		t.Errorf("the ban made here should stand, with its own end: %v, %+v", ok, e)
	}
	if e, _ := w.kernel.banned("203.0.113.3"); !e.Until.Equal(sooner.Until) {
		t.Errorf("until %s, want %s", e.Until, sooner.Until)
	}
	if len(told) < 7 || told[0] != "ban fleet 203.0.113.1" || told[3] != "ban manual 203.0.113.2" {
		t.Errorf("told of %q", told)
	}
}

// TestSharedFailures: failures are told to others but for those who are never
// banned, or are already; what others tell counts with those of the log.
func TestSharedFailures(t *testing.T) {
	w := newWorld(t)
	var told []string
	w.failed = func(jail string, source netip.Prefix, _ time.Time) { told = append(told, jail+" "+short(source)) }
	d, stop := w.run()
	defer stop()
	if _, err := d.Allow(t.Context(), []netip.Prefix{prefix("192.0.2.0/24")}); err != nil {
		t.Fatal(err)
	}
	w.fail("192.0.2.1", 1)
	w.fail("203.0.113.1", 1)
	w.settle()
	if err := d.Reported(t.Context(), []jails.Report{{Host: "web2", Jail: "sshd", Source: prefix("203.0.113.1"), Failures: 100, At: time.Now()}}); err != nil {
		t.Fatal(err)
	}
	if _, ok := w.kernel.banned("203.0.113.1"); !ok {
		t.Error("two hosts saw him fail, and he isn't banned")
	}
	w.fail("203.0.113.1", 1)
	w.mustBan(d, "203.0.113.9", time.Hour)
	stop()
	told = slices.DeleteFunc(told, func(s string) bool { return s == "sshd 198.51.100.250" })
	if fmt.Sprint(told) != "[sshd 203.0.113.1]" {
		t.Errorf("told %q", told)
	}
}
