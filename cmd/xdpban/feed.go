package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"xdpban/internal/control"
	"xdpban/internal/feed"
	"xdpban/jails"
)

// feeds are the daemon's.
type feeds struct{ *feed.Feeds }

func (f feeds) Configure(list []jails.Feed) {
	var sources []feed.Source
	for _, s := range list {
		sources = append(sources, feed.Source(s))
	}
	f.Feeds.Configure(sources)
}

func (f feeds) Status() []control.Feed {
	var list []control.Feed
	for _, s := range f.Feeds.Status() {
		list = append(list, control.Feed{
			Name: s.Name, Source: s.Source, Format: s.Format, Entries: s.Entries, Bad: s.Bad, Refused: s.Refused,
			Fetched: control.Time{Time: s.Fetched}, Next: control.Time{Time: s.Next}, Holding: s.Holding, Held: s.Held,
			Error: s.Error, Looks: s.Looks, Failed: s.Failed,
		})
	}
	return list
}

func (f feeds) Confirm(ctx context.Context, name string) error {
	return feedError(f.Feeds.Confirm(ctx, name))
}

func (f feeds) Fetch(ctx context.Context, name string) error {
	return feedError(f.Feeds.Fetch(ctx, name))
}

func feedError(err error) error {
	if errors.Is(err, feed.ErrUnknown) || errors.Is(err, feed.ErrNothing) {
		return fmt.Errorf("%w: %w", control.ErrNotFound, err)
	}
	return err
}

type feedCmd struct {
	List    feedListCmd    `cmd:"" help:"Show the feeds, what they ban and what is wrong with them."`
	Confirm feedConfirmCmd `cmd:"" help:"Take the list of a feed that is held because it changed so much."`
	Fetch   feedFetchCmd   `cmd:"" help:"Look at a feed's source now."`
}

type feedListCmd struct{}

func (c *feedListCmd) Run(a *app) error {
	client := control.NewClient(a.Socket)
	defer client.Close()
	list, err := client.Feeds(a.ctx)
	if err != nil {
		return err
	}
	if len(list) == 0 && !a.JSON {
		return errors.New("there are no feeds: xdpban.toml has no [[feed]]")
	}
	return a.print(list, func(w io.Writer) { printFeeds(w, list, time.Now()) })
}

func printFeeds(w io.Writer, list []control.Feed, now time.Time) {
	t := newTable(w, "FEED", "STATE", "ENTRIES", "BANS", "REFUSED", "PACKETS", "FETCHED", "NEXT", "FROM")
	for _, f := range list {
		t.row(f.Name, feedState(f), number(f.Entries), number(f.Bans), number(f.Refused), grouped(f.Dropped.Packets),
			ago(f.Fetched.Time, now), ahead(f.Next.Time, now), f.Source)
	}
	t.flush()
	for _, f := range list {
		if f.Holding {
			fmt.Fprintf(w, "%s: a list of %s is held, since the last had %s: xdpban feed confirm %s takes it\n", f.Name, entriesOf(f.Held), number(f.Entries), f.Name)
		}
		if f.Bad > 0 {
			fmt.Fprintf(w, "%s: not understood in its list: %s\n", f.Name, entriesOf(f.Bad))
		}
		if f.Error != "" {
			fmt.Fprintf(w, "%s: problem: %s\n", f.Name, printable(f.Error))
		}
	}
}

func feedState(f control.Feed) string {
	switch {
	case f.Error != "":
		return "failing"
	case f.Holding:
		return "held"
	case f.Fetched.IsZero():
		return "begins"
	}
	return "good"
}

func number(n int) string { return grouped(uint64(n)) }

func entriesOf(n int) string {
	if n == 1 {
		return "1 entry"
	}
	return number(n) + " entries"
}

func ago(t, now time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return span(max(now.Sub(t), 0).Round(time.Second)).String() + " ago"
}

func ahead(t, now time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return "in " + span(max(t.Sub(now), 0).Round(time.Second)).String()
}

type feedConfirmCmd struct {
	Feed string `arg:"" help:"The feed, as feed list names it."`
}

func (c *feedConfirmCmd) Run(a *app) error {
	client := control.NewClient(a.Socket)
	defer client.Close()
	if err := client.ConfirmFeed(a.ctx, control.FeedRequest{Name: c.Feed}); err != nil {
		return err
	}
	return a.printFeed(client, c.Feed)
}

type feedFetchCmd struct {
	Feed string `arg:"" help:"The feed, as feed list names it."`
}

func (c *feedFetchCmd) Run(a *app) error {
	client := control.NewClient(a.Socket)
	defer client.Close()
	if err := client.FetchFeed(a.ctx, control.FeedRequest{Name: c.Feed}); err != nil {
		return err
	}
	return a.printFeed(client, c.Feed)
}

// printFeed says how a feed is after something was done to it.
func (a *app) printFeed(client *control.Client, name string) error {
	s, err := client.Status(a.ctx)
	if err != nil {
		return err
	}
	for _, f := range s.Feeds {
		if f.Name == name {
			return a.print(f, func(w io.Writer) {
				fmt.Fprintf(w, "%s: %s, %s in force\n", name, entriesOf(f.Entries), plural(f.Bans, "ban"))
				if f.Holding {
					fmt.Fprintf(w, "%s: a list of %s is held: xdpban feed confirm %s takes it\n", name, entriesOf(f.Held), name)
				}
			})
		}
	}
	return fmt.Errorf("%w: there is no feed %q any more", control.ErrNotFound, name)
}
