// Package hook tells others of bans: programs that an operator names, and
// webhooks. It is told in the daemon's loop and waits for nothing there: what
// is to be done waits in bounded queues and is done beside it.
package hook

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"maps"
	"net"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"xdpban/internal/control"
	"xdpban/jails"
)

const (
	programs   = 4    // that run at a time for one pair of on_ban and on_unban
	maxWaiting = 1000 // events that wait for one pair, or one webhook
)

// times bound how long things take.
type times struct {
	program time.Duration // one run
	attempt time.Duration // to tell a webhook
	first   time.Duration // between attempts: twice as long each time
	longest time.Duration
	giveUp  time.Duration // after an event
	stop    time.Duration // for what waits when xdpban stops
}

func usual() times {
	return times{program: time.Minute, attempt: 10 * time.Second, first: time.Second, longest: 5 * time.Minute, giveUp: time.Hour, stop: 3 * time.Second}
}

// Options are what Hooks are made of.
type Options struct {
	Host string // this host's name
	// Socket is where a process without privileges runs programs (see Serve);
	// empty: Command makes a command that gives them up and becomes one.
	Socket  string
	Command func(ctx context.Context, args []string) *exec.Cmd
	// Dial makes connections for webhooks.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Problem is told what an operator should look at, and nil once it is over.
	// It may wait.
	Problem func(ctx context.Context, key string, err error)
	Log     *slog.Logger
	Now     func() time.Time
}

var errStopped = errors.New("xdpban stops")

// Hooks are all who are told of bans.
type Hooks struct {
	o       Options
	times   times
	ctx     context.Context // ends what is being done
	cancel  context.CancelCauseFunc
	closing chan struct{} // closed: nothing is tried again
	busy    sync.WaitGroup
	seed    maphash.Seed
	telling sync.Mutex // what is wrong, so that what is told last is what holds

	mu       sync.Mutex
	config   *jails.Config
	webhooks map[string]*webhook
	changed  chan struct{} // closed when there is another configuration
	queues   map[string]*queue
	told     map[toldKey]*told
}

// toldKey is who is told: the kind is "on_ban", "on_unban" or "webhook".
type toldKey struct{ kind, name string }

// told is what became of telling one.
type told struct {
	control.Hook
	configured bool
	overflow   bool   // events were dropped, and some still wait
	problem    string // as last told
}

// queue has what is to be done for one pair of programs, or one webhook. Events
// of one prefix are in one lane, in their order.
type queue struct {
	lanes   []lane
	waiting int
}

type lane struct {
	jobs []job
	busy bool
}

// job is one event for one of those who are told.
type job struct {
	who    *told
	notice jails.Notice
}

// New makes Hooks that tell nobody until they are configured.
func New(o Options) *Hooks {
	h := &Hooks{
		o: o, times: usual(), closing: make(chan struct{}), seed: maphash.MakeSeed(), config: &jails.Config{},
		queues: map[string]*queue{}, told: map[toldKey]*told{}, changed: make(chan struct{}),
	}
	h.ctx, h.cancel = context.WithCancelCause(context.Background())
	return h
}

// Configure takes a configuration. What waits is done as it says: a webhook whose
// address was wrong is told at the new one, and who isn't in it any more of nothing.
func (h *Hooks) Configure(c *jails.Config) {
	h.mu.Lock()
	defer h.mu.Unlock()
	close(h.changed)
	h.changed = make(chan struct{})
	h.config, h.webhooks = c, map[string]*webhook{}
	for _, t := range h.told {
		t.configured = false
	}
	// Those who are configured are in the status, with zeros.
	for _, w := range c.Settings.Webhooks {
		h.webhooks[w.Name] = newWebhook(w, h.o.Dial)
		h.of("webhook", w.Name).configured = true
	}
	names := []string{""}
	for i := range c.Jails {
		if c.Jails[i].Enabled {
			names = append(names, c.Jails[i].Name)
		}
	}
	for _, name := range names {
		onBan, onUnban := c.HooksOf(name)
		if len(onBan) > 0 {
			h.of("on_ban", onBan[0]).configured = true
		}
		if len(onUnban) > 0 {
			h.of("on_unban", onUnban[0]).configured = true
		}
	}
	for _, t := range h.told {
		if h.forget(t) {
			h.busy.Go(func() { h.tell(t) })
		}
	}
}

// forget leaves who isn't configured any more out of the status, once nothing
// is being told, and says whether a problem is over by that.
func (h *Hooks) forget(t *told) (news bool) {
	if t.configured || t.Waiting+t.Running > 0 {
		return false
	}
	delete(h.told, toldKey{t.Kind, t.Name})
	news = t.problem != ""
	t.problem = ""
	return news
}

func (h *Hooks) of(kind, name string) *told {
	t := h.told[toldKey{kind, name}]
	if t == nil {
		t = &told{Hook: control.Hook{Kind: kind, Name: name}}
		h.told[toldKey{kind, name}] = t
	}
	return t
}

// Tell tells whoever is to be told of it. It waits for nothing.
func (h *Hooks) Tell(n jails.Notice) {
	n.Host, n.Time = h.o.Host, h.o.Now().UTC()
	h.mu.Lock()
	defer h.mu.Unlock()
	if kind, args := h.program(n); len(args) > 0 {
		onBan, onUnban := h.config.HooksOf(n.Jail)
		h.put("programs\x00"+first(onBan)+"\x00"+first(onUnban), programs, job{h.of(kind, args[0]), n})
	}
	for name, w := range h.webhooks {
		if w.Wants(n) {
			h.put("webhook\x00"+name, 1, job{h.of("webhook", name), n})
		}
	}
}

// program is what is to be run for a notice; without arguments nothing is.
func (h *Hooks) program(n jails.Notice) (kind string, args []string) {
	onBan, onUnban := h.config.HooksOf(n.Jail)
	if n.Event == "unban" {
		return "on_unban", onUnban
	}
	return "on_ban", onBan
}

// due takes a job out of those that wait, and says how it is done now.
func (h *Hooks) due(q *queue, j *job) (do func(ctx context.Context) error) {
	was := j.who
	q.waiting--
	was.Waiting--
	if j.who.Kind == "webhook" {
		if h.webhooks[j.who.Name] != nil {
			do = func(ctx context.Context) error { return h.post(ctx, j.who, j.notice) }
		}
	} else if kind, args := h.program(j.notice); len(args) > 0 {
		j.who = h.of(kind, args[0])
		do = func(ctx context.Context) error { return h.run(ctx, args, j.notice) }
	}
	if do == nil {
		do = func(context.Context) error { return errGone }
	}
	j.who.Running++
	if was != j.who && h.forget(was) {
		h.busy.Go(func() { h.tell(was) })
	}
	return do
}

var errGone = errors.New("it isn't configured any more")

func first(args []string) string {
	if len(args) == 0 {
		return ""
	}
	return args[0]
}

// put has a job done in its turn, or drops it if too many wait.
func (h *Hooks) put(name string, lanes int, j job) {
	q := h.queues[name]
	if q == nil {
		q = &queue{lanes: make([]lane, lanes)}
		h.queues[name] = q
	}
	if q.waiting >= maxWaiting {
		j.who.Dropped++
		if !j.who.overflow {
			j.who.overflow = true
			h.o.Log.Error("events are dropped: too many wait", "hook", j.who.Name, "kind", j.who.Kind, "waiting", q.waiting)
			if h.trouble(j.who, nil, "") {
				h.busy.Go(func() { h.tell(j.who) })
			}
		}
		return
	}
	q.waiting++
	j.who.Waiting++
	l := &q.lanes[maphash.String(h.seed, j.notice.Prefix)%uint64(lanes)]
	l.jobs = append(l.jobs, j)
	if !l.busy {
		l.busy = true
		h.busy.Go(func() { h.work(q, l) })
	}
}

// work does what is in a lane until it is empty.
func (h *Hooks) work(q *queue, l *lane) {
	for {
		h.mu.Lock()
		if len(l.jobs) == 0 || h.ctx.Err() != nil {
			l.busy = false
			h.mu.Unlock()
			return
		}
		j := l.jobs[0]
		l.jobs[0] = job{}
		if l.jobs = l.jobs[1:]; len(l.jobs) == 0 {
			l.jobs = nil
		}
		do := h.due(q, &j)
		h.mu.Unlock()
		h.ended(j, do(h.ctx))
	}
}

// ended counts what became of a job, and says what is wrong.
func (h *Hooks) ended(j job, err error) {
	h.mu.Lock()
	who := j.who
	who.Running--
	switch {
	case err == nil:
		who.Done++
		who.Error = ""
	case errors.Is(err, ErrTime):
		who.TimedOut++
	default:
		who.Failed++
	}
	if err != nil {
		who.Error = err.Error()
	}
	if who.overflow && who.Waiting == 0 {
		who.overflow = false
		h.o.Log.Warn("no events are dropped any more", "hook", who.Name, "kind", who.Kind, "dropped", who.Dropped)
	}
	news := h.trouble(who, err, "")
	news = h.forget(who) || news
	h.mu.Unlock()
	if err != nil {
		h.o.Log.Warn(fmt.Sprintf("%s %s failed for the %s of %s: %s", who.Kind, who.Name, j.notice.Event, j.notice.Addr, err), "jail", j.notice.Jail, "addr", j.notice.Addr)
	}
	if news {
		h.tell(who)
	}
}

// trouble notes what is wrong with who is told, and says whether that is news,
// to be told of outside of the lock.
func (h *Hooks) trouble(who *told, err error, further string) (news bool) {
	was := who.problem
	switch name := who.Kind + " " + who.Name; {
	case who.overflow:
		who.problem = fmt.Sprintf("%s is too slow or doesn't answer: more than %d events wait, the others are dropped", name, maxWaiting)
	case err != nil:
		who.problem = fmt.Sprintf("%s: %s%s", name, err, further)
	default:
		who.problem = ""
	}
	return who.problem != was
}

// tell tells of what is wrong now with who is told. It may wait.
func (h *Hooks) tell(who *told) {
	h.telling.Lock()
	defer h.telling.Unlock()
	h.mu.Lock()
	var problem error
	if who.problem != "" {
		problem = errors.New(who.problem)
	}
	h.mu.Unlock()
	h.o.Problem(h.ctx, "hook "+who.Kind+" "+who.Name, problem)
}

// run runs a program.
func (h *Hooks) run(ctx context.Context, args []string, n jails.Notice) error {
	input, err := (*jails.Body)(nil).JSON(n)
	if err != nil {
		return err
	}
	p := program{Args: n.Args(args), Env: append(Environment(), n.Env()...), Input: append(input, '\n'), Limit: h.times.program}
	if h.o.Socket != "" {
		return p.ask(ctx, h.o.Socket)
	}
	return p.run(ctx, h.o.Command)
}

// Status says how telling each of them goes.
func (h *Hooks) Status() []control.Hook {
	h.mu.Lock()
	defer h.mu.Unlock()
	var all []control.Hook
	for _, t := range h.told {
		all = append(all, t.Hook)
	}
	slices.SortFunc(all, func(a, b control.Hook) int {
		return strings.Compare(a.Kind+"\x00"+a.Name, b.Kind+"\x00"+b.Name)
	})
	return all
}

// Close gives what waits a moment, ends the rest, and says what was left
// undone. Nothing may be told any more.
func (h *Hooks) Close() {
	close(h.closing)
	done := make(chan struct{})
	go func() {
		h.busy.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(h.times.stop):
	}
	h.cancel(errStopped)
	<-done
	for _, q := range h.queues {
		left := map[*told]int{}
		for _, l := range q.lanes {
			for _, j := range l.jobs {
				left[j.who]++
			}
		}
		for _, who := range slices.SortedFunc(maps.Keys(left), func(a, b *told) int { return strings.Compare(a.Kind, b.Kind) }) {
			h.o.Log.Error(fmt.Sprintf("%s %s isn't told of %d events, since xdpban stops", who.Kind, who.Name, left[who]))
		}
	}
}
