package test

import (
	"bufio"
	"context"
	"fmt"
	"math"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// judgedSoak is how long a soak must be for its end to be level: before that
// windows and history still fill up to their limits.
const judgedSoak = 2 * time.Minute

// TestSoak has the daemon at work for a while: strangers and regulars fail in
// logs that rotate and in the journal, some under names that are looked up or
// asking whether they are to be spared, are banned for seconds and come again,
// in packets too; the daemon is reloaded and asked all sorts of things. In the
// end memory, goroutines, descriptors and the kernel's list are as they were
// half way.
//
// XDPBAN_SOAK sets for how long; below two minutes the end isn't judged. The
// ledger is full of history after half a quarter of an hour.
func TestSoak(t *testing.T) {
	length := 15 * time.Second
	if s := os.Getenv("XDPBAN_SOAK"); s != "" {
		var err error
		if length, err = time.ParseDuration(s); err != nil {
			t.Fatalf("XDPBAN_SOAK: %v", err)
		}
	}
	b := newBedFor(t, length+3*time.Minute)
	b.put("/etc/xdpban/xdpban.toml", "metrics = \"127.0.0.1:9477\"\nmax_bans_per_minute = 0\nmax_bans = 1000\nmax_tracked = 1000\n")
	b.put("/etc/xdpban/jail.d/soak.toml", strings.ReplaceAll(killJails, `"1s"`, `"5s"`))
	b.slowAnswers()
	w := newWriter(t, b, uint64(time.Now().UnixNano()))
	daemon := b.protect()

	ctx, stop := context.WithCancel(b.ctx)
	defer stop()
	var work sync.WaitGroup
	every := func(pause time.Duration, f func()) {
		work.Go(func() {
			tick := time.NewTicker(pause)
			defer tick.Stop()
			for {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
					w.mu.Lock()
					f()
					w.mu.Unlock()
				}
			}
		})
	}
	stranger := 0
	every(10*time.Millisecond, func() {
		// Who comes once, who comes again and again, and who isn't banned.
		l := w.logs[w.rnd.IntN(len(w.logs))]
		stranger++
		addr := fmt.Sprintf("2001:db8:%x:%x::1", 0x100+stranger>>16, stranger&0xffff)
		for range killRetry - stranger%3/2 {
			w.append(l, "login failed from "+addr)
		}
		w.append(l, fmt.Sprintf("login failed from 198.51.100.%d", 1+w.rnd.IntN(200)))
		w.append(l, "login failed from "+attacker4)
		for i := range 20 {
			w.append(l, fmt.Sprintf("user %d has done this and that", i))
		}
		w.journal(fmt.Sprintf("Failed password for root from 203.0.113.%d port 40022 ssh2", 1+w.rnd.IntN(200)))
		host, addr := name(w.rnd.IntN(named))
		w.failAs(w.byName, host, addr)
		if stranger%4 == 0 {
			w.ask(fmt.Sprintf("2001:db8:a::%x", 1+w.rnd.IntN(20)))
		}
	})
	every(time.Second, func() {
		if l := w.logs[w.rnd.IntN(len(w.logs))]; l.rotate != nil {
			w.rotate(l)
			w.prune(l)
		}
	})
	for from, pause := range map[string]string{attacker4: "0.01", bystander4: "0.1"} {
		if _, err := b.attacker.Start(from+".service", nil, "ping", "-n", "-q", "-i", pause, "-W", "1", "-I", from, server4); err != nil {
			t.Fatal(err)
		}
	}

	var samples []map[string]float64
	began := time.Now()
	pause := max(length/90, time.Second)
	for n := 0; time.Since(began) < length; n++ {
		select {
		case <-time.After(pause):
		case <-daemon.Ended():
			t.Fatal("xdpban ended by itself")
		}
		for _, argv := range [][]string{{"list"}, {"status"}, {"stats"}, {"why", attacker4}, {"history", "--limit=100"}} {
			b.run(b.server, append([]string{program(t)}, argv...)...)
		}
		if n%6 == 5 {
			b.run(b.server, program(t), "reload")
		}
		s := b.scrape("http://127.0.0.1:9477/metrics")
		info, err := os.Stat(b.server.Path("/var/lib/xdpban/ledger.db"))
		if err != nil {
			t.Fatal(err)
		}
		s["ledger"] = float64(info.Size())
		s["anonymous"] = float64(memory(t, daemon.PID(), "RssAnon"))
		s["at"] = time.Since(began).Seconds()
		samples = append(samples, s)
	}
	stop()
	work.Wait()
	b.alive(daemon)
	for _, p := range b.status().Problems {
		t.Errorf("problem: %s", p)
	}
	last := samples[len(samples)-1]
	if last["xdpban_packets_total"] == 0 || last["xdpban_bans_total"] == 0 || last["xdpban_blocklist_entries"] >= last["xdpban_bans_total"] {
		t.Errorf("no packet was dropped, nobody banned, or no ban ended: %v", last)
	}
	if !b.pings(bystander4, server4) {
		t.Error("who did nothing doesn't get through")
	}
	t.Logf("%s, %d lines, %d rotations, %.0f bans, %.0f packets", length, w.lines, w.rotations, last["xdpban_bans_total"], last["xdpban_packets_total"])
	for _, m := range []struct {
		name  string
		unit  float64
		least bool    // of a window the least counts, for memory that goes up and down between collections; else the most
		slack float64 // of what it may grow from the third quarter to the fourth
	}{
		{"go_memstats_heap_alloc_bytes", 1 << 20, true, 1 << 20},
		{"anonymous", 1 << 20, true, 4 << 20},
		{"process_resident_memory_bytes", 1 << 20, true, math.Inf(1)}, // the ledger's file is in it, as far as it was looked into
		{"go_goroutines", 1, false, 5},
		{"process_open_fds", 1, false, 5},
		{"xdpban_blocklist_entries", 1, false, 50},
		{"xdpban_tracked_sources", 1, false, 50},
		{"ledger", 1 << 20, false, math.Inf(1)},
	} {
		quarter := func(n int) float64 {
			var v []float64
			for _, s := range samples[len(samples)*n/4 : len(samples)*(n+1)/4] {
				v = append(v, s[m.name])
			}
			if m.least {
				return slices.Min(v)
			}
			return slices.Max(v)
		}
		q := [4]float64{quarter(0), quarter(1), quarter(2), quarter(3)}
		t.Logf("%-30s by quarters: %7.1f %7.1f %7.1f %7.1f", m.name, q[0]/m.unit, q[1]/m.unit, q[2]/m.unit, q[3]/m.unit)
		if length >= judgedSoak && q[3] > q[2]*1.1+m.slack {
			t.Errorf("%s still grows: %.0f in the third quarter, %.0f in the fourth", m.name, q[2], q[3])
		}
	}
}

// prune deletes what logrotate would: all but the newest of a log's old files.
func (w *writer) prune(l *log) {
	old, err := filepath.Glob(l.path + "?*")
	if err != nil {
		w.Error(err)
	}
	type file struct {
		path string
		at   time.Time
	}
	var files []file
	for _, path := range old {
		if info, err := os.Stat(path); err == nil {
			files = append(files, file{path, info.ModTime()})
		}
	}
	slices.SortFunc(files, func(a, b file) int { return b.at.Compare(a.at) })
	for _, f := range files[min(len(files), 5):] {
		if err := os.Remove(f.path); err != nil {
			w.Error(err)
		}
	}
}

// scrape gives the server's metrics, summed up over their labels.
func (b *bed) scrape(url string) map[string]float64 {
	b.Helper()
	var conn net.Conn
	if err := b.server.In(func() (err error) {
		conn, err = net.Dial("tcp", strings.Split(url, "/")[2])
		return err
	}); err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return conn, nil },
	}}
	res, err := client.Get(url)
	if err != nil {
		b.Fatal(err)
	}
	defer res.Body.Close()
	sums := map[string]float64{}
	for lines := bufio.NewScanner(res.Body); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), " ")
		if i := strings.LastIndexByte(lines.Text(), ' '); i > 0 {
			value = lines.Text()[i+1:]
		}
		name, _, _ = strings.Cut(name, "{")
		if v, err := strconv.ParseFloat(value, 64); err == nil && name != "#" {
			sums[name] += v
		}
	}
	if len(sums) == 0 {
		b.Fatalf("no metrics: %s", res.Status)
	}
	return sums
}
