package daemon

import (
	"encoding/json"
	"fmt"

	"xdpban/internal/ledger"
	"xdpban/matcher"
)

// The ledger's records of failures that wait for something before they are
// judged: by then the position in the log has moved on.
const (
	kindAsked = "asked" // for an ignorecommand's answer
	kindNamed = "named" // for a name's address
)

type waitingRecord struct {
	Jail    string           `json:"jail"`
	Failure *matcher.Failure `json:"failure"`
}

// keep has the ledger keep a failure that waits, and returns its key there.
func (d *Daemon) keep(kind, jail string, f *matcher.Failure) (key string) {
	key = fmt.Sprintf("%020d", d.kept)
	d.kept++
	d.checkpoint.put(ledger.Record{Kind: kind, Key: key, Value: encode(waitingRecord{jail, f})})
	return key
}

// drop has it forgotten: it is judged, in the same transaction.
func (d *Daemon) drop(kind, key string) {
	d.checkpoint.put(ledger.Record{Kind: kind, Key: key})
}

// waited gives what waited when the daemon ended. They wait no more, unless
// they are put off again.
func (d *Daemon) waited(kind string) (list []waitingRecord, err error) {
	err = d.ledger.Walk(kind, func(key string, value []byte) error {
		var r waitingRecord
		if err := json.Unmarshal(value, &r); err != nil || r.Failure == nil {
			return fmt.Errorf("restore what waits, %s %s: %w", kind, key, err)
		}
		list = append(list, r)
		d.drop(kind, key)
		return nil
	})
	return list, err
}
