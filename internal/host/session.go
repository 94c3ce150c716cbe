package host

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"strings"

	"github.com/coreos/go-systemd/v22/login1"
)

// SessionPeers lists the addresses from which users are logged in now: the
// remote hosts that logind or utmp record, as far as a TCP connection from
// there is established. A record alone isn't enough (a crash leaves utmp
// stale), nor is a connection (every attacker has one before he logs in).
func SessionPeers(ctx context.Context) ([]netip.Addr, error) {
	logged, err := loggedIn(ctx)
	if err != nil {
		return nil, err
	}
	if len(logged) == 0 {
		return nil, nil
	}
	var peers []netip.Addr
	for _, table := range []string{"/proc/self/net/tcp", "/proc/self/net/tcp6"} {
		f, err := os.Open(table)
		if errors.Is(err, fs.ErrNotExist) { // a kernel without IPv6
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read established connections: %w", err)
		}
		established, err := parseEstablished(f)
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("read established connections from %s: %w", table, err)
		}
		for _, a := range established {
			if logged[a] {
				peers = append(peers, a)
				delete(logged, a)
			}
		}
	}
	return peers, nil
}

func loggedIn(ctx context.Context) (map[netip.Addr]bool, error) {
	logged := map[netip.Addr]bool{}
	// Without logind (no systemd, no D-Bus) utmp has to do; Debian 13 has no
	// utmp any more, so either may be missing.
	if conn, err := login1.New(); err == nil {
		defer conn.Close()
		sessions, err := conn.ListSessionsContext(ctx)
		if err == nil {
			for _, s := range sessions {
				prop, err := conn.GetSessionPropertyContext(ctx, s.Path, "RemoteHost")
				if err != nil {
					continue // the session ended meanwhile
				}
				if host, ok := prop.Value().(string); ok {
					if a, err := netip.ParseAddr(host); err == nil {
						logged[a.Unmap().WithZone("")] = true
					}
				}
			}
		}
	}
	f, err := os.Open("/run/utmp")
	if errors.Is(err, fs.ErrNotExist) {
		return logged, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read logged-in users: %w", err)
	}
	defer f.Close()
	addrs, err := parseUtmp(f)
	if err != nil {
		return nil, fmt.Errorf("read logged-in users from /run/utmp: %w", err)
	}
	for _, a := range addrs {
		logged[a] = true
	}
	return logged, nil
}

// The layout of glibc's struct utmp, the same on every Linux architecture
// that pads it to 384 bytes (see utmp(5)).
const (
	utmpSize     = 384
	utmpAddrAt   = 348 // ut_addr_v6, 16 bytes in network order; IPv4 in the first 4
	userProcess  = 7
	utmpAddrSize = 16
)

func parseUtmp(r io.Reader) ([]netip.Addr, error) {
	var addrs []netip.Addr
	rec := make([]byte, utmpSize)
	for {
		_, err := io.ReadFull(r, rec)
		if err == io.EOF || err == io.ErrUnexpectedEOF { // a record half written
			return addrs, nil
		}
		if err != nil {
			return nil, err
		}
		if binary.NativeEndian.Uint16(rec) != userProcess {
			continue
		}
		raw := [utmpAddrSize]byte(rec[utmpAddrAt:])
		var a netip.Addr
		if [12]byte(raw[4:]) == [12]byte{} {
			a = netip.AddrFrom4([4]byte(raw[:4]))
		} else {
			a = netip.AddrFrom16(raw).Unmap()
		}
		if !a.IsUnspecified() {
			addrs = append(addrs, a)
		}
	}
}

// parseEstablished reads the remote addresses of established connections
// from /proc/net/tcp or tcp6 (proc_net_tcp in the kernel's documentation):
// each 32-bit word of an address is printed in host order.
func parseEstablished(r io.Reader) ([]netip.Addr, error) {
	const established = "01"
	var addrs []netip.Addr
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		f := strings.Fields(sc.Text())
		if len(f) < 4 || f[3] != established {
			continue
		}
		word, _, ok := strings.Cut(f[2], ":")
		if !ok {
			return nil, fmt.Errorf("remote address %q has no port", f[2])
		}
		b, err := hex.DecodeString(word)
		if err != nil || len(b)%4 != 0 {
			return nil, fmt.Errorf("remote address %q is not hexadecimal words", f[2])
		}
		for i := 0; i < len(b); i += 4 {
			binary.NativeEndian.PutUint32(b[i:], binary.BigEndian.Uint32(b[i:]))
		}
		if a, ok := netip.AddrFromSlice(b); ok {
			addrs = append(addrs, a.Unmap())
		}
	}
	return addrs, sc.Err()
}
