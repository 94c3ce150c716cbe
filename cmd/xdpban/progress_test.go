package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"xdpban/internal/control"
)

// terminal is a pseudo terminal; what is written to its other end is kept.
type terminal struct {
	end *os.File // what a program has for its standard error

	mu    sync.Mutex
	shown bytes.Buffer
	more  chan struct{}
}

func newTerminal(t *testing.T) *terminal {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	end, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	x := &terminal{end: end, more: make(chan struct{}, 1)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 4096)
		for {
			n, err := master.Read(buf)
			x.mu.Lock()
			x.shown.Write(buf[:n])
			x.mu.Unlock()
			select {
			case x.more <- struct{}{}:
			default:
			}
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		end.Close() // the last: the master's read ends
		<-done
		master.Close()
	})
	return x
}

func (x *terminal) text() string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.shown.String()
}

func (x *terminal) waitFor(t *testing.T, pattern string) {
	t.Helper()
	late := time.After(20 * time.Second)
	for re := regexp.MustCompile(pattern); !re.MatchString(x.text()); {
		select {
		case <-x.more:
		case <-late:
			t.Fatalf("%s isn't shown, but %q", pattern, x.text())
		}
	}
}

// TestProgress: what takes long says on a terminal how far it is, how fast and
// how long it will take, and wipes that away; elsewhere it says nothing.
func TestProgress(t *testing.T) {
	failure := strings.Repeat("Nov 24 12:00:00 host sshd[1]: Failed password for root from 192.0.2.1 port 40022 ssh2\n", 1000)
	var bans strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&bans, "2001:db8::%x\n", i)
	}
	for _, c := range []struct {
		args, begin string // what is on standard input; the rest never comes before the end
		shown       string
	}{
		{"replay -j sshd -", failure, `[\d,]+ lines, [\d,]+ a second`},
		{"test -j sshd -", failure, `[\d,]+ lines, [\d,]+ a second`},
		{"ban -", bans.String(), `0\.0 MB read, 0\.0 a second`},
		{"unban -", bans.String() + "203.0.113.5\n", `0\.0 MB read, 0\.0 a second`},
		{"import --dry-run -", `{"bans":[`, `0\.0 MB read, 0\.0 a second`},
	} {
		t.Run(c.args, func(t *testing.T) {
			empty := t.TempDir()
			socket := filepath.Join(t.TempDir(), "sock")
			serveFake(t, socket)
			x := newTerminal(t)
			in, more := io.Pipe()
			done := make(chan int, 1)
			var out bytes.Buffer
			go func() {
				code := execute(append(strings.Fields(c.args), "--config="+empty, "--socket="+socket), in, &out, x.end)
				in.Close()
				done <- code
			}()
			if _, err := io.WriteString(more, c.begin); err != nil {
				t.Fatalf("%v: it ended with %d: %s%s", err, <-done, out.String(), x.text())
			}
			x.waitFor(t, c.shown)
			if c.begin == `{"bans":[` {
				io.WriteString(more, "]}")
			}
			more.Close()
			if code := <-done; code != 0 {
				t.Errorf("it ended with %d: %s%s", code, out.String(), x.text())
			}
			x.waitFor(t, `\r\x1b\[K$`)
		})
	}
}

// TestProgressOfConvert: many filters take a while.
func TestProgressOfConvert(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "filter.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	var config, filter strings.Builder
	filter.WriteString("[Definition]\nfailregex = ^bad <HOST>$\n")
	for i := range 6 {
		fmt.Fprintf(&filter, "    ^%%(__prefix_line)s(?:error: )?(?:PAM: )?[aA]uthentication (?:failure|error|failed) number %d for (?:invalid user )?<F-USER>.*?</F-USER> from <HOST>(?: port \\d+)?\\s*$\n", i)
	}
	filter.WriteString("[INCLUDES]\nbefore = common.conf\n")
	err := os.WriteFile(filepath.Join(dir, "filter.d", "common.conf"), []byte("[Definition]\n__prefix_line = \\S+ \\S+(?:\\[\\d+\\])?: \n"), 0o644)
	for i := range 80 {
		fmt.Fprintf(&config, "[a%d]\nenabled = true\nfilter = a%d\nlogpath = /var/log/a\n", i, i)
		err = errors.Join(err, os.WriteFile(filepath.Join(dir, "filter.d", fmt.Sprintf("a%d.conf", i)), []byte(filter.String()), 0o644))
	}
	if err = errors.Join(err, os.WriteFile(filepath.Join(dir, "jail.conf"), []byte(config.String()), 0o644)); err != nil {
		t.Fatal(err)
	}
	x := newTerminal(t)
	var out bytes.Buffer
	if code := execute([]string{"convert", "fail2ban", dir}, strings.NewReader(""), &out, x.end); code != 0 {
		t.Errorf("it ended with %d", code)
	}
	x.waitFor(t, `80 jails converted`)
	x.waitFor(t, `\d+ jails?, \d+\.\d a second, \d+ %, \d+s left\x1b\[K`)
}

// serveFake serves the daemon with canned answers until the test ends.
func serveFake(t *testing.T, socket string) {
	t.Helper()
	l, err := control.Listen(control.Socket{Path: socket, UID: -1, GID: -1})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- control.Serve(ctx, l, fakeDaemon{}, slog.New(slog.DiscardHandler)) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestProgressOfARequest: while the daemon changes bans their number says how
// far it is.
func TestProgressOfARequest(t *testing.T) {
	x := newTerminal(t)
	socket := filepath.Join(t.TempDir(), "sock")
	serveFake(t, socket)
	a := &app{ctx: t.Context(), stderr: &statusLine{w: x.end}}
	client := control.NewClient(socket)
	defer client.Close()
	stop := a.changing(client, 4000)
	x.waitFor(t, `0 bans changed, 0 a second`)
	stop()
	x.waitFor(t, `\r\x1b\[K$`)
	a.stderr = io.Discard
	a.changing(client, 4000)()
}

// TestProgressOfRun: run says how far it is with the log that takes longest, as
// long as there is one.
func TestProgressOfRun(t *testing.T) {
	hour, second := control.Duration(time.Hour), control.Duration(time.Second)
	s := control.Status{Sources: []control.Source{{Stream: "/var/log/quick", Lag: hour, Left: second}, {Stream: "/var/log/\x1b[2Jslow", Lag: 14*hour + 32*60*second, Left: 9 * second}}}
	var failed error
	say := backlogOf(t.Context(), func(context.Context) (control.Status, error) { return s, failed })
	say(0)
	s.Sources[1].Lines = 1000
	if got := say(0); !regexp.MustCompile(`^/var/log/\\x1b\[2Jslow: 14h32m behind; [\d,]+ lines a second, 9s left$`).MatchString(got) {
		t.Errorf("%q", got)
	}
	s.Sources = s.Sources[:1]
	s.Sources[0].Left = 0
	if got := say(0); got != "" {
		t.Errorf("%q, though nothing is behind", got)
	}
	failed = errors.New("it is stopping")
	if got := say(0); got != "" {
		t.Errorf("%q", got)
	}
	x := newTerminal(t)
	s.Sources[0].Left, failed = second, nil
	stop := (&statusLine{w: x.end}).keep(say)
	x.waitFor(t, `/var/log/quick: 1h behind; 0 lines a second, 1s left`)
	stop()
	x.waitFor(t, `\r\x1b\[K$`)
}

// TestLeft: with half of it done, the rest takes as long again.
func TestLeft(t *testing.T) {
	var m amount
	m.total.Store(4_000_000)
	if got := m.text(2 * time.Second); got != "0.0 MB read, 0.0 a second" {
		t.Errorf("%q", got)
	}
	m.done.Store(1_000_000)
	if got := m.text(2 * time.Second); got != "1.0 MB read, 0.5 a second, 25 %, 6s left" {
		t.Errorf("%q", got)
	}
}

// TestStatusLine: what else is written goes above the line.
func TestStatusLine(t *testing.T) {
	var b bytes.Buffer
	l := &statusLine{w: &b}
	log := slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{ReplaceAttr: func([]string, slog.Attr) slog.Attr { return slog.Attr{} }}))
	l.show("")
	fmt.Fprintln(l, "before")
	l.show("1 line")
	fmt.Fprintln(l, "between")
	log.Info("x")
	l.show("2 lines")
	l.show("")
	fmt.Fprintln(l, "after")
	if got, want := b.String(), "before\n\r1 line\x1b[K\r\x1b[Kbetween\n1 line\r\x1b[K\n1 line\r2 lines\x1b[K\r\x1b[Kafter\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
