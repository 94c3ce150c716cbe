package matcher

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// What was added stays as it was while more is added and the failure that it
// was copied from changes, and a batch that serves again allocates nothing.
func TestBatch(t *testing.T) {
	var b Batch
	line := []byte("Failed password for 0000 from 192.0.2.1")
	f := Failure{Source: netip.MustParsePrefix("192.0.2.1/32"), Users: []string{""}, Line: line, Count: 1}
	fill := func() {
		for i := range 1000 {
			user := fmt.Appendf(line[20:20], "%04d", i)
			f.Users[0], f.Host, f.ID, f.Pattern = asString(user), asString(line[30:]), asString(line[:6]), i
			f.Time = time.Unix(int64(i), 0)
			b.Add(&f)
		}
	}
	fill()
	copy(line, "overwritten, as a block is by the next one")
	for i, f := range b.Failures() {
		user := fmt.Sprintf("%04d", i)
		if f.Pattern != i || !slices.Equal(f.Users, []string{user}) || string(f.Line) != "Failed password for "+user+" from 192.0.2.1" ||
			f.Host != "192.0.2.1" || f.ID != "Failed" || f.Time.Unix() != int64(i) {
			t.Fatalf("%d: %+v, line %q", i, f, f.Line)
		}
	}
	b.Reset()
	if n := len(b.Failures()); n != 0 {
		t.Errorf("%d failures after Reset", n)
	}
	if n := testing.AllocsPerRun(10, func() {
		for range 1000 {
			b.Add(&f)
		}
		b.Reset()
	}); n != 0 {
		t.Errorf("a batch that serves again allocates %v times", n)
	}
}
