package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"xdpban/bpf"
	"xdpban/internal/control"
	"xdpban/internal/daemon"
	"xdpban/internal/export"
)

// exported is what an export holds that is read.
type exported struct {
	Bans  []control.Ban
	Ports []control.Port
	Allow []control.Allow
}

type exportCmd struct {
	Format string `help:"json; plain, a prefix a line; cidr, the same with /32 and /128; csv; nft, for nft -f; ipset, for ipset restore; or talk, the shape of the 2017 tool: address to drops, port to drops by protocol." enum:"json,plain,cidr,csv,nft,ipset,talk" default:"json"`
}

func (c *exportCmd) Run(a *app) error {
	bl, err := a.open(false)
	if err != nil {
		return err
	}
	defer bl.Close()
	bans := bl.Bans(a.ctx, control.ListQuery{})
	switch f := export.Format(c.Format); f {
	case "talk":
		l, err := bl.List(a.ctx, control.ListQuery{})
		if err != nil {
			return err
		}
		return a.printJSON(talkShape(l))
	case export.JSON:
		rest := export.Rest{Allow: []control.Allow{}}
		if rest.Ports, err = bl.Ports(a.ctx); err != nil {
			return err
		}
		allowed, err := bl.Allowed(a.ctx)
		if err != nil {
			return err
		}
		for _, al := range allowed {
			if al.Origin == daemon.OriginManual { // the others are this host's own
				rest.Allow = append(rest.Allow, al)
			}
		}
		w := bufio.NewWriter(a.stdout)
		if err := export.WriteJSON(printableWriter{w}, bans, &rest); err != nil {
			return err
		}
		return w.Flush()
	default:
		return export.Write(a.stdout, f, printableBans(bans), time.Now())
	}
}

// printableBans are bans whose words do nothing to a terminal.
func printableBans(bans export.Bans) export.Bans {
	return func(yield func(control.Ban, error) bool) {
		for b, err := range bans {
			b.Jail, b.From = printable(b.Jail), printable(b.From)
			if !yield(b, err) {
				return
			}
		}
	}
}

// printableWriter is printableJSON for what comes in whole characters.
type printableWriter struct{ io.Writer }

func (w printableWriter) Write(p []byte) (int, error) {
	if _, err := w.Writer.Write(printableJSON(p)); err != nil {
		return 0, err
	}
	return len(p), nil
}

// talkShape is what the 2017 tool's --list printed, as valid JSON.
func talkShape(l control.List) map[string]any {
	shape := map[string]any{}
	for _, b := range l.Bans {
		shape[short(b.Prefix)] = b.Packets
	}
	for _, p := range l.Ports {
		key := strconv.Itoa(int(p.Port))
		m, ok := shape[key].(map[string]uint64)
		if !ok {
			m = map[string]uint64{}
			shape[key] = m
		}
		m[strings.ToUpper(p.Protocol)] = p.Packets
	}
	return shape
}

type importCmd struct {
	File    string `arg:"" optional:"" help:"An export, or what list --json or the 2017 tool wrote; - for standard input." default:"-"`
	Replace bool   `help:"End what isn't in it: bans, blocked ports and entries of the allowlist. Otherwise both are merged: the later end wins."`
	DryRun  bool   `help:"Say what would happen, and do nothing."`
	SkipBad bool   `help:"Leave out bans that can't be read or are refused, and go on."`
}

func (c *importCmd) Run(a *app) error {
	var read amount
	in, name := a.stdin, "standard input"
	if c.File != "-" {
		f, err := os.Open(c.File)
		if err != nil {
			return err
		}
		defer f.Close()
		in, name = f, c.File
		read.size(f)
	}
	stop := a.progress(read.text)
	b, err := io.ReadAll(counted{in, &read.done})
	stop()
	if err != nil {
		return fmt.Errorf("reading %s: %w", name, err)
	}
	skipped := 0
	e, err := readExport(b, time.Now(), func(err error) error {
		if !c.SkipBad {
			return err
		}
		if skipped++; skipped <= 10 {
			a.warn("%s: left out: %v", name, err)
		}
		return nil
	})
	if skipped > 10 {
		a.warn("%s: %s left out in all", name, plural(skipped, "ban"))
	}
	if err != nil {
		return usagef("%s: %w; nothing was changed", name, err)
	}
	bl, err := a.open(!c.DryRun)
	if err != nil {
		return err
	}
	defer bl.Close()
	stop = a.changing(bl, len(e.Bans))
	res, err := bl.Import(a.ctx, control.ImportRequest{Bans: e.Bans, Replace: c.Replace, DryRun: c.DryRun, SkipRefused: c.SkipBad})
	stop()
	if err != nil {
		return err
	}
	a.warnRefused(res.Refused)
	done := imported{ImportResult: res}
	if done.Allowed, done.Disallowed, err = c.allow(a, bl, e.Allow); err != nil {
		return fmt.Errorf("the bans are imported, the allowlist isn't: %w", err)
	}
	if done.Blocked, done.Unblocked, err = c.ports(a, e.Ports); err != nil {
		return fmt.Errorf("the bans and the allowlist are imported, the ports aren't: %w", err)
	}
	if m, ok := bl.(*pinned); ok && !c.DryRun {
		if err := a.warnUnattached(m); err != nil {
			return err
		}
	}
	return a.print(done, func(w io.Writer) {
		would := ""
		if c.DryRun {
			would = "would be "
		}
		fmt.Fprintf(w, "%s%d added, %d lengthened, %d removed; %d stood as long or longer, %d had ended already, %d refused\n",
			would, res.Added, res.Extended, res.Removed, res.Kept, res.Over, len(res.Refused))
		if done.Blocked+done.Unblocked > 0 {
			fmt.Fprintf(w, "ports: %s%d blocked, %d unblocked\n", would, done.Blocked, done.Unblocked)
		}
		if done.Allowed+done.Disallowed > 0 {
			fmt.Fprintf(w, "allowlist: %s%d added, %d removed\n", would, done.Allowed, done.Disallowed)
		}
	})
}

// imported says what an import has done, or would do.
type imported struct {
	control.ImportResult
	Blocked    int `json:"blocked"` // ports
	Unblocked  int `json:"unblocked"`
	Allowed    int `json:"allowed"` // new on the allowlist
	Disallowed int `json:"disallowed"`
}

// allow takes over entries of an allowlist; nil: the file says nothing of it.
func (c *importCmd) allow(a *app, bl blocklist, entries []control.Allow) (added, removed int, err error) {
	if entries == nil {
		return 0, 0, nil
	}
	had, err := bl.Allowed(a.ctx)
	if err != nil {
		return 0, 0, err
	}
	extra := map[netip.Prefix]bool{}
	for _, h := range had {
		if h.Origin == daemon.OriginManual {
			extra[h.Prefix] = true
		}
	}
	var add []netip.Prefix
	for _, e := range entries {
		if !extra[e.Prefix] {
			add = append(add, e.Prefix)
		}
		delete(extra, e.Prefix)
	}
	remove := slices.SortedFunc(maps.Keys(extra), netip.Prefix.Compare)
	if !c.Replace {
		remove = nil
	}
	if c.DryRun {
		return len(add), len(remove), nil
	}
	if len(add) > 0 {
		if added, err = bl.Allow(a.ctx, add); err != nil {
			return added, 0, err
		}
	}
	if len(remove) > 0 {
		removed, err = bl.Disallow(a.ctx, remove)
	}
	return added, removed, err
}

// ports takes over blocked ports; nil: the file says nothing of them.
func (c *importCmd) ports(a *app, list []control.Port) (blocked, unblocked int, err error) {
	if list == nil {
		return 0, 0, nil
	}
	o := a.maps()
	o.MustExist = c.DryRun
	b, err := bpf.Open(o)
	if c.DryRun && errors.Is(err, fs.ErrNotExist) {
		return len(list), 0, nil
	}
	if err != nil {
		return 0, 0, err
	}
	defer b.Close()
	stand, err := b.BlockedPorts()
	if err != nil {
		return 0, 0, err
	}
	extra := map[bpf.Port]bool{}
	for _, p := range stand {
		extra[p.Port] = true
	}
	var block []bpf.Port
	for _, p := range list {
		port := bpf.Port{Port: p.Port, Proto: p.Protocol}
		if !extra[port] {
			block = append(block, port)
		}
		delete(extra, port)
	}
	if !c.Replace {
		clear(extra)
	}
	if c.DryRun {
		return len(block), len(extra), nil
	}
	if len(block) > 0 {
		if err := b.BlockPort(block...); err != nil {
			return 0, 0, err
		}
	}
	for p := range extra {
		if _, _, err := b.UnblockPort(p); err != nil {
			return len(block), unblocked, err
		}
		unblocked++
	}
	return len(block), unblocked, nil
}

// readExport reads an export, what list --json wrote, or the 2017 tool's
// list: there an address is banned from now on, forever. What is wrong with one
// entry is given to bad, whose error ends the reading. Ports and Allow are nil
// if the file says nothing of them.
func readExport(b []byte, now time.Time, bad func(error) error) (exported, error) {
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(b, &raw); err != nil {
		return exported{}, describeJSON(err, b)
	}
	if _, ok := raw["bans"]; !ok {
		return readTalk(raw, now, bad)
	}
	var list struct {
		Version            int
		Bans, Ports, Allow []json.RawMessage
	}
	if err := json.Unmarshal(b, &list); err != nil {
		return exported{}, describeJSON(err, b)
	}
	if list.Version > export.Version {
		return exported{}, fmt.Errorf("it is of version %d, from a newer xdpban; this one reads up to %d", list.Version, export.Version)
	}
	var e exported
	for i, raw := range list.Bans {
		var ban control.Ban
		err := json.Unmarshal(raw, &ban)
		if err == nil {
			err = control.CheckBan(ban)
		}
		if err != nil {
			if err := bad(fmt.Errorf("ban %d: %w", i+1, err)); err != nil {
				return exported{}, err
			}
			continue
		}
		if ban.Since.IsZero() {
			ban.Since = now
		}
		e.Bans = append(e.Bans, ban)
	}
	if list.Ports != nil {
		e.Ports = []control.Port{}
	}
	for i, raw := range list.Ports {
		var p control.Port
		err := json.Unmarshal(raw, &p)
		if err == nil {
			_, err = bpf.ParsePort(fmt.Sprintf("%d/%s", p.Port, p.Protocol))
		}
		if err != nil {
			if err := bad(fmt.Errorf("blocked port %d: %w", i+1, err)); err != nil {
				return exported{}, err
			}
			continue
		}
		e.Ports = append(e.Ports, p)
	}
	if list.Allow != nil {
		e.Allow = []control.Allow{}
	}
	for i, raw := range list.Allow {
		var al struct{ Prefix string }
		err := json.Unmarshal(raw, &al)
		var p netip.Prefix
		if err == nil {
			p, err = parsePrefix(al.Prefix)
		}
		if err != nil {
			if err := bad(fmt.Errorf("allowed %d: %w", i+1, err)); err != nil {
				return exported{}, err
			}
			continue
		}
		e.Allow = append(e.Allow, control.Allow{Prefix: p, Origin: daemon.OriginManual})
	}
	return e, nil
}

func readTalk(raw map[string]json.RawMessage, now time.Time, bad func(error) error) (exported, error) {
	var e exported
	wrong := 0
	for _, key := range slices.Sorted(maps.Keys(raw)) {
		if _, err := strconv.ParseUint(key, 10, 64); err == nil {
			ports, err := talkPorts(key, raw[key])
			if err != nil {
				wrong++
				if err := bad(err); err != nil {
					return e, err
				}
			}
			e.Ports = append(e.Ports, ports...)
			continue
		}
		p, err := parsePrefix(key)
		var drops uint64
		if err == nil {
			err = json.Unmarshal(raw[key], &drops)
		}
		if err != nil {
			wrong++
			if err := bad(fmt.Errorf(`neither an export (there is no "bans") nor the 2017 tool's list: %q: %w`, key, err)); err != nil {
				return e, err
			}
			continue
		}
		e.Bans = append(e.Bans, control.Ban{Prefix: p, Since: now})
	}
	if wrong > 0 && len(e.Bans)+len(e.Ports) == 0 {
		return e, errors.New("nothing in it is a ban")
	}
	sortBans(e.Bans, "prefix")
	return e, nil
}

// talkPorts reads one port of the 2017 tool's list: drops by protocol.
func talkPorts(key string, raw json.RawMessage) ([]control.Port, error) {
	var drops map[string]uint64
	if err := json.Unmarshal(raw, &drops); err != nil {
		return nil, fmt.Errorf("port %s: %w", key, err)
	}
	var ports []control.Port
	for _, proto := range slices.Sorted(maps.Keys(drops)) {
		p, err := bpf.ParsePort(key + "/" + strings.ToLower(proto))
		if err != nil {
			return nil, err
		}
		ports = append(ports, control.Port{Port: p.Port, Protocol: p.Proto})
	}
	return ports, nil
}

// describeJSON says where in b an error is.
func describeJSON(err error, b []byte) error {
	at := int64(-1)
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		at = syntax.Offset
	case errors.As(err, &kind):
		at = kind.Offset
	default:
		return err
	}
	line := 1 + strings.Count(string(b[:min(at, int64(len(b)))]), "\n")
	return fmt.Errorf("line %d, byte %d: %w", line, at, err)
}
