package control

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrRunning says that a live daemon holds the socket.
var ErrRunning = errors.New("already running")

// Socket says where the API listens and who may use it. Root and the
// socket's owner may do everything. Members of its group may read, if Mode
// lets the group write to the socket (which is what connecting needs), and
// so may everybody else if it lets them.
type Socket struct {
	Path     string
	UID, GID int         // owner and group; -1: the daemon's own
	Mode     fs.FileMode // 0: 0660
	// GroupWrites lets members of the group ban, unban and reload, too.
	GroupWrites bool
}

// Peer is who is at the other end of a connection, by the kernel's word.
type Peer struct {
	PID      int
	UID, GID uint32
	Groups   []uint32 // supplementary
}

// maxPerUser bounds the connections one user other than root may hold open,
// so that a reader can't use up the daemon's descriptors.
const maxPerUser = 32

// Listener accepts connections on the API's socket and knows their peers.
type Listener struct {
	*net.UnixListener
	socket Socket
	mu     sync.Mutex
	open   map[uint32]int // connections by uid
}

// Listen makes the socket. One that a dead daemon left behind is replaced;
// a live one's is an error that wraps ErrRunning and names its pid, and
// anything else at that path is left alone.
func Listen(s Socket) (*Listener, error) {
	if s.Mode == 0 {
		s.Mode = 0o660
	}
	if err := os.MkdirAll(filepath.Dir(s.Path), 0o755); err != nil {
		return nil, fmt.Errorf("making the socket's folder: %w", err)
	}
	if err := removeStale(s.Path); err != nil {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: s.Path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listening on %s: %w", s.Path, err)
	}
	// Between bind and chmod the umask decides who connects; access holds
	// all the same, since it is checked against s and not against the file.
	if err := s.own(); err != nil {
		_ = l.Close() // the first error tells
		return nil, fmt.Errorf("setting owner and mode of the socket: %w", err)
	}
	if s.UID < 0 {
		s.UID = os.Geteuid()
	}
	if s.GID < 0 {
		s.GID = os.Getegid()
	}
	return &Listener{UnixListener: l, socket: s, open: map[uint32]int{}}, nil
}

// own gives the socket its owner, group and mode.
func (s Socket) own() error {
	if err := os.Chmod(s.Path, s.Mode); err != nil {
		return err
	}
	err := os.Chown(s.Path, s.UID, s.GID)
	if !errors.Is(err, unix.EPERM) || s.UID >= 0 {
		return err
	}
	// A daemon without CAP_CHOWN, as its unit starts it, can't give its files
	// to a group; but the owner may write an access control list, see acl(5).
	const (
		version                              = 2
		userObj, groupObj, group, mask, rest = 0x01, 0x04, 0x08, 0x10, 0x20
		nobody                               = 0xffffffff
	)
	bits := func(shift int) uint16 { return uint16(s.Mode>>shift) & 7 }
	acl := binary.LittleEndian.AppendUint32(nil, version)
	for _, e := range []struct {
		tag, bits uint16
		id        uint32
	}{
		{userObj, bits(6), nobody},
		{groupObj, 0, nobody},
		{group, bits(3), uint32(s.GID)},
		{mask, bits(3), nobody},
		{rest, bits(0), nobody},
	} {
		acl = binary.LittleEndian.AppendUint16(acl, e.tag)
		acl = binary.LittleEndian.AppendUint16(acl, e.bits)
		acl = binary.LittleEndian.AppendUint32(acl, e.id)
	}
	if aclErr := unix.Setxattr(s.Path, "system.posix_acl_access", acl, 0); aclErr != nil {
		return fmt.Errorf("%w; nor by an access control list: %w", err, aclErr)
	}
	return nil
}

func removeStale(path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("looking at the socket: %w", err)
	}
	if st.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s is in the way: it isn't a socket", path)
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		defer c.Close()
		if p, err := peerOf(c.(*net.UnixConn)); err == nil {
			return fmt.Errorf("%w (pid %d holds %s)", ErrRunning, p.PID, path)
		}
		return fmt.Errorf("%w (at %s)", ErrRunning, path)
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("%w? probing %s: %w", ErrRunning, path, err)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("removing a stale socket: %w", err)
	}
	return nil
}

// Accept waits for the next connection whose peer is known and within its
// limit.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		p, err := peerOf(c)
		if err != nil || !l.enter(p.UID) {
			_ = c.Close() // the peer sees it; there is nobody else to tell
			continue
		}
		return &conn{UnixConn: c, peer: p, leave: sync.OnceFunc(func() { l.left(p.UID) })}, nil
	}
}

func (l *Listener) enter(uid uint32) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if uid != 0 && l.open[uid] >= maxPerUser {
		return false
	}
	l.open[uid]++
	return true
}

func (l *Listener) left(uid uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[uid]--; l.open[uid] == 0 {
		delete(l.open, uid)
	}
}

// conn is a connection that knows its peer.
type conn struct {
	*net.UnixConn
	peer  Peer
	leave func()
}

func (c *conn) Close() error {
	c.leave()
	return c.UnixConn.Close()
}

// peerOf asks the kernel who made the connection (or, of a client's
// connection, who listens).
func peerOf(c *net.UnixConn) (Peer, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return Peer{}, err
	}
	var p Peer
	var inner error
	err = raw.Control(func(fd uintptr) {
		var cred *unix.Ucred
		cred, inner = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		if inner != nil {
			return
		}
		p = Peer{PID: int(cred.Pid), UID: cred.Uid, GID: cred.Gid}
		p.Groups, inner = peerGroups(int(fd))
	})
	return p, errors.Join(err, inner)
}

// peerGroups reads SO_PEERGROUPS, for which x/sys has no call.
func peerGroups(fd int) ([]uint32, error) {
	groups := make([]uint32, 32)
	for {
		size := uint32(len(groups) * 4)
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case errno == unix.ERANGE && int(size) > len(groups)*4:
			groups = make([]uint32, size/4)
		case errno != 0:
			return nil, errno
		default:
			return groups[:size/4], nil
		}
	}
}

// mayRead and mayWrite are the whole of the access rule.
func (s Socket) mayWrite(p Peer) bool {
	return p.UID == 0 || p.UID == uint32(s.UID) || s.GroupWrites && s.member(p)
}

func (s Socket) mayRead(p Peer) bool {
	return s.mayWrite(p) || s.Mode&0o020 != 0 && s.member(p) || s.Mode&0o002 != 0
}

func (s Socket) member(p Peer) bool {
	return p.GID == uint32(s.GID) || slices.Contains(p.Groups, uint32(s.GID))
}

type peerKey struct{}

// Serve answers requests on l until ctx ends, then lets those under way
// finish for a moment and removes the socket. Each change that somebody asks
// for is logged with who it is.
func Serve(ctx context.Context, l *Listener, d Daemon, log *slog.Logger) error {
	srv := &http.Server{
		Handler:           newHandler(d, l.socket, log),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       time.Minute,
		WriteTimeout:      5 * time.Minute,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, peerKey{}, c.(*conn).peer)
		},
	}
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		grace, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		if srv.Shutdown(grace) != nil {
			_ = srv.Close() // those that are still there had their time
		}
	})
	err := srv.Serve(l)
	if !stop() {
		<-done
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serving %s: %w", l.socket.Path, err)
}
