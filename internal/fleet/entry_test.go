package fleet

import (
	"strings"
	"testing"
	"time"

	"xdpban/jails"
)

func TestAnEntryFits(t *testing.T) {
	b := jails.Ban{Prefix: prefix("192.0.2.1"), Jail: "sshd", Since: time.Now()}
	for range 20 {
		b.Evidence = append(b.Evidence, strings.Repeat("\x01", 512))
	}
	value, err := entryOf(b, true).encode()
	if err != nil || len(value) > maxValue {
		t.Errorf("%d bytes, %v", len(value), err)
	}
	if _, why := parseEntry(value); why != "" {
		t.Error(why)
	}
}

// FuzzEntry: whatever a peer writes is refused, or is a ban that can be
// written again the same.
func FuzzEntry(f *testing.F) {
	for _, s := range []string{
		"ban.web1.c0000201-32", "ban.web1.20010db8000000000000000000000000-48", "ban.web1.c0000201-24", "ban..c0000201-32",
		"ban.web1.00000000000000000000ffffc0000201-128", "ban.web1.-0",
	} {
		f.Add(s, []byte(`{"v":1,"j":"sshd","s":1764092828123,"u":1764096428123,"f":5,"e":["Failed password"]}`))
	}
	f.Add("ban.web1.c0000201-32", []byte(`{"v":1,"j":"sshd","s":1,"u":99999999999999999999}`))
	f.Fuzz(func(t *testing.T, key string, value []byte) {
		if host, p, err := parseKey(key); err == nil && (Key(host, p) != key || !jails.FleetName(host)) {
			t.Errorf("key %q of host %q and %s", key, host, p)
		}
		conf := jails.Fleet{Name: "web", Host: "self", Subscribe: []string{"*"}, MaxBan: time.Hour, Quorum: 1, PeerBans: 10, PeerBansPerMin: 10, Widest4: 24, Widest6: 48}
		table := newTable(conf)
		now := time.Unix(1764092829, 0)
		why := table.take(key, value, now, now)
		bans, over, _ := table.diff(now, 10, true)
		for _, b := range bans {
			if why != "" || b.Over(now) || b.Until.After(now.Add(time.Hour)) || b.Since.After(now) || jails.Bannable(b.Prefix) != nil {
				t.Errorf("%q: %s gave %+v", key, value, b)
			}
		}
		if len(over) > 0 {
			t.Errorf("%q ends %v", key, over)
		}
	})
}

// FuzzReports: whatever a peer tells of failures is refused, or is about a
// stranger, in a number and at a time that can be counted with.
func FuzzReports(f *testing.F) {
	f.Add("web2", []byte(`{"v":1,"f":[{"j":"sshd","p":"192.0.2.1/32","n":2,"t":1764092828123}]}`))
	f.Add("web2", []byte(`{"v":1,"f":[{"j":"sshd","p":"2001:db8::/48","n":2,"t":1},{"j":"","p":"","n":0}]}`))
	f.Add("a b", []byte(`{"v":1,"f":[]}`))
	f.Fuzz(func(t *testing.T, name string, text []byte) {
		table := newTable(jails.Fleet{Name: "web", Host: "self", Subscribe: []string{"*"}, MaxBan: time.Hour, Quorum: 1, PeerBans: 10, Widest4: 24, Widest6: 48})
		for _, r := range table.reports(name, text, time.Unix(1764092829, 0)) {
			if !jails.FleetName(r.Host) || r.Jail == "" || r.Failures < 1 || r.Failures > maxFailures || r.At.Unix() < 0 ||
				r.Source != r.Source.Masked() || jails.Bannable(r.Source) != nil || r.Source.Bits() < 24 {
				t.Errorf("%q, %q gave %+v", name, text, r)
			}
		}
	})
}
