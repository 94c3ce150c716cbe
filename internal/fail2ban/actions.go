package fail2ban

import (
	"net"
	"path"
	"slices"
	"strconv"
	"strings"
)

// blockers are the actions that block an address, by the start of their
// names; the value says whether such an action blocks all ports by nature,
// whatever its options say.
var blockers = map[string]bool{
	"iptables": false, "nftables": false, "firewallcmd": false, "pf": false,
	"ipfilter": true, "ipfw": true, "bsd-ipfw": true, "npf": true,
	"osx-ipfw": true, "osx-afctl": true, "apf": true, "ufw": true,
	"route": true, "shorewall": true, "hostsdeny": true,
	"symbiosis-blacklist-allports": true, "xdpban": true,
}

// blocking says whether an action blocks addresses, and whether on all
// ports. An action of the user's own counts as what it includes.
func (t *Tree) blocking(a Action) (blocks, all bool) {
	for _, name := range append([]string{a.Name}, t.actionIncludes(a.Name)...) {
		stem := name
		for stem != "" {
			if byNature, ok := blockers[stem]; ok {
				kind, _ := a.Options.Get("type")
				return true, byNature || strings.Contains(a.Name, "allports") || kind == "allports"
			}
			stem = stem[:max(strings.LastIndexByte(stem, '-'), 0)]
		}
	}
	return false, false
}

// actionIncludes names the files that an action of action.d is made of.
func (t *Tree) actionIncludes(name string) []string {
	c, err := t.load("action.d/" + name)
	if err != nil {
		return nil // then its own name is all there is to judge by
	}
	var names []string
	for _, f := range c.files {
		names = append(names, strings.TrimSuffix(path.Base(f), path.Ext(f)))
	}
	return names
}

// blocked is what a jail's blocking actions come to.
type blocked struct {
	any   bool
	ports []string // "22/tcp", "5060-5070/udp"; empty: all
	notes []Note
}

func (t *Tree) blocked(j *Jail) blocked {
	var b blocked
	all := false
	for _, a := range j.Actions {
		blocks, allPorts := t.blocking(a)
		if !blocks {
			b.notes = append(b.notes, Note{a.Origin, "action", a.Name + " is not carried over: xdpban blocks; on_ban and on_unban can run a program besides"})
			continue
		}
		if opens(a) {
			b.notes = append(b.notes, Note{a.Origin, "action", a.Name + " is not carried over: its blocktype lets packets pass where others are blocked, and xdpban only blocks"})
			continue
		}
		b.any = true
		ports, given := a.Options.Get("port")
		if allPorts || !given {
			all = true
			continue
		}
		protocol, given := a.Options.Get("protocol")
		if !given {
			protocol = "tcp"
		}
		list, everything, bad := portList(ports, protocol)
		for _, p := range bad {
			b.notes = append(b.notes, Note{a.Origin, "port", strconv.Quote(p) + " is not a port that this host knows; the ban will not cover it"})
		}
		all = all || everything
		for _, p := range list {
			if !slices.Contains(b.ports, p) {
				b.ports = append(b.ports, p)
			}
		}
	}
	if all {
		b.ports = nil
	}
	return b
}

// opens says that a blocking action is turned round, to let those in whom
// the jail finds: a jail such as fail2ban's pass2allow must not ban them.
func opens(a Action) bool {
	kind, _ := a.Options.Get("blocktype")
	switch strings.ToUpper(strings.TrimSpace(kind)) {
	case "RETURN", "ACCEPT", "ALLOW", "PASS":
		return true
	}
	return false
}

// portList gives fail2ban's ports (names, numbers, 10:20) of one or several
// protocols as ours. everything says that they are all ports there are.
func portList(ports, protocols string) (list []string, everything bool, bad []string) {
	for _, proto := range splitWords(protocols) {
		each := []string{proto}
		if proto == "all" {
			each = []string{"tcp", "udp"}
		}
		for _, proto := range each {
			for _, p := range splitWords(ports) {
				from, to, ranged := strings.Cut(strings.ReplaceAll(p, "-", ":"), ":")
				if _, err := strconv.Atoi(from); err != nil {
					from, to, ranged = p, "", false
				}
				low, err := portNumber(proto, from)
				high := low
				if err == nil && ranged {
					high, err = portNumber(proto, to)
				}
				switch {
				case err != nil || high < low || high == 0 || proto != "tcp" && proto != "udp":
					if !slices.Contains(bad, p) {
						bad = append(bad, p)
					}
				case low <= 1 && high == 65535:
					return nil, true, nil
				case high > low:
					list = append(list, strconv.Itoa(max(low, 1))+"-"+strconv.Itoa(high)+"/"+proto)
				default:
					list = append(list, strconv.Itoa(low)+"/"+proto)
				}
			}
		}
	}
	return list, false, bad
}

// portNumber looks a port's name up, which may be listed for the other
// protocol alone.
func portNumber(proto, name string) (int, error) {
	n, err := net.LookupPort(proto, name)
	if err != nil {
		n, err = net.LookupPort("tcp", name)
	}
	return n, err
}
