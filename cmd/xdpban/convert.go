package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"xdpban/internal/fail2ban"
	jaild "xdpban/jail.d"
	"xdpban/jails"
)

type convertCmd struct {
	From  string `arg:"" enum:"fail2ban" help:"Whose configuration: fail2ban."`
	Dir   string `arg:"" optional:"" default:"/etc/fail2ban" help:"Its folder."`
	Out   string `short:"o" help:"Write jail.d/NAME.toml in this folder; without it, print all files." placeholder:"DIR"`
	All   bool   `help:"Write the jails that are not enabled too, as enabled = false."`
	Force bool   `help:"Overwrite files that are there."`
}

// sharedFile goes with those of the jails.
const sharedFile = "00-defaults"

// convertedFile and so on are the answer as JSON: file if it was written, else
// its text.
type convertedFile struct {
	File string `json:"file,omitempty"`
	TOML string `json:"toml,omitempty"`
}

type convertedJail struct {
	Name string `json:"name"`
	convertedFile
	Notes []string `json:"notes"`
}

type failedJail struct {
	Name  string `json:"name"`
	Error string `json:"error"`
}

type conversion struct {
	Defaults convertedFile   `json:"defaults"`
	Jails    []convertedJail `json:"jails"`
	Failed   []failedJail    `json:"failed"`
	Disabled []string        `json:"disabled"`
}

// Run converts what it can. It fails if a jail that is enabled can't be.
func (c *convertCmd) Run(a *app) error {
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return err
	}
	if _, err := os.Stat(dir); err != nil {
		return usageError{fmt.Errorf("fail2ban's folder: %w", err)}
	}
	builtIn, problems := jails.Load(jaild.FS, "")
	if len(problems) > 0 {
		return problems
	}
	var own []string
	for _, j := range builtIn.Jails {
		own = append(own, j.Name)
	}
	var done amount
	stop := a.progress(func(elapsed time.Duration) string {
		n := done.done.Load()
		return fmt.Sprintf("%s, %.1f a second%s", plural(int(n), "jail"), float64(n)/elapsed.Seconds(), done.left(elapsed))
	})
	all, err := fail2ban.Open(os.DirFS("/"), filepath.ToSlash(dir)).ConvertAll(c.All, own, func(n, of int) {
		done.total.Store(int64(of))
		done.done.Store(int64(n))
	})
	stop()
	if err != nil {
		return usageError{err}
	}
	files := []*fail2ban.Converted{{Name: sharedFile, TOML: all.Shared}}
	files = append(files, all.Jails...)
	file := func(j *fail2ban.Converted) convertedFile {
		if c.Out == "" {
			return convertedFile{TOML: string(j.TOML)}
		}
		return convertedFile{File: filepath.Join(c.Out, jails.JailFolder, j.Name+".toml")}
	}
	res := conversion{Defaults: file(files[0]), Jails: []convertedJail{}, Failed: []failedJail{}, Disabled: []string{}}
	res.Disabled = append(res.Disabled, all.Disabled...)
	for _, f := range all.Failed {
		res.Failed = append(res.Failed, failedJail{f.Name, f.Err.Error()})
	}
	for _, j := range all.Jails {
		x := convertedJail{Name: j.Name, convertedFile: file(j), Notes: []string{}}
		for _, n := range j.Notes {
			x.Notes = append(x.Notes, n.String())
		}
		res.Jails = append(res.Jails, x)
	}
	if c.Out != "" {
		if err := c.write(files); err != nil {
			return err
		}
	}
	if err := a.print(res, func(w io.Writer) { c.report(w, res) }); err != nil {
		return err
	}
	if !a.JSON {
		c.notes(a, res)
	}
	if c.Out != "" {
		// What stood in the folder before may not go together with it.
		if _, problems := jails.Load(jaild.FS, c.Out); len(problems) > 0 {
			return usageError{fmt.Errorf("%s is written, but can't be used yet:\n%w", c.Out, problems)}
		}
	}
	if len(res.Failed) > 0 {
		return errReported
	}
	return nil
}

// write writes all files, or none if one is there that may not be
// overwritten.
func (c *convertCmd) write(list []*fail2ban.Converted) error {
	folder := filepath.Join(c.Out, jails.JailFolder)
	if !c.Force {
		for _, j := range list {
			p := filepath.Join(folder, j.Name+".toml")
			if _, err := os.Lstat(p); !errors.Is(err, fs.ErrNotExist) {
				return usagef("%s is there already; nothing was written (--force overwrites)", p)
			}
		}
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	for _, j := range list {
		p := filepath.Join(folder, j.Name+".toml")
		// Under another name first: a file that is there may be a link to
		// somewhere else, or be read right now.
		if err := os.WriteFile(p+".new", j.TOML, 0o644); err != nil {
			return err
		}
		if err := os.Rename(p+".new", p); err != nil {
			return err
		}
	}
	return nil
}

// report tells what came of it.
func (c *convertCmd) report(w io.Writer, res conversion) {
	show := func(f convertedFile, first bool) {
		switch {
		case c.Out != "":
			fmt.Fprintf(w, "%s\n", printable(f.File))
		case first:
			fmt.Fprint(w, printableLines(f.TOML))
		default:
			fmt.Fprint(w, "\n"+printableLines(f.TOML))
		}
	}
	show(res.Defaults, true)
	for _, j := range res.Jails {
		show(j.convertedFile, false)
	}
}

// notes tells on standard error what was left out, and what comes next.
func (c *convertCmd) notes(a *app, res conversion) {
	for _, j := range res.Jails {
		for _, n := range j.Notes {
			a.warn("jail %s: %s", j.Name, n)
		}
	}
	for _, f := range res.Failed {
		a.warn("not converted: jail %s: %s", f.Name, f.Error)
	}
	if n := len(res.Disabled); n > 0 {
		a.warn("%s not enabled in fail2ban and left out (--all writes them too)", plural(n, "jail"))
	}
	a.warn("%s converted; xdpban's built-in jails are switched off in %s.toml, so that only fail2ban's run", plural(len(res.Jails), "jail"), sharedFile)
	if c.Out != "" {
		a.warn("next: xdpban --config %s check", printable(c.Out))
	}
}
