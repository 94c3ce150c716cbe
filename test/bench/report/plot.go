package main

import (
	"image/color"
	"math"
	"slices"
	"strconv"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

var (
	our    = color.NRGBA{0x1b, 0x6c, 0xa8, 0xff}
	theirs = color.NRGBA{0xa0, 0xa6, 0xad, 0xff}
)

// plot draws the unit that is compared, on a logarithmic scale.
func (r *results) plot(path string) error {
	p := plot.New()
	p.Title.Text = r.config["title"]
	p.Title.TextStyle.Font.Size = 11
	p.BackgroundColor = color.White
	height := 8 * vg.Centimeter
	var err error
	if r.config["plot"] == "line" {
		err = r.lines(p)
	} else {
		height, err = r.bars(p)
	}
	if err != nil {
		return err
	}
	w, err := p.WriterTo(18*vg.Centimeter, height, "svg")
	if err != nil {
		return err
	}
	return writeTo(path, w)
}

// bars draws a bar for each row, with its spread.
func (r *results) bars(p *plot.Plot) (vg.Length, error) {
	unit := r.config["unit"]
	var rows []*row
	for _, c := range r.cases() {
		for _, w := range r.rows {
			if w.case_ == c && len(w.values[unit]) > 0 {
				rows = append(rows, w)
			}
		}
	}
	if len(rows) == 0 {
		return 0, errNothing
	}
	slices.Reverse(rows) // the first one on top
	low := math.Inf(1)
	for _, w := range rows {
		if s := spreadOf(w.values[unit]); s.low > 0 {
			low = min(low, s.low)
		}
	}
	floor := math.Pow(10, math.Floor(math.Log10(low/1.5)))
	var names []string
	for i, w := range rows {
		s := spreadOf(w.values[unit])
		fill := theirs
		if strings.HasPrefix(w.who, ours) {
			fill = our
		}
		y := float64(i)
		bar, err := plotter.NewPolygon(plotter.XYs{{X: floor, Y: y - .35}, {X: max(s.median, floor), Y: y - .35}, {X: max(s.median, floor), Y: y + .35}, {X: floor, Y: y + .35}})
		if err != nil {
			return 0, err
		}
		bar.Color, bar.LineStyle.Width = fill, 0
		reach, err := plotter.NewLine(plotter.XYs{{X: max(s.low, floor), Y: y}, {X: max(s.high, floor), Y: y}})
		if err != nil {
			return 0, err
		}
		reach.Width = vg.Points(1.2)
		p.Add(bar, reach)
		name := w.who
		if w.case_ != "" {
			name += " · " + w.case_
		}
		names = append(names, name)
	}
	p.X.Scale, p.X.Tick.Marker = plot.LogScale{}, decades{}
	p.X.Min = floor
	p.X.Label.Text = unit
	p.NominalY(names...)
	p.Y.Tick.Label.Font.Size = 9
	return vg.Length(len(rows))*.55*vg.Centimeter + 3*vg.Centimeter, nil
}

// lines draws the unit of each contender over n.
func (r *results) lines(p *plot.Plot) error {
	unit := r.config["unit"]
	var whos []string
	for _, w := range r.rows {
		if !slices.Contains(whos, w.who) {
			whos = append(whos, w.who)
		}
	}
	for i, who := range whos {
		var points plotter.XYs
		for _, w := range r.rows {
			n, err := strconv.ParseFloat(strings.TrimPrefix(w.case_, "n="), 64)
			if w.who == who && err == nil && len(w.values[unit]) > 0 {
				points = append(points, plotter.XY{X: n, Y: spreadOf(w.values[unit]).median})
			}
		}
		if len(points) == 0 {
			continue
		}
		line, marks, err := plotter.NewLinePoints(points)
		if err != nil {
			return err
		}
		hue := color.NRGBA{uint8(40 + 160*i/len(whos)), uint8(110 - 60*i/len(whos)), uint8(170 - 130*i/len(whos)), 0xff}
		line.Color, marks.Color, marks.Shape = hue, hue, draw.CircleGlyph{}
		p.Add(line, marks)
		p.Legend.Add(who, line, marks)
	}
	p.Legend.Top = true
	p.X.Scale, p.X.Tick.Marker = plot.LogScale{}, decades{}
	p.Y.Scale, p.Y.Tick.Marker = plot.LogScale{}, decades{}
	p.Y.Label.Text = unit
	p.X.Label.Text = "n"
	p.Y.Max *= 10 // room for the legend
	return nil
}

// decades marks the powers of ten, and what lies between if there are few.
type decades struct{}

func (decades) Ticks(low, high float64) []plot.Tick {
	var ticks []plot.Tick
	few := math.Log10(high/low) < 2
	for d := math.Pow(10, math.Floor(math.Log10(low))); d <= high*1.0001; d *= 10 {
		for m := 1.; m < 10; m++ {
			v := d * m
			if v < low*.9999 || v > high*1.0001 {
				continue
			}
			t := plot.Tick{Value: v}
			if m == 1 || few && (m == 2 || m == 5) {
				t.Label = strings.TrimSuffix(number(v), ".00 M")
				if v >= 1e6 {
					t.Label = strconv.FormatFloat(v/1e6, 'g', 3, 64) + " M"
				}
			}
			ticks = append(ticks, t)
		}
	}
	return ticks
}
