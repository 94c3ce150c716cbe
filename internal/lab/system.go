package lab

import (
	"context"
	"fmt"
	"strings"
)

// System is a host that systemd runs: a whole Debian in a container of
// systemd-nspawn.
type System struct {
	*Host
	machine *Host // the host in which the container runs
	nspawn  *Service
}

// Settings of the container beyond nspawn's own: what loading and attaching
// BPF programs takes, and mounting a bpffs.
var nspawn = []string{
	"systemd-nspawn", "--quiet", "--boot", "--directory=/run/lab/root",
	"--register=no", "--keep-unit", "--private-network", "--console=pipe",
	"--capability=CAP_BPF,CAP_NET_ADMIN,CAP_PERFMON,CAP_SYS_ADMIN", "--system-call-filter=bpf",
}

// BootSystem boots the Debian in the folder root and returns when its
// start-up is done. What the system writes is gone with it: the folder
// stays as it is.
func BootSystem(ctx context.Context, name, root string) (*System, error) {
	machine, err := Boot(name + "-machine")
	if err != nil {
		return nil, err
	}
	s := &System{machine: machine, Host: &Host{Name: name}}
	// The container gets a bpffs where systemd mounts it on a real machine:
	// in nspawn's stripped /sys it doesn't by itself, and it refuses a mount
	// unit for that place. And the boot id that nspawn mounts over the
	// kernel's goes away before the journal reads it: a unit with a /proc of
	// its own would see another one, and journalctl --follow no entries.
	prepare := `
set -e
mkdir /run/lab/root /run/lab/root.upper /run/lab/root.work
mount -t overlay -o lowerdir="$1",upperdir=/run/lab/root.upper,workdir=/run/lab/root.work overlay /run/lab/root
cat >/run/lab/root/etc/systemd/system/bpffs.service <<'.'
[Unit]
DefaultDependencies=no
Before=sysinit.target systemd-journald.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=umount /proc/sys/kernel/random/boot_id
ExecStart=mkdir -p /sys/fs/bpf
ExecStart=mount -t bpf -o mode=1700 bpf /sys/fs/bpf
[Install]
WantedBy=sysinit.target
.
systemctl --quiet --root=/run/lab/root enable bpffs.service
echo "$2" >/run/lab/root/etc/hostname
`
	if _, err := machine.Run(ctx, "sh", "-c", prepare, "prepare", root, name); err != nil {
		machine.Close()
		return nil, err
	}
	if err := s.start(ctx); err != nil {
		machine.Close()
		return nil, err
	}
	return s, nil
}

func (s *System) start(ctx context.Context) (err error) {
	argv := append(nspawn[:len(nspawn):len(nspawn)], "--machine="+s.Name)
	s.nspawn, err = s.machine.Start("nspawn.service", []string{"SYSTEMD_NSPAWN_API_VFS_WRITABLE=yes"}, argv...)
	if err != nil {
		return err
	}
	// The container's first process is nspawn's only child once it runs
	// systemd; before that, nspawn has helpers of its own.
	var state string
	ended := false
	err = Until(ctx, s.Name+" has booted", func() bool {
		select {
		case <-s.nspawn.Ended():
			ended = true
			return true
		default:
		}
		for _, pid := range children(s.nspawn.PID()) {
			s.pid = pid
			state, _ = s.Run(ctx, "systemctl", "is-system-running")
			state = strings.TrimSpace(state)
			return state == "running" || state == "degraded"
		}
		return false
	})
	if ended {
		err = fmt.Errorf("boot %s: systemd-nspawn: %w", s.Name, errGone)
	}
	if err == nil && state != "running" {
		failed, _ := s.Run(ctx, "systemctl", "--failed", "--no-pager")
		err = fmt.Errorf("%s booted into state %s:\n%s", s.Name, state, failed)
	}
	if err != nil {
		return fmt.Errorf("%w\n%s", err, s.nspawn.Output())
	}
	return nil
}

// Reboot reboots the system. Its interfaces, but for lo, are gone then.
func (s *System) Reboot(ctx context.Context) error {
	// The connection to the system ends with it, sometimes before the
	// answer.
	s.Run(ctx, "systemctl", "reboot")
	select {
	case <-s.nspawn.Ended():
	case <-ctx.Done():
		return fmt.Errorf("reboot %s: %w", s.Name, ctx.Err())
	}
	return s.start(ctx)
}

// Close ends the system at once, as pulling the plug does.
func (s *System) Close() error { return s.machine.Close() }
