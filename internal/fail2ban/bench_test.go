package fail2ban

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"xdpban/jails"
	"xdpban/matcher"
)

// authLog writes lines of an auth log, a share of them failures, each with a
// user, address, port and time of its own.
func authLog(lines int, failures float64) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	var b strings.Builder
	at := time.Date(2026, 11, 24, 0, 0, 0, 0, time.UTC)
	for range lines {
		at = at.Add(time.Duration(r.IntN(800)) * time.Millisecond)
		ip := fmt.Sprintf("198.51.%d.%d", r.IntN(256), r.IntN(256))
		user, pid, port := fmt.Sprintf("u%x", r.IntN(1<<20)), 1000+r.IntN(60000), 1024+r.IntN(64000)
		fmt.Fprintf(&b, "%s host ", at.Format("Jan _2 15:04:05"))
		kind := 3 + r.IntN(5)
		if r.Float64() < failures {
			kind = r.IntN(3)
		}
		switch kind {
		case 0:
			fmt.Fprintf(&b, "sshd[%d]: Failed password for %s from %s port %d ssh2\n", pid, user, ip, port)
		case 1:
			fmt.Fprintf(&b, "sshd[%d]: Failed password for invalid user %s from %s port %d ssh2\n", pid, user, ip, port)
		case 2:
			fmt.Fprintf(&b, "sshd[%d]: Invalid user %s from %s port %d\n", pid, user, ip, port)
		case 3:
			fmt.Fprintf(&b, "sshd[%d]: Accepted publickey for %s from %s port %d ssh2: ED25519 SHA256:%x\n", pid, user, ip, port, r.Uint64())
		case 4:
			fmt.Fprintf(&b, "sshd[%d]: pam_unix(sshd:session): session opened for user %s(uid=%d) by (uid=0)\n", pid, user, port)
		case 5:
			fmt.Fprintf(&b, "CRON[%d]: pam_unix(cron:session): session closed for user %s\n", pid, user)
		case 6:
			fmt.Fprintf(&b, "sudo:   %s : TTY=pts/1 ; PWD=/home/%s ; USER=root ; COMMAND=/usr/bin/id %d\n", user, user, port)
		case 7:
			fmt.Fprintf(&b, "systemd-logind[%d]: New session %d of user %s.\n", pid, port, user)
		}
	}
	return []byte(b.String())
}

// BenchmarkStock reads an auth log by fail2ban's sshd, converted, and by all
// of its jails.
func BenchmarkStock(b *testing.B) {
	installed(b)
	c, err := Open(os.DirFS("/"), stockDir).ConvertAll(true, nil, func(int, int) {})
	if err != nil {
		b.Fatal(err)
	}
	var one, all []*matcher.Compiled
	for _, j := range c.Jails {
		files := map[string][]byte{"00-defaults": c.Shared, j.Name: j.TOML}
		dir := b.TempDir()
		if err := os.Mkdir(dir+"/"+jails.JailFolder, 0o755); err != nil {
			b.Fatal(err)
		}
		for name, text := range files {
			if err := os.WriteFile(dir+"/"+jails.JailFolder+"/"+name+".toml", text, 0o644); err != nil {
				b.Fatal(err)
			}
		}
		conf, problems := jails.Load(nil, dir)
		if len(problems) > 0 {
			b.Fatal(problems)
		}
		if f := conf.Jails[0].Filter; f != nil {
			all = append(all, f)
			if j.Name == "sshd" {
				one = append(one, f)
			}
		}
	}
	log := authLog(100_000, .3)
	cpu := func() time.Duration {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	for _, x := range []struct {
		name    string
		filters []*matcher.Compiled
	}{{"sshd", one}, {"all", all}} {
		b.Run(x.name, func(b *testing.B) {
			s := matcher.NewSet(matcher.SetOptions{Location: time.UTC}, x.filters...)
			start, n := cpu(), 0
			for b.Loop() {
				s.Scan(log, time.Date(2026, 11, 25, 0, 0, 0, 0, time.UTC), func(*matcher.Failure) { n++ })
			}
			b.ReportMetric(100_000*float64(b.N)/(cpu()-start).Seconds()/1e6, "Mlines/cpu-s")
			b.ReportMetric(float64(n)/float64(b.N), "failures")
			b.ReportMetric(float64(len(x.filters)), "filters")
		})
	}
}
