package bpf

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// DefaultDir is where the maps and links are pinned unless Options say
// otherwise.
const DefaultDir = "/sys/fs/bpf/xdpban"

// Schema names the layout of the pinned maps, and the folder that holds
// them.
const Schema = "v1"

// Capacities where Options leave them zero. An entry takes memory only when
// it is used, but a map's table of buckets is there from the start: 16 bytes
// an entry.
const (
	DefaultMaxBans  = 1 << 20
	DefaultMaxNets  = 1 << 17
	DefaultMaxAllow = 1 << 14
)

// Options says where the blocklist is pinned and how large it may grow.
type Options struct {
	// Dir is the bpffs directory that holds our pins; the schema version is
	// a folder below it. A bpffs is mounted at the nearest fitting parent if
	// there is none yet. Empty means DefaultDir.
	Dir string
	// MaxBans is the capacity of ban4 and of ban6, in addresses; MaxNets
	// that of net4 and of net6, and MaxAllow that of allow4 and of allow6,
	// in prefixes. Zero keeps what is pinned, or takes the default.
	MaxBans, MaxNets, MaxAllow uint32
	// MustExist refuses to create maps: for commands that look at what runs.
	// The error is then fs.ErrNotExist.
	MustExist bool
}

// A PinError says that what is pinned under one of our names isn't ours.
type PinError struct {
	Path   string
	Reason string
}

func (e *PinError) Error() string {
	return fmt.Sprintf("%s is not xdpban's: %s; remove it, or choose another bpffs folder", e.Path, e.Reason)
}

// Blocklist is an open set of pinned maps and the program that reads them.
// Its methods may be called from several goroutines, and from several
// processes: writers take turns by a lock on the pins' folder.
type Blocklist struct {
	dir    string // the schema's folder
	folder *os.File
	spec   *ebpf.CollectionSpec
	maps   kernMaps
	epoch  uint64

	mu         sync.Mutex
	generation uint64  // of meta, as of our last turn
	tables     []table // ban4, ban6, net4, net6
	jails      jailNames
	swept      []Entry // ended bans that made room, for the next Sweep
}

// Open opens the pinned maps, or makes and pins them.
func Open(o Options) (*Blocklist, error) {
	if o.Dir == "" {
		o.Dir = DefaultDir
	}
	b := &Blocklist{dir: filepath.Join(o.Dir, Schema)}
	if err := b.open(o); err != nil {
		b.Close()
		return nil, fmt.Errorf("open the blocklist in %s: %w", b.dir, explain(err))
	}
	return b, nil
}

func (b *Blocklist) open(o Options) error {
	if o.MustExist {
		if _, err := os.Stat(b.dir); err != nil {
			return err
		}
	} else {
		if err := mountBPFFS(o.Dir); err != nil {
			return err
		}
		if err := os.MkdirAll(b.dir, 0o700); err != nil {
			return err
		}
		// Before Linux 5.11 maps counted against RLIMIT_MEMLOCK.
		if err := rlimit.RemoveMemlock(); err != nil {
			return err
		}
	}
	folder, err := os.Open(b.dir)
	if err != nil {
		return err
	}
	b.folder = folder
	if b.spec, err = loadKern(); err != nil {
		return err
	}
	size := func(n, def uint32, maps ...string) {
		for _, name := range maps {
			b.spec.Maps[name].MaxEntries = n
			if n == 0 {
				b.spec.Maps[name].MaxEntries = def
			}
		}
	}
	size(o.MaxBans, DefaultMaxBans, kernMapBan4, kernMapBan6)
	size(o.MaxNets, DefaultMaxNets, kernMapNet4, kernMapNet6)
	size(o.MaxAllow, DefaultMaxAllow, kernMapAllow4, kernMapAllow6)
	size(b.spec.Maps[kernMapBan4].MaxEntries+b.spec.Maps[kernMapNet4].MaxEntries, 0, kernMapOrigin4, kernMapOrigin6)

	unlock, err := b.lockFolder()
	if err != nil {
		return err
	}
	defer unlock()
	return b.openMaps(o.MustExist)
}

// openMaps opens each map's pin, or makes the map and pins it. meta comes
// last: a set without it was cut short while it was made, or somebody has
// removed pins, and a new epoch begins.
func (b *Blocklist) openMaps(mustExist bool) error {
	var fresh bool
	for _, m := range []struct {
		name string
		to   **ebpf.Map
	}{
		{kernMapBan4, &b.maps.Ban4}, {kernMapBan6, &b.maps.Ban6},
		{kernMapNet4, &b.maps.Net4}, {kernMapNet6, &b.maps.Net6},
		{kernMapOrigin4, &b.maps.Origin4}, {kernMapOrigin6, &b.maps.Origin6},
		{kernMapAllow4, &b.maps.Allow4}, {kernMapAllow6, &b.maps.Allow6},
		{kernMapVerdicts, &b.maps.Verdicts}, {kernMapJails, &b.maps.Jails},
		{kernMapIfaces, &b.maps.Ifaces}, {kernMapMeta, &b.maps.Meta},
	} {
		got, made, err := openMap(filepath.Join(b.dir, m.name), b.spec.Maps[m.name], mustExist)
		if err != nil {
			return err
		}
		*m.to = got
		b.spec.Maps[m.name].MaxEntries = got.MaxEntries()
		fresh = fresh || made
	}
	b.tables = b.makeTables()

	meta, err := b.meta()
	if err != nil {
		return err
	}
	if fresh || meta.Epoch == 0 {
		var random [8]byte
		rand.Read(random[:])
		meta.Epoch = binary.NativeEndian.Uint64(random[:]) | 1
		if err := b.setMeta(meta); err != nil {
			return err
		}
	}
	b.epoch = meta.Epoch
	if fresh {
		// A link that outlived its maps' pins filters by maps that
		// nobody can reach any more.
		return b.reload(meta)
	}
	return nil
}

func openMap(path string, spec *ebpf.MapSpec, mustExist bool) (m *ebpf.Map, made bool, err error) {
	m, err = ebpf.LoadPinnedMap(path, nil)
	if err == nil {
		if reason := foreign(m, spec); reason != "" {
			m.Close()
			return nil, false, &PinError{Path: path, Reason: reason}
		}
		return m, false, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		// The kernel refuses a folder as it refuses who isn't permitted.
		if st, statErr := os.Lstat(path); statErr == nil && (st.IsDir() || !errors.Is(err, fs.ErrPermission)) {
			return nil, false, &PinError{Path: path, Reason: "it is no pinned map: " + err.Error()}
		}
		return nil, false, fmt.Errorf("open map %s: %w", path, err)
	}
	if mustExist {
		return nil, false, fmt.Errorf("open map %s: %w", path, err)
	}
	if m, err = ebpf.NewMap(spec); err != nil {
		return nil, false, fmt.Errorf("make map %s: %w", spec.Name, err)
	}
	if err := m.Pin(path); err != nil {
		m.Close()
		return nil, false, fmt.Errorf("pin map %s: %w", spec.Name, err)
	}
	return m, true, nil
}

// foreign says why a pinned map can't be ours, or nothing. Sizes alone don't
// show two fields that changed places: the types' BTF does.
func foreign(m *ebpf.Map, spec *ebpf.MapSpec) string {
	switch {
	case m.Type() != spec.Type:
		return fmt.Sprintf("it is a map of type %s where %s is expected", m.Type(), spec.Type)
	case m.KeySize() != spec.KeySize:
		return fmt.Sprintf("its key has %d bytes where %d are expected", m.KeySize(), spec.KeySize)
	case m.ValueSize() != spec.ValueSize:
		return fmt.Sprintf("its value has %d bytes where %d are expected", m.ValueSize(), spec.ValueSize)
	case m.Flags() != spec.Flags:
		return fmt.Sprintf("it has flags %#x where %#x are expected", m.Flags(), spec.Flags)
	}
	handle, err := m.Handle()
	if errors.Is(err, fs.ErrPermission) {
		// Type information is asked for by number, which takes
		// CAP_SYS_ADMIN. The daemon's unit goes without: there the folder,
		// which is root's and named for the schema, has to do.
		return ""
	}
	if err != nil {
		return "it has no type information: " + err.Error()
	}
	defer handle.Close()
	types, err := handle.Spec(nil)
	if err != nil {
		return "its type information can't be read: " + err.Error()
	}
	for _, want := range []btf.Type{spec.Key, spec.Value} {
		if _, ok := want.(*btf.Struct); !ok {
			continue
		}
		got, err := types.AnyTypeByName(want.TypeName())
		if err != nil {
			return fmt.Sprintf("it knows no struct %s", want.TypeName())
		}
		if g, w := layout(got), layout(want); g != w {
			return fmt.Sprintf("its struct %s is {%s} where {%s} is expected", want.TypeName(), g, w)
		}
	}
	return ""
}

// layout spells out a struct: each member's name, place and size.
func layout(t btf.Type) string {
	s, ok := btf.UnderlyingType(t).(*btf.Struct)
	if !ok {
		return t.TypeName()
	}
	var out []string
	for _, m := range s.Members {
		size, _ := btf.Sizeof(m.Type)
		out = append(out, fmt.Sprintf("%s @%d+%d", m.Name, m.Offset.Bytes(), size))
	}
	return strings.Join(out, ", ")
}

// mountBPFFS makes sure that dir is, or will be, in a bpffs.
func mountBPFFS(dir string) error {
	parent := dir
	var st unix.Statfs_t
	for {
		err := unix.Statfs(parent, &st)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.ENOENT) || parent == filepath.Dir(parent) {
			return fmt.Errorf("look at %s: %w", parent, err)
		}
		parent = filepath.Dir(parent)
	}
	if st.Type == unix.BPF_FS_MAGIC {
		return nil
	}
	at := dir
	if usual := "/sys/fs/bpf"; strings.HasPrefix(dir, usual+"/") {
		at = usual
	} else if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the mount point of a bpffs: %w", err)
	}
	if err := unix.Mount("bpf", at, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
		return fmt.Errorf("mount a bpffs at %s (mount -t bpf bpf %s): %w", at, at, err)
	}
	return nil
}

// explain adds to a refusal what the process lacks.
func explain(err error) error {
	if errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0 {
		return fmt.Errorf("%w (needs root, or CAP_BPF and CAP_NET_ADMIN)", err)
	}
	return err
}

// Close lets go of the maps; pins, links and bans stay.
func (b *Blocklist) Close() error {
	err := b.maps.Close()
	if b.folder != nil {
		err = errors.Join(err, b.folder.Close())
	}
	return err
}

// Epoch is a random number made with the maps: as long as it is the same,
// the kernel's set has been standing without interruption (no reboot, no
// removed pins), and what is missing from it has been unbanned by somebody.
func (b *Blocklist) Epoch() uint64 { return b.epoch }

// Capacity is the number of addresses, prefixes and allowed prefixes that
// fit, for IPv4 and for IPv6 each.
func (b *Blocklist) Capacity() (bans, nets, allow uint32) {
	return b.maps.Ban4.MaxEntries(), b.maps.Net4.MaxEntries(), b.maps.Allow4.MaxEntries()
}

func (b *Blocklist) meta() (m kernMeta, err error) {
	if err := b.maps.Meta.Lookup(uint32(0), &m); err != nil {
		return m, fmt.Errorf("read meta: %w", err)
	}
	return m, nil
}

func (b *Blocklist) setMeta(m kernMeta) error {
	if err := b.maps.Meta.Put(uint32(0), m); err != nil {
		return fmt.Errorf("write meta: %w", err)
	}
	return nil
}

// lock takes the turn to write, in this process and among processes. What
// was remembered of the maps is forgotten if another process has written.
func (b *Blocklist) lock() (unlock func(), err error) {
	b.mu.Lock()
	release, err := b.lockFolder()
	if err != nil {
		b.mu.Unlock()
		return nil, err
	}
	unlock = func() {
		release()
		b.mu.Unlock()
	}
	meta, err := b.meta()
	if err == nil {
		if meta.Generation != b.generation {
			for _, t := range b.tables {
				t.forget()
			}
		}
		meta.Generation++
		b.generation = meta.Generation
		err = b.setMeta(meta)
	}
	if err != nil {
		unlock()
		return nil, err
	}
	return unlock, nil
}

func (b *Blocklist) lockFolder() (unlock func(), err error) {
	fd := int(b.folder.Fd())
	for {
		err = unix.Flock(fd, unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", b.dir, err)
	}
	return func() { unix.Flock(fd, unix.LOCK_UN) }, nil
}
