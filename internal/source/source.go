// Package source reads log files and the journal: blocks of whole lines,
// each with the position to go on from.
package source

import (
	"context"
	"time"
)

// Position is where reading of one stream goes on: after everything that
// was emitted with it. It survives in the ledger as JSON.
type Position struct {
	// Cursor is the journal's.
	Cursor string `json:"cursor,omitempty"`
	// File identity and offset; see Files.
	Dev         uint64 `json:"dev,omitempty"`
	Inode       uint64 `json:"ino,omitempty"`
	Fingerprint string `json:"fp,omitempty"`
	Offset      int64  `json:"off,omitempty"`
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
