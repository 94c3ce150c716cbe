package main

import (
	"bytes"
	"fmt"
	"os"
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
