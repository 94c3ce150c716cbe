package bpf

import (
	"bytes"
	"context"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// synlimit compiles the example, where that hasn't been done for a machine
// without a compiler.
func synlimit(t *testing.T) string {
	t.Helper()
	if out := os.Getenv("XDPBAN_TEST_SYNLIMIT"); out != "" {
		return out
	}
	out := filepath.Join(t.TempDir(), "synlimit.o")
	cmd := exec.Command("clang-14", "-O2", "-g", "-Wall", "-Werror", "-target", "bpf",
		"-idirafter", "/usr/include/x86_64-linux-gnu", "-idirafter", "/usr/include/aarch64-linux-gnu",
		"-c", "example/synlimit.bpf.c", "-o", out)
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, msg)
	}
	return out
}

func TestPipeline(t *testing.T) {
	dir := bpffs(t)
	b := open(t, Options{Dir: dir})
	mustAdd(t, b, forever("192.0.2.66"))
	obj := synlimit(t)
	first, err := b.AddStage(obj)
	must(t, err)
	if first.Slot != 0 || first.Name != "synlimit" || first.ID == 0 || first.Tag == "" {
		t.Errorf("stage %+v", first)
	}
	p := program(t, b)
	passed := 0
	for range 100 {
		if run(t, p, from4("192.0.2.1")) == xdpPass {
			passed++
		}
	}
	if passed < 20 || passed == 100 {
		t.Errorf("%d of 100 SYNs passed, want about 20", passed)
	}
	if run(t, p, frame(eth(etherIP4), ip4("192.0.2.2", ip4opt{proto: tcp}, l4(22)...))) != xdpPass {
		t.Error("another source is dropped")
	}
	if run(t, p, from4("192.0.2.66")) != xdpDrop {
		t.Error("the banned source passes")
	}

	// A second one, pinned: it gets what the first lets pass.
	pin := filepath.Join(dir, "somebody")
	dropper := returns(t, xdpDrop)
	must(t, dropper.Pin(pin))
	second, err := b.AddStage(pin)
	must(t, err)
	if second.Slot != 1 {
		t.Errorf("stage %+v", second)
	}
	if run(t, p, from6("2001:db8::1")) != xdpDrop {
		t.Error("the second program isn't reached")
	}
	if list, err := b.Pipeline(); err != nil || len(list) != 2 || list[0] != first || list[1] != second {
		t.Errorf("pipeline %+v, %v", list, err)
	}
	// The chain lives with the pins.
	again := open(t, Options{Dir: dir, MustExist: true})
	if list, err := again.Pipeline(); err != nil || len(list) != 2 {
		t.Errorf("pipeline %+v, %v", list, err)
	}
	for _, slot := range []int{1, 0} {
		if ok, err := b.RemoveStage(slot); !ok || err != nil {
			t.Errorf("remove %d: %v, %v", slot, ok, err)
		}
	}
	if ok, err := b.RemoveStage(0); ok || err != nil {
		t.Errorf("remove again: %v, %v", ok, err)
	}
	if run(t, program(t, b), from6("2001:db8::1")) != xdpPass {
		t.Error("an empty pipeline drops")
	}

	refused := map[string]string{
		"not a pinned program": filepath.Join(dir, "none"),
		"nor an object file":   "pipeline.go",
	}
	if multiBuffer, err := hasHelper(asm.FnXdpGetBuffLen); err != nil {
		t.Error(err)
	} else if multiBuffer {
		refused["section has to be xdp"] = plainXDP(t, dir)
	}
	for what, path := range refused {
		if _, err := b.AddStage(path); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if _, err := b.RemoveStage(8); err == nil {
		t.Error("slot 8: no error")
	}
}

// plainXDP pins a program that doesn't know fragments.
func plainXDP(t *testing.T, dir string) string {
	t.Helper()
	pin := filepath.Join(dir, "plain")
	must(t, passer(t).Pin(pin))
	return pin
}

func TestMonitor(t *testing.T) {
	b := open(t, Options{})
	mustAdd(t, b, forever("192.0.2.66"), forever("2001:db8::/32"))
	must(t, b.BlockPort(Port{"tcp", 22}))
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	got, done := make(chan Sample), make(chan error)
	go func() {
		done <- b.Monitor(ctx, 1, func(s Sample) error {
			got <- s
			return nil
		})
	}()
	var p *ebpf.Program
	for {
		meta, err := b.readMeta()
		must(t, err)
		if meta.Features&uint32(kernFeatureFEATURE_MONITOR) != 0 {
			p = program(t, b)
			break
		}
		time.Sleep(time.Millisecond)
	}
	long := frame(eth(etherIP4), ip4("192.0.2.66", ip4opt{proto: udp}, make([]byte, 1000)...))
	var file bytes.Buffer
	pcap, err := NewPcap(&file)
	must(t, err)
	want := 24
	for _, tt := range []struct {
		frame []byte
		why   Outcome
	}{{from4("192.0.2.66"), DroppedBan}, {from6("2001:db8::1"), DroppedNet}, {from4("192.0.2.1"), DroppedPort}, {long, DroppedBan}} {
		run(t, p, from4("192.0.2.99")[:30]) // passes: no sample
		if run(t, p, tt.frame) != xdpDrop {
			t.Fatal("not dropped")
		}
		var s Sample
		select {
		case s = <-got:
		case err := <-done:
			t.Fatalf("Monitor ended before the sample came: %v", err)
		}
		n := min(len(tt.frame), 128)
		if s.Outcome != tt.why || s.Length != len(tt.frame) || !bytes.Equal(s.Data, tt.frame[:n]) || s.Index == 0 {
			t.Errorf("sample %+v, want %s of %x", s, tt.why, tt.frame)
		}
		if d := time.Since(s.Time); d < -time.Second || d > time.Minute {
			t.Errorf("time %s", s.Time)
		}
		must(t, pcap.Write(s))
		want += 16 + n
	}
	if file.Len() != want || binary.LittleEndian.Uint32(file.Bytes()) != 0xa1b23c4d {
		t.Errorf("capture file of %d bytes, want %d", file.Len(), want)
	}
	cancel()
	must(t, <-done)
	if meta, err := b.readMeta(); err != nil || meta.Features&uint32(kernFeatureFEATURE_MONITOR) != 0 {
		t.Errorf("sampling is still on: %+v, %v", meta, err)
	}
	if err := b.Monitor(context.Background(), 0, nil); err == nil {
		t.Error("one in 0: no error")
	}
}
