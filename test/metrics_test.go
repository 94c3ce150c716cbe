package test

import (
	"encoding/json"
	"io"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"
)

// needPrograms skips a test that has nothing to test with.
func needPrograms(t *testing.T, names ...string) {
	t.Helper()
	for _, n := range names {
		if _, err := exec.LookPath(n); err != nil {
			t.Skipf("needs %s: make deps installs it", n)
		}
	}
}

// TestMonitoring: a real Prometheus scrapes a daemon under attack; every query
// of the dashboard finds something, every alert's expression is evaluated and
// every metric in it is there. Before that the port is held by somebody else,
// which is told and keeps the daemon from nothing.
func TestMonitoring(t *testing.T) {
	needPrograms(t, "prometheus", "promtool")
	if out, err := exec.Command("promtool", "check", "rules", "../packaging/monitoring/alerts.yml").CombinedOutput(); err != nil {
		t.Fatalf("promtool: %v\n%s", err, out)
	}
	b := newBed(t)
	var held net.Listener
	if err := b.server.In(func() (err error) {
		held, err = net.Listen("tcp", "127.0.0.1:9477")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	b.put("/etc/xdpban/xdpban.toml", "metrics = \"127.0.0.1:9477\"\nweb = \"127.0.0.1:9478\"\n")
	appendTo(t, b.server, "/var/log/auth.log", failure(time.Now(), "192.0.2.200"))
	b.protect()
	b.untilProblem("metrics isn't served: listen tcp 127.0.0.1:9477: bind: address already in use", false)
	b.attack(attacker4)
	b.untilBanned(attacker4)
	if err := held.Close(); err != nil {
		t.Fatal(err)
	}
	b.untilProblem("metrics isn't served", true)

	// The page's port is another, and was there all the time.
	var page net.Conn
	if err := b.server.In(func() (err error) {
		page, err = net.Dial("tcp", "127.0.0.1:9478")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer page.Close()
	if _, err := io.WriteString(page, "GET /api/now HTTP/1.0\r\nHost: localhost\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if said, err := io.ReadAll(page); err != nil || !strings.Contains(string(said), `"prefix":"`+attacker4+`/32","jail":"sshd"`) {
		t.Errorf("the page is told %q, %v", said, err)
	}

	rules, err := os.ReadFile("../packaging/monitoring/alerts.yml")
	if err != nil {
		t.Fatal(err)
	}
	b.put("/srv/alerts.yml", string(rules))
	b.put("/srv/prometheus.yml", `
global: { scrape_interval: 500ms, scrape_timeout: 400ms, evaluation_interval: 500ms }
scrape_configs:
  - job_name: xdpban
    static_configs: [ { targets: ["127.0.0.1:9477"] } ]
rule_files: [ /srv/alerts.yml ]
`)
	prometheus, err := b.server.Start("prometheus.service", nil, "prometheus", "--config.file=/srv/prometheus.yml", "--storage.tsdb.path=/srv/tsdb", "--web.listen-address=127.0.0.1:9090")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("prometheus said:\n%s", prometheus.Output())
		}
	})
	query := func(expr string) (string, error) {
		out, err := b.server.Run(b.ctx, "promtool", "query", "instant", "http://127.0.0.1:9090", expr)
		return strings.TrimSpace(out), err
	}
	b.until("the scrape shows what was dropped since", func() bool {
		b.pings(attacker4, server4)
		out, err := query(`rate(xdpban_jail_dropped_packets_total{jail="sshd"}[1m]) > 0 and on (jail) xdpban_bans_active == 1`)
		return err == nil && out != ""
	})
	if out, err := query(`{instance=~".+",__name__=~"xdpban_.+"}`); err != nil || strings.Contains(out, attacker4) {
		t.Errorf("labels with addresses: %v\n%s", err, out)
	}
	for _, expr := range dashboard(t) {
		if out, err := query(expr); err != nil || out == "" {
			t.Errorf("dashboard: %s gives %q, %v", expr, out, err)
		}
	}
	exprs := regexp.MustCompile(`(?m)^ +expr: (.*)$`).FindAllStringSubmatch(string(rules), -1)
	if len(exprs) < 5 {
		t.Fatalf("alerts.yml has %d expressions", len(exprs))
	}
	for _, m := range exprs {
		if out, err := query(m[1]); err != nil || out != "" {
			t.Errorf("alert %s on a healthy host: %q, %v", m[1], out, err)
		}
		for _, name := range regexp.MustCompile(`xdpban_\w+`).FindAllString(m[1], -1) {
			if out, err := query(name); err != nil || out == "" {
				t.Errorf("alert %s: there is no %s: %v", m[1], name, err)
			}
		}
	}
	b.run(b.server, "promtool", "check", "config", "/srv/prometheus.yml")
}

// dashboard lists the dashboard's queries, as Grafana would send them.
func dashboard(t *testing.T) (exprs []string) {
	t.Helper()
	text, err := os.ReadFile("../packaging/monitoring/dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	for _, p := range d.Panels {
		if len(p.Targets) == 0 {
			t.Errorf("dashboard: %s has no query", p.Title)
		}
		for _, q := range p.Targets {
			exprs = append(exprs, strings.NewReplacer("$__rate_interval", "1m", "$instance", ".*").Replace(q.Expr))
		}
	}
	return exprs
}
