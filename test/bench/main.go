// Command bench runs xdpban and its peers on the same work, in turns, and
// writes what it measured in Go's benchmark format, one file a table. Command
// report, beside it, makes tables and plots of them.
//
// Nothing is measured before both sides have shown that they find the same
// offenders or drop the same packets. Logs are made with a user, a port, a
// process and a time of its own for each line.
package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// table is one comparison.
type table struct {
	name  string // of its file, its plot and its benchmark
	title string
	// goal is what xdpban is to reach, in words.
	goal string
	// unit is what is compared; more of it is better, or less.
	unit string
	more bool
	// line plots the unit over n=NUMBER in the names, instead of bars.
	line bool
	run  func(*bench) error
}

var tables = []table{
	authTable, quietTable, jailsTable, webTable, dropTable, passTable, bansTable, memoryTable, idleTable, readingTable, growthTable, fleetTable,
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	quick := flags.Bool("quick", false, "a tenth of the work, two rounds")
	rounds := flags.Int("rounds", 5, "how often each contender has its turn")
	out := flags.String("out", "", "the folder that results are written to")
	program := flags.String("xdpban", "./xdpban", "the program to measure")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *out == "" {
		return fmt.Errorf("-out names the folder for the results")
	}
	if os.Getuid() != 0 {
		return fmt.Errorf("it needs root: for name spaces, for BPF and for the peers")
	}
	xdpban, err := filepath.Abs(*program)
	if err != nil {
		return err
	}
	if _, err := os.Stat(xdpban); err != nil {
		return fmt.Errorf("the program to measure: %w", err)
	}
	wanted := flags.Args()
	for _, name := range wanted {
		if !slices.ContainsFunc(tables, func(t table) bool { return t.name == name }) {
			return fmt.Errorf("there is no table %s", name)
		}
	}
	if err := os.MkdirAll(*out, 0o755); err != nil {
		return err
	}
	for _, t := range tables {
		if len(wanted) > 0 && !slices.Contains(wanted, t.name) {
			continue
		}
		if err := measure(ctx, t, filepath.Join(*out, t.name+".txt"), xdpban, *quick, *rounds); err != nil {
			return fmt.Errorf("%s: %w", t.name, err)
		}
	}
	return nil
}

// bench is what a table is measured with.
type bench struct {
	ctx    context.Context
	table  table
	xdpban string // the program
	dir    string // for its files; removed afterwards
	quick  bool
	rounds int
	out    *bufio.Writer
}

func measure(ctx context.Context, t table, path, xdpban string, quick bool, rounds int) (err error) {
	dir, err := os.MkdirTemp("", "xdpban-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if quick {
		rounds = 2
	}
	f, err := os.Create(path + ".new")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	b := &bench{ctx: ctx, table: t, xdpban: xdpban, dir: dir, quick: quick, rounds: rounds, out: bufio.NewWriter(f)}
	fmt.Printf("\n%s\n", t.title)
	better := map[bool]string{true: "higher", false: "lower"}[t.more]
	plot := map[bool]string{true: "line", false: "bar"}[t.line]
	fmt.Fprintf(b.out, "table: %s\ntitle: %s\ngoal: %s\nunit: %s\nbetter: %s\nplot: %s\ndate: %s\n", t.name, t.title, t.goal, t.unit,
		better, plot, time.Now().UTC().Format("2006-01-02"))
	fmt.Fprintf(b.out, "machine: %s\nsize: %s\nload: %s\n\n", machine(), map[bool]string{true: "quick", false: "full"}[quick], load())
	if err := t.run(b); err != nil {
		return err
	}
	if err := b.out.Flush(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// scale is the size of a work: all of it, or a tenth.
func (b *bench) scale(n int) int {
	if b.quick {
		return n / 10
	}
	return n
}

func (b *bench) path(name string) string { return filepath.Join(b.dir, name) }

// figures are measurements by unit.
type figures map[string]float64

// contender is one way of doing a work.
type contender struct {
	// name is "xdpban" for ours; others are compared with that of the same
	// case, which is what follows a slash: "fail2ban-regex/log=mixed".
	name string
	// rarely has it take part in the first two rounds only: it takes long.
	rarely bool
	run    func() (figures, error)
}

// compare lets contenders take turns, in each round all of them.
func (b *bench) compare(all ...contender) error {
	for round := range b.rounds {
		for _, c := range all {
			if c.rarely && round >= 2 {
				continue
			}
			if err := b.ctx.Err(); err != nil {
				return err
			}
			v, err := c.run()
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			b.note(c.name, v)
		}
	}
	return nil
}

// note records measurements.
func (b *bench) note(name string, v figures) {
	units := make([]string, 0, len(v))
	for u := range v {
		units = append(units, u)
	}
	slices.Sort(units)
	line := "Benchmark/who=" + name + " 1"
	said := "  " + name
	for _, u := range units {
		line += " " + strconv.FormatFloat(v[u], 'g', 6, 64) + " " + u
		said += "  " + strconv.FormatFloat(v[u], 'g', 4, 64) + " " + u
	}
	fmt.Fprintln(b.out, line)
	fmt.Println(said)
}

// command prepares a peer or xdpban, on one core.
func (b *bench) command(argv ...string) *exec.Cmd {
	argv = append([]string{"taskset", "-c", lastCPU()}, argv...)
	cmd := exec.CommandContext(b.ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	return cmd
}

// spent is what a command used: the time of its processor, which other
// people's work changes little, and the most memory it had.
type spent struct {
	cpu   time.Duration
	bytes int64
}

// time runs a command to its end and returns what it said on its output.
func (b *bench) time(cmd *exec.Cmd) (out []byte, s spent, err error) {
	var said strings.Builder
	cmd.Stderr = &said
	if cmd.Stdout == nil {
		out, err = cmd.Output()
	} else {
		err = cmd.Run()
	}
	if err != nil {
		return nil, s, fmt.Errorf("%q: %w: %s", cmd.Args, err, said.String())
	}
	use := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	return out, spent{cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), use.Maxrss << 10}, nil
}

// perSecond is a rate by processor time, with the memory.
func (s spent) perSecond(lines int) figures {
	return figures{"lines/s": float64(lines) / s.cpu.Seconds()}
}

func lastCPU() string { return strconv.Itoa(cpus() - 1) }

func cpus() int {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return 1
	}
	return max(1, strings.Count("\n"+string(b), "\nprocessor"))
}

func machine() string {
	model := "unknown processor"
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for l := range strings.Lines(string(b)) {
			if name, value, ok := strings.Cut(l, ":"); ok && strings.TrimSpace(name) == "model name" {
				model = strings.TrimSpace(value)
				break
			}
		}
	}
	release := "?"
	if b, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		release = strings.TrimSpace(string(b))
	}
	return fmt.Sprintf("%d × %s, Linux %s", cpus(), model, release)
}

// load is the load average of a minute when the measuring began.
func load() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "?"
	}
	one, _, _ := strings.Cut(string(b), " ")
	return one
}
