package test

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"xdpban/internal/lab"
)

// The jails of the kill test: bans are short, so that there are many and
// strikes add up.
const killJails = `
[jail.app]
files     = ["/var/log/app/*.log"]
maxretry  = 3
findtime  = "1h"
bantime   = "1s"
failregex = ['^ login failed from <ADDR>$']

[jail.names]
files     = ["/var/log/names.log"]
maxretry  = 3
findtime  = "1h"
bantime   = "1s"
usedns    = "yes"
failregex = ['^ login failed from <HOST>$']

[jail.asks]
files         = ["/var/log/asks.log"]
maxretry      = 3
findtime      = "1h"
bantime       = "1s"
failregex     = ['^ login failed from <ADDR>$']
ignorecommand = ["/run/lab/bin/ours", "<ip>"]

[jail.sshd]
journal   = ["_SYSTEMD_UNIT=ssh.service"]
maxretry  = 3
findtime  = "1h"
bantime   = "1s"
`

// ours takes a while to say that those with an a at the end are ours.
const ours = `#!/bin/sh
sleep 0.1
case "$1" in *a) exit 0;; esac
exit 1
`

const (
	killRetry = 3
	killBan   = time.Second
)

// TestKilledOrNot runs two daemons on the same logs and the same journal. One
// is killed again and again at random moments, in the midst of starting, of
// reading and of writing its checkpoint, and is down for a while each time;
// the logs rotate meanwhile in all the ways that leave what is unread
// readable. Names take a while to be looked up, and an ignorecommand to
// answer: that is interrupted, too. The other one is left alone. In the end both have decided the
// same bans, at the same times, with the same strikes, for the same lines;
// and they are those that follow from what was written.
//
// XDPBAN_KILLS sets how often it is killed, XDPBAN_SEED with what chance.
func TestKilledOrNot(t *testing.T) {
	kills := int(number(t, "XDPBAN_KILLS", 8))
	seed := number(t, "XDPBAN_SEED", uint64(time.Now().UnixNano()))
	t.Logf("XDPBAN_SEED=%d XDPBAN_KILLS=%d", seed, kills)

	b := newBedFor(t, time.Minute+time.Duration(kills)*10*time.Second)
	b.run(b.server, "ip", "link", "add", "ref0", "type", "veth", "peer", "name", "ref1")
	if _, err := b.server.Journald(b.ctx); err != nil {
		t.Fatal(err)
	}
	b.put("/etc/xdpban/xdpban.toml", `max_bans_per_minute = 0
`)
	b.put("/etc/xdpban/jail.d/kill.toml", killJails)
	b.slowAnswers()
	b.put("/etc/undisturbed/xdpban.toml", `max_bans_per_minute = 0
interfaces = ["ref0"]
bpf_dir = "/sys/fs/bpf/undisturbed"
socket = "/run/undisturbed/xdpban.sock"
state_dir = "/var/lib/undisturbed"
`)
	b.put("/etc/undisturbed/jail.d/kill.toml", killJails)

	w := newWriter(t, b, seed)
	undisturbed, err := b.server.StartNotify(b.ctx, "undisturbed.service", nil, program(t), "--config=/etc/undisturbed", "run")
	if err != nil {
		t.Fatal(err)
	}
	b.Cleanup(func() {
		if b.Failed() {
			b.Logf("undisturbed said:\n%s", undisturbed.Output())
		}
	})
	// The very first start begins at the end of the logs; it is over when it
	// has said where that is.
	first := b.protect()
	if err := first.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-first.Ended()

	stop := make(chan struct{})
	var writing sync.WaitGroup
	writing.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(w.step()):
			}
		}
	})
	rnd := rand.New(rand.NewPCG(seed, 1))
	for i := range kills {
		daemon, err := b.server.Start("xdpban.service", nil, program(t), "run")
		if err != nil {
			t.Fatal(err)
		}
		// A third die while they start, the others at work.
		life := time.Duration(rnd.IntN(300)) * time.Millisecond
		if rnd.IntN(3) > 0 {
			life = time.Duration(rnd.IntN(3000)) * time.Millisecond
		}
		if rnd.IntN(4) == 0 {
			w.deleteSafely(program(t))
		}
		select {
		case <-time.After(life):
		case <-daemon.Ended():
			t.Fatalf("xdpban ended by itself:\n%s", daemon.Output())
		}
		// It can be killed once nsenter has started it: that takes a moment.
		b.until("there is something to kill", func() bool { return daemon.Signal(syscall.SIGKILL) == nil })
		<-daemon.Ended()
		w.note("kill %d after %s", i+1, life)
		if rnd.IntN(3) == 0 {
			w.rotateTwice()
		}
		time.Sleep(time.Duration(rnd.IntN(400)) * time.Millisecond)
	}
	close(stop)
	writing.Wait()
	b.protect()
	sentinels := w.finish()

	killed := w.history(sentinels)
	left := w.history(sentinels, "--config=/etc/undisturbed")
	t.Logf("%d lines, %d rotations, %d bans", w.lines, w.rotations, len(left))
	w.compare(killed, left, "killed", "undisturbed")
	w.compareModel(left)
	if t.Failed() {
		t.Logf("what happened:\n%s", strings.Join(w.events, "\n"))
	}
}

func number(t *testing.T, env string, otherwise uint64) uint64 {
	s := os.Getenv(env)
	if s == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", env, err)
	}
	return n
}

// put writes a file of the server.
func (b *bed) put(path, text string) {
	b.Helper()
	path = b.server.Path(path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		b.Fatal(err)
	}
}

// slowAnswers gives the server what the jails names and asks need.
func (b *bed) slowAnswers() {
	b.Helper()
	b.put("/run/lab/bin/ours", ours)
	b.run(b.server, "chmod", "755", "/run/lab/bin/ours")
	b.put("/etc/resolv.conf", "nameserver 127.0.0.53\n")
	startDNS(b, b.server, "127.0.0.53", func() time.Duration { return time.Duration(rand.IntN(200)) * time.Millisecond }, names())
}

// named is how many hosts fail under their names.
const named = 20

func name(i int) (host, addr string) {
	return fmt.Sprintf("host%d.example.org", i), fmt.Sprintf("2001:db8:f::%x", i+1)
}

func names() map[string]netip.Addr {
	m := map[string]netip.Addr{}
	for i := range named + 1 { // the last is a sentinel
		host, addr := name(i)
		m[host] = netip.MustParseAddr(addr)
	}
	return m
}

// writer writes failures to logs that rotate, each in a way of its own, and
// to the journal. It remembers them, and what happened to the logs.
type writer struct {
	*bed
	rnd     *rand.Rand
	journal func(string)

	mu        sync.Mutex
	logs      []*log
	byName    *log                   // of the hosts that fail under their names
	asks      *log                   // of those about whom an ignorecommand is asked
	last      time.Time              // of the last line
	wrote     map[string][]time.Time // by the address
	jail      map[string]string      // by the address; none: app
	where     map[string][]string    // by the address: log and time
	cross     []string               // lines to come of addresses that fail in several logs
	crossed   int
	lines     int
	rotations int

	noting sync.Mutex // events, by the writer and by whoever kills
	events []string
}

// log is one of the logs.
type log struct {
	name   string
	path   string // from outside the server
	rotate func(l *log) error
	n      int // files so far, where they are numbered
}

func newWriter(t *testing.T, b *bed, seed uint64) *writer {
	w := &writer{
		bed: b, rnd: rand.New(rand.NewPCG(seed, 0)),
		wrote: map[string][]time.Time{}, where: map[string][]string{}, jail: map[string]string{},
		byName: &log{name: "names", path: b.server.Path("/var/log/names.log")},
		asks:   &log{name: "asks", path: b.server.Path("/var/log/asks.log")},
	}
	if err := os.MkdirAll(b.server.Path("/var/log/app"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, l := range []*log{
		{name: "rename", rotate: renameLog},
		{name: "copytruncate", rotate: copyTruncate},
		{name: "compress", rotate: compressLog},
		{name: "swap", rotate: swapLink},
		{name: "delete"}, // see deleteSafely
		{name: "quiet"},
	} {
		l.path = b.server.Path("/var/log/app/" + l.name + ".log")
		if l.name == "swap" {
			if err := swapLink(l); err != nil {
				t.Fatal(err)
			}
		}
		w.logs = append(w.logs, l)
	}
	w.journal = toJournal(t, b)
	for _, l := range append([]*log{w.byName, w.asks}, w.logs...) {
		w.append(l, "started")
	}
	return w
}

func (w *writer) note(format string, args ...any) {
	w.noting.Lock()
	defer w.noting.Unlock()
	w.events = append(w.events, time.Now().UTC().Format("15:04:05.000000 ")+fmt.Sprintf(format, args...))
}

func (w *writer) append(l *log, message string) time.Time {
	// No two lines have the same time: what comes first is told by it.
	at := time.Now().UTC().Truncate(time.Microsecond)
	if !at.After(w.last) {
		at = w.last.Add(time.Microsecond)
	}
	w.last = at
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
	if err == nil {
		_, err = f.WriteString(at.Format("2006-01-02T15:04:05.000000Z07:00 ") + message + "\n")
		f.Close()
	}
	if err != nil {
		w.Error(err)
	}
	w.lines++
	return at
}

func (w *writer) fail(l *log, addr string) { w.failAs(l, addr, addr) }

// failAs is fail under a name.
func (w *writer) failAs(l *log, name, addr string) {
	at := w.append(l, "login failed from "+name)
	w.wrote[addr] = append(w.wrote[addr], at)
	w.where[addr] = append(w.where[addr], fmt.Sprintf("%s %s", at.Format("15:04:05.000000"), l.name))
}

// step writes something or rotates, and returns when it wants to go on.
func (w *writer) step() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	i := w.rnd.IntN(len(w.logs))
	l := w.logs[i]
	switch n := w.rnd.IntN(100); {
	case n < 2:
		if l.rotate != nil {
			w.rotate(l)
		}
	case n < 12:
		// These fail in several logs, just often enough or once less.
		if len(w.cross) == 0 {
			for range 10 {
				w.crossed++
				addr := fmt.Sprintf("2001:db8:c::%x", w.crossed)
				for range killRetry - w.crossed%2 {
					w.cross = append(w.cross, addr)
				}
			}
			w.rnd.Shuffle(len(w.cross), func(i, j int) { w.cross[i], w.cross[j] = w.cross[j], w.cross[i] })
		}
		w.fail(l, w.cross[0])
		w.cross = w.cross[1:]
	case n < 25:
		w.journal(fmt.Sprintf("Failed password for root from 203.0.113.%d port 40022 ssh2", 1+w.rnd.IntN(12)))
		w.lines++
	case n < 33:
		host, addr := name(w.rnd.IntN(named))
		w.jail[addr] = "names"
		w.failAs(w.byName, host, addr)
	case n < 37:
		w.ask(fmt.Sprintf("2001:db8:a::%x", 1+w.rnd.IntN(20)))
	default:
		// These come again and again, each in one log.
		w.fail(l, fmt.Sprintf("198.51.100.%d", 1+i*10+w.rnd.IntN(10)))
	}
	return time.Duration(w.rnd.IntN(8)) * time.Millisecond
}

func (w *writer) ask(addr string) {
	w.jail[addr] = "asks"
	w.fail(w.asks, addr)
}

func (w *writer) until(what string, f func() bool) {
	w.Helper()
	if err := lab.Until(w.ctx, what, f); err != nil {
		w.Error(err)
	}
}

func (w *writer) rotate(l *log) {
	w.note("rotate %s", l.name)
	w.rotations++
	if err := l.rotate(l); err != nil {
		w.Errorf("rotate %s: %v", l.name, err)
	}
}

// rotateTwice rotates each log twice, with lines in between.
func (w *writer) rotateTwice() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, l := range w.logs {
		if l.rotate != nil {
			w.rotate(l)
			w.fail(l, fmt.Sprintf("198.51.100.%d", 1+i*10))
			w.rotate(l)
		}
	}
}

// deleteSafely deletes a log and begins a new one, once the daemon has read
// it and written that down: what is deleted before is lost to anybody.
func (w *writer) deleteSafely(program string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var l *log
	for _, l = range w.logs {
		if l.name == "delete" {
			break
		}
	}
	mark := fmt.Sprintf("2001:db8:d::%x", w.lines)
	for range killRetry {
		w.fail(l, mark)
	}
	// What was judged before one checkpoint was over is in the next one, if
	// there is something for one to write.
	checkpoint := func(after time.Time) (at time.Time) {
		w.fail(w.logs[len(w.logs)-1], mark)
		w.until("a checkpoint", func() bool {
			var s struct{ Checkpoint time.Time }
			out, err := w.server.Run(w.ctx, program, "status", "--json")
			if err == nil && json.Unmarshal([]byte(out), &s) == nil {
				at = s.Checkpoint
			}
			return at.After(after)
		})
		return at
	}
	w.until(mark+" is banned", func() bool {
		out, err := w.server.Run(w.ctx, program, "why", "--json", mark)
		return err == nil && strings.Contains(out, `"since"`)
	})
	checkpoint(checkpoint(time.Now()))
	w.note("delete %s", l.name)
	w.rotations++
	if err := os.Remove(l.path); err != nil {
		w.Error(err)
	}
	w.append(l, "began anew")
}

// finish bans one last source in each log and in the journal, and returns
// these: when both daemons know them, they have read all.
func (w *writer) finish() (sentinels []string) {
	for i, l := range w.logs {
		addr := fmt.Sprintf("2001:db8:e::%x", i+1)
		sentinels = append(sentinels, addr)
		for range killRetry {
			w.fail(l, addr)
		}
	}
	const asked, logged = "2001:db8:e::101", "203.0.113.99"
	host, addr := name(named)
	w.jail[addr] = "names"
	for range killRetry {
		w.failAs(w.byName, host, addr)
		w.ask(asked)
		w.journal("Failed password for root from " + logged + " port 40022 ssh2")
	}
	return append(sentinels, addr, asked, logged)
}

// happened is a past ban, as `xdpban history --json` tells it.
type happened struct {
	Kind string
	Ban  struct {
		Prefix, Jail string
		Since, Until time.Time
		Strikes      int
		Failures     int
		Pattern      string
		Evidence     []string
	}
}

// history is all bans so far, by prefix, jail and time, once those of the
// sentinels are among them.
func (w *writer) history(sentinels []string, flags ...string) (bans map[string]happened) {
	w.Helper()
	argv := append([]string{program(w)}, flags...)
	var missing []string
	ctx, cancel := context.WithTimeout(w.ctx, time.Minute)
	defer cancel()
	if err := lab.Until(ctx, "all is read", func() bool {
		var list []happened
		out, err := w.server.Run(w.ctx, append(argv, "history", "--json", "--limit=0")...)
		if err != nil {
			return false
		}
		if err := json.Unmarshal([]byte(out), &list); err != nil {
			w.Fatalf("xdpban history --json: %v\n%s", err, out)
		}
		bans = map[string]happened{}
		missing = slices.Clone(sentinels)
		for _, e := range list {
			if e.Kind != "ban" {
				continue
			}
			addr, _, _ := strings.Cut(e.Ban.Prefix, "/")
			missing = slices.DeleteFunc(missing, func(s string) bool { return s == addr })
			bans[fmt.Sprintf("%-16s %s %s", addr, e.Ban.Jail, e.Ban.Since.Format("15:04:05.000000"))] = e
		}
		return len(missing) == 0
	}); err != nil {
		for _, addr := range missing {
			why, _ := w.server.Run(w.ctx, append(argv, "why", addr)...)
			w.Logf("why %s: %s", addr, why)
		}
		status, _ := w.server.Run(w.ctx, append(argv, "status")...)
		w.Fatalf("%v: %s: not seen: %v\n%s\n%s", err, strings.Join(flags, " "), missing, status, strings.Join(w.events, "\n"))
	}
	return bans
}

// compare finds what two histories don't have in common.
func (w *writer) compare(a, b map[string]happened, nameA, nameB string) {
	w.Helper()
	told := 0
	differ := func(key, format string, args ...any) {
		w.Helper()
		if told++; told <= 10 {
			addr, _, _ := strings.Cut(key, " ")
			w.Errorf("%s: %s\nwritten: %s", key, fmt.Sprintf(format, args...), strings.Join(w.where[addr], ", "))
		}
	}
	for _, key := range slices.Sorted(maps.Keys(a)) {
		y, ok := b[key]
		if !ok {
			differ(key, "a ban of %s only", nameA)
			continue
		}
		have, _ := json.Marshal(a[key])
		want, _ := json.Marshal(y)
		if string(have) != string(want) {
			differ(key, "%s: %s\n%s: %s", nameA, have, nameB, want)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(b)) {
		if _, ok := a[key]; !ok {
			differ(key, "a ban of %s only", nameB)
		}
	}
	if told > 0 {
		w.Errorf("%d of %d bans differ", told, len(b))
	}
}

// compareModel checks bans against what follows from the lines of the logs:
// each third failure bans, those within a ban count for nothing, and ours are
// spared. The journal gives its entries times of its own.
func (w *writer) compareModel(bans map[string]happened) {
	w.Helper()
	want := map[string]bool{}
	for addr, times := range w.wrote {
		jail := w.jail[addr]
		switch {
		case jail == "":
			jail = "app"
		case jail == "asks" && strings.HasSuffix(addr, "a"):
			continue
		}
		n, until := 0, time.Time{}
		for _, at := range times {
			if at.Before(until) {
				continue
			}
			if n++; n == killRetry {
				n, until = 0, at.Add(killBan)
				want[fmt.Sprintf("%-16s %s %s", addr, jail, at.Format("15:04:05.000000"))] = true
			}
		}
	}
	wrong := 0
	for key, e := range bans {
		if !slices.Contains([]string{"app", "names", "asks"}, e.Ban.Jail) {
			continue
		}
		if !want[key] {
			w.Errorf("undisturbed has a ban that doesn't follow from the lines: %s", key)
			wrong++
		}
		delete(want, key)
	}
	for key := range want {
		w.Errorf("undisturbed lacks a ban that follows from the lines: %s", key)
		wrong++
	}
	if wrong > 0 {
		w.Errorf("%d bans of the undisturbed run are wrong", wrong)
	}
}

// keepRotated is how many rotated files are kept: more than there are between
// two checkpoints, however short the daemon's lives, since what is deleted
// unread is lost to anybody.
const keepRotated = 60

// shift makes room for a new .1.
func shift(path string) error {
	for n := keepRotated; n > 0; n-- {
		for _, ext := range []string{"", ".gz"} {
			from := fmt.Sprintf("%s.%d%s", path, n, ext)
			err := os.Rename(from, fmt.Sprintf("%s.%d%s", path, n+1, ext))
			if n == keepRotated {
				err = os.Remove(from)
			}
			if err != nil && !os.IsNotExist(err) {
				return err
			}
		}
	}
	return nil
}

// renameLog moves the log away and begins a new one.
func renameLog(l *log) error {
	err := shift(l.path)
	if err == nil {
		err = os.Rename(l.path, l.path+".1")
	}
	if err == nil {
		err = os.WriteFile(l.path, nil, 0o640)
	}
	return err
}

// copyTruncate copies the log and empties it.
func copyTruncate(l *log) error {
	err := shift(l.path)
	if err == nil {
		err = copyTo(l.path, l.path+".1", func(w io.Writer) io.WriteCloser { return nopCloser{w} })
	}
	if err == nil {
		err = os.Truncate(l.path, 0)
	}
	return err
}

// compressLog moves the log away and compresses it, as logrotate does without
// delaycompress.
func compressLog(l *log) error {
	err := renameLog(l)
	if err == nil {
		err = copyTo(l.path+".1", l.path+".1.gz", func(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) })
	}
	if err == nil {
		err = os.Remove(l.path + ".1")
	}
	return err
}

// swapLink begins a new file and has the log's name point to that. The file is
// named by a time, as by those programs that do so: one that the name points
// to while nobody looks is known by that.
func swapLink(l *log) error {
	l.n++
	target := fmt.Sprintf("%s-%d", l.path, 1_790_000_000+l.n)
	err := os.WriteFile(target, nil, 0o640)
	if err == nil {
		err = os.Symlink(filepath.Base(target), l.path+".new")
	}
	if err == nil {
		err = os.Rename(l.path+".new", l.path)
	}
	return err
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

func copyTo(from, to string, pack func(io.Writer) io.WriteCloser) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer out.Close()
	w := pack(out)
	if _, err := io.Copy(w, in); err != nil {
		return err
	}
	return w.Close()
}
