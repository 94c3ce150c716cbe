package fleet

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"xdpban/jails"
)

func TestABanReachesAllAndItsEndToo(t *testing.T) {
	url := serve(t, &server.Options{}).ClientURL()
	evidence := func(f *jails.Fleet) { f.Evidence = true }
	a, b, c := newNode(t, "a", url, evidence), newNode(t, "b", url, nil), newNode(t, "c", url, nil)
	for _, n := range []*node{a, b, c} {
		n.untilSynced()
	}
	made := a.ban("192.0.2.66", time.Hour)
	a.ban("2001:db8:66::/64", time.Hour)
	for _, n := range []*node{b, c} {
		got := n.untilBanned("192.0.2.66")
		if got.From != "a/sshd" || !got.Until.Equal(made.Until.Truncate(time.Millisecond)) || got.Failures != 3 ||
			len(got.Evidence) != 1 || got.Evidence[0] != "a: "+made.Evidence[0] {
			t.Errorf("got %+v, want a's ban %+v", got, made)
		}
		n.untilBanned("2001:db8:66::/64")
	}
	b.ban("192.0.2.66", 2*time.Hour)
	if got := b.f.Status(); got.Hosts[0].Host != "a" {
		t.Errorf("hosts: %+v", got.Hosts)
	}
	c.until("b's ban counts too", func() bool { return c.bans[jails.ByFleet][prefix("192.0.2.66")].From == "a/sshd, b/sshd" })
	a.untilBanned("192.0.2.66") // b's
	a.unbanOwn("192.0.2.66")
	c.until("b's ban goes on alone", func() bool { return c.bans[jails.ByFleet][prefix("192.0.2.66")].From == "b/sshd" })
	if got := a.untilBanned("192.0.2.66"); got.From != "b/sshd" {
		t.Errorf("on a b's ban is %+v", got)
	}
	b.unban("192.0.2.66")
	for _, n := range []*node{a, b, c} {
		n.untilFree("192.0.2.66")
	}
	c.untilBanned("2001:db8:66::/64")
	if v := a.bans[jails.ByFleet]; len(v) != 0 {
		t.Errorf("a bans its own again: %v", v)
	}
}

func TestWhatIsNotShared(t *testing.T) {
	url := serve(t, &server.Options{}).ClientURL()
	a := newNode(t, "a", url, nil)
	b := newNode(t, "b", url, func(f *jails.Fleet) { f.Subscribe = []string{"nginx"} })
	c := newNode(t, "c", url, func(f *jails.Fleet) { f.MaxBan = time.Minute })
	c.allowed = append(c.allowed, prefix("192.0.2.0/24"))
	for _, n := range []*node{a, b, c} {
		n.untilSynced()
	}
	manual := jails.Ban{Prefix: prefix("203.0.113.1"), Jail: "manual", Since: time.Now()}
	a.f.Banned(manual)
	a.ban("192.0.2.66", time.Hour)
	a.ban("198.51.100.1", jails.Forever)
	// Keys arrive in order: what came before is decided.
	got := c.untilBanned("198.51.100.1")
	if left := time.Until(got.Until); left > time.Minute {
		t.Errorf("a ban without an end lasts %s, but max_ban is a minute", left)
	}
	c.until("the allowlist wins, and is counted", func() bool { return c.f.Status().Refused == 1 })
	b.until("b has heard of them", func() bool { return b.f.Status().Received == 2 })
	if len(b.bans[jails.ByFleet]) > 0 || len(c.bans[jails.ByFleet]) > 1 {
		t.Errorf("b bans %v and c bans %v", b.bans, c.bans)
	}
}

func TestAlone(t *testing.T) {
	options := &server.Options{}
	s := serve(t, options)
	url := s.ClientURL()
	a, b := newNode(t, "a", url, nil), newNode(t, "b", url, nil)
	a.untilSynced()
	b.untilSynced()
	a.ban("192.0.2.1", time.Hour)
	a.ban("192.0.2.2", time.Hour)
	b.ban("192.0.2.3", time.Hour)
	b.untilBanned("192.0.2.1")
	b.untilBanned("192.0.2.2")
	a.untilBanned("192.0.2.3")

	s.Shutdown()
	s.WaitForShutdown()
	a.untilProblem("bans made here go on")
	a.unban("192.0.2.1")
	a.ban("192.0.2.4", time.Hour)
	b.unban("192.0.2.2") // a's ban: b's operator wants him here
	b.ban("192.0.2.5", time.Hour)
	// One of them is restarted meanwhile: what waits isn't in its memory only.
	a.stop()
	a.start("a", url, nil)
	a.untilProblem("bans made here go on")

	serve(t, options)
	b.untilBanned("192.0.2.4")
	b.untilFree("192.0.2.1")
	a.untilBanned("192.0.2.5")
	a.untilBanned("192.0.2.3")
	a.untilSynced()
	b.untilSynced()
	b.untilFree("192.0.2.2")
	a.until("no problem is left", func() bool { return len(a.problems) == 0 })

	// The unban at b outlives b's restart, and ends with a new ban.
	b.until("it is written down", func() bool { b.f.mu.Lock(); defer b.f.mu.Unlock(); return len(b.f.saves) == 0 })
	b.stop()
	b.start("b", url, nil)
	b.untilSynced()
	b.untilBanned("192.0.2.4")
	b.untilFree("192.0.2.2")
	a.ban("192.0.2.2", 2*time.Hour)
	b.untilBanned("192.0.2.2")
}

func TestTheBucketIsLost(t *testing.T) {
	options := &server.Options{}
	s := serve(t, options)
	url := s.ClientURL()
	a, b := newNode(t, "a", url, nil), newNode(t, "b", url, nil)
	a.untilSynced()
	b.untilSynced()
	for i := range 100 {
		a.ban(fmt.Sprintf("192.0.2.%d", i+1), time.Hour)
	}
	b.untilBanned("192.0.2.100")
	s.Shutdown()
	s.WaitForShutdown()
	options.StoreDir = t.TempDir()
	serve(t, options)
	c := newNode(t, "c", url, nil)
	for i := range 100 {
		c.untilBanned(fmt.Sprintf("192.0.2.%d", i+1))
		b.untilBanned(fmt.Sprintf("192.0.2.%d", i+1))
	}
}

func TestAJoiningHost(t *testing.T) {
	url := serve(t, &server.Options{}).ClientURL()
	a := newNode(t, "a", url, nil)
	a.untilSynced()
	const n = 5000
	for i := range n {
		a.ban(fmt.Sprintf("2001:db8:%x::/48", i), time.Hour)
	}
	a.until("all are sent", func() bool { return a.f.Status().Published == n })
	b := newNode(t, "b", url, nil)
	b.until("b has them all", func() bool { return len(b.bans[jails.ByFleet]) == n })
}

func TestARoguePeer(t *testing.T) {
	url := serve(t, &server.Options{}).ClientURL()
	limits := func(f *jails.Fleet) { f.PeerBansPerMin, f.PeerBans = 10, 20 }
	a, b := newNode(t, "a", url, limits), newNode(t, "b", url, limits)
	a.untilSynced()
	b.untilSynced()
	r := newRogue(t, "evil", url)
	minute := time.Now().Truncate(time.Minute)
	now := time.Now().UnixMilli()
	for i, bad := range []string{
		"", "{", "null", `{"v":0,"j":"sshd","s":1}`, `{"v":2,"j":"sshd","s":1}`, `{"v":1,"j":"a b","s":1}`, `{"v":1,"j":"sshd","s":-1}`,
		`{"v":1,"j":"sshd","s":9,"u":8}`, `{"v":1,"j":"sshd","s":1,"u":9223372036854775807}`,
	} {
		r.ban(fmt.Sprintf("198.51.100.%d", i+1), bad) // a key that is written again may be read once
	}
	good := fmt.Sprintf(`{"v":1,"j":"sshd","s":%d,"u":%d}`, now, now+3_600_000)
	for _, wide := range []string{"198.51.0.0/16", "2001:db8::/32", "127.0.0.1", "224.0.0.1", "fe80::1"} {
		r.ban(wide, good)
	}
	for _, key := range []string{"ban.evil.c6336401", "ban.evil.zz-32", "ban.evil.c6336401-24", "ban.evil.x.c6336401-32", "ban.evil.C6336402-32"} {
		r.write(key, good)
	}
	for i := range 30 {
		r.ban(fmt.Sprintf("203.0.113.%d", i+1), good)
	}
	a.ban("192.0.2.9", time.Hour)
	b.untilBanned("192.0.2.9") // all of the above has been read
	s := b.f.Status()
	want := map[string]uint64{"value": 6, "old_schema": 2, "new_schema": 1, "too_wide": 2, "address": 3, "key": 5, "too_many": 10}
	if fmt.Sprint(s.Rejected) != fmt.Sprint(want) {
		t.Errorf("rejected %v, want %v", s.Rejected, want)
	}
	most := 11 // a's and ten of the rogue's in a minute
	if !time.Now().Truncate(time.Minute).Equal(minute) {
		most = 21
	}
	b.mu.Lock()
	if n := len(b.bans[jails.ByFleet]); n < 11 || n > most {
		t.Errorf("%d banned, want at most %d: %v", n, most, b.bans)
	}
	b.mu.Unlock()
	if h := s.Hosts[1]; h.Host != "evil" || h.Bans != 20 || h.Held < 21-most || h.Held > 10 {
		t.Errorf("of the rogue: %+v", h)
	}
	b.untilProblem("newer form")

	if err := b.f.Eject("evil", false); err != nil {
		t.Fatal(err)
	}
	b.until("the rogue's bans end", func() bool { return len(b.bans[jails.ByFleet]) == 1 })
	b.until("it is written down", func() bool { b.f.mu.Lock(); defer b.f.mu.Unlock(); return len(b.f.saves) == 0 })
	b.stop()
	b.start("b", url, limits)
	b.untilSynced()
	b.untilBanned("192.0.2.9")
	if n := len(b.bans[jails.ByFleet]); n != 1 {
		t.Errorf("an ejected host is heeded after a restart: %v", b.bans)
	}
	if err := b.f.Eject("evil", true); err != nil {
		t.Fatal(err)
	}
	b.until("it is heeded again", func() bool { return len(b.bans[jails.ByFleet]) >= 11 })
}

func TestQuorum(t *testing.T) {
	url := serve(t, &server.Options{}).ClientURL()
	two := func(f *jails.Fleet) { f.Quorum = 2 }
	a, b, c := newNode(t, "a", url, two), newNode(t, "b", url, two), newNode(t, "c", url, two)
	for _, n := range []*node{a, b, c} {
		n.untilSynced()
	}
	a.ban("192.0.2.1", time.Hour)
	short := b.ban("192.0.2.2", time.Minute)
	a.ban("192.0.2.2", time.Hour)
	got := c.untilBanned("192.0.2.2")
	if !got.Until.Equal(short.Until.Truncate(time.Millisecond)) {
		t.Errorf("banned until %s, but only until %s two want it", got.Until, short.Until)
	}
	c.until("it has heard of all", func() bool { return c.f.Status().Received == 3 })
	if len(c.bans[jails.ByFleet]) != 1 {
		t.Errorf("banned though one host alone wants it: %v", c.bans)
	}
	b.unban("192.0.2.2")
	c.untilFree("192.0.2.2")
}

// TestFailuresAreCountedInTheFleet: two tries on each host are many. Who is seen
// on one host only isn't banned for what others say.
func TestFailuresAreCountedInTheFleet(t *testing.T) {
	url := serve(t, &server.Options{}).ClientURL()
	const hosts = 50
	var all []*node
	for i := range hosts {
		n := newNode(t, fmt.Sprintf("web%d", i), url, func(f *jails.Fleet) { f.SharedFailures, f.PeerBansPerMin = true, 1000 })
		n.judge = jails.NewJudge(&jails.Config{Jails: []jails.Jail{{Name: "sshd", Enabled: true, MaxRetry: 5, FindTime: 10 * time.Minute, BanTime: time.Hour}}})
		all = append(all, n)
	}
	for _, n := range all {
		n.untilSynced()
	}
	// One after the other: the third host is the last that he tries.
	for _, n := range all[:3] {
		n.fail("192.0.2.1")
		n.fail("192.0.2.1")
		for _, other := range all {
			if other != n {
				other.until("it has heard of them", func() bool {
					sum := 0
					for _, r := range other.reported {
						if r.Host == n.f.o.Settings.Host {
							sum += r.Failures
						}
					}
					_, banned := n.held("192.0.2.1")
					return sum == 2 || banned
				})
			}
		}
	}
	if b, ok := all[2].held("192.0.2.1"); !ok || b.Failures < 5 {
		t.Errorf("the third host: %+v, %v", b, ok)
	}
	for i, n := range all {
		if _, here := n.held("192.0.2.1"); here && i > 2 {
			t.Errorf("host %d bans who never came to it", i)
		}
		if i != 2 {
			n.until("he is banned", func() bool {
				_, here := n.bans["sshd"][prefix("192.0.2.1")]
				_, there := n.bans[jails.ByFleet][prefix("192.0.2.1")]
				return here || there
			})
		}
	}
	// On all at once.
	for _, n := range all {
		n.fail("192.0.2.2")
		n.fail("192.0.2.2")
	}
	for _, n := range all {
		n.until("he is banned", func() bool {
			_, here := n.bans["sshd"][prefix("192.0.2.2")]
			_, there := n.bans[jails.ByFleet][prefix("192.0.2.2")]
			return here || there
		})
	}
}

func TestARogueCounts(t *testing.T) {
	url := serve(t, &server.Options{}).ClientURL()
	n := newNode(t, "a", url, func(f *jails.Fleet) { f.SharedFailures, f.Subscribe = true, []string{"sshd"} })
	n.untilSynced()
	r := newRogue(t, "evil", url)
	now := time.Now().UnixMilli()
	say := func(text string) {
		if err := r.nc.Publish("xdpban.web.failures.evil", []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	one := func(jail, source string, n int) string {
		return fmt.Sprintf(`{"j":%q,"p":%q,"n":%d,"t":%d}`, jail, source, n, now)
	}
	for _, bad := range []string{
		"", "{", "null", `{"v":2,"f":[]}`, `{"v":1,"f":[` + strings.Repeat(one("sshd", "192.0.2.1/32", 1)+",", 1000) + one("sshd", "192.0.2.1/32", 1) + `]}`,
	} {
		say(bad)
	}
	for _, bad := range []string{
		one("", "192.0.2.1/32", 1), one("a b", "192.0.2.1/32", 1), one("sshd", "192.0.2.1/24", 1), one("sshd", "192.0.2.1/32", 0), one("sshd", "192.0.2.1/32", 100000),
		`{"j":"sshd","n":1,"t":1}`, `{"j":"sshd","p":"192.0.2.1/32","n":1,"t":-1}`,
	} {
		say(`{"v":1,"f":[` + bad + `]}`)
	}
	for _, bad := range []string{one("sshd", "192.0.0.0/16", 1), one("sshd", "127.0.0.1/32", 1), one("nginx", "192.0.2.1/32", 1)} {
		say(`{"v":1,"f":[` + bad + `]}`)
	}
	say(`{"v":1,"f":[` + one("sshd", "192.0.2.9/32", 3) + `]}`)
	n.until("the good one is there", func() bool { return len(n.reported) > 0 })
	if got := n.reported; len(got) != 1 || got[0].Host != "evil" || got[0].Source != prefix("192.0.2.9") || got[0].Failures != 3 {
		t.Errorf("reported: %+v", got)
	}
	if got, want := fmt.Sprint(n.f.Status().Rejected), fmt.Sprint(map[string]uint64{"value": 12, "too_wide": 1, "address": 1}); got != want {
		t.Errorf("rejected %s, want %s", got, want)
	}
	if err := n.f.Eject("evil", false); err != nil {
		t.Fatal(err)
	}
	say(`{"v":1,"f":[` + one("sshd", "192.0.2.10/32", 3) + `]}`)
	n.until("an ejected host isn't heard", func() bool { return n.f.Status().Rejected["ejected"] == 1 })
}

func TestBadServers(t *testing.T) {
	secret := serve(t, &server.Options{Username: "u", Password: "p"}).ClientURL()
	n := newNode(t, "a", secret, nil)
	n.untilProblem("Authorization Violation")
	n = newNode(t, "a", "nats://127.0.0.1:1", nil)
	n.untilProblem("nats://127.0.0.1:1: dial tcp 127.0.0.1:1: connect: connection refused")
	n = newNode(t, "a", secret, func(f *jails.Fleet) { f.NKey = "/nowhere/nkey" })
	n.untilProblem("read nkey /nowhere/nkey")
	n = newNode(t, "a", secret, func(f *jails.Fleet) { f.Creds = "/nowhere/creds" })
	n.untilProblem("/nowhere/creds")
	// Local bans were never asked.
	n.ban("192.0.2.1", time.Hour)
}

func TestServerVersions(t *testing.T) {
	for version, old := range map[string]bool{"2.10.22": true, "1.4.1": true, "2.11.0": false, "2.15.2-dev": false, "3.0.0": false, "": false, "x": false} {
		if tooOld(version) != old {
			t.Errorf("%q: %v", version, !old)
		}
	}
}

// TestNoJetStream: a server without the store says so.
func TestNoJetStream(t *testing.T) {
	o := &server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, NoLog: true, NoSigs: true}
	s, err := server.NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	defer s.WaitForShutdown()
	defer s.Shutdown()
	if !s.ReadyForConnections(patience) {
		t.Fatal("the NATS server doesn't start")
	}
	n := newNode(t, "a", s.ClientURL(), nil)
	n.untilProblem("JetStream is off there")
	n.ban("192.0.2.1", time.Hour)
}
