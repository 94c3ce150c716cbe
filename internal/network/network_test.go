package network

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// served is a Network that has its own Serve.
func served(t *testing.T) Network {
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
	return Network{Socket: l.Addr().String()}
}

func listen(t *testing.T) *net.UnixListener {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: filepath.Join(t.TempDir(), "sock")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func TestLookup(t *testing.T) {
	direct, err := Network{}.Lookup(t.Context(), "localhost")
	if err != nil {
		t.Fatal(err)
	}
	n := served(t)
	got, err := n.Lookup(t.Context(), "localhost")
	if err != nil || !slices.Equal(got, direct) || !got[0].IsLoopback() {
		t.Errorf("localhost: %v, %v; without the socket %v", got, err, direct)
	}
	// A name comes from a log line too, where jails look names up.
	for _, name := range []string{"", "a..b", "x\nlocalhost", "\xff\x00", strings.Repeat("x", 5000), strings.Repeat("x", 50000)} {
		if got, err := n.Lookup(t.Context(), name); err == nil {
			t.Errorf("%.20q: %v", name, got)
		}
	}
}

// TestSockets: what was made by the other process works as one's own, both
// ways, and outlives it.
func TestSockets(t *testing.T) {
	l := listen(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- Serve(ctx, l) }()
	n := Network{Socket: l.Addr().String()}
	in, err := n.Listen(t.Context(), netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	srv := &httptest.Server{Listener: in, Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%d bytes", len(b))
	})}}
	srv.StartTLS()
	defer srv.Close()
	client := srv.Client()
	client.Transport.(*http.Transport).DialContext = n.Dial
	big := bytes.Repeat([]byte("x"), 1<<20)
	for i := range 2 {
		resp, err := client.Post(srv.URL, "text/plain", bytes.NewReader(big))
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || string(b) != "1048576 bytes" {
			t.Errorf("%q, %v", b, err)
		}
		if i == 0 {
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
			l.Close()
		}
	}
	if _, err := n.Dial(t.Context(), "tcp", in.Addr().String()); err == nil {
		t.Error("connects by nobody")
	}
}

func TestSocketErrors(t *testing.T) {
	n := served(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := netip.MustParseAddrPort(taken.Addr().String())
	if _, err := n.Listen(t.Context(), at); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a port that is taken: %v", err)
	}
	taken.Close()
	if _, err := n.Dial(t.Context(), "tcp", at.String()); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("a port where nobody listens: %v", err)
	}
	for _, bad := range []string{"", "127.0.0.1", "127.0.0.1:x", strings.Repeat("x", maxMessage)} {
		if _, err := n.Dial(t.Context(), "tcp", bad); err == nil {
			t.Errorf("connects to %.20q", bad)
		}
	}
	if _, err := n.Dial(t.Context(), "udp", at.String()); err == nil {
		t.Error("udp passes as tcp")
	}
}

// TestGarbage: whatever comes as a request or an answer is an error to the
// one side and nothing to the other.
func TestGarbage(t *testing.T) {
	n := served(t)
	for _, garbage := range []string{"", "{", "null", `{"listen":"nowhere"}`, `{"listen":7}`, "\x00\xff", strings.Repeat("[", 2*maxMessage)} {
		conn, err := net.Dial("unix", n.Socket)
		if err != nil {
			t.Fatal(err)
		}
		conn.Write([]byte(garbage))
		conn.(*net.UnixConn).CloseWrite()
		if b, _ := io.ReadAll(conn); len(b) > 0 && !strings.Contains(string(b), `"error"`) {
			t.Errorf("%.20q is answered with %q", garbage, b)
		}
		conn.Close()

		l := listen(t)
		go func() {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			io.Copy(io.Discard, conn)
			conn.Write([]byte(garbage))
		}()
		if got, err := (Network{Socket: l.Addr().String()}).Dial(t.Context(), "tcp", "127.0.0.1:1"); err == nil || !strings.Contains(err.Error(), l.Addr().String()) {
			t.Errorf("the answer %.20q: %v, %v", garbage, got, err)
		}
	}
	if _, err := n.Lookup(t.Context(), "localhost"); err != nil {
		t.Errorf("after all this: %v", err)
	}
}

func TestSilence(t *testing.T) {
	l := listen(t)
	n := Network{Socket: l.Addr().String()}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		conn, err := l.Accept()
		if err == nil {
			defer conn.Close()
			cancel()
			<-t.Context().Done()
		}
	}()
	if _, err := n.Lookup(ctx, "localhost"); err == nil || ctx.Err() == nil {
		t.Errorf("an answer that never comes: %v", err)
	}
	l.Close()
	if _, err := n.Lookup(t.Context(), "localhost"); err == nil || !strings.Contains(err.Error(), n.Socket) {
		t.Errorf("nobody there: %v", err)
	}
}

func TestIdle(t *testing.T) {
	if err := serve(t.Context(), listen(t), time.Millisecond); err != nil {
		t.Error(err)
	}
}

func FuzzRequest(f *testing.F) {
	f.Add([]byte(`{"lookup":"localhost"}`))
	f.Add([]byte(`{"dial":"127.0.0.1:1"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if bytes.ContainsAny(b, "lL\\") { // nothing is asked of the world
			return
		}
		here, there := pair(t)
		go func() {
			here.Write(b)
			here.CloseWrite()
		}()
		respond(t.Context(), there)
		if got, _ := io.ReadAll(here); len(got) > 0 && !bytes.Contains(got, []byte(`"error"`)) {
			t.Errorf("%q is answered with %q", b, got)
		}
		here.Close()
	})
}

func pair(t *testing.T) (*net.UnixConn, *net.UnixConn) {
	l := listen(t)
	here, err := net.DialUnix("unix", nil, l.Addr().(*net.UnixAddr))
	if err != nil {
		t.Fatal(err)
	}
	there, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	return here, there
}
