package server

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"

	"xdpban/jails"
)

const patience = 30 * time.Second

// port is one that nobody listens on.
func port(t *testing.T, addr string) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", addr+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// person is a host's key.
type person struct{ nkeys.KeyPair }

func newPerson(t *testing.T) person {
	t.Helper()
	k, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	return person{k}
}

func (p person) public(t *testing.T) string {
	t.Helper()
	s, err := p.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (p person) connect(t *testing.T, url string, o ...nats.Option) (*nats.Conn, error) {
	t.Helper()
	nc, err := nats.Connect(url, append(o, nats.Nkey(p.public(t), p.Sign), nats.CustomInboxPrefix("_INBOX.web1"), nats.MaxReconnects(-1), nats.ReconnectWait(20*time.Millisecond))...)
	if err == nil {
		t.Cleanup(nc.Close)
	}
	return nc, err
}

func settings(host string, listen netip.AddrPort) jails.Fleet {
	return jails.Fleet{Name: "web", Host: host, Server: jails.FleetServer{Embedded: true, Listen: listen, Hosts: map[string]string{}}}
}

// start runs a server until the test, or stop, ends it.
func start(t *testing.T, f jails.Fleet, dir string) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- Serve(ctx, Options{Settings: f, Dir: dir, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	}()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	return stop
}

// until tries until it works.
func until(t *testing.T, what string, try func() error) {
	t.Helper()
	give := time.Now().Add(patience)
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(give) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func dial(t *testing.T, p person, url string, o ...nats.Option) (nc *nats.Conn) {
	t.Helper()
	until(t, "connect to "+url, func() (err error) { nc, err = p.connect(t, url, o...); return err })
	return nc
}

// TestEachInItsOwnName: a host writes its own bans and reads all; another's it
// can't write, nor do anything to the bucket; a stranger isn't let in.
func TestEachInItsOwnName(t *testing.T) {
	f := settings("web1", port(t, "127.0.0.1"))
	one, two := newPerson(t), newPerson(t)
	f.Server.Hosts["web1"], f.Server.Hosts["web2"] = one.public(t), two.public(t)
	start(t, f, t.TempDir())
	url := "nats://" + f.Server.Listen.String()
	refused := make(chan string, 10)
	nc := dial(t, one, url, nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { refused <- err.Error() }))
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "KV_xdpban_web", Subjects: []string{"$KV.xdpban_web.>"}, MaxMsgsPerSubject: 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(t.Context(), "$KV.xdpban_web.ban.web1.c0000201-32", []byte("{}")); err != nil {
		t.Fatal(err)
	}
	theirs, err := dial(t, two, url).SubscribeSync("xdpban.web.hello.*")
	if err != nil {
		t.Fatal(err)
	}
	for _, subject := range []string{
		"$KV.xdpban_web.ban.web2.c0000201-32", "$KV.xdpban_other.ban.web1.c0000201-32", "xdpban.web.hello.web2",
		"$JS.API.STREAM.PURGE.KV_xdpban_web", "$JS.API.STREAM.DELETE.KV_xdpban_web", "$JS.API.STREAM.UPDATE.KV_xdpban_web", "$JS.API.STREAM.CREATE.other",
		"$JS.API.CONSUMER.NAMES.KV_xdpban_web", "$JS.API.CONSUMER.LIST.KV_xdpban_web", "$JS.API.CONSUMER.CREATE.other.x",
	} {
		if err := nc.Publish(subject, []byte("{}")); err != nil {
			t.Fatal(err)
		}
		select {
		case text := <-refused:
			if !strings.Contains(strings.ToLower(text), "permissions violation") || !strings.Contains(text, subject) {
				t.Errorf("%s: %s", subject, text)
			}
		case <-time.After(patience):
			t.Errorf("web1 may write to %s", subject)
		}
	}
	if _, err := nc.SubscribeSync("_INBOX.web2.>"); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	if text := <-refused; !strings.Contains(text, "_INBOX.web2.>") {
		t.Errorf("web1 may read what web2 is answered: %s", text)
	}
	if err := nc.Publish("xdpban.web.hello.web1", []byte("1")); err != nil {
		t.Fatal(err)
	}
	if m, err := theirs.NextMsg(patience); err != nil || string(m.Data) != "1" {
		t.Errorf("web2 hears %v, %v", m, err)
	}
	for who, err := range map[string]error{"a stranger": second(newPerson(t).connect(t, url)), "nobody": second(nats.Connect(url))} {
		if err == nil || !strings.Contains(err.Error(), "Authorization Violation") {
			t.Errorf("%s connects: %v", who, err)
		}
	}
}

func second(_ *nats.Conn, err error) error { return err }

// TestACluster: three servers keep what is written though one is gone, and a
// fourth without the secret isn't one of them.
func TestACluster(t *testing.T) {
	ca := authority(t)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("correct horse battery staple\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	host := newPerson(t)
	var all []jails.Fleet
	var peers []netip.AddrPort
	for i := range 3 {
		addr := fmt.Sprintf("127.0.0.%d", i+1)
		f := settings(fmt.Sprintf("web%d", i+1), port(t, addr))
		f.Server.Hosts["web1"] = host.public(t)
		f.Server.Secret = secret
		f.TLS = ca.issue(t, addr)
		peers = append(peers, port(t, addr))
		all = append(all, f)
	}
	var stops []func()
	var urls []string
	for i := range all {
		all[i].Server.Peers = peers
		stops = append(stops, start(t, all[i], t.TempDir()))
		urls = append(urls, "tls://"+all[i].Server.Listen.String())
	}
	nc := dial(t, host, strings.Join(urls[1:], ","), nats.RootCAs(all[0].TLS.CA))
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	config := jetstream.StreamConfig{Name: "KV_xdpban_web", Subjects: []string{"$KV.xdpban_web.>"}, MaxMsgsPerSubject: 1, Replicas: 3}
	until(t, "make a bucket with three replicas", func() error { return third(js.CreateStream(t.Context(), config)) })
	write := func(key string) error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := js.Publish(ctx, "$KV.xdpban_web.ban.web1."+key, nil)
		return err
	}
	until(t, "write", func() error { return write("a") })
	stops[0]()
	until(t, "write with two of three", func() error { return write("b") })

	// The first's place is free for who comes with its address, certificate
	// and a guess.
	wrong := all[0]
	wrong.Server.Secret = filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(wrong.Server.Secret, []byte("incorrect horse battery staple\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	start(t, wrong, t.TempDir())
	alone, err := jetstream.New(dial(t, host, urls[0], nats.RootCAs(all[0].TLS.CA), nats.DontRandomize(), nats.IgnoreDiscoveredServers()))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := alone.Stream(ctx, "KV_xdpban_web"); err == nil {
		t.Error("a server that doesn't know the secret is one of the cluster")
	}
	stops[1]()
	ctx, cancel = context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := js.Publish(ctx, "$KV.xdpban_web.ban.web1.c", nil); err == nil {
		t.Error("one of three takes a ban: it could be lost")
	}
}

func third(_ jetstream.Stream, err error) error { return err }

func TestWhatItCannotServe(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	short := filepath.Join(t.TempDir(), "short")
	if err := os.WriteFile(short, []byte("hunter2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	listen := netip.MustParseAddrPort("127.0.0.1:4222")
	peers := []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:6222"), netip.MustParseAddrPort("127.0.0.2:6222")}
	for want, change := range map[string]func(*jails.Fleet){
		"web2 = \"UUUU\" is no public key":          func(f *jails.Fleet) { f.Server.Hosts["web2"] = "UUUU" },
		"address already in use":                    func(f *jails.Fleet) { f.Server.Listen = taken.Addr().(*net.TCPAddr).AddrPort() },
		"read the servers' secret: open /nowhere":   func(f *jails.Fleet) { f.Server.Peers, f.Server.Secret = peers, "/nowhere" },
		"has 7 characters: write 16 or more":        func(f *jails.Fleet) { f.Server.Peers, f.Server.Secret = peers, short },
		"read the certificate /nowhere with key /x": func(f *jails.Fleet) { f.TLS = jails.FleetTLS{Cert: "/nowhere", Key: "/x"} },
	} {
		f := settings("web1", listen)
		change(&f)
		err := Serve(t.Context(), Options{Settings: f, Dir: t.TempDir(), Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// TestDocs: the configuration that docs/fleet.md has for a server of one's own
// lets hosts do what ours lets them.
func TestDocs(t *testing.T) {
	text, err := os.ReadFile("../../../docs/fleet.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, subject := range append(publishes("web", "web1"), subscribes("web", "web1")...) {
		if !strings.Contains(string(text), `"`+subject+`"`) {
			t.Errorf("docs/fleet.md lacks %q", subject)
		}
	}
}

// ca is an authority for a test.
type ca struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string
}

func authority(t *testing.T) *ca {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &ca{key: key, file: filepath.Join(t.TempDir(), "ca.pem")}
	c.cert = &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "fleet"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, c.cert, c.cert, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, c.file, "CERTIFICATE", der)
	return c
}

func (c *ca) issue(t *testing.T, addr string) jails.FleetTLS {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: addr}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.ParseIP(addr)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, c.cert, &key.PublicKey, c.key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	f := jails.FleetTLS{CA: c.file, Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem")}
	writePEM(t, f.Cert, "CERTIFICATE", der)
	writePEM(t, f.Key, "PRIVATE KEY", raw)
	return f
}

func writePEM(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}
