package bpf

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
)

// translated is what the kernel made of a program after the verifier removed
// what can't be reached: its length, and the maps that are still in it.
func translated(t *testing.T, b *Blocklist, p *ebpf.Program) (n int, uses map[string]bool) {
	t.Helper()
	info, err := p.Info()
	must(t, err)
	insns, err := info.Instructions()
	must(t, err)
	names := map[uint32]string{}
	for _, m := range b.maps.Load().all() {
		info, err := (*m.m).Info()
		must(t, err)
		id, _ := info.ID()
		names[uint32(id)] = m.name
	}
	uses = map[string]bool{}
	for _, i := range insns {
		if i.IsLoadFromMap() {
			if name, ok := names[uint32(i.Constant)]; ok {
				uses[name] = true
			}
		}
	}
	size, err := info.TranslatedSize()
	must(t, err)
	return size / 8, uses
}

// TestFeaturesNotInUseCostNothing loads the program with each combination of
// what can be switched on. What is off isn't in the program: none of its maps
// is, each feature adds to it, and bare it is as long as one that is compiled
// without any.
func TestFeaturesNotInUseCostNothing(t *testing.T) {
	b := open(t, Options{})
	plain, err := b.readMeta()
	must(t, err)
	always := []string{kernMapBan4, kernMapBan6, kernMapSieve, kernMapVerdicts}
	features := []struct {
		name string
		on   func(*kernMeta)
		maps []string
	}{
		{"subnets", func(m *kernMeta) { m.Lens4, m.Lens6[1] = 1<<24, 1 }, []string{kernMapNet4, kernMapNet6}},
		{"allowlist", func(m *kernMeta) { m.Features |= uint32(kernFeatureFEATURE_ALLOW4 | kernFeatureFEATURE_ALLOW6) }, []string{kernMapAllow4, kernMapAllow6}},
		{"ports", func(m *kernMeta) { m.Features |= uint32(kernFeatureFEATURE_PORTS) }, []string{kernMapPorts}},
		{"bans of ports", func(m *kernMeta) { m.Features |= uint32(kernFeatureFEATURE_SCOPES) }, []string{kernMapPorts}},
		{"policy deny", func(m *kernMeta) { m.Features |= uint32(kernFeatureFEATURE_DENY) }, nil},
		{"pipeline", func(m *kernMeta) { m.Features |= uint32(kernFeatureFEATURE_PIPELINE) }, []string{kernMapPipeline}},
		{"monitor", func(m *kernMeta) { m.Features |= uint32(kernFeatureFEATURE_MONITOR); m.Sampling = 1 }, []string{kernMapEvents}},
	}
	lengths := make([]int, 1<<len(features))
	for set := range lengths {
		meta := plain
		want := map[string]bool{}
		for _, m := range always {
			want[m] = true
		}
		var on []string
		for i, f := range features {
			if set&(1<<i) == 0 {
				continue
			}
			on = append(on, f.name)
			f.on(&meta)
			for _, m := range f.maps {
				want[m] = true
			}
		}
		p, err := b.load(meta, 0)
		must(t, err)
		n, uses := translated(t, b, p)
		p.Close()
		lengths[set] = n
		if !maps.Equal(uses, want) {
			t.Errorf("with %q the program uses %v, want %v", on, slices.Sorted(maps.Keys(uses)), slices.Sorted(maps.Keys(want)))
		}
		// Each feature of the set adds to what the others make.
		for i, f := range features {
			if less := set &^ (1 << i); less != set && lengths[less] >= n {
				t.Errorf("%q have %d instructions, without %s %d", on, n, f.name, lengths[less])
			}
		}
	}
	for i, f := range features {
		t.Logf("%s: %d instructions more than %d", f.name, lengths[1<<i]-lengths[0], lengths[0])
	}

	// What is left of a switch that is off is that it is read: of the ten, two
	// or three instructions each.
	n, _ := translated(t, b, withoutFeatures(t, b))
	t.Logf("compiled without: %d instructions", n)
	if lengths[0] > n+30 {
		t.Errorf("switched off, the features leave %d instructions more than %d", lengths[0]-n, n)
	}
}

// withoutFeatures compiles the program with the switches as constants.
func withoutFeatures(t *testing.T, b *Blocklist) *ebpf.Program {
	t.Helper()
	dir := t.TempDir()
	source, err := os.ReadFile("xdpban.bpf.c")
	must(t, err)
	text := string(source)
	for declaration, constant := range map[string]string{
		"volatile const enum feature features;": "#define features 0",
		"volatile const __u32 probes4_len;":     "#define probes4_len 0",
		"volatile const __u32 probes6_len;":     "#define probes6_len 0",
	} {
		if strings.Count(text, declaration) != 1 {
			t.Fatalf("%q isn't in the source once", declaration)
		}
		text = strings.Replace(text, declaration, constant, 1)
	}
	header, err := os.ReadFile("types.h")
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "types.h"), header, 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "bare.bpf.c"), []byte(text), 0o600))
	object := filepath.Join(dir, "bare.o")
	// The flags are those of gen.go.
	cmd := exec.Command("clang-14", "-O2", "-g", "-mcpu=v3", "-target", "bpf",
		"-idirafter", "/usr/include/x86_64-linux-gnu", "-idirafter", "/usr/include/aarch64-linux-gnu",
		"-c", filepath.Join(dir, "bare.bpf.c"), "-o", object)
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, msg)
	}
	spec, err := ebpf.LoadCollectionSpec(object)
	must(t, err)
	must(t, spec.Variables[kernVarCoarseClock].Set(true))
	must(t, spec.Variables[kernVarMultiBuffer].Set(true))
	must(t, spec.Variables[kernVarSieveShift].Set(b.maps.Load().sieve.shift()))
	var out struct {
		Xdpban *ebpf.Program `ebpf:"xdpban"`
	}
	must(t, b.maps.Load().assign(spec, &out))
	t.Cleanup(func() { out.Xdpban.Close() })
	return out.Xdpban
}
