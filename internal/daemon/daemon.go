// Package daemon is the loop that owns all state. Sources read and match side
// by side, each in a goroutine of its own; judging, applying and answering
// happen here, in one goroutine, so there are no locks. Data moves one way:
// lines, failures, bans, kernel, checkpoint.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"net/netip"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"xdpban/internal/control"
	"xdpban/internal/ledger"
	"xdpban/internal/source"
	"xdpban/jails"
	"xdpban/matcher"
)

// Entry is a ban as it stands in the kernel, with what it has dropped.
type Entry struct {
	jails.Ban
	Packets, Bytes uint64
}

// Allow is one allowlisted prefix and who put it there.
type Allow struct {
	Prefix netip.Prefix
	Origin string
}

// The origins of allowlist entries.
const (
	OriginConfig   = "config"   // ignoreip
	OriginOwn      = "own"      // the host's own addresses
	OriginSession  = "session"  // peers of SSH sessions at start
	OriginGateway  = "gateway"  // of a default route
	OriginResolver = "resolver" // a DNS server of this host's
	OriginManual   = "manual"   // xdpban allow
)

// Blocklist is the kernel's list as the daemon needs it. Package bpf has it;
// cmd/xdpban joins the two.
type Blocklist interface {
	// Epoch is the same as long as the kernel's set has been standing
	// without interruption.
	Epoch() uint64
	// Add puts bans in force or changes their ends, keeping counts. gaveUp
	// are entries that a full list gave up for them.
	Add(bans []jails.Ban) (gaveUp []Entry, err error)
	// RemoveBatch returns what was banned, on an error what was removed.
	RemoveBatch(list []netip.Prefix) ([]Entry, error)
	List() iter.Seq2[Entry, error]
	Covering(p netip.Prefix) ([]Entry, error)
	Sweep() ([]Entry, error)
	// Stats reads the counters; the number of bans is left out.
	Stats() (control.Stats, error)
	Ports() ([]control.Port, error)
	SetAllow(a []Allow) error
	RemoveAllow(p netip.Prefix) (bool, error)
	Allowed() ([]Allow, error)
	// Mend makes the kernel's set anew if its pins were taken away, and says so
	// in lost: it is empty then. err says why it couldn't.
	Mend() (lost, err error)
	// Attach puts the program on an interface, or back on it; changed is
	// false if it was there.
	Attach(iface string) (mode string, changed bool, err error)
}

// Host tells the facts of the machine. Package host has them.
type Host struct {
	// Own lists the host's own addresses.
	Own func() ([]netip.Prefix, error)
	// SessionPeers lists where logged-in SSH users come from.
	SessionPeers func(context.Context) ([]netip.Addr, error)
	// Gateways lists those of the default routes, Resolvers the DNS servers.
	Gateways, Resolvers func() ([]netip.Addr, error)
	// DefaultInterfaces names the default route's interfaces.
	DefaultInterfaces func() ([]string, error)
	// Watch calls changed when addresses, links or routes change.
	Watch func(ctx context.Context, changed func()) error
}

// Places tells where addresses are. Package place has it. It is used in the
// loop only.
type Places interface {
	// Follow takes the databases of these files, and those that have changed
	// anew; its error says which can't be used.
	Follow(paths []string) error
	Find(netip.Addr) jails.Place
}

// Plan is what the enabled jails read.
type Plan struct {
	Files   []string // paths and globs
	Journal []source.Selection
}

// Fleet shares bans with other hosts. Package fleet has it. Its methods don't
// wait for anything.
type Fleet interface {
	Status() *control.Fleet
	Eject(host string, back bool) error
}

// Feeds keep lists of others in force. Package feed has them. All but Confirm
// and Fetch wait for nothing.
type Feeds interface {
	Status() []control.Feed
	Configure([]jails.Feed)
	// Confirm takes the list that waits for that, and Fetch looks at a source
	// now; both wait for what comes of it.
	Confirm(ctx context.Context, feed string) error
	Fetch(ctx context.Context, feed string) error
}

// Hooks tell others of bans. Package hook has them. Their methods don't wait for
// anything.
type Hooks interface {
	// Configure takes the configuration that is in force from now on.
	Configure(*jails.Config)
	Status() []control.Hook
}

// Change is what has become of a ban: in force, over, ended by somebody, or given
// up.
type Change struct {
	Event string // EventBan, EventUnban, EventOver or EventFull
	Entry        // with its counts, once it has ended
}

// Options are what a Daemon is made of.
type Options struct {
	Version string
	// Load reads the configuration; it is called at start and at reload.
	Load func() (*jails.Config, error)
	// Open makes the sources of a plan.
	Open func(Plan) ([]source.Source, error)
	// Present says whether something that a jail reads is there: those with
	// Auto run only then.
	Present   func(*jails.Jail) bool
	Blocklist Blocklist
	Host      Host
	Places    Places
	// Lookup finds the addresses of a host name.
	Lookup func(ctx context.Context, name string) ([]netip.Addr, error)
	// Ask runs a program that says whether somebody is to be spared:
	// ignorecommand. It ends when ctx does.
	Ask func(ctx context.Context, args []string) (spare bool, err error)
	// Changed hears, in the loop, of bans: it must not wait for anything.
	Changed []func(Change)
	Fleet   Fleet // nil: there is none
	Feeds   Feeds
	// Failed hears, in the loop, of failures of those who may be banned and
	// aren't; nil: nobody wants to know.
	Failed func(jail string, source netip.Prefix, at time.Time)
	Hooks  Hooks
	// LedgerPath is the ledger's file.
	LedgerPath string
	// HaveJournal says that a journal is there to be read.
	HaveJournal func() bool
	// Notify tells the service manager a state as sd_notify(3) writes it.
	Notify func(state string)
	// Watchdog is how often the service manager wants to hear from the loop;
	// 0: never.
	Watchdog time.Duration
	Log      *slog.Logger
	// Now is the clock; it is read here only and handed on as an argument.
	Now func() time.Time
}

// What happened, as the attribute "event" of a record in the log. Who reads the
// log by program goes by these, since the text may change; they never do.
const (
	EventUp      = "up"      // the daemon protects the host
	EventBan     = "ban"     // decided and put in force
	EventUnban   = "unban"   // ended by hand
	EventOver    = "over"    // ended by itself
	EventRefuse  = "refuse"  // asked for by hand, but never to be banned
	EventObserve = "observe" // a jail that only observes would have banned
	EventFull    = "full"    // a ban was given up, since the kernel's list is full
	EventProblem = "problem" // something to look at
	EventSolved  = "solved"  // a problem is over
	EventGuard   = "guard"   // the program was put on an interface
	EventReload  = "reload"  // another configuration is in force
	EventBacklog = "backlog" // how far reading one is
	EventCurrent = "current" // a backlog is read
)

// How often things happen that have no event of their own.
const (
	checkpointEvery = time.Second      // the most that a crash makes us read again
	repairEvery     = 10 * time.Second // see tend
	sweepEvery      = time.Minute      // expired entries that only the kernel knew
	retryEvery      = time.Second      // bans that the kernel didn't take
)

// Daemon is the running system.
type Daemon struct {
	o       Options
	log     *slog.Logger
	started time.Time

	calls    chan func()   // what others want done in the loop
	batches  chan batch    // from the sources
	named    chan named    // failures whose names are to be looked up
	reloaded chan struct{} // the names in ignoreip may be others
	ended    chan error    // a source that ended by itself
	commits  chan error    // results of the ledger's writes
	done     chan struct{} // closed when the loop has ended
	spare    sync.Pool     // of *matcher.Batch, for the sources

	// All below belongs to the loop.
	ledger     *ledger.Ledger
	config     *jails.Config
	judge      *jails.Judge
	reading    *reading
	active     []string // the jails that read something
	streams    map[string]*stream
	session    []netip.Prefix
	resolvers  []netip.Addr // as last put on the allowlist
	names      []netip.Prefix
	manual     map[netip.Prefix]bool // allowlisted by hand
	allowed    map[netip.Prefix]string
	interfaces []control.Interface
	unapplied  map[netip.Prefix]jails.Ban
	orphans    map[netip.Prefix]bool // in the kernel, and not yet accounted for
	problems   map[string]string
	errors     uint64 // problems so far
	matching   matching
	drops      map[string]control.Verdict // of bans that have ended, by jail
	expiry     *time.Timer
	checkpoint checkpoint
	questions  questions
	kept       uint64 // failures that had to wait, so far
	unnamed    int    // those whose names have no answer yet
	backlogs   int    // streams that have one, as last looked at
	braked     uint64 // bans held back, as last said
	burst      burst
	brakedAt   time.Time
}

// New makes a daemon. Nothing happens before Run.
func New(o Options) *Daemon {
	return &Daemon{
		o: o, log: o.Log,
		calls:      make(chan func()),
		batches:    make(chan batch, 4),
		named:      make(chan named, lookupQueue),
		reloaded:   make(chan struct{}, 1),
		ended:      make(chan error, 1),
		commits:    make(chan error, 1),
		done:       make(chan struct{}),
		spare:      sync.Pool{New: func() any { return &matcher.Batch{} }},
		streams:    map[string]*stream{},
		manual:     map[netip.Prefix]bool{},
		allowed:    map[netip.Prefix]string{},
		unapplied:  map[netip.Prefix]jails.Ban{},
		orphans:    map[netip.Prefix]bool{},
		problems:   map[string]string{},
		drops:      map[string]control.Verdict{},
		checkpoint: newCheckpoint(),
		questions:  newQuestions(),
	}
}

// Run protects the host until ctx ends. ready is called once everything is in
// force. What is banned stays banned when it returns.
func (d *Daemon) Run(ctx context.Context, ready func()) error {
	defer close(d.done)
	d.started = d.o.Now()
	config, err := d.o.Load()
	if err != nil {
		return err
	}
	d.config = config
	d.judge = jails.NewJudge(config)
	if err := d.openLedger(); err != nil {
		return err
	}
	defer d.closeLedger()
	d.o.Hooks.Configure(config)
	d.judge.SetPlaces(d.o.Places.Find)
	d.followPlaces()
	if err := d.restore(); err != nil {
		return err
	}
	if err := d.reconcile(); err != nil {
		return err
	}
	if config.Settings.IgnoreSessions {
		d.findSessions(ctx)
	}
	if err := d.refreshAllowed(); err != nil {
		return err
	}
	switch err := d.attach(); {
	case errors.Is(err, errNoRoute):
		// The network comes up late; watchHost sees it come.
		d.problem("attach", err)
	case err != nil:
		return err
	}
	besides, stop := context.WithCancel(ctx)
	defer d.endAsking(stop)
	if err := d.beginAsking(besides); err != nil {
		return err
	}
	if err := d.resumeNames(); err != nil {
		return err
	}
	if err := d.startReading(); err != nil {
		return err
	}
	defer d.stopReading()
	go d.watchHost(besides)
	go d.resolveFailures(besides)
	go d.refreshNames(besides)

	if err := d.settle(ctx); err != nil {
		return err
	}

	d.o.Feeds.Configure(config.Settings.Feeds)
	ready()
	d.log.Info("xdpban "+d.o.Version+" is up: "+d.summary(), "event", EventUp)
	d.o.Notify("READY=1\nSTATUS=" + d.summary())
	return d.loop(ctx)
}

func (d *Daemon) loop(ctx context.Context) error {
	ticker := func(every time.Duration) (<-chan time.Time, func()) {
		if every <= 0 {
			return nil, func() {}
		}
		t := time.NewTicker(every)
		return t.C, t.Stop
	}
	// Runs only while there may be something to write: an idle host's
	// processor stays asleep.
	checkpoint := time.NewTimer(checkpointEvery)
	defer checkpoint.Stop()
	armed := true
	repair, stop := ticker(repairEvery)
	defer stop()
	sweep, stop := ticker(sweepEvery)
	defer stop()
	watchdog, stop := ticker(d.o.Watchdog / 2)
	defer stop()
	said := d.summary()
	d.expiry = time.NewTimer(time.Hour)
	defer d.expiry.Stop()
	d.armExpiry()
	for {
		happened := true
		select {
		case <-ctx.Done():
			d.o.Notify("STOPPING=1")
			return nil
		case b := <-d.unread():
			d.take(b)
		case call := <-d.calls:
			call()
		case err := <-d.ended:
			// Without its sources the daemon is of no use; the service
			// manager starts it again, and it goes on where it was.
			return err
		case err := <-d.commits:
			d.committed(err)
		case <-d.expiry.C:
			d.expire()
		case <-checkpoint.C:
			d.retry()
			d.brake()
			d.catchUp()
			d.commit()
			d.burst.settle()
			if now := d.summary(); now != said {
				said = now
				d.o.Notify("STATUS=" + now)
			}
			armed, happened = false, d.unsettled()
		case <-repair:
			d.tend()
		case <-sweep:
			d.sweep()
		case <-watchdog:
			d.o.Notify("WATCHDOG=1")
			happened = false
		}
		if d.crowded() && d.problems["checkpoint"] == "" {
			d.commit()
		}
		if happened && !armed {
			checkpoint.Reset(checkpointEvery)
			armed = true
		}
	}
}

// tend looks for what nobody tells of: attachments taken away by somebody,
// what came for jails that wait, new databases, other DNS servers, and a clock
// that went on while timers stood still, as they do when the machine is
// suspended.
func (d *Daemon) tend() {
	d.expire()
	d.watchResolvers()
	d.repair()
	d.follow()
	d.followPlaces()
}

// followPlaces takes the databases of places, or their new content. Without
// them bans go on.
func (d *Daemon) followPlaces() {
	err := d.o.Places.Follow(d.config.Settings.Places)
	if err != nil {
		err = fmt.Errorf("%w: whose country or network isn't known is spared by no jail", err)
	}
	d.problem("places", err)
}

// unsettled says that something is to be looked at again though nothing
// happens meanwhile.
func (d *Daemon) unsettled() bool {
	return d.backlogs > 0 || len(d.unapplied) > 0 || d.problems["brake"] != "" || d.burst.bans >= manyBans
}

// summary is the state in a line, for the service manager.
func (d *Daemon) summary() string {
	var guarded []string
	for _, i := range d.interfaces {
		if i.Error == "" {
			guarded = append(guarded, i.Name)
		}
	}
	on := 0
	for i := range d.config.Jails {
		if j := &d.config.Jails[i]; j.Enabled && !d.waits(j) {
			on++
		}
	}
	count := func(n int, what string) string {
		if n == 1 {
			return "1 " + what
		}
		return fmt.Sprintf("%d %ss", n, what)
	}
	if len(guarded) == 0 {
		guarded = []string{"no interface"}
	}
	s := fmt.Sprintf("guards %s; %s; %s", strings.Join(guarded, ", "), count(on, "jail"), count(d.judge.Stats().Standing, "ban"))
	if n := len(d.problems); n > 0 {
		s += "; " + count(n, "problem") + ", see xdpban status"
	}
	return s
}

// errStopped answers calls that come after the loop has ended.
var errStopped = errors.New("xdpban is stopping")

// do runs f in the loop and waits for it.
func (d *Daemon) do(ctx context.Context, f func()) error {
	finished := make(chan struct{})
	select {
	case d.calls <- func() { f(); close(finished) }:
		<-finished
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-d.done:
		return errStopped
	}
}

// problem notes or, with a nil error, clears what an operator should look at.
// It is logged when it is new.
func (d *Daemon) problem(key string, err error) {
	if err == nil {
		if was, ok := d.problems[key]; ok {
			delete(d.problems, key)
			d.log.Info("over: "+was, "event", EventSolved)
		}
		return
	}
	if d.problems[key] != err.Error() {
		d.problems[key] = err.Error()
		d.errors++
		d.log.Error(err.Error(), "event", EventProblem)
	}
}

// Problem is problem for what runs beside the loop.
func (d *Daemon) Problem(ctx context.Context, key string, err error) {
	_ = d.do(ctx, func() { d.problem(key, err) }) // once it has ended, there is nobody to tell
}

// take judges one batch of a source: its failures, then its position, so that
// a checkpoint has both or neither.
func (d *Daemon) take(b batch) {
	now := d.o.Now()
	s := b.stream
	s.stats = b.stats
	if !b.last.IsZero() {
		d.matching.add(b.took)
		s.lag = max(now.Sub(b.last), 0)
	}
	if s.shown {
		d.streams[s.name] = s
	}
	var bans []jails.Ban
	failures := b.failures.Failures()
	s.failures += uint64(len(failures))
	for i := range failures {
		f := &failures[i]
		if jail := s.jails[f.Filter]; !d.byName(jail, f) && !d.ask(jail, f) {
			bans = append(bans, d.failure(jail, f, now)...)
		}
	}
	b.failures.Reset()
	d.spare.Put(b.failures)
	d.decided(bans)
	d.checkpoint.moved(b.key, b.position)
}

// failure judges one failure.
func (d *Daemon) failure(jail string, f *matcher.Failure, now time.Time) []jails.Ban {
	if d.o.Failed != nil && d.judge.Check(f.Source, jail) == nil {
		if _, banned := d.judge.Find(f.Source); !banned {
			at := f.Time
			if at.IsZero() {
				at = now
			}
			d.o.Failed(jail, f.Source, at)
		}
	}
	return d.judge.Failure(jail, f, now)
}

// decided does what was judged.
func (d *Daemon) decided(bans []jails.Ban) {
	if len(bans) > 0 {
		d.enforce(bans)
	}
	for _, o := range d.judge.Observed() {
		d.log.Info("would ban "+short(o.Prefix)+", but only observes", "event", EventObserve, "jail", o.Jail, "addr", short(o.Prefix))
	}
}

// brake says loudly when new bans are held back.
func (d *Daemon) brake() {
	now := d.o.Now()
	if held := d.judge.Stats().Braked; held > d.braked {
		d.brakedAt = now
		d.problem("brake", fmt.Errorf("more than %d new bans in a minute: new ones are held back; look for a pattern that matches what it shouldn't, or raise max_bans_per_minute", d.config.Settings.MaxBansPerMin))
		d.braked = held
	} else if !d.judge.Braked(now) && now.Sub(d.brakedAt) >= time.Minute {
		// Lines of a backlog may be held back though those of now aren't.
		d.problem("brake", nil)
	}
}

// enforce puts decided bans in the kernel.
func (d *Daemon) enforce(bans []jails.Ban) {
	d.apply(bans)
	for _, b := range bans {
		if !b.Bulk {
			d.log.Info("ban "+short(b.Prefix), "event", EventBan, "jail", b.Jail, "addr", short(b.Prefix), "until", end(b), "failures", b.Failures, "strikes", b.Strikes)
		}
		d.changed(EventBan, Entry{Ban: b})
	}
	d.armExpiry()
}

// changed tells what wants to know what has become of a ban.
func (d *Daemon) changed(event string, e Entry) {
	if jails.ByFeed(e.Jail) {
		return // whoever wants to know reads the feed
	}
	for _, tell := range d.o.Changed {
		tell(Change{event, e})
	}
}

// apply puts bans in the kernel. What the kernel doesn't take is tried again.
func (d *Daemon) apply(bans []jails.Ban) {
	bans = slices.Clone(bans)
	for i, b := range bans {
		// Another jail's ban of the same prefix may last longer.
		if standing, ok := d.judge.Find(b.Prefix); ok {
			bans[i] = standing
		}
	}
	d.burst.bans += len(bans)
	gaveUp, err := d.o.Blocklist.Add(bans)
	for _, b := range bans {
		if err != nil {
			d.unapplied[b.Prefix] = b
		} else {
			delete(d.unapplied, b.Prefix)
		}
	}
	if err != nil {
		err = fmt.Errorf("%d bans are decided but not in force: %w", len(d.unapplied), err)
	}
	d.problem("apply", err)
	for _, e := range gaveUp {
		d.log.Warn("the blocklist is full: gave up the ban that ends soonest", "event", EventFull, "jail", e.Jail, "addr", short(e.Prefix))
		ended := d.judge.Unban(e.Prefix, d.o.Now())
		d.dropped(e)
		for _, b := range ended {
			d.changed(EventFull, Entry{b, e.Packets, e.Bytes})
		}
	}
}

func (d *Daemon) retry() {
	if len(d.unapplied) == 0 {
		return
	}
	now := d.o.Now()
	var again []jails.Ban
	for p, b := range d.unapplied {
		if b.Over(now) {
			delete(d.unapplied, p)
		} else {
			again = append(again, b)
		}
	}
	if len(again) > 0 {
		d.apply(again)
	} else {
		d.problem("apply", nil)
	}
}

// expire ends what is over. The kernel has stopped enforcing it already.
func (d *Daemon) expire() {
	if d.checkpoint.writing == nil || !d.crowded() {
		ended := d.judge.Expire(d.o.Now(), chunk)
		d.lift(ended)
		feeds := 0
		for _, b := range ended {
			if jails.ByFeed(b.Jail) {
				feeds++
			}
		}
		if feeds > 0 {
			d.log.Info(fmt.Sprintf("%d bans of feeds are over", feeds), "event", EventOver)
		}
	}
	d.armExpiry()
}

// lift takes ended bans out of the kernel, but for those of prefixes that
// another jail's ban still stands of.
func (d *Daemon) lift(bans []jails.Ban) {
	if len(bans) == 0 {
		return
	}
	var stand []jails.Ban
	gone := map[netip.Prefix]bool{}
	for _, b := range bans {
		if _, ok := d.judge.Find(b.Prefix); ok {
			stand = append(stand, b)
		} else {
			gone[b.Prefix] = true
			delete(d.unapplied, b.Prefix)
		}
	}
	if len(stand) > 0 {
		d.apply(stand)
	}
	removed, err := d.o.Blocklist.RemoveBatch(slices.Collect(maps.Keys(gone)))
	if err != nil {
		// They drop nothing any more and go with the next sweep.
		d.log.Error("could not take ended bans out of the kernel", "bans", len(gone)-len(removed), "error", err)
	}
	kernel := make(map[netip.Prefix]Entry, len(removed))
	for _, e := range removed {
		kernel[e.Prefix] = e
	}
	many := 0
	for _, b := range bans {
		e := Entry{Ban: b}
		if k, ok := kernel[b.Prefix]; ok {
			e.Packets, e.Bytes = k.Packets, k.Bytes
			delete(kernel, b.Prefix)
		}
		d.dropped(e)
		switch {
		case jails.ByFeed(b.Jail): // who ended it says so for all of them
		case b.Bulk:
			many++
		default:
			d.log.Info("ban of "+short(b.Prefix)+" is over", "event", EventOver, "jail", b.Jail, "addr", short(b.Prefix), "packets", e.Packets, "bytes", e.Bytes)
		}
		d.changed(EventOver, e)
	}
	if many > 0 {
		d.log.Info(fmt.Sprintf("%d bans of a list are over", many), "event", EventOver)
	}
}

func (d *Daemon) armExpiry() {
	if d.expiry == nil {
		return
	}
	next := d.judge.Next()
	if next.IsZero() {
		d.expiry.Stop()
		return
	}
	soonest := time.Duration(0)
	if d.checkpoint.writing != nil && d.crowded() {
		soonest = 100 * time.Millisecond // the ledger doesn't keep up
	}
	d.expiry.Reset(max(next.Sub(d.o.Now()), soonest))
}

// sweep clears entries that have ended and that only the kernel knew.
func (d *Daemon) sweep() {
	d.adoptOrphans()
	ended, err := d.o.Blocklist.Sweep()
	if err != nil {
		err = fmt.Errorf("sweep ended bans: %w", err)
	}
	d.problem("sweep", err)
	// The kernel's clock can't be set. Where ours was set back, the kernel has
	// ended bans that stand here still, and whose sources' failures don't count.
	var early []jails.Ban
	now := d.o.Now()
	for _, e := range ended {
		if b, ok := d.judge.Find(e.Prefix); ok && !b.Over(now.Add(endsAbout)) {
			early = append(early, b)
		}
	}
	if len(early) > 0 {
		d.log.Warn("bans ended in the kernel before their time, since the clock was set back: they are in force again", "bans", len(early))
		d.apply(early)
	}
}

// burst notices that many bans came at once and that it is over.
type burst struct{ bans, last int }

// manyBans are enough for their garbage to matter.
const manyBans = 1000

// settle, called once in a while, gives the memory back that a burst took:
// left to itself, Go does it minutes later, if at all, and a small host would
// miss it until then.
func (b *burst) settle() {
	if b.bans == b.last && b.bans >= manyBans {
		go debug.FreeOSMemory()
		b.bans = 0
	}
	b.last = b.bans
}

// short writes a single address without its prefix length.
func short(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}
