package fail2ban

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// sentinel is banned by the last lines of each log.
const sentinel = "203.0.113.254"

// generate writes logs of an sshd, an nginx and a postfix: attackers of every
// pace, people who mistype, and noise, in lines such as those daemons write.
func generate(end time.Time, span time.Duration) map[string]string {
	r := rand.New(rand.NewPCG(3, 2))
	type line struct {
		at   time.Time
		text string
	}
	var auth, web, mail, app []line
	begin := end.Add(-span).Truncate(time.Second)
	syslog := func(to *[]line, at time.Time, tag, format string, args ...any) {
		*to = append(*to, line{at, at.Format("Jan _2 15:04:05") + " host " + tag + ": " + fmt.Sprintf(format, args...)})
	}
	nginx := func(at time.Time, addr, format string, args ...any) {
		web = append(web, line{at, at.Format("2006/01/02 15:04:05") + " [error] 31#31: *5 " + fmt.Sprintf(format, args...) +
			fmt.Sprintf(`, client: %s, server: example.org, request: "GET /wp-login.php HTTP/1.1", host: "example.org"`, addr)})
	}
	pid := 1000
	// One attempt of each kind, as the daemons log it.
	ssh := func(at time.Time, addr, user string) {
		pid++
		tag := fmt.Sprintf("sshd[%d]", pid)
		port := 1024 + r.IntN(60000)
		switch r.IntN(6) {
		case 0:
			syslog(&auth, at, tag, "Invalid user %s from %s port %d", user, addr, port)
			syslog(&auth, at.Add(time.Second), tag, "Failed password for invalid user %s from %s port %d ssh2", user, addr, port)
			syslog(&auth, at.Add(2*time.Second), tag, "Connection closed by invalid user %s %s port %d [preauth]", user, addr, port)
		case 1:
			syslog(&auth, at, tag, "pam_unix(sshd:auth): authentication failure; logname= uid=0 euid=0 tty=ssh ruser= rhost=%s  user=root", addr)
			syslog(&auth, at.Add(time.Second), tag, "Failed password for root from %s port %d ssh2", addr, port)
			syslog(&auth, at.Add(time.Second), tag, "Received disconnect from %s port %d:11: Bye Bye [preauth]", addr, port)
			syslog(&auth, at.Add(time.Second), tag, "Disconnected from authenticating user root %s port %d [preauth]", addr, port)
		case 2:
			for k := range 3 {
				syslog(&auth, at.Add(time.Duration(k)*time.Second), tag, "Failed password for root from %s port %d ssh2", addr, port)
			}
			syslog(&auth, at.Add(3*time.Second), tag, "error: maximum authentication attempts exceeded for root from %s port %d ssh2 [preauth]", addr, port)
		case 3:
			syslog(&auth, at, tag, "User %s from %s not allowed because not listed in AllowUsers", user, addr)
		case 4:
			syslog(&auth, at, tag, "Failed publickey for %s from %s port %d ssh2: RSA SHA256:abc", user, addr, port)
			syslog(&auth, at.Add(time.Second), tag, "Accepted password for %s from %s port %d ssh2", user, addr, port)
		case 5:
			syslog(&auth, at, tag, "Failed password for invalid user a from 203.0.113.99 port 22 ssh2 from %s port %d ssh2", addr, port)
		}
	}
	post := func(at time.Time, addr string) {
		pid++
		tag := fmt.Sprintf("postfix/smtpd[%d]", pid)
		switch r.IntN(3) {
		case 0:
			syslog(&mail, at, tag, "NOQUEUE: reject: RCPT from unknown[%s]: 554 5.7.1 <a@example.org>: Relay access denied; from=<b@example.net> to=<a@example.org> proto=ESMTP helo=<x>", addr)
		case 1:
			syslog(&mail, at, tag, "NOQUEUE: reject: RCPT from unknown[%s]: 450 4.7.1 Client host rejected: cannot find your hostname, [%s]; from=<b@example.net> to=<a@example.org> proto=ESMTP helo=<x>", addr, addr)
		case 2:
			syslog(&mail, at, tag, "connect from unknown[%s]", addr)
		}
	}
	nginxAttempt := func(at time.Time, addr, user string) {
		switch r.IntN(3) {
		case 0:
			nginx(at, addr, `user "%s": password mismatch`, user)
		case 1:
			nginx(at, addr, `user "%s" was not found in "/etc/nginx/users"`, user)
		case 2:
			nginx(at, addr, `open() "/var/www/wp-login.php" failed (2: No such file or directory)`)
		}
	}
	refuse := func(at time.Time, addr string) {
		what := []string{"key", "password"}[r.IntN(2)]
		app = append(app, line{at, at.Format(time.DateTime) + " app: " + what + " refused for " + addr})
	}
	users := []string{"root", "bob", "admin", "git", "x y"}
	for i := range 90 {
		addr := fmt.Sprintf("198.51.100.%d", i+1)
		if i%5 == 0 {
			addr = fmt.Sprintf("2001:db8::%x", i+1)
		}
		// From one attempt every few seconds to one in half the span.
		pace := time.Duration(float64(span) / float64(int(2)<<r.IntN(6)))
		at := begin.Add(time.Duration(r.Int64N(int64(span))))
		for n := 0; at.Before(end.Add(-10*time.Second)) && n < 40; n++ {
			whole := at.Truncate(time.Second)
			switch i % 3 {
			case 0:
				ssh(whole, addr, users[r.IntN(4)])
			case 1:
				nginxAttempt(whole, addr, users[r.IntN(len(users))])
			case 2:
				post(whole, addr)
			}
			at = at.Add(time.Second + time.Duration(r.Int64N(int64(pace))))
		}
	}
	for at := begin; at.Before(end.Add(-10 * time.Second)); at = at.Add(span / 200) {
		syslog(&auth, at, "CRON[77]", "pam_unix(cron:session): session opened for user root(uid=0) by (uid=0)")
		syslog(&mail, at, "postfix/qmgr[5]", "4F1: from=<a@example.org>, size=400, nrcpt=1 (queue active)")
		nginx(at, "192.0.2.9", `open() "/var/www/favicon.ico" failed (2: No such file or directory)`)
	}
	for i := range 20 {
		addr := fmt.Sprintf("203.0.113.%d", i+1)
		for range 1 + r.IntN(8) {
			refuse(begin.Add(time.Duration(r.Int64N(int64(span-20*time.Second)))).Truncate(time.Second), addr)
		}
	}
	for k := range 4 {
		at := end.Add(time.Duration(k-4) * time.Second)
		syslog(&auth, at, "sshd[9]", "Failed password for root from %s port 22 ssh2", sentinel)
		nginx(at, sentinel, `user "bob": password mismatch`)
		refuse(at, sentinel)
		nginx(at, sentinel, `open() "/var/www/wp-login.php" failed (2: No such file or directory)`)
		syslog(&mail, at, "postfix/smtpd[9]", "NOQUEUE: reject: RCPT from unknown[%s]: 554 5.7.1 <a@example.org>: Relay access denied; from=<b@example.net> to=<a@example.org> proto=ESMTP helo=<x>", sentinel)
	}
	logs := map[string]string{}
	for name, lines := range map[string][]line{"auth.log": auth, "error.log": web, "mail.log": mail, "app.log": app} {
		slices.SortStableFunc(lines, func(a, b line) int { return a.at.Compare(b.at) })
		var b strings.Builder
		for _, l := range lines {
			b.WriteString(l.text + "\n")
		}
		logs[name] = b.String()
	}
	return logs
}
