// Command xdpban-nats is the NATS server of a fleet that has none of its own:
// xdpban-nats.service runs it where [fleet] has embedded = true. It is a program
// of its own, since a daemon that carried a server would take a quarter more
// memory on all the hosts that have no use for it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"xdpban/internal/fleet/server"
	"xdpban/jails"
)

// version is set by the linker.
var version = "unknown"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stderr))
}

// run returns 0 when it is done, 1 when it failed, 2 for a mistake in usage or
// configuration.
func run(ctx context.Context, args []string, stderr io.Writer) int {
	flags := flag.NewFlagSet("xdpban-nats "+version, flag.ContinueOnError)
	flags.SetOutput(stderr)
	config := flags.String("config", "/etc/xdpban", "folder of xdpban.toml")
	dir := flags.String("dir", "/var/lib/xdpban-nats", "folder of what it keeps")
	wanted := flags.Bool("wanted", false, "end at once: with 0 if xdpban.toml asks for the server, else with 1")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return 0
	} else if err != nil {
		return 2
	}
	settings, problems := jails.LoadSettings(*config)
	f := settings.Fleet
	switch {
	case *wanted && f.Server.Embedded:
		return 0
	case *wanted:
		return 1
	case len(problems) > 0:
		fmt.Fprintln(stderr, problems)
		return 2
	case !f.Server.Embedded:
		fmt.Fprintf(stderr, "%s/xdpban.toml has no embedded = true in [fleet]\n", *config)
		return 2
	}
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{} // the journal has a clock
		}
		return a
	}}))
	if err := server.Serve(ctx, server.Options{Settings: f, Dir: *dir, Log: log}); err != nil {
		fmt.Fprintf(stderr, "fleet %s: %v\n", f.Name, err)
		return 1
	}
	return 0
}
