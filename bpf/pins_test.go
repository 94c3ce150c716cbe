package bpf

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
)

type pinner interface{ Pin(string) error }

// linked puts a stranger's program on an interface by a link.
func linked(t *testing.T, iface string) link.Link {
	t.Helper()
	dev, err := netlink.LinkByName(iface)
	must(t, err)
	l, err := link.AttachXDP(link.XDPOptions{Program: passer(t), Interface: dev.Attrs().Index, Flags: link.XDPGenericMode})
	must(t, err)
	t.Cleanup(func() { l.Close() })
	return l
}

// identity is what tells one kernel object from another, by its pin.
func identity(t *testing.T, path string) any {
	t.Helper()
	if m, err := ebpf.LoadPinnedMap(path, nil); err == nil {
		defer m.Close()
		info, err := m.Info()
		must(t, err)
		id, _ := info.ID()
		return id
	}
	if p, err := ebpf.LoadPinnedProgram(path, nil); err == nil {
		defer p.Close()
		info, err := p.Info()
		must(t, err)
		id, _ := info.ID()
		return id
	}
	l, err := link.LoadPinnedLink(path, nil)
	must(t, err)
	defer l.Close()
	info, err := l.Info()
	must(t, err)
	return [2]any{info.ID, info.Program}
}

// TestStrangersPins puts objects of each kind under each of our names. They
// are named, and stay as they are.
func TestStrangersPins(t *testing.T) {
	root := bpffs(t)
	for _, kind := range []struct {
		name   string
		make   func(*testing.T) pinner
		asMap  string // why it isn't taken for a map of ours
		asLink string // why it isn't taken for a link of ours
	}{
		{"map", queue, "it is a map of type Queue where ", "is not a Link"},
		{"program", func(t *testing.T) pinner { return passer(t) }, "it is no pinned map: ", "is not a Link"},
		{"link", func(t *testing.T) pinner { return linked(t, "lo") }, "it is no pinned map: ", `it is the link of a program "somebody", id `},
	} {
		pin := func(t *testing.T, path string) (check func(err error, why string)) {
			t.Helper()
			must(t, os.MkdirAll(filepath.Dir(path), 0o700))
			must(t, kind.make(t).Pin(path))
			was := identity(t, path)
			return func(err error, why string) {
				t.Helper()
				var pin *PinError
				if !errors.As(err, &pin) || pin.Path != path || !strings.Contains(err.Error(), path+" is not xdpban's: ") || !strings.Contains(err.Error(), why) {
					t.Errorf("%v; want %s named, and why: %s", err, path, why)
				}
				if is := identity(t, path); is != was {
					t.Errorf("%s was %v and is %v", path, was, is)
				}
			}
		}
		for _, m := range new(mapSet).all() {
			t.Run(kind.name+" as "+m.name, func(t *testing.T) {
				namespace(t)
				dir := filepath.Join(root, kind.name+"_"+m.name)
				check := pin(t, filepath.Join(dir, Schema, m.name))
				_, err := Open(Options{Dir: dir})
				check(err, kind.asMap)
			})
		}
		t.Run(kind.name+" as links", func(t *testing.T) {
			namespace(t)
			b := open(t, Options{Dir: filepath.Join(root, kind.name+"_links")})
			check := pin(t, b.linkPin("lo"))
			_, err := b.Attach("lo", ModeGeneric)
			check(err, kind.asLink)
			_, _, err = b.Replace("lo", ModeGeneric)
			check(err, kind.asLink)
			check(b.Detach("lo"), kind.asLink)
			_, err = b.Attachments()
			check(err, kind.asLink)
			// A length that is new would have the program replaced.
			check(b.Add(forever("198.51.100.0/24")), kind.asLink)
		})
	}
}

func queue(t *testing.T) pinner {
	t.Helper()
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: "somebody", Type: ebpf.Queue, ValueSize: 4, MaxEntries: 1})
	must(t, err)
	t.Cleanup(func() { m.Close() })
	return m
}
