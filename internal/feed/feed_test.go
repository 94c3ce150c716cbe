package feed

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// host is a List in memory.
type host struct {
	mu       sync.Mutex
	bans     map[string]map[netip.Prefix]time.Time
	allowed  netip.Prefix
	broken   error
	problems map[string]string
	changes  int // ends that were set or changed
}

func newHost() *host {
	return &host{bans: map[string]map[netip.Prefix]time.Time{}, problems: map[string]string{}}
}

func (h *host) Enlist(_ context.Context, feed string, entries iter.Seq2[netip.Prefix, time.Time]) (refused int, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.bans[feed] == nil {
		h.bans[feed] = map[netip.Prefix]time.Time{}
	}
	for p, until := range entries {
		if h.broken != nil {
			return refused, h.broken
		}
		if h.allowed.IsValid() && h.allowed.Contains(p.Addr()) {
			refused++
			continue
		}
		if !h.bans[feed][p].Equal(until) {
			h.bans[feed][p] = until
			h.changes++
		}
	}
	return refused, nil
}

func (h *host) Delist(_ context.Context, feed string, prefixes iter.Seq[netip.Prefix]) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for p := range prefixes {
		delete(h.bans[feed], p)
	}
	return h.broken
}

func (h *host) Enlisted(context.Context) (map[string][]netip.Prefix, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := map[string][]netip.Prefix{}
	for feed, bans := range h.bans {
		all[feed] = slices.Collect(maps.Keys(bans))
	}
	return all, nil
}

func (h *host) Problem(_ context.Context, key string, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.problems, key)
	if err != nil {
		h.problems[key] = err.Error()
	}
}

func (h *host) problem(key string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.problems[key]
}

func (h *host) banned(feed string) []netip.Prefix {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.SortedFunc(maps.Keys(h.bans[feed]), netip.Prefix.Compare)
}

// bed is a feed of a test's server.
type bed struct {
	*testing.T
	host   *host
	feeds  *Feeds
	source Source
	dir    string
	stop   func()
	limit  time.Duration // of a fetch; 0: the usual

	mu     sync.Mutex
	answer http.HandlerFunc
	step   time.Duration // of the clock
	asked  http.Header
}

func (b *bed) now() time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return time.Now().Add(b.step)
}

func (b *bed) answers(f http.HandlerFunc) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.answer = f
}

// newBed starts a server over TLS; nothing reads from it before run.
func newBed(t *testing.T) *bed {
	b := &bed{T: t, host: newHost(), dir: t.TempDir()}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.mu.Lock()
		f := b.answer
		b.asked = r.Header.Clone()
		b.mu.Unlock()
		f(w, r)
	}))
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	server.StartTLS()
	t.Cleanup(server.Close)
	ca := filepath.Join(b.dir, "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	b.source = *source(Plain)
	b.source.URL, b.source.CA = server.URL+"/list", ca
	return b
}

func (b *bed) run() {
	b.Helper()
	ctx, stop := context.WithCancel(context.Background())
	b.feeds = New(Options{
		Version: "test", Dir: filepath.Join(b.dir, "feeds"), Most: 2000, Now: b.now,
		Dial: (&net.Dialer{}).DialContext, Log: slog.New(slog.NewTextHandler(b.Output(), nil)), fetchLimit: b.limit, retry: time.Hour,
	})
	b.feeds.Configure([]Source{b.source})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		b.feeds.Run(ctx, b.host)
	}()
	b.stop = sync.OnceFunc(func() { stop(); <-ended })
	b.Cleanup(b.stop)
	b.until("the first look", func() bool { s := b.status(); return s.Looks > 0 && !s.Next.IsZero() })
}

func (b *bed) until(what string, f func() bool) {
	b.Helper()
	for end := time.Now().Add(time.Minute); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			b.Fatalf("never happened: %s", what)
		}
	}
}

func (b *bed) status() Status {
	if s := b.feeds.Status(); len(s) == 1 {
		return s[0]
	}
	return Status{}
}

// fetch looks, and wants an error with some words, or none.
func (b *bed) fetch(want string) {
	b.Helper()
	err := b.feeds.Fetch(context.Background(), "x")
	switch {
	case want == "" && err != nil:
		b.Errorf("fetch: %v", err)
	case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
		b.Errorf("fetch: %v, want %q", err, want)
	}
}

func (b *bed) want(list ...string) {
	b.Helper()
	if got := b.host.banned("x"); !slices.Equal(got, prefixes(list...)) {
		b.Errorf("banned are %v, want %v", got, list)
	}
}

func text(s string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, s) }
}

// TestServerMisbehaves: whatever a server does, the last good list goes on, and
// the operator is told why.
func TestServerMisbehaves(t *testing.T) {
	b := newBed(t)
	b.answers(text("192.0.2.1\n2001:db8::/32\n"))
	b.run()
	good := []string{"192.0.2.1", "2001:db8::/32"}
	b.want(good...)
	compressed := bomb(t)
	for _, c := range []struct {
		name   string
		answer http.HandlerFunc
		want   string
	}{
		{"cut off", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			fmt.Fprint(w, "203.0.113.1\n")
		}, "unexpected EOF"},
		{"cut off in a chunk", func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, "203.0.113.1\n")
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}, "EOF"},
		{"wrong type", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html; charset=utf-8")
			fmt.Fprint(w, "203.0.113.1\n")
		}, "it is text/html, and no list"},
		{"a page without its type", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/octet-stream")
			fmt.Fprint(w, "<html>\n203.0.113.1\n</html>\n")
		}, "2 of 3 entries make no sense"},
		{"enormous, as it says", func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Content-Length", "1000000000000") }, "max_bytes is 1048576"},
		{"enormous", func(w http.ResponseWriter, _ *http.Request) {
			for range 1000 {
				if _, err := fmt.Fprint(w, strings.Repeat("# nothing here\n", 1000)); err != nil {
					return
				}
			}
		}, "it is longer than max_bytes = 1048576"},
		{"enormous, compressed", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			_, _ = w.Write(compressed)
		}, "it is longer than max_bytes = 1048576"},
		{"too many", text(many(1001)), "more than max_entries = 1000"},
		{"a circle", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/list", http.StatusFound) }, "it redirects more than 5 times"},
		{"not encrypted", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://lists.example.org/list", http.StatusFound)
		}, "it redirects to http://lists.example.org/list, which isn't encrypted"},
		{"gone", http.NotFound, "the server says 404 Not Found"},
		{"nothing new, unasked", func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("If-None-Match") != "" {
				t.Error("asked whether there is something new since a list without a tag")
			}
			w.WriteHeader(http.StatusInternalServerError)
		}, "500"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b.T = t
			b.answers(c.answer)
			b.fetch(c.want)
			b.want(good...)
			if p := b.host.problem("feed x"); !strings.Contains(p, c.want) || !strings.Contains(p, "goes on") {
				t.Errorf("problem %q", p)
			}
		})
	}
	b.T = t
	b.answers(text("192.0.2.1\n203.0.113.1\n"))
	b.fetch("")
	b.want("192.0.2.1", "203.0.113.1")
	if p := b.host.problem("feed x"); p != "" || b.status().Error != "" {
		t.Errorf("still a problem: %q, %+v", p, b.status())
	}
}

// TestServerIsSlow: a server that takes its time costs the feed's own only.
func TestServerIsSlow(t *testing.T) {
	b := newBed(t)
	b.answers(text("192.0.2.1\n"))
	b.run()
	b.stop()
	b.limit = 300 * time.Millisecond
	b.answers(http.NotFound)
	b.run()
	for _, c := range []struct {
		answer http.HandlerFunc
		want   string
	}{
		{func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, "it wasn't done within 300ms"},
		{func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				fmt.Fprint(w, "203.0.113.1\n")
				w.(http.Flusher).Flush()
				time.Sleep(time.Millisecond)
			}
		}, "it wasn't done within 300ms"},
	} {
		b.answers(c.answer)
		b.fetch(c.want)
		b.want("192.0.2.1")
	}
}

// TestWrongCertificate: a server that can't show who it is isn't listened to.
func TestWrongCertificate(t *testing.T) {
	b := newBed(t)
	b.answers(text("192.0.2.1\n"))
	b.source.CA = ""
	b.run()
	b.want()
	if p := b.host.problem("feed x"); !strings.Contains(p, "certificate") || !strings.Contains(p, "it has banned nobody yet") {
		t.Errorf("problem %q", p)
	}
}

// TestNotModified: a server is told what is known already.
func TestNotModified(t *testing.T) {
	b := newBed(t)
	full := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"one"`)
		w.Header().Set("Last-Modified", "Fri, 08 May 2026 12:00:00 GMT")
		if r.Header.Get("If-None-Match") == `"one"` && r.Header.Get("If-Modified-Since") == "Fri, 08 May 2026 12:00:00 GMT" {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		fmt.Fprint(w, "192.0.2.1\n")
	}
	b.answers(full)
	b.run()
	changes := b.host.changes
	b.fetch("")
	if b.asked.Get("If-None-Match") == "" || b.host.changes != changes {
		t.Errorf("asked with %v; %d changes", b.asked, b.host.changes-changes)
	}
	// The tag survives a restart, and the list too, before the server answers.
	b.stop()
	b.host = newHost()
	b.run()
	b.want("192.0.2.1")
	if b.asked.Get("If-None-Match") != `"one"` {
		t.Errorf("asked with %v", b.asked)
	}
	// Half a bantime later the end moves on, though the list is the same.
	was := b.host.bans["x"][prefixes("192.0.2.1")[0]]
	b.mu.Lock()
	b.step = 13 * time.Hour
	b.mu.Unlock()
	b.fetch("")
	if is := b.host.bans["x"][prefixes("192.0.2.1")[0]]; is.Sub(was)%(12*time.Hour) != 0 || !is.After(was) || is.Sub(b.now()) < 24*time.Hour {
		t.Errorf("ends at %s, was %s", is, was)
	}
}

// TestHeld: a list that is suddenly another waits for somebody to look at it.
func TestHeld(t *testing.T) {
	b := newBed(t)
	b.answers(text(many(100)))
	b.run()
	b.want(strings.Fields(many(100))...)
	for _, n := range []int{0, 49, 151} {
		b.answers(text(many(n)))
		b.fetch("")
		b.want(strings.Fields(many(100))...)
		if s := b.status(); !s.Holding || s.Held != n || s.Entries != 100 || !strings.Contains(b.host.problem("feed x held"), fmt.Sprintf("from 100 to %d entries", n)) {
			t.Errorf("%d: %+v, %q", n, s, b.host.problem("feed x held"))
		}
	}
	// It is itself again.
	b.answers(text(many(99)))
	b.fetch("")
	b.want(strings.Fields(many(99))...)
	if err := b.feeds.Confirm(t.Context(), "x"); !errors.Is(err, ErrNothing) || b.status().Holding {
		t.Errorf("confirm: %v, %+v", err, b.status())
	}
	b.answers(text("192.0.2.1\n"))
	b.fetch("")
	if err := b.feeds.Confirm(t.Context(), "x"); err != nil {
		t.Fatal(err)
	}
	b.want("192.0.2.1")
	if s := b.status(); s.Holding || s.Entries != 1 || b.host.problem("feed x held") != "" {
		t.Errorf("%+v", s)
	}
	// Few are taken without a question, but none.
	b.answers(text("192.0.2.1\n192.0.2.2\n192.0.2.3\n"))
	b.fetch("")
	b.want("192.0.2.1", "192.0.2.2", "192.0.2.3")
	b.answers(text(""))
	b.fetch("")
	b.want("192.0.2.1", "192.0.2.2", "192.0.2.3")
	if err := b.feeds.Confirm(t.Context(), "y"); !errors.Is(err, ErrUnknown) {
		t.Errorf("confirm of another: %v", err)
	}
}

// TestStale: a list whose source is gone for longer than bantime ends, and is in
// force again when the source is back.
func TestStale(t *testing.T) {
	b := newBed(t)
	b.answers(text("192.0.2.1\n"))
	b.run()
	b.answers(http.NotFound)
	b.mu.Lock()
	b.step = 23 * time.Hour
	b.mu.Unlock()
	b.fetch("404")
	b.want("192.0.2.1")
	b.mu.Lock()
	b.step = 25 * time.Hour
	b.mu.Unlock()
	b.fetch("404")
	b.want()
	if p := b.host.problem("feed x"); !strings.Contains(p, "older than its bantime") {
		t.Errorf("problem %q", p)
	}
	b.stop()
	b.host = newHost()
	b.run()
	b.want()
	b.answers(text("192.0.2.1\n"))
	b.fetch("")
	b.want("192.0.2.1")
}

// TestConfigure: what isn't configured any more ends, also that of before.
func TestConfigure(t *testing.T) {
	b := newBed(t)
	b.answers(text("192.0.2.1\n198.51.100.7\n"))
	b.host.bans["gone"] = map[netip.Prefix]time.Time{prefixes("203.0.113.1")[0]: {}}
	b.host.bans["x"] = map[netip.Prefix]time.Time{prefixes("203.0.113.2")[0]: {}}
	b.host.allowed = netip.MustParsePrefix("198.51.100.0/24")
	b.run()
	b.want("192.0.2.1")
	b.until("the other feed's bans are gone", func() bool { return len(b.host.banned("gone")) == 0 })
	if s := b.status(); s.Refused != 1 {
		t.Errorf("%+v", s)
	}
	// Damage on disk is told of, and nothing more.
	b.stop()
	path := filepath.Join(b.dir, "feeds", "x.list")
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, damaged := range []string{"", "{}\n", strings.Replace(string(content), "192.0.2.1", "192.0.2.2", 1), string(content[:len(content)-1]), "\x00\x00"} {
		if err := os.WriteFile(path, []byte(damaged), 0o600); err != nil {
			t.Fatal(err)
		}
		if h, entries, err := load(filepath.Dir(path), "x", b.source.id()); h != nil || err == nil && damaged != "{}\n" {
			t.Errorf("%q is taken: %v, %v, %v", damaged, h, entries, err)
		}
	}
	b.run()
	b.want("192.0.2.1")
	b.feeds.Configure(nil)
	b.until("all of its bans are gone", func() bool { return len(b.host.banned("x")) == 0 })
	b.until("its list is gone", func() bool { _, err := os.Stat(path); return errors.Is(err, os.ErrNotExist) })
}

// TestRoom: feeds don't take all the room that jails need.
func TestRoom(t *testing.T) {
	b := newBed(t)
	b.source.MaxEntries = 5000
	b.answers(text(many(2001)))
	b.run()
	b.want()
	if p := b.host.problem("feed x"); !strings.Contains(p, "more than half of max_bans") {
		t.Errorf("problem %q", p)
	}
}

// TestKernelFails: what can't be put in force is tried again.
func TestKernelFails(t *testing.T) {
	b := newBed(t)
	b.host.broken = errors.New("no memory")
	b.answers(text("192.0.2.1\n"))
	b.run()
	if p := b.host.problem("feed x"); !strings.Contains(p, "no memory") {
		t.Errorf("problem %q", p)
	}
	b.host.mu.Lock()
	b.host.broken = nil
	b.host.mu.Unlock()
	b.fetch("")
	b.want("192.0.2.1")
}

func TestFile(t *testing.T) {
	b := newBed(t)
	path := filepath.Join(b.dir, "list.txt")
	b.source.URL, b.source.CA, b.source.File = "", "", path
	b.run()
	b.fetch("no such file")
	put := func(s string) {
		t.Helper()
		if err := os.WriteFile(path+".new", []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	put("192.0.2.1\n")
	b.fetch("")
	b.fetch("")
	b.want("192.0.2.1")
	put("192.0.2.2\n")
	b.fetch("")
	b.want("192.0.2.2")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	b.fetch("not a regular file")
	b.want("192.0.2.2")
}

// TestDecisions: a local API's decisions are followed by their differences, and
// all over again once an answer went wrong.
func TestDecisions(t *testing.T) {
	b := newBed(t)
	u, err := url.Parse(b.source.URL)
	if err != nil {
		t.Fatal(err)
	}
	u.Path = "/"
	key := filepath.Join(b.dir, "key")
	if err := os.WriteFile(key, []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.source.Format, b.source.URL, b.source.KeyFile = CrowdSec, u.String(), key
	ban := func(scope, value, duration string) decision { return decision{"ban", scope, value, duration} }
	var next decisions
	startup := ""
	api := func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v1/decisions/stream" || r.Header.Get("X-Api-Key") != "secret" {
			t.Errorf("asked for %s with %v", r.URL, r.Header)
		}
		startup = r.URL.Query().Get("startup")
		_ = json.NewEncoder(w).Encode(next)
	}
	next = decisions{New: []decision{ban("Ip", "192.0.2.1", "3h59m59.5s"), ban("Range", "2001:db8::/32", "4h"), ban("AS", "64500", "4h"), {"captcha", "Ip", "192.0.2.9", "4h"}, ban("ip", "192.0.2.8", "-1s")}}
	b.answers(api)
	b.host.bans["x"] = map[netip.Prefix]time.Time{prefixes("203.0.113.2")[0]: {}}
	b.run()
	b.want("192.0.2.1", "2001:db8::/32")
	if left := b.host.bans["x"][prefixes("192.0.2.1")[0]].Sub(b.now()); startup != "true" || left > 4*time.Hour || left < 3*time.Hour+59*time.Minute {
		t.Errorf("startup=%s; %s left", startup, left)
	}
	if s := b.status(); s.Entries != 2 || s.Bad != 2 {
		t.Errorf("%+v", s)
	}
	next = decisions{New: []decision{ban("Ip", "192.0.2.3", "1h")}, Deleted: []decision{ban("Ip", "192.0.2.1", "-1s")}}
	b.fetch("")
	b.want("192.0.2.3", "2001:db8::/32")
	if startup != "false" {
		t.Errorf("startup=%s", startup)
	}
	b.answers(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"new":[{"type":"ban"`) })
	b.fetch("unexpected EOF")
	b.answers(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) })
	b.fetch("cscli bouncers add")
	b.answers(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) })
	b.fetch("the key is for it alone")
	b.want("192.0.2.3", "2001:db8::/32")
	// What was decided meanwhile comes with all.
	changes := b.host.changes
	next = decisions{New: []decision{ban("Ip", "192.0.2.3", "1h"), ban("Ip", "192.0.2.4", "1h")}}
	b.answers(api)
	b.fetch("")
	b.want("192.0.2.3", "192.0.2.4")
	if startup != "true" || b.host.changes != changes+1 {
		t.Errorf("startup=%s; %d changes", startup, b.host.changes-changes)
	}
	// Without the API, the last decisions hold.
	b.stop()
	b.host = newHost()
	b.answers(http.NotFound)
	b.run()
	b.want("192.0.2.3", "192.0.2.4")
	next = decisions{New: []decision{ban("Ip", "192.0.2.4", "1h")}}
	b.answers(api)
	b.fetch("")
	b.want("192.0.2.4")
}

func TestSecure(t *testing.T) {
	for s, want := range map[string]bool{
		"https://192.0.2.1/": true, "http://127.0.0.1:8080/": true, "http://[::1]/": true, "http://localhost/": true,
		"http://192.0.2.1/": false, "ftp://127.0.0.1/": false, "http://localhost.example.org/": false,
	} {
		if u, err := url.Parse(s); err != nil || Secure(u) != want {
			t.Errorf("%s: %v", s, err)
		}
	}
}

// bomb is 10 MB in 10 kB.
func bomb(t *testing.T) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	line := bytes.Repeat([]byte("# nothing\n"), 1000)
	for range 1000 {
		if _, err := w.Write(line); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
