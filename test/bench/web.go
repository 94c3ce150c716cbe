package main

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

var webTable = table{
	name:  "web-log",
	title: "Find the offenders in a web server's access log of 1,000,000 lines by three jails, on one core",
	goal:  "200 × fail2ban-regex",
	unit:  "lines/s", more: true,
	run: runWeb,
}

// webFilters are fail2ban's, which xdpban has converted: so both are to find
// exactly the same.
var webFilters = []string{"nginx-botsearch", "nginx-bad-request", "apache-nohome"}

// webLog is an access log. A fiftieth of its lines are failures.
func makeWebLog(path string, lines int) (map[netip.Addr]int, error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	w := bufio.NewWriter(f)
	r := rand.New(rand.NewPCG(3, 4))
	const span = 30 * time.Minute
	start := time.Now().Add(-span)
	found := map[netip.Addr]int{}
	good := []string{"/", "/index.html", "/static/app.%x.js", "/img/%x.png", "/api/v1/items/%x", "/search?q=%x", "/wp-content/themes/%x/style.css", "/login?next=/%x"}
	agents := []string{"Mozilla/5.0 (X11; Linux x86_64; rv:%d.0) Gecko/20100101 Firefox/%[1]d.0", "Mozilla/5.0 (compatible; Bot/%d; +https://example.org/bot)", "curl/7.%d.0"}
	bad := []string{"/phpmyadmin/index%x.php", "/wp-login.php?u=%x", "/cgi-bin/test%x", "/roundcube/%x", "/pma/x%x"}
	text := func(form string) string {
		return strings.ReplaceAll(form, "%x", strconv.FormatInt(int64(r.IntN(1<<24)), 16))
	}
	for i := range lines {
		at := start.Add(span / time.Duration(lines) * time.Duration(i)).UTC().Format("02/Jan/2006:15:04:05 -0700")
		agent := fmt.Sprintf(agents[r.IntN(len(agents))], 60+r.IntN(80))
		switch {
		case i%100 == 0:
			a := benchAddr(r.IntN(4000))
			found[a]++
			fmt.Fprintf(w, "%s - - [%s] \"GET %s HTTP/1.1\" 404 %d \"-\" \"%s\"\n", a, at, text(bad[r.IntN(len(bad))]), 100+r.IntN(900), agent)
		case i%100 == 50:
			a := benchAddr(r.IntN(4000))
			found[a]++
			fmt.Fprintf(w, "%s - - [%s] \"\\x16\\x03\\x01%x\" 400 157 \"-\" \"-\"\n", a, at, r.Uint32())
		default:
			status := []int{200, 200, 200, 200, 304, 302, 404}[r.IntN(7)]
			fmt.Fprintf(w, "%s - - [%s] \"GET %s HTTP/1.1\" %d %d \"https://example.org/%x\" \"%s\"\n",
				benchAddr(100_000+r.IntN(30_000)), at, text(good[r.IntN(len(good))]), status, r.IntN(100_000), r.IntN(1<<20), agent)
		}
	}
	if err := w.Flush(); err != nil {
		return nil, err
	}
	return found, f.Close()
}

func runWeb(b *bench) error {
	lines, slice := b.scale(1_000_000), b.scale(50_000)
	want, err := makeWebLog(b.path("access.log"), lines)
	if err != nil {
		return err
	}
	// fail2ban gets a twentieth: the whole would take it minutes a round.
	wantSlice, err := makeWebLog(b.path("slice.log"), slice)
	if err != nil {
		return err
	}
	config, _, err := b.convertAll()
	if err != nil {
		return err
	}
	if found, err := b.failuresOf(config, b.path("access.log"), webFilters...); err != nil {
		return err
	} else if err := same("xdpban test", found, want); err != nil {
		return err
	}
	own := filepath.Join(b.dir, "own")
	if err := os.MkdirAll(own, 0o755); err != nil {
		return err
	}
	return b.compare(
		contender{name: "xdpban", run: func() (figures, error) {
			_, s, err := b.replay(config, b.path("access.log"), webFilters...)
			if err != nil {
				return nil, err
			}
			return s.perSecond(lines), nil
		}},
		contender{name: "xdpban,_its_own_web_jails", run: func() (figures, error) {
			_, s, err := b.replay(own, b.path("access.log"), "nginx-scan", "nginx-bad-request", "web-login")
			if err != nil {
				return nil, err
			}
			return s.perSecond(lines), nil
		}},
		contender{name: "fail2ban-regex_(50,000_lines)", rarely: true, run: func() (figures, error) {
			all := map[netip.Addr]int{}
			var total spent
			for _, filter := range webFilters {
				found, s, err := b.fail2banRegex(b.path("slice.log"), filter)
				if err != nil {
					return nil, err
				}
				for a, n := range found {
					all[a] += n
				}
				total.cpu += s.cpu
			}
			if err := same("fail2ban-regex", all, wantSlice); err != nil {
				return nil, err
			}
			return total.perSecond(slice), nil
		}},
	)
}
