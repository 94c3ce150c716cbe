package main

import (
	"fmt"
	"io"
	"strconv"

	"xdpban/bpf"
	"xdpban/internal/control"
)

// portCmd works on the pinned maps, daemon or not: a daemon judges sources,
// and leaves the ports to whoever set them.
type portCmd struct {
	Block   portBlockCmd   `cmd:"" help:"Drop everything to these ports, whoever sends it."`
	Unblock portUnblockCmd `cmd:"" help:"Open ports again."`
	List    portListCmd    `cmd:"" default:"1" help:"List blocked ports and what they have dropped."`
}

type portBlockCmd struct {
	Port []string `arg:"" help:"Destination ports with their protocol: 80/udp, 22/tcp."`
}

func parsePorts(args []string) ([]bpf.Port, error) {
	ports := make([]bpf.Port, len(args))
	for i, s := range args {
		p, err := bpf.ParsePort(s)
		if err != nil {
			return nil, usageError{err}
		}
		ports[i] = p
	}
	return ports, nil
}

func (c *portBlockCmd) Run(a *app) error {
	ports, err := parsePorts(c.Port)
	if err != nil {
		return err
	}
	b, err := bpf.Open(a.maps())
	if err != nil {
		return err
	}
	defer b.Close()
	if err := b.BlockPort(ports...); err != nil {
		return err
	}
	if err := a.warnUnattached(&pinned{b}); err != nil {
		return err
	}
	return a.print(map[string][]string{"blocked": c.Port}, func(w io.Writer) {
		for _, p := range ports {
			fmt.Fprintf(w, "blocked %s\n", p)
		}
	})
}

type portUnblockCmd struct {
	Port []string `arg:"" help:"Destination ports with their protocol: 80/udp, 22/tcp."`
}

func (c *portUnblockCmd) Run(a *app) error {
	ports, err := parsePorts(c.Port)
	if err != nil {
		return err
	}
	b, err := bpf.Open(bpf.Options{Dir: a.BPFDir, MustExist: true})
	if err != nil {
		return err
	}
	defer b.Close()
	was := []control.Port{}
	for _, p := range ports {
		old, ok, err := b.UnblockPort(p)
		if err != nil {
			return err
		}
		if ok {
			was = append(was, fromPort(old))
		} else {
			a.warn("%s was not blocked", p)
		}
	}
	err = a.print(map[string][]control.Port{"unblocked": was}, func(w io.Writer) {
		for _, p := range was {
			fmt.Fprintf(w, "unblocked %d/%s (%s dropped)\n", p.Port, p.Protocol, plural(int(p.Packets), "packet"))
		}
	})
	if err == nil && len(was) < len(ports) {
		return errReported
	}
	return err
}

type portListCmd struct{}

func (c *portListCmd) Run(a *app) error {
	bl, err := a.open(false)
	if err != nil {
		return err
	}
	defer bl.Close()
	ports, err := bl.Ports(a.ctx)
	if err != nil {
		return err
	}
	return a.print(ports, func(w io.Writer) { printPorts(w, ports) })
}

func printPorts(w io.Writer, ports []control.Port) {
	t := newTable(w, "PORT", "PACKETS", "BYTES")
	for _, p := range ports {
		t.row(fmt.Sprintf("%d/%s", p.Port, p.Protocol), strconv.FormatUint(p.Packets, 10), strconv.FormatUint(p.Bytes, 10))
	}
	t.flush()
}

func fromPort(p bpf.BlockedPort) control.Port {
	return control.Port{Port: p.Port.Port, Protocol: p.Proto, Packets: p.Packets, Bytes: p.Bytes}
}
