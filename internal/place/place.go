// Package place tells where addresses are: from databases in MaxMind's format,
// which others make and an operator puts on the machine.
package place

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"

	"github.com/oschwald/maxminddb-golang/v2"
)

// Place is where an address is, as far as databases know.
type Place struct {
	Country string // two letters of ISO 3166-1; empty: not known
	ASN     uint32 // number of the autonomous system; 0: not known
	Network string // who runs that, in the words of the database's makers
}

// Places are the databases in use. They are for one goroutine; the zero value
// has none, and knows nothing.
//
// The files are mapped, not read: what nobody asks about takes no memory. A
// file that is cut short or written over while it is mapped is told of as
// broken, and never ends the program.
type Places struct{ files []*file }

type file struct {
	path   string
	info   fs.FileInfo       // of what was opened last, or tried
	reader *maxminddb.Reader // nil: none could be opened yet
	opened error             // why what is there now can't be used
	looked error             // what the last look into it ran into
}

// Follow takes the databases of these files, and those that have changed since
// the last call anew. Its error says which can't be used, all in one; one that
// was good before then serves on. Unless something has changed, it costs one
// stat(2) for each file.
func (p *Places) Follow(paths []string) error {
	was := p.files
	p.files = nil
	var failures []error
	for _, path := range paths {
		f := &file{path: path}
		if i := slices.IndexFunc(was, func(f *file) bool { return f.path == path }); i >= 0 {
			f = was[i]
			was = slices.Delete(was, i, i+1)
		}
		p.files = append(p.files, f)
		f.follow()
		failures = append(failures, f.opened, f.looked)
	}
	for _, f := range was {
		f.close()
	}
	return errors.Join(failures...)
}

// Close lets go of the files.
func (p *Places) Close() error { return p.Follow(nil) }

func (f *file) follow() {
	info, err := os.Stat(f.path)
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("it is not a regular file")
	}
	if err == nil && f.info != nil && os.SameFile(info, f.info) && info.Size() == f.info.Size() && info.ModTime().Equal(f.info.ModTime()) {
		return
	}
	var reader *maxminddb.Reader
	if err == nil {
		f.info = info
		reader, err = open(f.path)
	} else {
		f.info = nil
	}
	if err != nil {
		then := "it tells nothing"
		if f.reader != nil {
			then = "what was there before serves on"
		}
		f.opened = fmt.Errorf("database of places %s: %w; %s", f.path, root(err), then)
		return
	}
	f.close()
	f.reader, f.opened, f.looked = reader, nil, nil
}

// root leaves out the path, which is said already.
func root(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

func (f *file) close() {
	if f.reader != nil {
		_ = f.reader.Close() // it was only read
		f.reader = nil
	}
}

func open(path string) (r *maxminddb.Reader, err error) {
	defer caught(&err)()
	return maxminddb.Open(path)
}

// caught makes a fault in mapped memory, which is a file cut short, and
// whatever else hostile bytes bring about, an error.
func caught(err *error) func() {
	before := debug.SetPanicOnFault(true)
	return func() {
		debug.SetPanicOnFault(before)
		if e := recover(); e != nil {
			*err = fmt.Errorf("it is broken, or was cut short while in use: %v", e)
		}
	}
}

// Find tells where an address is. Each part is the first database's that has
// it.
func (p *Places) Find(addr netip.Addr) Place {
	var at Place
	for _, f := range p.files {
		if f.reader == nil {
			continue
		}
		if err := f.find(addr.Unmap(), &at); err != nil && f.looked == nil {
			f.looked = fmt.Errorf("database of places %s: look for %s: %w", f.path, addr, err)
		}
	}
	return at
}

func (f *file) find(addr netip.Addr, at *Place) (err error) {
	defer caught(&err)()
	if !addr.IsValid() || addr.Is6() && f.reader.Metadata.IPVersion == 4 {
		return nil
	}
	r := f.reader.Lookup(addr)
	if err := r.Err(); err != nil || !r.Found() {
		return err
	}
	if at.Country == "" {
		// As IPinfo writes it, then as MaxMind and DB-IP do.
		for _, path := range [][]any{{"country_code"}, {"country"}, {"country", "iso_code"}} {
			s, err := text(r, path)
			if err != nil {
				return err
			}
			if len(s) == 2 && isUpper(s[0]) && isUpper(s[1]) {
				at.Country = s
			}
			if s != "" {
				break
			}
		}
	}
	if at.ASN != 0 {
		return nil
	}
	var n uint32
	if err := r.DecodePath(&n, "autonomous_system_number"); wrong(err) {
		return err
	}
	if n == 0 {
		s, err := text(r, []any{"asn"})
		if err != nil {
			return err
		}
		if n64, err := strconv.ParseUint(strings.TrimPrefix(s, "AS"), 10, 32); err == nil {
			n = uint32(n64)
		}
	}
	if at.ASN = n; n == 0 {
		return nil
	}
	for _, key := range []string{"autonomous_system_organization", "as_name"} {
		s, err := text(r, []any{key})
		if err != nil {
			return err
		}
		if s != "" {
			at.Network = s[:min(len(s), maxNetwork)]
			break
		}
	}
	return nil
}

// maxNetwork bounds the name of a network.
const maxNetwork = 100

func isUpper(c byte) bool { return 'A' <= c && c <= 'Z' }

// text reads one text of a record; empty: it isn't there, or is no text.
func text(r maxminddb.Result, path []any) (string, error) {
	var s string
	if err := r.DecodePath(&s, path...); wrong(err) {
		return "", err
	}
	return s, nil
}

// wrong says that an error is more than another kind of value than the one
// looked for.
func wrong(err error) bool {
	var other maxminddb.UnmarshalTypeError
	return err != nil && !errors.As(err, &other)
}
