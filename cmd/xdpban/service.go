package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/coreos/go-systemd/v22/dbus"
	"github.com/coreos/go-systemd/v22/util"

	"xdpban/bpf"
	"xdpban/packaging"
)

// serviceCmd makes a service of the bare program: the same units as in the
// packages, in the folders that belong to the administrator.
type serviceCmd struct {
	Install   serviceInstallCmd   `cmd:"" help:"Make xdpban a systemd service, and start it."`
	Status    serviceStatusCmd    `cmd:"" help:"Say how the service is."`
	Uninstall serviceUninstallCmd `cmd:"" help:"Stop the service and take it away; bans end."`
}

type (
	serviceInstallCmd   struct{}
	serviceStatusCmd    struct{}
	serviceUninstallCmd struct {
		Purge bool `help:"Take away the configuration, the ledger and the installed program too."`
	}
)

const (
	serviceUnit    = "xdpban.service"
	serviceUnitDir = "/etc/systemd/system"
	serviceProgram = "/usr/local/bin/xdpban"
	// serviceMark begins the units that we wrote, and may replace.
	serviceMark = "# Written by xdpban service install; put changes into " + serviceUnit + ".d/.\n"
)

// manager connects to systemd.
func manager(ctx context.Context) (*dbus.Conn, error) {
	if !util.IsRunningSystemd() {
		return nil, errors.New("systemd doesn't run this machine (there is no /run/systemd/system): let your own service manager start xdpban run")
	}
	conn, err := dbus.NewWithContext(ctx)
	if err != nil {
		return nil, fmt.Errorf("connect to systemd: %w", err)
	}
	return conn, nil
}

// rootManager is manager for what only root may do.
func rootManager(ctx context.Context) (*dbus.Conn, error) {
	conn, err := manager(ctx)
	if err == nil && os.Geteuid() != 0 {
		conn.Close()
		return nil, errors.New("only root may install or uninstall a service")
	}
	return conn, err
}

// ours says whether the service is one that we installed, or there is none. A
// package's, or one written by hand, is left alone.
func ours(ctx context.Context, conn *dbus.Conn) (installed bool, err error) {
	p, err := conn.GetUnitPropertiesContext(ctx, serviceUnit)
	if err != nil {
		return false, fmt.Errorf("ask systemd for %s: %w", serviceUnit, err)
	}
	if p["LoadState"] == "masked" {
		return false, fmt.Errorf("%s is masked: systemctl unmask %s first", serviceUnit, serviceUnit)
	}
	path, _ := p["FragmentPath"].(string)
	if path == "" {
		return false, nil
	}
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil // removed, and systemd not yet reloaded
	}
	if err != nil {
		return false, fmt.Errorf("look at the unit that is there: %w", err)
	}
	if filepath.Dir(path) != serviceUnitDir || !bytes.HasPrefix(text, []byte(serviceMark)) {
		return true, fmt.Errorf("%s is already there and comes from elsewhere, such as a package: leave it to what brought it, and use systemctl enable --now %s", path, serviceUnit)
	}
	return true, nil
}

var plainPath = regexp.MustCompile(`^(/[A-Za-z0-9._+-]+)+$`)

// installedProgram is where the unit finds the program: where it is, if the
// service can run it there, or a copy.
func installedProgram() (path string, copied bool, err error) {
	self, err := os.Executable()
	if err != nil {
		return "", false, fmt.Errorf("find our own program: %w", err)
	}
	// Elsewhere the unit's own settings may hide it, or a user change it.
	for _, dir := range []string{"/usr/", "/opt/"} {
		if strings.HasPrefix(self, dir) && plainPath.MatchString(self) {
			return self, false, nil
		}
	}
	text, err := os.ReadFile(self)
	if err == nil {
		err = replaceFile(serviceProgram, text, 0o755)
	}
	if err != nil {
		return "", false, fmt.Errorf("copy the program: %w", err)
	}
	return serviceProgram, true, nil
}

// replaceFile writes a file so that everybody sees the old one or the new.
func replaceFile(path string, text []byte, mode fs.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	next := path + ".new"
	if err := os.WriteFile(next, text, mode); err != nil {
		return err
	}
	if err := os.Chmod(next, mode); err != nil { // whatever the umask
		return err
	}
	return os.Rename(next, path)
}

func (c *serviceInstallCmd) Run(a *app) error {
	conn, err := rootManager(a.ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := ours(a.ctx, conn); err != nil {
		return err
	}
	program, copied, err := installedProgram()
	if err != nil {
		return err
	}
	wrote := []string{}
	if copied {
		wrote = append(wrote, program)
	}
	units := serviceUnits(program)
	for _, path := range slices.Sorted(maps.Keys(units)) {
		if err := replaceFile(path, units[path], 0o644); err != nil {
			return fmt.Errorf("write the unit: %w", err)
		}
		wrote = append(wrote, path)
	}
	err = fs.WalkDir(packaging.Config, ".", func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		path := filepath.Join("/etc/xdpban", name)
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			return err // the operator's stays
		}
		text, err := packaging.Config.ReadFile(name)
		if err == nil {
			err = replaceFile(path, text, 0o644)
		}
		if err == nil {
			wrote = append(wrote, path)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("write the configuration: %w", err)
	}
	if err := conn.ReloadContext(a.ctx); err != nil {
		return fmt.Errorf("make systemd read its units again: %w", err)
	}
	if _, _, err := conn.EnableUnitFilesContext(a.ctx, []string{serviceUnit}, false, true); err != nil {
		return fmt.Errorf("enable %s: %w", serviceUnit, err)
	}
	if err := job(a.ctx, conn.RestartUnitContext); err != nil {
		return fmt.Errorf("%s is installed, but did not start (%w): see journalctl -u xdpban", serviceUnit, err)
	}
	return a.print(map[string]any{"unit": serviceUnit, "program": program, "wrote": wrote}, func(w io.Writer) {
		for _, path := range wrote {
			fmt.Fprintln(w, "wrote", path)
		}
		fmt.Fprintf(w, "%s is enabled and runs: systemctl status xdpban, xdpban status\n", serviceUnit)
	})
}

// serviceUnits are the units' files with where the program is.
func serviceUnits(program string) map[string][]byte {
	files := map[string][]byte{}
	entries, err := packaging.Units.ReadDir(".")
	if err != nil {
		panic(err) // they are built in
	}
	for _, e := range entries {
		text, err := packaging.Units.ReadFile(e.Name())
		if err != nil {
			panic(err)
		}
		text = bytes.ReplaceAll(text, []byte("=/usr/bin/xdpban "), []byte("="+program+" "))
		files[filepath.Join(serviceUnitDir, e.Name())] = append([]byte(serviceMark), text...)
	}
	return files
}

// job has systemd do something to the service, and waits until it is done.
func job(ctx context.Context, start func(context.Context, string, string, chan<- string) (int, error)) error {
	result := make(chan string, 1)
	if _, err := start(ctx, serviceUnit, "replace", result); err != nil {
		return err
	}
	select {
	case r := <-result:
		if r != "done" {
			return errors.New(r)
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *serviceStatusCmd) Run(a *app) error {
	conn, err := manager(a.ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	p, err := conn.GetAllPropertiesContext(a.ctx, serviceUnit)
	if err != nil {
		return fmt.Errorf("ask systemd for %s: %w", serviceUnit, err)
	}
	text := func(key string) string { s, _ := p[key].(string); return s }
	number := func(key string) uint32 { n, _ := p[key].(uint32); return n }
	s := struct {
		Unit     string `json:"unit"` // its file; empty: not installed
		Enabled  string `json:"enabled"`
		Active   string `json:"active"`
		PID      uint32 `json:"pid"`
		Restarts uint32 `json:"restarts"` // since it was started by hand or at boot
		Status   string `json:"status"`
	}{text("FragmentPath"), text("UnitFileState"), text("ActiveState"), number("MainPID"), number("NRestarts"), text("StatusText")}
	if s.Unit == "" {
		return errors.New("xdpban is no service here: xdpban service install makes it one")
	}
	err = a.print(s, func(w io.Writer) {
		fmt.Fprintf(w, "%s: %s, %s\n", printable(s.Unit), printable(s.Enabled), printable(s.Active))
		if s.PID != 0 {
			fmt.Fprintf(w, "pid %d, restarted %s: %s\n", s.PID, plural(int(s.Restarts), "time"), printable(s.Status))
		}
	})
	if err == nil && s.Active != "active" {
		return errReported
	}
	return err
}

func (c *serviceUninstallCmd) Run(a *app) error {
	conn, err := rootManager(a.ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	installed, err := ours(a.ctx, conn)
	if err != nil {
		return err
	}
	removed := []string{}
	remove := func(path string) error {
		err := os.RemoveAll(path)
		if err == nil {
			removed = append(removed, path)
		}
		return err
	}
	if installed {
		if err := job(a.ctx, conn.StopUnitContext); err != nil {
			return fmt.Errorf("stop %s: %w", serviceUnit, err)
		}
		if _, err := conn.DisableUnitFilesContext(a.ctx, []string{serviceUnit}, false); err != nil {
			return fmt.Errorf("disable %s: %w", serviceUnit, err)
		}
		for _, path := range slices.Sorted(maps.Keys(serviceUnits(""))) {
			if err := remove(path); err != nil {
				return fmt.Errorf("remove the unit: %w", err)
			}
		}
		if err := conn.ReloadContext(a.ctx); err != nil {
			return fmt.Errorf("make systemd read its units again: %w", err)
		}
	}
	// Nobody would be left to lift a ban.
	if err := takeOffEverything(a.BPFDir); err != nil {
		return err
	}
	if c.Purge {
		for _, path := range []string{"/etc/xdpban", "/var/lib/xdpban", "/var/lib/xdpban-nats", serviceProgram} {
			if err := remove(path); err != nil {
				return fmt.Errorf("purge: %w", err)
			}
		}
	}
	if !installed && !c.Purge {
		return errors.New("xdpban is no service here")
	}
	return a.print(map[string]any{"removed": removed}, func(w io.Writer) {
		for _, path := range removed {
			fmt.Fprintln(w, "removed", path)
		}
		fmt.Fprintln(w, "all bans have ended")
	})
}

// takeOffEverything ends all bans: with the pins go the links, and with the
// links the program and its maps.
func takeOffEverything(dir string) error {
	if err := os.RemoveAll(filepath.Join(dir, bpf.Schema)); err != nil {
		return fmt.Errorf("take the program off the interfaces: %w", err)
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("take away the folder of the pins: %w", err)
	}
	return nil
}
