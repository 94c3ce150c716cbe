package test

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"xdpban/internal/lab"
)

// crowdsec is Debian's package, as make deps unpacks it: what it does when it is
// installed wants the Internet, its local API doesn't.
func crowdsec(t testing.TB) string {
	t.Helper()
	root, err := filepath.Abs("../.cache/crowdsec")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(root + "/usr/bin/cscli"); err != nil {
		t.Skipf("needs crowdsec, see make deps: %v", err)
	}
	return root
}

const crowdsecConfig = `
common: { daemonize: false, log_media: stdout, log_level: info, working_dir: /run/crowdsec }
config_paths:
  config_dir: /run/crowdsec
  data_dir: /run/crowdsec
  simulation_path: %[1]s/etc/crowdsec/simulation.yaml
  hub_dir: /run/crowdsec
  index_path: /run/crowdsec/.index.json
cscli: { output: human }
db_config: { type: sqlite, db_path: /run/crowdsec/crowdsec.db }
api:
  client: { credentials_path: /run/crowdsec/credentials.yaml }
  server: { log_level: info, listen_uri: 127.0.0.1:8080, profiles_path: %[1]s/etc/crowdsec/profiles.yaml, trusted_ips: [127.0.0.1] }
prometheus: { enabled: false }
`

type crowdsecBed struct {
	*bed
	root string
	api  *lab.Service
}

func (b *crowdsecBed) cscli(args ...string) string {
	b.Helper()
	return b.run(b.server, append([]string{b.root + "/usr/bin/cscli", "-c", "/run/crowdsec/config.yaml"}, args...)...)
}

func (b *crowdsecBed) serve() {
	b.Helper()
	s, err := b.server.Start("crowdsec.service", nil, b.root+"/usr/bin/crowdsec", "-c", "/run/crowdsec/config.yaml", "-no-cs")
	if err != nil {
		b.Fatal(err)
	}
	b.api = s
	if err := s.WaitFor(b.ctx, "CrowdSec Local API listening"); err != nil {
		b.Fatal(err)
	}
}

func (b *crowdsecBed) put(path, text string) {
	b.Helper()
	if err := os.MkdirAll(filepath.Dir(b.server.Path(path)), 0o755); err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(b.server.Path(path), []byte(text), 0o600); err != nil {
		b.Fatal(err)
	}
}

// tagged sends packets with a VLAN tag to the server.
func (b *crowdsecBed) tagged(from string, n int) {
	b.Helper()
	frame := append(slices.Repeat([]byte{0xff}, 6), 2, 0, 0, 0, 0, 1, 0x81, 0, 0, 5, 8, 0)
	frame = append(frame, 0x45, 0, 0, 20, 0, 0, 0, 0, 64, 1, 0, 0)
	frame = append(append(frame, netip.MustParseAddr(from).AsSlice()...), 198, 51, 100, 1)
	err := b.attacker.In(func() error {
		eth0, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for range n {
			if err := unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: eth0.Index}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
}

// feed is what xdpban feed list says of the one feed.
func (b *crowdsecBed) feed() (f struct {
	Bans, Refused int
	Error         string
	Dropped       struct{ Packets uint64 }
}) {
	b.Helper()
	list := []json.RawMessage{}
	if err := json.Unmarshal([]byte(b.run(b.server, program(b), "feed", "list", "--json")), &list); err != nil || len(list) != 1 {
		b.Fatalf("%d feeds, %v", len(list), err)
	}
	if err := json.Unmarshal(list[0], &f); err != nil {
		b.Fatal(err)
	}
	return f
}

func (b *crowdsecBed) until(what string, f func() bool) {
	b.Helper()
	if err := lab.Until(b.ctx, what, f); err != nil {
		b.Fatal(err)
	}
}

// TestCrowdSec: xdpban drops what a real CrowdSec decides, addresses and ranges,
// IPv4 and IPv6, with and without a VLAN tag, until CrowdSec takes it back.
func TestCrowdSec(t *testing.T) {
	root := crowdsec(t)
	b := &crowdsecBed{bed: newBed(t), root: root}
	b.put("/run/crowdsec/config.yaml", fmt.Sprintf(crowdsecConfig, root))
	b.put("/run/crowdsec/.index.json", "{}")
	b.cscli("machines", "add", "test", "--auto", "--force")
	key := b.cscli("bouncers", "add", "xdpban", "--output", "raw")
	lines := strings.Split(strings.TrimSpace(key), "\n")
	b.put("/etc/xdpban/crowdsec.key", lines[len(lines)-1]+"\n")
	b.put("/etc/xdpban/xdpban.toml", `
[[feed]]
name     = "crowdsec"
format   = "crowdsec"
url      = "http://127.0.0.1:8080/"
key_file = "/etc/xdpban/crowdsec.key"
interval = "1s"
`)
	b.serve()
	b.cscli("decisions", "add", "--ip", attacker4, "--duration", "1h")
	b.protect()
	b.until("the first decision is in force", func() bool { return b.feed().Bans == 1 })

	reach := func(addr string, want bool) {
		t.Helper()
		from, to := attacker4, server4
		switch addr {
		case attacker6:
			from, to = attacker6, server6
		case bystander4:
			from = bystander4
		}
		if got := b.pings(from, to); got != want {
			t.Errorf("%s reaches the server: %v, want %v", addr, got, want)
		}
	}
	reach(attacker4, false)
	reach(bystander4, true)
	reach(attacker6, true)
	b.cscli("decisions", "add", "--range", "2001:db8::64/123", "--duration", "1h")
	b.cscli("decisions", "add", "--range", "198.51.100.64/26", "--duration", "1h")
	// Our own address: CrowdSec may say what it likes.
	b.cscli("decisions", "add", "--ip", server4, "--duration", "1h")
	b.until("ranges are in force", func() bool { f := b.feed(); return f.Bans == 3 && f.Refused == 1 })
	reach(attacker6, false)
	b.tagged("198.51.100.66", 3)
	b.until("what has a VLAN tag is dropped too", func() bool { return b.bans()["198.51.100.64"].Packets == 3 })
	if f := b.feed(); f.Dropped.Packets < 3 || f.Error != "" {
		t.Errorf("%+v", f)
	}

	b.cscli("decisions", "delete", "--range", "198.51.100.64/26")
	b.cscli("decisions", "add", "--ip", bystander4, "--duration", "1h")
	b.cscli("decisions", "delete", "--ip", attacker4)
	b.until("the deleted ones are over", func() bool {
		bans := b.bans()
		_, old := bans[attacker4]
		_, wide := bans["198.51.100.64"]
		_, new := bans[bystander4]
		return !old && !wide && new
	})
	reach(attacker4, true)
	reach(bystander4, false)

	// A short one ends by itself; and without the API all go on.
	b.cscli("decisions", "add", "--ip", attacker4, "--duration", "4s")
	b.until("a short one is in force", func() bool { _, ok := b.bans()[attacker4]; return ok })
	b.api.Kill()
	b.until("the API is missed", func() bool { return strings.Contains(b.feed().Error, "refused") })
	reach(bystander4, false)
	b.until("the short one is over", func() bool { _, ok := b.bans()[attacker4]; return !ok })
	reach(attacker4, true)

	// What was decided while it couldn't be asked is caught up with.
	b.serve()
	b.cscli("decisions", "delete", "--ip", bystander4)
	b.cscli("decisions", "add", "--ip", attacker4, "--duration", "1h")
	b.run(b.server, program(b), "feed", "fetch", "crowdsec")
	b.until("all is as decided", func() bool {
		bans := b.bans()
		_, old := bans[bystander4]
		_, new := bans[attacker4]
		return !old && new && b.feed().Error == ""
	})
	b.cscli("bouncers", "delete", "xdpban")
	b.until("the key is missed", func() bool { return strings.Contains(b.feed().Error, "cscli bouncers add") })
	reach(attacker4, false)
}
