package main

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"xdpban/internal/control"
)

type abuseCmd struct {
	Address string `arg:"" help:"Address or subnet."`
	Since   span   `help:"What happened in the last so long." default:"30d"`
	Lines   int    `short:"n" help:"The latest so many lines; 0 for all that are kept." default:"100"`
}

// abuse is what is told to who answers for an address.
type abuse struct {
	Address string         `json:"address"` // or subnet
	Host    string         `json:"host"`    // that it attacked
	At      time.Time      `json:"at"`      // of this report
	Zone    string         `json:"zone"`    // of local times
	Place   *control.Place `json:"place,omitempty"`
	// First and Last are when the bans began.
	First    time.Time    `json:"first"`
	Last     time.Time    `json:"last"`
	Bans     int          `json:"bans"`
	Failures int          `json:"failures"`
	Packets  uint64       `json:"packets"` // dropped
	Bytes    uint64       `json:"bytes"`
	Jails    []string     `json:"jails"`
	Banned   bool         `json:"banned"` // now
	Until    control.Time `json:"until"`  // null: not banned, or forever
	Lines    []abuseLine  `json:"lines"`
	Left     int          `json:"left"` // older lines that aren't shown
	// Contact are ways to find who answers for the address. Nothing was asked.
	Contact abuseContact `json:"contact"`
}

// abuseLine is a line that a program of this host wrote.
type abuseLine struct {
	At    control.Time `json:"at"`    // null: not known
	Local string       `json:"local"` // the same in this host's zone
	Jail  string       `json:"jail"`
	Text  string       `json:"text"`
}

type abuseContact struct {
	Whois string `json:"whois"`
	RDAP  string `json:"rdap"`
	DNS   string `json:"dns"`
}

func (c *abuseCmd) Run(a *app) error {
	p, err := parsePrefix(c.Address)
	if err != nil {
		return usageError{err}
	}
	if c.Since <= 0 || c.Lines < 0 {
		return usagef("--since must be more than 0, and --lines can't be negative")
	}
	client := control.NewClient(a.Socket)
	defer client.Close()
	now := time.Now()
	events, err := client.History(a.ctx, control.HistoryQuery{Prefix: p, Since: control.Time{Time: now.Add(-time.Duration(c.Since))}})
	if err != nil {
		return err
	}
	why, err := client.Why(a.ctx, p)
	if err != nil {
		return err
	}
	r := newAbuse(p, events, why, now, c.Lines)
	if r.Bans == 0 {
		return fmt.Errorf("%s wasn't banned in the last %s: there is nothing to report", short(p), c.Since)
	}
	if r.Host, err = os.Hostname(); err != nil {
		return fmt.Errorf("name this host: %w", err)
	}
	return a.print(r, func(w io.Writer) { printAbuse(w, r) })
}

// newAbuse sums up the bans of an address, or within a subnet, with the lines
// behind them.
func newAbuse(p netip.Prefix, events []control.Event, why control.Why, now time.Time, most int) abuse {
	r := abuse{Address: short(p), At: now.UTC(), Zone: zoneOf(now), Place: why.Place, Jails: []string{}, Contact: contactOf(p)}
	seen := map[abuseLine]bool{}
	add := func(b control.Ban, another bool) {
		if another {
			r.Bans++
			r.Failures += b.Failures
			r.Packets += b.Packets
			r.Bytes += b.Bytes
			if r.First.IsZero() || b.Since.Before(r.First) {
				r.First = b.Since.UTC()
			}
			if b.Since.After(r.Last) {
				r.Last = b.Since.UTC()
			}
			if !slices.Contains(r.Jails, b.Jail) {
				r.Jails = append(r.Jails, b.Jail)
			}
		}
		for i, text := range b.Evidence {
			l := abuseLine{Jail: b.Jail, Text: text}
			if i < len(b.EvidenceAt) {
				l.At.Time = b.EvidenceAt[i].UTC()
				l.Local = b.EvidenceAt[i].Local().Format(localTime)
			}
			if !seen[l] { // a ban that was made longer has the same ones again
				seen[l] = true
				r.Lines = append(r.Lines, l)
			}
		}
	}
	began := map[string]bool{}
	for _, e := range events {
		if e.Kind == "ban" {
			add(e.Ban, !began[banKey(e.Ban)])
			began[banKey(e.Ban)] = true
		}
	}
	for _, b := range why.Bans {
		if !r.Banned || !r.Until.IsZero() && (b.Until.IsZero() || b.Until.After(r.Until.Time)) {
			r.Banned, r.Until = true, b.Until
		}
		if b.Prefix != p {
			continue // what it has dropped is others', too
		}
		// What it has dropped so far isn't in the history yet.
		r.Packets, r.Bytes = r.Packets+b.Packets, r.Bytes+b.Bytes
		b.Packets, b.Bytes = 0, 0
		add(b, !began[banKey(b)])
	}
	slices.SortStableFunc(r.Lines, func(x, y abuseLine) int { return x.At.Compare(y.At.Time) })
	if r.Left = len(r.Lines) - most; most > 0 && r.Left > 0 {
		r.Lines = r.Lines[r.Left:]
	} else {
		r.Left = 0
	}
	return r
}

// banKey is the same for a ban that was made longer.
func banKey(b control.Ban) string {
	return b.Jail + " " + b.Prefix.String() + " " + b.Since.UTC().Format(time.RFC3339Nano)
}

// localTime has the difference to UTC in it: a name of a zone means nothing
// elsewhere.
const localTime = "2006-01-02 15:04:05 -07:00"

func zoneOf(t time.Time) string { return t.Local().Format("MST -07:00") }

// contactOf says how to find who answers for an address.
func contactOf(p netip.Prefix) abuseContact {
	a := p.Addr()
	var labels []string
	if a.Is4() {
		for _, b := range a.AsSlice() {
			labels = append(labels, fmt.Sprint(b))
		}
	} else {
		for _, b := range a.AsSlice() {
			labels = append(labels, fmt.Sprintf("%x", b>>4), fmt.Sprintf("%x", b&15))
		}
	}
	slices.Reverse(labels)
	return abuseContact{
		Whois: "whois " + a.String() + " | grep -i abuse",
		RDAP:  "curl -sL https://rdap.org/ip/" + a.String(),
		DNS:   "dig +short TXT " + strings.Join(labels, ".") + ".abuse-contacts.abusix.zone",
	}
}

func printAbuse(w io.Writer, r abuse) {
	both := func(t time.Time) string {
		return t.UTC().Format("2006-01-02 15:04:05 UTC") + " (" + t.Local().Format(localTime) + ")"
	}
	jails := printable(strings.Join(r.Jails, ", "))
	fmt.Fprintf(w, "Subject: Abuse from %s: %s (%s)\n\n", r.Address, plural(r.Bans, "ban"), jails)
	fmt.Fprintf(w, "%s, in your network, has attacked our host %s. Please look into it.\n\n", r.Address, printable(r.Host))
	if r.Place != nil {
		fmt.Fprintf(w, "  where     %s\n", printable(r.Place.String()))
	}
	fmt.Fprintf(w, "  what      %s; banned %s by %s\n", plural(r.Failures, "failure"), plural(r.Bans, "time"), jails)
	fmt.Fprintf(w, "  first     %s\n", both(r.First))
	if r.Last.After(r.First) {
		fmt.Fprintf(w, "  last      %s\n", both(r.Last))
	}
	fmt.Fprintf(w, "  dropped   %s, %s\n", plural(int(r.Packets), "packet"), plural(int(r.Bytes), "byte"))
	switch {
	case r.Banned && r.Until.IsZero():
		fmt.Fprintf(w, "  blocked   without an end\n")
	case r.Banned:
		fmt.Fprintf(w, "  blocked   until %s\n", both(r.Until.Time))
	default:
		fmt.Fprintf(w, "  blocked   no more\n")
	}
	if len(r.Lines) > 0 {
		fmt.Fprintf(w, "\nThe lines of our logs, each below its time in UTC and in our zone (%s). Dates within\n", printable(r.Zone))
		fmt.Fprintf(w, "a line are as the program wrote them; what can't be printed is escaped.\n")
		if r.Left > 0 {
			fmt.Fprintf(w, "%s left out.\n", plural(r.Left, "older line"))
		}
	}
	for _, l := range r.Lines {
		at := "at a time that isn't known"
		if !l.At.IsZero() {
			at = both(l.At.Time)
		}
		fmt.Fprintf(w, "\n%s, %s\n> %s\n", at, printable(l.Jail), printable(l.Text))
	}
	fmt.Fprintf(w, "\n-- \nNot to be sent: who answers for %s is said by one of these. Nothing was looked up.\n", r.Address)
	fmt.Fprintf(w, "  %s\n  %s\n  %s\n", r.Contact.Whois, r.Contact.RDAP, r.Contact.DNS)
	fmt.Fprintf(w, "Lines may hold names of your users: read them first.\n")
}
