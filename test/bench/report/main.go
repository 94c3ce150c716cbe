// Command report makes tables and plots of what command bench has measured. It
// prints the tables, and with -docs puts them into a page, each between a pair
// of comments that name it, and an SVG plot of each into the folder beside
// that page, called as it is.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/perf/benchfmt"
	"golang.org/x/perf/benchmath"
)

func main() {
	docs := flag.String("docs", "", "the page to put the tables into")
	flag.Parse()
	if err := run(*docs, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "report:", err)
		os.Exit(1)
	}
}

func run(docs string, paths []string) error {
	for _, path := range paths {
		r, err := read(path)
		if err != nil {
			return err
		}
		text := r.text()
		fmt.Println(text)
		if docs == "" || r.config["size"] != "full" {
			continue
		}
		svg := filepath.Join(strings.TrimSuffix(docs, ".md"), r.config["table"]+".svg")
		if err := r.plot(svg); err != nil {
			return fmt.Errorf("plot %s: %w", svg, err)
		}
		text += fmt.Sprintf("\n![%s](%s/%s)\n", r.config["title"], filepath.Base(strings.TrimSuffix(docs, ".md")), filepath.Base(svg))
		if err := put(docs, r.config["table"], text); err != nil {
			return err
		}
	}
	return nil
}

// results are those of one table.
type results struct {
	config map[string]string
	rows   []*row
	units  []string
}

// row is one contender in one case. Its values are in the order of the rounds,
// so that the nth of two rows were measured side by side.
type row struct {
	who, case_ string
	values     map[string][]float64
}

const ours = "xdpban"

func read(path string) (*results, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r := &results{config: map[string]string{}}
	in := benchfmt.NewReader(f, path)
	for in.Scan() {
		switch rec := in.Result().(type) {
		case *benchfmt.SyntaxError:
			return nil, rec
		case *benchfmt.Result:
			for _, c := range rec.Config {
				r.config[c.Key] = string(c.Value)
			}
			who, case_, _ := strings.Cut(strings.TrimPrefix(rec.Name.String(), "/who="), "/")
			row := r.row(strings.ReplaceAll(who, "_", " "), strings.ReplaceAll(case_, "_", " "))
			for _, v := range rec.Values {
				value, unit := v.Value, v.Unit
				if v.OrigUnit != "" {
					value, unit = v.OrigValue, v.OrigUnit
				}
				row.values[unit] = append(row.values[unit], value)
				if !slices.Contains(r.units, unit) {
					r.units = append(r.units, unit)
				}
			}
		}
	}
	if err := in.Err(); err != nil {
		return nil, err
	}
	if len(r.rows) == 0 {
		return nil, fmt.Errorf("%s holds no results", path)
	}
	// What is compared comes first.
	slices.SortStableFunc(r.units, func(a, b string) int {
		if main := r.config["unit"]; a == main {
			return -1
		} else if b == main {
			return 1
		}
		return 0
	})
	return r, nil
}

func (r *results) row(who, case_ string) *row {
	for _, w := range r.rows {
		if w.who == who && w.case_ == case_ {
			return w
		}
	}
	w := &row{who: who, case_: case_, values: map[string][]float64{}}
	r.rows = append(r.rows, w)
	return w
}

// cases lists them in the order of their first results.
func (r *results) cases() []string {
	var all []string
	for _, w := range r.rows {
		if !slices.Contains(all, w.case_) {
			all = append(all, w.case_)
		}
	}
	return all
}

// spread is a median with the smallest and the largest: with six rounds or
// fewer, these are its confidence interval.
type spread struct{ low, median, high float64 }

func spreadOf(values []float64) spread {
	s := benchmath.NewSample(slices.Clone(values), &benchmath.DefaultThresholds)
	return spread{s.Values[0], benchmath.AssumeNothing.Summary(s, 0.5).Center, s.Values[len(s.Values)-1]}
}

func (s spread) String() string {
	if number(s.low) == number(s.high) {
		return number(s.median)
	}
	return fmt.Sprintf("%s (%s–%s)", number(s.median), number(s.low), number(s.high))
}

func number(v float64) string {
	switch a := math.Abs(v); {
	case a >= 1e6:
		return strconv.FormatFloat(v/1e6, 'f', 2, 64) + " M"
	case a >= 1e4:
		return strconv.FormatFloat(v/1e3, 'f', 0, 64) + " k"
	case a >= 100 || v == math.Trunc(v):
		return strconv.FormatFloat(v, 'f', 0, 64)
	case a >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	default:
		return strconv.FormatFloat(v, 'g', 2, 64)
	}
}

// ratio is how many times better ours is, round by round, so that what
// disturbed both cancels out.
func (r *results) ratio(w *row) (spread, bool) {
	unit := r.config["unit"]
	var our *row
	for _, o := range r.rows {
		if o.who == ours && o.case_ == w.case_ {
			our = o
		}
	}
	if our == nil || our == w {
		return spread{}, false
	}
	var ratios []float64
	for i := range min(len(our.values[unit]), len(w.values[unit])) {
		a, b := our.values[unit][i], w.values[unit][i]
		if r.config["better"] == "lower" {
			a, b = b, a
		}
		if b > 0 {
			ratios = append(ratios, a/b)
		}
	}
	if len(ratios) == 0 {
		return spread{}, false
	}
	return spreadOf(ratios), true
}

// text is the table in Markdown.
func (r *results) text() string {
	var b strings.Builder
	rounds := 0
	for _, w := range r.rows {
		for _, v := range w.values {
			rounds = max(rounds, len(v))
		}
	}
	cases := r.cases()
	compared := slices.ContainsFunc(r.rows, func(w *row) bool { _, ok := r.ratio(w); return ok })
	head := []string{"", "case"}
	if len(cases) == 1 {
		head = head[:1]
	}
	head = append(head, r.units...)
	if compared {
		head = append(head, "xdpban is better")
	}
	fmt.Fprintf(&b, "**%s.** Goal: %s.\n\n", r.config["title"], r.config["goal"])
	fmt.Fprintf(&b, "| %s |\n|%s\n", strings.Join(head, " | "), strings.Repeat(" --- |", len(head)))
	for _, c := range cases {
		for _, w := range r.rows {
			if w.case_ != c {
				continue
			}
			cells := []string{w.who}
			if len(cases) > 1 {
				cells = append(cells, c)
			}
			for _, u := range r.units {
				if v := w.values[u]; len(v) > 0 {
					cells = append(cells, spreadOf(v).String())
				} else {
					cells = append(cells, "")
				}
			}
			if compared {
				if s, ok := r.ratio(w); ok {
					cells = append(cells, s.String()+" ×")
				} else {
					cells = append(cells, "")
				}
			}
			fmt.Fprintf(&b, "| %s |\n", strings.Join(cells, " | "))
		}
	}
	fmt.Fprintf(&b, "\nMedian (smallest–largest) of %d rounds, %s, on %s; load %s on it when it began.\n", rounds, r.config["date"], r.config["machine"], r.config["load"])
	return b.String()
}

// put replaces a table in a page.
func put(path, name, text string) error {
	page, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	begin, end := "<!-- bench "+name+" -->\n", "<!-- end -->\n"
	before, rest, ok := strings.Cut(string(page), begin)
	if !ok {
		return fmt.Errorf("%s has no place for the table: a line %q", path, strings.TrimSpace(begin))
	}
	_, after, ok := strings.Cut(rest, end)
	if !ok {
		return fmt.Errorf("%s: the table %s has no end: a line %q", path, name, strings.TrimSpace(end))
	}
	return os.WriteFile(path, []byte(before+begin+text+end+after), 0o644)
}

var errNothing = errors.New("nothing to plot")

// writeTo writes a file whole.
func writeTo(path string, w io.WriterTo) (err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if _, err := w.WriteTo(f); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}
