package main

import (
	"bytes"
	"cmp"
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"xdpban/internal/control"
	"xdpban/jails"
)

type reportCmd struct {
	Since span `help:"The last so long: 1d, 7d." default:"7d" placeholder:"TIME"`
	HTML  bool `name:"html" help:"Print a page to mail or to keep: one file, that loads nothing."`
	Top   int  `help:"How many offenders and networks." default:"10"`
}

// report is what happened in some time.
type report struct {
	Host      string       `json:"host"`
	Since     time.Time    `json:"since"`
	Until     time.Time    `json:"until"`
	Bans      int          `json:"bans"`
	Addresses int          `json:"addresses"`
	Unbans    int          `json:"unbans"` // by hand
	Standing  int          `json:"standing"`
	Packets   uint64       `json:"packets"` // dropped by those bans
	Bytes     uint64       `json:"bytes"`
	Times     []reportTime `json:"times"`
	Jails     []reportRow  `json:"jails"`
	// Countries and Systems are there with databases that know them.
	Countries []reportRow `json:"countries,omitempty"`
	Systems   []reportRow `json:"systems,omitempty"` // autonomous ones
	Networks  []reportRow `json:"networks"`
	Offenders []reportRow `json:"offenders"`
}

// reportTime is how many bans began in a step of time.
type reportTime struct {
	From time.Time `json:"from"`
	Bans int       `json:"bans"`
}

// reportRow sums up the bans of a jail, a network or an offender.
type reportRow struct {
	Name      string    `json:"name"`
	Bans      int       `json:"bans"`
	Addresses int       `json:"addresses"`
	Packets   uint64    `json:"packets"`
	Bytes     uint64    `json:"bytes"`
	Last      time.Time `json:"last"`
	// Share is its part of the bans of all rows, in percent.
	Share int `json:"share"`

	seen map[netip.Prefix]bool
}

// Networks are shown by these lengths: what a provider has, more or less.
const network4, network6 = 16, 32

//go:embed report.html
var reportPage string

func (c *reportCmd) Run(a *app) error {
	if c.Since <= 0 || c.Top < 1 {
		return usagef("--since and --top must be more than 0")
	}
	client := control.NewClient(a.Socket)
	defer client.Close()
	until := time.Now()
	since := until.Add(-time.Duration(c.Since))
	events, err := client.History(a.ctx, control.HistoryQuery{Since: control.Time{Time: since}})
	if err != nil {
		return err
	}
	list, err := client.List(a.ctx, control.ListQuery{})
	if err != nil {
		return err
	}
	r := newReport(events, list.Bans, since, until, c.Top, a.openPlaces().Find)
	if r.Host, err = os.Hostname(); err != nil {
		return fmt.Errorf("name this host: %w", err)
	}
	if c.HTML && !a.JSON {
		var b bytes.Buffer
		if err := reportTemplate().Execute(&b, r); err != nil {
			return err
		}
		_, err = a.stdout.Write(b.Bytes())
		return err
	}
	return a.print(r, func(w io.Writer) { printReport(w, r) })
}

// reportTemplate is the page, which has a test.
func reportTemplate() *template.Template {
	return template.Must(template.New("report").Funcs(template.FuncMap{
		"plain": printable, "clock": clock, "number": grouped, "plural": plural,
		"day": func(t time.Time) string { return t.Local().Format("2006-01-02 15:04") },
	}).Parse(reportPage))
}

// newReport sums up the bans that began in a time. What a ban that stands has
// dropped is in standing, what one that has ended had, in its event.
func newReport(events []control.Event, standing []control.Ban, since, until time.Time, top int, find func(netip.Addr) jails.Place) *report {
	type key struct {
		prefix netip.Prefix
		jail   string
	}
	stands := map[key]control.Ban{}
	for _, b := range standing {
		stands[key{b.Prefix, b.Jail}] = b
	}
	r := &report{Since: since, Until: until, Standing: len(standing)}
	step := 24 * time.Hour
	for _, s := range []time.Duration{6 * time.Hour, time.Hour, 10 * time.Minute} {
		if until.Sub(since) <= 30*s {
			step = s
		}
	}
	for at := since; at.Before(until); at = at.Add(step) {
		r.Times = append(r.Times, reportTime{From: at})
	}
	byJail, networks, offenders := map[string]*reportRow{}, map[string]*reportRow{}, map[string]*reportRow{}
	countries, systems := map[string]*reportRow{}, map[string]*reportRow{}
	addresses := map[netip.Prefix]bool{}
	for _, e := range events {
		if e.Kind == "unban" {
			r.Unbans++
		}
		if e.Kind != "ban" {
			continue
		}
		b := e.Ban
		// A ban's event is told as of now: what it dropped is there once it has ended.
		// The kernel's own note of when it began may be rounded.
		if s, ok := stands[key{b.Prefix, b.Jail}]; ok && s.Since.Sub(b.Since).Abs() < time.Second {
			b.Packets, b.Bytes = s.Packets, s.Bytes
		}
		r.Bans++
		r.Packets += b.Packets
		r.Bytes += b.Bytes
		addresses[b.Prefix] = true
		if i := int(e.Time.Sub(since) / step); i >= 0 && i < len(r.Times) {
			r.Times[i].Bans++
		}
		add := func(rows map[string]*reportRow, name string) {
			row := rows[name]
			if row == nil {
				row = &reportRow{Name: name, seen: map[netip.Prefix]bool{}}
				rows[name] = row
			}
			row.Bans++
			row.Packets += b.Packets
			row.Bytes += b.Bytes
			row.Last = e.Time
			row.seen[b.Prefix] = true
			row.Addresses = len(row.seen)
		}
		add(byJail, b.Jail)
		add(offenders, short(b.Prefix))
		add(networks, networkOf(b.Prefix).String())
		at := find(b.Prefix.Addr())
		add(countries, cmp.Or(at.Country, notKnown))
		at.Country = ""
		add(systems, cmp.Or(at.String(), notKnown))
	}
	r.Addresses = len(addresses)
	r.Jails, r.Networks, r.Offenders = rows(byJail, len(byJail)), rows(networks, top), rows(offenders, top)
	// Without a database nothing is known.
	if countries[notKnown] == nil || len(countries) > 1 {
		r.Countries = rows(countries, top)
	}
	if systems[notKnown] == nil || len(systems) > 1 {
		r.Systems = rows(systems, top)
	}
	return r
}

// notKnown is where those are whom no database has.
const notKnown = "not known"

// networkOf is the network that a prefix is in.
func networkOf(p netip.Prefix) netip.Prefix {
	bits := network6
	if p.Addr().Is4() {
		bits = network4
	}
	return netip.PrefixFrom(p.Addr(), min(bits, p.Bits())).Masked()
}

// rows are those with most bans.
func rows(all map[string]*reportRow, top int) []reportRow {
	list := []reportRow{}
	bans := 0
	for _, row := range all {
		bans += row.Bans
	}
	for _, row := range all {
		row.Share = (100*row.Bans + bans/2) / bans
		list = append(list, *row)
	}
	slices.SortFunc(list, func(x, y reportRow) int {
		return cmp.Or(cmp.Compare(y.Bans, x.Bans), cmp.Compare(y.Packets, x.Packets), cmp.Compare(x.Name, y.Name))
	})
	return list[:min(len(list), top)]
}

// Most is the tallest of the plot's bars, at least 1.
func (r *report) Most() int {
	most := 1
	for _, t := range r.Times {
		most = max(most, t.Bans)
	}
	return most
}

// bar is one of the plot in the page.
type bar struct {
	X, Y, Width, Height float64
	From                time.Time
	Bans                int
}

// Bars lay the plot out in 600 by 120.
func (r *report) Bars() []bar {
	width := 600 / float64(len(r.Times))
	var bars []bar
	for i, t := range r.Times {
		h := 115 * float64(t.Bans) / float64(r.Most())
		bars = append(bars, bar{float64(i)*width + 1, 120 - h, max(width-2, 1), h, t.From, t.Bans})
	}
	return bars
}

func printReport(w io.Writer, r *report) {
	fmt.Fprintf(w, "xdpban on %s, %s to %s\n\n", printable(r.Host), clock(r.Since), clock(r.Until))
	fmt.Fprintf(w, "%s of %s, %s by hand; %s now\n", plural(r.Bans, "ban"), plural(r.Addresses, "address"), plural(r.Unbans, "unban"), plural(r.Standing, "ban"))
	fmt.Fprintf(w, "%s dropped, %s\n\n", plural(int(r.Packets), "packet"), plural(int(r.Bytes), "byte"))
	if r.Bans == 0 {
		return
	}
	const width = 50
	for _, t := range r.Times {
		n := t.Bans * width / r.Most()
		if t.Bans > 0 {
			n = max(n, 1)
		}
		fmt.Fprintf(w, "%s  %s %s\n", t.From.Local().Format("2006-01-02 15:04"), strings.Repeat("█", n), grouped(uint64(t.Bans)))
	}
	for _, part := range []struct {
		name string
		rows []reportRow
	}{{"JAIL", r.Jails}, {"COUNTRY", r.Countries}, {"SYSTEM", r.Systems}, {"NETWORK", r.Networks}, {"OFFENDER", r.Offenders}} {
		if len(part.rows) == 0 {
			continue
		}
		fmt.Fprintln(w)
		t := newTable(w, part.name, "BANS", "ADDRESSES", "PACKETS", "BYTES", "LAST", "SHARE")
		for _, row := range part.rows {
			t.row(row.Name, grouped(uint64(row.Bans)), grouped(uint64(row.Addresses)), grouped(row.Packets), grouped(row.Bytes), clock(row.Last),
				strings.Repeat("█", max(row.Share/10, 1)))
		}
		t.flush()
	}
}
