package source

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nxadm/tail"
)

const benchLines = 500_000

// sampleLog writes a log of sshd lines.
func sampleLog(b *testing.B) string {
	path := filepath.Join(b.TempDir(), "auth.log")
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	w := bufio.NewWriter(f)
	for i := range benchLines {
		fmt.Fprintf(w, "2026-11-24T22:57:%02d.%06d+00:00 host sshd[%d]: Failed password for invalid user admin%d from 192.0.2.%d port %d ssh2\n",
			i/10000, i, i%30000, i, i%250, i%65000)
	}
	if err := w.Flush(); err != nil {
		b.Fatal(err)
	}
	if err := f.Close(); err != nil {
		b.Fatal(err)
	}
	return path
}

// BenchmarkBacklog reads a log from its start, the lines counted.
func BenchmarkBacklog(b *testing.B) {
	path := sampleLog(b)
	count := func(b *testing.B, read func() int) {
		for b.Loop() {
			if n := read(); n != benchLines {
				b.Fatalf("%d lines", n)
			}
		}
		b.ReportMetric(float64(b.N)*benchLines/b.Elapsed().Seconds()/1e6, "Mlines/s")
	}
	b.Run("Files", func(b *testing.B) {
		count(b, func() int {
			f, err := NewFiles(FilesOptions{Patterns: []string{path}, FromStart: true, Log: slog.New(slog.DiscardHandler)})
			if err != nil {
				b.Fatal(err)
			}
			n := 0
			err = f.Run(context.Background(), nil, func(block Block) error {
				if n += bytes.Count(block.Lines, []byte("\n")); n == benchLines {
					return io.EOF
				}
				return nil
			})
			if err != io.EOF {
				b.Fatal(err)
			}
			return n
		})
	})
	b.Run("Read", func(b *testing.B) {
		count(b, func() int {
			f, err := os.Open(path)
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			n := 0
			_, err = Read(context.Background(), path, f, func(block Block) error {
				n += bytes.Count(block.Lines, []byte("\n"))
				return nil
			})
			if err != nil {
				b.Fatal(err)
			}
			return n
		})
	})
	b.Run("bufio.Scanner", func(b *testing.B) {
		count(b, func() int {
			f, err := os.Open(path)
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			n := 0
			for s := bufio.NewScanner(f); s.Scan(); n++ {
			}
			return n
		})
	})
	b.Run("nxadm-tail", func(b *testing.B) {
		count(b, func() int {
			t, err := tail.TailFile(path, tail.Config{Logger: tail.DiscardingLogger})
			if err != nil {
				b.Fatal(err)
			}
			n := 0
			for range t.Lines {
				n++
			}
			return n
		})
	})
}

// BenchmarkFileLatency is the time from write(2) to the block.
func BenchmarkFileLatency(b *testing.B) {
	path := filepath.Join(b.TempDir(), "auth.log")
	w, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	defer w.Close()
	f, err := NewFiles(FilesOptions{Patterns: []string{path}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	came := make(chan time.Time, 1)
	ready := make(chan struct{})
	var once sync.Once
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- f.Run(ctx, nil, func(block Block) error {
			once.Do(func() { close(ready) })
			if len(block.Lines) > 0 {
				came <- time.Now()
			}
			return nil
		})
	}()
	<-ready
	var took []time.Duration
	for b.Loop() {
		time.Sleep(time.Millisecond)
		sent := time.Now()
		if _, err := w.WriteString("Failed password for root from 192.0.2.1 port 22 ssh2\n"); err != nil {
			b.Fatal(err)
		}
		took = append(took, (<-came).Sub(sent))
	}
	cancel()
	<-done
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "µs-median")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "µs-p99")
}
