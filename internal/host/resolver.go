package host

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"
)

// The file that says whom programs ask for names, and the one where
// systemd-resolved says whom it asks in turn.
const (
	resolvConf = "/etc/resolv.conf"
	upstream   = "/run/systemd/resolve/resolv.conf"
)

// Resolvers lists the DNS servers that this host asks, sorted. A server on the
// host itself is left out, and so is one that is link-local: nobody bans them.
func Resolvers() ([]netip.Addr, error) {
	var list []netip.Addr
	for _, path := range []string{resolvConf, upstream} {
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read the DNS servers: %w", err)
		}
		servers, err := parseResolvConf(f)
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("read the DNS servers from %s: %w", path, err)
		}
		list = append(list, servers...)
		if path == resolvConf && !slices.ContainsFunc(servers, netip.Addr.IsLoopback) {
			break
		}
	}
	list = slices.DeleteFunc(list, func(a netip.Addr) bool { return a.IsLoopback() || a.IsLinkLocalUnicast() })
	slices.SortFunc(list, netip.Addr.Compare)
	return slices.Compact(list), nil
}

// parseResolvConf reads the nameserver lines of a resolv.conf(5).
func parseResolvConf(r io.Reader) (servers []netip.Addr, err error) {
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		f := strings.Fields(sc.Text())
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(f[1]); err == nil {
			servers = append(servers, a.Unmap().WithZone(""))
		}
	}
	return servers, sc.Err()
}
