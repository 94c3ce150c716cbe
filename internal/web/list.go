package web

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"xdpban/internal/control"
	"xdpban/internal/export"
)

// Lister walks the bans that stand.
type Lister interface {
	List(ctx context.Context, q control.ListQuery) iter.Seq2[control.Ban, error]
}

// lists serves them.
type lists struct {
	daemon  Lister
	changes func() uint64
	began   int64
	slots   chan struct{}
	log     *slog.Logger
}

// maxLists is how many lists are written at a time: each walks all bans.
const maxLists = 4

// Lists serves who is banned to other firewalls, by format: /plain, /nft, …,
// and with ?jail=NAME one jail's bans. changes is another number after each
// change of what stands.
func Lists(d Lister, changes func() uint64, log *slog.Logger) http.Handler {
	return &lists{daemon: d, changes: changes, began: time.Now().UnixNano(), slots: make(chan struct{}, maxLists), log: log}
}

func (l *lists) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("X-Content-Type-Options", "nosniff")
	f := export.Format(strings.TrimPrefix(r.URL.Path, "/"))
	switch {
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		h.Set("Allow", "GET, HEAD")
		http.Error(w, "this is only to be read", http.StatusMethodNotAllowed)
		return
	case !slices.Contains(export.Formats(), f):
		var paths []string
		for _, f := range export.Formats() {
			paths = append(paths, "/"+string(f))
		}
		http.Error(w, "the lists are "+strings.Join(paths, ", ")+"; with ?jail=NAME those of one jail", http.StatusNotFound)
		return
	}
	// Whoever has the list of a tag has missed nothing while the tag is the
	// same: it is looked at before the walk, so what changes meanwhile makes
	// another one. It's weak: times and counts go on.
	tag := `W/"` + strconv.FormatInt(l.began, 36) + "-" + strconv.FormatUint(l.changes(), 36) + `"`
	h.Set("ETag", tag)
	h.Set("Cache-Control", "no-cache")
	if known(r.Header.Values("If-None-Match"), tag) {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	h.Set("Content-Type", f.ContentType())
	if r.Method == http.MethodHead {
		return
	}
	select {
	case l.slots <- struct{}{}:
		defer func() { <-l.slots }()
	case <-r.Context().Done():
		return
	}
	body := &begun{ResponseWriter: w}
	err := export.Write(body, f, l.daemon.List(r.Context(), control.ListQuery{Jail: r.URL.Query().Get("jail")}), time.Now())
	switch {
	case err == nil || r.Context().Err() != nil:
	case body.yes:
		// Half a list must not look whole.
		l.log.Warn("a list of bans broke off", "peer", r.RemoteAddr, "error", err)
		panic(http.ErrAbortHandler)
	default:
		h.Del("ETag")
		status := http.StatusServiceUnavailable
		if errors.Is(err, control.ErrNotFound) {
			status = http.StatusNotFound
		}
		http.Error(w, fmt.Sprintf("read the bans: %v", err), status)
	}
}

// begun notes whether something was written.
type begun struct {
	http.ResponseWriter
	yes bool
}

func (b *begun) Write(p []byte) (int, error) {
	b.yes = true
	return b.ResponseWriter.Write(p)
}

// known says that one of the tags of If-None-Match is the one given.
func known(headers []string, tag string) bool {
	for _, h := range headers {
		for one := range strings.SplitSeq(h, ",") {
			one = strings.TrimSpace(one)
			if one == "*" || strings.TrimPrefix(one, "W/") == strings.TrimPrefix(tag, "W/") {
				return true
			}
		}
	}
	return false
}
