package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// publish writes what this host has banned and unbanned.
func (r *run) publish(ctx context.Context, js jetstream.JetStream, prefix string) {
	for ctx.Err() == nil {
		todo, compare := r.next()
		if compare {
			// More waited than is kept: once what was kept is written, all
			// is compared.
			if !pause(ctx, retryTime) || r.reconcile(ctx) != nil {
				return
			}
			continue
		}
		if len(todo) == 0 {
			select {
			case <-ctx.Done():
			case <-r.wake:
			}
			continue
		}
		left, err := r.write(ctx, js, prefix, todo)
		r.mu.Lock()
		r.sending = 0
		r.published += uint64(len(todo) - len(left))
		for p, w := range left {
			if _, newer := r.dirty[p]; !newer {
				r.dirty[p] = w
			}
		}
		r.mu.Unlock()
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			err = fmt.Errorf("fleet %s: %d bans and unbans aren't shared yet: %w", r.o.Settings.Name, len(left), err)
		}
		r.d.Problem(ctx, problemPublish, err)
		if err != nil {
			pause(ctx, retryTime)
		}
	}
}

// next takes out what is to be written.
func (r *run) next() (todo map[netip.Prefix]want, compare bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.dirty) == 0 {
		return nil, r.overflow
	}
	if len(r.dirty) <= atOnce {
		todo = r.dirty
		r.dirty = map[netip.Prefix]want{}
	} else {
		todo = make(map[netip.Prefix]want, atOnce)
		for p, w := range r.dirty {
			if todo[p] = w; len(todo) == atOnce {
				break
			}
		}
		maps.DeleteFunc(r.dirty, func(p netip.Prefix, _ want) bool { _, ok := todo[p]; return ok })
	}
	r.sending = len(todo)
	return todo, false
}

// write writes keys, and returns those that the server hasn't taken.
func (r *run) write(ctx context.Context, js jetstream.JetStream, prefix string, todo map[netip.Prefix]want) (left map[netip.Prefix]want, err error) {
	left = map[netip.Prefix]want{}
	acks := make(map[netip.Prefix]jetstream.PubAckFuture, len(todo))
	for p, w := range todo {
		m, options, skip := r.message(prefix, p, w)
		if skip {
			continue
		}
		ack, failed := js.PublishMsgAsync(m, options...)
		if failed != nil {
			err = failed
			left[p] = w
			continue
		}
		acks[p] = ack
	}
	for p, ack := range acks {
		select {
		case <-ack.Ok():
		case failed := <-ack.Err():
			err = failed
			left[p] = todo[p]
		case <-ctx.Done():
			left[p] = todo[p]
		}
	}
	return left, err
}

// message is what is written under a key. It goes by itself when the ban is
// over, and so does the marker of one that was ended: who comes back later
// finds neither.
func (r *run) message(prefix string, p netip.Prefix, w want) (m *nats.Msg, options []jetstream.PublishOpt, skip bool) {
	m = nats.NewMsg(prefix + Key(r.o.Settings.Host, p))
	if w.gone {
		m.Header.Set("KV-Operation", "DEL")
	} else {
		value, err := entryOf(w.ban, r.o.Settings.Evidence).encode()
		if err != nil {
			return nil, nil, true // a time that JSON can't write
		}
		m.Data = value
	}
	if !w.ban.Forever() {
		left := w.ban.Until.Sub(r.o.Now())
		if left <= 0 && !w.gone {
			return nil, nil, true
		}
		// JetStream counts whole seconds.
		options = append(options, jetstream.WithMsgTTL(max(left.Truncate(time.Second)+time.Second, time.Second)))
	} else if w.gone {
		options = append(options, jetstream.WithMsgTTL(markerTime))
	}
	return m, options, false
}

// markerTime is how long the end of a ban that had no end is told. A host that
// was away longer and isn't restarted keeps its ban up to max_ban.
const markerTime = 30 * 24 * time.Hour

// greeting is how hosts know of each other.
type greeting struct {
	Instance string `json:"i"`
	Version  string `json:"v"`
	Sent     int64  `json:"t"` // Unix milliseconds
}

func (r *run) subject(what, host string) string {
	return "xdpban." + r.o.Settings.Name + "." + what + "." + host
}

// hello says now and then that this host is there.
func (r *run) hello(ctx context.Context) {
	for {
		text, _ := json.Marshal(greeting{r.instance, r.o.Version, r.o.Now().UnixMilli()}) // strings and a number
		_ = r.nc.Publish(r.subject("hello", r.o.Settings.Host), text)                     // the next one says so, too
		if !pause(ctx, helloTime) {
			return
		}
	}
}

// heard takes another host's greeting.
func (r *run) heard(m *nats.Msg) {
	now := r.o.Now()
	var g greeting
	name := m.Subject[len(r.subject("hello", "")):]
	if json.Unmarshal(m.Data, &g) != nil || len(g.Instance)+len(g.Version) > 128 || !printable(g.Version) {
		return
	}
	if name == r.o.Settings.Host {
		if g.Instance != r.instance {
			r.d.Problem(context.Background(), problemTwin, errors.New("another host of fleet "+r.o.Settings.Name+" is called "+name+", too: each undoes what the other writes; set host = in [fleet]"))
		}
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if h := r.table.host(name); h != nil {
		h.version, h.instance, h.heard, h.lag = g.Version, g.Instance, now, now.Sub(time.UnixMilli(g.Sent))
	}
}
