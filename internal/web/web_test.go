package web

import (
	"context"
	"errors"
	"io"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"xdpban/internal/control"
	"xdpban/jails"
)

// fake is a Daemon that says what it is told to.
type fake struct {
	status control.Status
	stats  control.Stats
	bans   []control.Ban
	broken error
}

func (f *fake) Status(context.Context) (control.Status, error) { return f.status, f.broken }
func (f *fake) Stats(context.Context) (control.Stats, error)   { return f.stats, nil }
func (f *fake) List(context.Context, control.ListQuery) iter.Seq2[control.Ban, error] {
	return func(yield func(control.Ban, error) bool) {
		for _, b := range f.bans {
			if !yield(b, nil) {
				return
			}
		}
	}
}

func ban(addr, jail string, packets uint64) control.Ban {
	return control.Ban{Prefix: netip.MustParsePrefix(addr), Jail: jail, Packets: packets, Bytes: packets * 60}
}

var quiet = slog.New(slog.DiscardHandler)

// scrape returns the lines of an answer that begin with one of the prefixes.
func scrape(t *testing.T, h http.Handler, prefixes ...string) string {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != http.StatusOK {
		t.Fatalf("a scrape answers %d: %s", w.Code, w.Body)
	}
	var out strings.Builder
	for line := range strings.Lines(w.Body.String()) {
		for _, p := range prefixes {
			if strings.HasPrefix(line, p) {
				out.WriteString(line)
			}
		}
	}
	return out.String()
}

func TestMetrics(t *testing.T) {
	f := &fake{
		status: control.Status{
			Version: "1.2.3", Capacity: 1000, Held: 4, Errors: 2, Problems: []string{"p"}, Braked: true,
			Checkpoint: control.Time{Time: time.Unix(1000, 500e6)}, CheckpointTook: control.Duration(20 * time.Millisecond),
			Interfaces: []control.Interface{{Name: "eth0", Mode: "native"}, {Name: "eth1", Error: "held"}},
			Jails:      []control.Jail{{Name: "sshd", Enabled: true, Bans: 2, Total: 7, Failures: 30, Tracked: 3}, {Name: "off"}},
			Sources:    []control.Source{{Stream: "/var/log/a \"b\"\n", Lines: 9, Missed: 5, Failures: 4, Skipped: 1, TooLong: 2, Ignored: 3, Lag: control.Duration(1500 * time.Millisecond)}},
			Matching: control.Matching{Blocks: 3, Took: control.Duration(2 * time.Second), Within: []control.Within{
				{Most: control.Duration(time.Millisecond), Blocks: 2}, {Most: control.Duration(time.Second), Blocks: 2}}},
		},
		stats: control.Stats{
			Bans:       3,
			Reasons:    map[string]control.Verdict{"drop-ban": {Packets: 10, Bytes: 600}},
			Interfaces: map[string]map[string]control.Verdict{"eth0": {"XDP_DROP": {Packets: 10, Bytes: 600}}},
		},
	}
	h, err := Metrics(f, quiet)
	if err != nil {
		t.Fatal(err)
	}
	want := `xdpban_bans_active{jail="sshd"} 2
xdpban_bans_held 1
xdpban_bans_held_total 4
xdpban_bans_total{jail="sshd"} 7
xdpban_blocklist_capacity 1000
xdpban_blocklist_entries 3
xdpban_build_info{version="1.2.3"} 1
xdpban_bytes_total{reason="drop-ban"} 600
xdpban_checkpoint_duration_seconds 0.02
xdpban_checkpoint_timestamp_seconds 1000.5
xdpban_errors_total 2
xdpban_failures_total{jail="sshd"} 30
xdpban_interface_attached{interface="eth0"} 1
xdpban_interface_attached{interface="eth1"} 0
xdpban_interface_bytes_total{action="XDP_DROP",interface="eth0"} 600
xdpban_interface_packets_total{action="XDP_DROP",interface="eth0"} 10
xdpban_jail_dropped_bytes_total{jail="(others)"} 0
xdpban_jail_dropped_bytes_total{jail="manual"} 0
xdpban_jail_dropped_bytes_total{jail="off"} 0
xdpban_jail_dropped_bytes_total{jail="sshd"} 0
xdpban_jail_dropped_packets_total{jail="(others)"} 0
xdpban_jail_dropped_packets_total{jail="manual"} 0
xdpban_jail_dropped_packets_total{jail="off"} 0
xdpban_jail_dropped_packets_total{jail="sshd"} 0
xdpban_match_duration_seconds_bucket{le="0.001"} 2
xdpban_match_duration_seconds_bucket{le="1"} 2
xdpban_match_duration_seconds_bucket{le="+Inf"} 3
xdpban_match_duration_seconds_sum 2
xdpban_match_duration_seconds_count 3
xdpban_packets_total{reason="drop-ban"} 10
xdpban_problems 1
xdpban_source_failures_total{source="/var/log/a \"b\"\n"} 4
xdpban_source_lag_seconds{source="/var/log/a \"b\"\n"} 1.5
xdpban_source_lines_total{source="/var/log/a \"b\"\n"} 9
xdpban_source_missed_lines_total{source="/var/log/a \"b\"\n"} 5
xdpban_source_skipped_lines_total{reason="budget",source="/var/log/a \"b\"\n"} 1
xdpban_source_skipped_lines_total{reason="ignored",source="/var/log/a \"b\"\n"} 3
xdpban_source_skipped_lines_total{reason="too_long",source="/var/log/a \"b\"\n"} 2
xdpban_tracked_sources{jail="sshd"} 3
`
	if got := scrape(t, h, "xdpban_"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if got := scrape(t, h, "process_resident_memory_bytes", "go_goroutines"); strings.Count(got, "\n") != 2 {
		t.Errorf("of the process: %q", got)
	}
	problems, err := testutil.CollectAndLint(&collector{daemon: f, clock: time.Now, shown: map[string]control.Verdict{}})
	if err != nil || len(problems) > 0 {
		t.Errorf("names: %v %v", problems, err)
	}

	f.broken = errors.New("stopping")
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != http.StatusInternalServerError {
		t.Errorf("a daemon that doesn't answer scrapes as %d", w.Code)
	}
}

func TestHookMetrics(t *testing.T) {
	f := &fake{status: control.Status{Hooks: []control.Hook{{Kind: "on_ban", Name: "/bin/a", Waiting: 1, Running: 2, Done: 3, Failed: 4, TimedOut: 5, Dropped: 6}, {Kind: "webhook", Name: "ops", Retries: 7}}}}
	h, err := Metrics(f, quiet)
	if err != nil {
		t.Fatal(err)
	}
	want := `xdpban_hook_events_total{kind="on_ban",name="/bin/a",result="done"} 3
xdpban_hook_events_total{kind="on_ban",name="/bin/a",result="dropped"} 6
xdpban_hook_events_total{kind="on_ban",name="/bin/a",result="failed"} 4
xdpban_hook_events_total{kind="on_ban",name="/bin/a",result="timed_out"} 5
xdpban_hook_events_total{kind="webhook",name="ops",result="done"} 0
xdpban_hook_events_total{kind="webhook",name="ops",result="dropped"} 0
xdpban_hook_events_total{kind="webhook",name="ops",result="failed"} 0
xdpban_hook_events_total{kind="webhook",name="ops",result="timed_out"} 0
xdpban_hook_retries_total{kind="on_ban",name="/bin/a"} 0
xdpban_hook_retries_total{kind="webhook",name="ops"} 7
xdpban_hook_waiting{kind="on_ban",name="/bin/a"} 3
xdpban_hook_waiting{kind="webhook",name="ops"} 0
`
	if got := scrape(t, h, "xdpban_hook_"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestFleetMetrics(t *testing.T) {
	f := &fake{status: control.Status{Fleet: &control.Fleet{
		Server: "nats://192.0.2.5:4222", Synced: true, Waiting: 1, Bans: 2, Published: 3, Received: 4, Refused: 5,
		Rejected: map[string]uint64{"value": 6},
		Hosts:    []control.FleetHost{{Host: "web2", Heard: control.Time{Time: time.Unix(1000, 0)}, Lag: 0.25, Bans: 7, Held: 8}, {Host: "web3"}},
	}}}
	h, err := Metrics(f, quiet)
	if err != nil {
		t.Fatal(err)
	}
	want := `xdpban_fleet_bans 2
xdpban_fleet_connected 1
xdpban_fleet_failures_received_total 0
xdpban_fleet_failures_sent_total 0
xdpban_fleet_host_bans{host="web2"} 7
xdpban_fleet_host_bans{host="web3"} 0
xdpban_fleet_host_heard_timestamp_seconds{host="web2"} 1000
xdpban_fleet_host_held_bans{host="web2"} 8
xdpban_fleet_host_held_bans{host="web3"} 0
xdpban_fleet_host_lag_seconds{host="web2"} 0.25
xdpban_fleet_received_total 4
xdpban_fleet_refused_total 5
xdpban_fleet_rejected_total{reason="value"} 6
xdpban_fleet_sent_total 3
xdpban_fleet_synced 1
xdpban_fleet_waiting 1
`
	if got := scrape(t, h, "xdpban_fleet_"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// TestFeedMetrics: a feed's bans count as those of a jail of their own.
func TestFeedMetrics(t *testing.T) {
	f := &fake{status: control.Status{Feeds: []control.Feed{
		{Name: "drop", Entries: 9, Bans: 7, Refused: 2, Fetched: control.Time{Time: time.Unix(1000, 0)}, Holding: true, Held: 1, Looks: 5, Failed: 1},
		{Name: "new"},
	}}}
	h, err := Metrics(f, quiet)
	if err != nil {
		t.Fatal(err)
	}
	f.status.Feeds[0].Dropped = control.Verdict{Packets: 3, Bytes: 180}
	f.bans = []control.Ban{ban("192.0.2.1/32", "feed:drop", 4), ban("192.0.2.2/32", "feed:gone", 8)}
	want := `xdpban_bans_active{jail="feed:drop"} 7
xdpban_bans_active{jail="feed:new"} 0
xdpban_feed_entries{feed="drop"} 9
xdpban_feed_entries{feed="new"} 0
xdpban_feed_failed_looks_total{feed="drop"} 1
xdpban_feed_failed_looks_total{feed="new"} 0
xdpban_feed_fetched_timestamp_seconds{feed="drop"} 1000
xdpban_feed_held{feed="drop"} 1
xdpban_feed_held{feed="new"} 0
xdpban_feed_looks_total{feed="drop"} 5
xdpban_feed_looks_total{feed="new"} 0
xdpban_feed_refused_entries{feed="drop"} 2
xdpban_feed_refused_entries{feed="new"} 0
xdpban_jail_dropped_packets_total{jail="(others)"} 8
xdpban_jail_dropped_packets_total{jail="feed:drop"} 7
xdpban_jail_dropped_packets_total{jail="feed:new"} 0
xdpban_jail_dropped_packets_total{jail="manual"} 0
`
	if got := scrape(t, h, "xdpban_feed_", "xdpban_bans_active", "xdpban_jail_dropped_packets"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// TestDropsByJail: what a jail has dropped begins at 0, goes on over the end of
// bans, and never falls.
func TestDropsByJail(t *testing.T) {
	at := time.Unix(1000, 0) // a walk takes no time, so none is spared
	f := &fake{
		status: control.Status{Jails: []control.Jail{{Name: "sshd", Enabled: true}}},
		bans:   []control.Ban{ban("192.0.2.1/32", "sshd", 100), ban("192.0.2.2/32", "sshd", 50), ban("192.0.2.3/32", "gone", 5), ban("192.0.2.4/32", jails.Manual, 0)},
	}
	h, err := metrics(f, quiet, func() time.Time { return at })
	if err != nil {
		t.Fatal(err)
	}
	is := func(when, sshd, rest string) {
		t.Helper()
		want := `xdpban_jail_dropped_packets_total{jail="(others)"} ` + rest + "\n" + `xdpban_jail_dropped_packets_total{jail="manual"} 0` + "\n" +
			`xdpban_jail_dropped_packets_total{jail="sshd"} ` + sshd + "\n"
		if got := scrape(t, h, "xdpban_jail_dropped_packets"); got != want {
			t.Errorf("%s:\n%swant\n%s", when, got, want)
		}
	}
	is("at first", "0", "0")
	f.bans[0].Packets, f.bans[2].Packets = 107, 6
	is("later", "7", "1")
	f.bans = f.bans[1:]
	is("a ban has ended, and the daemon hasn't said so", "7", "1")
	f.status.Jails[0].Dropped = control.Verdict{Packets: 110}
	is("it has", "10", "1")
	f.bans = append(f.bans, ban("192.0.2.9/32", "sshd", 20))
	is("a new one", "30", "1")
}

// TestFewSeries: thousands of logs don't make thousands of series.
func TestFewSeries(t *testing.T) {
	f := &fake{}
	for i := range maxSources + 50 {
		f.status.Sources = append(f.status.Sources, control.Source{Stream: "/var/log/" + string(rune('A'+i)), Lines: 2, Lag: control.Duration(time.Duration(i) * time.Second)})
	}
	h, err := Metrics(f, quiet)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(scrape(t, h, "xdpban_source_lines_total{"), "\n"); n != maxSources+1 {
		t.Errorf("%d series", n)
	}
	if got := scrape(t, h, `xdpban_source_lines_total{source="(others)"}`, `xdpban_source_lag_seconds{source="(others)"}`); got !=
		"xdpban_source_lag_seconds{source=\"(others)\"} 249\nxdpban_source_lines_total{source=\"(others)\"} 100\n" {
		t.Errorf("the others: %s", got)
	}
}

func TestGuard(t *testing.T) {
	const token = "0123456789abcdef"
	for _, c := range []struct {
		at, host, auth string
		want           int
	}{
		{"127.0.0.1:9477", "127.0.0.1:9477", "", 200},
		{"127.0.0.1:9477", "localhost:9477", "", 200},
		{"127.0.0.1:9477", "LocalHost", "", 200},
		{"[::1]:9477", "[::1]:9477", "", 200},
		{"[::1]:9477", "[::1]", "", 200},
		{"127.0.0.1:9477", "rebind.example.org:9477", "", 403},
		{"127.0.0.1:9477", "localhost.example.org", "", 403},
		{"127.0.0.1:9477", "127.0.0.1.example.org", "", 403},
		{"127.0.0.1:9477", "192.0.2.1", "", 403},
		{"127.0.0.1:9477", "", "", 403},
		{"192.0.2.1:9477", "192.0.2.1:9477", "", 401},
		{"192.0.2.1:9477", "127.0.0.1", "", 401},
		{"192.0.2.1:9477", "192.0.2.1:9477", "Bearer " + token + "x", 401},
		{"192.0.2.1:9477", "192.0.2.1:9477", "Basic " + token, 401},
		{"192.0.2.1:9477", "192.0.2.1:9477", "Bearer ", 401},
		{"192.0.2.1:9477", "monitored.example.org", "Bearer " + token, 200},
	} {
		h := guard(Options{At: netip.MustParseAddrPort(c.at), Token: token, Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})})
		r := httptest.NewRequest("GET", "/metrics", nil)
		r.Host = c.host
		if c.auth != "" {
			r.Header.Set("Authorization", c.auth)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != c.want {
			t.Errorf("%+v: %d", c, w.Code)
		}
	}
	r := httptest.NewRequest("GET", "/metrics", nil)
	r.Header.Set("Authorization", "Bearer ")
	if authorized(r, "") {
		t.Error("without a token, an empty one passes")
	}
}

func TestReadToken(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	if _, err := ReadToken(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
	for _, c := range []struct {
		text string
		mode os.FileMode
		bad  string
	}{
		{"0123456789abcdef\n", 0o600, ""},
		{"0123456789abcdef\n", 0o644, "nobody but its owner may read it"},
		{"0123456789abcdef\n", 0o620, "nobody but its owner may read it"},
		{"short\n", 0o600, "holds 5 characters, fewer than 16"},
	} {
		if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, c.mode); err != nil {
			t.Fatal(err)
		}
		token, err := ReadToken(path)
		if c.bad == "" && (err != nil || token != "0123456789abcdef") || c.bad != "" && (err == nil || !strings.Contains(err.Error(), c.bad)) {
			t.Errorf("%q, %o: %q %v", c.text, c.mode, token, err)
		}
	}
}

// TestServe: a port that is in use is told of, and what holds it is left alone;
// the end of ctx ends it all.
func TestServe(t *testing.T) {
	held, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	at := netip.MustParseAddrPort(held.Addr().String())
	ctx, stop := context.WithCancel(t.Context())
	said := make(chan error, 10)
	var wait sync.WaitGroup
	run := func(at netip.AddrPort) {
		wait.Go(func() {
			Serve(ctx, Options{At: at, Listen: func(_ context.Context, at netip.AddrPort) (net.Listener, error) {
				return net.Listen("tcp", at.String())
			}, Log: quiet, Problem: func(err error) { said <- err }, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				_, _ = io.WriteString(w, "here")
			})})
		})
	}
	run(at)
	if err := <-said; err == nil || !strings.Contains(err.Error(), "listen tcp "+at.String()) || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("a port in use: %v", err)
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at = netip.MustParseAddrPort(free.Addr().String())
	free.Close()
	run(at)
	if err := <-said; err != nil {
		t.Errorf("a free port: %v", err)
	}
	resp, err := http.Get("http://" + at.String() + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "here" {
		t.Errorf("it answers %q, %v", body, err)
	}
	stop()
	wait.Wait()
}
