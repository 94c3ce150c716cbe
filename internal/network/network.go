// Package network is how xdpban reaches the network, and is reached. The
// process that loads programs into the kernel makes no internet sockets where
// systemd runs it: it asks another one, which may do nothing else, to look up
// names, to connect and to listen, and is handed the sockets.
package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"
)

// maxTime bounds what is asked of the other process, from either side.
const maxTime = 10 * time.Second

// maxMessage is longer than any request and any answer.
const maxMessage = 16 << 10

// Network makes sockets and looks up names: itself, or by the process that
// listens on Socket.
type Network struct {
	Socket string
}

// request is what the other process is asked for; one of them is set.
type request struct {
	Lookup string `json:"lookup,omitempty"` // a host name
	Dial   string `json:"dial,omitempty"`   // HOST:PORT
	Listen string `json:"listen,omitempty"` // ADDRESS:PORT
}

// answer comes with a socket, but for a lookup's.
type answer struct {
	Addrs []netip.Addr `json:"addrs,omitempty"`
	Error string       `json:"error,omitempty"`
}

// Lookup finds the addresses of a host name.
func (n Network) Lookup(ctx context.Context, name string) ([]netip.Addr, error) {
	if n.Socket == "" {
		return net.DefaultResolver.LookupNetIP(ctx, "ip", name)
	}
	a, _, err := n.ask(ctx, request{Lookup: name})
	return a.Addrs, err
}

// Dial connects to HOST:PORT over TCP, as [net.Dialer.DialContext] does.
func (n Network) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	if n.Socket == "" {
		var d net.Dialer
		return d.DialContext(ctx, network, address)
	}
	if !strings.HasPrefix(network, "tcp") {
		return nil, fmt.Errorf("connect to %s: %s isn't TCP", address, network)
	}
	_, f, err := n.ask(ctx, request{Dial: address})
	if err != nil {
		return nil, err
	}
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", address, err)
	}
	return conn, nil
}

// Listen waits for TCP connections to an address of this host.
func (n Network) Listen(ctx context.Context, at netip.AddrPort) (net.Listener, error) {
	if n.Socket == "" {
		var c net.ListenConfig
		return c.Listen(ctx, "tcp", at.String())
	}
	_, f, err := n.ask(ctx, request{Listen: at.String()})
	if err != nil {
		return nil, err
	}
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", at, err)
	}
	return l, nil
}

func (n Network) ask(ctx context.Context, r request) (answer, *os.File, error) {
	a, f, err := n.exchange(ctx, r)
	switch {
	case err != nil && ctx.Err() != nil:
		err = context.Cause(ctx)
		fallthrough
	case err != nil:
		err = fmt.Errorf("ask %s: %w", n.Socket, err)
	case a.Error != "":
		err = errors.New(a.Error)
	case f == nil && r.Lookup == "":
		err = fmt.Errorf("ask %s: it sent no socket", n.Socket)
	}
	if err != nil && f != nil {
		f.Close()
	}
	return a, f, err
}

func (n Network) exchange(ctx context.Context, r request) (a answer, f *os.File, err error) {
	text, err := json.Marshal(r)
	if err != nil {
		return a, nil, err
	}
	if len(text) > maxMessage {
		return a, nil, fmt.Errorf("a request of %d bytes: at most %d are sent", len(text), maxMessage)
	}
	var d net.Dialer
	stream, err := d.DialContext(ctx, "unix", n.Socket)
	if err != nil {
		return a, nil, err
	}
	conn := stream.(*net.UnixConn)
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	_ = conn.SetDeadline(time.Now().Add(maxTime + time.Second)) // a stream has deadlines
	if _, err := conn.Write(text); err != nil {
		return a, nil, err
	}
	if err := conn.CloseWrite(); err != nil {
		return a, nil, err
	}
	text, f, err = receive(conn)
	if err != nil {
		return a, f, err
	}
	if err := json.Unmarshal(text, &a); err != nil {
		return a, f, fmt.Errorf("its answer %.100q: %w", text, err)
	}
	return a, f, nil
}

// receive reads to the end, and takes one descriptor if one comes along.
func receive(conn *net.UnixConn) (text []byte, f *os.File, err error) {
	part, rights := make([]byte, maxMessage), make([]byte, syscall.CmsgSpace(4))
	for {
		n, nr, _, _, err := conn.ReadMsgUnix(part, rights)
		if nr > 0 && f == nil {
			f, err = descriptor(rights[:nr], err)
		}
		if n > 0 {
			text = append(text, part[:n]...)
		}
		switch {
		case errors.Is(err, io.EOF) && len(text) > 0:
			return text, f, nil
		case err != nil:
			return text, f, err
		case len(text) > maxMessage:
			return nil, f, fmt.Errorf("more than %d bytes", maxMessage)
		}
	}
}

func descriptor(rights []byte, err error) (*os.File, error) {
	messages, perr := syscall.ParseSocketControlMessage(rights)
	if perr != nil || len(messages) == 0 {
		return nil, errors.Join(err, perr)
	}
	fds, perr := syscall.ParseUnixRights(&messages[0])
	if perr != nil || len(fds) == 0 {
		return nil, errors.Join(err, perr)
	}
	syscall.CloseOnExec(fds[0])
	return os.NewFile(uintptr(fds[0]), "a socket"), err
}
