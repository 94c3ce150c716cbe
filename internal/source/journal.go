package source

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// JournalKey is what the journal's position is stored under, and the stream
// of blocks that move it alone.
const JournalKey = "journal"

// Selection is a part of the journal that is read as a stream of its own.
type Selection struct {
	Name string // the stream's
	// Matches are as journalctl takes them: "FIELD=value"; of the same field
	// one must hold, of different fields all; "+" between two groups means
	// either. None select everything.
	Matches []string
}

// JournalOptions says what of the journal to follow.
type JournalOptions struct {
	Selections []Selection
	// Since is where to begin when no position is known; zero means now.
	Since time.Time
	// Directory holds the journal's files; empty means the machine's own.
	Directory string
	// Log hears of restarts and of what journalctl complains of. Nil means
	// slog.Default.
	Log *slog.Logger
}

// Journal follows the journal through one journalctl process, whatever the
// number of selections: a static binary has no use for libsystemd, whose
// reader can die of SIGBUS on rotation before systemd 255.
type Journal struct {
	opt     JournalOptions
	program string
	selects []selection
	args    []string // of journalctl: what to print of which entries
	want    []string
	dropped atomic.Uint64
}

// selection is a Selection compiled: either of groups, all of a group's
// fields, one of a field's values.
type selection struct {
	name   string
	groups [][]match
}

type match struct {
	field  string
	values []string
}

var (
	fieldName  = regexp.MustCompile(`^[A-Z_][A-Z0-9_]{0,63}$`)
	cursorForm = regexp.MustCompile(`^[a-z]=[0-9a-f]+(;[a-z]=[0-9a-f]+)*$`)
)

// machineID is this machine's, see machine-id(5).
const machineID = "/etc/machine-id"

// lineFields are those that a line is made of.
var lineFields = []string{"MESSAGE", "SYSLOG_IDENTIFIER", "SYSLOG_PID", "_COMM", "_PID", "_HOSTNAME", "_SOURCE_REALTIME_TIMESTAMP"}

// NewJournal checks the selections; it starts nothing.
func NewJournal(opt JournalOptions) (*Journal, error) {
	if opt.Log == nil {
		opt.Log = slog.Default()
	}
	j := &Journal{opt: opt, program: "journalctl", want: slices.Clone(lineFields)}
	// Following, journalctl shows what this boot has logged; but for --merge,
	// which shows that of other machines too, if it is kept here. What was
	// logged before a reboot and not yet read must not be missed.
	id, err := os.ReadFile(machineID)
	if err != nil {
		return nil, fmt.Errorf("tell this machine's journal from others': %w", err)
	}
	own := "_MACHINE_ID=" + strings.TrimSpace(string(id))
	var all bool
	var args []string
	for _, s := range opt.Selections {
		c, err := compile(s)
		if err != nil {
			return nil, err
		}
		j.selects = append(j.selects, c)
		all = all || len(c.groups) == 0
		for _, group := range c.groups {
			if len(args) > 0 {
				args = append(args, "+")
			}
			args = append(args, own)
			for _, m := range group {
				if !slices.Contains(j.want, m.field) {
					j.want = append(j.want, m.field)
				}
				for _, v := range m.values {
					args = append(args, m.field+"="+v)
				}
			}
		}
	}
	j.args = []string{"--output=export", "--no-pager", "--merge", "--output-fields=" + strings.Join(j.want, ",")}
	if opt.Directory != "" {
		j.args = append(j.args, "--directory="+opt.Directory)
	}
	if all {
		args = []string{own}
	}
	j.args = append(j.args, args...)
	j.want = append(j.want, "__CURSOR", "__REALTIME_TIMESTAMP")
	return j, nil
}

func compile(s Selection) (selection, error) {
	c := selection{name: s.Name}
	group := []match{}
	for i, m := range s.Matches {
		if m == "+" {
			if len(group) == 0 || i == len(s.Matches)-1 {
				return c, fmt.Errorf("journal match of %s: a \"+\" stands between two matches", s.Name)
			}
			c.groups = append(c.groups, group)
			group = []match{}
			continue
		}
		field, value, ok := strings.Cut(m, "=")
		if !ok || !fieldName.MatchString(field) || strings.ContainsRune(value, 0) {
			return c, fmt.Errorf("journal match of %s: %q is not FIELD=value, such as _SYSTEMD_UNIT=ssh.service", s.Name, m)
		}
		if strings.HasPrefix(field, "__") {
			return c, fmt.Errorf("journal match of %s: %s is no field that can be matched", s.Name, field)
		}
		at := slices.IndexFunc(group, func(m match) bool { return m.field == field })
		if at < 0 {
			group = append(group, match{field: field})
			at = len(group) - 1
		}
		group[at].values = append(group[at].values, value)
	}
	if len(group) > 0 {
		c.groups = append(c.groups, group)
	}
	return c, nil
}

// takes says whether the entry is of the selection.
func (s *selection) takes(e *entry) bool {
	if len(s.groups) == 0 {
		return true
	}
	return slices.ContainsFunc(s.groups, func(group []match) bool {
		for _, m := range group {
			if !slices.ContainsFunc(m.values, func(v string) bool { return e.has(m.field, v) }) {
				return false
			}
		}
		return true
	})
}

// Dropped counts the messages that were dropped, since they were too long.
func (j *Journal) Dropped() uint64 { return j.dropped.Load() }

// Run implements Source. All streams' positions are stored under JournalKey.
func (j *Journal) Run(ctx context.Context, resume map[string]Position, emit Emit) error {
	f := &following{Journal: j, emit: emit, pending: make([][]byte, len(j.selects))}
	p, known := resume[JournalKey]
	if known && p.Cursor != "" && !cursorForm.MatchString(p.Cursor) {
		j.opt.Log.Error("stored journal cursor is damaged: reading on from the oldest entry", "cursor", p.Cursor)
		p = Position{}
	}
	f.position = p
	f.ahead = maps.Clone(p.Ahead)
	if err := f.begin(ctx, known); err != nil {
		return err
	}
	const shortest, longest = 100 * time.Millisecond, 30 * time.Second
	pause := shortest
	for {
		read := f.entries
		err := f.follow(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if f.emitErr != nil {
			return f.emitErr
		}
		if errors.Is(err, exec.ErrNotFound) {
			return missing(err)
		}
		// journald's rotation under load can end it with "Bad message": going
		// on at the cursor is the cure.
		if f.entries > read {
			pause = shortest
		}
		j.opt.Log.Warn("journalctl has ended: going on at the last entry", "error", err, "in", pause)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
		pause = min(2*pause, longest)
	}
}

func missing(err error) error {
	return fmt.Errorf("read the journal: %w (it is part of systemd; without it, let the jails read files)", err)
}

// following is the state of one Run.
type following struct {
	*Journal
	emit     Emit
	emitErr  error
	position Position
	cursor   string // of the last entry read
	pending  [][]byte
	// ahead is, by selection, the entry up to which its lines were emitted
	// though position isn't there yet.
	ahead   map[string]string
	since   string
	entries int
	hasten  *hastener
}

// begin finds where to begin, and says so: what is logged while nobody reads
// is then read later.
func (f *following) begin(ctx context.Context, known bool) error {
	switch {
	case f.position.Cursor != "":
		found, err := f.first(ctx, "--cursor="+f.position.Cursor)
		if err != nil {
			return err
		}
		if found != f.position.Cursor {
			f.opt.Log.Error("the journal has been vacuumed past the stored cursor: reading on from the oldest entry after it, some may be lost",
				"cursor", f.position.Cursor)
			f.ahead = nil
		}
		return nil
	case known:
		return nil
	case !f.opt.Since.IsZero():
		f.since = fmt.Sprintf("--since=@%d.%06d", f.opt.Since.Unix(), f.opt.Since.Nanosecond()/1000)
	default:
		last, err := f.first(ctx, "--lines=1")
		if err != nil {
			return err
		}
		f.position.Cursor = last
	}
	return f.emit(Block{Stream: JournalKey, Key: JournalKey, Arrival: time.Now(), Position: f.position})
}

// first returns the cursor of the first entry that journalctl prints, if any,
// whatever its fields.
func (f *following) first(ctx context.Context, arg string) (string, error) {
	args := []string{"--output=export", "--no-pager", "--quiet", "--output-fields=_PID", arg}
	if f.opt.Directory != "" {
		args = append(args, "--directory="+f.opt.Directory)
	}
	c, err := start(f.program, args)
	if err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return "", missing(err)
		}
		return "", fmt.Errorf("read the journal: %w", err)
	}
	defer context.AfterFunc(ctx, c.kill)()
	x := exportReader{r: c.out, max: DefaultMaxLine, want: []string{"__CURSOR"}}
	var cursor string
	e, err := x.next()
	if err == nil {
		cursor = string(e.get("__CURSOR"))
	}
	c.kill()
	c.wait()
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	if err != nil && err != io.EOF {
		return "", fmt.Errorf("read the journal: %w", err)
	}
	return cursor, nil
}

// follow runs one journalctl until it ends.
func (f *following) follow(ctx context.Context) error {
	args := []string{"--follow", "--no-tail"}
	if f.position.Cursor != "" {
		// Not --after-cursor: it skips one entry too many when the one at the
		// cursor isn't there, being vacuumed or not selected any more.
		args = append(args, "--cursor="+f.position.Cursor)
	} else if f.since != "" {
		args = append(args, f.since)
	}
	c, err := start(f.program, append(args, f.args...))
	if err != nil {
		return err
	}
	told := make(chan struct{})
	go func() {
		defer close(told)
		lines := bufio.NewScanner(c.err)
		for lines.Scan() {
			f.opt.Log.Warn("journalctl: " + lines.Text())
		}
		_, _ = io.Copy(io.Discard, c.err) // a line too long for the scanner
	}()
	stop := context.AfterFunc(ctx, c.kill)
	f.hasten = hasten(f.opt.Directory)
	err = f.read(c.out)
	f.hasten.stop()
	stop()
	c.kill()
	<-told
	if ended := c.wait(); err == io.EOF {
		return ended
	}
	return err
}

// pipe reads a pipe, and calls drained before it waits for more. journalctl
// writes 4 KiB at a time: not each is a reason to emit.
type pipe struct {
	*os.File
	drained func() error
}

func (p pipe) Read(b []byte) (int, error) {
	conn, err := p.SyscallConn()
	if err != nil {
		return 0, err
	}
	n := -1
	err = conn.Control(func(fd uintptr) {
		if m, err := unix.Read(int(fd), b); err == nil {
			n = m
		}
	})
	if err != nil {
		return 0, err
	}
	if n > 0 {
		return n, nil
	}
	if err := p.drained(); err != nil {
		return 0, err
	}
	return p.File.Read(b)
}

func (f *following) read(r *os.File) error {
	at := f.position.Cursor
	for i := range f.pending {
		f.pending[i] = f.pending[i][:0]
	}
	f.cursor = ""
	x := exportReader{r: pipe{r, f.flush}, max: DefaultMaxLine, want: f.want}
	size := 0
	for {
		e, err := x.next()
		if err != nil {
			return err
		}
		cursor := e.get("__CURSOR")
		if len(cursor) == 0 {
			return fmt.Errorf("%w: an entry without a cursor", errExport)
		}
		if string(cursor) == at {
			at = ""
			continue
		}
		f.entries++
		f.cursor = string(cursor)
		for i := range f.selects {
			s := &f.selects[i]
			if !s.takes(e) || f.isAhead(s.name, e) {
				continue
			}
			if e.cut {
				f.dropped.Add(1)
				f.opt.Log.Warn("journal entry dropped: too long", "cursor", f.cursor)
				continue
			}
			before := len(f.pending[i])
			f.pending[i], _ = e.appendLine(f.pending[i])
			size += len(f.pending[i]) - before
		}
		if size >= blockSize {
			size = 0
			if err := f.flush(); err != nil {
				return err
			}
		}
	}
}

// isAhead says whether the entry was emitted to that stream before the
// position was stored.
func (f *following) isAhead(name string, e *entry) bool {
	until, ok := f.ahead[name]
	if !ok {
		return false
	}
	if until == f.cursor {
		delete(f.ahead, name)
		return true
	}
	// Should that entry be gone, its time ends it.
	_, stamp, _ := strings.Cut(until, ";t=")
	stamp, _, _ = strings.Cut(stamp, ";")
	t, err := strconv.ParseInt(stamp, 16, 64)
	now, ok := microseconds(e.get("__REALTIME_TIMESTAMP"))
	if err != nil || !ok || now > t {
		delete(f.ahead, name)
		return false
	}
	return true
}

// flush emits what has come. The streams' blocks are stored one by one, so
// each but the last says which streams are ahead of the position.
func (f *following) flush() error {
	if f.cursor == "" {
		return nil
	}
	last := -1
	for i, lines := range f.pending {
		if len(lines) > 0 {
			last = i
		}
	}
	b := Block{Stream: JournalKey, Key: JournalKey, Arrival: time.Now()}
	for i, lines := range f.pending {
		if len(lines) == 0 || i == last {
			continue
		}
		f.position.Ahead = maps.Clone(f.position.Ahead)
		if f.position.Ahead == nil {
			f.position.Ahead = map[string]string{}
		}
		f.position.Ahead[f.selects[i].name] = f.cursor
		b.Stream, b.Lines, b.Position = f.selects[i].name, lines, f.position
		if f.emitErr = f.emit(b); f.emitErr != nil {
			return f.emitErr
		}
		f.pending[i] = lines[:0]
	}
	f.position = Position{Cursor: f.cursor, Ahead: maps.Clone(f.ahead)}
	f.cursor = ""
	b.Stream, b.Lines, b.Position = JournalKey, nil, f.position
	if last >= 0 {
		b.Stream, b.Lines = f.selects[last].name, f.pending[last]
		f.pending[last] = f.pending[last][:0]
	}
	if f.emitErr = f.emit(b); f.emitErr != nil {
		return f.emitErr
	}
	f.hasten.active()
	return nil
}

// child is a process that dies with this one.
type child struct {
	out, err *os.File
	process  *os.Process
	ended    chan error
}

func start(program string, args []string) (*child, error) {
	path, err := exec.LookPath(program)
	if err != nil {
		return nil, err
	}
	out, outw, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("pipe: %w", err)
	}
	errs, errw, err := os.Pipe()
	if err != nil {
		out.Close()
		outw.Close()
		return nil, fmt.Errorf("pipe: %w", err)
	}
	cmd := exec.Command(path, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "SYSTEMD_COLORS=0")
	cmd.Stdout, cmd.Stderr = outw, errw
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	c := &child{out: out, err: errs, ended: make(chan error, 1)}
	started := make(chan error)
	go func() {
		// The kernel sends the signal when the thread that forked ends, not
		// the process: this one is kept until the child is gone.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		outw.Close()
		errw.Close()
		started <- err
		if err == nil {
			err = cmd.Wait()
			if err == nil {
				err = errors.New("exit status 0")
			}
			c.ended <- err
		}
	}()
	if err := <-started; err != nil {
		out.Close()
		errs.Close()
		return nil, fmt.Errorf("start %s: %w", path, err)
	}
	c.process = cmd.Process
	return c, nil
}

func (c *child) kill() { _ = c.process.Kill() }

// wait returns how it has ended.
func (c *child) wait() error {
	c.out.Close()
	c.err.Close()
	return <-c.ended
}
