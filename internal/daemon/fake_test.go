package daemon

import (
	"context"
	"errors"
	"iter"
	"maps"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"xdpban/internal/control"
	"xdpban/internal/source"
	"xdpban/jails"
)

// kernelList is a Blocklist in memory. It outlives the daemons of a test, as
// pinned maps do.
type kernelList struct {
	mu       sync.Mutex
	epoch    uint64
	bans     map[netip.Prefix]Entry
	allow    map[netip.Prefix]string
	ended    []Entry // for the next Sweep
	failing  error   // what Add answers
	capacity int     // 0: no limit
	changed  chan struct{}
}

func newKernelList() *kernelList {
	return &kernelList{epoch: 1, bans: map[netip.Prefix]Entry{}, allow: map[netip.Prefix]string{}, changed: make(chan struct{}, 1)}
}

// reboot is what a reboot does: an empty set with another epoch.
func (k *kernelList) reboot() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.epoch++
	clear(k.bans)
	clear(k.allow)
}

// copy is the list from now on, without whoever changes this one.
func (k *kernelList) copy() *kernelList {
	k.mu.Lock()
	defer k.mu.Unlock()
	c := newKernelList()
	c.epoch, c.capacity = k.epoch, k.capacity
	maps.Copy(c.bans, k.bans)
	maps.Copy(c.allow, k.allow)
	return c
}

func (k *kernelList) touch() {
	select {
	case k.changed <- struct{}{}:
	default:
	}
}

func (k *kernelList) banned(addr string) (Entry, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	e, ok := k.bans[prefix(addr)]
	return e, ok
}

func prefix(s string) netip.Prefix {
	if p, err := netip.ParsePrefix(s); err == nil {
		return p
	}
	a := netip.MustParseAddr(s)
	return netip.PrefixFrom(a, a.BitLen())
}

func (k *kernelList) Epoch() uint64 { return k.epoch }

func (k *kernelList) Add(bans []jails.Ban) (gaveUp []Entry, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	defer k.touch()
	if k.failing != nil {
		return nil, k.failing
	}
	for _, b := range bans {
		e := k.bans[b.Prefix]
		e.Ban = jails.Ban{Prefix: b.Prefix, Jail: b.Jail, Since: b.Since, Until: b.Until}
		k.bans[b.Prefix] = e
	}
	for k.capacity > 0 && len(k.bans) > k.capacity {
		var soonest Entry
		for _, e := range k.bans {
			if !soonest.Prefix.IsValid() || !e.Forever() && (soonest.Forever() || e.Until.Before(soonest.Until)) {
				soonest = e
			}
		}
		delete(k.bans, soonest.Prefix)
		gaveUp = append(gaveUp, soonest)
	}
	return gaveUp, nil
}

func (k *kernelList) Remove(p netip.Prefix) (Entry, bool, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	defer k.touch()
	e, ok := k.bans[p]
	delete(k.bans, p)
	return e, ok, nil
}

func (k *kernelList) RemoveBatch(list []netip.Prefix) ([]Entry, error) {
	var were []Entry
	for _, p := range list {
		if e, ok, _ := k.Remove(p); ok {
			were = append(were, e)
		}
	}
	return were, nil
}

func (k *kernelList) List() iter.Seq2[Entry, error] {
	k.mu.Lock()
	defer k.mu.Unlock()
	var list []Entry
	for _, e := range k.bans {
		list = append(list, e)
	}
	return func(yield func(Entry, error) bool) {
		for _, e := range list {
			if !yield(e, nil) {
				return
			}
		}
	}
}

func (k *kernelList) Covering(p netip.Prefix) ([]Entry, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var list []Entry
	for q, e := range k.bans {
		if q.Bits() <= p.Bits() && q.Contains(p.Addr()) {
			list = append(list, e)
		}
	}
	return list, nil
}

func (k *kernelList) Sweep() ([]Entry, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	ended := k.ended
	k.ended = nil
	return ended, nil
}

// end is what the kernel's clock does.
func (k *kernelList) end(addr string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.ended = append(k.ended, k.bans[prefix(addr)])
	delete(k.bans, prefix(addr))
}

func (k *kernelList) Stats() (control.Stats, error) {
	return control.Stats{Verdicts: map[string]control.Verdict{"XDP_DROP": {Packets: 1, Bytes: 60}}}, nil
}

func (k *kernelList) Ports() ([]control.Port, error) { return nil, nil }

func (k *kernelList) SetAllow(list []Allow) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	defer k.touch()
	for _, a := range list {
		k.allow[a.Prefix] = a.Origin
	}
	return nil
}

func (k *kernelList) RemoveAllow(p netip.Prefix) (bool, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	_, ok := k.allow[p]
	delete(k.allow, p)
	return ok, nil
}

func (k *kernelList) Allowed() ([]Allow, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var list []Allow
	for p, origin := range k.allow {
		list = append(list, Allow{p, origin})
	}
	return list, nil
}

func (k *kernelList) Mend() (lost, err error) { return nil, nil }

func (k *kernelList) Attach(iface string) (string, bool, error) {
	if iface != "eth0" {
		return "", false, errors.New("interface " + iface + " doesn't exist")
	}
	return "native", false, nil
}

// machine is a host that changes when the test says so.
type machine struct {
	mu    sync.Mutex
	own   []netip.Prefix
	peers []netip.Addr
	tell  chan struct{}
}

func (m *machine) host() Host {
	return Host{
		Own: func() ([]netip.Prefix, error) {
			m.mu.Lock()
			defer m.mu.Unlock()
			return m.own, nil
		},
		SessionPeers:      func(context.Context) ([]netip.Addr, error) { return m.peers, nil },
		DefaultInterfaces: func() ([]string, error) { return []string{"eth0"}, nil },
		Watch: func(ctx context.Context, changed func()) error {
			for {
				select {
				case <-ctx.Done():
					return nil
				case <-m.tell:
					changed()
				}
			}
		},
	}
}

// log is a Source that says what the test says. Its lines stay, so that a
// daemon started again reads on from its position.
type log struct {
	name string

	mu    sync.Mutex
	lines []string
	more  chan struct{}
	told  atomic.Int64 // lines handed over
}

func newLog(name string) *log { return &log{name: name, more: make(chan struct{}, 1)} }

func (l *log) write(lines ...string) {
	l.mu.Lock()
	l.lines = append(l.lines, lines...)
	l.mu.Unlock()
	select {
	case l.more <- struct{}{}:
	default:
	}
}

func (l *log) Run(ctx context.Context, resume map[string]source.Position, emit source.Emit) error {
	at := int(resume[l.name].Offset)
	if _, known := resume[l.name]; !known {
		for _, key := range []string{l.name, "/var/log/*.log"} {
			if err := emit(source.Block{Stream: l.name, Key: key, Arrival: time.Now()}); err != nil {
				return err
			}
		}
	}
	for {
		l.mu.Lock()
		lines := l.lines
		l.mu.Unlock()
		for ; at < len(lines); at++ {
			err := emit(source.Block{
				Stream: l.name, Key: l.name, Lines: []byte(lines[at] + "\n"), Arrival: time.Now(),
				Position: source.Position{Offset: int64(at + 1)},
			})
			if err != nil {
				return err
			}
			l.told.Add(1)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-l.more:
		}
	}
}

// fakePlaces know what a test says.
type fakePlaces struct {
	of     map[netip.Addr]jails.Place
	broken error // guarded by the loop
}

func (p *fakePlaces) Follow([]string) error            { return p.broken }
func (p *fakePlaces) Find(addr netip.Addr) jails.Place { return p.of[addr] }

// fakeFeeds are none.
type fakeFeeds struct{}

func (fakeFeeds) Status() []control.Feed                { return nil }
func (fakeFeeds) Configure([]jails.Feed)                {}
func (fakeFeeds) Confirm(context.Context, string) error { return nil }
func (fakeFeeds) Fetch(context.Context, string) error   { return nil }
