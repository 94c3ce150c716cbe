package main

import (
	"errors"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestDoctor is what this machine's kernel and interfaces can't show.
func TestDoctor(t *testing.T) {
	raised := func() error { return nil }
	silent := errors.New("no such family")
	for _, tt := range []struct {
		name  string
		found finding
		level string
		words string // in what is found, or in the fix
	}{
		{"a kernel too old", judgeKernel("5.4.0-150-generic"), levelFail, "needs Linux 5.10"},
		{"the oldest", judgeKernel("5.10.0-28-amd64"), levelWarn, "without the cheap clock"},
		{"before frags", judgeKernel("5.15.0-91-generic"), levelWarn, "without native XDP on interfaces with jumbo frames"},
		{"Debian 12's", judgeKernel("6.1.0-13-amd64"), levelOK, "Linux 6.1.0"},
		{"a major version", judgeKernel("10.0-rc1"), levelOK, "Linux 10.0"},
		{"no version", judgeKernel("custom"), levelFail, "custom"},

		{"memory isn't counted", judgeMemlock("6.1.0", 65536, nil), levelOK, "not needed"},
		{"unlimited", judgeMemlock("5.10.0", unix.RLIM_INFINITY, nil), levelOK, "unlimited"},
		{"raised", judgeMemlock("5.10.0", 65536, raised), levelOK, "64 KiB; xdpban raises it"},
		{"can't be raised", judgeMemlock("5.10.0", 65536, func() error { return unix.EPERM }), levelFail, "LimitMEMLOCK=infinity"},

		{"JIT", judgeJIT([]byte("1\n"), nil), levelOK, "on"},
		{"no JIT", judgeJIT([]byte("0\n"), nil), levelWarn, "sysctl -w net.core.bpf_jit_enable=1"},
		{"JIT built in", judgeJIT(nil, os.ErrNotExist), levelOK, "not switchable"},
		{"JIT unreadable", judgeJIT(nil, os.ErrPermission), levelWarn, "permission denied"},

		{"a VLAN", judgeLink(&netlink.Vlan{LinkAttrs: netlink.LinkAttrs{Name: "eth0.7", MTU: 1500, Flags: net.FlagUp}}, "driver 802.1Q VLAN Support"), levelWarn, "attach to the interface below"},

		{"no native XDP", judgeDriver("eth0", 1500, "6.6.0", 0, nil), levelWarn, "the driver has none"},
		{"a page at most", judgeDriver("eth0", 1500, "6.6.0", xdpBasic, nil), levelOK, "MTU of up to about 3498"},
		{"more than a page", judgeDriver("eth0", 9000, "6.6.0", xdpBasic, nil), levelWarn, "ip link set eth0 mtu 3498"},
		{"several buffers", judgeDriver("eth0", 9000, "6.6.0", xdpBasic|xdpFragments, nil), levelOK, "jumbo frames too"},
		{"several buffers, but an old kernel", judgeDriver("eth0", 9000, "5.15.0", 0, silent), levelWarn, "refused with an MTU of 9000"},
		{"nobody to ask", judgeDriver("eth0", 1500, "6.1.0", 0, silent), levelOK, "no driver tells before Linux 6.3"},
		{"no answer", judgeDriver("eth0", 1500, "6.6.0", 0, silent), levelWarn, "no such family"},
	} {
		if text := tt.found.Found + " " + tt.found.Fix; tt.found.Level != tt.level || !strings.Contains(text, tt.words) {
			t.Errorf("%s: %+v; want %s, with %q", tt.name, tt.found, tt.level, tt.words)
		}
	}
	if f := judgeLRO("eth0", 1<<15|1); len(f) != 1 || f[0].Level != levelWarn || f[0].Fix != "ethtool -K eth0 lro off" {
		t.Errorf("LRO on: %+v", f)
	}
	if f := judgeLRO("eth0", 1); f != nil {
		t.Errorf("LRO off: %+v", f)
	}
}
