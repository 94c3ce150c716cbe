package main

import (
	"errors"
	"iter"
	"net/netip"

	"xdpban/bpf"
	"xdpban/internal/control"
	"xdpban/internal/daemon"
	"xdpban/jails"
)

// kernel joins the daemon to the kernel's blocklist.
type kernel struct {
	*bpf.Blocklist
	mode bpf.Mode
}

func toKernel(b jails.Ban) bpf.Ban {
	ban := bpf.Ban{Prefix: b.Prefix, Jail: b.Jail, Since: b.Since, Until: b.Until}
	for _, r := range b.Ports {
		for port := uint32(r.First); port <= uint32(r.Last); port++ {
			ban.Ports = append(ban.Ports, bpf.Port{Proto: r.Proto, Port: uint16(port)})
		}
	}
	return ban
}

func fromKernel(e bpf.Entry) daemon.Entry {
	ban := jails.Ban{Prefix: e.Prefix, Jail: e.Jail, Since: e.Since, Until: e.Until}
	for _, p := range e.Ports {
		n := len(ban.Ports)
		if n > 0 && ban.Ports[n-1].Proto == p.Proto && ban.Ports[n-1].Last+1 == p.Port {
			ban.Ports[n-1].Last = p.Port
		} else {
			ban.Ports = append(ban.Ports, jails.PortRange{First: p.Port, Last: p.Port, Proto: p.Proto})
		}
	}
	return daemon.Entry{Ban: ban, Packets: e.Packets, Bytes: e.Bytes}
}

func fromKernelAll(list []bpf.Entry) []daemon.Entry {
	entries := make([]daemon.Entry, len(list))
	for i, e := range list {
		entries[i] = fromKernel(e)
	}
	return entries
}

func (k kernel) Add(bans []jails.Ban) ([]daemon.Entry, error) {
	list := make([]bpf.Ban, len(bans))
	for i, b := range bans {
		list[i] = toKernel(b)
	}
	_, err := k.AddBatch(list)
	var full *bpf.FullError
	if errors.As(err, &full) {
		gaveUp := fromKernelAll(full.GivenUp)
		if err == error(full) {
			err = nil
		}
		return gaveUp, err
	}
	return nil, err
}

func (k kernel) Remove(p netip.Prefix) (daemon.Entry, bool, error) {
	e, ok, err := k.Blocklist.Remove(p)
	return fromKernel(e), ok, err
}

func (k kernel) List() iter.Seq2[daemon.Entry, error] {
	return func(yield func(daemon.Entry, error) bool) {
		for e, err := range k.Blocklist.List() {
			if !yield(fromKernel(e), err) {
				return
			}
		}
	}
}

func (k kernel) Covering(p netip.Prefix) ([]daemon.Entry, error) {
	list, err := k.Blocklist.Covering(p)
	return fromKernelAll(list), err
}

func (k kernel) Sweep() ([]daemon.Entry, error) {
	list, err := k.Blocklist.Sweep()
	return fromKernelAll(list), err
}

func (k kernel) Stats() (control.Stats, error) { return kernelStats(k.Blocklist) }

func (k kernel) Ports() ([]control.Port, error) {
	list, err := k.BlockedPorts()
	ports := make([]control.Port, len(list))
	for i, p := range list {
		ports[i] = fromPort(p)
	}
	return ports, err
}

func (k kernel) SetAllow(list []daemon.Allow) error {
	allow := make([]bpf.Allow, len(list))
	for i, a := range list {
		allow[i] = bpf.Allow(a)
	}
	return k.Blocklist.SetAllow(allow...)
}

func (k kernel) Allowed() ([]daemon.Allow, error) {
	list, err := k.Blocklist.Allowed()
	allow := make([]daemon.Allow, len(list))
	for i, a := range list {
		allow[i] = daemon.Allow(a)
	}
	return allow, err
}

func (k kernel) Attach(iface string) (mode string, changed bool, err error) {
	before, err := k.Attachments()
	if err != nil {
		return "", false, err
	}
	a, err := k.Blocklist.Attach(iface, k.mode)
	if err != nil {
		return "", false, err
	}
	changed = true
	for _, was := range before {
		if was.Interface == a.Interface && was.Index == a.Index && !was.Severed {
			changed = false
		}
	}
	return string(a.Mode), changed, nil
}
