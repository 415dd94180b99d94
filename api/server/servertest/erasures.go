package servertest

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"slices"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/access"
	"github.com/prototypster/pdvault/access/erasure"
	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/api"
)

// erased is an erasure: its certificate and, while it is not finished, what names the subject in it.
type erased struct {
	erasure.Certificate
	pending bool
	salt    string
}

// Erase forgets a subject and answers with a provisional certificate, or with *access.PendingErasureError when it
// was told to leave erasures undone.
func (b *Broker) Erase(ctx context.Context, q access.EraseRequest) (erasure.Certificate, error) {
	unlock, err := b.begin(ctx, q.Request)
	defer unlock()
	if err != nil {
		return erasure.Certificate{}, err
	}
	if !slices.Contains(api.ErasureReasons, q.Reason) {
		b.tb.Errorf("fake broker: erasure for %q", q.Reason)
	}
	if _, _, err := b.findLocked(q.Subject, ""); err != nil {
		return erasure.Certificate{}, err
	}
	delete(b.subjects, q.Subject)
	salt, commit := erasure.Commit(q.Subject.String())
	sum := sha256.Sum256(q.Subject[:])
	id, ref := uuid.NewString(), base64.RawURLEncoding.EncodeToString(sum[:])
	was := b.attestLocked(q.Request, verify.Entry{
		Kind: verify.KindSubjectErased, SubjectRef: ref, Reason: q.Reason, DetailCommit: commit,
		Erasure: &verify.Erasure{ID: id, Fields: []string{"profile.email"}, Method: verify.MethodCryptographicErase},
	})
	is := b.attestLocked(q.Request, verify.Entry{
		Kind: verify.KindKeyDestroyed, SubjectRef: ref, Of: &was.Index,
		Erasure: &verify.Erasure{ID: id, Generation: 7, KEKVersion: 2},
	})
	c, err := erasure.New(was, is, nil)
	if err != nil {
		b.tb.Errorf("fake broker: %v", err)
	}
	b.erasures[uuid.MustParse(id)] = &erased{c, b.undone, salt}
	if b.undone {
		return erasure.Certificate{}, b.erasures[uuid.MustParse(id)].unfinished(salt)
	}
	c.Subject, c.Salt = q.Subject.String(), salt
	return c, nil
}

// Erasure answers with the certificate, which names no subject.
func (b *Broker) Erasure(ctx context.Context, r access.Request, id uuid.UUID) (erasure.Certificate, error) {
	unlock, err := b.begin(ctx, r)
	defer unlock()
	if err != nil {
		return erasure.Certificate{}, err
	}
	e := b.erasures[id]
	switch {
	case e == nil:
		return erasure.Certificate{}, access.ErrNotFound
	case e.pending:
		e.pending = b.undone
		return erasure.Certificate{}, e.unfinished("")
	}
	return e.Certificate, nil
}

func (e *erased) unfinished(salt string) error {
	return &access.PendingErasureError{ID: uuid.MustParse(e.ID), Entry: e.Erased.Index, Salt: salt}
}

// LeaveErasures makes erasures end as pending; when that is over, they are finished after they were asked for once.
func (b *Broker) LeaveErasures(undone bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.undone = undone
}

// attestLocked appends e and returns it with a proof of the right form, which proves nothing.
func (b *Broker) attestLocked(r access.Request, e verify.Entry) erasure.Attested {
	index := b.appendLocked(e, r)
	root := base64.StdEncoding.EncodeToString(make([]byte, 32))
	p := verify.Proof{Index: index, Checkpoint: fmt.Appendf(nil, "localhost/ledger\n%d\n%s\n\n— localhost/ledger AAAA\n", index+1, root)}
	return erasure.Attested{Index: index, Entry: string(b.entries[index].Bytes), Proof: string(p.Marshal())}
}
