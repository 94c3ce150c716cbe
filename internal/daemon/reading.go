package daemon

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"xdpban/internal/control"
	"xdpban/internal/source"
	"xdpban/jails"
	"xdpban/matcher"
)

// batch is what one block of lines came to.
type batch struct {
	stream   *stream
	failures *matcher.Batch // take gives it back
	key      string
	position source.Position
	stats    matcher.Stats
	took     time.Duration // to match
	last     time.Time     // the date of the last line; zero: no lines
}

// stream is one file or one selection of the journal with the jails that read
// it. Its set belongs to the source's goroutine, the rest to the loop.
type stream struct {
	name  string
	shown bool     // in the status
	jails []string // Failure.Filter indexes them
	set   *matcher.Set

	stats    matcher.Stats
	failures uint64
	lag      time.Duration
	backlog  backlog
}

// matching counts blocks by how long matching them took.
type matching struct {
	blocks uint64
	took   time.Duration
	within [len(matchingBounds)]uint64
}

var matchingBounds = [...]time.Duration{
	10 * time.Microsecond, 30 * time.Microsecond, 100 * time.Microsecond, 300 * time.Microsecond,
	time.Millisecond, 3 * time.Millisecond, 10 * time.Millisecond, 30 * time.Millisecond,
	100 * time.Millisecond, 300 * time.Millisecond, time.Second,
}

func (m *matching) add(took time.Duration) {
	m.blocks++
	m.took += took
	for i, most := range matchingBounds {
		if took <= most {
			m.within[i]++
		}
	}
}

func (m *matching) wire() control.Matching {
	w := control.Matching{Blocks: m.blocks, Took: control.Duration(m.took)}
	for i, most := range matchingBounds {
		w.Within = append(w.Within, control.Within{Most: control.Duration(most), Blocks: m.within[i]})
	}
	return w
}

// reading is the sources that run.
type reading struct {
	cancel context.CancelFunc
	wait   sync.WaitGroup
	plan   Plan
}

// route says which jails read which streams. It doesn't change.
type route struct {
	plan    Plan
	files   []routed // by pattern
	journal map[string][]*jails.Jail
	active  []string // the jails that read something
}

type routed struct {
	pattern string
	jail    *jails.Jail
}

// makeRoute plans what the enabled jails read. A jail that names both reads
// the journal where there is one, else its files: with rsyslog the same
// message is in both, and must not count twice.
func makeRoute(config *jails.Config, haveJournal bool, present func(*jails.Jail) bool) *route {
	r := &route{journal: map[string][]*jails.Jail{}}
	for i := range config.Jails {
		j := &config.Jails[i]
		if !j.Enabled || j.WatchesBans || j.Auto && !present(j) {
			continue
		}
		r.active = append(r.active, j.Name)
		if len(j.Journal) > 0 && haveJournal {
			matches := slices.Clone(j.Journal)
			// Jails that list the same matches share a stream; but between
			// groups joined by "+" the order has a meaning.
			if !slices.Contains(matches, "+") {
				slices.Sort(matches)
			}
			name := "journal " + strings.Join(matches, " ")
			if r.journal[name] == nil {
				r.plan.Journal = append(r.plan.Journal, source.Selection{Name: name, Matches: matches})
			}
			r.journal[name] = append(r.journal[name], j)
			continue
		}
		for _, pattern := range j.Files {
			pattern = filepath.Clean(pattern)
			if !slices.Contains(r.plan.Files, pattern) {
				r.plan.Files = append(r.plan.Files, pattern)
			}
			r.files = append(r.files, routed{pattern, j})
		}
	}
	return r
}

// shown says whether a stream is one that has lines: a glob and the journal as
// a whole only have positions.
func (r *route) shown(stream string) bool {
	if _, ok := r.journal[stream]; ok {
		return true
	}
	glob := slices.Contains(r.plan.Files, stream) && strings.ContainsAny(stream, `*?[\`)
	return stream != source.JournalKey && !glob
}

// jails lists those that read a stream, each once.
func (r *route) jails(stream string) []*jails.Jail {
	if list, ok := r.journal[stream]; ok {
		return list
	}
	var list []*jails.Jail
	for _, f := range r.files {
		if ok, _ := filepath.Match(f.pattern, stream); (ok || f.pattern == stream) && !slices.Contains(list, f.jail) {
			list = append(list, f.jail)
		}
	}
	return list
}

func (r *route) open(name string) *stream {
	s := &stream{name: name, shown: r.shown(name)}
	var filters []*matcher.Compiled
	for _, j := range r.jails(name) {
		s.jails = append(s.jails, j.Name)
		filters = append(filters, j.Filter)
	}
	_, journal := r.journal[name]
	s.set = matcher.NewSet(matcher.SetOptions{Journal: journal}, filters...)
	return s
}

// startReading starts the sources of the enabled jails where the checkpoint
// left them.
func (d *Daemon) startReading() error {
	r := makeRoute(d.config, d.o.HaveJournal(), d.o.Present)
	d.streams = map[string]*stream{}
	sources, err := d.o.Open(r.plan)
	if err != nil {
		return fmt.Errorf("open the logs: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	d.reading = &reading{cancel: cancel, plan: r.plan}
	d.active = r.active
	for _, src := range sources {
		resume := d.checkpoint.positions()
		d.reading.wait.Go(func() {
			err := d.read(ctx, src, r, resume)
			if err != nil && ctx.Err() == nil {
				d.fail(err)
			}
		})
	}
	return nil
}

// waits says that a jail would run if what it reads were there.
func (d *Daemon) waits(j *jails.Jail) bool {
	return j.Enabled && j.Auto && !j.WatchesBans && !slices.Contains(d.active, j.Name)
}

// settleWithin bounds the wait for a source that can't say where it begins;
// it tells what is wrong itself, and the others go on.
const settleWithin = 5 * time.Second

// settle waits until sources without a stored position have said where they
// begin, and saves that: from then on no line is lost, whatever happens.
func (d *Daemon) settle(ctx context.Context) error {
	open := map[string]bool{}
	if len(d.reading.plan.Journal) > 0 {
		open[source.JournalKey] = true
	}
	for _, pattern := range d.reading.plan.Files {
		open[pattern] = true
	}
	for key := range d.checkpoint.position {
		delete(open, key)
	}
	if len(open) == 0 {
		return nil
	}
	late := time.NewTimer(settleWithin)
	defer late.Stop()
	for len(open) > 0 {
		select {
		case b := <-d.batches:
			d.take(b)
			delete(open, b.key)
		case err := <-d.ended:
			return err
		case <-late.C:
			clear(open)
		case <-ctx.Done():
			return nil
		}
	}
	if d.commit(); d.checkpoint.writing != nil {
		d.committed(<-d.commits)
	}
	return nil
}

// follow starts reading anew if something was installed or removed that
// jails with enabled = "auto" wait for, or a journal has come or gone.
func (d *Daemon) follow() {
	if d.reading == nil {
		return // it couldn't be started, and the loop is about to end
	}
	r := makeRoute(d.config, d.o.HaveJournal(), d.o.Present)
	if slices.Equal(r.active, d.active) && reflect.DeepEqual(r.plan, d.reading.plan) {
		return
	}
	d.log.Info("what there is to read has changed", "jails", strings.Join(r.active, " "))
	d.stopReading()
	if err := d.startReading(); err != nil {
		d.fail(err)
	}
}

// fail ends the loop; one reason is enough.
func (d *Daemon) fail(err error) {
	select {
	case d.ended <- err:
	default:
	}
}

// read runs one source. Blocks are matched here, beside the loop; streams are
// opened as they appear.
func (d *Daemon) read(ctx context.Context, src source.Source, r *route, resume map[string]source.Position) error {
	streams := map[string]*stream{}
	return src.Run(ctx, resume, func(b source.Block) error {
		s := streams[b.Stream]
		if s == nil {
			s = r.open(b.Stream)
			streams[b.Stream] = s
		}
		out := batch{stream: s, failures: d.spare.Get().(*matcher.Batch), key: b.Key, position: b.Position}
		began := time.Now()
		s.set.Scan(b.Lines, b.Arrival, out.failures.Add)
		out.took = time.Since(began)
		out.stats = s.set.Stats()
		if n := len(b.Lines); n > 0 {
			out.last = b.Arrival
			if at, ok := s.set.Dated(b.Lines[bytes.LastIndexByte(b.Lines[:n-1], '\n')+1:], b.Arrival); ok {
				out.last = at
			}
		}
		select {
		case d.batches <- out:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
}

// stopReading ends the sources and takes what they had still to hand over.
func (d *Daemon) stopReading() {
	if d.reading == nil {
		return
	}
	d.reading.cancel()
	stopped := make(chan struct{})
	go func() {
		d.reading.wait.Wait()
		close(stopped)
	}()
	for {
		select {
		case b := <-d.batches:
			d.take(b)
		case <-stopped:
			d.reading = nil
			for {
				select {
				case b := <-d.batches:
					d.take(b)
				default:
					return
				}
			}
		}
	}
}
