package daemon

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"
)

// TestBacklog: a log that comes nearer to the present has a time when it will
// be there; one that stays behind, since its clock is wrong, has none.
func TestBacklog(t *testing.T) {
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	var log bytes.Buffer
	d := New(Options{Now: func() time.Time { return now }, Log: slog.New(slog.NewTextHandler(&log, nil))})
	s := &stream{}
	d.streams["/var/log/auth.log"] = s
	for i, step := range []struct {
		behind time.Duration // 0: nothing was written
		left   time.Duration // 0: none
		open   bool
		said   string
	}{
		{10 * time.Hour, 0, false, ""}, // how fast it is has to be seen
		{9 * time.Hour, 9 * time.Second, true, ""},
		{8 * time.Hour, 8 * time.Second, true, `"reading a backlog: /var/log/auth.log" event=backlog behind=8h0m0s left=8s`},
		{8 * time.Hour, 0, true, ""}, // a hiccup
		{7*time.Hour + 50*time.Minute, 47 * time.Second, true, ""},
		{0, 0, false, `"the backlog is read: /var/log/auth.log" event=current lines=3 took=3s`}, // it ends in the past
		{3 * time.Hour, time.Second, true, ""},
		{3 * time.Hour, 0, false, ""}, // its clock is wrong
		{3 * time.Hour, 0, false, ""},
		{2 * time.Hour, 2 * time.Second, true, ""},
		{time.Hour, time.Second, true, "reading a backlog"},
		{time.Second, 0, false, "the backlog is read"},
		{2 * time.Second, 0, false, ""},
		{time.Second, 0, false, ""},
	} {
		log.Reset()
		now = now.Add(time.Second)
		if step.behind > 0 {
			s.lag = step.behind
			s.stats.Lines++
		}
		d.catchUp()
		if left := round(s.backlog.left); left != step.left || d.unsettled() != step.open {
			t.Errorf("step %d: %s behind: %s left and open %v, want %s and %v", i+1, step.behind, left, d.unsettled(), step.left, step.open)
		}
		if said := log.String(); step.said == "" && said != "" || !strings.Contains(said, step.said) {
			t.Errorf("step %d: it said %q, want %q", i+1, said, step.said)
		}
	}
}
