package main

import (
	"context"
	"errors"
	"os/exec"

	"xdpban/internal/hook"
)

// askProgram runs a jail's ignorecommand: 0 spares, 1 doesn't, anything else
// is a failure. No shell is involved, and what it starts ends with it.
func askProgram(ctx context.Context, args []string) (spare bool, err error) {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = "/"
	cmd.Env = hook.Environment()
	_, err = hook.Output(ctx, cmd)
	var exit *exec.ExitError
	switch {
	case err == nil:
		return true, nil
	case errors.As(err, &exit) && exit.ExitCode() == 1:
		return false, nil
	}
	return false, err
}
