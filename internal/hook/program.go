package hook

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// Environment is what programs that xdpban runs find in theirs.
func Environment() []string {
	return []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}
}

// ErrTime says that a program was killed, since it took too long.
var ErrTime = errors.New("killed, since it took too long")

// program is one run of a hook.
type program struct {
	Args  []string      `json:"args"`
	Env   []string      `json:"env"`
	Input []byte        `json:"input"`
	Limit time.Duration `json:"limit"`
}

// maxOutput is how much of what a program says is kept.
const maxOutput = 500

// run runs it by its arguments, without a shell, for at most its limit.
func (p program) run(ctx context.Context, command func(context.Context, []string) *exec.Cmd) error {
	ctx, cancel := context.WithTimeoutCause(ctx, p.Limit, fmt.Errorf("%w: more than %s", ErrTime, p.Limit))
	defer cancel()
	cmd := command(ctx, p.Args)
	cmd.Dir, cmd.Env, cmd.Stdin = "/", p.Env, bytes.NewReader(p.Input)
	_, err := Output(ctx, cmd)
	return err
}

// Output runs a command in a process group of its own, none of which outlives
// it or ctx, and returns the beginning of what it says. An error has that too.
func Output(ctx context.Context, cmd *exec.Cmd) (string, error) {
	said := &firstBytes{}
	cmd.Stdout, cmd.Stderr = said, said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	end := func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.Cancel = end
	cmd.WaitDelay = time.Second // one that left the group may hold the pipe
	err := cmd.Start()
	if err == nil {
		// What it left in the background ends too: before its number is free.
		for errors.Is(unix.Waitid(unix.P_PID, cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil), unix.EINTR) {
		}
		_ = end()
		err = cmd.Wait()
	}
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil // it has ended well
	}
	if ctx.Err() != nil && err != nil {
		err = context.Cause(ctx)
	}
	text := plain(strings.TrimSpace(string(said.kept)))
	if err != nil && text != "" {
		err = fmt.Errorf("%w: %s", err, text)
	}
	return text, err
}

// plain is what somebody else wrote, on one line and without what a terminal or a
// log would obey.
func plain(s string) string {
	if !strings.ContainsFunc(s, func(r rune) bool { return r == utf8.RuneError || !unicode.IsPrint(r) }) {
		return s
	}
	q := strconv.Quote(s)
	return q[1 : len(q)-1]
}

// firstBytes keeps the beginning of what is written. It embeds no buffer: a
// copy would fill that by its ReadFrom, without a bound.
type firstBytes struct{ kept []byte }

func (b *firstBytes) Write(p []byte) (int, error) {
	b.kept = append(b.kept, p[:min(len(p), maxOutput-len(b.kept))]...)
	return len(p), nil
}

// bare is a command as it is.
func bare(ctx context.Context, args []string) *exec.Cmd {
	return exec.CommandContext(ctx, args[0], args[1:]...)
}
