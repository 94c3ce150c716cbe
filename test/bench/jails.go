package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

var jailsTable = table{
	name:  "all-jails",
	title: "The same log with all shipped jails, and with all of fail2ban's, on one core",
	goal:  "half of one jail's speed, and 0.8 million lines/s",
	unit:  "lines/s", more: true,
	run: runJails,
}

func runJails(b *bench) error {
	log, err := makeAuthLog(b.path("auth.log"), 200_000, 30)
	if err != nil {
		return err
	}
	one, err := b.sshdConfig()
	if err != nil {
		return err
	}
	shipped, err := b.jailNames(one)
	if err != nil {
		return err
	}
	converted, names, err := b.convertAll()
	if err != nil {
		return err
	}
	with := func(name, config string, jails []string) contender {
		return contender{name: name, run: func() (figures, error) {
			bans, s, err := b.replay(config, log.path, jails...)
			if err != nil {
				return nil, err
			}
			// Others may find more than sshd's jail, never less.
			for p := range log.banned {
				if !bans[p] {
					return nil, fmt.Errorf("%s isn't banned", p)
				}
			}
			return s.perSecond(log.lines), nil
		}}
	}
	fmt.Printf("  %d jails shipped, %d of fail2ban's\n", len(shipped), len(names))
	return b.compare(
		with("xdpban", one, []string{"sshd"}),
		with(fmt.Sprintf("xdpban,_all_%d_jails", len(shipped)), one, shipped),
		with(fmt.Sprintf("xdpban,_%d_of_fail2ban's_filters", len(names)), converted, names),
	)
}

// jailNames are the jails that read lines.
func (b *bench) jailNames(config string) ([]string, error) {
	out, _, err := b.time(b.command(b.xdpban, "check", "--json", "--config", config))
	if err != nil {
		return nil, err
	}
	var res struct{ Jails []string }
	if err := json.Unmarshal(out, &res); err != nil {
		return nil, fmt.Errorf("what check said: %w: %s", err, out)
	}
	var names []string
	for _, j := range res.Jails {
		if j != "recidive" {
			names = append(names, j)
		}
	}
	return names, nil
}

// convertAll has xdpban convert all of fail2ban's stock filters.
func (b *bench) convertAll() (config string, names []string, err error) {
	from, config := b.path("fail2ban"), b.path("converted")
	if err := os.CopyFS(from, os.DirFS("/etc/fail2ban")); err != nil {
		return "", nil, err
	}
	filters, err := filepath.Glob(filepath.Join(from, "filter.d", "*.conf"))
	if err != nil {
		return "", nil, err
	}
	var jails strings.Builder
	fmt.Fprintf(&jails, "[DEFAULT]\nmaxretry = 5\nfindtime = 1h\nbantime = 1h\naction = \n")
	for _, path := range filters {
		name := strings.TrimSuffix(filepath.Base(path), ".conf")
		text, err := os.ReadFile(path)
		if err != nil {
			return "", nil, err
		}
		if name == "recidive" || !strings.Contains(string(text), "failregex") {
			continue
		}
		fmt.Fprintf(&jails, "[%s]\nenabled = true\nfilter = %s\nlogpath = /var/log/%s.log\n", name, name, name)
	}
	if err := os.RemoveAll(filepath.Join(from, "jail.d")); err != nil {
		return "", nil, err
	}
	if err := os.WriteFile(filepath.Join(from, "jail.conf"), []byte(jails.String()), 0o644); err != nil {
		return "", nil, err
	}
	if err := os.MkdirAll(config, 0o755); err != nil {
		return "", nil, err
	}
	// It says what it can't carry over and ends with 1 then.
	_, _, err = b.time(b.command("sh", "-c", `"$0" convert fail2ban "$1" --out "$2" >"$2.log" 2>&1 || [ $? = 1 ]`, b.xdpban, from, config))
	if err != nil {
		return "", nil, err
	}
	files, err := filepath.Glob(filepath.Join(config, "jail.d", "*.toml"))
	if err != nil {
		return "", nil, err
	}
	for _, path := range files {
		text, err := os.ReadFile(path)
		if err != nil {
			return "", nil, err
		}
		if name := strings.TrimSuffix(filepath.Base(path), ".toml"); strings.Contains(string(text), "failregex") {
			names = append(names, name)
		}
	}
	return config, names, nil
}
