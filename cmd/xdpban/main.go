// Command xdpban bans attackers it sees in logs, in XDP.
package main

func main() {}
