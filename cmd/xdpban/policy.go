package main

import (
	"fmt"
	"io"
	"time"

	"xdpban/bpf"
	"xdpban/internal/control"
	"xdpban/jails"
)

type policyCmd struct {
	Show    policyShowCmd    `cmd:"" default:"1" help:"Say which policy is in force."`
	Deny    policyDenyCmd    `cmd:"" help:"Let only the allowlist in, answers to this host's own connections, and what a host needs to live."`
	Allow   policyAllowCmd   `cmd:"" help:"Let everybody in who isn't banned."`
	Confirm policyConfirmCmd `cmd:"" help:"Keep a policy that is on trial."`
}

type policyDenyCmd struct {
	ConfirmWithin span `help:"Fall back to allow after this time unless xdpban policy confirm is run; forever: no trial." default:"60s" placeholder:"TIME"`
}

func (c *policyDenyCmd) Run(a *app) error {
	b, err := bpf.Open(a.maps())
	if err != nil {
		return err
	}
	defer b.Close()
	allowed, err := b.Allowed()
	if err != nil {
		return err
	}
	if len(allowed) == 0 {
		a.warn("the allowlist is empty: nobody out there will be able to connect (xdpban allow ADDR)")
	}
	trial := time.Duration(c.ConfirmWithin)
	if trial == jails.Forever {
		trial = 0
	}
	if err := b.SetPolicy(true, trial); err != nil {
		return err
	}
	return a.showPolicy(b)
}

type policyAllowCmd struct{}

func (c *policyAllowCmd) Run(a *app) error {
	b, err := bpf.Open(bpf.Options{Dir: a.BPFDir, MustExist: true})
	if err != nil {
		return err
	}
	defer b.Close()
	if err := b.SetPolicy(false, 0); err != nil {
		return err
	}
	return a.showPolicy(b)
}

type policyConfirmCmd struct{}

func (c *policyConfirmCmd) Run(a *app) error {
	b, err := bpf.Open(bpf.Options{Dir: a.BPFDir, MustExist: true})
	if err != nil {
		return err
	}
	defer b.Close()
	if err := b.ConfirmPolicy(); err != nil {
		return err
	}
	return a.showPolicy(b)
}

type policyShowCmd struct{}

func (c *policyShowCmd) Run(a *app) error {
	b, err := bpf.Open(bpf.Options{Dir: a.BPFDir, MustExist: true})
	if err != nil {
		return err
	}
	defer b.Close()
	return a.showPolicy(b)
}

func (a *app) showPolicy(b *bpf.Blocklist) error {
	p, err := b.Policy()
	if err != nil {
		return err
	}
	v := struct {
		Policy string       `json:"policy"`
		Until  control.Time `json:"until"` // when it falls back; null: never
	}{"allow", control.Time{Time: p.Until}}
	if p.Deny {
		v.Policy = "deny"
	}
	return a.print(v, func(w io.Writer) {
		switch {
		case !p.Deny:
			fmt.Fprintln(w, "allow: everybody gets in who isn't banned")
		case p.Until.IsZero():
			fmt.Fprintln(w, "deny: only the allowlist gets in")
		default:
			fmt.Fprintf(w, "deny: only the allowlist gets in, for %s more; keep it with `xdpban policy confirm`\n", left(p.Until, time.Now()))
		}
	})
}
