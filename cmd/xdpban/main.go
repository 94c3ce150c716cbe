// Command xdpban bans attackers it sees in logs, in XDP.
package main

import "os"

// version is set by the linker.
var version = "unknown"

func main() {
	os.Exit(execute(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
