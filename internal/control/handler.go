package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"time"

	"xdpban/jails"
)

// Limits of one request. A million prefixes are about 25 MB, a million bans
// with their ends 150 MB; only who may write gets to send a body at all.
const (
	MaxBody     = 512 << 20
	MaxPrefixes = 2_000_000
)

type handler struct {
	daemon Daemon
	socket Socket
	log    *slog.Logger
}

func newHandler(d Daemon, s Socket, log *slog.Logger) http.Handler {
	h := &handler{daemon: d, socket: s, log: log}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", h.read(h.status))
	mux.HandleFunc("GET /v1/bans", h.list)
	mux.HandleFunc("GET /v1/ports", h.read(h.ports))
	mux.HandleFunc("GET /v1/allow", h.read(h.allowed))
	mux.HandleFunc("GET /v1/stats", h.read(h.stats))
	mux.HandleFunc("GET /v1/why", h.read(h.why))
	mux.HandleFunc("GET /v1/history", h.read(h.history))
	mux.HandleFunc("POST /v1/ban", h.write(h.ban))
	mux.HandleFunc("POST /v1/unban", h.write(h.unban))
	mux.HandleFunc("POST /v1/allow", h.write(h.allow))
	mux.HandleFunc("POST /v1/disallow", h.write(h.disallow))
	mux.HandleFunc("POST /v1/import", h.write(h.importBans))
	mux.HandleFunc("POST /v1/fleet/eject", h.write(h.eject))
	mux.HandleFunc("GET /v1/feeds", h.read(h.feeds))
	mux.HandleFunc("POST /v1/feeds/confirm", h.write(h.confirmFeed))
	mux.HandleFunc("POST /v1/feeds/fetch", h.write(h.fetchFeed))
	mux.HandleFunc("POST /v1/reload", h.write(h.reload))
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fail(w, fmt.Errorf("%w: no such call: %s %s", ErrNotFound, r.Method, r.URL.Path))
	})
	return mux
}

// verb answers one call with a value that is sent as JSON.
type verb func(r *http.Request) (any, error)

func (h *handler) read(v verb) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if err := h.access(r, h.socket.mayRead); err != nil {
			fail(w, err)
			return
		}
		answer(w, r, v)
	}
}

func (h *handler) write(v verb) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if err := h.access(r, h.socket.mayWrite); err != nil {
			fail(w, err)
			return
		}
		p := r.Context().Value(peerKey{}).(Peer)
		h.log.Info("control", "call", r.URL.Path, "uid", p.UID, "pid", p.PID)
		r.Body = http.MaxBytesReader(w, r.Body, MaxBody)
		answer(w, r, v)
	}
}

func (h *handler) access(r *http.Request, may func(Peer) bool) error {
	p, ok := r.Context().Value(peerKey{}).(Peer)
	if ok && may(p) {
		return nil
	}
	return fmt.Errorf("%w: uid %d may not %s %s on %s", ErrForbidden, p.UID, r.Method, r.URL.Path, h.socket.Path)
}

func answer(w http.ResponseWriter, r *http.Request, v verb) {
	a, err := v(r)
	if err != nil {
		fail(w, err)
		return
	}
	send(w, http.StatusOK, a)
}

func fail(w http.ResponseWriter, err error) {
	e, status := errorFor(err)
	send(w, status, e)
}

func send(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // a peer that went away reads no errors
}

func (h *handler) status(r *http.Request) (any, error) {
	if _, err := query(r); err != nil {
		return nil, err
	}
	return h.daemon.Status(r.Context())
}

func (h *handler) allowed(r *http.Request) (any, error) {
	if _, err := query(r); err != nil {
		return nil, err
	}
	a, err := h.daemon.Allowed(r.Context())
	if a == nil {
		a = []Allow{}
	}
	return a, err
}

func (h *handler) ports(r *http.Request) (any, error) {
	if _, err := query(r); err != nil {
		return nil, err
	}
	p, err := h.daemon.Ports(r.Context())
	if p == nil {
		p = []Port{}
	}
	return p, err
}

func (h *handler) stats(r *http.Request) (any, error) {
	if _, err := query(r); err != nil {
		return nil, err
	}
	return h.daemon.Stats(r.Context())
}

// list streams, since there may be millions. What fails halfway breaks the
// connection off, so that half a list never looks like a whole one.
func (h *handler) list(w http.ResponseWriter, r *http.Request) {
	if err := h.access(r, h.socket.mayRead); err != nil {
		fail(w, err)
		return
	}
	q, err := query(r, "jail")
	if err != nil {
		fail(w, err)
		return
	}
	ports, err := h.daemon.Ports(r.Context())
	if err != nil {
		fail(w, err)
		return
	}
	started := false
	enc := json.NewEncoder(w)
	begin := func() {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"bans":[`)
		started = true
	}
	for b, err := range h.daemon.List(r.Context(), ListQuery{Jail: q.Get("jail")}) {
		if err == nil && !started {
			begin()
		} else if err == nil {
			_, err = io.WriteString(w, ",")
		}
		if err == nil {
			err = enc.Encode(b)
		}
		if err != nil && !started {
			fail(w, err)
			return
		}
		if err != nil {
			panic(http.ErrAbortHandler)
		}
	}
	if !started {
		begin()
	}
	_, _ = io.WriteString(w, `],"ports":`)
	if ports == nil {
		ports = []Port{}
	}
	_ = enc.Encode(ports)
	_, _ = io.WriteString(w, "}\n")
}

func (h *handler) why(r *http.Request) (any, error) {
	q, err := query(r, "prefix")
	if err != nil {
		return nil, err
	}
	p, err := prefix(q.Get("prefix"))
	if err != nil {
		return nil, err
	}
	return h.daemon.Why(r.Context(), p)
}

func (h *handler) history(r *http.Request) (any, error) {
	q, err := query(r, "prefix", "since", "limit")
	if err != nil {
		return nil, err
	}
	var hq HistoryQuery
	if s := q.Get("prefix"); s != "" {
		if hq.Prefix, err = prefix(s); err != nil {
			return nil, err
		}
	}
	if s := q.Get("since"); s != "" {
		if hq.Since.Time, err = time.Parse(time.RFC3339Nano, s); err != nil {
			return nil, fmt.Errorf("%w: since: %w", ErrInvalid, err)
		}
	}
	if s := q.Get("limit"); s != "" {
		if hq.Limit, err = strconv.Atoi(s); err != nil || hq.Limit < 0 {
			return nil, fmt.Errorf("%w: limit %q isn't a count", ErrInvalid, s)
		}
	}
	ev, err := h.daemon.History(r.Context(), hq)
	if ev == nil {
		ev = []Event{}
	}
	return ev, err
}

func (h *handler) ban(r *http.Request) (any, error) {
	var q BanRequest
	if err := body(r, &q); err != nil {
		return nil, err
	}
	if err := prefixes(q.Prefixes); err != nil {
		return nil, err
	}
	if q.For == 0 {
		return nil, fmt.Errorf(`%w: for is missing: say how long, or "forever"`, ErrInvalid)
	}
	if err := jailName(q.Jail); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return h.daemon.Ban(r.Context(), q)
}

// prefixList is the body of allow and disallow.
type prefixList struct {
	Prefixes []netip.Prefix `json:"prefixes"`
}

func list(r *http.Request) ([]netip.Prefix, error) {
	var q prefixList
	if err := body(r, &q); err != nil {
		return nil, err
	}
	return q.Prefixes, prefixes(q.Prefixes)
}

func (h *handler) unban(r *http.Request) (any, error) {
	var q UnbanRequest
	if err := body(r, &q); err != nil {
		return nil, err
	}
	if q.All == (len(q.Prefixes) > 0) {
		return nil, fmt.Errorf("%w: say either which prefixes, or all", ErrInvalid)
	}
	if !q.All {
		if err := prefixes(q.Prefixes); err != nil {
			return nil, err
		}
	}
	return h.daemon.Unban(r.Context(), q)
}

// count is the answer to allow and disallow.
type count struct {
	Changed int `json:"changed"`
}

func (h *handler) allow(r *http.Request) (any, error) {
	p, err := list(r)
	if err != nil {
		return nil, err
	}
	n, err := h.daemon.Allow(r.Context(), p)
	return count{n}, err
}

func (h *handler) disallow(r *http.Request) (any, error) {
	p, err := list(r)
	if err != nil {
		return nil, err
	}
	n, err := h.daemon.Disallow(r.Context(), p)
	return count{n}, err
}

func (h *handler) importBans(r *http.Request) (any, error) {
	var q ImportRequest
	if err := body(r, &q); err != nil {
		return nil, err
	}
	if len(q.Bans) > MaxPrefixes {
		return nil, fmt.Errorf("%w: %d bans, at most %d at once", ErrInvalid, len(q.Bans), MaxPrefixes)
	}
	for i, b := range q.Bans {
		if err := CheckBan(b); err != nil {
			return nil, fmt.Errorf("%w: ban %d: %w", ErrInvalid, i+1, err)
		}
	}
	return h.daemon.Import(r.Context(), q)
}

func (h *handler) eject(r *http.Request) (any, error) {
	var q EjectRequest
	if err := body(r, &q); err != nil {
		return nil, err
	}
	if !jails.FleetName(q.Host) {
		return nil, fmt.Errorf("%w: %q can't be the name of a host in a fleet", ErrInvalid, q.Host)
	}
	return struct{}{}, h.daemon.Eject(r.Context(), q)
}

func (h *handler) feeds(r *http.Request) (any, error) {
	if _, err := query(r); err != nil {
		return nil, err
	}
	return h.daemon.Feeds(r.Context())
}

func (h *handler) confirmFeed(r *http.Request) (any, error) {
	var q FeedRequest
	if err := body(r, &q); err != nil {
		return nil, err
	}
	return struct{}{}, h.daemon.ConfirmFeed(r.Context(), q)
}

func (h *handler) fetchFeed(r *http.Request) (any, error) {
	var q FeedRequest
	if err := body(r, &q); err != nil {
		return nil, err
	}
	return struct{}{}, h.daemon.FetchFeed(r.Context(), q)
}

func (h *handler) reload(r *http.Request) (any, error) {
	if err := body(r, &struct{}{}); err != nil {
		return nil, err
	}
	return h.daemon.Reload(r.Context())
}

// query refuses parameters that the call doesn't know, and repeated ones.
func query(r *http.Request, known ...string) (url.Values, error) {
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	n := 0
	for _, k := range known {
		if v, ok := q[k]; ok {
			n++
			if len(v) > 1 {
				return nil, fmt.Errorf("%w: %s is given %d times", ErrInvalid, k, len(v))
			}
		}
	}
	if n != len(q) {
		return nil, fmt.Errorf("%w: unknown parameter among %q", ErrInvalid, r.URL.RawQuery)
	}
	return q, nil
}

// body reads exactly one JSON value without unknown fields.
func body(r *http.Request, v any) error {
	dec := json.NewDecoder(r.Body)
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: something follows the JSON value", ErrInvalid)
	}
	return nil
}

func prefix(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if p != p.Masked() {
		return p, fmt.Errorf("%w: %s has bits beyond its length; write %s", ErrInvalid, p, p.Masked())
	}
	return p, nil
}

func prefixes(ps []netip.Prefix) error {
	if len(ps) == 0 {
		return fmt.Errorf("%w: no prefixes", ErrInvalid)
	}
	if len(ps) > MaxPrefixes {
		return fmt.Errorf("%w: %d prefixes, at most %d at once", ErrInvalid, len(ps), MaxPrefixes)
	}
	for i, p := range ps {
		if err := checkPrefix(p); err != nil {
			return fmt.Errorf("%w: prefix %d: %w", ErrInvalid, i+1, err)
		}
	}
	return nil
}

// checkPrefix says whether a prefix is one the kernel's lists can hold:
// masked, without a zone, IPv4 as IPv4.
func checkPrefix(p netip.Prefix) error {
	switch {
	case !p.IsValid():
		return errors.New("missing")
	case p != p.Masked():
		return fmt.Errorf("%s has bits beyond its length; write %s", p, p.Masked())
	case p.Addr().Is4In6():
		return fmt.Errorf("%s is IPv4 in IPv6's form; write it as IPv4", p)
	}
	return nil
}

// CheckBan says whether b is fit to be imported.
func CheckBan(b Ban) error {
	if err := checkPrefix(b.Prefix); err != nil {
		return fmt.Errorf("prefix: %w", err)
	}
	if err := jailName(b.Jail); err != nil {
		return err
	}
	if !b.Until.IsZero() && b.Until.Before(b.Since) {
		return fmt.Errorf("%s ends before it begins", b.Prefix)
	}
	_, err := b.PortRanges()
	return err
}

// PortRanges are the ports that a ban is limited to.
func (b Ban) PortRanges() ([]jails.PortRange, error) {
	var ports []jails.PortRange
	for _, s := range b.Ports {
		p, err := jails.ParsePortRange(s)
		if err != nil {
			return nil, fmt.Errorf("ports of %s: %w", b.Prefix, err)
		}
		ports = append(ports, p)
	}
	return ports, nil
}

// jailName says whether a name fits into the kernel's map of origins and
// prints as one word.
func jailName(s string) error {
	if len(s) > 63 {
		return fmt.Errorf("jail name %.20q… is longer than 63 bytes", s)
	}
	for _, r := range s {
		if r <= ' ' || r == 0x7f || r == 0xfffd {
			return fmt.Errorf("jail name %q has blanks or control characters", s)
		}
	}
	return nil
}
