package test

import (
	"os"
	"strings"
	"testing"
	"time"
)

// screen is a program on a terminal of the server's, driven by tmux.
type screen struct{ *bed }

func (s *screen) tmux(argv ...string) string {
	s.Helper()
	return s.run(s.server, append([]string{"tmux", "-S", "/run/tmux.sock", "-f", "/dev/null"}, argv...)...)
}

func (s *screen) keys(keys ...string) {
	s.Helper()
	s.tmux(append([]string{"send-keys", "-t", "top"}, keys...)...)
}

// shows waits until the screen has all of the words, and returns it.
func (s *screen) shows(words ...string) (text string) {
	s.Helper()
	defer func() {
		if s.Failed() {
			s.Logf("the screen:\n%s", text)
		}
	}()
	s.until("the screen has "+strings.Join(words, ", "), func() bool {
		text = s.tmux("capture-pane", "-p", "-t", "top")
		for _, w := range words {
			if !strings.Contains(text, w) {
				return false
			}
		}
		return true
	})
	return text
}

// TestTop drives the live screen as an operator would.
func TestTop(t *testing.T) {
	needPrograms(t, "tmux")
	b, _ := attacked(t)
	b.run(b.server, program(b), "ban", "--for", "1d", "203.0.113.0/24", "2001:db8:5::/64", "198.51.100.7")
	// An attacker's line, and what an evil terminal would obey.
	appendTo(t, b.server, "/var/log/auth.log", strings.Repeat(strings.Replace(failure(time.Now(), "198.51.100.66"), "root", "\x1b]0;evil\a\x1b[2J", 1), 5))
	b.untilBanned("198.51.100.66")
	s := &screen{b}
	// The shell waits for it: tmux itself now and then misses a program's end.
	s.tmux("new-session", "-d", "-s", "top", "-x", "80", "-y", "24", "sh", "-c", `export TERM=screen-256color
		"$0" top --interval 200ms; echo "it ended with $?"; read next
		NO_COLOR=1 "$0" top; echo "and again with $?"; read next`, program(b))
	defer s.tmux("kill-server")

	text := s.shows("5 bans", "the daemon runs", "PREFIX", attacker4, "203.0.113.0/24", "2001:db8:5::/64", "q quit")
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	if len(lines) != 24 {
		t.Errorf("%d lines on a terminal of 24:\n%s", len(lines), text)
	}
	// Who sends most comes first, with a rate and a plot.
	stop := make(chan struct{})
	go func() {
		defer close(stop)
		for range 10 {
			b.pings(attacker4, server4)
		}
	}()
	b.until("a rate is shown", func() bool {
		for line := range strings.Lines(s.tmux("capture-pane", "-p", "-t", "top")) {
			if f := strings.Fields(line); len(f) == 5 && f[0] == attacker4 && f[3] != "0" {
				return true
			}
		}
		return false
	})
	text = s.shows("█")
	if at := strings.Split(text, "\n")[6]; !strings.HasPrefix(at, attacker4) {
		t.Errorf("by pps, the first is %q:\n%s", at, text)
	}
	<-stop

	s.keys("a")
	s.shows("by prefix")
	s.keys("r")
	s.shows("by prefix, reversed")
	s.keys("/", "198.51.100.66", "Enter")
	text = s.shows(`with "198.51.100.66": 1 ban`)
	if strings.Contains(text, "203.0.113.0/24") {
		t.Errorf("the filter lets others through:\n%s", text)
	}
	s.keys("w")
	text = s.shows("198.51.100.66 is banned by sshd", "pattern", "Failed password for")
	if !strings.Contains(text, `\x1b`) {
		t.Errorf("the escape of the line isn't shown as text:\n%s", text)
	}
	s.keys("x")
	s.shows("PREFIX")
	s.keys("u")
	s.shows("Unban 198.51.100.66? y for yes")
	s.keys("n")
	s.shows("198.51.100.66 stays banned", "5 bans")
	s.keys("u")
	s.shows("Unban 198.51.100.66?")
	s.keys("y")
	s.shows("unbanned 198.51.100.66", "4 bans")
	if _, ok := b.bans()["198.51.100.66"]; ok {
		t.Error("the ban stands after u and y")
	}
	s.keys("/")
	s.shows("esc drops it")
	s.keys("Escape")
	s.shows("q quit") // "?" right behind Escape would be another key
	s.keys("?")
	s.shows("any key goes back")
	s.keys("x")

	s.tmux("resize-window", "-t", "top", "-x", "50", "-y", "10")
	s.shows("50×10 is too small: top needs 60×12")
	s.tmux("resize-window", "-t", "top", "-x", "120", "-y", "40")
	s.shows("203.0.113.0/24", "reverse")
	if dir := os.Getenv("XDPBAN_SCREENS"); dir != "" {
		if err := os.WriteFile(dir+"/top.txt", []byte(s.tmux("capture-pane", "-p", "-e", "-t", "top")), 0o644); err != nil {
			t.Error(err)
		}
	}

	// It quits as it should: nothing is left of it on the terminal's own screen.
	s.keys("q")
	if text := s.shows("it ended with 0"); strings.TrimSpace(text) != "it ended with 0" {
		t.Errorf("it left on the screen:\n%s", text)
	}

	s.keys("Enter")
	s.shows("4 bans", "PREFIX")
	for _, esc := range []string{"\x1b[31m", "\x1b[32m", "\x1b[91m", "\x1b[38;"} {
		if strings.Contains(s.tmux("capture-pane", "-p", "-e", "-t", "top"), esc) {
			t.Errorf("with NO_COLOR there is %q", esc)
		}
	}
	s.keys("C-c")
	s.shows("and again with 0")

	if out, err := b.server.Run(b.ctx, program(b), "top"); err == nil || !strings.Contains(out, "top needs a terminal; xdpban list and xdpban stats --watch don't") {
		t.Errorf("without a terminal: %v\n%s", err, out)
	}
}
