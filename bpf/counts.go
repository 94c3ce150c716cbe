package bpf

import (
	"fmt"

	"github.com/cilium/ebpf"
)

// Verdict counts packets and bytes that left the program with one outcome.
type Verdict struct {
	Packets, Bytes uint64
}

// Outcome says why a packet left the program as it did.
type Outcome string

// The outcomes. The first ones are XDP_PASS, the others XDP_DROP.
const (
	Passed         Outcome = "pass"          // nothing against it
	PassedUnparsed Outcome = "pass-unparsed" // cut short, or too many VLAN tags
	PassedAllowed  Outcome = "pass-allowed"  // banned, but on the allowlist
	DroppedBan     Outcome = "drop-ban"      // a banned address
	DroppedNet     Outcome = "drop-net"      // in a banned subnet
	DroppedPort    Outcome = "drop-port"     // to a blocked port
	DroppedPolicy  Outcome = "drop-policy"   // policy deny: not on the allowlist
)

var outcomes = []struct {
	outcome Outcome
	kern    kernOutcome
	action  string
}{
	{Passed, kernOutcomePASS, "XDP_PASS"},
	{PassedUnparsed, kernOutcomePASS_UNPARSED, "XDP_PASS"},
	{PassedAllowed, kernOutcomePASS_ALLOWED, "XDP_PASS"},
	{DroppedBan, kernOutcomeDROP_BAN, "XDP_DROP"},
	{DroppedNet, kernOutcomeDROP_NET, "XDP_DROP"},
	{DroppedPort, kernOutcomeDROP_PORT, "XDP_DROP"},
	{DroppedPolicy, kernOutcomeDROP_POLICY, "XDP_DROP"},
}

// Count is a counter of verdicts, by interface and outcome.
type Count struct {
	// Interface is empty for those that found no counters of their own.
	Interface string
	Outcome   Outcome
	// Action is the XDP action: XDP_PASS or XDP_DROP.
	Action string
	Verdict
}

// CountsByInterface reads all verdict counters that aren't zero. They last
// as long as the maps: an interface that is gone keeps its own, and
// one that comes back under the same name goes on with them.
func (b *Blocklist) CountsByInterface() ([]Count, error) {
	names, err := b.slots()
	if err != nil {
		return nil, err
	}
	var out []Count
	for slot, name := range names {
		if slot > 0 && name == "" {
			continue
		}
		for _, o := range outcomes {
			var cpus []kernCounter
			if err := b.maps.Load().Verdicts.Lookup(uint32(slot)*uint32(kernOutcomeOUTCOMES)+uint32(o.kern), &cpus); err != nil {
				return nil, fmt.Errorf("read verdicts: %w", err)
			}
			c := Count{Interface: name, Outcome: o.outcome, Action: o.action}
			for _, v := range cpus {
				c.Packets += v.Packets
				c.Bytes += v.Bytes
			}
			if c.Packets > 0 {
				out = append(out, c)
			}
		}
	}
	return out, nil
}

// Counts reads the verdict counters by name: the XDP actions
// (XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_TX, XDP_REDIRECT). xdpban itself
// only passes and drops.
func (b *Blocklist) Counts() (map[string]Verdict, error) {
	out := map[string]Verdict{"XDP_ABORTED": {}, "XDP_DROP": {}, "XDP_PASS": {}, "XDP_TX": {}, "XDP_REDIRECT": {}}
	list, err := b.CountsByInterface()
	if err != nil {
		return nil, err
	}
	for _, c := range list {
		v := out[c.Action]
		v.Packets += c.Packets
		v.Bytes += c.Bytes
		out[c.Action] = v
	}
	return out, nil
}

// slots are the names of interfaces by their place in verdicts.
func (b *Blocklist) slots() ([]string, error) {
	names := make([]string, b.maps.Load().Ifaces.MaxEntries())
	for i := range names {
		var value kernIface
		if err := b.maps.Load().Ifaces.Lookup(uint32(i), &value); err != nil {
			return nil, fmt.Errorf("read ifaces: %w", err)
		}
		names[i] = text(value.Name[:])
	}
	return names, nil
}

// slot finds or makes an interface's place; place 0 is shared by all that
// come when there is none left. The lock is held.
func (b *Blocklist) slot(iface string) (uint32, error) {
	names, err := b.slots()
	if err != nil {
		return 0, err
	}
	for i, name := range names {
		switch {
		case i == 0:
		case name == iface:
			return uint32(i), nil
		case name == "":
			var value kernIface
			for j := range min(len(iface), len(value.Name)-1) {
				value.Name[j] = int8(iface[j])
			}
			if err := b.maps.Load().Ifaces.Update(uint32(i), value, ebpf.UpdateAny); err != nil {
				return 0, fmt.Errorf("write ifaces: %w", err)
			}
			return uint32(i), nil
		}
	}
	return 0, nil
}
