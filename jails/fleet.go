package jails

import (
	"net/netip"
	"os"
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
	// SharedFailures counts failures in the fleet: who fails here and there
	// a few times has failed often.
	SharedFailures bool
	// Replicas is how many servers of a cluster keep the bans.
	Replicas int
	// Server is the NATS server that this host runs itself.
	Server FleetServer
}

// FleetServer is a NATS server for a fleet, on one of its hosts.
type FleetServer struct {
	Embedded bool           // there is one
	Listen   netip.AddrPort // for the hosts
	// Hosts are the public nkeys of all hosts that may connect, by name.
	Hosts map[string]string
	// Peers is where each server of the cluster listens for the others, this
	// one included; none: it stands alone.
	Peers []netip.AddrPort
	// Secret is the file with what the servers know each other by.
	Secret string
}

// Cluster is where this server listens for the others of its cluster.
func (s FleetServer) Cluster() (at netip.AddrPort, ok bool) {
	i := slices.IndexFunc(s.Peers, func(p netip.AddrPort) bool { return p.Addr() == s.Listen.Addr() })
	if i < 0 {
		return at, false
	}
	return s.Peers[i], true
}

// FleetTLS are files in PEM: the authority that the server's certificate is
// checked against, and our own certificate with its key.
type FleetTLS struct{ CA, Cert, Key string }

// Shares says whether a jail is among those of a list. Each host reads its
// feeds itself.
func Shares(list []string, jail string) bool {
	return !ByFeed(jail) && (slices.Contains(list, "*") || slices.Contains(list, jail))
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
	in.file("creds", &f.Creds, "/etc/xdpban/fleet.creds")
	in.file("nkey", &f.NKey, "/etc/xdpban/fleet.nkey")
	if f.Creds != "" && f.NKey != "" {
		in.say(v["nkey"], "stands beside creds; write one of them")
	}
	if at, ok := in.at("tls"); ok {
		if t, ok := at.v.(values); ok {
			files := &reader{l: r.l, v: t}
			files.file("ca", &f.TLS.CA, "/etc/xdpban/ca.pem")
			files.file("cert", &f.TLS.Cert, "/etc/xdpban/host.pem")
			files.file("key", &f.TLS.Key, "/etc/xdpban/host.key")
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
	in.flag("shared_failures", &f.SharedFailures)
	in.number("replicas", &f.Replicas, 1, 5)
	in.fleetServer(&f)
	if _, given := v["url"]; !given && !f.Server.Embedded {
		r.say(x, `has no server; write url = "nats://192.0.2.5:4222", or embedded = true on one of the hosts`)
	}
	in.rest()
	*to = f
}

// fleetKey is a public nkey of a user.
var fleetKey = regexp.MustCompile(`^U[A-Z2-7]{55}$`)

// fleetServer takes what belongs to a server of the fleet's own.
func (r *reader) fleetServer(f *Fleet) {
	s := &f.Server
	r.flag("embedded", &s.Embedded)
	var text string
	listen, ok := r.text("listen", &text, "192.0.2.5:4222")
	if ok {
		var err error
		if s.Listen, err = netip.ParseAddrPort(text); err != nil || s.Listen.Port() == 0 || s.Listen.Addr().IsUnspecified() {
			r.say(listen, "%q is no address of this host and port; write such as %q", text, "192.0.2.5:4222")
			s.Listen = netip.AddrPort{}
		}
	}
	if x, ok := r.at("hosts"); ok {
		const example = `hosts = { web1 = "U…" }, with what "xdpban fleet key" prints there`
		t, ok := x.v.(values)
		if !ok || len(t) == 0 {
			r.say(x, "is %s; write %s", is(x.v), example)
		}
		s.Hosts = map[string]string{}
		for _, name := range slices.Sorted(mapKeys(t)) {
			key, _ := t[name].v.(string)
			if !FleetName(name) || !fleetKey.MatchString(key) {
				r.say(t[name], "%q = %s is no host and its public key; write such as %s", name, is(t[name].v), example)
			}
			s.Hosts[name] = key
		}
	}
	r.file("secret", &s.Secret, "/etc/xdpban/fleet.secret")
	if items, ok := r.list("peers", `"192.0.2.5:6222", "192.0.2.6:6222", "192.0.2.7:6222"`); ok {
		for _, i := range items {
			p, err := netip.ParseAddrPort(i.text)
			if err != nil || p.Port() == 0 || p.Addr().IsUnspecified() || slices.Contains(s.Peers, p) {
				r.say(i.at, "%q is no other address and port; write such as %q", i.text, "192.0.2.6:6222")
				continue
			}
			s.Peers = append(s.Peers, p)
		}
		at := r.v["peers"]
		if _, ok := s.Cluster(); !ok && s.Listen.IsValid() {
			r.say(at, "doesn't have %s, where this server listens; write all servers of the cluster, this one too", s.Listen.Addr())
		}
		if n := len(items); n != 3 && n != 5 {
			r.say(at, "has %d servers; write 3 or 5: one, or two, of them may then be gone", n)
		}
		if s.Secret == "" {
			r.say(at, `has no secret beside it, and anybody could join; write secret = "/etc/xdpban/fleet.secret"`)
		}
		if _, given := r.v["replicas"]; !given {
			f.Replicas = 3
		}
	}
	if s.Embedded {
		if _, given := r.v["listen"]; !given {
			r.say(r.v["embedded"], `has no address to listen on; write listen = "192.0.2.5:4222"`)
		}
		if _, given := r.v["hosts"]; !given {
			r.say(r.v["embedded"], `has no hosts, and lets nobody in; write hosts = { web1 = "U…" }, with what "xdpban fleet key" prints there`)
		}
		if f.TLS.CA != "" && f.TLS.Cert == "" {
			r.say(r.v["tls"], "has no certificate for the server; write cert and key")
		}
		if f.URLs == nil && s.Listen.IsValid() {
			scheme := "nats"
			if f.TLS.Cert != "" {
				scheme = "tls"
			}
			f.URLs = []string{scheme + "://" + s.Listen.String()}
		}
	}
}
