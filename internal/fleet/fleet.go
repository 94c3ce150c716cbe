// Package fleet shares bans with other hosts, by a bucket of NATS JetStream's
// key-value store: one key for each host and prefix, which goes by itself when
// the ban ends. What a host has in the bucket follows from the bans that stand
// there, and what it bans for others follows from the bucket: after any time
// apart both sides compare, and so there is no log of changes to keep.
package fleet

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"xdpban/internal/control"
	"xdpban/internal/ledger"
	"xdpban/jails"
)

// Daemon is this host's, as the fleet needs it.
type Daemon interface {
	// Walk tells of the bans that stand, then calls done.
	Walk(ctx context.Context, each func(jails.Ban), done func()) error
	// Shared puts bans of others in force and ends what is over; it returns
	// what the allowlist kept from being banned.
	Shared(ctx context.Context, bans []jails.Ban, over []netip.Prefix, quiet bool) (refused []netip.Prefix, err error)
	// Reported counts failures that others have seen.
	Reported(ctx context.Context, reports []jails.Report) error
	// Problem notes or, with a nil error, clears what an operator should see.
	Problem(ctx context.Context, key string, err error)
}

// Options are what a Fleet is made of.
type Options struct {
	Settings jails.Fleet
	Version  string
	// Dial connects to a server.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// StatePath is the file of what was decided here: who is ejected, and
	// what was unbanned by hand.
	StatePath string
	Log       *slog.Logger
	Now       func() time.Time
}

const (
	batch      = 2000    // changes applied in one turn
	atOnce     = 4096    // keys written before their answers are waited for
	maxDirty   = 100_000 // keys that wait to be written; beyond, all is compared
	ackTime    = 5 * time.Second
	retryTime  = time.Second
	helloTime  = 10 * time.Second
	tickTime   = 10 * time.Second
	saveTime   = time.Second      // between commits of the file
	askTime    = 5 * time.Second  // of a question to the server
	maxKeys    = 2_000_000        // in a bucket that we make
	duplicates = 10 * time.Second // the shortest memory that JetStream takes with a bucket's TTL
)

// The kinds of records in the file.
const (
	kindEjected = "ejected" // by host
	kindPardon  = "pardon"  // by prefix
)

// Fleet is this host's part in a fleet.
type Fleet struct {
	o        Options
	instance string
	wake     chan struct{} // there is something to write into the bucket
	unsaved  chan struct{} // and into the file
	reread   chan struct{} // somebody is heeded again

	mu        sync.Mutex
	table     *table
	dirty     map[netip.Prefix]want
	overflow  bool // more was dirty than is kept
	saves     []ledger.Record
	conn      *nats.Conn
	synced    bool
	behind    uint64
	sending   int
	published uint64
	received  uint64
	failures  failures
}

// want is what a key of ours is to be: a ban, or gone.
type want struct {
	ban  jails.Ban
	gone bool
}

// New makes a Fleet. Nothing happens before Run.
func New(o Options) *Fleet {
	return &Fleet{
		o: o, instance: rand.Text(), wake: make(chan struct{}, 1), unsaved: make(chan struct{}, 1), reread: make(chan struct{}, 1),
		table: newTable(o.Settings), dirty: map[netip.Prefix]want{}, failures: newFailures(),
	}
}

// Banned hears of a ban that was put in force here.
func (f *Fleet) Banned(b jails.Ban) {
	if b.Jail == jails.ByFleet || !jails.Shares(f.o.Settings.Publish, b.Jail) {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failures.forget(b) // the ban says more
	if w, ok := f.dirty[b.Prefix]; ok {
		if !w.gone && later(w.ban, b.Until) {
			return
		}
	} else if r, ok := f.table.own(b.Prefix); ok && later(jails.Ban{Until: r.until}, b.Until) {
		return
	}
	f.change(b.Prefix, want{ban: b})
}

// later says that a ban ends after another that ends at until.
func later(b jails.Ban, until time.Time) bool {
	return !until.IsZero() && (b.Forever() || b.Until.After(until))
}

// Unbanned hears of a ban that somebody ended here.
func (f *Fleet) Unbanned(b jails.Ban) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if b.Jail == jails.ByFleet {
		if d, ok := f.table.pardon(b.Prefix); ok {
			f.save(kindPardon, b.Prefix.String(), d)
		}
	} else if jails.Shares(f.o.Settings.Publish, b.Jail) {
		f.change(b.Prefix, want{ban: b, gone: true})
	}
}

func (f *Fleet) change(p netip.Prefix, w want) {
	if _, ok := f.dirty[p]; !ok && len(f.dirty) >= maxDirty {
		f.overflow = true
		return
	}
	f.dirty[p] = w
	poke(f.wake)
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// save has a record written to the file soon; a nil value deletes it.
func (f *Fleet) save(kind, key string, value any) {
	r := ledger.Record{Kind: kind, Key: key}
	if value != nil {
		// Strings and times are all that there is.
		r.Value, _ = json.Marshal(value)
	}
	f.saves = append(f.saves, r)
	poke(f.unsaved)
}

// Eject says whether a host is heeded no more. Its bans end here.
func (f *Fleet) Eject(name string, back bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case name == f.o.Settings.Host:
		return fmt.Errorf("%w: %s is this host", control.ErrRefused, name)
	case back && !f.table.ejected[name]:
		return fmt.Errorf("%w: %s isn't ejected", control.ErrNotFound, name)
	}
	f.table.eject(name, !back)
	if back {
		f.save(kindEjected, name, nil)
		poke(f.reread)
	} else {
		f.save(kindEjected, name, f.o.Now())
		f.o.Log.Warn("host " + name + " of the fleet is heeded no more")
	}
	return nil
}

// Status tells how it is.
func (f *Fleet) Status() *control.Fleet {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := &control.Fleet{
		Name: f.o.Settings.Name, Host: f.o.Settings.Host, Synced: f.synced, Waiting: len(f.dirty) + f.sending, Behind: f.behind,
		Bans: f.table.inForce, Published: f.published, Received: f.received, Refused: f.table.refused,
		FailuresSent: f.failures.sent, FailuresReceived: f.failures.received,
		Rejected: map[string]uint64{}, Hosts: []control.FleetHost{},
	}
	if f.conn != nil && f.conn.IsConnected() {
		s.Server = f.conn.ConnectedUrlRedacted()
	}
	for why, n := range f.table.rejected {
		s.Rejected[string(why)] = n
	}
	names := maps.Clone(f.table.ejected)
	for name := range f.table.hosts {
		names[name] = f.table.ejected[name]
	}
	delete(names, f.o.Settings.Host)
	for _, name := range slices.Sorted(maps.Keys(names)) {
		w := control.FleetHost{Host: name, Ejected: names[name]}
		if h := f.table.hosts[name]; h != nil {
			w.Version, w.Heard, w.Lag = h.version, control.Time{Time: h.heard}, h.lag.Seconds()
			w.Bans, w.Held, w.Rejected = h.bans, len(h.held), h.rejected
		}
		s.Hosts = append(s.Hosts, w)
	}
	return s
}

// The keys of problems.
const (
	problemState   = "fleet state"
	problemServer  = "fleet"
	problemPublish = "fleet publish"
	problemSchema  = "fleet schema"
	problemTwin    = "fleet twin"
)

// Run shares bans until ctx ends. Whatever goes wrong is a problem to tell of,
// and doesn't touch this host's own bans.
func (f *Fleet) Run(ctx context.Context, d Daemon) {
	state, err := f.open()
	d.Problem(ctx, problemState, err)
	if state != nil {
		defer state.Close()
	}
	f.mu.Lock()
	for p := range f.table.pardons {
		f.table.touched[p] = struct{}{}
	}
	f.mu.Unlock()
	standing := func(b jails.Ban) {
		if b.Jail == jails.ByFleet {
			f.mu.Lock()
			f.table.standing(b)
			f.mu.Unlock()
		}
	}
	if err := d.Walk(ctx, standing, func() {}); err != nil {
		return
	}
	r := run{Fleet: f, d: d, state: state, up: make(chan struct{}, 1)}
	for {
		nc, err := f.connect(ctx, &r)
		if err == nil {
			r.nc = nc
			break
		}
		d.Problem(ctx, problemServer, fmt.Errorf("fleet %s: %w: bans are shared with nobody; those made here go on", f.o.Settings.Name, err))
		if !pause(ctx, helloTime) {
			return
		}
	}
	defer r.nc.Close()
	f.mu.Lock()
	f.conn = r.nc
	f.mu.Unlock()
	var ended sync.WaitGroup
	defer ended.Wait()
	ended.Go(func() { r.keep(ctx) })
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.up:
		}
		for r.nc.IsConnected() && ctx.Err() == nil {
			err := r.session(ctx)
			f.mu.Lock()
			f.synced = false
			f.mu.Unlock()
			if err == nil || ctx.Err() != nil {
				continue
			}
			if r.nc.IsConnected() {
				d.Problem(ctx, problemServer, fmt.Errorf("fleet %s: %w: tried again and again; bans made here go on", f.o.Settings.Name, err))
			}
			pause(ctx, retryTime)
		}
	}
}

func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// open opens the file of what was decided here. One that is damaged is put
// aside.
func (f *Fleet) open() (*ledger.Ledger, error) {
	state, err := ledger.Open(f.o.StatePath)
	var lost error
	if errors.Is(err, ledger.ErrCorrupt) {
		aside, moved := ledger.Quarantine(f.o.StatePath, f.o.Now())
		if moved != nil {
			return nil, errors.Join(err, moved)
		}
		lost = fmt.Errorf("%w; it is kept as %s and a new one begun: hosts that were ejected are heeded again", err, aside)
		state, err = ledger.Open(f.o.StatePath)
	}
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	err = state.Walk(kindEjected, func(key string, _ []byte) error {
		f.table.ejected[key] = true
		return nil
	})
	err = errors.Join(err, state.Walk(kindPardon, func(key string, value []byte) error {
		p, err := netip.ParsePrefix(key)
		var d pardon
		if err == nil {
			err = json.Unmarshal(value, &d)
		}
		if err != nil {
			return fmt.Errorf("read the unban of %s: %w", key, err)
		}
		if d.Until.IsZero() || d.Until.After(f.o.Now()) {
			f.table.pardons[p] = d
		} else {
			f.save(kindPardon, key, nil)
		}
		return nil
	}))
	return state, errors.Join(lost, err)
}

// run is a Fleet at work.
type run struct {
	*Fleet
	d     Daemon
	state *ledger.Ledger // nil: it can't be opened
	nc    *nats.Conn
	up    chan struct{} // connected, perhaps again

	down func() // ends the session; under mu
	// What was read last, of which bucket.
	made time.Time
	seq  uint64
}

type dialer struct {
	ctx  context.Context
	dial func(ctx context.Context, network, address string) (net.Conn, error)
}

func (d dialer) Dial(network, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(d.ctx, askTime)
	defer cancel()
	return d.dial(ctx, network, address)
}

// SkipHostLookup leaves names to who connects.
func (d dialer) SkipHostLookup() bool { return true }

func (f *Fleet) connect(ctx context.Context, r *run) (*nats.Conn, error) {
	s := f.o.Settings
	urls := strings.Join(s.URLs, ", ")
	lost := func(err error) {
		if err == nil {
			err = errors.New("the connection was lost")
		}
		f.mu.Lock()
		down := r.down
		f.mu.Unlock()
		if down != nil {
			down()
		}
		r.d.Problem(ctx, problemServer, fmt.Errorf("fleet %s: %s: %w: bans made here go on, and are shared when it is back", s.Name, urls, err))
	}
	options := []nats.Option{
		nats.Name("xdpban " + s.Host), nats.CustomInboxPrefix("_INBOX." + s.Host), nats.SetCustomDialer(dialer{ctx, f.o.Dial}),
		nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.IgnoreAuthErrorAbort(),
		nats.ReconnectWait(retryTime / 4), nats.ReconnectJitter(retryTime/4, retryTime),
		nats.PingInterval(helloTime / 2), nats.MaxPingsOutstanding(2), nats.Timeout(askTime),
		nats.ReconnectBufSize(-1), // what isn't sent stays with us
		nats.ConnectHandler(func(*nats.Conn) { poke(r.up) }),
		nats.ReconnectHandler(func(*nats.Conn) { poke(r.up) }),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if ctx.Err() == nil {
				lost(err)
			}
		}),
		nats.ReconnectErrHandler(func(_ *nats.Conn, err error) { lost(err) }),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			if errors.Is(err, nats.ErrPermissionViolation) {
				r.d.Problem(ctx, problemPublish, fmt.Errorf("fleet %s: %w: this host's credentials must allow it, see docs/fleet.md", s.Name, err))
			}
		}),
	}
	if s.Creds != "" {
		options = append(options, nats.UserCredentials(s.Creds))
	}
	if s.NKey != "" {
		o, err := nats.NkeyOptionFromSeed(s.NKey)
		if err != nil {
			return nil, fmt.Errorf("read nkey %s: %w", s.NKey, err)
		}
		options = append(options, o)
	}
	if s.TLS.CA != "" {
		options = append(options, nats.RootCAs(s.TLS.CA))
	}
	if s.TLS.Cert != "" {
		options = append(options, nats.ClientCert(s.TLS.Cert, s.TLS.Key))
	}
	nc, err := nats.Connect(strings.Join(s.URLs, ","), options...)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", urls, err)
	}
	return nc, nil
}

// bucket finds the fleet's bucket, or makes it. Its stream is made here, since
// the key-value store's own call can have times to live only together with a
// marker for each key that ends.
func (r *run) bucket(ctx context.Context, js jetstream.JetStream) (jetstream.KeyValue, *jetstream.StreamInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	if v := r.nc.ConnectedServerVersion(); tooOld(v) {
		return nil, nil, fmt.Errorf("the NATS server at %s is %s: keys with a time to live of their own, as bans need them, came with 2.11", r.nc.ConnectedUrlRedacted(), v)
	}
	name := "xdpban_" + r.o.Settings.Name
	stream, err := js.Stream(ctx, "KV_"+name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		stream, err = js.CreateStream(ctx, jetstream.StreamConfig{
			Name: "KV_" + name, Description: "bans that xdpban shares", Subjects: []string{"$KV." + name + ".>"},
			MaxMsgsPerSubject: 1, MaxMsgs: maxKeys, MaxMsgSize: maxValue + 1024, Discard: jetstream.DiscardNew,
			Storage: jetstream.FileStorage, Replicas: r.o.Settings.Replicas, Duplicates: duplicates,
			AllowRollup: true, DenyDelete: true, AllowDirect: true, AllowMsgTTL: true,
		})
		if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
			stream, err = js.Stream(ctx, "KV_"+name) // another host was faster
		}
	}
	if errors.Is(err, nats.ErrNoResponders) {
		err = fmt.Errorf("JetStream is off there, or just starts (%w)", err)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("find bucket %s at %s: %w", name, r.nc.ConnectedUrlRedacted(), err)
	}
	info := stream.CachedInfo()
	if !info.Config.AllowMsgTTL || info.Config.MaxMsgsPerSubject != 1 {
		return nil, nil, fmt.Errorf("bucket %s at %s was made otherwise than xdpban does (history 1, a time to live for each message): remove it, and it is made anew", name, r.nc.ConnectedUrlRedacted())
	}
	kv, err := js.KeyValue(ctx, name)
	if err != nil {
		return nil, nil, fmt.Errorf("open bucket %s at %s: %w", name, r.nc.ConnectedUrlRedacted(), err)
	}
	return kv, info, nil
}

// tooOld says that a server's version is one before 2.11.
func tooOld(version string) bool {
	var major, minor int
	n, _ := fmt.Sscanf(version, "%d.%d", &major, &minor) // one that isn't so is somebody else's
	return n == 2 && (major < 2 || major == 2 && minor < 11)
}

// session shares bans as long as the connection holds.
func (r *run) session(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r.mu.Lock()
	r.down = cancel
	r.mu.Unlock()
	js, err := jetstream.New(r.nc, jetstream.WithPublishAsyncMaxPending(2*atOnce), jetstream.WithPublishAsyncTimeout(ackTime))
	if err != nil {
		return err
	}
	kv, info, err := r.bucket(ctx, js)
	if err != nil {
		return err
	}
	hello, err := r.nc.Subscribe(r.subject("hello", "*"), r.heard)
	if err != nil {
		return fmt.Errorf("listen to other hosts: %w", err)
	}
	defer hello.Unsubscribe()
	if r.o.Settings.SharedFailures {
		reports, err := r.nc.Subscribe(r.subject("failures", "*"), func(m *nats.Msg) { r.reported(ctx, m) })
		if err == nil {
			err = reports.SetPendingLimits(maxUnread, maxUnreadBytes)
		}
		if err != nil {
			return fmt.Errorf("listen to what others count: %w", err)
		}
		defer reports.Unsubscribe()
	}
	var options []jetstream.WatchOpt
	whole := !info.Created.Equal(r.made) || info.State.LastSeq < r.seq
	if whole {
		r.mu.Lock()
		r.table.begin()
		r.mu.Unlock()
		r.made, r.seq = time.Time{}, 0
	} else {
		options = append(options, jetstream.ResumeFromRevision(r.seq+1))
	}
	watch, err := kv.WatchFiltered(ctx, []string{"ban.>"}, options...)
	if err != nil {
		return fmt.Errorf("watch bucket %s: %w", kv.Bucket(), err)
	}
	defer watch.Stop()
	var ended sync.WaitGroup
	defer ended.Wait()
	defer cancel()
	ended.Go(func() { r.publish(ctx, js, "$KV."+kv.Bucket()+".") })
	ended.Go(func() { r.hello(ctx) })
	if r.o.Settings.SharedFailures {
		ended.Go(func() { r.report(ctx) })
	}
	return r.follow(ctx, watch, info.Created, whole)
}

// follow does what others want.
func (r *run) follow(ctx context.Context, watch jetstream.KeyWatcher, made time.Time, whole bool) error {
	tick := time.NewTicker(tickTime)
	defer tick.Stop()
	told := false
	for {
		done := false
		select {
		case <-ctx.Done():
			return nil
		case <-r.reread:
			r.made = time.Time{}
			return nil
		case e, ok := <-watch.Updates():
			if !ok {
				return errors.New("the watch of the bucket ended")
			}
			done = r.read(watch, e)
		case <-tick.C:
			r.mu.Lock()
			r.table.tick(r.o.Now())
			r.mu.Unlock()
		}
		r.mu.Lock()
		newer := r.table.rejected[newSchema] > 0
		r.mu.Unlock()
		if newer && !told {
			told = true
			r.d.Problem(ctx, problemSchema, fmt.Errorf("fleet %s: a host writes bans in a newer form than this xdpban knows: upgrade it; fleet status counts them", r.o.Settings.Name))
		}
		if done {
			r.made = made
			if whole {
				r.mu.Lock()
				r.table.finish()
				r.mu.Unlock()
			}
		}
		complete := !r.made.IsZero()
		if err := r.apply(ctx, complete, done || !complete); err != nil {
			return nil // the daemon ends
		}
		if done {
			if err := r.reconcile(ctx); err != nil {
				return nil
			}
			r.mu.Lock()
			r.synced = true
			r.mu.Unlock()
			r.d.Problem(ctx, problemServer, nil)
		}
	}
}

// read takes an update, and those that wait behind it, and says whether all
// that stood in the bucket has been read.
func (r *run) read(watch jetstream.KeyWatcher, e jetstream.KeyValueEntry) bool {
	now := r.o.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	for n := 1; e != nil; n++ {
		r.seq = max(r.seq, e.Revision())
		r.behind = e.Delta()
		r.take(e, now)
		if n == batch {
			return false
		}
		select {
		case next, ok := <-watch.Updates():
			if !ok {
				return false
			}
			e = next
		default:
			return false
		}
	}
	return true
}

func (r *run) take(e jetstream.KeyValueEntry, now time.Time) {
	if e.Operation() != jetstream.KeyValuePut {
		if name, p, err := parseKey(e.Key()); err == nil {
			r.table.remove(name, p)
		}
	} else if why := r.table.take(e.Key(), e.Value(), e.Created(), now); why != "" {
		r.o.Log.Debug("a ban of the fleet is not heeded", "key", e.Key(), "reason", string(why))
	}
	if name, _, err := parseKey(e.Key()); err != nil || name != r.o.Settings.Host {
		r.received++
	}
}

// apply has the daemon do what follows.
func (r *run) apply(ctx context.Context, complete, quiet bool) error {
	for more := true; more; {
		var bans []jails.Ban
		var over []netip.Prefix
		r.mu.Lock()
		bans, over, more = r.table.diff(r.o.Now(), batch, complete)
		r.mu.Unlock()
		if len(bans)+len(over) == 0 {
			continue
		}
		refused, err := r.d.Shared(ctx, bans, over, quiet)
		if err != nil && ctx.Err() != nil {
			return err
		}
		r.mu.Lock()
		r.table.refused += uint64(len(refused))
		r.mu.Unlock()
	}
	return nil
}

// reconcile compares what this host has in the bucket with the bans that stand,
// and has the differences written.
func (r *run) reconcile(ctx context.Context) error {
	standing := map[netip.Prefix]jails.Ban{}
	each := func(b jails.Ban) {
		if b.Jail == jails.ByFleet || !jails.Shares(r.o.Settings.Publish, b.Jail) {
			return
		}
		if old, ok := standing[b.Prefix]; !ok || later(b, old.Until) {
			standing[b.Prefix] = b
		}
	}
	// In the same turn: nothing is banned or unbanned in between.
	return r.d.Walk(ctx, each, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		clear(r.dirty)
		r.overflow = false
		for p, b := range standing {
			have, ok := r.table.own(p)
			if e := entryOf(b, false); !ok || !have.until.Equal(e.until()) || have.jail != b.Jail {
				r.change(p, want{ban: b})
			}
		}
		for p := range r.table.places {
			if have, ok := r.table.own(p); ok {
				if _, stands := standing[p]; !stands {
					r.change(p, want{jails.Ban{Prefix: p, Jail: have.jail, Until: have.until}, true})
				}
			}
		}
	})
}

// keep writes down what was decided here, connected or not.
func (r *run) keep(ctx context.Context) {
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-r.unsaved:
			pause(ctx, saveTime) // more may come
		}
		r.mu.Lock()
		records := r.saves
		r.saves = nil
		r.mu.Unlock()
		if len(records) == 0 || r.state == nil {
			continue
		}
		err := r.state.Commit(records)
		if err != nil {
			r.mu.Lock()
			r.saves = append(records, r.saves...)
			r.mu.Unlock()
			poke(r.unsaved)
		}
		r.d.Problem(ctx, problemState, err)
	}
}
