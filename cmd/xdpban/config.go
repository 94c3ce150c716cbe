package main

import (
	"fmt"
	"io"
	"strings"

	jaild "xdpban/jail.d"
	"xdpban/jails"
)

// load reads the whole configuration.
func (a *app) load() (*jails.Config, error) {
	c, problems := jails.Load(jaild.FS, a.Config)
	if len(problems) > 0 {
		return nil, usageError{problems}
	}
	return c, nil
}

// choose picks jails by name, disabled ones too; without names, the enabled
// ones. Jails that watch bans read no lines and are left out.
func choose(c *jails.Config, names []string) ([]*jails.Jail, error) {
	var picked []*jails.Jail
	for _, name := range names {
		j := jailByName(c, name)
		if j == nil {
			all := make([]string, len(c.Jails))
			for i := range c.Jails {
				all[i] = c.Jails[i].Name
			}
			return nil, usagef("there is no jail %q; there are %s", name, strings.Join(all, ", "))
		}
		if j.WatchesBans {
			return nil, usagef("jail %s watches bans and reads no lines", name)
		}
		picked = append(picked, j)
	}
	if len(names) == 0 {
		for i := range c.Jails {
			if j := &c.Jails[i]; j.Enabled && !j.WatchesBans {
				picked = append(picked, j)
			}
		}
	}
	if len(picked) == 0 {
		return nil, usagef("no jail is enabled; name one with --jail")
	}
	return picked, nil
}

func jailByName(c *jails.Config, name string) *jails.Jail {
	for i := range c.Jails {
		if c.Jails[i].Name == name {
			return &c.Jails[i]
		}
	}
	return nil
}

type checkCmd struct{}

// problem is a jails.Problem as JSON.
type problem struct {
	File   string `json:"file"`
	Line   int    `json:"line,omitempty"`
	Key    string `json:"key,omitempty"`
	Reason string `json:"reason"`
}

func asProblems(ps jails.Problems) []problem {
	list := make([]problem, len(ps))
	for i, p := range ps {
		list[i] = problem(p)
	}
	return list
}

// Run tells all that is wrong in one go.
func (c *checkCmd) Run(a *app) error {
	conf, problems := jails.Load(jaild.FS, a.Config)
	res := struct {
		Files    []string  `json:"files"`
		Jails    []string  `json:"jails"` // enabled
		Problems []problem `json:"problems"`
		Warnings []problem `json:"warnings"`
	}{Files: []string{}, Jails: []string{}, Problems: asProblems(problems), Warnings: []problem{}}
	if conf != nil {
		res.Files = append(res.Files, conf.Files...)
		res.Warnings = asProblems(conf.Warnings)
		for _, j := range conf.Jails {
			if j.Enabled {
				res.Jails = append(res.Jails, j.Name)
			}
		}
	}
	err := a.print(res, func(w io.Writer) {
		for _, p := range problems {
			fmt.Fprintln(w, printable(p.String()))
		}
		if conf == nil {
			fmt.Fprintf(w, "%s\n", plural(len(problems), "problem"))
			return
		}
		for _, p := range conf.Warnings {
			fmt.Fprintf(w, "warning: %s\n", printable(p.String()))
		}
		fmt.Fprintf(w, "no problems; %s read, %d of %s enabled: %s\n", plural(len(conf.Files), "file"), len(res.Jails),
			plural(len(conf.Jails), "jail"), printable(strings.Join(res.Jails, ", ")))
	})
	if err == nil && conf == nil {
		return usageError{errReported}
	}
	return err
}
