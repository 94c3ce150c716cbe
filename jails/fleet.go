package jails

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// ByFleet is the jail name of bans that other hosts of the fleet have made.
const ByFleet = "fleet"

// Fleet says with whom this host shares bans, and how.
type Fleet struct {
	Name string   // of the fleet; empty: there is none
	Host string   // this host's name in it
	URLs []string // of NATS servers
	// Creds and NKey are files that say who we are to the server, and TLS
	// those for encryption; empty: none.
	Creds, NKey string
	TLS         FleetTLS
	// Publish names the jails whose bans are shared, Subscribe those whose
	// bans are taken from others; "*" is any.
	Publish, Subscribe []string
	// MaxBan is the longest that another host's ban lasts here; Forever: as
	// long as it says.
	MaxBan time.Duration
	// Quorum is how many hosts must have banned a prefix, this one included.
	Quorum int
	// PeerBansPerMin is how many new bans of one host are put in force in a
	// minute (0: any number), and PeerBans how many it may have at a time.
	PeerBansPerMin, PeerBans int
	// Widest4 and Widest6 are the shortest prefix lengths that are taken.
	Widest4, Widest6 int
	// Evidence shares the lines behind bans.
	Evidence bool
	// Replicas is how many servers of a cluster keep the bans.
	Replicas int
}

// FleetTLS are files in PEM: the authority that the server's certificate is
// checked against, and our own certificate with its key.
type FleetTLS struct{ CA, Cert, Key string }

// Shares says whether a jail is among those of a list.
func Shares(list []string, jail string) bool {
	return slices.Contains(list, "*") || slices.Contains(list, jail)
}

// fleetName is what a fleet and its hosts may be called: a part of a subject
// of NATS.
var fleetName = regexp.MustCompile(`^[a-zA-Z0-9_-]{1,63}$`)

// FleetName says whether s can name a fleet or a host in it.
func FleetName(s string) bool { return fleetName.MatchString(s) }

func defaultFleet() Fleet {
	host, _ := os.Hostname() // a name that can't be used is said below
	return Fleet{
		Host:    strings.ReplaceAll(host, ".", "_"),
		Publish: []string{"*"}, Subscribe: []string{"*"}, MaxBan: 24 * time.Hour, Quorum: 1,
		PeerBansPerMin: 1000, PeerBans: 200_000, Widest4: 24, Widest6: 48, Replicas: 1,
	}
}

// fleet takes the table of that name.
func (r *reader) fleet(to *Fleet) {
	x, ok := r.at("fleet")
	if !ok {
		return
	}
	v, ok := x.v.(values)
	if !ok {
		r.say(x, "is %s; write [fleet] with its keys below it", is(x.v))
		return
	}
	in := &reader{l: r.l, v: v}
	f := defaultFleet()
	if at, ok := in.text("name", &f.Name, "web"); ok && !FleetName(f.Name) {
		in.say(at, "%q can't name a fleet; write letters, digits, - and _, such as %q", f.Name, "web")
	} else if _, given := v["name"]; !given {
		r.say(x, `has no name; write name = "web"`)
	}
	if at, ok := in.text("host", &f.Host, "web1"); ok && !FleetName(f.Host) {
		in.say(at, "%q can't name a host; write letters, digits, - and _, such as %q", f.Host, "web1")
	} else if _, given := v["host"]; !given && !FleetName(f.Host) {
		r.say(x, `has no host, and the machine's own name %q can't be used; write host = "web1"`, f.Host)
	}
	if items, ok := in.list("url", `"nats://192.0.2.5:4222"`); ok {
		for _, i := range items {
			if !slices.ContainsFunc([]string{"nats://", "tls://"}, func(s string) bool {
				return strings.HasPrefix(i.text, s) && len(i.text) > len(s)
			}) {
				in.say(i.at, `%q is no address of a NATS server; write such as "nats://192.0.2.5:4222" or "tls://nats.example.org:4222"`, i.text)
			}
		}
		f.URLs = textsOf(items)
	}
	in.fleetFile("creds", &f.Creds, "/etc/xdpban/fleet.creds")
	in.fleetFile("nkey", &f.NKey, "/etc/xdpban/fleet.nkey")
	if f.Creds != "" && f.NKey != "" {
		in.say(v["nkey"], "stands beside creds; write one of them")
	}
	if at, ok := in.at("tls"); ok {
		if t, ok := at.v.(values); ok {
			files := &reader{l: r.l, v: t}
			files.fleetFile("ca", &f.TLS.CA, "/etc/xdpban/ca.pem")
			files.fleetFile("cert", &f.TLS.Cert, "/etc/xdpban/host.pem")
			files.fleetFile("key", &f.TLS.Key, "/etc/xdpban/host.key")
			files.rest()
			if (f.TLS.Cert == "") != (f.TLS.Key == "") {
				in.say(at, "has one of cert and key; write both")
			}
		} else {
			in.say(at, `is %s; write such as tls = { ca = "/etc/xdpban/ca.pem" }`, is(at.v))
		}
	}
	for _, l := range []struct {
		key string
		to  *[]string
	}{{"publish", &f.Publish}, {"subscribe", &f.Subscribe}} {
		if items, ok := in.list(l.key, `"sshd", "recidive"`); ok {
			for _, i := range items {
				if i.text != "*" && !jailName.MatchString(i.text) {
					in.say(i.at, `%q can't be the name of a jail; write such as "sshd", or "*" for all`, i.text)
				}
			}
			*l.to = textsOf(items)
		}
	}
	in.duration("max_ban", &f.MaxBan, true)
	in.number("quorum", &f.Quorum, 1, 1000)
	in.number("peer_bans_per_minute", &f.PeerBansPerMin, 0, 1<<20)
	in.number("peer_bans", &f.PeerBans, 1, 1<<27)
	in.number("widest4", &f.Widest4, MinBits4, 32)
	in.number("widest6", &f.Widest6, MinBits6, 128)
	in.flag("evidence", &f.Evidence)
	in.number("replicas", &f.Replicas, 1, 5)
	if _, given := v["url"]; !given {
		r.say(x, `has no server; write url = "nats://192.0.2.5:4222"`)
	}
	in.rest()
	*to = f
}

func (r *reader) fleetFile(key string, to *string, example string) {
	if x, ok := r.text(key, to, example); ok && !filepath.IsAbs(*to) {
		r.say(x, "%q doesn't begin with /; write the whole path, such as %q", *to, example)
	}
}
