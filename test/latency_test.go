package test

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"xdpban/internal/lab"
)

// BenchmarkLineToDrop measures from the write(2) of the line that decides a
// ban to the first packet of its source that XDP drops, over 100 bans: the
// source sends numbered packets all the while, and the first one after the
// last that arrived is the one dropped.
func BenchmarkLineToDrop(b *testing.B) {
	for _, log := range []struct {
		name  string
		start func(testing.TB, *bed) (write func(line string))
	}{
		{"file", toFile},
		{"journal", toJournal},
	} {
		b.Run(log.name, func(b *testing.B) {
			const n = 100
			sources := make([]netip.Prefix, n)
			for i := range sources {
				sources[i] = netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(i + 1)}), 32)
			}
			bed := newBed(b, sources...)
			bed.run(bed.server, "ip", "route", "add", "198.51.100.0/24", "dev", "eth0")
			write := log.start(b, bed)
			bed.protect()

			message := func(addr string) string {
				return "Failed password for root from " + addr + " port 40022 ssh2"
			}
			for range 4 {
				for _, s := range sources {
					write(message(s.Addr().String()))
				}
			}
			// What was written first is judged first: when this one is
			// banned, four failures of each source have been counted.
			const last = "192.0.2.200"
			for range 5 {
				write(message(last))
			}
			bed.untilBanned(last)

			receiver := bed.listenUDP(bed.server, netip.MustParseAddrPort(server4+":9999"))
			var took []time.Duration
			b.ResetTimer()
			for range b.N {
				took = took[:0]
				for _, s := range sources {
					took = append(took, bed.lineToDrop(receiver, s.Addr(), func() { write(message(s.Addr().String())) }))
				}
			}
			b.StopTimer()
			slices.Sort(took)
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(float64(took[n/2].Microseconds()), "µs-median")
			b.ReportMetric(float64(took[n*99/100-1].Microseconds()), "µs-p99")
			b.ReportMetric(float64(took[n-1].Microseconds()), "µs-max")
			if banned := len(bed.bans()); banned != n+1 {
				b.Errorf("%d banned in the end, want %d", banned, n+1)
			}
		})
	}
}

func (b *bed) listenUDP(h *lab.Host, at netip.AddrPort) (conn *net.UDPConn) {
	b.Helper()
	if err := h.In(func() (err error) {
		conn, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at))
		return err
	}); err != nil {
		b.Fatal(err)
	}
	conn.SetReadBuffer(4 << 20)
	b.Cleanup(func() { conn.Close() })
	return conn
}

// lineToDrop sends numbered packets from a source, writes the deciding line,
// and returns how long after that the first lost packet was sent.
func (b *bed) lineToDrop(receiver *net.UDPConn, source netip.Addr, write func()) time.Duration {
	b.Helper()
	var fd int
	if err := b.attacker.In(func() (err error) {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		if err = unix.Bind(fd, &unix.SockaddrInet4{Addr: source.As4()}); err != nil {
			return err
		}
		return unix.Connect(fd, &unix.SockaddrInet4{Addr: netip.MustParseAddr(server4).As4(), Port: 9999})
	}); err != nil {
		b.Fatal(err)
	}
	defer unix.Close(fd)

	var last atomic.Int64 // the newest number that arrived
	last.Store(-1)
	stop := make(chan struct{})
	received := make(chan struct{})
	go func() {
		defer close(received)
		var buf [8]byte
		for {
			select {
			case <-stop:
				return
			default:
			}
			receiver.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
			n, from, err := receiver.ReadFromUDPAddrPort(buf[:])
			if err == nil && n == 8 && from.Addr().Unmap() == source {
				last.Store(int64(binary.BigEndian.Uint64(buf[:])))
			}
		}
	}()

	var sent []time.Time
	var buf [8]byte
	deadline := time.Now().Add(10 * time.Second)
	send := func() {
		binary.BigEndian.PutUint64(buf[:], uint64(len(sent)))
		sent = append(sent, time.Now())
		if _, err := unix.Write(fd, buf[:]); err != nil && err != syscall.ENOBUFS {
			b.Fatalf("send from %s: %v", source, err)
		}
	}
	for last.Load() < 10 { // it gets through
		send()
		time.Sleep(20 * time.Microsecond)
		if time.Now().After(deadline) {
			b.Fatalf("%s can't reach the server before its ban", source)
		}
	}
	written := make(chan time.Time, 1)
	go func() {
		at := time.Now()
		write()
		written <- at
	}()
	// A fifth of a second without an arrival is a ban, not a hiccup.
	for quiet := time.Now(); time.Since(quiet) < 200*time.Millisecond; {
		before := last.Load()
		send()
		time.Sleep(20 * time.Microsecond)
		if last.Load() != before {
			quiet = time.Now()
		}
		if time.Now().After(deadline) {
			b.Fatalf("%s is never dropped", source)
		}
	}
	at := <-written
	close(stop)
	<-received
	return max(0, sent[last.Load()+1].Sub(at))
}

// toFile gives the server an auth.log.
func toFile(b testing.TB, bed *bed) func(string) {
	f, err := os.OpenFile(bed.server.Path("/var/log/auth.log"), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { f.Close() })
	return func(message string) {
		line := fmt.Sprintf("%s server sshd[4711]: %s\n", time.Now().Format("2006-01-02T15:04:05.000000-07:00"), message)
		if _, err := f.WriteString(line); err != nil {
			b.Error(err)
		}
	}
}

// toJournal gives the server a journald, and ssh.service a process that
// logs what it is given, so the journal knows the lines as sshd's. The time
// includes the hop to that process.
func toJournal(b testing.TB, bed *bed) func(string) {
	if _, err := bed.server.Journald(bed.ctx); err != nil {
		b.Fatal(err)
	}
	bed.run(bed.server, "mkfifo", "/run/lab/lines")
	if _, err := bed.server.Start("ssh.service", nil, "sh", "-c", "exec logger -t sshd </run/lab/lines"); err != nil {
		b.Fatal(err)
	}
	f, err := os.OpenFile(bed.server.Path("/run/lab/lines"), os.O_WRONLY, 0)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { f.Close() })
	return func(message string) {
		if _, err := f.WriteString(message + "\n"); err != nil {
			b.Error(err)
		}
	}
}
