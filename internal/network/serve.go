package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
)

// idle is how long Serve waits for the next request before it ends: its
// process needn't be there in between.
const idle = time.Minute

// Serve does what [Network]s ask for on a listener, until ctx ends or nobody
// has asked for a minute. What it makes for them is theirs: its end is no end
// of their connections.
func Serve(ctx context.Context, l *net.UnixListener) error {
	return serve(ctx, l, idle)
}

func serve(ctx context.Context, l *net.UnixListener, idle time.Duration) error {
	var busy sync.WaitGroup
	defer busy.Wait()
	defer context.AfterFunc(ctx, func() { _ = l.SetDeadline(time.Unix(1, 0)) })()
	for {
		_ = l.SetDeadline(time.Now().Add(idle)) // a listener has deadlines
		if ctx.Err() != nil {
			return nil
		}
		conn, err := l.AcceptUnix()
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil
		case err != nil:
			return fmt.Errorf("wait for requests: %w", err)
		}
		busy.Go(func() { respond(ctx, conn) })
	}
}

// respond answers one request. A peer that is gone again is nobody to tell.
func respond(ctx context.Context, conn *net.UnixConn) {
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, maxTime)
	defer cancel()
	_ = conn.SetDeadline(time.Now().Add(maxTime)) // a stream has deadlines
	text, f, err := receive(conn)
	if f != nil {
		f.Close()
	}
	if err != nil {
		return
	}
	var r request
	var a answer
	var rights []byte
	if err := json.Unmarshal(text, &r); err != nil {
		a.Error = fmt.Sprintf("the request %.100q: %v", text, err)
	} else if s, err := do(ctx, r, &a); err != nil {
		a.Error = err.Error()
	} else if s != nil {
		defer s.Close()
		rights = syscall.UnixRights(int(s.Fd()))
	}
	if text, err = json.Marshal(a); err == nil {
		_, _, _ = conn.WriteMsgUnix(text, rights, nil)
	}
}

// do does what is asked for, and returns the socket to hand over, if any.
func do(ctx context.Context, r request, a *answer) (f *os.File, err error) {
	switch {
	case r.Lookup != "":
		a.Addrs, err = net.DefaultResolver.LookupNetIP(ctx, "ip", r.Lookup)
		return nil, err
	case r.Dial != "":
		var d net.Dialer
		conn, err := d.DialContext(ctx, "tcp", r.Dial)
		if err != nil {
			return nil, err
		}
		defer conn.Close()
		return conn.(*net.TCPConn).File()
	case r.Listen != "":
		at, err := netip.ParseAddrPort(r.Listen)
		if err != nil {
			return nil, err
		}
		l, err := Network{}.Listen(ctx, at)
		if err != nil {
			return nil, err
		}
		defer l.Close()
		return l.(*net.TCPListener).File()
	}
	return nil, errors.New("nothing is asked for")
}
