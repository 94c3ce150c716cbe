package test

import (
	"bufio"
	"fmt"
	"os"
	"testing"
	"time"
)

// TestFlood: more distinct offenders than there is room for. The brake trips and says so; windows and bans stay within their
// limits, so does memory; those who did nothing notice nothing.
//
// XDPBAN_FLOOD sets how many offenders there are.
func TestFlood(t *testing.T) {
	n := int(number(t, "XDPBAN_FLOOD", 60_000))
	for _, c := range []struct {
		name, settings string
		most           int // bans
		braked         bool
	}{
		{"braked", "", 2 * 1000, true}, // it may last beyond a minute
		{"full", "max_bans_per_minute = 0\nmax_bans = 20000\n", 20000 + 256, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBedFor(t, 3*time.Minute+time.Duration(n)*time.Millisecond)
			b.put("/etc/xdpban/xdpban.toml", "max_tracked = 10000\n"+c.settings)
			b.put("/etc/xdpban/jail.d/app.toml", `[jail.app]
files = ["/var/log/app.log"]
maxretry = 1
failregex = ['^ login failed from <ADDR>$']
[jail.recidive]
enabled = false
`)
			b.put("/var/log/app.log", "")
			daemon := b.protect()
			before := memory(t, daemon.PID(), "VmRSS")
			f, err := os.OpenFile(b.server.Path("/var/log/app.log"), os.O_WRONLY|os.O_APPEND, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			w := bufio.NewWriter(f)
			fail := func(addr string) {
				fmt.Fprintf(w, "%s login failed from %s\n", time.Now().Format("2006-01-02T15:04:05.000000-07:00"), addr)
			}
			for i := range n {
				if i%64 == 0 {
					fail(fmt.Sprintf("198.51.100.%d", i>>6&255))
				}
				// Each of a /64 of its own.
				fail(fmt.Sprintf("2001:db8:%x:%x::1", 0x100+i>>16, i&0xffff))
			}
			began := time.Now()
			if err := w.Flush(); err != nil {
				t.Fatal(err)
			}
			heap := before
			b.until("all failures are judged", func() bool {
				heap = max(heap, memory(t, daemon.PID(), "RssAnon"))
				for _, s := range b.status().Sources {
					if s.Stream == "/var/log/app.log" && s.Lines == uint64(n+(n+63)/64) {
						return true
					}
				}
				return false
			})
			if c.braked {
				b.untilProblem("new ones are held back", false)
			}
			s := b.status()
			if s.Bans > c.most || s.Bans == 0 {
				t.Errorf("%d bans, at most %d are allowed", s.Bans, c.most)
			}
			for _, j := range s.Jails {
				if j.Tracked > 10000 {
					t.Errorf("%d windows", j.Tracked)
				}
			}
			if !b.pings(attacker4, server4) || !b.pings(bystander4, server4) {
				t.Error("those who did nothing don't get through")
			}
			b.alive(daemon)
			peak := memory(t, daemon.PID(), "VmHWM")
			t.Logf("%d offenders: %d bans, memory from %d to at most %d MB, of it %d MB not of files, judged in %s", n, s.Bans, before>>20, peak>>20, heap>>20, time.Since(began).Round(time.Second))
			// The ledger's file is in the peak, as far as it was looked into; that
			// memory can be taken back at any time.
			if heap > 250<<20 {
				t.Errorf("%d MB in memory that are not of files", heap>>20)
			}
		})
	}
}
