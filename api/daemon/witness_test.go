package daemon

import (
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/prototypster/pdvault/access"
	"github.com/prototypster/pdvault/access/ledger/verify"
)

// witnessKeys are the keys that the sidecar cosigns with, the newest first.
func (i *instance) witnessKeys() []note.Verifier {
	i.Helper()
	status, err := i.sidecar.Status(i.Context())
	if err != nil {
		i.Fatal(err)
	}
	witnesses, err := witnessesOf(status)
	if err != nil {
		i.Fatal(err)
	}
	return witnesses
}

// cosignedBy waits until the newest checkpoint is cosigned with each of keys.
func (i *instance) cosignedBy(keys ...note.Verifier) {
	i.Helper()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		cp := i.ledger.Checkpoint()
		good := 0
		for _, key := range keys {
			_, n, err := verify.OpenCheckpoint(cp.Note, cp.Origin, mustVerifier(i.T, i), key)
			if err != nil {
				i.Fatal(err)
			}
			good += len(verify.Cosignatures(n, key))
		}
		if good == len(keys) {
			return
		}
		if time.Now().After(deadline) {
			i.Fatalf("cosigned with %d of %d keys:\n%s", good, len(keys), cp.Note)
		}
	}
}

// The witness changes its key while pdvault runs: checkpoints and certificates verify with the key before and with
// the new one, at once and after a restart.
func TestTheWitnessChangesItsKeyUnderARunningInstance(t *testing.T) {
	i := newInstance(t)
	subject := i.create(1)
	before := i.witnessKeys()
	i.cosignedBy(before...)
	if _, err := i.broker.StartRotation(t.Context(), security, access.ScopeWitness, [16]byte{}); err != nil {
		t.Fatal(err)
	}
	during := i.witnessKeys()
	if len(before) != 1 || len(during) != 2 || during[1].KeyHash() != before[0].KeyHash() {
		t.Fatalf("%d keys, then %d", len(before), len(during))
	}
	i.create(2)
	i.cosignedBy(during...)

	i.close()
	i.open()
	i.cosignedBy(during...)
	i.create(3)
	i.cosignedBy(during...)
	if _, err := i.read(subject); err != nil {
		t.Error(err)
	}
}
