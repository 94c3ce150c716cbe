package export

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"xdpban/internal/control"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func ban(prefix string, lasts time.Duration) control.Ban {
	b := control.Ban{Prefix: netip.MustParsePrefix(prefix), Jail: "sshd", Since: now.Add(-time.Minute)}
	if lasts != 0 {
		b.Until.Time = now.Add(lasts)
	}
	return b
}

func seq(bans []control.Ban, err error) Bans {
	return func(yield func(control.Ban, error) bool) {
		for _, b := range bans {
			if !yield(b, nil) {
				return
			}
		}
		if err != nil {
			yield(control.Ban{}, err)
		}
	}
}

func few() []control.Ban {
	bans := []control.Ban{
		ban("203.0.113.5/32", 90*time.Second), ban("2001:db8::5/128", 1500*time.Millisecond), ban("203.0.113.0/24", time.Hour),
		ban("2001:db8:bad::/48", 0), ban("198.51.100.1/32", 0), ban("192.0.2.9/32", -time.Second), ban("203.0.113.16/28", 50*365*24*time.Hour),
	}
	bans[0].Ports, bans[0].From, bans[0].Packets, bans[0].Bytes = []string{"22/tcp", "53/udp"}, "web2/sshd", 7, 420
	return bans
}

func written(t *testing.T, f Format, bans []control.Ban) string {
	t.Helper()
	var b bytes.Buffer
	if err := Write(&b, f, seq(bans, nil), now); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestLines(t *testing.T) {
	if got, want := written(t, Plain, few()[:5]), "203.0.113.5\n2001:db8::5\n203.0.113.0/24\n2001:db8:bad::/48\n198.51.100.1\n"; got != want {
		t.Errorf("plain: %q, want %q", got, want)
	}
	if got, want := written(t, CIDR, few()[:5]), "203.0.113.5/32\n2001:db8::5/128\n203.0.113.0/24\n2001:db8:bad::/48\n198.51.100.1/32\n"; got != want {
		t.Errorf("cidr: %q, want %q", got, want)
	}
	rows, err := csv.NewReader(strings.NewReader(written(t, CSV, few()))).ReadAll()
	if err != nil || len(rows) != 8 {
		t.Fatalf("csv: %d rows, %v", len(rows), err)
	}
	if got, want := strings.Join(rows[1], ";"), "203.0.113.5/32;sshd;2026-03-01T11:59:00Z;2026-03-01T12:01:30Z;7;420;22/tcp 53/udp;web2/sshd"; got != want {
		t.Errorf("csv: %s, want %s", got, want)
	}
	if rows[4][3] != "forever" {
		t.Errorf("csv: %q without an end", rows[4])
	}
}

func TestJSON(t *testing.T) {
	for _, bans := range [][]control.Ban{few(), nil} {
		var got struct {
			Version int
			Bans    []control.Ban
			Ports   []control.Port
		}
		if err := json.Unmarshal([]byte(written(t, JSON, bans)), &got); err != nil || got.Version != Version || len(got.Bans) != len(bans) {
			t.Errorf("%d bans: %+v, %v", len(bans), got, err)
		}
		var b bytes.Buffer
		if err := WriteJSON(&b, seq(bans, nil), &Rest{Ports: []control.Port{{Port: 80, Protocol: "udp"}}}); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(b.Bytes(), &got); err != nil || len(got.Bans) != len(bans) || len(got.Ports) != 1 {
			t.Errorf("%d bans and a port: %+v, %v", len(bans), got, err)
		}
	}
}

// TestFlat: whatever nests in what, no two ranges overlap, and each address
// has the latest end of all subnets that it is in.
func TestFlat(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		var nets []subnet
		for range rnd.IntN(12) {
			bits := 24 + rnd.IntN(9)
			// At the end of all addresses, too.
			p := netip.PrefixFrom(netip.AddrFrom4([4]byte{255, 255, 255, byte(rnd.IntN(256))}), bits).Masked()
			n := subnet{prefix: p}
			if k := rnd.IntN(5); k > 0 {
				n.until = now.Add(time.Duration(k) * time.Hour)
			}
			nets = append(nets, n)
		}
		want := map[netip.Addr]string{}
		for i := range 256 {
			a := netip.AddrFrom4([4]byte{255, 255, 255, byte(i)})
			for j, n := range nets {
				if n.prefix.Contains(a) && (want[a] == "" || longer(n.until, nets[atoi(want[a])].until)) {
					want[a] = fmt.Sprint(j)
				}
			}
		}
		given := append([]subnet(nil), nets...)
		got := map[netip.Addr]time.Time{}
		for s := range flat(nets) {
			for a := s.first; a.IsValid() && a.Compare(s.last) <= 0; a = a.Next() {
				if _, twice := got[a]; twice {
					t.Fatalf("%v: %s is in two ranges", given, a)
				}
				got[a] = s.until
			}
		}
		if len(got) != len(want) {
			t.Fatalf("%v: %d addresses, want %d", given, len(got), len(want))
		}
		for a, until := range got {
			if w := given[atoi(want[a])].until; !w.Equal(until) {
				t.Fatalf("%v: %s until %s, want %s", given, a, until, w)
			}
		}
	}
	for range flat([]subnet{{prefix: netip.MustParsePrefix("10.0.0.0/8")}, {prefix: netip.MustParsePrefix("11.0.0.0/8")}}) {
		break // as a writer that fails
	}
}

func atoi(s string) (n int) {
	fmt.Sscan(s, &n)
	return n
}

// firewall runs a program in a name space of its own.
func firewall(t *testing.T, input string, argv ...string) (string, error) {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin = strings.NewReader(input)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func needs(t *testing.T, program string) {
	t.Helper()
	_, err := exec.LookPath(program)
	if os.Geteuid() != 0 {
		err = errors.New("needs root")
	}
	if err != nil && os.Getenv("CI") == "true" {
		t.Fatal(err)
	} else if err != nil {
		t.Skip(err)
	}
}

// TestNFT: the real nft takes it, twice, bans that overlap included, and takes
// nothing of what broke off.
func TestNFT(t *testing.T) {
	needs(t, "nft")
	text := written(t, NFT, few())
	if out, err := firewall(t, text, "unshare", "--net", "nft", "-c", "-f", "-"); err != nil {
		t.Fatalf("%v: %s\n%s", err, out, text)
	}
	for _, bans := range [][]control.Ban{nil, few()[3:4], few()[1:2], few()[:1]} {
		if out, err := firewall(t, written(t, NFT, bans), "unshare", "--net", "nft", "-c", "-f", "-"); err != nil {
			t.Errorf("%d bans: %v: %s", len(bans), err, out)
		}
	}
	for cut := 0; cut <= len(text); cut++ {
		if strings.HasPrefix(text[cut:], "\n") && cut > len(nftHead) && cut < strings.Index(text, "}\nadd element inet xdpban addresses6") {
			if out, err := firewall(t, text[:cut], "unshare", "--net", "nft", "-c", "-f", "-"); err == nil {
				t.Errorf("nft takes what broke off at %d of %d bytes: %s", cut, len(text), out)
			}
		}
	}
	out, err := firewall(t, text, "unshare", "--net", "sh", "-ec", `
		cat >"$0"
		nft add table inet other
		nft -f "$0"; nft -f "$0"
		nft list table inet xdpban
		nft get element inet xdpban subnets4 '{ 203.0.113.17 }'
		nft get element inet xdpban subnets4 '{ 203.0.113.32 }'
		nft get element inet xdpban addresses6 '{ 2001:db8::5 }'
		nft list tables`, t.TempDir()+"/list")
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, part := range []string{
		"203.0.113.16/28 timeout 18250d", "203.0.113.0/28 timeout 1h", "198.51.100.1", "203.0.113.5 timeout 1m30s", "2001:db8:bad::/48",
		"ip saddr @addresses4 counter packets 0 bytes 0 drop", "table inet other",
	} {
		if !strings.Contains(out, part) {
			t.Errorf("no %q in\n%s", part, out)
		}
	}
	if n := strings.Count(out, "ip saddr @addresses4"); n != 1 || strings.Contains(out, "192.0.2.9") {
		t.Errorf("%d rules for addresses, or a ban that is over:\n%s", n, out)
	}
}

// TestIPSet: the real ipset takes it, again and again, while the sets are in
// use, and what breaks off changes nothing.
func TestIPSet(t *testing.T) {
	needs(t, "ipset")
	text := written(t, IPSet, few())
	out, err := firewall(t, text, "unshare", "--net", "sh", "-ec", `
		cat >"$0"
		ipset restore <"$0"
		head -n 12 "$0" >"$0.cut"
		ipset restore <"$0.cut"
		ipset list xdpban4; ipset list xdpban6
		ipset test xdpban4 203.0.113.200; ipset test xdpban6 2001:db8:bad::1
		ipset restore <"$0"
		ipset list -name`, t.TempDir()+"/list")
	if err != nil {
		t.Fatalf("%v: %s\n%s", err, out, text)
	}
	for _, part := range []string{"203.0.113.0/24 timeout 3", "203.0.113.16/28 timeout 214748", "198.51.100.1 timeout 0", "2001:db8:bad::/48 timeout 0"} {
		if !strings.Contains(out, part) {
			t.Errorf("no %q in\n%s", part, out)
		}
	}
	if !strings.HasSuffix(out, "xdpban4\nxdpban6\n") || strings.Contains(out, "192.0.2.9") {
		t.Errorf("it leaves something behind, or a ban that is over:\n%s", out)
	}
}

// TestBrokenOff: an error on the way is returned, by each format, and nothing
// says that all is there.
func TestBrokenOff(t *testing.T) {
	broken := errors.New("broken")
	for _, f := range Formats() {
		var b bytes.Buffer
		if err := Write(&b, f, seq(few(), broken), now); !errors.Is(err, broken) {
			t.Errorf("%s: %v", f, err)
		}
		if f == JSON && json.Valid(b.Bytes()) || f == IPSet && strings.Contains(b.String(), "swap") {
			t.Errorf("%s: half a list looks whole: %s", f, b.String())
		}
		if err := Write(full{}, f, seq(few(), nil), now); err == nil {
			t.Errorf("%s: a full disk goes unnoticed", f)
		}
	}
	if err := Write(&bytes.Buffer{}, "xml", seq(nil, nil), now); err == nil {
		t.Error("xml passes")
	}
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("no space left on device") }
