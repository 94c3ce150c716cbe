package feed

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// header is the first line of a copy: what is known of it, in JSON. One entry
// on each line follows: a prefix, and its end in seconds if it has one.
type header struct {
	Source   string    `json:"source"`
	Fetched  time.Time `json:"fetched"` // when the source last had it
	ETag     string    `json:"etag,omitempty"`
	Modified string    `json:"last_modified,omitempty"`
	Of       string    `json:"of,omitempty"` // SHA-256 of what was fetched
	Entries  int       `json:"entries"`
	Sum      string    `json:"sha256"` // of the lines that follow
}

func copyPath(dir, name string) string { return filepath.Join(dir, name+".list") }

// save keeps a list as the last good one. A crash leaves the old one or the new
// one.
func save(dir, name string, h header, entries []Entry) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("keep the last good list of feed %s: %w", name, err)
		}
	}()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	var body []byte
	for _, e := range entries {
		body = e.Prefix.AppendTo(body)
		if !e.Until.IsZero() {
			body = strconv.AppendInt(append(body, ' '), e.Until.Unix(), 10)
		}
		body = append(body, '\n')
	}
	sum := sha256.Sum256(body)
	h.Entries, h.Sum = len(entries), hex.EncodeToString(sum[:])
	head, err := json.Marshal(h)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, "."+name+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // by then it has another name
	_, err = f.Write(append(append(head, '\n'), body...))
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), copyPath(dir, name))
}

// load reads the last good list of a source; nil if there is none.
func load(dir, name, source string) (_ *header, entries []Entry, err error) {
	f, err := os.Open(copyPath(dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	bad := func(err error) (*header, []Entry, error) {
		return nil, nil, fmt.Errorf("the last good list of feed %s, %s, is damaged and isn't used: %w", name, f.Name(), err)
	}
	in := bufio.NewReader(f)
	head, err := in.ReadBytes('\n')
	if err != nil {
		return bad(within(err))
	}
	var h header
	if err := json.Unmarshal(head, &h); err != nil {
		return bad(err)
	}
	if h.Source != source {
		return nil, nil, nil // of before it was configured as it is now
	}
	sum := sha256.New()
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			if line != "" {
				return bad(errors.New("its last line isn't whole"))
			}
			break
		}
		sum.Write([]byte(line))
		text, end, ends := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		e := Entry{}
		if e.Prefix, err = ParsePrefix(text); err != nil {
			return bad(err)
		}
		if ends {
			n, err := strconv.ParseInt(end, 10, 64)
			if err != nil {
				return bad(err)
			}
			e.Until = time.Unix(n, 0)
		}
		entries = append(entries, e)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != h.Sum || len(entries) != h.Entries {
		return bad(fmt.Errorf("its checksum is %s, and should be %s", got, h.Sum))
	}
	return &h, entries, nil
}
