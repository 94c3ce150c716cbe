package bpf

import (
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func TestSetOwner(t *testing.T) {
	namespace(t)
	b := open(t, Options{MaxBans: 1 << 14, MaxNets: 1 << 10})
	_, err := b.Attach("lo", ModeAuto)
	must(t, err)
	must(t, b.SetOwner(65534, 65533, 0o640))
	many := make([]Ban, 5000) // more than the first map holds
	for i, ban := range bench4(len(many)) {
		many[i] = ban
	}
	mustAdd(t, b, many...)
	err = filepath.WalkDir(b.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		want := os.FileMode(0o640)
		if d.IsDir() {
			want = 0o750
		}
		st, err := os.Stat(path)
		if err != nil {
			return err
		}
		if sys := st.Sys().(*syscall.Stat_t); sys.Uid != 65534 || sys.Gid != 65533 || st.Mode().Perm() != want {
			t.Errorf("%s: %d:%d %s", path, sys.Uid, sys.Gid, st.Mode())
		}
		return nil
	})
	must(t, err)
}
