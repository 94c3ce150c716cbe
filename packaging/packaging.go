// Package packaging holds what an installed xdpban consists of besides the
// program, for `xdpban service install`.
package packaging

import "embed"

// Units are xdpban's systemd units, and Settings the commented xdpban.toml.
// In the units the program is /usr/bin/xdpban.
//
//go:embed xdpban.service xdpban-net.service xdpban-net.socket
var Units embed.FS

//go:embed xdpban.toml
var Settings []byte
