package main

import (
	"encoding/hex"
	"fmt"
	"strings"
	"testing"
)

func TestDecodePacket(t *testing.T) {
	const (
		eth  = "020000000001020000000002"
		ip4  = "4500002800000000400600007f000001c0000201" // wrong source on purpose: 127.0.0.1
		ip6  = "6000000000000640"
		from = "20010db8000000000000000000000002"
		to   = "20010db8000000000000000000000001"
		port = "1234001600000000"
	)
	for name, c := range map[string]struct{ packet, want string }{
		"IPv4 TCP":        {eth + "0800" + ip4 + port, "tcp 127.0.0.1:4660 > 192.0.2.1:22"},
		"IPv4 options":    {eth + "0800" + "46" + ip4[2:] + "01010101" + port, "tcp 127.0.0.1:4660 > 192.0.2.1:22"},
		"VLAN":            {eth + "81000064" + "0800" + ip4 + port, "tcp 127.0.0.1:4660 > 192.0.2.1:22"},
		"QinQ":            {eth + "88a80064" + "81000065" + "0800" + ip4 + port, "tcp 127.0.0.1:4660 > 192.0.2.1:22"},
		"later fragment":  {eth + "0800" + ip4[:12] + "0001" + ip4[16:] + port, "tcp 127.0.0.1 > 192.0.2.1"},
		"IPv6 TCP":        {eth + "86dd" + ip6 + from + to + port, "tcp [2001:db8::2]:4660 > [2001:db8::1]:22"},
		"IPv6 extensions": {eth + "86dd" + ip6[:12] + "0040" + from + to + "3c00000000000000" + "0600000000000000" + port, "tcp [2001:db8::2]:4660 > [2001:db8::1]:22"},
		"IPv6 fragment":   {eth + "86dd" + ip6[:12] + "2c40" + from + to + "0600001000000001" + port, "tcp 2001:db8::2 > 2001:db8::1"},
		"cut short":       {eth + "0800" + ip4, "tcp 127.0.0.1 > 192.0.2.1"},
		"ARP":             {eth + "0806" + "0001", "? ? > ?"},
		"nothing":         {"", "? ? > ?"},
	} {
		b, err := hex.DecodeString(c.packet)
		if err != nil {
			t.Fatal(name, err)
		}
		d := decodePacket(b)
		if got := fmt.Sprintf("%s %s > %s", d.Protocol, endpoint(d.Source, d.SourcePort), endpoint(d.Target, d.TargetPort)); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

func FuzzDecodePacket(f *testing.F) {
	seed, err := hex.DecodeString(strings.Repeat("02", 12) + "86dd" + "6000000000002c40" + strings.Repeat("20", 32) + "3cff001000000001")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Fuzz(func(t *testing.T, b []byte) { decodePacket(b) })
}
