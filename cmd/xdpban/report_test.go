package main

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"
	"time"

	"xdpban/internal/control"
	"xdpban/jails"
)

func nowhere(netip.Addr) jails.Place { return jails.Place{} }

// TestReportPlaces: where the offenders are is summed up as far as it is known.
func TestReportPlaces(t *testing.T) {
	until := time.Date(2026, 5, 8, 12, 0, 0, 0, time.UTC)
	var events []control.Event
	for _, p := range []string{"192.0.2.1/32", "192.0.2.2/32", "2001:db8::/64", "203.0.113.1/32"} {
		events = append(events, control.Event{Time: until.Add(-time.Hour), Kind: "ban", Ban: control.Ban{Prefix: netip.MustParsePrefix(p), Jail: "sshd", Since: until.Add(-time.Hour)}})
	}
	r := newReport(events, nil, until.Add(-24*time.Hour), until, 10, func(a netip.Addr) jails.Place {
		switch a.String() {
		case "192.0.2.1", "192.0.2.2":
			return jails.Place{Country: "DE", ASN: 64500, Network: "<b>Example"}
		case "2001:db8::":
			return jails.Place{ASN: 64501}
		}
		return jails.Place{}
	})
	var text, page bytes.Buffer
	printReport(&text, r)
	for _, want := range []string{
		"COUNTRY    BANS  ADDRESSES  PACKETS  BYTES  LAST", "DE         2     2          0        0      2026-05-08 11:00:00  █████\n", "not known  2     2",
		"SYSTEM              BANS", "AS64500 <b>Example  2 ", "AS64501             1 ", "not known           1 ",
	} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in\n%s", want, &text)
		}
	}
	if err := reportTemplate().Execute(&page, r); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"<h2>Countries</h2>", "<td>DE</td>", "<td>AS64500 &lt;b&gt;Example</td>", `<rect width="50"`} {
		if !strings.Contains(page.String(), want) {
			t.Errorf("no %q in\n%s", want, &page)
		}
	}
}

func TestReport(t *testing.T) {
	until := time.Date(2026, 5, 8, 12, 0, 0, 0, time.UTC)
	since := until.Add(-7 * 24 * time.Hour)
	ban := func(p, jail string, at time.Time, packets uint64) control.Ban {
		return control.Ban{Prefix: netip.MustParsePrefix(p), Jail: jail, Since: at, Packets: packets, Bytes: packets * 60}
	}
	first, second := since.Add(time.Hour), since.Add(50*time.Hour)
	hostile := "<b>\x1b[2J"
	events := []control.Event{
		{Time: first, Kind: "ban", Ban: ban("203.0.113.9/32", "sshd", first, 10)},
		{Time: first.Add(time.Hour), Kind: "expire", Ban: ban("203.0.113.9/32", "sshd", first, 10)},
		{Time: second, Kind: "ban", Ban: ban("203.0.113.9/32", "sshd", second, 0)},
		{Time: second, Kind: "ban", Ban: ban("203.0.113.8/32", hostile, second, 5)},
		{Time: second, Kind: "observe", Ban: ban("203.0.113.7/32", "sshd", second, 0)},
		{Time: second, Kind: "ban", Ban: ban("2001:db8:1:2::/64", "sshd", second, 0)},
		{Time: second.Add(time.Hour), Kind: "unban", Ban: ban("203.0.113.8/32", hostile, second, 5)},
	}
	standing := []control.Ban{
		ban("203.0.113.9/32", "sshd", second, 100),
		ban("2001:db8:1:2::/64", "sshd", second.Add(-time.Minute), 1000), // another one
	}
	r := newReport(events, standing, since, until, 1, nowhere)
	if r.Bans != 4 || r.Addresses != 3 || r.Unbans != 1 || r.Standing != 2 || r.Packets != 115 || r.Bytes != 115*60 {
		t.Errorf("%+v", r)
	}
	if len(r.Times) != 28 || r.Times[0].Bans != 1 || r.Times[8].Bans != 3 || r.Most() != 3 {
		t.Errorf("times %+v", r.Times)
	}
	row := func(rows []reportRow, n int, name string, bans, addresses int, packets uint64) {
		t.Helper()
		if len(rows) != n || rows[0].Name != name || rows[0].Bans != bans || rows[0].Addresses != addresses || rows[0].Packets != packets || !rows[0].Last.Equal(second) {
			t.Errorf("%+v", rows)
		}
	}
	row(r.Jails, 2, "sshd", 3, 2, 110)
	row(r.Networks, 1, "203.0.0.0/16", 3, 2, 115)
	row(r.Offenders, 1, "203.0.113.9", 2, 1, 110)

	var b bytes.Buffer
	printReport(&b, r)
	for _, want := range []string{"4 bans of 3 addresses, 1 unban by hand; 2 bans now", "115 packets dropped, 6,900 bytes", " ██████████████████████████████████████████████████ 3\n", "  ███████\n", `<b>\x1b[2J  1 `} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, &b)
		}
	}
	b.Reset()
	r.Host = "<i>host"
	if err := reportTemplate().Execute(&b, r); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"<title>xdpban on &lt;i&gt;host</title>", `<td>&lt;b&gt;\x1b[2J</td>`, `height="115"`, "203.0.0.0/16"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, &b)
		}
	}
	if s := b.String(); strings.Contains(s, "<b>") || strings.Contains(s, "\x1b") || strings.Contains(s, "http:") || strings.Contains(s, "https:") {
		t.Errorf("the page isn't harmless:\n%s", s)
	}

	b.Reset()
	printReport(&b, newReport(nil, nil, since, until, 10, nowhere))
	if !strings.Contains(b.String(), "0 bans of 0 addresses") {
		t.Errorf("of nothing: %s", &b)
	}
	b.Reset()
	if err := reportTemplate().Execute(&b, newReport(nil, nil, since, until, 10, nowhere)); err != nil {
		t.Error(err)
	}
}
