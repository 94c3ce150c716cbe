package jails

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

const webhooks = `
[[webhook]]
name = "raw"
url  = "https://hooks.example.org/a"

[[webhook]]
name     = "chat"
url_file = "/etc/xdpban/chat.url"
jails    = ["sshd"]
events   = ["ban", "unban"]
[webhook.body]
text = "{{.Jail}} {{.Event}}: {{.Addr}} {{range .Evidence}}<{{.}}>{{end}}"
list = [1, true, 2.5, { deep = "{{.Failures}}" }]
`

func hooksOf(t testing.TB) []Webhook {
	t.Helper()
	c, problems := Load(nil, write(t, map[string]string{SettingsFile: webhooks}))
	if problems != nil {
		t.Fatal(problems)
	}
	return c.Settings.Webhooks
}

func TestWebhooks(t *testing.T) {
	hooks := hooksOf(t)
	c, problems := Load(nil, write(t, map[string]string{SettingsFile: "[[webhook]]\nname = 'x'\nurl = 'https://x'\njails = ['manual', 'sshdd', '*']\n",
		"jail.d/x.toml": "[jail.sshd]\nfiles = ['/x']\nfailregex = ['^<ADDR>$']\n"}))
	if problems != nil || len(c.Warnings) != 1 || c.Warnings[0].String() != c.Warnings[0].File+`:4: webhook[0].jails[1]: there is no jail "sshdd"; did you mean "sshd"?` {
		t.Errorf("%v, %v", problems, c)
	}
	if len(hooks) != 2 || hooks[0].Body != nil || hooks[1].Body == nil || hooks[1].URLFile != "/etc/xdpban/chat.url" {
		t.Fatalf("%+v", hooks)
	}
	for _, c := range []struct {
		hook        int
		jail, event string
		want        bool
	}{{0, "sshd", "ban", true}, {0, "manual", "ban", true}, {0, "sshd", "unban", false}, {1, "sshd", "unban", true}, {1, "manual", "ban", false}} {
		if got := hooks[c.hook].Wants(Notice{Jail: c.jail, Event: c.event}); got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
	n := NoticeOf("ban", Ban{Prefix: netip.MustParsePrefix("203.0.113.0/24"), Jail: "sshd", Since: time.Unix(0, 0), Failures: 5, Evidence: []string{`"}], "x": "`}})
	got, err := hooks[1].Body.JSON(n)
	if want := `{"list":[1,true,2.5,{"deep":"5"}],"text":"sshd ban: 203.0.113.0/24 <\"}], \"x\": \">"}`; err != nil || string(got) != want {
		t.Errorf("%s, %v, want %s", got, err, want)
	}
	var back Notice
	if got, err = hooks[0].Body.JSON(n); err == nil {
		err = json.Unmarshal(got, &back)
	}
	if err != nil || !reflect.DeepEqual(back, n) {
		t.Errorf("%s: %+v, %v", got, back, err)
	}
	if n.Until != "forever" || n.BanTime != -1 || n.Family != "inet4" || n.Addr != n.Prefix {
		t.Errorf("%+v", n)
	}
	if got := n.Args([]string{"<ip>", "x<jail><family>", "<user>"}); !reflect.DeepEqual(got, []string{"203.0.113.0/24", "xsshdinet4", "<user>"}) {
		t.Errorf("%q", got)
	}
	n.Evidence = []string{strings.Repeat("x", maxText)}
	if got, err := hooks[1].Body.JSON(n); err == nil {
		t.Errorf("%d bytes pass", len(got))
	}
}

// FuzzBody: whatever an attacker wrote is a text in the body, and nothing else.
func FuzzBody(f *testing.F) {
	body := hooksOf(f)[1].Body
	for _, s := range []string{`"}`, "\\", "\x00\xff\u2028", "{{.Host}}", "</script>"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		b, err := body.JSON(Notice{Event: "ban", Addr: "203.0.113.5", Jail: "sshd", Evidence: []string{line}})
		if err != nil {
			if len(line) < maxText/2 {
				t.Error(err)
			}
			return
		}
		var got map[string]any
		if err := json.Unmarshal(b, &got); err != nil || len(got) != 2 {
			t.Fatalf("%s: %v", b, err)
		}
		if want := "sshd ban: 203.0.113.5 <" + line + ">"; utf8.ValidString(line) && got["text"] != want {
			t.Errorf("%q, want %q", got["text"], want)
		}
	})
}
