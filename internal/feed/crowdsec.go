package feed

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"
)

// Decisions of a CrowdSec local API come as a stream: all of them at first, then
// what is new and what is deleted since the last answer.
const (
	// resync is how often all are asked for again, whatever the deltas were.
	resync = time.Hour
	// keepEvery is how often they are written to disk.
	keepEvery = 10 * time.Minute
)

// stream is what is known of the decisions.
type stream struct {
	ends   map[netip.Prefix]time.Time
	all    time.Time // when all were asked for; zero: ask for all
	kept   time.Time
	dirty  bool
	others int // decisions that aren't bans of addresses
}

type decision struct {
	Type     string `json:"type"`
	Scope    string `json:"scope"`
	Value    string `json:"value"`
	Duration string `json:"duration"`
}

// decisions are an answer.
type decisions struct {
	New     []decision `json:"new"`
	Deleted []decision `json:"deleted"`
}

// follow takes what has changed since the last look.
func (n *feed) follow(ctx context.Context) error {
	if n.stream == nil {
		n.stream = &stream{ends: map[netip.Prefix]time.Time{}}
	}
	s := n.stream
	now := n.o.Now()
	startup := s.all.IsZero() || now.Sub(s.all) >= resync
	d, err := n.source.decisions(ctx, n.o, startup)
	if err != nil {
		// The API may have counted its answer as given.
		s.all = time.Time{}
		return err
	}
	next := s.ends
	var over []netip.Prefix
	if startup {
		// What was in force before is of another answer, or of another run.
		over = slices.Concat(slices.Collect(maps.Keys(s.ends)), n.left, prefixesOf(n.entries))
		next, s.others = map[netip.Prefix]time.Time{}, 0
	}
	for _, x := range d.Deleted {
		if p, ok := x.prefix(); ok {
			over = append(over, p)
			delete(next, p)
		}
	}
	news := map[netip.Prefix]time.Time{}
	for _, x := range d.New {
		p, ok := x.prefix()
		left, err := time.ParseDuration(x.Duration)
		if !ok || err != nil {
			s.others++
			continue
		}
		if left <= 0 {
			continue
		}
		until := now.Add(left)
		if startup && news[p].After(until) {
			continue
		}
		news[p] = until
	}
	for p, until := range next {
		if until.Before(now) {
			delete(next, p)
		}
	}
	if len(next)+len(news) > n.source.MaxEntries {
		s.all = time.Time{}
		return fmt.Errorf("get %s: %w: more than max_entries = %d", n.source.URL, errTooMany, n.source.MaxEntries)
	}
	if err := n.all.room(n, len(next)+len(news)); err != nil {
		s.all = time.Time{}
		return err
	}
	for p, until := range news {
		// The same decision comes anew with each answer that has all: its end is
		// as before but for a part of a second.
		if was, ok := s.ends[p]; ok && was.Sub(until).Abs() < 2*time.Second {
			news[p] = was
		}
	}
	maps.Copy(next, news)
	s.ends = next
	s.dirty = s.dirty || len(news)+len(over) > 0
	if err := n.enforceStream(ctx, startup, news, over); err != nil {
		n.left, s.all = append(n.left, over...), time.Time{}
		return err
	}
	if startup {
		s.all = now
	}
	n.copy = &header{Source: n.source.id(), Fetched: now, Entries: len(next)}
	n.say(func(st *Status) { st.Entries, st.Bad, st.Fetched = len(next), s.others, now })
	if s.dirty && now.Sub(s.kept) >= keepEvery {
		s.keep(n)
	}
	return nil
}

// enforceStream puts what is new in force, and ends what is over.
func (n *feed) enforceStream(ctx context.Context, startup bool, news map[netip.Prefix]time.Time, over []netip.Prefix) error {
	over = slices.DeleteFunc(over, func(p netip.Prefix) bool { _, ok := n.stream.ends[p]; return ok })
	if len(over) > 0 {
		if err := n.list.Delist(ctx, n.source.Name, slices.Values(over)); err != nil {
			return err
		}
	}
	if len(news) > 0 {
		refused, err := n.list.Enlist(ctx, n.source.Name, func(yield func(netip.Prefix, time.Time) bool) {
			for p, until := range news {
				if !yield(p, until) {
					return
				}
			}
		})
		if err != nil {
			return err
		}
		if !startup {
			n.say(func(s *Status) { refused += s.Refused })
		}
		n.refused(refused)
	}
	if len(news)+len(over) > 0 {
		n.o.Log.Info(fmt.Sprintf("feed %s: %d decisions, %d taken back", n.source.Name, len(news), len(over)))
	}
	if startup {
		n.left, n.entries = nil, nil
	}
	return nil
}

// keep writes the decisions down, for a start without the API.
func (s *stream) keep(n *feed) {
	if !s.dirty || n.copy == nil {
		return
	}
	entries := make([]Entry, 0, len(s.ends))
	for p, until := range s.ends {
		entries = append(entries, Entry{p, until})
	}
	err := save(n.o.Dir, n.source.Name, *n.copy, sorted(entries))
	if err != nil {
		n.o.Log.Warn(err.Error())
		return
	}
	s.dirty, s.kept = false, n.o.Now()
}

// prefix is what a decision bans, if it bans addresses.
func (d *decision) prefix() (netip.Prefix, bool) {
	if !strings.EqualFold(d.Type, "ban") || !strings.EqualFold(d.Scope, "ip") && !strings.EqualFold(d.Scope, "range") {
		return netip.Prefix{}, false
	}
	p, err := ParsePrefix(d.Value)
	return p, err == nil
}

// decisions asks for all, or for what has changed since the last answer.
func (s *Source) decisions(ctx context.Context, o *Options, startup bool) (d decisions, err error) {
	key, err := s.key()
	if err != nil {
		return d, err
	}
	client, err := s.client(o)
	if err != nil {
		return d, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, o.fetchTime(), fmt.Errorf("it wasn't done within %s", o.fetchTime()))
	defer cancel()
	at, err := url.JoinPath(s.URL, "v1/decisions/stream")
	if err != nil {
		return d, err
	}
	r, err := s.request(ctx, o, fmt.Sprintf("%s?startup=%t&scopes=ip,range", at, startup))
	if err != nil {
		return d, err
	}
	r.Header.Set("X-Api-Key", key)
	a, err := client.Do(r)
	if err != nil {
		return d, cause(ctx, err)
	}
	defer a.Body.Close()
	switch a.StatusCode {
	case http.StatusOK:
	case http.StatusForbidden, http.StatusUnauthorized:
		return d, fmt.Errorf("get %s: the API says %s: make a key with cscli bouncers add xdpban, and write it to %s", at, a.Status, s.KeyFile)
	default:
		return d, fmt.Errorf("get %s: the API says %s", at, a.Status)
	}
	if d, err = readDecisions(a.Body, s); err != nil {
		return d, fmt.Errorf("get %s: %w", at, cause(ctx, err))
	}
	return d, nil
}

func readDecisions(r io.Reader, s *Source) (d decisions, err error) {
	if err := json.NewDecoder(&bounded{r: r, left: s.MaxBytes, most: s.MaxBytes}).Decode(&d); err != nil {
		return d, within(err)
	}
	if n := len(d.New) + len(d.Deleted); n > 2*s.MaxEntries {
		return d, fmt.Errorf("%w: %d decisions", errTooMany, n)
	}
	return d, nil
}
