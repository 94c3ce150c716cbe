package test

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestCatchUp: after a day without the daemon a backlog is judged by its
// lines' own times. Whoever is still due is banned, however many they are, and
// nobody else; another log's fresh lines are judged meanwhile; memory is that
// of the state and not of the backlog.
//
// XDPBAN_BACKLOG sets the backlog's size in MB.
func TestCatchUp(t *testing.T) {
	size := int64(number(t, "XDPBAN_BACKLOG", 50)) << 20
	b := newBedFor(t, 3*time.Minute+time.Duration(size>>20)*time.Second/4)
	b.put("/etc/xdpban/jail.d/app.toml", `[jail.app]
files = ["/var/log/app.log"]
maxretry = 3
failregex = ['^ login failed from <ADDR>$']
`)
	b.put("/var/log/app.log", "")
	b.put("/var/log/auth.log", "")
	daemon := b.protect()
	if err := daemon.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-daemon.Ended()

	// 2,000 due, in the last half hour, and 500 whose bans are over, spread
	// over the day. 80 a minute are due: by the clock, a brake of 100 would hold most back.
	b.put("/etc/xdpban/xdpban.toml", "max_bans_per_minute = 100\n")
	const due, over = 2000, 500
	dueAddr := func(i int) string { return fmt.Sprintf("198.51.%d.%d", 100+i/250, 1+i%250) }
	f, err := os.OpenFile(b.server.Path("/var/log/auth.log"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	w := bufio.NewWriterSize(f, 1<<20)
	written := int64(0)
	line := func(at time.Time, text string) {
		n, err := fmt.Fprintf(w, "%s server sshd[4711]: %s\n", at.Format("2006-01-02T15:04:05.000000-07:00"), text)
		if err != nil {
			t.Fatal(err)
		}
		written += int64(n)
	}
	start, end := time.Now().Add(-24*time.Hour), time.Now()
	noise := func(from, to time.Time, bytes int64) {
		for begun, i := written, int64(0); written < begun+bytes; i++ {
			at := from.Add(time.Duration(float64(to.Sub(from)) * float64(written-begun) / float64(bytes)))
			line(at, fmt.Sprintf("Accepted publickey for user%d from 203.0.113.%d port %d ssh2: ED25519 SHA256:abcdefghijklmnopqrstuvwxyz0123456789", i, 1+i%250, i%60000))
		}
	}
	recent := end.Add(-30 * time.Minute)
	for i := range over {
		at := start.Add(time.Duration(i) * 20 * time.Hour / over)
		for range 5 {
			line(at, fmt.Sprintf("Failed password for root from 192.0.2.%d port 40022 ssh2", 1+i%250))
		}
		noise(at, at.Add(20*time.Hour/over), size*9/10/over)
	}
	for i := range due {
		at := recent.Add(time.Duration(i) * 25 * time.Minute / due)
		for range 5 {
			line(at, fmt.Sprintf("Failed password for root from %s port 40022 ssh2", dueAddr(i)))
		}
		noise(at, at, size/10/due)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}

	began := time.Now()
	daemon = b.protect()
	for range 3 {
		appendTo(t, b.server, "/var/log/app.log", time.Now().Format("2006-01-02T15:04:05.000000-07:00")+" login failed from 203.0.113.201\n")
	}
	b.untilBanned("203.0.113.201")
	fresh := time.Since(began)
	b.untilBanned(dueAddr(due - 1))
	took := time.Since(began)
	list := b.bans()
	for i := range due {
		if _, ok := list[dueAddr(i)]; !ok {
			t.Errorf("%s isn't banned", dueAddr(i))
			break
		}
	}
	if len(list) != due+1 {
		t.Errorf("%d are banned, want %d", len(list), due+1)
	}
	s := b.status()
	for _, p := range s.Problems {
		t.Errorf("problem: %s", p)
	}
	peak := memory(t, daemon.PID(), "VmHWM")
	t.Logf("%d MB read in %s, a fresh line of another log judged after %s, at most %d MB in memory", written>>20, took.Round(time.Millisecond), fresh.Round(time.Millisecond), peak>>20)
	if most := int64(150 << 20); peak > most {
		t.Errorf("%d MB in memory", peak>>20)
	}
	// Long enough for the log to say how long it will take.
	if said := daemon.Output(); took > 5*time.Second && (!strings.Contains(said, "reading a backlog: /var/log/auth.log") || !strings.Contains(said, "the backlog is read: /var/log/auth.log")) {
		t.Error("it didn't say how far reading the backlog is")
	}
	// The last line was from five minutes ago.
	for _, src := range s.Sources {
		if lag, err := time.ParseDuration(src.Lag); src.Stream == "/var/log/auth.log" && (err != nil || lag < 4*time.Minute || lag > 30*time.Minute) {
			t.Errorf("lag %q: %v", src.Lag, err)
		}
	}
}

// memory reads a figure of /proc/PID/status in bytes.
func memory(t *testing.T, pid int, what string) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for l := range strings.Lines(string(text)) {
		if v, ok := strings.CutPrefix(l, what+":"); ok {
			n, err := strconv.ParseInt(strings.Fields(v)[0], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n << 10
		}
	}
	t.Fatalf("no %s of %d", what, pid)
	return 0
}

// TestFullDisk: no room for a checkpoint is said, bans go on all the same, and
// with room again nothing is lost.
func TestFullDisk(t *testing.T) {
	b := newBed(t)
	b.run(b.server, "sh", "-c", "mkdir -p /var/lib/xdpban && mount -t tmpfs -o size=512k tmpfs /var/lib/xdpban")
	appendTo(t, b.server, "/var/log/auth.log", failure(time.Now(), "192.0.2.200"))
	daemon := b.protect()
	b.attack(attacker4)
	b.run(b.server, "sh", "-c", "! cat /dev/zero >/var/lib/xdpban/filler 2>/dev/null")
	many := func(net string) {
		t.Helper()
		var text strings.Builder
		for i := range 250 {
			for range 5 {
				text.WriteString(failure(time.Now(), fmt.Sprintf("%s.%d", net, 1+i)))
			}
		}
		appendTo(t, b.server, "/var/log/auth.log", text.String())
		b.untilBanned(net + ".250")
	}
	many("198.51.100")
	many("203.0.113")
	b.untilProblem("write checkpoint to /var/lib/xdpban/ledger.db", false)
	b.guarded("with the disk full")
	if !strings.Contains(daemon.Output(), "no space left on device") {
		t.Errorf("the disk isn't named as the reason:\n%s", daemon.Output())
	}

	// A start that finds the disk full has the last checkpoint.
	if err := daemon.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-daemon.Ended()
	daemon = b.protect()
	b.untilBanned("203.0.113.250")
	b.guarded("after a start with the disk full")
	if got := len(b.bans()); got != 501 {
		t.Errorf("%d are banned, want 501", got)
	}

	b.run(b.server, "sh", "-c", "rm /var/lib/xdpban/filler && mount -o remount,size=64m /var/lib/xdpban")
	b.untilProblem("write checkpoint to", true)
	before := time.Now()
	appendTo(t, b.server, "/var/log/auth.log", failure(time.Now(), "192.0.2.201"))
	b.until("a checkpoint is written", func() bool { return b.status().Checkpoint.After(before) })
	b.run(b.server, "sh", "-c", "! ls /var/lib/xdpban/*corrupt* 2>/dev/null")
	b.alive(daemon)
	if got := len(b.bans()); got != 501 {
		t.Errorf("%d are banned with room again, want 501", got)
	}
}
