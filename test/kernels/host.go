package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// modules are those that tests need and the kernel doesn't load by itself:
// there is no modprobe in the machine. Each stands alone.
var modules = []string{"veth"}

// programs are what the command line's scripts call. What isn't installed is
// left out: a script says itself what it can't do without.
var programs = []string{
	"cat", "chmod", "cp", "grep", "ip", "mkdir", "mv", "nsenter", "od", "ping",
	"rm", "sed", "seq", "setpriv", "sh", "sleep", "sort", "stat", "tcpdump",
	"test", "touch", "xdp-loader",
}

// data are files that programs read.
var data = []string{"/etc/passwd", "/etc/group", "/usr/lib/*/bpf/*.o"}

// host boots the kernel of a package to run a command, and returns its end.
func host(pkg string, args []string) error {
	dir, err := os.MkdirTemp("", "xdpban-kernel-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	root := stage(filepath.Join(dir, "root"))
	if err := root.fill(pkg, args); err != nil {
		return fmt.Errorf("make the machine's files: %w", err)
	}
	initramfs := filepath.Join(dir, "initramfs")
	pack := exec.Command("sh", "-c", `find . -print0 | cpio --quiet -0 -o -H newc >"$1"`, "sh", initramfs)
	pack.Dir = string(root)
	if out, err := pack.CombinedOutput(); err != nil {
		return fmt.Errorf("pack the initramfs: %w: %s", err, out)
	}
	kernel, err := one(filepath.Join(pkg, "boot/vmlinuz-*"))
	if err != nil {
		return err
	}
	return boot(kernel, initramfs, dir)
}

func boot(kernel, initramfs, dir string) error {
	if f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0); err == nil {
		f.Close()
		if err := run("kvm", kernel, initramfs, dir); !errors.Is(err, errSilent) {
			return err
		}
	}
	// One thread for both processors: emulated side by side, one of them may
	// meet code that the other is rewriting, and Linux rewrites its own.
	return run("tcg,thread=single", kernel, initramfs, dir)
}

// errSilent: within a virtual machine /dev/kvm may open, and what it runs never
// says a word.
var errSilent = errors.New("the kernel says nothing")

// patience is how long a kernel may take for its first word.
const patience = 30 * time.Second

func run(accel, kernel, initramfs, dir string) error {
	console, status := filepath.Join(dir, "console"), filepath.Join(dir, "status")
	// On a busy machine the emulated timer comes too late for the kernel's
	// check of it.
	cmd := exec.Command("qemu-system-x86_64",
		"-accel", accel, "-cpu", "max", "-smp", "2", "-m", "1G",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-kernel", kernel, "-initrd", initramfs,
		"-append", "console="+consoleLine+" panic=-1 no_timer_check random.trust_cpu=on",
		"-serial", "file:"+console, "-serial", "stdio", "-serial", "file:"+status)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	// go test kills us when time is up: the machine goes with us. The signal
	// comes when this thread ends, so nobody else may have it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	var silent atomic.Bool
	if accel == "kvm" {
		defer time.AfterFunc(patience, func() {
			if info, err := os.Stat(console); err == nil && info.Size() == 0 {
				silent.Store(true)
				_ = cmd.Process.Kill() // it may have ended just now
			}
		}).Stop()
	}
	runErr := cmd.Wait()
	if silent.Load() {
		return errSilent
	}
	b, err := os.ReadFile(status)
	if err == nil {
		var n int
		if n, err = strconv.Atoi(strings.TrimSpace(string(b))); err == nil && n != 0 {
			return exitStatus(n)
		}
	}
	if err = errors.Join(runErr, err); err != nil {
		said, _ := os.ReadFile(console)
		return fmt.Errorf("the machine ended without a result: %w\nits console:\n%s", err, said)
	}
	return nil
}

// stage is the folder from which the initramfs is made.
type stage string

func (s stage) fill(pkg string, args []string) error {
	if err := s.mergeUsr(); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if err := s.copy(self, "/init"); err != nil {
		return err
	}
	here, err := os.Getwd()
	if err != nil {
		return err
	}
	tree, err := moduleRoot(here)
	if err != nil {
		return err
	}
	for _, dir := range []string{here, filepath.Join(tree, "bpf")} {
		if err := s.copyTree(dir); err != nil {
			return err
		}
	}
	args = slices.Clone(args)
	if args[0], err = filepath.Abs(args[0]); err != nil {
		return err
	}
	if err := s.copyProgram(args[0]); err != nil {
		return err
	}
	for _, name := range programs {
		path, err := exec.LookPath(name)
		if err != nil {
			continue
		}
		if err := s.copyProgram(path); err != nil {
			return err
		}
	}
	for _, pattern := range data {
		files, _ := filepath.Glob(pattern) // the patterns are good
		for _, f := range files {
			if err := s.copy(f, f); err != nil {
				return err
			}
		}
	}
	j := job{
		Args: args, Dir: here,
		Env: []string{"PATH=" + os.Getenv("PATH"), "HOME=/", "TMPDIR=/tmp", "CI=" + os.Getenv("CI")},
	}
	// Tests are told by these, which name files.
	for _, v := range os.Environ() {
		name, path, _ := strings.Cut(v, "=")
		if !strings.HasPrefix(name, "XDPBAN_TEST_") {
			continue
		}
		if err := s.copy(path, path); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		j.Env = append(j.Env, v)
	}
	for _, m := range modules {
		to := "/" + m + ".ko"
		if err := s.copyModule(pkg, m, to); err != nil {
			return err
		}
		j.Modules = append(j.Modules, to)
	}
	b, err := json.Marshal(j)
	if err != nil {
		return err
	}
	return os.WriteFile(s.path(jobFile), b, 0o644)
}

// mergeUsr makes /bin, /lib and their like links into /usr where they are such
// here: programs are found and named by either.
func (s stage) mergeUsr() error {
	if err := os.MkdirAll(s.path("/"), 0o755); err != nil {
		return err
	}
	for _, dir := range []string{"/bin", "/sbin", "/lib", "/lib64"} {
		to, err := os.Readlink(dir)
		if err != nil {
			continue // no link
		}
		if err := errors.Join(os.MkdirAll(s.path(filepath.Join("/", to)), 0o755), os.Symlink(to, s.path(dir))); err != nil {
			return err
		}
	}
	return nil
}

func (s stage) path(name string) string { return filepath.Join(string(s), name) }

func (s stage) copy(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		return err
	}
	return s.write(in, to, st.Mode().Perm())
}

func (s stage) write(in io.Reader, to string, mode fs.FileMode) error {
	to = s.path(to)
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

func (s stage) copyTree(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		return s.copy(path, path)
	})
}

var library = regexp.MustCompile(`(?m)^\s+(?:\S+ => )?(/\S+) \(0x`)

// copyProgram copies a program and the libraries it is linked with.
func (s stage) copyProgram(path string) error {
	if err := s.copy(path, path); err != nil {
		return err
	}
	out, err := exec.Command("ldd", path).CombinedOutput()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) && strings.Contains(string(out), "not a dynamic executable") {
			return nil
		}
		return fmt.Errorf("ldd %s: %w: %s", path, err, out)
	}
	for _, m := range library.FindAllStringSubmatch(string(out), -1) {
		if err := s.copy(m[1], m[1]); err != nil {
			return err
		}
	}
	return nil
}

// copyModule copies a module, unpacked: not every kernel does that itself.
func (s stage) copyModule(pkg, name, to string) error {
	path := ""
	err := filepath.WalkDir(pkg, func(p string, d fs.DirEntry, err error) error {
		if base, _, ok := strings.Cut(filepath.Base(p), ".ko"); ok && base == name {
			path = p
		}
		return err
	})
	switch {
	case err != nil:
		return err
	case path == "":
		return fmt.Errorf("there is no module %s in %s", name, pkg)
	case strings.HasSuffix(path, ".ko"):
		return s.copy(path, to)
	}
	unpacked, err := exec.Command("xz", "-dc", path).Output()
	if err != nil {
		return fmt.Errorf("unpack %s: %w", path, err)
	}
	return s.write(strings.NewReader(string(unpacked)), to, 0o644)
}

func moduleRoot(dir string) (string, error) {
	for d := dir; ; d = filepath.Dir(d) {
		if _, err := os.Stat(filepath.Join(d, "go.mod")); err == nil {
			return d, nil
		}
		if d == filepath.Dir(d) {
			return "", fmt.Errorf("%s is in no Go module", dir)
		}
	}
}

// one is the file that a pattern means.
func one(pattern string) (string, error) {
	files, err := filepath.Glob(pattern)
	if err == nil && len(files) != 1 {
		err = fmt.Errorf("%d files are %s", len(files), pattern)
	}
	if err != nil {
		return "", err
	}
	return files[0], nil
}
