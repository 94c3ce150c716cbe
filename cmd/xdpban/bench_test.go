package main

import (
	"bytes"
	"fmt"
	"testing"
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
