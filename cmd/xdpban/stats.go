package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"xdpban/internal/control"
)

type statsCmd struct {
	Watch    bool          `short:"w" help:"Go on, one table an interval."`
	Interval time.Duration `help:"Time between two looks at the counters." default:"1s"`
	Count    int           `help:"With --watch: end after so many tables." placeholder:"N"`
}

// actions in the order of enum xdp_action, which the 2017 tool used too.
var actions = []string{"XDP_ABORTED", "XDP_DROP", "XDP_PASS", "XDP_TX"}

// rates is what one interval showed.
type rates struct {
	control.Stats
	Period float64            `json:"period"` // seconds
	PPS    map[string]float64 `json:"pps"`    // packets per second, by action, reason and interface/action
}

func (c *statsCmd) Run(a *app) error {
	if c.Interval < 10*time.Millisecond {
		return usagef("--interval %s is too short: at least 10ms", c.Interval)
	}
	bl, err := a.open(false)
	if err != nil {
		return err
	}
	defer bl.Close()
	prev, err := bl.Stats(a.ctx)
	if err != nil {
		return err
	}
	tick := time.NewTicker(c.Interval)
	defer tick.Stop()
	for n := 0; ; {
		select {
		case <-a.ctx.Done():
			return nil
		case <-tick.C:
		}
		now, err := bl.Stats(a.ctx)
		if a.ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if c.Watch && !a.JSON && isTerminal(a.stdout) {
			fmt.Fprint(a.stdout, "\x1b[2J\x1b[H")
		}
		r := ratesOf(prev, now)
		if err := a.print(r, func(w io.Writer) { printRates(w, r) }); err != nil {
			return err
		}
		if n++; !c.Watch || n == c.Count {
			return nil
		}
		if !a.JSON && !isTerminal(a.stdout) {
			fmt.Fprintln(a.stdout)
		}
		prev = now
	}
}

func ratesOf(prev, now control.Stats) rates {
	r := rates{Stats: now, Period: now.At.Sub(prev.At).Seconds(), PPS: map[string]float64{}}
	add := func(under string, prev, now map[string]control.Verdict) {
		for name, v := range now {
			// Counters that began again count from their beginning.
			n := v.Packets
			if was := prev[name].Packets; was <= n {
				n -= was
			}
			if r.Period > 0 {
				r.PPS[under+name] = float64(n) / r.Period
			}
		}
	}
	add("", prev.Verdicts, now.Verdicts)
	add("", prev.Reasons, now.Reasons)
	for name, v := range now.Interfaces {
		add(name+"/", prev.Interfaces[name], v)
	}
	return r
}

// printRates writes the columns of the 2017 tool, and the totals behind
// them.
func printRates(w io.Writer, r rates) {
	line := func(name, key string, v control.Verdict) {
		pps := r.PPS[key]
		fmt.Fprintf(w, "%-14s %-10.0f %-18s %-10f %-14d %d\n", printable(name), pps, grouped(uint64(pps+0.5)), r.Period, v.Packets, v.Bytes)
	}
	row := func(name string, v control.Verdict) { line(name, name, v) }
	head := func(name string) {
		fmt.Fprintf(w, "%-14s %-10s %-18s %-10s %-14s %s\n", name, "pps", "pps-human-readable", "period/sec", "packets", "bytes")
	}
	head("XDP_action")
	for _, name := range actions {
		row(name, r.Verdicts[name])
	}
	if v := r.Verdicts["XDP_REDIRECT"]; v.Packets > 0 { // from a program behind ours
		row("XDP_REDIRECT", v)
	}
	if len(r.Reasons) > 0 {
		fmt.Fprintln(w)
		head("reason")
		for _, name := range slices.Sorted(maps.Keys(r.Reasons)) {
			row(name, r.Reasons[name])
		}
	}
	for _, iface := range slices.Sorted(maps.Keys(r.Interfaces)) {
		fmt.Fprintln(w)
		head(printable(iface))
		for _, name := range slices.Sorted(maps.Keys(r.Interfaces[iface])) {
			line(name, iface+"/"+name, r.Interfaces[iface][name])
		}
	}
}
