package main

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	"xdpban/bpf"
	"xdpban/internal/control"
)

// BenchmarkParseList reads a blocklist of 100,000 addresses.
func BenchmarkParseList(b *testing.B) {
	var list bytes.Buffer
	for i := range 100_000 {
		fmt.Fprintf(&list, "198.%d.%d.%d # 2026-03-01\n", 18+i>>16, i>>8&255, i&255)
	}
	b.SetBytes(int64(list.Len()))
	b.ReportAllocs()
	for b.Loop() {
		ps, err := parseList(bytes.NewReader(list.Bytes()), func(line int, err error) error { return err })
		if err != nil || len(ps) != 100_000 {
			b.Fatal(len(ps), err)
		}
	}
}

// BenchmarkBan bans 100,000 addresses straight on the maps.
func BenchmarkBan(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("needs root")
	}
	dir := fmt.Sprintf("/sys/fs/bpf/xdpban-bench-%d", os.Getpid())
	defer os.RemoveAll(dir)
	blocklist, err := bpf.Open(bpf.Options{Dir: dir})
	if err != nil {
		b.Fatal(err)
	}
	defer blocklist.Close()
	m := &pinned{blocklist}
	r := control.BanRequest{For: control.Duration(time.Hour)}
	for i := range 100_000 {
		r.Prefixes = append(r.Prefixes, netip.PrefixFrom(netip.AddrFrom4([4]byte{198, byte(18 + i>>16), byte(i >> 8), byte(i)}), 32))
	}
	for b.Loop() {
		res, err := m.Ban(b.Context(), r)
		if err != nil || res.Banned != len(r.Prefixes) {
			b.Fatal(res.Banned, err)
		}
		b.StopTimer()
		if err := blocklist.Sync(nil); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
