package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"xdpban/internal/control"
)

// exportVersion is that of the export's shape. A newer one isn't read.
const exportVersion = 1

// export is all bans, as written by one xdpban and read by another.
type export struct {
	Version int             `json:"version"`
	Bans    []control.Ban   `json:"bans"`
	Ports   []control.Port  `json:"ports"`
	Allow   []control.Allow `json:"allow"`
}

type exportCmd struct {
	Format string `help:"json; plain, a prefix a line; or talk, the shape of the 2017 tool: address to drops, port to drops by protocol." enum:"json,plain,talk" default:"json"`
}

func (c *exportCmd) Run(a *app) error {
	bl, err := a.open(false)
	if err != nil {
		return err
	}
	defer bl.Close()
	l, err := bl.List(a.ctx, control.ListQuery{})
	if err != nil {
		return err
	}
	sortBans(l.Bans, "prefix")
	switch c.Format {
	case "plain":
		var b strings.Builder
		for _, ban := range l.Bans {
			b.WriteString(short(ban.Prefix) + "\n")
		}
		_, err = io.WriteString(a.stdout, b.String())
		return err
	case "talk":
		return a.printJSON(talkShape(l))
	}
	e := export{Version: exportVersion, Bans: l.Bans, Ports: l.Ports, Allow: []control.Allow{}}
	allowed, err := bl.Allowed(a.ctx)
	if err != nil {
		return err
	}
	for _, al := range allowed {
		if al.Origin == "manual" { // the others are this host's own
			e.Allow = append(e.Allow, al)
		}
	}
	return a.printJSON(e)
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
	Replace bool   `help:"Unban what isn't in it. Otherwise both are merged: the later end wins."`
	DryRun  bool   `help:"Say what would happen, and do nothing."`
	SkipBad bool   `help:"Leave out bans that are refused, and go on."`
}

func (c *importCmd) Run(a *app) error {
	in, name := a.stdin, "standard input"
	if c.File != "-" {
		f, err := os.Open(c.File)
		if err != nil {
			return err
		}
		defer f.Close()
		in, name = f, c.File
	}
	b, err := io.ReadAll(in)
	if err != nil {
		return fmt.Errorf("reading %s: %w", name, err)
	}
	e, err := readExport(b, time.Now())
	if err != nil {
		return usagef("%s: %w; nothing was changed", name, err)
	}
	bl, err := a.open(!c.DryRun)
	if err != nil {
		return err
	}
	defer bl.Close()
	res, err := bl.Import(a.ctx, control.ImportRequest{Bans: e.Bans, Replace: c.Replace, DryRun: c.DryRun, SkipRefused: c.SkipBad})
	if err != nil {
		return err
	}
	a.warnRefused(res.Refused)
	if m, ok := bl.(*pinned); ok && !c.DryRun {
		if err := a.warnUnattached(m); err != nil {
			return err
		}
	}
	return a.print(res, func(w io.Writer) {
		would := ""
		if c.DryRun {
			would = "would be "
		}
		fmt.Fprintf(w, "%s%d added, %d lengthened, %d removed; %d stood as long or longer, %d had ended already, %d refused\n",
			would, res.Added, res.Extended, res.Removed, res.Kept, res.Over, len(res.Refused))
	})
}

// readExport reads an export, what list --json wrote, or the 2017 tool's
// list: there an address is banned from now on, forever, and ports are left
// out.
func readExport(b []byte, now time.Time) (export, error) {
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(b, &raw); err != nil {
		return export{}, describeJSON(err, b)
	}
	if _, ok := raw["bans"]; !ok {
		return readTalk(raw, now)
	}
	var version struct{ Version int }
	if err := json.Unmarshal(b, &version); err != nil {
		return export{}, describeJSON(err, b)
	}
	if version.Version > exportVersion {
		return export{}, fmt.Errorf("it is of version %d, from a newer xdpban; this one reads up to %d", version.Version, exportVersion)
	}
	var e export
	if err := json.Unmarshal(b, &e); err != nil {
		return export{}, describeJSON(err, b)
	}
	for i := range e.Bans {
		if err := control.CheckBan(e.Bans[i]); err != nil {
			return export{}, fmt.Errorf("ban %d: %w", i+1, err)
		}
		if e.Bans[i].Since.IsZero() {
			e.Bans[i].Since = now
		}
	}
	return e, nil
}

func readTalk(raw map[string]json.RawMessage, now time.Time) (export, error) {
	var e export
	for key, v := range raw {
		if _, err := strconv.ParseUint(key, 10, 16); err == nil {
			continue // a port
		}
		p, err := parsePrefix(key)
		var drops uint64
		if err == nil {
			err = json.Unmarshal(v, &drops)
		}
		if err != nil {
			return e, fmt.Errorf(`neither an export (there is no "bans") nor the 2017 tool's list: %q: %w`, key, err)
		}
		e.Bans = append(e.Bans, control.Ban{Prefix: p, Since: now})
	}
	sortBans(e.Bans, "prefix")
	return e, nil
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
