package regex

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/dlclark/regexp2/v2"
)

// Patterns as an sshd jail has them, with an address as fail2ban's users
// write it out.
const address = `(?:\[?(?:(?:::f{4,6}:)?(?P<ip4>(?:\d{1,3}\.){3}\d{1,3})|(?P<ip6>(?:[0-9a-fA-F]{1,4}::?|::){1,7}(?:[0-9a-fA-F]{1,4}|:)))\]?|(?P<dns>[\w\-.^_]*\w))`

var benchPatterns = []struct{ name, expr, hit, miss string }{
	{"anchored", `^Failed (?:password|publickey|none) for (?:invalid user )?(?P<user>.*) from ` + address + ` port \d+(?: ssh\d*)?$`,
		"Failed password for invalid user oracle from 203.0.113.77 port 50412 ssh2",
		"Failed password for invalid user oracle from 203.0.113.77 port 50412 ssh2 and more"},
	{"plain", `^Failed (?:password|publickey|none) for (?:invalid user )?(?P<user>.*) from (?P<addr>[0-9A-Fa-f:.]+) port \d+(?: ssh\d*)?$`,
		"Failed password for invalid user oracle from 203.0.113.77 port 50412 ssh2",
		"Accepted publickey for deploy from 198.51.100.9 port 50412 ssh2: ED25519 SHA256:abcdefghijklmnop"},
	{"user", `^[iI](?:llegal|nvalid) user (?P<user>.*?) from ` + address + `(?: (?:port \d+|on \S+|\[preauth\])){0,3}\s*$`,
		"Invalid user admin from 2001:db8::17 port 3612 [preauth]",
		"Invalid user admin, whatever else this line may say about it, is here"},
	{"prefix", `^(?:\[\])?\s*(?:<[^.]+\.[^.]+>\s+)?(?:\S+\s+)?(?:kernel:\s?\[ *\d+\.\d+\]:?\s+)?(?:(?:(?:\[\d+\])?:\s+[\[\(]?sshd(?:\(\S+\))?[\]\)]?:?|[\[\(]?sshd(?:\(\S+\))?[\]\)]?:?(?:\[\d+\])?:?)\s+)?(?:error: )?(?P<content>Failed .+)$`,
		" host.example.org sshd[12345]: Failed password for root from 203.0.113.77 port 50412 ssh2",
		" host.example.org sshd[12345]: pam_unix(sshd:session): session opened for user deploy by (uid=0)"},
	{"web", `^(?P<addr>[0-9A-Fa-f:.]+) \S+ \S+ \[[^\]]*\] "(?:GET|POST|HEAD) /(?:wp-login|xmlrpc)\.php[^"]*" (?:401|403|404) `,
		`203.0.113.77 - - [10/Oct/2025:13:55:36 +0000] "POST /wp-login.php?x=1 HTTP/1.1" 404 153 "-" "Mozilla/5.0"`,
		`203.0.113.77 - - [10/Oct/2025:13:55:36 +0000] "GET /static/logo.png HTTP/1.1" 200 15301 "-" "Mozilla/5.0 (X11; Linux x86_64)"`},
	{"search", `authentication failure; .*rhost=(?P<addr>[0-9A-Fa-f:.]+)(?:\s+user=(?P<user>\S*))?\s*$`,
		"pam_unix(sshd:auth): authentication failure; logname= uid=0 euid=0 tty=ssh ruser= rhost=203.0.113.77  user=root",
		"pam_unix(sshd:session): session opened for user deploy(uid=1000) by (uid=0), as on every other day before this"},
}

func BenchmarkMatch(b *testing.B) {
	for _, p := range benchPatterns {
		for _, l := range []struct{ name, text string }{{"hit", p.hit}, {"miss", p.miss}} {
			text := []byte(l.text)
			b.Run(fmt.Sprintf("%s/%s/own", p.name, l.name), func(b *testing.B) {
				re, err := Compile(p.expr, 0)
				if err != nil {
					b.Fatal(err)
				}
				var m Machine
				var caps []int
				b.ReportAllocs()
				for b.Loop() {
					caps, _ = m.Match(re, text, caps)
				}
			})
			b.Run(fmt.Sprintf("%s/%s/go", p.name, l.name), func(b *testing.B) {
				re := regexp.MustCompile(p.expr)
				for b.Loop() {
					re.FindSubmatchIndex(text)
				}
			})
			b.Run(fmt.Sprintf("%s/%s/regexp2", p.name, l.name), func(b *testing.B) {
				re := regexp2.MustCompile(strings.ReplaceAll(p.expr, "(?P<", "(?<"), regexp2.None)
				for b.Loop() {
					if _, err := re.FindStringMatch(l.text); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
