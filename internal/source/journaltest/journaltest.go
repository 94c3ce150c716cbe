// Package journaltest runs a real journald for tests, in a mount namespace of
// its own: the machine's journal, if it has one, isn't touched.
package journaltest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

const daemon = "/lib/systemd/systemd-journald"

// The journal lies in the namespace's /var/log/journal and its sockets in its
// /run, both of which are folders of the test outside. So are the
// files that say which machine and which boot this is.
const setup = `set -e
mount --make-rprivate /
mount --bind "$1/journald.conf" /etc/systemd/journald.conf
mount --bind "$1/log" /var/log/journal
mount --bind "$1/run" /run
mount --bind "$1/machine-id" /etc/machine-id
mount --bind "$1/boot-id" /proc/sys/kernel/random/boot_id
exec ` + daemon

const config = `[Journal]
Storage=persistent
Seal=no
RateLimitIntervalSec=0
ForwardToSyslog=no
ForwardToKMsg=no
ForwardToConsole=no
ForwardToWall=no
ReadKMsg=no
Audit=no
`

// Journal is a running journald.
type Journal struct {
	// Dir is what journalctl's --directory takes.
	Dir string
	// Socket takes native messages, DevLog those of syslog(3).
	Socket, DevLog string

	t    testing.TB
	root string
	cmd  *exec.Cmd
	conn *net.UnixConn
}

// Start starts a journald that ends with the test. Without root or journald
// the test is skipped, but fails if CI is set.
func Start(t testing.TB) *Journal {
	t.Helper()
	unable := func(reason string) {
		t.Helper()
		if os.Getenv("CI") == "true" {
			t.Fatal(reason)
		}
		t.Skip(reason)
	}
	if os.Geteuid() != 0 {
		unable("a journald of one's own needs root")
	}
	for _, file := range []string{daemon, "/etc/machine-id", "/etc/systemd/journald.conf", "/var/log/journal"} {
		if _, err := os.Stat(file); err != nil {
			unable(fmt.Sprintf("no journald here: %v", err))
		}
	}
	// Not t.TempDir: a test's name can be too long for a socket's.
	root, err := os.MkdirTemp("", "journaltest")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	j := &Journal{
		Dir:    filepath.Join(root, "log"),
		Socket: filepath.Join(root, "run/systemd/journal/socket"),
		DevLog: filepath.Join(root, "run/systemd/journal/dev-log"),
		t:      t,
		root:   root,
	}
	// The file "flushed" says that /var is there: no detour through /run.
	for _, dir := range []string{"log", "run/systemd/journal"} {
		err = errors.Join(err, os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	err = errors.Join(err,
		os.WriteFile(filepath.Join(root, "run/systemd/journal/flushed"), nil, 0o644),
		os.WriteFile(filepath.Join(root, "journald.conf"), []byte(config), 0o644))
	for name, real := range map[string]string{"machine-id": "/etc/machine-id", "boot-id": "/proc/sys/kernel/random/boot_id"} {
		id, readErr := os.ReadFile(real)
		err = errors.Join(err, readErr, os.WriteFile(filepath.Join(root, name), id, 0o644))
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(j.stop)
	j.start()
	return j
}

func (j *Journal) start() {
	j.t.Helper()
	j.cmd = exec.Command("unshare", "--mount", "sh", "-c", setup, "sh", j.root)
	j.cmd.Stderr = os.Stderr
	// It dies with the test binary, whose thread must last that long.
	j.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	cmd := j.cmd
	ended := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
		}
		close(ended)
	}()
	if err := <-started; err != nil {
		j.t.Fatal(err)
	}
	var err error
	for range 1000 {
		if j.conn == nil {
			j.conn, err = net.DialUnix("unixgram", nil, &net.UnixAddr{Name: j.Socket, Net: "unixgram"})
		}
		if err == nil && j.takesSignals() {
			return
		}
		select {
		case <-ended:
			j.t.Fatalf("journald ended at once: %v", cmd.ProcessState)
		case <-time.After(10 * time.Millisecond):
		}
	}
	j.t.Fatalf("journald doesn't listen: %v", err)
}

// takesSignals says whether journald is ready for those that Sync and Rotate
// send: it opens its sockets earlier, and would die of them.
func (j *Journal) takesSignals() bool {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", j.cmd.Process.Pid))
	if err != nil {
		return false
	}
	_, blocked, _ := strings.Cut(string(status), "\nSigBlk:\t")
	blocked, _, _ = strings.Cut(blocked, "\n")
	mask, err := strconv.ParseUint(blocked, 16, 64)
	return err == nil && mask&(1<<sigrtmin) != 0 // bit n is signal n+1
}

func (j *Journal) stop() {
	if j.conn != nil {
		j.conn.Close()
		j.conn = nil
	}
	if j.cmd == nil || j.cmd.Process == nil {
		return
	}
	_ = j.cmd.Process.Signal(syscall.SIGTERM)
	j.gone()
	j.cmd = nil
}

// gone returns when the process is no more.
func (j *Journal) gone() {
	for j.cmd.Process.Signal(syscall.Signal(0)) == nil {
		time.Sleep(time.Millisecond)
	}
}

// Restart ends journald and starts it again.
func (j *Journal) Restart() {
	j.t.Helper()
	j.stop()
	// A socket left behind would be taken for a living one.
	os.Remove(j.Socket)
	j.start()
}

// Reboot ends journald and starts it in another boot.
func (j *Journal) Reboot() {
	j.t.Helper()
	j.as("boot-id", strings.TrimSpace(j.read("/proc/sys/kernel/random/uuid")))
}

// Move ends journald and starts it as that of another machine, whose id is 32
// hexadecimal digits: as if that one's journal were collected here.
func (j *Journal) Move(machine string) {
	j.t.Helper()
	j.as("machine-id", machine)
}

func (j *Journal) as(name, id string) {
	j.t.Helper()
	// What was sent is to be of the old one: journald looks the id up when it
	// first needs it.
	j.Sync()
	j.stop()
	os.Remove(j.Socket)
	if err := os.WriteFile(filepath.Join(j.root, name), []byte(id+"\n"), 0o644); err != nil {
		j.t.Fatal(err)
	}
	j.start()
}

func (j *Journal) read(file string) string {
	j.t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		j.t.Fatal(err)
	}
	return string(b)
}

// Send logs a message with the fields, given as NAME=value; a value may have
// any bytes.
func (j *Journal) Send(message string, fields ...string) {
	j.t.Helper()
	var b bytes.Buffer
	for _, f := range append(fields, "MESSAGE="+message) {
		name, value, _ := strings.Cut(f, "=")
		b.WriteString(name)
		b.WriteByte('\n')
		_ = binary.Write(&b, binary.LittleEndian, uint64(len(value)))
		b.WriteString(value)
		b.WriteByte('\n')
	}
	if _, err := j.conn.Write(b.Bytes()); err != nil {
		j.t.Fatalf("log to journald: %v", err)
	}
}

// Sync waits until all that was sent is in the journal.
func (j *Journal) Sync() {
	j.t.Helper()
	synced := filepath.Join(j.root, "run/systemd/journal/synced")
	os.Remove(synced)
	// journald looks at its sockets before it looks at this signal.
	if err := j.cmd.Process.Signal(syscall.Signal(sigrtmin + 1)); err != nil {
		j.t.Fatal(err)
	}
	for {
		if _, err := os.Stat(synced); err == nil {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

const sigrtmin = 34

// Rotate has journald archive its file and begin a new one. It waits until
// that is done.
func (j *Journal) Rotate() {
	j.t.Helper()
	j.Sync()
	before := j.archived()
	if err := j.cmd.Process.Signal(syscall.SIGUSR2); err != nil {
		j.t.Fatal(err)
	}
	for j.archived() == before {
		time.Sleep(time.Millisecond)
	}
}

func (j *Journal) archived() int {
	files, _ := filepath.Glob(filepath.Join(j.Dir, "*/system@*.journal"))
	return len(files)
}

// Vacuum deletes all that was archived.
func (j *Journal) Vacuum() {
	j.t.Helper()
	files, _ := filepath.Glob(filepath.Join(j.Dir, "*/*@*.journal"))
	for _, f := range files {
		if err := os.Remove(f); err != nil {
			j.t.Fatal(err)
		}
	}
}
