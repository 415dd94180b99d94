package keyring

import (
	"encoding/binary"
	"fmt"

	"github.com/google/uuid"
	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/vault/kv"
)

// The key store's keys. Only random ids and names of ours stand in a key: what stands there outlives an
// erasure in the engine's files.
//
//	g              generation counter, 8 bytes, big endian
//	f              floor: the least version of the KEK that a row may be written with, 8 bytes, big endian;
//	               absent: any
//	e              when the last epoch ended, or the schedule began: milliseconds, 8 bytes, big endian
//	n              the subject whose bundle was written last, 16 bytes
//	r              numbers of the last rotations, see rotations
//	i              the instance, see instanceRow
//	k/<name>       a wrapped keyset of the instance, see row
//	b/<16 bytes>   a subject's wrapped bundle, see row
//	t/<16 bytes>   the tombstone of a destroyed bundle, see tombstone
//	s/<name>       a state of the sidecar, as it gave it
//	restoring      a restore is under way or was interrupted: 16 bytes, the id of the backup
var (
	keyGeneration = []byte("g")
	keyFloor      = []byte("f")
	keyInstance   = []byte("i")
	keyRestoring  = []byte("restoring")
	prefixState   = []byte("s/")
)

func keyKeyset(name string) []byte { return []byte("k/" + name) }
func keyState(name string) []byte  { return []byte("s/" + name) }

func keyBundle(subject uuid.UUID) []byte {
	return append(append(make([]byte, 0, 18), 'b', '/'), subject[:]...)
}

func keyTombstone(subject uuid.UUID) []byte {
	return append(append(make([]byte, 0, 18), 't', '/'), subject[:]...)
}

// Associated data and KEK contexts: one function per purpose. All begin with the version of the scheme and
// the instance. Those under one key differ in their number of parts, so no two purposes coincide.
const scheme = "pdv1"

// bundleContext binds a wrapped bundle to its subject.
func bundleContext(instance string, subject uuid.UUID) []byte {
	return keys.Tuple([]byte(scheme), []byte(instance), subject[:])
}

// keysetContext binds a wrapped keyset of the instance to its name.
func keysetContext(instance, name string) []byte {
	return keys.Tuple([]byte(scheme), []byte(instance), []byte("keyset"), []byte(name))
}

// selfTestContext is used by the self-test alone; n makes two of them differ.
func selfTestContext(instance string, n byte) []byte {
	return keys.Tuple([]byte(scheme), []byte(instance), []byte("self-test"), []byte{n}, nil)
}

// fieldAD binds a ciphertext to the place it was sealed for. Example, in hex with spaces between parts:
//
//	00000004 70647631 | 00000002 7275 | 00000010 <subject> | 00000007 70726f66696c65 |
//	00000005 656d61696c | 00000008 0000000000000003
//
// that is ("pdv1", "ru", subject, "profile", "email", 3).
func fieldAD(instance string, subject uuid.UUID, collection, field string, version uint64) []byte {
	return keys.Tuple([]byte(scheme), []byte(instance), subject[:], []byte(collection), []byte(field),
		binary.BigEndian.AppendUint64(nil, version))
}

// olderAD binds the sealed older keys of a subject to it.
func olderAD(instance string, subject uuid.UUID) []byte {
	return keys.Tuple([]byte(scheme), []byte(instance), subject[:], []byte("older"))
}

// indexValueAD binds a sealed index value to its subject and field. It is not bound to a record's version: the
// value is carried along while the field is.
func indexValueAD(instance string, subject uuid.UUID, v *IndexValue) []byte {
	return keys.Tuple([]byte(scheme), []byte(instance), subject[:], []byte("index"), []byte(v.Collection), []byte(v.Field),
		binary.BigEndian.AppendUint32(nil, v.Normaliser))
}

// detailAD binds a sealed detail of an access record to its subject.
func detailAD(instance string, subject uuid.UUID) []byte {
	return keys.Tuple([]byte(scheme), []byte(instance), subject[:], []byte("detail"))
}

// protectAD binds a protected secret to its label.
func protectAD(instance, label string) []byte {
	return keys.Tuple([]byte(scheme), []byte(instance), []byte("protect"), []byte(label))
}

// tokenInput is what a link token authenticates.
func tokenInput(instance, label string, data []byte) []byte {
	return keys.Tuple([]byte(scheme), []byte(instance), []byte("token"), []byte(label), data)
}

// indexInput is what a blind-index token of value is computed over; of v it takes the rest.
func indexInput(v *IndexValue, value []byte) []byte {
	return keys.Tuple([]byte(v.Collection), []byte(v.Field), binary.BigEndian.AppendUint32(nil, v.Normaliser), value)
}

// row is a wrapped bundle, or a wrapped keyset of the instance, as it lies in the key store. Layout:
//
//	offset  size  what
//	0       1     format, 0x03
//	1       8     generation of the key store at which the row was written, big endian, never 0
//	9       4     rotation of subjects' keys that made the newest key in it, big endian; 0: none has
//	13      1     number of keys in it, never 0; the high bit is set when the older ones were left in it though nobody
//	              is known to have anything sealed under them, see Keyring.spare
//	14      1     length n of the KEK's name, never 0
//	15      n     name of the KEK
//	15+n    2     length m of the older keys, big endian; 0 unless the row is a bundle's
//	17+n    m     the older keys, sealed under the newest, see bundle
//	17+n+m  rest  what the KEK returned, never empty
//
// Example, generation 7, no rotation, one key, KEK "localkek":
//
//	03 0000000000000007 00000000 01 08 6c6f63616c6b656b 0000 01 00000001 ...
//
// Rotation and number of keys repeat what is inside, so that they can be counted without unwrapping.
//
// Only the wrapped bytes are secret and authenticated: what the KEK unwraps under the subject's context
// is the subject's. The generation can be forged by who can write to the key store; that person can put
// back an older row as well, which is what the generation counter and the epoch are there to catch.
type row struct {
	generation uint64
	rotation   uint32
	keys       uint8
	spare      bool
	kek        string
	older      []byte // sealed; empty: none
	wrapped    []byte
}

const (
	rowFormat = 0x03
	spareKeys = 0x80 // beside the number of keys
	rowHeader = 15   // bytes before the KEK's name
)

func (r row) encode() []byte {
	b := make([]byte, 0, rowHeader+len(r.kek)+2+len(r.older)+len(r.wrapped))
	b = append(b, rowFormat)
	b = binary.BigEndian.AppendUint64(b, r.generation)
	b = binary.BigEndian.AppendUint32(b, r.rotation)
	if r.spare {
		b = append(b, r.keys|spareKeys)
	} else {
		b = append(b, r.keys)
	}
	b = append(b, byte(len(r.kek)))
	b = append(b, r.kek...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(r.older))) // maxOlderBytes at most
	b = append(b, r.older...)
	return append(b, r.wrapped...)
}

// decodeRow parses a row. It keeps b.
func decodeRow(b []byte) (row, error) {
	if len(b) < rowHeader || b[0] != rowFormat {
		return row{}, fmt.Errorf("row of an unknown format: %w", keys.ErrTampered)
	}
	n := int(b[rowHeader-1])
	if n == 0 || len(b) <= rowHeader+n+2 {
		return row{}, fmt.Errorf("row is cut short: %w", keys.ErrTampered)
	}
	rest := b[rowHeader+n+2:]
	m := int(binary.BigEndian.Uint16(b[rowHeader+n:]))
	if len(rest) <= m {
		return row{}, fmt.Errorf("row is cut short: %w", keys.ErrTampered)
	}
	r := row{
		generation: binary.BigEndian.Uint64(b[1:]), rotation: binary.BigEndian.Uint32(b[9:]), keys: b[13] &^ spareKeys, spare: b[13]&spareKeys != 0,
		kek: string(b[rowHeader : rowHeader+n]), older: rest[:m:m], wrapped: rest[m:],
	}
	if r.generation == 0 || r.keys == 0 {
		return row{}, fmt.Errorf("row without generation or keys: %w", keys.ErrTampered)
	}
	return r, nil
}

// tombstone says that a bundle was destroyed. Layout:
//
//	offset  size  what
//	0       1     format, 0x02
//	1       8     generation of the key store at which it was destroyed, big endian, never 0
//	9       8     Unix time in seconds, big endian
//	17      8     version of the KEK that the bundle was wrapped under, big endian; 0: its row was damaged
//	25      rest  reason, a code of at most 256 bytes
//
// Example, generation 9, version 3, reason "erasure":
//
//	02 0000000000000009 000000006553f100 0000000000000003 65726173757265
type tombstone struct {
	generation uint64
	at         int64
	kekVersion uint64
	reason     string
}

const (
	tombstoneFormat = 0x02
	tombstoneHeader = 25 // bytes before the reason
)

func (t tombstone) encode() []byte {
	b := append(make([]byte, 0, tombstoneHeader+len(t.reason)), tombstoneFormat)
	b = binary.BigEndian.AppendUint64(b, t.generation)
	b = binary.BigEndian.AppendUint64(b, uint64(t.at))
	b = binary.BigEndian.AppendUint64(b, t.kekVersion)
	return append(b, t.reason...)
}

// decodeTombstone parses a tombstone. That a bundle was destroyed is what any tombstone says, also one that does
// not parse.
func decodeTombstone(b []byte) (tombstone, error) {
	if len(b) < tombstoneHeader || len(b) > tombstoneHeader+MaxReason || b[0] != tombstoneFormat {
		return tombstone{}, fmt.Errorf("tombstone of an unknown format: %w", keys.ErrTampered)
	}
	t := tombstone{
		generation: binary.BigEndian.Uint64(b[1:]), at: int64(binary.BigEndian.Uint64(b[9:])),
		kekVersion: binary.BigEndian.Uint64(b[17:]), reason: string(b[tombstoneHeader:]),
	}
	if t.generation == 0 {
		return tombstone{}, fmt.Errorf("tombstone without a generation: %w", keys.ErrTampered)
	}
	return t, nil
}

// instanceRow names the instance and the KEK of a key store: format 0x01, then keys.Tuple of both names.
func instanceRow(instance, kek string) []byte {
	return append([]byte{0x01}, keys.Tuple([]byte(instance), []byte(kek))...)
}

// decodeGeneration parses the generation counter, whose absence or zero is damage.
func decodeGeneration(b []byte) (uint64, error) {
	if len(b) != 8 {
		return 0, errCounter
	}
	g := binary.BigEndian.Uint64(b)
	if g == 0 {
		return 0, errCounter
	}
	return g, nil
}

// decodeFloor parses the floor; absent is 0.
func decodeFloor(b []byte) (uint64, error) {
	if b == nil {
		return 0, nil
	}
	if len(b) != 8 {
		return 0, fmt.Errorf("key store has no valid floor: %w", kv.ErrIntegrity)
	}
	return binary.BigEndian.Uint64(b), nil
}
