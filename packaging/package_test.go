package packaging

import (
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	jaild "xdpban/jail.d"
	"xdpban/jails"
	"xdpban/test/docs"
)

// tool runs a command in the source tree; without the program the test can't
// say anything.
func tool(t *testing.T, env []string, argv ...string) string {
	t.Helper()
	if _, err := exec.LookPath(argv[0]); err != nil {
		t.Skipf("needs %s: make deps installs it", argv[0])
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = ".."
	cmd.Env = append(os.Environ(), env...)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", strings.Join(argv, " "), err, out, &said)
	}
	return string(out)
}

var programs = []string{"/usr/bin/xdpban", "/usr/lib/xdpban/xdpban-nats"}

// common are the files of every package; the program besides.
var common = []string{
	"/etc/xdpban/jail.d/local.toml",
	"/etc/xdpban/xdpban.toml",
	"/usr/bin/xdpban",
	"/usr/lib/xdpban/xdpban-nats",
	"/usr/lib/systemd/system/xdpban-hook.service",
	"/usr/lib/systemd/system/xdpban-hook.socket",
	"/usr/lib/systemd/system/xdpban-nats.service",
	"/usr/lib/systemd/system/xdpban-net.service",
	"/usr/lib/systemd/system/xdpban-net.socket",
	"/usr/lib/systemd/system/xdpban.service",
	"/usr/share/bash-completion/completions/xdpban",
	"/usr/share/doc/xdpban/changelog.gz",
	"/usr/share/doc/xdpban/copyright",
	"/usr/share/fish/vendor_completions.d/xdpban.fish",
	"/usr/share/man/man1/xdpban.1.gz",
	"/usr/share/man/man5/xdpban-jail.5.gz",
	"/usr/share/man/man5/xdpban.toml.5.gz",
	"/usr/share/xdpban/fail2ban/xdpban.conf",
	"/usr/share/xdpban/monitoring/alerts.yml",
	"/usr/share/xdpban/monitoring/dashboard.json",
}

// TestPackages builds the packages twice, under different circumstances, and
// wants the same bytes, and in them what belongs there.
func TestPackages(t *testing.T) {
	tool(t, nil, "rpm", "--version")
	first, second := t.TempDir(), t.TempDir()
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	steps, err := docs.Read(string(readme))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range steps {
		if s.Source {
			tool(t, []string{"TZ=UTC", "LC_ALL=C.UTF-8", "MAKEFLAGS=s -- DIST=" + first}, "sh", "-e", "-c", s.Command)
		}
	}
	tool(t, []string{"TZ=Pacific/Auckland", "LC_ALL=C", "USER=somebody", "HOSTNAME=elsewhere"},
		"sh", "-c", "umask 077; make -s package ARCHS=arm64 DIST=$0", second)
	packages, err := os.ReadDir(first)
	if err != nil || len(packages) != 4 {
		t.Fatalf("want .deb and .rpm for amd64 and arm64: %v %v", packages, err)
	}
	again, err := os.ReadDir(second)
	if err != nil || len(again) != 2 {
		t.Fatalf("want a .deb and a .rpm: %v %v", again, err)
	}
	for _, p := range again {
		a, err := os.ReadFile(filepath.Join(first, p.Name()))
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(second, p.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(a, b) {
			t.Errorf("%s: another build has other bytes", p.Name())
		}
	}
	for _, arch := range []struct {
		deb, rpm string
		machine  elf.Machine
	}{{"amd64", "x86_64", elf.EM_X86_64}, {"arm64", "aarch64", elf.EM_AARCH64}} {
		deb, rpm := glob(t, first, "*_"+arch.deb+".deb"), glob(t, first, "*."+arch.rpm+".rpm")
		root := t.TempDir()
		tool(t, nil, "dpkg-deb", "--extract", deb, root)
		debSums := sums(t, root)
		want := append([]string{"/usr/share/doc/xdpban/changelog.Debian.gz", "/usr/share/lintian/overrides/xdpban", "/usr/share/zsh/vendor-completions/_xdpban"}, common...)
		if got := sorted(debSums); !slices.Equal(got, slices.Sorted(slices.Values(want))) {
			t.Errorf("%s has\n%s", deb, strings.Join(got, "\n"))
		}
		for _, p := range programs {
			program, err := elf.Open(filepath.Join(root, p))
			if err != nil {
				t.Fatal(err)
			}
			if program.Machine != arch.machine {
				t.Errorf("%s: %s is for %v", deb, p, program.Machine)
			}
			if libs, err := program.ImportedLibraries(); err != nil || len(libs) > 0 {
				t.Errorf("%s: %s isn't static: %v %v", deb, p, libs, err)
			}
			program.Close()
		}

		rpmSums := map[string]string{}
		for line := range strings.Lines(tool(t, nil, "rpm", "-qp", "--queryformat", "[%{FILENAMES} %{FILEDIGESTS} %{FILEMODES:perms} %{FILEUSERNAME}\n]", rpm)) {
			f := strings.Fields(line)
			if len(f) == 4 { // a folder has no digest
				rpmSums[f[0]] = f[1]
				if f[3] != "root" || f[2] != "-rw-r--r--" && (!slices.Contains(programs, f[0]) || f[2] != "-rwxr-xr-x") {
					t.Errorf("%s: %s", rpm, line)
				}
			}
		}
		want = append([]string{"/usr/share/zsh/site-functions/_xdpban"}, common...)
		if got := sorted(rpmSums); !slices.Equal(got, slices.Sorted(slices.Values(want))) {
			t.Errorf("%s has\n%s", rpm, strings.Join(got, "\n"))
		}
		for _, f := range common {
			if rpmSums[f] != debSums[f] {
				t.Errorf("%s differs between %s and %s", f, deb, rpm)
			}
		}
		if conf := tool(t, nil, "rpm", "-qp", "--configfiles", rpm); strings.Join(slices.Sorted(slices.Values(strings.Fields(conf))), " ") != "/etc/xdpban/jail.d/local.toml /etc/xdpban/xdpban.toml" {
			t.Errorf("%s: configuration files %q", rpm, conf)
		}
		if info := tool(t, nil, "dpkg-deb", "--field", deb, "Architecture", "Version", "Depends"); !strings.Contains(info, "Architecture: "+arch.deb+"\n") || strings.Contains(info, "Depends") {
			t.Errorf("%s: %s", deb, info)
		}
		if conf := tool(t, nil, "dpkg-deb", "--info", deb, "conffiles"); strings.Join(slices.Sorted(slices.Values(strings.Fields(conf))), " ") != "/etc/xdpban/jail.d/local.toml /etc/xdpban/xdpban.toml" {
			t.Errorf("%s: configuration files %q", deb, conf)
		}
	}
}

func glob(t *testing.T, dir, pattern string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil || len(found) != 1 {
		t.Fatalf("%s in %s: %v %v", pattern, dir, found, err)
	}
	return found[0]
}

func sorted(m map[string]string) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// sums are the SHA-256 of all files below a folder, by path.
func sums(t *testing.T, root string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		sum := sha256.Sum256(b)
		out[strings.TrimPrefix(path, root)] = hex.EncodeToString(sum[:])
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestInstall installs into a folder and takes it away again.
func TestInstall(t *testing.T) {
	for _, c := range []struct{ prefix, units string }{
		{"/usr/local", "/usr/local/lib/systemd/system"},
		{"/opt/xdpban", "/etc/systemd/system"},
	} {
		dest := t.TempDir()
		args := []string{"-s", "DESTDIR=" + dest, "PREFIX=" + c.prefix, "UNITDIR=" + c.units}
		tool(t, nil, append([]string{"make", "install"}, args...)...)
		for path, want := range map[string]string{
			c.prefix + "/bin/xdpban":                                  "",
			c.prefix + "/share/man/man1/xdpban.1":                     ".Nm xdpban",
			c.prefix + "/share/man/man5/xdpban.toml.5":                "",
			c.prefix + "/share/fish/vendor_completions.d/xdpban.fish": "complete -c xdpban",
			c.units + "/xdpban.service":                               "ExecStart=" + c.prefix + "/bin/xdpban run",
			c.units + "/xdpban-net.service":                           "ExecStart=" + c.prefix + "/bin/xdpban net",
			c.units + "/xdpban-net.socket":                            "ListenStream=",
			c.units + "/xdpban-hook.service":                          "ExecStart=" + c.prefix + "/bin/xdpban hook",
			c.units + "/xdpban-hook.socket":                           "ListenStream=",
			c.units + "/xdpban-nats.service":                          "ExecCondition=" + c.prefix + "/lib/xdpban/xdpban-nats -wanted",
			c.prefix + "/lib/xdpban/xdpban-nats":                      "",
			"/etc/xdpban/xdpban.toml":                                 "# interfaces = ",
			"/etc/xdpban/jail.d/local.toml":                           "# [jail.sshd]",
		} {
			b, err := os.ReadFile(filepath.Join(dest, path))
			if err != nil || !strings.Contains(string(b), want) {
				t.Errorf("%s: no %q: %v", path, want, err)
			}
			if strings.Contains(path, ".service") && (strings.Contains(string(b), "/usr/bin/") || strings.Contains(string(b), "/usr/lib/")) {
				t.Errorf("%s: a path of the packages:\n%s", path, b)
			}
		}
		// What the operator wrote stays, at an upgrade and at the end.
		own := filepath.Join(dest, "/etc/xdpban/xdpban.toml")
		if err := os.WriteFile(own, []byte("mode = \"generic\"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		tool(t, nil, append([]string{"make", "install"}, args...)...)
		tool(t, nil, append([]string{"make", "uninstall"}, args...)...)
		if left := sorted(sums(t, dest)); fmt.Sprint(left) != "[/etc/xdpban/jail.d/local.toml /etc/xdpban/xdpban.toml]" {
			t.Errorf("left: %v", left)
		}
		if b, _ := os.ReadFile(own); string(b) != "mode = \"generic\"\n" {
			t.Errorf("the operator's own settings became %q", b)
		}
	}
}

// TestManualPages lets two formatters look for mistakes.
// TestConfig: the files of /etc/xdpban say nothing until a comment is taken
// away, and what stands in the comments is right.
func TestConfig(t *testing.T) {
	names := []string{"xdpban.toml", "jail.d/local.toml"}
	for _, uncommented := range []bool{false, true} {
		dir := t.TempDir()
		for _, name := range names {
			text, err := Config.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			if uncommented {
				text = regexp.MustCompile(`(?m)^# (\[|[a-z_0-9]+ += )`).ReplaceAll(text, []byte("$1"))
			} else if lines := regexp.MustCompile(`(?m)^[^#\n].*`).FindAll(text, -1); lines != nil {
				t.Errorf("%s says %q", name, lines)
			}
			path := filepath.Join(dir, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, text, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		config, problems := jails.Load(jaild.FS, dir)
		if len(problems) > 0 {
			t.Fatalf("uncommented %v: %v", uncommented, problems)
		}
		if len(config.Warnings) > 0 {
			t.Errorf("uncommented %v: %v", uncommented, config.Warnings)
		}
		if uncommented != slices.ContainsFunc(config.Jails, func(j jails.Jail) bool { return j.Name == "myapp" }) {
			t.Error("the jail of the comments")
		}
	}
}

func TestManualPages(t *testing.T) {
	pages, err := filepath.Glob("man/*")
	if err != nil || len(pages) == 0 {
		t.Fatal(pages, err)
	}
	for _, page := range pages {
		tool(t, nil, "mandoc", "-T", "lint", "-W", "warning", "packaging/"+page)
	}
}

// TestCompletions lets each shell complete.
func TestCompletions(t *testing.T) {
	dir := t.TempDir()
	script := func(shell, name string) string {
		path := filepath.Join(dir, name)
		text := tool(t, nil, "go", "run", "-buildvcs=false", "./cmd/xdpban", "completion", shell)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	bash := tool(t, nil, "bash", "--norc", "-c", `. "$0"; COMP_WORDS=(xdpban unb); COMP_CWORD=1; _xdpban; echo "${COMPREPLY[@]}"`, script("bash", "xdpban.bash"))
	if strings.TrimSpace(bash) != "unban" {
		t.Errorf("bash completes unb to %q", bash)
	}
	fish := tool(t, []string{"HOME=" + dir}, "fish", "--no-config", "-c", `source $argv[1]; complete -C 'xdpban unb'; complete -C 'xdpban service uninst'`, script("fish", "xdpban.fish"))
	if f := strings.Fields(fish); len(f) == 0 || f[0] != "unban" || !strings.Contains(fish, "\nuninstall") {
		t.Errorf("fish completes unb and service uninst to %q", fish)
	}
	script("zsh", "_xdpban")
	tool(t, nil, "zsh", "-f", "packaging/testdata/complete.zsh", dir, "xdpban unb\t", "xdpban unban")
}
