package main

import (
	"io"
	"strconv"
	"time"

	"xdpban/internal/control"
)

type historyCmd struct {
	Address string `arg:"" optional:"" help:"Only this address or prefix."`
	Since   span   `help:"Only the last so long: 1h, 7d." placeholder:"TIME"`
	Limit   int    `short:"n" help:"The latest so many; 0 for all." default:"100"`
}

func (c *historyCmd) Run(a *app) error {
	q := control.HistoryQuery{Limit: c.Limit}
	if c.Limit < 0 {
		return usagef("--limit %d: it can't be negative", c.Limit)
	}
	if c.Address != "" {
		p, err := parsePrefix(c.Address)
		if err != nil {
			return usageError{err}
		}
		q.Prefix = p
	}
	if c.Since > 0 {
		q.Since.Time = time.Now().Add(-time.Duration(c.Since))
	}
	client := control.NewClient(a.Socket)
	defer client.Close()
	ev, err := client.History(a.ctx, q)
	if err != nil {
		return err
	}
	return a.print(ev, func(w io.Writer) { printEvents(w, ev) })
}

func printEvents(w io.Writer, ev []control.Event) {
	t := newTable(w, "TIME", "WHAT", "PREFIX", "JAIL", "FOR", "FAILURES", "PACKETS")
	for _, e := range ev {
		t.row(clock(e.Time), e.Kind, short(e.Ban.Prefix), e.Ban.Jail, left(e.Ban.Until.Time, e.Ban.Since),
			strconv.Itoa(e.Ban.Failures), strconv.FormatUint(e.Ban.Packets, 10))
	}
	t.flush()
}
