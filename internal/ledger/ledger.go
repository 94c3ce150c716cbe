// Package ledger keeps the daemon's checkpoint on disk: positions, failure
// windows, bans and history, each change of them in one transaction. It knows
// records by kind and key and nothing of what they mean.
package ledger

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// Schema is the version of what the records mean and where they are. Schema 1
// had no recent ones.
const Schema = "2"

var (
	// ErrLocked says that another process holds the ledger.
	ErrLocked = errors.New("another xdpban is running with this ledger")
	// ErrCorrupt says that the file can't be read as a ledger: torn,
	// truncated or not one at all.
	ErrCorrupt = errors.New("ledger is corrupt")
	// ErrSchema says that the ledger was written by a newer xdpban.
	ErrSchema = errors.New("ledger has another schema")
)

const (
	metaKind  = "meta"
	schemaKey = "schema"
)

// Record is one thing remembered. A nil Value deletes it.
type Record struct {
	Kind  string
	Key   string
	Value []byte
}

// Ledger is an open ledger file. One process has it at a time.
type Ledger struct {
	db   *bbolt.DB
	path string

	writing sync.Mutex // a checkpoint
	recent  recent     // who writes has it
}

// Open opens or makes the ledger file, and its folder, readable by its owner
// only: evidence lines are private. It checks the whole file, so that a
// damaged one is found here (ErrCorrupt) and not in the middle of an attack.
func Open(path string) (*Ledger, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return nil, fmt.Errorf("make the ledger's folder: %w", err)
	}
	info, err := os.Stat(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open ledger %s: %w", path, err)
	}
	if err == nil && !info.Mode().IsRegular() {
		return nil, fmt.Errorf("open ledger %s: it is not a regular file", path)
	}
	l := &Ledger{path: path}
	if err := l.open(); err != nil {
		if l.db != nil {
			l.db.Close()
		}
		return nil, fmt.Errorf("open ledger %s: %w", path, err)
	}
	return l, nil
}

func (l *Ledger) open() (err error) {
	// bbolt answers damaged pages with panics, and a mapped page behind the
	// file's end with a fault. Its own checker isn't used, nor is its list of
	// free pages left to be rebuilt: both walk the file in goroutines of
	// theirs, where a panic can't be caught.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", ErrCorrupt, r)
		}
	}()
	l.db, err = bbolt.Open(l.path, 0o600, &bbolt.Options{
		Timeout:      time.Second,
		FreelistType: bbolt.FreelistMapType,
	})
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return ErrLocked
	case errors.Is(err, bolterrors.ErrInvalid), errors.Is(err, bolterrors.ErrChecksum), errors.Is(err, bolterrors.ErrVersionMismatch):
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	case err != nil:
		if info, statErr := os.Stat(l.path); statErr == nil && info.Size() < int64(2*os.Getpagesize()) {
			// The two pages that every ledger begins with aren't there; bbolt
			// has no error value for that.
			return fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
		return err
	}
	if err := l.db.View(l.check); err != nil {
		return err
	}
	if err := l.db.View(l.recent.measure); err != nil {
		return err
	}
	return l.db.Update(func(tx *bbolt.Tx) error {
		meta, err := tx.CreateBucketIfNotExists([]byte(metaKind))
		if err != nil {
			return err
		}
		sealed := meta.Get([]byte(schemaKey))
		if sealed == nil {
			return meta.Put([]byte(schemaKey), seal([]byte(schemaKey), []byte(Schema)))
		}
		switch have := string(sealed[crcSize:]); have {
		case Schema:
			return nil
		case "1":
			return meta.Put([]byte(schemaKey), seal([]byte(schemaKey), []byte(Schema)))
		default:
			return fmt.Errorf("%w: it has %q and this xdpban knows %q; run the xdpban that wrote it, or move the file away to start anew", ErrSchema, have, Schema)
		}
	})
}

func (l *Ledger) check(tx *bbolt.Tx) error {
	info, err := os.Stat(l.path)
	if err != nil {
		return err
	}
	if info.Size() < tx.Size() {
		return fmt.Errorf("%w: it ends at byte %d of %d", ErrCorrupt, info.Size(), tx.Size())
	}
	return tx.ForEach(func(kind []byte, b *bbolt.Bucket) error {
		var last []byte
		return b.ForEach(func(k, v []byte) error {
			content, err := unseal(k, v)
			if err == nil && string(kind) == recentKind {
				err = eachPacked(content, func(string, []byte, []byte) {})
			}
			if err != nil {
				return fmt.Errorf("%s: %w", kind, err)
			}
			if last != nil && bytes.Compare(last, k) >= 0 {
				return fmt.Errorf("%s: %w: key %q comes after %q", kind, ErrCorrupt, k, last)
			}
			last = k
			return nil
		})
	})
}

// bbolt has no checksum over its pages, so each record carries its own.
const crcSize = 4

func seal(key, value []byte) []byte {
	return append(binary.BigEndian.AppendUint32(make([]byte, 0, crcSize+len(value)), checksum(key, value)), value...)
}

func unseal(key, sealed []byte) ([]byte, error) {
	if len(sealed) < crcSize || binary.BigEndian.Uint32(sealed) != checksum(key, sealed[crcSize:]) {
		return nil, fmt.Errorf("%w: record %q doesn't fit its checksum", ErrCorrupt, key)
	}
	return sealed[crcSize:], nil
}

func checksum(key, value []byte) uint32 {
	castagnoli := crc32.MakeTable(crc32.Castagnoli)
	return crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, value)
}

// Close lets the file go.
func (l *Ledger) Close() error {
	if err := l.db.Close(); err != nil {
		return fmt.Errorf("close ledger %s: %w", l.path, err)
	}
	return nil
}

// Commit writes a checkpoint: all of it or, on an error, nothing of it. It
// returns when it is on disk. No two of the records may have the same kind and
// key.
func (l *Ledger) Commit(records []Record) error {
	l.writing.Lock()
	defer l.writing.Unlock()
	var now recent
	err := l.db.Update(func(tx *bbolt.Tx) (err error) {
		now, err = l.recent.add(tx, records)
		return err
	})
	if err != nil {
		return fmt.Errorf("write checkpoint to %s: %w", l.path, err)
	}
	l.recent = now
	return nil
}

// put writes records each where its key belongs.
func put(tx *bbolt.Tx, records []Record) error {
	// A page takes in whatever one transaction puts there before it is split,
	// as a sorted list: unsorted, a hundred thousand new keys move each other
	// aside for minutes.
	slices.SortFunc(records, func(a, b Record) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Key, b.Key))
	})
	for _, r := range records {
		b, err := tx.CreateBucketIfNotExists([]byte(r.Kind))
		if err != nil {
			return fmt.Errorf("kind %q: %w", r.Kind, err)
		}
		b.FillPercent = 0.9 // history, the most of it, is written in the order of its keys
		if r.Value == nil {
			err = b.Delete([]byte(r.Key))
		} else {
			err = b.Put([]byte(r.Key), seal([]byte(r.Key), r.Value))
		}
		if err != nil {
			return fmt.Errorf("%s %q: %w", r.Kind, r.Key, err)
		}
	}
	return nil
}

// Walk calls fn for each record of a kind in the order of keys, until fn
// returns an error, which Walk returns. The value is valid until fn returns.
func (l *Ledger) Walk(kind string, fn func(key string, value []byte) error) error {
	return l.walk(kind, false, fn)
}

// WalkBack is Walk from the last key to the first.
func (l *Ledger) WalkBack(kind string, fn func(key string, value []byte) error) error {
	return l.walk(kind, true, fn)
}

func (l *Ledger) walk(kind string, back bool, fn func(string, []byte) error) error {
	return l.db.View(func(tx *bbolt.Tx) error {
		newer, err := recentOf(tx, kind)
		if err != nil {
			return fmt.Errorf("read ledger %s: %w", l.path, err)
		}
		keys := slices.Sorted(maps.Keys(newer))
		order := 1
		if back {
			slices.Reverse(keys)
			order = -1
		}
		// upTo walks the recent records before key.
		upTo := func(key []byte, all bool) error {
			for len(keys) > 0 && (all || order*cmp.Compare(keys[0], string(key)) < 0) {
				if v := newer[keys[0]]; v != nil {
					if err := fn(keys[0], v); err != nil {
						return err
					}
				}
				keys = keys[1:]
			}
			return nil
		}
		if b := tx.Bucket([]byte(kind)); b != nil {
			c := b.Cursor()
			first, next := c.First, c.Next
			if back {
				first, next = c.Last, c.Prev
			}
			for k, v := first(); k != nil; k, v = next() {
				if err := upTo(k, false); err != nil {
					return err
				}
				if len(keys) > 0 && keys[0] == string(k) {
					continue // there is a newer one
				}
				value, err := unseal(k, v)
				if err != nil {
					return fmt.Errorf("read ledger %s: %s: %w", l.path, kind, err)
				}
				if err := fn(string(k), value); err != nil {
					return err
				}
			}
		}
		return upTo(nil, true)
	})
}

// Quarantine moves a damaged ledger aside, so that a new one can be made and
// the old one looked at, and returns where it is now.
func Quarantine(path string, now time.Time) (string, error) {
	aside := path + ".corrupt-" + now.UTC().Format("20060102T150405.000Z")
	if err := os.Rename(path, aside); err != nil {
		return "", fmt.Errorf("move the damaged ledger aside: %w", err)
	}
	return aside, nil
}
