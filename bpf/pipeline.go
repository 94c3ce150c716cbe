package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// PipelineSlots is how many programs may follow ours.
const PipelineSlots = 8

// Stage is a program that runs on packets that ours would pass. Ours calls
// the one in slot 0; it decides what becomes of the packet, or goes on to the
// next slot by a tail call into the pinned map "pipeline". A program from an
// object file that has a constant `volatile const __u32 next_slot` is told
// which that is. A tail call to an empty slot falls through: the program then
// has to return a verdict itself. The packets count as passed with us.
type Stage struct {
	Slot int
	ID   uint32 // of the program
	Name string
	Tag  string
}

// AddStage puts a pinned program, or the XDP program of an object file, into
// the first free slot. It has to be loaded with the same attach type and
// fragment support as ours, SEC("xdp.frags"); the kernel refuses others.
func (b *Blocklist) AddStage(path string) (Stage, error) {
	s, err := b.addStage(path)
	if err != nil {
		return s, fmt.Errorf("add %s to the pipeline: %w", path, explain(err))
	}
	return s, nil
}

func (b *Blocklist) addStage(path string) (Stage, error) {
	set, unlock, err := b.lock()
	if err != nil {
		return Stage{}, err
	}
	defer unlock()
	stages, err := b.Pipeline()
	if err != nil {
		return Stage{}, err
	}
	slot := 0
	for _, s := range stages {
		if s.Slot == slot {
			slot++
		}
	}
	if slot == PipelineSlots {
		return Stage{}, fmt.Errorf("all %d slots are taken", PipelineSlots)
	}
	prog, err := ebpf.LoadPinnedProgram(path, nil)
	if err != nil {
		var objErr error
		if prog, objErr = loadStage(path, set.Pipeline, slot+1); objErr != nil {
			return Stage{}, fmt.Errorf("not a pinned program (%w), nor an object file: %w", err, objErr)
		}
	}
	defer prog.Close()
	if prog.Type() != ebpf.XDP {
		return Stage{}, fmt.Errorf("it is a program of type %s, not XDP", prog.Type())
	}
	if err := set.Pipeline.Put(uint32(slot), prog); errors.Is(err, unix.EINVAL) {
		return Stage{}, fmt.Errorf("the kernel won't chain it to ours; its section has to be xdp.frags: %w", err)
	} else if err != nil {
		return Stage{}, err
	}
	if err := b.setFeature(kernFeatureFEATURE_PIPELINE, true); err != nil {
		return Stage{}, errors.Join(err, set.Pipeline.Delete(uint32(slot)))
	}
	return stage(slot, prog)
}

// loadStage loads the XDP program of an object file; its map "pipeline", if
// it has one, is ours.
func loadStage(path string, pipeline *ebpf.Map, next int) (*ebpf.Program, error) {
	spec, err := ebpf.LoadCollectionSpec(path)
	if err != nil {
		return nil, err
	}
	name := ""
	for n, p := range spec.Programs {
		if p.Type != ebpf.XDP {
			continue
		}
		if name != "" {
			return nil, fmt.Errorf("it has several XDP programs, %s and %s", name, n)
		}
		name = n
	}
	if name == "" {
		return nil, errors.New("it has no XDP program")
	}
	if _, err := fitFragments(spec.Programs[name]); err != nil {
		return nil, err
	}
	if v := spec.Variables["next_slot"]; v != nil {
		if err := v.Set(uint32(next)); err != nil {
			return nil, fmt.Errorf("set next_slot: %w", err)
		}
	}
	replace := map[string]*ebpf.Map{}
	if spec.Maps[kernMapPipeline] != nil {
		replace[kernMapPipeline] = pipeline
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: replace})
	if err != nil {
		return nil, err
	}
	defer coll.Close()
	prog := coll.Programs[name]
	delete(coll.Programs, name)
	return prog, nil
}

func stage(slot int, prog *ebpf.Program) (Stage, error) {
	info, err := prog.Info()
	if err != nil {
		return Stage{}, err
	}
	id, _ := info.ID()
	return Stage{Slot: slot, ID: uint32(id), Name: info.Name, Tag: info.Tag}, nil
}

// RemoveStage empties a slot; ok is false if it was empty. Stages behind it
// keep their slots: those ahead of it fall through where it was.
func (b *Blocklist) RemoveStage(slot int) (ok bool, err error) {
	set, unlock, err := b.lock()
	if err != nil {
		return false, err
	}
	defer unlock()
	if slot < 0 || slot >= PipelineSlots {
		return false, fmt.Errorf("remove slot %d of the pipeline: slots go from 0 to %d", slot, PipelineSlots-1)
	}
	stages, err := b.Pipeline()
	if err != nil {
		return false, err
	}
	for _, s := range stages {
		if s.Slot != slot {
			continue
		}
		if len(stages) == 1 {
			if err := b.setFeature(kernFeatureFEATURE_PIPELINE, false); err != nil {
				return false, err
			}
		}
		if err := set.Pipeline.Delete(uint32(slot)); err != nil {
			return false, fmt.Errorf("remove slot %d of the pipeline: %w", slot, err)
		}
		return true, nil
	}
	return false, nil
}

// Pipeline lists the programs behind ours, by slot.
func (b *Blocklist) Pipeline() ([]Stage, error) {
	set, err := b.current()
	if err != nil {
		return nil, err
	}
	var out []Stage
	for slot := range PipelineSlots {
		var id uint32
		if err := set.Pipeline.Lookup(uint32(slot), &id); errors.Is(err, ebpf.ErrKeyNotExist) {
			continue
		} else if err != nil {
			return nil, fmt.Errorf("read the pipeline: %w", err)
		}
		s := Stage{Slot: slot, ID: id}
		// Reading a program by its id takes CAP_SYS_ADMIN; the rest doesn't.
		if prog, err := ebpf.NewProgramFromID(ebpf.ProgramID(id)); err == nil {
			s, err = stage(slot, prog)
			prog.Close()
			if err != nil {
				return nil, err
			}
		}
		out = append(out, s)
	}
	return out, nil
}
