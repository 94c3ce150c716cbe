package test

import (
	"encoding/json"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"xdpban/internal/lab"
)

// nameserver answers DNS questions on a host, as the test says.
type nameserver struct {
	conn  *net.UDPConn
	delay func() time.Duration // of each answer; nil: none

	mu    sync.Mutex
	names map[string]netip.Addr // without the dot at the end
}

// startDNS has a host answer at address:53. An address of one family is all
// that a name has.
func startDNS(b *bed, on *lab.Host, address string, delay func() time.Duration, names map[string]netip.Addr) *nameserver {
	b.Helper()
	s := &nameserver{delay: delay, names: names}
	if err := on.In(func() (err error) {
		s.conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(address), 53)))
		return err
	}); err != nil {
		b.Fatal(err)
	}
	var answering sync.WaitGroup
	answering.Go(func() {
		buf := make([]byte, 1500)
		for {
			n, from, err := s.conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			reply, err := s.answer(buf[:n])
			if err != nil {
				continue // no question of a resolver's
			}
			answering.Go(func() {
				if s.delay != nil {
					time.Sleep(s.delay())
				}
				_, _ = s.conn.WriteToUDPAddrPort(reply, from) // who asked may be gone
			})
		}
	})
	b.Cleanup(func() {
		s.conn.Close()
		answering.Wait()
	})
	return s
}

func (s *nameserver) set(name string, addr netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.names[name] = addr
}

func (s *nameserver) answer(question []byte) ([]byte, error) {
	var p dnsmessage.Parser
	h, err := p.Start(question)
	if err != nil {
		return nil, err
	}
	q, err := p.Question()
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	addr, ok := s.names[strings.TrimSuffix(strings.ToLower(q.Name.String()), ".")]
	s.mu.Unlock()
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: h.ID, Response: true, RecursionDesired: h.RecursionDesired, RecursionAvailable: true},
		Questions: []dnsmessage.Question{q},
	}
	if !ok {
		m.RCode = dnsmessage.RCodeNameError
	}
	var body dnsmessage.ResourceBody
	switch {
	case addr.Is4() && q.Type == dnsmessage.TypeA:
		body = &dnsmessage.AResource{A: addr.As4()}
	case addr.Is6() && q.Type == dnsmessage.TypeAAAA:
		body = &dnsmessage.AAAAResource{AAAA: addr.As16()}
	}
	if body != nil {
		m.Answers = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 1}, Body: body}}
	}
	return m.Pack()
}

// allowed is what is never banned and why, by address.
func (b *bed) allowed() map[string]string {
	b.Helper()
	var list []struct {
		Prefix netip.Prefix
		Origin string
	}
	out := b.run(b.server, program(b), "allow", "--json")
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		b.Fatalf("xdpban allow --json: %v\n%s", err, out)
	}
	m := map[string]string{}
	for _, e := range list {
		m[e.Prefix.Addr().String()] = e.Origin
	}
	return m
}

func (b *bed) untilAllowed(addr, origin string) {
	b.Helper()
	b.until(addr+" is allowed: "+origin, func() bool { return b.allowed()[addr] == origin })
}

// spared has each address fail often enough, and checks that none of them is
// banned, neither so nor by hand.
func (b *bed) spared(when, stranger string, addrs ...string) {
	b.Helper()
	for _, addr := range addrs {
		for range 5 {
			appendTo(b, b.server, "/var/log/auth.log", failure(time.Now(), addr))
		}
	}
	b.attack(stranger) // is judged after them
	bans := b.bans()
	for _, addr := range addrs {
		if _, ok := bans[addr]; ok {
			b.Errorf("%s: %s is banned by its failures", when, addr)
		}
		if out, err := b.server.Run(b.ctx, program(b), "ban", addr); err == nil || !strings.Contains(out, "allowlist") {
			b.Errorf("%s: ban %s by hand: %v %s", when, addr, err, out)
		}
	}
}

// TestOwnersStayIn: what the host can't do without is never banned, and stays
// so as it changes: own addresses, gateways, DNS servers, and the names in
// ignoreip. With DNS dead the names keep their addresses, and bans go on.
func TestOwnersStayIn(t *testing.T) {
	const resolver, other = "192.0.2.53", "192.0.2.54"
	b := newBed(t, netip.MustParsePrefix(resolver+"/24"), netip.MustParsePrefix(other+"/24"))
	b.put("/etc/resolv.conf", "nameserver "+resolver+"\n")
	b.put("/etc/xdpban/xdpban.toml", "ignoreip = [\"admin.example.org\"]\nignore_gateways = true\nignore_resolvers = true\n")
	const admin, moved = "192.0.2.150", "192.0.2.151"
	dns := startDNS(b, b.attacker, resolver, nil, map[string]netip.Addr{"admin.example.org": netip.MustParseAddr(admin)})
	appendTo(t, b.server, "/var/log/auth.log", "")
	daemon := b.protect()
	b.untilAllowed(admin, "name")
	b.spared("at first", "198.51.100.1", server4, attacker4, resolver, admin)

	b.run(b.server, "ip", "addr", "add", "192.0.2.2/24", "dev", "eth0")
	b.untilAllowed("192.0.2.2", "own")
	b.run(b.server, "ip", "route", "replace", "default", "via", bystander4)
	b.untilAllowed(bystander4, "gateway")
	b.put("/etc/resolv.conf", "nameserver "+resolver+"\nnameserver "+other+"\n")
	b.untilAllowed(other, "resolver")
	dns.set("admin.example.org", netip.MustParseAddr(moved))
	b.run(b.server, program(t), "reload") // names are looked up now, and not in five minutes
	b.untilAllowed(moved, "name")
	b.spared("changed", "198.51.100.2", "192.0.2.2", bystander4, other, moved)

	// What was theirs is anybody's.
	b.run(b.server, "ip", "addr", "del", "192.0.2.2/24", "dev", "eth0")
	b.until("the address isn't our own any more", func() bool { return b.allowed()["192.0.2.2"] == "" })
	for _, addr := range []string{"192.0.2.2", admin, attacker4} {
		b.attack(addr)
	}
	if b.pings(attacker4, server4) {
		t.Error("the gateway of before is banned and gets through")
	}
	if !b.pings(bystander4, server4) {
		t.Error("the gateway doesn't get through")
	}

	dns.conn.Close()
	b.run(b.server, program(t), "reload")
	b.attack("198.51.100.3")
	b.untilProblem("look up admin.example.org of ignoreip", false)
	b.spared("with DNS dead", "198.51.100.4", moved)
	b.alive(daemon)
}
