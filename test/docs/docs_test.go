package docs

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"xdpban/internal/lab"
)

func TestRead(t *testing.T) {
	page := "Text\n\n```console fails\n# one \\\n>   two\nsaid\n\nmore\nattacker$ three\n```\n" +
		"<!-- run system\nsleep 1\n-->\n```toml file=/etc/x append\na = 1\n```\n```toml\nb = 2\n```\n```console source\n$ make\n```\n<!-- other -->\n"
	got, err := Read(page)
	if err != nil {
		t.Fatal(err)
	}
	want := []Step{
		{Line: 4, On: "server", Command: "one \\\n  two", Want: []string{"said", "", "more"}},
		{Line: 9, On: "attacker", Command: "three", Fails: true},
		{Line: 11, On: "server", System: true, Command: "sleep 1"},
		{Line: 15, On: "server", File: "/etc/x", Append: true, Text: "a = 1\n"},
		{Line: 21, On: "server", Source: true, Command: "make"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v\nwant\n%+v", got, want)
	}
	for _, bad := range []string{"```console\nno prompt\n```\n", "```console\n```\n", "```console\n# x\n", "```console quickly\n# x\n```\n", "<!-- run\n"} {
		if steps, err := Read(bad); err == nil {
			t.Errorf("%q passes as %+v", bad, steps)
		}
	}
}

func TestCheck(t *testing.T) {
	failed := errors.New("exit status 1")
	for _, c := range []struct {
		want, got string
		fails     bool
		err       error
		good      bool
	}{
		{"", "anything", false, nil, true},
		{"", "anything", false, failed, false},
		{"a  b", "\na b\n\n", false, nil, true},
		{"a", "a\nb", false, nil, false},
		{"a …ms z", "a 17ms z", false, nil, true},
		{"a …ms z", "a 17s z", false, nil, false},
		{"a …aba", "a ba", false, nil, false},
		{"…", "", false, nil, true},
		{"a\n…\nz", "a\nb\nc\nz", false, nil, true},
		{"a\n…\nz", "a\nz", false, nil, true},
		{"a\n…\nz", "a\nb", false, nil, false},
		{"no", "no", true, failed, true},
		{"no", "no", true, nil, false},
		{"no", "yes", true, failed, false},
	} {
		s := Step{Fails: c.fails}
		if c.want != "" {
			s.Want = strings.Split(c.want, "\n")
		}
		if err := s.Check(c.got, c.err); (err == nil) != c.good {
			t.Errorf("%q, printed %q, %v: %v", c.want, c.got, c.err, err)
		}
	}
}

func TestPages(t *testing.T) {
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	pages = append(pages, "../../README.md")
	if os.Getuid() != 0 {
		t.Skip("needs root to make name spaces")
	}
	program := filepath.Join(t.TempDir(), "xdpban")
	build := exec.Command("go", "build", "-buildvcs=false", "-trimpath", "-o", program, "../../cmd/xdpban")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build xdpban: %v\n%s", err, out)
	}
	for _, page := range pages {
		t.Run(strings.TrimSuffix(filepath.Base(page), ".md"), func(t *testing.T) {
			text, err := os.ReadFile(page)
			if err != nil {
				t.Fatal(err)
			}
			steps, err := Read(string(text))
			if err != nil {
				t.Fatal(err)
			}
			play(t, program, steps)
		})
	}
}

// play takes the steps on new hosts; those that other packages play are left
// out.
func play(t *testing.T, program string, steps []Step) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	var hosts map[string]*lab.Host
	for _, s := range steps {
		if s.System || s.Source {
			continue
		}
		if hosts == nil {
			hosts = boot(ctx, t, program)
		}
		h := hosts[s.On]
		if s.File != "" {
			if err := s.Write(h.Path(s.File)); err != nil {
				t.Fatalf("line %d: %v", s.Line, err)
			}
			continue
		}
		if err := s.Check(h.Run(ctx, "sh", "-e", "-c", "cd /root\n"+s.Command)); err != nil {
			t.Fatal(err)
		}
	}
}

func boot(ctx context.Context, t *testing.T, program string) map[string]*lab.Host {
	t.Helper()
	binary, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	// As make deps unpacks it.
	crowdsec, err := filepath.Abs("../../.cache/crowdsec")
	if err != nil {
		t.Fatal(err)
	}
	hosts := map[string]*lab.Host{}
	for _, name := range []string{"server", "attacker"} {
		h, err := lab.Boot(name)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := h.Close(); err != nil {
				t.Error(err)
			}
		})
		hosts[name] = h
		// Pages may leave things in these, which are this machine's, and may hold
		// this very folder.
		if _, err := h.Run(ctx, "sh", "-e", "-c", `mkdir /run/lab/crowdsec; [ ! -d "$1" ] || mount --bind "$1" /run/lab/crowdsec
			mount -t tmpfs tmpfs /root; mount -t tmpfs tmpfs /tmp`, "sh", crowdsec); err != nil {
			t.Fatal(err)
		}
	}
	server, attacker := hosts["server"], hosts["attacker"]
	if err := os.WriteFile(server.Path("/run/lab/bin/xdpban"), binary, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"crowdsec", "cscli"} {
		if err := server.Install(name, "/run/lab/crowdsec/usr/bin/"+name); err != nil {
			t.Fatal(err)
		}
	}
	prefixes := func(list ...string) (all []netip.Prefix) {
		for _, p := range list {
			all = append(all, netip.MustParsePrefix(p))
		}
		return all
	}
	err = lab.Join(ctx, "eth0", server, prefixes("192.0.2.1/24", "2001:db8::1/64"), attacker, prefixes("192.0.2.66/24", "192.0.2.7/24", "2001:db8::66/64"))
	if err == nil {
		_, err = server.Run(ctx, "ip", "route", "add", "default", "via", "192.0.2.66")
	}
	if err != nil {
		t.Fatal(err)
	}
	return hosts
}
