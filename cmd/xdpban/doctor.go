package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"xdpban/bpf"
	"xdpban/internal/control"
	"xdpban/internal/host"
)

type doctorCmd struct {
	Interface []string `arg:"" optional:"" help:"Interfaces; without any, those of the default routes."`
}

// Levels of a finding.
const (
	levelOK   = "ok"
	levelWarn = "warn" // works, but not as well as it could
	levelFail = "fail" // xdpban can't do its work
)

// finding is one thing looked at.
type finding struct {
	Check string `json:"check"`
	Level string `json:"level"`
	Found string `json:"found"`
	Fix   string `json:"fix,omitempty"`
}

func (c *doctorCmd) Run(a *app) error {
	findings := []finding{
		checkRights(),
		checkKernel(),
		checkJIT(),
		checkBPFFS(a.BPFDir),
		checkJournal(),
		checkDaemon(a),
	}
	if len(c.Interface) == 0 {
		ifaces, err := host.DefaultInterfaces()
		if err != nil {
			return err
		}
		if c.Interface = ifaces; len(ifaces) == 0 {
			findings = append(findings, finding{"interface", levelWarn, "there is no default route", "name the interfaces in xdpban.toml: interfaces = [\"eth0\"]"})
		}
	}
	for _, name := range c.Interface {
		findings = append(findings, checkInterface(a, name)...)
	}
	failed := false
	for _, f := range findings {
		failed = failed || f.Level == levelFail
	}
	err := a.print(findings, func(w io.Writer) {
		for _, f := range findings {
			fmt.Fprintf(w, "%-4s  %s: %s\n", f.Level, printable(f.Check), printable(f.Found))
			if f.Fix != "" {
				fmt.Fprintf(w, "      %s\n", printable(f.Fix))
			}
		}
	})
	if err == nil && failed {
		return errReported
	}
	return err
}

func checkRights() finding {
	if os.Geteuid() == 0 {
		return finding{"rights", levelOK, "root", ""}
	}
	return finding{"rights", levelFail, fmt.Sprintf("uid %d", os.Geteuid()), "run as root, or by systemd with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON"}
}

// checkKernel knows what came with which Linux: bpf_link for XDP 5.9, BPF
// memory by cgroup 5.11, XDP on fragmented packets (large MTUs) 5.18.
func checkKernel() finding {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return finding{"kernel", levelWarn, err.Error(), ""}
	}
	release := unix.ByteSliceToString(u.Release[:])
	major, minor := kernelVersion(release)
	at := func(x, y int) bool { return major > x || major == x && minor >= y }
	switch {
	case !at(5, 9):
		return finding{"kernel", levelFail, "Linux " + release, "XDP links need Linux 5.9; Debian 12 has 6.1"}
	case !at(5, 18):
		return finding{"kernel", levelWarn, "Linux " + release, "before Linux 5.18 XDP can't attach to interfaces with an MTU beyond a page"}
	}
	return finding{"kernel", levelOK, "Linux " + release, ""}
}

// kernelVersion reads "6.1.0-13-amd64" as 6, 1; what isn't a number is 0.
func kernelVersion(release string) (major, minor int) {
	parts := strings.FieldsFunc(release, func(r rune) bool { return r < '0' || r > '9' })
	if len(parts) > 1 {
		major, _ = strconv.Atoi(parts[0])
		minor, _ = strconv.Atoi(parts[1])
	}
	return major, minor
}

func checkJIT() finding {
	b, err := os.ReadFile("/proc/sys/net/core/bpf_jit_enable")
	if errors.Is(err, os.ErrNotExist) {
		// Kernels built with CONFIG_BPF_JIT_ALWAYS_ON in a network namespace
		// don't show the switch.
		return finding{"BPF JIT", levelOK, "not switchable here", ""}
	}
	if err != nil {
		return finding{"BPF JIT", levelWarn, err.Error(), ""}
	}
	if v := strings.TrimSpace(string(b)); v == "0" {
		return finding{"BPF JIT", levelWarn, "off: programs are interpreted, several times slower", "sysctl -w net.core.bpf_jit_enable=1"}
	}
	return finding{"BPF JIT", levelOK, "on", ""}
}

func checkBPFFS(dir string) finding {
	for d := dir; ; d = d[:max(strings.LastIndexByte(d, '/'), 1)] {
		var st unix.Statfs_t
		if err := unix.Statfs(d, &st); err == nil {
			if st.Type == unix.BPF_FS_MAGIC {
				return finding{"bpffs", levelOK, "mounted, for " + dir, ""}
			}
			return finding{"bpffs", levelWarn, "not mounted for " + dir, "xdpban mounts it by itself, if it may; or: mount -t bpf bpf /sys/fs/bpf"}
		}
		if d == "/" || !strings.Contains(d, "/") {
			return finding{"bpffs", levelFail, "no such folder: " + dir, "give an absolute path in a mounted bpffs"}
		}
	}
}

func checkJournal() finding {
	path, err := exec.LookPath("journalctl")
	if err != nil {
		return finding{"journal", levelWarn, "no journalctl", "only log files can be read; on Debian journalctl comes with systemd"}
	}
	return finding{"journal", levelOK, path, ""}
}

func checkDaemon(a *app) finding {
	client := control.NewClient(a.Socket)
	defer client.Close()
	s, err := client.Status(a.ctx)
	switch {
	case errors.Is(err, control.ErrDown):
		return finding{"daemon", levelWarn, "isn't running", "xdpban run, or systemctl start xdpban"}
	case err != nil:
		return finding{"daemon", levelWarn, err.Error(), ""}
	case len(s.Problems) > 0:
		return finding{"daemon", levelWarn, fmt.Sprintf("pid %d: %s", s.PID, strings.Join(s.Problems, "; ")), ""}
	}
	return finding{"daemon", levelOK, fmt.Sprintf("pid %d, %s", s.PID, plural(s.Bans, "ban")), ""}
}

func checkInterface(a *app, name string) []finding {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return []finding{{name, levelFail, err.Error(), "see `ip link` for what there is"}}
	}
	at := link.Attrs()
	f := []finding{}
	driver := driverOf(name)
	what := fmt.Sprintf("%s, MTU %d", driver, at.MTU)
	switch {
	case at.Flags&net.FlagLoopback != 0:
		f = append(f, finding{name, levelWarn, what + ", loopback", "generic XDP only; nobody out there is seen on it"})
	case link.Type() == "vlan":
		f = append(f, finding{name, levelWarn, what + ", a VLAN", "generic XDP only: attach to the interface below, tags are walked"})
	case at.Flags&net.FlagUp == 0:
		f = append(f, finding{name, levelWarn, what + ", down", "ip link set " + name + " up"})
	default:
		f = append(f, finding{name, levelOK, what, ""})
	}
	if at.MasterIndex != 0 {
		if master, err := netlink.LinkByIndex(at.MasterIndex); err == nil && master.Type() == "bond" {
			f = append(f, finding{name + " bond", levelWarn, "belongs to " + master.Attrs().Name, "attach to the bond"})
		}
	}
	if lro, err := largeReceive(name); err == nil && lro {
		f = append(f, finding{name + " LRO", levelWarn, "on: most drivers refuse native XDP", "ethtool -K " + name + " lro off"})
	}
	if at.Xdp != nil && at.Xdp.Attached {
		switch ours, err := attachedByUs(a, name); {
		case ours:
			f = append(f, finding{name + " XDP", levelOK, fmt.Sprintf("xdpban is attached, program %d", at.Xdp.ProgId), ""})
		case errors.Is(err, fs.ErrPermission):
			f = append(f, finding{name + " XDP", levelWarn, fmt.Sprintf("program %d is attached", at.Xdp.ProgId), "only root can tell whose it is"})
		default:
			prog := "unknown"
			if n, err := programName(at.Xdp.ProgId); err == nil {
				prog = n
			}
			f = append(f, finding{name + " XDP", levelFail,
				fmt.Sprintf("held by another program: %q, id %d", prog, at.Xdp.ProgId),
				fmt.Sprintf("bpftool prog show id %d tells more; ip link set %s xdp off removes one attached by netlink", at.Xdp.ProgId, name)})
		}
	}
	return f
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

// largeReceive says whether LRO is on.
func largeReceive(iface string) (bool, error) {
	const getFlags, flagLRO = 0x25, 1 << 15 // ETHTOOL_GFLAGS, ETH_FLAG_LRO
	v := struct{ cmd, data uint32 }{cmd: getFlags}
	err := ethtool(iface, unsafe.Pointer(&v))
	return v.data&flagLRO != 0, err
}

func driverOf(iface string) string {
	v := unix.EthtoolDrvinfo{Cmd: unix.ETHTOOL_GDRVINFO}
	if err := ethtool(iface, unsafe.Pointer(&v)); err != nil {
		return "no driver information"
	}
	return "driver " + string(bytes.TrimRight(v.Driver[:], "\x00"))
}

// programName is the name of a loaded program.
func programName(id uint32) (string, error) {
	p, err := ebpf.NewProgramFromID(ebpf.ProgramID(id))
	if err != nil {
		return "", err
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		return "", err
	}
	return info.Name, nil
}
