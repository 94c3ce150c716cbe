package fail2ban

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"xdpban/jails"
	"xdpban/matcher"
)

// Note is something that a conversion leaves out or changes, and why.
type Note struct {
	Origin
	Option string
	Text   string
}

func (n Note) String() string {
	return (&Error{n.File, n.Line, n.Option, n.Text}).Error()
}

// Converted is one jail as xdpban has it.
type Converted struct {
	Name  string
	TOML  []byte
	Notes []Note
}

// Conversion is a whole configuration as xdpban has it.
type Conversion struct {
	// Shared is the file that goes with the jails' own: what [DEFAULT] says
	// for all of them, and xdpban's built-in jails switched off, for only
	// those are to run that fail2ban ran.
	Shared   []byte
	Jails    []*Converted
	Disabled []string // jails that are not enabled, and are not converted
	Failed   []Failed
}

// Failed is a jail that can't be converted.
type Failed struct {
	Name string
	Err  error
}

func (f Failed) Error() string { return "jail " + f.Name + ": " + f.Err.Error() }

// ConvertAll converts every enabled jail; all: the others as well. A jail that can't be converted doesn't keep
// the others from it; the error is one that leaves no jail at all. builtIn are
// the names of xdpban's own jails; progress is told how many are done.
func (t *Tree) ConvertAll(all bool, builtIn []string, progress func(done, of int)) (*Conversion, error) {
	names, err := t.JailNames()
	if err != nil {
		return nil, err
	}
	c := &Conversion{}
	var taken []*Jail
	for i, n := range names {
		progress(i, len(names))
		j, err := t.Jail(n, all)
		if err == nil && !j.Enabled && !all {
			c.Disabled = append(c.Disabled, n)
			continue
		}
		if err == nil {
			_, err = t.Convert(j)
		}
		if err != nil {
			c.Failed = append(c.Failed, Failed{n, err})
			continue
		}
		taken = append(taken, j)
	}
	shared := t.shared(taken)
	for _, j := range taken {
		w := t.writer(j)
		w.shared = shared
		if err := w.write(t); err != nil {
			return nil, err // it was none without shared
		}
		c.Jails = append(c.Jails, &Converted{j.Name, []byte(w.out.String()), w.notes})
	}
	c.Shared = c.sharedFile(shared, builtIn)
	return c, nil
}

// Convert writes a jail as a file for jail.d. Its error says which option
// can't be carried over at all, and why.
func (t *Tree) Convert(j *Jail) (*Converted, error) {
	w := t.writer(j)
	if err := w.write(t); err != nil {
		return nil, err
	}
	return &Converted{j.Name, []byte(w.out.String()), w.notes}, nil
}

func (t *Tree) writer(j *Jail) *writer {
	return &writer{jail: j, dir: t.dir, fsys: t.fsys, exists: t.exists}
}

// sharedKeys are written once for all jails if [DEFAULT] has them. The value
// is what a jail says that has them not.
var sharedKeys = []struct{ key, not string }{
	{"maxretry", ""}, {"findtime", ""}, {"bantime", ""}, {"increment", "false"},
	{"usedns", `"no"`}, {"ignoreip", "[]"}, {"ignoreself", "true"}, {"ignorecommand", "[]"}, {"ignorecache", ""},
}

// shared gives what [DEFAULT] says of sharedKeys. What is wrong with it is
// told by each jail that has it.
func (t *Tree) shared(taken []*Jail) map[string]string {
	values := func(j *Jail) map[string]string {
		w := t.writer(j)
		w.limits()
		w.ignored()
		if w.err != nil {
			return nil
		}
		m := map[string]string{}
		for _, r := range w.rows {
			if slices.ContainsFunc(sharedKeys, func(k struct{ key, not string }) bool { return k.key == r.key }) {
				m[r.key] = r.value
			}
		}
		return m
	}
	options, err := readJailOptions(t.jails, "DEFAULT")
	if err != nil {
		return nil
	}
	dns, _ := options.Get("usedns")
	shared := values(&Jail{Name: "DEFAULT", Options: options, Filter: &Filter{UseDNS: dns}})
	for _, j := range taken {
		// A table of one jail would be filled up from the shared one, and
		// answers are kept of a command.
		own := values(j)
		if i := own["increment"]; i != "" && i != shared["increment"] {
			delete(shared, "increment")
		}
		if t.writer(j).watchesBans() {
			continue // it asks nobody
		}
		if own["ignorecommand"] != shared["ignorecommand"] || own["ignorecache"] != shared["ignorecache"] {
			delete(shared, "ignorecommand")
			delete(shared, "ignorecache")
		}
	}
	return shared
}

func (c *Conversion) sharedFile(shared map[string]string, builtIn []string) []byte {
	w := &writer{}
	w.comment("What fail2ban's [DEFAULT] says, for all jails that don't say otherwise.")
	w.out.WriteString("[defaults]\n")
	for _, k := range sharedKeys {
		if v, ok := shared[k.key]; ok {
			w.key(k.key, v)
		}
	}
	w.flush()
	var off []string
	for _, name := range builtIn {
		if !slices.ContainsFunc(c.Jails, func(j *Converted) bool { return j.Name == name }) {
			off = append(off, name)
		}
	}
	if len(off) > 0 {
		w.line()
		w.comment("xdpban's built-in jails, switched off: what fail2ban ran runs, and nothing else.")
		w.comment("Without its line, a jail runs where what it reads is there.")
		w.out.WriteString("[jail]\n")
		for _, name := range off {
			w.key(tomlKey(name)+".enabled", "false")
		}
		w.flush()
	}
	return []byte(w.out.String())
}

type writer struct {
	jail   *Jail
	dir    string // fail2ban's folder
	fsys   fs.FS
	exists func(string) bool // a file of this path
	shared map[string]string // keys and values that are written elsewhere
	out    strings.Builder
	rows   []row // of the block at hand
	notes  []Note
	err    error
}

type row struct{ key, value, comment string }

func (w *writer) write(t *Tree) error {
	j := w.jail
	if j.Filter == nil {
		return &Error{Reason: "it has no filter, so nothing to match; write filter = NAME in jail.conf"}
	}
	if !jailName.MatchString(j.Name) || j.Name == jails.Manual {
		return &Error{Reason: "xdpban's jails are named with letters, digits, _, - and . only; rename it"}
	}
	blocked := t.blocked(j)
	w.notes = append(w.notes, blocked.notes...)

	w.comment("fail2ban's jail [%s] with the filter %s", j.Name, filterLine(j.Filter))
	w.comment("of %s.", j.Filter.Origins["failregex"].File)
	fmt.Fprintf(&w.out, "[jail.%s]\n", tomlKey(j.Name))
	switch {
	case !j.Enabled:
		w.key("enabled", "false")
	case blocked.any && w.sparesBlindly():
		w.key("enabled", `"observe"`, "bans nobody yet: its ignorecommand could not be carried over")
	case blocked.any:
		w.key("enabled", "true")
	default:
		w.key("enabled", "false", "none of its actions blocks: in fail2ban it bans nobody")
		w.note("action", "no action of this jail blocks, so it is written with enabled = false")
	}
	w.key("extends", "false", "takes nothing from a built-in jail of this name")
	w.line()
	if w.watchesBans() {
		w.key("watches", `"bans"`, "fail2ban reads its own log for these")
	} else {
		w.source()
	}
	w.line()
	w.limits()
	if len(blocked.ports) > 0 {
		w.key("ports", tomlList(blocked.ports))
	}
	w.ignored()
	if !w.watchesBans() {
		w.line()
		w.patterns()
	}
	w.flush()
	if w.err == nil {
		w.check()
	}
	return w.err
}

// check sees to it that what is written is what xdpban takes.
func (w *writer) check() {
	for _, p := range jails.Check(w.jail.Name+".toml", []byte(w.out.String())) {
		key := strings.TrimPrefix(p.Key, "jail."+w.jail.Name+".")
		option, _, _ := strings.Cut(key, "[")
		switch option {
		case "files":
			option = "logpath"
		case "journal":
			option = "journalmatch"
		}
		w.fail(option, p.Reason)
	}
}

// jailName is what package jails takes for one.
var jailName = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,62}$`)

// watchesBans says that the jail is fail2ban's recidive, which reads
// fail2ban's own log: there will be none.
func (w *writer) watchesBans() bool {
	logpath, _ := w.jail.Options.Get("logpath")
	return w.jail.Filter.Name == "recidive" && strings.Contains(logpath, "fail2ban")
}

// source writes where the jail reads.
func (w *writer) source() {
	j := w.jail
	backend, _ := j.Options.Get("backend")
	if strings.HasPrefix(backend, "systemd") {
		if strings.Contains(backend, "[") {
			w.note("backend", "the options of "+backend+" are not carried over")
		}
		matches := journalMatches(j.Filter.JournalMatch)
		if len(matches) == 0 {
			// No match at all is the whole journal, by whatever way an entry
			// came to it.
			for _, way := range []string{"audit", "driver", "journal", "kernel", "stdout", "syslog"} {
				matches = append(matches, "_TRANSPORT="+way)
			}
		}
		w.key("journal", tomlList(matches))
	} else {
		var files []string
		logpath, _ := j.Options.Get("logpath")
		for _, l := range lines(logpath) {
			file, where := l, ""
			if i := strings.LastIndexByte(l, ' '); i >= 0 {
				file, where = strings.TrimSpace(l[:i]), l[i+1:]
			}
			// xdpban begins at a file's end anyway, and later goes on where it
			// stopped: head and tail say nothing that is left to say.
			if where != "head" && where != "tail" {
				file = l
			}
			if found, err := fs.Glob(w.fsys, strings.TrimPrefix(file, "/")); err == nil && len(found) == 0 {
				w.note("logpath", file+" is not there: it is read once it is; if the program logs to the journal only, set backend = systemd for the jail and convert again")
			}
			files = append(files, file)
		}
		if len(files) == 0 {
			w.fail("logpath", "names no file")
		}
		w.key("files", tomlList(files))
	}
	if zone, _ := j.Options.Get("logtimezone"); zone != "" {
		if fixed, ok := fixedZone(zone); ok {
			w.key("timezone", tomlString(fixed))
		} else {
			w.fail("logtimezone", fmt.Sprintf("%q is no zone that is known here; write UTC+0200 or the like", zone))
		}
	}
	switch enc, _ := j.Options.Get("logencoding"); strings.ToLower(enc) {
	case "", "auto", "utf-8", "utf8", "ascii", "us-ascii":
	default:
		if _, err := matcher.Compile(matcher.Filter{Failregex: []string{"^<ADDR>$"}, Encoding: enc}); err != nil {
			w.fail("logencoding", err.Error())
		}
		w.key("encoding", tomlString(enc))
	}
}

// fixedZone gives fail2ban's logtimezone as an offset. fail2ban knows zones
// by their abbreviations too, and takes them for fixed offsets.
func fixedZone(s string) (string, bool) {
	m := zoneOffset.FindStringSubmatch(s)
	if m == nil {
		return "", false
	}
	minutes, ok := zoneAbbreviations[m[1]]
	if !ok {
		return "", false
	}
	if m[2] != "" {
		h, _ := strconv.Atoi(m[3])
		min, _ := strconv.Atoi(m[4])
		if h = h*60 + min; m[2] == "-" {
			h = -h
		}
		minutes += h
	}
	if minutes == 0 {
		return "UTC", true
	}
	sign := '+'
	if minutes < 0 {
		sign, minutes = '-', -minutes
	}
	return fmt.Sprintf("UTC%c%02d%02d", sign, minutes/60, minutes%60), true
}

var zoneOffset = regexp.MustCompile(`^([A-Z]*)(?:([+-])([01]\d)(?::?([0-5]\d))?)?$`)

// zoneAbbreviations are common ones, in minutes east of UTC.
var zoneAbbreviations = map[string]int{
	"": 0, "Z": 0, "UTC": 0, "GMT": 0, "WET": 0, "WEST": 60, "BST": 60, "CET": 60, "CEST": 120, "EET": 120, "EEST": 180, "MSK": 180,
	"IST": 330, "JST": 540, "KST": 540, "AEST": 600, "AEDT": 660, "NZST": 720, "NZDT": 780,
	"AST": -240, "ADT": -180, "EST": -300, "EDT": -240, "CST": -360, "CDT": -300, "MST": -420, "MDT": -360, "PST": -480, "PDT": -420,
}

// journalMatches gives the arguments of journalctl: several matches stand
// for any of them.
func journalMatches(all [][]string) []string {
	var list []string
	for i, m := range all {
		if i > 0 {
			list = append(list, "+")
		}
		list = append(list, m...)
	}
	return list
}

// limits writes when the jail bans, and for how long.
func (w *writer) limits() {
	o := w.jail.Options
	// Where jail.conf says nothing, fail2ban's server has these.
	retries, _ := strconv.Atoi(orElse(o, "maxretry", "3"))
	w.key("maxretry", strconv.Itoa(min(max(retries, 1), 10_000)))
	w.time("findtime", "findtime", "600", false)
	w.time("bantime", "bantime", "600", true)

	if on, _ := o.Get("bantime.increment"); on == "True" {
		w.increment()
	} else {
		w.without("increment")
	}
	switch dns := w.jail.Filter.UseDNS; {
	case w.watchesBans():
		// There are no names in bans.
	case dns == "yes" || dns == "warn":
		w.key("usedns", tomlString(dns))
	case dns == "raw":
		w.note("usedns", "raw is not carried over: what is no address can't be banned")
		w.without("usedns")
	default:
		w.without("usedns")
	}
	if m, ok := o.Get("maxmatches"); ok && m != orElse(o, "maxretry", "3") {
		n, _ := strconv.Atoi(m)
		w.key("maxmatches", strconv.Itoa(min(max(n, 0), 100)))
	}
}

// increment writes how ban times grow.
func (w *writer) increment() {
	o := w.jail.Options
	var inc []string
	if text, _ := o.Get("bantime.factor"); text != "" {
		f, err := factor(text)
		if err != nil {
			w.fail("bantime.factor", fmt.Sprintf("%q: %s", text, err))
		}
		if f != 1 {
			inc = append(inc, "factor = "+strconv.FormatFloat(f, 'f', -1, 64))
		}
	}
	if text, _ := o.Get("bantime.multipliers"); text != "" {
		for f := range strings.FieldsSeq(text) {
			if n, err := strconv.Atoi(f); err != nil || n <= 0 {
				w.fail("bantime.multipliers", fmt.Sprintf("%q is not a number above 0", f))
			}
		}
		inc = append(inc, "multipliers = ["+strings.Join(strings.Fields(text), ", ")+"]")
	} else if text, _ := o.Get("bantime.formula"); text != "" && !doublingFormula(text) {
		f, err := jails.ParseFormula(text)
		if err != nil {
			w.fail("bantime.formula", fmt.Sprintf("%q: %s", text, err))
		} else {
			inc = append(inc, "formula = "+tomlString(f.String()))
		}
	}
	for _, x := range []struct{ option, key string }{{"bantime.maxtime", "max"}, {"bantime.rndtime", "random"}} {
		text, _ := o.Get(x.option)
		if text == "" {
			continue
		}
		d, err := parseTime(text)
		if err != nil {
			w.fail(x.option, err.Error())
		} else if d > 0 {
			inc = append(inc, x.key+" = "+tomlString(duration(d)))
		}
	}
	if all, _ := o.Get("bantime.overalljails"); all == "True" {
		inc = append(inc, "all_jails = true")
	}
	if len(inc) == 0 {
		w.key("increment", "true")
		return
	}
	w.key("increment", "{ "+strings.Join(inc, ", ")+" }")
}

// factor works bantime.factor out, which may be written as arithmetic.
func factor(text string) (float64, error) {
	formula, err := jails.ParseFormula(text)
	if err != nil {
		return 0, err
	}
	f, err := formula.Eval(jails.FormulaVars{Random: func() float64 { return 0.5 }})
	if err == nil && (f <= 0 || f > 1e9) {
		err = errors.New("it is no number above 0 and up to 1e9")
	}
	if strings.Contains(text, "random.") || strings.Contains(text, "ban") {
		err = errors.New("it must be one number")
	}
	return f, err
}

// doublingFormula knows the ways in which the growth that is the default
// anyway is written.
func doublingFormula(text string) bool {
	switch strings.Join(strings.Fields(text), "") {
	case "ban.Time*(1<<(ban.Countifban.Count<20else20))*banFactor", "ban.Time*(1<<min(ban.Count,20))*banFactor":
		return true
	}
	return false
}

// time writes a duration.
func (w *writer) time(key, option, fallback string, forever bool) {
	text := orElse(w.jail.Options, option, fallback)
	d, err := parseTime(text)
	switch {
	case err != nil:
		w.fail(option, err.Error())
	case d < 0 && !forever, d == 0:
		w.fail(option, fmt.Sprintf("%q is no time to count in", text))
	case d < 0:
		w.key(key, tomlString("forever"))
	default:
		w.key(key, tomlString(duration(d)))
	}
}

// duration writes a duration as weeks if it is whole ones, else as days,
// hours, minutes and seconds.
func duration(d time.Duration) string {
	const day, week = 24 * time.Hour, 7 * 24 * time.Hour
	if d%week == 0 {
		return strconv.FormatInt(int64(d/week), 10) + "w"
	}
	d = max(d.Round(time.Second), time.Second)
	var b strings.Builder
	for _, u := range []struct {
		name string
		unit time.Duration
	}{{"d", day}, {"h", time.Hour}, {"m", time.Minute}, {"s", time.Second}} {
		if n := d / u.unit; n > 0 {
			b.WriteString(strconv.FormatInt(int64(n), 10) + u.name)
			d -= n * u.unit
		}
	}
	return b.String()
}

// ignored writes who is never banned.
func (w *writer) ignored() {
	o := w.jail.Options
	var list []string
	text, _ := o.Get("ignoreip")
	for _, word := range splitWords(text) {
		p, err := ignorePrefix(word)
		switch {
		case err == nil:
			list = append(list, p)
		case hostName.MatchString(word):
			list = append(list, word)
		default:
			w.note("ignoreip", fmt.Sprintf("%q is not carried over: it is no address, subnet or host name", word))
		}
	}
	if len(list) > 0 {
		w.key("ignoreip", tomlList(list))
	} else {
		w.without("ignoreip")
	}
	if v, ok := o.Get("ignoreself"); ok && v == "False" {
		w.key("ignoreself", "false")
	} else {
		w.without("ignoreself")
	}
	w.ignoreCommand()
}

// ignoreCommand writes the program that is asked ahead of a ban. fail2ban
// hands its command to a shell, with what the log says filled in; here there
// is no shell, so it must be a program with plain arguments.
func (w *writer) ignoreCommand() {
	command, _ := w.jail.Options.Get("ignorecommand")
	if command == "" {
		w.without("ignorecommand") // and nothing that ignorecache could keep
		return
	}
	if w.watchesBans() {
		w.note("ignorecommand", "is not asked in this jail: it was asked ahead of each of the bans that it counts")
		return
	}
	args, err := w.commandArgs(command)
	if err != nil {
		w.note("ignorecommand", "is not carried over: "+err.Error()+"; so that nobody is banned whom it would have spared, the jail only observes")
		return
	}
	w.key("ignorecommand", tomlList(args))
	if strings.HasPrefix(args[0], w.dir+"/") {
		w.note("ignorecommand", args[0]+" is still fail2ban's file: keep it, or a copy of it, when you remove fail2ban")
	}
	text, _ := w.jail.Options.Get("ignorecache")
	if text == "" {
		return
	}
	_, cache, err := splitOptions("cache[" + text + "]")
	if err != nil {
		w.note("ignorecache", "is not carried over: "+err.Error())
		return
	}
	key, _ := cache.Get("key")
	for _, tag := range tag.FindAllString(command, -1) {
		if !strings.Contains(key, tag) {
			w.note("ignorecache", fmt.Sprintf("answers are kept by the program's arguments, not by %q", key))
			break
		}
	}
	d, err := parseTime(orElse(cache, "max-time", "5m"))
	most, err2 := strconv.Atoi(orElse(cache, "max-count", "100"))
	if err = errors.Join(err, err2); err != nil || d <= 0 || most <= 0 {
		w.note("ignorecache", fmt.Sprintf("is not carried over: %q has no time and number above 0", text))
		return
	}
	w.key("ignorecache", fmt.Sprintf("{ time = %s, max = %d }", tomlString(duration(d)), most))
}

// sparesBlindly says that the jail would ban whom its ignorecommand spares.
func (w *writer) sparesBlindly() bool {
	command, _ := w.jail.Options.Get("ignorecommand")
	if command == "" || w.watchesBans() {
		return false
	}
	_, err := w.commandArgs(command)
	return err != nil
}

// commandTags are fail2ban's tags that ignorecommand knows too.
var commandTags = map[string]string{"<ip>": "<ip>", "<family>": "<family>", "<F-USER>": "<user>", "<name>": "<jail>"}

// commandArgs takes a command line apart that needs no shell.
func (w *writer) commandArgs(command string) ([]string, error) {
	bare := tag.ReplaceAllStringFunc(command, func(t string) string {
		if commandTags[t] != "" {
			return ""
		}
		return t
	})
	if t := tag.FindString(bare); t != "" {
		return nil, fmt.Errorf("%s is not known here", t)
	}
	if i := strings.IndexAny(bare, "|&;<>()$`*?[]{}~#!\n"); i >= 0 {
		return nil, fmt.Errorf("%q is for a shell, and xdpban has none: put the command into a script and name that", bare[i:i+1])
	}
	args, err := shellWords(command)
	if err != nil {
		return nil, err
	}
	for i := range args {
		args[i] = tag.ReplaceAllStringFunc(args[i], func(t string) string { return commandTags[t] })
	}
	if strings.Contains(args[0], "=") {
		return nil, fmt.Errorf("%q is for a shell, and xdpban has none: put the command into a script and name that", args[0])
	}
	if strings.HasPrefix(args[0], "/") {
		return args, nil
	}
	if !strings.Contains(args[0], "/") {
		for _, dir := range []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"} {
			if w.exists(dir + "/" + args[0]) {
				args[0] = dir + "/" + args[0]
				return args, nil
			}
		}
	}
	return nil, fmt.Errorf("there is no program %q; write its whole path", args[0])
}

var hostName = regexp.MustCompile(`^([a-zA-Z0-9_-]{1,63}\.)*[a-zA-Z][a-zA-Z0-9-]{0,62}\.?$`)

// ignorePrefix reads an address, a prefix, or an address with a netmask.
func ignorePrefix(s string) (string, error) {
	addr, mask, slash := strings.Cut(s, "/")
	a, err := netip.ParseAddr(addr)
	if err != nil || !slash {
		return s, err
	}
	if m, err := netip.ParseAddr(mask); err == nil && m.Is4() && a.Is4() {
		b := m.As4()
		bits := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
		n := 0
		for ; n < 32 && bits&(1<<31) != 0; n++ {
			bits <<= 1
		}
		if bits != 0 {
			return "", fmt.Errorf("%q is not a netmask", mask)
		}
		mask = strconv.Itoa(n)
	}
	p, err := netip.ParsePrefix(addr + "/" + mask)
	return p.Masked().String(), err
}

// patterns writes the filter.
func (w *writer) patterns() {
	f := w.jail.Filter
	if len(f.Failregex) == 0 {
		w.fail("failregex", fmt.Sprintf("filter %s has none", filterLine(f)))
	}
	backend, _ := w.jail.Options.Get("backend")
	// A journal's entry brings its time along, whatever the filter expects
	// dates to look like in files.
	if !strings.HasPrefix(backend, "systemd") {
		var dates []string
		for _, l := range lines(f.DatePattern) {
			if l = strings.TrimFunc(l, isSpace); l != "" {
				dates = append(dates, l)
			}
		}
		for _, d := range dates {
			w.compiles("datepattern", matcher.Filter{Failregex: []string{"^<ADDR>$"}, DatePattern: []string{d}})
		}
		switch {
		case len(dates) == 1 && dates[0] == "{^LN-BEG}":
			w.key("datepattern", tomlPattern(dates[0]), "a date of any usual form, at the start of the line only")
		case len(dates) == 1:
			w.key("datepattern", tomlPattern(dates[0]))
		default:
			w.list("datepattern", dates)
		}
	}
	if f.MaxLines > 1 {
		w.key("maxlines", strconv.Itoa(f.MaxLines))
	}
	plain := f.UseDNS == "no"
	m := matcher.Filter{Name: f.Name, MaxLines: f.MaxLines, Prefregex: hostTag(f.Prefregex, plain)}
	m.Failregex = []string{"^<ADDR>$"}
	w.compiles("prefregex", m)
	for _, p := range hostTags(f.Failregex, plain) {
		m.Failregex = []string{p}
		w.compiles("failregex", m)
	}
	for _, p := range hostTags(f.Ignoreregex, plain) {
		w.compiles("ignoreregex", matcher.Filter{Failregex: []string{"^<ADDR>$"}, Ignoreregex: []string{p}})
	}
	if f.Prefregex != "" {
		w.line()
		w.comment("What a line must look like; the patterns see its <F-CONTENT>.")
		w.key("prefregex", tomlPattern(m.Prefregex))
		w.line()
	}
	w.list("failregex", hostTags(f.Failregex, plain))
	w.list("ignoreregex", hostTags(f.Ignoreregex, plain))
}

// compiles tells of a pattern by its option.
func (w *writer) compiles(option string, f matcher.Filter) {
	if _, err := matcher.Compile(f); err != nil && w.err == nil {
		w.fail(option, strings.TrimPrefix(err.Error(), option+" 1 "))
	}
}

// hostTag gives usedns = no its meaning: <HOST> then matches no names.
func hostTag(pattern string, addressesOnly bool) string {
	if addressesOnly {
		return strings.ReplaceAll(pattern, "<HOST>", "<ADDR>")
	}
	return pattern
}

func hostTags(patterns []string, addressesOnly bool) []string {
	list := make([]string, len(patterns))
	for i, p := range patterns {
		list[i] = hostTag(p, addressesOnly)
	}
	return list
}

// filterLine is the filter as a jail names it.
func filterLine(f *Filter) string {
	if len(f.Options.names) == 0 {
		return f.Name
	}
	var b strings.Builder
	b.WriteString(f.Name + "[")
	for i, n := range f.Options.names {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(n + "=" + f.Options.vals[n].text)
	}
	return b.String() + "]"
}

func orElse(o Options, name, fallback string) string {
	if s, ok := o.Get(name); ok && s != "" {
		return s
	}
	return fallback
}

func (w *writer) origin(option string) Origin {
	if v, ok := w.jail.Options.vals[option]; ok && v.Line > 0 {
		return v.Origin
	}
	return w.jail.Filter.Origins[option]
}

func (w *writer) note(option, text string) {
	w.notes = append(w.notes, Note{w.origin(option), option, text})
}

func (w *writer) fail(option, reason string) {
	if w.err == nil {
		at := w.origin(option)
		w.err = &Error{at.File, at.Line, option, reason}
	}
}

// line ends a block of keys and leaves a blank line.
func (w *writer) line() {
	w.flush()
	if !strings.HasSuffix(w.out.String(), "\n\n") {
		w.out.WriteByte('\n')
	}
}

// flush writes the keys of a block, their values lined up.
func (w *writer) flush() {
	width := 0
	for _, r := range w.rows {
		width = max(width, len(r.key))
	}
	for _, r := range w.rows {
		fmt.Fprintf(&w.out, "%-*s = %s", width, r.key, r.value)
		if r.comment != "" {
			w.out.WriteString(" # " + r.comment)
		}
		w.out.WriteByte('\n')
	}
	w.rows = nil
}

func (w *writer) comment(format string, args ...any) {
	text := strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, fmt.Sprintf(format, args...))
	w.out.WriteString("# " + text + "\n")
}

// key writes a key, unless it is written elsewhere for all jails.
func (w *writer) key(name, value string, comment ...string) {
	if w.shared[name] != value {
		w.rows = append(w.rows, row{name, value, strings.Join(comment, "; ")})
	}
}

// without says that the jail hasn't what all jails have.
func (w *writer) without(name string) {
	if _, ok := w.shared[name]; !ok {
		return
	}
	for _, k := range sharedKeys {
		if k.key == name {
			w.key(name, k.not)
		}
	}
}

// list writes texts one a line; nothing for none.
func (w *writer) list(name string, texts []string) {
	if len(texts) == 0 {
		return
	}
	w.flush()
	w.out.WriteString(name + " = [\n")
	for _, s := range texts {
		w.out.WriteString("  " + tomlPattern(s) + ",\n")
	}
	w.out.WriteString("]\n")
}

func tomlList(texts []string) string {
	quoted := make([]string, len(texts))
	for i, s := range texts {
		quoted[i] = tomlString(s)
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}

// tomlKey is a bare key where TOML allows it.
func tomlKey(s string) string {
	bare := s != ""
	for _, r := range s {
		bare = bare && (r == '_' || r == '-' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z')
	}
	if bare {
		return s
	}
	return tomlBasic(s)
}

// tomlPattern writes a pattern in the form that leaves backslashes and quotes
// alone, if there is one for it: those below each other then look alike.
func tomlPattern(s string) string {
	if quoted := tomlString(s); quoted != `"`+s+`"` || strings.Contains(s, "'") {
		return quoted
	}
	return "'" + s + "'"
}

// tomlString writes a text as one would by hand: plain ones in double
// quotes, those with backslashes or quotes in the literal form that leaves
// them as they are.
func tomlString(s string) string {
	literal := true
	for _, r := range s {
		if r < ' ' && r != '\t' || r == 0x7f || r == utf8.RuneError {
			literal = false
		}
	}
	switch {
	case !strings.ContainsAny(s, "\\\"") && literal:
		return `"` + s + `"`
	case !strings.Contains(s, "'") && literal:
		return "'" + s + "'"
	case !strings.Contains(s, "'''") && !strings.HasSuffix(s, "'") && literal:
		return "'''" + s + "'''"
	}
	return tomlBasic(s)
}

func tomlBasic(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < ' ' || r == 0x7f:
			fmt.Fprintf(&b, "\\u%04X", r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}
