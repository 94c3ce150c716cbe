package daemon

import "time"

// backlogLag is how far behind a stream is that has a backlog: less is the
// clock of another machine, or a busy moment.
const backlogLag = time.Minute

// backlogTold is how often the log says how far reading one is.
const backlogTold = 30 * time.Second

// backlogStalls is how many looks in a row a backlog may come no nearer.
const backlogStalls = 10

// backlog is how a stream catches up with the present.
type backlog struct {
	at    time.Time // when it was looked at last; zero: never
	lag   time.Duration
	lines uint64
	left  time.Duration // until its end; 0: it doesn't come nearer
	looks int           // in a row that it came nearer; negative: that it didn't

	since time.Time // when it began; zero: there is none
	from  uint64    // the lines before
	told  time.Time
}

// look compares with the last time, about a second ago. A log whose clock is
// wrong is far behind, too, but stays so: only what comes nearer than time goes
// by is a backlog.
func (b *backlog) look(now time.Time, lag time.Duration, lines uint64) {
	passed, gained := now.Sub(b.at), b.lag-lag
	b.left = 0
	if !b.at.IsZero() && passed > 0 && lines > b.lines && lag >= backlogLag && gained >= passed {
		b.left = time.Duration(float64(lag) / (float64(gained) / float64(passed)))
		b.looks = max(b.looks, 0) + 1
	} else {
		b.looks = min(b.looks, 0) - 1
	}
	b.at, b.lag, b.lines = now, lag, lines
}

// catchUp says how far each stream is that has a backlog.
func (d *Daemon) catchUp() {
	now := d.o.Now()
	d.backlogs = 0
	for name, s := range d.streams {
		b := &s.backlog
		before := b.lines
		b.look(now, s.lag, s.stats.Lines)
		switch {
		case b.since.IsZero():
			if b.looks >= 2 {
				b.since, b.from, b.told = now, before, now
				d.log.Info("reading a backlog: "+name, "event", EventBacklog, "behind", round(s.lag), "left", round(b.left))
			}
		case s.lag < backlogLag || b.lines == before || b.looks <= -backlogStalls:
			d.log.Info("the backlog is read: "+name, "event", EventCurrent, "lines", b.lines-b.from, "took", round(now.Sub(b.since)))
			b.since = time.Time{}
		case b.left > 0 && now.Sub(b.told) >= backlogTold:
			b.told = now
			d.log.Info("still reading the backlog: "+name, "event", EventBacklog, "behind", round(s.lag), "left", round(b.left), "lines", b.lines-b.from)
		}
		if !b.since.IsZero() || b.looks > 0 {
			d.backlogs++
		}
	}
}

func round(t time.Duration) time.Duration { return t.Round(time.Second) }
