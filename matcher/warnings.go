package matcher

import (
	"fmt"
	"strings"
)

// Warnings say which patterns an attacker could turn: those that aren't
// anchored, those that take anything at all ahead of the address and don't
// pin down what follows it, and those whose cost isn't bounded.
func (c *Compiled) Warnings() []string {
	c.ready()
	var out []string
	say := func(option string, i int, src, format string, args ...any) {
		out = append(out, fmt.Sprintf("%s %d %q: ", option, i+1, src)+fmt.Sprintf(format, args...))
	}
	contentAnchored := c.pref == nil || c.pref.content == nil || c.pref.re.Anchored()
	for i, p := range c.fail {
		src := c.Filter.Failregex[i]
		if !p.re.Anchored() || !contentAnchored {
			say("failregex", i, src, "isn't anchored: start it with ^, or what an attacker writes into the line can be taken for the whole of it")
		}
		if before, after, ok := aroundAddress(src); ok && wildcard(before) != "" {
			switch {
			case !strings.HasSuffix(after, "$"):
				say("failregex", i, src, "%s ahead of the address takes anything, and nothing pins down the end: an attacker's text can hold an address of his choice; end the pattern with $", wildcard(before))
			case wildcard(after) != "":
				say("failregex", i, src, "%s ahead of the address and %s behind it take anything: an attacker's text can hold an address of his choice; say what can stand there", wildcard(before), wildcard(after))
			}
		}
		if !p.re.Linear() {
			say("failregex", i, src, "its cost isn't bounded (backreferences): long lines made for it are skipped when they exceed the step budget")
		}
	}
	for i, p := range c.ignore {
		if !p.re.Linear() {
			say("ignoreregex", i, c.Filter.Ignoreregex[i], "its cost isn't bounded (backreferences): lines that exceed the step budget count as ignored")
		}
	}
	if c.pref != nil && !c.pref.re.Linear() {
		say("prefregex", 0, c.Filter.Prefregex, "its cost isn't bounded (backreferences): long lines made for it are skipped when they exceed the step budget")
	}
	return out
}

// aroundAddress splits a pattern at its first tag that names the offender.
func aroundAddress(src string) (before, after string, ok bool) {
	at, end := len(src), 0
	for _, tag := range []string{"<HOST>", "<ADDR>", "<IP4>", "<IP6>", "<DNS>", "<SUBNET>", "<F-IP4/>", "<F-IP6/>", "<F-ADDR/>", "<F-DNS/>", "<F-SUBNET/>", "<F-ID/>", "<F-ID>"} {
		if i := strings.Index(src, tag); i >= 0 && i < at {
			at, end = i, i+len(tag)
		}
	}
	if end == 0 {
		return "", "", false
	}
	return src[:at], src[end:], true
}

// wildcard returns the first .* or .+ of a pattern, "" if it has none.
func wildcard(src string) string {
	class := false
	for i := 0; i < len(src); i++ {
		switch src[i] {
		case '\\':
			i++
		case '[':
			class = true
		case ']':
			class = false
		case '.':
			if !class && i+1 < len(src) && (src[i+1] == '*' || src[i+1] == '+') {
				return src[i : i+2]
			}
		}
	}
	return ""
}
