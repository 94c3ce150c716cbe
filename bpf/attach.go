package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Mode is how XDP runs on an interface.
type Mode string

// The modes. ModeAuto tries native, then generic.
const (
	ModeAuto    Mode = "auto"
	ModeNative  Mode = "native"
	ModeGeneric Mode = "generic"
	ModeOffload Mode = "offload"
)

// ErrNotAttached says that there is no link of ours on an interface.
var ErrNotAttached = errors.New("xdpban is not attached")

// Attachment is our program on one interface, by a pinned link.
type Attachment struct {
	Interface string
	Index     int
	Mode      Mode
	// Severed says that the interface the link was made for is gone.
	Severed bool
}

// Attach puts the program on an interface by a pinned bpf_link and returns
// the mode it got: ModeAuto takes native, and generic where the driver can't.
// If our pinned link is there already, its program is replaced atomically by
// ours; only a change of mode makes a new link, and lets packets pass for a
// moment. Another program on the interface is a Foreigner.
func (b *Blocklist) Attach(iface string, mode Mode) (Attachment, error) {
	a, err := b.attach(iface, mode)
	if err != nil {
		return a, fmt.Errorf("attach to %s: %w", iface, explain(err))
	}
	return a, nil
}

// Replace is Attach, but takes another program off first, and returns it if
// there was one. Packets pass unfiltered in between. A program that has a
// pinned link is detached from the interface; the pin stays with its owner.
func (b *Blocklist) Replace(iface string, mode Mode) (Attachment, *Foreigner, error) {
	a, err := b.Attach(iface, mode)
	var f *Foreigner
	if !errors.As(err, &f) {
		return a, nil, err
	}
	if err := f.remove(); err != nil {
		return a, nil, fmt.Errorf("take program %d (%q) off %s: %w", f.ID, f.Name, iface, explain(err))
	}
	a, err = b.Attach(iface, mode)
	return a, f, err
}

func (b *Blocklist) attach(iface string, mode Mode) (Attachment, error) {
	modes := map[Mode][]Mode{
		ModeAuto: {ModeNative, ModeGeneric}, ModeNative: {ModeNative},
		ModeGeneric: {ModeGeneric}, ModeOffload: {ModeOffload},
	}[mode]
	if modes == nil {
		return Attachment{}, fmt.Errorf("unknown mode %q: write auto, native, generic or offload", mode)
	}
	dev, err := findInterface(iface)
	if err != nil {
		return Attachment{}, err
	}
	_, unlock, err := b.lock()
	if err != nil {
		return Attachment{}, err
	}
	defer unlock()

	links, err := b.links()
	if err != nil {
		return Attachment{}, err
	}
	defer closeLinks(links)
	meta, err := b.readMeta()
	if err != nil {
		return Attachment{}, err
	}
	slot, err := b.slot(iface)
	if err != nil {
		return Attachment{}, err
	}
	prog, err := b.load(meta, slot)
	if err != nil {
		return Attachment{}, err
	}
	defer prog.Close()

	if err := os.MkdirAll(b.linksDir(), 0o700); err != nil {
		return Attachment{}, err
	}
	pin := b.linkPin(iface)
	for _, l := range links {
		switch {
		case l.Index == dev.Attrs().Index:
			if mode == ModeAuto || mode == l.Mode {
				return l.Attachment, l.link.Update(prog)
			}
			if err := l.remove(); err != nil {
				return Attachment{}, err
			}
			// Look again: we have just taken our own program off.
			if dev, err = netlink.LinkByName(iface); err != nil {
				return Attachment{}, err
			}
		case l.pin == pin && l.Severed:
			if err := l.remove(); err != nil {
				return Attachment{}, err
			}
		case l.pin == pin:
			// The interface it was made for has another name now.
			if err := os.Rename(pin, b.linkPin(l.Interface)); err != nil {
				return Attachment{}, err
			}
		}
	}
	if f := foreigner(dev); f != nil {
		return Attachment{}, f
	}

	var refused error
	for _, m := range modes {
		flags := map[Mode]link.XDPAttachFlags{
			ModeNative: link.XDPDriverMode, ModeGeneric: link.XDPGenericMode, ModeOffload: link.XDPOffloadMode,
		}[m]
		l, err := link.AttachXDP(link.XDPOptions{Program: prog, Interface: dev.Attrs().Index, Flags: flags})
		if err != nil {
			refused = errors.Join(refused, fmt.Errorf("in %s mode: %w%s", m, err, why(m, err)))
			// What drivers answer that can't, for whatever reason: a
			// missing feature, an MTU, a setting.
			if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ERANGE) || errors.Is(err, unix.EINVAL) {
				continue
			}
			if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EEXIST) {
				if again, lookErr := netlink.LinkByName(iface); lookErr == nil {
					if f := foreigner(again); f != nil {
						return Attachment{}, f
					}
				}
			}
			return Attachment{}, refused
		}
		// Not pinned, the link ends with this process: a crash here leaves
		// nothing behind.
		if err := l.Pin(pin); err != nil {
			return Attachment{}, errors.Join(fmt.Errorf("pin the link: %w", err), l.Close())
		}
		return Attachment{Interface: iface, Index: dev.Attrs().Index, Mode: m}, l.Close()
	}
	return Attachment{}, refused
}

// why says what a refusal mostly means.
func why(mode Mode, err error) string {
	no := errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL)
	switch {
	case no && mode == ModeOffload:
		return "; the network card would have to run the program itself, which needs one whose driver offloads XDP with all kinds of maps that the program uses: take native or auto"
	case no && mode == ModeNative:
		return "; the driver has no native XDP, or not with this MTU and these settings: take generic or auto; xdpban doctor tells more"
	}
	return ""
}

// Detach removes our pinned link from an interface. If there is none, the
// error is ErrNotAttached.
func (b *Blocklist) Detach(iface string) error {
	_, unlock, err := b.lock()
	if err != nil {
		return err
	}
	defer unlock()
	links, err := b.links()
	if err != nil {
		return err
	}
	defer closeLinks(links)
	found := false
	for _, l := range links {
		if l.Interface != iface {
			continue
		}
		found = true
		if err := l.remove(); err != nil {
			return fmt.Errorf("detach from %s: %w", iface, err)
		}
	}
	if !found {
		return fmt.Errorf("detach from %s: %w", iface, ErrNotAttached)
	}
	return nil
}

// Attachments lists our pinned links. A severed one goes by the name its
// interface had.
func (b *Blocklist) Attachments() ([]Attachment, error) {
	links, err := b.links()
	if err != nil {
		return nil, err
	}
	defer closeLinks(links)
	out := make([]Attachment, len(links))
	for i, l := range links {
		out[i] = l.Attachment
	}
	return out, nil
}

// reload replaces the program on all interfaces atomically by what meta asks
// for; the lock is held.
func (b *Blocklist) reload(meta kernMeta) error {
	links, err := b.links()
	if err != nil {
		return err
	}
	defer closeLinks(links)
	for _, l := range links {
		if l.Severed {
			continue
		}
		slot, err := b.slot(l.Interface)
		if err != nil {
			return err
		}
		prog, err := b.load(meta, slot)
		if err != nil {
			return err
		}
		err = l.link.Update(prog)
		prog.Close()
		if err != nil {
			return fmt.Errorf("replace the program on %s: %w", l.Interface, explain(err))
		}
	}
	return nil
}

// pinnedLink is one of our links, open.
type pinnedLink struct {
	Attachment
	link link.Link
	pin  string
}

func (l pinnedLink) remove() error {
	if !l.Severed {
		if err := l.link.Detach(); err != nil {
			return err
		}
	}
	return os.Remove(l.pin)
}

func closeLinks(links []pinnedLink) {
	for _, l := range links {
		l.link.Close()
	}
}

func (b *Blocklist) linksDir() string { return filepath.Join(b.dir, "links") }

// linkPin is the path for an interface's link. A bpffs allows no dots in
// names, an interface does.
func (b *Blocklist) linkPin(iface string) string {
	return filepath.Join(b.linksDir(), strings.NewReplacer("%", "%25", ".", "%2E").Replace(iface))
}

func (b *Blocklist) links() (out []pinnedLink, err error) {
	names, err := os.ReadDir(b.linksDir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	for _, name := range names {
		pin := filepath.Join(b.linksDir(), name.Name())
		l, err := link.LoadPinnedLink(pin, nil)
		if err != nil {
			closeLinks(out)
			return nil, &PinError{Path: pin, Reason: err.Error()}
		}
		p := pinnedLink{link: l, pin: pin, Attachment: Attachment{
			Interface: strings.NewReplacer("%2E", ".", "%25", "%").Replace(name.Name()),
			Severed:   true,
		}}
		out = append(out, p)
		info, err := l.Info()
		if err != nil || info.XDP() == nil {
			closeLinks(out)
			return nil, &PinError{Path: pin, Reason: "it is no link of an XDP program"}
		}
		if name, ok := programName(info.Program); ok && name != kernProgXdpban && name != "" {
			closeLinks(out)
			return nil, &PinError{Path: pin, Reason: fmt.Sprintf("it is the link of a program %q, id %d", name, info.Program)}
		}
		index := int(info.XDP().Ifindex)
		if index == 0 {
			continue
		}
		p.Severed, p.Index = false, index
		if dev, err := netlink.LinkByIndex(index); err == nil {
			p.Interface = dev.Attrs().Name
			if x := dev.Attrs().Xdp; x != nil {
				p.Mode = modeOf(x.AttachMode)
			}
		}
		out[len(out)-1] = p
	}
	return out, nil
}

// programName is the name that the kernel knows a program by. ok is false if
// it can't be asked for: that takes CAP_SYS_ADMIN, and the daemon's unit goes
// without.
func programName(id ebpf.ProgramID) (name string, ok bool) {
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return "", false
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		return "", false
	}
	return info.Name, true
}

func modeOf(attached uint32) Mode {
	switch attached {
	case nl.XDP_ATTACHED_DRV:
		return ModeNative
	case nl.XDP_ATTACHED_SKB:
		return ModeGeneric
	case nl.XDP_ATTACHED_HW:
		return ModeOffload
	}
	return ""
}
