// Command gate runs go test and says in the end what ran. In CI (CI=true) a
// skipped test fails the run: a kernel test that quietly skips proves
// nothing.
//
// Its arguments are go test's.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// mayskip are the tests that may skip in CI, and why. So may, on a
// kernel chosen for its age (with -exec, in an emulated machine), any test that
// finds it too old: "needs Linux 5.18 for …".
var mayskip = map[string]string{
	"xdpban/internal/control.TestAccessClient": "TestAccess runs it, as other users",
	"xdpban/test/system.TestPackageOnDebian":   "make test-system runs it, on a Debian that it makes",
}

// event is what go test -json prints, one a line.
type event struct {
	Action     string
	Package    string
	ImportPath string
	Test       string
	Output     string
	Elapsed    float64
}

func main() {
	cmd := exec.Command("go", append([]string{"test", "-json"}, os.Args[1:]...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "gate:", err)
		os.Exit(1)
	}
	t := newTally(os.Stdout, os.Getenv("CI") == "true")
	t.oldKernel = slices.Contains(os.Args[1:], "-exec")
	readErr := t.read(out)
	runErr := cmd.Wait()
	ok := t.close()
	for _, err := range []error{readErr, runErr} {
		if err != nil {
			fmt.Fprintln(os.Stderr, "gate: go test:", err)
			ok = false
		}
	}
	if !ok {
		os.Exit(1)
	}
}

// tally follows a run. It prints each top-level test's result as it comes,
// the whole output of what failed or skipped, and each package's own closing
// line.
type tally struct {
	w      io.Writer
	strict bool
	// oldKernel says that the tests run on a kernel that was chosen for its age.
	oldKernel bool
	output    map[string]*strings.Builder // by package and test
	closing   []string                    // the packages' last lines, in order
	failed    []string
	skipped   []string // "package.Test: reason"
	refused   int      // skips that the strict mode doesn't accept
	passed    int
}

func newTally(w io.Writer, strict bool) *tally {
	return &tally{w: w, strict: strict, output: map[string]*strings.Builder{}}
}

func (t *tally) read(r io.Reader) error {
	in := bufio.NewReader(r)
	for {
		line, err := in.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if json.Unmarshal(line, &e) != nil {
				fmt.Fprintf(t.w, "%s", line)
			} else {
				t.take(e)
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (t *tally) take(e event) {
	name := e.Package + "." + e.Test
	switch e.Action {
	case "build-output":
		fmt.Fprint(t.w, e.Output)
	case "output":
		if t.output[name] == nil {
			t.output[name] = &strings.Builder{}
		}
		t.output[name].WriteString(e.Output)
	case "pass", "fail", "skip":
		t.end(name, e)
	}
}

func (t *tally) end(name string, e event) {
	said := ""
	if b := t.output[name]; b != nil {
		said = b.String()
		delete(t.output, name)
	}
	if e.Test == "" {
		last := closingLine(said)
		t.closing = append(t.closing, last)
		if e.Action == "fail" {
			t.failed = append(t.failed, e.Package)
			fmt.Fprint(t.w, said)
		} else {
			fmt.Fprintln(t.w, last)
		}
		return
	}
	took := time.Duration(e.Elapsed * float64(time.Second)).Round(10 * time.Millisecond)
	switch e.Action {
	case "pass":
		t.passed++
		if !strings.Contains(e.Test, "/") {
			fmt.Fprintf(t.w, "pass %s (%s)\n", name, took)
		}
	case "fail":
		t.failed = append(t.failed, name)
		fmt.Fprintf(t.w, "FAIL %s (%s)\n%s", name, took, said)
	case "skip":
		reason := skipReason(said)
		t.skipped = append(t.skipped, name+": "+reason)
		if why := mayskip[name]; why != "" {
			reason += " (" + why + ")"
		} else if !t.oldKernel || !strings.Contains(reason, ": needs Linux ") {
			t.refused++
		}
		fmt.Fprintf(t.w, "skip %s: %s\n", name, reason)
	}
}

// close prints the closing lines and says whether all is well.
func (t *tally) close() bool {
	fmt.Fprintln(t.w)
	// A test that a crash or a time-out cut off has no result of its own,
	// but what it said is the best trace of why.
	for name, b := range t.output {
		if !strings.HasSuffix(name, ".") {
			fmt.Fprintf(t.w, "UNFINISHED %s\n%s", name, b)
			t.failed = append(t.failed, name)
		}
	}
	for _, l := range t.closing {
		fmt.Fprintln(t.w, l)
	}
	for _, s := range t.skipped {
		fmt.Fprintln(t.w, "skipped", s)
	}
	for _, f := range t.failed {
		fmt.Fprintln(t.w, "failed ", f)
	}
	refused := t.strict && t.refused > 0
	if refused {
		fmt.Fprintf(t.w, "in CI a skipped test is a failure: %d skipped without leave\n", t.refused)
	}
	if t.passed == 0 {
		fmt.Fprintln(t.w, "no test ran")
	}
	fmt.Fprintf(t.w, "%d passed, %d failed, %d skipped\n", t.passed, len(t.failed), len(t.skipped))
	return len(t.failed) == 0 && !refused && t.passed > 0
}

// closingLine is the line with which go test closes a package: its last one.
func closingLine(said string) string {
	said = strings.TrimRight(said, "\n")
	return said[strings.LastIndexByte(said, '\n')+1:]
}

// skipReason finds what t.Skip was given: the line above the verdict, with
// file and line.
func skipReason(said string) string {
	for l := range strings.Lines(said) {
		l = strings.TrimSpace(l)
		if l != "" && !strings.HasPrefix(l, "===") && !strings.HasPrefix(l, "---") {
			return l
		}
	}
	return "no reason given"
}
