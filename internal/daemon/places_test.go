package daemon

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"xdpban/jails"
)

// TestPlaces: a jail spares those who are known to be where it spares them,
// and nobody because a database is missing.
func TestPlaces(t *testing.T) {
	w := newWorld(t)
	w.config.Jails[0].Where.ExceptCountries = []string{"DK"}
	w.places.of = map[netip.Addr]jails.Place{
		netip.MustParseAddr("192.0.2.1"): {Country: "DK", ASN: 64500, Network: "Example"},
		netip.MustParseAddr("192.0.2.2"): {Country: "DE"},
	}
	d, _ := w.run()
	ctx := context.Background()
	w.fail("192.0.2.1", 5)
	for _, addr := range []string{"192.0.2.2", "192.0.2.3"} {
		w.fail(addr, 3)
		w.untilBanned(addr)
	}
	if e, ok := w.kernel.banned("192.0.2.1"); ok {
		t.Errorf("banned where it is to be spared: %+v", e)
	}
	why, err := d.Why(ctx, prefix("192.0.2.1"))
	if err != nil || why.Place == nil || why.Place.String() != "DK AS64500 Example" || len(why.Allowed) != 1 || why.Allowed[0].Origin != "jail sshd, for country DK" {
		t.Errorf("why: %+v, %v", why, err)
	}
	problem := func() string {
		s, err := d.Status(ctx)
		if err != nil || s.Jails[0].Elsewhere != 5 {
			t.Errorf("status: %+v, %v", s.Jails, err)
		}
		i := slices.IndexFunc(s.Problems, func(p string) bool { return strings.Contains(p, "spared by no jail") })
		if i < 0 {
			return ""
		}
		return s.Problems[i]
	}
	if got := problem(); got != "" {
		t.Errorf("problem: %s", got)
	}
	for _, broken := range []error{errors.New("gone"), nil} {
		if err := d.do(ctx, func() { w.places.broken = broken; d.tend() }); err != nil {
			t.Fatal(err)
		}
		if got := problem(); (got != "") != (broken != nil) {
			t.Errorf("broken %v: problem %q", broken, got)
		}
	}
}
