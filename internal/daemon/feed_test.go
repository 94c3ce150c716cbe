package daemon

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"testing"
	"time"

	"xdpban/internal/control"
	"xdpban/jails"
)

// entries are some prefixes with one end.
func entries(until time.Time, list ...string) iter.Seq2[netip.Prefix, time.Time] {
	return func(yield func(netip.Prefix, time.Time) bool) {
		for _, s := range list {
			if !yield(prefix(s), until) {
				return
			}
		}
	}
}

func each(list ...string) iter.Seq[netip.Prefix] {
	return func(yield func(netip.Prefix) bool) {
		for _, s := range list {
			if !yield(prefix(s)) {
				return
			}
		}
	}
}

// TestFeed: a feed's bans are a list of their own, beside the jails' and below
// the allowlist.
func TestFeed(t *testing.T) {
	w := newWorld(t)
	w.config.Settings.IgnoreIP = []netip.Prefix{prefix("198.51.100.0/24")}
	w.config.Settings.Feeds = []jails.Feed{{Name: "drop"}}
	w.changed = func(c Change) { t.Errorf("the fleet was told: %+v", c) }
	d, stop := w.run()
	ctx := context.Background()
	end := time.Now().Add(time.Hour).Truncate(time.Second)
	enlist := func(refused int, until time.Time, list ...string) {
		t.Helper()
		n, err := d.Enlist(ctx, "drop", entries(until, list...))
		if err != nil || n != refused {
			t.Errorf("enlist: %d refused, %v; want %d", n, err, refused)
		}
	}
	until := func(addr string, want time.Time) {
		t.Helper()
		if e, ok := w.kernel.banned(addr); ok == want.IsZero() || ok && (e.Jail != "feed:drop" || !e.Until.Equal(want)) {
			t.Errorf("%s: %+v, %v; want it banned until %s", addr, e, ok, want)
		}
	}
	enlist(4, end, "192.0.2.1", "192.0.2.2", "2001:db8::/32", "198.51.100.9", "127.0.0.1", "0.0.0.0/1", "224.0.0.0/8")
	enlist(0, time.Now().Add(-time.Second), "192.0.2.3")
	until("192.0.2.1", end)
	until("2001:db8::/32", end)
	until("198.51.100.9", time.Time{})
	until("192.0.2.3", time.Time{})
	// Shorter, too.
	end = end.Add(-time.Minute)
	enlist(0, end, "192.0.2.1")
	until("192.0.2.1", end)
	if err := d.Delist(ctx, "drop", each("192.0.2.2", "203.0.113.1")); err != nil {
		t.Error(err)
	}
	until("192.0.2.2", time.Time{})

	s, err := d.Status(ctx)
	if err != nil || s.Bans != 2 || s.Jails[0].Bans != 0 {
		t.Errorf("status: %+v, %v", s, err)
	}
	var listed []string
	for b, err := range d.List(ctx, control.ListQuery{Jail: "feed:drop"}) {
		if err != nil {
			t.Fatal(err)
		}
		listed = append(listed, b.Prefix.String())
	}
	if len(listed) != 2 {
		t.Errorf("listed %v", listed)
	}
	for _, err := range d.List(ctx, control.ListQuery{Jail: "feed:other"}) {
		if !errors.Is(err, control.ErrNotFound) {
			t.Errorf("a feed that doesn't exist: %v", err)
		}
	}
	if events, err := d.History(ctx, control.HistoryQuery{}); err != nil || len(events) != 0 {
		t.Errorf("history: %+v, %v", events, err)
	}

	// The kernel has them after a restart, and after a reboot the feed itself.
	stop()
	d, stop = w.run()
	found, err := d.Enlisted(ctx)
	if err != nil || len(found["drop"]) != 2 {
		t.Errorf("after a restart: %v, %v", found, err)
	}
	enlist(0, end, "192.0.2.1", "2001:db8::/32")
	until("192.0.2.1", end)
	stop()
	w.kernel.reboot()
	d, _ = w.run()
	if found, err := d.Enlisted(ctx); err != nil || len(found) != 0 {
		t.Errorf("after a reboot: %v, %v", found, err)
	}
	enlist(0, end, "192.0.2.1")
	until("192.0.2.1", end)

	// What is allowed now ends.
	if _, err := d.Allow(ctx, []netip.Prefix{prefix("192.0.2.1")}); err != nil {
		t.Fatal(err)
	}
	until("192.0.2.1", time.Time{})
	enlist(1, end, "192.0.2.1")
	until("192.0.2.1", time.Time{})
}

// TestFeedAndJail: whoever ends first, the other's ban goes on.
func TestFeedAndJail(t *testing.T) {
	w := newWorld(t)
	d, _ := w.run()
	ctx := context.Background()
	jail := func() (string, bool) {
		e, ok := w.kernel.banned("192.0.2.1")
		return e.Jail, ok
	}
	for _, of := range []time.Duration{30 * time.Minute, 2 * time.Hour} { // sshd's is for an hour
		if _, err := d.Enlist(ctx, "drop", entries(time.Now().Add(of), "192.0.2.1")); err != nil {
			t.Fatal(err)
		}
		w.fail("192.0.2.1", 3)
		w.until("sshd's ban", func() bool {
			why, err := d.Why(ctx, prefix("192.0.2.1"))
			return err == nil && len(why.History) > 0
		})
		if err := d.Delist(ctx, "drop", each("192.0.2.1")); err != nil {
			t.Fatal(err)
		}
		if name, ok := jail(); !ok || name != "sshd" {
			t.Errorf("%s: after the feed's end banned by %q, %v", of, name, ok)
		}
		if _, err := d.Enlist(ctx, "drop", entries(time.Now().Add(of), "192.0.2.1")); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Unban(ctx, control.UnbanRequest{Prefixes: []netip.Prefix{prefix("192.0.2.1")}, Jail: "sshd"}); err != nil {
			t.Fatal(err)
		}
		if name, ok := jail(); !ok || name != "feed:drop" {
			t.Errorf("%s: after sshd's end banned by %q, %v", of, name, ok)
		}
		if _, err := d.Unban(ctx, control.UnbanRequest{Prefixes: []netip.Prefix{prefix("192.0.2.1")}}); err != nil {
			t.Fatal(err)
		}
	}
}

// TestLongFeed: a long list is put in force and ends in parts, between which
// failures are judged, and the ledger hears nothing of it.
func TestLongFeed(t *testing.T) {
	w := newWorld(t)
	d, _ := w.run()
	ctx := context.Background()
	const n = 20_000
	all := map[netip.Prefix]bool{}
	for i := range n {
		all[prefix(fmt.Sprintf("2001:db8::%x:%x", i>>8, i&0xff))] = true
	}
	end := time.Now().Add(time.Hour)
	parts := 0
	_, err := d.Enlist(ctx, "long", func(yield func(netip.Prefix, time.Time) bool) {
		i := 0
		for p := range all {
			if i++; i%chunk == 1 {
				parts++
				if i == n/2+1 {
					w.settle() // in the middle of it
				}
			}
			if !yield(p, end) {
				return
			}
		}
	})
	if err != nil || parts != n/chunk {
		t.Errorf("%d parts, %v", parts, err)
	}
	unsaved := -1
	if err := d.do(ctx, func() { unsaved = d.judge.Unsaved() }); err != nil || unsaved > 10 {
		t.Errorf("%d changes for the ledger, %v", unsaved, err)
	}
	s, err := d.Status(ctx)
	if err != nil || s.Bans != n+1 {
		t.Errorf("%d bans, %v", s.Bans, err)
	}
	if err := d.Delist(ctx, "long", maps.Keys(all)); err != nil {
		t.Error(err)
	}
	if s, err = d.Status(ctx); err != nil || s.Bans != 1 {
		t.Errorf("%d bans, %v", s.Bans, err)
	}
	if events, err := d.History(ctx, control.HistoryQuery{}); err != nil || len(events) != 1 {
		t.Errorf("history: %d events, %v", len(events), err)
	}
}
