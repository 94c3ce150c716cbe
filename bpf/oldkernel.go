package bpf

import (
	"errors"

	"github.com/cilium/ebpf"
)

// requestEach does what request does on Linux before 5.19, where no program
// reaches every CPU's value: an entry at a time, so that what is counted
// between reading and writing it is lost. The kernel makes an entry with all of
// its CPUs' values at once. If we die between that and its origin, there is an
// origin without an entry, never the other way round.
func (t *bans[K, O]) requestEach(op kernOperation, list []pending, found func(int, pending)) (n int, err error) {
	for i, p := range list {
		was, there, err := t.each(op, p)
		if err != nil {
			return i, err
		}
		if there && found != nil {
			found(i, was)
		}
	}
	return len(list), nil
}

func (t *bans[K, O]) each(op kernOperation, p pending) (was pending, there bool, err error) {
	was.prefix = p.prefix
	key, originKey := t.key(p.prefix), t.originKey(p.prefix)
	hasOrigin, err := exists(t.origins.Lookup(originKey, &was.origin))
	if err != nil || op == kernOperationORIGIN {
		return was, hasOrigin, err
	}
	var values []kernBan
	if there, err = exists(t.m.Lookup(key, &values)); err != nil {
		return was, there, err
	} else if there {
		was.ban = sum(values)
	}
	if op == kernOperationREMOVE {
		if there {
			err = t.m.Delete(key)
		}
		if err == nil && hasOrigin {
			err = t.origins.Delete(originKey)
		}
		return was, there, err
	}

	origin := p.origin
	if hasOrigin {
		origin.Packets, origin.Bytes = was.origin.Packets, was.origin.Bytes
	}
	err = t.origins.Put(originKey, origin)
	if errors.Is(full(err), ErrFull) {
		// There is room for every entry's, and one more.
		if err = t.dropOrphans(); err == nil {
			err = t.origins.Put(originKey, origin)
		}
	}
	if err != nil {
		return was, there, err
	}
	if there && was.ban.Expires == p.ban.Expires {
		return was, there, nil
	}
	if !there {
		values = make([]kernBan, t.cpus)
	}
	for i := range values {
		values[i].Expires = p.ban.Expires
	}
	if err = t.m.Put(key, values); err != nil && !hasOrigin {
		err = errors.Join(err, t.origins.Delete(originKey))
	}
	return was, there, err
}

// exists is whether a key that was looked up is there.
func exists(err error) (bool, error) {
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return false, nil
	}
	return err == nil, err
}
