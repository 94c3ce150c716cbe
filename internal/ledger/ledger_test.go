package ledger

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"
)

func open(t *testing.T, path string) *Ledger {
	t.Helper()
	l, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func keys(t *testing.T, walk func(string, func(string, []byte) error) error, kind string) []string {
	t.Helper()
	var got []string
	if err := walk(kind, func(k string, v []byte) error {
		got = append(got, k+"="+string(v))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return got
}

func TestCommitSurvivesReopening(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state", "ledger.db")
	l := open(t, path)
	if err := l.Commit([]Record{{"ban", "b", []byte("2")}, {"ban", "a", []byte("1")}, {"ban", "c", []byte("3")}, {"position", "journal", []byte("x")}}); err != nil {
		t.Fatal(err)
	}
	if err := l.Commit([]Record{{"ban", "c", nil}, {"ban", "never was", nil}, {"position", "journal", []byte("y")}}); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = open(t, path)
	if got, want := keys(t, l.Walk, "ban"), []string{"a=1", "b=2"}; !slices.Equal(got, want) {
		t.Errorf("bans %v, want %v", got, want)
	}
	if got, want := keys(t, l.WalkBack, "ban"), []string{"b=2", "a=1"}; !slices.Equal(got, want) {
		t.Errorf("bans backwards %v, want %v", got, want)
	}
	if got, want := keys(t, l.Walk, "position"), []string{"journal=y"}; !slices.Equal(got, want) {
		t.Errorf("positions %v, want %v", got, want)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; evidence must be readable by its owner only", info.Mode(), err)
	}
}

func TestFailedCommitChangesNothing(t *testing.T) {
	l := open(t, filepath.Join(t.TempDir(), "ledger.db"))
	if err := l.Commit([]Record{{"ban", "a", []byte("1")}}); err != nil {
		t.Fatal(err)
	}
	if err := l.Commit([]Record{{"ban", "b", []byte("2")}, {"ban", "", []byte("an empty key is refused")}}); err == nil {
		t.Fatal("an empty key was taken")
	}
	if got, want := keys(t, l.Walk, "ban"), []string{"a=1"}; !slices.Equal(got, want) {
		t.Errorf("bans %v, want %v", got, want)
	}
}

func TestSecondOpenIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	open(t, path)
	if _, err := Open(path); !errors.Is(err, ErrLocked) {
		t.Errorf("second Open: %v, want ErrLocked", err)
	}
}

func TestNewerSchemaIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	l := open(t, path)
	l.setSchema(t, "99")
	l.Close()
	if _, err := Open(path); !errors.Is(err, ErrSchema) {
		t.Errorf("Open: %v, want ErrSchema", err)
	}
}

func (l *Ledger) setSchema(t *testing.T, version string) {
	t.Helper()
	if err := l.db.Update(func(tx *bbolt.Tx) error {
		return put(tx, []Record{{metaKind, schemaKey, []byte(version)}})
	}); err != nil {
		t.Fatal(err)
	}
}

// TestOlderSchema: a ledger without recent checkpoints is read on, and an older
// xdpban refuses it from then on.
func TestOlderSchema(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	l := open(t, path)
	if err := l.db.Update(func(tx *bbolt.Tx) error { return put(tx, []Record{{"ban", "a", []byte("1")}}) }); err != nil {
		t.Fatal(err)
	}
	l.setSchema(t, "1")
	l.Close()
	l = open(t, path)
	if got := keys(t, l.Walk, "ban"); !slices.Equal(got, []string{"a=1"}) {
		t.Errorf("%v", got)
	}
	if got := keys(t, l.Walk, metaKind); !slices.Equal(got, []string{"schema=" + Schema}) {
		t.Errorf("%v", got)
	}
}

// TestRecent: whatever is recent still or where it belongs, what was written
// last is what there is, forwards and backwards, at once and after reopening.
func TestRecent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	l := open(t, path)
	rnd := rand.New(rand.NewPCG(1, 2))
	want := map[string]string{}
	kinds := []string{"ban", "bane", "b"}
	settled := 0
	for i := range 200 {
		records := map[[2]string]Record{}
		for range rnd.IntN(30) {
			r := Record{kinds[rnd.IntN(3)], fmt.Sprintf("%03d", rnd.IntN(200)), fmt.Appendf(nil, "%d", i)}
			switch rnd.IntN(10) {
			case 0, 1, 2:
				r.Value = nil
			case 3:
				r.Value = []byte{}
			case 4:
				r.Value = bytes.Repeat([]byte("x"), rnd.IntN(1<<17))
			}
			records[[2]string{r.Kind, r.Key}] = r
		}
		for id, r := range records {
			if r.Value == nil {
				delete(want, id[0]+" "+id[1])
			} else {
				want[id[0]+" "+id[1]] = string(r.Value)
			}
		}
		before := l.recent.n
		if err := l.Commit(slices.Collect(maps.Values(records))); err != nil {
			t.Fatal(err)
		}
		if l.recent.n < before {
			settled++
		}
		if l.recent.bytes > recentBytes || l.recent.n > recentMost {
			t.Fatalf("%d checkpoints of %d bytes are recent", l.recent.n, l.recent.bytes)
		}
		if rnd.IntN(20) == 0 {
			recent := l.recent
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			if l = open(t, path); l.recent != recent {
				t.Fatalf("recent after reopening: %+v, before %+v", l.recent, recent)
			}
		}
		if rnd.IntN(5) > 0 {
			continue
		}
		for _, kind := range kinds {
			var all []string
			for id, value := range want {
				if key, ok := strings.CutPrefix(id, kind+" "); ok {
					all = append(all, key+"="+value)
				}
			}
			slices.Sort(all)
			if got := keys(t, l.Walk, kind); !slices.Equal(got, all) {
				t.Fatalf("commit %d: %s: %.200q\nwant %.200q", i, kind, got, all)
			}
			slices.Reverse(all)
			if got := keys(t, l.WalkBack, kind); !slices.Equal(got, all) {
				t.Fatalf("commit %d: %s backwards: %.200q\nwant %.200q", i, kind, got, all)
			}
		}
	}
	if settled < 3 {
		t.Errorf("recent checkpoints were put where they belong %d times", settled)
	}
}

// FuzzPacked: whatever is read as packed records is either refused or what
// packing them again gives.
func FuzzPacked(f *testing.F) {
	packed := pack([]Record{{"ban", "a", []byte("1")}, {"ban", "b", nil}, {"position", "x", []byte{}}}, 0)
	f.Add(packed)
	f.Add(packed[:len(packed)-1])
	f.Fuzz(func(t *testing.T, in []byte) {
		var records []Record
		if err := eachPacked(in, func(kind string, key, value []byte) {
			records = append(records, Record{kind, string(key), value})
		}); err != nil {
			return
		}
		var twice []Record
		if err := eachPacked(pack(records, 0), func(kind string, key, value []byte) {
			twice = append(twice, Record{kind, string(key), value})
		}); err != nil || !reflect.DeepEqual(records, twice) {
			t.Fatalf("%q, %v", twice, err)
		}
	})
}

// A ledger cut or overwritten anywhere either still reads whole (what was
// hit was free space, or the root of the newest of its two last checkpoints)
// or is found corrupt; it never brings the process down nor yields wrong or
// half the records.
func TestDamageIsFound(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "ledger.db")
	l := open(t, path)
	var records []Record
	for i := range 500 {
		records = append(records, Record{"ban", fmt.Sprintf("%04d", i), []byte("value")})
	}
	// Half of them where they belong, half of them recent.
	if err := l.db.Update(func(tx *bbolt.Tx) error { return put(tx, records[:250]) }); err != nil {
		t.Fatal(err)
	}
	if err := l.Commit(records[250:]); err != nil {
		t.Fatal(err)
	}
	if err := l.Commit([]Record{{"ban", "9999", []byte("value")}}); err != nil {
		t.Fatal(err)
	}
	l.Close()
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	try := func(t *testing.T, content []byte) {
		damaged := filepath.Join(t.TempDir(), "ledger.db")
		if err := os.WriteFile(damaged, content, 0o600); err != nil {
			t.Fatal(err)
		}
		l, err := Open(damaged)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("Open: %v, want ErrCorrupt", err)
			}
			aside, err := Quarantine(damaged, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			if kept, err := os.ReadFile(aside); err != nil || len(kept) != len(content) {
				t.Errorf("the damaged file was not kept: %d bytes, %v", len(kept), err)
			}
			open(t, damaged)
			return
		}
		defer l.Close()
		if got := keys(t, l.Walk, "ban"); len(got) != 501 && len(got) != 500 {
			t.Errorf("Open found no damage and %d of 501 bans", len(got))
		}
	}
	page := os.Getpagesize()
	for cut := 1; cut < len(whole); cut += page/2 + 1 {
		t.Run(fmt.Sprintf("cut at %d", cut), func(t *testing.T) { try(t, whole[:cut]) })
	}
	for at := 0; at+page <= len(whole); at += page {
		t.Run(fmt.Sprintf("page %d torn", at/page), func(t *testing.T) {
			torn := slices.Clone(whole)
			for i := range page / 2 {
				torn[at+i] = 0xa5
			}
			try(t, torn)
		})
	}
	t.Run("something else", func(t *testing.T) { try(t, []byte("not a ledger at all\n")) })
}

// TestPagesAreFilled: what is written in order takes little more room than its
// own size.
func TestPagesAreFilled(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.db")
	l, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	const commits, each, size = 20, 1000, 500
	for i := range commits {
		var records []Record
		for k := range each {
			records = append(records, Record{"history", fmt.Sprintf("%020d", i*each+k), make([]byte, size)})
		}
		if err := l.Commit(records); err != nil {
			t.Fatal(err)
		}
	}
	// The file itself grows by doubling.
	var used int64
	if err := l.db.View(func(tx *bbolt.Tx) error { used = tx.Size(); return nil }); err != nil {
		t.Fatal(err)
	}
	if most := int64(2 * commits * each * size); used > most {
		t.Errorf("%d bytes for %d", used, commits*each*size)
	}
}
