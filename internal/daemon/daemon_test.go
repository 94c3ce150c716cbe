package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"xdpban/internal/control"
	"xdpban/internal/ledger"
	"xdpban/internal/source"
	"xdpban/jails"
	"xdpban/matcher"
)

// world is what outlives a daemon: the kernel, the ledger, the logs, the
// configuration.
type world struct {
	t      *testing.T
	kernel *kernelList
	host   *machine
	log    *log
	ledger string
	names  map[string]netip.Addr
	lookup func(ctx context.Context, name string) ([]netip.Addr, error) // instead
	ask    func(ctx context.Context, args []string) (bool, error)
	// changed hears of bans, if it is set.
	changed func(Change)
	failed  func(jail string, source netip.Prefix, at time.Time)
	places  fakePlaces
	logs    slog.Level // what is logged

	mu     sync.Mutex
	step   time.Duration // of the clock
	config *jails.Config
	broken error // what loading the configuration answers
}

func newWorld(t *testing.T) *world {
	filter, err := matcher.Compile(matcher.Filter{Name: "sshd", Failregex: []string{`^Failed password for \S+ from <ADDR>$`}, Programs: []string{"sshd"}})
	if err != nil {
		t.Fatal(err)
	}
	return &world{
		t: t, kernel: newKernelList(), host: &machine{tell: make(chan struct{})}, log: newLog("/var/log/auth.log"),
		ledger: filepath.Join(t.TempDir(), "ledger.db"),
		config: &jails.Config{
			Settings: jails.Settings{IgnoreSelf: true, IgnoreSessions: true, MaxBans: 100, MaxTracked: 100},
			Jails: []jails.Jail{{
				Name: "sshd", Enabled: true, Files: []string{"/var/log/*.log"}, Filter: filter,
				MaxRetry: 3, FindTime: 10 * time.Minute, BanTime: time.Hour,
			}},
		},
	}
}

type noHooks struct{}

func (noHooks) Configure(*jails.Config) {}
func (noHooks) Status() []control.Hook  { return nil }

// run starts a daemon and returns once it protects; stop ends it as SIGTERM
// does.
func (w *world) run() (d *Daemon, stop func()) {
	w.t.Helper()
	d = New(Options{
		Load: func() (*jails.Config, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.broken != nil {
				return nil, w.broken
			}
			c := *w.config
			return &c, nil
		},
		Open:    func(Plan) ([]source.Source, error) { return []source.Source{w.log}, nil },
		Present: func(*jails.Jail) bool { return true },
		Changed: []func(Change){func(c Change) {
			if w.changed != nil {
				w.changed(c)
			}
		}},
		Failed:    w.failed,
		Hooks:     noHooks{},
		Blocklist: w.kernel, Host: w.host.host(), Places: &w.places, Feeds: fakeFeeds{}, LedgerPath: w.ledger,
		HaveJournal: func() bool { return false },
		Lookup: func(ctx context.Context, name string) ([]netip.Addr, error) {
			if w.lookup != nil {
				return w.lookup(ctx, name)
			}
			if a, ok := w.names[name]; ok {
				return []netip.Addr{a}, nil
			}
			return nil, errors.New("no such host")
		},
		Ask:    func(ctx context.Context, args []string) (bool, error) { return w.ask(ctx, args) },
		Notify: func(string) {},
		Log:    slog.New(slog.NewTextHandler(w.t.Output(), &slog.HandlerOptions{Level: w.logs})),
		Now:    w.now,
	})
	ctx, cancel := context.WithCancel(context.Background())
	ready := make(chan struct{})
	ended := make(chan error, 1)
	go func() { ended <- d.Run(ctx, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-ended:
		w.t.Fatal(err)
	}
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			w.t.Error(err)
		}
	})
	w.t.Cleanup(stop)
	return d, stop
}

// until waits for something to become true in the kernel.
func (w *world) until(what string, true func() bool) {
	w.t.Helper()
	deadline := time.After(20 * time.Second)
	for !true() {
		select {
		case <-w.kernel.changed:
		case <-deadline:
			w.t.Fatalf("never happened: %s", what)
		}
	}
}

func (w *world) untilBanned(addr string) {
	w.t.Helper()
	w.until(addr+" banned", func() bool { _, ok := w.kernel.banned(addr); return ok })
}

// fail writes n failures of an address that happened just now.
func (w *world) fail(addr string, n int) {
	for range n {
		w.log.write(fmt.Sprintf("%s host sshd[42]: Failed password for root from %s", w.now().Format("2006-01-02T15:04:05.000000-07:00"), addr))
	}
}

func (w *world) now() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return time.Now().Add(w.step)
}

func (w *world) setClock(by time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.step += by
}

// settle waits until the daemon has judged all lines written so far: a
// stranger's ban comes after them.
func (w *world) settle() {
	w.t.Helper()
	const stranger = "198.51.100.250"
	w.fail(stranger, 3)
	w.untilBanned(stranger)
}

func (w *world) mustBan(d *Daemon, addr string, length time.Duration) {
	w.t.Helper()
	if _, err := d.Ban(context.Background(), control.BanRequest{Prefixes: []netip.Prefix{prefix(addr)}, For: control.Duration(length)}); err != nil {
		w.t.Fatal(err)
	}
}

func TestFailuresBan(t *testing.T) {
	w := newWorld(t)
	d, _ := w.run()
	w.fail("192.0.2.7", 2)
	w.fail("192.0.2.8", 3)
	w.untilBanned("192.0.2.8")
	if e, ok := w.kernel.banned("192.0.2.7"); ok {
		t.Errorf("banned after two failures: %+v", e)
	}
	why, err := d.Why(context.Background(), prefix("192.0.2.7"))
	if err != nil || len(why.Windows) != 1 || why.Windows[0].Failures != 2 {
		t.Errorf("why: %+v, %v; want two failures in one window", why, err)
	}
	why, err = d.Why(context.Background(), prefix("192.0.2.8"))
	if err != nil || len(why.Bans) != 1 || len(why.Bans[0].Evidence) != 3 || len(why.History) != 1 {
		t.Errorf("why: %+v, %v; want a ban, its three lines and its event", why, err)
	}
	s, err := d.Status(context.Background())
	if err != nil || s.Bans != 1 || len(s.Jails) != 1 || s.Jails[0].Failures != 5 || len(s.Sources) != 1 || s.Sources[0].Lines != 5 {
		t.Errorf("status: %+v, %v", s, err)
	}
}

func TestNeverBanned(t *testing.T) {
	w := newWorld(t)
	w.host.own = []netip.Prefix{prefix("192.0.2.1")}
	w.host.peers = []netip.Addr{netip.MustParseAddr("192.0.2.2")}
	w.config.Settings.IgnoreIP = []netip.Prefix{prefix("192.0.2.3")}
	d, _ := w.run()
	w.fail("192.0.2.1", 5)
	w.fail("192.0.2.2", 5)
	w.fail("192.0.2.3", 5)
	w.fail("127.0.0.1", 5)
	w.settle()
	for addr := range map[string]bool{"192.0.2.1": true, "192.0.2.2": true, "192.0.2.3": true, "127.0.0.1": true} {
		if _, ok := w.kernel.banned(addr); ok {
			t.Errorf("%s was banned by its failures", addr)
		}
		_, err := d.Ban(context.Background(), control.BanRequest{Prefixes: []netip.Prefix{prefix("203.0.113.9"), prefix(addr)}, For: control.Duration(time.Hour)})
		if !errors.Is(err, control.ErrRefused) {
			t.Errorf("ban %s by hand: %v, want ErrRefused", addr, err)
		}
	}
	if _, ok := w.kernel.banned("203.0.113.9"); ok {
		t.Error("of a request that was refused, a part was done")
	}
	// An address that becomes our own can't be banned from then on.
	w.host.mu.Lock()
	w.host.own = append(w.host.own, prefix("192.0.2.4"))
	w.host.mu.Unlock()
	w.host.tell <- struct{}{}
	w.host.tell <- struct{}{} // taken when the first change is dealt with
	if _, err := d.Ban(context.Background(), control.BanRequest{Prefixes: []netip.Prefix{prefix("192.0.2.4")}, For: control.Duration(time.Hour)}); !errors.Is(err, control.ErrRefused) {
		t.Errorf("ban a new own address: %v, want ErrRefused", err)
	}
}

func TestRestart(t *testing.T) {
	w := newWorld(t)
	d, stop := w.run()
	w.fail("192.0.2.7", 2)
	w.fail("192.0.2.8", 3)
	w.mustBan(d, "192.0.2.9", jails.Forever)
	w.untilBanned("192.0.2.8")
	stop()
	before, _ := w.kernel.banned("192.0.2.8")

	d, stop = w.run()
	w.fail("192.0.2.7", 1) // the third
	w.untilBanned("192.0.2.7")
	after, ok := w.kernel.banned("192.0.2.8")
	if !ok || !after.Until.Equal(before.Until) {
		t.Errorf("the ban of before: %+v, want %+v", after, before)
	}
	events, err := d.History(context.Background(), control.HistoryQuery{})
	if err != nil || len(events) != 3 {
		t.Errorf("history: %+v, %v; want three bans, each once", events, err)
	}

	// A reboot empties the kernel's set; all of it comes back.
	stop()
	w.kernel.reboot()
	w.run()
	for _, addr := range []string{"192.0.2.7", "192.0.2.8", "192.0.2.9"} {
		if _, ok := w.kernel.banned(addr); !ok {
			t.Errorf("%s isn't banned any more after a reboot", addr)
		}
	}
}

// A ban that the kernel ends just while the next daemon starts was not ended by
// hand: it counts as a strike.
func TestBanEndsAtTheStart(t *testing.T) {
	w := newWorld(t)
	_, stop := w.run()
	w.fail("192.0.2.8", 3)
	w.untilBanned("192.0.2.8")
	stop()
	w.setClock(time.Hour - 500*time.Millisecond)
	w.kernel.Remove(prefix("192.0.2.8"))
	d, _ := w.run()
	w.setClock(time.Second)
	w.fail("192.0.2.8", 3)
	w.untilBanned("192.0.2.8")
	why, err := d.Why(context.Background(), prefix("192.0.2.8"))
	if err != nil || len(why.Bans) != 1 || why.Bans[0].Strikes != 1 {
		t.Errorf("%+v, %v; want a second ban with a strike", why.Bans, err)
	}
}

// By hand, on the pinned maps, while no daemon runs.
func TestChangesWhileDown(t *testing.T) {
	w := newWorld(t)
	d, stop := w.run()
	w.mustBan(d, "192.0.2.8", time.Hour)
	if _, err := d.Allow(context.Background(), []netip.Prefix{prefix("203.0.113.1")}); err != nil {
		t.Fatal(err)
	}
	stop()
	now := time.Now()
	w.kernel.Remove(prefix("192.0.2.8"))
	w.kernel.Add([]jails.Ban{{Prefix: prefix("192.0.2.9"), Jail: jails.Manual, Since: now, Until: now.Add(time.Hour)}})
	w.kernel.RemoveAllow(prefix("203.0.113.1"))
	w.kernel.SetAllow([]Allow{{prefix("203.0.113.2"), OriginManual}})

	d, stop = w.run()
	if _, ok := w.kernel.banned("192.0.2.8"); ok {
		t.Error("unbanned while down, banned again at start")
	}
	if why, err := d.Why(context.Background(), prefix("192.0.2.9")); err != nil || len(why.Bans) != 1 {
		t.Errorf("banned while down: %+v, %v", why, err)
	}
	allowed, err := d.Allowed(context.Background())
	if err != nil || len(allowed) != 1 || allowed[0].Prefix != prefix("203.0.113.2") {
		t.Errorf("allowlist %v, %v; want what was put there while down", allowed, err)
	}
	stop()
	w.kernel.reboot()
	w.run()
	if _, ok := w.kernel.banned("192.0.2.9"); !ok {
		t.Error("a ban that was taken over is lost by a reboot")
	}
}

// A daemon killed after it banned and before its checkpoint reads the same
// lines again: one ban, one strike, one event.
func TestCrashBeforeCheckpoint(t *testing.T) {
	w := newWorld(t)
	_, stop := w.run()
	w.fail("192.0.2.1", 3)
	w.untilBanned("192.0.2.1")
	stop()
	saved, err := os.ReadFile(w.ledger)
	if err != nil {
		t.Fatal(err)
	}
	_, stop = w.run()
	w.fail("192.0.2.8", 3)
	w.untilBanned("192.0.2.8")
	before, _ := w.kernel.banned("192.0.2.8")
	stop()
	if err := os.WriteFile(w.ledger, saved, 0o600); err != nil { // as if it had never been written
		t.Fatal(err)
	}

	d, _ := w.run()
	w.settle()
	why, err := d.Why(context.Background(), prefix("192.0.2.8"))
	if err != nil || len(why.Bans) != 1 || why.Strikes != 1 || len(why.History) != 1 || len(why.Windows) != 0 {
		t.Errorf("why: %+v, %v; want one ban, one strike, one event, no failure left over", why, err)
	}
	if len(why.Bans) == 1 && !why.Bans[0].Until.Equal(before.Until) {
		t.Errorf("the ban ends at %v, want %v", why.Bans[0].Until, before.Until)
	}
}

func TestDamagedLedger(t *testing.T) {
	w := newWorld(t)
	d, stop := w.run()
	w.mustBan(d, "192.0.2.8", time.Hour)
	stop()
	if err := os.Truncate(w.ledger, 5000); err != nil {
		t.Fatal(err)
	}
	d, _ = w.run()
	if _, ok := w.kernel.banned("192.0.2.8"); !ok {
		t.Error("the kernel's ban fell with the ledger")
	}
	s, err := d.Status(context.Background())
	if err != nil || len(s.Problems) != 1 || s.Bans != 1 {
		t.Errorf("status: %+v, %v; want the problem named and the kernel's ban known", s, err)
	}
	aside, err := filepath.Glob(w.ledger + ".corrupt-*")
	if err != nil || len(aside) != 1 {
		t.Errorf("the damaged ledger isn't kept: %v, %v", aside, err)
	}
}

func TestUnbanForgets(t *testing.T) {
	w := newWorld(t)
	d, _ := w.run()
	w.fail("192.0.2.8", 3)
	w.untilBanned("192.0.2.8")
	r, err := d.Unban(context.Background(), control.UnbanRequest{Prefixes: []netip.Prefix{prefix("192.0.2.8"), prefix("192.0.2.9")}})
	if err != nil || r.Unbanned != 1 || len(r.Bans) != 1 {
		t.Errorf("unban: %+v, %v", r, err)
	}
	w.fail("192.0.2.8", 2)
	w.settle()
	if _, ok := w.kernel.banned("192.0.2.8"); ok {
		t.Error("banned again after two failures")
	}
	w.mustBan(d, "203.0.113.0/24", time.Hour)
	w.mustBan(d, "203.0.113.5", time.Hour)
	r, err = d.Unban(context.Background(), control.UnbanRequest{Prefixes: []netip.Prefix{prefix("203.0.113.5")}})
	if err != nil || len(r.Covered) != 1 || r.Covered[0].Prefix != prefix("203.0.113.0/24") {
		t.Errorf("unban under a banned subnet: %+v, %v; want the subnet named", r, err)
	}
}

// TestUnbanOfJail: what another jail holds of the prefix goes on.
func TestUnbanOfJail(t *testing.T) {
	w := newWorld(t)
	d, _ := w.run()
	ctx := context.Background()
	w.fail("192.0.2.8", 3) // for an hour
	w.untilBanned("192.0.2.8")
	w.mustBan(d, "192.0.2.8", 10*time.Minute)
	w.mustBan(d, "192.0.2.9", 10*time.Minute)
	unban := func(r control.UnbanRequest, want int) {
		t.Helper()
		if got, err := d.Unban(ctx, r); err != nil || got.Unbanned != want {
			t.Errorf("unban %+v: %+v, %v; want %d", r, got, err, want)
		}
	}
	unban(control.UnbanRequest{Prefixes: []netip.Prefix{prefix("192.0.2.9")}, Jail: "sshd"}, 0)
	unban(control.UnbanRequest{All: true, Jail: jails.Manual}, 2)
	if _, ok := w.kernel.banned("192.0.2.9"); ok {
		t.Error("192.0.2.9 is still banned")
	}
	if e, ok := w.kernel.banned("192.0.2.8"); !ok || e.Jail != "sshd" {
		t.Errorf("192.0.2.8 after the other jail's ban ended: %+v, %v; want sshd's", e, ok)
	}
	w.mustBan(d, "192.0.2.8", 2*time.Hour)
	unban(control.UnbanRequest{Prefixes: []netip.Prefix{prefix("192.0.2.8")}, Jail: jails.Manual}, 1)
	if e, ok := w.kernel.banned("192.0.2.8"); !ok || e.Jail != "sshd" || time.Until(e.Until) > time.Hour {
		t.Errorf("192.0.2.8 after the longer ban ended: %+v, %v; want sshd's end", e, ok)
	}
	unban(control.UnbanRequest{All: true}, 1)
}

func TestBanEnds(t *testing.T) {
	w := newWorld(t)
	d, _ := w.run()
	w.mustBan(d, "192.0.2.8", 50*time.Millisecond)
	w.untilBanned("192.0.2.8")
	w.until("the ban over", func() bool { _, ok := w.kernel.banned("192.0.2.8"); return !ok })
	events, err := d.History(context.Background(), control.HistoryQuery{Prefix: prefix("192.0.2.8")})
	if err != nil || len(events) != 2 || events[1].Kind != "expire" {
		t.Errorf("history: %+v, %v; want a ban and its end", events, err)
	}
}

// TestBulk: a long list is in force, in the ledger and over like any other
// bans, but it doesn't push out what the history says of others.
func TestBulk(t *testing.T) {
	w := newWorld(t)
	d, stop := w.run()
	ctx := context.Background()
	w.fail("192.0.2.1", 3)
	w.untilBanned("192.0.2.1")
	var list []netip.Prefix
	for i := range 25_000 {
		list = append(list, prefix(fmt.Sprintf("2001:db8::%x", i)))
	}
	list = append(list, prefix("192.0.2.1"))
	ban := func(length time.Duration) {
		t.Helper()
		r, err := d.Ban(ctx, control.BanRequest{Prefixes: list, For: control.Duration(length)})
		if err != nil || r.Banned+r.Kept != len(list) || len(r.Bans) > 0 {
			t.Fatalf("ban: %+v, %v", r, err)
		}
	}
	kinds := func() (kinds []string) {
		t.Helper()
		events, err := d.History(ctx, control.HistoryQuery{})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range events {
			kinds = append(kinds, e.Kind+" "+short(e.Ban.Prefix)+" by "+e.Ban.Jail)
		}
		return kinds
	}
	standing := func() (n int) {
		t.Helper()
		s, err := d.Status(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return s.Bans
	}

	ban(jails.Forever)
	stop()
	w.kernel.reboot()
	d, _ = w.run()
	if n := standing(); n != len(list) {
		t.Errorf("%d of %d stand after a reboot", n, len(list))
	}
	// One of them by hand is told of.
	if _, err := d.Unban(ctx, control.UnbanRequest{Prefixes: []netip.Prefix{list[7]}}); err != nil {
		t.Fatal(err)
	}
	r, err := d.Unban(ctx, control.UnbanRequest{Prefixes: list})
	if err != nil || r.Unbanned != len(list)-1 || standing() != 0 {
		t.Errorf("unban: %+v, %v; %d stand", r, err, standing())
	}
	want := []string{"ban 192.0.2.1 by sshd", "unban 2001:db8::7 by manual", "unban 192.0.2.1 by sshd"}
	if got := kinds(); !slices.Equal(got, want) {
		t.Errorf("history %q, want %q", got, want)
	}

	ban(100 * time.Millisecond)
	w.until("all of them over", func() bool { return standing() == 0 })
	if got := kinds(); !slices.Equal(got, want) {
		t.Errorf("history after their end %q, want %q", got, want)
	}
	for e := range w.kernel.List() {
		t.Errorf("%s is left in the kernel", e.Prefix)
	}
}

// TestClockIsSet: set back or ahead by an hour and more, bans stand as long as
// the clock says, and failures go on to ban.
func TestClockIsSet(t *testing.T) {
	w := newWorld(t)
	d, _ := w.run()
	sweep := func() {
		t.Helper()
		if err := d.do(context.Background(), d.sweep); err != nil {
			t.Fatal(err)
		}
	}
	w.fail("192.0.2.1", 3)
	w.untilBanned("192.0.2.1")

	w.setClock(-time.Hour)
	w.fail("192.0.2.2", 3)
	w.untilBanned("192.0.2.2")
	// By the kernel's clock the first ban's hour is over.
	w.kernel.end("192.0.2.1")
	sweep()
	if _, ok := w.kernel.banned("192.0.2.1"); !ok {
		t.Error("banned by the clock that was set back, and not in the kernel")
	}

	w.setClock(3 * time.Hour)
	w.fail("192.0.2.3", 3)
	w.untilBanned("192.0.2.3")
	for _, addr := range []string{"192.0.2.1", "192.0.2.2"} {
		w.until(addr+"'s ban over", func() bool { _, ok := w.kernel.banned(addr); return !ok })
	}
	w.fail("192.0.2.1", 3)
	w.untilBanned("192.0.2.1")
}

// TestSuspend: when the machine wakes up an hour later, timers and the
// kernel's clock have stood still; bans end by the time of day all the same.
func TestSuspend(t *testing.T) {
	w := newWorld(t)
	d, _ := w.run()
	w.mustBan(d, "192.0.2.1", 30*time.Minute)
	w.mustBan(d, "192.0.2.2", 90*time.Minute)
	w.fail("192.0.2.3", 2)
	w.settle() // its ban lasts an hour
	w.setClock(time.Hour - time.Minute)
	if err := d.do(context.Background(), d.tend); err != nil {
		t.Fatal(err)
	}
	if _, ok := w.kernel.banned("192.0.2.1"); ok {
		t.Error("192.0.2.1 is banned after its time")
	}
	for _, addr := range []string{"192.0.2.2", "198.51.100.250"} {
		if _, ok := w.kernel.banned(addr); !ok {
			t.Errorf("%s isn't banned any more before its time", addr)
		}
	}
	// The window of ten minutes is over, too.
	w.fail("192.0.2.3", 2)
	w.fail("192.0.2.4", 3)
	w.untilBanned("192.0.2.4")
	if _, ok := w.kernel.banned("192.0.2.3"); ok {
		t.Error("192.0.2.3 is banned for failures of which two were long before")
	}
}

func TestKernelRefusesForAWhile(t *testing.T) {
	w := newWorld(t)
	d, _ := w.run()
	w.kernel.mu.Lock()
	w.kernel.failing = errors.New("out of memory")
	w.kernel.mu.Unlock()
	w.fail("192.0.2.8", 3)
	w.until("the first try", func() bool {
		s, err := d.Status(context.Background())
		return err == nil && len(s.Problems) == 1
	})
	w.kernel.mu.Lock()
	w.kernel.failing = nil
	w.kernel.mu.Unlock()
	w.untilBanned("192.0.2.8")
}

func TestFullList(t *testing.T) {
	w := newWorld(t)
	w.kernel.capacity = 2
	var gaveUp []string
	w.changed = func(c Change) {
		if c.Event == EventFull {
			gaveUp = append(gaveUp, c.Jail+" "+short(c.Prefix))
		}
	}
	d, _ := w.run()
	w.mustBan(d, "192.0.2.1", 3*time.Hour)
	w.mustBan(d, "192.0.2.2", time.Hour)
	w.mustBan(d, "192.0.2.3", 2*time.Hour)
	s, err := d.Status(context.Background())
	if _, ok := w.kernel.banned("192.0.2.2"); ok || err != nil || s.Bans != 2 {
		t.Errorf("%d bans, %v; want the one that ends soonest given up", s.Bans, err)
	}
	if want := []string{"manual 192.0.2.2"}; !slices.Equal(gaveUp, want) {
		t.Errorf("told of %q, want %q", gaveUp, want)
	}
}

func TestReload(t *testing.T) {
	w := newWorld(t)
	d, _ := w.run()
	w.fail("192.0.2.7", 2)
	w.fail("192.0.2.8", 3)
	w.untilBanned("192.0.2.8")
	w.mu.Lock()
	w.broken = errors.New("xdpban.toml:3: no")
	w.mu.Unlock()
	if _, err := d.Reload(context.Background()); err == nil {
		t.Error("a broken configuration was taken")
	}
	w.mu.Lock()
	w.broken = nil
	changed := *w.config
	changed.Settings.IgnoreIP = []netip.Prefix{prefix("192.0.2.50")}
	w.config = &changed
	w.mu.Unlock()
	if _, err := d.Reload(context.Background()); err != nil {
		t.Fatal(err)
	}
	w.fail("192.0.2.50", 3)
	w.fail("192.0.2.7", 1) // its third: the window outlives both reloads
	w.untilBanned("192.0.2.7")
	if _, ok := w.kernel.banned("192.0.2.50"); ok {
		t.Error("the new ignoreip isn't heeded")
	}
	if s, err := d.Status(context.Background()); err != nil || s.Sources[0].Lines == 0 || len(s.Problems) != 0 {
		t.Errorf("status after the reloads: %+v, %v", s, err)
	}
}

func TestImport(t *testing.T) {
	w := newWorld(t)
	d, _ := w.run()
	ctx := context.Background()
	now := time.Now()
	w.mustBan(d, "192.0.2.1", time.Hour)
	w.mustBan(d, "192.0.2.2", 3*time.Hour)
	w.mustBan(d, "192.0.2.3", time.Hour)
	bans := []control.Ban{
		{Prefix: prefix("192.0.2.1"), Jail: "sshd", Since: now, Until: control.Time{Time: now.Add(2 * time.Hour)}},
		{Prefix: prefix("192.0.2.2"), Jail: "sshd", Since: now, Until: control.Time{Time: now.Add(2 * time.Hour)}},
		{Prefix: prefix("192.0.2.4"), Jail: "sshd", Since: now},
		{Prefix: prefix("192.0.2.5"), Jail: "sshd", Since: now.Add(-2 * time.Hour), Until: control.Time{Time: now.Add(-time.Hour)}},
	}
	want := control.ImportResult{Added: 1, Extended: 1, Kept: 1, Over: 1, Removed: 1}
	for _, dry := range []bool{true, false} {
		r, err := d.Import(ctx, control.ImportRequest{Bans: bans, Replace: true, DryRun: dry})
		if err != nil || fmt.Sprint(r) != fmt.Sprint(want) {
			t.Errorf("import (dry run %t): %+v, %v, want %+v", dry, r, err, want)
		}
		if _, ok := w.kernel.banned("192.0.2.3"); ok != dry {
			t.Errorf("dry run %t: what isn't in the list is banned: %t", dry, ok)
		}
	}
	if e, ok := w.kernel.banned("192.0.2.1"); !ok || !e.Until.Equal(bans[0].Until.Time) {
		t.Errorf("the later end didn't win: %+v", e)
	}
	if e, ok := w.kernel.banned("192.0.2.4"); !ok || !e.Forever() {
		t.Errorf("imported without an end: %+v", e)
	}
}

func TestLedgerIsLocked(t *testing.T) {
	w := newWorld(t)
	l, err := ledger.Open(w.ledger)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	d := New(Options{
		Load:       func() (*jails.Config, error) { return w.config, nil },
		LedgerPath: w.ledger, Log: slog.New(slog.DiscardHandler), Now: time.Now,
	})
	if err := d.Run(context.Background(), func() {}); !errors.Is(err, ledger.ErrLocked) {
		t.Errorf("a second daemon: %v, want ErrLocked", err)
	}
}

func TestNames(t *testing.T) {
	w := newWorld(t)
	w.names = map[string]netip.Addr{"attacker.example.org": netip.MustParseAddr("192.0.2.8"), "friend.example.org": netip.MustParseAddr("192.0.2.9")}
	filter, err := matcher.Compile(matcher.Filter{Name: "ftp", Failregex: []string{`^Login failed from <HOST>$`}, Programs: []string{"ftpd"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, use := range []jails.UseDNS{jails.DNSYes, jails.DNSNo} {
		w.config.Jails = append(w.config.Jails, jails.Jail{
			Name: "ftp-" + string(use), Enabled: true, Files: []string{"/var/log/auth.log"}, Filter: filter, UseDNS: use,
			MaxRetry: 1, FindTime: time.Minute, BanTime: time.Hour,
		})
	}
	w.config.Settings.IgnoreNames = []string{"friend.example.org", "nowhere.example.org"}
	d, _ := w.run()
	w.until("the friend's name looked up, and the unknown one told of", func() bool {
		s, err := d.Status(context.Background())
		return err == nil && len(s.Problems) == 1
	})
	at := time.Now().Format("2006-01-02T15:04:05.000000-07:00")
	w.log.write(
		at+" host ftpd[1]: Login failed from nowhere.example.org",
		at+" host ftpd[1]: Login failed from friend.example.org",
		at+" host ftpd[1]: Login failed from attacker.example.org",
	)
	w.untilBanned("192.0.2.8")
	if e, _ := w.kernel.banned("192.0.2.8"); e.Jail != "ftp-yes" {
		t.Errorf("banned by %s, which doesn't look names up", e.Jail)
	}
	if _, ok := w.kernel.banned("192.0.2.9"); ok {
		t.Error("a name in ignoreip was banned")
	}
}
