package ledger

import (
	"bytes"
	"encoding/binary"
	"errors"

	"github.com/prototypster/pdvault/access/ledger/verify"
)

// rows names the rows of the ledger. Layout below the prefix, version 1; integers are big endian so that
// the order of keys is the order of the log:
//
//	e/ <index 8>               the bytes of the entry, as hashed
//	t/ <level 1> <n 8>         a full tile: 256 hashes of 32 bytes. Partial tiles are not stored
//	c                          the newest signed checkpoint, as text
//	s/ <subject_ref 32> <index 8>   empty: the entry is about this subject; none of an erasure's own entries
//
// Example with the prefix "l/": entry 258 is "l/e/" 00 00 00 00 00 00 01 02, tile 0 of level 1 is "l/t/" 01
// 00 00 00 00 00 00 00 00.
type rows struct{ prefix []byte }

func (r rows) key(parts ...[]byte) []byte {
	return append(bytes.Clone(r.prefix), bytes.Join(parts, nil)...)
}

func be64(n int64) []byte { return binary.BigEndian.AppendUint64(nil, uint64(n)) }

func (r rows) checkpoint() []byte       { return r.key([]byte("c")) }
func (r rows) entries() []byte          { return r.key([]byte("e/")) }
func (r rows) entry(index int64) []byte { return r.key([]byte("e/"), be64(index)) }

func (r rows) tile(id tileID) []byte {
	return r.key([]byte("t/"), []byte{byte(id.level)}, be64(id.n))
}

func (r rows) subjects() []byte          { return r.key([]byte("s/")) }
func (r rows) subject(ref []byte) []byte { return r.key([]byte("s/"), ref) }

func (r rows) subjectEntry(ref []byte, index int64) []byte {
	return r.key([]byte("s/"), ref, be64(index))
}

// before returns the key to pass to Scan as after so that it begins at index; nil for the beginning.
func before(key func(int64) []byte, index int64) []byte {
	if index <= 0 {
		return nil
	}
	return key(index - 1)
}

// indexOf returns the index that a key of entries or subjects ends in.
func indexOf(key []byte) (int64, error) {
	if len(key) < 8 {
		return 0, errors.New("row key too short")
	}
	n := binary.BigEndian.Uint64(key[len(key)-8:])
	if n >= verify.MaxLogSize {
		return 0, errors.New("row index out of range")
	}
	return int64(n), nil
}
