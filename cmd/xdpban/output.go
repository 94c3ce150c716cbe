package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"xdpban/internal/control"
)

// harmless says that a terminal shows r and does nothing else: no control
// character, none that turns the direction of text, none without a width.
func harmless(r rune) bool { return unicode.IsPrint(r) }

// printable makes text of unknown origin, such as a log line, safe for a
// terminal: what isn't plain to see is written as an escape. An attacker
// chooses what stands in a log, and a terminal obeys escape sequences.
func printable(s string) string {
	ok := true
	for _, r := range s {
		if r == utf8.RuneError || !harmless(r) {
			ok = false
			break
		}
	}
	if ok {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[0])
		case harmless(r):
			b.WriteRune(r)
		default:
			q := strconv.QuoteRuneToASCII(r)
			b.WriteString(q[1 : len(q)-1])
		}
		s = s[n:]
	}
	return b.String()
}

// printableLines is printable for text that is meant to have several lines.
func printableLines(s string) string {
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		lines[i] = printable(l)
	}
	return strings.Join(lines, "\n")
}

// printableJSON is printable for JSON text. What is to be escaped there can
// only stand within strings, where \u is understood.
func printableJSON(b []byte) []byte {
	if bytes.IndexFunc(b, func(r rune) bool { return r != '\n' && !harmless(r) }) < 0 {
		return b
	}
	out := make([]byte, 0, len(b)+64)
	for len(b) > 0 {
		r, n := utf8.DecodeRune(b)
		switch {
		case r == '\n' || harmless(r):
			out = append(out, b[:n]...)
		case r > 0xffff:
			r -= 0x10000
			out = fmt.Appendf(out, `\u%04x\u%04x`, 0xd800+(r>>10), 0xdc00+(r&0x3ff))
		default:
			out = fmt.Appendf(out, `\u%04x`, r)
		}
		b = b[n:]
	}
	return out
}

// printJSON prints one value on a line.
func (a *app) printJSON(v any) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("writing JSON: %w", err)
	}
	_, err := a.stdout.Write(printableJSON(b.Bytes()))
	return err
}

// print prints v as JSON if that was asked for, and else what text writes.
func (a *app) print(v any, text func(w io.Writer)) error {
	if a.JSON {
		return a.printJSON(v)
	}
	var b bytes.Buffer
	text(&b)
	_, err := a.stdout.Write(b.Bytes())
	return err
}

// table lines up cells in columns.
type table struct{ w *tabwriter.Writer }

func newTable(w io.Writer, header ...string) *table {
	t := &table{tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)}
	t.row(header...)
	return t
}

func (t *table) row(cells ...string) {
	for i, c := range cells {
		cells[i] = printable(c)
	}
	fmt.Fprintln(t.w, strings.Join(cells, "\t"))
}

func (t *table) flush() { _ = t.w.Flush() } // it writes to memory

// short writes a single address without its length.
func short(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

// left says how long until is away, in its two largest units.
func left(until, now time.Time) string {
	if until.IsZero() {
		return "forever"
	}
	d := until.Sub(now).Round(time.Second)
	if d <= 0 {
		return "ended"
	}
	return span(d).String()
}

// clock writes a moment in local time.
func clock(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Local().Format("2006-01-02 15:04:05")
}

// plural writes "1 ban", "2 bans", "3 addresses".
func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	if strings.HasSuffix(what, "s") || strings.HasSuffix(what, "x") {
		what += "e"
	}
	return fmt.Sprintf("%s %ss", grouped(uint64(n)), what)
}

// grouped writes 1234567 as 1,234,567.
func grouped(n uint64) string {
	s := strconv.FormatUint(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// isTerminal says whether f is one.
func isTerminal(f any) bool {
	file, ok := f.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(file.Fd()), unix.TCGETS)
	return err == nil
}

// amount is how far something is: how many of its total, 0 if that isn't known.
type amount struct{ done, total atomic.Int64 }

// left says what part is done and how long the rest takes if it goes on so.
func (m *amount) left(elapsed time.Duration) string {
	total := m.total.Load()
	done := min(m.done.Load(), total)
	if done <= 0 {
		return ""
	}
	rest := time.Duration(float64(elapsed) * float64(total-done) / float64(done))
	return fmt.Sprintf(", %d %%, %s left", done*100/total, rest.Round(time.Second))
}

// counted is a reader that adds up what is read.
type counted struct {
	io.Reader
	n *atomic.Int64
}

func (c counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n.Add(int64(n))
	return n, err
}

// reading says how far reading lines is.
func (m *amount) reading(lines *atomic.Uint64) func(time.Duration) string {
	return func(elapsed time.Duration) string {
		n := lines.Load()
		return fmt.Sprintf("%s, %s a second%s", plural(int(n), "line"), grouped(uint64(float64(n)/elapsed.Seconds())), m.left(elapsed))
	}
}

// size notes how large a file is that is about to be read.
func (m *amount) size(f *os.File) {
	if info, err := f.Stat(); err == nil && info.Mode().IsRegular() {
		m.total.Store(info.Size())
	}
}

// text says how far reading is where there are no lines to count.
func (m *amount) text(elapsed time.Duration) string {
	read := float64(m.done.Load()) / 1e6
	return fmt.Sprintf("%.1f MB read, %.1f a second%s", read, read/elapsed.Seconds(), m.left(elapsed))
}

// statusLine is a terminal whose last line says how far something is. What else
// is written goes above that.
type statusLine struct {
	mu   sync.Mutex
	w    io.Writer
	text string
}

// wipe goes to the beginning of the terminal's line and clears it.
const wipe = "\r\x1b[K"

func (l *statusLine) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.text == "" {
		return l.w.Write(p)
	}
	if _, err := io.WriteString(l.w, wipe+string(p)+l.text); err != nil {
		return 0, err
	}
	return len(p), nil
}

// show replaces the line.
func (l *statusLine) show(text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if text != "" || l.text != "" {
		_, _ = io.WriteString(l.w, "\r"+text+"\x1b[K") // nobody to tell, if not on this terminal
	}
	l.text = text
}

// keep shows twice a second what say says, until stop is called, which wipes it
// away.
func (l *statusLine) keep(say func(elapsed time.Duration) string) (stop func()) {
	quit, gone := make(chan struct{}), make(chan struct{})
	start := time.Now()
	go func() {
		defer close(gone)
		tick := time.NewTicker(500 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				l.show(say(time.Since(start)))
			case <-quit:
				l.show("")
				return
			}
		}
	}()
	return func() {
		close(quit)
		<-gone
	}
}

// progress shows on a terminal's standard error how far something is, until
// stop is called.
func (a *app) progress(say func(elapsed time.Duration) string) (stop func()) {
	line, ok := a.stderr.(*statusLine)
	if !ok {
		return func() {}
	}
	return line.keep(say)
}

// changing shows how far the daemon is with a request that changes n bans; 0:
// all there are.
func (a *app) changing(bl blocklist, n int) (stop func()) {
	client, ok := bl.(*control.Client)
	_, terminal := a.stderr.(*statusLine)
	if !ok || !terminal || 0 < n && n < 1000 { // done before anything could be shown
		return func() {}
	}
	ask := func() (int64, bool) {
		s, err := client.Stats(a.ctx)
		return int64(s.Bans), err == nil
	}
	before, known := ask()
	var done amount
	done.total.Store(int64(n))
	if n == 0 {
		done.total.Store(before)
	}
	return a.progress(func(elapsed time.Duration) string {
		if now, ok := ask(); ok && known {
			done.done.Store(max(now-before, before-now))
		}
		changed := done.done.Load()
		return fmt.Sprintf("%s changed, %s a second%s", plural(int(changed), "ban"), grouped(uint64(float64(changed)/elapsed.Seconds())), done.left(elapsed))
	})
}
