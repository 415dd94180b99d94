package verify_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/prototypster/pdvault/access/ledger/verify"
)

func backupKey(t testing.TB, name string) (note.Signer, note.Verifier) {
	t.Helper()
	skey, vkey, err := note.GenerateKey(rand.Reader, name)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := note.NewSigner(skey)
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := note.NewVerifier(vkey)
	if err != nil {
		t.Fatal(err)
	}
	return signer, verifier
}

func someBackup() verify.Backup {
	return verify.Backup{
		Instance: "main", ID: "0199f3a0-0000-7000-8000-000000000000", Created: "2026-11-22T10:00:00.000Z", Count: 12, Digest: tlog.Hash{1},
		Ledger: verify.Checkpoint{Origin: "main.pdvault/ledger", Size: 7, Root: tlog.Hash{2}}, Generation: 1<<48 + 3,
	}
}

func signText(t testing.TB, text string, by ...note.Signer) []byte {
	t.Helper()
	signed, err := note.Sign(&note.Note{Text: text}, by...)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

func TestAManifestIsWhatItsLedgersKeySigned(t *testing.T) {
	b := someBackup()
	signer, key := backupKey(t, b.Ledger.Origin)
	_, other := backupKey(t, b.Ledger.Origin)
	stranger, strangersKey := backupKey(t, "stranger")
	signed := signText(t, b.Format(), signer)
	if got, err := verify.OpenBackup(signed, other, key); err != nil || got != b {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := verify.ReadBackup(signed); err != nil || got != b {
		t.Errorf("%+v, %v", got, err)
	}
	for name, tt := range map[string]struct {
		signed []byte
		keys   []note.Verifier
	}{
		"another key of the name":              {signed, []note.Verifier{other}},
		"no key":                               {signed, nil},
		"a known key that is not the ledger's": {signText(t, b.Format(), stranger), []note.Verifier{strangersKey, key}},
		"changed":                              {bytes.Replace(signed, []byte("count 12"), []byte("count 13"), 1), []note.Verifier{key}},
		"not signed":                           {[]byte(b.Format()), []note.Verifier{key}},
	} {
		if got, err := verify.OpenBackup(tt.signed, tt.keys...); !errors.Is(err, verify.ErrBackup) || got != (verify.Backup{}) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

// The ledger key signs both, so neither may pass for the other.
func TestAManifestIsNoCheckpointAndACheckpointNoManifest(t *testing.T) {
	b := someBackup()
	signer, key := backupKey(t, b.Ledger.Origin)
	if _, _, err := verify.OpenCheckpoint(signText(t, b.Format(), signer), b.Ledger.Origin, key); !errors.Is(err, verify.ErrCheckpoint) {
		t.Errorf("a manifest as a checkpoint: %v", err)
	}
	if _, err := verify.OpenBackup(signText(t, string(b.Ledger.Format()), signer), key); !errors.Is(err, verify.ErrBackup) {
		t.Errorf("a checkpoint as a manifest: %v", err)
	}
}

func FuzzParseBackup(f *testing.F) {
	text := someBackup().Format()
	f.Add(text)
	f.Add(strings.Replace(text, "count 12", "count 012", 1))
	f.Add(strings.Replace(text, "size 7", "size -7", 1))
	f.Add(text + "\n")
	f.Fuzz(func(t *testing.T, text string) {
		b, err := verify.ParseBackup(text)
		if err != nil {
			if b != (verify.Backup{}) {
				t.Error("a result in spite of an error")
			}
			return
		}
		if b.Format() != text {
			t.Error("it formats to something else")
		}
	})
}
