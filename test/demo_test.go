package test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"xdpban/internal/lab"
)

// TestDemo: the demo compares itself with its transcript.
func TestDemo(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to make name spaces")
	}
	cmd := exec.CommandContext(t.Context(), program(t), "demo")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{"100% packet loss", "Connection timed out", "unbanned 192.0.2.66", "All as expected"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("no %q in:\n%s", want, out)
		}
	}
}

// TestDemoCleansUp: however the demo ends, nothing of it goes on.
func TestDemoCleansUp(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to make name spaces")
	}
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGKILL} {
		t.Run(sig.String(), func(t *testing.T) {
			// Every process of the demo has this in its environment.
			mark := fmt.Sprintf("XDPBAN_TEST_MARK=%x", rand.Uint64())
			cmd := exec.Command(program(t), "demo")
			cmd.Env = append(os.Environ(), mark)
			shown := &watched{text: "attacker$", seen: make(chan struct{})}
			cmd.Stdout, cmd.Stderr = shown, shown
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			select {
			case <-shown.seen:
			case <-time.After(time.Minute):
				cmd.Process.Kill()
				t.Fatal("the demo never came to the attack")
			}
			if n := len(marked(t, mark)); n < 5 {
				t.Errorf("%d processes of the demo are found, too few to prove anything", n)
			}
			if err := cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); err == nil {
				t.Error("a demo that was cut short ends as if all was well")
			}
			left := func() []string { return marked(t, mark) }
			if sig != syscall.SIGKILL && len(left()) > 0 {
				t.Errorf("left behind: %v", left())
			}
			if err := lab.Until(t.Context(), "the kernel has taken it all down", func() bool { return len(left()) == 0 }); err != nil {
				t.Errorf("%v: %v", err, left())
			}
		})
	}
}

// watched closes seen when text was written.
type watched struct {
	text string
	buf  bytes.Buffer
	seen chan struct{}
	done bool
}

func (w *watched) Write(p []byte) (int, error) {
	w.buf.Write(p)
	if !w.done && strings.Contains(w.buf.String(), w.text) {
		w.done = true
		close(w.seen)
	}
	return len(p), nil
}

// marked lists the processes that have mark in their environment.
func marked(t *testing.T, mark string) []string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, f := range files {
		env, err := os.ReadFile(f)
		if err == nil && bytes.Contains(env, []byte(mark)) {
			name, _ := os.ReadFile(filepath.Join(filepath.Dir(f), "comm"))
			found = append(found, fmt.Sprintf("%s %s", filepath.Base(filepath.Dir(f)), bytes.TrimSpace(name)))
		}
	}
	return found
}
