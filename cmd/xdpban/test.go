package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"xdpban/internal/source"
	"xdpban/matcher"
)

type testCmd struct {
	Log         string   `arg:"" help:"A log file (.gz, .xz, .zst and .bz2 too), - for standard input, journal, or a line itself."`
	Failregex   string   `arg:"" optional:"" help:"A pattern to try, with <ADDR>. Without it: the enabled jails."`
	Ignoreregex string   `arg:"" optional:"" help:"A pattern whose lines don't count."`
	Jail        []string `short:"j" help:"Try this jail, enabled or not. May be repeated."`
	Program     []string `help:"With a pattern: look at lines of this syslog tag only, and match behind the tag."`
	Prefregex   string   `help:"With a pattern: what lines must match first; the pattern sees <F-CONTENT>."`
	Datepattern string   `help:"With a pattern: how dates look, instead of the usual ways."`
	MaxLines    int      `help:"With a pattern: how many lines it may span." default:"1"`
	Match       []string `help:"With journal: only entries like FIELD=value. May be repeated." placeholder:"FIELD=VALUE"`

	PrintMatched bool `name:"print-all-matched" help:"Print all lines that matched."`
	PrintMissed  bool `name:"print-all-missed" help:"Print all lines that no pattern matched."`
	PrintIgnored bool `name:"print-all-ignored" help:"Print all lines that an ignore pattern took out."`

	bytes amount
}

// someLines is how many missed lines are shown without being asked for.
const someLines = 5

// testResult is the answer, and its JSON.
type testResult struct {
	// Each line is matched, ignored or missed, as fail2ban-regex counts them.
	Lines   int `json:"lines"`
	Matched int `json:"matched"`
	Ignored int `json:"ignored"`
	Missed  int `json:"missed"`
	// Session are those of the ignored that belong to a session and are no
	// failure by themselves.
	Session int `json:"session"`
	// Exceeded are those of the missed on which a pattern used up its steps;
	// too long ones are those that no pattern sees.
	Exceeded int            `json:"exceeded"`
	TooLong  int            `json:"too_long"`
	Patterns []patternCount `json:"patterns"`
	Dates    []dateCount    `json:"dates"`
	Failures []testFailure  `json:"failures"`
	// MissedLines and IgnoredLines are there on request.
	MissedLines  []string `json:"missed_lines,omitempty"`
	IgnoredLines []string `json:"ignored_lines,omitempty"`
}

type patternCount struct {
	Jail    string `json:"jail"`
	Kind    string `json:"kind"` // failregex or ignoreregex
	Number  int    `json:"number"`
	Pattern string `json:"pattern"`
	Lines   int    `json:"lines"`
}

type dateCount struct {
	Template string `json:"template"` // empty: lines without a date
	Lines    int    `json:"lines"`
}

type testFailure struct {
	Line string    `json:"line"`
	Addr string    `json:"addr"`
	Time time.Time `json:"time"`
	User string    `json:"user"`
	Jail string    `json:"jail"`
	// Unresolved says that Addr is a host name or an id: nobody is banned
	// for it unless the jail looks names up.
	Unresolved bool `json:"unresolved,omitempty"`
}

func (c *testCmd) Run(a *app) error {
	names, filters, err := c.filters(a)
	if err != nil {
		return err
	}
	t := &tester{
		names: names, filters: filters,
		set:      matcher.NewSet(matcher.SetOptions{Journal: c.Log == "journal"}, filters...),
		patterns: map[[3]int]int{}, dates: map[string]int{},
		keepMissed: c.PrintMissed, keepIgnored: c.PrintIgnored,
		result: testResult{Failures: []testFailure{}, Patterns: []patternCount{}, Dates: []dateCount{}},
	}
	in, arrival, err := c.open(a)
	if err != nil {
		return err
	}
	var lines atomic.Uint64
	stop := a.progress(c.bytes.reading(&lines))
	err = in(func(b source.Block) error {
		lines.Add(uint64(bytes.Count(b.Lines, []byte("\n"))))
		for rest := b.Lines; len(rest) > 0; {
			var line []byte
			line, rest, _ = bytes.Cut(rest, []byte("\n"))
			at := arrival
			if at.IsZero() {
				at = b.Arrival
			}
			t.line(line, at)
		}
		return a.ctx.Err()
	})
	stop()
	if err != nil {
		return err
	}
	t.finish()
	return a.print(t.result, func(w io.Writer) { c.report(w, t) })
}

// filters are what to try: a pattern given, or jails.
func (c *testCmd) filters(a *app) (names []string, filters []*matcher.Compiled, err error) {
	if c.Failregex == "" {
		if len(c.Program) > 0 || c.Prefregex != "" || c.Datepattern != "" {
			return nil, nil, usagef("--program, --prefregex and --datepattern go with a pattern")
		}
		conf, err := a.load()
		if err != nil {
			return nil, nil, err
		}
		picked, err := choose(conf, c.Jail)
		for _, j := range picked {
			names, filters = append(names, j.Name), append(filters, j.Filter)
		}
		return names, filters, err
	}
	if len(c.Jail) > 0 {
		return nil, nil, usagef("give either a pattern or --jail")
	}
	f := matcher.Filter{Name: "test", Failregex: []string{c.Failregex}, Programs: c.Program, Prefregex: c.Prefregex, MaxLines: c.MaxLines}
	if c.Ignoreregex != "" {
		f.Ignoreregex = []string{c.Ignoreregex}
	}
	if c.Datepattern != "" {
		f.DatePattern = []string{c.Datepattern}
	}
	compiled, err := matcher.Compile(f)
	if err != nil {
		return nil, nil, usageError{err}
	}
	for _, w := range compiled.Warnings() {
		a.warn("warning: %s", w)
	}
	return []string{"test"}, []*matcher.Compiled{compiled}, nil
}

// open finds out what the log argument means. The arrival is that of lines
// whose date is not whole: when the file was last written.
func (c *testCmd) open(a *app) (read func(source.Emit) error, arrival time.Time, err error) {
	switch {
	case c.Log == "-":
		return func(emit source.Emit) error { return readLog(a, "standard input", a.stdin, emit) }, time.Time{}, nil
	case c.Log == "journal":
		return func(emit source.Emit) error { return readJournal(a, c.Match, emit) }, time.Time{}, nil
	}
	st, err := os.Stat(c.Log)
	if errors.Is(err, fs.ErrNotExist) && strings.ContainsAny(c.Log, " \t") || err != nil && strings.ContainsAny(c.Log, "\n\x00") {
		return func(emit source.Emit) error {
			return readLog(a, "the line", strings.NewReader(c.Log), emit)
		}, time.Time{}, nil
	}
	if err != nil {
		return nil, arrival, err
	}
	c.bytes.total.Store(st.Size())
	return func(emit source.Emit) error { return readLogFile(a, c.Log, &c.bytes, emit) }, st.ModTime(), nil
}

func readLog(a *app, name string, r io.Reader, emit source.Emit) error {
	dropped, err := source.Read(a.ctx, name, r, emit)
	a.warnDropped(name, dropped)
	return err
}

func readLogFile(a *app, path string, read *amount, emit source.Emit) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return readLog(a, path, counted{f, &read.done}, emit)
}

func (a *app) warnDropped(name string, n int) {
	if n > 0 {
		a.warn("%s: %s left out, longer than any log's", name, plural(n, "line"))
	}
}

// readJournal reads what the journal holds now, as text with the same header
// that a syslog file has.
func readJournal(a *app, matches []string, emit source.Emit) error {
	args := append([]string{"--output=short-iso", "--no-pager", "--quiet"}, matches...)
	cmd := exec.CommandContext(a.ctx, "journalctl", args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return fmt.Errorf("reading the journal: %w", err)
	}
	readErr := readLog(a, "journal", out, emit)
	if err := cmd.Wait(); readErr == nil && err != nil {
		return fmt.Errorf("reading the journal: %w: %s", err, strings.TrimSpace(stderr.String()))
	}
	return readErr
}

// tester keeps the tally.
type tester struct {
	names   []string
	filters []*matcher.Compiled
	set     *matcher.Set
	// patterns counts by filter, kind (0: fail, 1: ignore) and index.
	patterns                map[[3]int]int
	dates                   map[string]int
	keepMissed, keepIgnored bool
	missed                  []missedLine // the first few, or all
	result                  testResult
}

// missedLine is a line and what the patterns saw of it: without its date, or
// what stands behind the syslog header.
type missedLine struct{ line, saw string }

func (t *tester) line(line []byte, arrival time.Time) {
	r := &t.result
	r.Lines++
	var got [16]bool // by outcome
	template, dated := "", false
	var saw []byte
	for _, e := range t.set.Explain(line, arrival) {
		got[e.Outcome] = true
		if saw == nil {
			saw = e.Text
		}
		if e.Template != "" {
			template, dated = e.Template, true
		}
		if e.Pattern >= 0 {
			t.patterns[[3]int{e.Filter, 0, e.Pattern}]++
		}
		if e.Ignore >= 0 {
			t.patterns[[3]int{e.Filter, 1, e.Ignore}]++
		}
		if e.Failure != nil {
			r.Failures = append(r.Failures, t.failure(e.Failure, t.names[e.Filter]))
		}
	}
	if dated || !got[matcher.TooLong] {
		t.dates[template]++
	}
	switch {
	case got[matcher.Matched]:
		r.Matched++
	case got[matcher.Ignored], got[matcher.NoFail], got[matcher.Pending]:
		r.Ignored++
		if !got[matcher.Ignored] {
			r.Session++
		}
		if t.keepIgnored {
			r.IgnoredLines = append(r.IgnoredLines, string(line))
		}
	default:
		r.Missed++
		if got[matcher.Exceeded] {
			r.Exceeded++
		} else if got[matcher.TooLong] {
			r.TooLong++
		}
		if t.keepMissed || len(t.missed) < someLines {
			t.missed = append(t.missed, missedLine{string(line), string(saw)})
		}
	}
}

func (t *tester) failure(f *matcher.Failure, jail string) testFailure {
	tf := testFailure{Line: string(f.Line), Time: f.Time.UTC(), Jail: jail}
	if f.Source.IsValid() {
		tf.Addr = short(f.Source)
	} else {
		tf.Addr, tf.Unresolved = cmp.Or(f.Host, f.ID), true
	}
	if len(f.Users) > 0 {
		tf.User = f.Users[0]
	}
	return tf
}

func (t *tester) finish() {
	for i, f := range t.filters {
		for kind, list := range [][]string{f.Filter.Failregex, f.Filter.Ignoreregex} {
			for n, p := range list {
				t.result.Patterns = append(t.result.Patterns, patternCount{
					Jail: t.names[i], Kind: []string{"failregex", "ignoreregex"}[kind], Number: n + 1, Pattern: p,
					Lines: t.patterns[[3]int{i, kind, n}],
				})
			}
		}
	}
	for template, n := range t.dates {
		t.result.Dates = append(t.result.Dates, dateCount{template, n})
	}
	slices.SortFunc(t.result.Dates, func(x, y dateCount) int {
		return cmp.Or(cmp.Compare(y.Lines, x.Lines), cmp.Compare(x.Template, y.Template))
	})
	if t.keepMissed {
		for _, m := range t.missed {
			t.result.MissedLines = append(t.result.MissedLines, m.line)
		}
	}
}

func (c *testCmd) report(w io.Writer, t *tester) {
	r := &t.result
	unused := 0
	fmt.Fprintln(w, "Patterns (lines, jail, pattern):")
	for _, p := range r.Patterns {
		if p.Lines == 0 {
			unused++
			continue
		}
		kind := ""
		if p.Kind == "ignoreregex" {
			kind = "ignore "
		}
		fmt.Fprintf(w, "%8d  %s %s%d  %s\n", p.Lines, printable(p.Jail), kind, p.Number, printable(p.Pattern))
	}
	if unused > 0 {
		fmt.Fprintf(w, "          %s matched nothing\n", plural(unused, "pattern"))
	}
	fmt.Fprintln(w, "\nDates (lines, template):")
	for _, d := range r.Dates {
		fmt.Fprintf(w, "%8d  %s\n", d.Lines, printable(cmp.Or(d.Template, "none")))
	}
	if c.PrintMatched && len(r.Failures) > 0 {
		fmt.Fprintln(w, "\nMatched (address, time, user, jail, line):")
		for _, f := range r.Failures {
			fmt.Fprintf(w, "  %s  %s  %s  %s\n    %s\n", printable(f.Addr), f.Time.Format(time.RFC3339), printable(cmp.Or(f.User, "-")), printable(f.Jail), printable(f.Line))
		}
	}
	if len(r.IgnoredLines) > 0 {
		fmt.Fprintln(w, "\nIgnored:")
		for _, l := range r.IgnoredLines {
			fmt.Fprintf(w, "  %s\n", printable(l))
		}
	}
	if len(t.missed) > 0 {
		fmt.Fprintln(w, "\nMissed:")
		for _, m := range t.missed {
			fmt.Fprintf(w, "  %s\n", printable(m.line))
			if m.saw != "" && m.saw != m.line {
				fmt.Fprintf(w, "    patterns saw \"%s\"\n", printable(m.saw))
			}
		}
		if n := r.Missed - len(t.missed); n > 0 {
			fmt.Fprintf(w, "  … and %s more: --print-all-missed\n", grouped(uint64(n)))
		}
	}
	addrs, unresolved := map[string]bool{}, 0
	for _, f := range r.Failures {
		if f.Unresolved {
			unresolved++
		} else {
			addrs[f.Addr] = true
		}
	}
	fmt.Fprintf(w, "\n%s: %d matched, %d ignored, %d missed; %s from %s\n", plural(r.Lines, "line"), r.Matched, r.Ignored, r.Missed,
		plural(len(r.Failures), "failure"), plural(len(addrs), "address"))
	for _, more := range []struct {
		n    int
		what string
	}{
		{r.Session, "ignored: of a session that other lines decide"},
		{r.Exceeded, "missed: a pattern used up its steps on them"},
		{r.TooLong, "missed: longer than what patterns see"},
	} {
		if more.n > 0 {
			fmt.Fprintf(w, "%s %s\n", plural(more.n, "line"), more.what)
		}
	}
	if unresolved > 0 {
		fmt.Fprintf(w, "%s with a name or an id in the place of the address: nobody is banned for that\n", plural(unresolved, "failure"))
	}
}
