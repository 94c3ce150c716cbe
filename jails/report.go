package jails

import (
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Report is what another host of the fleet has counted of a source in one jail.
type Report struct {
	Host     string
	Jail     string
	Source   netip.Prefix
	Failures int
	At       time.Time // of the last of them
}

// maxReports bounds what is kept of sources that haven't failed here.
const maxReports = 50_000

// Reported counts what another host has seen as if it had been here, and returns
// the bans that it leads to. It does so for sources that fail here too: until
// one does, its reports are kept apart, where they take no other's room, and
// may be forgotten. So no host alone has another ban somebody that this one has
// never seen, nor makes it forget whom it watches. A jail with an ignorecommand
// bans at the next failure here, when its program can be asked.
func (j *Judge) Reported(r Report, now time.Time) []Ban {
	js := j.jails[r.Jail]
	src := unmap(r.Source)
	if js == nil || js.conf == nil || !js.conf.Enabled || js.conf.WatchesBans || r.Failures <= 0 || bannable(src, MinAuto4, MinAuto6) != nil {
		return nil
	}
	if _, ok := j.immune(js, src); ok || j.elsewhere(js, src) != "" {
		return nil
	}
	at := r.At
	if at.After(now) {
		at = now
	}
	if now.Sub(at) >= js.conf.FindTime {
		return nil
	}
	p := j.offender(js, src)
	t := js.tracks[p]
	e := report{r.Host, at.UnixNano(), min(r.Failures, max(js.conf.MaxRetry, 1))}
	if t == nil || len(t.window) == 0 || len(js.conf.IgnoreCommand) > 0 {
		if t == nil || !t.answered(e.at) {
			j.reports.keep(offence{js.name, p}, e, max(js.conf.MaxRetry, 1))
		}
		return nil
	}
	if t.answered(e.at) {
		return nil
	}
	j.touch(t)
	t.add(e.entry())
	bans := j.judge(t, now, nil)
	t.trim()
	j.enlist(t, now)
	return bans
}

// answered says that the track's last ban is the answer to a failure of that
// time.
func (t *track) answered(at int64) bool {
	return t.ban != nil && (t.ban.until == forever || at < t.ban.until)
}

// offence is a source in a jail.
type offence struct {
	jail   string
	prefix netip.Prefix
}

type report struct {
	host   string
	at     int64
	weight int
}

func (r report) entry() entry {
	return entry{at: r.at, weight: r.weight, line: fmt.Sprintf("%s counted %d", r.host, r.weight)}
}

// reports are those of sources that haven't failed here.
type reports struct {
	of     map[offence][]report
	queues map[string][]queued // by host, the oldest first; some aren't in of any more
	len    int                 // of all queues
}

type queued struct {
	offence
	at int64
}

func newReports() reports {
	return reports{of: map[offence][]report{}, queues: map[string][]queued{}}
}

// keep takes a report, of one offence as many as matter. The host that has most
// gives way.
func (r *reports) keep(o offence, e report, most int) {
	for r.len >= maxReports {
		longest := ""
		for host, q := range r.queues {
			if len(q) > len(r.queues[longest]) {
				longest = host
			}
		}
		r.drop(longest)
	}
	r.queues[e.host] = append(r.queues[e.host], queued{o, e.at})
	r.len++
	list := append(r.of[o], e)
	r.of[o] = list[max(len(list)-most, 0):]
}

// drop forgets the oldest report of a host.
func (r *reports) drop(host string) {
	q := r.queues[host]
	oldest := q[0]
	if q = q[1:]; len(q) == 0 {
		delete(r.queues, host)
	} else {
		r.queues[host] = q
	}
	r.len--
	list := r.of[oldest.offence]
	if i := slices.IndexFunc(list, func(e report) bool { return e.host == host && e.at == oldest.at }); i >= 0 {
		list = slices.Delete(list, i, i+1)
	}
	if len(list) == 0 {
		delete(r.of, oldest.offence)
	} else {
		r.of[oldest.offence] = list
	}
}

// take hands the reports of an offence over.
func (r *reports) take(o offence) []report {
	list := r.of[o]
	delete(r.of, o)
	return list
}

// forget drops what is older than at.
func (r *reports) forget(at int64) {
	for host := range r.queues {
		for len(r.queues[host]) > 0 && r.queues[host][0].at < at {
			r.drop(host)
		}
	}
}
