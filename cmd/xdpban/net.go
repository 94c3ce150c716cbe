package main

import (
	"net"

	"github.com/coreos/go-systemd/v22/activation"

	"xdpban/internal/network"
)

// netCmd makes the internet sockets of a daemon that may not: what may load
// programs into the kernel is better off so.
type netCmd struct{}

func (c *netCmd) Run(a *app) error {
	listeners, err := activation.Listeners()
	if err == nil && len(listeners) == 1 {
		if l, ok := listeners[0].(*net.UnixListener); ok {
			return network.Serve(a.ctx, l)
		}
	}
	return usagef("it is started by xdpban-net.socket, when xdpban looks up a name, connects or listens")
}
