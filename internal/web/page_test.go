package web

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"xdpban/internal/control"
)

const (
	testToken = "0123456789abcdef"
	// What an attacker might write into a log.
	hostile = "<img src=x onerror=document.title='owned'>\x1b[2J\u202egpj.exe</pre><script>document.title='owned'</script>"
)

// living is a daemon whose counters rise and whose bans end when asked.
type living struct {
	mu    sync.Mutex
	start time.Time
	bans  []control.Ban
}

func newLiving() *living {
	now := time.Now()
	l := &living{start: now}
	for i, jail := range []string{"sshd", "nginx-scan", hostile} {
		for n := range 8 {
			b := ban(fmt.Sprintf("203.0.113.%d/32", 10*i+n+1), jail, uint64(1000*(n+1)*(i+1)))
			b.Since, b.Until.Time, b.Failures, b.Strikes = now.Add(-time.Hour), now.Add(time.Duration(n+1)*time.Hour), 5, n%2
			l.bans = append(l.bans, b)
		}
	}
	six := ban("2001:db8:1234:5678::/64", "sshd", 99999)
	six.Since = now
	l.bans = append(l.bans, six)
	return l
}

func (l *living) Status(context.Context) (control.Status, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return control.Status{
		Version: "1.2.3", Bans: len(l.bans), Interfaces: []control.Interface{{Name: "eth0"}}, Problems: []string{"a problem: " + hostile},
		Jails: []control.Jail{{Name: "sshd", Enabled: true, Bans: 9, Total: 12, Failures: 300, Tracked: 4}, {Name: "off"}, {Name: hostile, Enabled: true}},
	}, nil
}

func (l *living) Stats(context.Context) (control.Stats, error) {
	s := time.Since(l.start).Seconds()
	return control.Stats{At: time.Now(), Verdicts: map[string]control.Verdict{"XDP_DROP": {Packets: uint64(50000 * s)}, "XDP_PASS": {Packets: uint64(9000 * s)}}}, nil
}

func (l *living) List(context.Context, control.ListQuery) iter.Seq2[control.Ban, error] {
	l.mu.Lock()
	defer l.mu.Unlock()
	return (&fake{bans: append([]control.Ban{}, l.bans...)}).List(context.Background(), control.ListQuery{})
}

func (l *living) Why(_ context.Context, p netip.Prefix) (control.Why, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := control.Why{Prefix: p, Bans: []control.Ban{}}
	old := ban(p.String(), "sshd", 77)
	old.Since = time.Now().Add(-72 * time.Hour)
	w.History = []control.Event{{Time: old.Since, Kind: "ban", Ban: old}, {Time: old.Since.Add(24 * time.Hour), Kind: "expire", Ban: old}}
	for _, b := range l.bans {
		if b.Prefix == p {
			b.Pattern, b.Evidence = "^Failed .* from <ADDR>$", []string{"Failed password for " + hostile, "Failed password for root"}
			w.Bans = append(w.Bans, b)
			w.History = append(w.History, control.Event{Time: b.Since, Kind: "ban", Ban: b})
		}
	}
	return w, nil
}

func (l *living) Unban(_ context.Context, req control.UnbanRequest) (control.UnbanResult, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var r control.UnbanResult
	for i, b := range l.bans {
		if b.Prefix == req.Prefixes[0] {
			l.bans = append(l.bans[:i], l.bans[i+1:]...)
			r.Unbanned = 1
			break
		}
	}
	return r, nil
}

// ask sends a request to a page that is served on loopback.
func ask(t *testing.T, token, method, path, body string, headers ...string) *httptest.ResponseRecorder {
	t.Helper()
	h, err := Page(newLiving(), token, quiet)
	if err != nil {
		t.Fatal(err)
	}
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.Host = "127.0.0.1:9478"
	for i := 0; i < len(headers); i += 2 {
		if headers[i] == "Host" {
			r.Host = headers[i+1]
		} else {
			r.Header.Set(headers[i], headers[i+1])
		}
	}
	w := httptest.NewRecorder()
	guard(Options{At: netip.MustParseAddrPort("127.0.0.1:9478"), Handler: h}).ServeHTTP(w, r)
	return w
}

func TestPageIsKeptToItself(t *testing.T) {
	const body = `{"prefix": "203.0.113.1/32"}`
	bearer, isJSON := []string{"Authorization", "Bearer " + testToken}, []string{"Content-Type", "application/json"}
	both := append(append([]string{}, bearer...), isJSON...)
	for _, c := range []struct {
		name, token, method, path, body string
		headers                         []string
		want                            int
	}{
		{"look", "", "GET", "/", "", nil, 200},
		{"the state", "", "GET", "/api/now", "", nil, 200},
		{"another site's name for this host", "", "GET", "/api/now", "", []string{"Host", "rebind.example.org:9478"}, 403},
		{"unban", testToken, "POST", "/api/unban", body, both, 200},
		{"unban, from this page", testToken, "POST", "/api/unban", body, append([]string{"Origin", "http://127.0.0.1:9478", "Sec-Fetch-Site", "same-origin"}, both...), 200},
		{"unban, from another site", testToken, "POST", "/api/unban", body, append([]string{"Origin", "http://evil.example.org", "Sec-Fetch-Site", "cross-site"}, both...), 403},
		{"unban, from another port", testToken, "POST", "/api/unban", body, append([]string{"Origin", "http://127.0.0.1:8080", "Sec-Fetch-Site", "same-site"}, both...), 403},
		{"unban, from an old browser at another site", testToken, "POST", "/api/unban", body, append([]string{"Origin", "http://evil.example.org"}, both...), 403},
		{"unban without a token", testToken, "POST", "/api/unban", body, isJSON, 401},
		{"unban with another token", testToken, "POST", "/api/unban", body, append([]string{"Authorization", "Bearer x" + testToken}, isJSON...), 401},
		{"unban where there is no token", "", "POST", "/api/unban", body, append([]string{"Authorization", "Bearer "}, isJSON...), 403},
		{"unban as a form", testToken, "POST", "/api/unban", body, append([]string{"Content-Type", "text/plain"}, bearer...), 415},
		{"unban of nonsense", testToken, "POST", "/api/unban", `{"prefix": "x"}`, both, 400},
		{"unban by a link", testToken, "GET", "/api/unban", body, both, 404},
		{"why nobody", "", "GET", "/api/why?address=nobody", "", nil, 400},
		{"a folder", "", "GET", "/../page.go", "", nil, 307},
	} {
		w := ask(t, c.token, c.method, c.path, c.body, c.headers...)
		if w.Code != c.want {
			t.Errorf("%s: %d %s", c.name, w.Code, w.Body)
		}
		if csp := w.Header().Get("Content-Security-Policy"); c.want == 200 && !strings.HasPrefix(csp, "default-src 'none'; script-src 'self';") {
			t.Errorf("%s: its policy is %q", c.name, csp)
		}
		if w.Header().Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s: other sites may read it", c.name)
		}
	}
	var n now
	if err := json.Unmarshal(ask(t, "", "GET", "/api/now", "").Body.Bytes(), &n); err != nil || len(n.Top) != 25 || n.Top[0].Packets != 99999 || len(n.Jails) != 2 || n.MayUnban {
		t.Errorf("%+v %v", n, err)
	}
}

// TestMostOfMany: of more bans than are kept at a time, the page has those that
// dropped most.
func TestMostOfMany(t *testing.T) {
	l := newLiving()
	l.bans = nil
	const many = 12_345
	for i := range many {
		b := control.Ban{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)}), 32), Packets: uint64(i * 7919 % many)}
		l.bans = append(l.bans, b)
	}
	p := &page{daemon: l}
	top, err := p.most(t.Context())
	if err != nil || len(top) != topBans {
		t.Fatalf("%d bans, %v", len(top), err)
	}
	for i, b := range top {
		if b.Packets != uint64(many-1-i) {
			t.Fatalf("number %d has %d packets", i, b.Packets)
		}
	}
}

// TestPageInABrowser uses the page as people do, in a real Chromium.
func TestPageInABrowser(t *testing.T) {
	if _, err := exec.LookPath("chromium"); err != nil {
		t.Skip("needs chromium: make deps installs it")
	}
	l := newLiving()
	h, err := Page(l, testToken, quiet)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := netip.MustParseAddrPort(listener.Addr().String())
	srv := &http.Server{Handler: guard(Options{At: at, Handler: h})}
	go func() { _ = srv.Serve(listener) }()
	defer srv.Close()

	// A test may run as root, for whom Chromium's sandbox doesn't work.
	allocator, cancel := chromedp.NewExecAllocator(t.Context(), append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath("chromium"), chromedp.NoSandbox, chromedp.DisableGPU, chromedp.WSURLReadTimeout(2*time.Minute))...)
	defer cancel()
	ctx, cancel := chromedp.NewContext(allocator, chromedp.WithErrorf(t.Logf))
	defer cancel()
	ctx, cancel = context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	base := "http://" + at.String()
	var mu sync.Mutex
	var complaints []string
	complain := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		complaints = append(complaints, fmt.Sprintf(format, args...))
	}
	chromedp.ListenTarget(ctx, func(ev any) {
		switch e := ev.(type) {
		case *network.EventRequestWillBeSent:
			if u := e.Request.URL; !strings.HasPrefix(u, base+"/") && u != "data:," {
				complain("it asks %s", u)
			}
		case *log.EventEntryAdded:
			// The wrong token is ours.
			if !strings.Contains(e.Entry.Text, "401") {
				complain("the browser says: %s", e.Entry.Text)
			}
		case *runtime.EventExceptionThrown:
			complain("a fault: %s", e.ExceptionDetails.Error())
		}
	})
	run := func(what string, actions ...chromedp.Action) {
		t.Helper()
		if err := chromedp.Run(ctx, actions...); err != nil {
			mu.Lock()
			defer mu.Unlock()
			t.Fatalf("%s: %v; %q", what, err, complaints)
		}
	}
	shot := func(name string) chromedp.Action {
		return chromedp.ActionFunc(func(ctx context.Context) error {
			dir := os.Getenv("XDPBAN_SCREENS")
			if dir == "" {
				return nil
			}
			var png []byte
			if err := chromedp.CaptureScreenshot(&png).Do(ctx); err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(dir, name+".png"), png, 0o644)
		})
	}
	scheme := func(value string) chromedp.Action {
		return emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: value}})
	}
	var wide bool
	fits := func(what string) {
		t.Helper()
		run(what, chromedp.Evaluate(`document.documentElement.scrollWidth > innerWidth`, &wide))
		if wide {
			t.Errorf("%s: the page is wider than its window", what)
		}
	}
	poll := func(expr string) chromedp.Action {
		return chromedp.Poll(expr, nil, chromedp.WithPollingTimeout(time.Minute))
	}

	run("open it", log.Enable(), network.Enable(), chromedp.EmulateViewport(1200, 900), scheme("light"), chromedp.Navigate(base+"/"))
	run("a plot", poll(`document.querySelector("polyline.drop").getAttribute("points")?.split(" ").length >= 3`))
	var text string
	run("read it", chromedp.Text("body", &text), shot("page-light"))
	for _, want := range []string{"25 bans, guards eth0", "2001:db8:1234:5678::/64", "sshd", "99,999", `onerror=document.title='owned'>\u{1b}[2J\u{202e}gpj.exe`} {
		if !strings.Contains(text, want) {
			t.Errorf("the page has no %q:\n%s", want, text)
		}
	}
	fits("on a desk")

	// By keyboard alone: to the first ban, why, and back.
	run("by keyboard", chromedp.Focus("#address"), chromedp.KeyEvent("\t\t\r"), chromedp.WaitVisible("#why[open]"),
		poll(`document.querySelectorAll("#events li").length == 3`), chromedp.Text("#why", &text), shot("why-light"), scheme("dark"), shot("why-dark"))
	for _, want := range []string{"2001:db8:1234:5678::/64", "Banned by sshd", "^Failed .* from <ADDR>$", `Failed password for <img src=x`, `\u{1b}[2J\u{202e}gpj.exe</pre><script>`} {
		if !strings.Contains(text, want) {
			t.Errorf("why has no %q:\n%s", want, text)
		}
	}
	run("unban with a wrong token", chromedp.SendKeys("#token", "wrong\r"), poll(`document.querySelector("#said").textContent.includes("not the token")`))
	run("unban", chromedp.Evaluate(`document.querySelector("#token").value = ""`, nil), chromedp.SendKeys("#token", testToken+"\r"),
		poll(`document.querySelector("#said").textContent == "Unbanned." && document.querySelector("#facts").textContent.includes("not banned")`))
	run("back", chromedp.KeyEvent("\x1b"), chromedp.WaitNotVisible("#why"), poll(`document.querySelector("#state").textContent.includes("24 bans")`), shot("page-dark"))

	run("on a phone", chromedp.EmulateViewport(390, 844, chromedp.EmulateMobile), shot("phone-dark"), scheme("light"), shot("phone-light"))
	fits("on a phone")
	run("why, on a phone", chromedp.SendKeys("#address", "203.0.113.28\r"), chromedp.WaitVisible("#why[open]"), poll(`document.querySelectorAll("#events li").length == 3`), shot("phone-why"))
	fits("why, on a phone")
	var title string
	var injected int
	run("what came in", chromedp.Title(&title), chromedp.Evaluate(`document.querySelectorAll("img, body script, iframe").length`, &injected))
	if title != "xdpban" || injected != 0 {
		t.Errorf("a log's text came to life: title %q, %d elements", title, injected)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(complaints) > 0 {
		t.Errorf("complaints: %q", complaints)
	}
}
