package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"xdpban/internal/lab"
)

// usage is what a running process has used.
func usage(pid int) (spent, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return spent{}, err
	}
	// The name ends with the last parenthesis, see proc(5).
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	const utime, stime = 11, 12
	ticks := 0
	for _, i := range []int{utime, stime} {
		n, err := strconv.Atoi(fields[i])
		if err != nil {
			return spent{}, fmt.Errorf("read the times of process %d: %w", pid, err)
		}
		ticks += n
	}
	peak, err := status(pid, "VmHWM")
	return spent{time.Duration(ticks) * time.Second / 100, peak}, err
}

// status is a memory figure of a running process, in bytes.
func status(pid int, name string) (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for l := range strings.Lines(string(b)) {
		if key, value, ok := strings.Cut(l, ":"); ok && key == name {
			kB, err := strconv.ParseInt(strings.Fields(value)[0], 10, 64)
			return kB << 10, err
		}
	}
	return 0, fmt.Errorf("process %d has no %s", pid, name)
}

// stopDaemon asks a daemon to end and waits for it.
func stopDaemon(s *lab.Service) error {
	if err := s.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	<-s.Ended()
	return nil
}

// sched is what the scheduler knows of a process.
type sched struct {
	cpu      time.Duration
	switches int // how often its threads went to sleep: woke up, that is
}

// schedOf reads it, all threads taken together.
func schedOf(pid int) (s sched, err error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	if err != nil || len(tasks) == 0 {
		return s, fmt.Errorf("process %d has ended", pid)
	}
	for _, t := range tasks {
		stat, err := os.ReadFile(t + "/schedstat")
		if err != nil {
			return s, err
		}
		var ns int64
		if _, err := fmt.Sscan(string(stat), &ns); err != nil {
			return s, fmt.Errorf("%s/schedstat: %w", t, err)
		}
		s.cpu += time.Duration(ns)
		text, err := os.ReadFile(t + "/status")
		if err != nil {
			return s, err
		}
		for l := range strings.Lines(string(text)) {
			if n, ok := strings.CutPrefix(l, "voluntary_ctxt_switches:"); ok {
				v, err := strconv.Atoi(strings.TrimSpace(n))
				if err != nil {
					return s, err
				}
				s.switches += v
			}
		}
	}
	return s, nil
}
