package place

import (
	"bytes"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/maxmind/mmdbwriter"
	"github.com/maxmind/mmdbwriter/mmdbtype"
)

// database writes one in MaxMind's format.
func database(t testing.TB, o mmdbwriter.Options, records map[string]mmdbtype.Map) []byte {
	t.Helper()
	o.IncludeReservedNetworks = true
	tree, err := mmdbwriter.New(o)
	if err != nil {
		t.Fatal(err)
	}
	for p, r := range records {
		_, n, err := net.ParseCIDR(p)
		if err != nil {
			t.Fatal(err)
		}
		if err := tree.Insert(n, r); err != nil {
			t.Fatal(err)
		}
	}
	var b bytes.Buffer
	if _, err := tree.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func country(code string) mmdbtype.Map {
	return mmdbtype.Map{
		"continent": mmdbtype.Map{"code": mmdbtype.String("EU")},
		"country":   mmdbtype.Map{"iso_code": mmdbtype.String(code), "names": mmdbtype.Map{"en": mmdbtype.String("Somewhere")}},
	}
}

func countries(t testing.TB) []byte {
	return database(t, mmdbwriter.Options{DatabaseType: "GeoLite2-Country"}, map[string]mmdbtype.Map{
		"192.0.2.0/24": country("DE"), "2001:db8::/32": country("DK"), "198.51.100.0/24": {"country": mmdbtype.Map{"iso_code": mmdbtype.String("<b>")}},
	})
}

func systems(t testing.TB) []byte {
	return database(t, mmdbwriter.Options{DatabaseType: "GeoLite2-ASN", IPVersion: 4}, map[string]mmdbtype.Map{
		"192.0.2.0/25": {"autonomous_system_number": mmdbtype.Uint32(64500), "autonomous_system_organization": mmdbtype.String("Example")},
	})
}

func put(t testing.TB, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path+".new", content, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func (p *Places) want(t *testing.T, addr string, want Place) {
	t.Helper()
	if got := p.Find(netip.MustParseAddr(addr)); got != want {
		t.Errorf("%s is in %+v, not %+v", addr, got, want)
	}
}

func TestFind(t *testing.T) {
	dir := t.TempDir()
	c, a, i := filepath.Join(dir, "country.mmdb"), filepath.Join(dir, "asn.mmdb"), filepath.Join(dir, "other.mmdb")
	put(t, c, countries(t))
	put(t, a, systems(t))
	put(t, i, database(t, mmdbwriter.Options{DatabaseType: "other"}, map[string]mmdbtype.Map{
		"203.0.113.0/25":   {"country": mmdbtype.String("Sweden"), "country_code": mmdbtype.String("SE"), "asn": mmdbtype.String("AS64501"), "as_name": mmdbtype.String("Other")},
		"203.0.113.128/25": {"country": mmdbtype.String("NO"), "asn": mmdbtype.String("none")},
		"100.64.0.0/10":    {"country": mmdbtype.String("Denmark")},
	}))
	var p Places
	p.want(t, "192.0.2.1", Place{})
	if err := p.Follow([]string{c, a, i}); err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	p.want(t, "192.0.2.1", Place{"DE", 64500, "Example"})
	p.want(t, "::ffff:192.0.2.1", Place{"DE", 64500, "Example"})
	p.want(t, "192.0.2.200", Place{Country: "DE"})
	p.want(t, "2001:db8::1", Place{Country: "DK"})
	p.want(t, "198.51.100.1", Place{})
	p.want(t, "203.0.113.1", Place{"SE", 64501, "Other"})
	p.want(t, "203.0.113.200", Place{Country: "NO"})
	p.want(t, "100.64.0.1", Place{})
	if got := p.Find(netip.Addr{}); got != (Place{}) {
		t.Errorf("no address is in %+v", got)
	}
	if err := p.Follow([]string{c, a, i}); err != nil {
		t.Errorf("a look in vain was told of: %v", err)
	}
}

func TestFollow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "country.mmdb")
	var p Places
	defer p.Close()
	follow := func(want string) {
		t.Helper()
		switch err := p.Follow([]string{path}); {
		case (err == nil) != (want == ""):
			t.Errorf("%v, not %q", err, want)
		case err != nil && (!strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path)):
			t.Errorf("%v, not %q", err, want)
		}
	}
	follow("no such file or directory; it tells nothing")
	p.want(t, "192.0.2.1", Place{})
	put(t, path, countries(t))
	follow("")
	p.want(t, "192.0.2.1", Place{Country: "DE"})
	put(t, path, database(t, mmdbwriter.Options{}, map[string]mmdbtype.Map{"192.0.2.0/24": country("FR")}))
	p.want(t, "192.0.2.1", Place{Country: "DE"})
	follow("")
	p.want(t, "192.0.2.1", Place{Country: "FR"})
	put(t, path, []byte("no database"))
	for range 2 {
		follow("what was there before serves on")
		p.want(t, "192.0.2.1", Place{Country: "FR"})
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	follow("no such file or directory; what was there before serves on")
	p.want(t, "192.0.2.1", Place{Country: "FR"})
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	follow("not a regular file") // and doesn't wait for a writer
	if err := p.Follow(nil); err != nil {
		t.Fatal(err)
	}
	p.want(t, "192.0.2.1", Place{})
}

// TestCutShort: the kernel ends a process that touches mapped memory whose
// file is gone from under it.
func TestCutShort(t *testing.T) {
	path := filepath.Join(t.TempDir(), "country.mmdb")
	many := map[string]mmdbtype.Map{}
	for i := range 256 {
		many[net.IPv4(198, 18, byte(i), 0).String()+"/24"] = mmdbtype.Map{"country": mmdbtype.Map{"iso_code": mmdbtype.String("DE")}, "other": mmdbtype.Bytes(make([]byte, 1000+i))}
	}
	content := database(t, mmdbwriter.Options{}, many)
	put(t, path, content)
	var p Places
	defer p.Close()
	if err := p.Follow([]string{path}); err != nil {
		t.Fatal(err)
	}
	p.want(t, "198.18.200.1", Place{Country: "DE"})
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	p.want(t, "198.18.200.1", Place{})
	if err := p.Follow([]string{path}); err == nil || !strings.Contains(err.Error(), "198.18.200.1: it is broken") {
		t.Errorf("not told: %v", err)
	}
	// As cp writes it.
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, time.Time{}, time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	if err := p.Follow([]string{path}); err != nil {
		t.Error(err)
	}
	p.want(t, "198.18.200.1", Place{Country: "DE"})
}

// TestGarbage: any bytes may stand in a database.
func TestGarbage(t *testing.T) {
	dir := t.TempDir()
	good := [][]byte{countries(t), systems(t)}
	random := rand.New(rand.NewPCG(1, 2))
	for i := range 500 {
		content := bytes.Clone(good[i%2])
		for range 1 + i%20 {
			content[random.IntN(len(content))] = byte(random.Uint32())
		}
		path := filepath.Join(dir, "garbage.mmdb")
		put(t, path, content)
		var p Places
		_ = p.Follow([]string{path}) // it may or may not be noticed
		for _, a := range []string{"192.0.2.1", "2001:db8::1", "198.51.100.1", "203.0.113.1"} {
			at := p.Find(netip.MustParseAddr(a))
			if n := len(at.Country); n != 0 && n != 2 {
				t.Fatalf("%d: %+v", i, at)
			}
		}
		p.Close()
	}
}
