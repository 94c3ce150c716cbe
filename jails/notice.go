package jails

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"text/template"
	"time"
)

// Notice is what programs and webhooks are told of a ban: the same words in
// their environment, in JSON and in templates.
type Notice struct {
	Event    string    `json:"event"`           // "ban" or "unban"
	Cause    string    `json:"cause,omitempty"` // of an unban: "over", "hand", or "full", if the kernel's list had no room
	Host     string    `json:"host"`            // this host's name
	Time     time.Time `json:"time"`            // of the event
	Addr     string    `json:"addr"`            // an address, or a subnet in CIDR form
	Prefix   string    `json:"prefix"`          // in CIDR form
	Family   string    `json:"family"`          // "inet4" or "inet6"
	Jail     string    `json:"jail"`
	Since    time.Time `json:"since"`
	Until    string    `json:"until"`   // RFC 3339, or "forever"
	BanTime  int64     `json:"bantime"` // in seconds; -1: forever
	Ports    []string  `json:"ports,omitempty"`
	Failures int       `json:"failures"`
	Strikes  int       `json:"strikes"` // past bans
	Packets  uint64    `json:"packets"` // dropped until an unban
	Bytes    uint64    `json:"bytes"`
	// Pattern is the failregex that matched last, and Evidence the lines
	// behind the ban: the attacker's text.
	Pattern  string   `json:"pattern,omitempty"`
	Evidence []string `json:"evidence,omitempty"`
}

// NoticeOf tells of a ban.
func NoticeOf(event string, b Ban) Notice {
	n := Notice{
		Event: event, Addr: short(b.Prefix), Prefix: b.Prefix.String(), Family: family(b.Prefix), Jail: b.Jail,
		Since: b.Since.UTC(), Until: "forever", BanTime: -1,
		Failures: b.Failures, Strikes: b.Strikes, Pattern: b.Pattern, Evidence: b.Evidence,
	}
	if !b.Forever() {
		n.Until, n.BanTime = b.Until.UTC().Format(time.RFC3339), int64(b.Until.Sub(b.Since).Round(time.Second)/time.Second)
	}
	for _, r := range b.Ports {
		n.Ports = append(n.Ports, r.String())
	}
	return n
}

func family(p netip.Prefix) string {
	if p.Addr().Is4() {
		return "inet4"
	}
	return "inet6"
}

// noticeTags are what a hook's arguments may hold.
var noticeTags = []string{"<ip>", "<family>", "<jail>"}

// Args fills in a hook's arguments: <ip>, <family> and <jail>.
func (n Notice) Args(args []string) []string {
	tags := strings.NewReplacer("<ip>", n.Addr, "<family>", n.Family, "<jail>", n.Jail)
	filled := make([]string, len(args))
	for i, a := range args {
		filled[i] = tags.Replace(a)
	}
	return filled
}

// Env is the notice as variables: XDPBAN_ADDR and so on. What the attacker
// wrote isn't among them.
func (n Notice) Env() []string {
	return []string{
		"XDPBAN_EVENT=" + n.Event, "XDPBAN_CAUSE=" + n.Cause, "XDPBAN_HOST=" + n.Host, "XDPBAN_TIME=" + n.Time.UTC().Format(time.RFC3339),
		"XDPBAN_ADDR=" + n.Addr, "XDPBAN_PREFIX=" + n.Prefix, "XDPBAN_FAMILY=" + n.Family, "XDPBAN_JAIL=" + n.Jail,
		"XDPBAN_SINCE=" + n.Since.UTC().Format(time.RFC3339), "XDPBAN_UNTIL=" + n.Until, "XDPBAN_BANTIME=" + strconv.FormatInt(n.BanTime, 10),
		"XDPBAN_PORTS=" + strings.Join(n.Ports, " "),
		"XDPBAN_FAILURES=" + strconv.Itoa(n.Failures), "XDPBAN_STRIKES=" + strconv.Itoa(n.Strikes),
		"XDPBAN_PACKETS=" + strconv.FormatUint(n.Packets, 10), "XDPBAN_BYTES=" + strconv.FormatUint(n.Bytes, 10),
	}
}

// Body is JSON whose texts are templates of a Notice. They are filled in within
// a JSON that is there already: whatever an attacker wrote stays a text.
type Body struct {
	value any
}

// bodyDepth bounds how deep a body may nest.
const bodyDepth = 20

// newBody reads a body as TOML has it. at is called with what is wrong and where.
func newBody(v any, at func(key, problem string)) *Body {
	return &Body{compileBody(v, "", bodyDepth, at)}
}

func compileBody(v any, key string, depth int, at func(key, problem string)) any {
	if depth == 0 {
		at(key, "nests too deep")
		return nil
	}
	list := func(n int, item func(int) any) []any {
		out := make([]any, n)
		for i := range out {
			out[i] = compileBody(item(i), fmt.Sprintf("%s[%d]", key, i), depth-1, at)
		}
		return out
	}
	switch v := v.(type) {
	case string:
		t, err := template.New("body").Parse(v)
		if err == nil {
			// A field that doesn't exist is found only now.
			err = t.Execute(&bytes.Buffer{}, Notice{Evidence: []string{"", ""}, Ports: []string{"", ""}})
		}
		if err != nil {
			at(key, strings.TrimPrefix(err.Error(), "template: body:"))
		}
		return t
	case map[string]any:
		out := map[string]any{}
		for k, x := range v {
			out[k] = compileBody(x, key+"."+k, depth-1, at)
		}
		return out
	case values:
		out := map[string]any{}
		for k, x := range v {
			out[k] = compileBody(x.v, key+"."+k, depth-1, at)
		}
		return out
	case []any:
		return list(len(v), func(i int) any { return v[i] })
	case []map[string]any:
		return list(len(v), func(i int) any { return v[i] })
	case int64, float64, bool:
		return v
	}
	at(key, fmt.Sprintf("is %s; write texts, numbers, true and false, lists and tables", is(v)))
	return nil
}

// maxText bounds one filled-in text of a body.
const maxText = 64 << 10

// JSON fills in the body; without one it is the notice itself.
func (b *Body) JSON(n Notice) ([]byte, error) {
	if b == nil {
		return marshalPlain(n)
	}
	v, err := fill(b.value, n)
	if err != nil {
		return nil, fmt.Errorf("fill in the body: %w", err)
	}
	return marshalPlain(v)
}

// marshalPlain is json.Marshal that leaves < and & as they are.
func marshalPlain(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(v)
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), err
}

func fill(v any, n Notice) (any, error) {
	switch v := v.(type) {
	case *template.Template:
		var text bytes.Buffer
		if err := v.Execute(&text, n); err != nil {
			return nil, err
		}
		if text.Len() > maxText {
			return nil, fmt.Errorf("a text of %d bytes: at most %d are sent", text.Len(), maxText)
		}
		return text.String(), nil
	case map[string]any:
		out := make(map[string]any, len(v))
		for k, x := range v {
			y, err := fill(x, n)
			if err != nil {
				return nil, err
			}
			out[k] = y
		}
		return out, nil
	case []any:
		out := make([]any, len(v))
		for i, x := range v {
			y, err := fill(x, n)
			if err != nil {
				return nil, err
			}
			out[i] = y
		}
		return out, nil
	}
	return v, nil
}
