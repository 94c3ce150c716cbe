package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/alecthomas/kong"
)

type completionCmd struct {
	Shell string `arg:"" help:"bash, zsh or fish." enum:"bash,zsh,fish"`
}

// Run writes a script made of the same definition that parses the command
// line, so the two can't differ.
func (c *completionCmd) Run(a *app) error {
	var b strings.Builder
	switch c.Shell {
	case "bash":
		bashCompletion(&b, a.model)
	case "zsh":
		// zsh runs bash's completions by its own compatibility module.
		b.WriteString("#compdef xdpban\nautoload -U +X bashcompinit && bashcompinit\n")
		bashCompletion(&b, a.model)
		// The first time, zsh runs this file itself as the completion.
		b.WriteString("[[ ${funcstack[1]} != _xdpban ]] || _bash_complete -o default -F _xdpban\n")
	case "fish":
		fishCompletion(&b, a.model)
	}
	_, err := io.WriteString(a.stdout, b.String())
	return err
}

// words are what may stand behind a command: its flags and subcommands.
func words(n *kong.Node) []string {
	var w []string
	for _, c := range n.Children {
		if c.Type == kong.CommandNode && !c.Hidden {
			w = append(w, c.Name)
		}
	}
	for _, group := range n.AllFlags(true) {
		for _, f := range group {
			w = append(w, "--"+f.Name)
		}
	}
	return w
}

func bashCompletion(b *strings.Builder, app *kong.Application) {
	b.WriteString("_xdpban() {\n\tlocal cur=${COMP_WORDS[COMP_CWORD]} cmd= i w\n")
	b.WriteString("\tfor ((i = 1; i < COMP_CWORD; i++)); do\n\t\tw=${COMP_WORDS[i]}\n\t\t[[ $w == -* ]] || { cmd=\"${cmd:+$cmd }$w\"; }\n\tdone\n")
	b.WriteString("\tcase $cmd in\n")
	var walk func(n *kong.Node, path string)
	walk = func(n *kong.Node, path string) {
		for _, c := range n.Children {
			if c.Type == kong.CommandNode && !c.Hidden {
				walk(c, strings.TrimSpace(path+" "+c.Name))
			}
		}
		match := "'" + path + "'"
		if path != "" {
			match += "|'" + path + " '*"
		}
		fmt.Fprintf(b, "\t%s) w=%q ;;\n", match, strings.Join(words(n), " "))
	}
	walk(app.Node, "")
	b.WriteString("\t*) w= ;;\n\tesac\n\tCOMPREPLY=($(compgen -W \"$w\" -- \"$cur\"))\n}\ncomplete -o default -F _xdpban xdpban\n")
}

func fishCompletion(b *strings.Builder, app *kong.Application) {
	quote := func(s string) string { return "'" + strings.ReplaceAll(s, "'", `\'`) + "'" }
	flags := func(n *kong.Node, cond string) {
		for _, f := range n.Flags {
			fmt.Fprintf(b, "complete -c xdpban%s -l %s -d %s\n", cond, f.Name, quote(f.Help))
		}
	}
	flags(app.Node, "")
	for _, c := range app.Children {
		if c.Type != kong.CommandNode || c.Hidden {
			continue
		}
		fmt.Fprintf(b, "complete -c xdpban -n __fish_use_subcommand -f -a %s -d %s\n", c.Name, quote(c.Help))
		cond := fmt.Sprintf(" -n '__fish_seen_subcommand_from %s'", c.Name)
		flags(c, cond)
		for _, sub := range c.Children {
			if sub.Type == kong.CommandNode {
				fmt.Fprintf(b, "complete -c xdpban%s -f -a %s -d %s\n", cond, sub.Name, quote(sub.Help))
				flags(sub, fmt.Sprintf(" -n '__fish_seen_subcommand_from %s'", sub.Name))
			}
		}
	}
}
