package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"

	"xdpban/internal/control"
	"xdpban/internal/hook"
	"xdpban/jails"
)

// Exit codes.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2 // usage or configuration
)

// errReported ends a command that has already said all there is to say.
var errReported = errors.New("")

// A usageError is the caller's mistake, not the machine's.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// commonFlags go with every command.
type commonFlags struct {
	Config string `help:"Folder of xdpban.toml and jail.d." default:"/etc/xdpban" env:"XDPBAN_CONFIG" placeholder:"DIR"`
	Socket string `help:"The daemon's socket; without it, as in xdpban.toml." env:"XDPBAN_SOCKET" placeholder:"PATH"`
	BPFDir string `name:"bpf-dir" help:"bpffs folder of the pinned maps; without it, as in xdpban.toml." env:"XDPBAN_BPF_DIR" placeholder:"DIR"`
	JSON   bool   `name:"json" help:"Print JSON."`
}

// grammar is the whole command line. Each command has a file of its own.
type grammar struct {
	commonFlags `embed:""`

	Ban      banCmd      `cmd:"" group:"Bans" help:"Ban addresses or subnets."`
	Unban    unbanCmd    `cmd:"" group:"Bans" help:"End bans."`
	Allow    allowCmd    `cmd:"" group:"Bans" help:"Keep addresses from ever being banned; without any, list them."`
	List     listCmd     `cmd:"" group:"Bans" help:"List what is banned."`
	Export   exportCmd   `cmd:"" group:"Bans" help:"Write all bans to standard output."`
	Import   importCmd   `cmd:"" group:"Bans" help:"Take over bans from an export."`
	Port     portCmd     `cmd:"" group:"Bans" help:"Block destination ports, for everybody."`
	Status   statusCmd   `cmd:"" group:"Looking" help:"Say how the daemon, or one jail, is."`
	Stats    statsCmd    `cmd:"" group:"Looking" help:"Show packet rates by XDP action."`
	Top      topCmd      `cmd:"" group:"Looking" help:"Watch it all on a live screen: rates, bans, who sends most."`
	Why      whyCmd      `cmd:"" group:"Looking" help:"Say why an address is banned, or how near it is to it."`
	History  historyCmd  `cmd:"" group:"Looking" help:"Show past bans and unbans."`
	Report   reportCmd   `cmd:"" group:"Looking" help:"Sum up the last days, as text, as a page or as JSON."`
	Abuse    abuseCmd    `cmd:"" group:"Looking" help:"Write a report about an address for who answers for it, with the lines behind its bans."`
	Monitor  monitorCmd  `cmd:"" group:"Looking" help:"Show dropped packets as they come."`
	Run      runCmd      `cmd:"" group:"Running" help:"Protect this host: read the logs, ban, until told to stop."`
	Check    checkCmd    `cmd:"" group:"Configuration" help:"Check the configuration: all that is wrong, in one go."`
	Test     testCmd     `cmd:"" group:"Configuration" help:"Try jails or a pattern on a log."`
	Replay   replayCmd   `cmd:"" group:"Configuration" help:"Say who would have been banned by old logs; touches nothing."`
	Reload   reloadCmd   `cmd:"" group:"Running" help:"Make the daemon read its configuration again."`
	Attach   attachCmd   `cmd:"" group:"Running" help:"Put the XDP program on interfaces, without any daemon."`
	Detach   detachCmd   `cmd:"" group:"Running" help:"Take the XDP program off interfaces."`
	Pipeline pipelineCmd `cmd:"" group:"Running" help:"Chain XDP programs of your own behind xdpban's."`
	Policy   policyCmd   `cmd:"" group:"Running" help:"Choose who gets in: everybody but the banned, or the allowlist only."`
	Service  serviceCmd  `cmd:"" group:"Running" help:"Make xdpban a systemd service, where no package did."`
	Fleet    fleetCmd    `cmd:"" group:"Running" help:"Look at the fleet that bans are shared with, or eject a host of it."`
	Feed     feedCmd     `cmd:"" group:"Running" help:"Look at the lists of others that are banned, and confirm a list that is held."`
	Doctor   doctorCmd   `cmd:"" group:"Running" help:"Check what this machine offers, and say how to fix what is missing."`

	Convert    convertCmd    `cmd:"" group:"Other" help:"Write another system's jails as xdpban's."`
	Demo       demoCmd       `cmd:"" group:"Other" help:"Show it all for real, on two throwaway hosts in network namespaces."`
	Net        netCmd        `cmd:"" group:"Other" hidden:"" help:"Look up names, connect and listen, for xdpban-net.service."`
	Hook       hookCmd       `cmd:"" group:"Other" hidden:"" help:"Run programs that are told of bans, for xdpban-hook.service."`
	Version    versionCmd    `cmd:"" group:"Other" help:"Print the version."`
	Completion completionCmd `cmd:"" group:"Other" help:"Print a completion script for a shell."`
}

// app is what every command runs with: the world outside and the common
// flags.
type app struct {
	commonFlags
	settings       jails.Settings
	ctx            context.Context
	stdin          io.Reader
	stdout, stderr io.Writer
	model          *kong.Application
}

// execute runs one command line and returns its exit code.
func execute(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	if len(args) > 1 && args[0] == "hook" && args[1] == "--" {
		// What follows is a program's, and none of ours.
		fmt.Fprintln(stderr, "xdpban:", hook.Exec(args[2:]))
		return exitFailed
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if isTerminal(stderr) {
		stderr = &statusLine{w: stderr}
	}
	var g grammar
	parser, err := kong.New(&g,
		kong.Name("xdpban"),
		kong.Description("Bans attackers it sees in logs, in XDP: their packets are dropped before the kernel's network stack sees them."),
		kong.Writers(stdout, stderr),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 100}),
	)
	if err != nil {
		fmt.Fprintln(stderr, "xdpban:", err)
		return exitFailed
	}
	if len(args) == 0 {
		args = []string{"--help"}
	}
	kctx, err := parser.Parse(flagsFirst(parser.Model, args))
	if err != nil {
		fmt.Fprintf(stderr, "xdpban: %s; see xdpban --help\n", printable(err.Error()))
		return exitUsage
	}
	// A broken file keeps the daemon from starting, but nobody from unbanning
	// himself: what can't be read is as without it.
	settings, problems := jails.LoadSettings(g.Config)
	if g.Socket == "" {
		g.Socket = settings.Socket
	}
	if g.BPFDir == "" {
		g.BPFDir = settings.BPFDir
	}
	a := &app{commonFlags: g.commonFlags, settings: settings, ctx: ctx, stdin: stdin, stdout: stdout, stderr: stderr, model: parser.Model}
	if len(problems) > 0 && kctx.Command() != "run" && kctx.Command() != "check" {
		a.warn("%v", problems)
	}
	return a.exitCode(kctx.Run(a))
}

// exitCode tells an error and what it means to the shell.
func (a *app) exitCode(err error) int {
	if err == nil {
		return exitDone
	}
	if !errors.Is(err, errReported) {
		fmt.Fprintf(a.stderr, "xdpban: %s\n", printableLines(err.Error()))
	}
	var usage usageError
	if errors.As(err, &usage) || errors.Is(err, control.ErrInvalid) || errors.Is(err, control.ErrConfig) {
		return exitUsage
	}
	return exitFailed
}

// warn tells something on standard error that isn't the answer.
func (a *app) warn(format string, args ...any) {
	fmt.Fprintf(a.stderr, "xdpban: %s\n", printableLines(fmt.Sprintf(format, args...)))
}
