package web

import (
	"context"
	"iter"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"xdpban/internal/control"
	"xdpban/jails"
)

// Daemon is what is served.
type Daemon interface {
	Status(ctx context.Context) (control.Status, error)
	Stats(ctx context.Context) (control.Stats, error)
	List(ctx context.Context, q control.ListQuery) iter.Seq2[control.Ban, error]
}

// Metrics serves /metrics. All is read when Prometheus asks: there is nothing
// to count besides.
func Metrics(d Daemon, log *slog.Logger) (http.Handler, error) { return metrics(d, log, time.Now) }

func metrics(d Daemon, log *slog.Logger, clock func() time.Time) (http.Handler, error) {
	c := &collector{daemon: d, clock: clock, shown: map[string]control.Verdict{}}
	if err := c.begin(); err != nil {
		return nil, err
	}
	r := prometheus.NewRegistry()
	for _, m := range []prometheus.Collector{c, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})} {
		if err := r.Register(m); err != nil {
			return nil, err
		}
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(r, promhttp.HandlerOpts{
		ErrorLog:            slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		MaxRequestsInFlight: 4,
	}))
	return mux, nil
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("xdpban_"+name, help, labels, nil)
}

var (
	buildInfo     = desc("build_info", "The running version.", "version")
	packets       = desc("packets_total", "Packets by why they left the program as they did: drop-ban, drop-net, pass, ...", "reason")
	octets        = desc("bytes_total", "Bytes by why their packets left the program as they did.", "reason")
	ifacePackets  = desc("interface_packets_total", "Packets by interface and XDP action.", "interface", "action")
	ifaceBytes    = desc("interface_bytes_total", "Bytes by interface and XDP action.", "interface", "action")
	attached      = desc("interface_attached", "1: the interface is guarded. 0: it should be.", "interface")
	bansActive    = desc("bans_active", "Bans that stand.", "jail")
	bansTotal     = desc("bans_total", "Bans decided since the start.", "jail")
	failures      = desc("failures_total", "Failures counted since the start.", "jail")
	tracked       = desc("tracked_sources", "Sources with failures in the window.", "jail")
	jailPackets   = desc("jail_dropped_packets_total", "Packets dropped since the start by a jail's bans.", "jail")
	jailBytes     = desc("jail_dropped_bytes_total", "Bytes dropped since the start by a jail's bans.", "jail")
	entries       = desc("blocklist_entries", "Prefixes in the kernel's list.")
	capacity      = desc("blocklist_capacity", "Addresses that the kernel's list holds.")
	heldTotal     = desc("bans_held_total", "Bans held back by max_bans_per_minute.")
	braked        = desc("bans_held", "1: new bans are held back.")
	lines         = desc("source_lines_total", "Lines read.", "source")
	found         = desc("source_failures_total", "Failures that the patterns found.", "source")
	missed        = desc("source_missed_lines_total", "Lines that no pattern matched.", "source")
	skipped       = desc("source_skipped_lines_total", "Lines skipped: ignored by an ignoreregex, over a pattern's budget of steps, too long.", "source", "reason")
	lag           = desc("source_lag_seconds", "How old the last line was when it was judged.", "source")
	matchDuration = desc("match_duration_seconds", "How long matching a block of lines took.")
	checkpointAt  = desc("checkpoint_timestamp_seconds", "When the ledger last held all that had happened.")
	checkpointFor = desc("checkpoint_duration_seconds", "How long the last write of the ledger took.")
	problems      = desc("problems", "What an operator should look at: see xdpban status.")
	errorsTotal   = desc("errors_total", "Problems since the start, those that are over included.")
	hooked        = desc("hook_events_total", "Events that a program or webhook was to be told of, by what became of it.", "kind", "name", "result")
	hookRetries   = desc("hook_retries_total", "Attempts to tell a program or webhook that failed and were made again.", "kind", "name")
	hookWaiting   = desc("hook_waiting", "Events that a program or webhook isn't told of yet.", "kind", "name")

	fleetConnected = desc("fleet_connected", "1: a NATS server of the fleet is reached.")
	fleetSynced    = desc("fleet_synced", "1: all that others have banned is known.")
	fleetWaiting   = desc("fleet_waiting", "Bans and unbans of this host that aren't shared yet.")
	fleetBans      = desc("fleet_bans", "Bans of others that are in force here.")
	fleetSent      = desc("fleet_sent_total", "Bans and unbans shared.")
	fleetReceived  = desc("fleet_received_total", "Bans and unbans of others.")
	fleetTold      = desc("fleet_failures_sent_total", "Sources whose failures were told to others.")
	fleetHeard     = desc("fleet_failures_received_total", "Sources whose failures others have told.")
	fleetRefused   = desc("fleet_refused_total", "Bans of others that the allowlist kept from being put in force.")
	fleetRejected  = desc("fleet_rejected_total", "What others wrote and is not heeded.", "reason")
	fleetHostBans  = desc("fleet_host_bans", "Bans of a host of the fleet that are known.", "host")
	fleetHostHeld  = desc("fleet_host_held_bans", "Bans of a host held back: too many in a minute.", "host")
	fleetHostHeard = desc("fleet_host_heard_timestamp_seconds", "When a host last said that it is there.", "host")
	fleetHostLag   = desc("fleet_host_lag_seconds", "How long a host's last word took, by both clocks.", "host")

	feedEntries = desc("feed_entries", "Entries of a feed's last good list.", "feed")
	feedRefused = desc("feed_refused_entries", "Entries of a feed that are never banned here.", "feed")
	feedFetched = desc("feed_fetched_timestamp_seconds", "When a feed's source last had its list.", "feed")
	feedHeld    = desc("feed_held", "1: another list of a feed waits to be confirmed.", "feed")
	feedLooks   = desc("feed_looks_total", "Looks at a feed's source.", "feed")
	feedFailed  = desc("feed_failed_looks_total", "Looks at a feed's source that failed.", "feed")

	descs = []*prometheus.Desc{
		feedEntries, feedRefused, feedFetched, feedHeld, feedLooks, feedFailed,
		fleetConnected, fleetSynced, fleetWaiting, fleetBans, fleetSent, fleetReceived, fleetTold, fleetHeard, fleetRefused, fleetRejected,
		hooked, hookRetries, hookWaiting,
		fleetHostBans, fleetHostHeld, fleetHostHeard, fleetHostLag,
		buildInfo, packets, octets, ifacePackets, ifaceBytes, attached, bansActive, bansTotal, failures, tracked, jailPackets, jailBytes,
		entries, capacity, heldTotal, braked, lines, found, missed, skipped, lag, matchDuration, checkpointAt, checkpointFor, problems, errorsTotal,
	}
)

// collector answers a scrape.
type collector struct {
	daemon Daemon
	clock  func() time.Time

	mu    sync.Mutex
	base  map[string]control.Verdict // dropped by jail before the start
	shown map[string]control.Verdict // what was shown last: a counter never falls
	drops map[string]control.Verdict // by standing bans, as last walked
	next  time.Time                  // when to walk them again
}

const (
	// others is the label of what is beyond maxSources, and of bans of jails
	// that aren't configured.
	others     = "(others)"
	maxSources = 200
	scrapeTime = 20 * time.Second
	// restTimes is how much longer than a walk of all bans the rest after it
	// is: with a million it takes seconds.
	restTimes = 20
)

// begin notes what standing bans had dropped before: counters begin at 0.
func (c *collector) begin() error {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTime)
	defer cancel()
	s, err := c.daemon.Status(ctx)
	if err != nil {
		return err
	}
	c.base, err = c.walk(ctx, s)
	return err
}

// walk sums up what standing bans have dropped, by jail.
func (c *collector) walk(ctx context.Context, s control.Status) (map[string]control.Verdict, error) {
	known := map[string]bool{jails.Manual: true, jails.ByFleet: s.Fleet != nil}
	for _, j := range s.Jails {
		known[j.Name] = true
	}
	for _, f := range s.Feeds {
		known[jails.FeedPrefix+f.Name] = true
	}
	began := c.clock()
	sum := map[string]control.Verdict{}
	for b, err := range c.daemon.List(ctx, control.ListQuery{}) {
		if err != nil {
			return nil, err
		}
		if !known[b.Jail] {
			b.Jail = others
		}
		v := sum[b.Jail]
		sum[b.Jail] = control.Verdict{Packets: v.Packets + b.Packets, Bytes: v.Bytes + b.Bytes}
	}
	ended := c.clock()
	c.drops, c.next = sum, ended.Add(restTimes*ended.Sub(began))
	return sum, nil
}

func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range descs {
		ch <- d
	}
}

func (c *collector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTime)
	defer cancel()
	c.mu.Lock()
	defer c.mu.Unlock()
	// Status goes before the walk: a ban that ends meanwhile is missing in
	// both, which shown makes up for, rather than in both.
	s, err := c.daemon.Status(ctx)
	if err != nil {
		ch <- prometheus.NewInvalidMetric(buildInfo, err)
		return
	}
	st, err := c.daemon.Stats(ctx)
	if err != nil {
		ch <- prometheus.NewInvalidMetric(packets, err)
		return
	}
	if !c.clock().Before(c.next) {
		if _, err := c.walk(ctx, s); err != nil {
			ch <- prometheus.NewInvalidMetric(jailPackets, err)
			return
		}
	}
	send := func(t prometheus.ValueType) func(d *prometheus.Desc, v float64, labels ...string) {
		return func(d *prometheus.Desc, v float64, labels ...string) {
			ch <- prometheus.MustNewConstMetric(d, t, v, labels...)
		}
	}
	gauge, counter := send(prometheus.GaugeValue), send(prometheus.CounterValue)

	gauge(buildInfo, 1, s.Version)
	for reason, v := range st.Reasons {
		counter(packets, float64(v.Packets), reason)
		counter(octets, float64(v.Bytes), reason)
	}
	for iface, actions := range st.Interfaces {
		for action, v := range actions {
			counter(ifacePackets, float64(v.Packets), iface, action)
			counter(ifaceBytes, float64(v.Bytes), iface, action)
		}
	}
	for _, i := range s.Interfaces {
		gauge(attached, truth(i.Error == ""), i.Name)
	}
	gauge(entries, float64(st.Bans))
	gauge(capacity, float64(s.Capacity))
	counter(heldTotal, float64(s.Held))
	gauge(braked, truth(s.Braked))
	gauge(problems, float64(len(s.Problems)))
	counter(errorsTotal, float64(s.Errors))
	if !s.Checkpoint.IsZero() {
		gauge(checkpointAt, float64(s.Checkpoint.UnixMilli())/1000)
	}
	gauge(checkpointFor, time.Duration(s.CheckpointTook).Seconds())
	within := map[float64]uint64{}
	for _, w := range s.Matching.Within {
		within[time.Duration(w.Most).Seconds()] = w.Blocks
	}
	ch <- prometheus.MustNewConstHistogram(matchDuration, s.Matching.Blocks, time.Duration(s.Matching.Took).Seconds(), within)

	for _, h := range s.Hooks {
		counter(hooked, float64(h.Done), h.Kind, h.Name, "done")
		counter(hooked, float64(h.Failed), h.Kind, h.Name, "failed")
		counter(hooked, float64(h.TimedOut), h.Kind, h.Name, "timed_out")
		counter(hooked, float64(h.Dropped), h.Kind, h.Name, "dropped")
		counter(hookRetries, float64(h.Retries), h.Kind, h.Name)
		gauge(hookWaiting, float64(h.Waiting+h.Running), h.Kind, h.Name)
	}

	if f := s.Fleet; f != nil {
		gauge(fleetConnected, truth(f.Server != ""))
		gauge(fleetSynced, truth(f.Synced))
		gauge(fleetWaiting, float64(f.Waiting))
		gauge(fleetBans, float64(f.Bans))
		counter(fleetSent, float64(f.Published))
		counter(fleetReceived, float64(f.Received))
		counter(fleetTold, float64(f.FailuresSent))
		counter(fleetHeard, float64(f.FailuresReceived))
		counter(fleetRefused, float64(f.Refused))
		for why, n := range f.Rejected {
			counter(fleetRejected, float64(n), why)
		}
		for _, h := range f.Hosts {
			gauge(fleetHostBans, float64(h.Bans), h.Host)
			gauge(fleetHostHeld, float64(h.Held), h.Host)
			if !h.Heard.IsZero() {
				gauge(fleetHostHeard, float64(h.Heard.UnixMilli())/1000, h.Host)
				gauge(fleetHostLag, h.Lag, h.Host)
			}
		}
	}

	dropped := map[string]control.Verdict{jails.Manual: {}, others: {}}
	if s.Fleet != nil {
		dropped[jails.ByFleet] = control.Verdict{}
	}
	for _, j := range s.Jails {
		dropped[j.Name] = j.Dropped
		if !j.Enabled {
			continue
		}
		gauge(bansActive, float64(j.Bans), j.Name)
		counter(bansTotal, float64(j.Total), j.Name)
		counter(failures, float64(j.Failures), j.Name)
		gauge(tracked, float64(j.Tracked), j.Name)
	}
	for _, f := range s.Feeds {
		jail := jails.FeedPrefix + f.Name
		dropped[jail] = f.Dropped
		gauge(bansActive, float64(f.Bans), jail)
		gauge(feedEntries, float64(f.Entries), f.Name)
		gauge(feedRefused, float64(f.Refused), f.Name)
		if !f.Fetched.IsZero() {
			gauge(feedFetched, float64(f.Fetched.UnixMilli())/1000, f.Name)
		}
		gauge(feedHeld, truth(f.Holding), f.Name)
		counter(feedLooks, float64(f.Looks), f.Name)
		counter(feedFailed, float64(f.Failed), f.Name)
	}
	for jail, v := range dropped {
		d, b := c.drops[jail], c.base[jail]
		// A reload may take a jail and its counts away: never below 0 either.
		v = control.Verdict{
			Packets: max(v.Packets+d.Packets, b.Packets+c.shown[jail].Packets) - b.Packets,
			Bytes:   max(v.Bytes+d.Bytes, b.Bytes+c.shown[jail].Bytes) - b.Bytes,
		}
		c.shown[jail] = v
		counter(jailPackets, float64(v.Packets), jail)
		counter(jailBytes, float64(v.Bytes), jail)
	}
	for _, src := range fewer(s.Sources) {
		counter(lines, float64(src.Lines), src.Stream)
		counter(found, float64(src.Failures), src.Stream)
		counter(missed, float64(src.Missed), src.Stream)
		counter(skipped, float64(src.Ignored), src.Stream, "ignored")
		counter(skipped, float64(src.Skipped), src.Stream, "budget")
		counter(skipped, float64(src.TooLong), src.Stream, "too_long")
		gauge(lag, time.Duration(src.Lag).Seconds(), src.Stream)
	}
}

// fewer sums up what is beyond maxSources: a glob may stand for thousands.
func fewer(all []control.Source) []control.Source {
	if len(all) <= maxSources {
		return all
	}
	rest := control.Source{Stream: others}
	for _, s := range all[maxSources:] {
		rest.Lines += s.Lines
		rest.Failures += s.Failures
		rest.Missed += s.Missed
		rest.Ignored += s.Ignored
		rest.Skipped += s.Skipped
		rest.TooLong += s.TooLong
		rest.Lag = max(rest.Lag, s.Lag)
	}
	return append(slices.Clone(all[:maxSources]), rest)
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
