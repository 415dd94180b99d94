package erasure

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/mod/sumdb/note"

	"github.com/prototypster/pdvault/access/ledger/verify"
)

// ErrUnproven is returned when a proof of a certificate does not hold under the keys given.
var ErrUnproven = errors.New("erasure: certificate is not proven")

// Keys are the public keys that a certificate is verified with.
type Keys struct {
	Ledger    []note.Verifier // of the ledger, one or more: it may have had several
	Witnesses []note.Verifier
	Quorum    int // how many of the witnesses must have cosigned each checkpoint
}

// Report is what a verified certificate says.
type Report struct {
	Certificate Certificate
	Erased      Proven
	Destroyed   Proven
	Epoch       *Proven // nil when the certificate is provisional
	// Evidence is the sidecar's own statement about the epoch, that nothing is left on older versions. It is nil when
	// the certificate is provisional, and when no witness key of a sidecar was given: then the epoch is the
	// operator's word alone.
	Evidence *verify.KeyEvidence
}

// Proven is an entry that was shown to be in the ledger.
type Proven struct {
	Index        int64
	Entry        verify.Entry
	Checkpoint   verify.Checkpoint
	Cosignatures []verify.Cosignature
}

// Verify checks a certificate: that it is well-formed and does not contradict itself, and that each of its
// entries is in the ledger by a checkpoint that one of the ledger keys signed and the quorum cosigned. When it
// names a subject, that it is about this one. When it is final and witness keys of a sidecar are given, that one of
// them has signed the evidence of the epoch. Its errors are ErrCertificate, ErrContradiction and ErrUnproven.
func Verify(cert []byte, k Keys) (Report, error) {
	c, e, err := parse(cert)
	if err != nil {
		return Report{}, err
	}
	r := Report{Certificate: c}
	if r.Erased, err = k.prove(c.Erased, e.erased); err != nil {
		return Report{}, err
	}
	if r.Destroyed, err = k.prove(c.Destroyed, e.destroyed); err != nil {
		return Report{}, err
	}
	if c.Epoch != nil {
		epoch, err := k.prove(*c.Epoch, e.epoch)
		if err != nil {
			return Report{}, err
		}
		r.Epoch = &epoch
		if r.Evidence, err = k.evidence(*e.epoch.Keys); err != nil {
			return Report{}, fmt.Errorf("%w: entry %d (%s): %w", ErrUnproven, epoch.Index, e.epoch.Kind, err)
		}
	}
	return r, nil
}

// evidence verifies the sidecar's statement about an epoch, if there is a key to verify it with.
func (k Keys) evidence(epoch verify.KeyChange) (*verify.KeyEvidence, error) {
	sidecars := verify.SidecarWitnesses(k.Witnesses...)
	if len(sidecars) == 0 {
		return nil, nil
	}
	e, err := epoch.CheckEvidence(sidecars...)
	if err != nil {
		return nil, err
	}
	return &e, nil
}

// prove verifies the proof of one entry.
func (k Keys) prove(a Attested, e verify.Entry) (Proven, error) {
	unproven := func(err error) (Proven, error) {
		return Proven{}, fmt.Errorf("%w: entry %d (%s): %w", ErrUnproven, a.Index, e.Kind, err)
	}
	p, err := verify.ParseProof([]byte(a.Proof))
	if err != nil {
		return unproven(err)
	}
	cp, n, err := k.open(p.Checkpoint)
	if err != nil {
		return unproven(err)
	}
	cosigs := verify.Cosignatures(n, k.Witnesses...)
	if len(cosigs) < k.Quorum {
		return unproven(fmt.Errorf("%w: %d of %d", verify.ErrQuorum, len(cosigs), k.Quorum))
	}
	if err := verify.CheckInclusion([]byte(a.Entry), a.Index, p.Hashes, cp); err != nil {
		return unproven(err)
	}
	return Proven{Index: a.Index, Entry: e, Checkpoint: cp, Cosignatures: cosigs}, nil
}

// open verifies a checkpoint with the first of the ledger keys that signed it. A wrong signature of any key
// that is known fails it.
func (k Keys) open(signed []byte) (verify.Checkpoint, *note.Note, error) {
	err := fmt.Errorf("%w: no ledger key to check it with", verify.ErrSignature)
	for _, key := range k.Ledger {
		var cp verify.Checkpoint
		var n *note.Note
		cp, n, err = verify.OpenCheckpoint(signed, key.Name(), key, slices.Concat(k.Ledger, k.Witnesses)...)
		if err == nil {
			return cp, n, nil
		}
	}
	return verify.Checkpoint{}, nil, err
}
