package verify_test

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/prototypster/pdvault/access/ledger/verify"
)

// evidenceSigner is a witness key of a sidecar, as it signs evidence.
func evidenceSigner(t testing.TB, name string) (witnessKey string, sign func([]byte) ([]byte, error)) {
	t.Helper()
	seed, vkey, err := verify.GenerateCosignerKey(bytes.NewReader(bytes.Repeat([]byte(name), 32)), name)
	if err != nil {
		t.Fatal(err)
	}
	key := ed25519.NewKeyFromSeed(seed)
	return vkey, func(msg []byte) ([]byte, error) { return ed25519.Sign(key, msg), nil }
}

func someEvidence() verify.KeyEvidence {
	at := time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
	return verify.KeyEvidence{
		Instance: "main", Sidecar: "s1", Job: "0199b0c2-5f3e-7a51-9d0e-3b7c5a1f2e4d", Scope: "kek",
		Target: 12, Total: 1 << 20, Started: at, Finished: at.Add(271120 * time.Millisecond),
	}
}

func TestEvidenceIsWhatTheSidecarSigned(t *testing.T) {
	key, sign := evidenceSigner(t, "main/witness/s1")
	want := someEvidence()
	signed, err := verify.SignEvidence(want, key, sign)
	if err != nil {
		t.Fatal(err)
	}
	const text = "pdvault/key-evidence/v1\ninstance main\nsidecar s1\njob 0199b0c2-5f3e-7a51-9d0e-3b7c5a1f2e4d\nscope kek\n" +
		"target 12\ntotal 1048576\nleft 0\nstarted 2026-11-22T10:00:00.000Z\nfinished 2026-11-22T10:04:31.120Z\n"
	if !strings.HasPrefix(string(signed), text+"\n— main/evidence/s1 ") {
		t.Errorf("signed:\n%s", signed)
	}
	got, err := verify.OpenEvidence(signed, key)
	if err != nil || got != want {
		t.Errorf("OpenEvidence = %+v, %v", got, err)
	}
	// Anyone can check it with the note key alone.
	vkey, err := verify.EvidenceKey(key)
	if err != nil {
		t.Fatal(err)
	}
	v, err := note.NewVerifier(vkey)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := note.Open(signed, note.VerifierList(v)); err != nil {
		t.Error(err)
	}
}

func TestChangedOrForeignEvidenceIsRefused(t *testing.T) {
	key, sign := evidenceSigner(t, "main/witness/s1")
	otherKey, otherSign := evidenceSigner(t, "main/witness/s2")
	signed, err := verify.SignEvidence(someEvidence(), key, sign)
	if err != nil {
		t.Fatal(err)
	}
	other := someEvidence()
	other.Sidecar = "s2"
	foreign, err := verify.SignEvidence(other, otherKey, otherSign)
	if err != nil {
		t.Fatal(err)
	}
	swap := func(old, new string) []byte { return bytes.Replace(signed, []byte(old), []byte(new), 1) }
	line := signed[bytes.LastIndex(signed, []byte("— ")):]
	for name, b := range map[string][]byte{
		"empty":               nil,
		"no signature":        signed[:bytes.LastIndex(signed, []byte("\n— "))],
		"another total":       swap("total 1048576", "total 1048577"),
		"something left":      swap("left 0", "left 1"),
		"another version":     swap("/v1", "/v2"),
		"a sign":              swap("target 12", "target +12"),
		"a further line":      append(bytes.Clone(signed), "— x AAAAAAAA\n"...),
		"the signature twice": append(bytes.Clone(signed), line...),
		"another sidecar's":   foreign,
		"cut":                 signed[:len(signed)-1],
		"too large":           append(bytes.Repeat([]byte("x"), 5000), signed...),
	} {
		if got, err := verify.OpenEvidence(b, key); !errors.Is(err, verify.ErrEvidence) || got != (verify.KeyEvidence{}) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	for name, k := range map[string]string{"none": "", "no key": "x", "another": otherKey} {
		if _, err := verify.OpenEvidence(signed, k); !errors.Is(err, verify.ErrEvidence) {
			t.Errorf("key %s: %v", name, err)
		}
	}
	plain, _ := evidenceSigner(t, "main/other/s1")
	if _, err := verify.OpenEvidence(signed, plain); !errors.Is(err, verify.ErrEvidence) {
		t.Errorf("key that is not named as a witness: %v", err)
	}
}

// TestNoBadEvidenceIsSigned: what cannot be opened again is not signed.
func TestNoBadEvidenceIsSigned(t *testing.T) {
	key, sign := evidenceSigner(t, "main/witness/s1")
	for name, change := range map[string]func(*verify.KeyEvidence){
		"unknown scope":      func(e *verify.KeyEvidence) { e.Scope = "all" },
		"no job":             func(e *verify.KeyEvidence) { e.Job = "" },
		"a line in a name":   func(e *verify.KeyEvidence) { e.Job = "a\nscope kek" },
		"another instance":   func(e *verify.KeyEvidence) { e.Instance = "other" },
		"negative total":     func(e *verify.KeyEvidence) { e.Total = -1 },
		"ends before begins": func(e *verify.KeyEvidence) { e.Finished = e.Started.Add(-time.Second) },
	} {
		e := someEvidence()
		change(&e)
		if b, err := verify.SignEvidence(e, key, sign); !errors.Is(err, verify.ErrEvidence) || b != nil {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
}

// TestACosignatureIsNoEvidence: the two are made with one key, and neither can be passed off as the other.
func TestACosignatureIsNoEvidence(t *testing.T) {
	seed := bytes.Repeat([]byte{7}, ed25519.SeedSize)
	c, err := verify.NewCosigner("main/witness/s1", seed)
	if err != nil {
		t.Fatal(err)
	}
	text, err := verify.FormatEvidence(someEvidence())
	if err != nil {
		t.Fatal(err)
	}
	cosigned, err := note.Sign(&note.Note{Text: string(text)}, c.At(time.Now()))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := verify.OpenEvidence(cosigned, c.VerifierKey()); !errors.Is(err, verify.ErrEvidence) {
		t.Errorf("a cosigned text was taken for evidence: %v", err)
	}
}

// FuzzEvidence: what opens is the one encoding of what it says.
func FuzzEvidence(f *testing.F) {
	key, sign := evidenceSigner(f, "main/witness/s1")
	signed, err := verify.SignEvidence(someEvidence(), key, sign)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(signed)
	f.Add(slices.Concat(signed, []byte("\n")))
	f.Add([]byte("pdvault/key-evidence/v1\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := verify.OpenEvidence(b, key)
		if err != nil {
			if got != (verify.KeyEvidence{}) {
				t.Error("an error and evidence")
			}
			return
		}
		again, err := verify.SignEvidence(got, key, sign)
		if err != nil || !bytes.Equal(again, b) {
			t.Errorf("opened %q, which encodes to %q, %v", b, again, err)
		}
	})
}

// FuzzEvidenceText: any text, signed by the right key, opens only in its one form.
func FuzzEvidenceText(f *testing.F) {
	key, sign := evidenceSigner(f, "main/witness/s1")
	text, err := verify.FormatEvidence(someEvidence())
	if err != nil {
		f.Fatal(err)
	}
	vkey, err := verify.EvidenceKey(key)
	if err != nil {
		f.Fatal(err)
	}
	v, err := note.NewVerifier(vkey)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(text))
	f.Fuzz(func(t *testing.T, text string) {
		signed, err := note.Sign(&note.Note{Text: text}, anySigner{v, sign})
		if err != nil {
			return
		}
		got, err := verify.OpenEvidence(signed, key)
		if err != nil {
			return
		}
		if again, err := verify.FormatEvidence(got); err != nil || string(again) != text {
			t.Errorf("%q formats to %q, %v", text, again, err)
		}
	})
}

type anySigner struct {
	note.Verifier
	sign func([]byte) ([]byte, error)
}

func (s anySigner) Sign(msg []byte) ([]byte, error) { return s.sign(msg) }

// provenEpoch is an epoch of the sidecar with the given witness key.
func provenEpoch(t testing.TB, job string, version uint64, key string, sign func([]byte) ([]byte, error)) verify.Entry {
	t.Helper()
	at := time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)
	e := epochEntry(job, version)
	e.Keys.Total, e.Keys.Started, e.Keys.Finished = 7, verify.FormatTime(at), verify.FormatTime(at.Add(time.Second))
	signed, err := verify.SignEvidence(verify.KeyEvidence{
		Instance: "main", Sidecar: "s1", Job: job, Scope: "kek", Target: version, Total: 7, Started: at, Finished: at.Add(time.Second),
	}, key, sign)
	if err != nil {
		t.Fatal(err)
	}
	e.Keys.Evidence = string(signed)
	return e
}

// What a rotation claims at its end is what the sidecar has signed, or the ledger does not hold.
func TestTheEvidenceOfRotationsIsChecked(t *testing.T) {
	k := newKeys(t)
	newer, signNewer := evidenceSigner(t, "main/witness/s1")
	seed, older, err := verify.GenerateCosignerKey(bytes.NewReader(bytes.Repeat([]byte("older"), 32)), "main/witness/s1")
	must(t, err)
	signOlder := func(msg []byte) ([]byte, error) { return ed25519.Sign(ed25519.NewKeyFromSeed(seed), msg), nil }
	given := func(keys ...string) verify.LogCheck {
		c := verify.LogCheck{Ledger: k.ledger, Witnesses: []note.Verifier{k.witness}}
		for _, key := range keys {
			v, err := verify.NewCosignatureVerifier(key)
			must(t, err)
			c.Witnesses = append(c.Witnesses, v)
		}
		return c
	}
	told := func(change func(*verify.Entry)) *verify.Report {
		s := newStory(t)
		s.add(provenEpoch(t, "j1", 2, older, signOlder))
		e := provenEpoch(t, "j2", 3, newer, signNewer)
		change(&e)
		s.add(e)
		return check(t, s.log().export(t, k), given(newer))
	}
	s := newStory(t)
	s.add(provenEpoch(t, "j1", 2, older, signOlder))
	s.add(provenEpoch(t, "j2", 3, newer, signNewer))
	dir := s.log().export(t, k)
	for n, c := range []verify.LogCheck{given(), given(newer), given(newer, older)} {
		if r := check(t, dir, c); !r.OK() || r.Keys.Proven != int64(n) {
			t.Errorf("%d keys: %s%+v", n, codes(r), r.Keys)
		}
	}
	for name, change := range map[string]func(*verify.Entry){
		"none":            func(e *verify.Entry) { e.Keys.Evidence = "" },
		"no note":         func(e *verify.Entry) { e.Keys.Evidence = "left 0" },
		"of another job":  func(e *verify.Entry) { e.Keys.Job = "j3" },
		"another version": func(e *verify.Entry) { e.Keys.Version = 4 },
		"another count":   func(e *verify.Entry) { e.Keys.Total = 8 },
		"another start":   func(e *verify.Entry) { e.Keys.Started = e.Keys.Finished },
		"another end":     func(e *verify.Entry) { e.Keys.Finished = "2026-11-22T10:00:02.000Z" },
		"another scope":   func(e *verify.Entry) { e.Kind, e.Keys.Scope = verify.KindKeyRotated, "index" },
		"changed":         func(e *verify.Entry) { e.Keys.Evidence = strings.Replace(e.Keys.Evidence, "total 7", "total 8", 1) },
	} {
		if r := told(change); codes(r) != "1:keys-evidence " {
			t.Errorf("%s: %q", name, codes(r))
		}
	}
	// A phase is no end.
	if r := told(func(e *verify.Entry) { *e = rotatedEntry("index", "j2", "backfill", 3) }); !r.OK() {
		t.Error(codes(r))
	}
}
