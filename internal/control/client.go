package control

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Client speaks to a daemon. Its errors are found by errors.Is: ErrDown,
// ErrForbidden, ErrInvalid, ErrRefused, ErrNotFound, ErrConfig, ErrFailed.
type Client struct {
	path string
	http *http.Client
}

// NewClient makes a client for the daemon at a socket. It connects with the
// first call.
func NewClient(path string) *Client {
	d := net.Dialer{Timeout: 5 * time.Second}
	return &Client{path: path, http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return d.DialContext(ctx, "unix", path)
		},
		MaxIdleConns:    1,
		IdleConnTimeout: 10 * time.Second,
	}}}
}

// Close lets go of an idle connection.
func (c *Client) Close() error {
	c.http.CloseIdleConnections()
	return nil
}

// Ping says whether a daemon listens; its error is ErrDown if none does.
func (c *Client) Ping(ctx context.Context) error {
	d := net.Dialer{Timeout: 5 * time.Second}
	conn, err := d.DialContext(ctx, "unix", c.path)
	if err != nil {
		return c.dialError("answer", err)
	}
	return conn.Close()
}

// Status asks how the daemon is.
func (c *Client) Status(ctx context.Context) (s Status, err error) {
	return s, c.call(ctx, "GET", "status", nil, nil, &s)
}

// List asks for the standing bans, in any order, and the ports.
func (c *Client) List(ctx context.Context, q ListQuery) (l List, err error) {
	v := url.Values{}
	if q.Jail != "" {
		v.Set("jail", q.Jail)
	}
	return l, c.call(ctx, "GET", "bans", v, nil, &l)
}

// Bans is List without the ports, one by one as they come. An error ends it; it
// is one, too, if the answer breaks off.
func (c *Client) Bans(ctx context.Context, q ListQuery) iter.Seq2[Ban, error] {
	return func(yield func(Ban, error) bool) {
		v := url.Values{}
		if q.Jail != "" {
			v.Set("jail", q.Jail)
		}
		body, err := c.ask(ctx, "GET", "bans", v, nil)
		if err != nil {
			yield(Ban{}, err)
			return
		}
		defer body.Close()
		if more, err := eachBan(json.NewDecoder(body), func(b Ban) bool { return yield(b, nil) }); err != nil && more {
			yield(Ban{}, fmt.Errorf("%w: bans: the daemon's answer broke off: %w", ErrFailed, err))
		}
	}
}

// eachBan reads the bans of a List. more is false once fn wants no more.
func eachBan(dec *json.Decoder, fn func(Ban) bool) (more bool, err error) {
	for _, want := range []json.Token{json.Delim('{'), "bans", json.Delim('[')} {
		if t, err := dec.Token(); err != nil || t != want {
			return true, cmp.Or(err, fmt.Errorf("%v in the place of %v", t, want))
		}
	}
	for dec.More() {
		var b Ban
		if err := dec.Decode(&b); err != nil {
			return true, err
		}
		if !fn(b) {
			return false, nil
		}
	}
	for {
		switch _, err := dec.Token(); {
		case errors.Is(err, io.EOF):
			return true, nil
		case err != nil:
			return true, err
		}
	}
}

// Ban bans prefixes.
func (c *Client) Ban(ctx context.Context, r BanRequest) (res BanResult, err error) {
	return res, c.call(ctx, "POST", "ban", nil, r, &res)
}

// Unban ends bans.
func (c *Client) Unban(ctx context.Context, r UnbanRequest) (res UnbanResult, err error) {
	return res, c.call(ctx, "POST", "unban", nil, r, &res)
}

// Allow puts prefixes on the allowlist and returns how many are new.
func (c *Client) Allow(ctx context.Context, p []netip.Prefix) (n int, err error) {
	var res count
	err = c.call(ctx, "POST", "allow", nil, prefixList{p}, &res)
	return res.Changed, err
}

// Disallow takes manual entries off the allowlist and returns how many
// there were.
func (c *Client) Disallow(ctx context.Context, p []netip.Prefix) (n int, err error) {
	var res count
	err = c.call(ctx, "POST", "disallow", nil, prefixList{p}, &res)
	return res.Changed, err
}

// Allowed lists the allowlist.
func (c *Client) Allowed(ctx context.Context) (a []Allow, err error) {
	return a, c.call(ctx, "GET", "allow", nil, nil, &a)
}

// Ports lists the blocked ports.
func (c *Client) Ports(ctx context.Context) (p []Port, err error) {
	return p, c.call(ctx, "GET", "ports", nil, nil, &p)
}

// Stats reads the kernel's counters.
func (c *Client) Stats(ctx context.Context) (s Stats, err error) {
	return s, c.call(ctx, "GET", "stats", nil, nil, &s)
}

// Why asks what holds for a prefix.
func (c *Client) Why(ctx context.Context, p netip.Prefix) (w Why, err error) {
	return w, c.call(ctx, "GET", "why", url.Values{"prefix": {p.String()}}, nil, &w)
}

// History asks what happened, oldest first.
func (c *Client) History(ctx context.Context, q HistoryQuery) (ev []Event, err error) {
	v := url.Values{}
	if q.Prefix.IsValid() {
		v.Set("prefix", q.Prefix.String())
	}
	if !q.Since.IsZero() {
		v.Set("since", q.Since.UTC().Format(time.RFC3339Nano))
	}
	if q.Limit > 0 {
		v.Set("limit", strconv.Itoa(q.Limit))
	}
	return ev, c.call(ctx, "GET", "history", v, nil, &ev)
}

// Import takes over bans with their own ends.
func (c *Client) Import(ctx context.Context, r ImportRequest) (res ImportResult, err error) {
	return res, c.call(ctx, "POST", "import", nil, r, &res)
}

// Eject says whether a host of the fleet is no longer to be heeded.
func (c *Client) Eject(ctx context.Context, r EjectRequest) error {
	return c.call(ctx, "POST", "fleet/eject", nil, r, &struct{}{})
}

// Feeds tells of the feeds.
func (c *Client) Feeds(ctx context.Context) (list []Feed, err error) {
	return list, c.call(ctx, "GET", "feeds", nil, nil, &list)
}

// ConfirmFeed takes the list of a feed that waits to be confirmed.
func (c *Client) ConfirmFeed(ctx context.Context, r FeedRequest) error {
	return c.call(ctx, "POST", "feeds/confirm", nil, r, &struct{}{})
}

// FetchFeed looks at a feed's source now.
func (c *Client) FetchFeed(ctx context.Context, r FeedRequest) error {
	return c.call(ctx, "POST", "feeds/fetch", nil, r, &struct{}{})
}

// Reload makes the daemon read its configuration again.
func (c *Client) Reload(ctx context.Context) (res ReloadResult, err error) {
	return res, c.call(ctx, "POST", "reload", nil, struct{}{}, &res)
}

func (c *Client) call(ctx context.Context, method, verb string, q url.Values, in, out any) error {
	body, err := c.ask(ctx, method, verb, q, in)
	if err != nil {
		return err
	}
	defer body.Close()
	if err := json.NewDecoder(body).Decode(out); err != nil {
		return fmt.Errorf("%w: %s: the daemon's answer broke off: %w", ErrFailed, verb, err)
	}
	return nil
}

// ask sends a request and returns the body of its answer, if that is no error.
func (c *Client) ask(ctx context.Context, method, verb string, q url.Values, in any) (io.ReadCloser, error) {
	var r io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		r = bytes.NewReader(b)
	}
	u := url.URL{Scheme: "http", Host: "xdpban", Path: "/v1/" + verb, RawQuery: q.Encode()}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), r)
	if err != nil {
		return nil, fmt.Errorf("asking the daemon to %s: %w", verb, err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.dialError(verb, err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	var e Error
	if err := json.NewDecoder(resp.Body).Decode(&e); err != nil || e.Code == "" {
		return nil, fmt.Errorf("%w: %s: the daemon answered %s", ErrFailed, verb, resp.Status)
	}
	return nil, &e
}

func (c *Client) dialError(verb string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ECONNREFUSED):
		return fmt.Errorf("%w (nobody listens on %s)", ErrDown, c.path)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: connecting to %s: only root and its owner and group may", ErrForbidden, c.path)
	}
	return fmt.Errorf("asking the daemon to %s: %w", verb, err)
}
