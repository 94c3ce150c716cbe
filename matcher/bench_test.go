package matcher

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"
)

// sshdLog writes lines of an auth log, a share of them failures, each with a
// user, address, port and time of its own.
func sshdLog(lines int, failures float64, stamp string) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	var b bytes.Buffer
	at := time.Date(2026, 11, 24, 0, 0, 0, 0, time.UTC)
	for range lines {
		at = at.Add(time.Duration(r.IntN(800)) * time.Millisecond)
		date := at.Format(stamp)
		pid, port := 1000+r.IntN(60000), 1024+r.IntN(64000)
		ip := fmt.Sprintf("%d.%d.%d.%d", 1+r.IntN(223), r.IntN(256), r.IntN(256), r.IntN(256))
		user := fmt.Sprintf("u%x", r.IntN(1<<20))
		if r.Float64() < failures {
			switch r.IntN(4) {
			case 0:
				fmt.Fprintf(&b, "%s host sshd[%d]: Failed password for %s from %s port %d ssh2\n", date, pid, user, ip, port)
			case 1:
				fmt.Fprintf(&b, "%s host sshd[%d]: Failed password for invalid user %s from %s port %d ssh2\n", date, pid, user, ip, port)
			case 2:
				fmt.Fprintf(&b, "%s host sshd[%d]: Invalid user %s from %s port %d\n", date, pid, user, ip, port)
			default:
				fmt.Fprintf(&b, "%s host sshd[%d]: Connection closed by authenticating user %s %s port %d [preauth]\n", date, pid, user, ip, port)
			}
			continue
		}
		switch r.IntN(6) {
		case 0:
			fmt.Fprintf(&b, "%s host sshd[%d]: Accepted publickey for %s from %s port %d ssh2: ED25519 SHA256:%x\n", date, pid, user, ip, port, r.Uint64())
		case 1:
			fmt.Fprintf(&b, "%s host sshd[%d]: pam_unix(sshd:session): session opened for user %s(uid=%d) by (uid=0)\n", date, pid, user, port)
		case 2:
			fmt.Fprintf(&b, "%s host sshd[%d]: Received disconnect from %s port %d:11: disconnected by user\n", date, pid, ip, port)
		case 3:
			fmt.Fprintf(&b, "%s host CRON[%d]: pam_unix(cron:session): session closed for user %s\n", date, pid, user)
		case 4:
			fmt.Fprintf(&b, "%s host sudo:   %s : TTY=pts/1 ; PWD=/home/%s ; USER=root ; COMMAND=/usr/bin/id %d\n", date, user, user, port)
		default:
			fmt.Fprintf(&b, "%s host systemd-logind[%d]: New session %d of user %s.\n", date, pid, port, user)
		}
	}
	return b.Bytes()
}

func sshdFilter(t testing.TB) *Compiled {
	return compile(t, Filter{Name: "sshd", Programs: []string{"sshd", "sshd-session"}, Failregex: []string{
		sshdFailed,
		`^Invalid user <F-USER>.*</F-USER> from <ADDR>(?: port \d+)?$`,
		`^Connection (?:closed|reset) by (?:authenticating|invalid) user <F-USER>.*</F-USER> <ADDR> port \d+ \[preauth\]$`,
		`^error: maximum authentication attempts exceeded for (?:invalid user )?<F-USER>.*</F-USER> from <ADDR> port \d+ ssh2 \[preauth\]$`,
		`^User <F-USER>\S+</F-USER> from <ADDR> not allowed because (?:listed in DenyUsers|not listed in AllowUsers|account is locked)$`,
		`^Unable to negotiate with <ADDR> port \d+: no matching .* found`,
		`^banner exchange: Connection from <ADDR> port \d+: invalid format$`,
		`^Did not receive identification string from <ADDR>(?: port \d+)?$`,
	}})
}

// cpu is the time this process has computed: on a busy machine it says more
// than the clock.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

const (
	syslogStamp = "Jan _2 15:04:05"
	isoStamp    = "2006-01-02T15:04:05.000000-07:00"
)

func benchScan(b *testing.B, log []byte, filters ...*Compiled) {
	s := NewSet(SetOptions{Location: time.UTC}, filters...)
	n := 0
	lines := bytes.Count(log, newline)
	b.SetBytes(int64(len(log)))
	b.ReportAllocs()
	b.ResetTimer()
	start := cpu()
	for b.Loop() {
		for rest := log; len(rest) > 0; {
			block := rest[:min(len(rest), 64<<10)]
			block = block[:bytes.LastIndexByte(block, '\n')+1]
			s.Scan(block, noon, func(*Failure) { n++ })
			rest = rest[len(block):]
		}
	}
	b.ReportMetric(float64(lines)*float64(b.N)/b.Elapsed().Seconds()/1e6, "Mlines/s")
	b.ReportMetric(float64(lines)*float64(b.N)/(cpu()-start).Seconds()/1e6, "Mlines/cpu-s")
	b.ReportMetric(float64(n)/float64(b.N), "failures")
}

func BenchmarkSyslogDates(b *testing.B) {
	benchScan(b, sshdLog(200000, .3, syslogStamp), sshdFilter(b))
}
func BenchmarkISODates(b *testing.B) { benchScan(b, sshdLog(200000, .3, isoStamp), sshdFilter(b)) }
func BenchmarkNoFailures(b *testing.B) {
	benchScan(b, sshdLog(200000, 0, syslogStamp), sshdFilter(b))
}

// The limits: finding the line ends, and one string.
func BenchmarkLineEnds(b *testing.B) {
	log := sshdLog(200000, .3, syslogStamp)
	b.SetBytes(int64(len(log)))
	for b.Loop() {
		for rest := log; len(rest) > 0; {
			rest = rest[bytes.IndexByte(rest, '\n')+1:]
		}
	}
	b.ReportMetric(200000*float64(b.N)/b.Elapsed().Seconds()/1e6, "Mlines/s")
}

func BenchmarkOneString(b *testing.B) {
	log := sshdLog(200000, 0, syslogStamp)
	b.SetBytes(int64(len(log)))
	for b.Loop() {
		if bytes.Contains(log, []byte("Failed password")) {
			b.Fatal("found")
		}
	}
	b.ReportMetric(200000*float64(b.N)/b.Elapsed().Seconds()/1e6, "Mlines/s")
}
