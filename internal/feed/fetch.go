package feed

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

const (
	// answerTime is how long a server may take to begin its answer, and
	// fetchTime to end it.
	answerTime = 30 * time.Second
	fetchTime  = 5 * time.Minute
	redirects  = 5
)

// fetched is what came of a look at a source.
type fetched struct {
	content
	etag, modified string
	same           bool // as the last time: content is empty
	info           fs.FileInfo
}

// fetch looks at a source. Since is what is known of the last good copy, and
// info of the file that was read last.
func (s *Source) fetch(ctx context.Context, o *Options, since *header, info fs.FileInfo) (fetched, error) {
	if s.File != "" {
		return s.read(o.Now(), info)
	}
	client, err := s.client(o)
	if err != nil {
		return fetched{}, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, o.fetchTime(), fmt.Errorf("it wasn't done within %s", o.fetchTime()))
	defer cancel()
	r, err := s.request(ctx, o, s.URL)
	if err != nil {
		return fetched{}, err
	}
	if since != nil {
		if since.ETag != "" {
			r.Header.Set("If-None-Match", since.ETag)
		}
		if since.Modified != "" {
			r.Header.Set("If-Modified-Since", since.Modified)
		}
	}
	a, err := client.Do(r)
	if err != nil {
		return fetched{}, cause(ctx, err)
	}
	defer a.Body.Close()
	switch {
	case a.StatusCode == http.StatusNotModified && since != nil:
		return fetched{same: true}, nil
	case a.StatusCode != http.StatusOK:
		return fetched{}, fmt.Errorf("get %s: the server says %s", s.URL, a.Status)
	}
	if kind, _, _ := mime.ParseMediaType(a.Header.Get("Content-Type")); kind == "text/html" || strings.HasPrefix(kind, "image/") || strings.HasPrefix(kind, "video/") {
		return fetched{}, fmt.Errorf("get %s: it is %s, and no list", s.URL, kind)
	}
	if a.ContentLength > s.MaxBytes {
		return fetched{}, fmt.Errorf("get %s: it has %d bytes, and max_bytes is %d", s.URL, a.ContentLength, s.MaxBytes)
	}
	c, err := parse(a.Body, s, o.Now())
	if err != nil {
		return fetched{}, fmt.Errorf("get %s: %w", s.URL, cause(ctx, err))
	}
	return fetched{content: c, etag: a.Header.Get("ETag"), modified: a.Header.Get("Last-Modified")}, nil
}

// cause names a time limit in the place of what it brought about.
func cause(ctx context.Context, err error) error {
	if c := context.Cause(ctx); c != nil && (errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)) {
		return c
	}
	return err
}

func (s *Source) request(ctx context.Context, o *Options, at string) (*http.Request, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return nil, err
	}
	r.Header.Set("User-Agent", "xdpban/"+o.Version)
	return r, nil
}

// client makes connections for one look: an idle one would wake the machine up.
func (s *Source) client(o *Options) (*http.Client, error) {
	roots, err := s.roots()
	if err != nil {
		return nil, err
	}
	return &http.Client{
		Transport: &http.Transport{
			DialContext:           o.Dial,
			TLSClientConfig:       &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
			TLSHandshakeTimeout:   answerTime,
			ResponseHeaderTimeout: answerTime,
			DisableKeepAlives:     true,
		},
		CheckRedirect: func(r *http.Request, via []*http.Request) error {
			switch {
			case s.Format == CrowdSec:
				return errors.New("it redirects, and the key is for it alone")
			case len(via) > redirects:
				return fmt.Errorf("it redirects more than %d times", redirects)
			case !Secure(r.URL) && Secure(via[0].URL):
				return fmt.Errorf("it redirects to %s, which isn't encrypted", r.URL.Redacted())
			}
			return nil
		},
	}, nil
}

// Secure says that nobody on the way can read or change what comes from there:
// it is encrypted, or on this host.
func Secure(u *url.URL) bool {
	if u.Scheme == "https" {
		return true
	}
	ip := net.ParseIP(u.Hostname())
	return u.Scheme == "http" && (ip != nil && ip.IsLoopback() || u.Hostname() == "localhost")
}

// roots are the authorities that the server's certificate is checked against;
// nil: the system's.
func (s *Source) roots() (*x509.CertPool, error) {
	if s.CA == "" {
		return nil, nil
	}
	text, err := os.ReadFile(s.CA)
	if err != nil {
		return nil, fmt.Errorf("read ca: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("read ca %s: there is no certificate in it", s.CA)
	}
	return pool, nil
}

// read reads a file on this host.
func (s *Source) read(now time.Time, was fs.FileInfo) (fetched, error) {
	info, err := os.Stat(s.File)
	if err != nil {
		return fetched{}, err
	}
	if !info.Mode().IsRegular() {
		return fetched{}, &fs.PathError{Op: "read", Path: s.File, Err: errors.New("it is not a regular file")}
	}
	if was != nil && os.SameFile(info, was) && info.Size() == was.Size() && info.ModTime().Equal(was.ModTime()) {
		return fetched{same: true, info: was}, nil
	}
	f, err := os.Open(s.File)
	if err != nil {
		return fetched{}, err
	}
	defer f.Close()
	c, err := parse(io.Reader(f), s, now)
	if err != nil {
		return fetched{}, fmt.Errorf("read %s: %w", s.File, err)
	}
	return fetched{content: c, info: info}, nil
}

// key reads the secret of a file.
func (s *Source) key() (string, error) {
	text, err := os.ReadFile(s.KeyFile)
	if err != nil {
		return "", fmt.Errorf("read key_file: %w", err)
	}
	key := strings.TrimSpace(string(text))
	if key == "" || strings.ContainsAny(key, "\r\n\x00") {
		return "", fmt.Errorf("read key_file %s: it must hold the key alone, on one line", s.KeyFile)
	}
	return key, nil
}
