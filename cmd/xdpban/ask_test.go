package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func script(t *testing.T, text string) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "ask")
	if err := os.WriteFile(p, []byte("#!/bin/sh\n"+text), 0o755); err != nil {
		t.Fatal(err)
	}
	return p
}

// TestAskProgram: what its exit status means, that arguments reach it as they
// are, and that it and what it started end with the time limit.
func TestAskProgram(t *testing.T) {
	ours := script(t, `[ "$#" = 2 ] && [ "$2" = '$(id); "x' ] || { echo odd arguments >&2; exit 7; }
case $1 in 192.0.2.1) exit 0;; 192.0.2.2) exit 1;; esac
kill -9 $$`)
	for _, c := range []struct {
		args  []string
		spare bool
		err   string
	}{
		{[]string{ours, "192.0.2.1", `$(id); "x`}, true, ""},
		{[]string{ours, "192.0.2.2", `$(id); "x`}, false, ""},
		{[]string{ours, "192.0.2.3", `$(id); "x`}, false, "signal: killed"},
		{[]string{ours, "192.0.2.1"}, false, "exit status 7: odd arguments"},
		{[]string{"/nowhere/ask"}, false, "no such file"},
	} {
		spare, err := askProgram(t.Context(), c.args)
		if spare != c.spare || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%q: %v, %v", c.args[1:], spare, err)
		}
	}

	// The program hangs in a child, which has told its number.
	dir := t.TempDir()
	told := filepath.Join(dir, "pid")
	if err := syscall.Mkfifo(told, 0o600); err != nil {
		t.Fatal(err)
	}
	hangs := script(t, `sh -c 'echo $$ >`+told+`; exec sleep 1000'`)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := askProgram(ctx, []string{hangs})
		ended <- err
	}()
	pid, err := os.ReadFile(told)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-ended; err == nil {
		t.Error("no error though it was ended")
	}
	stat := filepath.Join("/proc", strings.TrimSpace(string(pid)), "stat")
	for until := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		b, err := os.ReadFile(stat)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) || strings.Contains(string(b), ") Z ") {
			break
		}
		if time.Now().After(until) {
			t.Fatal("the child still runs")
		}
	}
}
