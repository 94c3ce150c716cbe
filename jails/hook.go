package jails

import (
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Webhook is an address on the web that is told of bans.
type Webhook struct {
	Name string
	// URL, or the file that holds it: with many services it is a secret.
	URL, URLFile string
	// SecretFile holds the key that what is sent is signed with; empty: it
	// isn't.
	SecretFile string
	// CA is a file in PEM with the authorities that the server's certificate
	// is checked against; empty: the system's.
	CA string
	// Jails names those whose bans are told of; "*" is any.
	Jails []string
	// Events are those told of: "ban" and "unban".
	Events []string
	// Body is what is sent; nil: the notice.
	Body *Body
}

// Wants says whether it is to be told.
func (w *Webhook) Wants(n Notice) bool {
	return Shares(w.Jails, n.Jail) && slices.Contains(w.Events, n.Event)
}

// HooksOf are the programs to run when a jail bans and when its ban ends.
func (c *Config) HooksOf(jail string) (onBan, onUnban []string) {
	onBan, onUnban = c.Settings.OnBan, c.Settings.OnUnban
	if j, ok := c.Jail(jail); ok {
		if j.OnBan != nil {
			onBan = j.OnBan
		}
		if j.OnUnban != nil {
			onUnban = j.OnUnban
		}
	}
	return onBan, onUnban
}

// program takes a program with its arguments, in which some tags may stand. An
// empty list is none. cost says what happens if it can't be run.
func (r *reader) program(key string, to *[]string, tags []string, cost string) {
	example := fmt.Sprintf("%q, %q", "/usr/local/bin/"+strings.ReplaceAll(key, "_", "-"), tags[0])
	items, ok := r.list(key, example)
	if !ok {
		return
	}
	*to = append([]string{}, textsOf(items)...)
	for n, i := range items {
		for _, tag := range anyTag.FindAllString(i.text, -1) {
			if !slices.Contains(tags, tag) {
				r.say(i.at, "%s isn't known; write one of %s", tag, strings.Join(tags, ", "))
			}
		}
		switch {
		case strings.ContainsRune(i.text, 0):
			r.say(i.at, "has a NUL byte in it, which no argument can hold")
		case n == 0 && (!filepath.IsAbs(i.text) || anyTag.MatchString(i.text)):
			r.say(i.at, `%q is no whole path of a program; no shell looks at it, so write the program and each argument as a text of its own, such as %s = [%s]`, i.text, key, example)
		case n == 0:
			if _, err := exec.LookPath(i.text); err != nil {
				r.warn(i.at, "%s can't be run (%s): %s", i.text, rootOf(errors.Unwrap(err)), cost)
			}
		}
	}
}

var webhookEvents = []string{"ban", "unban"}

// webhooks takes [[webhook]].
func (r *reader) webhooks(to *[]Webhook) {
	names := map[string]bool{}
	for _, in := range r.tables("webhook") {
		w := Webhook{Jails: []string{"*"}, Events: []string{"ban"}}
		here := in.v[""]
		if x, ok := in.text("name", &w.Name, "ops"); ok {
			switch {
			case !jailName.MatchString(w.Name):
				in.say(x, `%q can't name a webhook; write letters, digits, _, - and ., such as "ops"`, w.Name)
			case names[w.Name]:
				in.say(x, "%q is another webhook's name too; write one of its own", w.Name)
			}
			names[w.Name] = true
		} else if _, given := in.v["name"]; !given {
			in.say(here, `has no name; write such as name = "ops"`)
		}
		if x, ok := in.text("url", &w.URL, "https://hooks.example.org/xdpban"); ok {
			if err := CheckWebhookURL(w.URL); err != nil {
				in.say(x, `%s; write such as "https://hooks.example.org/xdpban"`, err)
			}
		}
		in.file("url_file", &w.URLFile, "/etc/xdpban/webhook.url")
		_, url := in.v["url"]
		_, file := in.v["url_file"]
		if url == file {
			in.say(here, `has %s; write url = "https://…", or url_file = "/etc/xdpban/webhook.url" with the file that holds it`, map[bool]string{true: "both url and url_file", false: "no url"}[url])
		}
		in.file("secret_file", &w.SecretFile, "/etc/xdpban/webhook.secret")
		in.file("ca", &w.CA, "/etc/xdpban/ca.pem")
		if items, ok := in.list("jails", `"sshd", "recidive"`); ok {
			for _, i := range items {
				if i.text != "*" && !jailName.MatchString(i.text) {
					in.say(i.at, `%q can't be the name of a jail; write such as "sshd", or "*" for all`, i.text)
				}
			}
			r.l.mentioned = append(r.l.mentioned, items...)
			w.Jails = textsOf(items)
		}
		if items, ok := in.list("events", `"ban", "unban"`); ok {
			for _, i := range items {
				if !slices.Contains(webhookEvents, i.text) {
					in.say(i.at, `%q isn't known; write "ban" or "unban"`, i.text)
				}
			}
			w.Events = textsOf(items)
		}
		if x, ok := in.at("body"); ok {
			if v, ok := x.v.(values); ok {
				w.Body = newBody(v, func(key, problem string) {
					in.say(value{nil, x.file, x.key + key}, "%s", problem)
				})
			} else {
				in.say(x, `is %s; write a table, such as body = { text = "{{.Jail}} banned {{.Addr}}" }`, is(x.v))
			}
		}
		in.rest()
		*to = append(*to, w)
	}
}

// warnMentioned warns of jails that are told of and that nobody configured: bans
// by hand may go under any name.
func (l *loader) warnMentioned(c *Config) {
	var known []string
	for i := range c.Jails {
		known = append(known, c.Jails[i].Name)
	}
	for _, i := range l.mentioned {
		if i.text == "*" || i.text == Manual || slices.Contains(known, i.text) {
			continue
		}
		hint := ""
		if to := similar(i.text, known); to != "" {
			hint = fmt.Sprintf("; did you mean %q?", to)
		}
		(&reader{l: l}).warn(i.at, "there is no jail %q%s", i.text, hint)
	}
}

// CheckWebhookURL says what is wrong with a webhook's address.
func CheckWebhookURL(text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		// It may be a secret: nothing of it is said.
		return fmt.Errorf("what it holds is no address of the web")
	}
	return nil
}

// file takes the whole path of a file.
func (r *reader) file(key string, to *string, example string) {
	if x, ok := r.text(key, to, example); ok && !filepath.IsAbs(*to) {
		r.say(x, "%q doesn't begin with /; write the whole path, such as %q", *to, example)
	}
}

// tables takes the tables of [[key]], each with a reader of its own.
func (r *reader) tables(key string) []*reader {
	x, ok := r.at(key)
	if !ok {
		return nil
	}
	list, ok := x.v.([]any)
	if tables, yes := x.v.([]map[string]any); yes {
		ok = true
		for _, t := range tables {
			list = append(list, t)
		}
	}
	var all []*reader
	for i, y := range list {
		here := value{nil, x.file, fmt.Sprintf("%s[%d]", x.key, i)}
		var table map[string]any
		if table, ok = y.(map[string]any); !ok {
			break
		}
		v := values{"": here}
		for k, y := range table {
			v.override(k, value{y, x.file, here.key + "." + k})
		}
		all = append(all, &reader{l: r.l, v: v})
	}
	if !ok {
		r.say(x, "is %s; write [[%s]] with its keys below it", is(x.v), key)
		return nil
	}
	return all
}

// ReadSecret reads a file that nobody but its owner may read, and that holds at
// least so many characters.
func ReadSecret(path string, least int) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", fmt.Errorf("read a secret: %w", err)
	}
	if !info.Mode().IsRegular() || info.Mode()&(fs.ModePerm&^0o700) != 0 {
		return "", fmt.Errorf("read a secret: %s has mode %s: nobody but its owner may read it; chmod 600 %[1]s", path, info.Mode())
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("read a secret: %w", err)
	}
	secret := strings.TrimSpace(string(b))
	if len(secret) < least {
		return "", fmt.Errorf("read a secret: %s holds %d characters, fewer than %d; openssl rand -hex 32 makes a good one", path, len(secret), least)
	}
	return secret, nil
}
