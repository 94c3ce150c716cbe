package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"
	"charm.land/lipgloss/v2"

	"xdpban/internal/control"
)

type topCmd struct {
	Interval time.Duration `help:"Time between two looks." default:"1s"`
}

func (c *topCmd) Run(a *app) error {
	switch {
	case c.Interval < 100*time.Millisecond:
		return usagef("--interval %s is too short: at least 100ms", c.Interval)
	case a.JSON:
		return usagef("top has no --json: xdpban list and xdpban stats --watch have")
	case !isTerminal(a.stdin) || !isTerminal(a.stdout):
		return usagef("top needs a terminal; xdpban list and xdpban stats --watch don't")
	}
	bl, err := a.open(false)
	if err != nil {
		return err
	}
	m := &top{app: a, bl: bl, every: c.Interval, sort: "pps"}
	if len(a.settings.Places) > 0 {
		m.places = a.openPlaces()
	}
	defer func() { _ = m.bl.Close() }() // all was answered
	_, err = tea.NewProgram(m, tea.WithContext(a.ctx), tea.WithInput(a.stdin), tea.WithOutput(a.stdout)).Run()
	if a.ctx.Err() != nil || errors.Is(err, tea.ErrInterrupted) {
		return nil
	}
	return err
}

// The smallest terminal that top is of use on.
const topWidth, topHeight = 60, 12

// topRest is how much longer than a walk of all bans the rest after it is:
// with a million it takes seconds.
const topRest = 10

// top is the screen. Bubble Tea calls its methods one after another.
type top struct {
	app           *app
	bl            blocklist
	places        *places // nil: there are no databases
	every         time.Duration
	width, height int

	err   error
	note  string // what came of the last key
	stats *control.Stats
	pps   map[string][]float64 // by XDP action, the newest last
	bans  []topBan             // as shown
	all   map[netip.Prefix]topBan
	read  time.Time // when the bans were last read
	next  time.Time // when to read them again

	sort      string
	reverse   bool
	filter    string
	filtering bool
	at, from  int // the chosen line and the first one shown
	chosen    netip.Prefix
	question  netip.Prefix // unban it?
	why       []string     // the lines of another screen
	help      bool
}

type topBan struct {
	control.Ban
	pps float64
}

// What comes back from the goroutines that ask.
type (
	topLook struct {
		bl    blocklist
		stats control.Stats
		bans  []control.Ban // nil: not read this time
		took  time.Duration
		err   error
	}
	topTick struct{}
	topWhy  struct {
		text string
		err  error
	}
	topUnbanned struct {
		prefix netip.Prefix
		n      int
		err    error
	}
)

func (m *top) Init() tea.Cmd { return m.look(true) }

// look reads the counters and, with bans, the bans.
func (m *top) look(bans bool) tea.Cmd {
	bl, a := m.bl, m.app
	return func() tea.Msg {
		l := topLook{bl: bl}
		if l.stats, l.err = bl.Stats(a.ctx); l.err != nil {
			// The daemon may have gone, or come back.
			if again, err := a.open(false); err == nil {
				l.bl = again
				l.stats, l.err = again.Stats(a.ctx)
				_ = bl.Close() // it is of no use any more
			}
		}
		if l.err == nil && bans {
			began := time.Now()
			var list control.List
			list, l.err = l.bl.List(a.ctx, control.ListQuery{})
			l.bans, l.took = append([]control.Ban{}, list.Bans...), time.Since(began)
		}
		return l
	}
}

func (m *top) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
	case topLook:
		m.take(msg)
		return m, tea.Tick(m.every, func(time.Time) tea.Msg { return topTick{} })
	case topTick:
		return m, m.look(time.Now().After(m.next))
	case topWhy:
		if msg.err != nil {
			m.note = msg.err.Error()
			break
		}
		m.why = strings.Split(strings.TrimRight(msg.text, "\n"), "\n")
		m.from = 0
	case topUnbanned:
		switch {
		case msg.err != nil:
			m.note = msg.err.Error()
		case msg.n == 0:
			m.note = short(msg.prefix) + " wasn't banned any more"
		default:
			m.note = "unbanned " + short(msg.prefix)
			delete(m.all, msg.prefix)
			m.arrange()
		}
	case tea.KeyPressMsg:
		return m, m.key(msg)
	}
	return m, nil
}

// take takes in what a look has shown.
func (m *top) take(l topLook) {
	m.bl, m.err = l.bl, l.err
	if l.err != nil {
		return
	}
	if m.stats != nil {
		if m.pps == nil {
			m.pps = map[string][]float64{}
		}
		r := ratesOf(*m.stats, l.stats)
		for _, action := range actions {
			seen := append(m.pps[action], r.PPS[action])
			m.pps[action] = seen[max(len(seen)-500, 0):]
		}
	}
	m.stats = &l.stats
	if l.bans == nil {
		return
	}
	now := time.Now()
	since := now.Sub(m.read).Seconds()
	was := m.all
	m.all = make(map[netip.Prefix]topBan, len(l.bans))
	for _, b := range l.bans {
		t := topBan{Ban: b}
		if before, ok := was[b.Prefix]; ok && b.Packets > before.Packets && since > 0 {
			t.pps = float64(b.Packets-before.Packets) / since
		}
		m.all[b.Prefix] = t
	}
	m.read, m.next = now, now.Add(topRest*l.took)
	m.arrange()
}

// arrange sorts and filters; the chosen ban stays chosen.
func (m *top) arrange() {
	m.bans = m.bans[:0]
	for _, b := range m.all {
		if m.filter == "" || strings.Contains(short(b.Prefix), m.filter) || strings.Contains(b.Jail, m.filter) {
			m.bans = append(m.bans, b)
		}
	}
	slices.SortFunc(m.bans, func(x, y topBan) int {
		c := 0
		switch m.sort {
		case "pps":
			c = cmp.Or(cmp.Compare(y.pps, x.pps), cmp.Compare(y.Packets, x.Packets))
		case "jail":
			c = cmp.Compare(x.Jail, y.Jail)
		case "prefix":
		default:
			c = compareBans(x.Ban, y.Ban, m.sort)
		}
		c = cmp.Or(c, x.Prefix.Compare(y.Prefix))
		if m.reverse {
			return -c
		}
		return c
	})
	if i := slices.IndexFunc(m.bans, func(b topBan) bool { return b.Prefix == m.chosen }); i >= 0 {
		m.at = i
	}
	m.move(0)
}

// move chooses another line.
func (m *top) move(by int) {
	m.at = max(min(m.at+by, len(m.bans)-1), 0)
	m.chosen = netip.Prefix{}
	if m.at < len(m.bans) {
		m.chosen = m.bans[m.at].Prefix
	}
	page := m.page()
	m.from = max(min(m.from, m.at, len(m.bans)-page), m.at-page+1, 0)
}

func (m *top) key(k tea.KeyPressMsg) tea.Cmd {
	m.note = ""
	name := k.String()
	if name == "ctrl+c" {
		return tea.Quit
	}
	switch {
	case m.filtering:
		switch name {
		case "enter":
			m.filtering = false
		case "esc":
			m.filtering, m.filter = false, ""
		case "backspace":
			if r := []rune(m.filter); len(r) > 0 {
				m.filter = string(r[:len(r)-1])
			}
		default:
			if len(m.filter) < 50 {
				m.filter += printable(k.Text)
			}
		}
		m.arrange()
		return nil
	case m.question.IsValid():
		p := m.question
		m.question = netip.Prefix{}
		if name == "y" {
			bl, ctx := m.bl, m.app.ctx
			return func() tea.Msg {
				r, err := bl.Unban(ctx, control.UnbanRequest{Prefixes: []netip.Prefix{p}})
				return topUnbanned{p, r.Unbanned, err}
			}
		}
		m.note = short(p) + " stays banned"
		return nil
	case m.help:
		m.help = false
		return nil
	case m.why != nil:
		switch name {
		case "down", "j":
			m.from = min(m.from+1, max(len(m.why)-m.height+1, 0))
		case "up", "k":
			m.from = max(m.from-1, 0)
		default:
			m.why, m.from = nil, 0
			m.move(0)
		}
		return nil
	}
	switch name {
	case "q", "esc":
		return tea.Quit
	case "?", "h":
		m.help = true
	case "up", "k":
		m.move(-1)
	case "down", "j":
		m.move(1)
	case "pgup":
		m.move(-m.page())
	case "pgdown", "space":
		m.move(m.page())
	case "home", "g":
		m.move(-len(m.bans))
	case "end", "G":
		m.move(len(m.bans))
	case "/":
		m.filtering = true
	case "r":
		m.reverse = !m.reverse
		m.arrange()
	case "p", "l", "n", "a", "t", "s":
		m.sort = map[string]string{"p": "pps", "l": "left", "n": "packets", "a": "prefix", "t": "jail", "s": "since"}[name]
		m.reverse = false
		m.arrange()
	case "u":
		m.question = m.chosen
	case "w", "enter":
		if p := m.chosen; p.IsValid() {
			return m.explain(p)
		}
	}
	return nil
}

func (m *top) explain(p netip.Prefix) tea.Cmd {
	bl, ctx := m.bl, m.app.ctx
	return func() tea.Msg {
		w, err := bl.Why(ctx, p)
		if err != nil && !errors.Is(err, context.Canceled) {
			return topWhy{err: err}
		}
		var b bytes.Buffer
		printWhy(&b, w, time.Now())
		return topWhy{text: b.String()}
	}
}

// topHead is how many lines stand above the bans, and below them.
const topHead, topFoot = 6, 1

func (m *top) page() int { return max(m.height-topHead-topFoot, 1) }

func (m *top) View() tea.View {
	v := tea.NewView(m.screen())
	v.AltScreen = true
	v.WindowTitle = "xdpban top"
	return v
}

var (
	topStrong = lipgloss.NewStyle().Bold(true)
	topDrop   = lipgloss.NewStyle().Foreground(lipgloss.Red)
	topPass   = lipgloss.NewStyle().Foreground(lipgloss.Green)
	topLine   = lipgloss.NewStyle().Reverse(true)
)

func (m *top) screen() string {
	switch {
	case m.width == 0:
		return ""
	case m.width < topWidth || m.height < topHeight:
		return fit(fmt.Sprintf("%d×%d is too small: top needs %d×%d", m.width, m.height, topWidth, topHeight), m.width)
	case m.help:
		return m.fill(strings.Split(topHelp, "\n"), "any key goes back")
	case m.why != nil:
		return m.fill(m.why[min(m.from, len(m.why)-1):], "↑↓ scroll, any other key goes back")
	}
	var out []string
	state := "the daemon runs"
	if _, ok := m.bl.(*pinned); ok {
		state = "the daemon isn't running: read from the kernel"
	}
	n := 0
	if m.stats != nil {
		n = m.stats.Bans
	}
	out = append(out, topStrong.Render(fit(fmt.Sprintf("xdpban   %s   %s   %s", plural(n, "ban"), state, time.Now().Format("15:04:05")), m.width)))
	for _, action := range []string{"XDP_DROP", "XDP_PASS", "XDP_ABORTED"} {
		seen := m.pps[action]
		last := 0.0
		if len(seen) > 0 {
			last = seen[len(seen)-1]
		}
		style := topPass
		if action != "XDP_PASS" {
			style = topDrop
		}
		label := fmt.Sprintf("%-8s%12s pps ", strings.ToLower(strings.TrimPrefix(action, "XDP_")), grouped(uint64(last+0.5)))
		out = append(out, label+style.Render(sparkline(seen, m.width-len(label))))
	}
	placeHead := ""
	if m.places != nil {
		placeHead = "PLACE"
	}
	order := "by " + m.sort
	if m.reverse {
		order += ", reversed"
	}
	if m.filter != "" {
		order += fmt.Sprintf(", with %q: %s", m.filter, plural(len(m.bans), "ban"))
	}
	out = append(out, fit(order, m.width), topStrong.Render(fit(m.row("PREFIX", placeHead, "JAIL", "LEFT", "PPS", "PACKETS"), m.width)))
	now := time.Now()
	for i := m.from; i < min(m.from+m.page(), len(m.bans)); i++ {
		b := m.bans[i]
		prefix := short(b.Prefix)
		if len(b.Ports) > 0 {
			prefix += " to " + strings.Join(b.Ports, ",")
		}
		line := fit(m.row(prefix, m.placeOf(b), b.Jail, left(b.Until.Time, now), grouped(uint64(b.pps+0.5)), grouped(b.Packets)), m.width)
		if i == m.at {
			line = topLine.Render(line)
		}
		out = append(out, line)
	}
	foot := "? help  q quit  ↑↓ choose  w why  u unban  / filter  p l n a t s sort  r reverse"
	switch {
	case m.question.IsValid():
		foot = "Unban " + short(m.question) + "? y for yes, any other key for no"
	case m.filtering:
		foot = "filter: " + m.filter + "▏ enter keeps it, esc drops it"
	case m.note != "":
		foot = m.note
	case m.err != nil:
		foot = m.err.Error()
	}
	return m.fill(out, foot)
}

// fill makes a screen of lines and a last line.
func (m *top) fill(lines []string, foot string) string {
	var b strings.Builder
	for i := range m.height - 1 {
		if i < len(lines) {
			b.WriteString(lipgloss.NewStyle().MaxWidth(m.width).Render(lines[i]))
		}
		b.WriteByte('\n')
	}
	b.WriteString(fit(foot, m.width))
	return b.String()
}

// row lays out a line of the list: what is left over goes to the first column
// and, with databases, to the place.
func (m *top) row(prefix, at, jail, left, pps, packets string) string {
	first := m.width - 46
	if n := m.placeWidth(); n > 0 {
		at = fit(at, n) + " "
		first -= n + 1
	} else {
		at = ""
	}
	return fmt.Sprintf("%s %s%s %s %9s %13s", fit(prefix, min(first, 45)), at, fit(jail, 12), fit(left, 8), pps, packets)
}

// placeWidth is how wide the place is: 0 without databases, and on a narrow
// screen there is room for the country only.
func (m *top) placeWidth() int {
	const country, longPrefix = len("PLACE"), 39
	switch room := m.width - 46 - longPrefix - 1; {
	case m.places == nil:
		return 0
	case room < 2*country:
		return country
	default:
		return min(room, 40)
	}
}

// placeOf is where a ban's source is, as there is room to say.
func (m *top) placeOf(b topBan) string {
	if m.places == nil {
		return ""
	}
	at := m.places.Find(b.Prefix.Addr())
	if m.placeWidth() <= len("PLACE") {
		return at.Country
	}
	return at.String()
}

// fit makes harmless text exactly so wide.
func fit(s string, width int) string {
	s = printable(s)
	if lipgloss.Width(s) > width {
		r := []rune(s)
		for len(r) > 0 && lipgloss.Width(string(r)) >= width {
			r = r[:len(r)-1]
		}
		s = string(r) + "…"
	}
	return s + strings.Repeat(" ", max(width-lipgloss.Width(s), 0))
}

// sparkline draws the newest values, as many as there is room for.
func sparkline(values []float64, width int) string {
	const bars = "▁▂▃▄▅▆▇█"
	values = values[max(len(values)-max(width, 0), 0):]
	most := 0.0
	for _, v := range values {
		most = max(most, v)
	}
	steps := []rune(bars)
	var b strings.Builder
	for _, v := range values {
		i := 0
		if most > 0 && v > 0 {
			// What isn't nothing is seen, however small beside the most.
			i = max(int(v/most*float64(len(steps)-1)+0.5), 1)
		}
		b.WriteRune(steps[i])
	}
	return b.String()
}

const topHelp = `What is dropped, and who is banned, second by second.

  ↑ ↓ PgUp PgDn Home End   choose a ban
  w, Enter   why it is banned, with the lines behind it
  u          unban it, after a question
  /          show only bans whose address or jail has these letters

  p packets per second    n packets    l time left
  a address    t jail     s latest first
  r          the other way round

  q, Esc     quit`
