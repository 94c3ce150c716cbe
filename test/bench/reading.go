package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"os"
	"syscall"
	"time"

	"github.com/nxadm/tail"

	"xdpban/internal/source"
)

var readingTable = table{
	name:  "reading",
	title: "Read the backlog of a file of 200,000 lines, without looking for anything",
	goal:  "5 million lines/s",
	unit:  "lines/s", more: true,
	run: runReading,
}

func runReading(b *bench) error {
	log, err := makeAuthLog(b.path("auth.log"), 200_000, 30)
	if err != nil {
		return err
	}
	const times = 5
	if err := repeat(log.path, times); err != nil {
		return err
	}
	log.lines *= times
	read := func(name string, f func() (int, error)) contender {
		return contender{name: name, run: func() (figures, error) {
			before, err := ownUsage()
			if err != nil {
				return nil, err
			}
			n, err := f()
			if err == nil && n != log.lines {
				err = fmt.Errorf("%d lines, want %d", n, log.lines)
			}
			if err != nil {
				return nil, err
			}
			after, err := ownUsage()
			return spent{cpu: after - before}.perSecond(n), err
		}}
	}
	return b.compare(
		read("xdpban", func() (n int, err error) {
			f, err := source.NewFiles(source.FilesOptions{Patterns: []string{log.path}, FromStart: true, Log: slog.New(slog.DiscardHandler)})
			if err != nil {
				return 0, err
			}
			err = f.Run(b.ctx, nil, func(block source.Block) error {
				if n += bytes.Count(block.Lines, []byte("\n")); n >= log.lines {
					return io.EOF
				}
				return nil
			})
			if err == io.EOF {
				err = nil
			}
			return n, err
		}),
		read("bufio.Scanner", func() (n int, err error) {
			f, err := os.Open(log.path)
			if err != nil {
				return 0, err
			}
			defer f.Close()
			s := bufio.NewScanner(f)
			for s.Scan() {
				n++
			}
			return n, s.Err()
		}),
		read("nxadm_tail", func() (n int, err error) {
			t, err := tail.TailFile(log.path, tail.Config{Logger: tail.DiscardingLogger})
			if err != nil {
				return 0, err
			}
			for range t.Lines {
				n++
			}
			return n, t.Wait()
		}),
	)
}

// ownUsage is the processor time of this process so far.
func ownUsage() (time.Duration, error) {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		return 0, err
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano()), nil
}

var growthTable = table{
	name:  "growth",
	title: "What one more ban costs, by how many there are",
	goal:  "flat to within 2 ×",
	unit:  "µs/ban",
	line:  true,
	run:   runGrowth,
}

func runGrowth(b *bench) error {
	w, closed, err := b.wire()
	if err != nil {
		return err
	}
	defer closed()
	for range b.rounds {
		for n := 1000; n <= b.scale(1_000_000); n *= 10 {
			bl, err := w.blocklist(1 << 20)
			if err != nil {
				return err
			}
			bans := bansOf(manyAddrs(n))
			before, err := ownUsage()
			if err != nil {
				return err
			}
			if done, err := bl.AddBatch(bans); err != nil || done != n {
				return fmt.Errorf("ban %d: %d done: %w", n, done, err)
			}
			after, err := ownUsage()
			if err != nil {
				return err
			}
			b.note(fmt.Sprintf("xdpban/n=%d", n), figures{"µs/ban": float64((after - before).Nanoseconds()) / 1e3 / float64(n)})
			bl.Close()
			if err := mustBe(w.srv, n); err != nil {
				return err
			}
			if err := w.run("rm", "-r", "/sys/fs/bpf/xdpban"); err != nil {
				return err
			}
		}
	}
	return nil
}
