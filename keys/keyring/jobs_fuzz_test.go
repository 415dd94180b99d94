package keyring

import (
	"bytes"
	"errors"
	"testing"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/vault/kv"
)

// FuzzJob: what parses encodes to the same bytes; what does not is damage and gives nothing.
func FuzzJob(f *testing.F) {
	for _, r := range []jobRecord{
		{Format: jobFormat, ID: uuid.New(), Scope: ScopeKEK, By: "x", State: JobRunning, Phase: phaseRewrap, Done: 1, Total: 2, Started: 3,
			Updated: 4, Target: 2, Recorded: -1, Cursor: []byte("b/0123456789abcdef")},
		{Format: jobFormat, ID: uuid.New(), Scope: ScopeSubject, Subject: uuid.New(), By: "<\">", State: JobFailed, Failure: "sealed", Finished: 5},
	} {
		b, err := r.encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeJob(b)
		if err != nil {
			if !errors.Is(err, kv.ErrIntegrity) || r.ID != uuid.Nil {
				t.Fatalf("error is %v, job %+v", err, r)
			}
			return
		}
		again, err := r.encode()
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%q came back as %q, %v", b, again, err)
		}
	})
}

func FuzzRotations(f *testing.F) {
	f.Add(rotations{3, 2}.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeRotations(b)
		switch {
		case err != nil && !errors.Is(err, kv.ErrIntegrity):
			t.Fatal(err)
		case err == nil && b != nil && !bytes.Equal(r.encode(), b):
			t.Fatalf("%x came back as %x", b, r.encode())
		}
	})
}
