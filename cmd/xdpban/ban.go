package main

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"time"

	"xdpban/internal/control"
)

// targets are the prefixes a command is about: as arguments, or as a list
// in a file or on standard input.
type targets struct {
	Prefix  []string `arg:"" optional:"" help:"Addresses or prefixes; - reads a list from standard input."`
	File    string   `help:"Read a list: an address, prefix or range a line; comments and the usual blocklist formats are understood." placeholder:"PATH"`
	SkipBad bool     `help:"Leave out lines that can't be read and prefixes that are refused, and go on."`
}

func (t *targets) read(a *app) ([]netip.Prefix, error) {
	stdin := len(t.Prefix) == 1 && t.Prefix[0] == "-"
	switch {
	case t.File != "" && len(t.Prefix) > 0:
		return nil, usagef("give either addresses or --file, not both")
	case t.File == "" && len(t.Prefix) == 0:
		return nil, usagef("say which address or prefix, - for a list on standard input, or --file")
	case t.File == "" && !stdin:
		return parsePrefixes(t.Prefix)
	}
	var read amount
	in, name := a.stdin, "standard input"
	if t.File != "" && t.File != "-" {
		f, err := os.Open(t.File)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in, name = f, t.File
		read.size(f)
	}
	skipped := 0
	stop := a.progress(read.text)
	list, err := parseList(counted{in, &read.done}, func(line int, err error) error {
		if !t.SkipBad {
			return usagef("line %d: %w; nothing was changed (--skip-bad goes on)", line, err)
		}
		if skipped++; skipped <= 10 {
			a.warn("%s: line %d is left out: %v", name, line, err)
		}
		return nil
	})
	stop()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if skipped > 10 {
		a.warn("%s: %s left out in all", name, plural(skipped, "line"))
	}
	if len(list) == 0 {
		return nil, usagef("%s holds no addresses", name)
	}
	return list, nil
}

type banCmd struct {
	targets   `embed:""`
	For       span   `help:"For how long: 90s, 10m, 1d12h, forever." default:"forever" placeholder:"TIME"`
	Jail      string `help:"The name the bans go under." default:"manual"`
	Aggregate bool   `help:"Join neighbouring prefixes, and drop those that others cover, first."`
}

func (c *banCmd) Run(a *app) error {
	list, err := c.read(a)
	if err != nil {
		return err
	}
	if c.Aggregate {
		list = aggregate(list)
	}
	bl, err := a.open(true)
	if err != nil {
		return err
	}
	defer bl.Close()
	stop := a.changing(bl, len(list))
	res, err := bl.Ban(a.ctx, control.BanRequest{Prefixes: list, Jail: c.Jail, For: control.Duration(c.For), SkipRefused: c.SkipBad})
	stop()
	if err != nil {
		return err
	}
	a.warnRefused(res.Refused)
	if m, ok := bl.(*pinned); ok {
		if err := a.warnUnattached(m); err != nil {
			return err
		}
	}
	now := time.Now()
	return a.print(res, func(w io.Writer) {
		if len(list) == 1 && len(res.Bans) == 1 {
			b := res.Bans[0]
			end := "forever"
			if !b.Until.IsZero() {
				end = fmt.Sprintf("until %s (%s)", clock(b.Until.Time), left(b.Until.Time, now))
			}
			if res.Kept > 0 {
				fmt.Fprintf(w, "%s was banned already by %s, %s\n", short(b.Prefix), printable(b.Jail), end)
			} else {
				fmt.Fprintf(w, "banned %s %s\n", short(b.Prefix), end)
			}
			return
		}
		fmt.Fprintf(w, "banned %s", plural(res.Banned, "prefix"))
		if res.Kept > 0 {
			fmt.Fprintf(w, "; %s stood already, as long or longer", grouped(uint64(res.Kept)))
		}
		if n := len(res.Refused); n > 0 {
			fmt.Fprintf(w, "; %s refused", grouped(uint64(n)))
		}
		fmt.Fprintln(w)
	})
}

func (a *app) warnRefused(refused []control.Refusal) {
	for i, r := range refused {
		if i == 10 {
			a.warn("%s refused in all", plural(len(refused), "prefix"))
			return
		}
		a.warn("refused: %s", r.Reason)
	}
}

// warnUnattached says so when bans stand in maps that no packet passes.
func (a *app) warnUnattached(m *pinned) error {
	list, err := m.Attachments()
	if err != nil {
		return err
	}
	for _, at := range list {
		if !at.Severed {
			return nil
		}
	}
	a.warn("xdpban isn't running and not attached to any interface: nothing is dropped until `xdpban run` or `xdpban attach`")
	return nil
}

type unbanCmd struct {
	targets `embed:""`
	All     bool   `help:"End all bans."`
	Jail    string `help:"End only what is banned under this name: a longer ban by another stays."`
}

func (c *unbanCmd) Run(a *app) error {
	bl, err := a.open(false)
	if err != nil {
		return err
	}
	defer bl.Close()
	r := control.UnbanRequest{All: c.All, Jail: c.Jail}
	if !c.All {
		if r.Prefixes, err = c.read(a); err != nil {
			return err
		}
	} else if len(c.Prefix) > 0 || c.File != "" {
		return usagef("--all goes without addresses")
	}
	stop := a.changing(bl, len(r.Prefixes))
	res, err := bl.Unban(a.ctx, r)
	stop()
	if err != nil {
		return err
	}
	list := r.Prefixes
	now := time.Now()
	err = a.print(res, func(w io.Writer) {
		switch {
		case len(list) == 1 && res.Unbanned == 0 && c.Jail != "":
			fmt.Fprintf(w, "%s was not banned by %s\n", short(list[0]), printable(c.Jail))
		case len(list) == 1 && res.Unbanned == 0:
			fmt.Fprintf(w, "%s was not banned\n", short(list[0]))
		case res.Unbanned == 1 && len(res.Bans) > 0:
			b := res.Bans[0]
			fmt.Fprintf(w, "unbanned %s (by %s; %s dropped)\n", short(b.Prefix), printable(b.Jail), plural(int(b.Packets), "packet"))
		default:
			fmt.Fprintf(w, "unbanned %s\n", plural(res.Unbanned, "prefix"))
		}
		for _, b := range res.Covered {
			fmt.Fprintf(w, "still covered by %s (%s, %s)\n", short(b.Prefix), printable(b.Jail), left(b.Until.Time, now))
		}
	})
	// Another jail may have banned it for longer since.
	if err == nil && res.Unbanned == 0 && len(list) > 0 && c.Jail == "" {
		return errReported
	}
	return err
}
