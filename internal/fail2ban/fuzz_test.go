package fail2ban

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"xdpban/jails"
)

// recorder notes what is opened, to show that nothing outside is.
type recorder struct {
	fs.FS
	opened []string
}

func (r *recorder) Open(name string) (fs.File, error) {
	r.opened = append(r.opened, name)
	return r.FS.Open(name)
}

// FuzzTree reads hostile configurations: it must end, and read no file that
// no include names.
func FuzzTree(f *testing.F) {
	add := func(dir string) {
		jail, _ := os.ReadFile(filepath.Join(dir, "jail.conf"))
		local, _ := os.ReadFile(filepath.Join(dir, "jail.local"))
		filters, _ := filepath.Glob(filepath.Join(dir, "filter.d/*.conf"))
		for _, name := range filters {
			data, _ := os.ReadFile(name)
			f.Add(jail, local, data)
		}
	}
	add("testdata/tricky")
	add("testdata/full")
	f.Add([]byte("[x]\nenabled=1\nfilter=a[b=<b>]"), []byte("[INCLUDES]\nbefore=jail.conf"), []byte("[Definition]\nfailregex=<b><b><b>"))
	f.Add([]byte("[DEFAULT]\na=%(b)s%(b)s\nb=%(c)s%(c)s\nc=%(d)s\nd=xx\n[x]\nfilter=../../etc/passwd"), []byte("[INCLUDES]\nafter=/outside.conf"), []byte("[Init?f=6]\nx=<x?f=6>"))
	f.Fuzz(func(t *testing.T, jail, local, filter []byte) {
		r := &recorder{FS: fstest.MapFS{
			"etc/jail.conf":           {Data: jail},
			"etc/jail.local":          {Data: local},
			"etc/filter.d/a.conf":     {Data: filter},
			"etc/filter.d/plain.conf": {Data: filter},
			"secret":                  {Data: []byte("[DEFAULT]\nx = secret")},
		}}
		tree := Open(r, "/etc")
		names, err := tree.JailNames()
		if err == nil {
			for _, n := range names {
				j, err := tree.Jail(n, true)
				if err != nil {
					continue
				}
				if c, err := tree.Convert(j); err == nil {
					if _, problems := jails.Load(fstest.MapFS{"jail.toml": {Data: c.TOML}}, ""); len(problems) > 0 {
						t.Fatalf("jail %q is written as what xdpban doesn't take: %v\n%s", n, problems, c.TOML)
					}
				}
			}
		}
		tree.Filter("a", Options{})
		for _, name := range r.opened {
			if name == "secret" && !strings.Contains(string(jail)+string(local)+string(filter), "secret") {
				t.Fatalf("read %s, which nothing includes", name)
			}
		}
	})
}
