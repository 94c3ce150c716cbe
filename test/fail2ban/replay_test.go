// Package fail2ban compares what xdpban would have banned with what a real
// fail2ban bans.
package fail2ban

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"xdpban/internal/lab"
)

const python = "/usr/bin/python3" // the interpreter of Debian's package

var jailLogs = []struct{ jail, log string }{
	{"sshd", "auth.log"}, {"nginx-http-auth", "error.log"}, {"nginx-botsearch", "error.log"}, {"postfix", "mail.log"},
	{"helper", "app.log"},
}

// scene is a configuration and logs, for both systems.
type scene struct {
	dir, config, program string
}

// ban is a ban by either.
type ban struct {
	jail, addr string
	since      time.Time // to the second: fail2ban has no more
}

func (b ban) String() string {
	return fmt.Sprintf("%s %s %s", b.since.UTC().Format(time.DateTime), b.jail, b.addr)
}

// newScene writes logs that end at end and go back by span, and fail2ban's
// stock configuration with the jails that read them.
func newScene(t *testing.T, end time.Time, span time.Duration, findtime, bantime string) *scene {
	t.Helper()
	if _, err := exec.LookPath("fail2ban-server"); err != nil {
		t.Skip("fail2ban is not installed")
	}
	s := &scene{dir: t.TempDir()}
	s.config = filepath.Join(s.dir, "fail2ban")
	if err := os.CopyFS(s.config, os.DirFS("/etc/fail2ban")); err != nil {
		t.Fatal(err)
	}
	// The machine's own additions don't belong to the scene.
	if err := os.RemoveAll(filepath.Join(s.config, "jail.d")); err != nil {
		t.Fatal(err)
	}
	local := fmt.Sprintf("[DEFAULT]\nbackend = polling\nmaxretry = 4\nfindtime = %s\nbantime = %s\nignoreself = false\n"+
		"banaction = nftables\naction = nothing\n         %%(action_)s\n", findtime, bantime)
	for _, j := range jailLogs {
		local += fmt.Sprintf("[%s]\nenabled = true\nbackend = polling\nlogpath = %s\n", j.jail, filepath.Join(s.dir, j.log))
	}
	s.write(t, "fail2ban/jail.local", local)
	s.write(t, "fail2ban/action.d/nothing.conf", "[Definition]\n")
	// The server counts lines of <F-NOFAIL> that belong to no session.
	s.write(t, "fail2ban/filter.d/helper.conf", "[Definition]\nfailregex = ^ app: (?:<F-NOFAIL>key</F-NOFAIL>|password) refused for <ADDR>$\n")
	// Nothing may touch the machine's firewall: the action that the
	// conversion knows as a blocking one does nothing here.
	s.write(t, "fail2ban/action.d/nftables.conf", "[Definition]\n[Init]\nport = 0\n")
	for name, lines := range generate(end, span) {
		s.write(t, name, lines)
	}

	s.program = filepath.Join(s.dir, "xdpban")
	build := exec.Command("go", "build", "-buildvcs=false", "-o", s.program, "xdpban/cmd/xdpban")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build xdpban: %v\n%s", err, out)
	}
	return s
}

func (s *scene) write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func run(t *testing.T, program string, args ...string) []byte {
	t.Helper()
	var errs bytes.Buffer
	cmd := exec.Command(program, args...)
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", program, args, err, errs.String())
	}
	return out
}

// replayed converts the configuration and replays the logs.
func (s *scene) replayed(t *testing.T) []ban {
	t.Helper()
	config := filepath.Join(s.dir, "etc")
	run(t, s.program, "convert", "fail2ban", s.config, "-o", config)
	args := []string{"replay", "--json", "--config", config}
	var logs []string
	for _, j := range jailLogs {
		args = append(args, "--jail", j.jail)
		if p := filepath.Join(s.dir, j.log); !slices.Contains(logs, p) {
			logs = append(logs, p)
		}
	}
	args = append(args, logs...)
	var result struct {
		Bans []struct {
			Prefix, Jail string
			Since        time.Time
		}
	}
	if err := json.Unmarshal(run(t, s.program, args...), &result); err != nil {
		t.Fatal(err)
	}
	var bans []ban
	for _, b := range result.Bans {
		addr, _, _ := strings.Cut(b.Prefix, "/")
		if b.Jail != "recidive" { // xdpban's own shipped jail, of bans
			bans = append(bans, ban{b.Jail, addr, b.Since.Truncate(time.Second)})
		}
	}
	return bans
}

// served lets a real fail2ban-server read the logs and asks it whom it has
// banned.
func (s *scene) served(t *testing.T) []ban {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	common := []string{"-c", s.config, "-s", filepath.Join(s.dir, "sock"), "-p", filepath.Join(s.dir, "pid")}
	logFile := filepath.Join(s.dir, "fail2ban.log")
	server := exec.CommandContext(ctx, "fail2ban-server", append(common, "-xf", "--logtarget", logFile, "start")...)
	s.write(t, "fail2ban/fail2ban.local", "[Definition]\ndbfile = None\n")
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	stopped := make(chan error, 1)
	go func() { stopped <- server.Wait() }()
	said := func() string {
		b, _ := os.ReadFile(logFile)
		return string(b)
	}
	err := lab.Until(ctx, "the last ban of each jail", func() bool {
		for _, j := range jailLogs {
			if !strings.Contains(said(), "["+j.jail+"] Ban "+sentinel) {
				return false
			}
		}
		return true
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, said())
	}
	var bans []ban
	line := regexp.MustCompile(`(?m)^(\S+) +\t(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) \+`)
	for _, j := range jailLogs {
		out := run(t, "fail2ban-client", append(slices.Clone(common), "get", j.jail, "banip", "--with-time")...)
		for _, m := range line.FindAllStringSubmatch(string(out), -1) {
			at, err := time.ParseInLocation(time.DateTime, m[2], time.Local)
			if err != nil {
				t.Fatal(err)
			}
			bans = append(bans, ban{j.jail, m[1], at})
		}
	}
	run(t, "fail2ban-client", append(slices.Clone(common), "stop")...)
	<-stopped
	return bans
}

// clocked asks fail2ban's own code what a server that had been there all
// along would have counted and banned.
func (s *scene) clocked(t *testing.T) (bans, failures []ban) {
	t.Helper()
	args := []string{"testdata/clock.py", s.config}
	for _, j := range jailLogs {
		args = append(args, j.jail+"="+filepath.Join(s.dir, j.log))
	}
	type event struct {
		Jail, Addr string
		Since      float64
	}
	var all struct{ Bans, Failures []event }
	if err := json.Unmarshal(run(t, python, args...), &all); err != nil {
		t.Fatal(err)
	}
	for _, b := range all.Bans {
		bans = append(bans, ban{b.Jail, b.Addr, time.Unix(int64(b.Since), 0)})
	}
	for _, f := range all.Failures {
		failures = append(failures, ban{f.Jail, f.Addr, time.Unix(int64(f.Since), 0)})
	}
	return bans, failures
}

// sliding is the rule itself, as plainly as it can be written: so many
// failures within findtime ban, and those of a banned address don't count.
func sliding(failures []ban, maxretry int, findtime, bantime time.Duration) (bans []ban) {
	type offender struct{ jail, addr string }
	counted := map[offender][]time.Time{}
	until := map[offender]time.Time{}
	for _, f := range failures {
		o := offender{f.jail, f.addr}
		if f.since.Before(until[o]) {
			continue
		}
		c := append(counted[o], f.since)
		if n := len(c) - maxretry; n >= 0 && f.since.Sub(c[n]) < findtime {
			bans, c = append(bans, f), nil
			until[o] = f.since.Add(bantime)
		}
		counted[o] = c
	}
	return bans
}

// differ gives the bans that only one of the two has, in order.
func differ(a, b []ban) (onlyA, onlyB []ban) {
	count := map[string]int{}
	for _, x := range b {
		count[x.String()]++
	}
	for _, x := range a {
		if count[x.String()]--; count[x.String()] < 0 {
			onlyA = append(onlyA, x)
			count[x.String()] = 0
		}
	}
	for _, x := range b {
		if count[x.String()] > 0 {
			count[x.String()]--
			onlyB = append(onlyB, x)
		}
	}
	order := func(x, y ban) int {
		return cmp.Or(cmp.Compare(x.jail, y.jail), cmp.Compare(x.addr, y.addr), x.since.Compare(y.since))
	}
	slices.SortFunc(onlyA, order)
	slices.SortFunc(onlyB, order)
	return onlyA, onlyB
}

// TestReplayAsServer: on the same logs and settings a real fail2ban-server
// and xdpban replay name the same addresses, by the same lines.
func TestReplayAsServer(t *testing.T) {
	// fail2ban starts by leaving out what is older than its findtime, so all
	// of the logs is younger.
	s := newScene(t, time.Now().Add(-time.Minute), 50*time.Minute, "2h", "1d")
	ours, theirs := s.replayed(t), s.served(t)
	onlyOurs, onlyTheirs := differ(ours, theirs)
	for _, b := range onlyOurs {
		t.Errorf("xdpban alone: %s", b)
	}
	for _, b := range onlyTheirs {
		t.Errorf("fail2ban alone: %s", b)
	}
	t.Logf("xdpban %d bans, fail2ban %d, %d the same", len(ours), len(theirs), len(ours)-len(onlyOurs))
	if len(ours) < 40 {
		t.Errorf("only %d bans: the logs prove little", len(ours))
	}
}

// TestReplayAsRule: over a day, with windows and bans that end, xdpban replay
// counts what fail2ban's filters count and bans by the rule; fail2ban itself
// estimates: a failure outside of findtime thins out those before it by the
// rate that they came at. Each difference is shown.
func TestReplayAsRule(t *testing.T) {
	const maxretry, findtime, bantime = 4, 20 * time.Minute, 40 * time.Minute
	s := newScene(t, time.Now().Add(-time.Minute), 24*time.Hour, "20m", "40m")
	ours := s.replayed(t)
	theirs, failures := s.clocked(t)
	rule := sliding(failures, maxretry, findtime, bantime)
	onlyOurs, onlyRule := differ(ours, rule)
	for _, b := range onlyOurs {
		t.Errorf("not by the rule: %s", b)
	}
	for _, b := range onlyRule {
		t.Errorf("missed by xdpban: %s", b)
	}
	if len(ours) < 40 {
		t.Errorf("only %d bans: the logs prove little", len(ours))
	}

	within := func(b ban) int {
		n := 0
		for _, f := range failures {
			if f.jail == b.jail && f.addr == b.addr && !f.since.After(b.since) && b.since.Sub(f.since) < findtime {
				n++
			}
		}
		return n
	}
	onlyOurs, onlyTheirs := differ(ours, theirs)
	for _, b := range onlyOurs {
		t.Logf("xdpban alone:   %s, %d failures within findtime", b, within(b))
	}
	for _, b := range onlyTheirs {
		t.Logf("fail2ban alone: %s, %d failures within findtime", b, within(b))
	}
	t.Logf("%d failures; xdpban %d bans, fail2ban %d, %d the same", len(failures), len(ours), len(theirs), len(ours)-len(onlyOurs))
}

// TestTestAsRegex: xdpban test counts each line as fail2ban-regex does.
func TestTestAsRegex(t *testing.T) {
	s := newScene(t, time.Now().Add(-time.Minute), 50*time.Minute, "2h", "1d")
	config := filepath.Join(s.dir, "etc")
	run(t, s.program, "convert", "fail2ban", s.config, "-o", config)
	summary := regexp.MustCompile(`Lines: (\d+) lines, (\d+) ignored, (\d+) matched, (\d+) missed`)
	for _, j := range jailLogs {
		filter := map[string]string{"postfix": "postfix[mode=more]", "nginx-http-auth": "nginx-http-auth[mode=normal]"}[j.jail]
		if j.jail == "helper" {
			continue // there the server counts what fail2ban-regex doesn't
		}
		log := filepath.Join(s.dir, j.log)
		out := run(t, "fail2ban-regex", "-c", s.config, log, cmp.Or(filter, j.jail))
		m := summary.FindSubmatch(out)
		if m == nil {
			t.Fatalf("fail2ban-regex: %s", out)
		}
		var got struct{ Lines, Ignored, Matched, Missed int }
		if err := json.Unmarshal(run(t, s.program, "test", "--json", "--config", config, "--jail", j.jail, log), &got); err != nil {
			t.Fatal(err)
		}
		ours := fmt.Sprintf("%d lines, %d ignored, %d matched, %d missed", got.Lines, got.Ignored, got.Matched, got.Missed)
		if theirs := fmt.Sprintf("%s lines, %s ignored, %s matched, %s missed", m[1], m[2], m[3], m[4]); ours != theirs {
			t.Errorf("%s: xdpban %s; fail2ban-regex %s", j.jail, ours, theirs)
		} else {
			t.Logf("%s: %s", j.jail, ours)
		}
	}
}
