package matcher

import (
	"strings"
	"testing"
)

// one returns what a filter with one pattern makes of one line.
func one(t *testing.T, pattern, line string) string {
	t.Helper()
	got := scan(t, line+"\n", compile(t, Filter{Name: "f", Failregex: []string{pattern}}))
	return strings.Join(got, "\n")
}

func TestTags(t *testing.T) {
	for _, tc := range []struct{ pattern, line, want string }{
		{`^x <HOST>$`, "x 192.0.2.1", "0.0 192.0.2.1"},
		{`^x <HOST>$`, "x [192.0.2.1]", "0.0 192.0.2.1"},
		{`^x <HOST>$`, "x 2001:db8::1", "0.0 2001:db8::1"},
		{`^x <HOST>$`, "x [2001:db8::1]", "0.0 2001:db8::1"},
		{`^x <HOST>:22$`, "x [2001:db8::1]:22", "0.0 2001:db8::1"},
		{`^x <HOST>:22$`, "x 192.0.2.1:22", "0.0 192.0.2.1"},
		{`^x <HOST>: `, "x 2001:db8::1: foo", "0.0 2001:db8::1"},
		{`^x <HOST>$`, "x ::ffff:192.0.2.1", "0.0 192.0.2.1"},
		{`^x <HOST>$`, "x ::FFFF:192.0.2.1", "0.0 192.0.2.1"},
		{`^x <HOST>$`, "x ::ffff:c000:201", "0.0 192.0.2.1"},
		{`^x <HOST>$`, "x fe80::1%eth0", "0.0 fe80::1"},
		{`^x <HOST>$`, "x mail.example.org", "0.0 mail.example.org"},
		{`^x <ADDR>$`, "x mail.example.org", ""},
		{`^x <ADDR>$`, "x 192.0.2.1", "0.0 192.0.2.1"},
		{`^x <ADDR>$`, "x 2001:DB8:0:0:0:0:0:1", "0.0 2001:db8::1"},
		{`^x <IP4>$`, "x 2001:db8::1", ""},
		{`^x <IP4>$`, "x 192.0.2.1", "0.0 192.0.2.1"},
		{`^x <IP6>$`, "x 192.0.2.1", ""},
		{`^x <IP6>$`, "x 2001:db8::1", "0.0 2001:db8::1"},
		{`^x <DNS>$`, "x mail.example.org", "0.0 mail.example.org"},
		{`^x <DNS>$`, "x 192.0.2.1", "0.0 192.0.2.1"},
		{`^x <SUBNET>$`, "x 192.0.2.77/24", "0.0 192.0.2.0/24"},
		{`^x <SUBNET>$`, "x 192.0.2.77", "0.0 192.0.2.77"},
		{`^x <SUBNET>$`, "x 2001:db8::1/32", "0.0 2001:db8::/32"},
		{`^x <SUBNET>$`, "x 192.0.2.77/33", ""},
		{`^x <SUBNET>$`, "x 192.0.2.77/999", ""},
		{`^x <ADDR>/<CIDR>$`, "x 192.0.2.77/25", "0.0 192.0.2.0/25"},
		{`^x <F-ID>\S+</F-ID>$`, "x abc", "0.0 id=abc"},
		{`^x <F-ID>\S+</F-ID>$`, "x 192.0.2.1", "0.0 192.0.2.1"},
		{`^x <F-ID>\S+</F-ID>$`, "x [2001:db8::/64]", "0.0 2001:db8::/64"},
		{`^x <F-ID/>$`, "x abc", "0.0 id=abc"},
		{`^x <F-ID><ADDR></F-ID>$`, "x 192.0.2.1", "0.0 192.0.2.1"},
		{`^x <F-ID><ADDR>/\w+</F-ID>$`, "x 192.0.2.1/bob", "0.0 192.0.2.1 id=192.0.2.1/bob"},
		{`^<F-USER>\w+</F-USER> <ADDR>$`, "bob 192.0.2.1", "0.0 192.0.2.1 bob"},
		{`^(?:u=<F-ALT_USER_1>\w+</F-ALT_USER_1>|v=<F-USER>\w+</F-USER>) <ADDR>$`, "u=bob 192.0.2.1", "0.0 192.0.2.1 bob"},
		{`^(?:u=<F-ALT_USER_1>\w+</F-ALT_USER_1>|v=<F-USER>\w+</F-USER>) <ADDR>$`, "v=eve 192.0.2.1", "0.0 192.0.2.1 eve"},
		{`^((?i)bad) <ADDR>$`, "BAD 192.0.2.1", "0.0 192.0.2.1"},
		{`^<foo> <ADDR>$`, "<foo> 192.0.2.1", "0.0 192.0.2.1"},
		{`^(?P<host>x) <ADDR>$`, "x 192.0.2.1", "0.0 192.0.2.1"},
		{`^x <ADDR> <F-PORT>\d+</F-PORT>$`, "x 192.0.2.1 22", "0.0 192.0.2.1"},
		{`^x <ADDR>\s`, "x 192.0.2.1", "0.0 192.0.2.1"}, // the line's end is white space, as in fail2ban
	} {
		if got := one(t, tc.pattern, tc.line); got != tc.want {
			t.Errorf("%s on %q: got %q, want %q", tc.pattern, tc.line, got, tc.want)
		}
	}
}

func TestStrictAddresses(t *testing.T) {
	for _, bad := range []string{
		"1.2.3", "1.2.3.", ".1.2.3.4", "1.2.3.4.", "01.2.3.4", "1.2.3.04", "256.1.1.1", "1.2.3.256", "1.2.3.4444", "1111.2.3.4",
		"1.2.3.4.5", "0x1.2.3.4", "1", "12345678", "1:2", "12:34:56", ":::", "1::2::3", "1:2:3:4:5:6:7:8:9", "12345::1", "g::1",
		"::ffff:256.1.1.1", "::ffff:1.2.3", "64:ff9b::1.2.3", "2001:db8::1/64", "[192.0.2.1", "１.２.３.４",
	} {
		got := one(t, `^from <ADDR>$`, "from "+bad)
		if bad == "[192.0.2.1" { // fail2ban's brackets needn't pair
			bad = ""
		}
		// What looks like IPv4 is a failure of nobody, see TestOddAddress.
		if got != "" && bad != "" && !strings.HasPrefix(got, "0.0 id=") {
			t.Errorf("%q was taken for %q", bad, got)
		}
	}
	// A pattern that isn't anchored must not cut a number in two.
	for _, tc := range []struct{ line, want string }{
		{"from 198.51.100.2500", ""},
		{"from 198.51.100.25", "0.0 198.51.100.25"},
		{"from 198.51.100.25 port 1", "0.0 198.51.100.25"},
		{"from 198.51.100.25:22", "0.0 198.51.100.25"},
		{"from 198.51.100.25, 192.0.2.1", "0.0 198.51.100.25"},
	} {
		if got := one(t, `from <ADDR>`, tc.line); got != tc.want {
			t.Errorf("%q: got %q, want %q", tc.line, got, tc.want)
		}
	}
	// What isn't an address is no host name either, if it looks like one.
	for _, bad := range []string{"1.2.3", "256.1.1.1", "1.2.3.4.5", "123456"} {
		if got := one(t, `^from <HOST>$`, "from "+bad); got != "" && got != "0.0 id="+bad {
			t.Errorf("%q was taken for %q", bad, got)
		}
	}
}

func TestCompileErrors(t *testing.T) {
	for _, tc := range []struct {
		f    Filter
		want string
	}{
		{Filter{Name: "f"}, "no failregex"},
		{Filter{Failregex: []string{`^Failed for \S+$`}}, "<ADDR>"},
		{Filter{Failregex: []string{`^x <ADDR>`, ` `}}, "failregex 2"},
		{Filter{Failregex: []string{`^x (<ADDR>`}}, "failregex 1"},
		{Filter{Failregex: []string{`^<HOST> <HOST>`}}, "failregex 1"},
		{Filter{Failregex: []string{`^x <ADDR>`}, Ignoreregex: []string{`[`}}, "ignoreregex 1"},
		{Filter{Failregex: []string{`^x <ADDR>`}, Prefregex: `*`}, "prefregex"},
		{Filter{Failregex: []string{`^x <ADDR>`}, DatePattern: []string{`%Q`}}, "%Q"},
		{Filter{Failregex: []string{`^x <ADDR>`}, DatePattern: []string{`(%Y`}}, "datepattern"},
		{Filter{Failregex: []string{`^x <ADDR>`}, DatePattern: []string{`%Y`}, Programs: []string{"x"}}, "program"},
		{Filter{Failregex: []string{`^x <ADDR>`}, Programs: []string{"x[1]"}}, "program"},
		{Filter{Failregex: []string{`^x <ADDR>`}, Encoding: "utf-16"}, "logencoding"},
		{Filter{Failregex: []string{`^x <ADDR>`}, MaxLines: -1}, "maxlines"},
	} {
		_, err := Compile(tc.f)
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%+v: got %v, want something about %s", tc.f, err, tc.want)
		}
	}
	// The offender may be named by the prefix, or by the session.
	for _, f := range []Filter{
		{Prefregex: `^<ADDR> <F-CONTENT>.+</F-CONTENT>$`, Failregex: []string{`^bad$`}},
		{Failregex: []string{`^<F-MLFID>\d+</F-MLFID> bad$`}},
	} {
		if _, err := Compile(f); err != nil {
			t.Error(err)
		}
	}
}

func TestPrograms(t *testing.T) {
	c := compile(t, Filter{Programs: []string{"postfix/*", "sshd"}, Failregex: []string{`^x <ADDR>$`}})
	for tag, want := range map[string]bool{"postfix/smtpd": true, "postfix/": true, "postfix": false, "sshd": true, "sshd2": false} {
		if got := len(scan(t, "Nov 24 11:57:28 host "+tag+"[1]: x 192.0.2.1\n", c)) == 1; got != want {
			t.Errorf("%s: got %v", tag, got)
		}
	}
}

func TestWarnings(t *testing.T) {
	for _, tc := range []struct{ pattern, want string }{
		{`^Failed for <F-USER>.*</F-USER> from <ADDR> port \d+$`, ""},
		{`^Failed for <F-USER>\S+</F-USER> from <ADDR>`, ""},
		{`Failed from <ADDR>$`, "anchored"},
		{`^Failed for .* from <ADDR>`, "pins down the end"},
		{`^Failed for .* from <ADDR>.*$`, "say what can stand there"},
		{`^(a+)\1 <ADDR>$`, "isn't bounded"},
	} {
		got := strings.Join(compile(t, Filter{Failregex: []string{tc.pattern}}).Warnings(), "\n")
		if tc.want == "" && got != "" || !strings.Contains(got, tc.want) {
			t.Errorf("%s: got %q, want %q", tc.pattern, got, tc.want)
		}
	}
}
