package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"time"

	"xdpban/bpf"
)

type monitorCmd struct {
	Every int    `help:"Show one dropped packet in so many." default:"1" placeholder:"N"`
	Count int    `short:"c" help:"End after so many." placeholder:"N"`
	Pcap  string `help:"Write the packets' beginnings to a capture file for Wireshark or tcpdump, instead of printing them." placeholder:"FILE"`
}

// dropped is one dropped packet, as JSON.
type dropped struct {
	Time      time.Time  `json:"time"`
	Interface string     `json:"interface"`
	Reason    string     `json:"reason"`
	Source    netip.Addr `json:"source"`
	Target    netip.Addr `json:"target"`
	Protocol  string     `json:"protocol"`
	// Ports are 0 where the protocol has none or the packet doesn't show it.
	SourcePort uint16 `json:"source_port,omitempty"`
	TargetPort uint16 `json:"target_port,omitempty"`
	Length     int    `json:"length"`
}

func (c *monitorCmd) Run(a *app) error {
	b, err := bpf.Open(bpf.Options{Dir: a.BPFDir, MustExist: true})
	if err != nil {
		return err
	}
	defer b.Close()
	show := c.printer(a)
	if c.Pcap != "" {
		f, err := os.Create(c.Pcap)
		if err != nil {
			return err
		}
		defer f.Close()
		capture, err := bpf.NewPcap(f)
		if err != nil {
			return fmt.Errorf("writing %s: %w", c.Pcap, err)
		}
		show = capture.Write
	}
	n := 0
	err = b.Monitor(a.ctx, c.Every, func(s bpf.Sample) error {
		if err := show(s); err != nil {
			return err
		}
		if n++; n == c.Count {
			return errEnough
		}
		return nil
	})
	if errors.Is(err, errEnough) || errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// errEnough ends a monitor that has shown what was asked for.
var errEnough = errors.New("enough")

func (c *monitorCmd) printer(a *app) func(bpf.Sample) error {
	names := map[int]string{}
	return func(s bpf.Sample) error {
		name, ok := names[s.Index]
		if !ok {
			name = strconv.Itoa(s.Index)
			if i, err := net.InterfaceByIndex(s.Index); err == nil {
				name = i.Name
			}
			names[s.Index] = name
		}
		d := decodePacket(s.Data)
		d.Time, d.Interface, d.Reason, d.Length = s.Time.UTC(), name, string(s.Outcome), s.Length
		return a.print(d, func(w io.Writer) {
			fmt.Fprintf(w, "%s  %s  %s  %s  %s > %s  %d bytes\n", s.Time.Local().Format("15:04:05.000000"), printable(name), printable(d.Reason),
				d.Protocol, endpoint(d.Source, d.SourcePort), endpoint(d.Target, d.TargetPort), d.Length)
		})
	}
}

func endpoint(a netip.Addr, port uint16) string {
	switch {
	case !a.IsValid():
		return "?"
	case port == 0:
		return a.String()
	}
	return netip.AddrPortFrom(a, port).String()
}

// decodePacket reads a packet as far as it goes: behind VLAN tags, IPv4
// options and IPv6 extension headers. What it can't read stays zero.
func decodePacket(b []byte) (d dropped) {
	d.Protocol = "?"
	if len(b) < 14 {
		return d
	}
	kind := binary.BigEndian.Uint16(b[12:])
	b = b[14:]
	for (kind == 0x8100 || kind == 0x88a8) && len(b) >= 4 { // 802.1Q, 802.1ad
		kind = binary.BigEndian.Uint16(b[2:])
		b = b[4:]
	}
	var next uint8
	later := false // a fragment without its protocol's header
	switch {
	case kind == 0x0800 && len(b) >= 20:
		next, later = b[9], binary.BigEndian.Uint16(b[6:])&0x1fff != 0
		d.Source, d.Target = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
		b = b[min(max(int(b[0]&15)*4, 20), len(b)):]
	case kind == 0x86dd && len(b) >= 40:
		next = b[6]
		d.Source, d.Target = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
		b = b[40:]
		for len(b) >= 8 && !later {
			size := 8
			switch next {
			case 0, 43, 60, 135: // hop by hop, routing, destination, mobility
				size = (int(b[1]) + 1) * 8
			case 51: // authentication
				size = (int(b[1]) + 2) * 4
			case 44: // fragment
				later = binary.BigEndian.Uint16(b[2:])&^7 != 0
			default:
				size = 0
			}
			if size == 0 {
				break
			}
			next, b = b[0], b[min(size, len(b)):]
		}
	default:
		return d
	}
	switch next {
	case 1:
		d.Protocol = "icmp"
	case 6:
		d.Protocol = "tcp"
	case 17:
		d.Protocol = "udp"
	case 58:
		d.Protocol = "icmp6"
	default:
		d.Protocol = strconv.Itoa(int(next))
	}
	if (next == 6 || next == 17) && !later && len(b) >= 4 {
		d.SourcePort, d.TargetPort = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	}
	return d
}
