// Package source reads log files and the journal: blocks of whole lines,
// each with the position to go on from.
package source

import (
	"context"
	"time"
)

// Position is where reading of one key goes on: after everything that was
// emitted with it. It survives in the ledger as JSON. The zero Position says
// that the source is known but had nothing yet: whatever is found there later
// is read from its start.
type Position struct {
	// Cursor is the journal's. Ahead are those of its streams that have been
	// emitted further than that, and how far.
	Cursor string            `json:"cursor,omitempty"`
	Ahead  map[string]string `json:"ahead,omitempty"`

	// Dev and Inode name the file as it was opened, and Born (Unix
	// nanoseconds, zero if the file system doesn't know) tells it from a later
	// one with the same inode. Fingerprint is of its first bytes: a file copied
	// or compressed meanwhile is found again by it.
	Dev         uint64 `json:"dev,omitempty"`
	Inode       uint64 `json:"ino,omitempty"`
	Born        int64  `json:"born,omitempty"`
	Fingerprint string `json:"fp,omitempty"`
	// Offset counts bytes, of the text if the file is compressed.
	Offset int64 `json:"off,omitempty"`
	// Done says that the file was read to its end and closed.
	Done bool `json:"done,omitempty"`
	// Older are the predecessors under the same pathname, oldest first: those
	// that are done, to know them again, and those that may still be written
	// to or aren't read to their end yet.
	Older []Position `json:"older,omitempty"`
}

// Block is a run of whole lines of one stream.
type Block struct {
	// Stream is the perpetual name of the source: a file's path, or the
	// journal selection's name. One pathname is one stream, whatever inode
	// it points to today.
	Stream string
	// Lines holds whole lines, each ended by "\n". It is valid until emit
	// returns. It may be empty: then only the position moves.
	Lines []byte
	// Arrival is when the block was read.
	Arrival time.Time
	// Key is what Position is stored under in the ledger: several streams
	// of one journal share one.
	Key      string
	Position Position
}

// Emit takes a block. It may block (that is the back pressure); its error
// ends the source.
type Emit func(Block) error

// Source is followed by the daemon: Run emits until ctx ends, starting from
// the stored positions by key.
type Source interface {
	Run(ctx context.Context, resume map[string]Position, emit Emit) error
}
