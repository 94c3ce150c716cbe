package main

import (
	"strings"
	"testing"
)

const run = `{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"pass","Package":"p","Test":"TestA","Elapsed":0.01}
{"Action":"output","Package":"p","Test":"TestB","Output":"=== RUN   TestB\n"}
{"Action":"output","Package":"p","Test":"TestB","Output":"    b_test.go:3: needs root\n"}
{"Action":"output","Package":"p","Test":"TestB","Output":"--- SKIP: TestB (0.00s)\n"}
{"Action":"skip","Package":"p","Test":"TestB"}
{"Action":"output","Package":"p","Output":"PASS\n"}
{"Action":"output","Package":"p","Output":"ok  \tp\t0.01s\n"}
{"Action":"pass","Package":"p"}
`

func TestASkipFailsOnlyInCI(t *testing.T) {
	for _, strict := range []bool{false, true} {
		var out strings.Builder
		tally := newTally(&out, strict)
		if err := tally.read(strings.NewReader(run)); err != nil {
			t.Fatal(err)
		}
		if ok := tally.close(); ok == strict {
			t.Errorf("strict %v: ok %v\n%s", strict, ok, &out)
		}
		for _, want := range []string{"needs root", "ok  \tp\t0.01s", "\n1 passed, 0 failed, 1 skipped\n"} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("strict %v: no %q in:\n%s", strict, want, &out)
			}
		}
	}
}

// TestOnlyAnOldKernelMaySkip: on the machine's own kernel such a skip would hide
// that a feature isn't found.
func TestOnlyAnOldKernelMaySkip(t *testing.T) {
	old := strings.Replace(run, "needs root", "needs Linux 5.18 for large packets; this is Linux 5.10.0", 1)
	for _, oldKernel := range []bool{false, true} {
		var out strings.Builder
		tally := newTally(&out, true)
		tally.oldKernel = oldKernel
		if err := tally.read(strings.NewReader(old)); err != nil {
			t.Fatal(err)
		}
		if ok := tally.close(); ok != oldKernel {
			t.Errorf("old kernel %v: accepted %v:\n%s", oldKernel, ok, &out)
		}
	}
}

func TestFailures(t *testing.T) {
	for name, run := range map[string]string{
		"a test fails":       `{"Action":"output","Package":"p","Test":"TestA","Output":"boom\n"}` + "\n" + `{"Action":"fail","Package":"p","Test":"TestA"}`,
		"a test is cut off":  run + `{"Action":"output","Package":"q","Test":"TestC","Output":"panic: boom\n"}`,
		"a build fails":      `{"Action":"build-output","ImportPath":"p","Output":"boom\n"}` + "\n" + `{"Action":"fail","Package":"p"}`,
		"nothing ran: boom?": `{"Action":"pass","Package":"p"}`,
	} {
		var out strings.Builder
		tally := newTally(&out, false)
		if err := tally.read(strings.NewReader(run)); err != nil {
			t.Fatal(err)
		}
		if tally.close() {
			t.Errorf("%s: taken for good:\n%s", name, &out)
		}
		if !strings.Contains(name, "nothing") && !strings.Contains(out.String(), "boom") {
			t.Errorf("%s: the output doesn't say why:\n%s", name, &out)
		}
	}
}
