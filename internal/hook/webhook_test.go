package hook

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"xdpban/internal/control"
	"xdpban/jails"
)

// receiver is a server that answers what the test says, and keeps what it got.
type receiver struct {
	*httptest.Server
	mu     sync.Mutex
	answer func(n int, w http.ResponseWriter, r *http.Request)
	got    []received
}

type received struct {
	header http.Header
	body   string
}

func receive(t *testing.T, secure bool, answer func(n int, w http.ResponseWriter, r *http.Request)) *receiver {
	s := &receiver{answer: answer}
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		s.mu.Lock()
		s.got = append(s.got, received{r.Header, string(b)})
		n := len(s.got)
		s.mu.Unlock()
		s.answer(n, w, r)
	})
	s.Server = httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	if secure {
		s.StartTLS()
	} else {
		s.Start()
	}
	t.Cleanup(s.CloseClientConnections)
	return s
}

func (s *receiver) all() []received {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]received(nil), s.got...)
}

func secretFile(t *testing.T, text string, mode os.FileMode) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(p, mode); err != nil {
		t.Fatal(err)
	}
	return p
}

func hooked(w jails.Webhook) *jails.Config {
	w.Name = "ops"
	if w.Jails == nil {
		w.Jails = []string{"*"}
	}
	if w.Events == nil {
		w.Events = []string{"ban"}
	}
	return &jails.Config{Settings: jails.Settings{Webhooks: []jails.Webhook{w}}}
}

// quick makes what takes seconds take milliseconds.
func quick(h *Hooks) {
	h.times.first, h.times.longest, h.times.attempt = time.Millisecond, 5*time.Millisecond, 10*time.Second
	h.times.stop = 100 * time.Millisecond
}

// TestWebhook: it comes signed, after failures too and with the same id, to who
// wants it.
func TestWebhook(t *testing.T) {
	const secret = "0123456789abcdef0123"
	s := receive(t, true, func(n int, w http.ResponseWriter, r *http.Request) {
		if n < 3 {
			w.Header().Set("Retry-After", "0")
			http.Error(w, "not\x1bnow", http.StatusServiceUnavailable)
		}
	})
	defer s.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{secret + "\n", "whsec_" + base64.StdEncoding.EncodeToString([]byte(secret))} {
		s.mu.Lock()
		s.got = nil
		s.mu.Unlock()
		r := newRig(t, hooked(jails.Webhook{URL: s.URL + "/hook", SecretFile: secretFile(t, file, 0o600), CA: ca, Jails: []string{"sshd"}}), quick)
		other := notice("ban", "203.0.113.9")
		other.Jail = "manual"
		for _, n := range []jails.Notice{notice("ban", "203.0.113.5"), notice("unban", "203.0.113.5"), other} {
			r.Tell(n)
		}
		r.says(`it answers 503 Service Unavailable: not\x1bnow; it is tried again`)
		r.says("over: hook webhook ops")
		r.Close()
		got := s.all()
		if len(got) != 3 || got[0].header.Get("Webhook-Id") == "" || got[0].header.Get("Webhook-Id") != got[2].header.Get("Webhook-Id") {
			t.Fatalf("%d attempts: %v", len(got), got)
		}
		last := got[2]
		mac := hmac.New(sha256.New, []byte(secret))
		fmt.Fprintf(mac, "%s.%s.%s", last.header.Get("Webhook-Id"), last.header.Get("Webhook-Timestamp"), last.body)
		if want := "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil)); last.header.Get("Webhook-Signature") != want {
			t.Errorf("signed %s, want %s", last.header.Get("Webhook-Signature"), want)
		}
		var n jails.Notice
		if err := json.Unmarshal([]byte(last.body), &n); err != nil || n.Addr != "203.0.113.5" || n.Event != "ban" || last.header.Get("Content-Type") != "application/json" {
			t.Errorf("%s: %+v, %v", last.body, n, err)
		}
		if h := r.Status()[0]; h.Done != 1 || h.Retries != 2 || h.Failed != 0 || h.Kind != "webhook" || h.Name != "ops" {
			t.Errorf("%+v", h)
		}
	}
}

// TestRefused: an answer that is the same the next time isn't asked for again,
// and nobody is followed elsewhere.
func TestRefused(t *testing.T) {
	elsewhere := receive(t, false, func(int, http.ResponseWriter, *http.Request) {})
	defer elsewhere.Close()
	s := receive(t, false, func(n int, w http.ResponseWriter, r *http.Request) {
		switch n {
		case 1:
			http.Error(w, strings.Repeat("no ", 10_000), http.StatusBadRequest)
		case 2:
			http.Redirect(w, r, elsewhere.URL, http.StatusTemporaryRedirect)
		case 3:
			w.WriteHeader(http.StatusNoContent)
		}
	})
	defer s.Close()
	r := newRig(t, hooked(jails.Webhook{URLFile: secretFile(t, s.URL+"/secret-token\n", 0o600)}), quick)
	for range 3 {
		r.Tell(notice("ban", "203.0.113.5"))
	}
	r.says("it answers 400 Bad Request: no no")
	r.says("it answers 307 Temporary Redirect")
	r.says("over: ")
	r.Close()
	if h := r.Status()[0]; h.Failed != 2 || h.Done != 1 || h.Retries != 0 {
		t.Errorf("%+v", h)
	}
	if len(elsewhere.all()) > 0 {
		t.Error("it was followed elsewhere")
	}
}

// TestUnreachable: a server that hangs, whose certificate is nobody's, or that
// isn't there, is tried until it is time to give up; the secret in its address
// isn't told.
func TestUnreachable(t *testing.T) {
	hangs := make(chan struct{})
	s := receive(t, false, func(_ int, w http.ResponseWriter, r *http.Request) { <-hangs })
	defer s.Close()
	defer close(hangs)
	stranger := receive(t, true, func(int, http.ResponseWriter, *http.Request) {})
	defer stranger.Close()
	gone := httptest.NewServer(nil)
	gone.Close()
	rigs := map[string]*rig{}
	for words, w := range map[string]jails.Webhook{
		"no answer within 300ms":       {URL: s.URL + "/secret-token"},
		"signed by unknown authority":  {URL: stranger.URL + "/secret-token"},
		"connection refused":           {URL: gone.URL + "/secret-token"},
		"nobody but its owner":         {URLFile: secretFile(t, s.URL, 0o644)},
		"no address of the web":        {URLFile: secretFile(t, "secret-token", 0o600)},
		"fewer than 16":                {URL: s.URL, SecretFile: secretFile(t, "short", 0o600)},
		"isn't base64":                 {URL: s.URL, SecretFile: secretFile(t, "whsec_#################", 0o600)},
		"no certificate in PEM":        {URL: s.URL, CA: secretFile(t, "secret-token", 0o600)},
		"no such file":                 {URL: s.URL, CA: "/nowhere/ca.pem"},
		"stat /nowhere/webhook.secret": {URL: s.URL, SecretFile: "/nowhere/webhook.secret"},
	} {
		rigs[words] = newRig(t, hooked(w), func(h *Hooks) {
			quick(h)
			h.times.longest, h.times.giveUp = 200*time.Millisecond, 2*time.Second
			if strings.HasPrefix(words, "no answer") {
				h.times.attempt = 300 * time.Millisecond
			}
		})
		rigs[words].Tell(notice("ban", "203.0.113.5"))
	}
	for words, r := range rigs {
		r.says("given up after 2s: ")
		h := r.Status()[0]
		if h.Failed != 1 || h.Retries == 0 || !strings.Contains(h.Error, words) || strings.Contains(h.Error, "secret-token") || r.log.has("secret-token") {
			t.Errorf("%s: %+v", words, h)
		}
		r.Close()
	}
}

// TestWebhookFull: while nobody answers telling doesn't wait, and a stop isn't
// held up; what is lost is said.
func TestWebhookFull(t *testing.T) {
	gone := httptest.NewServer(nil)
	gone.Close()
	r := newRig(t, hooked(jails.Webhook{URL: gone.URL}), func(h *Hooks) { quick(h); h.times.longest = time.Hour; h.times.first = 200 * time.Millisecond })
	began := time.Now()
	for i := range 2 * maxWaiting {
		r.Tell(notice("ban", fmt.Sprintf("2001:db8::%x", i)))
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("telling took %s", took)
	}
	r.says("more than 1000 events wait, the others are dropped")
	h := r.until("full", func(h control.Hook) bool { return h.Dropped > 0 })
	if h.Waiting+h.Running+int(h.Dropped) != 2*maxWaiting {
		t.Errorf("%+v", h)
	}
	began = time.Now()
	r.Close()
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("the stop took %s", took)
	}
	if h := r.Status()[0]; !r.log.has("events, since xdpban stops") || int(h.Failed+h.Dropped)+h.Waiting != 2*maxWaiting {
		t.Errorf("%+v", h)
	}
}

// TestOtherAddress: who waits to be told at a wrong address is told at the right
// one once that is configured, and one that isn't there any more holds up nothing.
func TestOtherAddress(t *testing.T) {
	gone := httptest.NewServer(nil)
	gone.Close()
	s := receive(t, false, func(int, http.ResponseWriter, *http.Request) {})
	defer s.Close()
	r := newRig(t, hooked(jails.Webhook{URL: gone.URL}), func(h *Hooks) { quick(h); h.times.first, h.times.longest = time.Hour, time.Hour })
	for range 2 {
		r.Tell(notice("ban", "203.0.113.5"))
	}
	r.says("connection refused; it is tried again")
	r.Configure(hooked(jails.Webhook{URL: s.URL}))
	r.until("told", func(h control.Hook) bool { return h.Done == 2 })
	r.Configure(hooked(jails.Webhook{URL: gone.URL}))
	for range 2 {
		r.Tell(notice("ban", "203.0.113.5"))
	}
	r.says("connection refused; it is tried again")
	r.Configure(&jails.Config{})
	r.says("over: hook webhook ops")
	r.Close()
	if all := r.Status(); len(all) > 0 || !r.log.has("isn't configured any more") {
		t.Errorf("%+v", all)
	}
}
