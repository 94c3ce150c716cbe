package main

import (
	"context"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestLookup(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	silent := make(chan net.Conn, 1)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			select {
			case <-silent: // the next one gets no answer
				defer conn.Close()
			default:
				go answerLookup(context.Background(), conn, net.DefaultResolver)
			}
		}
	}()
	lookup := lookupBy(path)
	direct, err := lookupBy("")(t.Context(), "localhost")
	if err != nil {
		t.Fatal(err)
	}
	got, err := lookup(t.Context(), "localhost")
	if err != nil || !slices.Equal(got, direct) || !got[0].IsLoopback() {
		t.Errorf("localhost: %v, %v; without the socket %v", got, err, direct)
	}
	for _, name := range []string{"", "a..b", "x\nlocalhost", strings.Repeat("x", 5000)} {
		if got, err := lookup(t.Context(), name); err == nil {
			t.Errorf("%.20q: %v", name, got)
		}
	}
	silent <- nil
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := lookup(ctx, "localhost"); err == nil || ctx.Err() == nil {
		t.Errorf("an answer that never comes: %v", err)
	}
	l.Close()
	if _, err := lookup(t.Context(), "localhost"); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("nobody there: %v", err)
	}
}
