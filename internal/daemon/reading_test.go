package daemon

import (
	"slices"
	"testing"
	"time"

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
