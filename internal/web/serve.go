// Package web serves what the daemon knows over HTTP on a TCP port: metrics
// for Prometheus, and a page for people. It reads the daemon as any client
// does.
package web

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/net/netutil"

	"xdpban/jails"
)

// Options are of one port.
type Options struct {
	At      netip.AddrPort
	Listen  func(context.Context, netip.AddrPort) (net.Listener, error)
	Handler http.Handler
	// Token is what others than this host's users must show; empty: they are
	// refused.
	Token string
	Log   *slog.Logger
	// Problem is told why the port can't be had, and nil once it is.
	Problem func(error)
}

// maxConns bounds the connections of one port.
const maxConns = 64

// again is how long a port that couldn't be had is left alone.
const again = 10 * time.Second

// Serve answers on a port until ctx ends. One that can't be had is tried again
// and again: what serves it has other work that matters more.
func Serve(ctx context.Context, o Options) {
	for ctx.Err() == nil {
		err := serve(ctx, o)
		if ctx.Err() != nil {
			return
		}
		o.Problem(err)
		select {
		case <-time.After(again):
		case <-ctx.Done():
		}
	}
}

func serve(ctx context.Context, o Options) error {
	l, err := o.Listen(ctx, o.At)
	if err != nil {
		return err
	}
	o.Problem(nil)
	srv := &http.Server{
		Handler:           guard(o),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      time.Minute,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(o.Log.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	return fmt.Errorf("serve %s: %w", o.At, srv.Serve(netutil.LimitListener(l, maxConns)))
}

// guard keeps out who may not look. On a loopback address that is a browser
// whose user was led astray: a page of another site can have its own name
// resolve to this host, but not make the browser ask for it by a name of this
// host's. On any other address, it is who doesn't know the token.
func guard(o Options) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if o.At.Addr().Unmap().IsLoopback() {
			if !local(r.Host) {
				http.Error(w, fmt.Sprintf("the host is %q: ask for %s", r.Host, o.At), http.StatusForbidden)
				return
			}
		} else if _, password, ok := r.BasicAuth(); !authorized(r, o.Token) && !(ok && same(password, o.Token)) {
			// A browser asks its user, and shows that as a password.
			w.Header().Set("WWW-Authenticate", `Basic realm="xdpban: any name, and the token of token_file"`)
			http.Error(w, "this needs the token of token_file, as a password or as Authorization: Bearer TOKEN", http.StatusUnauthorized)
			return
		}
		o.Handler.ServeHTTP(w, r)
	})
}

// local says that a Host header names this host.
func local(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	if strings.EqualFold(host, "localhost") {
		return true
	}
	a, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil && a.Unmap().IsLoopback()
}

// authorized says that a request shows the token.
func authorized(r *http.Request, token string) bool {
	shown, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	return ok && same(shown, token)
}

// same compares what is shown with a token, if there is one.
func same(shown, token string) bool {
	if token == "" {
		return false
	}
	// Of one length, whatever is shown.
	a, b := sha256.Sum256([]byte(shown)), sha256.Sum256([]byte(token))
	return subtle.ConstantTimeCompare(a[:], b[:]) == 1
}

// minToken is how long a token must be at least.
const minToken = 16

// ReadToken reads a token's file.
func ReadToken(path string) (string, error) { return jails.ReadSecret(path, minToken) }
