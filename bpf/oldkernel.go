package bpf

import (
	"errors"

	"github.com/cilium/ebpf"
)

// requestEach does what request does on Linux before 5.14, which runs no
// programs by system call: a value at a time, so that what is counted between
// reading and writing it is lost.
func (t *bans[K]) requestEach(op kernOperation, list []pending, found func(pending)) (n int, err error) {
	for i, p := range list {
		key := t.key(p.prefix)
		var was kernBan
		err := t.m.Lookup(key, &was)
		there := err == nil
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return i, err
		}
		ban := p.ban
		if op == kernOperationCOUNT {
			ban = was
		}
		ban.Packets, ban.Bytes = was.Packets+p.ban.Packets, was.Bytes+p.ban.Bytes
		switch {
		case op == kernOperationREMOVE && there:
			err = t.m.Delete(key)
		case op == kernOperationBAN || op == kernOperationCOUNT && there:
			err = t.m.Put(key, ban)
		default:
			err = nil
		}
		if err != nil {
			return i, err
		}
		if there && found != nil {
			found(pending{p.prefix, was})
		}
	}
	return len(list), nil
}
