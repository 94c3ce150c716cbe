package source

import (
	"context"
	"time"
)

const (
	// paceEvery is how often a log is looked at that is written to all the
	// time, each line on its own: reading many at once costs little more than
	// reading one.
	paceEvery = 5 * time.Millisecond
	// paceLarge is how often if it brings paceSize bytes and more each time:
	// thousands of lines a second.
	paceLarge = 20 * time.Millisecond
	paceSize  = 8 << 10
	// paceBurst is how many writes in quick succession are read at once, each
	// as it comes.
	paceBurst = 16
)

// pace lets a reader wake up at once, but not all the time: there is a stock of
// wakings, filled up again by one each paceEvery or paceLarge.
type pace struct {
	used int       // of the stock
	from time.Time // since when it is filled up again
	size int       // what the last waking brought
}

// wait is called when the reader has woken up. It returns at once as long as
// there is something in stock.
func (p *pace) wait(ctx context.Context, now time.Time) {
	every := paceEvery
	if p.size >= paceSize {
		every = paceLarge
	}
	p.size = 0
	filled := int(now.Sub(p.from) / every)
	if filled >= p.used {
		p.used, p.from = 0, now
	} else {
		p.used -= filled
		p.from = p.from.Add(time.Duration(filled) * every)
	}
	if p.used++; p.used <= paceBurst {
		return
	}
	t := time.NewTimer(p.from.Add(every).Sub(now))
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
