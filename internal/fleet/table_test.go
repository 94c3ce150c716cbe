package fleet

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"xdpban/jails"
)

// BenchmarkTable: what a ban of another host costs to read, and in memory.
func BenchmarkTable(b *testing.B) {
	const n = 100_000
	now := time.Now()
	var keys []string
	for i := range n {
		keys = append(keys, Key("web2", netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18 + byte(i>>16), byte(i >> 8), byte(i)}), 32)))
	}
	value := fmt.Appendf(nil, `{"v":1,"j":"sshd","s":%d,"u":%d,"f":5}`, now.UnixMilli(), now.Add(time.Hour).UnixMilli())
	conf := jails.Fleet{Name: "web", Host: "web1", Subscribe: []string{"*"}, MaxBan: 24 * time.Hour, Quorum: 1, PeerBans: n, Widest4: 24, Widest6: 48}
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	var bytes uint64
	for b.Loop() {
		before := heap()
		t := newTable(conf)
		for _, k := range keys {
			if why := t.take(k, value, now, now); why != "" {
				b.Fatal(why)
			}
		}
		for more := true; more; {
			_, _, more = t.diff(now, batch, true)
		}
		bytes = heap() - before
		runtime.KeepAlive(t)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/ban")
	b.ReportMetric(float64(bytes)/n, "B/ban")
}
