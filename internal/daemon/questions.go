package daemon

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"xdpban/jails"
	"xdpban/matcher"
)

const (
	askTime    = 20 * time.Second // of one question
	askAtATime = 4                // programs that run for one jail
	askQueue   = 1000             // questions open at a time
	askWaiting = 100              // failures that wait for one answer; more of one source add nothing
)

// questions are those about sources that a jail's ignorecommand may spare.
// The program runs beside the loop and in each jail's own turn: one that hangs
// holds up what waits for its answer, and nothing else. What waits is in the
// ledger, since the position in the log has moved on.
type questions struct {
	ctx  context.Context
	wait sync.WaitGroup

	// The loop's.
	open    map[string]*question
	answers map[string]*answers // by jail
}

type question struct {
	jail    string
	id      string // what is asked
	args    []string
	waiting []asked
}

// asked is a failure that waits, and its key in the ledger.
type asked struct {
	key     string
	failure *matcher.Failure
}

// answers are a jail's, kept as long as its ignorecache says.
type answers struct {
	slots chan struct{}
	known map[string]answer
	order []string // the oldest first
}

type answer struct {
	spare bool
	until time.Time
}

func newQuestions() questions {
	return questions{open: map[string]*question{}, answers: map[string]*answers{}}
}

func (q *questions) of(jail string) *answers {
	a := q.answers[jail]
	if a == nil {
		a = &answers{slots: make(chan struct{}, askAtATime), known: map[string]answer{}}
		q.answers[jail] = a
	}
	return a
}

func (a *answers) keep(id string, spare bool, c jails.IgnoreCache, now time.Time) {
	if c.Time <= 0 {
		return
	}
	if _, ok := a.known[id]; !ok {
		for len(a.order) >= c.Max {
			delete(a.known, a.order[0])
			a.order = a.order[1:]
		}
		a.order = append(a.order, id)
	}
	a.known[id] = answer{spare, now.Add(c.Time)}
}

// ask takes a failure that may ban, of a jail with an ignorecommand, and says
// whether that is all there is to do about it now: its source is spared, or
// the question is on its way.
func (d *Daemon) ask(jail string, f *matcher.Failure) bool {
	j, ok := d.config.Jail(jail)
	if !ok || len(j.IgnoreCommand) == 0 || !d.judge.MayBan(jail, f) {
		return false
	}
	args := j.IgnoreArgs(f)
	id := strings.Join(args, "\x00")
	if a, ok := d.questions.of(jail).known[id]; ok && d.o.Now().Before(a.until) {
		return a.spare
	}
	open := jail + "\x00" + id
	q := d.questions.open[open]
	switch {
	case q != nil && len(q.waiting) >= askWaiting:
		return true
	case q == nil && len(d.questions.open) >= askQueue:
		d.problem("ask", fmt.Errorf("more than %d questions wait for an ignorecommand: failures are dropped in jail %s; its program is slow, see if ignorecache helps", askQueue, jail))
		return true
	}
	f = f.Clone()
	w := asked{d.keep(kindAsked, jail, f), f}
	if q != nil {
		q.waiting = append(q.waiting, w)
		return true
	}
	d.problem("ask", nil)
	q = &question{jail, open, args, []asked{w}}
	d.questions.open[open] = q
	d.put(q, d.questions.of(jail).slots)
	return true
}

// put has a question answered, when it is its turn.
func (d *Daemon) put(q *question, slots chan struct{}) {
	ctx := d.questions.ctx
	d.questions.wait.Go(func() {
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
		case <-ctx.Done():
			return
		}
		within, cancel := context.WithTimeout(ctx, askTime)
		defer cancel()
		spare, err := d.o.Ask(within, q.args)
		if errors.Is(within.Err(), context.DeadlineExceeded) {
			err = fmt.Errorf("it gave no answer within %s", askTime)
		}
		if ctx.Err() == nil { // else it is asked again at the next start
			_ = d.do(ctx, func() { d.answered(q, spare && err == nil, err) })
		}
	})
}

// answered judges what waited, or drops it. Without an answer nobody is
// spared, as in fail2ban.
func (d *Daemon) answered(q *question, spare bool, err error) {
	delete(d.questions.open, q.id)
	if err != nil {
		err = fmt.Errorf("ask ignorecommand of jail %s (%s): %w: nobody is spared without its answer", q.jail, strings.Join(q.args, " "), err)
	}
	d.problem("ignorecommand "+q.jail, err)
	now := d.o.Now()
	if j, ok := d.config.Jail(q.jail); ok {
		d.questions.of(q.jail).keep(strings.Join(q.args, "\x00"), spare, j.IgnoreCache, now)
	}
	var bans []jails.Ban
	for _, w := range q.waiting {
		d.drop(kindAsked, w.key)
		if !spare {
			bans = append(bans, d.failure(q.jail, w.failure, now)...)
		}
	}
	if spare {
		addr := short(q.waiting[0].failure.Source)
		d.log.Info("spared "+addr+", as ignorecommand says", "jail", q.jail, "addr", addr)
	}
	d.decided(bans)
}

// beginAsking lets questions be put until ctx ends, and puts those again that
// had no answer when the daemon ended.
func (d *Daemon) beginAsking(ctx context.Context) error {
	d.questions.ctx = ctx
	again, err := d.waited(kindAsked)
	for _, r := range again {
		if d.ask(r.Jail, r.Failure) {
			continue
		}
		d.decided(d.failure(r.Jail, r.Failure, d.o.Now()))
	}
	return err
}

// endAsking waits until no program runs any more.
func (d *Daemon) endAsking(stop context.CancelFunc) {
	stop()
	d.questions.wait.Wait()
}
