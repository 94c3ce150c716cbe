package ledger

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
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
	if err := l.Commit([]Record{{metaKind, schemaKey, []byte("99")}}); err != nil {
		t.Fatal(err)
	}
	l.Close()
	if _, err := Open(path); !errors.Is(err, ErrSchema) {
		t.Errorf("Open: %v, want ErrSchema", err)
	}
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
	if err := l.Commit(records); err != nil {
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
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if most := int64(2 * commits * each * size); info.Size() > most {
		t.Errorf("%d bytes for %d", info.Size(), commits*each*size)
	}
}
