package main

import (
	"errors"
	"iter"
	"net/netip"
	"sync/atomic"

	"xdpban/bpf"
	"xdpban/internal/control"
	"xdpban/internal/daemon"
	"xdpban/jails"
)

// kernel joins the daemon to the kernel's blocklist.
type kernel struct {
	// list is another one after Mend, while callers go on with the last.
	list    atomic.Pointer[bpf.Blocklist]
	options bpf.Options
	mode    bpf.Mode
	// changes counts what was done to the list, each once it is done.
	changes atomic.Uint64
}

func openKernel(o bpf.Options, mode bpf.Mode) (*kernel, error) {
	b, err := bpf.Open(o)
	if err != nil {
		return nil, err
	}
	k := &kernel{options: o, mode: mode}
	k.list.Store(b)
	return k, nil
}

func (k *kernel) Close() error { return k.list.Load().Close() }

// Mend implements daemon.Blocklist.
func (k *kernel) Mend() (lost error, err error) {
	old := k.list.Load()
	err = old.Pinned()
	if !errors.Is(err, bpf.ErrUnpinned) {
		return nil, err
	}
	b, openErr := bpf.Open(k.options)
	if openErr != nil {
		return nil, errors.Join(err, openErr)
	}
	k.list.Store(b)
	k.changes.Add(1)
	return err, old.Close()
}

func (k *kernel) Epoch() uint64 { return k.list.Load().Epoch() }

func (k *kernel) RemoveAllow(p netip.Prefix) (bool, error) { return k.list.Load().RemoveAllow(p) }

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

func (k *kernel) Add(bans []jails.Ban) ([]daemon.Entry, error) {
	list := make([]bpf.Ban, len(bans))
	for i, b := range bans {
		list[i] = toKernel(b)
	}
	defer k.changes.Add(1)
	_, err := k.list.Load().AddBatch(list)
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

func (k *kernel) RemoveBatch(list []netip.Prefix) ([]daemon.Entry, error) {
	defer k.changes.Add(1)
	were, err := k.list.Load().RemoveBatch(list)
	return fromKernelAll(were), err
}

func (k *kernel) List() iter.Seq2[daemon.Entry, error] {
	return func(yield func(daemon.Entry, error) bool) {
		for e, err := range k.list.Load().List() {
			if !yield(fromKernel(e), err) {
				return
			}
		}
	}
}

func (k *kernel) Covering(p netip.Prefix) ([]daemon.Entry, error) {
	list, err := k.list.Load().Covering(p)
	return fromKernelAll(list), err
}

func (k *kernel) Sweep() ([]daemon.Entry, error) {
	list, err := k.list.Load().Sweep()
	if len(list) > 0 {
		k.changes.Add(1)
	}
	return fromKernelAll(list), err
}

func (k *kernel) Stats() (control.Stats, error) { return kernelStats(k.list.Load()) }

func (k *kernel) Ports() ([]control.Port, error) { return blockedPorts(k.list.Load()) }

func blockedPorts(b *bpf.Blocklist) ([]control.Port, error) {
	list, err := b.BlockedPorts()
	ports := make([]control.Port, len(list))
	for i, p := range list {
		ports[i] = fromPort(p)
	}
	return ports, err
}

func (k *kernel) SetAllow(list []daemon.Allow) error {
	allow := make([]bpf.Allow, len(list))
	for i, a := range list {
		allow[i] = bpf.Allow(a)
	}
	return k.list.Load().SetAllow(allow...)
}

func (k *kernel) Allowed() ([]daemon.Allow, error) {
	list, err := k.list.Load().Allowed()
	allow := make([]daemon.Allow, len(list))
	for i, a := range list {
		allow[i] = daemon.Allow(a)
	}
	return allow, err
}

func (k *kernel) Attach(iface string) (mode string, changed bool, err error) {
	before, err := k.list.Load().Attachments()
	if err != nil {
		return "", false, err
	}
	a, err := k.list.Load().Attach(iface, k.mode)
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
