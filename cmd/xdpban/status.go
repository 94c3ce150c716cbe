package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"xdpban/bpf"
	"xdpban/internal/control"
)

type statusCmd struct {
	Jail string `arg:"" optional:"" help:"Say more of this jail."`
}

// offline is the status without a daemon: what stands in the kernel.
type offline struct {
	Running    bool                `json:"running"`
	Bans       int                 `json:"bans"`
	Interfaces []control.Interface `json:"interfaces"`
}

func (c *statusCmd) Run(a *app) error {
	client := control.NewClient(a.Socket)
	defer client.Close()
	s, err := client.Status(a.ctx)
	if errors.Is(err, control.ErrDown) {
		return a.statusOffline(err)
	}
	if err != nil {
		return err
	}
	if c.Jail == "" {
		return a.print(s, func(w io.Writer) { printStatus(w, s, time.Now()) })
	}
	i := slices.IndexFunc(s.Jails, func(j control.Jail) bool { return j.Name == c.Jail })
	if i < 0 {
		return fmt.Errorf("there is no jail %q; there are %s", c.Jail, jailNames(s.Jails))
	}
	l, err := client.List(a.ctx, control.ListQuery{Jail: c.Jail})
	if err != nil {
		return err
	}
	sortBans(l.Bans, "prefix")
	j := s.Jails[i]
	return a.print(struct {
		control.Jail
		Sources []control.Source `json:"sources"`
		List    []control.Ban    `json:"list"`
	}{j, sourcesOf(s.Sources, j.Name), l.Bans}, func(w io.Writer) {
		fmt.Fprintf(w, "%s: %s\n", printable(j.Name), jailState(j))
		fmt.Fprintf(w, "  bans after %s within %s, for %s\n", plural(j.MaxRetry, "failure"), span(j.FindTime), span(j.BanTime))
		fmt.Fprintf(w, "  %s now, %s with failures\n", plural(j.Bans, "ban"), plural(j.Tracked, "address"))
		fmt.Fprintf(w, "  since the start: %s, %s\n", plural(int(j.Total), "ban"), plural(int(j.Failures), "failure"))
		if j.Elsewhere > 0 {
			fmt.Fprintf(w, "  elsewhere, and so not counted: %s\n", plural(int(j.Elsewhere), "failure"))
		}
		for _, src := range sourcesOf(s.Sources, j.Name) {
			fmt.Fprintf(w, "  reads %s: %s\n", printable(src.Stream), plural(int(src.Lines), "line"))
		}
		if len(l.Bans) > 0 {
			fmt.Fprintln(w)
			printBans(w, l.Bans, time.Now())
		}
	})
}

func jailNames(jails []control.Jail) string {
	var names []string
	for _, j := range jails {
		if j.Enabled {
			names = append(names, j.Name)
		}
	}
	if len(names) == 0 {
		return "none enabled"
	}
	return strings.Join(names, ", ")
}

func sourcesOf(all []control.Source, jail string) []control.Source {
	list := []control.Source{}
	for _, s := range all {
		if slices.Contains(s.Jails, jail) {
			list = append(list, s)
		}
	}
	return list
}

func jailState(j control.Jail) string {
	switch {
	case !j.Enabled:
		return "off"
	case j.Waits:
		return "waits for what it reads"
	case j.Observe:
		return "observes, doesn't ban"
	}
	return "on"
}

func printStatus(w io.Writer, s control.Status, now time.Time) {
	fmt.Fprintf(w, "xdpban %s, pid %d, up %s\n", printable(s.Version), s.PID, span(max(now.Sub(s.Started).Round(time.Second), 0)))
	fmt.Fprintf(w, "%s of at most %s\n", plural(s.Bans, "ban"), grouped(uint64(s.Capacity)))
	if s.Braked {
		fmt.Fprintln(w, "new bans are held back: too many in a minute (max_bans_per_minute)")
	}
	for _, i := range s.Interfaces {
		printInterface(w, i)
	}
	for _, p := range s.Problems {
		fmt.Fprintf(w, "problem: %s\n", printable(p))
	}
	fmt.Fprintln(w)
	t := newTable(w, "JAIL", "STATE", "BANS", "TOTAL", "FAILURES", "WATCHED")
	var waiting []string
	for _, j := range s.Jails {
		switch {
		case j.Waits:
			waiting = append(waiting, j.Name)
		case j.Enabled:
			t.row(j.Name, jailState(j), fmt.Sprint(j.Bans), fmt.Sprint(j.Total), fmt.Sprint(j.Failures), fmt.Sprint(j.Tracked))
		}
	}
	t.flush()
	if len(waiting) > 0 {
		fmt.Fprintf(w, "waiting for what they read: %s\n", printable(strings.Join(waiting, ", ")))
	}
	if len(s.Hooks) > 0 {
		fmt.Fprintln(w)
		t = newTable(w, "TOLD OF BANS", "NAME", "DONE", "FAILED", "TIMED OUT", "DROPPED", "WAITING")
		for _, h := range s.Hooks {
			t.row(h.Kind, h.Name, fmt.Sprint(h.Done), fmt.Sprint(h.Failed), fmt.Sprint(h.TimedOut), fmt.Sprint(h.Dropped), fmt.Sprint(h.Waiting+h.Running))
		}
		t.flush()
	}
	if len(s.Sources) == 0 {
		return
	}
	fmt.Fprintln(w)
	t = newTable(w, "SOURCE", "LINES", "IGNORED", "SKIPPED", "LAG", "JAILS")
	for _, src := range s.Sources {
		lag := span(time.Duration(src.Lag).Round(time.Second)).String()
		if src.Left > 0 {
			lag += ", read in " + span(time.Duration(src.Left).Round(time.Second)).String()
		}
		if src.Error != "" {
			lag = src.Error
		}
		t.row(src.Stream, fmt.Sprint(src.Lines), fmt.Sprint(src.Ignored), fmt.Sprint(src.Skipped), lag, strings.Join(src.Jails, " "))
	}
	t.flush()
}

func printInterface(w io.Writer, i control.Interface) {
	if i.Error != "" {
		fmt.Fprintf(w, "%s: not attached: %s\n", printable(i.Name), printable(i.Error))
		return
	}
	fmt.Fprintf(w, "%s: attached, %s\n", printable(i.Name), i.Mode)
}

// statusOffline tells what goes on without the daemon, and fails, since that
// is not as it should be.
func (a *app) statusOffline(down error) error {
	b, err := a.openPinned()
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w, and there are no pinned maps in %s", down, a.BPFDir)
	}
	if err != nil {
		return errors.Join(down, err)
	}
	defer b.Close()
	m := &pinned{b}
	st, err := m.Stats(a.ctx)
	if err != nil {
		return err
	}
	o := offline{Bans: st.Bans}
	if o.Interfaces, err = m.interfaces(); err != nil {
		return err
	}
	err = a.print(o, func(w io.Writer) {
		fmt.Fprintf(w, "xdpban isn't running; %s in the kernel go on to their end\n", plural(o.Bans, "ban"))
		for _, i := range o.Interfaces {
			printInterface(w, i)
		}
		if !slices.ContainsFunc(o.Interfaces, func(i control.Interface) bool { return i.Error == "" }) {
			fmt.Fprintln(w, "not attached to any interface: nothing is dropped")
		}
	})
	if err != nil {
		return err
	}
	return errReported
}

func (m *pinned) interfaces() ([]control.Interface, error) {
	list, err := m.Attachments()
	ifaces := []control.Interface{}
	for _, at := range list {
		i := control.Interface{Name: at.Interface, Mode: string(at.Mode)}
		if at.Severed {
			i.Mode, i.Error = "", "the interface is gone"
		}
		ifaces = append(ifaces, i)
	}
	if err != nil {
		return nil, err
	}
	// What keeps us off the others.
	all, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list the interfaces: %w", err)
	}
	for _, l := range all {
		name := l.Attrs().Name
		if slices.ContainsFunc(ifaces, func(i control.Interface) bool { return i.Name == name && i.Error == "" }) {
			continue
		}
		holder, err := bpf.Holder(name)
		if err == nil && holder != nil {
			ifaces = append(ifaces, control.Interface{Name: name, Error: "held by another XDP program: " + holder.String()})
		}
	}
	return ifaces, nil
}
