package jails

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The kinds of records.
const (
	// KindOffender is the state that decides: windows, bans and strikes, by
	// jail and prefix.
	KindOffender = "offender"
	// KindHistory is what happened, an Event in JSON each, with keys in the
	// order of time. It only grows: its keeper prunes it, see HistoryKey.
	KindHistory = "history"
	// KindBrake is how many bans were made in a second, by the second: what
	// MaxBansPerMin goes by.
	KindBrake = "brake"
)

// Record is one thing for the ledger to remember. A nil Value deletes it.
type Record struct {
	Kind  string
	Key   string
	Value []byte
}

// The kinds of events.
const (
	EventBan     = "ban"
	EventUnban   = "unban"
	EventExpire  = "expire"
	EventObserve = "observe" // a ban by a jail that only observes
)

// Event is an entry of the history.
type Event struct {
	Time time.Time `json:"time"`
	Kind string    `json:"kind"`
	Ban  Ban       `json:"ban"`
}

// HistoryKey is the first key that an event at t can have: history before it
// has smaller keys.
func HistoryKey(t time.Time) string { return fmt.Sprintf("%020d", max(t.UnixNano(), 0)) }

// eventKey is what an event is known by.
type eventKey struct {
	at         int64
	kind, jail string
	prefix     netip.Prefix
}

func (e Event) key() eventKey {
	return eventKey{e.Time.UnixNano(), e.Kind, e.Ban.Jail, e.Ban.Prefix}
}

func (k eventKey) String() string {
	return fmt.Sprintf("%s %s %s %s", HistoryKey(time.Unix(0, k.at)), k.kind, k.jail, k.prefix)
}

func (j *Judge) event(e Event) {
	if !ByFeed(e.Ban.Jail) {
		j.events[e.key()] = &e
	}
}

// banEvent is the event of a ban's beginning.
func banEvent(b Ban) Event {
	if b.Observed {
		return Event{b.Since, EventObserve, b}
	}
	return Event{b.Since, EventBan, b}
}

// touch marks a track as changed.
func (j *Judge) touch(t *track) {
	if !t.changed && !t.jail.feed {
		t.changed, t.at = true, len(j.changed)
		j.changed = append(j.changed, t)
	}
}

// untouch takes that back.
func (j *Judge) untouch(t *track) {
	if t.changed {
		last := len(j.changed) - 1
		j.changed[t.at] = j.changed[last]
		j.changed[t.at].at = t.at
		j.changed[last] = nil
		j.changed = j.changed[:last]
		t.changed = false
	}
}

// Changes returns what has changed and isn't saved yet: since the last call
// that was followed by Saved. A transaction that failed is so made up for by
// the next one. No two records have the same kind and key.
func (j *Judge) Changes() []Record {
	for _, t := range j.handed { // and not saved
		t.handed = false
		if t.saved || t.jail.tracks[t.prefix] == t {
			j.touch(t)
		} else {
			j.untouch(t)
		}
	}
	for _, t := range j.changed {
		t.changed, t.handed = false, true
	}
	j.handed, j.changed = j.changed, nil
	maps.Copy(j.handedEvents, j.events)
	clear(j.events)
	records := make([]Record, 0, len(j.handed)+len(j.handedEvents))
	for _, t := range j.handed {
		r := Record{Kind: KindOffender, Key: t.jail.name + " " + t.prefix.String()}
		if live := t.jail.tracks[t.prefix]; live == t {
			r.Value = t.marshal()
		} else if live != nil {
			continue // it was forgotten and came anew, and is handed out so
		}
		records = append(records, r)
	}
	for key, e := range j.handedEvents {
		r := Record{Kind: KindHistory, Key: key.String()}
		if e != nil {
			r.Value = marshal(e)
		}
		records = append(records, r)
	}
	maps.Copy(j.brake.handed, j.brake.changed)
	clear(j.brake.changed)
	for second := range j.brake.handed {
		r := Record{Kind: KindBrake, Key: strconv.FormatInt(second, 10)}
		if n := j.brake.made[second]; n > 0 {
			r.Value = strconv.AppendInt(nil, int64(n), 10)
		}
		records = append(records, r)
	}
	return records
}

// Unsaved is how much has changed since Changes.
func (j *Judge) Unsaved() int { return len(j.changed) + len(j.events) }

// Saved says that what Changes returned last is on disk.
func (j *Judge) Saved() {
	for _, t := range j.handed {
		t.handed, t.saved = false, true
	}
	j.handed = nil
	clear(j.handedEvents)
	clear(j.brake.handed)
}

// DropHistory forgets the events that aren't saved; what decides stays. It
// isn't for while what Changes returned is being written.
func (j *Judge) DropHistory() {
	clear(j.events)
	clear(j.handedEvents)
}

// Discard forgets what has changed: nobody keeps it.
func (j *Judge) Discard() {
	for _, t := range j.changed {
		t.changed = false
	}
	j.changed = j.changed[:0]
	clear(j.events)
	clear(j.brake.changed)
}

// trackRecord is a track in JSON, as marshal writes it; times are Unix
// nanoseconds.
type trackRecord struct {
	Window  []entryRecord `json:"window,omitempty"`
	Ban     *banRecord    `json:"ban,omitempty"`
	Strikes int           `json:"strikes,omitempty"`
	Braked  bool          `json:"braked,omitempty"`
}

type entryRecord struct {
	At      int64   `json:"at"`
	Weight  int     `json:"weight"`
	Pattern *string `json:"pattern,omitempty"` // nil: that of the one before, the first's is its ban's
	Line    string  `json:"line,omitempty"`
}

type banRecord struct {
	Since    int64         `json:"since"`
	Until    int64         `json:"until,omitempty"`
	Strikes  int           `json:"strikes,omitempty"`
	Failures int           `json:"failures,omitempty"`
	Pattern  string        `json:"pattern,omitempty"`
	Evidence []string      `json:"evidence,omitempty"`
	From     string        `json:"from,omitempty"`
	Decided  []entryRecord `json:"decided,omitempty"`
	Standing bool          `json:"standing,omitempty"`
	Observed bool          `json:"observed,omitempty"`
	Fixed    bool          `json:"fixed,omitempty"`
	Bulk     bool          `json:"bulk,omitempty"`
}

func marshal(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // strings, numbers and times that a log can have
	}
	return b
}

// marshal writes a trackRecord. Under an attack there are thousands each second,
// and encoding/json would take a multiple of the time.
func (t *track) marshal() []byte {
	w := make(jsonText, 0, 512)
	w.open('{')
	w.entries("window", t.window, "")
	if b := t.ban; b != nil {
		w.key("ban")
		w.open('{')
		w.key("since")
		w = strconv.AppendInt(w, b.since, 10)
		w.number("until", b.until)
		w.number("strikes", int64(b.strikes))
		w.number("failures", int64(b.failures))
		w.text("pattern", b.pattern)
		if len(b.evidence) > 0 {
			w.key("evidence")
			w.open('[')
			for _, line := range b.evidence {
				w.comma()
				w.quote(line)
			}
			w = append(w, ']')
		}
		w.text("from", b.from)
		w.entries("decided", b.decided, b.pattern)
		w.flag("standing", b.standing)
		w.flag("observed", b.observed)
		w.flag("fixed", b.fixed)
		w.flag("bulk", b.bulk)
		w = append(w, '}')
	}
	w.number("strikes", int64(t.strikes))
	w.flag("braked", t.braked)
	return append(w, '}')
}

// jsonText is JSON as far as it is written. What is empty is left out.
type jsonText []byte

func (w *jsonText) open(bracket byte) { *w = append(*w, bracket) }

// comma goes before all members but the first.
func (w *jsonText) comma() {
	if last := (*w)[len(*w)-1]; last != '{' && last != '[' {
		*w = append(*w, ',')
	}
}

func (w *jsonText) key(name string) {
	w.comma()
	*w = append(*w, '"')
	*w = append(*w, name...)
	*w = append(*w, '"', ':')
}

func (w *jsonText) number(name string, n int64) {
	if n != 0 {
		w.key(name)
		*w = strconv.AppendInt(*w, n, 10)
	}
}

func (w *jsonText) flag(name string, on bool) {
	if on {
		w.key(name)
		*w = append(*w, "true"...)
	}
}

func (w *jsonText) text(name, s string) {
	if s != "" {
		w.key(name)
		w.quote(s)
	}
}

func (w *jsonText) quote(s string) {
	b := append(*w, '"')
	from := 0
	for i := range len(s) {
		if c := s[i]; c < ' ' || c == '"' || c == '\\' {
			const hex = "0123456789abcdef"
			b = append(b, s[from:i]...)
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
			from = i + 1
		}
	}
	b = append(b, s[from:]...)
	*w = append(b, '"')
}

func (w *jsonText) entries(name string, entries []entry, pattern string) {
	if len(entries) == 0 {
		return
	}
	w.key(name)
	w.open('[')
	for _, e := range entries {
		w.comma()
		w.open('{')
		w.key("at")
		*w = strconv.AppendInt(*w, e.at, 10)
		w.key("weight")
		*w = strconv.AppendInt(*w, int64(e.weight), 10)
		if e.pattern != pattern {
			pattern = e.pattern
			w.key("pattern")
			w.quote(pattern)
		}
		w.text("line", e.line)
		*w = append(*w, '}')
	}
	*w = append(*w, ']')
}

func entriesOf(records []entryRecord, pattern string) []entry {
	var out []entry
	for _, r := range records {
		if r.Pattern != nil {
			pattern = *r.Pattern
		}
		out = append(out, entry{r.At, r.Weight, pattern, r.Line})
	}
	return out
}

// Restore takes back what Changes gave, of a judge that has seen nothing
// yet. Bans that are over meanwhile are ended by the next Expire. History is
// passed over. On an error the judge must not be used.
func (j *Judge) Restore(records []Record, now time.Time) error {
	var restored []*track
	for _, r := range records {
		if r.Kind == KindBrake && r.Value != nil {
			second, err := strconv.ParseInt(r.Key, 10, 64)
			n, err2 := strconv.Atoi(string(r.Value))
			if err := errors.Join(err, err2); err != nil {
				return fmt.Errorf("restore %s %q: %w", r.Kind, r.Key, err)
			}
			j.brake.made[second] = n
			j.brake.last = max(j.brake.last, second)
			j.brake.pruned = j.brake.last
		}
		if r.Kind != KindOffender || r.Value == nil {
			continue
		}
		at := strings.LastIndexByte(r.Key, ' ')
		if at < 0 {
			return fmt.Errorf("restore %s %q: the key isn't a jail and a prefix", r.Kind, r.Key)
		}
		p, err := netip.ParsePrefix(r.Key[at+1:])
		if err != nil {
			return fmt.Errorf("restore %s %q: %w", r.Kind, r.Key, err)
		}
		var v trackRecord
		if err := json.Unmarshal(r.Value, &v); err != nil {
			return fmt.Errorf("restore %s %q: %w", r.Kind, r.Key, err)
		}
		t := j.track(j.jail(r.Key[:at]), p)
		t.window, t.strikes, t.braked, t.saved = entriesOf(v.Window, ""), v.Strikes, v.Braked, true
		if b := v.Ban; b != nil {
			t.ban = &ban{
				since: b.Since, until: b.Until, strikes: b.Strikes, failures: b.Failures, pattern: b.Pattern,
				decided: entriesOf(b.Decided, b.Pattern), evidence: b.Evidence, from: b.From, observed: b.Observed, fixed: b.Fixed, bulk: b.Bulk, index: -1,
			}
			if b.Standing {
				j.stand(t)
			}
		}
		restored = append(restored, t)
	}
	// What went first before, by age, goes first again.
	slices.SortFunc(restored, func(a, b *track) int {
		if a.latest() != b.latest() {
			return int(min(max(a.latest()-b.latest(), -1), 1))
		}
		return a.prefix.Compare(b.prefix)
	})
	for _, t := range restored {
		j.enlist(t, now)
		if t.jail.conf == nil {
			j.forgetWindow(t)
		}
	}
	j.evict()
	return nil
}

// latest is the last time a track knows of.
func (t *track) latest() int64 {
	switch {
	case len(t.window) > 0:
		return t.window[len(t.window)-1].at
	case t.ban != nil:
		return t.ban.until
	}
	return 0
}
