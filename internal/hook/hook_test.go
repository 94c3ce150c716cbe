package hook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"xdpban/internal/control"
	"xdpban/jails"
)

// TestMain lets the tests become a program without privileges, as xdpban does.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "become" {
		fmt.Fprintln(os.Stderr, Exec(os.Args[2:]))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// rig is Hooks with what they say.
type rig struct {
	*Hooks
	t        *testing.T
	problems chan string
	log      *lines
}

type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) has(part string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.text.String(), part)
}

func newRig(t *testing.T, c *jails.Config, set func(*Hooks)) *rig {
	r := &rig{t: t, problems: make(chan string, 10_000), log: &lines{}}
	r.Hooks = New(Options{
		Host: "web1", Command: bare, Now: time.Now,
		Dial: (&net.Dialer{}).DialContext,
		Problem: func(_ context.Context, key string, err error) {
			if err == nil {
				r.problems <- "over: " + key
			} else {
				r.problems <- err.Error()
			}
		},
		Log: slog.New(slog.NewTextHandler(io.MultiWriter(r.log, t.Output()), nil)),
	})
	if set != nil {
		set(r.Hooks)
	}
	r.Configure(c)
	return r
}

// says waits until a problem with these words is told of.
func (r *rig) says(words string) {
	r.t.Helper()
	deadline := time.After(20 * time.Second)
	var heard []string
	for {
		select {
		case p := <-r.problems:
			if strings.Contains(p, words) {
				return
			}
			heard = append(heard, p)
		case <-deadline:
			r.t.Fatalf("nobody says %q, but %q", words, heard)
		}
	}
}

// until waits for a status.
func (r *rig) until(what string, ok func(control.Hook) bool) control.Hook {
	r.t.Helper()
	for range 2000 {
		if all := r.Status(); len(all) > 0 && ok(all[0]) {
			return all[0]
		}
		time.Sleep(10 * time.Millisecond)
	}
	r.t.Fatalf("never %s: %+v", what, r.Status())
	return control.Hook{}
}

func notice(event, addr string) jails.Notice {
	a := netip.MustParseAddr(addr)
	b := jails.Ban{Prefix: netip.PrefixFrom(a, a.BitLen()), Jail: "sshd", Since: time.Unix(1000, 0), Until: time.Unix(4600, 0), Failures: 5, Evidence: []string{"evil \x1b]0;x\x07 $(id) `id` \"'"}}
	return jails.NoticeOf(event, b)
}

func script(t *testing.T, text string) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "hook")
	if err := os.WriteFile(p, []byte("#!/bin/sh\n"+text), 0o755); err != nil {
		t.Fatal(err)
	}
	return p
}

func onBan(args ...string) *jails.Config {
	return &jails.Config{Settings: jails.Settings{OnBan: args, OnUnban: args}}
}

// TestProgram: arguments, environment and input are what they should be, and
// the events of one address keep their order.
func TestProgram(t *testing.T) {
	out := t.TempDir()
	tell := script(t, `[ $# = 3 ] && [ "$2" = 'a b; $(id)' ] || exit 9
{ env | grep -v '^PWD\|^_=\|^OLDPWD\|^SHLVL' | sort; cat; } >>"$3/$1-$XDPBAN_EVENT"; echo $XDPBAN_EVENT >>"$3/$1"`)
	r := newRig(t, onBan(tell, "<ip>", "a b; $(id)", out), nil)
	for range 20 {
		for _, addr := range []string{"203.0.113.5", "2001:db8::5"} {
			r.Tell(notice("ban", addr))
			r.Tell(notice("unban", addr))
		}
	}
	r.until("told of all", func(h control.Hook) bool { return h.Done == 40 })
	r.Close()
	order, err := os.ReadFile(out + "/2001:db8::5")
	if err != nil || string(order) != strings.Repeat("ban\nunban\n", 20) {
		t.Errorf("in the order %q, %v", order, err)
	}
	b, err := os.ReadFile(out + "/203.0.113.5-ban")
	if err != nil {
		t.Fatal(err)
	}
	env, body, _ := strings.Cut(string(b), "{")
	for _, v := range []string{"XDPBAN_ADDR=203.0.113.5", "XDPBAN_PREFIX=203.0.113.5/32", "XDPBAN_FAMILY=inet4", "XDPBAN_JAIL=sshd", "XDPBAN_HOST=web1",
		"XDPBAN_SINCE=1970-01-01T00:16:40Z", "XDPBAN_UNTIL=1970-01-01T01:16:40Z", "XDPBAN_BANTIME=3600", "XDPBAN_FAILURES=5", "PATH=/usr/local/sbin:"} {
		if !strings.Contains(env, v) {
			t.Errorf("no %s in\n%s", v, env)
		}
	}
	if strings.Contains(env, "evil") {
		t.Errorf("the attacker's text is in the environment:\n%s", env)
	}
	var n jails.Notice
	line, _, _ := strings.Cut(body, "\n")
	if err := json.Unmarshal([]byte("{"+line), &n); err != nil || n.Host != "web1" || n.Evidence[0] != notice("ban", "203.0.113.5").Evidence[0] || n.Time.IsZero() {
		t.Errorf("input %s: %+v, %v", line, n, err)
	}
}

// TestTrouble: what fails, hangs or floods is counted and told of, ends, and is
// over once it goes well.
func TestTrouble(t *testing.T) {
	dir := t.TempDir()
	bad := script(t, `[ ! -e `+dir+`/good ] || exit 0
case $XDPBAN_ADDR in
203.0.113.1) printf 'no \033[2J way' >&2; exit 3;;
203.0.113.2) sh -c 'echo $$ >`+dir+`/pid; exec sleep 1000' & wait;;
203.0.113.3) yes flood;;
203.0.113.4) sleep 1000 & echo $! >`+dir+`/left;;
esac`)
	r := newRig(t, onBan(bad), func(h *Hooks) { h.times.program = 300 * time.Millisecond })
	defer r.Close()
	r.Tell(notice("ban", "203.0.113.1"))
	r.says(`on_ban ` + bad + `: exit status 3: no \x1b[2J way`)
	r.Tell(notice("ban", "203.0.113.2"))
	r.says("took too long")
	r.Tell(notice("ban", "203.0.113.3"))
	h := r.until("ended", func(h control.Hook) bool { return h.Failed+h.TimedOut == 3 })
	if h.Failed != 1 || h.TimedOut != 2 || !strings.Contains(h.Error, "took too long") || len(h.Error) > 2*maxOutput {
		t.Errorf("%+v", h)
	}
	r.Tell(notice("ban", "203.0.113.4"))
	r.says("over: hook on_ban " + bad)
	for _, name := range []string{"pid", "left"} {
		b, err := os.ReadFile(dir + "/" + name)
		if err != nil {
			t.Fatal(err)
		}
		gone(t, strings.TrimSpace(string(b)))
	}
	if !r.log.has("203.0.113.1") || !r.log.has("203.0.113.3") {
		t.Error("the log doesn't say of whom nobody was told")
	}
	r.Configure(onBan("/nowhere/hook"))
	r.Tell(notice("ban", "203.0.113.1"))
	r.says("/nowhere/hook: no such file")
}

// gone fails unless a process ends.
func gone(t *testing.T, pid string) {
	t.Helper()
	for range 2000 {
		b, err := os.ReadFile("/proc/" + pid + "/stat")
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) || strings.Contains(string(b), ") Z ") {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("process %s still runs", pid)
}

// TestFull: however many events come, telling never waits; what doesn't fit is
// counted and told of, and it goes on after that.
func TestFull(t *testing.T) {
	gate := filepath.Join(t.TempDir(), "gate")
	if err := syscall.Mkfifo(gate, 0o600); err != nil {
		t.Fatal(err)
	}
	r := newRig(t, onBan("/bin/sh", "-c", "cat <"+gate), nil)
	defer r.Close()
	began := time.Now()
	const events = 3 * maxWaiting
	for i := range events {
		r.Tell(notice("ban", fmt.Sprintf("2001:db8::%x", i)))
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("telling took %s", took)
	}
	h := r.until("dropped", func(h control.Hook) bool { return h.Dropped > 0 && h.Running == programs })
	if h.Running+h.Waiting+int(h.Dropped) != events || h.Waiting > maxWaiting {
		t.Errorf("%+v", h)
	}
	r.says("more than 1000 events wait, the others are dropped")
	if !r.log.has("events are dropped") {
		t.Error("nothing is logged")
	}
	// Another program is run for what waits, and the old one is forgotten.
	r.Configure(onBan("/bin/true"))
	w, err := os.OpenFile(gate, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	r.until("told by the other", func(h control.Hook) bool { return h.Name == "/bin/true" && h.Done > 20 })
	r.Configure(&jails.Config{})
	for range 2000 {
		if len(r.Status()) == 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("who isn't configured stays: %+v", r.Status())
}

// TestClose: what is under way has a moment, the rest is said to be undone.
func TestClose(t *testing.T) {
	pid := filepath.Join(t.TempDir(), "pid")
	r := newRig(t, onBan("/bin/sh", "-c", "echo $$ >"+pid+"; exec sleep 1000"), func(h *Hooks) { h.times.stop = 100 * time.Millisecond })
	for range 3 {
		r.Tell(notice("ban", "203.0.113.5"))
	}
	r.until("running", func(h control.Hook) bool { _, err := os.Stat(pid); return err == nil })
	r.Close()
	if !r.log.has("isn't told of 2 events, since xdpban stops") || !r.log.has("xdpban stops") {
		t.Errorf("the log doesn't say so")
	}
	b, _ := os.ReadFile(pid)
	gone(t, strings.TrimSpace(string(b)))
}

// TestWhoIsTold: a jail's own program takes the place of the settings', an
// empty one is none, and each has its own queue.
func TestWhoIsTold(t *testing.T) {
	c := &jails.Config{
		Settings: jails.Settings{OnBan: []string{"/bin/true"}},
		Jails:    []jails.Jail{{Name: "sshd", Enabled: true}, {Name: "quiet", Enabled: true, OnBan: []string{}}, {Name: "own", Enabled: true, OnBan: []string{"/bin/echo", "<jail>"}, OnUnban: []string{"/bin/false"}}},
	}
	r := newRig(t, c, nil)
	tell := func(event, jail string) {
		n := notice(event, "203.0.113.5")
		n.Jail = jail
		r.Tell(n)
	}
	for _, jail := range []string{"sshd", "quiet", "own", "manual"} {
		tell("ban", jail)
		tell("unban", jail)
	}
	r.Close()
	got := map[string]uint64{}
	for _, h := range r.Status() {
		got[h.Kind+" "+h.Name] = h.Done*10 + h.Failed
	}
	if want := map[string]uint64{"on_ban /bin/true": 20, "on_ban /bin/echo": 10, "on_unban /bin/false": 1}; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// TestExec: a program has nothing of what this process may do.
func TestExec(t *testing.T) {
	cmd := exec.Command(os.Args[0], "become", "/bin/cat", "/proc/self/status")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	has := map[string]string{}
	for line := range strings.Lines(string(out)) {
		k, v, _ := strings.Cut(line, ":")
		has[k] = strings.Join(strings.Fields(v), " ")
	}
	for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"} {
		if strings.Trim(has[set], "0") != "" && (os.Geteuid() == 0 || set != "CapBnd") {
			t.Errorf("%s: %s", set, has[set])
		}
	}
	if has["NoNewPrivs"] != "1" {
		t.Errorf("NoNewPrivs: %s", has["NoNewPrivs"])
	}
	if os.Geteuid() == 0 && (has["Uid"] != "65534 65534 65534 65534" || has["Gid"] != "65534 65534 65534 65534" || has["Groups"] != "") {
		t.Errorf("user %s, group %s, others %q", has["Uid"], has["Gid"], has["Groups"])
	}
	if out, err := exec.Command(os.Args[0], "become", "/nowhere/x").CombinedOutput(); err == nil || !strings.Contains(string(out), "/nowhere/x") {
		t.Errorf("%v: %s", err, out)
	}
}

// BenchmarkTell is what the loop pays for an event, while a program hangs and
// the queue is full.
func BenchmarkTell(b *testing.B) {
	h := New(Options{
		Command: bare, Now: time.Now, Dial: (&net.Dialer{}).DialContext, Log: slog.New(slog.DiscardHandler),
		Problem: func(context.Context, string, error) {},
	})
	h.times.stop = 0
	h.Configure(onBan("/bin/sleep", "1000"))
	defer h.Close()
	n := notice("ban", "203.0.113.5")
	b.ReportAllocs()
	for b.Loop() {
		h.Tell(n)
	}
}
