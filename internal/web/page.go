package web

import (
	"cmp"
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"xdpban/internal/control"
)

//go:embed assets
var assets embed.FS

// Explainer is what the page asks besides.
type Explainer interface {
	Daemon
	Why(ctx context.Context, p netip.Prefix) (control.Why, error)
	Unban(ctx context.Context, r control.UnbanRequest) (control.UnbanResult, error)
}

// topBans is how many bans the page shows.
const topBans = 50

// page serves the page and what it asks for.
type page struct {
	daemon Explainer
	token  string
	log    *slog.Logger

	mu   sync.Mutex
	top  []control.Ban
	next time.Time // when to walk the bans again
}

// now is what the page asks for again and again.
type now struct {
	At         time.Time         `json:"at"`
	Version    string            `json:"version"`
	Bans       int               `json:"bans"`
	Interfaces []string          `json:"interfaces"` // guarded
	Problems   []string          `json:"problems"`
	Packets    map[string]uint64 `json:"packets"` // by XDP action
	Jails      []control.Jail    `json:"jails"`   // that run
	Top        []control.Ban     `json:"top"`
	MayUnban   bool              `json:"may_unban"`
}

// Page serves the page. With a token it lets who knows that unban.
func Page(d Explainer, token string, log *slog.Logger) (http.Handler, error) {
	files, err := fs.Sub(assets, "assets")
	if err != nil {
		return nil, err
	}
	p := &page{daemon: d, token: token, log: log}
	mux := http.NewServeMux()
	mux.Handle("GET /", http.FileServerFS(files))
	mux.HandleFunc("GET /api/now", p.now)
	mux.HandleFunc("GET /api/why", p.why)
	mux.HandleFunc("POST /api/unban", p.unban)
	sameOrigin := http.NewCrossOriginProtection().Handler(mux)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		sameOrigin.ServeHTTP(w, r)
	}), nil
}

func (p *page) now(w http.ResponseWriter, r *http.Request) {
	s, err := p.daemon.Status(r.Context())
	if err != nil {
		refuse(w, http.StatusServiceUnavailable, err)
		return
	}
	st, err := p.daemon.Stats(r.Context())
	if err != nil {
		refuse(w, http.StatusServiceUnavailable, err)
		return
	}
	n := now{
		At: st.At, Version: s.Version, Bans: s.Bans, Packets: map[string]uint64{},
		Interfaces: []string{}, Problems: append([]string{}, s.Problems...), Jails: []control.Jail{}, MayUnban: p.token != "",
	}
	for action, v := range st.Verdicts {
		n.Packets[action] = v.Packets
	}
	for _, i := range s.Interfaces {
		if i.Error == "" {
			n.Interfaces = append(n.Interfaces, i.Name)
		}
	}
	for _, j := range s.Jails {
		if j.Enabled && !j.Waits {
			n.Jails = append(n.Jails, j)
		}
	}
	if n.Top, err = p.most(r.Context()); err != nil {
		refuse(w, http.StatusServiceUnavailable, err)
		return
	}
	send(w, http.StatusOK, n)
}

// most lists the bans that have dropped most. However many look, the bans are
// walked but now and then.
func (p *page) most(ctx context.Context) ([]control.Ban, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Now().Before(p.next) {
		return p.top, nil
	}
	began := time.Now()
	top := []control.Ban{}
	most := func(a, b control.Ban) int {
		return cmp.Or(cmp.Compare(b.Packets, a.Packets), b.Since.Compare(a.Since), a.Prefix.Compare(b.Prefix))
	}
	for b, err := range p.daemon.List(ctx, control.ListQuery{}) {
		if err != nil {
			return nil, err
		}
		if top = append(top, b); len(top) == 100*topBans {
			slices.SortFunc(top, most)
			top = top[:topBans]
		}
	}
	slices.SortFunc(top, most)
	p.top = slices.Clone(top[:min(len(top), topBans)])
	p.next = time.Now().Add(restTimes * time.Since(began))
	return p.top, nil
}

func (p *page) why(w http.ResponseWriter, r *http.Request) {
	prefix, err := prefixOf(r.URL.Query().Get("address"))
	if err != nil {
		refuse(w, http.StatusBadRequest, err)
		return
	}
	y, err := p.daemon.Why(r.Context(), prefix)
	if err != nil {
		refuse(w, http.StatusServiceUnavailable, err)
		return
	}
	send(w, http.StatusOK, y)
}

// prefixOf reads an address or a subnet.
func prefixOf(text string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(text); err == nil && a.Zone() == "" {
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return p, fmt.Errorf("%q is no address and no subnet", text)
	}
	return p.Masked(), nil
}

// unban ends a ban for who shows the token in a header that a browser sends
// only when our own script sets it.
func (p *page) unban(w http.ResponseWriter, r *http.Request) {
	switch {
	case p.token == "":
		refuse(w, http.StatusForbidden, errors.New("nobody may unban here: token_file isn't set"))
		return
	case !authorized(r, p.token):
		refuse(w, http.StatusUnauthorized, errors.New("that is not the token of token_file"))
		return
	case !strings.HasPrefix(r.Header.Get("Content-Type"), "application/json"):
		refuse(w, http.StatusUnsupportedMediaType, errors.New("the body isn't application/json"))
		return
	}
	var in struct{ Prefix netip.Prefix }
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1024))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&in); err != nil || !in.Prefix.IsValid() {
		refuse(w, http.StatusBadRequest, errors.New(`the body isn't {"prefix": "203.0.113.9/32"}`))
		return
	}
	p.log.Info("control", "call", r.URL.Path, "peer", r.RemoteAddr)
	u, err := p.daemon.Unban(r.Context(), control.UnbanRequest{Prefixes: []netip.Prefix{in.Prefix}})
	if err != nil {
		refuse(w, http.StatusServiceUnavailable, err)
		return
	}
	send(w, http.StatusOK, u)
}

func refuse(w http.ResponseWriter, status int, err error) {
	send(w, status, control.Error{Code: http.StatusText(status), Message: err.Error()})
}

func send(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // a peer that went away reads no errors
}
