package fleet

import (
	"context"
	"encoding/json"
	"net/netip"
	"time"

	"github.com/nats-io/nats.go"

	"xdpban/jails"
)

// What hosts tell each other of failures is bounded in number and rate: by
// whoever attacks them, it may be many. They aren't kept anywhere: what is lost
// is counted again with the next failure.
const (
	maxSources      = 1000        // in one message
	tellTime        = time.Second // between messages
	maxUnread       = 200         // messages
	maxUnreadBytes  = 8 << 20
	sourcesPerMin   = 2 * maxSources * int(time.Minute/tellTime)
	maxFailures     = 10_000 // of one source in one message
	failuresVersion = 1
)

// failures are those that others haven't been told of.
type failures struct {
	waiting map[failing]tally
	wake    chan struct{}

	sent, received uint64
}

type failing struct {
	jail   string
	source netip.Prefix
}

type tally struct {
	n    int
	last time.Time
}

func newFailures() failures {
	return failures{waiting: map[failing]tally{}, wake: make(chan struct{}, 1)}
}

func (f *failures) forget(b jails.Ban) { delete(f.waiting, failing{b.Jail, b.Prefix}) }

// Failed hears of a failure here.
func (f *Fleet) Failed(jail string, source netip.Prefix, at time.Time) {
	if !jails.Shares(f.o.Settings.Publish, jail) {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	k := failing{jail, source}
	t, ok := f.failures.waiting[k]
	if !ok && len(f.failures.waiting) >= maxSources {
		return
	}
	t.n = min(t.n+1, maxFailures)
	if at.After(t.last) {
		t.last = at
	}
	f.failures.waiting[k] = t
	poke(f.failures.wake)
}

// told is a message, and toldOf what it says of one source; the time is in Unix
// milliseconds.
type told struct {
	Version  int      `json:"v"`
	Failures []toldOf `json:"f"`
}

type toldOf struct {
	Jail   string       `json:"j"`
	Source netip.Prefix `json:"p"`
	N      int          `json:"n"`
	Last   int64        `json:"t"`
}

// report tells others what has failed here: the first at once, and then what
// comes together in a second.
func (r *run) report(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.failures.wake:
		}
		r.mu.Lock()
		m := told{Version: failuresVersion}
		for k, t := range r.failures.waiting {
			m.Failures = append(m.Failures, toldOf{k.jail, k.source, t.n, t.last.UnixMilli()})
		}
		clear(r.failures.waiting)
		r.failures.sent += uint64(len(m.Failures))
		r.mu.Unlock()
		if len(m.Failures) > 0 {
			text, _ := json.Marshal(m)                                       // strings and numbers
			_ = r.nc.Publish(r.subject("failures", r.o.Settings.Host), text) // the next failure says more
		}
		if !pause(ctx, tellTime) {
			return
		}
	}
}

// reported takes what another host has counted. Nothing of it is trusted.
func (r *run) reported(ctx context.Context, m *nats.Msg) {
	name := m.Subject[len(r.subject("failures", "")):]
	if name == r.o.Settings.Host {
		return
	}
	now := r.o.Now()
	r.mu.Lock()
	list := r.table.reports(name, m.Data, now)
	r.failures.received += uint64(len(list))
	r.mu.Unlock()
	if len(list) > 0 {
		_ = r.d.Reported(ctx, list) // it ends
	}
}

// reports reads a message of a host.
func (t *table) reports(name string, text []byte, now time.Time) []jails.Report {
	if !jails.FleetName(name) {
		t.reject(nil, badKey)
		return nil
	}
	h := t.host(name)
	if h == nil || t.ejected[name] {
		why := ejected
		if h == nil {
			why = tooMany
		}
		t.reject(h, why)
		return nil
	}
	var m told
	if json.Unmarshal(text, &m) != nil || m.Version != failuresVersion || len(m.Failures) > maxSources {
		t.reject(h, badValue)
		return nil
	}
	var list []jails.Report
	for _, f := range m.Failures {
		switch {
		case !h.reported.take(now, sourcesPerMin):
			t.reject(h, tooMany)
			continue
		case f.Jail == "" || len(f.Jail) > maxJail || !printable(f.Jail), f.N < 1 || f.N > maxFailures, f.Last <= 0 || f.Last > maxTime,
			!f.Source.IsValid() || f.Source != f.Source.Masked():
			t.reject(h, badValue)
			continue
		case !jails.Shares(t.conf.Subscribe, f.Jail):
			continue
		}
		if why := t.judge(h, f.Source); why != "" {
			t.reject(h, why)
			continue
		}
		list = append(list, jails.Report{Host: h.name, Jail: f.Jail, Source: f.Source, Failures: f.N, At: time.UnixMilli(f.Last)})
	}
	return list
}
