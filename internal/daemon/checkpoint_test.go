package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"xdpban/internal/ledger"
	"xdpban/jails"
)

// floodingWorld is one in which each failure bans, and as many as you like.
func floodingWorld(t *testing.T) *world {
	w := newWorld(t)
	w.config.Settings.MaxBans, w.config.Settings.MaxTracked = 1000, 1000
	w.config.Jails[0].MaxRetry = 1
	w.logs = slog.LevelError
	return w
}

// flood has n addresses fail once each, and returns the last.
func (w *world) flood(n int) string {
	addr := ""
	lines := make([]string, n)
	now := w.now()
	for i := range lines {
		// The last one's ban ends last: a full list gives it up last.
		at := now.Add(time.Duration(i-n) * time.Microsecond).Format("2006-01-02T15:04:05.000000-07:00")
		addr = fmt.Sprintf("2001:db8:%x:%x::1", i>>16, i&0xffff)
		lines[i] = at + " host sshd[42]: Failed password for root from " + addr
	}
	w.log.write(lines...)
	return addr
}

func (d *Daemon) unsaved(t *testing.T) (n int) {
	t.Helper()
	if err := d.do(context.Background(), func() { n = d.judge.Unsaved() + len(d.checkpoint.changed) }); err != nil {
		t.Fatal(err)
	}
	return n
}

// TestReadingWaitsForTheLedger: what changes faster than it can be written
// stays in the logs; requests are answered all the same.
func TestReadingWaitsForTheLedger(t *testing.T) {
	w := floodingWorld(t)
	d, _ := w.run()
	// A write that takes as long as the test wants.
	var slow bool
	for !slow {
		err := d.do(context.Background(), func() {
			if c := &d.checkpoint; c.writing == nil {
				c.writing, slow = append([]ledger.Record{}, d.gather()...), true
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	end := sync.OnceFunc(func() { d.commits <- d.ledger.Commit(d.checkpoint.writing) })
	defer end()
	last := w.flood(2 * maxUnsaved)
	for d.unsaved(t) < maxUnsaved {
	}
	for range 1000 { // that many chances to read on
		if n := d.unsaved(t); n > maxUnsaved+10 {
			t.Fatalf("%d changes wait for the ledger", n)
		}
	}
	end()
	w.untilBanned(last)
}

// TestWithoutADisk: bans go on, and what can't be written is bounded.
func TestWithoutADisk(t *testing.T) {
	w := floodingWorld(t)
	w.kernel.capacity = 50
	d, _ := w.run()
	idle := func() {
		if d.checkpoint.writing != nil {
			d.committed(<-d.commits)
		}
	}
	if err := d.do(context.Background(), func() {
		idle()
		if err := d.ledger.Close(); err != nil {
			t.Error(err)
		}
	}); err != nil {
		t.Fatal(err)
	}
	w.untilBanned(w.flood(maxUnsaved * 3 / 2))
	w.until("the problem is told of", func() bool {
		s, err := d.Status(context.Background())
		return err == nil && len(s.Problems) == 1 && strings.Contains(s.Problems[0], "write checkpoint to")
	})
	var most int
	if err := d.do(context.Background(), func() {
		idle()
		for range 3 {
			d.committed(d.ledger.Commit(d.gather()))
			most = max(most, len(d.gather()))
		}
	}); err != nil {
		t.Fatal(err)
	}
	if most > 2*maxUnsaved {
		t.Errorf("%d records wait for a ledger that can't be written", most)
	}
	// Once it can be, all that stands is in it.
	if err := d.do(context.Background(), func() {
		idle()
		var err error
		if d.ledger, err = ledger.Open(w.ledger); err != nil {
			t.Error(err)
		}
		d.committed(d.ledger.Commit(d.gather()))
	}); err != nil {
		t.Fatal(err)
	}
	standing := 0
	err := d.ledger.Walk(jails.KindOffender, func(_ string, value []byte) error {
		if strings.Contains(string(value), `"standing":true`) {
			standing++
		}
		return nil
	})
	if err != nil || standing != 50 {
		t.Errorf("%d standing bans in the ledger, %v; want 50", standing, err)
	}
}

// TestBrakeSurvives: a restart, or a crash, lets no more bans through.
func TestBrakeSurvives(t *testing.T) {
	w := newWorld(t)
	w.config.Settings.MaxBansPerMin = 1
	_, stop := w.run()
	w.fail("192.0.2.1", 3)
	w.untilBanned("192.0.2.1")
	stop()
	d, _ := w.run()
	w.fail("192.0.2.2", 3)
	for told := false; !told; {
		s, err := d.Status(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		told = len(s.Problems) == 1 && strings.Contains(s.Problems[0], "new ones are held back")
	}
	if _, ok := w.kernel.banned("192.0.2.2"); ok {
		t.Error("192.0.2.2 is banned")
	}
}
