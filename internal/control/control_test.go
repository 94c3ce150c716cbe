package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"xdpban/jails"
)

// fake is a daemon that remembers and answers what it is told to.
type fake struct {
	bans    []Ban
	listErr error
	err     error
	ban     BanRequest
	history HistoryQuery
	unban   []netip.Prefix
	imports ImportRequest
	eject   EjectRequest
	feed    FeedRequest
}

func (f *fake) Status(context.Context) (Status, error) { return Status{Version: "1", PID: 7}, f.err }
func (f *fake) List(_ context.Context, q ListQuery) iter.Seq2[Ban, error] {
	return func(yield func(Ban, error) bool) {
		for _, b := range f.bans {
			if (q.Jail == "" || b.Jail == q.Jail) && !yield(b, nil) {
				return
			}
		}
		if f.listErr != nil {
			yield(Ban{}, f.listErr)
		}
	}
}
func (f *fake) Ports(context.Context) ([]Port, error) { return nil, f.err }
func (f *fake) Ban(_ context.Context, r BanRequest) (BanResult, error) {
	f.ban = r
	return BanResult{Banned: len(r.Prefixes)}, f.err
}
func (f *fake) Unban(_ context.Context, r UnbanRequest) (UnbanResult, error) {
	f.unban = r.Prefixes
	return UnbanResult{Unbanned: len(r.Prefixes)}, f.err
}
func (f *fake) Allow(_ context.Context, p []netip.Prefix) (int, error)    { return len(p), f.err }
func (f *fake) Disallow(_ context.Context, p []netip.Prefix) (int, error) { return len(p), f.err }
func (f *fake) Allowed(context.Context) ([]Allow, error)                  { return nil, f.err }
func (f *fake) Stats(context.Context) (Stats, error)                      { return Stats{Bans: 3}, f.err }
func (f *fake) Why(_ context.Context, p netip.Prefix) (Why, error)        { return Why{Prefix: p}, f.err }
func (f *fake) History(_ context.Context, q HistoryQuery) ([]Event, error) {
	f.history = q
	return nil, f.err
}
func (f *fake) Import(_ context.Context, r ImportRequest) (ImportResult, error) {
	f.imports = r
	return ImportResult{Added: len(r.Bans)}, f.err
}
func (f *fake) Eject(_ context.Context, r EjectRequest) error      { f.eject = r; return f.err }
func (f *fake) Feeds(context.Context) ([]Feed, error)              { return []Feed{{Name: "drop"}}, f.err }
func (f *fake) ConfirmFeed(_ context.Context, r FeedRequest) error { f.feed = r; return f.err }
func (f *fake) FetchFeed(_ context.Context, r FeedRequest) error   { f.feed = r; return f.err }
func (f *fake) Reload(context.Context) (ReloadResult, error)       { return ReloadResult{}, f.err }

// serve runs a daemon on a socket in a folder of the test's own.
func serve(t *testing.T, d Daemon, s Socket) *Client {
	t.Helper()
	if s.Path == "" {
		s.Path = filepath.Join(t.TempDir(), "sock")
	}
	l, err := Listen(s)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, d, slog.New(slog.DiscardHandler)) }()
	c := NewClient(s.Path)
	t.Cleanup(func() {
		_ = c.Close()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(s.Path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the socket is still there: %v", err)
		}
	})
	return c
}

func own() Socket { return Socket{UID: -1, GID: -1} }

func TestRoundTrip(t *testing.T) {
	since := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	f := &fake{bans: []Ban{
		{Prefix: netip.MustParsePrefix("192.0.2.1/32"), Jail: "sshd", Since: since, Until: Time{since.Add(time.Hour)}, Packets: 5, Bytes: 300},
		{Prefix: netip.MustParsePrefix("2001:db8::/64"), Jail: "manual", Since: since},
	}}
	c := serve(t, f, own())
	ctx := t.Context()

	l, err := c.List(ctx, ListQuery{})
	if err != nil || len(l.Bans) != 2 || l.Bans[0].Prefix != f.bans[0].Prefix || !l.Bans[0].Until.Equal(f.bans[0].Until.Time) || !l.Bans[1].Until.IsZero() {
		t.Errorf("List: %+v, %v", l, err)
	}
	if l, err := c.List(ctx, ListQuery{Jail: "none"}); err != nil || len(l.Bans) != 0 {
		t.Errorf("List of a jail: %+v, %v", l, err)
	}
	r, err := c.Ban(ctx, BanRequest{Prefixes: []netip.Prefix{f.bans[0].Prefix}, For: Duration(jails.Forever)})
	if err != nil || r.Banned != 1 || f.ban.For != Duration(jails.Forever) {
		t.Errorf("Ban: %+v %+v %v", r, f.ban, err)
	}
	if _, err := c.History(ctx, HistoryQuery{Prefix: f.bans[1].Prefix, Since: Time{since}, Limit: 4}); err != nil ||
		f.history.Prefix != f.bans[1].Prefix || !f.history.Since.Equal(since) || f.history.Limit != 4 {
		t.Errorf("History: %+v %v", f.history, err)
	}
	if _, err := c.Unban(ctx, UnbanRequest{Prefixes: []netip.Prefix{f.bans[1].Prefix}}); err != nil || !slices.Equal(f.unban, []netip.Prefix{f.bans[1].Prefix}) {
		t.Errorf("Unban: %v %v", f.unban, err)
	}
	if _, err := c.Import(ctx, ImportRequest{Bans: f.bans, Replace: true}); err != nil || len(f.imports.Bans) != 2 || !f.imports.Replace {
		t.Errorf("Import: %+v %v", f.imports, err)
	}
	for name, call := range map[string]func() error{
		"Status":   func() error { _, err := c.Status(ctx); return err },
		"Allow":    func() error { _, err := c.Allow(ctx, f.unban); return err },
		"Disallow": func() error { _, err := c.Disallow(ctx, f.unban); return err },
		"Allowed":  func() error { _, err := c.Allowed(ctx); return err },
		"Ports":    func() error { _, err := c.Ports(ctx); return err },
		"Stats":    func() error { _, err := c.Stats(ctx); return err },
		"Why":      func() error { _, err := c.Why(ctx, f.bans[0].Prefix); return err },
		"Reload":   func() error { _, err := c.Reload(ctx); return err },
	} {
		f.err = nil
		if err := call(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for _, want := range []struct{ from, to error }{
			{fmt.Errorf("so: %w", jails.ErrAllowed), ErrRefused},
			{fmt.Errorf("so: %w", ErrNotFound), ErrNotFound},
			{errors.New("map is gone"), ErrFailed},
		} {
			f.err = want.from
			if err := call(); !errors.Is(err, want.to) || err.Error() != want.from.Error() {
				t.Errorf("%s: %v instead of %v", name, err, want.to)
			}
		}
	}
}

func TestHalfAListIsAnError(t *testing.T) {
	f := &fake{listErr: errors.New("map is gone")}
	c := serve(t, f, own())
	if _, err := c.List(t.Context(), ListQuery{}); !errors.Is(err, ErrFailed) || !strings.Contains(err.Error(), "map is gone") {
		t.Errorf("an error ahead of the first ban: %v", err)
	}
	f.bans = []Ban{{Prefix: netip.MustParsePrefix("192.0.2.1/32")}}
	if l, err := c.List(t.Context(), ListQuery{}); err == nil {
		t.Errorf("a list that broke off was taken for %+v", l)
	}
	n, last := 0, error(nil)
	for b, err := range c.Bans(t.Context(), ListQuery{}) {
		if last = err; err == nil && b.Prefix == f.bans[0].Prefix {
			n++
		}
	}
	if last == nil {
		t.Errorf("one by one, a list that broke off ends well after %d", n)
	}
}

// TestBans: one by one, they are what List has, and a reader may stop.
func TestBans(t *testing.T) {
	f := &fake{bans: []Ban{{Prefix: netip.MustParsePrefix("192.0.2.1/32"), Jail: "a"}, {Prefix: netip.MustParsePrefix("192.0.2.2/32"), Jail: "b"}}}
	c := serve(t, f, own())
	for want, q := range map[int]ListQuery{2: {}, 1: {Jail: "b"}, 0: {Jail: "none"}} {
		n := 0
		for _, err := range c.Bans(t.Context(), q) {
			if n++; err != nil {
				t.Fatal(err)
			}
		}
		if n != want {
			t.Errorf("%+v: %d bans", q, n)
		}
	}
	for range c.Bans(t.Context(), ListQuery{}) {
		break
	}
	f.listErr, f.bans = fmt.Errorf("so: %w", ErrNotFound), nil
	for _, err := range c.Bans(t.Context(), ListQuery{}) {
		if !errors.Is(err, ErrNotFound) {
			t.Errorf("no such jail: %v", err)
		}
	}
}

func TestDown(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sock")
	if _, err := NewClient(path).Status(t.Context()); !errors.Is(err, ErrDown) {
		t.Errorf("no socket: %v", err)
	}
	stale(t, path)
	if _, err := NewClient(path).Status(t.Context()); !errors.Is(err, ErrDown) {
		t.Errorf("a dead daemon's socket: %v", err)
	}
}

// stale leaves a socket that nobody listens on.
func stale(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestListen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "deep", "sock")
	if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	stale(t, path)
	serve(t, &fake{}, Socket{Path: path, UID: -1, GID: -1, Mode: 0o600}) // replaces the stale one
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode: %v %v", st.Mode(), err)
	}
	_, err := Listen(Socket{Path: path, UID: -1, GID: -1})
	if !errors.Is(err, ErrRunning) || !strings.Contains(err.Error(), fmt.Sprintf("pid %d", os.Getpid())) {
		t.Errorf("a live daemon's socket: %v", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(Socket{Path: file}); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("a file in the way: %v", err)
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "precious" {
		t.Errorf("the file in the way was touched: %q %v", b, err)
	}
}

func TestAccessRule(t *testing.T) {
	s := Socket{UID: 100, GID: 200, Mode: 0o660}
	for _, c := range []struct {
		name        string
		change      func(*Socket)
		peer        Peer
		read, write bool
	}{
		{"root", nil, Peer{UID: 0, GID: 0}, true, true},
		{"owner", nil, Peer{UID: 100, GID: 1}, true, true},
		{"group", nil, Peer{UID: 5, GID: 200}, true, false},
		{"second group", nil, Peer{UID: 5, GID: 5, Groups: []uint32{7, 200}}, true, false},
		{"group that may write", func(s *Socket) { s.GroupWrites = true }, Peer{UID: 5, GID: 200}, true, true},
		{"stranger, group may write", func(s *Socket) { s.GroupWrites = true }, Peer{UID: 5, GID: 5}, false, false},
		{"stranger", nil, Peer{UID: 5, GID: 5, Groups: []uint32{7}}, false, false},
		{"stranger, open to read", func(s *Socket) { s.Mode = 0o666 }, Peer{UID: 5, GID: 5}, true, false},
		{"group, closed to it", func(s *Socket) { s.Mode = 0o600 }, Peer{UID: 5, GID: 200}, false, false},
	} {
		s := s
		if c.change != nil {
			c.change(&s)
		}
		if s.mayRead(c.peer) != c.read || s.mayWrite(c.peer) != c.write {
			t.Errorf("%s: reads %v, writes %v", c.name, s.mayRead(c.peer), s.mayWrite(c.peer))
		}
	}
}

// TestAccess lets other users try the real socket: the test's own binary,
// run under other credentials.
func TestAccess(t *testing.T) {
	if os.Getuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root")
		}
		t.Skip("needs root to become other users")
	}
	dir, err := os.MkdirTemp("", "xdpban-control-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	exe := filepath.Join(dir, "client")
	if err := os.WriteFile(exe, self, 0o755); err != nil {
		t.Fatal(err)
	}
	const group, member, stranger = 64011, 64012, 64013
	path := filepath.Join(dir, "sock")
	serve(t, &fake{}, Socket{Path: path, UID: 0, GID: group})
	for _, c := range []struct {
		verb       string
		uid        uint32
		groups     []uint32
		want       string
		afterChmod bool
	}{
		{"status", member, []uint32{group}, "done", false},
		{"ban", member, []uint32{group}, "forbidden", false},
		{"status", stranger, nil, "forbidden", false},
		// Even when someone opens the file, the rule stays what was configured.
		{"status", stranger, nil, "forbidden", true},
	} {
		if c.afterChmod {
			if err := os.Chmod(path, 0o666); err != nil {
				t.Fatal(err)
			}
		}
		cmd := exec.Command(exe, "-test.run=^TestAccessClient$", "-test.v")
		cmd.Env = []string{"CONTROL_SOCKET=" + path, "CONTROL_VERB=" + c.verb}
		cmd.Dir = dir
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: c.uid, Gid: c.uid, Groups: c.groups}}
		out, err := cmd.CombinedOutput()
		if err != nil || !bytes.Contains(out, []byte("result: "+c.want+"\n")) {
			t.Errorf("%s as %d %v: want %s: %v\n%s", c.verb, c.uid, c.groups, c.want, err, out)
		}
	}
}

func TestAccessClient(t *testing.T) {
	path := os.Getenv("CONTROL_SOCKET")
	if path == "" {
		t.SkipNow() // runs inside TestAccess only
	}
	c := NewClient(path)
	var err error
	switch os.Getenv("CONTROL_VERB") {
	case "status":
		_, err = c.Status(t.Context())
	case "ban":
		_, err = c.Ban(t.Context(), BanRequest{Prefixes: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32")}, For: Duration(time.Hour)})
	}
	switch {
	case err == nil:
		fmt.Println("result: done")
	case errors.Is(err, ErrForbidden):
		fmt.Println("result: forbidden")
	default:
		fmt.Println("result:", err)
	}
}

func TestConnectionLimit(t *testing.T) {
	l := &Listener{open: map[uint32]int{}}
	for range maxPerUser {
		if !l.enter(5) {
			t.Fatal("refused within the limit")
		}
	}
	if l.enter(5) {
		t.Error("over the limit, but let in")
	}
	if !l.enter(0) || !l.enter(6) {
		t.Error("one user's connections keep others out")
	}
	l.left(5)
	if !l.enter(5) {
		t.Error("refused though one has left")
	}
}

// call sends a raw request to a handler as root.
func call(d Daemon, method, target, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, "http://xdpban/", strings.NewReader(body))
	path, query, _ := strings.Cut(target, "?")
	r.URL.Path, r.URL.RawQuery = path, query
	r = r.WithContext(context.WithValue(r.Context(), peerKey{}, Peer{}))
	w := httptest.NewRecorder()
	newHandler(d, Socket{Path: "sock", Mode: 0o660}, slog.New(slog.DiscardHandler)).ServeHTTP(w, r)
	return w
}

func TestBadRequests(t *testing.T) {
	for _, c := range []struct{ method, target, body, want string }{
		{"POST", "/v1/ban", `{`, "unexpected EOF"},
		{"POST", "/v1/ban", `{"prefixes":["192.0.2.1/32"],"for":"1h","forr":1}`, `unknown field "forr"`},
		{"POST", "/v1/ban", `{"prefixes":["192.0.2.1/32"]}`, "for is missing"},
		{"POST", "/v1/ban", `{"prefixes":["192.0.2.1/32"],"for":"-1h"}`, "negative"},
		{"POST", "/v1/ban", `{"prefixes":["192.0.2.1/32"],"for":"1h"} {}`, "something follows"},
		{"POST", "/v1/ban", `{"prefixes":["192.0.2.1/24"],"for":"1h"}`, "write 192.0.2.0/24"},
		{"POST", "/v1/ban", `{"prefixes":["::ffff:192.0.2.1/128"],"for":"1h"}`, "write it as IPv4"},
		{"POST", "/v1/ban", `{"prefixes":["1.2.3"],"for":"1h"}`, "1.2.3"},
		{"POST", "/v1/ban", `{"prefixes":[""],"for":"1h"}`, "prefix 1: missing"},
		{"POST", "/v1/ban", `{"prefixes":[],"for":"1h"}`, "no prefixes"},
		{"POST", "/v1/unban", `{"jail":"sshd"}`, "either which prefixes, or all"},
		{"POST", "/v1/unban", `{"prefixes":["192.0.2.1/32"],"all":true}`, "either which prefixes, or all"},
		{"POST", "/v1/ban", `{"prefixes":["192.0.2.1/32"],"for":"1h","jail":"a b"}`, "blanks"},
		{"POST", "/v1/ban", `{"prefixes":["192.0.2.1/32"],"for":"1h","jail":"` + strings.Repeat("j", 64) + `"}`, "63 bytes"},
		{"POST", "/v1/import", `{"bans":[{"prefix":"192.0.2.1/32","jail":"x","since":"2026-01-02T00:00:00Z","until":"2026-01-01T00:00:00Z"}]}`, "ends before"},
		{"GET", "/v1/why", ``, "ParsePrefix"},
		{"GET", "/v1/why?prefix=192.0.2.1/32&x=1", ``, "unknown parameter"},
		{"GET", "/v1/why?prefix=192.0.2.1/32&prefix=192.0.2.2/32", ``, "2 times"},
		{"GET", "/v1/history?since=yesterday", ``, "since"},
		{"GET", "/v1/history?limit=-1", ``, "limit"},
		{"GET", "/v1/bans?jails=sshd", ``, "unknown parameter"},
	} {
		w := call(&fake{}, c.method, c.target, c.body)
		var e Error
		if err := json.Unmarshal(w.Body.Bytes(), &e); err != nil || w.Code != http.StatusBadRequest || !strings.Contains(e.Message, c.want) {
			t.Errorf("%s %s %s: %d %s (want %q)", c.method, c.target, c.body, w.Code, w.Body, c.want)
		}
	}
	if w := call(&fake{}, "GET", "/v1/ban", ""); w.Code != http.StatusNotFound && w.Code != http.StatusMethodNotAllowed {
		t.Errorf("GET of ban: %d", w.Code)
	}
}

func FuzzHandler(f *testing.F) {
	f.Add(true, "/v1/ban", `{"prefixes":["192.0.2.1/32","2001:db8::/64"],"jail":"x","for":"1h","skip_refused":true}`)
	f.Add(true, "/v1/unban", `{"prefixes":["192.0.2.0/24"]}`)
	f.Add(true, "/v1/unban", `{"all":true,"jail":"sshd"}`)
	f.Add(true, "/v1/import", `{"bans":[{"prefix":"192.0.2.1/32","jail":"x","since":"2026-01-01T00:00:00Z","until":null}]}`)
	f.Add(false, "/v1/history?prefix=2001:db8::/64&since=2026-01-01T00:00:00Z&limit=3", "")
	f.Add(false, "/v1/why?prefix=fe80::1%25eth0/64", "")
	f.Add(true, "/v1/reload", "{}")
	f.Fuzz(func(t *testing.T, post bool, target, body string) {
		method := http.MethodGet
		if post {
			method = http.MethodPost
		}
		d := &fake{}
		w := call(d, method, target, body)
		if w.Code == http.StatusOK && !json.Valid(w.Body.Bytes()) {
			t.Errorf("not JSON: %q", w.Body)
		}
		for _, p := range slices.Concat(d.ban.Prefixes, d.unban) {
			if checkPrefix(p) != nil {
				t.Errorf("%v got through", p)
			}
		}
		if w.Code == http.StatusOK && d.ban.Prefixes != nil && d.ban.For <= 0 && d.ban.For != Duration(jails.Forever) {
			t.Errorf("a ban for %d got through", d.ban.For)
		}
	})
}
