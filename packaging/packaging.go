// Package packaging holds what an installed xdpban consists of besides the
// program, for `xdpban service install`.
package packaging

import "embed"

// Units are xdpban's systemd units, in which the program is /usr/bin/xdpban, and
// Config the files of /etc/xdpban, all of them comments.
//
//go:embed xdpban.service xdpban-net.service xdpban-net.socket xdpban-nats.service xdpban-hook.service xdpban-hook.socket
var Units embed.FS

//go:embed xdpban.toml jail.d/local.toml
var Config embed.FS
