package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/prototypster/pdvault/access/erasure"
	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/access/policy"
	defaultpolicy "github.com/prototypster/pdvault/deploy/policy"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"pdaudit": func() { os.Exit(run(context.Background(), os.Args[1:], os.Stdout, os.Stderr)) },
	})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata", Setup: writeFixtures})
}

const origin = "pdvault.example.org/ledger"

var epoch = time.Date(2026, 11, 22, 10, 0, 0, 0, time.UTC)

// writeFixtures makes the files that the scripts work on:
//
//	log/         300 entries, cosigned: a policy, ada's consent, reads of hers and of bob's
//	unlawful/    the same, with a read behind the withdrawal of its consent
//	forged/      the same as log/ with entry 100 about somebody else, all tiles fitting, signed by the ledger key
//	restored/    the first 150 entries of log/, restored from a backup, and 100 others
//	old.checkpoint, newer.checkpoint   of log/ at 200, and of size 400
//	2.tlog-proof, 2.json               a proof from log/ and its entry
//	erasures/    a ledger in which ada was erased and an epoch has ended since, and bob's erasure is pending
//	named.json, cert.json, final.json  ada's certificate: as she got it, without her name, and after the epoch
//	other.json                         the same as cert.json with another reason beside the entries
func writeFixtures(env *testscript.Env) error {
	f, err := makeKeys(env)
	if err != nil {
		return err
	}
	raw, err := policy.LoadDir(defaultpolicy.FS)
	if err != nil {
		return err
	}
	bundle, err := policy.Parse(raw)
	if err != nil {
		return err
	}
	bundles := map[int64][]byte{1: raw}
	log := newLog(tell(bundle, 300, false))
	err = f.export("log", log, bundles)
	if err == nil {
		err = f.export("unlawful", newLog(tell(bundle, 300, true)), bundles)
	}
	if err == nil {
		err = f.write("wrong.json", bytes.Replace(raw, []byte("Prototypster"), []byte("Prototypist"), 1))
	}
	if err == nil {
		forged := tell(bundle, 300, false)
		forged[100].SubjectRef = ref("eve")
		err = f.export("forged", newLog(forged), bundles)
	}
	if err == nil {
		err = f.write("old.checkpoint", f.sign(log.checkpoint(200)))
	}
	if err == nil {
		err = f.write("newer.checkpoint", f.sign(newLog(tell(bundle, 400, false)).checkpoint(400)))
	}
	if err == nil {
		restored := tell(bundle, 250, false)
		lost := log.checkpoint(200)
		restored[150] = verify.Entry{ID: "id-150", Time: restored[150].Time, Kind: verify.KindLedgerRestored,
			Restored: &verify.Restored{Backup: "backup-1", Size: 150, Lost: lost.Size, LostRoot: lost.Root.String()}}
		err = f.export("restored", newLog(restored), bundles)
	}
	if err == nil {
		err = f.write("before.checkpoint", f.sign(log.checkpoint(150)))
	}
	if err == nil {
		err = f.write("within.checkpoint", f.sign(log.checkpoint(180)))
	}
	if err == nil {
		err = f.write("2.json", append(log.entries[2], '\n'))
	}
	if err == nil {
		hashes, proveErr := tlog.ProveRecord(300, 2, log)
		if proveErr != nil {
			return proveErr
		}
		err = f.write("2.tlog-proof", verify.Proof{Index: 2, Hashes: hashes, Checkpoint: f.sign(log.checkpoint(300))}.Marshal())
	}
	if err == nil {
		err = f.write("ledger.key", []byte(f.ledgerKey+"\n"))
	}
	if err == nil {
		err = writeErasures(f, bundle, bundles)
	}
	env.Setenv("ADA", ref("ada"))
	env.Setenv("EVE", ref("eve"))
	return err
}

func writeErasures(f fixtures, bundle *policy.Bundle, bundles map[int64][]byte) error {
	entries := tell(bundle, 20, false)
	salt, commit := erasure.Commit("3f0c3a1e-5b7e-4f0e-8a53-0b8f6f1d2c11")
	of := int64(20)
	caller := &verify.Caller{ID: "privacy", Kind: "person", Role: "privacy-officer", Authn: "token"}
	entries = append(entries,
		verify.Entry{Kind: verify.KindSubjectErased, SubjectRef: ref("ada"), Reason: "subject-request", DetailCommit: commit, Caller: caller,
			Erasure: &verify.Erasure{ID: "cert-1", Categories: []string{"pd:EmailAddress"}, Fields: []string{"profile.email"},
				Consents: 1, Details: 2, Method: verify.MethodCryptographicErase, Operator: "Prototypster"}},
		verify.Entry{Kind: verify.KindKeyDestroyed, SubjectRef: ref("ada"), Of: &of, Caller: caller,
			Erasure: &verify.Erasure{ID: "cert-1", Generation: 9, KEKVersion: 2, DeadBy: "2026-11-29T10:00:00.000Z"}},
		verify.Entry{Kind: verify.KindSubjectErased, SubjectRef: ref("bob"), Reason: "account-closed", DetailCommit: commit,
			Erasure: &verify.Erasure{ID: "cert-2", Method: verify.MethodCryptographicErase}},
		verify.Entry{Kind: verify.KindKeyEpoch, Keys: &verify.KeyChange{Scope: "kek", Job: "j1", Version: 3, Total: 4,
			Started: verify.FormatTime(epoch), Finished: verify.FormatTime(epoch.Add(20 * time.Second)), Evidence: f.evidence}},
	)
	for i := range entries {
		entries[i].ID, entries[i].Time = fmt.Sprintf("id-%d", i), verify.FormatTime(epoch.Add(time.Duration(i)*time.Second))
	}
	log := newLog(entries)
	if err := f.export("erasures", log, bundles); err != nil {
		return err
	}
	attested := func(index int64) erasure.Attested {
		hashes, err := tlog.ProveRecord(24, index, log)
		if err != nil {
			panic(err)
		}
		proof := verify.Proof{Index: index, Hashes: hashes, Checkpoint: f.sign(log.checkpoint(24))}
		return erasure.Attested{Index: index, Entry: string(log.entries[index]), Proof: string(proof.Marshal())}
	}
	last := attested(23)
	cert, err := erasure.New(attested(20), attested(21), nil)
	if err != nil {
		return err
	}
	final, err := erasure.New(attested(20), attested(21), &last)
	if err != nil {
		return err
	}
	named, other := cert, cert
	named.Subject, named.Salt = "3f0c3a1e-5b7e-4f0e-8a53-0b8f6f1d2c11", salt
	other.Reason = "unlawful"
	for name, c := range map[string]erasure.Certificate{"cert": cert, "final": final, "named": named, "other": other} {
		if err := f.write(name+".json", append(c.Encode(), '\n')); err != nil {
			return err
		}
	}
	return nil
}

// makeKeys makes the keys of a ledger and its witness, and puts the public ones into the environment beside
// those of strangers.
func makeKeys(env *testscript.Env) (f fixtures, err error) {
	f.dir = env.WorkDir
	skey, ledgerKey, err := note.GenerateKey(rand.Reader, origin)
	if err != nil {
		return f, err
	}
	if f.signer, err = note.NewSigner(skey); err != nil {
		return f, err
	}
	seed, witnessKey, err := verify.GenerateCosignerKey(rand.Reader, "witness.example.org/w1")
	if err != nil {
		return f, err
	}
	if f.cosigner, err = verify.NewCosigner("witness.example.org/w1", seed); err != nil {
		return f, err
	}
	_, otherKey, err := note.GenerateKey(rand.Reader, origin)
	if err != nil {
		return f, err
	}
	_, otherWitness, err := verify.GenerateCosignerKey(rand.Reader, "witness.example.org/w2")
	if err != nil {
		return f, err
	}
	f.ledgerKey = ledgerKey
	env.Setenv("LEDGER", ledgerKey)
	env.Setenv("WITNESS", witnessKey)
	env.Setenv("OTHER", otherKey)
	env.Setenv("OTHERWITNESS", otherWitness)
	for _, name := range []string{"OTHERSIDECAR", "SIDECAR"} {
		seed, key, err := verify.GenerateCosignerKey(rand.Reader, "main/witness/s1")
		if err != nil {
			return f, err
		}
		env.Setenv(name, key)
		signed, err := verify.SignEvidence(verify.KeyEvidence{
			Instance: "main", Sidecar: "s1", Job: "j1", Scope: "kek", Target: 3, Total: 4, Started: epoch, Finished: epoch.Add(20 * time.Second),
		}, key, func(msg []byte) ([]byte, error) { return ed25519.Sign(ed25519.NewKeyFromSeed(seed), msg), nil })
		if err != nil {
			return f, err
		}
		f.evidence = string(signed) // of SIDECAR, the last
	}
	return f, nil
}

func ref(who string) string {
	sum := sha256.Sum256([]byte(who))
	return verify.FormatRef(sum[:])
}

// tell returns n entries whose grounds hold, or all but one.
func tell(b *policy.Bundle, n int, unlawful bool) []verify.Entry {
	consent := verify.ConsentChange{
		ID: "c1", Purpose: "newsletter", Policy: 1, State: policy.ConsentGiven,
		Fields: []string{"profile.email", "profile.name"}, Recipients: []string{"shop"}, SeparateDocument: true,
	}
	base := verify.Entry{
		Kind: verify.KindAccess, Collection: "profile", Fields: []string{"email"}, Mode: verify.ModeReveal, Policy: 1,
		Decision: verify.Allow, Sidecar: "s1", Caller: &verify.Caller{ID: "shop", Kind: "service", Role: "service", Authn: "token"},
		Recipient: &verify.Recipient{ID: b.Operator().ID, Role: policy.RecipientController, Jurisdiction: b.Operator().Jurisdiction},
	}
	read, own := base, base
	read.SubjectRef, read.Purpose, read.Ground, read.Rules = ref("ada"), "newsletter", verify.GroundConsent, []string{"ground-1-consent"}
	read.Evidence = &verify.Evidence{Type: verify.EvidenceConsent, ID: "c1", Entry: 1}
	own.SubjectRef, own.Purpose, own.Ground, own.Rules = ref("bob"), "support", verify.GroundService, []string{"ground-2-service"}
	own.Evidence = &verify.Evidence{Type: verify.EvidencePurpose, ID: "support"}
	entries := []verify.Entry{
		{Kind: verify.KindPolicyPublished, Bundle: &verify.BundleChange{Version: 1, SHA256: b.SHA256(), TextSHA256: b.TextSHA256()}},
		{Kind: verify.KindConsentGiven, SubjectRef: ref("ada"), Consent: &consent},
		read,
	}
	for len(entries) < n {
		entries = append(entries, own)
	}
	if unlawful {
		gone := consent
		gone.State = "ConsentWithdrawn"
		entries[270] = verify.Entry{Kind: verify.KindConsentWithdrawn, SubjectRef: ref("ada"), Consent: &gone}
		entries[280] = read
	}
	for i := range entries {
		entries[i].ID = fmt.Sprintf("id-%d", i)
		entries[i].Time = verify.FormatTime(epoch.Add(time.Duration(i) * time.Second))
	}
	return entries
}

// refLog is a log kept by the tlog package alone.
type refLog struct {
	entries [][]byte
	hashes  []tlog.Hash
}

func newLog(entries []verify.Entry) *refLog {
	l := &refLog{}
	for i, e := range entries {
		b, err := verify.Encode(e)
		if err != nil {
			panic(err)
		}
		hs, err := tlog.StoredHashes(int64(i), b, l)
		if err != nil {
			panic(err)
		}
		l.entries, l.hashes = append(l.entries, b), append(l.hashes, hs...)
	}
	return l
}

func (l *refLog) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, x := range indexes {
		out[i] = l.hashes[x]
	}
	return out, nil
}

func (l *refLog) checkpoint(size int64) verify.Checkpoint {
	root, err := tlog.TreeHash(size, l)
	if err != nil {
		panic(err)
	}
	return verify.Checkpoint{Origin: origin, Size: size, Root: root}
}

type fixtures struct {
	dir       string
	ledgerKey string
	signer    note.Signer
	cosigner  *verify.Cosigner
	evidence  string // of the epoch
}

func (f fixtures) sign(cp verify.Checkpoint) []byte {
	signed, err := note.Sign(&note.Note{Text: string(cp.Format())}, f.signer, f.cosigner.At(epoch))
	if err != nil {
		panic(err)
	}
	return signed
}

func (f fixtures) write(name string, data []byte) error {
	path := filepath.Join(f.dir, filepath.FromSlash(name))
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o644)
}

func (f fixtures) export(name string, l *refLog, bundles map[int64][]byte) error {
	size := int64(len(l.entries))
	if err := f.write(name+"/"+verify.CheckpointPath, f.sign(l.checkpoint(size))); err != nil {
		return err
	}
	for version, raw := range bundles {
		if err := f.write(name+"/"+verify.BundlePath(version), raw); err != nil {
			return err
		}
	}
	for tile := range verify.TilesOf(size) {
		var data []byte
		for i := range tile.Width {
			n := tile.N*verify.TileWidth + int64(i)
			if tile.Level != verify.EntriesLevel {
				h := l.hashes[tlog.StoredHashIndex(tile.Level*verify.TileHeight, n)]
				data = append(data, h[:]...)
				continue
			}
			var err error
			if data, err = verify.AppendBundle(data, l.entries[n]); err != nil {
				return err
			}
		}
		if err := f.write(name+"/"+tile.Path(), data); err != nil {
			return err
		}
	}
	return nil
}

// TestExitCodes: a failed verification and a wrong call can be told apart without reading the output.
func TestExitCodes(t *testing.T) {
	env := &testscript.Env{WorkDir: t.TempDir()}
	if err := writeFixtures(env); err != nil {
		t.Fatal(err)
	}
	t.Chdir(env.WorkDir)
	for _, c := range []struct {
		want int
		args []string
	}{
		{exitOK, []string{"verify", "ledger", "log", "--ledger-key", "ledger.key"}},
		{exitOK, []string{"version"}},
		{exitOK, []string{"verify", "--help"}},
		{exitFailed, []string{"verify", "ledger", "unlawful", "--ledger-key", "ledger.key"}},
		{exitFailed, []string{"verify", "proof", "2.json", "--entry", "2.json", "--ledger-key", "ledger.key"}},
		{exitFailed, []string{"verify", "subject", ref("ada"), "unlawful", "--ledger-key", "ledger.key", "--json"}},
		{exitOK, []string{"verify", "erasure", "cert.json", "--ledger-key", "ledger.key"}},
		{exitOK, []string{"verify-erasure", "cert.json", "--ledger-key", "ledger.key"}},
		{exitOK, []string{"act", "cert.json"}},
		{exitFailed, []string{"verify", "erasure", "other.json", "--ledger-key", "ledger.key"}},
		{exitFailed, []string{"act", "other.json"}},
		{exitUsage, []string{"verify", "erasure", "cert.json"}},
		{exitUsage, []string{"act", "nowhere"}},
		{exitUsage, []string{"verify", "ledger", "log"}},
		{exitUsage, []string{"verify", "ledger", "nowhere", "--ledger-key", "ledger.key"}},
		{exitUsage, []string{"verify", "ledger", "log", "--ledger-key", "ledger.key", "--no-such-flag"}},
		{exitUsage, []string{"nothing"}},
		{exitUsage, nil},
	} {
		if got := run(t.Context(), c.args, io.Discard, io.Discard); got != c.want {
			t.Errorf("%v: exit code %d, want %d", c.args, got, c.want)
		}
	}
}
