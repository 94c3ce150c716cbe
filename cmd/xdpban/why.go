package main

import (
	"fmt"
	"io"
	"time"

	"xdpban/internal/control"
)

type whyCmd struct {
	Address string `arg:"" help:"Address or prefix."`
}

func (c *whyCmd) Run(a *app) error {
	p, err := parsePrefix(c.Address)
	if err != nil {
		return usageError{err}
	}
	bl, err := a.open(false)
	if err != nil {
		return err
	}
	defer bl.Close()
	w, err := bl.Why(a.ctx, p)
	if err != nil {
		return err
	}
	if _, ok := bl.(*pinned); ok {
		a.warn("xdpban isn't running: only what stands in the kernel is known, not the lines behind it")
		w.Place = a.openPlaces().placeOf(p.Addr())
	}
	return a.print(w, func(out io.Writer) { printWhy(out, w, time.Now()) })
}

func printWhy(w io.Writer, y control.Why, now time.Time) {
	if len(y.Bans) == 0 {
		fmt.Fprintf(w, "%s is not banned\n", short(y.Prefix))
	}
	for i, b := range y.Bans {
		switch {
		case b.Prefix == y.Prefix:
			fmt.Fprintf(w, "%s is banned by %s\n", short(y.Prefix), printable(b.Jail))
		case i == 0:
			fmt.Fprintf(w, "%s is banned as part of %s, by %s\n", short(y.Prefix), short(b.Prefix), printable(b.Jail))
		default:
			fmt.Fprintf(w, "%s covers it too, by %s\n", short(b.Prefix), printable(b.Jail))
		}
		if b.From != "" {
			fmt.Fprintf(w, "  seen by  %s\n", printable(b.From))
		}
		fmt.Fprintf(w, "  since    %s\n", clock(b.Since))
		if b.Until.IsZero() {
			fmt.Fprintf(w, "  until    forever\n")
		} else {
			fmt.Fprintf(w, "  until    %s, %s left\n", clock(b.Until.Time), left(b.Until.Time, now))
		}
		fmt.Fprintf(w, "  dropped  %s, %s\n", plural(int(b.Packets), "packet"), plural(int(b.Bytes), "byte"))
		if b.Failures > 0 {
			fmt.Fprintf(w, "  after    %s\n", plural(b.Failures, "failure"))
		}
		if b.Strikes > 0 {
			fmt.Fprintf(w, "  strikes  %s before\n", plural(b.Strikes, "ban"))
		}
		if b.Pattern != "" {
			fmt.Fprintf(w, "  pattern  %s\n", printable(b.Pattern))
		}
		for _, l := range b.Evidence {
			fmt.Fprintf(w, "  > %s\n", printable(l))
		}
	}
	if y.Place != nil {
		fmt.Fprintf(w, "it is in %s\n", printable(y.Place.String()))
	}
	for _, e := range y.Allowed {
		fmt.Fprintf(w, "%s is on the allowlist (%s): it is never banned\n", short(e.Prefix), printable(e.Origin))
	}
	for _, win := range y.Windows {
		fmt.Fprintf(w, "%s: %d of %s within %s, the last %s ago", printable(win.Jail), win.Failures,
			plural(win.MaxRetry, "failure"), span(win.FindTime), span(max(now.Sub(win.Last), 0).Round(time.Second)))
		if n := win.MaxRetry - win.Failures; n > 0 && len(y.Bans) == 0 {
			fmt.Fprintf(w, "; %d more before %s would ban", n, clock(win.First.Add(time.Duration(win.FindTime))))
		}
		fmt.Fprintln(w)
	}
	if y.Strikes > 0 && len(y.Bans) == 0 {
		fmt.Fprintf(w, "banned before: %s\n", plural(y.Strikes, "time"))
	}
	if len(y.History) > 0 {
		fmt.Fprintln(w)
		printEvents(w, y.History)
	}
}
