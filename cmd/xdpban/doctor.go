package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"xdpban/internal/control"
	"xdpban/internal/host"
)

type doctorCmd struct {
	Interface []string `arg:"" optional:"" help:"Interfaces; without any, those of the default routes."`
}

// Levels of a finding.
const (
	levelOK   = "ok"
	levelWarn = "warn" // works, but not as well as it could
	levelFail = "fail" // xdpban can't do its work
)

// finding is one thing looked at.
type finding struct {
	Check string `json:"check"`
	Level string `json:"level"`
	Found string `json:"found"`
	Fix   string `json:"fix,omitempty"`
}

func (c *doctorCmd) Run(a *app) error {
	findings := []finding{
		checkRights(),
		checkKernel(),
		checkJIT(),
		checkMemlock(),
		checkBPFFS(a.BPFDir),
		checkJournal(),
		checkDaemon(a),
	}
	if len(c.Interface) == 0 {
		var err error
		if c.Interface, err = host.DefaultInterfaces(); err != nil {
			findings = append(findings, finding{"interface", levelWarn, err.Error(), "name the interfaces in xdpban.toml: interfaces = [\"eth0\"]"})
		}
	}
	for _, name := range c.Interface {
		findings = append(findings, checkInterface(a, name)...)
	}
	failed := false
	for _, f := range findings {
		failed = failed || f.Level == levelFail
	}
	err := a.print(findings, func(w io.Writer) {
		for _, f := range findings {
			fmt.Fprintf(w, "%-4s  %s: %s\n", f.Level, printable(f.Check), printable(f.Found))
			if f.Fix != "" {
				fmt.Fprintf(w, "      %s\n", printable(f.Fix))
			}
		}
	})
	if err == nil && failed {
		return errReported
	}
	return err
}

func checkRights() finding {
	if os.Geteuid() == 0 {
		return finding{"rights", levelOK, "root", ""}
	}
	return finding{"rights", levelFail, fmt.Sprintf("uid %d", os.Geteuid()), "run as root, or by systemd with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON"}
}

func checkKernel() finding {
	release, err := linux()
	if err != nil {
		return finding{"kernel", levelWarn, err.Error(), ""}
	}
	return judgeKernel(release)
}

// judgeKernel says what an older Linux does without.
func judgeKernel(release string) finding {
	if !newer(release, 5, 10) {
		return finding{"kernel", levelFail, "Linux " + release, "xdpban needs Linux 5.10; Debian 12 has 6.1"}
	}
	var without []string
	for _, f := range []struct {
		major, minor int
		what         string
	}{
		{5, 11, "the cheap clock (since Linux 5.11)"},
		{5, 18, "native XDP on interfaces with jumbo frames (5.18)"},
		{5, 19, "exact counts of packets that come while their ban is lengthened (5.19)"},
	} {
		if !newer(release, f.major, f.minor) {
			without = append(without, f.what)
		}
	}
	if len(without) > 0 {
		return finding{"kernel", levelWarn, "Linux " + release + ", without " + strings.Join(without, ", "), "everything else works; Debian 12 has Linux 6.1"}
	}
	return finding{"kernel", levelOK, "Linux " + release, ""}
}

// linux is the kernel's release.
func linux() (string, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", fmt.Errorf("ask for the kernel's release: %w", err)
	}
	return unix.ByteSliceToString(u.Release[:]), nil
}

func checkMemlock() finding {
	release, err := linux()
	if err != nil {
		return finding{"memlock", levelWarn, err.Error(), ""}
	}
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &l); err != nil {
		return finding{"memlock", levelWarn, err.Error(), ""}
	}
	return judgeMemlock(release, l.Cur, func() error {
		return unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY})
	})
}

// judgeMemlock: before Linux 5.11 maps count against the limit of locked
// memory, of which 64 KiB are usual.
func judgeMemlock(release string, limit uint64, raise func() error) finding {
	if newer(release, 5, 11) {
		return finding{"memlock", levelOK, "not needed since Linux 5.11", ""}
	}
	if limit == unix.RLIM_INFINITY {
		return finding{"memlock", levelOK, "unlimited", ""}
	}
	if err := raise(); err != nil {
		return finding{"memlock", levelFail, fmt.Sprintf("%d KiB, and it can't be raised: %v", limit>>10, err), "ulimit -l unlimited, or LimitMEMLOCK=infinity in the unit"}
	}
	return finding{"memlock", levelOK, fmt.Sprintf("%d KiB; xdpban raises it itself", limit>>10), ""}
}

// newer says whether a kernel's release, as "6.1.0-13-amd64", is that version
// or a later one; what isn't a number is 0.
func newer(release string, major, minor int) bool {
	x, y := 0, 0
	parts := strings.FieldsFunc(release, func(r rune) bool { return r < '0' || r > '9' })
	if len(parts) > 1 {
		x, _ = strconv.Atoi(parts[0])
		y, _ = strconv.Atoi(parts[1])
	}
	return x > major || x == major && y >= minor
}

func checkJIT() finding { return judgeJIT(os.ReadFile("/proc/sys/net/core/bpf_jit_enable")) }

func judgeJIT(b []byte, err error) finding {
	if errors.Is(err, os.ErrNotExist) {
		// Kernels built with CONFIG_BPF_JIT_ALWAYS_ON in a network namespace
		// don't show the switch.
		return finding{"BPF JIT", levelOK, "not switchable here", ""}
	}
	if err != nil {
		return finding{"BPF JIT", levelWarn, err.Error(), ""}
	}
	if v := strings.TrimSpace(string(b)); v == "0" {
		return finding{"BPF JIT", levelWarn, "off: programs are interpreted, several times slower", "sysctl -w net.core.bpf_jit_enable=1"}
	}
	return finding{"BPF JIT", levelOK, "on", ""}
}

func checkBPFFS(dir string) finding {
	for d := dir; ; d = d[:max(strings.LastIndexByte(d, '/'), 1)] {
		var st unix.Statfs_t
		if err := unix.Statfs(d, &st); err == nil {
			if st.Type == unix.BPF_FS_MAGIC {
				return finding{"bpffs", levelOK, "mounted, for " + dir, ""}
			}
			return finding{"bpffs", levelWarn, "not mounted for " + dir, "xdpban mounts it by itself, if it may; or: mount -t bpf bpf /sys/fs/bpf"}
		}
		if d == "/" || !strings.Contains(d, "/") {
			return finding{"bpffs", levelFail, "no such folder: " + dir, "give an absolute path in a mounted bpffs"}
		}
	}
}

func checkJournal() finding {
	path, err := exec.LookPath("journalctl")
	if err != nil {
		return finding{"journal", levelWarn, "no journalctl", "only log files can be read; on Debian journalctl comes with systemd"}
	}
	return finding{"journal", levelOK, path, ""}
}

func checkDaemon(a *app) finding {
	client := control.NewClient(a.Socket)
	defer client.Close()
	s, err := client.Status(a.ctx)
	switch {
	case errors.Is(err, control.ErrDown):
		return finding{"daemon", levelWarn, "isn't running", "xdpban run, or systemctl start xdpban"}
	case err != nil:
		return finding{"daemon", levelWarn, err.Error(), ""}
	case len(s.Problems) > 0:
		return finding{"daemon", levelWarn, fmt.Sprintf("pid %d: %s", s.PID, strings.Join(s.Problems, "; ")), ""}
	}
	return finding{"daemon", levelOK, fmt.Sprintf("pid %d, %s", s.PID, plural(s.Bans, "ban")), ""}
}
