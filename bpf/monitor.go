package bpf

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/cilium/ebpf/ringbuf"
)

// Sample is one dropped packet.
type Sample struct {
	Time    time.Time
	Index   int // of the interface
	Outcome Outcome
	Length  int    // of the packet
	Data    []byte // its start, at most 128 bytes, from the Ethernet header on
}

// Monitor turns sampling on, hands one drop in every `every` to f until ctx
// ends or f returns an error, and turns sampling off. What f is too slow for
// is lost. One monitor at a time: a second one takes samples away from the
// first.
func (b *Blocklist) Monitor(ctx context.Context, every int, f func(Sample) error) (err error) {
	if every < 1 {
		return fmt.Errorf("sample one drop in %d: write 1 or more", every)
	}
	set, err := b.current()
	if err != nil {
		return err
	}
	r, err := ringbuf.NewReader(set.Events)
	if err != nil {
		return fmt.Errorf("read samples: %w", err)
	}
	defer r.Close()
	if err := b.setSampling(uint32(every)); err != nil {
		return fmt.Errorf("turn sampling on: %w", err)
	}
	defer func() {
		if offErr := b.setSampling(0); offErr != nil {
			err = errors.Join(err, fmt.Errorf("turn sampling off: %w", offErr))
		}
	}()
	// Nothing else wakes a Read that waits for the next drop.
	stop := context.AfterFunc(ctx, func() { r.Close() })
	defer stop()
	// From the program's clock to ours.
	at := now()
	for {
		rec, err := r.Read()
		if errors.Is(err, ringbuf.ErrClosed) && ctx.Err() != nil {
			return nil
		} else if err != nil {
			return fmt.Errorf("read samples: %w", err)
		}
		var s kernSample
		if _, err := binary.Decode(rec.RawSample, binary.NativeEndian, &s); err != nil {
			return fmt.Errorf("read samples: %w", err)
		}
		sample := Sample{
			Time:   at.wall.Add(time.Duration(int64(s.Time) - at.mono)),
			Index:  int(s.Ifindex),
			Length: int(s.Length),
			Data:   bytes.Clone(s.Data[:min(int(s.Taken), len(s.Data))]),
		}
		for _, o := range outcomes {
			if uint32(o.kern) == s.Outcome {
				sample.Outcome = o.outcome
			}
		}
		if err := f(sample); err != nil {
			return err
		}
	}
}

func (b *Blocklist) setSampling(every uint32) error {
	_, unlock, err := b.lock()
	if err != nil {
		return err
	}
	defer unlock()
	meta, err := b.readMeta()
	if err != nil {
		return err
	}
	meta.Sampling = every
	meta.Features &^= uint32(kernFeatureFEATURE_MONITOR)
	if every > 0 {
		meta.Features |= uint32(kernFeatureFEATURE_MONITOR)
	}
	return b.configure(meta)
}

// Pcap writes samples as a capture file, for Wireshark or tcpdump. The format
// is the classic one with nanoseconds (magic 0xa1b23c4d), Ethernet.
type Pcap struct{ w io.Writer }

// NewPcap writes the header of a capture file.
func NewPcap(w io.Writer) (*Pcap, error) {
	var h []byte
	for _, v := range []any{uint32(0xa1b23c4d), uint16(2), uint16(4), int32(0), uint32(0), uint32(1 << 16), uint32(1)} {
		h, _ = binary.Append(h, binary.LittleEndian, v)
	}
	_, err := w.Write(h)
	return &Pcap{w}, err
}

// Write writes one packet.
func (p *Pcap) Write(s Sample) error {
	h := make([]byte, 16, 16+len(s.Data))
	binary.LittleEndian.PutUint32(h, uint32(s.Time.Unix()))
	binary.LittleEndian.PutUint32(h[4:], uint32(s.Time.Nanosecond()))
	binary.LittleEndian.PutUint32(h[8:], uint32(len(s.Data)))
	binary.LittleEndian.PutUint32(h[12:], uint32(max(s.Length, len(s.Data))))
	_, err := p.w.Write(append(h, s.Data...))
	return err
}
