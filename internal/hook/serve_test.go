package hook

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"xdpban/internal/control"
)

func listen(t *testing.T) *net.UnixListener {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: filepath.Join(t.TempDir(), "sock")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// served is the socket of a Serve of its own.
func served(t *testing.T) string {
	t.Helper()
	l := listen(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

// TestServe: what another process runs is what would run here, and ends with who
// asked for it.
func TestServe(t *testing.T) {
	dir := t.TempDir()
	socket := served(t)
	tell := script(t, `case $1 in
203.0.113.1) env >`+dir+`/env; cat >`+dir+`/input;;
203.0.113.2) echo no way; exit 3;;
*) echo $$ >`+dir+`/pid; exec sleep 1000;;
esac`)
	r := newRig(t, onBan(tell, "<ip>"), func(h *Hooks) { h.o.Socket, h.times.stop = socket, 0 })
	r.Tell(notice("ban", "203.0.113.1"))
	r.Tell(notice("ban", "203.0.113.2"))
	r.says("exit status 3: no way")
	r.until("done", func(h control.Hook) bool { return h.Done == 1 })
	env, err := os.ReadFile(dir + "/env")
	if err != nil || !strings.Contains(string(env), "XDPBAN_ADDR=203.0.113.1\n") || strings.Contains(string(env), "HOME=") {
		t.Errorf("its environment: %s, %v", env, err)
	}
	input, err := os.ReadFile(dir + "/input")
	if err != nil || !strings.Contains(string(input), `"evidence":["evil`) {
		t.Errorf("its input: %s, %v", input, err)
	}
	r.times.program = 50 * time.Millisecond
	r.Tell(notice("ban", "203.0.113.3"))
	r.says("took too long")
	r.times.program = time.Minute
	os.Remove(dir + "/pid")
	r.Tell(notice("ban", "203.0.113.4"))
	r.until("running", func(h control.Hook) bool {
		b, _ := os.ReadFile(dir + "/pid")
		return bytes.HasSuffix(b, []byte("\n"))
	})
	pid, _ := os.ReadFile(dir + "/pid")
	r.Close()
	gone(t, strings.TrimSpace(string(pid)))
	if h := r.Status()[0]; h.TimedOut != 1 || h.Done != 1 || h.Failed != 2 {
		t.Errorf("%+v", h)
	}
}

// TestGarbage: whatever comes as a request or an answer is an error to the one
// side and nothing to the other; nobody there, or one who says nothing, is too.
func TestGarbage(t *testing.T) {
	socket := served(t)
	for _, garbage := range []string{"", "{", "null", `{"args":[]}`, `{"args":[""]}`, `{"args":7}`, "\x00\xff", strings.Repeat("[", 2*maxRequest)} {
		conn, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		go conn.Write([]byte(garbage))
		conn.(*net.UnixConn).CloseWrite()
		if b, _ := io.ReadAll(conn); len(b) > 0 && !strings.Contains(string(b), `"error"`) {
			t.Errorf("%.20q is answered with %q", garbage, b)
		}
		conn.Close()

		if garbage == "null" {
			continue // as an answer it is an empty one
		}
		l := listen(t)
		go func() {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			conn.Read(make([]byte, 1<<16))
			conn.Write([]byte(garbage))
		}()
		p := program{Args: []string{"/bin/true"}, Limit: time.Second}
		if err := p.ask(t.Context(), l.Addr().String()); err == nil && !strings.HasPrefix(garbage, `{"args"`) {
			t.Errorf("the answer %.20q passes", garbage)
		}
	}
	p := program{Args: []string{"/bin/true"}, Limit: time.Minute}
	if err := p.ask(t.Context(), "/nowhere/sock"); err == nil || !strings.Contains(err.Error(), "/nowhere/sock") {
		t.Errorf("nobody there: %v", err)
	}
	silent := listen(t)
	stop := errors.New("stop")
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() {
		if conn, err := silent.Accept(); err == nil {
			defer conn.Close()
			cancel(stop)
			<-t.Context().Done()
		}
	}()
	if err := p.ask(ctx, silent.Addr().String()); !errors.Is(err, stop) {
		t.Errorf("one who says nothing: %v", err)
	}
	if err := p.ask(t.Context(), socket); err != nil {
		t.Errorf("after all this: %v", err)
	}
}

func TestIdle(t *testing.T) {
	if err := serve(t.Context(), listen(t), time.Millisecond); err != nil {
		t.Error(err)
	}
}
