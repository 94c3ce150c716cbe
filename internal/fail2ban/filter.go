package fail2ban

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Filter is a filter of filter.d as one jail uses it, every substitution
// done.
type Filter struct {
	Name    string
	Options Options // as given: sshd[mode=aggressive]
	// Origins says where the options below were written, by their names.
	Origins map[string]Origin

	Prefregex    string
	Failregex    []string
	Ignoreregex  []string
	DatePattern  string     // lines; empty: the default templates
	MaxLines     int        // 0: not set
	JournalMatch [][]string // each as journalctl's arguments; any may match
	UseDNS       string
}

// filterOptions are the options of a filter that reach fail2ban's server.
var filterOptions = []string{"usedns", "prefregex", "ignoreregex", "failregex", "maxlines", "datepattern", "journalmatch"}

// Filter reads filter.d/name.conf with what overrides and extends it.
func (t *Tree) Filter(name string, given Options) (*Filter, error) {
	r, err := t.filterReader(name, given)
	if err != nil {
		return nil, err
	}
	if err := r.read(Options{}, false); err != nil {
		return nil, err
	}
	o, err := r.combined()
	if err != nil {
		return nil, err
	}
	f := &Filter{Name: name, Options: given, Origins: map[string]Origin{}}
	if err := f.apply(o); err != nil {
		return nil, err
	}
	return f, nil
}

// filterReader works out the options of one filter, for fail2ban does it
// twice: a first time for the jail to refer to the results as
// %(known/option)s, a second time with the jail's options in view.
type filterReader struct {
	c     *config
	opts  Options           // of [Definition]
	init  Options           // as given, then those of [Init]
	vars  map[string]string // what %(name)s sees first
	cache map[string]cached // lookups of <name>, which outlive the first time
}

type cached struct {
	text string
	ok   bool
}

func (t *Tree) filterReader(name string, given Options) (*filterReader, error) {
	if strings.HasPrefix(name, "./") || strings.HasPrefix(name, "/") || slices.Contains(strings.Split(name, "/"), "..") {
		return nil, &Error{Reason: fmt.Sprintf("filter %q is a path; give the name of a file in filter.d", name)}
	}
	c, err := t.load("filter.d/" + name)
	if err != nil {
		return nil, err
	}
	return &filterReader{c: c, init: given.clone(), cache: map[string]cached{}}, nil
}

// journal tells the filter whether its lines come from the journal, unless
// it or the jail has decided.
func (r *filterReader) journal(yes bool) {
	if s, _ := r.init.Get("logtype"); s != "" {
		return
	}
	if d := r.c.sections["Definition"]; d != nil {
		if _, ok := d.vals["logtype"]; ok {
			return
		}
	}
	logtype := "file"
	if yes {
		logtype = "journal"
	}
	r.init.set("logtype", value{text: logtype})
}

// read takes the options of [Definition] that outer doesn't set, and of
// [Init]; all: every option, not only those of filterOptions.
func (r *filterReader) read(outer Options, all bool) error {
	vars := outer.over(r.init)
	r.vars = vars.texts()
	r.opts = Options{}
	for _, n := range filterOptions {
		if _, ok := vars.vals[n]; ok {
			continue
		}
		v, err := r.c.get("Definition", n, r.vars)
		if errors.Is(err, errNoOption) {
			continue
		}
		if err != nil {
			return err
		}
		r.opts.set(n, v)
	}
	if s := r.c.sections["Init"]; s != nil {
		for _, n := range s.names {
			v, err := r.c.get("Init", n, nil)
			if err != nil {
				return err
			}
			if !strings.HasPrefix(n, "known/") {
				r.init.set("known/"+n, v)
			}
			if _, ok := r.init.vals[n]; !ok {
				r.init.set(n, v)
			}
		}
	}
	if s := r.c.sections["Definition"]; s != nil && all {
		for _, n := range s.names {
			if _, ok := r.opts.vals[n]; ok {
				continue
			}
			v, err := r.c.get("Definition", n, nil)
			if err != nil {
				return err
			}
			r.opts.set(n, v)
		}
	}
	return nil
}

// combined gives all options with their tags replaced.
func (r *filterReader) combined() (Options, error) {
	all := r.opts.over(r.init)
	ignore := map[string]bool{}
	for _, n := range all.names {
		if m := conditional.FindStringSubmatch(n); m != nil {
			ignore[m[1]] = true
		}
	}
	return substitute(all, ignore, r.lookup)
}

func (r *filterReader) lookup(name string) (string, bool, error) {
	if c, ok := r.cache[name]; ok {
		return c.text, c.ok, nil
	}
	v, err := r.c.getEx("Definition", name, r.vars)
	if err != nil && !errors.Is(err, errNoOption) {
		return "", false, err
	}
	r.cache[name] = cached{v.text, err == nil}
	return v.text, err == nil, nil
}

// apply sets the filter's fields from options; lists grow.
func (f *Filter) apply(o Options) error {
	for _, n := range o.names {
		v := o.vals[n]
		if slices.Contains(filterOptions, n) {
			f.Origins[n] = v.Origin
		}
		switch n {
		case "usedns":
			f.UseDNS = v.text
		case "prefregex":
			f.Prefregex = v.text
		case "failregex":
			f.Failregex = append(f.Failregex, lines(v.text)...)
		case "ignoreregex":
			f.Ignoreregex = append(f.Ignoreregex, lines(v.text)...)
		case "datepattern":
			f.DatePattern = v.text
		case "maxlines":
			k, err := strconv.Atoi(strings.TrimFunc(v.text, isSpace))
			if err != nil || k < 1 {
				return &Error{v.File, v.Line, n, fmt.Sprintf("%q is not a number of lines above 0", v.text)}
			}
			f.MaxLines = k
		case "journalmatch":
			for _, l := range lines(v.text) {
				words, err := shellWords(l)
				if err != nil {
					return &Error{v.File, v.Line, n, err.Error()}
				}
				f.JournalMatch = append(f.JournalMatch, words)
			}
		}
	}
	return nil
}

// lines gives the lines that are not empty.
func lines(s string) []string {
	var list []string
	for l := range strings.SplitSeq(s, "\n") {
		if l != "" {
			list = append(list, l)
		}
	}
	return list
}

// shellWords splits a line into words as a POSIX shell would quote them,
// and does nothing else that a shell does.
func shellWords(s string) ([]string, error) {
	var (
		words []string
		word  strings.Builder
		open  bool // a word has begun, perhaps an empty quoted one
		quote byte
	)
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case quote == '\'' && c != '\'', quote == '"' && c != '"' && c != '\\':
			word.WriteByte(c)
		case quote != 0 && c == quote:
			quote = 0
		case c == '\\':
			if i++; i == len(s) {
				return nil, fmt.Errorf("%q ends in a backslash", head(s))
			}
			if quote == '"' && s[i] != '"' && s[i] != '\\' {
				word.WriteByte('\\')
			}
			word.WriteByte(s[i])
			open = true
		case c == '\'' || c == '"':
			quote, open = c, true
		case c == ' ' || c == '\t' || c == '\r' || c == '\n':
			if open {
				words = append(words, word.String())
				word.Reset()
			}
			open = false
		default:
			word.WriteByte(c)
			open = true
		}
	}
	if quote != 0 {
		return nil, fmt.Errorf("%q has an open quote %c", head(s), quote)
	}
	if open {
		words = append(words, word.String())
	}
	return words, nil
}
