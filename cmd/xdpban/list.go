package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"xdpban/internal/control"
)

type listCmd struct {
	Jail string `help:"Only this jail's bans."`
	Sort string `help:"Order: prefix, left (ending soonest first), packets (most first) or since (latest first)." enum:"prefix,left,packets,since" default:"prefix"`
}

func (c *listCmd) Run(a *app) error {
	bl, err := a.open(false)
	if err != nil {
		return err
	}
	defer bl.Close()
	l, err := bl.List(a.ctx, control.ListQuery{Jail: c.Jail})
	if err != nil {
		return err
	}
	sortBans(l.Bans, c.Sort)
	now := time.Now()
	return a.print(l, func(w io.Writer) {
		printBans(w, l.Bans, now)
		if len(l.Ports) > 0 {
			fmt.Fprintln(w)
			printPorts(w, l.Ports)
		}
	})
}

func printBans(w io.Writer, bans []control.Ban, now time.Time) {
	t := newTable(w, "PREFIX", "JAIL", "LEFT", "PACKETS", "BYTES", "SINCE")
	for _, b := range bans {
		prefix := short(b.Prefix)
		if len(b.Ports) > 0 {
			prefix += " to " + strings.Join(b.Ports, ",")
		}
		jail := b.Jail
		if b.From != "" {
			jail += " (" + b.From + ")"
		}
		t.row(prefix, jail, left(b.Until.Time, now),
			strconv.FormatUint(b.Packets, 10), strconv.FormatUint(b.Bytes, 10), clock(b.Since))
	}
	t.flush()
}

// sortBans brings bans into an order that is the same each time.
func sortBans(bans []control.Ban, by string) {
	slices.SortFunc(bans, func(x, y control.Ban) int {
		return cmp.Or(compareBans(x, y, by), x.Prefix.Compare(y.Prefix), cmp.Compare(x.Jail, y.Jail))
	})
}

// compareBans compares by one thing alone.
func compareBans(x, y control.Ban, by string) int {
	switch by {
	case "left":
		switch {
		case x.Until.IsZero() == y.Until.IsZero():
			return x.Until.Compare(y.Until.Time)
		case y.Until.IsZero():
			return -1
		}
		return 1
	case "packets":
		return cmp.Compare(y.Packets, x.Packets)
	case "since":
		return y.Since.Compare(x.Since)
	}
	return 0
}
