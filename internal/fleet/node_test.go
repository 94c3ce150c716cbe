package fleet

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"xdpban/jails"
	"xdpban/matcher"
)

const patience = 30 * time.Second

func prefix(s string) netip.Prefix {
	if p, err := netip.ParsePrefix(s); err == nil {
		return p
	}
	a := netip.MustParseAddr(s)
	return netip.PrefixFrom(a, a.BitLen())
}

// serve starts a NATS server in this process, or starts it again on its port
// with what it has stored.
func serve(t testing.TB, o *server.Options) *server.Server {
	t.Helper()
	o.Host, o.NoLog, o.NoSigs, o.JetStream = "127.0.0.1", true, true, true
	if o.Port == 0 {
		o.Port = server.RANDOM_PORT
	}
	if o.StoreDir == "" {
		o.StoreDir = t.TempDir()
	}
	s, err := server.NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(patience) {
		t.Fatal("the NATS server doesn't start")
	}
	o.Port = s.Addr().(*net.TCPAddr).Port
	return s
}

// node is a host without a kernel: what a daemon would do is in a map.
type node struct {
	t     testing.TB
	f     *Fleet
	state string

	mu       sync.Mutex
	bans     map[string]map[netip.Prefix]jails.Ban // by jail
	allowed  []netip.Prefix
	problems map[string]error
	changed  chan struct{}
	reported []jails.Report
	judge    *jails.Judge // nil: reports are only noted
	stop     func()
}

func newNode(t testing.TB, name, url string, change func(*jails.Fleet)) *node {
	n := &node{
		t: t, state: filepath.Join(t.TempDir(), "fleet.db"), problems: map[string]error{}, changed: make(chan struct{}),
		bans: map[string]map[netip.Prefix]jails.Ban{jails.ByFleet: {}, "sshd": {}, "manual": {}},
	}
	n.start(name, url, change)
	return n
}

// start starts the node's part in the fleet, again after halt.
func (n *node) start(name, url string, change func(*jails.Fleet)) {
	s := jails.Fleet{
		Name: "web", Host: name, URLs: []string{url}, Publish: []string{"sshd"}, Subscribe: []string{"*"}, MaxBan: 24 * time.Hour,
		Quorum: 1, PeerBans: 1_000_000, Widest4: 24, Widest6: 48, Replicas: 1,
	}
	if change != nil {
		change(&s)
	}
	var d net.Dialer
	n.f = New(Options{
		Settings: s, Version: "1", Dial: d.DialContext, StatePath: n.state, Log: slog.New(slog.NewTextHandler(io.Discard, nil)), Now: time.Now,
	})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); n.f.Run(ctx, n) }()
	once := sync.OnceFunc(func() { cancel(); <-ended })
	n.stop = once
	n.t.Cleanup(once)
}

func (n *node) tell() {
	close(n.changed)
	n.changed = make(chan struct{})
}

func (n *node) Walk(_ context.Context, each func(jails.Ban), done func()) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, of := range n.bans {
		for _, b := range of {
			each(b)
		}
	}
	done()
	n.tell()
	return nil
}

func (n *node) Shared(_ context.Context, bans []jails.Ban, over []netip.Prefix, _ bool) (refused []netip.Prefix, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, p := range over {
		delete(n.bans[jails.ByFleet], p)
	}
next:
	for _, b := range bans {
		for _, a := range n.allowed {
			if a.Overlaps(b.Prefix) {
				refused = append(refused, b.Prefix)
				continue next
			}
		}
		n.bans[jails.ByFleet][b.Prefix] = b
	}
	n.tell()
	return refused, nil
}

func (n *node) Reported(_ context.Context, reports []jails.Report) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.reported = append(n.reported, reports...)
	for _, r := range reports {
		if n.judge != nil {
			n.decided(n.judge.Reported(r, time.Now()))
		}
	}
	n.tell()
	return nil
}

// fail is a failure in this host's log.
func (n *node) fail(addr string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	now := time.Now()
	n.f.Failed("sshd", prefix(addr), now)
	if n.judge != nil {
		n.decided(n.judge.Failure("sshd", &matcher.Failure{Source: prefix(addr), Time: now, Count: 1}, now))
	}
}

func (n *node) decided(bans []jails.Ban) {
	for _, b := range bans {
		n.bans[b.Jail][b.Prefix] = b
		n.f.Banned(b)
	}
}

func (n *node) Problem(_ context.Context, key string, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.problems[key] = err; err == nil {
		delete(n.problems, key)
	}
	n.tell()
}

// ban is what a jail of this host decides.
func (n *node) ban(addr string, d time.Duration) jails.Ban {
	b := jails.Ban{Prefix: prefix(addr), Jail: "sshd", Since: time.Now(), Failures: 3, Evidence: []string{"Failed password for root from " + addr}}
	if d != jails.Forever {
		b.Until = b.Since.Add(d)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.bans["sshd"][b.Prefix] = b
	n.f.Banned(b)
	return b
}

// unban is what an operator of this host does.
func (n *node) unban(addr string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, of := range n.bans {
		if b, ok := of[prefix(addr)]; ok {
			delete(of, b.Prefix)
			n.f.Unbanned(b)
		}
	}
}

// held is what a jail of this host has decided.
func (n *node) held(addr string) (jails.Ban, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	b, ok := n.bans["sshd"][prefix(addr)]
	return b, ok
}

// unbanOwn is that for what a jail of this host decided.
func (n *node) unbanOwn(addr string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	b := n.bans["sshd"][prefix(addr)]
	delete(n.bans["sshd"], b.Prefix)
	n.f.Unbanned(b)
}

// until waits for a fact about this node.
func (n *node) until(what string, f func() bool) {
	n.t.Helper()
	give := time.After(patience)
	for {
		n.mu.Lock()
		ok, changed := f(), n.changed
		n.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-time.After(50 * time.Millisecond): // the fleet's own counts tell nobody
		case <-give:
			n.mu.Lock()
			defer n.mu.Unlock()
			n.t.Fatalf("%s: not within %s: %s; bans %.2000s, problems %v, status %+v", n.f.o.Settings.Host, patience, what, fmt.Sprint(n.bans), n.problems, *n.f.Status())
		}
	}
}

func (n *node) untilBanned(addr string) (b jails.Ban) {
	n.t.Helper()
	n.until(addr+" is banned", func() (ok bool) { b, ok = n.bans[jails.ByFleet][prefix(addr)]; return ok })
	return b
}

func (n *node) untilFree(addr string) {
	n.t.Helper()
	n.until(addr+" isn't banned", func() bool { _, ok := n.bans[jails.ByFleet][prefix(addr)]; return !ok })
}

// untilSynced waits until the node knows all that is in the bucket, and all
// that it has is there.
func (n *node) untilSynced() {
	n.t.Helper()
	n.until("synced", func() bool { s := n.f.Status(); return s.Synced && s.Waiting == 0 })
}

func (n *node) untilProblem(text string) {
	n.t.Helper()
	n.until("the problem "+text, func() bool {
		for err := range maps.Values(n.problems) {
			if strings.Contains(err.Error(), text) {
				return true
			}
		}
		return false
	})
}

// rogue is a connection that writes what it likes under a host's name.
type rogue struct {
	t    testing.TB
	nc   *nats.Conn
	name string
}

func newRogue(t testing.TB, name, url string) rogue {
	nc, err := nats.Connect(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return rogue{t, nc, name}
}

func (r rogue) write(key, value string) {
	r.t.Helper()
	if _, err := r.nc.Request("$KV.xdpban_web."+key, []byte(value), patience); err != nil {
		r.t.Fatal(err)
	}
}

func (r rogue) ban(addr, value string) { r.t.Helper(); r.write(Key(r.name, prefix(addr)), value) }
