// Package feed reads lists of addresses that others publish, and keeps each in
// force as a list of its own: from files, from servers, and as decisions of a
// CrowdSec local API. What a feed bans follows from its last good list, which is
// kept on disk: a source that is broken, gone or suddenly another list changes
// nothing.
package feed

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// Source is one feed as it is configured.
type Source struct {
	Name      string
	URL, File string // one of them
	Format    string
	Column    string // of CSV: a number from 1 on, or a name in the first line
	Separator string // of CSV; empty: a comma
	Path      string // of JSON, see ParsePath
	CA        string // a file of authorities in PEM; empty: the system's
	KeyFile   string // of CrowdSec
	Interval  time.Duration
	// BanTime is how long an entry is banned after the source last had it.
	BanTime    time.Duration
	MaxBytes   int64
	MaxEntries int
	// MaxChange is by how many percent a list may shrink or grow from one look
	// to the next without being confirmed.
	MaxChange int
}

// id says what a copy is a copy of.
func (s *Source) id() string {
	return fmt.Sprintf("%s%s %s %q %q %q", s.URL, s.File, s.Format, s.Column, s.Separator, s.Path)
}

// List is what puts a feed's entries in force: the daemon. Its methods may take
// time, and don't hold up what the logs say.
type List interface {
	// Enlist puts entries in force until their ends, or changes these; refused
	// are those that may not be banned.
	Enlist(ctx context.Context, feed string, entries iter.Seq2[netip.Prefix, time.Time]) (refused int, err error)
	// Delist ends a feed's bans of prefixes.
	Delist(ctx context.Context, feed string, prefixes iter.Seq[netip.Prefix]) error
	// Enlisted are the prefixes in force of all feeds, those that aren't
	// configured any more included.
	Enlisted(ctx context.Context) (map[string][]netip.Prefix, error)
	// Problem notes or, with a nil error, clears what an operator should see.
	Problem(ctx context.Context, key string, err error)
}

// Options are what Feeds are made of.
type Options struct {
	Version string
	// Dir has the last good lists.
	Dir string
	// Dial connects to a server.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Most is how many entries all feeds together may have: what a full
	// blocklist gives up for them would be a jail's.
	Most int
	Log  *slog.Logger
	Now  func() time.Time

	fetchLimit time.Duration // of a test
	retry      time.Duration
}

func (o *Options) fetchTime() time.Duration { return cmp.Or(o.fetchLimit, fetchTime) }

// Status is one feed at a glance.
type Status struct {
	Name    string
	Source  string // where it is from
	Format  string
	Entries int       // of the last good list
	Bad     int       // lines of it that make no sense
	Refused int       // entries that may not be banned here
	Fetched time.Time // when the source last had it; zero: never
	Next    time.Time // when it is looked at again
	Held    int       // entries of a list that waits for confirmation
	Holding bool      // there is one
	Error   string    // of the last look
	Looks   uint64    // since the start
	Failed  uint64    // of them
}

// ErrUnknown says that there is no such feed.
var ErrUnknown = errors.New("there is no such feed")

// ErrNothing says that no list waits for confirmation.
var ErrNothing = errors.New("no list waits for confirmation")

// Feeds are all feeds.
type Feeds struct {
	o       Options
	changed chan struct{}

	mu    sync.Mutex
	want  []Source
	feeds map[string]*feed
}

// New makes Feeds. Nothing happens before Run.
func New(o Options) *Feeds {
	return &Feeds{o: o, changed: make(chan struct{}, 1), feeds: map[string]*feed{}}
}

// Configure says which feeds there are from now on. It waits for nothing.
func (f *Feeds) Configure(sources []Source) {
	f.mu.Lock()
	f.want = slices.Clone(sources)
	f.mu.Unlock()
	select {
	case f.changed <- struct{}{}:
	default:
	}
}

// Run keeps the feeds in force until ctx ends. What is in force then stays so,
// to its end.
func (f *Feeds) Run(ctx context.Context, list List) {
	var running sync.WaitGroup
	defer running.Wait()
	for first := true; ; first = false {
		select {
		case <-ctx.Done():
			return
		case <-f.changed:
		}
		f.mu.Lock()
		want := map[string]Source{}
		for _, s := range f.want {
			want[s.Name] = s
		}
		var over []*feed
		for name, old := range f.feeds {
			if s, ok := want[name]; !ok || s != old.source {
				over = append(over, old)
				delete(f.feeds, name)
			} else {
				delete(want, name)
			}
		}
		f.mu.Unlock()
		for _, old := range over {
			old.stop()
			<-old.ended
			list.Problem(ctx, old.problem(), nil)
			list.Problem(ctx, old.held(), nil)
		}
		if len(over)+len(want) == 0 && !first {
			continue
		}
		stands, err := list.Enlisted(ctx)
		if err != nil {
			list.Problem(ctx, "feeds", fmt.Errorf("look for what feeds have banned before: %w", err))
		} else {
			list.Problem(ctx, "feeds", nil)
		}
		for _, name := range slices.Sorted(maps.Keys(want)) {
			ctx, stop := context.WithCancel(ctx)
			n := &feed{
				o: &f.o, all: f, list: list, source: want[name], stop: stop, ended: make(chan struct{}),
				asks: make(chan ask), left: stands[name],
			}
			n.status = Status{Name: name, Source: n.source.URL + n.source.File, Format: n.source.Format}
			f.mu.Lock()
			f.feeds[name] = n
			f.mu.Unlock()
			running.Go(func() {
				defer close(n.ended)
				n.run(ctx)
			})
		}
		for name, prefixes := range stands {
			f.mu.Lock()
			_, ok := f.feeds[name]
			f.mu.Unlock()
			if !ok {
				err := list.Delist(ctx, name, slices.Values(prefixes))
				list.Problem(ctx, "feed "+name, err)
				f.o.Log.Info(fmt.Sprintf("feed %s isn't configured any more: its %d bans end", name, len(prefixes)))
			}
		}
		if err := f.tidy(); err != nil {
			f.o.Log.Warn(err.Error())
		}
	}
}

// tidy removes the lists of feeds that aren't configured any more.
func (f *Feeds) tidy() error {
	kept, err := filepath.Glob(copyPath(f.o.Dir, "*"))
	for _, path := range kept {
		f.mu.Lock()
		_, ok := f.feeds[strings.TrimSuffix(filepath.Base(path), filepath.Ext(path))]
		f.mu.Unlock()
		if !ok {
			err = errors.Join(err, os.Remove(path))
		}
	}
	return err
}

// Status tells how they are, by name.
func (f *Feeds) Status() []Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []Status
	for _, name := range slices.Sorted(maps.Keys(f.feeds)) {
		all = append(all, f.feeds[name].status)
	}
	return all
}

// ask is what somebody wants of a feed.
type ask struct {
	confirm bool // the list that waits; else: look now
	done    chan error
}

// Confirm takes the list that waits.
func (f *Feeds) Confirm(ctx context.Context, name string) error { return f.ask(ctx, name, true) }

// Fetch looks at a source now, and waits for what comes of it.
func (f *Feeds) Fetch(ctx context.Context, name string) error { return f.ask(ctx, name, false) }

func (f *Feeds) ask(ctx context.Context, name string, confirm bool) error {
	f.mu.Lock()
	n := f.feeds[name]
	f.mu.Unlock()
	if n == nil {
		return fmt.Errorf("%w: %q", ErrUnknown, name)
	}
	a := ask{confirm, make(chan error, 1)}
	select {
	case n.asks <- a:
	case <-n.ended:
		return fmt.Errorf("%w: %q", ErrUnknown, name)
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-a.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// feed is one feed at work, in a goroutine of its own.
type feed struct {
	o      *Options
	all    *Feeds
	list   List
	source Source
	stop   context.CancelFunc
	ended  chan struct{}
	asks   chan ask
	status Status // under all.mu

	// All below is run's.
	copy    *header
	entries []Entry        // of the last good list, sorted
	left    []netip.Prefix // in force, and not known to be of the list
	kept    time.Time      // when the copy was written
	info    fs.FileInfo    // of the source's file, as last read
	waits   *fetched       // for confirmation
	failed  int            // looks in a row
	stream  *stream        // of decisions
}

func (n *feed) problem() string { return "feed " + n.source.Name }
func (n *feed) held() string    { return "feed " + n.source.Name + " held" }

func (n *feed) say(change func(s *Status)) {
	n.all.mu.Lock()
	defer n.all.mu.Unlock()
	change(&n.status)
}

func (n *feed) run(ctx context.Context) {
	h, entries, err := load(n.o.Dir, n.source.Name, n.source.id())
	if err != nil {
		n.o.Log.Warn(err.Error())
	}
	n.copy, n.entries = h, entries
	if h != nil {
		n.kept = h.Fetched
		n.say(func(s *Status) { s.Entries = len(entries) })
		if !n.stale() {
			n.fail(ctx, n.enforce(ctx))
		}
		n.say(func(s *Status) { s.Fetched = h.Fetched })
	}
	for ctx.Err() == nil {
		err := n.look(ctx)
		if ctx.Err() != nil {
			break
		}
		n.fail(ctx, err)
		if again := n.sleep(ctx, n.pause()); !again {
			break
		}
	}
	if n.stream != nil {
		n.stream.keep(n)
	}
}

// pause is how long until the next look. What failed is tried again sooner at
// first. Nobody's server wants all of its readers at once.
func (n *feed) pause() time.Duration {
	d := n.source.Interval
	if n.failed > 0 {
		d = min(d, cmp.Or(n.o.retry, 30*time.Second)<<min(n.failed-1, 20))
	}
	return d - rand.N(d/20+1)
}

// sleep waits for the next look, and takes on what is asked meanwhile.
func (n *feed) sleep(ctx context.Context, d time.Duration) bool {
	next := n.o.Now().Add(d)
	n.say(func(s *Status) { s.Next = next })
	t := time.NewTimer(d)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-t.C:
			return true
		case a := <-n.asks:
			var err error
			if a.confirm {
				err = n.confirm(ctx)
			} else {
				err = n.look(ctx)
				n.fail(ctx, err)
			}
			a.done <- err
		}
	}
}

// fail tells what came of a look.
func (n *feed) fail(ctx context.Context, err error) {
	text := ""
	if err == nil {
		n.failed = 0
	} else {
		n.failed++
		then := "it has banned nobody yet"
		switch {
		case n.copy != nil && n.stale():
			then = fmt.Sprintf("its last good list, of %s, is older than its bantime, and bans nobody any more", clock(n.copy.Fetched))
			n.withdraw(ctx)
		case n.copy != nil:
			then = fmt.Sprintf("its last good list, of %s, goes on", clock(n.copy.Fetched))
		}
		text = err.Error()
		err = fmt.Errorf("feed %s: %w; %s", n.source.Name, err, then)
	}
	n.list.Problem(ctx, n.problem(), err)
	n.say(func(s *Status) {
		s.Error = text
		if err != nil {
			s.Failed++
		}
	})
}

func clock(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05") }

// stale says that a list is too old to be heeded. Decisions have ends of their
// own.
func (n *feed) stale() bool {
	return n.source.Format != CrowdSec && n.o.Now().Sub(n.copy.Fetched) > n.source.BanTime
}

// withdraw ends all bans of a list that is too old.
func (n *feed) withdraw(ctx context.Context) {
	all := slices.Concat(n.left, prefixesOf(n.entries))
	if len(all) == 0 {
		return
	}
	if err := n.list.Delist(ctx, n.source.Name, slices.Values(all)); err != nil {
		return // it is tried again with the next look
	}
	n.o.Log.Info(fmt.Sprintf("feed %s: its list is too old: its %d bans are over", n.source.Name, len(all)))
	n.left, n.entries = nil, nil
	n.say(func(s *Status) { s.Entries, s.Refused = 0, 0 })
}

func prefixesOf(entries []Entry) []netip.Prefix {
	list := make([]netip.Prefix, len(entries))
	for i, e := range entries {
		list[i] = e.Prefix
	}
	return list
}

// look looks at the source, and puts in force what it has.
func (n *feed) look(ctx context.Context) error {
	n.say(func(s *Status) { s.Looks++ })
	if n.source.Format == CrowdSec {
		return n.follow(ctx)
	}
	got, err := n.source.fetch(ctx, n.o, n.copy, n.info)
	if err != nil {
		return err
	}
	n.info = got.info
	if n.copy != nil && (got.same || got.sum == n.copy.Of) {
		n.release(ctx)
		return n.same(ctx, got)
	}
	if err := n.bounded(len(got.entries)); err != nil {
		n.hold(ctx, &got, err)
		return nil
	}
	return n.take(ctx, &got)
}

// fewChanges are too few to matter, however short the list is.
const fewChanges = 20

// bounded says why a list is so different from the last one that somebody
// should look at it first.
func (n *feed) bounded(entries int) error {
	if n.copy == nil {
		return nil
	}
	was := n.copy.Entries
	change := max(was-entries, entries-was)
	if change <= fewChanges && entries > 0 || change*100 <= was*n.source.MaxChange {
		return nil
	}
	return fmt.Errorf("feed %s: the list went from %d to %d entries, by more than max_change = %d percent: it isn't taken, and the one before goes on; look at it, then run xdpban feed confirm %s", n.source.Name, was, entries, n.source.MaxChange, n.source.Name)
}

func (n *feed) hold(ctx context.Context, got *fetched, why error) {
	n.waits = got
	n.say(func(s *Status) { s.Holding, s.Held = true, len(got.entries) })
	n.list.Problem(ctx, n.held(), why)
}

func (n *feed) release(ctx context.Context) {
	n.waits = nil
	n.say(func(s *Status) { s.Holding, s.Held = false, 0 })
	n.list.Problem(ctx, n.held(), nil)
}

func (n *feed) confirm(ctx context.Context) error {
	if n.waits == nil {
		return fmt.Errorf("feed %s: %w", n.source.Name, ErrNothing)
	}
	got := n.waits
	n.o.Log.Info(fmt.Sprintf("feed %s: the list of %d entries is confirmed", n.source.Name, len(got.entries)))
	return n.take(ctx, got)
}

// take puts another list in force, and keeps it as the last good one.
func (n *feed) take(ctx context.Context, got *fetched) error {
	if err := n.all.room(n, len(got.entries)); err != nil {
		return err
	}
	n.release(ctx)
	was := n.entries
	n.entries = got.entries
	n.copy = &header{Source: n.source.id(), Fetched: n.o.Now(), ETag: got.etag, Modified: got.modified, Of: got.sum, Entries: len(got.entries)}
	n.say(func(s *Status) { s.Entries, s.Bad = len(got.entries), got.bad })
	n.left = append(n.left, prefixesOf(was)...)
	n.o.Log.Info(fmt.Sprintf("feed %s: another list, of %d entries; the last had %d", n.source.Name, len(n.entries), len(was)))
	// A crash while it is put in force must not lose it.
	err := errors.Join(n.save(), n.enforce(ctx))
	n.say(func(s *Status) { s.Fetched = n.copy.Fetched })
	return err
}

// save keeps the list as the last good one.
func (n *feed) save() error {
	n.kept = n.copy.Fetched
	return save(n.o.Dir, n.source.Name, *n.copy, n.entries)
}

// same notes that the source still has the last good list.
func (n *feed) same(ctx context.Context, got fetched) error {
	var failed error
	if n.entries == nil && n.copy.Entries > 0 { // it had been withdrawn
		_, n.entries, failed = load(n.o.Dir, n.source.Name, n.source.id())
		if len(n.entries) != n.copy.Entries {
			n.copy = nil // the next look gets it anew
			return cmp.Or(failed, errors.New("its last good list is gone"))
		}
	}
	n.copy.Fetched = n.o.Now()
	if !got.same {
		n.copy.ETag, n.copy.Modified = got.etag, got.modified
	}
	n.say(func(s *Status) { s.Entries, s.Fetched = n.copy.Entries, n.copy.Fetched })
	err := n.enforce(ctx)
	if n.copy.Fetched.Sub(n.kept) >= n.source.BanTime/8 { // else only the time is another
		err = errors.Join(err, n.save())
	}
	return err
}

// enforce puts the list in force, as it must be whatever was before: what isn't
// of it ends.
func (n *feed) enforce(ctx context.Context) error {
	end := n.end()
	refused, err := n.list.Enlist(ctx, n.source.Name, func(yield func(netip.Prefix, time.Time) bool) {
		for _, e := range n.entries {
			if !e.Until.IsZero() && e.Until.Before(end) {
				if !yield(e.Prefix, e.Until) {
					return
				}
			} else if !yield(e.Prefix, end) {
				return
			}
		}
	})
	if err != nil {
		return err
	}
	n.refused(refused)
	over := slices.DeleteFunc(n.left, n.has)
	n.left = over
	if len(over) == 0 {
		n.left = nil
		return nil
	}
	if err := n.list.Delist(ctx, n.source.Name, slices.Values(over)); err != nil {
		return err
	}
	n.o.Log.Info(fmt.Sprintf("feed %s: %d prefixes aren't in it any more: their bans are over", n.source.Name, len(over)))
	n.left = nil
	return nil
}

// refused tells how many entries are kept off, when that is another number.
func (n *feed) refused(entries int) {
	was := 0
	n.say(func(s *Status) { was, s.Refused = s.Refused, entries })
	if entries > 0 && entries != was {
		n.o.Log.Warn(fmt.Sprintf("feed %s: %d of its entries are never banned here: they are on the allowlist, too wide, or nobody's address out there", n.source.Name, entries))
	}
}

func (n *feed) has(p netip.Prefix) bool {
	_, ok := slices.BinarySearchFunc(n.entries, p, func(e Entry, p netip.Prefix) int { return e.Prefix.Compare(p) })
	return ok
}

// end is when entries without an end of their own end. It stays the same for
// half of their time, so that a look at a list that is as before changes
// nothing; they are withdrawn before, when they are too old.
func (n *feed) end() time.Time {
	step := max(n.source.BanTime/2, time.Second)
	return n.copy.Fetched.Add(n.source.BanTime).Truncate(step).Add(2 * step)
}

// room says whether there is room for a list, beside those of the others.
func (f *Feeds) room(n *feed, entries int) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	others := 0
	for _, other := range f.feeds {
		if other != n {
			others += other.status.Entries
		}
	}
	if entries+others > f.o.Most {
		return fmt.Errorf("%d entries, besides %d of other feeds, are more than half of max_bans", entries, others)
	}
	return nil
}
