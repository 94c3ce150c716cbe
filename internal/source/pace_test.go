package source

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// TestPace: what comes now and then, and a few at once, are read at once; what
// doesn't end is looked at every few milliseconds.
func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p pace
		waited := func(pause time.Duration, times int) (longest, all time.Duration) {
			for range times {
				time.Sleep(pause)
				began := time.Now()
				p.wait(context.Background(), began)
				longest = max(longest, time.Since(began))
				all += pause + time.Since(began)
			}
			return longest, all
		}
		for _, c := range []struct {
			pause time.Duration
			times int
		}{{time.Hour, 3}, {paceEvery, 1000}, {0, paceBurst - 1}, {paceBurst * paceEvery, 1}, {time.Microsecond, paceBurst / 2}} {
			if longest, _ := waited(c.pause, c.times); longest > 0 {
				t.Errorf("%d, each after %s: one waited %s", c.times, c.pause, longest)
			}
		}
		time.Sleep(time.Second)
		longest, all := waited(10*time.Microsecond, 1000)
		if longest > paceEvery || all < (1000-paceBurst-1)*paceEvery {
			t.Errorf("1000 at once took %s, the longest waited %s", all, longest)
		}
		time.Sleep(time.Second)
		waited(0, paceBurst)
		p.size = paceSize
		if longest, _ := waited(0, 1); longest != paceLarge {
			t.Errorf("after a large one the next waited %s", longest)
		}
		time.Sleep(time.Second)
		waited(0, paceBurst)
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		began := time.Now()
		p.wait(ctx, began)
		if d := time.Since(began); d > 0 {
			t.Errorf("it waited %s though it was to end", d)
		}
	})
}
