package source

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"xdpban/internal/source/journaltest"
)

// followJournal starts to follow; it returns once the first position is known.
func followJournal(t testing.TB, l *ledger, opt JournalOptions) (stop func() error, log *logBuffer, j *Journal) {
	t.Helper()
	log = &logBuffer{}
	opt.Log = slog.New(slog.NewTextHandler(log, nil))
	j, err := NewJournal(opt)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	resume := l.resume()
	_, known := resume[JournalKey]
	go func() { done <- j.Run(ctx, resume, l.emit) }()
	stop = sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() {
		stop()
		if t.Failed() {
			t.Log(log.String())
		}
	})
	if !known {
		l.wait(t, func() bool { _, ok := l.positions[JournalKey]; return ok })
	}
	return stop, log, j
}

var linePattern = regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00 \S+ (\S+?)(?:\[\d+\])?: (.*)$`)

// messages returns the lines without date and host.
func messages(t testing.TB, lines []string) []string {
	t.Helper()
	var list []string
	for _, line := range lines {
		m := linePattern.FindStringSubmatch(line)
		if m == nil {
			t.Fatalf("no syslog line: %q", line)
		}
		list = append(list, m[1]+": "+m[2])
	}
	return list
}

func TestJournalLines(t *testing.T) {
	d := journaltest.Start(t)
	l := newLedger()
	followJournal(t, l, JournalOptions{Directory: d.Dir, Selections: []Selection{
		{Name: "a", Matches: []string{"SYSLOG_IDENTIFIER=sshd", "SYSLOG_IDENTIFIER=sshd-session", "ROLE=x"}},
		{Name: "b", Matches: []string{"SYSLOG_IDENTIFIER=sshd", "+", "ROLE=y"}},
		{Name: "c", Matches: []string{"SYSLOG_IDENTIFIER=last"}},
	}})
	d.Send("only b", "SYSLOG_IDENTIFIER=sshd")
	d.Send("both", "SYSLOG_IDENTIFIER=sshd", "ROLE=x")
	d.Send("only a", "SYSLOG_IDENTIFIER=sshd-session", "ROLE=x")
	d.Send("none", "SYSLOG_IDENTIFIER=cron")
	d.Send("two\nlines\tand \x7f\x00\xff", "SYSLOG_IDENTIFIER=odd tag[1]: x", "ROLE=y", "ROLE=z")
	d.Send("done", "SYSLOG_IDENTIFIER=last")
	l.waitLines(t, "c", 1)
	want := map[string][]string{
		"a": {"sshd: both", "sshd-session: only a"},
		"b": {"sshd: only b", "sshd: both", "odd_tag_1___x: two#012lines#011and #177#000\xff"},
		"c": {"last: done"},
	}
	for stream, lines := range want {
		if got := messages(t, l.get(stream)); !slices.Equal(got, lines) {
			t.Errorf("%s: %q, want %q", stream, got, lines)
		}
	}
}

// TestJournalResume stops the reader at random blocks while journald rotates
// and restarts: each entry comes once in each stream.
func TestJournalResume(t *testing.T) {
	d := journaltest.Start(t)
	l := newLedger()
	opt := JournalOptions{Directory: d.Dir, Selections: []Selection{
		{Name: "a", Matches: []string{"SYSLOG_IDENTIFIER=a"}},
		{Name: "all", Matches: []string{"SYSLOG_IDENTIFIER=a", "SYSLOG_IDENTIFIER=b"}},
		{Name: "b", Matches: []string{"SYSLOG_IDENTIFIER=b"}},
	}}
	random := rand.New(rand.NewPCG(7, 8))
	stop, _, _ := followJournal(t, l, opt)
	n := 0
	send := func(count int) {
		for range count {
			d.Send(fmt.Sprint(n), "SYSLOG_IDENTIFIER="+string("ab"[n%2]))
			n++
		}
	}
	for round := range 12 {
		l.mu.Lock()
		l.stopAfter = random.IntN(6)
		l.mu.Unlock()
		send(random.IntN(300))
		switch round % 4 {
		case 1:
			d.Rotate()
		case 3:
			d.Restart()
		}
		send(random.IntN(300))
		if random.IntN(2) == 0 {
			l.wait(t, func() bool { return l.stopAfter <= 0 || len(l.lines["all"]) == n })
		}
		stop()
		send(random.IntN(50))
		l.stopAfter = -1
		stop, _, _ = followJournal(t, l, opt)
	}
	send(2)
	l.wait(t, func() bool { return len(l.lines["all"]) >= n && len(l.lines["a"])+len(l.lines["b"]) >= n })
	stop()
	var all, a, b []string
	for i := range n {
		line := fmt.Sprintf("%c: %d", "ab"[i%2], i)
		all = append(all, line)
		if i%2 == 0 {
			a = append(a, line)
		} else {
			b = append(b, line)
		}
	}
	for stream, want := range map[string][]string{"a": a, "b": b, "all": all} {
		if got := messages(t, l.get(stream)); !slices.Equal(got, want) {
			t.Errorf("%s: %d lines, want %d", stream, len(got), len(want))
		}
	}
}

// TestJournalAfterReboot: what was logged before a reboot and not yet read is
// read, once and in order; what other machines have logged isn't.
func TestJournalAfterReboot(t *testing.T) {
	for _, c := range []struct {
		name    string
		matches []string
	}{
		{"selected", []string{"SYSLOG_IDENTIFIER=sshd", "+", "ROLE=y"}},
		{"all", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := journaltest.Start(t)
			l := newLedger()
			opt := JournalOptions{Directory: d.Dir, Selections: []Selection{{Name: "s", Matches: c.matches}}}
			send := func(messages ...string) {
				for _, m := range messages {
					d.Send(m, "SYSLOG_IDENTIFIER=sshd")
				}
			}
			var want []string
			follow := func(messages ...string) (stop func() error) {
				t.Helper()
				stop, _, _ = followJournal(t, l, opt)
				for _, m := range messages {
					want = append(want, "sshd: "+m)
				}
				l.wait(t, func() bool { return len(ours(l.lines["s"])) >= len(want) })
				return stop
			}
			stop := follow()
			send("read at once")
			want = append(want, "sshd: read at once")
			l.wait(t, func() bool { return len(ours(l.lines["s"])) >= len(want) })
			stop()
			send("before the reboot", "too")
			d.Reboot()
			send("between the reboots")
			d.Reboot()
			send("after both")
			follow("before the reboot", "too", "between the reboots", "after both")()

			d.Move("0123456789abcdef0123456789abcdef")
			send("of another machine")
			d.Move(ownMachine(t))
			send("back")
			follow("back")()
			if got := messages(t, ours(l.get("s"))); !slices.Equal(got, want) {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
}

// ours leaves out what journald says of itself.
func ours(lines []string) []string {
	return slices.DeleteFunc(slices.Clone(lines), func(line string) bool { return strings.Contains(line, " systemd-journald[") })
}

func ownMachine(t *testing.T) string {
	t.Helper()
	id, err := os.ReadFile(machineID)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(id))
}

func TestJournalVacuumed(t *testing.T) {
	d := journaltest.Start(t)
	l := newLedger()
	opt := JournalOptions{Directory: d.Dir, Selections: []Selection{{Name: "a", Matches: []string{"SYSLOG_IDENTIFIER=a"}}}}
	stop, _, _ := followJournal(t, l, opt)
	d.Send("one", "SYSLOG_IDENTIFIER=a")
	l.waitLines(t, "a", 1)
	stop()
	d.Send("vacuumed", "SYSLOG_IDENTIFIER=a")
	d.Rotate()
	d.Vacuum()
	d.Send("two", "SYSLOG_IDENTIFIER=a")
	_, log, _ := followJournal(t, l, opt)
	l.waitLines(t, "a", 2)
	if got := messages(t, l.get("a")); !slices.Equal(got, []string{"a: one", "a: two"}) {
		t.Errorf("%q", got)
	}
	if !strings.Contains(log.String(), "vacuumed") {
		t.Errorf("not told:\n%s", log)
	}
}

// TestJournalSelectionChanged: the entry at the cursor isn't selected any
// more, and the next one must not be skipped for it.
func TestJournalSelectionChanged(t *testing.T) {
	d := journaltest.Start(t)
	l := newLedger()
	opt := JournalOptions{Directory: d.Dir, Selections: []Selection{{Name: "a", Matches: []string{"SYSLOG_IDENTIFIER=a"}}}}
	stop, _, _ := followJournal(t, l, opt)
	d.Send("one", "SYSLOG_IDENTIFIER=a")
	l.waitLines(t, "a", 1)
	stop()
	d.Send("two", "SYSLOG_IDENTIFIER=b")
	opt.Selections[0].Matches[0] = "SYSLOG_IDENTIFIER=b"
	followJournal(t, l, opt)
	l.waitLines(t, "a", 2)
	if got := messages(t, l.get("a")); !slices.Equal(got, []string{"a: one", "b: two"}) {
		t.Errorf("%q", got)
	}
}

// TestJournalctlDies: a journalctl that ends is started again at the cursor.
func TestJournalctlDies(t *testing.T) {
	d := journaltest.Start(t)
	dir := t.TempDir()
	// Dies with the words of systemd#36247 after some entries, each time.
	script := `#!/bin/sh
case "$*" in *--follow*)
	journalctl $(echo "$@" | sed s/--follow//) | head -c 3000
	echo "Failed to iterate through journal: Bad message" >&2
	exit 1;;
esac
exec journalctl "$@"
`
	program := filepath.Join(dir, "journalctl-dies")
	if err := os.WriteFile(program, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	j, err := NewJournal(JournalOptions{Directory: d.Dir, Log: slog.New(slog.DiscardHandler),
		Selections: []Selection{{Name: "a", Matches: []string{"SYSLOG_IDENTIFIER=a"}}}})
	if err != nil {
		t.Fatal(err)
	}
	j.program = program
	l := newLedger()
	l.positions[JournalKey] = Position{}
	const n = 50
	for i := range n {
		d.Send(fmt.Sprint(i), "SYSLOG_IDENTIFIER=a")
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- j.Run(ctx, l.resume(), l.emit) }()
	l.waitLines(t, "a", n)
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	for i, m := range messages(t, l.get("a")) {
		if m != fmt.Sprintf("a: %d", i) {
			t.Fatalf("line %d is %q", i, m)
		}
	}
}

// TestJournalUnderLoad: while journald rotates under a flood of entries and
// what was read is vacuumed, each entry comes once and in order, and memory is
// the same after the first tenth and in the end: ours, and journalctl's.
//
// XDPBAN_ENTRIES sets how many there are.
func TestJournalUnderLoad(t *testing.T) {
	total := 40_000
	if s := os.Getenv("XDPBAN_ENTRIES"); s != "" {
		var err error
		if total, err = strconv.Atoi(s); err != nil {
			t.Fatalf("XDPBAN_ENTRIES: %v", err)
		}
	}
	d := journaltest.Start(t)
	j, err := NewJournal(JournalOptions{Directory: d.Dir, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		Selections: []Selection{{Name: "a", Matches: []string{"SYSLOG_IDENTIFIER=a"}}}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	begun, read := make(chan struct{}, 1), make(chan int, 1)
	done := make(chan error, 1)
	next := 0
	go func() {
		done <- j.Run(ctx, nil, func(b Block) error {
			if len(b.Lines) == 0 {
				begun <- struct{}{}
			}
			for line := range bytes.Lines(b.Lines) {
				line = bytes.TrimSuffix(line, []byte("\n"))
				if n, err := strconv.Atoi(string(line[bytes.LastIndexByte(line, ' ')+1:])); err != nil || n != next {
					return fmt.Errorf("entry %d comes as %q", next, line)
				}
				next++
			}
			select {
			case <-read: // nobody has looked at it
			default:
			}
			read <- next
			return nil
		})
	}()
	<-begun
	var first [2]int64
	const burst = 4000 // all of it is read before what was rotated meanwhile is vacuumed
	rotations := 0
	for sent := 0; sent < total; {
		var rotating sync.WaitGroup
		for i := range burst {
			if i%(burst/4) == burst/8 {
				rotating.Wait()
				rotating.Go(d.Rotate)
				rotations++
			}
			d.Send(fmt.Sprintf("Failed password for root from 192.0.2.1 port 40022 ssh2: %d", sent), "SYSLOG_IDENTIFIER=a")
			sent++
		}
		rotating.Wait()
		late := time.After(time.Minute)
		for n := 0; n < sent; {
			select {
			case n = <-read:
			case err := <-done:
				t.Fatal(err)
			case <-late:
				t.Fatalf("%d of %d entries are read", n, sent)
			}
		}
		d.Vacuum()
		if sent >= total/10 && first == [2]int64{} {
			first = [2]int64{heap(), anonymous(t, "journalctl")}
		}
	}
	last := [2]int64{heap(), anonymous(t, "journalctl")}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	t.Logf("%d entries, %d rotations; heap %d kB after a tenth, %d kB in the end; journalctl %d kB, %d kB",
		next, rotations, first[0]>>10, last[0]>>10, first[1]>>10, last[1]>>10)
	for i, what := range []string{"our heap", "journalctl's memory"} {
		if last[i] > first[i]+first[i]/4+1<<20 {
			t.Errorf("%s has grown from %d to %d kB", what, first[i]>>10, last[i]>>10)
		}
	}
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// anonymous is the memory of our children of a name that isn't of files.
func anonymous(t *testing.T, name string) (sum int64) {
	t.Helper()
	tasks, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		list, _ := os.ReadFile(task) // a thread that has ended has none
		for pid := range strings.FieldsSeq(string(list)) {
			status, _ := os.ReadFile("/proc/" + pid + "/status")
			if !strings.HasPrefix(string(status), "Name:\t"+name+"\n") {
				continue
			}
			_, rest, _ := strings.Cut(string(status), "\nRssAnon:")
			kb, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			sum += kb << 10
		}
	}
	return sum
}

func TestJournalctlMissing(t *testing.T) {
	j, err := NewJournal(JournalOptions{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	j.program = "/nonexistent/journalctl"
	err = j.Run(context.Background(), nil, newLedger().emit)
	if err == nil || !strings.Contains(err.Error(), "/nonexistent/journalctl") {
		t.Fatal(err)
	}
}

func TestSelectionErrors(t *testing.T) {
	for _, m := range [][]string{{"ssh.service"}, {"unit=x"}, {"+"}, {"A=b", "+"}, {"A=b", "+", "+", "C=d"}, {"__CURSOR=x"}, {"A=\x00"}, {"-M=x"}} {
		if _, err := NewJournal(JournalOptions{Selections: []Selection{{Name: "jail sshd", Matches: m}}}); err == nil || !strings.Contains(err.Error(), "jail sshd") {
			t.Errorf("%q: %v", m, err)
		}
	}
}

func TestJournalUnion(t *testing.T) {
	j, err := NewJournal(JournalOptions{Selections: []Selection{
		{Name: "a", Matches: []string{"_SYSTEMD_UNIT=ssh.service", "_UID=0", "_SYSTEMD_UNIT=sshd.service"}},
		{Name: "b", Matches: []string{"_COMM=nginx"}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Join(j.args, " ")
	own := "_MACHINE_ID=" + ownMachine(t)
	if want := own + " _SYSTEMD_UNIT=ssh.service _SYSTEMD_UNIT=sshd.service _UID=0 + " + own + " _COMM=nginx"; !strings.HasSuffix(got, want) {
		t.Errorf("journalctl %s\nwant … %s", got, want)
	}
}

// exported writes an entry in the export format.
func exported(fields ...string) []byte {
	var b bytes.Buffer
	for _, f := range fields {
		name, value, _ := strings.Cut(f, "=")
		if strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r == 0xfffd }) {
			b.WriteString(name + "\n")
			_ = binary.Write(&b, binary.LittleEndian, uint64(len(value)))
			b.WriteString(value + "\n")
		} else {
			b.WriteString(f + "\n")
		}
	}
	b.WriteString("\n")
	return b.Bytes()
}

func TestExportReader(t *testing.T) {
	var in []byte
	in = append(in, exported("__CURSOR=s=1", "MESSAGE=a=b", "OTHER=x")...)
	in = append(in, exported("__CURSOR=s=2", "MESSAGE=binary\n\nFAKE=1", "MESSAGE=second", "EMPTY=")...)
	in = append(in, exported("__CURSOR=s=3", "MESSAGE="+strings.Repeat("y", 5000))...)
	in = append(in, exported("__CURSOR=s=4", "MESSAGE=\n"+strings.Repeat("z", 5000))...)
	in = append(in, exported("__CURSOR=s=5", "MESSAGE=end")...)
	in = append(in, "__CURSOR=s=6\nMESSAGE=torn"...)
	for _, r := range []io.Reader{bytes.NewReader(in), oneByte{bytes.NewReader(in)}} {
		x := exportReader{r: r, max: 1000, want: []string{"__CURSOR", "MESSAGE", "EMPTY"}}
		want := []string{"a=b", "binary\n\nFAKE=1", "", "", "end"}
		for i, message := range want {
			e, err := x.next()
			if err != nil {
				t.Fatal(err)
			}
			if got := string(e.get("__CURSOR")); got != fmt.Sprintf("s=%d", i+1) {
				t.Fatalf("entry %d: cursor %q", i, got)
			}
			if e.cut != (message == "") {
				t.Errorf("entry %d: cut %v", i, e.cut)
			}
			if !e.cut && string(e.get("MESSAGE")) != message {
				t.Errorf("entry %d: %q", i, e.get("MESSAGE"))
			}
			if i == 1 && !e.has("MESSAGE", "second") {
				t.Error("second value isn't there")
			}
		}
		if _, err := x.next(); err != io.EOF {
			t.Errorf("torn entry: %v", err)
		}
	}
}

type oneByte struct{ r io.Reader }

func (o oneByte) Read(b []byte) (int, error) { return o.r.Read(b[:1]) }

// FuzzExport: whatever comes, what is kept is bounded and each entry is one
// line.
func FuzzExport(f *testing.F) {
	f.Add(exported("__CURSOR=s=1", "__REALTIME_TIMESTAMP=1795562529743550", "MESSAGE=a\nb", "_PID=1", "SYSLOG_IDENTIFIER=x: y"))
	f.Add([]byte("MESSAGE\n\xff\xff\xff\xff\xff\xff\xff\xffx\n\n"))
	f.Add([]byte("MESSAGE\n\x03\x00\x00\x00\x00\x00\x00\x00abc\n\n\n\nMESSAGE=x"))
	f.Fuzz(func(t *testing.T, in []byte) {
		x := exportReader{r: bytes.NewReader(in), max: 100, want: append(slices.Clone(lineFields), "__CURSOR", "__REALTIME_TIMESTAMP")}
		for {
			e, err := x.next()
			if err != nil {
				break
			}
			if len(e.data) > 400 || len(e.fields) > maxFields {
				t.Fatalf("%d bytes in %d fields kept", len(e.data), len(e.fields))
			}
			line, ok := e.appendLine(nil)
			if ok && !linePattern.Match(bytes.TrimSuffix(line, []byte("\n"))) {
				t.Fatalf("no line: %q", line)
			}
		}
	})
}

// BenchmarkJournal reads entries back from a real journald.
func BenchmarkJournal(b *testing.B) {
	d := journaltest.Start(b)
	const n = 100_000
	for i := range n {
		d.Send(fmt.Sprintf("Failed password for invalid user admin%d from 192.0.2.%d port %d ssh2", i, i%250, i%65000), "SYSLOG_IDENTIFIER=sshd", "PRIORITY=6")
	}
	j, err := NewJournal(JournalOptions{Directory: d.Dir, Selections: []Selection{{Name: "a", Matches: []string{"SYSLOG_IDENTIFIER=sshd"}}}})
	if err != nil {
		b.Fatal(err)
	}
	read := 0
	for b.Loop() {
		read = 0
		err := j.Run(context.Background(), map[string]Position{JournalKey: {}}, func(block Block) error {
			if read += bytes.Count(block.Lines, []byte("\n")); read == n {
				return io.EOF
			}
			return nil
		})
		if err != io.EOF {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "entries/s")
}

// BenchmarkJournalLatency is the time from the message to its block, in an
// attack: one message each 50 ms.
func BenchmarkJournalLatency(b *testing.B) {
	d := journaltest.Start(b)
	came := make(chan time.Time, 1)
	ready := make(chan struct{})
	var once sync.Once
	j, err := NewJournal(JournalOptions{Directory: d.Dir, Selections: []Selection{{Name: "a", Matches: []string{"SYSLOG_IDENTIFIER=sshd"}}}})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- j.Run(ctx, nil, func(block Block) error {
			once.Do(func() { close(ready) })
			if len(block.Lines) > 0 {
				came <- time.Now()
			}
			return nil
		})
	}()
	<-ready
	d.Send("first", "SYSLOG_IDENTIFIER=sshd")
	<-came
	var took []time.Duration
	for b.Loop() {
		time.Sleep(50 * time.Millisecond)
		sent := time.Now()
		d.Send("Failed password", "SYSLOG_IDENTIFIER=sshd")
		took = append(took, (<-came).Sub(sent))
	}
	cancel()
	<-done
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "µs-median")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "µs-p99")
}
