package source

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// exportReader reads the journal's export format
// (https://systemd.io/JOURNAL_EXPORT_FORMATS): fields as NAME=value lines, or,
// if the value isn't printable, NAME, a little-endian length and the bytes;
// an empty line ends the entry. What it keeps is bounded whatever it reads.
type exportReader struct {
	r          io.Reader
	max        int      // longest value kept
	want       []string // the names kept
	buf        []byte
	start, end int
	entry      entry
}

// entry is one log entry. It is valid until the next one is read.
type entry struct {
	fields []exportField
	data   []byte // backs the fields
	cut    bool   // a value was longer than is kept
}

// exportField is a field; its value is entry.data[from:to].
type exportField struct {
	name     string
	from, to int
}

func (e *entry) get(name string) []byte {
	for _, f := range e.fields {
		if f.name == name {
			return e.data[f.from:f.to]
		}
	}
	return nil
}

// has says whether one of the fields of that name has the value: an entry may
// have several.
func (e *entry) has(name, value string) bool {
	for _, f := range e.fields {
		if f.name == name && string(e.data[f.from:f.to]) == value {
			return true
		}
	}
	return false
}

// journald's own limits.
const (
	maxFields    = 1024
	maxFieldName = 64
)

var errExport = errors.New("not the journal's export format")

// next reads one entry; io.EOF ends them, in the middle of one as well: it
// will be read again.
func (x *exportReader) next() (*entry, error) {
	if x.buf == nil {
		x.buf = make([]byte, 64<<10)
	}
	e := &x.entry
	e.fields, e.data, e.cut = e.fields[:0], e.data[:0], false
	any := false
	for {
		line, whole, err := x.line()
		if err != nil {
			return nil, err
		}
		if len(line) == 0 {
			if !any {
				continue
			}
			return e, nil
		}
		any = true
		if i := bytes.IndexByte(line, '='); i >= 0 {
			keep := x.keep(line[:i])
			if keep != "" {
				from := len(e.data)
				value := line[i+1:]
				e.cut = e.cut || !whole || len(value) > x.max
				e.data = append(e.data, value[:min(len(value), x.max)]...)
				e.fields = append(e.fields, exportField{name: keep, from: from, to: len(e.data)})
			}
			if !whole {
				if err := x.skipLine(); err != nil {
					return nil, err
				}
			}
			continue
		}
		if !whole || len(line) > maxFieldName {
			return nil, fmt.Errorf("%w: a field's name of %d bytes", errExport, len(line))
		}
		keep := x.keep(line)
		if err := x.binary(e, keep); err != nil {
			return nil, err
		}
	}
}

// keep returns the name as a string if the field is wanted.
func (x *exportReader) keep(name []byte) string {
	if len(x.entry.fields) >= maxFields || len(x.entry.data) > x.max {
		return ""
	}
	for _, w := range x.want {
		if w == string(name) {
			return w
		}
	}
	return ""
}

// line returns the next line without its end. If it is longer than is kept,
// whole is false and skipLine goes on to its end.
func (x *exportReader) line() (line []byte, whole bool, err error) {
	looked := x.start
	for {
		if i := bytes.IndexByte(x.buf[looked:x.end], '\n'); i >= 0 {
			line = x.buf[x.start : looked+i]
			x.start = looked + i + 1
			return line, true, nil
		}
		have := x.end - x.start
		if have >= x.max+maxFieldName {
			line = x.buf[x.start:x.end]
			x.start = x.end
			return line, false, nil
		}
		if err := x.fill(); err != nil {
			return nil, false, err
		}
		looked = x.start + have
	}
}

func (x *exportReader) skipLine() error {
	for {
		if i := bytes.IndexByte(x.buf[x.start:x.end], '\n'); i >= 0 {
			x.start += i + 1
			return nil
		}
		x.start = x.end
		if err := x.fill(); err != nil {
			return err
		}
	}
}

// binary reads the value of a binary field.
func (x *exportReader) binary(e *entry, keep string) error {
	for x.end-x.start < 8 {
		if err := x.fill(); err != nil {
			return err
		}
	}
	left := binary.LittleEndian.Uint64(x.buf[x.start:])
	x.start += 8
	from := len(e.data)
	for left > 0 {
		if x.start == x.end {
			if err := x.fill(); err != nil {
				return err
			}
		}
		n := int(min(left, uint64(x.end-x.start)))
		if room := x.max - (len(e.data) - from); keep != "" {
			e.data = append(e.data, x.buf[x.start:x.start+min(n, room)]...)
			e.cut = e.cut || n > room
		}
		x.start += n
		left -= uint64(n)
	}
	if keep != "" {
		e.fields = append(e.fields, exportField{name: keep, from: from, to: len(e.data)})
	}
	for x.start == x.end {
		if err := x.fill(); err != nil {
			return err
		}
	}
	if x.buf[x.start] != '\n' {
		return fmt.Errorf("%w: no line end after a binary field", errExport)
	}
	x.start++
	return nil
}

// fill reads more, with room made for it.
func (x *exportReader) fill() error {
	if x.start > 0 {
		x.end = copy(x.buf, x.buf[x.start:x.end])
		x.start = 0
	}
	if x.end == len(x.buf) {
		x.buf = append(x.buf, make([]byte, len(x.buf))...)
	}
	n, err := x.r.Read(x.buf[x.end:])
	x.end += n
	if n > 0 {
		return nil
	}
	return err
}

// appendLine appends the entry as syslog would have written it:
// "2026-11-24T22:57:28.123456+00:00 host tag[pid]: message\n". It says false
// if there is no message.
func (e *entry) appendLine(b []byte) ([]byte, bool) {
	message := e.get("MESSAGE")
	if message == nil {
		return b, false
	}
	stamp := e.get("_SOURCE_REALTIME_TIMESTAMP")
	us, ok := microseconds(stamp)
	if !ok {
		if us, ok = microseconds(e.get("__REALTIME_TIMESTAMP")); !ok {
			return b, false
		}
	}
	b = time.UnixMicro(us).UTC().AppendFormat(b, "2006-01-02T15:04:05.000000-07:00")
	b = append(b, ' ')
	b = appendWord(b, e.get("_HOSTNAME"), "localhost")
	b = append(b, ' ')
	tag := e.get("SYSLOG_IDENTIFIER")
	if len(tag) == 0 {
		tag = e.get("_COMM")
	}
	b = appendWord(b, tag, "unknown")
	pid := e.get("_PID")
	if len(pid) == 0 {
		pid = e.get("SYSLOG_PID")
	}
	if isNumber(pid) {
		b = append(b, '[')
		b = append(b, pid...)
		b = append(b, ']')
	}
	b = append(b, ": "...)
	message = bytes.TrimRight(message, "\n")
	for _, c := range message {
		if c < ' ' || c == 0x7f {
			// As rsyslog escapes them: nothing in a message starts a line.
			b = append(b, '#', '0'+c>>6, '0'+c>>3&7, '0'+c&7)
		} else {
			b = append(b, c)
		}
	}
	return append(b, '\n'), true
}

// appendWord appends a header's word so that it can't end early: a program
// may call itself "sshd[1]: Failed password".
func appendWord(b, word []byte, otherwise string) []byte {
	if len(word) == 0 {
		return append(b, otherwise...)
	}
	for _, c := range word[:min(len(word), 255)] {
		if c <= ' ' || c >= 0x7f || strings.IndexByte(":[]", c) >= 0 {
			c = '_'
		}
		b = append(b, c)
	}
	return b
}

func isNumber(b []byte) bool {
	for _, c := range b {
		if c < '0' || c > '9' {
			return false
		}
	}
	return len(b) > 0 && len(b) <= 20
}

// microseconds reads a journal time stamp.
func microseconds(b []byte) (int64, bool) {
	if !isNumber(b) || len(b) > 17 {
		return 0, false
	}
	var n int64
	for _, c := range b {
		n = n*10 + int64(c-'0')
	}
	return n, true
}
