package host

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

func TestParseEstablished(t *testing.T) {
	one := uint32(1)
	var order [4]byte
	binary.NativeEndian.PutUint32(order[:], one)
	if order[0] != 1 {
		t.Skip("the samples are a little-endian kernel's")
	}
	const tables = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   1: 0A0200C0:0016 076433C6:D431 01 00000000:00000000 02:000A7214 00000000     0        0 2 2 0 20 4 29 10 -1
   2: 0A0200C0:0016 0871 33C6:D431 06 00000000:00000000
   3: 0000000000000000FFFF00000A0200C0:0016 0000000000000000FFFF0000077100CB:0001 01 00000000:00000000 00:00000000 00000000 0 0 3
   4: B80D0120000000000000000001000000:0016 B80D0120000000000000000009000000:0001 01 00000000:00000000 00:00000000 00000000 0 0 3
`
	got, err := parseEstablished(strings.NewReader(tables))
	if err != nil {
		t.Fatal(err)
	}
	want := []netip.Addr{netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr("203.0.113.7"), netip.MustParseAddr("2001:db8::9")}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func utmpRecord(kind uint16, addr netip.Addr) []byte {
	rec := make([]byte, utmpSize)
	binary.NativeEndian.PutUint16(rec, kind)
	if addr.Is4() {
		a := addr.As4()
		copy(rec[utmpAddrAt:], a[:])
	} else if addr.Is6() {
		a := addr.As16()
		copy(rec[utmpAddrAt:], a[:])
	}
	return rec
}

func TestParseUtmp(t *testing.T) {
	var b bytes.Buffer
	const deadProcess = 8
	b.Write(utmpRecord(userProcess, netip.MustParseAddr("198.51.100.7")))
	b.Write(utmpRecord(deadProcess, netip.MustParseAddr("198.51.100.8")))
	b.Write(utmpRecord(userProcess, netip.Addr{})) // a local login
	b.Write(utmpRecord(userProcess, netip.MustParseAddr("2001:db8::9")))
	b.Write(utmpRecord(userProcess, netip.MustParseAddr("198.51.100.9"))[:100])
	got, err := parseUtmp(&b)
	if err != nil {
		t.Fatal(err)
	}
	want := []netip.Addr{netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr("2001:db8::9")}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestAddrsHasLoopback(t *testing.T) {
	own, err := Addrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range own {
		if p == netip.MustParsePrefix("127.0.0.1/32") {
			return
		}
	}
	t.Errorf("no 127.0.0.1 among own addresses %v", own)
}

func TestParseResolvConf(t *testing.T) {
	got, err := parseResolvConf(strings.NewReader("# nameserver 192.0.2.9\nsearch example.org\nnameserver 192.0.2.53\nnameserver\tfe80::1%eth0 \n" +
		"nameserver ::ffff:192.0.2.54\nnameserver dns.example.org\nnameserver\noptions edns0\nnameserver 2001:db8::53"))
	if err != nil {
		t.Fatal(err)
	}
	want := []netip.Addr{netip.MustParseAddr("192.0.2.53"), netip.MustParseAddr("fe80::1"), netip.MustParseAddr("192.0.2.54"), netip.MustParseAddr("2001:db8::53")}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
