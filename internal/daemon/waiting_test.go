package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"xdpban/internal/control"
	"xdpban/internal/source"
	"xdpban/jails"
	"xdpban/matcher"
)

// namesWorld has a jail that looks names up, and asks nobody.
func namesWorld(t *testing.T, maxretry int) *world {
	w := newWorld(t)
	filter, err := matcher.Compile(matcher.Filter{Name: "ftp", Failregex: []string{`^Login failed from <HOST>$`}, Programs: []string{"ftpd"}})
	if err != nil {
		t.Fatal(err)
	}
	w.config.Jails = append(w.config.Jails, jails.Jail{
		Name: "ftp", Enabled: true, Files: []string{"/var/log/auth.log"}, Filter: filter, UseDNS: jails.DNSYes,
		MaxRetry: maxretry, FindTime: time.Minute, BanTime: time.Hour,
	})
	return w
}

// TestNameSurvives: a failure whose name was being looked up when the daemon
// ended is looked up again, and counts once.
func TestNameSurvives(t *testing.T) {
	w := namesWorld(t, 2)
	asked := make(chan string)
	w.lookup = func(ctx context.Context, name string) ([]netip.Addr, error) {
		asked <- name
		<-ctx.Done()
		return nil, ctx.Err()
	}
	_, stop := w.run()
	at := w.now().Format("2006-01-02T15:04:05.000000-07:00")
	for _, name := range []string{"one.example.org", "two.example.org", "two.example.org"} {
		w.log.write(at + " host ftpd[1]: Login failed from " + name)
	}
	w.settle()
	if got := <-asked; got != "one.example.org" {
		t.Fatalf("asked for %s", got)
	}
	stop()
	w.lookup = nil
	w.names = map[string]netip.Addr{"one.example.org": netip.MustParseAddr("192.0.2.1"), "two.example.org": netip.MustParseAddr("192.0.2.2")}
	d, _ := w.run()
	w.untilBanned("192.0.2.2")
	why, err := d.Why(context.Background(), prefix("192.0.2.1"))
	if err != nil || len(why.Bans) != 0 || len(why.Windows) != 1 || why.Windows[0].Failures != 1 {
		t.Errorf("why 192.0.2.1: %+v, %v; want one failure", why, err)
	}
}

// crash leaves what SIGKILL would: the ledger as it was written last, and the
// kernel's list. What stop writes is seen by nobody any more.
func (w *world) crash(d *Daemon, stop func()) {
	w.t.Helper()
	var file []byte
	for file == nil {
		if err := d.do(context.Background(), func() {
			if d.checkpoint.writing != nil {
				return
			}
			var err error
			if file, err = os.ReadFile(w.ledger); err != nil {
				w.t.Error(err)
			}
			w.kernel = w.kernel.copy()
		}); err != nil || w.t.Failed() {
			w.t.Fatal(err)
		}
	}
	w.ledger = filepath.Join(w.t.TempDir(), "ledger.db")
	if err := os.WriteFile(w.ledger, file, 0o600); err != nil {
		w.t.Fatal(err)
	}
	stop()
}

// TestNamesSurviveACrash: at each moment of a queue of names a crash loses no
// failure and counts none twice, those included that the queue was full for:
// they weren't counted before either.
func TestNamesSurviveACrash(t *testing.T) {
	w := namesWorld(t, 2)
	w.config.Settings.MaxTracked = 2 * lookupQueue
	w.logs = slog.LevelError + 1
	var mu sync.Mutex
	answers := 0 // that are still given
	more := sync.NewCond(&mu)
	w.lookup = func(ctx context.Context, name string) ([]netip.Addr, error) {
		defer context.AfterFunc(ctx, func() { more.Broadcast() })()
		mu.Lock()
		defer mu.Unlock()
		for answers == 0 {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			more.Wait()
		}
		answers--
		var n int
		if _, err := fmt.Sscanf(name, "host%d.example.org", &n); err != nil {
			return nil, err
		}
		return []netip.Addr{netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 14: byte(n >> 8), 15: byte(n)})}, nil
	}
	give := func(n int) {
		mu.Lock()
		defer mu.Unlock()
		answers = n
		more.Broadcast()
	}
	d, stop := w.run()
	at := w.now().Format("2006-01-02T15:04:05.000000-07:00")
	const names = lookupQueue + 5
	for i := range names {
		w.log.write(fmt.Sprintf("%s host ftpd[1]: Login failed from host%d.example.org", at, i))
	}
	counted := func(d *Daemon) (n int) {
		if err := d.do(context.Background(), func() { n = d.judge.Stats().Jails["ftp"].Tracked }); err != nil {
			t.Fatal(err)
		}
		return n
	}
	written := func(d *Daemon) (done bool) {
		if err := d.do(context.Background(), func() {
			d.commit()
			done = d.checkpoint.writing == nil && d.checkpoint.position["/var/log/auth.log"].Offset == names
		}); err != nil {
			t.Fatal(err)
		}
		return done
	}
	for !written(d) {
	}
	for _, answered := range []int{0, 1, 300, lookupQueue} {
		w.crash(d, stop)
		d, stop = w.run()
		already := counted(d)
		give(answered - already)
		for counted(d) < answered {
		}
		if answered%2 == 0 { // else what was answered is lost with the crash, and asked again
			for !written(d) {
			}
		}
	}
	if err := d.do(context.Background(), func() {
		if d.unnamed != 0 || len(d.named) != 0 {
			t.Errorf("%d names wait still", d.unnamed)
		}
	}); err != nil {
		t.Fatal(err)
	}
	// A second failure bans: those that were counted twice would be by now.
	if n := counted(d); n != lookupQueue || len(w.kernel.bans) != 0 {
		t.Errorf("%d failures counted, %d banned; want %d and none", n, len(w.kernel.bans), lookupQueue)
	}
}

// TestWaitingFailuresAreCopies: what waits for an answer isn't overwritten by
// the next lines, which are matched into the same memory.
func TestWaitingFailuresAreCopies(t *testing.T) {
	w := namesWorld(t, 1)
	w.config.Jails[0].MaxRetry, w.config.Jails[0].IgnoreCommand = 1, []string{"/bin/ours", "<ip>"}
	release := make(chan struct{})
	wait := func(ctx context.Context) {
		select {
		case <-release:
		case <-ctx.Done():
		}
	}
	w.ask = func(ctx context.Context, _ []string) (bool, error) { wait(ctx); return false, nil }
	w.lookup = func(ctx context.Context, name string) ([]netip.Addr, error) {
		wait(ctx)
		return []netip.Addr{map[string]netip.Addr{
			"first.example.org": netip.MustParseAddr("192.0.2.1"),
			"other.example.org": netip.MustParseAddr("192.0.2.99"),
		}[name]}, nil
	}
	d, _ := w.run()
	batches := &matcher.Batch{}
	add := func(host, line string) {
		now := w.now()
		batches.Add(&matcher.Failure{Filter: 0, Source: prefix("192.0.2.2"), ID: host, Users: []string{host}, Time: now, Count: 1, Line: []byte(line)})
		batches.Add(&matcher.Failure{Filter: 1, Host: host, ID: host, Users: []string{host}, Time: now, Count: 1, Line: []byte(line)})
	}
	if err := d.do(context.Background(), func() {
		add("first.example.org", "the line of the failure")
		d.take(batch{stream: &stream{name: "/var/log/auth.log", jails: []string{"sshd", "ftp"}}, failures: batches, key: "/var/log/auth.log", position: source.Position{}})
		add("other.example.org", "some other failure line")
	}); err != nil {
		t.Fatal(err)
	}
	close(release)
	for _, addr := range []string{"192.0.2.1", "192.0.2.2"} {
		w.untilBanned(addr)
		var why control.Why
		var err error
		if why, err = d.Why(context.Background(), prefix(addr)); err != nil || len(why.Bans) != 1 || len(why.Bans[0].Evidence) != 1 || why.Bans[0].Evidence[0] != "the line of the failure" {
			t.Errorf("why %s: %+v, %v; want its own line", addr, why.Bans, err)
		}
	}
}
