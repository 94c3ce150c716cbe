// Package control is the daemon's one API: HTTP and JSON over a unix socket.
// It holds the wire types, the handler that serves them from a Daemon, and
// the client.
//
// Times on the wire are RFC 3339; the end of a ban is null when it has none.
// Prefixes are in CIDR form, durations as Go writes them ("1h30m0s") or
// "forever". Within /v1 fields may be added, never renamed or removed;
// requests with unknown fields are refused.
package control

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"net/netip"
	"time"

	"xdpban/jails"
)

// Daemon is what the API serves: the running system. Its methods may be
// called from several goroutines. An error that wraps ErrRefused (or
// jails.ErrAllowed), ErrInvalid or ErrNotFound reaches the client as such;
// anything else is ErrFailed there, with its text.
type Daemon interface {
	Status(ctx context.Context) (Status, error)
	// List walks the standing bans, in any order.
	List(ctx context.Context, q ListQuery) iter.Seq2[Ban, error]
	// Ports lists the blacklisted destination ports.
	Ports(ctx context.Context) ([]Port, error)
	// Ban bans all of a request's prefixes or, unless SkipRefused is set,
	// none of them when one is refused.
	Ban(ctx context.Context, r BanRequest) (BanResult, error)
	// Unban ends bans and returns those that stood. What still covers one of
	// the prefixes is in Covered.
	Unban(ctx context.Context, r UnbanRequest) (UnbanResult, error)
	// Allow puts prefixes on the allowlist with origin "manual" and returns
	// how many are new. Standing bans within them end.
	Allow(ctx context.Context, p []netip.Prefix) (int, error)
	// Disallow takes manual entries off the allowlist and returns how many
	// there were.
	Disallow(ctx context.Context, p []netip.Prefix) (int, error)
	Allowed(ctx context.Context) ([]Allow, error)
	Stats(ctx context.Context) (Stats, error)
	Why(ctx context.Context, p netip.Prefix) (Why, error)
	// History is in order of time, oldest first.
	History(ctx context.Context, q HistoryQuery) ([]Event, error)
	// Import takes over bans with their own ends.
	Import(ctx context.Context, r ImportRequest) (ImportResult, error)
	// Eject says whether a host of the fleet is no longer to be heeded.
	Eject(ctx context.Context, r EjectRequest) error
	// Feeds tells of the feeds, with all that their bans have dropped.
	Feeds(ctx context.Context) ([]Feed, error)
	// ConfirmFeed takes the list of a feed that waits for that, and FetchFeed
	// looks at its source now.
	ConfirmFeed(ctx context.Context, r FeedRequest) error
	FetchFeed(ctx context.Context, r FeedRequest) error
	// Reload reads the configuration again. On an error the old one goes on.
	Reload(ctx context.Context) (ReloadResult, error)
}

// What went wrong, for errors.Is on the client's side.
var (
	// ErrDown: nobody listens on the socket.
	ErrDown = errors.New("xdpban isn't running")
	// ErrForbidden: the socket's mode, or the daemon, doesn't let this user.
	ErrForbidden = errors.New("permission denied")
	// ErrInvalid: the request makes no sense.
	ErrInvalid = errors.New("invalid request")
	// ErrRefused: the request is understood, but must not be done, as a ban
	// of an own address.
	ErrRefused = errors.New("refused")
	// ErrNotFound: the thing asked about, as a jail, doesn't exist.
	ErrNotFound = errors.New("not found")
	// ErrConfig: the configuration that was to be taken can't be.
	ErrConfig = errors.New("the configuration is wrong")
	// ErrFailed: the daemon tried and couldn't.
	ErrFailed = errors.New("failed")
)

// Time is a moment that may be missing: null on the wire.
type Time struct{ time.Time }

// MarshalJSON writes RFC 3339 in UTC, or null for the zero time.
func (t Time) MarshalJSON() ([]byte, error) {
	if t.IsZero() {
		return []byte("null"), nil
	}
	return t.UTC().MarshalJSON()
}

// UnmarshalJSON reads what MarshalJSON writes.
func (t *Time) UnmarshalJSON(b []byte) error {
	if string(b) == "null" {
		t.Time = time.Time{}
		return nil
	}
	return t.Time.UnmarshalJSON(b)
}

// Duration is a time.Duration that is text on the wire; jails.Forever is
// "forever".
type Duration time.Duration

// MarshalText writes "1h30m0s" or "forever".
func (d Duration) MarshalText() ([]byte, error) {
	if time.Duration(d) == jails.Forever {
		return []byte("forever"), nil
	}
	return []byte(time.Duration(d).String()), nil
}

// UnmarshalText reads what MarshalText writes.
func (d *Duration) UnmarshalText(b []byte) error {
	if string(b) == "forever" {
		*d = Duration(jails.Forever)
		return nil
	}
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return err
	}
	if v < 0 {
		return fmt.Errorf("duration %s is negative", b)
	}
	*d = Duration(v)
	return nil
}

// Ban is a standing ban, or one in the history.
type Ban struct {
	Prefix netip.Prefix `json:"prefix"`
	Jail   string       `json:"jail"`
	Since  time.Time    `json:"since"`
	Until  Time         `json:"until"` // null: forever
	// Packets and Bytes are what the ban has dropped so far.
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
	// Ports are what the ban is limited to, as "22/tcp"; none: everything
	// from the source is dropped.
	Ports []string `json:"ports,omitempty"`
	// Strikes counts the past bans of this prefix when it was made.
	Strikes int `json:"strikes,omitempty"`
	// Failures counts the failures that led to it.
	Failures int `json:"failures,omitempty"`
	// Pattern is the failregex that matched last, and Evidence are the lines
	// behind the ban, oldest first: text written by the attacker. List
	// leaves both out.
	Pattern  string   `json:"pattern,omitempty"`
	Evidence []string `json:"evidence,omitempty"`
	// EvidenceAt says when the failure of each line was; none, if that isn't
	// known.
	EvidenceAt []time.Time `json:"evidence_at,omitempty"`
	// From says which hosts of the fleet made it, by which jails.
	From string `json:"from,omitempty"`
}

// FromJail makes a wire ban of a decision; its counts are zero.
func FromJail(b jails.Ban) Ban {
	w := Ban{
		Prefix: b.Prefix, Jail: b.Jail, Since: b.Since.UTC(), Until: Time{b.Until},
		Strikes: b.Strikes, Failures: b.Failures, Pattern: b.Pattern, Evidence: b.Evidence, From: b.From,
	}
	for _, r := range b.Ports {
		w.Ports = append(w.Ports, r.String())
	}
	for _, at := range b.EvidenceAt {
		w.EvidenceAt = append(w.EvidenceAt, time.UnixMilli(at).UTC())
	}
	return w
}

// ListQuery narrows List; its zero value asks for all.
type ListQuery struct {
	Jail string `json:"jail,omitempty"`
}

// List is the answer to a ListQuery.
type List struct {
	Bans  []Ban  `json:"bans"`
	Ports []Port `json:"ports"`
}

// Port is a blacklisted destination port with what it has dropped.
type Port struct {
	Port     uint16 `json:"port"`
	Protocol string `json:"protocol"` // "tcp" or "udp"
	Packets  uint64 `json:"packets"`
	Bytes    uint64 `json:"bytes"`
}

// BanRequest bans prefixes by hand or for a feed.
type BanRequest struct {
	Prefixes []netip.Prefix `json:"prefixes"`
	// Jail is the name that the bans go under; empty: jails.Manual.
	Jail string `json:"jail,omitempty"`
	// For is how long; "forever" has no end.
	For Duration `json:"for"`
	// SkipRefused bans the others when some are refused.
	SkipRefused bool `json:"skip_refused,omitempty"`
}

// MaxEcho is how many bans an answer spells out: a request with more
// prefixes gets counts only.
const MaxEcho = 1000

// BanResult says what became of a BanRequest.
type BanResult struct {
	Banned int `json:"banned"` // new or lengthened
	Kept   int `json:"kept"`   // stood already, as long or longer
	// Bans are what stands now, in the order asked, refused ones left out;
	// only for up to MaxEcho prefixes.
	Bans    []Ban     `json:"bans,omitempty"`
	Refused []Refusal `json:"refused,omitempty"`
}

// Refusal is one prefix that may not be banned, and why.
type Refusal struct {
	Prefix netip.Prefix `json:"prefix"`
	Reason string       `json:"reason"`
}

// UnbanRequest ends bans.
type UnbanRequest struct {
	// Prefixes are the bans' own: what is within one of them stays.
	Prefixes []netip.Prefix `json:"prefixes,omitempty"`
	// All ends all that stands, without Prefixes.
	All bool `json:"all,omitempty"`
	// Jail narrows it to what is banned under this name: where another jail
	// bans the same prefix, that ban goes on.
	Jail string `json:"jail,omitempty"`
}

// UnbanResult says what became of an UnbanRequest.
type UnbanResult struct {
	Unbanned int `json:"unbanned"`
	// Bans are those that ended; only for up to MaxEcho prefixes.
	Bans []Ban `json:"bans,omitempty"`
	// Covered are standing bans of wider prefixes, which go on covering
	// something just unbanned; at most MaxEcho.
	Covered []Ban `json:"covered,omitempty"`
}

// Allow is one entry of the allowlist. Origin says who put it there:
// "config", "own", "session", "gateway", "resolver", "name" or "manual".
type Allow struct {
	Prefix netip.Prefix `json:"prefix"`
	Origin string       `json:"origin"`
}

// Verdict counts packets and bytes.
type Verdict struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// Stats are the kernel's counters since the maps were made.
type Stats struct {
	At time.Time `json:"at"` // when they were read
	// Verdicts are by XDP action: XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_TX,
	// XDP_REDIRECT.
	Verdicts map[string]Verdict `json:"verdicts"`
	// Reasons are by why a packet left the program as it did, as the kernel
	// part names it: "drop-ban", "drop-net", "pass", …
	Reasons map[string]Verdict `json:"reasons,omitempty"`
	// Interfaces are by interface, then by XDP action.
	Interfaces map[string]map[string]Verdict `json:"interfaces,omitempty"`
	Bans       int                           `json:"bans"` // standing
}

// Status is the daemon's state at a glance.
type Status struct {
	Version string    `json:"version"`
	PID     int       `json:"pid"`
	Started time.Time `json:"started"`
	// Config names what was read: files and "built in".
	Config     []string    `json:"config,omitempty"`
	Bans       int         `json:"bans"`
	Capacity   int         `json:"capacity"` // of the kernel's maps, in addresses
	Interfaces []Interface `json:"interfaces"`
	Jails      []Jail      `json:"jails"`
	Sources    []Source    `json:"sources"`
	// Checkpoint is when the ledger last held all that had happened, and
	// CheckpointTook how long its last write took.
	Checkpoint     Time     `json:"checkpoint"`
	CheckpointTook Duration `json:"checkpoint_took"`
	// Matching is how long matching took, by block of lines.
	Matching Matching `json:"matching"`
	// Braked says that new bans are held back by the global limit.
	Braked bool `json:"braked"`
	// Problems are what an operator should look at, in words.
	Problems []string `json:"problems,omitempty"`
	// Errors counts the problems since the start, those that are over
	// included.
	Errors uint64 `json:"errors"`
	// Held counts the bans that the limit has held back.
	Held uint64 `json:"held"`
	// Fleet is the sharing of bans; null without it.
	Fleet *Fleet `json:"fleet"`
	// Feeds are the lists of others. Here Dropped is that of bans that have
	// ended.
	Feeds []Feed `json:"feeds,omitempty"`
	// Hooks are the programs and webhooks that are told of bans.
	Hooks []Hook `json:"hooks,omitempty"`
}

// Feed is a list of others at a glance. Its bans are those of the jail
// "feed:NAME".
type Feed struct {
	Name    string `json:"name"`
	Source  string `json:"source"` // a URL or a file
	Format  string `json:"format"`
	Entries int    `json:"entries"` // of the last good list
	Bad     int    `json:"bad"`     // lines of it that make no sense
	Bans    int    `json:"bans"`    // in force
	Refused int    `json:"refused"` // entries that are never banned here
	Fetched Time   `json:"fetched"` // when the source last had the list; null: never
	Next    Time   `json:"next"`    // when it is looked at again
	// Holding says that another list waits to be confirmed, which has Held
	// entries.
	Holding bool    `json:"holding"`
	Held    int     `json:"held,omitempty"`
	Error   string  `json:"error,omitempty"` // of the last look
	Looks   uint64  `json:"looks"`           // since the start
	Failed  uint64  `json:"failed"`          // of them
	Dropped Verdict `json:"dropped"`
}

// FeedRequest names a feed.
type FeedRequest struct {
	Name string `json:"name"`
}

// Hook is a program or a webhook that is told of bans, at a glance.
type Hook struct {
	Kind    string `json:"kind"` // "on_ban", "on_unban" or "webhook"
	Name    string `json:"name"` // the program, or the webhook's
	Waiting int    `json:"waiting"`
	Running int    `json:"running"`
	// Done counts the events since the start that it was told of; Failed and
	// TimedOut those that it couldn't be told of, and Dropped those that nobody
	// tried to tell it, since too many waited.
	Done     uint64 `json:"done"`
	Failed   uint64 `json:"failed"`
	TimedOut uint64 `json:"timed_out"`
	Dropped  uint64 `json:"dropped"`
	Retries  uint64 `json:"retries"` // attempts that failed and were made again
	// Error is what went wrong last; empty: it went well.
	Error string `json:"error,omitempty"`
}

// Fleet is the sharing of bans with other hosts at a glance.
type Fleet struct {
	Name string `json:"name"`
	Host string `json:"host"` // this host's name in it
	// Server is who we are connected to; empty: to nobody.
	Server string `json:"server"`
	// Synced says that all that others have banned is known.
	Synced bool `json:"synced"`
	// Waiting counts the bans and unbans of this host that aren't sent yet.
	Waiting int `json:"waiting"`
	// Behind counts the changes that others have made and that aren't read yet.
	Behind uint64 `json:"behind"`
	// Bans counts what others have banned and is in force here for that.
	Bans int `json:"bans"`
	// Published counts the bans and unbans sent since the start, and Received
	// those of others.
	Published uint64 `json:"published"`
	Received  uint64 `json:"received"`
	// FailuresSent and FailuresReceived count the sources whose failures were
	// told to others, and by them: shared_failures.
	FailuresSent     uint64 `json:"failures_sent"`
	FailuresReceived uint64 `json:"failures_received"`
	// Refused counts the bans that this host's allowlist kept from being
	// put in force.
	Refused uint64 `json:"refused"`
	// Rejected counts, by reason, what others wrote and is not heeded.
	Rejected map[string]uint64 `json:"rejected,omitempty"`
	Hosts    []FleetHost       `json:"hosts"`
}

// FleetHost is another host of the fleet.
type FleetHost struct {
	Host    string `json:"host"`
	Version string `json:"version,omitempty"`
	Heard   Time   `json:"heard"` // when it last said that it is there; null: it didn't
	// Lag is how long its last word took, by both clocks: it holds the
	// difference between them.
	Lag      float64 `json:"lag_seconds"`
	Bans     int     `json:"bans"`     // of it that are known
	Held     int     `json:"held"`     // of them, held back: too many in a minute
	Rejected uint64  `json:"rejected"` // not heeded
	Ejected  bool    `json:"ejected"`
}

// Matching counts blocks of lines by how long matching them took.
type Matching struct {
	Blocks uint64   `json:"blocks"`
	Took   Duration `json:"took"` // all of them
	// Within has how many took at most so long, shortest first.
	Within []Within `json:"within,omitempty"`
}

// Within is how many blocks took at most Most.
type Within struct {
	Most   Duration `json:"most"`
	Blocks uint64   `json:"blocks"`
}

// Interface is where the program is, or should be, attached.
type Interface struct {
	Name string `json:"name"`
	Mode string `json:"mode"` // native, generic, offload; empty if not attached
	// Error says why it isn't attached.
	Error string `json:"error,omitempty"`
}

// Jail is one jail at a glance.
type Jail struct {
	Name     string `json:"name"`
	Enabled  bool   `json:"enabled"`
	Observe  bool   `json:"observe,omitempty"` // judges, but doesn't ban
	Waits    bool   `json:"waits,omitempty"`   // enabled = "auto", and what it reads isn't there
	Bans     int    `json:"bans"`              // standing
	Total    uint64 `json:"total"`             // bans since the daemon started
	Failures uint64 `json:"failures"`          // since the daemon started
	// Elsewhere counts the failures since then that didn't count, since the
	// jail spares the places that they came from.
	Elsewhere uint64   `json:"elsewhere,omitempty"`
	Tracked   int      `json:"tracked"` // sources with failures in the window
	MaxRetry  int      `json:"maxretry"`
	FindTime  Duration `json:"findtime"`
	BanTime   Duration `json:"bantime"`
	// Dropped is what its bans that have ended since the daemon started had
	// dropped.
	Dropped Verdict `json:"dropped"`
}

// Source is one stream of lines at a glance.
type Source struct {
	Stream  string   `json:"stream"`
	Jails   []string `json:"jails,omitempty"`
	Lines   uint64   `json:"lines"`
	Missed  uint64   `json:"missed"` // no pattern matched
	Ignored uint64   `json:"ignored"`
	Skipped uint64   `json:"skipped"` // over a pattern's step budget
	TooLong uint64   `json:"too_long"`
	// Failures are what the patterns found, by any of the jails.
	Failures uint64 `json:"failures"`
	// Lag is how old the last line was, by its own date, when it was judged:
	// large while a backlog is read, or if the log's clock or zone is wrong.
	Lag Duration `json:"lag"`
	// Left is how long reading a backlog to its end still takes, going by how
	// fast the lag has shrunk in the last second; zero: it doesn't shrink.
	Left  Duration `json:"left,omitzero"`
	Error string   `json:"error,omitempty"`
}

// Why explains what holds for a prefix.
type Why struct {
	Prefix netip.Prefix `json:"prefix"`
	// Place is where it is; null: not known.
	Place *Place `json:"place,omitempty"`
	// Bans cover it: its own first, then wider and wider. The daemon gives
	// their pattern and evidence.
	Bans []Ban `json:"bans"`
	// Allowed is what keeps it from being banned.
	Allowed []Allow `json:"allowed,omitempty"`
	// Windows are its failures that count, by jail.
	Windows []Window `json:"windows,omitempty"`
	// Strikes counts its past bans.
	Strikes int `json:"strikes"`
	// History is what happened to it, oldest first, bounded.
	History []Event `json:"history,omitempty"`
}

// Place is where an address is, as far as databases know.
type Place struct {
	Country string `json:"country,omitempty"` // two letters of ISO 3166-1
	ASN     uint32 `json:"asn,omitempty"`     // number of the autonomous system
	Network string `json:"network,omitempty"` // who runs that
}

func (p Place) String() string { return jails.Place(p).String() }

// Window is the state of one offender in one jail.
type Window struct {
	Jail     string    `json:"jail"`
	Failures int       `json:"failures"`
	MaxRetry int       `json:"maxretry"` // this many failures ban
	FindTime Duration  `json:"findtime"` // within this time
	First    time.Time `json:"first"`
	Last     time.Time `json:"last"`
}

// HistoryQuery narrows History; its zero value asks for all that is kept.
type HistoryQuery struct {
	Prefix netip.Prefix `json:"prefix"` // zero: all
	Since  Time         `json:"since"`
	Limit  int          `json:"limit,omitempty"` // the latest so many; 0: all
}

// Event is one entry of the history.
type Event struct {
	Time time.Time `json:"time"`
	// Kind is "ban", "unban" (by hand) or "expire".
	Kind string `json:"kind"`
	Ban  Ban    `json:"ban"`
}

// ImportRequest takes over bans from elsewhere: an export, a feed.
type ImportRequest struct {
	Bans []Ban `json:"bans"` // Prefix, Jail, Since and Until matter
	// Replace unbans what isn't in Bans. Otherwise they are merged: the
	// later end wins.
	Replace bool `json:"replace,omitempty"`
	// DryRun says what would happen, and does nothing.
	DryRun bool `json:"dry_run,omitempty"`
	// SkipRefused imports the others when some are refused.
	SkipRefused bool `json:"skip_refused,omitempty"`
}

// ImportResult says what an import did, or would do.
type ImportResult struct {
	Added    int       `json:"added"`
	Extended int       `json:"extended"`
	Kept     int       `json:"kept"`
	Over     int       `json:"over"`    // had ended already
	Removed  int       `json:"removed"` // by Replace
	Refused  []Refusal `json:"refused,omitempty"`
}

// EjectRequest asks to heed a host of the fleet no more, or again.
type EjectRequest struct {
	Host string `json:"host"`
	Back bool   `json:"back,omitempty"`
}

// ReloadResult says what a reload changed.
type ReloadResult struct {
	Jails    []string `json:"jails"` // enabled now
	Warnings []string `json:"warnings,omitempty"`
}

// Error is an error as the daemon sent it. errors.Is finds what it wraps by
// its code.
type Error struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

func (e *Error) Error() string { return e.Message }

// Is says whether e is of target's kind.
func (e *Error) Is(target error) bool {
	for _, k := range kinds {
		if k.code == e.Code {
			return k.err == target
		}
	}
	return target == ErrFailed
}

// kinds ties the errors to their code and HTTP status on the wire. The
// first that fits counts.
var kinds = []struct {
	err    error
	code   string
	status int
}{
	{ErrRefused, "refused", http.StatusConflict},
	{jails.ErrAllowed, "refused", http.StatusConflict},
	{ErrInvalid, "invalid", http.StatusBadRequest},
	{ErrNotFound, "not_found", http.StatusNotFound},
	{ErrForbidden, "forbidden", http.StatusForbidden},
	{ErrConfig, "config", http.StatusUnprocessableEntity},
	{ErrFailed, "failed", http.StatusInternalServerError},
}

// errorFor makes the wire form of an error and its HTTP status.
func errorFor(err error) (*Error, int) {
	for _, k := range kinds {
		if errors.Is(err, k.err) {
			return &Error{Code: k.code, Message: err.Error()}, k.status
		}
	}
	return &Error{Code: "failed", Message: err.Error()}, http.StatusInternalServerError
}
