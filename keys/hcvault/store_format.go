package hcvault

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/prototypster/pdvault/vault/kv"
)

// The secrets of a key store, below its path. Each is a JSON object whose member "f" is its format, 1.
//
//	marker             what the store is, see marker; written once
//	owner              who has the store open, see owner; rewritten, never removed
//	log/<00 to 63>     the ring of commits, see record; rewritten, never removed
//	parts/<id>-<n>     a piece of a large commit, see part
//	rows/<2 hex>/<hex> a row, see row; its name is the first byte of the key's SHA-256 and the key
//
// Secrets that are never removed have versions that only grow, so a write on the condition of a version
// (check-and-set) that was overtaken fails for ever.
const (
	storeFormat = 1
	storeKind   = "pdvault/keystore/v1"

	nameMarker = "marker"
	nameOwner  = "owner"

	ringSize = 64 // commits that are not applied yet, at most

	// A secret of HashiCorp Vault takes 1 MiB by default, and base64 makes three bytes four.
	maxPart      = 480 << 10
	maxTxnBytes  = 4 << 20
	maxTxnWrites = 20_000
)

// marker says what is there. Example:
//
//	{"f":1,"kind":"pdvault/keystore/v1","instance":"main","store":"8c1d…","created":"2026-08-30T10:00:00Z"}
type marker struct {
	F        int       `json:"f"`
	Kind     string    `json:"kind"`
	Instance string    `json:"instance"`
	Store    string    `json:"store"` // random, 32 hex digits
	Created  time.Time `json:"created"`
}

// owner says who has the store open. Example:
//
//	{"f":1,"id":"b77e…","fence":3,"renewed":41,"lease_ms":15000,"released":false}
//
// The fence grows with each opening. Nobody compares clocks: who wants the store watches whether renewed
// grows, for as long as the lease says.
type owner struct {
	F        int    `json:"f"`
	ID       string `json:"id"`
	Fence    uint64 `json:"fence"`
	Renewed  uint64 `json:"renewed"`
	LeaseMS  int64  `json:"lease_ms"`
	Released bool   `json:"released"`
}

// record is a commit in the ring, at log/<seq mod 64>. Its creation is the commit. When its writes have been
// applied to the rows it is overwritten by itself without them, and done. Example:
//
//	{"f":1,"seq":118,"fence":3,"id":"5ab0…","rows":12,"sum":"9f86…","tx":"AQIBYQE..."}
//	{"f":1,"seq":118,"fence":3,"id":"5ab0…","rows":12,"done":true}
//
// A large one has "parts":3 in place of tx: the pieces parts/<id>-0 to parts/<id>-2, written before it.
type record struct {
	F     int    `json:"f"`
	Seq   uint64 `json:"seq"`
	Fence uint64 `json:"fence"`
	ID    string `json:"id"`
	Rows  int    `json:"rows"` // in the store after this commit
	Sum   string `json:"sum,omitempty"`
	Parts int    `json:"parts,omitempty"`
	Tx    []byte `json:"tx,omitempty"`
	Done  bool   `json:"done,omitempty"`
}

// part is a piece of a large commit. Example: {"f":1,"tx":"AQIBYQE..."}
type part struct {
	F  int    `json:"f"`
	Tx []byte `json:"tx"`
}

// row is a key's value. Example: {"f":1,"seq":118,"v":"AgAAAAAAAAAH..."}
type row struct {
	F   int    `json:"f"`
	Seq uint64 `json:"seq"` // of the commit that wrote it
	V   []byte `json:"v"`
}

func slotName(seq uint64) string { return fmt.Sprintf("log/%02d", seq%ringSize) }

func partName(id string, n int) string { return fmt.Sprintf("parts/%s-%d", id, n) }

func shardOf(key string) string {
	sum := sha256.Sum256([]byte(key))
	return hex.EncodeToString(sum[:1])
}

func rowName(key string) string {
	return "rows/" + shardOf(key) + "/" + hex.EncodeToString([]byte(key))
}

// keyOf is the inverse of rowName, for a name as it is listed below its shard.
func keyOf(shard, name string) (string, error) {
	b, err := hex.DecodeString(name)
	if err != nil || len(b) == 0 || hex.EncodeToString(b) != name || shardOf(string(b)) != shard {
		return "", fmt.Errorf("a row's name is not one of ours: %w", kv.ErrIntegrity)
	}
	return string(b), nil
}

func newID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// decodeSecret parses a secret of ours and refuses every other.
func decodeSecret(s *secret, into any, format func() int) error {
	if err := json.Unmarshal(s.data, into, json.RejectUnknownMembers(true)); err != nil || format() != storeFormat {
		return fmt.Errorf("a secret of an unknown format: %w", kv.ErrIntegrity)
	}
	return nil
}

func decodeMarker(s *secret) (m marker, err error) {
	err = decodeSecret(s, &m, func() int { return m.F })
	return m, err
}

func decodeOwner(s *secret) (o owner, err error) {
	err = decodeSecret(s, &o, func() int { return o.F })
	return o, err
}

func decodeRecord(s *secret) (r record, err error) {
	err = decodeSecret(s, &r, func() int { return r.F })
	return r, err
}

func decodeRow(s *secret) (r row, err error) {
	if err = decodeSecret(s, &r, func() int { return r.F }); err == nil && (r.V == nil || r.Seq == 0) {
		err = fmt.Errorf("a row without value or commit: %w", kv.ErrIntegrity)
	}
	return r, err
}

// The writes of a commit, one after the other: 0x01, length of the key, key, length of the value, value; or
// 0x02, length of the key, key for a removal. Lengths are uvarints. Example, "a" = "x" and "b" removed:
//
//	01 01 61 01 78 02 01 62
const (
	opSet    = 0x01
	opDelete = 0x02
)

func appendSet(b []byte, key string, value []byte) []byte {
	b = binary.AppendUvarint(append(b, opSet), uint64(len(key)))
	b = binary.AppendUvarint(append(b, key...), uint64(len(value)))
	return append(b, value...)
}

func appendDelete(b []byte, key string) []byte {
	b = binary.AppendUvarint(append(b, opDelete), uint64(len(key)))
	return append(b, key...)
}

// decodeWrites calls set or remove for each write in b, in their order.
func decodeWrites(b []byte, set func(key string, value []byte), remove func(key string)) error {
	field := func(limit int) ([]byte, bool) {
		n, size := binary.Uvarint(b)
		if size <= 0 || n > uint64(limit) || n > uint64(len(b)-size) || size > 1 && b[size-1] == 0 { // no byte more than it needs
			return nil, false
		}
		f := b[size : size+int(n)]
		b = b[size+int(n):]
		return f, true
	}
	for len(b) > 0 {
		op := b[0]
		b = b[1:]
		key, ok := field(kv.MaxKeySize)
		if !ok || len(key) == 0 {
			return errBadCommit
		}
		switch op {
		case opSet:
			value, ok := field(kv.MaxValueSize)
			if !ok {
				return errBadCommit
			}
			set(string(key), append(make([]byte, 0, len(value)), value...))
		case opDelete:
			remove(string(key))
		default:
			return errBadCommit
		}
	}
	return nil
}

var errBadCommit = fmt.Errorf("a commit in the log is damaged: %w", kv.ErrIntegrity)

func sumOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
