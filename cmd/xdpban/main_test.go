package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"xdpban/internal/control"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"xdpban":     main,
		"fakedaemon": fakeDaemonMain,
		"knock":      knockMain,
		"echo":       echoMain,
		"stay":       stayMain,
	})
}

// TestScripts is the command line's specification, as far as it needs
// neither root nor a kernel.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("XDPBAN_SOCKET", filepath.Join(env.WorkDir, "sock"))
			env.Setenv("XDPBAN_BPF_DIR", filepath.Join(env.WorkDir, "bpf"))
			env.Setenv("XDPBAN_CONFIG", filepath.Join(env.WorkDir, "etc"))
			env.Setenv("TZ", "UTC")
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"waitfor": waitFor},
	})
}

var kernelScripts atomic.Int32

// TestKernelScripts is the part of the specification that needs the kernel:
// each script has two hosts (network namespaces) of its own, joined by veth,
// and a folder of its own in bpffs. "ns" runs a command on the protected
// host, 192.0.2.1 and 2001:db8::1 on xb0; "peer" on the other, .2 and ::2.
func TestKernelScripts(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root")
		}
		t.Skip("needs root for network namespaces and BPF")
	}
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/kernel",
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			id := fmt.Sprintf("xdpban-cli-%d-%d", os.Getpid(), kernelScripts.Add(1))
			bpfDir := "/sys/fs/bpf/" + id
			env.Defer(func() {
				for _, ns := range []string{id, id + "p"} {
					_ = exec.Command("ip", "netns", "del", ns).Run() // it may not have come to be
				}
				if err := os.RemoveAll(bpfDir); err != nil {
					t.Error(err)
				}
			})
			object, err := filepath.Abs("../../bpf/xdpban_bpfel.o")
			if err != nil {
				return err
			}
			env.Setenv("OBJECT", object)
			tools, err := filepath.Glob("/usr/lib/*/bpf/xdpfilt_alw_all.o")
			if err != nil || len(tools) != 1 {
				return fmt.Errorf("xdp-tools isn't installed: %v, %v", tools, err)
			}
			env.Setenv("XDPTOOLS", filepath.Dir(tools[0]))
			env.Setenv("NS", id)
			env.Setenv("XDPBAN_SOCKET", filepath.Join(env.WorkDir, "sock"))
			env.Setenv("XDPBAN_BPF_DIR", bpfDir)
			env.Setenv("XDPBAN_CONFIG", filepath.Join(env.WorkDir, "etc"))
			env.Setenv("TZ", "UTC")
			for _, c := range []string{
				"ip netns add NS", "ip netns add NSp",
				"ip -n NS link add xb0 type veth peer name xb1 netns NSp",
				"ip -n NS addr add 192.0.2.1/24 dev xb0", "ip -n NS addr add 2001:db8::1/64 dev xb0 nodad",
				"ip -n NSp addr add 192.0.2.2/24 dev xb1", "ip -n NSp addr add 2001:db8::2/64 dev xb1 nodad",
				"ip -n NS link set lo up", "ip -n NS link set xb0 up", "ip -n NSp link set xb1 up",
			} {
				args := strings.Fields(strings.ReplaceAll(c, "NS", id))
				if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
					return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, out)
				}
			}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"waitfor":  waitFor,
			"ns":       inNamespace(""),
			"peer":     inNamespace("p"),
			"synlimit": synlimit,
		},
		Condition: func(cond string) (bool, error) {
			if cond != "dispatcher" {
				return false, fmt.Errorf("unknown condition %q", cond)
			}
			// libxdp has loaded its dispatcher: not every kernel lets it.
			pins, err := filepath.Glob("/sys/fs/bpf/xdp/dispatch-*")
			return len(pins) > 0, err
		},
	})
}

// inNamespace runs a command in one of the script's hosts. ip netns exec
// would hide bpffs behind a sysfs of its own.
func inNamespace(suffix string) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		args = append([]string{"--net=/run/netns/" + ts.Getenv("NS") + suffix}, args...)
		err := ts.Exec("nsenter", args...)
		if neg && err == nil {
			ts.Fatalf("unexpected success")
		}
		if !neg && err != nil {
			ts.Fatalf("%v", err)
		}
	}
}

// knockMain tries to reach NETWORK ADDRESS, COUNT times at once, and says how
// often it was answered, be it by a refusal; UDP asks for no answer. It fails
// if there was none.
func knockMain() {
	count := 1
	if len(os.Args) > 3 {
		var err error
		if count, err = strconv.Atoi(os.Args[3]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
	}
	var answered atomic.Int32
	var wg sync.WaitGroup
	for range count {
		wg.Go(func() {
			c, err := net.DialTimeout(os.Args[1], os.Args[2], 3*time.Second)
			if err == nil {
				c.Write([]byte("x"))
				c.Close()
			}
			if err == nil || errors.Is(err, syscall.ECONNREFUSED) {
				answered.Add(1)
			}
		})
	}
	wg.Wait()
	fmt.Printf("%d of %d answered\n", answered.Load(), count)
	if answered.Load() == 0 {
		os.Exit(1)
	}
}

// echoMain answers on ADDRESS until it is killed; it makes READY once it does.
func echoMain() {
	l, err := net.Listen("tcp", os.Args[1])
	if err == nil {
		err = os.WriteFile(os.Args[2], nil, 0o644)
	}
	for err == nil {
		var c net.Conn
		if c, err = l.Accept(); err == nil {
			go io.Copy(c, c)
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// stayMain connects to the echo on ADDRESS, makes CONNECTED, waits for AGAIN,
// and says whether the connection still holds.
func stayMain() {
	c, err := net.Dial("tcp", os.Args[1])
	said := func() {
		if err == nil {
			_, err = c.Write([]byte("x"))
		}
		if err == nil {
			err = c.SetReadDeadline(time.Now().Add(20 * time.Second))
		}
		if err == nil {
			_, err = io.ReadFull(c, make([]byte, 1))
		}
	}
	said()
	if err == nil {
		err = os.WriteFile(os.Args[2], nil, 0o644)
	}
	for err == nil {
		if _, missing := os.Stat(os.Args[3]); missing == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	said()
	if err != nil {
		fmt.Println("lost:", err)
		os.Exit(1)
	}
	fmt.Println("held on")
}

// synlimit writes the pipeline's example as an object file. A machine without
// a compiler is given one.
func synlimit(ts *testscript.TestScript, _ bool, args []string) {
	out := ts.MkAbs(args[0])
	if made := os.Getenv("XDPBAN_TEST_SYNLIMIT"); made != "" {
		b, err := os.ReadFile(made)
		ts.Check(err)
		ts.Check(os.WriteFile(out, b, 0o644))
		return
	}
	source, err := filepath.Abs("../../bpf/example/synlimit.bpf.c")
	ts.Check(err)
	ts.Check(ts.Exec("clang-14", "-O2", "-g", "-target", "bpf",
		"-idirafter", "/usr/include/x86_64-linux-gnu", "-idirafter", "/usr/include/aarch64-linux-gnu", "-c", source, "-o", out))
}

// waitFor waits until a file is there.
func waitFor(ts *testscript.TestScript, _ bool, args []string) {
	for range 1000 {
		if _, err := os.Stat(ts.MkAbs(args[0])); err == nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	ts.Fatalf("%s never came", args[0])
}

// fakeDaemonMain serves a daemon with canned answers on $XDPBAN_SOCKET.
func fakeDaemonMain() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	l, err := control.Listen(control.Socket{Path: os.Getenv("XDPBAN_SOCKET"), UID: -1, GID: -1})
	if err == nil {
		err = control.Serve(ctx, l, fakeDaemon{}, slog.New(slog.DiscardHandler))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

type fakeDaemon struct{}

var (
	fakeSince = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	fakeBans  = []control.Ban{
		{Prefix: netip.MustParsePrefix("203.0.113.77/32"), Jail: "manual", Since: fakeSince, Packets: 1, Bytes: 60},
		{
			Prefix: netip.MustParsePrefix("203.0.113.5/32"), Jail: "sshd", Since: fakeSince,
			Until: control.Time{Time: time.Date(2126, 3, 1, 12, 0, 0, 0, time.UTC)}, Packets: 12, Bytes: 720,
			Strikes: 1, Failures: 5,
			Pattern: "^Failed password for <F-USER>.*</F-USER> from <ADDR> port \\d+$",
			// What an attacker would like to send to a terminal.
			Evidence:   []string{"Failed password for \x1b]0;owned\x07\u009b2Jroot\u202e from 203.0.113.5 port 22 \xff"},
			EvidenceAt: []time.Time{fakeSince.Add(-time.Second)},
		},
		{Prefix: netip.MustParsePrefix("2001:db8:bad::/48"), Jail: "feed", Since: fakeSince},
	}
)

func (fakeDaemon) Status(context.Context) (control.Status, error) {
	return control.Status{
		Version: "1.0", PID: 4711, Started: time.Now().Add(-90 * time.Minute), Bans: 3, Capacity: 1000000,
		Interfaces: []control.Interface{{Name: "eth0", Mode: "native"}, {Name: "eth1", Error: "no such interface"}},
		Jails: []control.Jail{
			{Name: "sshd", Enabled: true, Bans: 1, Total: 4, Failures: 31, Tracked: 2, MaxRetry: 5,
				FindTime: control.Duration(10 * time.Minute), BanTime: control.Duration(time.Hour)},
			{Name: "nginx", Enabled: false},
		},
		Sources:  []control.Source{{Stream: "/var/log/auth.log", Jails: []string{"sshd"}, Lines: 4000, Lag: control.Duration(time.Millisecond)}},
		Problems: []string{"eth1 isn't there", "fleet web: the connection was lost"},
		Feeds:    []control.Feed{{Name: "drop", Entries: 1400, Bans: 1398}},
		Fleet: &control.Fleet{
			Name: "web", Host: "web1", Server: "nats://192.0.2.5:4222", Synced: true, Waiting: 2, Bans: 1, Published: 1234, Received: 5,
			Rejected: map[string]uint64{"too_wide": 3},
			Hosts: []control.FleetHost{
				{Host: "web2", Heard: control.Time{Time: time.Now()}, Lag: 0.0012, Bans: 7, Version: "1.0"},
				{Host: "web3", Ejected: true, Rejected: 3},
			},
		},
	}, nil
}
func (fakeDaemon) List(_ context.Context, q control.ListQuery) iter.Seq2[control.Ban, error] {
	return func(yield func(control.Ban, error) bool) {
		for _, b := range fakeBans {
			b.Pattern, b.Evidence, b.EvidenceAt = "", nil, nil
			if (q.Jail == "" || q.Jail == b.Jail) && !yield(b, nil) {
				return
			}
		}
	}
}
func (fakeDaemon) Ports(context.Context) ([]control.Port, error) {
	return []control.Port{{Port: 80, Protocol: "udp", Packets: 3, Bytes: 180}}, nil
}
func (fakeDaemon) Ban(_ context.Context, r control.BanRequest) (control.BanResult, error) {
	var res control.BanResult
	for _, p := range r.Prefixes {
		if p == netip.MustParsePrefix("192.0.2.7/32") {
			return res, fmt.Errorf("%w: 192.0.2.7 is this host's own address", control.ErrRefused)
		}
		b := control.Ban{Prefix: p, Jail: r.Jail, Since: fakeSince}
		if r.For > 0 {
			b.Until.Time = time.Now().Add(time.Duration(r.For))
		}
		res.Bans = append(res.Bans, b)
		res.Banned++
	}
	return res, nil
}
func (fakeDaemon) Unban(_ context.Context, r control.UnbanRequest) (control.UnbanResult, error) {
	res := control.UnbanResult{}
	if r.All {
		return control.UnbanResult{Unbanned: len(fakeBans), Bans: fakeBans}, nil
	}
	for _, p := range r.Prefixes {
		for _, b := range fakeBans {
			if b.Prefix == p {
				res.Unbanned++
				res.Bans = append(res.Bans, b)
			}
		}
	}
	return res, nil
}
func (fakeDaemon) Allow(_ context.Context, p []netip.Prefix) (int, error)    { return len(p), nil }
func (fakeDaemon) Disallow(_ context.Context, p []netip.Prefix) (int, error) { return 0, nil }
func (fakeDaemon) Allowed(context.Context) ([]control.Allow, error) {
	return []control.Allow{
		{Prefix: netip.MustParsePrefix("192.0.2.7/32"), Origin: "own"},
		{Prefix: netip.MustParsePrefix("192.0.2.0/28"), Origin: "manual"},
	}, nil
}
func (fakeDaemon) Stats(context.Context) (control.Stats, error) {
	n := uint64(time.Since(fakeSince).Seconds() * 1e6)
	return control.Stats{At: time.Now(), Bans: 3, Verdicts: map[string]control.Verdict{
		"XDP_DROP": {Packets: n, Bytes: n * 60}, "XDP_PASS": {Packets: 7, Bytes: 420},
	}}, nil
}
func (fakeDaemon) Why(_ context.Context, p netip.Prefix) (control.Why, error) {
	w := control.Why{Prefix: p, Bans: []control.Ban{}}
	for _, b := range fakeBans {
		if b.Prefix.Overlaps(p) {
			w.Bans = append(w.Bans, b)
		}
	}
	if len(w.Bans) == 0 {
		now := time.Now()
		w.Strikes = 2
		w.Windows = []control.Window{{Jail: "sshd", Failures: 2, MaxRetry: 5, FindTime: control.Duration(10 * time.Minute), First: now.Add(-2 * time.Minute), Last: now.Add(-time.Minute)}}
	}
	return w, nil
}
func (fakeDaemon) History(_ context.Context, q control.HistoryQuery) ([]control.Event, error) {
	if q.Prefix == netip.MustParsePrefix("203.0.113.99/32") {
		return nil, errors.New("the ledger is damaged")
	}
	return []control.Event{{Time: fakeSince, Kind: "ban", Ban: fakeBans[1]}}, nil
}
func (fakeDaemon) Import(_ context.Context, r control.ImportRequest) (control.ImportResult, error) {
	return control.ImportResult{Added: len(r.Bans)}, nil
}
func (fakeDaemon) Eject(_ context.Context, r control.EjectRequest) error {
	if r.Host == "web9" {
		return fmt.Errorf("%w: web9 isn't ejected", control.ErrNotFound)
	}
	return nil
}
func (fakeDaemon) Feeds(context.Context) ([]control.Feed, error) {
	now := time.Now()
	return []control.Feed{
		{Name: "drop", Source: "https://lists.example.org/drop.txt", Entries: 1400, Bans: 1398, Refused: 2, Bad: 1,
			Fetched: control.Time{Time: now.Add(-time.Minute)}, Next: control.Time{Time: now.Add(time.Hour)}, Holding: true, Held: 1, Dropped: control.Verdict{Packets: 1234}},
		{Name: "own", Source: "/etc/xdpban/own.txt", Error: "no such\x1b[2J file"},
	}, nil
}
func (fakeDaemon) ConfirmFeed(_ context.Context, r control.FeedRequest) error {
	return fmt.Errorf("%w: feed %s: no list waits for confirmation", control.ErrNotFound, r.Name)
}
func (fakeDaemon) FetchFeed(context.Context, control.FeedRequest) error { return nil }
func (fakeDaemon) Reload(context.Context) (control.ReloadResult, error) {
	return control.ReloadResult{Jails: []string{"sshd"}, Warnings: []string{"careful"}}, nil
}
