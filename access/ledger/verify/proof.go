package verify

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

var (
	// ErrInclusion is returned when a proof does not show that an entry is in the log at its index.
	ErrInclusion = errors.New("verify: entry is not proven to be in the log")
	// ErrConsistency is returned when a proof does not show that a newer checkpoint extends an older one.
	ErrConsistency = errors.New("verify: checkpoints are not proven to be of one log")
	// ErrProof is returned for bytes that are not one well-formed proof file.
	ErrProof = errors.New("verify: malformed proof file")
	// ErrQuorum is returned when fewer known witnesses than demanded have cosigned a checkpoint.
	ErrQuorum = errors.New("verify: not enough witnesses have cosigned the checkpoint")
)

// maxProofHashes is more than a tree of [MaxLogSize] can need.
const maxProofHashes = 64

// CheckInclusion checks that the entry with exactly these bytes is at index in the log that cp describes.
func CheckInclusion(entry []byte, index int64, hashes []tlog.Hash, cp Checkpoint) error {
	if index < 0 || index >= cp.Size || cp.Size > MaxLogSize || len(hashes) > maxProofHashes {
		return fmt.Errorf("%w: index or size out of range", ErrInclusion)
	}
	if err := tlog.CheckRecord(hashes, cp.Size, cp.Root, index, tlog.RecordHash(entry)); err != nil {
		return fmt.Errorf("%w: %w", ErrInclusion, err)
	}
	return nil
}

// CheckConsistency checks that the log of checkpoint newer begins with the whole log of checkpoint older.
// Everything extends the empty log, by a proof without hashes.
func CheckConsistency(older, newer Checkpoint, hashes []tlog.Hash) error {
	switch {
	case older.Origin != newer.Origin:
		return fmt.Errorf("%w: they are of different origins", ErrConsistency)
	case older.Size < 0 || older.Size > newer.Size || newer.Size > MaxLogSize || len(hashes) > maxProofHashes:
		return fmt.Errorf("%w: sizes out of order or out of range", ErrConsistency)
	case older.Size == 0 && (len(hashes) != 0 || older.Root != EmptyCheckpoint(older.Origin).Root):
		return fmt.Errorf("%w: the older one is not that of an empty log", ErrConsistency)
	case older.Size == 0:
		return nil
	}
	if err := tlog.CheckTree(hashes, newer.Size, newer.Root, older.Size, older.Root); err != nil {
		return fmt.Errorf("%w: %w", ErrConsistency, err)
	}
	return nil
}

const proofHeader = "c2sp.org/tlog-proof@v1"

// Proof is what shows offline that one entry is in the log (C2SP tlog-proof, file extension .tlog-proof):
//
//	c2sp.org/tlog-proof@v1
//	index 73894
//	gSKyXoYZUgZ6jduWYrkDOARinOMGJveXjgMkBTcdPlQ=
//	B95lDa8R83lS8n0eG+o0buTxRKQTYFi//1U8anccXmA=
//
//	<signed checkpoint>
type Proof struct {
	Extra      []byte // not authenticated; nil when there is none
	Index      int64
	Hashes     []tlog.Hash
	Checkpoint []byte // signed note, with cosignatures
}

// Marshal returns the proof file.
func (p Proof) Marshal() []byte {
	var b bytes.Buffer
	b.WriteString(proofHeader + "\n")
	if len(p.Extra) > 0 {
		fmt.Fprintf(&b, "extra %s\n", base64.StdEncoding.EncodeToString(p.Extra))
	}
	fmt.Fprintf(&b, "index %d\n", p.Index)
	for _, h := range p.Hashes {
		fmt.Fprintf(&b, "%s\n", h)
	}
	b.WriteString("\n")
	b.Write(p.Checkpoint)
	return b.Bytes()
}

// ParseProof decodes a proof file strictly: what it accepts marshals to the same bytes again. The
// checkpoint is taken as it is; [Proof.Verify] opens it.
func ParseProof(file []byte) (Proof, error) {
	head, checkpoint, found := bytes.Cut(file, []byte("\n\n"))
	if !found || len(checkpoint) == 0 {
		return Proof{}, fmt.Errorf("%w: no checkpoint", ErrProof)
	}
	lines := strings.Split(string(head), "\n")
	if lines[0] != proofHeader {
		return Proof{}, fmt.Errorf("%w: unknown header", ErrProof)
	}
	lines = lines[1:]
	p := Proof{Checkpoint: bytes.Clone(checkpoint)}
	if len(lines) > 0 {
		if text, ok := strings.CutPrefix(lines[0], "extra "); ok {
			extra, err := decodeBase64(text)
			if err != nil || len(extra) == 0 {
				return Proof{}, fmt.Errorf("%w: bad extra data", ErrProof)
			}
			p.Extra, lines = extra, lines[1:]
		}
	}
	if len(lines) == 0 {
		return Proof{}, fmt.Errorf("%w: no index", ErrProof)
	}
	text, ok := strings.CutPrefix(lines[0], "index ")
	index, err := parseDecimal(text)
	if !ok || err != nil {
		return Proof{}, fmt.Errorf("%w: bad index", ErrProof)
	}
	p.Index, lines = index, lines[1:]
	if len(lines) > maxProofHashes {
		return Proof{}, fmt.Errorf("%w: too many hashes", ErrProof)
	}
	for _, line := range lines {
		h, err := parseHash(line)
		if err != nil {
			return Proof{}, fmt.Errorf("%w: bad hash", ErrProof)
		}
		p.Hashes = append(p.Hashes, h)
	}
	return p, nil
}

// Verify checks that entry is in the log whose key is given, at p.Index, and that at least quorum of the
// witnesses have cosigned the checkpoint that says so. It returns the checkpoint and the cosignatures.
func (p Proof) Verify(entry []byte, ledger note.Verifier, quorum int, witnesses ...note.Verifier) (Checkpoint, []Cosignature, error) {
	if ledger == nil {
		return Checkpoint{}, nil, fmt.Errorf("%w: no ledger key to check it with", ErrSignature)
	}
	cp, n, err := OpenCheckpoint(p.Checkpoint, ledger.Name(), ledger, witnesses...)
	if err != nil {
		return Checkpoint{}, nil, err
	}
	cosigs := Cosignatures(n, witnesses...)
	if len(cosigs) < quorum {
		return Checkpoint{}, nil, fmt.Errorf("%w: %d of %d", ErrQuorum, len(cosigs), quorum)
	}
	if err := CheckInclusion(entry, p.Index, p.Hashes, cp); err != nil {
		return Checkpoint{}, nil, err
	}
	return cp, cosigs, nil
}
