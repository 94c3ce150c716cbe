package jails

import (
	"fmt"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"
)

// write makes a configuration folder.
func write(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func shipped(files map[string]string) fstest.MapFS {
	out := fstest.MapFS{}
	for name, text := range files {
		out[name] = &fstest.MapFile{Data: []byte(text)}
	}
	return out
}

// A jail with all that it must have; %s is the rest.
const plain = "[jail.x]\nfiles = [\"/var/log/x\"]\nfailregex = ['^bad <ADDR>$']\n"

func TestConfigTakesEverything(t *testing.T) {
	dir := write(t, map[string]string{
		SettingsFile: `
interfaces = ["eth0", "eth1"]
mode = "generic"
bpf_dir = "/sys/fs/bpf/other"
socket = "/run/other.sock"
state_dir = "/var/lib/other"
ignoreip = ["192.0.2.7", "198.51.100.9/24", "::ffff:203.0.113.1", "2001:db8::/48", "admin.example.org", "localhost"]
ignoreself = false
ignore_sessions = false
ignore_gateways = true
ignore_resolvers = true
small = true
max_bans = 5000
max_tracked = 6000
max_bans_per_minute = 0
remember = "1w"
`,
		"jail.d/a.toml": `
[defaults]
bantime = "1d12h"
ignoreip = "192.0.2.8"
increment = { max = "5w" }

[jail.one]
enabled = "observe"
program = ["one", "one/*"]
journal = ["_SYSTEMD_UNIT=one.service", "+", "SYSLOG_IDENTIFIER=one"]
files = "/var/log/one/*.log"
prefregex = '^<F-CONTENT>.+</F-CONTENT>$'
failregex.login = ['^bad <ADDR>$']
failregex.scan = ['^scan <ADDR>$']
modes = { normal = ["login"], all = ["login", "scan"] }
mode = "all"
ignoreregex = ['^bad 192\.0\.2\.1$']
maxretry = 3
findtime = "1h"
bantime = "forever"
increment = { factor = 1.5, multipliers = [1, 5.5], random = "10m", all_jails = true }
maxmatches = 2
ports = ["22/tcp", "8000-8100/udp"]
ignoreip = ["203.0.113.0/24", "other.example.org"]
ignoreself = false
aggregate4 = 24
aggregate6 = 64
timezone = "UTC+0530"
encoding = "latin1"
usedns = "warn"
ignorecommand = ["/bin/none-such", "--from=<ip>", "<user>"]
ignorecache = { time = "1h" }

[jail.two]
enabled = "auto"
filter = "one"
mode = "normal"
files = ["/var/log/two"]

[jail.three]
enabled = false
watches = "bans"
`,
	})
	c, problems := Load(nil, dir)
	if problems != nil {
		t.Fatal(problems)
	}
	if want := (Settings{
		Interfaces: []string{"eth0", "eth1"}, Mode: "generic", BPFDir: "/sys/fs/bpf/other", Socket: "/run/other.sock", StateDir: "/var/lib/other",
		IgnoreIP:       []netip.Prefix{addr("192.0.2.7"), addr("198.51.100.0/24"), addr("203.0.113.1"), addr("2001:db8::/48")},
		IgnoreNames:    []string{"admin.example.org", "localhost"},
		IgnoreGateways: true, IgnoreResolvers: true,
		Small: true, MaxBans: 5000, MaxTracked: 6000, Remember: 7 * 24 * time.Hour,
	}); !reflect.DeepEqual(c.Settings, want) {
		t.Errorf("settings\n%+v, want\n%+v", c.Settings, want)
	}
	if len(c.Jails) != 3 {
		t.Fatalf("jails %+v", c.Jails)
	}
	one, three, two := c.Jails[0], c.Jails[1], c.Jails[2]
	if f := one.Filter.Filter; !slices.Equal(f.Failregex, []string{"^bad <ADDR>$", "^scan <ADDR>$"}) || f.Location.String() != "UTC+0530" || f.Encoding != "latin1" {
		t.Errorf("filter %+v", f)
	}
	filter := one.Filter
	one.Filter = nil
	if want := (Jail{
		Name: "one", Enabled: true, Observe: true, Programs: []string{"one", "one/*"},
		Journal: []string{"_SYSTEMD_UNIT=one.service", "+", "SYSLOG_IDENTIFIER=one"}, Files: []string{"/var/log/one/*.log"},
		Encoding: "latin1", UseDNS: DNSWarn, MaxRetry: 3, FindTime: time.Hour, BanTime: Forever, MaxMatches: 2,
		Increment: Increment{Enabled: true, Factor: 1.5, Multipliers: []float64{1, 5.5}, Max: 35 * 24 * time.Hour, Random: 10 * time.Minute, AllJails: true},
		Ports:     []PortRange{{22, 22, "tcp"}, {8000, 8100, "udp"}},
		IgnoreIP:  []netip.Prefix{addr("203.0.113.0/24")}, IgnoreNames: []string{"other.example.org"},
		BanSelf: true, Aggregate4: 24, Aggregate6: 64,
		IgnoreCommand: []string{"/bin/none-such", "--from=<ip>", "<user>"}, IgnoreCache: IgnoreCache{time.Hour, 100},
	}); !reflect.DeepEqual(one, want) {
		t.Errorf("jail one\n%+v, want\n%+v", one, want)
	}
	if !two.Auto || !two.Enabled || two.BanTime != 36*time.Hour || !two.Increment.Enabled || !slices.Equal(two.IgnoreIP, []netip.Prefix{addr("192.0.2.8")}) ||
		!slices.Equal(two.Files, []string{"/var/log/two"}) || !slices.Equal(two.Programs, one.Programs) ||
		!slices.Equal(two.Filter.Filter.Failregex, filter.Filter.Failregex[:1]) || two.UseDNS != DNSNo {
		t.Errorf("jail two %+v", two)
	}
	if len(c.Warnings) == 0 || !strings.Contains(c.Warnings[0].String(), "jail.one.ignorecommand[0]: /bin/none-such can't be run (no such file or directory): whom it would spare is banned") {
		t.Errorf("warnings %v", c.Warnings)
	}
	if three.Enabled || !three.WatchesBans || three.Filter != nil {
		t.Errorf("jail three %+v", three)
	}
}

func TestNoConfigurationAtAll(t *testing.T) {
	c, problems := Load(shipped(map[string]string{"x.toml": plain}), filepath.Join(t.TempDir(), "none"))
	if problems != nil {
		t.Fatal(problems)
	}
	j := c.Jails[0]
	if !j.Enabled || j.MaxRetry != 5 || j.FindTime != 10*time.Minute || j.BanTime != 10*time.Minute || j.UseDNS != DNSNo || j.BanSelf ||
		!c.Settings.IgnoreSelf || !c.Settings.IgnoreSessions || !slices.Equal(c.Files, []string{"built in: x.toml"}) {
		t.Errorf("%+v\n%+v", c, j)
	}
}

func TestOperatorOverridesKeyByKey(t *testing.T) {
	dir := write(t, map[string]string{
		SettingsFile:          "",
		"jail.d/mine.toml":    "[jail.x]\nmaxretry = 9\nfailregex.b = ['^other <ADDR>$']\nincrement.max = '1w'\n[jail.new]\nfilter = 'x'\n",
		"jail.d/notes.txt":    "no TOML",
		"jail.d/.hidden.toml": "no TOML",
	})
	c, problems := Load(shipped(map[string]string{
		"x.toml": "[jail.x]\nfiles = ['/var/log/x']\nmaxretry = 2\nfindtime = '1h'\nmode = 'b'\nincrement.factor = 2\n" +
			"failregex.a = ['^bad <ADDR>$']\nfailregex.b = ['^worse <ADDR>$']\nmodes.b = ['a', 'b']\n",
	}), dir)
	if problems != nil {
		t.Fatal(problems)
	}
	fresh, x := c.Jails[0], c.Jails[1]
	if x.MaxRetry != 9 || x.FindTime != time.Hour || x.Increment.Factor != 2 || x.Increment.Max != 7*24*time.Hour ||
		!slices.Equal(x.Filter.Filter.Failregex, []string{"^bad <ADDR>$", "^other <ADDR>$"}) {
		t.Errorf("%+v %q", x, x.Filter.Filter.Failregex)
	}
	if fresh.MaxRetry != 5 || len(fresh.Filter.Filter.Failregex) != 2 || fresh.Files[0] != "/var/log/x" {
		t.Errorf("%+v", fresh)
	}
	if want := []string{"built in: x.toml", filepath.Join(dir, "xdpban.toml"), filepath.Join(dir, "jail.d/mine.toml")}; !slices.Equal(c.Files, want) {
		t.Errorf("files %q", c.Files)
	}
}

func TestJailThatExtendsNothing(t *testing.T) {
	own := "[jail.x]\nextends = false\nfiles = ['/own']\nfailregex = ['^own <ADDR>$']\n"
	c, problems := Load(shipped(map[string]string{"x.toml": plain + "program = ['x']\naggregate6 = 64\njournal = ['A=b']\n"}), write(t, map[string]string{"jail.d/x.toml": own}))
	if problems != nil {
		t.Fatal(problems)
	}
	if x := c.Jails[0]; x.Programs != nil || x.Journal != nil || x.Aggregate6 != 128 || !slices.Equal(x.Files, []string{"/own"}) {
		t.Errorf("%+v", x)
	}
}

func TestProblems(t *testing.T) {
	for _, c := range []struct {
		what, text string
		want       []string // without the folder
	}{
		{"a key that doesn't exist", plain + "maxrety = 3\n", []string{"jail.x.maxrety: there is no such key; did you mean maxretry?"}},
		{"fail2ban's name", plain + "logpath = '/x'\n", []string{"4: jail.x.logpath: there is no such key; write files"}},
		{"a bad duration", plain + "bantime = '10 minutes'\n", []string{`4: jail.x.bantime: "10 minutes" is no time; write a time in w, d, h, m and s, such as bantime = "10m" or "1d12h", or "forever"`}},
		{"a number as duration", plain + "findtime = 600\n", []string{`4: jail.x.findtime: is the number 600; write its unit too, such as findtime = "600s"`}},
		{"-1", plain + "bantime = -1\n", []string{`4: jail.x.bantime: is the number -1; write bantime = "forever"`}},
		{"no end where one must be", plain + "findtime = 'forever'\n", []string{"4: jail.x.findtime: can't be without an end; "}},
		{"a bad regex", "[jail.x]\nfiles = ['/x']\nfailregex = [\n  '^fine <ADDR>$',\n  # the next is not\n  '^(unclosed <ADDR>$',\n]\n", []string{"6: jail.x.failregex[1]: "}},
		{"no address tag", "[jail.x]\nfiles = ['/x']\nfailregex = ['^bad$',\n'^worse$']\n", []string{"3: jail.x.failregex[0]: \"^bad$\" names no offender: put <ADDR>", "4: jail.x.failregex[1]: \"^worse$\" names no offender"}},
		{"no failregex", "[jail.x]\nfiles = ['/x']\n", []string{"1: jail.x: has no failregex; write"}},
		{"an empty list", "[jail.x]\nfiles = ['/x']\nfailregex = []\n", []string{"3: jail.x.failregex: is empty; write"}},
		{"an empty table", "[jail.x]\nfiles = ['/x']\nfailregex = {}\n", []string{"3: jail.x.failregex: there is no mode"}},
		{"nothing to read", "[jail.x]\nfailregex = ['^bad <ADDR>$']\n", []string{"1: jail.x: reads nothing; write files"}},
		{"a relative path", "[jail.x]\nfailregex = ['^bad <ADDR>$']\nfiles = ['auth.log']\n", []string{`3: jail.x.files[0]: "auth.log" doesn't begin with /; write`}},
		{"a bad glob", "[jail.x]\nfailregex = ['^bad <ADDR>$']\nfiles = ['/var/[log']\n", []string{`3: jail.x.files[0]: "/var/[log" is no pattern of file names`}},
		{"a bad journal match", "[jail.x]\nfailregex = ['^bad <ADDR>$']\njournal = ['ssh.service', '+']\n", []string{`3: jail.x.journal[0]: "ssh.service" is no match of journalctl; write FIELD=value`, `3: jail.x.journal[1]: "+"`}},
		{"a bad program", plain + "program = ['sshd[']\n", []string{`4: jail.x.program[0]: "sshd[" is no syslog tag`}},
		{"bad addresses", plain + "ignoreip = ['1.2.3', '10.0.0.0/33', '0.0.0.0/0', 'a..b', '']\n", []string{`4: jail.x.ignoreip[0]: "1.2.3" is no address`, `jail.x.ignoreip[1]: "10.0.0.0/33"`, `jail.x.ignoreip[2]: "0.0.0.0/0" is everybody`, `jail.x.ignoreip[3]: "a..b"`, `jail.x.ignoreip[4]: "" is no`}},
		{"bad ports", plain + "ports = ['22', '0/tcp', '70000/tcp', '9-8/tcp', '022/tcp', 'ssh/tcp']\n", []string{`ports[0]: "22" is no port`, `ports[1]: "0/tcp"`, `ports[2]: "70000/tcp"`, `ports[3]: "9-8/tcp"`, `ports[4]: "022/tcp"`, `ports[5]: "ssh/tcp"`}},
		{"too wide", plain + "aggregate4 = 8\naggregate6 = 200\n", []string{"4: jail.x.aggregate4: is the number 8; write a number from 16 to 32, such as aggregate4 = 32", "5: jail.x.aggregate6: is the number 200"}},
		{"the wrong type", plain + "maxretry = '5'\nignoreself = 1\nusedns = true\nprogram = 7\nincrement = 3\n", []string{`4: jail.x.maxretry: is the text "5"; write a number`, "5: jail.x.ignoreself: is the number 1; write ignoreself = true", "6: jail.x.usedns: is true; write a text", "7: jail.x.program: is the number 7; write a list", "8: jail.x.increment: is the number 3"}},
		{"extends", plain + "extends = 'no'\n", []string{`4: jail.x.extends: is the text "no"; write extends = true`}},
		{"no retry", plain + "maxretry = 0\n", []string{"4: jail.x.maxretry: is the number 0; write a number from 1"}},
		{"enabled", plain + "enabled = 'yes'\n", []string{`4: jail.x.enabled: is the text "yes"; write enabled = true, false, "auto"`}},
		{"growth", plain + "increment = { factor = 0, maks = '1d', multipliers = [1, 'x'] }\n", []string{"4: jail.x.increment.factor: is the number 0", "4: jail.x.increment.maks: there is no such key; did you mean max?", `4: jail.x.increment.multipliers[1]: is the text "x"`}},
		{"a formula", plain + "increment = { formula = 'ban.Time * __import__(1)' }\n", []string{`4: jail.x.increment.formula: "ban.Time * __import__(1)": "__import__" is not known`}},
		{"a formula that fails", plain + "increment = { formula = 'ban.Time / (ban.Count - 3)' }\n", []string{`4: jail.x.increment.formula: "ban.Time / (ban.Count - 3)" fails for who was banned 3 times, for 10m: division by zero`}},
		{"a command for a shell", plain + "ignorecommand = 'is-ours <ip>'\n", []string{`4: jail.x.ignorecommand: "is-ours <ip>" is no whole path of a program; no shell looks at it`}},
		{"a command's tags", plain + "ignorecommand = ['/bin/<ip>', '<host>', 3]\nignorecache = 5\n", []string{"4: jail.x.ignorecommand[0]: \"/bin/<ip>\" is no whole path", "4: jail.x.ignorecommand[1]: <host> isn't known; write one of <ip>, <family>", "4: jail.x.ignorecommand[2]: is the number 3", "5: jail.x.ignorecache: is the number 5; write a time"}},
		{"a command's answers", plain + "ignorecache = { time = 'x', most = 3, max = 0 }\n", []string{"4: jail.x.ignorecache.max: is the number 0; write a number from 1", "4: jail.x.ignorecache.most: there is no such key", `4: jail.x.ignorecache.time: "x" is no time`}},
		{"a command where nobody asks", "[jail.x]\nwatches = 'bans'\nignorecommand = '/bin/true'\n", []string{`3: jail.x.ignorecommand: has no meaning with watches = "bans"`}},
		{"two growths", plain + "increment = { formula = 'ban.Time', multipliers = [1, 2] }\n", []string{`4: jail.x.increment.formula: can't go with multipliers`}},
		{"mode", "[jail.x]\nfiles = ['/x']\nmode = 'agressive'\nfailregex.normal = ['^<ADDR>$']\nfailregex.aggressive = ['^worse$']\n", []string{`3: jail.x.mode: there is no mode "agressive"; write one of aggressive, normal`}},
		{"a list that the mode leaves out", "[jail.x]\nfiles = ['/x']\nfailregex.normal = ['^<ADDR>$']\nfailregex.aggressive = ['^worse$']\n", []string{`4: jail.x.failregex.aggressive[0]: "^worse$" names no offender`}},
		{"modes", "[jail.x]\nfiles = ['/x']\nmodes.normal = ['login', 'scan']\nfailregex.login = ['^<ADDR>$']\n", []string{"3: jail.x.modes.normal[1]: there is no failregex.scan; write some of login"}},
		{"mode of a plain list", plain + "mode = 'normal'\n", []string{"4: jail.x.mode: has no meaning"}},
		{"another's filter", plain + "filter = 'y'\n[jail.y]\nfilter = 'x'\n[jail.z]\nfilter = 'w'\n", []string{`4: jail.x.filter: jail "y" uses another one's`, `6: jail.y.filter: jail "x" uses`, `8: jail.z.filter: there is no jail "w"`}},
		{"watching", plain + "watches = 'bans'\n", []string{`2: jail.x.files: has no meaning with watches`, "3: jail.x.failregex: has no meaning"}},
		{"a zone", plain + "timezone = 'Mars/Olympus'\n", []string{`4: jail.x.timezone: "Mars/Olympus" is no time zone; write its name`}},
		{"an encoding", plain + "encoding = 'ebcdic'\n", []string{`4: jail.x.encoding: `}},
		{"a date pattern", plain + "datepattern = ['%Q']\n", []string{`4: jail.x.datepattern[0]: `}},
		{"a name", "[jail.'a b']\nfiles = ['/x']\nfailregex = ['^<ADDR>$']\n[jail.manual]\nfiles = ['/x']\nfailregex = ['^<ADDR>$']\n", []string{`1: jail.a b: "a b" can't be a jail's name`, `4: jail.manual: "manual" can't be`}},
		{"settings in a jail's file", plain + "[other]\ninterfaces = ['eth0']\n", []string{"4: other: doesn't belong here"}},
		{"a jail that is no table", "jail.x = 3\n", []string{"1: jail.x: is no table"}},
		{"defaults", "[defaults]\nmaxretry = 'x'\nfailregex = []\n" + plain, []string{"2: defaults.maxretry: is the text", "3: defaults.failregex: there is no such key"}},
		{"cut in half", "[jail.x]\nfiles = ['/x']\nfailregex = [\n  '''^bad <AD", []string{"is no valid TOML: "}},
		{"a key twice", plain + "maxretry = 3\nmaxretry = 4\n", []string{"5: jail.x.maxretry: is no valid TOML: "}},
		{"bytes", "\x00\xff\xfe", []string{"is no valid TOML: "}},
	} {
		t.Run(c.what, func(t *testing.T) {
			dir := write(t, map[string]string{"jail.d/x.toml": c.text})
			conf, problems := Load(nil, dir)
			if conf != nil || len(problems) != len(c.want) {
				t.Fatalf("problems:\n%v\nwant %q", problems, c.want)
			}
			for i, want := range c.want {
				got := strings.TrimPrefix(problems[i].String(), filepath.Join(dir, "jail.d/x.toml")+":")
				if !strings.Contains(got, want) {
					t.Errorf("%q\nwant %q", got, want)
				}
			}
		})
	}
}

const publicKey = "UDGHZDIZATP6ZBYAYM6OLUMRFKRE2ZPX2P3HSO63MWF276QLGFNTARNZ"

// TestEveryOptionRefuses gives each option that there is a value of the wrong
// type and some that it can't have, and wants to be told where it stands, what
// is wrong, and what to write instead.
func TestEveryOptionRefuses(t *testing.T) {
	limits := map[string][]string{
		"maxretry": {"0", "10001", "'5'", "1.5"}, "findtime": {"'forever'", "600", "'0s'", "''"}, "bantime": {"'10 minutes'", "-1", "0"},
		"increment": {"'yes'", "1"}, "maxmatches": {"-1", "101"}, "ports": {"['ssh']", "[22]", "['0/tcp']"},
		"ignoreip": {"['1.2.3']", "['0.0.0.0/0']", "[1]", "['']"}, "ignoreself": {"'true'", "0"},
		"ignorecommand": {"['is-ours']", "[7]", "['/bin/true', '<nonsense>']"}, "ignorecache": {"'soon'", "{ time = 1 }", "{ max = 0 }", "{ size = 1 }"},
		"aggregate4": {"8", "33"}, "aggregate6": {"0", "129"}, "timezone": {"'Mars/Olympus'"}, "encoding": {"7"}, "usedns": {"'maybe'", "true"},
		"only_countries": {"['UK']", "['dk']", "[7]", "'Germany'"}, "except_countries": {"'ZZ'", "true"}, "only_asn": {"'AS64500'", "[0]", "-1"}, "except_asn": {"[4294967295]", "['64500']"},
		"on_ban": {"['told']", "'told'", "[7]", "['/bin/true', '<user>']"}, "on_unban": {"['<ip>']"},
	}
	own := map[string][]string{
		"enabled": {"'yes'", "1"}, "extends": {"'no'"}, "journal": {"['ssh.service']", "[1]", "['+']"}, "files": {"['auth.log']", "['/var/[log']", "[1]"},
		"program": {"['sshd[']", "7"}, "filter": {"'nosuch'", "'x'", "7"}, "failregex": {"['^no address$']", "['^(<ADDR>$']", "[]", "{}", "[7]"},
		"mode": {"'nosuch'", "7"}, "modes": {"{ normal = ['nosuch'] }", "'all'"}, "ignoreregex": {"['^(']", "[7]"}, "prefregex": {"'^(<F-CONTENT>'", "7"},
		"datepattern": {"['%Q']", "[7]"}, "maxlines": {"0", "1001"}, "watches": {"'logs'", "true"},
	}
	settings := map[string][]string{
		"interfaces": {"['eth 0']", "['averyveryverylongname']", "[1]"}, "mode": {"'offload2'", "true"}, "ignoreip": {"['1.2.3']", "['::/0']"}, "ignoreself": {"'no'"},
		"ignore_sessions": {"'no'"}, "ignore_gateways": {"'yes'"}, "ignore_resolvers": {"53"}, "socket_group": {"7"}, "socket_group_bans": {"'yes'"}, "small": {"'yes'", "1"}, "max_bans": {"0", "'many'"}, "max_tracked": {"0"},
		"max_bans_per_minute": {"-1"}, "remember": {"'soon'", "0"}, "bpf_dir": {"'bpf'"}, "socket": {"'xdpban.sock'", "'/" + strings.Repeat("x", 107) + "'"}, "state_dir": {"'lib'"},
		"metrics": {"'9477'", "9477", "'localhost:9477'", "'127.0.0.1:0'", "'0.0.0.0:9477'", "'[::]:9477'"}, "web": {"9478", "'192.0.2.1:9478'"}, "publish": {"9479", "'192.0.2.1:9479'"}, "token_file": {"'token'", "7"},
	}
	settings["places"] = []string{"'GeoLite2-Country.mmdb'", "7", "['']"}
	settings["feed"] = []string{"'drop'", "{ name = 'drop', file = '/x' }", "['drop']", "[{ name = 'a b', file = '/x' }]", "[{ name = 'drop' }]"}
	feed := map[string][]string{
		"name": {"'a b'", "7", "''"}, "url": {"'http://lists.example.org'", "'ftp://127.0.0.1/'", "'https://a:b@lists.example.org/'", "7"}, "file": {"'drop.txt'", "7"},
		"format": {"'xml'", "7"}, "column": {"0", "'1'", "true"}, "separator": {"'||'", "7"}, "path": {"'a[0]'", "7"}, "ca": {"'ca.pem'", "7"}, "key_file": {"'key'", "7"},
		"interval": {"'forever'", "60"}, "bantime": {"'forever'", "'1h'"}, "max_bytes": {"0", "'64M'"}, "max_entries": {"0"}, "max_change": {"0", "'50 %'"},
	}
	settings["on_ban"], settings["on_unban"] = limits["on_ban"], limits["on_unban"]
	settings["webhook"] = []string{"'https://x'", "[7]", "{ name = 'x' }", "[{ name = 'x' }]", "[{ url = 'https://x' }]"}
	webhook := map[string][]string{
		"name": {"'a b'", "7"}, "url": {"'ftp://x'", "'hooks.example.org'", "7"}, "url_file": {"'url'", "7"}, "secret_file": {"'secret'"}, "ca": {"'ca.pem'"},
		"jails": {"['a b']", "7"}, "events": {"['banned']", "7"}, "body": {"'x'", "{ text = '{{.Nope}}' }", "{ text = '{{' }", "{ a = { b = ['{{.Nope}}'] } }"},
	}
	settings["fleet"] = []string{"'web'", "{ name = 'a b', url = 'nats://x' }", "{ url = 'nats://x' }", "{ name = 'web' }"}
	fleet := map[string][]string{
		"name": {"'a b'", "7"}, "host": {"'web.example'", "7"}, "url": {"['192.0.2.5:4222']", "'https://192.0.2.5'", "[7]"},
		"creds": {"'fleet.creds'", "7"}, "nkey": {"'fleet.nkey'"}, "tls": {"'yes'", "{ ca = 'ca.pem' }", "{ cert = '/x' }", "{ certificate = '/x' }"},
		"publish": {"['a b']", "7"}, "subscribe": {"['']"}, "max_ban": {"3600", "'soon'"}, "quorum": {"0", "'two'"}, "peer_bans_per_minute": {"-1"},
		"peer_bans": {"0"}, "widest4": {"7", "33"}, "widest6": {"15", "129"}, "evidence": {"'yes'"}, "shared_failures": {"'yes'", "1"}, "replicas": {"0", "6"},
		"embedded": {"'yes'", "1", "true"}, "listen": {"4222", "'4222'", "'0.0.0.0:4222'", "'192.0.2.5:0'", "'web1:4222'"},
		"hosts": {"['web1']", "{}", "{ web1 = 'SUAA' }", "{ 'a b' = '" + publicKey + "' }", "{ web1 = 7 }"}, "secret": {"'fleet.secret'", "7"},
		"peers": {"'192.0.2.5:6222'", "['192.0.2.5']", "[7]", "['192.0.2.5:6222', '192.0.2.6:6222', '192.0.2.6:6222']", "['192.0.2.5:6222', '192.0.2.6:6222', '192.0.2.7:6222']"},
	}
	growth := map[string][]string{
		"enabled": {"'yes'"}, "factor": {"0", "'2'"}, "multipliers": {"[]", "[0]", "['x']", "2"}, "formula": {"'ban.Time +'", "7"}, "max": {"'forever'", "1"},
		"random": {"'often'"}, "all_jails": {"1"},
	}
	jail := map[string][]string{}
	for _, m := range []map[string][]string{limits, own} {
		for k, v := range m {
			jail[k] = v
		}
	}
	const rest = "files = ['/x']\nfailregex = ['^<ADDR>$']\n"
	for _, c := range []struct {
		file, place, key string // %s is key = value
		line             int
		bad              map[string][]string
	}{
		{SettingsFile, "# first\n%s\n", "", 2, settings},
		{SettingsFile, "[fleet]\n%s\n", "fleet.", 2, fleet},
		{SettingsFile, "[[feed]]\n%s\n", "feed[0].", 2, feed},
		{SettingsFile, "[[webhook]]\n%s\n", "webhook[0].", 2, webhook},
		{"jail.d/x.toml", "[defaults]\n%s\n[jail.x]\n" + rest, "defaults.", 2, limits},
		{"jail.d/x.toml", "[jail.x]\n%s\n", "jail.x.", 2, jail},
		{"jail.d/x.toml", "[jail.x]\n# growth\nincrement = { %s }\n" + rest, "jail.x.increment.", 3, growth},
	} {
		load := func(key, value string) Problems {
			text := fmt.Sprintf(c.place, key+" = "+value)
			if c.key == "fleet." {
				for k, v := range map[string]string{"name": "web", "host": "web1", "url": "nats://192.0.2.5:4222"} {
					if k != key {
						text += fmt.Sprintf("%s = %q\n", k, v)
					}
				}
			}
			if c.key == "feed[0]." {
				beside := map[string]string{"name": "name = 'x'\n", "url": "url = 'https://lists.example.org/x'\n"}
				switch key {
				case "file":
					delete(beside, "url")
				case "column", "separator":
					beside["format"] = "format = 'csv'\n"
				case "path":
					beside["format"] = "format = 'json'\n"
				case "key_file":
					beside["format"] = "format = 'crowdsec'\n"
				}
				delete(beside, key)
				for _, l := range beside {
					text += l
				}
			}
			if c.key == "webhook[0]." {
				for k, v := range map[string]string{"name": "ops", "url": "https://hooks.example.org"} {
					if k != key && (k != "url" || key != "url_file") {
						text += fmt.Sprintf("%s = %q\n", k, v)
					}
				}
			}
			if c.key == "jail.x." {
				for l := range strings.Lines(rest) {
					if k, _, _ := strings.Cut(l, " "); k != key {
						text += l
					}
				}
				if key == "mode" || key == "modes" && strings.HasPrefix(value, "{") {
					text = strings.Replace(text, "failregex = [", "failregex.normal = [", 1)
				}
			}
			_, problems := Load(nil, write(t, map[string]string{c.file: text}))
			return problems
		}
		problems := load("zzzzzzzzzzzz", "1")
		_, list, ok := strings.Cut(problems.Error(), "zzzzzzzzzzzz: there is no such key; write one of ")
		if !ok {
			t.Fatal(problems)
		}
		known, _, _ := strings.Cut(list, "\n")
		for _, key := range strings.Split(known, ", ") {
			if len(c.bad[key]) == 0 {
				t.Errorf("%s%s: this test has no bad value for it", c.key, key)
			}
			for _, value := range append([]string{"1979-05-27"}, c.bad[key]...) {
				problems := load(key, value)
				found := slices.ContainsFunc(problems, func(p Problem) bool {
					hint := strings.Contains(p.Reason, "write ") || strings.Contains(p.Reason, "put ") || strings.Contains(p.Reason, "did you mean ") ||
						key == "formula" || key == "datepattern" || key == "body" || strings.Contains(key, "regex")
					return strings.HasSuffix(p.File, c.file) && p.Line == c.line && strings.HasPrefix(p.Key, c.key+key) && hint
				})
				if !found {
					t.Errorf("%s%s = %s: no problem that says where, why and what to write:\n%v", c.key, key, value, problems)
				}
			}
		}
	}
}

func TestSettingsProblems(t *testing.T) {
	dir := write(t, map[string]string{SettingsFile: `
interfaces = ["eth0", "eth 1", "averyveryverylongname", "../x"]
mode = "offload2"
socket = "xdpban.sock"
max_bans = 0
max_bans_per_minut = 5
ignoreip = ["1.2.3"]
remember = "soon"
metrics = "192.0.2.1:9477"

[jail.sshd]
enabled = true
`})
	_, problems := Load(nil, dir)
	want := []string{
		`:2: interfaces[1]: "eth 1" can't be`, `:2: interfaces[2]: "averyvery`, `:2: interfaces[3]: `, `:3: mode: "offload2" is no mode; write "auto"`,
		`:4: socket: "xdpban.sock" doesn't begin with /; write the whole path, such as "/run/xdpban/xdpban.sock"`,
		`:5: max_bans: is the number 0; write a number from 1`, `:6: max_bans_per_minut: there is no such key; did you mean max_bans_per_minute?`,
		`:7: ignoreip[0]: "1.2.3"`, `:8: remember: "soon" is no time`, `:9: metrics: 192.0.2.1:9477 can be reached from other hosts: write "127.0.0.1:9477", or set token_file`,
		`:11: jail: doesn't belong here; write it in a file in jail.d/`,
	}
	if len(problems) != len(want) {
		t.Fatalf("problems:\n%v", problems)
	}
	for i := range want {
		if !strings.HasPrefix(problems[i].String(), filepath.Join(dir, SettingsFile)+want[i]) {
			t.Errorf("%v\nwant %s", problems[i], want[i])
		}
	}
}

func TestAllFilesInOneRun(t *testing.T) {
	dir := write(t, map[string]string{
		SettingsFile:    "mode = 3\n",
		"jail.d/a.toml": "[jail.x]\n",
		"jail.d/b.toml": "[jail.y",
		"jail.d/c.toml": "[defaults]\nmaxretry = 0\n[jail.z]\nenabled = 3\nfiles = ['/z']\nfailregex = ['^<ADDR>$']\n",
		"jail.d/d.toml": "[jail.z]\nmaxretry = 3\n[defaults]\n",
	})
	if err := os.Mkdir(filepath.Join(dir, "jail.d/e.toml"), 0o755); err != nil {
		t.Fatal(err)
	}
	_, problems := Load(shipped(map[string]string{"x.toml": plain, "z.toml": plain}), dir)
	for _, want := range []string{
		"built in: z.toml:1: jail.x: is in x.toml too",
		"xdpban.toml:1: mode: is the number 3",
		"b.toml:1: is no valid TOML: expected '.' or ']' to end table name, but the file ends;",
		"c.toml:2: defaults.maxretry: is the number 0",
		"c.toml:4: jail.z.enabled: is the number 3",
		"d.toml:1: jail.z: is in c.toml too: write each jail in one file of a folder",
		"d.toml:3: defaults: is in c.toml too",
		"e.toml: can't be read: it is not a regular file",
	} {
		if !strings.Contains(problems.Error(), want) {
			t.Errorf("missing %q in\n%v", want, problems)
		}
	}
	if len(problems) != 8 {
		t.Errorf("%d problems:\n%v", len(problems), problems)
	}
}

func TestWarnings(t *testing.T) {
	dir := write(t, map[string]string{"jail.d/x.toml": "[jail.x]\nfiles = ['/x']\nfailregex = ['bad .* from <ADDR>']\n"})
	c, problems := Load(nil, dir)
	if problems != nil || len(c.Warnings) == 0 || c.Warnings[0].Line != 3 {
		t.Errorf("%v, %v", problems, c)
	}
}

// A shipped filter is compiled once somebody uses it; one that an operator has
// changed is checked at once, and so is one that he wrote.
func TestShippedFiltersAreTakenAsTheyAre(t *testing.T) {
	const bad = "[jail.x]\nfiles = ['/x']\nfailregex = ['^(bad <ADDR>$']\n"
	c, problems := Load(shipped(map[string]string{"x.toml": bad}), write(t, map[string]string{"jail.d/x.toml": "[jail.x]\nmaxretry = 7\n"}))
	if problems != nil || c.Jails[0].Filter == nil {
		t.Errorf("%v, %v", problems, c)
	}
	for file, want := range map[string]string{
		"[jail.x]\nmaxlines = 2\n":                                  "failregex",
		"[jail.x]\nfailregex = ['^<ADDR>$']\nprefregex = '('\n":     "prefregex",
		"[jail.y]\nfilter = 'x'\nfiles = ['/y']\nprogram = ['x']\n": "jail.x.failregex",
		"[defaults]\nencoding = 'ebcdic'\n":                         "ebcdic",
	} {
		if _, problems := Load(shipped(map[string]string{"x.toml": bad}), write(t, map[string]string{"jail.d/y.toml": file})); !strings.Contains(problems.Error(), want) {
			t.Errorf("%s: %v", file, problems)
		}
	}
}

func TestDurations(t *testing.T) {
	for s, want := range map[string]time.Duration{
		"1s": time.Second, "90s": 90 * time.Second, "10m": 10 * time.Minute, "1d12h": 36 * time.Hour, "2w1d": 15 * 24 * time.Hour, "1h0m5s": time.Hour + 5*time.Second, "forever": Forever,
	} {
		if got, err := ParseDuration(s); err != nil || got != want {
			t.Errorf("%q: %v, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "0s", "10", "m", "-1s", "1.5h", "1h1h", "1m1h", "10 m", "99999999999999999999s", "5300w", "1y", "10m ", "Forever"} {
		if got, err := ParseDuration(s); err == nil {
			t.Errorf("%q is %v", s, got)
		}
	}
}

func TestLineIndex(t *testing.T) {
	const text = "# first\na = 1\n\"b c\" = '''\nx = 1\n''' # end\n[t.'u.v'] # table\nd.e = [ # list\n  \"x # ]\", # one\n\n  'y',\n  [1,\n 2] ]\nf = { g = 1, h = [\n3 ] }\n[[k]]\nm = \"\"\"\\\"\"\"\"\nn = 1979-05-27T07:32:00Z\n[[k]]\nm = 1\n[k.'o'.p]\nq = 2\n[[k.r]]\ns = 3\n"
	got := lineIndex(text)
	for key, line := range map[string]int{
		"a": 2, "b c": 3, "t.u.v": 6, "t.u.v.d.e": 7, "t.u.v.d.e[0]": 8, "t.u.v.d.e[1]": 10, "t.u.v.d.e[2][1]": 12, "t.u.v.f.g": 13, "t.u.v.f.h[0]": 14, "k": 15, "k[0].m": 16, "k[0].n": 17,
		"k[0].n.missing": 17, "nothing": 0, "k[1].m": 19, "k[1].missing": 18, "k[1].o.p.q": 21, "k[1].r[0].s": 23, "k[2]": 15,
	} {
		if got.of(key) != line {
			t.Errorf("%s is in line %d, want %d", key, got.of(key), line)
		}
	}
}

func FuzzConfig(f *testing.F) {
	f.Add(plain)
	f.Add("[defaults]\nincrement = { max = \"1w\" }\n[jail.x]\nfailregex.a = '''^<ADDR>'''\nmodes.a = [\"a\"]\n")
	f.Add("[jail.x]\nports = [\"1-2/tcp\"]\nignoreip = [\"::1/0\", 'x']\n[[jail.x.y]]\n")
	f.Fuzz(func(t *testing.T, text string) {
		c, problems := Load(shipped(map[string]string{"x.toml": text}), "/nonexistent")
		if (c == nil) == (problems == nil) {
			t.Fatalf("%v, %v", c, problems)
		}
		problems = append(problems, Check("x.toml", []byte(text))...)
		for _, p := range problems {
			if p.Reason == "" || p.File == "" || p.Line > strings.Count(text, "\n")+1 {
				t.Errorf("%+v", p)
			}
		}
		if c != nil {
			NewJudge(c).Expire(time.Unix(0, 0), math.MaxInt)
			_ = fmt.Sprint(c.Settings)
		}
	})
}
