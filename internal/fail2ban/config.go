// Package fail2ban reads a fail2ban configuration (jail.conf, filter.d and
// what they include) and writes the same jails as xdpban's TOML. It follows
// the meaning of fail2ban's configuration language and never executes
// anything that a configuration says.
package fail2ban

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"
)

// Bounds on hostile configurations: generous for any real one.
const (
	maxFileSize  = 1 << 20 // bytes of one file
	maxFiles     = 500     // files read for one jail or filter
	maxValueSize = 1 << 20 // bytes of one value, after substitution
	maxDepth     = 10      // ConfigParser's limit of nested %(name)s
	maxSteps     = 20000   // %(name)s replaced for one value: ten levels of a hundred each would never end
)

// Tree is a fail2ban configuration folder, such as /etc/fail2ban.
type Tree struct {
	fsys  fs.FS
	dir   string
	files map[string]*file
	jails *config
}

// Open gives the configuration in folder dir of fsys. fsys is rooted at "/",
// since includes may be absolute; dir is an absolute path. Nothing is read
// yet. A Tree keeps what it has read and is for one goroutine.
func Open(fsys fs.FS, dir string) *Tree {
	return &Tree{fsys: fsys, dir: path.Clean(dir), files: map[string]*file{}}
}

// errNoOption says that an option, or its section, isn't there.
var errNoOption = errors.New("no such option")

// config is a set of files merged in order, as one jail or filter sees it.
type config struct {
	defaults *section
	names    []string
	sections map[string]*section
	files    []string
}

// known names the shadow section that keeps what a later file overrides.
const known = "KNOWN/"

// load reads base.conf, base.d/*.conf, base.local and base.d/*.local under
// the tree's folder, with their includes.
func (t *Tree) load(base string) (*config, error) {
	full := path.Join(t.dir, base)
	if !strings.HasPrefix(full, t.dir+"/") {
		return nil, &Error{Reason: fmt.Sprintf("%q leads out of %s", base, t.dir)}
	}
	var list []string
	for _, suffix := range []string{".conf", ".local"} {
		if t.exists(full + suffix) {
			list = append(list, full+suffix)
		}
		more, err := t.dropIns(full+".d", suffix)
		if err != nil {
			return nil, err
		}
		list = append(list, more...)
	}
	if len(list) == 0 {
		return nil, &Error{File: full + ".conf", Reason: "is not there, nor is a .local of that name"}
	}
	c := &config{defaults: newSection(), sections: map[string]*section{}}
	if err := t.include(c, list, nil); err != nil {
		return nil, err
	}
	for _, name := range c.files {
		c.merge(t.files[name])
	}
	return c, nil
}

func (t *Tree) exists(name string) bool {
	info, err := fs.Stat(t.fsys, name[1:])
	return err == nil && info.Mode().IsRegular()
}

func (t *Tree) dropIns(dir, suffix string) ([]string, error) {
	entries, err := fs.ReadDir(t.fsys, dir[1:])
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, &Error{File: dir, Reason: err.Error()}
	}
	var names []string
	for _, e := range entries {
		full := path.Join(dir, e.Name())
		if strings.HasSuffix(full, suffix) && !strings.HasPrefix(e.Name(), ".") && t.exists(full) {
			names = append(names, full)
		}
	}
	return names, nil
}

// include adds files to c in the order in which they are merged: what a file
// includes before it, the file, its .local, what it includes after it.
// chain holds the files that are being included right now.
func (t *Tree) include(c *config, names, chain []string) error {
	var list []string
	for _, n := range names {
		list = append(list, n)
		local := strings.TrimSuffix(n, path.Ext(n)) + ".local"
		if !slices.Contains(names, local) && t.exists(local) {
			list = append(list, local)
		}
	}
	for _, n := range list {
		if slices.Contains(chain, n) {
			return &Error{File: n, Reason: "includes itself: " + strings.Join(append(chain, n), " → ")}
		}
		if _, err := fs.Stat(t.fsys, n[1:]); errors.Is(err, fs.ErrNotExist) {
			continue // an include is optional, as paths-overrides.local is
		}
		f, err := t.file(n)
		if err != nil {
			return err
		}
		if len(c.files) >= maxFiles {
			return &Error{File: n, Reason: fmt.Sprintf("more than %d files are included", maxFiles)}
		}
		inner := append(slices.Clone(chain), n)
		if err := t.includeOption(c, f, n, "before", inner); err != nil {
			return err
		}
		c.files = append(c.files, n)
		if err := t.includeOption(c, f, n, "after", inner); err != nil {
			return err
		}
	}
	return nil
}

func (t *Tree) includeOption(c *config, f *file, name, option string, chain []string) error {
	if f.sections["INCLUDES"] == nil {
		return nil
	}
	own := &config{defaults: f.defaults, sections: f.sections}
	v, err := own.get("INCLUDES", option, nil)
	if errors.Is(err, errNoOption) {
		return nil
	}
	if err != nil {
		return err
	}
	for n := range strings.SplitSeq(v.text, "\n") {
		if n == "" {
			continue
		}
		if !path.IsAbs(n) {
			n = path.Join(path.Dir(name), n)
		}
		if err := t.include(c, []string{path.Clean(n)}, chain); err != nil {
			return err
		}
	}
	return nil
}

// file reads and parses one file, once. A device or a pipe is not read: an
// include may name anything.
func (t *Tree) file(name string) (*file, error) {
	if f := t.files[name]; f != nil {
		return f, nil
	}
	info, err := fs.Stat(t.fsys, name[1:])
	if err != nil {
		return nil, &Error{File: name, Reason: err.Error()}
	}
	if !info.Mode().IsRegular() {
		return nil, &Error{File: name, Reason: "is not a regular file"}
	}
	in, err := t.fsys.Open(name[1:])
	if err != nil {
		return nil, &Error{File: name, Reason: err.Error()}
	}
	defer in.Close()
	data, err := io.ReadAll(io.LimitReader(in, maxFileSize+1))
	if err != nil {
		return nil, &Error{File: name, Reason: err.Error()}
	}
	if len(data) > maxFileSize {
		return nil, &Error{File: name, Reason: fmt.Sprintf("is larger than %d bytes", maxFileSize)}
	}
	f, err := parse(name, data)
	if err != nil {
		return nil, err
	}
	t.files[name] = f
	return f, nil
}

var conditional = regexp.MustCompile(`^([\pL\pN_]+)(\?.+)$`)

// merge lays one more file over c. An option that is overridden stays
// reachable as %(known/option)s; the options of a conditional section
// [Init?family=inet6] get the condition appended to their names.
func (c *config) merge(f *file) {
	for _, n := range f.defaults.names {
		c.defaults.set(n, f.defaults.vals[n])
	}
	for _, name := range f.names {
		s := f.sections[name]
		if m := conditional.FindStringSubmatch(name); m != nil {
			renamed := newSection()
			for _, n := range s.names {
				renamed.set(n+m[2], s.vals[n])
			}
			name, s = m[1], renamed
		}
		have := c.sections[name]
		if have == nil {
			c.sections[name] = s.clone()
			c.names = append(c.names, name)
			continue
		}
		before := c.sections[known+name]
		if before == nil {
			before = newSection()
			c.sections[known+name] = before
		}
		for _, n := range have.names {
			if _, ok := s.vals[n]; ok {
				before.set(n, have.vals[n])
			}
		}
		for _, n := range s.names {
			have.set(n, s.vals[n])
		}
	}
}

// get is the value of an option with every %(name)s in it replaced: from
// vars, else from the section, else from [DEFAULT].
func (c *config) get(sectionName, option string, vars map[string]string) (value, error) {
	s := c.sections[sectionName]
	if s == nil {
		if sectionName != "DEFAULT" {
			return value{}, errNoOption
		}
		s = newSection()
	}
	look := scope{vars: vars, section: s, defaults: c.defaults, steps: new(int)}
	v, ok := look.find(strings.ToLower(option))
	if !ok {
		return value{}, errNoOption
	}
	look.mapped = map[string]value{"__name__": {text: sectionName}}
	var out strings.Builder
	if err := c.interpolate(&out, &look, sectionName, option, v, v.text, 1); err != nil {
		return value{}, err
	}
	return value{out.String(), v.Origin}, nil
}

var sectionOption = regexp.MustCompile(`^([\pL\pN_-]+)/([^\s>]+)$`)

// getEx is get for a name that may also be written section/option or
// known/option.
func (c *config) getEx(sectionName, option string, vars map[string]string) (value, error) {
	if m := sectionOption.FindStringSubmatch(option); m != nil {
		places := []string{m[1]}
		switch strings.ToLower(m[1]) {
		case "known":
			places = []string{known + sectionName, sectionName}
		case "default":
			places = []string{"DEFAULT"}
		}
		for _, p := range places {
			v, err := c.get(p, m[2], nil)
			if !errors.Is(err, errNoOption) {
				return v, err
			}
		}
	}
	return c.get(sectionName, option, vars)
}

// scope is where %(name)s looks for a name.
type scope struct {
	vars     map[string]string
	mapped   map[string]value // section/option names met so far, and __name__
	section  *section
	defaults *section
	steps    *int // %(name)s replaced so far
}

func (s *scope) find(name string) (value, bool) {
	if v, ok := s.mapped[name]; ok {
		return v, true
	}
	if v, ok := s.vars[name]; ok {
		return value{text: v}, true
	}
	if v, ok := s.section.vals[name]; ok {
		return v, true
	}
	v, ok := s.defaults.vals[name]
	return v, ok
}

var (
	reference        = regexp.MustCompile(`^%\(([^)]+)\)s`)
	sectionReference = regexp.MustCompile(`%\(([\pL\pN_-]+)/([^)]+)\)s`)
)

func (c *config) interpolate(out *strings.Builder, look *scope, sectionName, option string, at value, rest string, depth int) error {
	fail := func(format string, args ...any) error {
		return &Error{at.File, at.Line, option, fmt.Sprintf(format, args...)}
	}
	if depth > maxDepth {
		return fail("its %%(name)s substitutions are nested deeper than %d: they refer to themselves", maxDepth)
	}
	if *look.steps++; *look.steps > maxSteps {
		return fail("takes more than %d substitutions", maxSteps)
	}
	inner := *look
	inner.mapped = c.mapSections(look, sectionName, rest)
	for rest != "" {
		p := strings.IndexByte(rest, '%')
		if p < 0 {
			p = len(rest)
		}
		out.WriteString(rest[:p])
		if out.Len() > maxValueSize {
			return fail("grows beyond %d bytes by substitution", maxValueSize)
		}
		if rest = rest[p:]; rest == "" {
			break
		}
		if strings.HasPrefix(rest, "%%") {
			out.WriteByte('%')
			rest = rest[2:]
			continue
		}
		m := reference.FindStringSubmatch(rest)
		if m == nil {
			return fail("%q: write %%%% for a percent sign, %%(name)s for another option", head(rest))
		}
		rest = rest[len(m[0]):]
		v, ok := inner.find(strings.ToLower(m[1]))
		if !ok {
			return fail("%%(%s)s is not set anywhere", m[1])
		}
		if err := c.interpolate(out, &inner, sectionName, option, at, v.text, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// mapSections makes the names section/option, known/option and
// default/option that text refers to visible as plain names.
func (c *config) mapSections(look *scope, sectionName, text string) map[string]value {
	mapped := look.mapped
	fresh := false
	for _, m := range sectionReference.FindAllStringSubmatch(text, -1) {
		name, sec, opt := m[1]+"/"+m[2], m[1], m[2]
		scoped := *look
		scoped.mapped = mapped
		if _, ok := scoped.find(name); ok {
			continue
		}
		v, ok := value{}, false
		switch strings.ToLower(sec) {
		case "default":
		case "known":
			if s := c.sections[known+sectionName]; s != nil {
				v, ok = s.vals[opt]
			}
		default:
			s := c.sections[sec]
			if s == nil {
				continue
			}
			v, ok = s.vals[opt]
		}
		if !ok {
			if v, ok = c.defaults.vals[opt]; !ok {
				continue
			}
		}
		if !fresh {
			copied := make(map[string]value, len(mapped)+1)
			for k, v := range mapped {
				copied[k] = v
			}
			mapped, fresh = copied, true
		}
		mapped[name] = v
	}
	return mapped
}

// head is the start of a text, for messages.
func head(s string) string {
	if len(s) > 40 {
		return s[:40] + "…"
	}
	return s
}
