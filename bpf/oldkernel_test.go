package bpf

import (
	"fmt"
	"testing"
)

// TestEachLikeAll does on this kernel what older ones do for want of
// write_bans: the answers are the same.
func TestEachLikeAll(t *testing.T) {
	b := open(t, Options{MaxBans: 3, MaxNets: 1, MaxAllow: 1})
	table := b.maps.Load().tables[0].(*bans[[4]byte])
	script := func(request func(kernOperation, []pending, func(pending)) (int, error)) (out string) {
		for _, step := range []struct {
			op   kernOperation
			list []pending
		}{
			{kernOperationBAN, []pending{{pfx("192.0.2.1"), kernBan{Since: 1}}, {pfx("192.0.2.2"), kernBan{Since: 2}}, {pfx("192.0.2.1"), kernBan{Since: 3}}}},
			{kernOperationCOUNT, []pending{{pfx("192.0.2.1"), kernBan{Packets: 4, Bytes: 5}}, {pfx("192.0.2.9"), kernBan{Packets: 6}}, {pfx("192.0.2.1"), kernBan{Packets: 1, Bytes: 1}}}},
			{kernOperationBAN, []pending{{pfx("192.0.2.1"), kernBan{Since: 7, Until: 8, Jail: 9, Expires: 1 << 62}}}},
			{kernOperationBAN, []pending{{pfx("192.0.2.3"), kernBan{}}, {pfx("192.0.2.4"), kernBan{}}, {pfx("192.0.2.5"), kernBan{}}}},
			{kernOperationREMOVE, []pending{{prefix: pfx("192.0.2.1")}, {prefix: pfx("192.0.2.9")}, {prefix: pfx("192.0.2.2")}, {prefix: pfx("192.0.2.3")}}},
		} {
			n, err := request(step.op, step.list, func(p pending) {
				if step.op == kernOperationREMOVE {
					out += fmt.Sprintln(p)
				}
			})
			out += fmt.Sprintln(n, full(err))
		}
		return out
	}
	all, each := script(table.request), script(table.requestEach)
	if all != each {
		t.Errorf("one by one\n%s, all at once\n%s", each, all)
	}
}
