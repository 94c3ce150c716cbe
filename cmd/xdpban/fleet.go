package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nkeys"

	"xdpban/internal/control"
)

type fleetCmd struct {
	Status  fleetStatusCmd  `cmd:"" help:"Show the hosts of the fleet, what they share, and what isn't heeded."`
	Eject   fleetEjectCmd   `cmd:"" help:"Heed a host no more: its bans end here, and new ones aren't taken."`
	Readmit fleetReadmitCmd `cmd:"" help:"Heed an ejected host again."`
	Key     fleetKeyCmd     `cmd:"" help:"Print this host's public key for the NATS server; make its key if there is none."`
}

type fleetStatusCmd struct{}

func (c *fleetStatusCmd) Run(a *app) error {
	client := control.NewClient(a.Socket)
	defer client.Close()
	s, err := client.Status(a.ctx)
	if err != nil {
		return err
	}
	if s.Fleet == nil {
		return errors.New("this host is in no fleet: xdpban.toml has no [fleet]")
	}
	problems := []string{}
	for _, p := range s.Problems {
		if strings.HasPrefix(p, "fleet ") {
			problems = append(problems, p)
		}
	}
	return a.print(struct {
		*control.Fleet
		Problems []string `json:"problems"`
	}{s.Fleet, problems}, func(w io.Writer) { printFleet(w, *s.Fleet, problems, time.Now()) })
}

func printFleet(w io.Writer, f control.Fleet, problems []string, now time.Time) {
	fmt.Fprintf(w, "%s of fleet %s: ", f.Host, f.Name)
	switch {
	case f.Server == "":
		fmt.Fprintln(w, "not connected")
	case !f.Synced:
		fmt.Fprintf(w, "connected to %s, reading what the others have banned\n", printable(f.Server))
	default:
		fmt.Fprintf(w, "connected to %s\n", printable(f.Server))
	}
	for _, p := range problems {
		fmt.Fprintf(w, "problem: %s\n", printable(p))
	}
	fmt.Fprintf(w, "%s of others in force here; %s kept off by this host's allowlist\n", plural(f.Bans, "ban"), grouped(f.Refused))
	fmt.Fprintf(w, "since the start: %s bans and unbans sent, %s received\n", grouped(f.Published), grouped(f.Received))
	if f.FailuresSent+f.FailuresReceived > 0 {
		fmt.Fprintf(w, "failures shared: of %s sources sent, of %s received\n", grouped(f.FailuresSent), grouped(f.FailuresReceived))
	}
	if f.Waiting > 0 || f.Behind > 0 {
		fmt.Fprintf(w, "waiting: %s to be sent, %s to be read\n", grouped(uint64(f.Waiting)), grouped(f.Behind))
	}
	for _, why := range slices.Sorted(maps.Keys(f.Rejected)) {
		fmt.Fprintf(w, "not heeded: %s (%s)\n", grouped(f.Rejected[why]), printable(why))
	}
	fmt.Fprintln(w)
	t := newTable(w, "HOST", "STATE", "HEARD", "LAG", "BANS", "HELD", "REJECTED", "VERSION")
	for _, h := range f.Hosts {
		state, heard, lag := "there", "never", "-"
		if !h.Heard.IsZero() {
			heard = span(max(now.Sub(h.Heard.Time), 0).Round(time.Second)).String() + " ago"
			lag = time.Duration(h.Lag * float64(time.Second)).Round(100 * time.Microsecond).String()
		}
		switch {
		case h.Ejected:
			state = "ejected"
		case now.Sub(h.Heard.Time) > quiet:
			state = "silent"
		}
		t.row(h.Host, state, heard, lag, strconv.Itoa(h.Bans), strconv.Itoa(h.Held), strconv.FormatUint(h.Rejected, 10), printable(h.Version))
	}
	t.flush()
}

// quiet is how long a host that is there says nothing, at most: it does each
// ten seconds.
const quiet = 35 * time.Second

type fleetEjectCmd struct {
	Host string `arg:"" help:"The host, as fleet status names it."`
}

func (c *fleetEjectCmd) Run(a *app) error { return eject(a, c.Host, false) }

type fleetReadmitCmd struct {
	Host string `arg:"" help:"The host, as fleet status names it."`
}

func (c *fleetReadmitCmd) Run(a *app) error { return eject(a, c.Host, true) }

func eject(a *app, host string, back bool) error {
	client := control.NewClient(a.Socket)
	defer client.Close()
	if err := client.Eject(a.ctx, control.EjectRequest{Host: host, Back: back}); err != nil {
		return err
	}
	return a.print(struct {
		Host    string `json:"host"`
		Ejected bool   `json:"ejected"`
	}{host, !back}, func(w io.Writer) {
		if back {
			fmt.Fprintf(w, "%s is heeded again\n", host)
		} else {
			fmt.Fprintf(w, "%s is heeded no more\n", host)
		}
	})
}

// fleetKeyCmd is for both ends: the seed stays here, the public half goes into
// the server's configuration.
type fleetKeyCmd struct{}

func (c *fleetKeyCmd) Run(a *app) error {
	path := a.settings.Fleet.NKey
	if path == "" {
		path = filepath.Join(a.Config, "fleet.nkey")
	}
	key, made, err := fleetKey(path)
	if err != nil {
		return err
	}
	public, err := key.PublicKey()
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if made {
		a.warn("made %s; keep it to this host", path)
	}
	return a.print(struct {
		File   string `json:"file"`
		Public string `json:"public"`
		Made   bool   `json:"made"`
	}{path, public, made}, func(w io.Writer) { fmt.Fprintln(w, public) })
}

// fleetKey reads a host's key, or makes it where there is no file. One that is
// there is never written over: the servers know it.
func fleetKey(path string) (key nkeys.KeyPair, made bool, err error) {
	text, err := os.ReadFile(path)
	switch {
	case err == nil:
		if key, err = nkeys.ParseDecoratedNKey(text); err != nil {
			return nil, false, fmt.Errorf("read the key in %s: %w", path, err)
		}
		return key, false, nil
	case !errors.Is(err, fs.ErrNotExist):
		return nil, false, fmt.Errorf("read the key: %w", err)
	}
	if key, err = nkeys.CreateUser(); err != nil {
		return nil, false, fmt.Errorf("make a key: %w", err)
	}
	seed, err := key.Seed()
	if err != nil {
		return nil, false, fmt.Errorf("make a key: %w", err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, false, fmt.Errorf("make a key: %w", err)
	}
	_, err = f.Write(append(seed, '\n'))
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, false, fmt.Errorf("make a key: %w", errors.Join(err, os.Remove(path)))
	}
	return key, true, nil
}
