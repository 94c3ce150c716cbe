// Package host reads the facts of the machine that bear on who may be banned
// and where: its own addresses, its interfaces, its default route, and who is
// logged in over SSH. It imports nothing of xdpban's own.
package host

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Addrs lists the host's own addresses as full-length prefixes, loopback
// included, sorted.
func Addrs() ([]netip.Prefix, error) {
	list, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list own addresses: %w", err)
	}
	var own []netip.Prefix
	for _, a := range list {
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			ip = ip.Unmap()
			own = append(own, netip.PrefixFrom(ip, ip.BitLen()))
		}
	}
	slices.SortFunc(own, netip.Prefix.Compare)
	return slices.Compact(own), nil
}

// ErrNoDefaultRoute says that no interface leads to the Internet.
var ErrNoDefaultRoute = errors.New("no default route")

// defaultRoutes lists the default routes of the main table, IPv4's before
// IPv6's, lowest metric first.
func defaultRoutes() ([]netlink.Route, error) {
	var all []netlink.Route
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		routes = slices.DeleteFunc(routes, func(r netlink.Route) bool {
			if r.Dst == nil {
				return false
			}
			ones, _ := r.Dst.Mask.Size()
			return ones != 0
		})
		slices.SortStableFunc(routes, func(a, b netlink.Route) int { return a.Priority - b.Priority })
		all = append(all, routes...)
	}
	return all, nil
}

// DefaultInterfaces names the interfaces of the default routes, IPv4's and
// IPv6's, lowest metric first, each once.
func DefaultInterfaces() ([]string, error) {
	routes, err := defaultRoutes()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, r := range routes {
		indexes := []int{r.LinkIndex}
		for _, hop := range r.MultiPath {
			indexes = append(indexes, hop.LinkIndex)
		}
		for _, index := range indexes {
			if index == 0 {
				continue
			}
			link, err := netlink.LinkByIndex(index)
			if err != nil {
				return nil, fmt.Errorf("look up interface %d of the default route: %w", index, err)
			}
			if name := link.Attrs().Name; !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	if len(names) == 0 {
		return nil, ErrNoDefaultRoute
	}
	return names, nil
}

// Gateways lists the gateways of the default routes, sorted, but for
// link-local ones, which nobody bans.
func Gateways() ([]netip.Addr, error) {
	routes, err := defaultRoutes()
	if err != nil {
		return nil, err
	}
	var list []netip.Addr
	add := func(gw net.IP, via netlink.Destination) {
		if v, ok := via.(*netlink.Via); ok {
			gw = v.Addr
		}
		if a, ok := netip.AddrFromSlice(gw); ok && !a.IsUnspecified() && !a.IsLinkLocalUnicast() {
			list = append(list, a.Unmap())
		}
	}
	for _, r := range routes {
		add(r.Gw, r.Via)
		for _, hop := range r.MultiPath {
			add(hop.Gw, hop.Via)
		}
	}
	slices.SortFunc(list, netip.Addr.Compare)
	return slices.Compact(list), nil
}

// Watch calls changed after addresses, links or routes change, once per burst
// of changes, until ctx ends. It returns an error if the kernel's notifications
// can't be had or stop.
func Watch(ctx context.Context, changed func()) error {
	done := make(chan struct{})
	defer close(done)
	failed := make(chan error, 3)
	onError := func(err error) {
		select {
		case failed <- err:
		default:
		}
	}
	addrs := make(chan netlink.AddrUpdate, 64)
	if err := netlink.AddrSubscribeWithOptions(addrs, done, netlink.AddrSubscribeOptions{ErrorCallback: onError}); err != nil {
		return fmt.Errorf("subscribe to address changes: %w", err)
	}
	links := make(chan netlink.LinkUpdate, 64)
	if err := netlink.LinkSubscribeWithOptions(links, done, netlink.LinkSubscribeOptions{ErrorCallback: onError}); err != nil {
		return fmt.Errorf("subscribe to link changes: %w", err)
	}
	routes := make(chan netlink.RouteUpdate, 64)
	if err := netlink.RouteSubscribeWithOptions(routes, done, netlink.RouteSubscribeOptions{ErrorCallback: onError}); err != nil {
		return fmt.Errorf("subscribe to route changes: %w", err)
	}
	// One change of an interface arrives as several messages.
	const burst = 50 * time.Millisecond
	var settle <-chan time.Time
	for {
		var open bool
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			return fmt.Errorf("follow network changes: %w", err)
		case _, open = <-addrs:
		case _, open = <-links:
		case _, open = <-routes:
		case <-settle:
			settle = nil
			changed()
			continue
		}
		if !open {
			select {
			case err := <-failed:
				return fmt.Errorf("follow network changes: %w", err)
			default:
				return errors.New("follow network changes: the kernel's notifications ended")
			}
		}
		if settle == nil {
			settle = time.After(burst)
		}
	}
}
