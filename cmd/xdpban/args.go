package main

import (
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

// flagsFirst puts a command's flags ahead of its arguments: kong ends a list
// of arguments at the first flag. What follows "--" is no flag.
func flagsFirst(app *kong.Application, args []string) []string {
	node, i := app.Node, 0
	for ; i < len(args) && len(node.Children) > 0; i++ {
		a := args[i]
		if a == "--" {
			return args
		}
		if isFlag(a) {
			if takesNext(node, a) {
				i++
			}
			continue
		}
		at := slices.IndexFunc(node.Children, func(c *kong.Node) bool { return c.Name == a || slices.Contains(c.Aliases, a) })
		if at < 0 {
			return args
		}
		node = node.Children[at]
	}
	if i >= len(args) {
		return args
	}
	flags, rest := slices.Clone(args[:i]), []string(nil)
	for ; i < len(args); i++ {
		switch a := args[i]; {
		case a == "--":
			flags = append(flags, a)
			rest = append(rest, args[i+1:]...)
			i = len(args)
		case isFlag(a):
			flags = append(flags, a)
			if takesNext(node, a) && i+1 < len(args) {
				i++
				flags = append(flags, args[i])
			}
		default:
			rest = append(rest, a)
		}
	}
	return append(flags, rest...)
}

func isFlag(a string) bool { return len(a) > 1 && a[0] == '-' }

// takesNext says that the value of a flag is the argument behind it.
func takesNext(n *kong.Node, a string) bool {
	if strings.Contains(a, "=") {
		return false
	}
	for _, group := range n.AllFlags(false) {
		for _, f := range group {
			if a == "--"+f.Name || a == "-"+string(f.Short) {
				return !f.IsBool() && !f.IsCounter()
			}
		}
	}
	return false
}
