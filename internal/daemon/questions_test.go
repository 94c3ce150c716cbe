package daemon

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"xdpban/jails"
)

// asker answers as the test says, and remembers what it was asked.
type asker struct {
	mu     sync.Mutex
	asked  []string
	spare  map[string]bool
	hang   map[string]chan struct{}
	failed map[string]bool
}

func (a *asker) ask(ctx context.Context, args []string) (bool, error) {
	a.mu.Lock()
	a.asked = append(a.asked, strings.Join(args, " "))
	ip := args[1]
	hang, spare, failed := a.hang[ip], a.spare[ip], a.failed[ip]
	a.mu.Unlock()
	if _, ok := ctx.Deadline(); !ok {
		return false, errors.New("no time limit")
	}
	if hang != nil {
		select {
		case <-hang:
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
	if failed {
		return true, errors.New("exit status 3")
	}
	return spare, nil
}

func (a *asker) times(question string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(slices.DeleteFunc(slices.Clone(a.asked), func(s string) bool { return s != question }))
}

func askingWorld(t *testing.T, a *asker, cache jails.IgnoreCache) *world {
	w := newWorld(t)
	w.ask = a.ask
	j := &w.config.Jails[0]
	j.IgnoreCommand, j.IgnoreCache = []string{"/bin/ours", "<ip>"}, cache
	return w
}

// TestIgnoreCommand: whom the program spares is never banned, the others are,
// once it has answered; one answer that never comes holds up nobody else.
func TestIgnoreCommand(t *testing.T) {
	release := make(chan struct{})
	a := &asker{
		spare:  map[string]bool{"192.0.2.1": true, "192.0.2.4": true},
		hang:   map[string]chan struct{}{"192.0.2.3": release},
		failed: map[string]bool{"192.0.2.4": true},
	}
	w := askingWorld(t, a, jails.IgnoreCache{})
	d, _ := w.run()
	w.fail("192.0.2.1", 5)
	w.fail("192.0.2.3", 5)
	w.fail("192.0.2.2", 3)
	w.untilBanned("192.0.2.2")
	w.settle()
	for _, addr := range []string{"192.0.2.1", "192.0.2.3"} {
		if _, ok := w.kernel.banned(addr); ok {
			t.Errorf("%s is banned", addr)
		}
	}
	for a.times("/bin/ours 192.0.2.3") == 0 { // programs run in any order
	}
	if got := a.times("/bin/ours 192.0.2.3"); got != 1 {
		t.Errorf("asked %d times while the answer was awaited", got)
	}
	close(release)
	w.untilBanned("192.0.2.3")
	// Without a valid answer nobody is spared, and it is said.
	w.fail("192.0.2.4", 3)
	w.untilBanned("192.0.2.4")
	s, err := d.Status(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Problems) != 1 || !strings.Contains(s.Problems[0], "ask ignorecommand of jail sshd (/bin/ours 192.0.2.4): exit status 3") {
		t.Errorf("problems %q", s.Problems)
	}
}

// TestIgnoreCache: with it the program runs once for one address.
func TestIgnoreCache(t *testing.T) {
	a := &asker{spare: map[string]bool{"192.0.2.1": true, "192.0.2.5": true}}
	w := askingWorld(t, a, jails.IgnoreCache{Time: time.Hour, Max: 2})
	w.run()
	w.fail("192.0.2.1", 3)
	w.settle() // the stranger's ban was asked about after it
	w.fail("192.0.2.1", 5)
	w.fail("192.0.2.2", 3)
	w.untilBanned("192.0.2.2")
	if got := a.times("/bin/ours 192.0.2.1"); got != 1 {
		t.Errorf("asked %d times", got)
	}
}

// TestQuestionSurvives: what waited for an answer when the daemon ended is
// asked again, and counts once.
func TestQuestionSurvives(t *testing.T) {
	var answer atomic.Bool
	w := newWorld(t)
	j := &w.config.Jails[0]
	j.IgnoreCommand = []string{"/bin/ours", "<ip>"}
	asked := make(chan string, 10)
	w.ask = func(ctx context.Context, args []string) (bool, error) {
		asked <- args[1]
		if !answer.Load() {
			<-ctx.Done()
		}
		return args[1] == "192.0.2.1", ctx.Err()
	}
	_, stop := w.run()
	w.fail("192.0.2.1", 4)
	w.fail("192.0.2.2", 4)
	<-asked
	<-asked
	stop()
	answer.Store(true)
	w.run()
	w.untilBanned("192.0.2.2")
	if e, _ := w.kernel.banned("192.0.2.2"); e.Jail != "sshd" {
		t.Errorf("%+v", e)
	}
	w.settle()
	if _, ok := w.kernel.banned("192.0.2.1"); ok {
		t.Error("192.0.2.1 is banned")
	}
}
