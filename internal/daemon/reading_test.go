package daemon

import (
	"context"
	"slices"
	"testing"
	"time"

	"xdpban/internal/control"
	"xdpban/jails"
	"xdpban/matcher"
)

// TestJournalRoute: matches joined by "+" keep their order, and a stream of
// the journal takes its entries' own time, whatever date a filter wants.
func TestJournalRoute(t *testing.T) {
	f, err := matcher.Compile(matcher.Filter{Failregex: []string{`^host d\[1\]: bad <ADDR>$`}, DatePattern: []string{`^<W>{DATE}`}})
	if err != nil {
		t.Fatal(err)
	}
	matches := []string{"_SYSTEMD_UNIT=d.service", "+", "_COMM=d"}
	r := makeRoute(&jails.Config{Jails: []jails.Jail{{Name: "d", Enabled: true, Journal: matches, Filter: f}}}, true, nil)
	if len(r.plan.Journal) != 1 || !slices.Equal(r.plan.Journal[0].Matches, matches) {
		t.Fatalf("selections %+v", r.plan.Journal)
	}
	s := r.open(r.plan.Journal[0].Name)
	var at []time.Time
	s.set.Scan([]byte("2026-11-24T11:59:58.500000+00:00 host d[1]: bad 192.0.2.1\n"), time.Now(), func(f *matcher.Failure) { at = append(at, f.Time) })
	if want := time.Date(2026, 11, 24, 11, 59, 58, 5e8, time.UTC); len(at) != 1 || !at[0].Equal(want) {
		t.Errorf("failures at %v, want one at %v", at, want)
	}
}

// TestLogOutrunsTheDaemon: what comes faster than it is judged stays in the
// log but for a few blocks; the lag is shown, and no line is passed over.
func TestLogOutrunsTheDaemon(t *testing.T) {
	w := newWorld(t)
	d, _ := w.run()
	source := func() control.Source {
		t.Helper()
		s, err := d.Status(context.Background())
		if err != nil || len(s.Sources) != 1 {
			t.Fatalf("sources %+v, %v", s.Sources, err)
		}
		return s.Sources[0]
	}
	w.fail("192.0.2.1", 1)
	for w.log.told.Load() == 0 || source().Lines == 0 {
	}
	release, held := make(chan struct{}), make(chan struct{})
	go d.do(context.Background(), func() { close(held); <-release })
	<-held
	const lines = 10_000
	w.fail("192.0.2.2", lines)
	for len(d.batches) < cap(d.batches) {
	}
	if n := w.log.told.Load(); n > 10 {
		t.Errorf("%d blocks were taken out of the log while nobody judged them", n)
	}
	w.setClock(time.Minute)
	close(release)
	w.untilBanned("192.0.2.2")
	if lag := time.Duration(source().Lag); lag < time.Minute || lag > 2*time.Minute {
		t.Errorf("lag %s, want what it is behind", lag)
	}
	for source().Lines < lines+1 {
	}
	w.settle()
	if s := source(); s.Lines != lines+4 || time.Duration(s.Lag) > 30*time.Second {
		t.Errorf("%+v, want %d lines and no lag", s, lines+4)
	}
}
