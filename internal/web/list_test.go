package web

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"xdpban/internal/control"
	"xdpban/internal/export"
)

// listed is a Lister whose list may break off.
type listed struct {
	bans   []control.Ban
	broken error
	walks  int
}

func (l *listed) List(_ context.Context, q control.ListQuery) iter.Seq2[control.Ban, error] {
	l.walks++
	return func(yield func(control.Ban, error) bool) {
		for _, b := range l.bans {
			if (q.Jail == "" || q.Jail == b.Jail) && !yield(b, nil) {
				return
			}
		}
		if l.broken != nil {
			yield(control.Ban{}, l.broken)
		}
	}
}

// TestLists: each format, a jail's bans, and nothing again for who has it.
func TestLists(t *testing.T) {
	l := &listed{bans: []control.Ban{ban("203.0.113.1/32", "sshd", 1), ban("2001:db8:bad::/48", "manual", 0)}}
	changes := uint64(7)
	srv := httptest.NewServer(Lists(l, func() uint64 { return changes }, quiet))
	defer srv.Close()
	get := func(method, path, have string) (*http.Response, string, error) {
		t.Helper()
		req, err := http.NewRequest(method, srv.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if have != "" {
			req.Header.Set("If-None-Match", have)
		}
		resp, err := srv.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return resp, string(b), err
	}
	for _, f := range export.Formats() {
		resp, body, err := get("GET", "/"+string(f), "")
		if err != nil || resp.StatusCode != 200 || resp.Header.Get("Content-Type") != f.ContentType() || !strings.Contains(body, "203.0.113.1") || !strings.Contains(body, "2001:db8:bad::/48") {
			t.Errorf("%s: %d, %v, %v: %s", f, resp.StatusCode, resp.Header, err, body)
		}
	}
	resp, body, err := get("GET", "/plain?jail=sshd", "")
	if err != nil || body != "203.0.113.1\n" {
		t.Errorf("one jail: %q, %v", body, err)
	}
	tag := resp.Header.Get("ETag")
	walks := l.walks
	for _, have := range []string{tag, strings.TrimPrefix(tag, "W/"), `"other", ` + tag, "*"} {
		if resp, body, _ := get("GET", "/plain", have); resp.StatusCode != http.StatusNotModified || body != "" || resp.Header.Get("ETag") != tag {
			t.Errorf("with %s: %d %q", have, resp.StatusCode, body)
		}
	}
	if resp, body, _ := get("HEAD", "/nft", ""); resp.StatusCode != 200 || body != "" || resp.Header.Get("ETag") != tag {
		t.Errorf("HEAD: %d %q", resp.StatusCode, body)
	}
	if l.walks != walks {
		t.Errorf("the bans were walked %d times for nothing", l.walks-walks)
	}
	changes++
	if resp, body, _ := get("GET", "/plain", tag); resp.StatusCode != 200 || body == "" || resp.Header.Get("ETag") == tag {
		t.Errorf("after a change: %d %q", resp.StatusCode, body)
	}
	for path, want := range map[string]int{"/": 404, "/xml": 404, "/plain/": 404, "/talk": 404} {
		if resp, body, _ := get("GET", path, ""); resp.StatusCode != want || !strings.Contains(body, "/plain, /cidr") {
			t.Errorf("%s: %d %s", path, resp.StatusCode, body)
		}
	}
	if resp, _, _ := get("POST", "/plain", ""); resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: %d", resp.StatusCode)
	}
	l.broken = errors.New("map is gone")
	for len(l.bans) < 1000 { // so many that the first are on their way
		l.bans = append(l.bans, l.bans...)
	}
	if resp, body, err := get("GET", "/cidr", ""); err == nil {
		t.Errorf("what broke off looks whole: %d, %d bytes", resp.StatusCode, len(body))
	}
	l.bans, l.broken = nil, fmt.Errorf("%w: there is no jail %q", control.ErrNotFound, "none")
	if resp, body, _ := get("GET", "/plain?jail=none", ""); resp.StatusCode != 404 || !strings.Contains(body, "there is no jail") || resp.Header.Get("ETag") != "" {
		t.Errorf("no such jail: %d %s %v", resp.StatusCode, body, resp.Header)
	}
}
