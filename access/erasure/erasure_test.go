package erasure_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"

	"github.com/prototypster/pdvault/access/erasure"
	"github.com/prototypster/pdvault/access/ledger/verify"
)

const (
	origin  = "pdvault.example.org/ledger"
	subject = "3f0c3a1e-5b7e-4f0e-8a53-0b8f6f1d2c11"
	another = "3f0c3a1e-5b7e-4f0e-8a53-0b8f6f1d2c12"
)

var start = time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)

// world is a ledger, kept by the tlog package alone, in which a subject was erased.
type world struct {
	t       testing.TB
	signers []note.Signer
	keys    erasure.Keys
	entries [][]byte
	hashes  []tlog.Hash
	salt    string
}

// where the entries of the story are.
const (
	erasedAt    = 3
	destroyedAt = 5
	epochAt     = 7
)

// newWorld tells a story, changed before it is put into the ledger.
func newWorld(t testing.TB, change func([]verify.Entry)) *world {
	t.Helper()
	w := &world{t: t}
	skey, vkey, err := note.GenerateKey(rand.Reader, origin)
	must(t, err)
	signer, err := note.NewSigner(skey)
	must(t, err)
	verifier, err := note.NewVerifier(vkey)
	must(t, err)
	seed, wkey, err := verify.GenerateCosignerKey(rand.Reader, "witness.example.org/w1")
	must(t, err)
	cosigner, err := verify.NewCosigner("witness.example.org/w1", seed)
	must(t, err)
	witness, err := verify.NewCosignatureVerifier(wkey)
	must(t, err)
	w.signers = []note.Signer{signer, cosigner.At(start)}
	w.keys = erasure.Keys{Ledger: []note.Verifier{verifier}, Witnesses: []note.Verifier{witness}, Quorum: 1}

	var commit string
	w.salt, commit = erasure.Commit(subject)
	of := int64(erasedAt)
	entries := make([]verify.Entry, 9)
	for i := range entries {
		entries[i] = verify.Entry{Kind: verify.KindAccess, Decision: verify.Deny}
	}
	entries[erasedAt] = verify.Entry{
		Kind: verify.KindSubjectErased, SubjectRef: ref("ada"), Reason: "withdrawn-consent", DetailCommit: commit,
		Caller: &verify.Caller{ID: "privacy", Kind: "person", Role: "privacy-officer", Authn: "token"},
		Erasure: &verify.Erasure{
			ID: "cert-1", Categories: []string{"pd:EmailAddress", "pd:Name"}, Fields: []string{"profile.email", "profile.name"},
			Consents: 2, Details: 3, Method: verify.MethodCryptographicErase, Operator: "Prototypster",
		},
	}
	entries[destroyedAt] = verify.Entry{
		Kind: verify.KindKeyDestroyed, SubjectRef: ref("ada"), Of: &of,
		Erasure: &verify.Erasure{ID: "cert-1", Generation: 12, KEKVersion: 4, DeadBy: verify.FormatTime(start.Add(7 * 24 * time.Hour))},
	}
	entries[epochAt] = verify.Entry{Kind: verify.KindKeyEpoch, Keys: &verify.KeyChange{Scope: "kek", Job: "j1", Version: 5, Total: 8}}
	for i := range entries {
		entries[i].ID, entries[i].Time = fmt.Sprintf("id-%d", i), verify.FormatTime(start.Add(time.Duration(i)*time.Hour))
	}
	if change != nil {
		change(entries)
	}
	for i, e := range entries {
		b, err := verify.Encode(e)
		must(t, err)
		hs, err := tlog.StoredHashes(int64(i), b, w)
		must(t, err)
		w.entries, w.hashes = append(w.entries, b), append(w.hashes, hs...)
	}
	return w
}

func (w *world) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, x := range indexes {
		out[i] = w.hashes[x]
	}
	return out, nil
}

// attested is an entry with its proof in the tree of the first size entries.
func (w *world) attested(index, size int64) erasure.Attested {
	w.t.Helper()
	hashes, err := tlog.ProveRecord(size, index, w)
	must(w.t, err)
	root, err := tlog.TreeHash(size, w)
	must(w.t, err)
	signed, err := note.Sign(&note.Note{Text: string(verify.Checkpoint{Origin: origin, Size: size, Root: root}.Format())}, w.signers...)
	must(w.t, err)
	proof := verify.Proof{Index: index, Hashes: hashes, Checkpoint: signed}
	return erasure.Attested{Index: index, Entry: string(w.entries[index]), Proof: string(proof.Marshal())}
}

// certificate is the one that the subject gets, or a later one, final or not.
func (w *world) certificate(named, final bool) erasure.Certificate {
	w.t.Helper()
	var epoch *erasure.Attested
	if final {
		a := w.attested(epochAt, 9)
		epoch = &a
	}
	c, err := erasure.New(w.attested(erasedAt, 6), w.attested(destroyedAt, 9), epoch)
	must(w.t, err)
	if named {
		c.Subject, c.Salt = subject, w.salt
	}
	return c
}

func ref(who string) string {
	sum := sha256.Sum256([]byte(who))
	return verify.FormatRef(sum[:])
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// refused demands that a certificate does not verify, with one of our errors and an empty report.
func refused(t interface{ Errorf(string, ...any) }, what string, cert []byte, k erasure.Keys) {
	r, err := erasure.Verify(cert, k)
	switch {
	case err == nil:
		t.Errorf("%s: accepted", what)
	case !reflect.DeepEqual(r, erasure.Report{}):
		t.Errorf("%s: the report is not empty", what)
	case !errors.Is(err, erasure.ErrCertificate) && !errors.Is(err, erasure.ErrContradiction) && !errors.Is(err, erasure.ErrUnproven):
		t.Errorf("%s: error of no kind: %v", what, err)
	}
}

func TestACertificateIsVerifiedWithPublicKeysAlone(t *testing.T) {
	w := newWorld(t, nil)
	for _, named := range []bool{true, false} {
		for _, final := range []bool{true, false} {
			r, err := erasure.Verify(w.certificate(named, final).Encode(), w.keys)
			if err != nil {
				t.Fatalf("named %v, final %v: %v", named, final, err)
			}
			c := r.Certificate
			if (c.Subject == subject) != named || (c.Status == erasure.Final) != final || (r.Epoch != nil) != final || (c.BackupsDead != "") != final {
				t.Errorf("named %v, final %v: %+v", named, final, c)
			}
			if r.Erased.Checkpoint.Size != 6 || r.Destroyed.Checkpoint.Size != 9 || len(r.Destroyed.Cosignatures) != 1 {
				t.Errorf("%+v", r)
			}
		}
	}
}

func TestSpaceInACertificateMeansNothing(t *testing.T) {
	w := newWorld(t, nil)
	spaced := jsontext.Value(w.certificate(true, true).Encode())
	must(t, spaced.Indent())
	if _, err := erasure.Verify(append([]byte(spaced), '\n'), w.keys); err != nil {
		t.Error(err)
	}
}

// members calls f with each member of a certificate that can be changed, by its path.
func members(v reflect.Value, path string, f func(path string, v reflect.Value)) {
	switch v.Kind() {
	case reflect.Pointer:
		f(path, v)
		if !v.IsNil() {
			members(v.Elem(), path, f)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			members(v.Field(i), path+"."+v.Type().Field(i).Name, f)
		}
	case reflect.Slice:
		f(path, v)
		for i := range v.Len() {
			members(v.Index(i), fmt.Sprintf("%s[%d]", path, i), f)
		}
	default:
		f(path, v)
	}
}

// copied returns a certificate that shares nothing with c.
func copied(t testing.TB, c erasure.Certificate) *erasure.Certificate {
	t.Helper()
	var out erasure.Certificate
	must(t, json.Unmarshal(c.Encode(), &out))
	return &out
}

// TestEveryMemberCounts changes each member by itself, in each way there is for its kind.
func TestEveryMemberCounts(t *testing.T) {
	w := newWorld(t, nil)
	for _, final := range []bool{false, true} {
		good := w.certificate(true, final)
		var paths []string
		members(reflect.ValueOf(copied(t, good)).Elem(), "", func(path string, _ reflect.Value) { paths = append(paths, path) })
		if len(paths) < 30 {
			t.Fatalf("only %d members: %v", len(paths), paths)
		}
		for i, path := range paths {
			for way := range 3 {
				c := copied(t, good)
				n := 0
				members(reflect.ValueOf(c).Elem(), "", func(_ string, v reflect.Value) {
					if n == i {
						mutate(v, way)
					}
					n++
				})
				if !reflect.DeepEqual(*c, good) {
					refused(t, fmt.Sprintf("final %v: %s, way %d", final, path, way), c.Encode(), w.keys)
				}
			}
		}
	}
}

func mutate(v reflect.Value, way int) {
	switch v.Kind() {
	case reflect.String:
		v.SetString([]string{"", v.String() + "x", strings.ToUpper(v.String()) + " "}[way])
	case reflect.Int, reflect.Int64:
		v.SetInt([]int64{0, v.Int() + 1, v.Int() - 1}[way])
	case reflect.Uint64:
		v.SetUint([]uint64{0, v.Uint() + 1, v.Uint() - 1}[way])
	case reflect.Slice:
		switch {
		case way == 0 || v.Len() == 0:
			v.SetZero()
		case way == 1:
			v.Set(v.Slice(0, v.Len()-1))
		default:
			v.Set(reflect.Append(v, reflect.ValueOf("pd:Other")))
		}
	case reflect.Pointer:
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		} else {
			v.SetZero()
		}
	default:
		panic("a member of kind " + v.Kind().String())
	}
}

func TestNoByteOfACertificateCanBeChanged(t *testing.T) {
	w := newWorld(t, nil)
	good := w.certificate(true, true).Encode()
	rapid.Check(t, func(rt *rapid.T) {
		bad := bytes.Clone(good)
		switch at := rapid.IntRange(0, len(bad)-1).Draw(rt, "at"); rapid.IntRange(0, 2).Draw(rt, "how") {
		case 0:
			bad[at] ^= byte(rapid.IntRange(1, 255).Draw(rt, "by"))
		case 1:
			bad = slices.Delete(bad, at, at+1)
		default:
			// Space between members is no change.
			bad = slices.Insert(bad, at, rapid.ByteRange('!', '~').Draw(rt, "byte"))
		}
		if !bytes.Equal(bad, good) {
			refused(rt, "changed", bad, w.keys)
		}
	})
}

// TestEntriesMustBeOfOneErasure: each of these is signed and proven, and is no certificate all the same.
func TestEntriesMustBeOfOneErasure(t *testing.T) {
	for name, change := range map[string]func([]verify.Entry){
		"the key of another erasure":          func(e []verify.Entry) { *e[destroyedAt].Of = erasedAt - 1 },
		"the key of another certificate":      func(e []verify.Entry) { e[destroyedAt].Erasure.ID = "cert-2" },
		"the key of another subject":          func(e []verify.Entry) { e[destroyedAt].SubjectRef = ref("bob") },
		"a key of no erasure":                 func(e []verify.Entry) { e[destroyedAt].Of = nil },
		"a key without members":               func(e []verify.Entry) { e[destroyedAt].Erasure = nil },
		"an erasure without members":          func(e []verify.Entry) { e[erasedAt].Erasure = nil },
		"an erasure without a reason":         func(e []verify.Entry) { e[erasedAt].Reason = "" },
		"an erasure of nobody":                func(e []verify.Entry) { e[erasedAt].SubjectRef = ""; e[destroyedAt].SubjectRef = "" },
		"an erasure without a commitment":     func(e []verify.Entry) { e[erasedAt].DetailCommit = "" },
		"an erasure without a method":         func(e []verify.Entry) { e[erasedAt].Erasure.Method = "" },
		"an access instead of an erasure":     func(e []verify.Entry) { e[erasedAt].Kind = verify.KindAccess },
		"an access instead of a destruction":  func(e []verify.Entry) { e[destroyedAt].Kind = verify.KindAccess },
		"a rotation instead of an epoch":      func(e []verify.Entry) { e[epochAt].Kind = verify.KindKeyRotated },
		"an epoch without members":            func(e []verify.Entry) { e[epochAt].Keys = nil },
		"an epoch to the version of the key":  func(e []verify.Entry) { e[epochAt].Keys.Version = 4 },
		"an epoch that left something behind": func(e []verify.Entry) { e[epochAt].Keys.Left = 1 },
		"an epoch that has not ended":         func(e []verify.Entry) { e[epochAt].Keys.Phase = "rewrap" },
		"an epoch of something else":          func(e []verify.Entry) { e[epochAt].Keys.Scope = "index" },
		"a destruction before the erasure":    func(e []verify.Entry) { e[destroyedAt].Time = verify.FormatTime(start) },
		"an epoch before the destruction":     func(e []verify.Entry) { e[epochAt].Time = e[erasedAt].Time },
	} {
		w := newWorld(t, change)
		erased, destroyed, epoch := w.attested(erasedAt, 9), w.attested(destroyedAt, 9), w.attested(epochAt, 9)
		if _, err := erasure.New(erased, destroyed, &epoch); !errors.Is(err, erasure.ErrCertificate) && !errors.Is(err, erasure.ErrContradiction) {
			t.Errorf("%s: made into a certificate: %v", name, err)
		}
		forged := newWorld(t, nil).certificate(false, true)
		forged.Erased, forged.Destroyed, forged.Epoch = erased, destroyed, &epoch
		refused(t, name, forged.Encode(), w.keys)
	}
	w := newWorld(t, nil)
	good := w.certificate(false, true)
	swapped := *copied(t, good)
	swapped.Epoch = &erasure.Attested{}
	*swapped.Epoch = swapped.Destroyed
	refused(t, "the destruction as its own epoch", swapped.Encode(), w.keys)
	stranger := newWorld(t, nil)
	swapped = *copied(t, good)
	swapped.Destroyed.Proof = stranger.attested(destroyedAt, 9).Proof
	refused(t, "a proof of another ledger", swapped.Encode(), w.keys)
}

func TestACertificateNamesOneSubject(t *testing.T) {
	w := newWorld(t, nil)
	c := w.certificate(true, false)
	c.Subject = another
	refused(t, "another subject", c.Encode(), w.keys)
	c = w.certificate(false, false)
	c.Subject = subject
	refused(t, "no salt", c.Encode(), w.keys)
	for range 3 {
		c.Salt, _ = erasure.Commit(subject)
		refused(t, "another salt", c.Encode(), w.keys)
	}
}

func TestOnlyTheKeysGivenCount(t *testing.T) {
	w, stranger := newWorld(t, nil), newWorld(t, nil)
	cert := w.certificate(true, true).Encode()
	for name, k := range map[string]erasure.Keys{
		"no key":            {},
		"another ledger":    {Ledger: stranger.keys.Ledger},
		"another witness":   {Ledger: w.keys.Ledger, Witnesses: stranger.keys.Witnesses, Quorum: 1},
		"too few witnesses": {Ledger: w.keys.Ledger, Witnesses: slices.Concat(w.keys.Witnesses, stranger.keys.Witnesses), Quorum: 2},
		"a witness instead": {Ledger: w.keys.Witnesses},
	} {
		refused(t, name, cert, k)
	}
	for name, k := range map[string]erasure.Keys{
		"no witness asked for": {Ledger: w.keys.Ledger},
		"an older key as well": {Ledger: slices.Concat(stranger.keys.Ledger, w.keys.Ledger), Witnesses: w.keys.Witnesses, Quorum: 1},
		"one of two witnesses": {Ledger: w.keys.Ledger, Witnesses: slices.Concat(w.keys.Witnesses, stranger.keys.Witnesses), Quorum: 1},
	} {
		if _, err := erasure.Verify(cert, k); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestACertificateOutlivesItsLedgerKey: while a key follows another, checkpoints carry both signatures.
func TestACertificateOutlivesItsLedgerKey(t *testing.T) {
	w, next := newWorld(t, nil), newWorld(t, nil)
	w.signers = slices.Concat(w.signers, next.signers[:1])
	cert := w.certificate(true, true).Encode()
	for name, k := range map[string]erasure.Keys{
		"the older key": {Ledger: w.keys.Ledger}, "the newer key": {Ledger: next.keys.Ledger},
		"both": {Ledger: slices.Concat(next.keys.Ledger, w.keys.Ledger), Witnesses: w.keys.Witnesses, Quorum: 1},
	} {
		if _, err := erasure.Verify(cert, k); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	w := newWorld(f, nil)
	f.Add(w.certificate(true, true).Encode())
	f.Add(w.certificate(false, false).Encode())
	f.Add([]byte(`{"t":"pdvault/erasure-certificate/v1"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := erasure.Parse(b)
		if err != nil {
			if !reflect.DeepEqual(c, erasure.Certificate{}) {
				t.Error("not zero on error")
			}
			return
		}
		compact := jsontext.Value(bytes.Clone(b))
		if err := compact.Compact(); err != nil || !bytes.Equal(compact, c.Encode()) {
			t.Error("what is accepted encodes to something else")
		}
	})
}

func TestReasonsAreClosedAndNamedInBothLanguages(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range erasure.Reasons() {
		if seen[r.Code] || r.Code == "" || r.EN == "" || r.RU == "" {
			t.Errorf("%+v", r)
		}
		seen[r.Code] = true
		if got, ok := erasure.FindReason(r.Code); !ok || got != r {
			t.Errorf("%s is not found", r.Code)
		}
	}
	for _, code := range []string{"withdrawn-consent", "purpose-reached", "subject-request", "unlawful", "account-closed"} {
		if !seen[code] {
			t.Errorf("%s is missing", code)
		}
	}
	if _, ok := erasure.FindReason("because"); ok {
		t.Error("any text is a reason")
	}
}

// A final certificate says that nothing is left on older versions. Who has the sidecar's witness key sees whether the
// sidecar has said so, or the operator alone.
func TestAFinalCertificateRestsOnTheSidecarsEvidence(t *testing.T) {
	seed, key, err := verify.GenerateCosignerKey(rand.Reader, "main/witness/s1")
	must(t, err)
	sidecar, err := verify.NewCosignatureVerifier(key)
	must(t, err)
	sign := func(msg []byte) ([]byte, error) { return ed25519.Sign(ed25519.NewKeyFromSeed(seed), msg), nil }
	_, other, err := verify.GenerateCosignerKey(rand.Reader, "main/witness/s1")
	must(t, err)
	stranger, err := verify.NewCosignatureVerifier(other)
	must(t, err)

	attest := func(target uint64) func([]verify.Entry) {
		return func(entries []verify.Entry) {
			k := entries[epochAt].Keys
			k.Started, k.Finished = verify.FormatTime(start), verify.FormatTime(start.Add(time.Minute))
			signed, err := verify.SignEvidence(verify.KeyEvidence{
				Instance: "main", Sidecar: "s1", Job: k.Job, Scope: k.Scope, Target: target, Total: k.Total,
				Started: start, Finished: start.Add(time.Minute),
			}, key, sign)
			must(t, err)
			k.Evidence = string(signed)
		}
	}
	for _, tt := range []struct {
		name    string
		tell    func([]verify.Entry)
		witness note.Verifier
		good    bool
	}{
		{"said by the sidecar", attest(5), sidecar, true},
		{"of an older version", attest(4), sidecar, false},
		{"by a key that was not given", attest(5), stranger, false},
		{"not said", nil, sidecar, false},
	} {
		w := newWorld(t, tt.tell)
		cert := w.certificate(false, true).Encode()
		if r, err := erasure.Verify(cert, w.keys); err != nil || r.Evidence != nil {
			t.Errorf("%s, without a key of the sidecar: %v", tt.name, err)
		}
		w.keys.Witnesses = append(w.keys.Witnesses, tt.witness)
		r, err := erasure.Verify(cert, w.keys)
		switch {
		case tt.good && (err != nil || r.Evidence == nil || r.Evidence.Target != 5):
			t.Errorf("%s: %v, %+v", tt.name, err, r.Evidence)
		case !tt.good && !errors.Is(err, erasure.ErrUnproven):
			t.Errorf("%s: %v", tt.name, err)
		}
		if _, err := erasure.Verify(w.certificate(false, false).Encode(), w.keys); err != nil {
			t.Errorf("%s, provisional: %v", tt.name, err)
		}
	}
}
