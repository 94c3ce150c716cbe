package jails

import (
	"cmp"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// FeedPrefix begins the jail names of bans that come from feeds, "feed:NAME". A
// jail can't be called so.
const FeedPrefix = "feed:"

// ByFeed says that a jail's name is a feed's.
func ByFeed(jail string) bool { return strings.HasPrefix(jail, FeedPrefix) }

// Feed is a list of addresses that others publish.
type Feed struct {
	Name      string
	URL, File string // one of them
	Format    string // one of feedFormats
	Column    string // of csv: a number from 1 on, or a name in the first line
	Separator string // of csv; empty: a comma
	Path      string // of json
	CA        string // a file of authorities in PEM; empty: the system's
	KeyFile   string // of crowdsec: a file with the key
	Interval  time.Duration
	// BanTime is how long an entry is banned after the source last had it.
	BanTime    time.Duration
	MaxBytes   int64
	MaxEntries int
	// MaxChange is by how many percent the list may shrink or grow without
	// being confirmed.
	MaxChange int
}

var (
	feedFormats = []string{"plain", "cidr", "csv", "json", "spamhaus", "ipset", "crowdsec"}
	feedName    = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9_-]{0,39}$`)
	jsonPath    = regexp.MustCompile(`^(\[\]|[^.\[\]]+)(\[\])*(\.[^.\[\]]+(\[\])*)*$`)
)

// feeds takes the tables of that name.
func (r *reader) feeds(to *[]Feed) {
	var names []string
	for _, in := range r.tables("feed") {
		before := len(r.l.problems)
		f := in.feed(in.v[""])
		if slices.Contains(names, f.Name) && len(r.l.problems) == before {
			r.say(in.v["name"], "%q is another feed's name too; write a name of its own for each", f.Name)
		}
		names = append(names, f.Name)
		*to = append(*to, f)
	}
}

func (r *reader) feed(here value) Feed {
	f := Feed{Format: "plain", Interval: time.Hour, BanTime: 7 * 24 * time.Hour, MaxBytes: 64 << 20, MaxEntries: 200_000, MaxChange: 50}
	if x, ok := r.text("name", &f.Name, "drop"); ok && !feedName.MatchString(f.Name) {
		r.say(x, "%q can't name a feed; write letters, digits, - and _, at most 40, such as %q", f.Name, "drop")
	} else if _, given := r.v["name"]; !given {
		r.say(here, `has no name; write name = "drop"`)
	}
	if x, ok := r.text("format", &f.Format, "plain"); ok && !slices.Contains(feedFormats, f.Format) {
		r.say(x, "%q is no format; write one of %s", f.Format, strings.Join(feedFormats, ", "))
	}
	_, byURL := r.v["url"]
	_, byFile := r.v["file"]
	switch {
	case byURL && byFile:
		r.say(r.v["file"], "stands beside url; write one of them")
	case !byURL && !byFile:
		r.say(here, `has nothing to read; write url = "https://lists.example.org/drop.txt" or file = "/etc/xdpban/drop.txt"`)
	case byFile && f.Format == "crowdsec":
		r.say(r.v["file"], `can't be with format = "crowdsec"; write url = "http://127.0.0.1:8080"`)
	}
	if x, ok := r.text("url", &f.URL, "https://lists.example.org/drop.txt"); ok {
		r.feedURL(x, f.URL)
	}
	r.file("file", &f.File, "/etc/xdpban/drop.txt")
	r.file("ca", &f.CA, "/etc/xdpban/ca.pem")
	r.file("key_file", &f.KeyFile, "/etc/xdpban/crowdsec.key")
	if x, ok := r.v["key_file"]; ok != (f.Format == "crowdsec") {
		r.say(cmp.Or(x, here), `needs both, or neither, of format = "crowdsec" and key_file`)
	}
	if x, ok := r.at("column"); ok {
		switch v := x.v.(type) {
		case int64:
			if v < 1 || v > 10_000 {
				r.say(x, "is %d; write a number from 1 to 10000, or the column's name", v)
			}
			f.Column = strconv.FormatInt(v, 10)
		case string:
			f.Column = v
			if _, err := strconv.Atoi(v); err == nil || v == "" {
				r.say(x, "is %s; write a number without quotes, or the column's name", is(v))
			}
		default:
			r.say(x, "is %s; write column = 1, or column = \"ip\"", is(v))
		}
	}
	if x, ok := r.text("separator", &f.Separator, ";"); ok {
		if c, n := utf8.DecodeRuneInString(f.Separator); n != len(f.Separator) || strings.ContainsRune("\"#\r\n\uFFFD", c) || n == 0 {
			r.say(x, `%q can't separate columns; write one character, such as ";" or "\t"`, f.Separator)
		}
	}
	if x, ok := r.text("path", &f.Path, "data.blocks[].cidr"); ok && !jsonPath.MatchString(f.Path) {
		r.say(x, `%q is no path; write keys with dots between them, and [] for each of a list, such as "data.blocks[].cidr"`, f.Path)
	}
	for _, k := range []struct {
		key, format string
		must        bool
	}{{"column", "csv", true}, {"separator", "csv", false}, {"path", "json", true}} {
		switch x, ok := r.v[k.key]; {
		case ok && f.Format != k.format:
			r.say(x, "has no meaning but with format = %q", k.format)
		case !ok && k.must && f.Format == k.format:
			r.say(here, "has no %s, which format = %q needs", k.key, k.format)
		}
	}
	if f.Format == "crowdsec" {
		f.Interval = 10 * time.Second
	}
	r.duration("interval", &f.Interval, false)
	if x, ok := r.v["interval"]; ok && f.Interval < time.Minute && byURL && f.Format != "crowdsec" {
		r.say(x, `is too short for somebody else's server; write at least "1m"`)
	}
	r.duration("bantime", &f.BanTime, false)
	if f.BanTime < 2*f.Interval {
		r.say(cmp.Or(r.v["bantime"], here), "is shorter than two intervals of %s: one look that fails would end all of its bans; write a longer bantime, or a shorter interval", f.Interval)
	}
	bytes := int(f.MaxBytes)
	r.number("max_bytes", &bytes, 1, 1<<30)
	f.MaxBytes = int64(bytes)
	r.number("max_entries", &f.MaxEntries, 1, 1<<24)
	r.number("max_change", &f.MaxChange, 1, 1_000_000)
	r.rest()
	return f
}

// feedURL takes only what nobody on the way can change.
func (r *reader) feedURL(x value, text string) {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Host == "" || u.Fragment != "" || !slices.Contains([]string{"https", "http"}, u.Scheme):
		r.say(x, `%q is no address of a list; write such as "https://lists.example.org/drop.txt"`, text)
	case u.User != nil:
		r.say(x, "has a password in it, which everybody sees who may look at the feeds; write it without")
	case u.Scheme == "http":
		host := u.Hostname()
		if a, err := netip.ParseAddr(host); host != "localhost" && (err != nil || !a.IsLoopback()) {
			r.say(x, "isn't encrypted: who is on the way could ban anybody; write https://%s", net.JoinHostPort(host, cmp.Or(u.Port(), "443")))
		}
	}
}

// Enlist puts an entry of a feed in force until its end, or changes that; news
// says that something is another now. The ledger and the history don't know of
// it: a feed keeps its list itself. Errors wrap ErrAllowed or ErrPrefix.
func (j *Judge) Enlist(p netip.Prefix, feed string, until, now time.Time) (b Ban, news bool, err error) {
	if stood, ok := j.StandingBy(p, feed); ok {
		if stood.Until.Equal(until) {
			return stood, false, j.Check(p, feed)
		}
		if err := j.Check(p, feed); err != nil {
			return stood, false, err
		}
		t := j.jail(feed).tracks[unmap(p)]
		t.ban.until = until.UnixNano()
		j.reheap(t)
		return t.asBan(t.ban), true, nil
	}
	if err := j.Check(p, feed); err != nil {
		return Ban{}, false, err
	}
	b, err = j.impose(Ban{Prefix: p, Jail: feed, Since: now, Until: until}, now, false)
	return b, true, err
}

// Delist ends a feed's ban of exactly this prefix.
func (j *Judge) Delist(p netip.Prefix, feed string) (Ban, bool) {
	b, ok := j.StandingBy(p, feed)
	if ok {
		t := j.jail(feed).tracks[unmap(p)]
		j.fall(t)
		j.settle(t)
	}
	return b, ok
}
