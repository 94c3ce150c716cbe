package jails

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"testing"
	"time"
)

// TestTrackRecord: a track is read back as it was, whatever is in its lines.
func TestTrackRecord(t *testing.T) {
	hostile := "\"\\ \x00\x1b[2J\x7f\u2028<b>&\u00e9\n\t\U0001f600"
	entries := []entry{{1, 1, hostile, hostile}, {2, 3, hostile, ""}, {3, 1, "other", "x"}, {4, 1, "", "y"}}
	for i, tr := range []track{
		{},
		{window: entries, strikes: 2, braked: true},
		{ban: &ban{since: -5, pattern: hostile, decided: entries, index: -1}},
		{window: entries[1:], ban: &ban{since: 7, until: 8, strikes: 1, failures: 9, evidence: []string{"", hostile, "z"}, from: hostile,
			standing: true, observed: true, fixed: true, bulk: true, index: -1}},
	} {
		text := tr.marshal()
		if !json.Valid(text) {
			t.Errorf("%d: not JSON: %s", i, text)
			continue
		}
		tr.jail, tr.prefix = &jail{name: "a"}, netip.MustParsePrefix("192.0.2.1/32")
		j := NewJudge(&Config{Jails: []Jail{{Name: "a", FindTime: time.Hour}}})
		if err := j.Restore([]Record{{KindOffender, "a 192.0.2.1/32", text}}, time.Unix(0, 10)); err != nil {
			t.Errorf("%d: %v", i, err)
			continue
		}
		got := j.jails["a"].tracks[tr.prefix]
		if i == 0 {
			if got != nil {
				t.Errorf("nothing was read back as %+v", got)
			}
			continue
		}
		if !reflect.DeepEqual(got.window, tr.window) || got.strikes != tr.strikes || got.braked != tr.braked || (got.ban == nil) != (tr.ban == nil) {
			t.Errorf("%d: %s read back as %+v", i, text, got)
		}
		if got.ban != nil {
			got.ban.index = -1
			if !reflect.DeepEqual(got.ban, tr.ban) {
				t.Errorf("%d: %s: ban read back as %+v", i, text, got.ban)
			}
		}
	}
}

func BenchmarkTrackRecord(b *testing.B) {
	line := "2026-11-24T11:59:58.500000+00:00 host sshd[42]: Failed password for invalid user admin from 192.0.2.1 port 40022 ssh2"
	pattern := "^Failed (?:password|publickey|none) for (?:invalid user )?<F-USER>.*</F-USER> from <HOST>(?: port \\d+)?(?: ssh\\d*)?$"
	tr := track{window: []entry{{1795967467717343502, 1, pattern, line}, {1795967467717343503, 1, pattern, line}, {1795967467717343504, 1, pattern, line}}}
	for b.Loop() {
		tr.marshal()
	}
}
