package bpf

import (
	"cmp"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

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
const Schema = "v3"

// Limits where Options leave them zero. Maps start small and grow up to them,
// so a high limit costs nothing.
const (
	DefaultMaxBans  = 1 << 20
	DefaultMaxNets  = 1 << 17
	DefaultMaxAllow = 1 << 14
	DefaultMaxPorts = 1 << 12
)

// Options says where the blocklist is pinned and how large it may grow.
type Options struct {
	// Dir is the bpffs directory that holds our pins; the schema version is
	// a folder below it. A bpffs is mounted at the nearest fitting parent if
	// there is none yet. Empty means DefaultDir.
	Dir string
	// MaxBans is how many addresses ban4 and ban6 may hold, MaxNets how
	// many prefixes net4 and net6, MaxAllow how many allow4 and allow6,
	// which are made with that size, and MaxPorts how many ports may be blocked,
	// the scopes' included. Zero keeps what is pinned, or takes the
	// default; an existing set keeps its limits if MustExist is set.
	MaxBans, MaxNets, MaxAllow, MaxPorts uint32
	// MustExist refuses to create maps: for commands that look at what runs.
	// The error is then fs.ErrNotExist.
	MustExist bool
}

// Small bounds all maps for a machine with little memory: together they take
// 4.5 MiB and 454 KiB for each CPU. Maps that exist keep
// their size until they are made anew.
func (o Options) Small() Options {
	o.MaxBans, o.MaxNets, o.MaxAllow, o.MaxPorts = 1<<13, 1<<10, 1<<10, 1<<8
	return o
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
	meta   *ebpf.Map
	maps   atomic.Pointer[mapSet]
	epoch  uint64
	// scopeCache holds []Port by scope number.
	scopeCache sync.Map

	mu         sync.Mutex
	generation uint64 // of meta, as of our last turn
	jails      jailNames
	swept      []Entry // ended bans that made room, for the next Sweep
}

// mapSet is the maps as they are pinned now. Maps of bans are replaced as
// they grow, also by other processes; a set that was handed out stays good
// for reading until nobody uses it.
type mapSet struct {
	kernMaps
	sieve      *sieve
	tables     []table  // ban4, ban6, net4, net6
	writers    *runners // for who holds the lock
	readers    *runners // for who doesn't
	generation uint64   // meta's count of replacements
}

// Close lets go of the maps and the programs that use them.
func (s *mapSet) Close() error {
	return errors.Join(s.kernMaps.Close(), s.writers.Close(), s.readers.Close())
}

// all pairs each map's pin with its place in the set. meta comes last: a set
// without it was cut short while it was made.
func (s *mapSet) all() []namedMap {
	return []namedMap{
		{kernMapBan4, &s.Ban4}, {kernMapBan6, &s.Ban6},
		{kernMapNet4, &s.Net4}, {kernMapNet6, &s.Net6},
		{kernMapOrigin4, &s.Origin4}, {kernMapOrigin6, &s.Origin6},
		{kernMapSieve, &s.Sieve},
		{kernMapAllow4, &s.Allow4}, {kernMapAllow6, &s.Allow6},
		{kernMapVerdicts, &s.Verdicts}, {kernMapJails, &s.Jails},
		{kernMapPorts, &s.Ports}, {kernMapPipeline, &s.Pipeline}, {kernMapEvents, &s.Events},
		{kernMapIfaces, &s.Ifaces}, {kernMapMeta, &s.Meta},
	}
}

type namedMap struct {
	name string
	m    **ebpf.Map
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
	}
	// Before Linux 5.11 maps and programs counted against RLIMIT_MEMLOCK. Who may
	// not raise it may still read.
	if err := rlimit.RemoveMemlock(); err != nil && !o.MustExist {
		return err
	}
	folder, err := os.Open(b.dir)
	if err != nil {
		return err
	}
	b.folder = folder
	if b.spec, err = loadKern(); err != nil {
		return err
	}
	bans, nets := firstBans, firstNets
	if o.MaxBans > 0 {
		bans = min(bans, o.MaxBans)
	}
	if o.MaxNets > 0 {
		nets = min(nets, o.MaxNets)
	}
	for name, n := range map[string]uint32{
		kernMapBan4: bans, kernMapBan6: bans,
		kernMapNet4: nets, kernMapNet6: nets,
		kernMapSieve:  sieveWords(2 * int(bans+nets)),
		kernMapPorts:  cmp.Or(o.MaxPorts, DefaultMaxPorts),
		kernMapAllow4: cmp.Or(o.MaxAllow, DefaultMaxAllow), kernMapAllow6: cmp.Or(o.MaxAllow, DefaultMaxAllow),
	} {
		b.spec.Maps[name].MaxEntries = n
	}

	unlock, err := b.lockFolder()
	if err != nil {
		return err
	}
	defer unlock()
	old, err := b.openV2()
	if err != nil {
		return err
	}
	if old != nil {
		defer old.Close()
	}
	if err := b.openMaps(o, old); err != nil || old == nil {
		return err
	}
	for _, step := range b.migration(old) {
		if err := step.do(); err != nil {
			return fmt.Errorf("take over from %s: %s: %w", old.dir, step.name, err)
		}
	}
	return nil
}

// roomForOrigins is one more than there can be entries: only a process that
// died on an old kernel can leave it without room for an entry's.
func roomForOrigins(bans, nets uint32) uint32 { return bans + nets + 1 }

// The sizes that maps of bans start with.
const (
	firstBans uint32 = 1 << 12
	firstNets uint32 = 1 << 10
)

// openMaps opens each map's pin, or makes the map and pins it. If any had to
// be made, somebody has removed pins, or there were none: a new epoch begins,
// unless those of an older schema are taken over.
func (b *Blocklist) openMaps(o Options, old *v2) error {
	interrupted, err := mendPins(b.dir)
	if err != nil {
		return err
	}
	var fresh bool
	set := &mapSet{}
	for _, m := range set.all() {
		switch m.name {
		case kernMapOrigin4:
			b.spec.Maps[m.name].MaxEntries = roomForOrigins(set.Ban4.MaxEntries(), set.Net4.MaxEntries())
		case kernMapOrigin6:
			b.spec.Maps[m.name].MaxEntries = roomForOrigins(set.Ban6.MaxEntries(), set.Net6.MaxEntries())
		}
		// A set of an older schema is complete, ours begins with the first try.
		got, made, err := openMap(filepath.Join(b.dir, m.name), b.spec.Maps[m.name], o.MustExist && old == nil)
		if err != nil {
			set.Close()
			return err
		}
		*m.m = got
		fresh = fresh || made
	}
	b.meta = set.Meta
	b.maps.Store(set)
	if old != nil {
		if err := b.writeMeta(old.meta); err != nil {
			return err
		}
	}

	meta, err := b.readMeta()
	if err != nil {
		return err
	}
	if fresh && old == nil || meta.Epoch == 0 {
		var random [8]byte
		rand.Read(random[:])
		meta.Epoch = binary.NativeEndian.Uint64(random[:]) | 1
	}
	if !o.MustExist || meta.MaxBans == 0 {
		meta.MaxBans = cmp.Or(o.MaxBans, meta.MaxBans, DefaultMaxBans)
		meta.MaxNets = cmp.Or(o.MaxNets, meta.MaxNets, DefaultMaxNets)
	}
	if interrupted {
		meta.Maps++
	}
	b.epoch = meta.Epoch
	set.generation = meta.Maps
	if err := errors.Join(set.makeTables(b, meta), b.writeMeta(meta)); err != nil {
		return err
	}
	if old != nil {
		return nil // its programs are in force yet
	}
	if interrupted {
		if err := b.reload(meta); err != nil {
			return err
		}
		return b.finishReplacement(meta)
	}
	if fresh {
		// The sieve may be new where bans aren't, and a link that outlived
		// its maps' pins filters by maps that nobody can reach any more.
		return errors.Join(set.sift(), b.reload(meta))
	}
	return nil
}

// ErrUnpinned says that somebody has removed pins of the maps or taken the
// bpffs away: whoever opens the blocklist now doesn't get these maps.
var ErrUnpinned = errors.New("the maps are no longer pinned")

// Pinned says whether the maps are still pinned where they were opened.
func (b *Blocklist) Pinned() error {
	_, unlock, err := b.lock()
	if err != nil {
		return err
	}
	defer unlock()
	was, err := b.folder.Stat()
	if err != nil {
		return err
	}
	is, err := os.Stat(b.dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(was, is) {
		return fmt.Errorf("%w in %s", ErrUnpinned, b.dir)
	}
	if err != nil {
		return err
	}
	for _, m := range b.maps.Load().all() {
		if _, err := os.Lstat(filepath.Join(b.dir, m.name)); errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w: %s is gone from %s", ErrUnpinned, m.name, b.dir)
		} else if err != nil {
			return err
		}
	}
	return nil
}

// current is the set of maps as they are pinned now.
func (b *Blocklist) current() (*mapSet, error) {
	meta, err := b.readMeta()
	if err != nil {
		return nil, err
	}
	if set := b.maps.Load(); set.generation == meta.Maps {
		return set, nil
	}
	set := &mapSet{generation: meta.Maps}
	for _, m := range set.all() {
		if *m.m, _, err = openMap(filepath.Join(b.dir, m.name), b.spec.Maps[m.name], true); err != nil {
			set.Close()
			return nil, err
		}
	}
	if err := set.makeTables(b, meta); err != nil {
		set.Close()
		return nil, err
	}
	b.maps.Store(set)
	return set, nil
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
	_, structKey := spec.Key.(*btf.Struct)
	_, structValue := spec.Value.(*btf.Struct)
	if !structKey && !structValue {
		return ""
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
	var err error
	if set := b.maps.Load(); set != nil {
		err = set.Close()
	}
	if b.folder != nil {
		err = errors.Join(err, b.folder.Close())
	}
	return err
}

// Epoch is a random number made with the maps: as long as it is the same,
// the kernel's set has been standing without interruption (no reboot, no
// removed pins), and what is missing from it has been unbanned by somebody.
func (b *Blocklist) Epoch() uint64 { return b.epoch }

func (b *Blocklist) readMeta() (m kernMeta, err error) {
	if err := b.meta.Lookup(uint32(0), &m); err != nil {
		return m, fmt.Errorf("read meta: %w", err)
	}
	return m, nil
}

func (b *Blocklist) writeMeta(m kernMeta) error {
	if err := b.meta.Put(uint32(0), m); err != nil {
		return fmt.Errorf("write meta: %w", err)
	}
	return nil
}

// lock takes the turn to write, in this process and among processes, and
// gives the maps as they are then. What was remembered of them is forgotten
// if another process has written.
func (b *Blocklist) lock() (set *mapSet, unlock func(), err error) {
	b.mu.Lock()
	release, err := b.lockFolder()
	if err != nil {
		b.mu.Unlock()
		return nil, nil, err
	}
	unlock = func() {
		release()
		b.mu.Unlock()
	}
	if set, err = b.takeTurn(); err != nil {
		unlock()
		return nil, nil, err
	}
	return set, unlock, nil
}

func (b *Blocklist) takeTurn() (*mapSet, error) {
	meta, err := b.readMeta()
	if err != nil {
		return nil, err
	}
	if meta.Replacing != 0 {
		if meta, err = b.mend(meta); err != nil {
			return nil, err
		}
	}
	set, err := b.current()
	if err != nil {
		return nil, err
	}
	if meta.Generation != b.generation {
		if set, err = b.remakeTables(meta); err != nil {
			return nil, err
		}
	}
	meta.Generation++
	b.generation = meta.Generation
	return set, b.writeMeta(meta)
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
