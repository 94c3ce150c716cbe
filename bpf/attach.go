package bpf

import "errors"

// Mode is how XDP runs on an interface.
type Mode string

// The modes. ModeAuto tries native, then generic.
const (
	ModeAuto    Mode = "auto"
	ModeNative  Mode = "native"
	ModeGeneric Mode = "generic"
	ModeOffload Mode = "offload"
)

// Attachment is our program on one interface, by a pinned link.
type Attachment struct {
	Interface string
	Index     int
	Mode      Mode
	// Severed says that the interface the link was made for is gone.
	Severed bool
}

// Attach puts the program on an interface by a pinned bpf_link and returns
// the mode it got. If our pinned link is there already, its program is
// replaced atomically by ours. Another program on the interface is an error
// that names it.
func (b *Blocklist) Attach(iface string, mode Mode) (Attachment, error) {
	return Attachment{}, errors.ErrUnsupported
}

// Detach removes our pinned link from an interface.
func (b *Blocklist) Detach(iface string) error { return errors.ErrUnsupported }

// Attachments lists our pinned links.
func (b *Blocklist) Attachments() ([]Attachment, error) { return nil, errors.ErrUnsupported }
