package verify_test

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"testing"
	"testing/fstest"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/prototypster/pdvault/access/ledger/verify"
)

const origin = "pdvault.example.org/ledger"

var epoch = time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)

// keys are those of one ledger and its witness.
type keys struct {
	signer   note.Signer
	ledger   note.Verifier
	cosigner *verify.Cosigner
	witness  note.Verifier
}

func newKeys(t testing.TB) keys {
	t.Helper()
	skey, vkey, err := note.GenerateKey(rand.Reader, origin)
	must(t, err)
	signer, err := note.NewSigner(skey)
	must(t, err)
	ledger, err := note.NewVerifier(vkey)
	must(t, err)
	seed, wkey, err := verify.GenerateCosignerKey(rand.Reader, "witness.example.org/w1")
	must(t, err)
	cosigner, err := verify.NewCosigner("witness.example.org/w1", seed)
	must(t, err)
	witness, err := verify.NewCosignatureVerifier(wkey)
	must(t, err)
	return keys{signer, ledger, cosigner, witness}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErr(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error %v, want %v", err, want)
	}
}

func (k keys) sign(t testing.TB, cp verify.Checkpoint) []byte {
	t.Helper()
	signed, err := note.Sign(&note.Note{Text: string(cp.Format())}, k.signer)
	must(t, err)
	return signed
}

// reference is a log kept by the tlog package alone.
type reference struct {
	entries [][]byte
	hashes  []tlog.Hash
}

func (r *reference) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, x := range indexes {
		out[i] = r.hashes[x]
	}
	return out, nil
}

func (r *reference) add(t testing.TB, entry []byte) {
	t.Helper()
	hs, err := tlog.StoredHashes(int64(len(r.entries)), entry, r)
	must(t, err)
	r.entries, r.hashes = append(r.entries, entry), append(r.hashes, hs...)
}

func (r *reference) checkpoint(t testing.TB, size int64) verify.Checkpoint {
	t.Helper()
	root, err := tlog.TreeHash(size, r)
	must(t, err)
	return verify.Checkpoint{Origin: origin, Size: size, Root: root}
}

// export lays the log out as tlog-tiles does.
func (r *reference) export(t testing.TB, k keys) fstest.MapFS {
	t.Helper()
	size := int64(len(r.entries))
	dir := fstest.MapFS{verify.CheckpointPath: {Data: k.sign(t, r.checkpoint(t, size))}}
	for tile := range verify.TilesOf(size) {
		var data []byte
		for i := range tile.Width {
			n := tile.N*verify.TileWidth + int64(i)
			if tile.Level == verify.EntriesLevel {
				var err error
				data, err = verify.AppendBundle(data, r.entries[n])
				must(t, err)
				continue
			}
			h := r.hashes[tlog.StoredHashIndex(tile.Level*verify.TileHeight, n)]
			data = append(data, h[:]...)
		}
		dir[tile.Path()] = &fstest.MapFile{Data: data}
	}
	return dir
}

func clone(dir fstest.MapFS) fstest.MapFS {
	out := make(fstest.MapFS, len(dir))
	for name, f := range dir {
		out[name] = &fstest.MapFile{Data: bytes.Clone(f.Data)}
	}
	return out
}

// A story is a log made of entries whose grounds hold.
type story struct {
	t       testing.TB
	entries []verify.Entry
	now     time.Time
}

func newStory(t testing.TB) *story { return &story{t: t, now: epoch} }

func (s *story) add(e verify.Entry) int64 {
	s.now = s.now.Add(time.Millisecond)
	e.ID, e.Time = fmt.Sprintf("id-%d", len(s.entries)), verify.FormatTime(s.now)
	s.entries = append(s.entries, e)
	return int64(len(s.entries)) - 1
}

func (s *story) log() *reference {
	s.t.Helper()
	r := &reference{}
	for _, e := range s.entries {
		b, err := verify.Encode(e)
		must(s.t, err)
		r.add(s.t, b)
	}
	return r
}

func ref(who string) string {
	sum := sha256.Sum256([]byte(who))
	return verify.FormatRef(sum[:])
}

func bundleBytes(version int64) []byte { return fmt.Appendf(nil, `{"version":%d}`, version) }

func policyEntry(version int64) verify.Entry {
	sum := sha256.Sum256(bundleBytes(version))
	return verify.Entry{
		Kind:   verify.KindPolicyPublished,
		Bundle: &verify.BundleChange{Version: version, SHA256: hex.EncodeToString(sum[:]), TextSHA256: "00"},
	}
}

func consentEntry(kind, who, id string) verify.Entry {
	c := &verify.ConsentChange{ID: id, Purpose: "newsletter", Policy: 1, State: "ConsentGiven", Fields: []string{"profile.email", "profile.name"}, Recipients: []string{"mailer"}, SeparateDocument: true}
	if kind == verify.KindConsentWithdrawn {
		c.State = "ConsentWithdrawn"
	}
	return verify.Entry{Kind: kind, SubjectRef: ref(who), Consent: c}
}

func accessEntry(who, ground string, ev verify.Evidence) verify.Entry {
	e := verify.Entry{
		Kind: verify.KindAccess, SubjectRef: ref(who), Collection: "profile", Fields: []string{"email"},
		Mode: verify.ModeReveal, Purpose: "order-fulfilment", Ground: ground, Evidence: &ev, Policy: 1,
		Caller:  &verify.Caller{ID: "shop", Kind: "service", Role: "service", Authn: "token"},
		Sidecar: "sidecar-1", Decision: verify.Allow, Rules: []string{"ground-2-service"},
	}
	if ground == verify.GroundConsent {
		e.Purpose, e.Caller.ID = "newsletter", "mailer"
	}
	return e
}

func erasedEntry(who, id string) verify.Entry {
	return verify.Entry{
		Kind: verify.KindSubjectErased, SubjectRef: ref(who), Reason: "subject-request", DetailCommit: ref("salted"),
		Erasure: &verify.Erasure{ID: id, Method: verify.MethodCryptographicErase},
	}
}

func destroyedEntry(who, id string, of int64) verify.Entry {
	return verify.Entry{
		Kind: verify.KindKeyDestroyed, SubjectRef: ref(who), Of: &of,
		Erasure: &verify.Erasure{ID: id, Generation: 7, KEKVersion: 3, DeadBy: verify.FormatTime(epoch)},
	}
}

func epochEntry(job string, version uint64) verify.Entry {
	return verify.Entry{Kind: verify.KindKeyEpoch, Keys: &verify.KeyChange{
		Scope: "kek", Job: job, Version: version, Total: 9, Started: verify.FormatTime(epoch), Finished: verify.FormatTime(epoch),
	}}
}

func rotatedEntry(scope, job, phase string, version uint64) verify.Entry {
	return verify.Entry{Kind: verify.KindKeyRotated, Keys: &verify.KeyChange{Scope: scope, Job: job, Phase: phase, Version: version, Total: 9}}
}

// but returns e changed.
func but(e verify.Entry, change func(*verify.Entry)) verify.Entry {
	change(&e)
	return e
}

func check(t testing.TB, dir fs.FS, c verify.LogCheck) *verify.Report {
	t.Helper()
	r, err := verify.VerifyLog(t.Context(), dir, c)
	must(t, err)
	return r
}

func codes(r *verify.Report) string {
	out := ""
	for _, p := range r.Problems {
		out += fmt.Sprintf("%d:%s ", p.Index, p.Code)
	}
	return out
}
