package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
)

// maxRequests is how many entries one run of write_bans writes.
const maxRequests = len(kernRequests{}.List)

// writer is write_bans, loaded for one table.
type writer struct {
	program  *ebpf.Program
	requests *ebpf.Map
	maps     uint64 // the generation of maps it was loaded for
	buffer   *kernRequests
}

func (w *writer) Close() error {
	if w.program == nil {
		return nil
	}
	return errors.Join(w.program.Close(), w.requests.Close())
}

// request has the first of the list written, or removed, and says how many
// that were; on an error the next one is what it is about. Those that were
// there go to found: if they are removed, as they were. The lock is held.
func (t *bans[K]) request(op kernOperation, list []pending, found func(pending)) (n int, err error) {
	list = list[:min(len(list), maxRequests)]
	w, err := t.b.writer(t.index)
	if errors.Is(err, ebpf.ErrNotSupported) {
		return t.requestEach(op, list, found)
	} else if err != nil {
		return 0, err
	}
	for i, p := range list {
		w.buffer.List[i] = kernRequest{Key: requestKey(p.prefix), Ban: p.ban}
	}
	if err := w.requests.Put(uint32(0), w.buffer); err != nil {
		return 0, fmt.Errorf("tell the kernel: %w", err)
	}
	done, err := w.program.Run(&ebpf.RunOptions{Context: kernWriteArgs{Operation: uint32(op), Count: uint32(len(list))}})
	if err != nil {
		return 0, fmt.Errorf("run the program that writes bans: %w", err)
	}
	n = int(done)
	if found != nil {
		if err := w.requests.Lookup(uint32(0), w.buffer); err != nil {
			return 0, fmt.Errorf("ask the kernel: %w", err)
		}
		for i, r := range w.buffer.List[:n] {
			if r.Found != 0 {
				found(pending{list[i].prefix, r.Ban})
			}
		}
	}
	if n == len(list) {
		return n, nil
	}
	// The program doesn't say what was wrong with the next one.
	if err := t.m.Update(t.key(list[n].prefix), list[n].ban, ebpf.UpdateNoExist); err != nil {
		return n, err
	}
	return n + 1, nil
}

// writer loads write_bans for a table. The error is ErrNotSupported if the
// kernel doesn't know such programs.
func (b *Blocklist) writer(table uint32) (*writer, error) {
	set, w := b.maps.Load(), &b.writers[table]
	if w.program != nil && w.maps == set.generation {
		return w, nil
	}
	if err := features.HaveProgramHelper(ebpf.Syscall, asm.FnMapUpdateElem); err != nil {
		return nil, err
	}
	spec := b.spec.Copy()
	if err := spec.Variables[kernVarTable].Set(table); err != nil {
		return nil, err
	}
	var out struct {
		Program  *ebpf.Program `ebpf:"write_bans"`
		Requests *ebpf.Map     `ebpf:"requests"`
	}
	if err := b.assign(spec, &out); err != nil {
		return nil, fmt.Errorf("load the program that writes bans: %w", explain(err))
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	*w = writer{out.Program, out.Requests, set.generation, new(kernRequests)}
	return w, nil
}
