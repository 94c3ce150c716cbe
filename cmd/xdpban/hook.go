package main

import (
	"context"
	"net"
	"os/exec"

	"github.com/coreos/go-systemd/v22/activation"

	"xdpban/internal/hook"
)

// hookCmd runs hooks for a daemon whose powers they mustn't have.
type hookCmd struct{}

func (c *hookCmd) Run(a *app) error {
	listeners, err := activation.Listeners()
	if err == nil && len(listeners) == 1 {
		if l, ok := listeners[0].(*net.UnixListener); ok {
			return hook.Serve(a.ctx, l)
		}
	}
	return usagef("it is started by xdpban-hook.socket, when xdpban runs an on_ban or on_unban")
}

// withoutPrivileges is the command of a program that has none of this process's
// powers: see execute.
func withoutPrivileges(ctx context.Context, args []string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args = append([]string{"xdpban", "hook", "--"}, args...)
	return cmd
}
