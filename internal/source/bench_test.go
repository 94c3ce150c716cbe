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
	"golang.org/x/sys/unix"
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

// BenchmarkFolder is what a folder of many logs costs for each of them, in time
// of the processor: to begin with them, to read a line of each, to rotate each.
func BenchmarkFolder(b *testing.B) {
	for _, n := range []int{50, 500} {
		b.Run(fmt.Sprintf("%d logs", n), func(b *testing.B) {
			var begin, line, rotate time.Duration
			for b.Loop() {
				dir := b.TempDir()
				write := func(i int, text string) {
					f, err := os.OpenFile(filepath.Join(dir, fmt.Sprintf("site%d.log", i)), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
					if err == nil {
						_, err = f.WriteString(text)
						f.Close()
					}
					if err != nil {
						b.Fatal(err)
					}
				}
				for i := range n {
					write(i, fmt.Sprintf("log %d begins\n", i))
				}
				f, err := NewFiles(FilesOptions{Patterns: []string{dir + "/*.log"}, Log: slog.New(slog.DiscardHandler)})
				if err != nil {
					b.Fatal(err)
				}
				lines, begun := make(chan int, 10*n), make(chan struct{})
				ctx, cancel := context.WithCancel(context.Background())
				ended := make(chan error, 1)
				cpu := func(what *time.Duration, work func()) {
					var from, to unix.Rusage
					_ = unix.Getrusage(unix.RUSAGE_SELF, &from)
					work()
					_ = unix.Getrusage(unix.RUSAGE_SELF, &to)
					*what += time.Duration(to.Utime.Nano() + to.Stime.Nano() - from.Utime.Nano() - from.Stime.Nano())
				}
				read := func(want int) {
					for want > 0 {
						want -= <-lines
					}
				}
				cpu(&begin, func() {
					go func() {
						ended <- f.Run(ctx, nil, func(block Block) error {
							if block.Key == dir+"/*.log" {
								close(begun)
							}
							lines <- bytes.Count(block.Lines, []byte("\n"))
							return nil
						})
					}()
					<-begun
				})
				cpu(&line, func() {
					for i := range n {
						write(i, "something has happened\n")
					}
					read(n)
				})
				cpu(&rotate, func() {
					for i := range n {
						path := filepath.Join(dir, fmt.Sprintf("site%d.log", i))
						if err := os.Rename(path, path+".1"); err != nil {
							b.Fatal(err)
						}
						write(i, "something else has happened\n")
					}
					read(n)
				})
				cancel()
				<-ended
			}
			each := func(d time.Duration) float64 { return float64(d.Microseconds()) / float64(b.N*n) }
			b.ReportMetric(each(begin), "µs-begin/log")
			b.ReportMetric(each(line), "µs-line/log")
			b.ReportMetric(each(rotate), "µs-rotate/log")
		})
	}
}
