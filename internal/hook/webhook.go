package hook

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"xdpban/jails"
)

const (
	// maxAnswer is how much of an answer is read.
	maxAnswer = 4 << 10
	// minSecret is how long a secret must be at least.
	minSecret = 16
)

// webhook is one that is configured. Its lane has it alone.
type webhook struct {
	jails.Webhook
	dial func(ctx context.Context, network, address string) (net.Conn, error)
	http *http.Client // nil until it is needed
}

func newWebhook(w jails.Webhook, dial func(ctx context.Context, network, address string) (net.Conn, error)) *webhook {
	return &webhook{Webhook: w, dial: dial}
}

// A refusal is an answer that is the same the next time.
type refusal struct{ error }

// post sends a notice until it is taken, refused, or too old.
func (h *Hooks) post(ctx context.Context, who *told, n jails.Notice) error {
	// The same in each attempt: who gets it twice can tell.
	id := make([]byte, 16)
	_, _ = rand.Read(id) // never fails
	for wait := h.times.first; ; wait *= 2 {
		h.mu.Lock()
		w, changed := h.webhooks[who.Name], h.changed
		h.mu.Unlock()
		if w == nil {
			return errGone
		}
		body, err := w.Body.JSON(n)
		if err != nil {
			return err
		}
		within, cancel := context.WithTimeoutCause(ctx, h.times.attempt, fmt.Errorf("no answer within %s", h.times.attempt))
		later, err := w.send(within, hex.EncodeToString(id), body, h.o.Now())
		cancel()
		var no refusal
		switch {
		case err == nil || errors.As(err, &no) || ctx.Err() != nil:
			return err
		case h.o.Now().Sub(n.Time) >= h.times.giveUp:
			return fmt.Errorf("given up after %s: %w", h.times.giveUp, err)
		}
		h.retries(who, err)
		wait = min(max(wait, later), h.times.longest)
		select {
		case <-time.After(wait):
		case <-changed:
			wait = h.times.first
		case <-h.closing:
			return fmt.Errorf("given up, since %w: %w", errStopped, err)
		}
	}
}

// retries notes that an attempt has failed.
func (h *Hooks) retries(who *told, err error) {
	h.mu.Lock()
	who.Retries++
	who.Error = err.Error()
	news := h.trouble(who, err, "; it is tried again")
	h.mu.Unlock()
	if news {
		h.tell(who)
	}
}

// send makes one attempt. later is how long the server wants to be left alone.
func (w *webhook) send(ctx context.Context, id string, body []byte, now time.Time) (later time.Duration, err error) {
	target := w.URL
	if w.URLFile != "" {
		if target, err = jails.ReadSecret(w.URLFile, 1); err != nil {
			return 0, err
		}
		if err := jails.CheckWebhookURL(target); err != nil {
			return 0, fmt.Errorf("%s: %w", w.URLFile, err)
		}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, target, bytes.NewReader(body))
	if err != nil {
		return 0, errors.New("its url is none") // whatever it holds is secret
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "xdpban")
	req.Header.Set("Webhook-Id", id)
	if w.SecretFile != "" {
		secret, err := jails.ReadSecret(w.SecretFile, minSecret)
		if err != nil {
			return 0, err
		}
		at := strconv.FormatInt(now.Unix(), 10)
		req.Header.Set("Webhook-Timestamp", at)
		if req.Header["Webhook-Signature"], err = signature(secret, id, at, body); err != nil {
			return 0, fmt.Errorf("%s: %w", w.SecretFile, err)
		}
	}
	if w.http == nil {
		if w.http, err = w.client(); err != nil {
			return 0, err
		}
	}
	resp, err := w.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		// The address stays out of it.
		var in *url.Error
		if errors.As(err, &in) {
			err = in.Err
		}
		return 0, err
	}
	defer resp.Body.Close()
	said, _ := io.ReadAll(io.LimitReader(resp.Body, maxAnswer)) // the status says it
	if resp.StatusCode/100 == 2 {
		return 0, nil
	}
	err = fmt.Errorf("it answers %s", resp.Status)
	if text := strings.TrimSpace(string(said[:min(len(said), 200)])); text != "" {
		err = fmt.Errorf("%w: %s", err, plain(text))
	}
	switch code := resp.StatusCode; {
	case code == http.StatusTooManyRequests || code == http.StatusServiceUnavailable:
		if n, err := strconv.ParseUint(resp.Header.Get("Retry-After"), 10, 16); err == nil {
			later = time.Duration(n) * time.Second
		}
		return later, err
	case code == http.StatusRequestTimeout, code == http.StatusTooEarly, code >= 500:
		return 0, err
	}
	return 0, refusal{err}
}

// client makes the client: TLS is checked, nobody is followed elsewhere, and no
// proxy of the environment is used.
func (w *webhook) client() (*http.Client, error) {
	t := &http.Transport{
		DialContext: w.dial, IdleConnTimeout: time.Minute, MaxIdleConns: 1,
		MaxResponseHeaderBytes: 16 << 10, ForceAttemptHTTP2: true,
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12},
	}
	if w.CA != "" {
		pem, err := os.ReadFile(w.CA)
		if err != nil {
			return nil, fmt.Errorf("read the authorities: %w", err)
		}
		t.TLSClientConfig.RootCAs = x509.NewCertPool()
		if !t.TLSClientConfig.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("read the authorities: %s has no certificate in PEM", w.CA)
		}
	}
	return &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}, nil
}

// signature is that of Standard Webhooks: a MAC of id, time and body.
func signature(secret, id, at string, body []byte) ([]string, error) {
	key := []byte(secret)
	if text, ok := strings.CutPrefix(secret, "whsec_"); ok {
		var err error
		if key, err = base64.StdEncoding.DecodeString(text); err != nil {
			return nil, errors.New("what follows whsec_ isn't base64")
		}
	}
	mac := hmac.New(sha256.New, key)
	fmt.Fprintf(mac, "%s.%s.%s", id, at, body)
	return []string{"v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))}, nil
}
