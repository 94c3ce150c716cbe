package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"
)

// guest is the machine's first process: it runs the job and ends the machine.
func guest() {
	status, err := runJob()
	if err != nil {
		// To the console: the host shows it when the machine ends without
		// a status.
		fmt.Fprintln(os.Stderr, "kernels: in the machine:", err)
	} else if err = report(status); err != nil {
		fmt.Fprintln(os.Stderr, "kernels: in the machine:", err)
	}
	unix.Sync()
	// qemu runs with -no-reboot: this is the way to end it that asks for no
	// power management.
	fmt.Fprintln(os.Stderr, unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART))
}

func runJob() (status int, err error) {
	for _, m := range []struct{ kind, at string }{
		{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"},
		{"bpf", "/sys/fs/bpf"}, {"tmpfs", "/run"},
	} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return 0, err
		}
		if err := unix.Mount(m.kind, m.at, m.kind, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return 0, fmt.Errorf("mount %s at %s: %w", m.kind, m.at, err)
		}
	}
	b, err := os.ReadFile(jobFile)
	if err != nil {
		return 0, err
	}
	var j job
	if err := json.Unmarshal(b, &j); err != nil {
		return 0, fmt.Errorf("%s: %w", jobFile, err)
	}
	for _, m := range j.Modules {
		if err := loadModule(m); err != nil {
			return 0, err
		}
	}
	out, err := openRaw(outputLine)
	if err != nil {
		return 0, err
	}
	defer out.Close()

	cmd := exec.Command(j.Args[0], j.Args[1:]...)
	cmd.Dir, cmd.Env = j.Dir, j.Env
	cmd.Stdout, cmd.Stderr = out, out
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		// A signal has no exit code; go test knows it as a failure.
		if status = exit.ExitCode(); status < 0 {
			fmt.Fprintln(out, exit)
			status = 1
		}
		err = nil
	}
	return status, errors.Join(err, drain(out))
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("load %s: %w", path, err)
	}
	return nil
}

// openRaw opens a serial line that passes every byte as it is: go test's
// output holds control characters.
func openRaw(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	t, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	t.Iflag, t.Oflag, t.Lflag = 0, 0, 0
	t.Cflag = unix.CS8 | unix.CREAD | unix.CLOCAL | unix.B115200
	if err := unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, t); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return f, nil
}

// drain waits until a line has sent everything.
func drain(f *os.File) error {
	for {
		err := unix.IoctlSetInt(int(f.Fd()), unix.TCSBRK, 1)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func report(status int) error {
	f, err := openRaw(statusLine)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := fmt.Fprintf(f, "%d\n", status); err != nil {
		return err
	}
	return drain(f)
}
