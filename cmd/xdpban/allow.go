package main

import (
	"fmt"
	"io"
	"slices"

	"xdpban/internal/control"
)

type allowCmd struct {
	Prefix []string `arg:"" optional:"" help:"Addresses or prefixes."`
	Remove bool     `short:"r" help:"Take them off the allowlist."`
}

func (c *allowCmd) Run(a *app) error {
	list, err := parsePrefixes(c.Prefix)
	if err != nil {
		return err
	}
	if c.Remove && len(list) == 0 {
		return usagef("say what to remove")
	}
	bl, err := a.open(len(list) > 0 && !c.Remove)
	if err != nil {
		return err
	}
	defer bl.Close()
	var n int
	var verb string
	switch {
	case c.Remove:
		verb = "removed"
		n, err = bl.Disallow(a.ctx, list)
	case len(list) > 0:
		verb = "allowed"
		n, err = bl.Allow(a.ctx, list)
	default:
		return c.list(a, bl)
	}
	if err != nil {
		return err
	}
	return a.print(map[string]int{"changed": n}, func(w io.Writer) {
		fmt.Fprintf(w, "%s %s\n", verb, plural(n, "prefix"))
		if n < len(list) && c.Remove {
			fmt.Fprintln(w, "what wasn't allowed by hand stays as it is")
		}
	})
}

func (c *allowCmd) list(a *app, bl blocklist) error {
	allowed, err := bl.Allowed(a.ctx)
	if err != nil {
		return err
	}
	slices.SortFunc(allowed, func(x, y control.Allow) int { return x.Prefix.Compare(y.Prefix) })
	return a.print(allowed, func(w io.Writer) {
		t := newTable(w, "PREFIX", "ORIGIN")
		for _, e := range allowed {
			t.row(short(e.Prefix), e.Origin)
		}
		t.flush()
	})
}
