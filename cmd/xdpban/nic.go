package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"slices"
	"unsafe"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"xdpban/bpf"
	"xdpban/internal/control"
)

func checkInterface(a *app, name string) []finding {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return []finding{{name, levelFail, err.Error(), "see `ip link` for what there is"}}
	}
	at := link.Attrs()
	f := []finding{judgeLink(link, driverOf(name))}
	if at.MasterIndex != 0 {
		if master, err := netlink.LinkByIndex(at.MasterIndex); err == nil && master.Type() == "bond" {
			f = append(f, finding{name + " bond", levelWarn, "belongs to " + master.Attrs().Name, "attach to the bond"})
		}
	}
	if flags, err := ethtoolFlags(name); err == nil {
		f = append(f, judgeLRO(name, flags)...)
	}
	f = append(f, checkDriver(at))
	if at.Xdp != nil && at.Xdp.Attached {
		f = append(f, checkHolder(a, name))
	}
	return f
}

func judgeLink(link netlink.Link, driver string) finding {
	at := link.Attrs()
	what := fmt.Sprintf("%s, MTU %d", driver, at.MTU)
	switch {
	case at.Flags&net.FlagLoopback != 0:
		return finding{at.Name, levelWarn, what + ", loopback", "generic XDP only; nobody out there is seen on it"}
	case link.Type() == "vlan":
		return finding{at.Name, levelWarn, what + ", a VLAN", "generic XDP only: attach to the interface below, tags are walked"}
	case at.Flags&net.FlagUp == 0:
		return finding{at.Name, levelWarn, what + ", down", "ip link set " + at.Name + " up"}
	}
	return finding{at.Name, levelOK, what, ""}
}

func checkDriver(at *netlink.LinkAttrs) finding {
	release, err := linux()
	if err != nil {
		return finding{at.Name + " native XDP", levelWarn, err.Error(), ""}
	}
	can, err := xdpFeatures(at.Index)
	return judgeDriver(at.Name, at.MTU, release, can, err)
}

// judgeDriver says what the driver can do with XDP, and whether the MTU is in
// its way. err is why it couldn't be asked.
func judgeDriver(name string, mtu int, release string, can uint64, err error) finding {
	check := name + " native XDP"
	asked := err == nil
	// A driver that can't take a packet in several buffers wants it in a
	// page, along with 256 bytes ahead of it and the kernel's notes behind.
	const pageMTU = 3498
	large := mtu > pageMTU
	tooLarge := finding{check, levelWarn, fmt.Sprintf("refused with an MTU of %d: generic XDP is used, which is several times slower", mtu),
		fmt.Sprintf("ip link set %s mtu %d, or live with it", name, pageMTU)}
	switch {
	case asked && can&xdpBasic == 0:
		return finding{check, levelWarn, "the driver has none: generic XDP is used, which is several times slower", "a network card whose driver has it"}
	case large && (!newer(release, 5, 18) || asked && can&xdpFragments == 0):
		return tooLarge
	case !asked && newer(release, 6, 3):
		return finding{check, levelWarn, "the kernel doesn't say: " + err.Error(), "xdpban attach tries"}
	case !asked:
		return finding{check, levelOK, "no driver tells before Linux 6.3; xdpban attach tries", ""}
	case can&xdpFragments == 0:
		return finding{check, levelOK, fmt.Sprintf("the driver has it, for an MTU of up to about %d", pageMTU), ""}
	}
	return finding{check, levelOK, "the driver has it, for jumbo frames too", ""}
}

// Bits of xdpFeatures, the kernel's enum netdev_xdp_act.
const (
	xdpBasic     = 1 << 0
	xdpFragments = 1 << 5
)

// xdpFeatures asks a driver what it can do with XDP: Linux 6.3 and newer
// pass that on.
func xdpFeatures(ifindex int) (uint64, error) {
	family, err := netlink.GenlFamilyGet("netdev")
	if err != nil {
		return 0, fmt.Errorf("ask for netdev's netlink: %w", err)
	}
	// From linux/netdev.h: NETDEV_CMD_DEV_GET, NETDEV_A_DEV_IFINDEX and
	// NETDEV_A_DEV_XDP_FEATURES.
	const devGet, devIfindex, devFeatures = 1, 1, 3
	req := nl.NewNetlinkRequest(int(family.ID), 0)
	// Written by hand: the library's header leaves its reserved bytes to
	// chance, and this family refuses any but 0.
	header := []byte{devGet, 1, 0, 0}
	req.AddRawData(append(header, nl.NewRtAttr(devIfindex, nl.Uint32Attr(uint32(ifindex))).Serialize()...))
	msgs, err := req.Execute(unix.NETLINK_GENERIC, 0)
	if err != nil {
		return 0, fmt.Errorf("ask for the driver's XDP features: %w", err)
	}
	for _, m := range msgs {
		if len(m) < nl.SizeofGenlmsg {
			continue
		}
		attrs, err := nl.ParseRouteAttr(m[nl.SizeofGenlmsg:])
		if err != nil {
			return 0, fmt.Errorf("read the driver's XDP features: %w", err)
		}
		for _, a := range attrs {
			if a.Attr.Type == devFeatures && len(a.Value) == 8 {
				return binary.NativeEndian.Uint64(a.Value), nil
			}
		}
	}
	return 0, errors.New("the driver's XDP features are not in the kernel's answer")
}

// checkHolder looks at an interface that has an XDP program.
func checkHolder(a *app, name string) finding {
	check := name + " XDP"
	holder, err := bpf.Holder(name)
	switch {
	case err != nil:
		return finding{check, levelWarn, err.Error(), ""}
	case holder == nil:
		return finding{check, levelOK, "no program any more", ""}
	}
	switch ours, err := attachedByUs(a, name); {
	case ours:
		return finding{check, levelOK, fmt.Sprintf("xdpban is attached, program %d, mode %s", holder.ID, holder.Mode), ""}
	case errors.Is(err, fs.ErrPermission):
		return finding{check, levelWarn, fmt.Sprintf("program %d is attached", holder.ID), "only root can tell whose it is"}
	}
	off := map[bpf.Mode]string{bpf.ModeNative: "xdpdrv", bpf.ModeGeneric: "xdpgeneric", bpf.ModeOffload: "xdpoffload"}
	fix := fmt.Sprintf("ip link set %s %s off", name, off[holder.Mode])
	switch {
	case holder.Calls != nil:
		fix = fmt.Sprintf("xdp-loader unload %s --all", name)
	case holder.Link != 0 && holder.Pin != "":
		fix = "rm " + holder.Pin
	case holder.Link != 0:
		fix = "end the process that holds its link"
	}
	return finding{check, levelFail, "held by another program: " + holder.String(),
		fmt.Sprintf("%s; or xdpban attach --replace %s. xdpban pipeline add runs another program behind xdpban's", fix, name)}
}

// attachedByUs says whether a link of ours is on an interface: by the
// daemon's word, for who may not open pins, or by the pins themselves.
func attachedByUs(a *app, iface string) (bool, error) {
	client := control.NewClient(a.Socket)
	defer client.Close()
	if s, err := client.Status(a.ctx); err == nil && slices.ContainsFunc(s.Interfaces, func(i control.Interface) bool { return i.Name == iface && i.Error == "" }) {
		return true, nil
	}
	b, err := bpf.Open(bpf.Options{Dir: a.BPFDir, MustExist: true})
	if err != nil {
		return false, err
	}
	defer b.Close()
	list, err := b.Attachments()
	return slices.ContainsFunc(list, func(at bpf.Attachment) bool { return at.Interface == iface && !at.Severed }), err
}

// ethtool does one of the old ethtool calls, which every driver knows.
func ethtool(iface string, arg unsafe.Pointer) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	req := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		pad  [16]byte // struct ifreq's union is longer than a pointer
	}{data: arg}
	copy(req.name[:unix.IFNAMSIZ-1], iface)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req))); errno != 0 {
		return errno
	}
	return nil
}

// ethtoolFlags are an interface's ETH_FLAGs.
func ethtoolFlags(iface string) (uint32, error) {
	const getFlags = 0x25 // ETHTOOL_GFLAGS
	v := struct{ cmd, data uint32 }{cmd: getFlags}
	err := ethtool(iface, unsafe.Pointer(&v))
	return v.data, err
}

func judgeLRO(name string, flags uint32) []finding {
	const lro = 1 << 15 // ETH_FLAG_LRO
	if flags&lro == 0 {
		return nil
	}
	return []finding{{name + " LRO", levelWarn, "on: most drivers refuse native XDP", "ethtool -K " + name + " lro off"}}
}

func driverOf(iface string) string {
	v := unix.EthtoolDrvinfo{Cmd: unix.ETHTOOL_GDRVINFO}
	if err := ethtool(iface, unsafe.Pointer(&v)); err != nil {
		return "no driver information"
	}
	return "driver " + string(bytes.TrimRight(v.Driver[:], "\x00"))
}
