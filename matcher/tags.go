package matcher

import (
	"errors"
	"fmt"
	"regexp"
	"sort"
	"strconv"
	"strings"

	"xdpban/matcher/regex"
)

// The address patterns are loose on purpose: they find where an address
// stands, and parseAddr decides whether it is one.
const (
	ip4Expr  = `(?:::[fF]{4}:)?(?P<ip4>[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3})`
	ip6Expr  = `(?P<ip6>(?:[0-9a-fA-F]{0,4}:){1,7}(?:[0-9a-fA-F]{1,4}|:))(?:%[0-9A-Za-z_.\-]+)?`
	dnsExpr  = `(?P<dns>[\w\-.^]*\w)`
	cidrExpr = `(?P<cidr>[0-9]{1,3})`
	addrExpr = `\[?(?:` + ip4Expr + `|` + ip6Expr + `)\]?`
)

// fixedTag is what the tags that stand for a whole pattern expand to; the
// names are fail2ban's.
func fixedTag(name string) (string, bool) {
	switch name {
	case "HOST":
		return `(?:` + addrExpr + `|` + dnsExpr + `)`, true
	case "ADDR", "F-ADDR/":
		return addrExpr, true
	case "IP4", "F-IP4/":
		return ip4Expr, true
	case "IP6", "F-IP6/":
		return ip6Expr, true
	case "DNS", "F-DNS/":
		return dnsExpr, true
	case "CIDR", "F-CIDR/":
		return cidrExpr, true
	case "SUBNET", "F-SUBNET/":
		return `\[?(?:` + ip4Expr + `|` + ip6Expr + `)(?:/` + cidrExpr + `)?\]?`, true
	case "F-ID/":
		return `(?P<fid>\S+)`, true
	case "F-PORT/":
		return `(?P<fport>\w+)`, true
	}
	return "", false
}

var (
	tagRE        = regexp.MustCompile(`</?[\w\-]+/?>`)
	captureTagRE = regexp.MustCompile(`^<(/?)F-([A-Z0-9_]+)>$`)
	// Go and Python alike take flags for a whole group only at its start;
	// "((?i)x)" is how older filters write "(?i:x)".
	groupFlagsRE = regexp.MustCompile(`(^|[^\\])\((?:\?:)?(\(\?[a-z]+)\)`)
	altNameRE    = regexp.MustCompile(`^alt_(.*?)(?:_[0-9]+)?$`)
)

// expandTags turns the tags of a pattern into plain regex. What isn't a tag
// stays as it is, so "<foo>" in a log's own text can be written as such.
func expandTags(pattern string) string {
	open := map[string]bool{}
	skips := 0
	s := tagRE.ReplaceAllStringFunc(pattern, func(tag string) string {
		name := tag[1 : len(tag)-1]
		if e, ok := fixedTag(name); ok {
			return e
		}
		if name == "SKIPLINES" {
			skips++
			return `\n(?P<skiplines` + strconv.Itoa(skips-1) + `>(?:(?:.*\n)*?))`
		}
		m := captureTagRE.FindStringSubmatch(tag)
		switch {
		case m == nil:
			return tag
		case m[1] == "":
			open[m[2]] = true
			return `(?P<` + groupName(m[2]) + `>`
		case open[m[2]]:
			return `)`
		}
		return tag
	})
	return groupFlagsRE.ReplaceAllString(s, "${1}${2}:")
}

// groupName is the capture group of <F-tag>.
func groupName(tag string) string {
	switch n := strings.ToLower(tag); n {
	case "id":
		return "fid"
	case "port":
		return "fport"
	default:
		return n
	}
}

// role lists the capture groups that give one field: the field's own group
// first, then its F-ALT_ groups by name. The first that caught something
// counts.
type role []int

// roles are the capture groups of a pattern by what they mean.
type roles struct {
	ip4, ip6, dns, cidr, fid, mlfid role
	user, nofail, forget, gained    role
	content                         role
	skips                           []int
}

func rolesOf(re *regex.Regexp) roles {
	byName := map[string]role{}
	type alt struct {
		name, of string
		group    int
	}
	var alts []alt
	names := re.GroupNames()
	for g, n := range names {
		if n == "" {
			continue
		}
		byName[n] = role{g}
		if m := altNameRE.FindStringSubmatch(n); m != nil {
			alts = append(alts, alt{n, groupName(m[1]), g})
		}
	}
	sort.Slice(alts, func(i, j int) bool { return alts[i].name < alts[j].name })
	for _, a := range alts {
		byName[a.of] = append(byName[a.of], a.group)
	}
	r := roles{
		ip4: byName["ip4"], ip6: byName["ip6"], dns: byName["dns"], cidr: byName["cidr"],
		fid: byName["fid"], mlfid: byName["mlfid"],
		user: byName["user"], nofail: byName["nofail"],
		forget: byName["mlfforget"], gained: byName["mlfgained"],
		content: byName["content"],
	}
	for i := 0; ; i++ {
		g, ok := byName["skiplines"+strconv.Itoa(i)]
		if !ok {
			return r
		}
		r.skips = append(r.skips, g[0])
	}
}

// identifies says that the pattern can name an offender, at once or through
// its session.
func (r *roles) identifies() bool {
	return r.ip4 != nil || r.ip6 != nil || r.dns != nil || r.fid != nil || r.mlfid != nil
}

// of returns what the role caught: nil if no group took part.
func (r role) of(text []byte, caps []int) []byte {
	var b []byte
	for _, g := range r {
		if caps[2*g] < 0 {
			continue
		}
		if v := text[caps[2*g]:caps[2*g+1]]; len(v) > 0 || b == nil {
			b = v
		}
		if len(b) > 0 {
			return b
		}
	}
	return b
}

// span is where the role's first group that took part caught something.
func (r role) span(caps []int) (start, end int, ok bool) {
	for _, g := range r {
		if caps[2*g] >= 0 {
			return caps[2*g], caps[2*g+1], true
		}
	}
	return 0, 0, false
}

// pattern is one compiled regex of a filter.
type pattern struct {
	re   *regex.Regexp
	expr string // the source, tags expanded
	roles
}

var errEmptyPattern = errors.New("pattern is empty")

// inSource makes an error about the expanded pattern one about the pattern as
// it was written, of which the reader can know the place.
func inSource(err error, src, expr string) error {
	var e *regex.Error
	if !errors.As(err, &e) || e.Pos > len(expr) {
		return err
	}
	at := expr[e.Pos:]
	if strings.HasPrefix(src, expr[:e.Pos]) {
		at = src[e.Pos:]
	}
	if len(at) > 40 {
		at = strings.ToValidUTF8(at[:40], "") + "…"
	}
	text := e.Msg
	if at != "" {
		text += fmt.Sprintf(" at %q", at)
	}
	if e.Hint != "" {
		text += ": " + e.Hint
	}
	return errors.New(text)
}

func compilePattern(src string, flags regex.Flags) (*pattern, error) {
	expr := expandTags(src)
	if strings.TrimSpace(expr) == "" {
		return nil, errEmptyPattern
	}
	re, err := regex.Compile(expr, flags)
	if err != nil {
		return nil, inSource(err, src, expr)
	}
	return &pattern{re: re, expr: expr, roles: rolesOf(re)}, nil
}
