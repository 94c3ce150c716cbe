package jails

import (
	"fmt"
	"testing"
	"time"
)

func (b *bench) report(host, source string, n int, s float64) string {
	b.t.Helper()
	return fmt.Sprint(texts(b.Reported(Report{Host: host, Jail: "sshd", Source: addr(source), Failures: n, At: at(s)}, b.now)))
}

func TestReportsCountTogetherWithOnesOwn(t *testing.T) {
	b := newBench(t, Settings{}, simple("sshd", 5))
	// Nobody has failed here: whatever others say bans nobody.
	for _, host := range []string{"web2", "web3"} {
		if got := b.report(host, "192.0.2.1", 2, 0); got != "[]" {
			t.Error(got)
		}
	}
	if got := b.report("web2", "192.0.2.2", 1000, 0); got != "[]" {
		t.Error(got)
	}
	if len(b.Changes()) > 0 {
		t.Error("what others count of strangers is to be saved")
	}
	if got := b.fail("sshd", "192.0.2.1", 60); got != "sshd 192.0.2.1 60+1h0m0s" {
		t.Errorf("the fifth failure: %q", got)
	}
	why := b.Why(addr("192.0.2.1"), b.now)
	if len(why.Bans) != 1 || why.Bans[0].Failures != 5 || fmt.Sprint(why.Bans[0].Evidence) != "[web2 counted 2 web3 counted 2 192.0.2.1 at 60]" {
		t.Errorf("why: %+v", why.Bans)
	}
	// Who has failed here is banned by what is reported.
	if got := b.fail("sshd", "192.0.2.3", 100, 101); got != "" {
		t.Error(got)
	}
	if got := b.report("web2", "192.0.2.3", 2, 102); got != "[]" {
		t.Error(got)
	}
	if got := b.report("web3", "192.0.2.3", 1, 103); got != "[sshd 192.0.2.3 101+1h0m0s]" {
		t.Error(got) // none is later than now
	}
	// Too old, too late, already answered, allowed, unknown.
	b.fail("sshd", "192.0.2.4", 1000)
	if got := b.report("web2", "192.0.2.4", 4, 300); got != "[]" {
		t.Error(got)
	}
	if got := b.report("web2", "192.0.2.3", 9, 1000); got != "[]" {
		t.Error(got)
	}
	b.SetAllowed("test", nil)
	for source, r := range map[string]Report{
		"loopback": {Host: "x", Jail: "sshd", Source: addr("127.0.0.1"), Failures: 9, At: b.now}, "a jail that isn't": {Host: "x", Jail: "nginx", Source: addr("192.0.2.4"), Failures: 9, At: b.now},
		"none": {Host: "x", Jail: "sshd", Source: addr("192.0.2.4"), Failures: 0, At: b.now},
	} {
		if got := b.Reported(r, b.now); got != nil {
			t.Errorf("%s: %v", source, got)
		}
	}
	if got := b.report("web2", "192.0.2.4", 4, 1000); got != "[sshd 192.0.2.4 1000+1h0m0s]" {
		t.Error(got)
	}
	// An unban forgives what was reported before.
	b.Unban(addr("192.0.2.4"), b.now)
	if got := b.report("web2", "192.0.2.4", 9, 999); got != "[]" {
		t.Error(got)
	}
	if got := b.fail("sshd", "192.0.2.4", 1001); got != "" {
		t.Error(got)
	}
}

func TestReportsAskTheIgnoreCommand(t *testing.T) {
	j := simple("sshd", 5)
	j.IgnoreCommand = []string{"/bin/ours", "<ip>"}
	b := newBench(t, Settings{}, j)
	b.fail("sshd", "192.0.2.1", 0)
	if got := b.report("web2", "192.0.2.1", 9, 0); got != "[]" {
		t.Error("banned without asking: " + got)
	}
	if !b.MayBan("sshd", failure("192.0.2.1", 1)) {
		t.Error("the next failure bans, and nobody is asked")
	}
	if got := b.fail("sshd", "192.0.2.1", 1); got != "sshd 192.0.2.1 0+1h0m0s" {
		t.Error(got) // since five had failed
	}
}

// TestReportsAreBounded: a host that reports everybody takes only its own room.
func TestReportsAreBounded(t *testing.T) {
	b := newBench(t, Settings{MaxTracked: 10}, simple("sshd", 5))
	b.report("good", "192.0.2.1", 4, 0)
	b.fail("sshd", "192.0.2.2", 0)
	for i := range maxReports + 1000 {
		b.report("evil", fmt.Sprintf("2001:db8:%x:%x::/64", i>>16, i&0xffff), 4, 0)
	}
	if n := len(b.reports.of); n > maxReports || b.reports.len > maxReports {
		t.Errorf("%d sources, %d reports are kept", n, b.reports.len)
	}
	if got := b.fail("sshd", "192.0.2.1", 1); got != "sshd 192.0.2.1 1+1h0m0s" {
		t.Errorf("what another host reported was pushed out: %q", got)
	}
	if s := b.Stats(); s.Tracked != 1 || s.Evicted != 0 {
		t.Errorf("own windows gave way: %+v", s)
	}
	b.now = at(0).Add(11 * time.Minute)
	b.Expire(b.now, 10)
	if len(b.reports.of)+b.reports.len+len(b.reports.queues) > 0 {
		t.Errorf("old reports are kept: %d", len(b.reports.of))
	}
}
