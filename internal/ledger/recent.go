package ledger

import (
	"encoding/binary"
	"fmt"
	"slices"

	"go.etcd.io/bbolt"
)

// recentKind is where the last checkpoints are, each as it was written, the
// oldest first. Under an attack each one changes a few records in nearly every
// page; put where they belong each second, those pages would all be written each
// second.
const recentKind = "recent"

// The most that is kept so. Then all of it is put where it belongs, the last of
// each record, and many have gone again by then.
const (
	recentMost  = 64
	recentBytes = 4 << 20
)

// recent is how many checkpoints there are under recentKind, and their size.
type recent struct{ n, bytes int }

func (r *recent) measure(tx *bbolt.Tx) error {
	*r = recent{}
	b := tx.Bucket([]byte(recentKind))
	if b == nil {
		return nil
	}
	return b.ForEach(func(_, v []byte) error {
		r.n++
		r.bytes += len(v)
		return nil
	})
}

// add writes one more checkpoint, and returns what there is then.
func (r recent) add(tx *bbolt.Tx, records []Record) (recent, error) {
	size, err := packedSize(records)
	if err != nil {
		return r, err
	}
	if r.n+1 > recentMost || r.bytes+crcSize+size > recentBytes {
		return recent{}, settle(tx, records)
	}
	b, err := tx.CreateBucketIfNotExists([]byte(recentKind))
	if err != nil {
		return r, err
	}
	n, err := b.NextSequence()
	if err != nil {
		return r, err
	}
	key := binary.BigEndian.AppendUint64(nil, n)
	packed := seal(key, pack(records, size))
	if err := b.Put(key, packed); err != nil {
		return r, err
	}
	return recent{r.n + 1, r.bytes + len(packed)}, nil
}

// settle puts all recent records where they belong, and those of now.
func settle(tx *bbolt.Tx, now []Record) error {
	type id struct{ kind, key string }
	seen := make(map[id]bool, len(now))
	last := slices.Clone(now)
	for _, r := range now {
		seen[id{r.Kind, r.Key}] = true
	}
	b := tx.Bucket([]byte(recentKind))
	if b == nil {
		return put(tx, last)
	}
	c := b.Cursor()
	for k, v := c.Last(); k != nil; k, v = c.Prev() {
		packed, err := unseal(k, v)
		if err != nil {
			return fmt.Errorf("%s: %w", recentKind, err)
		}
		err = eachPacked(packed, func(kind string, key, value []byte) {
			if x := (id{kind, string(key)}); !seen[x] {
				seen[x] = true
				last = append(last, Record{kind, x.key, slices.Clone(value)}) // the file may be mapped anew
			}
		})
		if err != nil {
			return fmt.Errorf("%s: %w", recentKind, err)
		}
	}
	if err := tx.DeleteBucket([]byte(recentKind)); err != nil {
		return err
	}
	return put(tx, last)
}

// recentOf are the recent records of a kind, valid as long as the transaction.
// A nil value is one that was deleted.
func recentOf(tx *bbolt.Tx, kind string) (map[string][]byte, error) {
	b := tx.Bucket([]byte(recentKind))
	if b == nil {
		return nil, nil
	}
	found := map[string][]byte{}
	err := b.ForEach(func(k, v []byte) error {
		packed, err := unseal(k, v)
		if err != nil {
			return err
		}
		return eachPacked(packed, func(of string, key, value []byte) {
			if of == kind {
				found[string(key)] = value
			}
		})
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", recentKind, err)
	}
	return found, nil
}

// packedSize is the most that pack makes of records.
func packedSize(records []Record) (size int, err error) {
	for _, r := range records {
		switch {
		case r.Kind == "" || r.Key == "":
			return 0, fmt.Errorf("kind %q, key %q: neither may be empty", r.Kind, r.Key)
		case len(r.Kind) > bbolt.MaxKeySize || len(r.Key) > bbolt.MaxKeySize:
			return 0, fmt.Errorf("%.20q %.20q: a key has %d bytes at most", r.Kind, r.Key, bbolt.MaxKeySize)
		}
		size += len(r.Kind) + len(r.Key) + len(r.Value) + 3*binary.MaxVarintLen32
	}
	return size, nil
}

// pack writes records one after the other: kind, key and value, each after its
// length; the value's is one more than it is, and 0 where there is none.
func pack(records []Record, size int) []byte {
	packed := make([]byte, 0, size)
	for _, r := range records {
		packed = binary.AppendUvarint(packed, uint64(len(r.Kind)))
		packed = append(packed, r.Kind...)
		packed = binary.AppendUvarint(packed, uint64(len(r.Key)))
		packed = append(packed, r.Key...)
		if r.Value == nil {
			packed = append(packed, 0)
			continue
		}
		packed = binary.AppendUvarint(packed, uint64(len(r.Value))+1)
		packed = append(packed, r.Value...)
	}
	return packed
}

// eachPacked reads what pack wrote. A value is nil where there is none.
func eachPacked(packed []byte, fn func(kind string, key, value []byte)) error {
	part := func(less uint64) ([]byte, bool) {
		n, used := binary.Uvarint(packed)
		if used <= 0 || n < less || n-less > uint64(len(packed)-used) {
			return nil, false
		}
		p := packed[used : used+int(n-less)]
		packed = packed[used+int(n-less):]
		return p, true
	}
	var last string // kinds come one after the other
	for len(packed) > 0 {
		kind, ok1 := part(0)
		key, ok2 := part(0)
		if !ok1 || !ok2 || len(packed) == 0 {
			return errPacked
		}
		var value []byte
		if packed[0] == 0 {
			packed = packed[1:]
		} else {
			var ok bool
			if value, ok = part(1); !ok {
				return errPacked
			}
		}
		if last != string(kind) {
			last = string(kind)
		}
		fn(last, key, value)
	}
	return nil
}

var errPacked = fmt.Errorf("%w: records that end too early", ErrCorrupt)
