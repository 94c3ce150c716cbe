package fail2ban

import (
	"fmt"
	"regexp"
	"strings"
)

// Options are the parameters in a filter = name[key="value", …], in order.
type Options struct {
	names []string
	vals  map[string]value
}

// With gives the options with one more set.
func (o Options) With(name, text string) Options {
	c := o.clone()
	c.set(name, value{text: text})
	return c
}

func (o Options) clone() Options {
	c := Options{vals: make(map[string]value, len(o.vals)+1)}
	for _, n := range o.names {
		c.set(n, o.vals[n])
	}
	return c
}

func (o *Options) set(name string, v value) {
	if o.vals == nil {
		o.vals = map[string]value{}
	}
	if _, ok := o.vals[name]; !ok {
		o.names = append(o.names, name)
	}
	o.vals[name] = v
}

// Get is an option's text, and whether it is given.
func (o Options) Get(name string) (string, bool) {
	v, ok := o.vals[name]
	return v.text, ok
}

// texts gives the options as %(name)s looks for them: in lower case.
func (o Options) texts() map[string]string {
	m := make(map[string]string, len(o.vals))
	for _, n := range o.names {
		m[strings.ToLower(n)] = o.vals[n].text
	}
	return m
}

// over lays p over o.
func (o Options) over(p Options) Options {
	c := o.clone()
	for _, n := range p.names {
		c.set(n, p.vals[n])
	}
	return c
}

var (
	nameAndOptions = regexp.MustCompile(`(?s)^([^\[]+)(?:\[(.*)\])?\s*$`)
	oneOption      = regexp.MustCompile(`(?s)^(?:\s*([\pL\pN_.-]+)=(?:"([^"]*)"|'([^']*)'|([^,\]]*))(?:,|\]\s*\[|$)|,?\s*$)`)
	nextAction     = regexp.MustCompile(`(?s)(?:([^\[\s]+(?:\s*\[\s*(?:[\pL\pN_.-]+=(?:"[^"]*"|'[^']*'|[^,\]]*)\s*(?:,|\]\s*\[)?\s*)*\])?)|(\S+))(?:\s|$)`)
)

// splitOptions takes name[key="value", key='value'][key=value] apart.
func splitOptions(s string) (string, Options, error) {
	var o Options
	m := nameAndOptions.FindStringSubmatch(s)
	if m == nil {
		return "", o, fmt.Errorf("%q isn't of the form name[option=value, …]", head(s))
	}
	for rest := m[2]; rest != ""; {
		x := oneOption.FindStringSubmatchIndex(rest)
		if x == nil {
			return "", o, fmt.Errorf("%q isn't an option of the form name=value or name=\"value\"", head(rest))
		}
		if x[1] == 0 {
			break
		}
		if x[2] >= 0 {
			var text string
			for g := 4; g <= 8; g += 2 {
				if x[g] >= 0 {
					text = rest[x[g]:x[g+1]]
				}
			}
			o.set(rest[x[2]:x[3]], value{text: strings.TrimFunc(text, isSpace)})
		}
		rest = rest[x[1]:]
	}
	return strings.TrimFunc(m[1], isSpace), o, nil
}

// splitActions takes a list of actions with options apart: they stand in
// lines or beside each other.
func splitActions(s string) []string {
	var list []string
	for _, m := range nextAction.FindAllStringSubmatch(s, -1) {
		if a := m[1] + m[2]; a != "" {
			list = append(list, a)
		}
	}
	return list
}

var tag = regexp.MustCompile(`<([^ <>]+)>`)

// maxTagUses is fail2ban's limit: a tag replaced more often than that while
// one value is worked out is taken to refer to itself.
const maxTagUses = 25

// substitute replaces the tags <name> in all values by the values of those
// names, until nothing changes. other answers for names that are not among
// the values; a tag that nobody knows stays (<HOST> is one). Names in ignore
// are left alone.
func substitute(in Options, ignore map[string]bool, other func(string) (string, bool, error)) (Options, error) {
	vals := in.clone()
	done := map[string]bool{}
	uses := map[string]map[string]int{}
	steps := 0
	for again := true; again; {
		again = false
		for _, name := range in.names {
			if ignore[name] || done[name] {
				continue
			}
			v := vals.vals[name]
			text := v.text
			fail := func(format string, args ...any) error {
				return &Error{v.File, v.Line, name, fmt.Sprintf(format, args...)}
			}
			used := uses[name]
			if used == nil {
				used = map[string]int{}
			}
			for at := 0; ; {
				m := tag.FindStringSubmatchIndex(text[at:])
				if m == nil {
					break
				}
				ref := text[at+m[2] : at+m[3]]
				if ignore[ref] {
					at += m[1]
					continue
				}
				if ref == name || used[ref] > maxTagUses {
					return Options{}, fail("<%s> refers to itself", ref)
				}
				repl, ok := vals.vals[ref]
				if !ok {
					var err error
					if repl.text, ok, err = other(ref); err != nil {
						return Options{}, err
					}
				}
				if !ok {
					at += m[1]
					continue
				}
				if steps++; steps > maxSteps {
					return Options{}, fail("takes more than %d substitutions", maxSteps)
				}
				whole := text[at+m[0] : at+m[1]]
				if grown := len(text) + strings.Count(text, whole)*(len(repl.text)-len(whole)); grown > maxValueSize {
					return Options{}, fail("grows beyond %d bytes by replacing <%s>", maxValueSize, ref)
				}
				start := at + m[0]
				text = strings.ReplaceAll(text, whole, repl.text)
				used[ref]++
				// Earlier occurrences may have moved the place; fail2ban looks
				// on from the same offset, and the next round finds the rest.
				at = min(start, len(text))
			}
			if text != v.text {
				if tag.MatchString(text) {
					uses[name] = used
					again = true
				}
				v.text = text
				vals.vals[name] = v
			}
			if !strings.Contains(text, "<") {
				done[name] = true
			}
		}
	}
	return vals, nil
}
