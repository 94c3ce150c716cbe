package source

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

const (
	// blockSize is what is read at a time: large enough that the system call
	// vanishes, small enough to stay in the L2 cache until it is matched.
	blockSize = 256 << 10
	// DefaultMaxLine is the longest line that is handed on.
	DefaultMaxLine = 1 << 20
)

// Read reads all of r, compressed (gzip, xz, zstd, bzip2; told by its first
// bytes) or not, as blocks of the named stream; their position is the offset
// alone. A last line without an end gets one. It returns how many lines were
// longer than DefaultMaxLine and therefore dropped.
func Read(ctx context.Context, stream string, r io.Reader, emit Emit) (dropped int, err error) {
	text, err := unpack(r)
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", stream, err)
	}
	defer text.Close()
	b := blocks{r: text, max: DefaultMaxLine}
	var off int64
	for {
		if err := ctx.Err(); err != nil {
			return b.dropped, err
		}
		lines, n, err := b.next()
		off += n
		if err == io.EOF {
			if lines = b.rest(); len(lines) > 0 {
				off += int64(len(lines))
				lines = append(lines, '\n')
			}
		} else if err != nil {
			return b.dropped, fmt.Errorf("read %s: %w", stream, err)
		}
		if len(lines) > 0 {
			block := Block{Stream: stream, Lines: lines, Arrival: time.Now(), Key: stream, Position: Position{Offset: off}}
			if err := emit(block); err != nil {
				return b.dropped, err
			}
		}
		if err == io.EOF {
			return b.dropped, nil
		}
	}
}

// blocks cuts a reader's text into blocks of whole lines.
type blocks struct {
	r          io.Reader
	max        int // longest line, without its end
	buf        []byte
	start, end int // what is left in buf
	skipping   bool
	dropped    int
	err        error
}

// next returns the next whole lines and how many bytes they and the lines
// dropped before them took. The lines are valid until the next call. With
// io.EOF, rest holds what has no line end.
func (b *blocks) next() (lines []byte, n int64, err error) {
	if b.buf == nil {
		b.buf = make([]byte, min(blockSize, b.max+1))
	}
	b.end = copy(b.buf, b.buf[b.start:b.end])
	b.start = 0
	looked := b.end // no line end up to here
	for {
		if b.err != nil {
			return nil, n, b.err
		}
		if b.end == len(b.buf) {
			if len(b.buf) < b.max+1 {
				b.buf = append(b.buf, make([]byte, min(len(b.buf), b.max+1-len(b.buf)))...)
			} else {
				b.skipping = true
				b.dropped++
				n += int64(b.end)
				b.end, looked = 0, 0
			}
		}
		var m int
		m, b.err = b.r.Read(b.buf[b.end:])
		b.end += m
		if b.skipping {
			i := bytes.IndexByte(b.buf[:b.end], '\n')
			if i < 0 {
				n += int64(b.end)
				b.end = 0
				continue
			}
			n += int64(i + 1)
			b.end = copy(b.buf, b.buf[i+1:b.end])
			b.skipping = false
		}
		// A pipe's short read is a block too: whoever writes it is slow.
		if i := bytes.LastIndexByte(b.buf[looked:b.end], '\n'); i >= 0 {
			b.start = looked + i + 1
			return b.buf[:b.start], n + int64(b.start), nil
		}
		looked = b.end
	}
}

// rest is what followed the last line end.
func (b *blocks) rest() []byte {
	if b.skipping {
		return nil
	}
	return b.buf[b.start:b.end]
}

// unpack returns the text of r, decompressed if its first bytes say so.
func unpack(r io.Reader) (io.ReadCloser, error) {
	br := bufio.NewReaderSize(r, 64<<10)
	magic, err := br.Peek(6)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(magic, []byte("\x1f\x8b")):
		return gzip.NewReader(br)
	case bytes.HasPrefix(magic, []byte("\xfd7zXZ\x00")):
		x, err := xz.NewReader(br)
		if err != nil {
			return nil, err
		}
		return io.NopCloser(x), nil
	case bytes.HasPrefix(magic, []byte("\x28\xb5\x2f\xfd")):
		z, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(1<<30))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	case bytes.HasPrefix(magic, []byte("BZh")):
		return io.NopCloser(bzip2.NewReader(br)), nil
	}
	return io.NopCloser(br), nil
}
