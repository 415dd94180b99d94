package vault

import (
	"fmt"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/uuid"
)

const headFormat = 1

// Head is the root of a subject: which records it has at which version. What the head does not list does
// not exist, and what it lists must be there: "not found" from the storage engine is never evidence.
//
// Stored as JSON under 's' ‖ subject (16 bytes), for example:
//
//	{"f":1,"version":3,"created":"2026-11-22T10:00:00Z","records":{"profile":{"v":2,"e":41,"d":"…"}}}
//
// Of an erased subject nothing is left but a tombstone, which keeps the id from ever being used again:
//
//	{"f":1,"version":4,"erased":true}
type Head struct {
	Format     int                   `json:"f"`
	Version    uint64                `json:"version"` // grows by one with every change of the subject
	Created    time.Time             `json:"created,omitzero"`
	Restricted bool                  `json:"restricted,omitzero"`
	Erased     bool                  `json:"erased,omitzero"`
	Records    map[string]RecordHead `json:"records,omitempty"`
}

// RecordHead is what the head says of one record. A deleted record stays listed, so that its versions are
// never used twice.
type RecordHead struct {
	Version uint64 `json:"v"`
	Entry   int64  `json:"e"`          // index of the ledger entry that wrote it
	Digest  string `json:"d,omitzero"` // of the row
	Deleted bool   `json:"x,omitzero"`
}

func headKey(subject uuid.UUID) []byte { return append([]byte{'s'}, subject[:]...) }

func encodeHead(h Head) []byte {
	b, err := json.Marshal(&h, json.Deterministic(true))
	if err != nil {
		panic("vault: head cannot be encoded: " + err.Error()) // plain struct: a bug here, not input
	}
	return b
}

func parseHead(b []byte) (Head, error) {
	var h Head
	if err := json.Unmarshal(b, &h, json.RejectUnknownMembers(true)); err != nil {
		return Head{}, fmt.Errorf("%w: head cannot be decoded", ErrIntegrity)
	}
	if h.Format != headFormat || h.Version == 0 {
		return Head{}, fmt.Errorf("%w: unknown format of head", ErrIntegrity)
	}
	return h, nil
}
