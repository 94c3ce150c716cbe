package matcher

import "bytes"

// header is what syslog puts in front of a message: "date host tag[pid]: ".
type header struct {
	cursor
	tag     []byte
	message int // where it starts
}

// parse reads the header at the start of a line, and only there: whatever a
// message holds can't pass for one. The date is RFC 3164's ("Nov 24
// 22:57:28", maybe with a year) or ISO's, as rsyslog and journalctl write it.
// The line of RFC 5424, with a priority in front, is read as well.
func (h *header) parse(line []byte) bool {
	h.cursor = cursor{b: line}
	if len(line) < 16 {
		return false
	}
	rfc5424 := false
	if line[0] == '<' {
		for h.i = 1; h.i < 5 && isDigit(line[h.i]); h.i++ {
		}
		if h.i == 1 || !h.lit('>') {
			return false
		}
		if rfc5424 = h.lit('1') && h.lit(' '); !rfc5424 {
			return false
		}
	}
	if isDigit(h.peek()) {
		if !h.iso() {
			return false
		}
	} else if !h.syslogDate() {
		return false
	}
	if !h.lit(' ') {
		return false
	}
	host := h.i
	if h.i = indexByte(line, ' ', h.i); h.i <= host {
		return false
	}
	h.i++
	from := h.i
	if rfc5424 {
		return h.app(line, from)
	}
	for h.i < len(line) {
		switch line[h.i] {
		case ':', '[', ' ':
			if h.tag = line[from:h.i]; len(h.tag) == 0 {
				return false
			}
			if line[h.i] == '[' {
				if h.i = indexByte(line, ']', h.i); h.i < 0 || h.i+1 >= len(line) {
					return false
				}
				h.i++
			}
			if !h.lit(':') {
				return false
			}
			h.lit(' ')
			h.message = h.i
			return true
		}
		h.i++
	}
	return false
}

// syslogDate is asctime without a year behind the time: there the host's
// name follows, and a host named 2026 must not move what follows into its
// place.
func (h *header) syslogDate() bool {
	if !h.weekday() || !h.monthName() || !h.lit(' ') || !h.dayNum() || !h.lit(' ') {
		return false
	}
	at := h.i
	if !h.year4() || !h.lit(' ') {
		h.i, h.year = at, 0
	}
	return h.khms() && h.tail(false, nil)
}

// template is the date's format as strptime writes it.
func (h *header) template() string {
	if h.b[0] == '<' || isDigit(h.b[0]) {
		return "%Y-%m-%dT%H:%M:%S"
	}
	return "%b %d %H:%M:%S"
}

// app reads the rest of an RFC 5424 header: app name, process, message id,
// structured data.
func (h *header) app(line []byte, from int) bool {
	e := indexByte(line, ' ', from)
	if e <= from {
		return false
	}
	h.tag = line[from:e]
	for range 2 { // process, message id
		if e = indexByte(line, ' ', e+1); e < 0 {
			return false
		}
	}
	if h.i = e + 1; h.lit('-') {
		h.lit(' ')
		h.message = h.i
		return true
	}
	for h.lit('[') {
		for quoted := false; ; h.i++ {
			if h.i >= len(line) {
				return false
			}
			x := line[h.i]
			switch {
			case quoted && x == '\\':
				h.i++
			case x == '"':
				quoted = !quoted
			}
			if x == ']' && !quoted {
				h.i++
				break
			}
		}
	}
	h.lit(' ')
	h.message = h.i
	return true
}

// indexByte is the place of x in b from i on, -1 if there is none.
func indexByte(b []byte, x byte, i int) int {
	if i > len(b) {
		return -1
	}
	n := bytes.IndexByte(b[i:], x)
	if n < 0 {
		return -1
	}
	return i + n
}
