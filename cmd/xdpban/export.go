package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
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
	SkipBad bool   `help:"Leave out bans that can't be read or are refused, and go on."`
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
// out. What is wrong with one ban is given to bad, whose error ends the
// reading.
func readExport(b []byte, now time.Time, bad func(error) error) (export, error) {
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(b, &raw); err != nil {
		return export{}, describeJSON(err, b)
	}
	if _, ok := raw["bans"]; !ok {
		return readTalk(raw, now, bad)
	}
	var list struct {
		Version int
		Bans    []json.RawMessage
	}
	if err := json.Unmarshal(b, &list); err != nil {
		return export{}, describeJSON(err, b)
	}
	if list.Version > exportVersion {
		return export{}, fmt.Errorf("it is of version %d, from a newer xdpban; this one reads up to %d", list.Version, exportVersion)
	}
	var e export
	for i, raw := range list.Bans {
		var ban control.Ban
		err := json.Unmarshal(raw, &ban)
		if err == nil {
			err = control.CheckBan(ban)
		}
		if err != nil {
			if err := bad(fmt.Errorf("ban %d: %w", i+1, err)); err != nil {
				return export{}, err
			}
			continue
		}
		if ban.Since.IsZero() {
			ban.Since = now
		}
		e.Bans = append(e.Bans, ban)
	}
	return e, nil
}

func readTalk(raw map[string]json.RawMessage, now time.Time, bad func(error) error) (export, error) {
	var e export
	wrong := 0
	for _, key := range slices.Sorted(maps.Keys(raw)) {
		if _, err := strconv.ParseUint(key, 10, 16); err == nil {
			continue // a port
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
	if wrong > 0 && len(e.Bans) == 0 {
		return e, errors.New("nothing in it is a ban")
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
