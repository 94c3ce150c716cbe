package jails

import (
	"cmp"
	"errors"
	"fmt"
	"iter"
	"maps"
	"math"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"xdpban/matcher"
)

func mapKeys[V any](m map[string]V) iter.Seq[string] { return maps.Keys(m) }

// reader takes the keys of one table, and tells of those that nobody took.
type reader struct {
	l      *loader
	v      values
	known  []string
	orphan bool // its filter is another jail's that doesn't exist: what is missing isn't the mistake

	// parts compile one option of a filter each, to find out which is wrong.
	parts []func() bool
	// others do it for failregex that the mode leaves out.
	others []func() bool
}

// at takes a key's value.
func (r *reader) at(key string) (value, bool) {
	r.known = append(r.known, key)
	x, ok := r.v[key]
	return x, ok
}

func (r *reader) say(x value, format string, args ...any) {
	r.l.say(x.file, x.key, format, args...)
}

func (r *reader) warn(x value, format string, args ...any) {
	r.l.warnings = append(r.l.warnings, Problem{x.file.name, x.file.lines.of(x.key), x.key, fmt.Sprintf(format, args...)})
}

// meant are keys that people know from fail2ban.
var meant = map[string]string{
	"logpath": "files", "journalmatch": "journal", "backend": "journal or files", "port": "ports", "protocol": "ports",
	"logencoding": "encoding", "logtimezone": "timezone", "bantime.increment": "increment", "dbpurgeage": "remember",
	"action": "on_ban and on_unban, besides the ban, which always drops in XDP", "actionban": "on_ban", "actionunban": "on_unban", "banaction": "no banaction: a ban always drops in XDP",
	"tag": "program", "identifier": "program", "regex": "failregex", "unit": "journal = [\"_SYSTEMD_UNIT=…\"]",
}

// rest tells of the keys that don't exist.
func (r *reader) rest() {
	for _, key := range slices.Sorted(mapKeys(r.v)) {
		if key == "" || slices.Contains(r.known, key) {
			continue
		}
		slices.Sort(r.known)
		switch to := similar(key, r.known); {
		case meant[key] != "":
			r.say(r.v[key], "there is no such key; write %s", meant[key])
		case to != "":
			r.say(r.v[key], "there is no such key; did you mean %s?", to)
		default:
			r.say(r.v[key], "there is no such key; write one of %s", strings.Join(r.known, ", "))
		}
	}
}

// is names the type of a TOML value.
func is(v any) string {
	switch v := v.(type) {
	case string:
		return fmt.Sprintf("the text %q", v)
	case int64, float64:
		return fmt.Sprintf("the number %v", v)
	case bool:
		return strconv.FormatBool(v)
	case []any:
		return "a list"
	case values, map[string]any:
		return "a table"
	case []map[string]any:
		return "a list of tables"
	case time.Time:
		return "a date"
	}
	return fmt.Sprintf("%T", v)
}

func (r *reader) number(key string, to *int, least, most int) {
	x, ok := r.at(key)
	if !ok {
		return
	}
	n, ok := x.v.(int64)
	if !ok || n < int64(least) || n > int64(most) {
		r.say(x, "is %s; write a number from %d to %d, such as %s = %d", is(x.v), least, most, key, *to)
		return
	}
	*to = int(n)
}

func (r *reader) flag(key string, to *bool) {
	x, ok := r.at(key)
	if !ok {
		return
	}
	b, ok := x.v.(bool)
	if !ok {
		r.say(x, "is %s; write %s = true or %s = false, without quotes", is(x.v), key, key)
		return
	}
	*to = b
}

func (r *reader) text(key string, to *string, example string) (value, bool) {
	x, ok := r.at(key)
	if !ok {
		return x, false
	}
	s, ok := x.v.(string)
	if !ok {
		r.say(x, "is %s; write a text, such as %s = %q", is(x.v), key, example)
		return x, false
	}
	*to = s
	return x, true
}

// item is an element of a list with its place.
type item struct {
	text string
	at   value
}

// list takes a list of texts; one text is a list of one.
func (r *reader) list(key, example string) ([]item, bool) {
	x, ok := r.at(key)
	if !ok {
		return nil, false
	}
	return r.items(x, key, example)
}

func (r *reader) items(x value, key, example string) ([]item, bool) {
	if s, ok := x.v.(string); ok {
		return []item{{s, x}}, true
	}
	all, ok := x.v.([]any)
	if !ok {
		r.say(x, "is %s; write a list of texts, such as %s = [%s]", is(x.v), key, example)
		return nil, false
	}
	items := make([]item, 0, len(all))
	for i, v := range all {
		at := value{v, x.file, fmt.Sprintf("%s[%d]", x.key, i)}
		s, ok := v.(string)
		if !ok {
			r.say(at, "is %s; write a text, such as %s = [%s]", is(v), key, example)
			continue
		}
		items = append(items, item{s, at})
	}
	return items, true
}

func textsOf(items []item) []string {
	var out []string
	for _, i := range items {
		out = append(out, i.text)
	}
	return out
}

// duration takes a time, with forever also the one without an end.
func (r *reader) duration(key string, to *time.Duration, forever bool) {
	x, ok := r.at(key)
	if !ok {
		return
	}
	hint := fmt.Sprintf(`write a time in w, d, h, m and s, such as %s = "10m" or "1d12h"`, key)
	if forever {
		hint += `, or "forever"`
	}
	switch v := x.v.(type) {
	case int64:
		switch {
		case v == -1 && forever:
			r.say(x, `is the number -1; write %s = "forever"`, key)
		case v > 0:
			r.say(x, `is the number %d; write its unit too, such as %s = "%ds"`, v, key, v)
		default:
			r.say(x, "is the number %d; %s", v, hint)
		}
	case string:
		d, err := ParseDuration(v)
		switch {
		case err != nil:
			r.say(x, "%s; %s", err, hint)
		case d == Forever && !forever:
			r.say(x, "can't be without an end; %s", hint)
		default:
			*to = d
		}
	default:
		r.say(x, "is %s; %s", is(x.v), hint)
	}
}

// ParseDuration reads "90s", "10m", "1d12h", "2w" or "forever".
func ParseDuration(s string) (time.Duration, error) {
	if s == "forever" {
		return Forever, nil
	}
	units := map[byte]time.Duration{'s': time.Second, 'm': time.Minute, 'h': time.Hour, 'd': 24 * time.Hour, 'w': 7 * 24 * time.Hour}
	var sum time.Duration
	last := time.Duration(math.MaxInt64)
	for rest := s; ; {
		i := 0
		for i < len(rest) && '0' <= rest[i] && rest[i] <= '9' {
			i++
		}
		if i == 0 || i == len(rest) {
			return 0, fmt.Errorf("%q is no time", s)
		}
		n, err := strconv.ParseInt(rest[:i], 10, 64)
		unit := units[rest[i]]
		if err != nil || unit == 0 || unit >= last {
			return 0, fmt.Errorf("%q is no time", s)
		}
		if n > int64((maxBan-sum)/unit) {
			return 0, fmt.Errorf("%q is longer than 100 years", s)
		}
		sum += time.Duration(n) * unit
		last = unit
		if rest = rest[i+1:]; rest == "" {
			break
		}
	}
	if sum == 0 {
		return 0, fmt.Errorf("%q is no time at all", s)
	}
	return sum, nil
}

var (
	numeric  = regexp.MustCompile(`^[0-9a-fA-F:.]*[:.][0-9a-fA-F:.]*(/.*)?$|^[0-9/]+$`)
	hostName = regexp.MustCompile(`^([a-zA-Z0-9_]([a-zA-Z0-9_-]{0,61}[a-zA-Z0-9_])?\.)*[a-zA-Z]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?\.?$`)
	field    = regexp.MustCompile(`^[A-Z_][A-Z0-9_]*=.`)
	portText = regexp.MustCompile(`^([0-9]+)(?:-([0-9]+))?/(tcp|udp)$`)
	jailName = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,62}$`)
)

// ignoreIP takes addresses, subnets and host names.
func (r *reader) ignoreIP(prefixes *[]netip.Prefix, names *[]string) {
	items, ok := r.list("ignoreip", `"192.0.2.7", "2001:db8::/48"`)
	if !ok {
		return
	}
	*prefixes, *names = nil, nil
	for _, i := range items {
		if a, err := netip.ParseAddr(i.text); err == nil && a.Zone() == "" {
			*prefixes = append(*prefixes, unmap(netip.PrefixFrom(a, a.BitLen())))
		} else if p, err := netip.ParsePrefix(i.text); err == nil {
			switch p := unmap(p); {
			case p.Bits() == 0:
				r.say(i.at, "%q is everybody; write enabled = false to let a jail rest", i.text)
			default:
				*prefixes = append(*prefixes, p)
			}
		} else if !numeric.MatchString(i.text) && len(i.text) <= 253 && hostName.MatchString(i.text) {
			*names = append(*names, i.text)
		} else {
			r.say(i.at, `%q is no address, subnet or host name; write such as "192.0.2.7", "2001:db8::/48" or "admin.example.org"`, i.text)
		}
	}
}

var anyTag = regexp.MustCompile(`<[^<>]*>`)

// ignoreCommand takes the program to ask ahead of a ban, and how long its
// answers are kept.
func (r *reader) ignoreCommand(j *Jail) {
	r.program("ignorecommand", &j.IgnoreCommand, ignoreTags, "whom it would spare is banned")
	x, ok := r.at("ignorecache")
	if !ok {
		return
	}
	const most = 100_000
	switch v := x.v.(type) {
	case string:
		r.duration("ignorecache", &j.IgnoreCache.Time, false)
		j.IgnoreCache.Max = 100
	case values:
		in := &reader{l: r.l, v: v}
		j.IgnoreCache = IgnoreCache{5 * time.Minute, 100}
		in.duration("time", &j.IgnoreCache.Time, false)
		in.number("max", &j.IgnoreCache.Max, 1, most)
		in.rest()
	default:
		r.say(x, `is %s; write a time, such as ignorecache = "5m", or such as ignorecache = { time = "5m", max = 1000 }`, is(v))
	}
}

var interfaceName = regexp.MustCompile(`^[^\s/:%]{1,15}$`)

// The settings that hold where xdpban.toml says nothing.
func defaultSettings() Settings {
	return Settings{
		Mode: "auto", BPFDir: "/sys/fs/bpf/xdpban", Socket: "/run/xdpban/xdpban.sock", StateDir: "/var/lib/xdpban",
		IgnoreSelf: true, IgnoreSessions: true,
		MaxBans: 1_000_000, MaxTracked: 200_000, MaxBansPerMin: 1000, Remember: 30 * 24 * time.Hour,
	}
}

func (l *loader) readSettings() Settings {
	s := defaultSettings()
	if l.settings == nil {
		return s
	}
	v := values{}
	for k, x := range l.settings.tree {
		v.override(k, value{x, l.settings, k})
	}
	r := &reader{l: l, v: v}
	if items, ok := r.list("interfaces", `"eth0"`); ok {
		for _, i := range items {
			if !interfaceName.MatchString(i.text) || i.text == "." || i.text == ".." {
				r.say(i.at, "%q can't be the name of an interface; write one of those that \"ip link\" shows, such as \"eth0\"", i.text)
			}
		}
		s.Interfaces = textsOf(items)
	}
	if x, ok := r.text("mode", &s.Mode, "auto"); ok && !slices.Contains([]string{"auto", "native", "generic"}, s.Mode) {
		r.say(x, `%q is no mode; write "auto", "native" or "generic"`, s.Mode)
	}
	for _, p := range []struct {
		key string
		to  *string
	}{{"bpf_dir", &s.BPFDir}, {"socket", &s.Socket}, {"state_dir", &s.StateDir}} {
		example := *p.to
		if x, ok := r.text(p.key, p.to, example); ok {
			switch {
			case !filepath.IsAbs(*p.to):
				r.say(x, "%q doesn't begin with /; write the whole path, such as %q", *p.to, example)
			case p.key == "socket" && len(*p.to) > 107:
				r.say(x, "has %d bytes, and the kernel takes 107; write a shorter path, such as %q", len(*p.to), example)
			}
		}
	}
	r.text("socket_group", &s.SocketGroup, "adm")
	r.flag("socket_group_bans", &s.SocketGroupBans)
	if x, ok := r.text("token_file", &s.TokenFile, "/etc/xdpban/token"); ok && !filepath.IsAbs(s.TokenFile) {
		r.say(x, "%q doesn't begin with /; write the whole path, such as %q", s.TokenFile, "/etc/xdpban/token")
	}
	r.listens("metrics", &s.Metrics, s.TokenFile != "", "127.0.0.1:9477")
	r.listens("web", &s.Web, s.TokenFile != "", "127.0.0.1:9478")
	r.listens("publish", &s.Publish, s.TokenFile != "", "127.0.0.1:9479")
	r.ignoreIP(&s.IgnoreIP, &s.IgnoreNames)
	r.flag("ignoreself", &s.IgnoreSelf)
	r.flag("ignore_sessions", &s.IgnoreSessions)
	r.flag("ignore_gateways", &s.IgnoreGateways)
	r.flag("ignore_resolvers", &s.IgnoreResolvers)
	if r.flag("small", &s.Small); s.Small {
		s.MaxBans, s.MaxTracked = 8192, 10_000
	}
	bans := int(s.MaxBans)
	r.number("max_bans", &bans, 1, 1<<27)
	s.MaxBans = uint32(bans)
	r.number("max_tracked", &s.MaxTracked, 1, 1<<27)
	r.number("max_bans_per_minute", &s.MaxBansPerMin, 0, 1<<20)
	if items, ok := r.list("places", `"/usr/share/GeoIP/GeoLite2-Country.mmdb"`); ok {
		for _, i := range items {
			if !filepath.IsAbs(i.text) {
				r.say(i.at, "%q doesn't begin with /; write the whole path, such as %q", i.text, "/usr/share/GeoIP/GeoLite2-Country.mmdb")
			}
		}
		s.Places = textsOf(items)
	}
	r.program("on_ban", &s.OnBan, noticeTags, "nobody is told")
	r.program("on_unban", &s.OnUnban, noticeTags, "nobody is told")
	r.webhooks(&s.Webhooks)
	r.fleet(&s.Fleet)
	r.feeds(&s.Feeds)
	r.duration("remember", &s.Remember, true)
	if s.Remember == Forever {
		s.Remember = 0
	}
	for _, k := range []string{"jail", "defaults"} {
		if x, ok := r.v[k]; ok {
			r.known = append(r.known, k)
			r.say(x, "doesn't belong here; write it in a file in %s/", JailFolder)
			r.known = r.known[:len(r.known)-1]
			delete(r.v, k)
		}
	}
	r.rest()
	return s
}

// listens takes an address to listen on. One that others can reach needs a
// token.
func (r *reader) listens(key string, to *netip.AddrPort, token bool, example string) {
	var text string
	x, ok := r.text(key, &text, example)
	if !ok {
		return
	}
	a, err := netip.ParseAddrPort(text)
	switch {
	case err != nil || a.Port() == 0:
		r.say(x, "%q is no address and port; write %q", text, example)
	case !a.Addr().Unmap().IsLoopback() && !token:
		r.say(x, "%s can be reached from other hosts: write %q, or set token_file to a file with the secret to ask for", text, example)
	default:
		*to = a
	}
}

// readLimits takes the keys that [defaults] may have too.
func (r *reader) readLimits(j *Jail, zone *string) {
	r.number("maxretry", &j.MaxRetry, 1, 10_000)
	r.duration("findtime", &j.FindTime, false)
	r.duration("bantime", &j.BanTime, true)
	r.increment(&j.Increment)
	// 0 in a file is none; in a Jail it is what MaxRetry says.
	if _, ok := r.v["maxmatches"]; ok {
		n := 10
		r.number("maxmatches", &n, 0, 100)
		j.MaxMatches = n
		if n == 0 {
			j.MaxMatches = -1
		}
	} else {
		r.known = append(r.known, "maxmatches")
	}
	if items, ok := r.list("ports", `"22/tcp"`); ok {
		j.Ports = nil
		for _, i := range items {
			p, err := ParsePortRange(i.text)
			if err != nil {
				r.say(i.at, "%v", err)
				continue
			}
			j.Ports = append(j.Ports, p)
		}
	}
	r.ignoreIP(&j.IgnoreIP, &j.IgnoreNames)
	ignoreSelf := !j.BanSelf
	r.flag("ignoreself", &ignoreSelf)
	j.BanSelf = !ignoreSelf
	r.ignoreCommand(j)
	r.program("on_ban", &j.OnBan, noticeTags, "nobody is told")
	r.program("on_unban", &j.OnUnban, noticeTags, "nobody is told")
	r.where(&j.Where)
	r.number("aggregate4", &j.Aggregate4, MinAuto4, 32)
	r.number("aggregate6", &j.Aggregate6, MinAuto6, 128)
	if x, ok := r.text("timezone", zone, "Europe/Copenhagen"); ok {
		if _, err := zoneOf(*zone); err != nil {
			r.say(x, `%q is no time zone; write its name, such as "UTC" or "Europe/Copenhagen"`, *zone)
		}
	}
	r.text("encoding", &j.Encoding, "utf-8")
	dns := string(j.UseDNS)
	if x, ok := r.text("usedns", &dns, "no"); ok {
		if !slices.Contains([]string{"no", "warn", "yes"}, dns) {
			r.say(x, `%q isn't known; write "no", "warn" or "yes"`, dns)
		}
		j.UseDNS = UseDNS(dns)
	}
}

// fixedZone are UTC+0200 and the like, as fail2ban's logtimezone has them.
var fixedZone = regexp.MustCompile(`^(?:UTC|GMT|Z)?([+-])(\d\d):?(\d\d)?$`)

func zoneOf(name string) (*time.Location, error) {
	if m := fixedZone.FindStringSubmatch(name); m != nil {
		h, _ := strconv.Atoi(m[2])
		min, _ := strconv.Atoi(m[3])
		seconds := h*3600 + min*60
		if h > 14 || min > 59 {
			return nil, errors.New("no such zone")
		}
		if m[1] == "-" {
			seconds = -seconds
		}
		return time.FixedZone(name, seconds), nil
	}
	return time.LoadLocation(name)
}

// increment takes increment = true, or a table.
func (r *reader) increment(to *Increment) {
	x, ok := r.at("increment")
	if !ok {
		return
	}
	switch v := x.v.(type) {
	case bool:
		to.Enabled = v
	case values:
		in := &reader{l: r.l, v: v}
		to.Enabled = true
		in.flag("enabled", &to.Enabled)
		in.duration("max", &to.Max, false)
		in.duration("random", &to.Random, false)
		in.flag("all_jails", &to.AllJails)
		if x, ok := in.at("factor"); ok {
			f, ok := positive(x.v)
			if !ok {
				in.say(x, "is %s; write a number above 0, such as factor = 1.5", is(x.v))
			}
			to.Factor = f
		}
		if x, ok := in.at("multipliers"); ok {
			to.Multipliers, to.Formula = nil, nil
			all, isList := x.v.([]any)
			if !isList || len(all) == 0 {
				in.say(x, "is %s; write a list of numbers, such as multipliers = [1, 5, 30]", is(x.v))
			}
			for i, v := range all {
				f, ok := positive(v)
				if !ok {
					in.say(value{v, x.file, fmt.Sprintf("%s[%d]", x.key, i)}, "is %s; write a number above 0, such as multipliers = [1, 5, 30]", is(v))
				}
				to.Multipliers = append(to.Multipliers, f)
			}
		}
		if x, ok := in.text("formula", new(string), "ban.Time * (1 << ban.Count) * banFactor"); ok {
			in.formula(to, x)
		}
		in.rest()
	default:
		r.say(x, `is %s; write increment = true, or such as increment = { factor = 1.5, max = "5w" }`, is(x.v))
	}
}

// formulaTrials are the past bans for which a formula is tried when it is
// read.
const formulaTrials = 20

func (r *reader) formula(to *Increment, x value) {
	f, err := ParseFormula(x.v.(string))
	if err != nil {
		r.say(x, `%q: %s; write such as formula = "ban.Time * (1 << ban.Count) * banFactor"`, x.v, err)
		return
	}
	if _, ok := r.v["multipliers"]; ok {
		r.say(x, "can't go with multipliers; leave one of the two out")
		return
	}
	to.Formula, to.Multipliers = f, nil
	for n := 1; n <= formulaTrials; n++ {
		for _, random := range []float64{0, 0.5} {
			_, err := f.Eval(FormulaVars{600, n, cmp.Or(to.Factor, 1), func() float64 { return random }})
			if err != nil {
				r.say(x, "%q fails for who was banned %d times, for 10m: %s", x.v, n, err)
				return
			}
		}
	}
}

func positive(v any) (float64, bool) {
	var f float64
	switch v := v.(type) {
	case int64:
		f = float64(v)
	case float64:
		f = v
	}
	return f, f > 0 && f <= 1e9
}

// filterKeys are what a jail takes from the one that filter names.
var filterKeys = []string{"program", "journal", "files", "failregex", "ignoreregex", "prefregex", "datepattern", "maxlines", "modes", "mode", "timezone", "encoding"}

// readDefaults makes the jail that all others begin as, and the zone of its
// dates.
func (l *loader) readDefaults(v values) (j Jail, zone string) {
	j = Jail{
		Enabled: true, UseDNS: DNSNo,
		MaxRetry: 5, FindTime: 10 * time.Minute, BanTime: 10 * time.Minute, Aggregate4: 32, Aggregate6: 128,
	}
	r := &reader{l: l, v: v}
	r.readLimits(&j, &zone)
	r.rest()
	return j, zone
}

func (l *loader) readJail(c *Config, name string, jails map[string]values, j Jail, zone string) {
	j.Name = name
	before := len(l.problems)

	own := jails[name]
	here := own[""]
	if !jailName.MatchString(name) || name == Manual {
		l.say(here.file, here.key, "%q can't be a jail's name; write letters, digits, _, - and ., at most 63 (and not %q)", name, Manual)
	}
	r := &reader{l: l, v: own.clone()}
	extends := true // merge has heeded it
	r.flag("extends", &extends)
	other := ""
	if x, ok := r.text("filter", &other, "sshd"); ok {
		from := jails[other]
		_, chained := from["filter"]
		r.orphan = true
		switch {
		case other == name:
			r.say(x, "is the jail itself; write the name of another one")
		case from == nil:
			hint := "write the name of another jail"
			if to := similar(other, slices.Collect(mapKeys(jails))); to != "" {
				hint = fmt.Sprintf("did you mean %q?", to)
			}
			r.say(x, "there is no jail %q whose filter could be used; %s", other, hint)
		case chained:
			r.say(x, "jail %q uses another one's filter itself; write that one's name", other)
		default:
			r.orphan = false
			for _, k := range filterKeys {
				if _, ok := r.v[k]; !ok {
					if v, ok := from[k]; ok {
						r.v[k] = v
					}
				}
			}
		}
	}
	if x, ok := r.at("enabled"); ok {
		switch x.v {
		case true:
		case false:
			j.Enabled = false
		case "auto":
			j.Auto = true
		case "observe":
			j.Observe = true
		default:
			r.say(x, `is %s; write enabled = true, false, "auto" (runs where its log or unit exists) or "observe" (judges, but doesn't ban)`, is(x.v))
		}
	}
	r.readLimits(&j, &zone)
	watches := ""
	if x, ok := r.text("watches", &watches, "bans"); ok {
		if j.WatchesBans = watches == "bans"; !j.WatchesBans {
			r.say(x, `%q can't be watched; write watches = "bans", or leave it out`, watches)
		}
	}
	if x, ok := own["ignorecommand"]; ok && j.WatchesBans {
		r.say(x, `has no meaning with watches = "bans": each of them was asked about; leave it out`)
	}
	f := matcher.Filter{Name: name, Encoding: j.Encoding}
	f.Location, _ = zoneOf(zone)
	if zone == "" {
		f.Location = nil
	}
	r.source(&j, &f)
	if r.filter(&j, &f) {
		r.compile(&j, f, c)
	} else {
		r.tryParts()
	}
	r.rest()
	if len(l.problems) == before {
		c.Jails = append(c.Jails, j)
	}
}

// source takes what the jail reads.
func (r *reader) source(j *Jail, f *matcher.Filter) {
	journal, _ := r.list("journal", `"_SYSTEMD_UNIT=ssh.service"`)
	for n, i := range journal {
		if i.text == "+" && n > 0 && n < len(journal)-1 && journal[n-1].text != "+" {
			continue
		}
		if !field.MatchString(i.text) {
			r.say(i.at, `%q is no match of journalctl; write FIELD=value, such as "_SYSTEMD_UNIT=ssh.service"`, i.text)
		}
	}
	files, _ := r.list("files", `"/var/log/auth.log"`)
	for _, i := range files {
		if !filepath.IsAbs(i.text) {
			r.say(i.at, "%q doesn't begin with /; write the whole path, such as \"/var/log/auth.log\" or \"/var/log/nginx/*access.log\"", i.text)
		} else if _, err := filepath.Match(i.text, ""); err != nil {
			r.say(i.at, "%q is no pattern of file names: a [ without its ]; write \\[ for the letter itself", i.text)
		}
	}
	program, _ := r.list("program", `"sshd"`)
	j.Journal, j.Files, j.Programs = textsOf(journal), textsOf(files), textsOf(program)
	f.Programs = j.Programs
	for _, i := range program {
		r.part(i, "program", matcher.Filter{Programs: []string{i.text}, Failregex: []string{"^<ADDR>$"}})
	}
	if !j.WatchesBans && !r.orphan && len(journal)+len(files) == 0 {
		r.say(r.v[""], `reads nothing; write files = ["/var/log/…"] or journal = ["_SYSTEMD_UNIT=…"]`)
	}
}

// part notes one option of a filter to be tried on its own.
func (r *reader) part(i item, option string, f matcher.Filter) {
	r.parts = append(r.parts, func() bool { return r.trial(i, option, f) })
}

// tryParts tells what is wrong with any option of the filter.
func (r *reader) tryParts() (good bool) {
	good = true
	for _, try := range r.parts {
		good = try() && good
	}
	return good
}

// trial compiles one option of a filter on its own, and tells what is wrong
// with it.
func (r *reader) trial(i item, option string, f matcher.Filter) bool {
	_, err := matcher.Compile(f)
	if err == nil {
		return true
	}
	reason := err.Error()
	for _, prefix := range []string{fmt.Sprintf("%s 1 %q", option, i.text), fmt.Sprintf("%s %q", option, i.text)} {
		if rest, ok := strings.CutPrefix(reason, prefix); ok {
			reason = fmt.Sprintf("%q", i.text) + rest
			break
		}
	}
	r.say(i.at, "%s", reason)
	return false
}

// filter takes the patterns, and says whether there are any.
func (r *reader) filter(j *Jail, f *matcher.Filter) bool {
	fail, others := r.failregex()
	ignore, _ := r.list("ignoreregex", `'''^…$'''`)
	dates, _ := r.list("datepattern", `"%Y-%m-%d %H:%M:%S"`)
	r.number("maxlines", &f.MaxLines, 1, 1000)
	var pref string
	prefAt, hasPref := r.text("prefregex", &pref, "^<F-CONTENT>.+</F-CONTENT>$")
	if j.WatchesBans {
		for _, k := range []string{"failregex", "ignoreregex", "prefregex", "datepattern", "maxlines", "program", "files", "journal"} {
			if x, ok := r.v[k]; ok {
				r.say(x, `has no meaning with watches = "bans"; leave it out`)
			}
		}
		return false
	}
	if len(fail) == 0 {
		if _, ok := r.v["failregex"]; !ok && !r.orphan {
			r.say(r.v[""], `has no failregex; write failregex = [ '''^…<ADDR>…$''' ], or filter = "NAME" of a jail that has one`)
		}
		return false
	}
	f.Prefregex = pref
	tried := pref // what the failregex are tried with
	if hasPref {
		r.parts = append(r.parts, func() bool {
			good := r.trial(item{pref, prefAt}, "prefregex", matcher.Filter{Prefregex: pref, Failregex: []string{"^<ADDR>$"}})
			if !good {
				tried = ""
			}
			return good
		})
	}
	alone := func(i item) func() bool {
		return func() bool {
			return r.trial(i, "failregex", matcher.Filter{Name: j.Name, Prefregex: tried, MaxLines: f.MaxLines, Failregex: []string{i.text}})
		}
	}
	for _, i := range fail {
		r.parts = append(r.parts, alone(i))
	}
	for _, i := range others {
		r.others = append(r.others, alone(i))
	}
	for _, i := range ignore {
		r.part(i, "ignoreregex", matcher.Filter{MaxLines: f.MaxLines, Failregex: []string{"^<ADDR>$"}, Ignoreregex: []string{i.text}})
	}
	for _, i := range dates {
		r.part(i, "datepattern", matcher.Filter{Failregex: []string{"^<ADDR>$"}, DatePattern: []string{i.text}})
	}
	if j.Encoding != "" {
		x, ok := r.v["encoding"]
		if !ok {
			x = r.v[""]
		}
		r.part(item{j.Encoding, x}, "logencoding", matcher.Filter{Failregex: []string{"^<ADDR>$"}, Encoding: j.Encoding})
	}
	f.Failregex, f.Ignoreregex, f.DatePattern = textsOf(fail), textsOf(ignore), textsOf(dates)
	return true
}

// compile compiles the filter as a whole. Only if that fails its options are
// tried one by one.
func (r *reader) compile(j *Jail, f matcher.Filter, c *Config) {
	if _, own := r.v["encoding"]; r.v.shipped(filterKeys...) && (own || j.Encoding == "") {
		j.Filter = matcher.CompileLater(f)
		return
	}
	compiled, err := matcher.Compile(f)
	if err != nil && r.tryParts() {
		r.say(r.v[""], "%s", err)
	}
	for _, try := range r.others {
		try()
	}
	if err != nil {
		return
	}
	j.Filter = compiled
	for _, w := range compiled.Warnings() {
		at := r.v["failregex"]
		c.Warnings = append(c.Warnings, Problem{at.file.name, at.file.lines.of(at.key), at.key, w})
	}
}

// failregex takes the patterns: a list, or named lists of which mode chooses
// some. Those that it leaves out are in rest.
func (r *reader) failregex() (chosen, rest []item) {
	const example = `'''^…<ADDR>…$'''`
	mode := ""
	modeAt, hasMode := r.text("mode", &mode, "normal")
	modesAt, hasModes := r.at("modes")
	x, ok := r.at("failregex")
	if !ok {
		return nil, nil
	}
	named, isTable := x.v.(values)
	if !isTable {
		if hasMode && modeAt.file == x.file {
			r.say(modeAt, "has no meaning with a plain list of failregex; leave it out, or write the lists as failregex.%s = […]", mode)
		}
		if hasModes && modesAt.file == x.file {
			r.say(modesAt, "has no meaning with a plain list of failregex; leave it out, or write named lists as failregex.NAME = […]")
		}
		items, ok := r.items(x, "failregex", example)
		if ok && len(items) == 0 {
			r.say(x, "is empty; write failregex = [ %s ]", example)
		}
		return items, nil
	}
	lists := map[string][]item{}
	for _, k := range slices.Sorted(mapKeys(named)) {
		lists[k], _ = r.items(named[k], "failregex."+k, example)
	}
	// A mode is a choice of lists; without modes, each list is one.
	choice := map[string][]string{}
	for k := range lists {
		choice[k] = []string{k}
	}
	if hasModes {
		modes, ok := modesAt.v.(values)
		if !ok {
			r.say(modesAt, `is %s; write a table, such as modes = { normal = ["login"], aggressive = ["login", "scan"] }`, is(modesAt.v))
			return nil, nil
		}
		clear(choice)
		for _, m := range slices.Sorted(mapKeys(modes)) {
			items, _ := r.items(modes[m], "modes."+m, `"login", "scan"`)
			for _, i := range items {
				if lists[i.text] == nil {
					r.say(i.at, "there is no failregex.%s; write some of %s", i.text, strings.Join(slices.Sorted(mapKeys(lists)), ", "))
				}
			}
			choice[m] = textsOf(items)
		}
	}
	if !hasMode {
		mode, modeAt = "normal", x
	}
	if choice[mode] == nil {
		r.say(modeAt, "there is no mode %q; write one of %s", mode, strings.Join(slices.Sorted(mapKeys(choice)), ", "))
		return nil, nil
	}
	for _, k := range choice[mode] {
		chosen = append(chosen, lists[k]...)
	}
	for _, k := range slices.Sorted(mapKeys(lists)) {
		if !slices.Contains(choice[mode], k) {
			rest = append(rest, lists[k]...)
		}
	}
	return chosen, rest
}
