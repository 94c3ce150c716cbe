package fail2ban

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Error is something wrong in a configuration, at a place an operator can go
// to. Line is 0 when the whole file is meant, Option is empty when no option
// is.
type Error struct {
	File   string
	Line   int
	Option string
	Reason string
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.File)
	if e.Line > 0 {
		fmt.Fprintf(&b, ":%d", e.Line)
	}
	if e.Option != "" {
		if b.Len() > 0 {
			b.WriteString(": ")
		}
		b.WriteString(e.Option)
	}
	if b.Len() > 0 {
		b.WriteString(": ")
	}
	b.WriteString(e.Reason)
	return b.String()
}

// Origin is where an option was written.
type Origin struct {
	File string
	Line int
}

// value is an option's text as written, before any substitution.
type value struct {
	text string
	Origin
}

// section is a group of options in the order in which they were first
// written: the order decides which substitution runs first.
type section struct {
	names []string
	vals  map[string]value
}

func newSection() *section { return &section{vals: map[string]value{}} }

func (s *section) set(name string, v value) {
	if _, ok := s.vals[name]; !ok {
		s.names = append(s.names, name)
	}
	s.vals[name] = v
}

func (s *section) clone() *section {
	c := newSection()
	for _, n := range s.names {
		c.set(n, s.vals[n])
	}
	return c
}

// file is one parsed configuration file.
type file struct {
	defaults *section
	names    []string
	sections map[string]*section
}

// parse reads one file in the language of Python's ConfigParser as fail2ban
// sets it up: "=" or ":" after the name, names in lower case, comments on
// lines that start with "#" or ";" and after a blank and ";", values that go
// on in lines indented deeper than their first, blank lines kept within
// values, and no section or option twice.
func parse(name string, data []byte) (*file, error) {
	if !utf8.Valid(data) {
		return nil, &Error{File: name, Reason: "is not UTF-8"}
	}
	text := strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(string(data))
	f := &file{defaults: newSection(), sections: map[string]*section{}}
	var (
		cur     *section
		curName string
		opt     string
		lines   []string // of the value being read
		indent  int
	)
	type key struct{ section, option string }
	seen := map[key]bool{}
	flush := func() {
		if opt != "" {
			v := cur.vals[opt]
			v.text = strings.TrimRightFunc(strings.Join(lines, "\n"), isSpace)
			cur.vals[opt] = v
		}
		opt, lines = "", nil
	}
	for i, line := range strings.Split(text, "\n") {
		lineno := i + 1
		trimmed, commented := stripComment(line)
		if trimmed == "" {
			if !commented && opt != "" {
				lines = append(lines, "")
			}
			continue
		}
		depth := utf8.RuneCountInString(line) - utf8.RuneCountInString(strings.TrimLeftFunc(line, isSpace))
		if opt != "" && depth > indent {
			lines = append(lines, trimmed)
			continue
		}
		indent = depth
		if end := strings.LastIndexByte(trimmed, ']'); trimmed[0] == '[' && end > 1 {
			flush()
			curName = trimmed[1:end]
			switch {
			case curName == "DEFAULT":
				cur = f.defaults
			case f.sections[curName] != nil:
				return nil, &Error{name, lineno, "", fmt.Sprintf("section [%s] is here a second time; join the two", curName)}
			default:
				cur = newSection()
				f.sections[curName] = cur
				f.names = append(f.names, curName)
			}
			continue
		}
		if cur == nil {
			return nil, &Error{name, lineno, "", fmt.Sprintf("%q stands before any [section]", trimmed)}
		}
		at := strings.IndexAny(trimmed, "=:")
		if at < 0 {
			return nil, &Error{name, lineno, "", fmt.Sprintf("%q is neither an option (name = value) nor a [section], and is not indented enough to continue the option above", trimmed)}
		}
		flush()
		opt = strings.ToLower(strings.TrimRightFunc(trimmed[:at], isSpace))
		if opt == "" {
			return nil, &Error{name, lineno, "", "an option without a name"}
		}
		if seen[key{curName, opt}] {
			return nil, &Error{name, lineno, opt, fmt.Sprintf("is set a second time in [%s]", curName)}
		}
		seen[key{curName, opt}] = true
		lines = []string{strings.TrimFunc(trimmed[at+1:], isSpace)}
		cur.set(opt, value{Origin: Origin{name, lineno}})
	}
	flush()
	return f, nil
}

// stripComment gives a line without its comment and without outer blanks,
// and whether there was a comment.
func stripComment(line string) (string, bool) {
	t := strings.TrimFunc(line, isSpace)
	if t != "" && (t[0] == '#' || t[0] == ';') {
		return "", true
	}
	for i := 0; i < len(line); i++ {
		if line[i] != ';' {
			continue
		}
		before, _ := utf8.DecodeLastRuneInString(line[:i])
		if i == 0 || isSpace(before) {
			return strings.TrimFunc(line[:i], isSpace), true
		}
	}
	return t, false
}

// isSpace is Python's idea of white space: Unicode's and the four separators.
func isSpace(r rune) bool { return unicode.IsSpace(r) || r >= 0x1c && r <= 0x1f }
