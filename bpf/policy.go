package bpf

import (
	"errors"
	"fmt"
	"time"
)

// Policy is what happens to packets that nothing is known against.
type Policy struct {
	// Deny lets only the allowlist pass, and what a host needs to live:
	// everything that isn't IP (ARP among it), neighbour discovery, multicast
	// listener queries, path MTU messages, DHCP answers, and packets of TCP
	// connections and connected UDP sockets that the host has.
	Deny bool
	// Until is when Deny falls back to allow, in the kernel, unless
	// ConfirmPolicy is called before; zero: never.
	Until time.Time
}

// ErrNothingToConfirm says that no policy on trial is in force.
var ErrNothingToConfirm = errors.New("there is no policy to confirm: it isn't deny, or has fallen back already")

// SetPolicy sets the policy. If it denies and confirmWithin isn't zero, it
// falls back to allow after that time unless it is confirmed: whoever locks
// himself out is let in again, even if no process of ours lives any more.
func (b *Blocklist) SetPolicy(deny bool, confirmWithin time.Duration) error {
	_, unlock, err := b.lock()
	if err != nil {
		return err
	}
	defer unlock()
	meta, err := b.readMeta()
	if err != nil {
		return err
	}
	meta.Features &^= uint32(kernFeatureFEATURE_DENY)
	meta.DenyUntil = 0
	if deny {
		meta.Features |= uint32(kernFeatureFEATURE_DENY)
		if confirmWithin > 0 {
			meta.DenyUntil = uint64(now().mono) + uint64(confirmWithin)
		}
	}
	if err := b.configure(meta); err != nil {
		return fmt.Errorf("set the policy: %w", err)
	}
	return nil
}

// ConfirmPolicy makes a policy that is on trial stay.
func (b *Blocklist) ConfirmPolicy() error {
	_, unlock, err := b.lock()
	if err != nil {
		return err
	}
	defer unlock()
	meta, err := b.readMeta()
	if err != nil {
		return err
	}
	if meta.Features&uint32(kernFeatureFEATURE_DENY) == 0 || meta.DenyUntil != 0 && meta.DenyUntil <= uint64(now().mono) {
		return ErrNothingToConfirm
	}
	meta.DenyUntil = 0
	return b.configure(meta)
}

// Policy is the policy in force.
func (b *Blocklist) Policy() (Policy, error) {
	meta, err := b.readMeta()
	if err != nil {
		return Policy{}, err
	}
	at := now()
	if meta.Features&uint32(kernFeatureFEATURE_DENY) == 0 || meta.DenyUntil != 0 && meta.DenyUntil <= uint64(at.mono) {
		return Policy{}, nil
	}
	p := Policy{Deny: true}
	if meta.DenyUntil != 0 {
		p.Until = at.wall.Add(time.Duration(int64(meta.DenyUntil) - at.mono))
	}
	return p, nil
}
