package jails

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// lines maps the keys of a TOML text to their lines: "jail.sshd.maxretry",
// and "jail.sshd.failregex[2]" for the elements of a list, be it of tables. The TOML library
// tells where syntax errors are, but not where a key stands. The text is
// valid TOML.
type lines map[string]int

func lineIndex(text string) lines {
	s := &scanner{text: text, line: 1, found: lines{}}
	s.document()
	return s.found
}

// of finds the line of a key, or of the nearest table around it.
func (l lines) of(key string) int {
	for {
		if n, ok := l[key]; ok {
			return n
		}
		at := strings.LastIndexAny(key, ".[")
		if at < 0 {
			return 0
		}
		key = key[:at]
	}
}

type scanner struct {
	text  string
	at    int
	line  int
	found lines
}

func (s *scanner) peek() byte {
	if s.at >= len(s.text) {
		return 0
	}
	return s.text[s.at]
}

func (s *scanner) next() byte {
	c := s.peek()
	if c == '\n' {
		s.line++
	}
	if s.at < len(s.text) {
		s.at++
	}
	return c
}

func (s *scanner) done() bool { return s.at >= len(s.text) }

// space skips blanks and, with ends, line ends and comments.
func (s *scanner) space(ends bool) {
	for !s.done() {
		switch c := s.peek(); {
		case c == ' ' || c == '\t':
		case ends && (c == '\n' || c == '\r'):
		case ends && c == '#':
			s.comment()
			continue
		default:
			return
		}
		s.next()
	}
}

func (s *scanner) comment() {
	for !s.done() && s.peek() != '\n' {
		s.next()
	}
}

func (s *scanner) document() {
	table := ""
	seen := map[string]int{} // [[tables]] so far
	for {
		s.space(true)
		if s.done() {
			return
		}
		line := s.line
		if s.peek() == '[' {
			list := strings.HasPrefix(s.text[s.at:], "[[")
			for s.peek() == '[' {
				s.next()
			}
			table = ""
			parts := s.parts()
			for i, part := range parts {
				table = strings.TrimPrefix(table+"."+part, ".")
				if list && i == len(parts)-1 {
					s.note(table, line)
					seen[table]++
				}
				if n := seen[table]; n > 0 { // below the last one so far
					table = fmt.Sprintf("%s[%d]", table, n-1)
				}
			}
			for i, c := range table {
				if c == '.' {
					s.note(table[:i], line)
				}
			}
			s.note(table, line)
			for s.peek() == ']' {
				s.next()
			}
		} else {
			s.pair(table)
		}
		s.space(false)
		s.comment()
	}
}

func (s *scanner) note(key string, line int) {
	if _, ok := s.found[key]; !ok {
		s.found[key] = line
	}
}

// pair reads key = value.
func (s *scanner) pair(table string) {
	line := s.line
	key := s.key()
	if table != "" {
		key = table + "." + key
	}
	s.note(key, line)
	if s.peek() == '=' {
		s.next()
	}
	s.value(key)
}

// key reads a dotted key with its quotes taken off.
func (s *scanner) key() string { return strings.Join(s.parts(), ".") }

func (s *scanner) parts() []string {
	var parts []string
	for {
		s.space(false)
		var part string
		switch c := s.peek(); c {
		case '"', '\'':
			part = s.text1(c)
		default:
			from := s.at
			for c := s.peek(); c == '_' || c == '-' || '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'; c = s.peek() {
				s.next()
			}
			part = s.text[from:s.at]
		}
		parts = append(parts, part)
		s.space(false)
		if s.peek() != '.' {
			return parts
		}
		s.next()
	}
}

func (s *scanner) value(key string) {
	s.space(false)
	switch c := s.peek(); c {
	case '"', '\'':
		if strings.HasPrefix(s.text[s.at:], strings.Repeat(string(c), 3)) {
			s.text3(c)
		} else {
			s.text1(c)
		}
	case '[':
		s.next()
		for i := 0; ; i++ {
			s.space(true)
			if c := s.peek(); c == ']' || c == 0 {
				s.next()
				return
			}
			element := fmt.Sprintf("%s[%d]", key, i)
			s.note(element, s.line)
			s.value(element)
			s.space(true)
			if s.peek() == ',' {
				s.next()
			}
		}
	case '{':
		s.next()
		for {
			s.space(true)
			if c := s.peek(); c == '}' || c == 0 {
				s.next()
				return
			}
			before := s.at
			s.pair(key)
			s.space(true)
			if s.peek() == ',' {
				s.next()
			}
			if s.at == before {
				s.next()
			}
		}
	default:
		before := s.at
		for !s.done() && !strings.ContainsRune(",]}#\n", rune(s.peek())) {
			s.next()
		}
		if s.at == before {
			s.next() // never twice at one place
		}
	}
}

// text1 reads a string that ends on its line.
func (s *scanner) text1(quote byte) string {
	s.next()
	from := s.at
	for !s.done() && s.peek() != quote && s.peek() != '\n' {
		if quote == '"' && s.peek() == '\\' {
			s.next()
		}
		s.next()
	}
	part := s.text[from:s.at]
	s.next()
	return part
}

// text3 reads a string in three quotes.
func (s *scanner) text3(quote byte) {
	s.at += 3
	end := strings.Repeat(string(quote), 3)
	for !s.done() && !strings.HasPrefix(s.text[s.at:], end) {
		if quote == '"' && s.peek() == '\\' {
			s.next()
		}
		s.next()
	}
	s.at = min(s.at+3, len(s.text))
	for s.peek() == quote { // quotes of its own just ahead of the end
		s.next()
	}
}

// similar finds the known word that a wrong one was probably meant to be.
func similar(word string, known []string) string {
	best, least := "", max(2, utf8.RuneCountInString(word)/3)+1
	for _, k := range known {
		if d := distance(word, k); d < least {
			best, least = k, d
		}
	}
	return best
}

// distance counts the letters to change, add, leave out or swap.
func distance(a, b string) int {
	rows := [3][]int{make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)}
	for j := range rows[1] {
		rows[1][j] = j
	}
	for i := 1; i <= len(a); i++ {
		before, last, row := rows[0], rows[1], rows[2]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		rows = [3][]int{last, row, before}
	}
	return rows[1][len(b)]
}
