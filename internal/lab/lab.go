// Package lab makes throwaway hosts on this machine, for the demo and the
// system tests: network, mount, process and host name spaces of their own,
// real daemons inside, joined by real veth pairs. It needs root.
//
// A host lives as long as the pipe to its first process: when the program
// that made it ends, however it ends, the kernel takes down every process,
// interface, mount and BPF pin in it.
package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// boot is a host's first process. It gives the host a bpffs, a cgroup tree
// as systemd reads it, and its own /run, /dev, /etc and /var, then waits for
// its standard input to end.
const boot = `
set -e
mount --make-rprivate /
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/lab/bin /run/sshd /run/lock /run/dev
for d in etc var; do
	mkdir /run/lab/$d /run/lab/$d.work
	mount -t overlay -o lowerdir=/$d,upperdir=/run/lab/$d,workdir=/run/lab/$d.work overlay /$d
done
mount -t tmpfs -o mode=755 tmpfs /var/log
rm -rf /etc/xdpban /var/lib/xdpban /etc/resolv.conf
rm -f /etc/machine-id
tr -d - </proc/sys/kernel/random/uuid >/etc/machine-id
hostname "$1"
echo "127.0.0.1 localhost $1" >/etc/hosts

mount -t tmpfs -o mode=755 tmpfs /run/dev
for n in null zero full random urandom tty; do
	: >/run/dev/$n
	mount --bind /dev/$n /run/dev/$n
done
mkdir /run/dev/pts /run/dev/shm
mount -t devpts -o ptmxmode=666,newinstance devpts /run/dev/pts
ln -s pts/ptmx /run/dev/ptmx
ln -s /proc/self/fd /run/dev/fd
mount --move /run/dev /dev

ip link set lo up
echo up
exec cat
`

// Host is one throwaway host.
type Host struct {
	Name  string
	pid   int // of its first process
	init  *exec.Cmd
	life  io.Closer // the pipe that keeps it alive
	slice string    // its cgroup, as seen from outside

	mu       sync.Mutex
	services []*Service
}

// Boot makes a host and returns when it is up.
func Boot(name string) (*Host, error) {
	h := &Host{Name: name}
	// A process group of its own: Ctrl-C in the terminal is ours to handle,
	// so that the host comes down in order.
	h.init = exec.Command("sh", "-c", boot, "boot", name)
	h.init.SysProcAttr = &syscall.SysProcAttr{
		Setpgid: true,
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWPID |
			syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC,
	}
	var said strings.Builder
	h.init.Stderr = &said
	in, err := h.init.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("boot host %s: %w", name, err)
	}
	out, err := h.init.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("boot host %s: %w", name, err)
	}
	if err := h.init.Start(); err != nil {
		return nil, fmt.Errorf("boot host %s (are you root?): %w", name, err)
	}
	h.life = in
	h.pid = h.init.Process.Pid
	if _, err := io.ReadFull(out, make([]byte, len("up\n"))); err != nil {
		in.Close()
		h.init.Wait()
		return nil, fmt.Errorf("boot host %s: %s", name, strings.TrimSpace(said.String()))
	}
	if err := h.makeSlice(); err != nil {
		h.Close()
		return nil, fmt.Errorf("boot host %s: %w", name, err)
	}
	return h, nil
}

// makeSlice makes the host's cgroup, under which services get theirs, and
// removes those that a killed run has left behind: they are all that
// outlives one.
func (h *Host) makeSlice() error {
	const prefix = "xdpban-lab-"
	root := h.Path("/sys/fs/cgroup")
	old, _ := filepath.Glob(filepath.Join(root, prefix+"*.slice"))
	for _, dir := range old {
		pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), prefix), "-")
		if n, err := strconv.Atoi(pid); err == nil && syscall.Kill(n, 0) == syscall.ESRCH {
			removeCgroup(dir)
		}
	}
	h.slice = filepath.Join(root, fmt.Sprintf("%s%d-%s.slice", prefix, os.Getpid(), h.Name))
	return os.MkdirAll(h.slice, 0o755)
}

func removeCgroup(dir string) {
	sub, _ := os.ReadDir(dir)
	for _, e := range sub {
		if e.IsDir() {
			removeCgroup(filepath.Join(dir, e.Name()))
		}
	}
	os.Remove(dir)
}

// PID is the process id of the host's first process, as this program sees
// it: /proc/PID/ns has its name spaces, /proc/PID/root its files.
func (h *Host) PID() int { return h.pid }

// Path is where a path of the host is found from outside.
func (h *Host) Path(path string) string {
	return filepath.Join("/proc", strconv.Itoa(h.PID()), "root", path)
}

// Close ends everything in the host and returns when it is gone.
func (h *Host) Close() error {
	h.mu.Lock()
	services := h.services
	h.mu.Unlock()
	for _, s := range services {
		s.Kill()
	}
	if h.slice != "" {
		removeCgroup(h.slice)
	}
	h.life.Close()
	err := h.init.Wait()
	if err != nil {
		return fmt.Errorf("take down host %s: %w", h.Name, err)
	}
	return nil
}

func (h *Host) enter(argv []string) *exec.Cmd {
	cmd := exec.Command("nsenter", append([]string{
		"--target", strconv.Itoa(h.PID()), "--mount", "--net", "--pid", "--uts", "--ipc", "--",
	}, argv...)...)
	cmd.Env = append(os.Environ(), "PATH=/run/lab/bin:"+os.Getenv("PATH")+":/usr/sbin:/sbin")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd
}

// Install makes a program of this machine a command of the host.
func (h *Host) Install(name, program string) error {
	if err := os.Symlink(program, h.Path("/run/lab/bin/"+name)); err != nil {
		return fmt.Errorf("%s: install %s: %w", h.Name, name, err)
	}
	return nil
}

// Run runs a command in the host and returns what it wrote to both of its
// outputs. A failure's error holds that text too.
func (h *Host) Run(ctx context.Context, argv ...string) (string, error) {
	var out strings.Builder
	cmd := h.enter(argv)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		return "", fmt.Errorf("%s: run %q: %w", h.Name, argv, err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		for _, pid := range children(cmd.Process.Pid) {
			syscall.Kill(pid, syscall.SIGKILL)
		}
		cmd.Process.Kill()
		<-done
		err = ctx.Err()
	}
	if err != nil {
		return out.String(), fmt.Errorf("%s: run %q: %w\n%s", h.Name, argv, err, out.String())
	}
	return out.String(), nil
}

// In runs f on a thread that is in the host's network: sockets it makes
// belong to the host and may be used from anywhere afterwards.
func (h *Host) In(f func() error) error {
	done := make(chan error)
	go func() {
		// The thread is not given back: it ends with the goroutine.
		runtime.LockOSThread()
		fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/net", h.PID()), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			done <- fmt.Errorf("open the network of %s: %w", h.Name, err)
			return
		}
		defer unix.Close(fd)
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter the network of %s: %w", h.Name, err)
			return
		}
		done <- f()
	}()
	return <-done
}

// Join lays a cable: a veth pair, called name at both ends, each end with
// its addresses.
func Join(ctx context.Context, name string, a *Host, aAddrs []netip.Prefix, b *Host, bAddrs []netip.Prefix) error {
	out, err := exec.CommandContext(ctx, "ip", "link", "add", name, "netns", strconv.Itoa(a.PID()), "type", "veth",
		"peer", "name", name, "netns", strconv.Itoa(b.PID())).CombinedOutput()
	if err != nil {
		return fmt.Errorf("join %s and %s: %w: %s", a.Name, b.Name, err, out)
	}
	for _, end := range []struct {
		h     *Host
		addrs []netip.Prefix
	}{{a, aAddrs}, {b, bAddrs}} {
		for _, p := range end.addrs {
			if _, err := end.h.Run(ctx, "ip", "addr", "add", p.String(), "dev", name, "nodad"); err != nil {
				return err
			}
		}
		if _, err := end.h.Run(ctx, "ip", "link", "set", name, "up"); err != nil {
			return err
		}
	}
	return nil
}

// Until polls until f says true, for facts that nothing announces.
func Until(ctx context.Context, what string, f func() bool) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !f() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting until %s: %w", what, ctx.Err())
		case <-tick.C:
		}
	}
	return nil
}

func children(pid int) []int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return nil
	}
	var pids []int
	for f := range strings.FieldsSeq(string(b)) {
		if n, err := strconv.Atoi(f); err == nil {
			pids = append(pids, n)
		}
	}
	return pids
}

var errGone = errors.New("it has ended")
