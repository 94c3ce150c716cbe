package main

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestMessageIDs: each event of the daemon has an id of its own, and the
// manual page tells it.
func TestMessageIDs(t *testing.T) {
	source, err := os.ReadFile("../../internal/daemon/daemon.go")
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("../../packaging/man/xdpban.1")
	if err != nil {
		t.Fatal(err)
	}
	events := regexp.MustCompile(`(?m)^\tEvent\w+ += "(\w+)"`).FindAllStringSubmatch(string(source), -1)
	if len(events) < 10 {
		t.Fatalf("events %q", events)
	}
	seen := map[string]string{}
	for _, m := range events {
		id := messageID(m[1])
		if !regexp.MustCompile(`^[0-9a-f]{32}$`).MatchString(id) || seen[id] != "" {
			t.Errorf("%s has the id %q, as %s", m[1], id, seen[id])
		}
		seen[id] = m[1]
		if !strings.Contains(string(page), id) {
			t.Errorf("xdpban(1) doesn't name %s's %s", m[1], id)
		}
	}
	if messageID("something else") != "" {
		t.Error("every event is one")
	}
}
