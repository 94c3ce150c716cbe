package daemon

import (
	"context"
	"net/netip"
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
