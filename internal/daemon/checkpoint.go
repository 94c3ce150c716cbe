package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"xdpban/internal/control"
	"xdpban/internal/ledger"
	"xdpban/internal/source"
	"xdpban/jails"
)

// The ledger's kinds of records that are the daemon's own, besides the
// judge's.
const (
	kindPosition = "position" // by source key
	kindAllow    = "allow"    // by prefix: allowlisted by hand
	kindDropped  = "dropped"  // by a past ban's beginning and prefix: what it dropped
	kindKernel   = "kernel"   // what the kernel's set was
	keyEpoch     = "epoch"
)

// keepHistory is how many events the ledger keeps; the oldest go first.
const keepHistory = 100_000

// maxUnsaved is how much may change before it is written. What comes faster
// than that can be done waits in the logs, and not in memory.
const maxUnsaved = 10_000

// checkpoint gathers what has changed since the last write to the ledger. A
// write goes on beside the loop; what fails to be written stays gathered.
type checkpoint struct {
	position map[string]source.Position
	dirty    map[string]bool // positions
	changed  map[[2]string]ledger.Record
	writing  []ledger.Record // nil: no write is going on
	written  chan struct{}   // closed when the write that goes on has ended
	last     time.Time       // when the ledger last held all that had happened
	began    time.Time       // of the write that goes on
	took     time.Duration   // of the last one
	history  int             // events in the ledger and on their way there
	forgets  bool            // events aren't kept, since nothing can be written
}

func newCheckpoint() checkpoint {
	return checkpoint{
		position: map[string]source.Position{},
		dirty:    map[string]bool{},
		changed:  map[[2]string]ledger.Record{},
		written:  make(chan struct{}),
	}
}

func (c *checkpoint) moved(key string, p source.Position) {
	c.position[key] = p
	c.dirty[key] = true
}

func (c *checkpoint) positions() map[string]source.Position { return maps.Clone(c.position) }

func (c *checkpoint) put(records ...ledger.Record) {
	for _, r := range records {
		c.changed[[2]string{r.Kind, r.Key}] = r
	}
}

// encode is json.Marshal for our own types, which have nothing that can fail.
func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("encode %T: %v", v, err))
	}
	return b
}

// crowded says that much waits to be written.
func (d *Daemon) crowded() bool {
	return d.judge.Unsaved()+len(d.checkpoint.changed) >= maxUnsaved
}

// unread is where batches come from; nowhere, as long as the ledger doesn't
// keep up.
func (d *Daemon) unread() <-chan batch {
	if d.checkpoint.writing != nil && d.crowded() {
		return nil
	}
	return d.batches
}

// commit starts writing what has changed, unless a write is going on.
func (d *Daemon) commit() {
	c := &d.checkpoint
	if c.writing != nil {
		return
	}
	records := d.gather()
	if len(records) == 0 {
		c.last = c.began
	} else {
		c.writing = records
		go func() { d.commits <- d.ledger.Commit(records) }()
	}
}

// gather takes out all that has changed. The judge hands its part out until
// it is told that it was saved; ours is put back if it wasn't.
func (d *Daemon) gather() []ledger.Record {
	c := &d.checkpoint
	c.began = d.o.Now()
	d.trimHistory()
	for key := range c.dirty {
		c.put(ledger.Record{Kind: kindPosition, Key: key, Value: encode(c.position[key])})
	}
	clear(c.dirty)
	records := slices.Collect(maps.Values(c.changed))
	clear(c.changed)
	for _, r := range d.judge.Changes() {
		if r.Kind == jails.KindHistory {
			c.history++
		}
		records = append(records, ledger.Record(r))
	}
	return records
}

// committed takes the result of a write. What wasn't written is gathered
// again, under anything newer.
func (d *Daemon) committed(err error) {
	c := &d.checkpoint
	written := c.writing
	c.writing = nil
	close(c.written)
	c.written = make(chan struct{})
	if err == nil {
		d.problem("checkpoint", nil)
		d.judge.Saved()
		c.last = c.began
		c.took = d.o.Now().Sub(c.began)
		c.forgets = false
		return
	}
	for _, r := range written {
		switch r.Kind {
		case jails.KindOffender, jails.KindBrake:
		case jails.KindHistory:
			c.history--
		default:
			id := [2]string{r.Kind, r.Key}
			if _, newer := c.changed[id]; !newer {
				c.changed[id] = r
			}
		}
	}
	// Bans go on without a disk. Windows and bans are bounded by themselves,
	// what has happened isn't.
	c.forgets = c.forgets || len(written) >= maxUnsaved
	if c.forgets {
		err = fmt.Errorf("%w; until it works again nothing is added to the history", err)
		d.judge.DropHistory()
		maps.DeleteFunc(c.changed, func(id [2]string, _ ledger.Record) bool { return id[0] == kindDropped })
	}
	d.problem("checkpoint", err)
}

// flush waits until all that has happened is in the ledger.
func (d *Daemon) flush(ctx context.Context) error {
	for {
		var busy chan struct{}
		last := false
		err := d.do(ctx, func() {
			if d.checkpoint.writing == nil {
				d.commit()
				last = true
			}
			if d.checkpoint.writing != nil {
				busy = d.checkpoint.written
			}
		})
		if err != nil || busy == nil {
			return err
		}
		select {
		case <-busy:
		case <-d.done:
			return errStopped
		case <-ctx.Done():
			return ctx.Err()
		}
		if last {
			return nil
		}
	}
}

// openLedger opens the ledger. One that is damaged is moved aside, loudly:
// the kernel's bans stand, and a server that doesn't defend itself because of
// a torn file would be the greater damage.
func (d *Daemon) openLedger() error {
	l, err := ledger.Open(d.o.LedgerPath)
	if errors.Is(err, ledger.ErrCorrupt) {
		aside, moveErr := ledger.Quarantine(d.o.LedgerPath, d.o.Now())
		if moveErr != nil {
			return errors.Join(err, moveErr)
		}
		d.problem("ledger", fmt.Errorf("%w; it is kept as %s and a new one begun: strikes, history and positions before now are lost, the kernel's bans stand", err, aside))
		l, err = ledger.Open(d.o.LedgerPath)
	}
	if err != nil {
		return err
	}
	d.ledger = l
	return nil
}

// closeLedger writes the last checkpoint.
func (d *Daemon) closeLedger() {
	if d.checkpoint.writing != nil {
		d.committed(<-d.commits)
	}
	d.committed(d.ledger.Commit(d.gather()))
	if err := d.ledger.Close(); err != nil {
		d.log.Error(err.Error())
	}
}

// dropped remembers what a ban has dropped now that it has ended.
func (d *Daemon) dropped(e Entry) {
	if e.Packets > 0 {
		sum := d.drops[e.Jail]
		d.drops[e.Jail] = control.Verdict{Packets: sum.Packets + e.Packets, Bytes: sum.Bytes + e.Bytes}
	}
	if e.Packets > 0 && !e.Bulk {
		d.checkpoint.put(ledger.Record{Kind: kindDropped, Key: droppedKey(e.Since, e.Prefix), Value: encode(control.Verdict{Packets: e.Packets, Bytes: e.Bytes})})
	}
}

func droppedKey(since time.Time, p netip.Prefix) string {
	return jails.HistoryKey(since) + " " + p.String()
}

// trimHistory forgets the oldest events once there are a tenth too many.
func (d *Daemon) trimHistory() {
	if d.checkpoint.history < keepHistory+keepHistory/10 {
		return
	}
	oldest := ""
	excess := d.checkpoint.history - keepHistory
	forget := func(kind string, enough func(key string) bool) {
		err := d.ledger.Walk(kind, func(key string, _ []byte) error {
			if enough(key) {
				return errEnough
			}
			d.checkpoint.put(ledger.Record{Kind: kind, Key: key})
			return nil
		})
		if err != nil && !errors.Is(err, errEnough) {
			d.problem("history", fmt.Errorf("trim the history: %w", err))
		}
	}
	forget(jails.KindHistory, func(key string) bool {
		if excess == 0 {
			return true
		}
		excess--
		d.checkpoint.history--
		oldest = key
		return false
	})
	forget(kindDropped, func(key string) bool { return key > oldest })
}

// errEnough ends a walk early.
var errEnough = errors.New("enough")

// wire is an entry as the API shows it.
func wire(e Entry) control.Ban {
	b := control.FromJail(e.Ban)
	b.Packets, b.Bytes = e.Packets, e.Bytes
	return b
}

func epochRecord(epoch uint64) ledger.Record {
	return ledger.Record{Kind: kindKernel, Key: keyEpoch, Value: []byte(strconv.FormatUint(epoch, 16))}
}
