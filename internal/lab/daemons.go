package lab

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"
)

// Journald starts a real journald, which also takes what is sent to syslog.
func (h *Host) Journald(ctx context.Context) (*Service, error) {
	if _, err := h.Run(ctx, "sh", "-c", "mkdir -p /run/systemd/journal && ln -sf /run/systemd/journal/dev-log /dev/log"); err != nil {
		return nil, err
	}
	return h.StartNotify(ctx, "systemd-journald.service", nil, "/usr/lib/systemd/systemd-journald")
}

// Rsyslog starts a real rsyslogd with Debian's configuration, as a host
// without journald has it: /var/log/auth.log is where sshd's lines go.
func (h *Host) Rsyslog(ctx context.Context) (*Service, error) {
	// There is no kernel log to read here.
	if _, err := h.Run(ctx, "sed", "-i", `/imklog/d`, "/etc/rsyslog.conf"); err != nil {
		return nil, err
	}
	s, err := h.Start("rsyslog.service", nil, "rsyslogd", "-n", "-iNONE")
	if err != nil {
		return nil, err
	}
	return s, h.untilExists(ctx, s, "/dev/log")
}

// Sshd starts a real sshd with Debian's configuration and returns when it
// listens.
func (h *Host) Sshd(ctx context.Context) (*Service, error) {
	if _, err := h.Run(ctx, "ssh-keygen", "-A"); err != nil {
		return nil, err
	}
	s, err := h.Start("ssh.service", nil, "/usr/sbin/sshd", "-D", "-o", "PidFile=/run/sshd.pid")
	if err != nil {
		return nil, err
	}
	return s, h.untilExists(ctx, s, "/run/sshd.pid")
}

// untilExists waits for a file by which a daemon shows that it is up.
func (h *Host) untilExists(ctx context.Context, s *Service, path string) error {
	gone := false
	err := Until(ctx, s.Unit+" is up", func() bool {
		select {
		case <-s.ended:
			gone = true
			return true
		default:
		}
		_, err := os.Lstat(h.Path(path))
		return err == nil
	})
	if gone {
		err = errGone
	}
	if err != nil {
		return fmt.Errorf("%s: start %s: %w\n%s", h.Name, s.Unit, err, s.Output())
	}
	return nil
}

// loginTime bounds a login. A server that bans the client after the key
// exchange, upon the first line it logs, answers no more, and ssh's own
// ConnectTimeout is over by then: it would wait for TCP to give up.
const loginTime = 15 * time.Second

// SSH tries to log in from this host with a password and returns what the
// client said. A login that is refused, or hears nothing for loginTime, is no
// error; err is for what could not be tried.
func (h *Host) SSH(ctx context.Context, from, user, password, to string) (said string, ok bool, err error) {
	login, cancel := context.WithTimeout(ctx, loginTime)
	defer cancel()
	out, err := h.Run(login, "sshpass", "-p", password, "ssh", "-n", "-F", "none", "-b", from,
		"-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR",
		"-o", "NumberOfPasswordPrompts=1", "-o", "PreferredAuthentications=password",
		"-o", "ConnectTimeout=3", user+"@"+to, "true")
	if ctx.Err() != nil {
		return out, false, err
	}
	return strings.TrimSpace(out), err == nil, nil
}
