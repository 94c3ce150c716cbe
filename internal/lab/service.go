package lab

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Service is a daemon in a host, in a cgroup named for its unit: the journal
// attributes its lines to that unit, as if systemd had started it.
type Service struct {
	Unit   string
	host   *Host
	cmd    *exec.Cmd
	cgroup string
	ended  chan struct{}

	mu    sync.Mutex
	out   bytes.Buffer
	wrote chan struct{} // closed and replaced at each write
}

// Start starts a daemon in the host as the given unit. Its environment is
// ours and env.
func (h *Host) Start(unit string, env []string, argv ...string) (*Service, error) {
	s := &Service{
		Unit: unit, host: h,
		cgroup: filepath.Join(h.slice, unit),
		ended:  make(chan struct{}),
		wrote:  make(chan struct{}),
	}
	if err := os.MkdirAll(s.cgroup, 0o755); err != nil {
		return nil, fmt.Errorf("%s: start %s: %w", h.Name, unit, err)
	}
	inside := strings.TrimPrefix(s.cgroup, h.Path("/"))
	s.cmd = h.enter(append([]string{"sh", "-c", `echo $$ >"$0/cgroup.procs"; exec "$@"`, "/" + inside}, argv...))
	s.cmd.Env = append(s.cmd.Env, env...)
	s.cmd.Stdout, s.cmd.Stderr = s, s
	// A daemon's own children may keep its output open after it is gone.
	s.cmd.WaitDelay = time.Second
	if err := s.cmd.Start(); err != nil {
		return nil, fmt.Errorf("%s: start %s: %w", h.Name, unit, err)
	}
	go func() {
		s.cmd.Wait()
		close(s.ended)
	}()
	h.mu.Lock()
	h.services = append(h.services, s)
	h.mu.Unlock()
	return s, nil
}

// StartNotify starts a daemon and returns once it has said READY=1, as
// systemd does for Type=notify.
func (h *Host) StartNotify(ctx context.Context, unit string, env []string, argv ...string) (*Service, error) {
	inside := "/run/lab/" + unit + ".notify"
	os.Remove(h.Path(inside))
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: h.Path(inside), Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("%s: start %s: %w", h.Name, unit, err)
	}
	defer conn.Close()
	os.Chmod(h.Path(inside), 0o666)
	s, err := h.Start(unit, append(env, "NOTIFY_SOCKET="+inside), argv...)
	if err != nil {
		return nil, err
	}
	ready := make(chan error, 1)
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := conn.Read(buf)
			if err != nil {
				ready <- err
				return
			}
			for l := range strings.Lines(string(buf[:n])) {
				if strings.TrimSpace(l) == "READY=1" {
					ready <- nil
					return
				}
			}
		}
	}()
	select {
	case err = <-ready:
	case <-s.ended:
		err = errGone
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		s.Kill()
		return nil, fmt.Errorf("%s: start %s: %w\n%s", h.Name, unit, err, s.Output())
	}
	return s, nil
}

// Write takes what the daemon says.
func (s *Service) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.out.Write(p)
	close(s.wrote)
	s.wrote = make(chan struct{})
	return len(p), nil
}

// Output is what the daemon has said so far.
func (s *Service) Output() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out.String()
}

// WaitFor returns when the daemon has said text.
func (s *Service) WaitFor(ctx context.Context, text string) error {
	for {
		s.mu.Lock()
		found, wrote := strings.Contains(s.out.String(), text), s.wrote
		s.mu.Unlock()
		if found {
			return nil
		}
		select {
		case <-wrote:
		case <-s.ended:
			if strings.Contains(s.Output(), text) {
				return nil
			}
			return fmt.Errorf("%s never said %q: %w\n%s", s.Unit, text, errGone, s.Output())
		case <-ctx.Done():
			return fmt.Errorf("%s never said %q: %w\n%s", s.Unit, text, ctx.Err(), s.Output())
		}
	}
}

// PID is the daemon's process id as this program sees it, 0 if it has ended.
func (s *Service) PID() int {
	for _, pid := range children(s.cmd.Process.Pid) {
		return pid
	}
	return 0
}

// Signal sends the daemon itself a signal; its children don't get it.
func (s *Service) Signal(sig syscall.Signal) error {
	pid := s.PID()
	if pid == 0 {
		return fmt.Errorf("signal %s: %w", s.Unit, errGone)
	}
	return syscall.Kill(pid, sig)
}

// Ended is closed when the daemon has ended.
func (s *Service) Ended() <-chan struct{} { return s.ended }

// Status is how the daemon ended; call it after that.
func (s *Service) Status() *os.ProcessState { return s.cmd.ProcessState }

// Kill ends the daemon and its children at once and waits for their end.
func (s *Service) Kill() {
	os.WriteFile(filepath.Join(s.cgroup, "cgroup.kill"), []byte("1"), 0)
	<-s.ended
	// What was killed is gone only when the kernel has taken it apart.
	for range 500 {
		b, err := os.ReadFile(filepath.Join(s.cgroup, "cgroup.events"))
		if err != nil || !strings.Contains(string(b), "populated 1") {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}
