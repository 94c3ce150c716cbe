package bpf

import (
	"errors"
	"fmt"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
)

// maxRequests is how many entries one run of write_bans handles.
const maxRequests = len(kernRequests{}.List)

// runner is write_bans for one table, loaded when it is needed.
type runner struct {
	mu       sync.Mutex
	program  *ebpf.Program
	requests *ebpf.Map
	buffer   kernRequests
}

// runners are one for each table.
type runners [4]runner

func (rs *runners) Close() (err error) {
	if rs == nil {
		return nil
	}
	for i := range rs {
		if r := &rs[i]; r.program != nil {
			err = errors.Join(err, r.program.Close(), r.requests.Close())
		}
	}
	return err
}

// request has the first of the list written, removed, or asked about, and says
// how many that were; on an error the next one is what it is about. Those that
// were there go to found, with their place in the list: if they are removed, as
// they were. The lock is held, but to ask for origins.
func (t *bans[K, O]) request(op kernOperation, list []pending, found func(int, pending)) (n int, err error) {
	list = list[:min(len(list), maxRequests)]
	r := t.writer
	if op == kernOperationORIGIN {
		r = t.reader
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if op == kernOperationORIGIN && r.program == nil && len(list) < maxRequests {
		return t.requestEach(op, list, found) // loading the program takes longer
	}
	if err := t.load(r); errors.Is(err, ebpf.ErrNotSupported) {
		return t.requestEach(op, list, found)
	} else if err != nil {
		return 0, err
	}
	for i, p := range list {
		r.buffer.List[i] = kernRequest{Key: requestKey(p.prefix), Ban: p.ban, Origin: p.origin}
	}
	if err := r.requests.Put(uint32(0), &r.buffer); err != nil {
		return 0, fmt.Errorf("tell the kernel: %w", err)
	}
	done, err := r.program.Run(&ebpf.RunOptions{Context: kernWriteArgs{Operation: uint32(op), Count: uint32(len(list))}})
	if err != nil {
		return 0, fmt.Errorf("run the program that writes bans: %w", err)
	}
	n = int(done)
	if found != nil {
		if err := r.requests.Lookup(uint32(0), &r.buffer); err != nil {
			return 0, fmt.Errorf("ask the kernel: %w", err)
		}
		for i, q := range r.buffer.List[:n] {
			if q.Found != 0 {
				found(i, pending{list[i].prefix, q.Ban, q.Origin})
			}
		}
	}
	if n == len(list) {
		return n, nil
	}
	// The program doesn't say what was wrong with the next one.
	one, err := t.requestEach(op, list[n:n+1], func(_ int, p pending) {
		if found != nil {
			found(n, p)
		}
	})
	return n + one, err
}

// load loads write_bans for a table. The error is ErrNotSupported if the
// kernel doesn't know such programs.
func (t *bans[K, O]) load(r *runner) error {
	if r.program != nil {
		return nil
	}
	if err := features.HaveProgramHelper(ebpf.Syscall, asm.FnMapLookupPercpuElem); err != nil {
		return err
	}
	spec := t.b.spec.Copy()
	for name, value := range map[string]uint32{kernVarTable: t.index, kernVarCpus: uint32(t.cpus)} {
		if err := spec.Variables[name].Set(value); err != nil {
			return err
		}
	}
	var out struct {
		Program  *ebpf.Program `ebpf:"write_bans"`
		Requests *ebpf.Map     `ebpf:"requests"`
	}
	if err := t.set.assign(spec, &out); err != nil {
		return fmt.Errorf("load the program that writes bans: %w", explain(err))
	}
	r.program, r.requests = out.Program, out.Requests
	return nil
}
