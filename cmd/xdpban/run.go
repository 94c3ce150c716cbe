package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	sdnotify "github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"xdpban/bpf"
	"xdpban/internal/control"
	"xdpban/internal/daemon"
	"xdpban/internal/feed"
	"xdpban/internal/fleet"
	"xdpban/internal/hook"
	"xdpban/internal/host"
	"xdpban/internal/network"
	"xdpban/internal/source"
	"xdpban/internal/web"
	jaild "xdpban/jail.d"
	"xdpban/jails"
)

// runCmd is the daemon.
type runCmd struct {
	Interface []string `short:"i" help:"Interfaces to protect, instead of the configured ones or the default route's." placeholder:"IF"`
	// NetSocket is where another process makes the internet sockets.
	NetSocket string `hidden:"" env:"XDPBAN_NET_SOCKET"`
	// HookSocket is where another process runs hooks.
	HookSocket string `hidden:"" env:"XDPBAN_HOOK_SOCKET"`
}

func (c *runCmd) Run(a *app) error {
	log := newLog(a.stderr)
	load := func() (*jails.Config, error) {
		config, problems := jails.Load(jaild.FS, a.Config)
		if len(problems) > 0 {
			return nil, usageError{problems}
		}
		if len(c.Interface) > 0 {
			config.Settings.Interfaces = c.Interface
		}
		return config, nil
	}
	config, err := load()
	if err != nil {
		return err
	}
	s := config.Settings
	gid := -1
	if s.SocketGroup != "" {
		if gid, err = groupID(s.SocketGroup); err != nil {
			return usageError{fmt.Errorf("socket_group: %w", err)}
		}
	}
	listener, err := control.Listen(control.Socket{Path: a.Socket, UID: -1, GID: gid, GroupWrites: s.SocketGroupBans})
	if err != nil {
		return err
	}
	defer listener.Close()
	blocklist, err := openKernel(a.maps(), bpf.Mode(s.Mode))
	if err != nil {
		return err
	}
	defer blocklist.Close()
	watchdog, err := sdnotify.SdWatchdogEnabled(false)
	if err != nil {
		return fmt.Errorf("read the watchdog's interval: %w", err)
	}

	outside := network.Network{Socket: c.NetSocket}
	name, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("find this host's name: %w", err)
	}
	var d *daemon.Daemon
	hooks := hook.New(hook.Options{
		Host: name, Socket: c.HookSocket, Command: withoutPrivileges, Dial: outside.Dial,
		Problem: func(ctx context.Context, key string, err error) { d.Problem(ctx, key, err) },
		Log:     log, Now: time.Now,
	})
	defer hooks.Close()
	var shared *fleet.Fleet
	lists := feed.New(feed.Options{
		Version: version, Dir: filepath.Join(s.StateDir, "feeds"), Dial: outside.Dial, Most: int(s.MaxBans / 2), Log: log, Now: time.Now,
	})
	options := daemon.Options{
		Version:   version,
		Load:      load,
		Open:      func(p daemon.Plan) ([]source.Source, error) { return openSources(p, log) },
		Present:   present,
		Blocklist: blocklist,
		Host: daemon.Host{
			Own: host.Addrs, SessionPeers: host.SessionPeers,
			Gateways: host.Gateways, Resolvers: host.Resolvers,
			DefaultInterfaces: host.DefaultInterfaces, Watch: host.Watch,
		},
		Places:      &places{},
		Feeds:       feeds{lists},
		LedgerPath:  filepath.Join(s.StateDir, "ledger.db"),
		HaveJournal: haveJournal,
		Lookup:      outside.Lookup,
		Ask:         askProgram,
		Hooks:       hooks,
		Changed:     []func(daemon.Change){func(c daemon.Change) { tellHooks(hooks, c) }},
		Notify: func(state string) {
			if _, err := sdnotify.SdNotify(false, state); err != nil {
				log.Warn("could not tell the service manager", "state", state, "error", err)
			}
		},
		Watchdog: watchdog,
		Log:      log,
		Now:      time.Now,
	}
	if s.Fleet.Name != "" {
		shared = fleet.New(fleet.Options{
			Settings: s.Fleet, Version: version, Dial: outside.Dial, StatePath: filepath.Join(s.StateDir, "fleet.db"), Log: log, Now: time.Now,
		})
		options.Fleet = shared
		options.Changed = append(options.Changed, func(c daemon.Change) { tellFleet(shared, c) })
		if s.Fleet.SharedFailures {
			options.Failed = shared.Failed
		}
	}
	d = daemon.New(options)
	ctx, stop := context.WithCancelCause(a.ctx)
	defer stop(nil)
	served := make(chan struct{})
	var besides sync.WaitGroup
	ready := func() {
		if shared != nil {
			besides.Go(func() { shared.Run(ctx, d) })
		}
		besides.Go(func() { lists.Run(ctx, d) })
		go serve(ctx, d, s, "metrics", s.Metrics, outside, log, func(string) (http.Handler, error) { return web.Metrics(d, log) })
		go serve(ctx, d, s, "web", s.Web, outside, log, func(token string) (http.Handler, error) { return web.Page(d, token, log) })
		go serve(ctx, d, s, "publish", s.Publish, outside, log, func(string) (http.Handler, error) { return web.Lists(d, blocklist.changes.Load, log), nil })
		go func() {
			defer close(served)
			if err := control.Serve(ctx, listener, d, log); err != nil {
				stop(err)
			}
		}()
		go reloadOnHangup(ctx, d, log)
	}
	if line, ok := a.stderr.(*statusLine); ok {
		defer line.keep(backlogOf(ctx, d.Status))()
	}
	started := false
	err = d.Run(ctx, func() { started = true; ready() })
	if cause := context.Cause(ctx); err == nil && a.ctx.Err() == nil && cause != nil {
		err = cause
	}
	stop(nil)
	if started {
		<-served
	}
	besides.Wait()
	return err
}

// backlogOf says how far reading is of the log that is furthest behind, while
// one of them catches up.
func backlogOf(ctx context.Context, status func(context.Context) (control.Status, error)) func(time.Duration) string {
	var before uint64
	var at time.Time
	return func(time.Duration) string {
		s, err := status(ctx)
		if err != nil {
			return ""
		}
		var last control.Source
		lines := uint64(0)
		for _, src := range s.Sources {
			lines += src.Lines
			if src.Left > last.Left {
				last = src
			}
		}
		now := time.Now()
		rate := float64(lines-min(before, lines)) / now.Sub(at).Seconds()
		before, at = lines, now
		if last.Left == 0 {
			return ""
		}
		return fmt.Sprintf("%s: %s behind; %s a second, %s left", printable(last.Stream), span(time.Duration(last.Lag).Round(time.Second)),
			plural(int(rate), "line"), span(max(time.Duration(last.Left).Round(time.Second), time.Second)))
	}
}

// tellHooks has programs and webhooks know what has become of a ban of this host.
// Those of the fleet were told of where they were made, feeds tell themselves, and
// of bans that come by the thousand the log has no lines either.
func tellHooks(h *hook.Hooks, c daemon.Change) {
	if c.Jail == jails.ByFleet || jails.ByFeed(c.Jail) || c.Bulk {
		return
	}
	event, cause := "unban", ""
	switch c.Event {
	case daemon.EventBan:
		event = "ban"
	case daemon.EventUnban:
		cause = "hand"
	case daemon.EventOver, daemon.EventFull:
		cause = c.Event
	}
	n := jails.NoticeOf(event, c.Ban)
	n.Cause, n.Packets, n.Bytes = cause, c.Packets, c.Bytes
	h.Tell(n)
}

// tellFleet has the fleet know what has become of a ban.
func tellFleet(f *fleet.Fleet, c daemon.Change) {
	switch c.Event {
	case daemon.EventBan:
		f.Banned(c.Ban)
	case daemon.EventUnban:
		f.Unbanned(c.Ban)
	}
}

// serve serves one of the ports, if the settings name it. What goes wrong is a
// problem to tell of, and no reason to stop.
func serve(ctx context.Context, d *daemon.Daemon, s jails.Settings, key string, at netip.AddrPort, outside network.Network, log *slog.Logger, handler func(token string) (http.Handler, error)) {
	if !at.IsValid() {
		return
	}
	o := web.Options{At: at, Listen: outside.Listen, Log: log, Problem: func(err error) {
		if err != nil {
			err = fmt.Errorf("%s isn't served: %w", key, err)
		}
		d.Problem(ctx, key, err)
	}}
	var err error
	if s.TokenFile != "" {
		if o.Token, err = web.ReadToken(s.TokenFile); err != nil {
			o.Problem(err)
			return
		}
	}
	if o.Handler, err = handler(o.Token); err != nil {
		o.Problem(err)
		return
	}
	web.Serve(ctx, o)
}

// groupID finds a group by its name or number.
func groupID(name string) (int, error) {
	if id, err := strconv.Atoi(name); err == nil && id >= 0 {
		return id, nil
	}
	g, err := user.LookupGroup(name)
	if err != nil {
		return 0, fmt.Errorf("%w; make it with groupadd --system %s, or take another", err, name)
	}
	return strconv.Atoi(g.Gid)
}

// reloadOnHangup reads the configuration again at SIGHUP. What is wrong with
// it is in the log and in status; the old one goes on.
func reloadOnHangup(ctx context.Context, d *daemon.Daemon, log *slog.Logger) {
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangup:
			// The protocol of Type=notify-reload, see sd_notify(3).
			var now unix.Timespec
			if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err == nil {
				_, _ = sdnotify.SdNotify(false, fmt.Sprintf("%s\nMONOTONIC_USEC=%d", sdnotify.SdNotifyReloading, now.Nano()/1000))
			}
			_, _ = d.Reload(ctx) // the daemon has said what is wrong
			_, _ = sdnotify.SdNotify(false, sdnotify.SdNotifyReady)
		}
	}
}

func openSources(p daemon.Plan, log *slog.Logger) ([]source.Source, error) {
	var sources []source.Source
	if len(p.Files) > 0 {
		files, err := source.NewFiles(source.FilesOptions{Patterns: p.Files, Log: log})
		if err != nil {
			return nil, err
		}
		sources = append(sources, files)
	}
	if len(p.Journal) > 0 {
		journal, err := source.NewJournal(source.JournalOptions{Selections: p.Journal, Log: log})
		if err != nil {
			return nil, err
		}
		sources = append(sources, journal)
	}
	return sources, nil
}

// haveJournal says that journald runs and can be read.
func haveJournal() bool {
	_, err := os.Stat("/run/systemd/journal/socket")
	if err != nil {
		return false
	}
	_, err = exec.LookPath("journalctl")
	return err == nil
}

// present says that something a jail reads is on this machine: a log file,
// or the unit of a journal match.
func present(j *jails.Jail) bool {
	for _, pattern := range j.Files {
		if found, err := filepath.Glob(pattern); err == nil && len(found) > 0 {
			return true
		}
	}
	for _, match := range j.Journal {
		unit, ok := strings.CutPrefix(match, "_SYSTEMD_UNIT=")
		if ok && unitKnown(unit) {
			return true
		}
	}
	return false
}

// unitKnown looks where systemd.unit(5) says that units are; an instance is
// known by its template.
func unitKnown(unit string) bool {
	names := []string{unit}
	if at := strings.IndexByte(unit, '@'); at >= 0 {
		names = append(names, unit[:at+1]+filepath.Ext(unit))
	}
	for _, dir := range []string{"/etc/systemd/system", "/run/systemd/system", "/run/systemd/generator", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"} {
		for _, name := range names {
			if _, err := os.Stat(filepath.Join(dir, name)); !errors.Is(err, fs.ErrNotExist) {
				return true
			}
		}
	}
	return false
}
