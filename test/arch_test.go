package test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// arrows says which of our packages each of our packages may reach, directly
// or through others. ARCHITECTURE.md draws them.
var arrows = map[string][]string{
	"xdpban/bpf":               {},
	"xdpban/matcher":           {},
	"xdpban/jails":             {"xdpban/matcher"},
	"xdpban/jail.d":            {},
	"xdpban/packaging":         {},
	"xdpban/internal/source":   {"xdpban/matcher"},
	"xdpban/internal/ledger":   {"xdpban/jails", "xdpban/matcher"},
	"xdpban/internal/control":  {"xdpban/jails", "xdpban/matcher"},
	"xdpban/internal/export":   {"xdpban/internal/control", "xdpban/jails", "xdpban/matcher"},
	"xdpban/internal/hook":     {"xdpban/internal/control", "xdpban/jails", "xdpban/matcher"},
	"xdpban/internal/web":      {"xdpban/internal/control", "xdpban/internal/export", "xdpban/jails", "xdpban/matcher"},
	"xdpban/internal/fleet":    {"xdpban/internal/control", "xdpban/internal/ledger", "xdpban/jails", "xdpban/matcher"},
	"xdpban/internal/fail2ban": {"xdpban/jails", "xdpban/matcher"},
	"xdpban/internal/host":     {},
	"xdpban/internal/network":  {},
	"xdpban/internal/place":    {},
	"xdpban/internal/feed":     {},
	"xdpban/internal/lab":      {},
	"xdpban/internal/fleet/server": {
		"xdpban/jails", "xdpban/matcher",
	},
	"xdpban/internal/daemon": {
		"xdpban/matcher", "xdpban/jails",
		"xdpban/internal/host", "xdpban/internal/source", "xdpban/internal/ledger", "xdpban/internal/control", "xdpban/internal/fail2ban",
	},
}

// unbound packages plug things together or prove them: any of ours may be
// reached from there, but nothing may import them.
var unbound = []string{"xdpban/cmd/", "xdpban/test", "xdpban/bpf/", "xdpban/matcher/", "xdpban/internal/source/", "xdpban/packaging/"}

func TestImportsFollowTheArrows(t *testing.T) {
	cmd := exec.Command("go", "list", "-json=ImportPath,Deps", "./...")
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		var ee *exec.ExitError
		if errors.As(err, &ee) {
			t.Fatalf("go list: %v\n%s", err, ee.Stderr)
		}
		t.Fatal(err)
	}
	dec := json.NewDecoder(strings.NewReader(string(out)))
	seen := 0
	for {
		var p struct {
			ImportPath string
			Deps       []string
		}
		if err := dec.Decode(&p); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(p.ImportPath, "xdpban/cmd/xdpban") && p.ImportPath != "xdpban/cmd/xdpban-nats" && slices.Contains(p.Deps, "xdpban/internal/fleet/server") {
			t.Errorf("%s carries the NATS server: it would take a quarter more memory", p.ImportPath)
		}
		may, bound := arrows[p.ImportPath]
		if !bound {
			if !slices.ContainsFunc(unbound, func(u string) bool { return strings.HasPrefix(p.ImportPath, u) }) {
				t.Errorf("%s is not in the architecture: give it a place here and in ARCHITECTURE.md", p.ImportPath)
			}
			continue
		}
		seen++
		for _, d := range p.Deps {
			if !strings.HasPrefix(d, "xdpban/") || slices.Contains(may, d) {
				continue
			}
			// A package's own parts are its own business.
			if strings.HasPrefix(d, p.ImportPath+"/") || slices.ContainsFunc(may, func(m string) bool { return strings.HasPrefix(d, m+"/") }) {
				continue
			}
			t.Errorf("%s reaches %s: the arrows don't allow it", p.ImportPath, d)
		}
	}
	if seen == 0 {
		t.Fatal("go list named none of our packages")
	}
}
