package test

import (
	"compress/gzip"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"xdpban/internal/lab"
)

// TestNoLineLostOrCountedTwice kills the daemon again and again at random
// moments while a log grows and rotates under it. Half of the sources fail
// exactly maxretry times and must be banned in the end: a lost line would let
// one go. The other half fails once less and must not be: a line counted
// twice would ban one.
//
// XDPBAN_KILLS sets how often it is killed.
func TestNoLineLostOrCountedTwice(t *testing.T) {
	kills := 20
	if s := os.Getenv("XDPBAN_KILLS"); s != "" {
		var err error
		if kills, err = strconv.Atoi(s); err != nil {
			t.Fatalf("XDPBAN_KILLS: %v", err)
		}
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))

	var lines []string // the source of each line, in order
	want := map[string]bool{}
	for i := range 50 {
		guilty, innocent := fmt.Sprintf("198.51.100.%d", i+1), fmt.Sprintf("203.0.113.%d", i+1)
		want[guilty] = true
		lines = append(lines, guilty, guilty, guilty, guilty, guilty, innocent, innocent, innocent, innocent)
	}
	rnd.Shuffle(len(lines), func(i, j int) { lines[i], lines[j] = lines[j], lines[i] })

	b := newBed(t)
	log := &rotating{t: t, b: b, path: "/var/log/auth.log", written: map[string][]string{}}
	log.write("192.0.2.200")
	// The very first start begins at the end of the log.
	kill := func(daemon *lab.Service) {
		t.Helper()
		if err := daemon.Signal(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		<-daemon.Ended()
	}
	kill(b.protect())
	rotations := []func(){log.rename, log.renameTwice, log.compress}
	for round := range kills {
		part := lines[len(lines)*round/kills : len(lines)*(round+1)/kills]
		// Both at once: the daemon's life and the log's growth.
		var both sync.WaitGroup
		pauses := make([]time.Duration, len(part))
		for i := range pauses {
			pauses[i] = time.Duration(rnd.IntN(8)) * time.Millisecond
		}
		rotateAt := -1
		if round%2 == 1 {
			rotateAt = rnd.IntN(len(part))
		}
		both.Go(func() {
			for i, addr := range part {
				if i == rotateAt {
					rotations[round/2%len(rotations)]()
				}
				log.write(addr)
				time.Sleep(pauses[i])
			}
		})
		life := time.Duration(rnd.IntN(80)) * time.Millisecond
		daemon := b.protect()
		time.Sleep(life)
		kill(daemon)
		both.Wait()
		log.event(fmt.Sprintf("round %d is over", round))
	}
	b.protect()
	const last = "192.0.2.201"
	for range 5 {
		log.write(last)
	}
	b.untilBanned(last)
	want[last] = true

	got := b.bans()
	var lost, twice []string
	for addr := range want {
		if _, ok := got[addr]; !ok {
			lost = append(lost, addr)
		}
	}
	for addr, e := range got {
		if !want[addr] {
			twice = append(twice, addr)
		}
		if e.Strikes != 0 {
			t.Errorf("%s has %d strikes before its first ban", addr, e.Strikes)
		}
	}
	slices.Sort(lost)
	slices.Sort(twice)
	if len(lost) > 0 {
		t.Errorf("lost lines of %v", lost)
		for _, addr := range lost[:min(3, len(lost))] {
			out, _ := b.server.Run(b.ctx, program(t), "why", addr)
			t.Logf("%s\nwritten:\n%s", out, strings.Join(log.written[addr], "\n"))
		}
		t.Logf("rotations and starts:\n%s", strings.Join(log.events, "\n"))
	}
	if len(twice) > 0 {
		t.Errorf("counted lines twice of %v", twice)
	}
}

// rotating is a log that is rotated in the ways that lose nothing.
type rotating struct {
	t    *testing.T
	b    *bed
	path string

	rotations int
	written   map[string][]string // by source
	events    []string
}

func (r *rotating) write(addr string) {
	line := failure(time.Now(), addr)
	appendTo(r.t, r.b.server, r.path, line)
	r.written[addr] = append(r.written[addr], strings.TrimSpace(line))
}

func (r *rotating) event(what string) {
	r.events = append(r.events, time.Now().Format("15:04:05.000000 ")+what)
}

// rename moves the log away, and those moved away before it one further, and
// begins a new one.
func (r *rotating) rename() {
	r.event("rename")
	for n := r.rotations; n > 0; n-- {
		for _, ext := range []string{"", ".gz"} {
			from := r.b.server.Path(fmt.Sprintf("%s.%d%s", r.path, n, ext))
			to := r.b.server.Path(fmt.Sprintf("%s.%d%s", r.path, n+1, ext))
			if err := os.Rename(from, to); err != nil && !os.IsNotExist(err) {
				r.t.Error(err)
			}
		}
	}
	r.rotations++
	if err := os.Rename(r.b.server.Path(r.path), r.b.server.Path(r.path+".1")); err != nil {
		r.t.Error(err)
	}
	appendTo(r.t, r.b.server, r.path, "")
}

// renameTwice rotates twice at once.
func (r *rotating) renameTwice() {
	r.rename()
	r.rename()
}

// compress rotates and compresses what it moved away, as logrotate does
// without delaycompress.
func (r *rotating) compress() {
	r.rename()
	defer r.event("compressed .1")
	old := r.b.server.Path(r.path + ".1")
	in, err := os.Open(old)
	if err != nil {
		r.t.Error(err)
		return
	}
	defer in.Close()
	out, err := os.Create(old + ".gz")
	if err != nil {
		r.t.Error(err)
		return
	}
	defer out.Close()
	zw := gzip.NewWriter(out)
	_, err = io.Copy(zw, in)
	if err == nil {
		err = zw.Close()
	}
	if err == nil {
		err = os.Remove(old)
	}
	if err != nil {
		r.t.Error(err)
	}
}
