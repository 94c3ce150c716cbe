package main

import (
	"fmt"
	"io"

	"xdpban/bpf"
)

type pipelineCmd struct {
	Add    pipelineAddCmd    `cmd:"" help:"Put a program into the first free slot."`
	Remove pipelineRemoveCmd `cmd:"" help:"Empty a slot."`
	List   pipelineListCmd   `cmd:"" default:"1" help:"List the programs in their order."`
}

// pipelineStage is a bpf.Stage as JSON.
type pipelineStage struct {
	Slot int    `json:"slot"`
	ID   uint32 `json:"id"`
	Name string `json:"name"`
	Tag  string `json:"tag"`
}

type pipelineAddCmd struct {
	Program string `arg:"" help:"A pinned XDP program, or an object file with one, in section xdp.frags."`
}

func (c *pipelineAddCmd) Run(a *app) error {
	b, err := bpf.Open(a.maps())
	if err != nil {
		return err
	}
	defer b.Close()
	s, err := b.AddStage(c.Program)
	if err != nil {
		return err
	}
	return a.print(pipelineStage(s), func(w io.Writer) {
		fmt.Fprintf(w, "slot %d: %s, program %d\n", s.Slot, printable(s.Name), s.ID)
	})
}

type pipelineRemoveCmd struct {
	Slot int `arg:"" help:"The slot, as pipeline list shows it."`
}

func (c *pipelineRemoveCmd) Run(a *app) error {
	b, err := bpf.Open(bpf.Options{Dir: a.BPFDir, MustExist: true})
	if err != nil {
		return err
	}
	defer b.Close()
	ok, err := b.RemoveStage(c.Slot)
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("slot %d is empty", c.Slot)
	}
	return a.print(map[string]int{"removed": c.Slot}, func(w io.Writer) {
		fmt.Fprintf(w, "slot %d is empty now\n", c.Slot)
	})
}

type pipelineListCmd struct{}

func (c *pipelineListCmd) Run(a *app) error {
	b, err := bpf.Open(bpf.Options{Dir: a.BPFDir, MustExist: true})
	if err != nil {
		return err
	}
	defer b.Close()
	list, err := b.Pipeline()
	if err != nil {
		return err
	}
	stages := make([]pipelineStage, len(list))
	for i, s := range list {
		stages[i] = pipelineStage(s)
	}
	return a.print(stages, func(w io.Writer) {
		t := newTable(w, "SLOT", "PROGRAM", "NAME", "TAG")
		for _, s := range stages {
			t.row(fmt.Sprint(s.Slot), fmt.Sprint(s.ID), s.Name, s.Tag)
		}
		t.flush()
	})
}
