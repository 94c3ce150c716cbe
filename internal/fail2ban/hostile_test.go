package fail2ban

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"xdpban/jails"
	"xdpban/matcher"
)

// TestKnownBacktracking: lines on which fail2ban's filters for Domino and
// Dovecot keep Python busy for ever (its advisory GHSA-33wh-ccjc-p397) are read
// to their end, none is skipped, and what follows them still counts.
func TestKnownBacktracking(t *testing.T) {
	installed(t)
	for _, c := range []struct{ filter, evil, good string }{
		{"domino-smtp", "01-01-2026 12:00:00   smtp: " + strings.Repeat("a ", 30_000) + "!",
			"01-01-2026 12:00:00   smtp: example.org [192.0.2.1] authentication failure using internet password"},
		{"dovecot", "2026-01-01 12:00:00 dovecot: imap-login: Disconnected" + strings.Repeat(": a", 20_000),
			"2026-01-01 12:00:00 dovecot: imap-login: Disconnected (auth failed, 3 attempts): user=<x>, method=PLAIN, rip=192.0.2.1, lip=192.0.2.2, TLS"},
		{"dovecot", "2026-01-01 12:00:00 dovecot: imap-login: Aborted login" + strings.Repeat(": a(b) c", 7_000) + " (",
			"2026-01-01 12:00:00 dovecot: imap-login: Aborted login (auth failed, 1 attempts): user=<x>, method=PLAIN, rip=192.0.2.1, lip=192.0.2.2"},
	} {
		set := stockSet(t, c.filter, Options{})
		var got []string
		set.Scan([]byte(c.evil+"\n"+c.good+"\n"), time.Now(), func(f *matcher.Failure) { got = append(got, f.Source.String()) })
		if s := set.Stats(); s.Skipped != 0 || s.TooLong != 0 || len(got) != 1 || got[0] != "192.0.2.1/32" {
			t.Errorf("%s: %+v, failures %q", c.filter, s, got)
		}
	}
}

// stockSet converts one of Debian's filters and loads what came of it.
func stockSet(t *testing.T, name string, given Options) *matcher.Set {
	t.Helper()
	tree := Open(os.DirFS("/"), stockDir)
	f, err := tree.Filter(name, given)
	if err != nil {
		t.Fatal(err)
	}
	out, err := tree.Convert(&Jail{
		Name: "x", Enabled: true, Filter: f, Options: Options{}.With("logpath", "/var/log/x"),
		Actions: []Action{{Name: "iptables-allports"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	conf := load(t, &Conversion{Jails: []*Converted{out}})
	j, ok := conf.Jail("x")
	if !ok {
		t.Fatal("no jail x")
	}
	return matcher.NewSet(matcher.SetOptions{Location: time.UTC}, j.Filter)
}

// TestNoLineHangs blows the lines up that fail2ban's filters are made for: a
// part of each is repeated many times. Every
// filter gets through its own, within its steps or by skipping some.
func TestNoLineHangs(t *testing.T) {
	logs := filepath.Join(installed(t), "tests/files/logs")
	files, err := filepath.Glob(stockDir + "/filter.d/*.conf")
	if err != nil || len(files) == 0 {
		t.Fatalf("no filters: %v", err)
	}
	var lines, skipped uint64
	for _, f := range files {
		name := strings.TrimSuffix(filepath.Base(f), ".conf")
		samples, err := os.ReadFile(filepath.Join(logs, name))
		if err != nil {
			continue // a common.conf
		}
		set := stockSet(t, name, Options{})
		n := 0
		for line := range strings.Lines(string(samples)) {
			line = strings.TrimSpace(line)
			if line == "" || line[0] == '#' {
				continue
			}
			if n++; n > 5 {
				break
			}
			words := strings.SplitAfter(line, " ")
			for _, at := range []int{len(words) / 2, len(words) - 1} {
				for _, part := range []string{words[at], "a ", ": a"} {
					many := strings.Repeat(part, max(0, 15_000-len(line))/len(part))
					evil := strings.Join(words[:at], "") + many + strings.Join(words[at:], "") + "!"
					set.Scan([]byte(evil+"\n"), time.Now(), func(*matcher.Failure) {})
				}
			}
		}
		s := set.Stats()
		lines += s.Lines
		skipped += s.Skipped
		if s.Skipped > 0 {
			t.Logf("%s: %d of %d lines skipped", name, s.Skipped, s.Lines)
		}
	}
	t.Logf("%d lines, %d skipped", lines, skipped)
}

// TestExecutesNothing: whatever a configuration holds that fail2ban, Python or
// a shell would run is text here. It ends in an error or a note, or does no
// harm as the text of a file.
func TestExecutesNothing(t *testing.T) {
	dir := t.TempDir()
	marker := filepath.Join(dir, "executed")
	python := fmt.Sprintf(`__import__('os').system('touch %s')`, marker)
	shell := fmt.Sprintf("`touch %s`$(touch %s);touch %s|touch %s", marker, marker, marker, marker)
	write := func(name, text string) {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	options := []string{
		"bantime", "findtime", "maxretry", "maxmatches", "bantime.factor", "bantime.formula", "bantime.multipliers", "bantime.maxtime", "bantime.rndtime",
		"ignoreip", "ignorecommand", "ignorecache", "logpath", "logencoding", "logtimezone", "backend", "usedns", "action", "banaction", "port", "filter",
		"failregex", "ignoreregex", "prefregex", "datepattern", "maxlines", "journalmatch",
	}
	conf := "[DEFAULT]\nfilter = x\nlogpath = /var/log/x\nbantime.increment = true\naction = y\n"
	for i, o := range options {
		for k, code := range []string{python, shell} {
			conf += fmt.Sprintf("[jail-%d-%d]\nenabled = true\n%s = %s\n", i, k, o, code)
		}
	}
	write("jail.conf", conf)
	write("filter.d/x.conf", "[Definition]\nfailregex = ^x <HOST>$\n")
	write("action.d/y.conf", "[Definition]\nactionban = "+shell+"\nactionstart = "+python+"\n")
	write("action.d/z.py", "import os\nos.system('touch "+marker+"')\n")
	write("jail.local", "[with-python]\nenabled = true\naction = z.py[x=\"1\"]\n")
	c, err := Open(os.DirFS("/"), dir).ConvertAll(true, nil, func(int, int) {})
	if err != nil {
		t.Fatal(err)
	}
	if _, problems := jails.Load(nil, writeAll(t, c)); len(problems) > 0 {
		t.Error(problems)
	}
	if _, err := os.Stat(marker); err == nil {
		t.Fatal("something was executed")
	}
	failed := map[string]string{}
	for _, f := range c.Failed {
		failed[f.Name] = f.Err.Error()
	}
	// What would be eval'ed by fail2ban is refused, by name and line.
	for i, o := range options {
		switch o {
		case "bantime", "findtime", "maxretry", "bantime.factor", "bantime.formula", "bantime.maxtime", "bantime.rndtime":
			for k := range 2 {
				name := fmt.Sprintf("jail-%d-%d", i, k)
				if got := failed[name]; !strings.Contains(got, dir+"/jail.conf:") || !strings.Contains(got, o+": ") {
					t.Errorf("%s = code: %q", o, got)
				}
			}
		}
	}
}
