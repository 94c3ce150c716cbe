package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRun(t *testing.T) {
	const public = "UDGHZDIZATP6ZBYAYM6OLUMRFKRE2ZPX2P3HSO63MWF276QLGFNTARNZ"
	const wanted = "[fleet]\nname = 'web'\nhost = 'web1'\nembedded = true\nlisten = '192.0.2.5:4222'\n"
	for _, c := range []struct {
		toml, args string
		code       int
		says       string
	}{
		{"", "-wanted", 1, ""},
		{"[fleet]\nname = 'web'\nurl = 'nats://192.0.2.5:4222'\n", "-wanted", 1, ""},
		{wanted, "-wanted", 0, ""},
		{"", "", 2, "has no embedded = true"},
		{wanted, "", 2, "lets nobody in"},
		// An address that no test machine has.
		{wanted + "hosts = { web1 = '" + public + "' }\n", "", 1, "cannot assign requested address"},
		{"", "-nonsense", 2, "flag provided but not defined"},
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "xdpban.toml"), []byte(c.toml), 0o644); err != nil {
			t.Fatal(err)
		}
		var said strings.Builder
		args := append([]string{"-config", dir, "-dir", t.TempDir()}, strings.Fields(c.args)...)
		if code := run(t.Context(), args, &said); code != c.code || !strings.Contains(said.String(), c.says) || c.says == "" && said.Len() > 0 {
			t.Errorf("%q %s: %d, %s", c.toml, c.args, code, &said)
		}
	}
}
