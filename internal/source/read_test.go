package source

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"testing"
	"testing/iotest"
)

func readAll(t *testing.T, r io.Reader) (text string, dropped int) {
	t.Helper()
	var b strings.Builder
	dropped, err := Read(context.Background(), "-", r, func(block Block) error {
		b.Write(block.Lines)
		if block.Stream != "-" || block.Arrival.IsZero() {
			t.Errorf("block %+v", block)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String(), dropped
}

func TestReadCompressed(t *testing.T) {
	var want bytes.Buffer
	for i := range 30_000 {
		fmt.Fprintf(&want, "line %d\x00\xff\r\n", i)
	}
	for _, program := range []string{"cat", "gzip", "xz", "zstd", "bzip2"} {
		cmd := exec.Command(program)
		cmd.Stdin = bytes.NewReader(want.Bytes())
		packed, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v", program, err)
		}
		if got, _ := readAll(t, bytes.NewReader(packed)); got != want.String() {
			t.Errorf("%s: %d bytes, want %d", program, len(got), want.Len())
		}
		if program == "cat" {
			continue
		}
		_, err = Read(context.Background(), "torn.gz", bytes.NewReader(packed[:len(packed)/2]), func(Block) error { return nil })
		if err == nil || !strings.Contains(err.Error(), "torn.gz") {
			t.Errorf("half of a file by %s: %v", program, err)
		}
	}
}

func TestReadOddLines(t *testing.T) {
	for _, c := range []struct {
		in, want string
		dropped  int
	}{
		{"", "", 0},
		{"\n\n", "\n\n", 0},
		{"a\nlast", "a\nlast\n", 0},
		{"a\n" + strings.Repeat("x", DefaultMaxLine) + "\nb\n", "a\n" + strings.Repeat("x", DefaultMaxLine) + "\nb\n", 0},
		{"a\n" + strings.Repeat("x", DefaultMaxLine+1) + "\nb\n", "a\nb\n", 1},
		{"a\n" + strings.Repeat("x", 10<<20) + "\nb\n", "a\nb\n", 1},
		{"a\n" + strings.Repeat("x", 10<<20), "a\n", 1},
	} {
		for name, r := range map[string]io.Reader{"whole": strings.NewReader(c.in), "half": iotest.HalfReader(strings.NewReader(c.in)), "data and error": iotest.DataErrReader(strings.NewReader(c.in))} {
			if got, dropped := readAll(t, r); got != c.want || dropped != c.dropped {
				t.Errorf("%s, %d bytes from %.10q: %d bytes, want %d; %d dropped, want %d", name, len(c.in), c.in, len(got), len(c.want), dropped, c.dropped)
			}
		}
	}
}

func TestReadFails(t *testing.T) {
	broken := errors.New("broken")
	_, err := Read(context.Background(), "x.log", iotest.TimeoutReader(iotest.OneByteReader(strings.NewReader("a\nb\n"))), func(Block) error { return nil })
	if !errors.Is(err, iotest.ErrTimeout) {
		t.Error(err)
	}
	_, err = Read(context.Background(), "x.log", strings.NewReader("a\n"), func(Block) error { return broken })
	if err != broken {
		t.Error(err)
	}
}

// FuzzRead: lines and nothing but whole lines, whatever the text.
func FuzzRead(f *testing.F) {
	f.Add([]byte("a\nb"), 1)
	f.Add([]byte("\x1f\x8b\x08\x00broken"), 3)
	f.Fuzz(func(t *testing.T, in []byte, size int) {
		b := blocks{r: iotest.HalfReader(bytes.NewReader(in)), max: 1 + max(size, -size)%50}
		var got []byte
		for {
			lines, _, err := b.next()
			got = append(got, lines...)
			if err != nil {
				got = append(got, b.rest()...)
				break
			}
			if len(lines) == 0 || lines[len(lines)-1] != '\n' {
				t.Fatalf("block %q", lines)
			}
		}
		var want []byte
		for line := range bytes.Lines(in) {
			if len(bytes.TrimSuffix(line, []byte("\n"))) <= b.max {
				want = append(want, line...)
			}
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("max %d: %q, want %q", b.max, got, want)
		}
	})
}
