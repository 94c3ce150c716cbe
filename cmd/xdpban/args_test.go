package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

func TestFlagsFirst(t *testing.T) {
	parser, err := kong.New(&grammar{})
	if err != nil {
		t.Fatal(err)
	}
	for given, want := range map[string]string{
		"replay a --jail x b":                "replay --jail x a b",
		"replay a -j x b -e c":               "replay -j x -e a b c",
		"replay a --jail=x -- b --jail":      "replay --jail=x -- a b --jail",
		"--config d replay a --json -":       "--config d replay --json a -",
		"ban 192.0.2.1 --for 1d 192.0.2.2":   "ban --for 1d 192.0.2.1 192.0.2.2",
		"nonsense a --jail b":                "nonsense a --jail b",
		"replay":                             "replay",
		"test --":                            "test --",
		"-- replay a --jail b":               "-- replay a --jail b",
		"replay a --jail":                    "replay --jail a",
		"test log --json pattern --match=a=": "test --json --match=a= log pattern",
	} {
		if got := flagsFirst(parser.Model, strings.Fields(given)); !slices.Equal(got, strings.Fields(want)) {
			t.Errorf("%s: %q, want %s", given, got, want)
		}
	}
}
