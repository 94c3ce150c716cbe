package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"xdpban/internal/source"
	"xdpban/jails"
	"xdpban/matcher"
)

type replayCmd struct {
	Log      []string `arg:"" help:"Log files (.gz, .xz, .zst and .bz2 too), or - for standard input. Several are read as they were written: side by side, by the lines' times."`
	Jail     []string `short:"j" help:"Only this jail, enabled or not. May be repeated. Otherwise all enabled ones that read such files."`
	Evidence bool     `short:"e" help:"Print the lines behind each ban, and the pattern."`
}

// wouldBan is one ban, as JSON.
type wouldBan struct {
	Prefix   string     `json:"prefix"`
	Jail     string     `json:"jail"`
	Since    time.Time  `json:"since"`
	Until    *time.Time `json:"until"` // null: forever
	Failures int        `json:"failures"`
	Strikes  int        `json:"strikes"`
	Pattern  string     `json:"pattern,omitempty"`
	Evidence []string   `json:"evidence,omitempty"`

	prefix netip.Prefix
}

type replayResult struct {
	Bans     []*wouldBan `json:"bans"`
	Lines    uint64      `json:"lines"`
	Failures uint64      `json:"failures"`
	Skipped  uint64      `json:"skipped"` // lines on which a pattern used up its steps
}

func (c *replayCmd) Run(a *app) error {
	conf, err := a.load()
	if err != nil {
		return err
	}
	picked, err := choose(conf, c.Jail)
	if err != nil {
		return err
	}
	for i := range conf.Jails {
		// Named jails are on and the others off, but for those that watch
		// the bans of others.
		if j := &conf.Jails[i]; len(c.Jail) > 0 && !j.WatchesBans {
			j.Enabled = false
		}
	}
	for _, j := range picked {
		j.Enabled, j.Observe, j.Auto = true, false, false
		if len(j.IgnoreCommand) > 0 {
			a.warn("jail %s: its ignorecommand is not asked: a replay runs nothing", j.Name)
		}
	}
	// The brake is for a machine in trouble; here one wants to know.
	conf.Settings.MaxBansPerMin = 0

	ctx, cancel := context.WithCancel(a.ctx)
	defer cancel()
	r := &replay{app: a, spare: make(chan *matcher.Batch, 8)}
	for _, path := range c.Log {
		if err := r.read(ctx, path, picked, len(c.Jail) > 0); err != nil {
			return err
		}
	}
	stop := a.progress(r.bytes.reading(&r.lines))
	res, err := r.judge(ctx, conf, c.Evidence)
	stop()
	if err != nil {
		return err
	}
	return a.print(res, func(w io.Writer) {
		t := newTable(w, "SINCE", "PREFIX", "JAIL", "FOR", "FAILURES", "STRIKES")
		offenders := map[string]bool{}
		for _, b := range res.Bans {
			offenders[b.Prefix] = true
			var until time.Time
			if b.Until != nil {
				until = *b.Until
			}
			t.row(clock(b.Since), short(b.prefix), b.Jail, left(until, b.Since), fmt.Sprint(b.Failures), fmt.Sprint(b.Strikes))
			if c.Evidence {
				t.flush()
				fmt.Fprintf(w, "  by %s\n", printable(b.Pattern))
				for _, l := range b.Evidence {
					fmt.Fprintf(w, "  > %s\n", printable(l))
				}
			}
		}
		t.flush()
		fmt.Fprintf(w, "\n%s, %s: %s of %s\n", plural(int(res.Lines), "line"), plural(int(res.Failures), "failure"),
			plural(len(res.Bans), "ban"), plural(len(offenders), "address"))
		if res.Skipped > 0 {
			fmt.Fprintf(w, "%s skipped: a pattern used up its steps on them\n", plural(int(res.Skipped), "line"))
		}
	})
}

// replay is one run over logs.
type replay struct {
	app     *app
	streams []*replayed
	lines   atomic.Uint64
	bytes   amount // of the files as they are, compressed or not
	skipped atomic.Uint64
	spare   chan *matcher.Batch
}

// replayed is one log while it is read: its failures, in the order of its
// lines.
type replayed struct {
	jails   []string // Failure.Filter indexes them
	batches chan *matcher.Batch
	err     error // once batches is closed
	current *matcher.Batch
	next    int // of current
}

// read starts reading a log by the jails that fit it.
func (r *replay) read(ctx context.Context, path string, picked []*jails.Jail, named bool) error {
	var names []string
	var filters []*matcher.Compiled
	for _, j := range picked {
		if named || path == "-" || len(j.Programs) > 0 || readsSuch(j, path) {
			names, filters = append(names, j.Name), append(filters, j.Filter)
		}
	}
	if len(filters) == 0 {
		return usagef("no enabled jail reads files such as %s; name one with --jail", path)
	}
	var arrival time.Time // of lines whose date is not whole
	if path != "-" {
		st, err := os.Stat(path)
		if err != nil {
			return err
		}
		arrival = st.ModTime()
		r.bytes.total.Add(st.Size())
	}
	set := matcher.NewSet(matcher.SetOptions{}, filters...)
	s := &replayed{jails: names, batches: make(chan *matcher.Batch, 4)}
	r.streams = append(r.streams, s)
	emit := func(b source.Block) error {
		at := arrival
		if at.IsZero() {
			at = b.Arrival
		}
		var batch *matcher.Batch
		select {
		case batch = <-r.spare:
		default:
			batch = &matcher.Batch{}
		}
		set.Scan(b.Lines, at, batch.Add)
		r.lines.Add(uint64(bytes.Count(b.Lines, []byte("\n"))))
		if len(batch.Failures()) == 0 {
			r.giveBack(batch)
			return nil
		}
		select {
		case s.batches <- batch:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	go func() {
		defer close(s.batches)
		if path == "-" {
			s.err = readLog(r.app, "standard input", r.app.stdin, emit)
		} else {
			s.err = readLogFile(r.app, path, &r.bytes, emit)
		}
		r.skipped.Add(set.Stats().Skipped)
	}()
	return nil
}

// giveBack has a batch serve again.
func (r *replay) giveBack(b *matcher.Batch) {
	b.Reset()
	select {
	case r.spare <- b:
	default:
	}
}

// readsSuch says whether a jail that reads whole lines would read a file of
// that name, rotated or not.
func readsSuch(j *jails.Jail, path string) bool {
	for _, glob := range j.Files {
		if ok, _ := filepath.Match(glob, path); ok {
			return true
		}
		if ok, _ := filepath.Match(filepath.Base(glob)+"*", filepath.Base(path)); ok {
			return true
		}
	}
	return false
}

// head is the next failure of a log, if there is one.
func (r *replay) head(ctx context.Context, s *replayed) (*matcher.Failure, error) {
	for s.current == nil || s.next == len(s.current.Failures()) {
		if s.current != nil {
			r.giveBack(s.current)
			s.current, s.next = nil, 0
		}
		select {
		case batch, ok := <-s.batches:
			if !ok {
				return nil, s.err
			}
			s.current = batch
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return &s.current.Failures()[s.next], nil
}

// judge takes the failures of all logs in the order of their times.
func (r *replay) judge(ctx context.Context, conf *jails.Config, evidence bool) (replayResult, error) {
	res := replayResult{Bans: []*wouldBan{}}
	judge := jails.NewJudge(conf)
	judge.SetPlaces(r.app.openPlaces().Find)
	var now time.Time
	for {
		var first *replayed
		var at time.Time
		for _, s := range r.streams {
			h, err := r.head(ctx, s)
			if err != nil {
				return res, err
			}
			if h != nil && (first == nil || h.Time.Before(at)) {
				first, at = s, h.Time
			}
		}
		if first == nil {
			break
		}
		f := &first.current.Failures()[first.next]
		first.next++
		res.Failures++
		if at.After(now) {
			now = at
		}
		if next := judge.Next(); !next.IsZero() && !next.After(now) {
			judge.Expire(now, math.MaxInt)
		}
		for _, b := range judge.Failure(first.jails[f.Filter], f, now) {
			w := &wouldBan{
				Prefix: b.Prefix.String(), Jail: b.Jail, Since: b.Since.UTC(),
				Failures: b.Failures, Strikes: b.Strikes, prefix: b.Prefix,
			}
			if evidence {
				w.Pattern, w.Evidence = b.Pattern, b.Evidence
			}
			if !b.Until.IsZero() {
				until := b.Until.UTC()
				w.Until = &until
			}
			res.Bans = append(res.Bans, w)
			judge.Discard()
		}
	}
	res.Lines, res.Skipped = r.lines.Load(), r.skipped.Load()
	return res, nil
}
