// Package server is a NATS server for a fleet that has none: alone, or as one
// of a cluster. It knows the fleet's hosts by their keys and lets each write in
// its own name only.
package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"

	"xdpban/jails"
)

// Options are what a server is made of.
type Options struct {
	Settings jails.Fleet
	Dir      string // what it keeps
	Log      *slog.Logger
}

const (
	startTime  = 30 * time.Second
	maxStore   = 1 << 30 // bytes: a bucket that is full has half of it
	maxMemory  = 16 << 20
	maxPayload = 256 << 10
	minSecret  = 16  // characters
	reports    = 600 // of a server that can't be reached: the first attempt, and each so many
)

// Serve runs the server until ctx ends. An error says why it couldn't start,
// or which file of the configuration is no good.
func Serve(ctx context.Context, o Options) error {
	options, err := natsOptions(o)
	if err != nil {
		return err
	}
	s, err := server.NewServer(options)
	if err != nil {
		return fmt.Errorf("make the fleet's server: %w", err)
	}
	said := &log{out: o.Log, fatal: make(chan string, 1)}
	s.SetLoggerV2(said, false, false, false)
	s.Start()
	defer s.WaitForShutdown()
	defer s.Shutdown()
	ready := make(chan bool, 1)
	go func() { ready <- s.ReadyForConnections(startTime) }()
	select {
	case text := <-said.fatal:
		return fmt.Errorf("start the fleet's server: %s", text)
	case ok := <-ready:
		if !ok {
			return fmt.Errorf("start the fleet's server: it doesn't listen on %s within %s", o.Settings.Server.Listen, startTime)
		}
	}
	o.Log.Info("the NATS server of fleet " + o.Settings.Name + " listens on " + o.Settings.Server.Listen.String())
	select {
	case <-ctx.Done():
		return nil
	case text := <-said.fatal:
		return fmt.Errorf("the fleet's server: %s", text)
	}
}

func natsOptions(o Options) (*server.Options, error) {
	f, s := o.Settings, o.Settings.Server
	options := &server.Options{
		ServerName: f.Host, Host: s.Listen.Addr().String(), Port: int(s.Listen.Port()),
		NoSigs: true, DisableJetStreamBanner: true, MaxPayload: maxPayload,
		ConnectErrorReports: reports, ReconnectErrorReports: reports,
		JetStream: true, StoreDir: o.Dir, JetStreamMaxStore: maxStore, JetStreamMaxMemory: maxMemory,
	}
	for host, key := range s.Hosts {
		if !nkeys.IsValidPublicUserKey(key) {
			return nil, fmt.Errorf("hosts: %s = %q is no public key: write what \"xdpban fleet key\" prints on %s", host, key, host)
		}
		options.Nkeys = append(options.Nkeys, &server.NkeyUser{Nkey: key, Permissions: &server.Permissions{
			Publish:   &server.SubjectPermission{Allow: publishes(f.Name, host)},
			Subscribe: &server.SubjectPermission{Allow: subscribes(f.Name, host)},
		}})
	}
	var between *tls.Config
	if f.TLS.Cert != "" {
		var err error
		if options.TLSConfig, between, err = tlsConfigs(f.TLS); err != nil {
			return nil, err
		}
		options.TLSTimeout = (5 * time.Second).Seconds()
	}
	at, ok := s.Cluster()
	if !ok {
		return options, nil
	}
	text, err := os.ReadFile(s.Secret)
	if err != nil {
		return nil, fmt.Errorf("read the servers' secret: %w", err)
	}
	secret := strings.TrimSpace(string(text))
	if len(secret) < minSecret {
		return nil, fmt.Errorf("secret %s has %d characters: write %d or more that nobody guesses", s.Secret, len(secret), minSecret)
	}
	options.Cluster = server.ClusterOpts{
		Name: f.Name, Host: at.Addr().String(), Port: int(at.Port()), Username: routeUser, Password: secret,
		AuthTimeout: (5 * time.Second).Seconds(), TLSConfig: between, TLSTimeout: (5 * time.Second).Seconds(),
	}
	for _, p := range s.Peers {
		if p != at {
			options.Routes = append(options.Routes, route(p, secret))
		}
	}
	return options, nil
}

// routeUser is how the servers of a cluster call each other.
const routeUser = "xdpban"

func route(to netip.AddrPort, secret string) *url.URL {
	return &url.URL{Scheme: "nats-route", User: url.UserPassword(routeUser, secret), Host: to.String()}
}

// publishes are what a host may write to: its own bans, its own words, and what
// reading the bucket takes.
func publishes(fleet, host string) []string {
	stream := "KV_xdpban_" + fleet
	return []string{
		"$KV.xdpban_" + fleet + ".ban." + host + ".>", "xdpban." + fleet + ".*." + host, "$JS.API.INFO", "$JS.FC.>",
		"$JS.API.STREAM.INFO." + stream, "$JS.API.STREAM.CREATE." + stream,
		"$JS.API.CONSUMER.CREATE." + stream + ".>", "$JS.API.CONSUMER.INFO." + stream + ".>", "$JS.API.CONSUMER.DELETE." + stream + ".>",
	}
}

// subscribes are what a host may read: what is meant for it and for all. It
// doesn't learn what readers others have, and so can't take them away.
func subscribes(fleet, host string) []string {
	return []string{"_INBOX." + host + ".>", "xdpban." + fleet + ".>"}
}

// tlsConfigs are for the hosts, which may show a certificate, and for the other
// servers, which must.
func tlsConfigs(f jails.FleetTLS) (hosts, servers *tls.Config, err error) {
	cert, err := tls.LoadX509KeyPair(f.Cert, f.Key)
	if err != nil {
		return nil, nil, fmt.Errorf("read the certificate %s with key %s: %w", f.Cert, f.Key, err)
	}
	hosts = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	servers = hosts.Clone()
	servers.ClientAuth = tls.RequireAndVerifyClientCert
	if f.CA != "" {
		text, err := os.ReadFile(f.CA)
		if err != nil {
			return nil, nil, fmt.Errorf("read the authority: %w", err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(text) {
			return nil, nil, errors.New("the authority " + f.CA + " holds no certificate in PEM")
		}
		servers.RootCAs, servers.ClientCAs = pool, pool
	}
	return hosts, servers, nil
}

// log takes what the server says.
type log struct {
	out   *slog.Logger
	fatal chan string // the first of them
}

func (l *log) Noticef(format string, v ...any) { l.out.Debug(fmt.Sprintf(format, v...)) }
func (l *log) Debugf(string, ...any)           {}
func (l *log) Tracef(string, ...any)           {}
func (l *log) Warnf(format string, v ...any)   { l.out.Warn(fmt.Sprintf(format, v...)) }
func (l *log) Errorf(format string, v ...any)  { l.out.Error(fmt.Sprintf(format, v...)) }
func (l *log) Fatalf(format string, v ...any) {
	select {
	case l.fatal <- fmt.Sprintf(format, v...):
	default:
	}
}
