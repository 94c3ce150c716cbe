package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
)

// A Foreigner is somebody else's XDP program on an interface. As an error it
// says that we don't touch it.
type Foreigner struct {
	Interface string
	Mode      Mode
	ID        uint32 // of the program
	// Name and Tag are empty for who may not look at programs.
	Name string
	Tag  string
	// Link is the id of the bpf_link that holds it; 0: it was attached by
	// netlink, as `ip link` does, or we may not see links.
	Link uint32
	// Pin is where the link or the program is pinned, if it is.
	Pin string
	// Calls are the programs that it hands packets on to, if it is libxdp's
	// dispatcher.
	Calls []string
}

func (f *Foreigner) Error() string {
	return fmt.Sprintf("%s already has an XDP program: %s; remove or replace it", f.Interface, f.String())
}

// String describes the program in one line.
func (f *Foreigner) String() string {
	how := "by netlink"
	if f.Link != 0 {
		how = fmt.Sprintf("by link %d", f.Link)
	}
	s := fmt.Sprintf("%q, id %d, tag %s, mode %s, attached %s", f.Name, f.ID, f.Tag, f.Mode, how)
	if f.Pin != "" {
		s += ", pinned at " + f.Pin
	}
	if f.Name == dispatcher {
		s += ", libxdp's dispatcher of " + strings.Join(f.Calls, ", ")
	}
	return s
}

// Holder is the program on an interface, whoever's it is; nil if there is
// none.
func Holder(iface string) (*Foreigner, error) {
	dev, err := netlink.LinkByName(iface)
	if err != nil {
		return nil, fmt.Errorf("look at %s: %w", iface, err)
	}
	return foreigner(dev), nil
}

// foreigner is the program on an interface that has none of ours. Whatever
// can't be found out about it is left out.
func foreigner(dev netlink.Link) *Foreigner {
	x := dev.Attrs().Xdp
	if x == nil || !x.Attached {
		return nil
	}
	f := &Foreigner{Interface: dev.Attrs().Name, Mode: modeOf(x.AttachMode), ID: x.ProgId}
	if prog, err := ebpf.NewProgramFromID(ebpf.ProgramID(x.ProgId)); err == nil {
		defer prog.Close()
		if info, err := prog.Info(); err == nil {
			f.Name, f.Tag = info.Name, info.Tag
		}
	}
	var links link.Iterator
	defer links.Close()
	for links.Next() {
		info, err := links.Link.Info()
		if err != nil || uint32(info.Program) != f.ID {
			continue
		}
		if x := info.XDP(); x != nil && int(x.Ifindex) == dev.Attrs().Index {
			f.Link = uint32(info.ID)
		}
	}
	f.Pin = f.findPin()
	if f.Name == dispatcher {
		f.Calls = dispatched(dev.Attrs().Index, f.ID)
	}
	return f
}

// usualBPFFS is where everybody pins.
const usualBPFFS = "/sys/fs/bpf"

// findPin looks for the link's pin, or else the program's.
func (f *Foreigner) findPin() (pin string) {
	// What can't be read isn't found.
	_ = filepath.WalkDir(usualBPFFS, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil
		}
		if f.Link != 0 {
			if l, err := link.LoadPinnedLink(path, nil); err == nil {
				defer l.Close()
				if info, err := l.Info(); err == nil && uint32(info.ID) == f.Link {
					pin = path
					return fs.SkipAll
				}
			}
		}
		if id, _, err := pinnedProgram(path); err == nil && id == f.ID {
			pin = path
		}
		return nil
	})
	return pin
}

func pinnedProgram(path string) (id uint32, name string, err error) {
	p, err := ebpf.LoadPinnedProgram(path, nil)
	if err != nil {
		return 0, "", err
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		return 0, "", err
	}
	n, _ := info.ID()
	return uint32(n), info.Name, nil
}

// dispatcher is the name of the program by which libxdp lets several share an
// interface.
const dispatcher = "xdp_dispatcher"

// dispatched are the programs behind libxdp's dispatcher: it pins them in a
// folder named for the interface and the dispatcher.
func dispatched(ifindex int, id uint32) (names []string) {
	pins, _ := filepath.Glob(fmt.Sprintf("%s/xdp/dispatch-%d-%d/prog*-prog", usualBPFFS, ifindex, id)) // the pattern is good
	for _, pin := range pins {
		if _, name, err := pinnedProgram(pin); err == nil {
			names = append(names, name)
		}
	}
	return names
}

// remove takes the program off its interface.
func (f *Foreigner) remove() error {
	if f.Link != 0 {
		l, err := link.NewFromID(link.ID(f.Link))
		if err != nil {
			return err
		}
		defer l.Close()
		return l.Detach()
	}
	dev, err := netlink.LinkByName(f.Interface)
	if err != nil {
		return err
	}
	flags := map[Mode]link.XDPAttachFlags{
		ModeNative: link.XDPDriverMode, ModeGeneric: link.XDPGenericMode, ModeOffload: link.XDPOffloadMode,
	}[f.Mode]
	return netlink.LinkSetXdpFdWithFlags(dev, -1, int(flags))
}

// findInterface is netlink.LinkByName with an error that helps.
func findInterface(name string) (netlink.Link, error) {
	dev, err := netlink.LinkByName(name)
	if !errors.As(err, &netlink.LinkNotFoundError{}) {
		return dev, err
	}
	list, err := netlink.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("there is no interface %s; list those there are: %w", name, err)
	}
	var names []string
	for _, l := range list {
		names = append(names, l.Attrs().Name)
	}
	return nil, fmt.Errorf("there is no interface %s; there are %s", name, strings.Join(names, ", "))
}
