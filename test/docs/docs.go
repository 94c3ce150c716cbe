// Package docs runs what the pages of the documentation tell their readers to
// type: README.md and docs/*.md. A page that tells a lie fails the tests.
//
// Each page is played from top to bottom on hosts of its own: "server"
// (192.0.2.1, 2001:db8::1), on which xdpban is a command, and "attacker"
// (192.0.2.66, 2001:db8::66; and 192.0.2.7 besides), joined by a cable. Both
// see this machine's programs, have an /etc and /var that are thrown away,
// and no systemd. Of a page's blocks
//
//   - ```console is a transcript. "# " and "$ " are prompts of the server,
//     "attacker# " and "attacker$ " of the attacker, "> " continues the line
//     before it. What follows a command is compared with what it prints, on
//     both outputs: "…" in a line stands for any text, "…" alone on a line
//     for any number of lines; empty lines and the number of blanks don't
//     count. A
//     command with nothing below it may print what it likes. Each must exit
//     with 0.
//   - ```console fails: as above, but its last command must fail.
//   - ```console system: is played on a whole Debian with systemd, nginx and
//     fail2ban, and a built package in dist, by package test/system. README's
//     turn comes first.
//   - ```console source: is played in the source's folder, by package
//     packaging.
//   - ```ANY file=/PATH: the block is written to that file of the server;
//     with "append" added to its end. "system" may stand here too.
//   - every other block is only read.
//
// What must happen without being shown stands in a comment, which is played
// in its place by sh -e on the server:
//
//	<!-- run
//	xdpban run >/run/xdpban.log 2>&1 &
//	until xdpban status >/dev/null 2>&1; do sleep 0.1; done
//	-->
//
// "<!-- run system" is played on the Debian. Processes in the background need
// their output redirected. Words behind ```console aren't shown by a
// renderer. Commands run in /root, which is empty at first; a cd doesn't
// outlive its command.
package docs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Step is one thing that a page does.
type Step struct {
	Line    int
	System  bool   // played on a whole Debian
	Source  bool   // played where the source is
	On      string // the host: "server" or "attacker"
	Command string // for sh -e -c; or a file is written:
	File    string
	Append  bool
	Text    string   // the file's
	Want    []string // what the page says is printed; none: anything
	Fails   bool
}

// Read finds the steps of a page.
func Read(page string) ([]Step, error) {
	var steps []Step
	lines := strings.Split(page, "\n")
	for i := 0; i < len(lines); i++ {
		first := i
		switch line := strings.TrimSpace(lines[i]); {
		case strings.HasPrefix(line, "```"):
			fence := line[:len(line)-len(strings.TrimLeft(line, "`"))]
			for i++; i < len(lines) && strings.TrimSpace(lines[i]) != fence; i++ {
			}
			if i == len(lines) {
				return nil, fmt.Errorf("line %d: the block has no end", first+1)
			}
			more, err := block(strings.Fields(line[len(fence):]), lines[first+1:i], first+2)
			if err != nil {
				return nil, err
			}
			steps = append(steps, more...)
		case line == "<!-- run" || line == "<!-- run system":
			for i++; i < len(lines) && strings.TrimSpace(lines[i]) != "-->"; i++ {
			}
			if i == len(lines) {
				return nil, fmt.Errorf("line %d: the comment has no end", first+1)
			}
			steps = append(steps, Step{
				Line: first + 1, On: "server", System: strings.HasSuffix(line, "system"),
				Command: strings.Join(lines[first+1:i], "\n"),
			})
		}
	}
	return steps, nil
}

// block reads one block by the words of its opening line.
func block(words, lines []string, at int) ([]Step, error) {
	if len(words) == 0 {
		return nil, nil
	}
	var file string
	var system, source, fails, more bool
	for _, w := range words[1:] {
		switch path, isFile := strings.CutPrefix(w, "file="); {
		case isFile:
			file = path
		case w == "system":
			system = true
		case w == "fails":
			fails = true
		case w == "append":
			more = true
		case w == "source":
			source = true
		default:
			return nil, fmt.Errorf("line %d: %q means nothing on a block", at-1, w)
		}
	}
	if file != "" {
		return []Step{{Line: at, On: "server", System: system, File: file, Append: more, Text: strings.Join(lines, "\n") + "\n"}}, nil
	}
	if words[0] != "console" {
		return nil, nil
	}
	var steps []Step
	for n, line := range lines {
		on, command := prompt(line)
		switch rest, continued := strings.CutPrefix(line, "> "); {
		case on != "":
			steps = append(steps, Step{Line: at + n, On: on, System: system, Source: source, Command: command})
		case len(steps) == 0:
			return nil, fmt.Errorf("line %d: a console block begins with a prompt and a command", at+n)
		default:
			if s := &steps[len(steps)-1]; continued && s.Want == nil {
				s.Command += "\n" + rest
			} else {
				s.Want = append(s.Want, line)
			}
		}
	}
	if len(steps) == 0 {
		return nil, fmt.Errorf("line %d: the console block is empty", at)
	}
	steps[len(steps)-1].Fails = fails
	return steps, nil
}

func prompt(line string) (on, command string) {
	for _, p := range []struct{ prompt, on string }{
		{"# ", "server"}, {"$ ", "server"}, {"attacker# ", "attacker"}, {"attacker$ ", "attacker"},
	} {
		if rest, ok := strings.CutPrefix(line, p.prompt); ok {
			return p.on, rest
		}
	}
	return "", ""
}

// Write does a step that writes a file, whose path on this machine is given.
func (s Step) Write(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	how := os.O_TRUNC
	if s.Append {
		how = os.O_APPEND
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|how, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteString(s.Text)
	return errors.Join(err, f.Close())
}

// Check holds what a command did against what the page says. Err is how the
// command ended.
func (s Step) Check(printed string, err error) error {
	switch {
	case err != nil && !s.Fails:
		return fmt.Errorf("line %d: %s\nfailed: %w", s.Line, s.Command, err)
	case err == nil && s.Fails:
		return fmt.Errorf("line %d: %s\nis done, but the page says that it fails; it printed\n%s", s.Line, s.Command, printed)
	}
	want, got := squeezed(s.Want), squeezed(strings.Split(printed, "\n"))
	if len(want) > 0 && !matches(want, got) {
		return fmt.Errorf("line %d: %s\nprints\n%s\nbut the page says\n%s", s.Line, s.Command, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	return nil
}

// squeezed leaves out empty lines, and makes one blank of many.
func squeezed(lines []string) []string {
	var out []string
	for _, l := range lines {
		if l = strings.Join(strings.Fields(l), " "); l != "" {
			out = append(out, l)
		}
	}
	return out
}

func matches(want, got []string) bool {
	for len(want) > 0 {
		if want[0] == "…" {
			rest := want[1:]
			return len(rest) == 0 || slices.ContainsFunc(indices(got), func(i int) bool { return matches(rest, got[i:]) })
		}
		if len(got) == 0 || !matchesLine(want[0], got[0]) {
			return false
		}
		want, got = want[1:], got[1:]
	}
	return len(got) == 0
}

func indices(lines []string) []int {
	all := make([]int, len(lines)+1)
	for i := range all {
		all[i] = i
	}
	return all
}

func matchesLine(want, got string) bool {
	parts := strings.Split(want, "…")
	if len(parts) == 1 {
		return want == got
	}
	rest, ok := strings.CutPrefix(got, parts[0])
	if !ok {
		return false
	}
	last := parts[len(parts)-1]
	for _, p := range parts[1 : len(parts)-1] {
		_, after, found := strings.Cut(rest, p)
		if !found {
			return false
		}
		rest = after
	}
	return strings.HasSuffix(rest, last)
}
