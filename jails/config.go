package jails

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"
)

// SettingsFile and JailFolder are what a configuration folder holds.
const (
	SettingsFile = "xdpban.toml"
	JailFolder   = "jail.d"
)

// Problem is one thing wrong in the configuration.
type Problem struct {
	File   string
	Line   int    // 0: the file as a whole
	Key    string // "jail.sshd.maxretry"
	Reason string // what is wrong; and what to write instead
}

func (p Problem) String() string {
	var s strings.Builder
	s.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&s, ":%d", p.Line)
	}
	s.WriteString(": ")
	if p.Key != "" {
		s.WriteString(p.Key + ": ")
	}
	return s.String() + p.Reason
}

// Problems are all that is wrong, in the order of files and lines.
type Problems []Problem

func (p Problems) Error() string {
	all := make([]string, len(p))
	for i := range p {
		all[i] = p[i].String()
	}
	return strings.Join(all, "\n")
}

// Load reads the configuration: the shipped jails, then xdpban.toml and
// jail.d/*.toml of the operator's folder, which override them key by key; a
// jail with extends = false takes nothing from a shipped one of its name. A
// folder or file that isn't there is empty, and without dir there are the
// shipped jails alone. All that is wrong in all files is
// found in one go; then there is no Config. Filters of shipped jails are taken
// as they are, and compiled only when they are used.
//
// A jail's own key comes before one of [defaults], wherever either stands.
func Load(shipped fs.FS, dir string) (*Config, Problems) {
	l := &loader{}
	l.folder(shipped, ".", func(name string) string { return "built in: " + name })
	builtIn := len(l.files)
	for _, f := range l.files {
		f.shipped = true
	}
	if dir != "" {
		own := os.DirFS(dir)
		l.settings = l.parse(own, SettingsFile, filepath.Join(dir, SettingsFile), true)
		l.folder(own, JailFolder, func(name string) string { return filepath.Join(dir, name) })
	}
	c := &Config{Files: make([]string, 0, len(l.files)+1)}
	for i, f := range l.files {
		if i == builtIn && l.settings != nil {
			c.Files = append(c.Files, l.settings.name)
		}
		c.Files = append(c.Files, f.name)
	}
	if builtIn == len(l.files) && l.settings != nil {
		c.Files = append(c.Files, l.settings.name)
	}

	c.Settings = l.readSettings()
	l.placeless = len(c.Settings.Places) == 0
	l.readJails(c)
	l.warnMentioned(c)
	if len(l.problems) > 0 {
		rank := map[string]int{}
		for i, name := range l.names {
			rank[name] = i
		}
		slices.SortStableFunc(l.problems, func(a, b Problem) int {
			return cmp.Or(cmp.Compare(rank[a.File], rank[b.File]), cmp.Compare(a.File, b.File),
				cmp.Compare(a.Line, b.Line), cmp.Compare(a.Key, b.Key), cmp.Compare(a.Reason, b.Reason))
		})
		return nil, slices.Compact(l.problems)
	}
	c.Warnings = append(l.warnings, c.Warnings...)
	return c, nil
}

// Check says what is wrong with the text of a file for jail.d that stands on
// its own.
func Check(name string, text []byte) Problems {
	l := &loader{}
	if f := l.parseText(&file{name: name}, text); f != nil {
		l.files = append(l.files, f)
		l.readJails(&Config{})
	}
	return l.problems
}

func (l *loader) readJails(c *Config) {
	jails, defaults := l.merge()
	base, zone := l.readDefaults(defaults)
	for _, name := range slices.Sorted(mapKeys(jails)) {
		l.readJail(c, name, jails, base, zone)
	}
}

// LoadSettings reads only xdpban.toml of the operator's folder, for commands
// that have to find the daemon and the maps.
func LoadSettings(dir string) (Settings, Problems) {
	l := &loader{}
	l.settings = l.parse(os.DirFS(dir), SettingsFile, filepath.Join(dir, SettingsFile), true)
	return l.readSettings(), l.problems
}

type loader struct {
	settings *file
	files    []*file  // of jails; shipped ones first
	names    []string // of all that was to be read, in order
	// placeless says that no database tells where addresses are.
	placeless bool
	problems  Problems
	warnings  Problems
	mentioned []item // jails that other tables name
}

// file is one file of configuration.
type file struct {
	name    string
	folder  string // of files in one folder, each jail is in one only
	shipped bool
	tree    map[string]any
	lines   lines
}

func (l *loader) say(f *file, key, format string, args ...any) {
	l.problems = append(l.problems, Problem{f.name, f.lines.of(key), key, fmt.Sprintf(format, args...)})
}

// folder reads the *.toml of a folder, in the order of names.
func (l *loader) folder(fsys fs.FS, folder string, name func(string) string) {
	if fsys == nil {
		return
	}
	entries, err := fs.ReadDir(fsys, folder)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			l.problems = append(l.problems, Problem{File: name(folder), Reason: "can't be read: " + rootOf(err)})
		}
		return
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".toml") || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		p := path.Join(folder, e.Name())
		if f := l.parse(fsys, p, name(p), false); f != nil {
			f.folder = name(folder)
			l.files = append(l.files, f)
		}
	}
}

func rootOf(err error) string {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err.Error()
	}
	return err.Error()
}

// maxFile bounds a file of configuration; longer ones are something else.
const maxFile = 8 << 20

func (l *loader) parse(fsys fs.FS, p, name string, optional bool) *file {
	f := &file{name: name}
	l.names = append(l.names, name)
	info, err := fs.Stat(fsys, p)
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("it is not a regular file")
	} else if err == nil && info.Size() > maxFile {
		err = fmt.Errorf("it has %d bytes, the most is %d", info.Size(), maxFile)
	}
	var text []byte
	if err == nil {
		text, err = fs.ReadFile(fsys, p)
	}
	if err != nil {
		if !optional || !errors.Is(err, fs.ErrNotExist) {
			l.say(f, "", "can't be read: %s", rootOf(err))
		}
		return nil
	}
	return l.parseText(f, text)
}

func (l *loader) parseText(f *file, text []byte) *file {
	if _, err := toml.Decode(string(text), &f.tree); err != nil {
		problem := Problem{File: f.name, Reason: "is no valid TOML: " + err.Error()}
		var pe toml.ParseError
		if errors.As(err, &pe) {
			problem.Line, problem.Key = pe.Position.Line, pe.LastKey
			problem.Reason = "is no valid TOML: " + strings.ReplaceAll(pe.Message, `got '\x00' instead`, "the file ends") + "; write key = value, with texts in quotes and lists in [ ], and see that the file is whole"
		}
		l.problems = append(l.problems, problem)
		return nil
	}
	f.lines = lineIndex(string(text))
	return f
}

// values are the keys of a table with where each was set last.
type values map[string]value

type value struct {
	v    any
	file *file
	key  string // in full
}

func (v values) clone() values {
	out := values{}
	for k, x := range v {
		out[k] = x
	}
	return out
}

// shipped says that no key's value is an operator's.
func (v values) shipped(keys ...string) bool {
	for _, k := range keys {
		x, ok := v[k]
		if !ok {
			continue
		}
		sub, _ := x.v.(values)
		if !x.file.shipped || !sub.shipped(slices.Collect(mapKeys(sub))...) {
			return false
		}
	}
	return true
}

// override sets one key, a table key by key.
func (v values) override(key string, x value) {
	if sub, ok := x.v.(map[string]any); ok {
		merged := values{}
		if old, ok := v[key].v.(values); ok {
			merged = old.clone()
		}
		for k, y := range sub {
			merged.override(k, value{y, x.file, x.key + "." + k})
		}
		x.v = merged
	}
	v[key] = x
}

// merge puts the files' jails on top of each other.
func (l *loader) merge() (jails map[string]values, defaults values) {
	jails, defaults = map[string]values{}, values{}
	seen := map[string]*file{}
	once := func(f *file, key string) bool {
		if first := seen[f.folder+"\x00"+key]; first != nil {
			l.say(f, key, "is in %s too: write each jail in one file of a folder", strings.TrimPrefix(path.Base(filepath.ToSlash(first.name)), "built in: "))
			return false
		}
		seen[f.folder+"\x00"+key] = f
		return true
	}
	for _, f := range l.files {
		for _, key := range slices.Sorted(mapKeys(f.tree)) {
			table, isTable := f.tree[key].(map[string]any)
			switch {
			case key == "defaults" && isTable:
				if once(f, key) {
					for _, k := range slices.Sorted(mapKeys(table)) {
						defaults.override(k, value{table[k], f, key + "." + k})
					}
				}
			case key == "jail" && isTable:
				for _, name := range slices.Sorted(mapKeys(table)) {
					full := "jail." + name
					keys, ok := table[name].(map[string]any)
					if !ok {
						l.say(f, full, "is no table: write [jail.NAME] with the jail's keys below it")
						continue
					}
					if !once(f, full) {
						continue
					}
					if extends, isFlag := keys["extends"].(bool); jails[name] == nil || isFlag && !extends {
						jails[name] = values{}
					}
					for _, k := range slices.Sorted(mapKeys(keys)) {
						jails[name].override(k, value{keys[k], f, full + "." + k})
					}
					// Where the jail stands, for what is missing in it.
					jails[name][""] = value{nil, f, full}
				}
			default:
				l.say(f, key, "doesn't belong here: write [jail.NAME] or [defaults] (the host's own settings are in %s)", SettingsFile)
			}
		}
	}
	return jails, defaults
}
