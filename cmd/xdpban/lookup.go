package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
)

// lookupTime bounds one lookup from either side.
const lookupTime = 10 * time.Second

// maxName is longer than any host name.
const maxName = 1024

// lookupCmd looks up names for a daemon that reaches no other host: what
// may load programs into the kernel is better off so. Each
// connection asks for one name, in a line, and gets an addresses.
type lookupCmd struct{}

// addresses is the answer to one name.
type addresses struct {
	Addrs []netip.Addr `json:"addrs,omitempty"`
	Error string       `json:"error,omitempty"`
}

func (c *lookupCmd) Run(a *app) error {
	listeners, err := activation.Listeners()
	if err != nil || len(listeners) != 1 || listeners[0] == nil {
		return usagef("it is started by xdpban-lookup.socket, when xdpban looks up a name")
	}
	l := listeners[0]
	defer context.AfterFunc(a.ctx, func() { _ = l.Close() })()
	for {
		conn, err := l.Accept()
		if a.ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("wait for names to look up: %w", err)
		}
		go answerLookup(a.ctx, conn, net.DefaultResolver)
	}
}

func answerLookup(ctx context.Context, conn net.Conn, r *net.Resolver) {
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, lookupTime)
	defer cancel()
	_ = conn.SetDeadline(time.Now().Add(lookupTime)) // a stream has deadlines
	name, err := bufio.NewReaderSize(conn, maxName).ReadSlice('\n')
	if err != nil {
		return // who asks knows that it didn't finish
	}
	var answer addresses
	answer.Addrs, err = r.LookupNetIP(ctx, "ip", strings.TrimSuffix(string(name), "\n"))
	if err != nil {
		answer.Error = err.Error()
	}
	_ = json.NewEncoder(conn).Encode(answer) // gone again: nobody to tell
}

// lookupBy asks the process at a socket for the addresses of names; without
// one it looks them up itself.
func lookupBy(socket string) func(context.Context, string) ([]netip.Addr, error) {
	if socket == "" {
		return func(ctx context.Context, name string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", name)
		}
	}
	return func(ctx context.Context, name string) ([]netip.Addr, error) {
		answer, err := askLookup(ctx, socket, name)
		if err != nil {
			return nil, fmt.Errorf("ask %s: %w", socket, err)
		}
		if answer.Error != "" {
			return nil, fmt.Errorf("%s", answer.Error)
		}
		return answer.Addrs, nil
	}
}

func askLookup(ctx context.Context, socket, name string) (answer addresses, err error) {
	// A name comes from a log line too, where jails look names up.
	if strings.ContainsAny(name, "\n\x00") || len(name) >= maxName {
		return answer, fmt.Errorf("%q is no host name", name)
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return answer, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	if _, err := fmt.Fprintln(conn, name); err != nil {
		return answer, err
	}
	err = json.NewDecoder(conn).Decode(&answer)
	if os.IsTimeout(err) && ctx.Err() != nil {
		err = ctx.Err()
	}
	return answer, err
}
