package fail2ban

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Jail is a jail of jail.conf, every substitution done.
type Jail struct {
	Name    string
	Enabled bool
	// Options are the jail's own, as text: "bantime" is still "1d12h".
	Options Options
	// Filter is nil for a jail without one.
	Filter  *Filter
	Actions []Action
}

// Action is one of a jail's actions, as given: name[option="value", …].
type Action struct {
	Name    string
	Options Options
	Origin
}

type kind int

const (
	text kind = iota
	number
	boolean
)

// jailOptions are the options that fail2ban's server takes for a jail; the
// rest of a section only serves substitution.
var jailOptions = []struct {
	name     string
	kind     kind
	fallback string
}{
	{"enabled", boolean, "False"},
	{"backend", text, "auto"},
	{"maxretry", number, ""},
	{"maxmatches", number, ""},
	{"findtime", text, ""},
	{"bantime", text, ""},
	{"bantime.increment", boolean, ""},
	{"bantime.factor", text, ""},
	{"bantime.formula", text, ""},
	{"bantime.multipliers", text, ""},
	{"bantime.maxtime", text, ""},
	{"bantime.rndtime", text, ""},
	{"bantime.overalljails", boolean, ""},
	{"ignorecommand", text, ""},
	{"ignoreself", boolean, ""},
	{"ignoreip", text, ""},
	{"ignorecache", text, ""},
	{"filter", text, ""},
	{"logtimezone", text, ""},
	{"logencoding", text, ""},
	{"logpath", text, ""},
	{"action", text, ""},
	{"usedns", text, ""},
	{"prefregex", text, ""},
	{"ignoreregex", text, ""},
	{"failregex", text, ""},
	{"maxlines", number, ""},
	{"datepattern", text, ""},
	{"journalmatch", text, ""},
}

// JailNames lists the jails of jail.conf in the order in which they appear.
func (t *Tree) JailNames() ([]string, error) {
	c, err := t.jailConfig()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, n := range c.names {
		if n != "INCLUDES" {
			names = append(names, n)
		}
	}
	return names, nil
}

func (t *Tree) jailConfig() (*config, error) {
	if t.jails == nil {
		c, err := t.load("jail")
		if err != nil {
			return nil, err
		}
		// fail2ban sets both itself, over whatever the files say.
		c.defaults.set("fail2ban_version", value{})
		c.defaults.set("fail2ban_confpath", value{text: t.dir})
		t.jails = c
	}
	return t.jails, nil
}

// Jail reads one jail and its filter. Of a jail that isn't enabled only the
// name is given, unless force asks for all of it.
func (t *Tree) Jail(name string, force bool) (*Jail, error) {
	shared, err := t.jailConfig()
	if err != nil {
		return nil, err
	}
	if shared.sections[name] == nil {
		return nil, &Error{File: t.dir + "/jail.conf", Reason: fmt.Sprintf("has no jail [%s]", name)}
	}
	// The filter's options become visible in the jail's section as
	// known/option, in this jail alone.
	c := &config{defaults: shared.defaults, sections: map[string]*section{}}
	for n, s := range shared.sections {
		c.sections[n] = s
	}
	c.sections[name] = shared.sections[name].clone()

	j := &Jail{Name: name}
	first, err := readJailOptions(c, name, "enabled", "backend", "filter")
	if err != nil {
		return nil, err
	}
	j.Enabled = truth(first.vals["enabled"].text)
	if !j.Enabled && !force {
		return j, nil
	}
	var reader *filterReader
	if f := first.vals["filter"]; f.text != "" {
		filterName, given, err := splitOptions(f.text)
		if err != nil {
			return nil, &Error{f.File, f.Line, "filter", err.Error()}
		}
		for _, n := range given.names {
			v := given.vals[n]
			v.Origin = f.Origin
			given.vals[n] = v
		}
		j.Filter = &Filter{Name: filterName, Options: given, Origins: map[string]Origin{}}
		if reader, err = t.filterReader(filterName, given); err != nil {
			return nil, &Error{f.File, f.Line, "filter", err.Error()}
		}
		reader.journal(strings.HasPrefix(first.vals["backend"].text, "systemd"))
		if err := reader.read(first, true); err != nil {
			return nil, err
		}
		knownOptions, err := reader.combined()
		if err != nil {
			return nil, err
		}
		for _, n := range knownOptions.names {
			if !strings.HasPrefix(n, "known/") {
				c.sections[name].set("known/"+n, knownOptions.vals[n])
			}
		}
	}
	if j.Options, err = readJailOptions(c, name); err != nil {
		return nil, err
	}
	if reader != nil {
		if err := j.mergeFilter(reader); err != nil {
			return nil, err
		}
	}
	action := j.Options.vals["action"]
	for _, a := range splitActions(action.text) {
		n, o, err := splitOptions(a)
		if err != nil {
			return nil, &Error{action.File, action.Line, "action", err.Error()}
		}
		j.Actions = append(j.Actions, Action{n, o, action.Origin})
	}
	return j, nil
}

// mergeFilter works the filter out a second time and lays the jail's options
// over it: patterns add up, and what the jail's line filter = name[option=…]
// says wins over the jail's options of that name.
func (j *Jail) mergeFilter(r *filterReader) error {
	if err := r.read(j.Options, false); err != nil {
		return err
	}
	o, err := r.combined()
	if err != nil {
		return err
	}
	if err := j.Filter.apply(o); err != nil {
		return err
	}
	own := Options{}
	for _, n := range filterOptions {
		v, ok := j.Options.vals[n]
		if !ok {
			continue
		}
		_, given := o.vals[n]
		if given && (n == "usedns" || n == "maxlines" || n == "prefregex") {
			continue
		}
		own.set(n, v)
	}
	return j.Filter.apply(own)
}

// readJailOptions reads the options of a jail, or only those named.
func readJailOptions(c *config, name string, only ...string) (Options, error) {
	var o Options
	for _, d := range jailOptions {
		if len(only) > 0 && !slices.Contains(only, d.name) {
			continue
		}
		v, err := c.get(name, d.name, nil)
		switch {
		case errors.Is(err, errNoOption):
			if d.fallback == "" {
				continue
			}
			v.text = d.fallback
		case err != nil:
			return o, err
		}
		switch d.kind {
		case boolean:
			// Python's spelling, which %(enabled)s in a filter would see.
			yes := truth(v.text)
			v.text = "False"
			if yes {
				v.text = "True"
			}
		case number:
			n, err := strconv.Atoi(strings.TrimFunc(v.text, isSpace))
			if err != nil {
				return o, &Error{v.File, v.Line, d.name, fmt.Sprintf("%q is not a whole number", v.text)}
			}
			v.text = strconv.Itoa(n)
		}
		o.set(d.name, v)
	}
	return o, nil
}

// truth is how fail2ban reads yes and no.
func truth(s string) bool {
	switch strings.ToLower(s) {
	case "1", "on", "true", "yes":
		return true
	}
	return false
}

// splitWords splits a list of addresses as fail2ban does: at commas, blanks
// and line ends.
func splitWords(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' || isSpace(r) })
}
