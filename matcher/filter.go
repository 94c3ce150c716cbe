package matcher

import (
	"fmt"
	"strings"
	"sync"
	"time"

	"xdpban/matcher/regex"
)

// Filter is one filter as configuration gives it. The zero value of each
// optional field means what fail2ban's default means.
type Filter struct {
	Name string
	// Programs are the syslog tags the filter reads ("sshd",
	// "postfix/smtpd"); one that ends in "*" stands for all that begin like
	// it. If any is given, the line's date, host and tag are taken off and
	// the patterns see only the message; lines of other programs are not
	// looked at. If none is given, the patterns see the line with its date
	// cut out.
	Programs    []string
	Prefregex   string
	Failregex   []string
	Ignoreregex []string
	// DatePattern, if given, replaces the default templates, one template an
	// element. It is for lines without a syslog header, so not together with
	// Programs.
	DatePattern []string
	// MaxLines is how many lines a pattern with <SKIPLINES> may span; 0 and
	// 1 mean one.
	MaxLines int
	// Encoding is fail2ban's logencoding: empty, "auto", UTF-8 and ASCII
	// mean UTF-8; Latin-1 and its kin are converted.
	Encoding string
	// Location is the zone of dates that name none; nil: the Set's.
	Location *time.Location
}

// Compiled is a filter ready to match. It is immutable and may be shared.
type Compiled struct {
	Filter Filter
	once   sync.Once // of compile

	pref   *pattern
	fail   []*pattern
	ignore []*pattern
	dates  []dateStage
	latin1 bool
	// ignoreWhole: the ignore patterns see the whole line too, not just what
	// the fail pattern saw of it. In fail2ban it is so if they are few.
	ignoreWhole bool
}

// Compile checks and compiles a filter. Its errors say which option and
// which pattern is wrong and what to write instead.
func Compile(f Filter) (*Compiled, error) {
	c := &Compiled{Filter: f}
	var err error
	c.once.Do(func() { err = c.compile() })
	if err != nil {
		return nil, err
	}
	return c, nil
}

// CompileLater is Compile for a filter that is known to compile, put off until
// a Set needs it: compiling takes milliseconds, and most shipped filters are
// never used on a host. If it doesn't compile, that panics.
func CompileLater(f Filter) *Compiled { return &Compiled{Filter: f} }

func (c *Compiled) ready() {
	c.once.Do(func() {
		if err := c.compile(); err != nil {
			panic(fmt.Sprintf("filter %q was said to compile: %v", c.Filter.Name, err))
		}
	})
}

func (c *Compiled) compile() error {
	f := &c.Filter
	var flags regex.Flags
	if f.MaxLines > 1 {
		flags = regex.Multiline
	}
	var err error
	if f.Prefregex != "" {
		if c.pref, err = compilePattern(f.Prefregex, 0); err != nil {
			return fmt.Errorf("prefregex %q: %w", f.Prefregex, err)
		}
	}
	if len(f.Failregex) == 0 {
		return fmt.Errorf("filter %q has no failregex: write at least one, with <ADDR> where the offender's address stands", f.Name)
	}
	for i, src := range f.Failregex {
		p, err := compilePattern(src, flags)
		if err != nil {
			return fmt.Errorf("failregex %d %q: %w", i+1, src, err)
		}
		if !p.identifies() && (c.pref == nil || !c.pref.identifies()) {
			return fmt.Errorf("failregex %d %q names no offender: put <ADDR> where the address stands (or <HOST>, <SUBNET>, <F-ID>…</F-ID>; <F-MLFID>…</F-MLFID> if another line of the session has it)", i+1, src)
		}
		c.fail = append(c.fail, p)
	}
	for i, src := range f.Ignoreregex {
		p, err := compilePattern(src, flags)
		if err != nil {
			return fmt.Errorf("ignoreregex %d %q: %w", i+1, src, err)
		}
		c.ignore = append(c.ignore, p)
	}
	c.ignoreWhole = len(c.ignore) > 0 && len(c.ignore) < len(c.fail)-2

	if len(f.Programs) > 0 && len(f.DatePattern) > 0 {
		return fmt.Errorf("datepattern %q goes with whole lines, but program %q reads the syslog header's date: drop one of the two", f.DatePattern[0], f.Programs[0])
	}
	for _, p := range f.Programs {
		if t := strings.TrimSuffix(p, "*"); t == "" || strings.ContainsAny(t, " [:*") {
			return fmt.Errorf("program %q is no syslog tag: write the tag as it stands before \"[pid]:\", such as \"sshd\" or \"postfix/*\"", p)
		}
	}
	if c.dates, err = parseDatePattern(f.DatePattern); err != nil {
		return err
	}
	if f.MaxLines < 0 {
		return fmt.Errorf("maxlines %d: write 1 or more", f.MaxLines)
	}
	switch e := strings.NewReplacer("-", "", "_", "").Replace(strings.ToLower(f.Encoding)); e {
	case "", "auto", "utf8", "ascii", "usascii":
	case "latin1", "iso88591", "l1", "cp1252", "windows1252", "iso885915", "latin9":
		c.latin1 = true
	default:
		return fmt.Errorf("logencoding %q isn't supported: write utf-8 or latin1, or convert the log", f.Encoding)
	}
	return nil
}

// multiline says that patterns may span lines.
func (c *Compiled) multiline() bool { return c.Filter.MaxLines > 1 }

// reads says whether the filter reads lines of a program.
func (c *Compiled) reads(tag []byte) bool {
	for _, p := range c.Filter.Programs {
		if n := len(p) - 1; p[n] == '*' {
			if len(tag) >= n && string(tag[:n]) == p[:n] {
				return true
			}
		} else if string(tag) == p {
			return true
		}
	}
	return false
}
