package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os/user"
	"slices"
	"strconv"
	"strings"

	"xdpban/bpf"
	"xdpban/internal/control"
	"xdpban/internal/host"
)

type attachCmd struct {
	Interface []string `arg:"" optional:"" help:"Interfaces; without any, those of the default routes."`
	Mode      string   `help:"How: native, generic, offload, or auto (native, else generic)." enum:"auto,native,generic,offload" default:"auto"`
	Small     bool     `help:"Bound all maps for a machine with little memory: 8192 addresses and 1024 subnets each for IPv4 and IPv6, 4.5 MiB and 454 KiB for each CPU. Maps that exist keep their size."`
	Replace   bool     `help:"Take another XDP program off the interface first."`
	Owner     string   `help:"Give the pinned maps to this user and group." placeholder:"USER:GROUP"`
	PinMode   string   `help:"With --owner: the pins' mode." default:"640" placeholder:"MODE"`
}

// owner reads USER:GROUP and the mode; either part may be a number or empty.
func (c *attachCmd) owner() (uid, gid int, mode fs.FileMode, err error) {
	bits, err := strconv.ParseUint(c.PinMode, 8, 9)
	if err != nil {
		return 0, 0, 0, usagef("--pin-mode %q is no mode; write it like 640", c.PinMode)
	}
	name, group, _ := strings.Cut(c.Owner, ":")
	uid, gid = -1, -1
	if name != "" {
		if uid, err = strconv.Atoi(name); err != nil || uid < 0 {
			u, err := user.Lookup(name)
			if err != nil {
				return 0, 0, 0, usageError{err}
			}
			uid, _ = strconv.Atoi(u.Uid) // a number on Unix
		}
	}
	if group != "" {
		if gid, err = groupID(group); err != nil {
			return 0, 0, 0, usageError{err}
		}
	}
	return uid, gid, fs.FileMode(bits), nil
}

func (c *attachCmd) Run(a *app) error {
	uid, gid, mode, err := c.owner()
	if err != nil {
		return err
	}
	if len(c.Interface) == 0 {
		if c.Interface, err = host.DefaultInterfaces(); err != nil {
			return fmt.Errorf("find the interface to attach to: %w; name one", err)
		}
	}
	o := a.maps()
	if c.Small {
		o = o.Small()
	}
	b, err := bpf.Open(o)
	if err != nil {
		return err
	}
	defer b.Close()
	done := []control.Interface{}
	var failed error
	for _, name := range c.Interface {
		var at bpf.Attachment
		var other *bpf.Foreigner
		if c.Replace {
			at, other, err = b.Replace(name, bpf.Mode(c.Mode))
		} else {
			at, err = b.Attach(name, bpf.Mode(c.Mode))
		}
		if other != nil {
			a.warn("%s: took off the program %s", name, other.String())
		}
		if err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		if c.Mode == "auto" && at.Mode == bpf.ModeGeneric {
			a.warn("%s is in generic mode, which is several times slower than native", name)
		}
		done = append(done, control.Interface{Name: at.Interface, Mode: string(at.Mode)})
	}
	if c.Owner != "" {
		failed = errors.Join(failed, b.SetOwner(uid, gid, mode))
	}
	return errors.Join(failed, a.print(done, func(w io.Writer) {
		for _, i := range done {
			printInterface(w, i)
		}
	}))
}

type detachCmd struct {
	Interface []string `arg:"" optional:"" help:"Interfaces; without any, all."`
	Force     bool     `help:"Even if a daemon runs, which will attach again."`
}

func (c *detachCmd) Run(a *app) error {
	if !c.Force {
		client := control.NewClient(a.Socket)
		defer client.Close()
		s, err := client.Status(a.ctx)
		if err != nil && !errors.Is(err, control.ErrDown) {
			return err
		}
		for _, i := range s.Interfaces {
			if len(c.Interface) == 0 || slices.Contains(c.Interface, i.Name) {
				return fmt.Errorf("the daemon (pid %d) protects %s and would attach again: stop it, or take %s out of interfaces in xdpban.toml and reload", s.PID, i.Name, i.Name)
			}
		}
	}
	b, err := a.openPinned()
	if err != nil {
		return err
	}
	defer b.Close()
	if len(c.Interface) == 0 {
		list, err := b.Attachments()
		if err != nil {
			return err
		}
		for _, at := range list {
			c.Interface = append(c.Interface, at.Interface)
		}
	}
	done := []string{}
	var failed error
	for _, name := range c.Interface {
		if err := b.Detach(name); err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		done = append(done, name)
	}
	return errors.Join(failed, a.print(map[string][]string{"detached": done}, func(w io.Writer) {
		for _, name := range done {
			fmt.Fprintf(w, "%s: detached; bans and counts stay\n", printable(name))
		}
	}))
}
