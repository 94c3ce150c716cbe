package main

import (
	"strings"
	"testing"

	"charm.land/lipgloss/v2"
)

func TestSparkline(t *testing.T) {
	for _, c := range []struct {
		values []float64
		width  int
		want   string
	}{
		{nil, 5, ""},
		{[]float64{0, 0}, 5, "▁▁"},
		{[]float64{0, 1, 1e9}, 5, "▁▂█"},
		{[]float64{9, 1, 2, 4}, 3, "▃▅█"},
		{[]float64{1}, -1, ""},
	} {
		if got := sparkline(c.values, c.width); got != c.want {
			t.Errorf("%v in %d: %q, want %q", c.values, c.width, got, c.want)
		}
	}
}

// TestFit: whatever a jail is called, a cell is as wide as it must be.
func TestFit(t *testing.T) {
	for _, s := range []string{"", "short", strings.Repeat("long", 9), "日本語のテキスト", "a\x1b[2Jb\u202ec"} {
		got := fit(s, 9)
		if lipgloss.Width(got) != 9 || strings.ContainsAny(got, "\x1b\u202e") {
			t.Errorf("%q: %q is %d wide", s, got, lipgloss.Width(got))
		}
	}
}

// TestTopPlaces: with databases a line has the place, as much of it as fits, and
// stays within the screen.
func TestTopPlaces(t *testing.T) {
	for _, width := range []int{topWidth, 80, 100, 200} {
		for _, p := range []*places{nil, {}} {
			m := &top{width: width, places: p}
			line := m.row("2001:db8:1111:2222:3333:4444:5555:6666", "DE AS64500 Example Hosting", "sshd", "1h", "1", "1,234")
			if got := lipgloss.Width(line); got > width {
				t.Errorf("%d: %d wide: %q", width, got, line)
			}
			if got := strings.Contains(line, "DE"); got != (p != nil) {
				t.Errorf("%d: %q", width, line)
			}
			if got := strings.Contains(line, "Example Hosting"); got != (p != nil && width == 200) {
				t.Errorf("%d: %q", width, line)
			}
		}
	}
}
