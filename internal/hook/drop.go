package hook

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// nobody is the user and group that programs run as where no service manager
// gives them one of their own.
const nobody = 65534

// Exec becomes a program that has none of root's powers and can't get any: as
// nobody, without capabilities, and with no_new_privs, so that set-user-ID bits
// mean nothing to it. It returns only if that fails.
func Exec(args []string) error {
	if len(args) == 0 {
		return errors.New("run a hook: no program is named")
	}
	path, err := exec.LookPath(args[0])
	if err != nil {
		return fmt.Errorf("run a hook: %w", err)
	}
	// Capabilities are a thread's.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := drop(); err != nil {
		return fmt.Errorf("run %s without privileges: %w", path, err)
	}
	return fmt.Errorf("run %s: %w", path, unix.Exec(path, args, os.Environ()))
}

// drop gives up all that a thread may do.
func drop() error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("clear the ambient capabilities: %w", err)
	}
	root := os.Geteuid() == 0
	for c := uintptr(0); c < 64; c++ {
		err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) {
			break // behind the last one that the kernel knows
		}
		// Who isn't root may not, and has none that would come of it.
		if err != nil && root {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	if root {
		if err := syscall.Setgroups(nil); err != nil {
			return fmt.Errorf("leave all groups: %w", err)
		}
		if err := syscall.Setresgid(nobody, nobody, nobody); err != nil {
			return fmt.Errorf("become group %d: %w", nobody, err)
		}
		if err := syscall.Setresuid(nobody, nobody, nobody); err != nil {
			return fmt.Errorf("become user %d: %w", nobody, err)
		}
	}
	none := [2]unix.CapUserData{}
	if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
		return fmt.Errorf("drop the capabilities: %w", err)
	}
	// Nothing of ours goes along.
	if err := unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil && !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("close what is open: %w", err)
	}
	return nil
}
