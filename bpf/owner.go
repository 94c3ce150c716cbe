package bpf

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// SetOwner gives the pins to a user and group, with a mode for the pins such
// as 0o640; folders can be searched by whom it lets read. -1 leaves the user
// or group as it is. Maps that grow keep it; the pin of a later Attach needs
// another call. BPF rights are a matter of their own: the kernel asks for
// CAP_BPF unless kernel.unprivileged_bpf_disabled is 0.
func (b *Blocklist) SetOwner(uid, gid int, mode fs.FileMode) error {
	_, unlock, err := b.lock()
	if err != nil {
		return err
	}
	defer unlock()
	err = filepath.WalkDir(b.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		m := mode.Perm()
		if d.IsDir() {
			m |= m & 0o444 >> 2
		}
		if err := os.Chmod(path, m); err != nil {
			return err
		}
		return os.Chown(path, uid, gid)
	})
	if err != nil {
		return fmt.Errorf("set the owner of the pins: %w", explain(err))
	}
	return nil
}

// sameOwner gives a file the owner, group and mode of another.
func sameOwner(from, to string) error {
	st, err := os.Stat(from)
	if err != nil {
		return err
	}
	if err := os.Chmod(to, st.Mode().Perm()); err != nil {
		return err
	}
	sys := st.Sys().(*syscall.Stat_t)
	return os.Chown(to, int(sys.Uid), int(sys.Gid))
}
