package hook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// idle is how long Serve waits for the next program before it ends: its process
// needn't be there in between.
const idle = time.Minute

const (
	// maxRequest is longer than any request: lines of evidence are bounded.
	maxRequest = 1 << 20
	// requestTime bounds sending a request and an answer.
	requestTime = 10 * time.Second
)

// answer says what became of a program; nothing: it ended well.
type answer struct {
	Error string `json:"error,omitempty"`
	Time  bool   `json:"time,omitempty"` // it took too long
}

// Serve runs the programs that it is asked to on a listener, until ctx ends or
// nobody has asked for a minute. It is for a process that may do nothing that a
// hook mustn't.
func Serve(ctx context.Context, l *net.UnixListener) error { return serve(ctx, l, idle) }

func serve(ctx context.Context, l *net.UnixListener, idle time.Duration) error {
	var busy sync.WaitGroup
	defer busy.Wait()
	ctx, end := context.WithCancel(ctx)
	defer end()
	defer context.AfterFunc(ctx, func() { _ = l.SetDeadline(time.Unix(1, 0)) })()
	for {
		_ = l.SetDeadline(time.Now().Add(idle)) // a listener has deadlines
		if ctx.Err() != nil {
			return nil
		}
		conn, err := l.AcceptUnix()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil
		case err != nil:
			return fmt.Errorf("wait for hooks: %w", err)
		}
		busy.Go(func() { respond(ctx, conn) })
	}
}

// respond runs one program, which ends with the connection.
func respond(ctx context.Context, conn *net.UnixConn) {
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	_ = conn.SetDeadline(time.Now().Add(requestTime)) // a stream has deadlines
	var p program
	dec := json.NewDecoder(io.LimitReader(conn, maxRequest))
	err := dec.Decode(&p)
	switch {
	case err != nil:
		err = fmt.Errorf("the request: %w", err)
	case len(p.Args) == 0 || p.Args[0] == "":
		err = errors.New("no program is named")
	default:
		_ = conn.SetDeadline(time.Time{})
		go func() { // who asked is gone
			_, _ = io.Copy(io.Discard, conn)
			cancel()
		}()
		err = p.run(ctx, bare)
	}
	var a answer
	if err != nil {
		a = answer{err.Error(), errors.Is(err, ErrTime)}
	}
	_ = conn.SetWriteDeadline(time.Now().Add(requestTime))
	_ = json.NewEncoder(conn).Encode(a) // a peer that is gone is nobody to tell
}

// ask has the process that listens on a socket run a program.
func (p program) ask(ctx context.Context, socket string) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("ask %s: %w", socket, err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	_ = conn.SetDeadline(time.Now().Add(p.Limit + requestTime)) // a stream has deadlines
	var a answer
	err = json.NewEncoder(conn).Encode(p)
	if err == nil {
		err = json.NewDecoder(io.LimitReader(conn, maxRequest)).Decode(&a)
	}
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return fmt.Errorf("ask %s: %w", socket, err)
	case a.Time:
		return fmt.Errorf("%w (%s)", ErrTime, a.Error)
	case a.Error != "":
		return errors.New(a.Error)
	}
	return nil
}
