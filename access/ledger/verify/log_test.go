package verify_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"pgregory.net/rapid"

	"github.com/prototypster/pdvault/access/ledger/verify"
)

// busy returns a story of n entries, most of them reads, all in order.
func busy(t testing.TB, n int) *story {
	s := newStory(t)
	pol := s.add(policyEntry(1))
	given := s.add(consentEntry(verify.KindConsentGiven, "ada", "c1"))
	for len(s.entries) < n {
		switch len(s.entries) % 5 {
		case 0:
			s.add(accessEntry("ada", verify.GroundConsent, verify.Evidence{Type: verify.EvidenceConsent, ID: "c1", Entry: given}))
		case 1:
			of := s.add(accessEntry("bob", verify.GroundService, verify.Evidence{Type: verify.EvidencePurpose, ID: "order-fulfilment", Entry: pol}))
			if len(s.entries) < n {
				s.add(verify.Entry{Kind: verify.KindAccessFailed, Of: &of, Reason: "sealed"})
			}
		default:
			s.add(accessEntry("bob", verify.GroundService, verify.Evidence{Type: verify.EvidencePurpose, ID: "order-fulfilment", Entry: pol}))
		}
	}
	return s
}

func TestVerifyLogAccepts(t *testing.T) {
	k := newKeys(t)
	for _, size := range []int{2, 3, 255, 256, 257, 511, 512, 513, 1000} {
		log := busy(t, size).log()
		dir := log.export(t, k)
		dir[verify.BundlePath(1)] = &fstest.MapFile{Data: bundleBytes(1)}
		var visited int64
		for _, from := range []int64{0, 1, int64(size) / 2, int64(size)} {
			visited = 0
			r := check(t, dir, verify.LogCheck{
				Ledger: k.ledger, Earlier: k.sign(t, log.checkpoint(t, from)), Policies: coversAll{},
				Visit: func(i int64, raw []byte, e verify.Entry) error {
					if i != visited || !bytes.Equal(raw, log.entries[i]) {
						t.Fatalf("visited %d at %d", i, visited)
					}
					visited++
					return nil
				},
			})
			if !r.OK() || r.Entries != int64(size) || visited != int64(size) || r.Policies != 1 {
				t.Fatalf("size %d from %d: %s, %d entries", size, from, codes(r), r.Entries)
			}
			a := r.Access
			if a.Rechecked != a.Allowed || a.Failed != r.Kinds[verify.KindAccessFailed] {
				t.Fatalf("size %d: %+v", size, a)
			}
		}
	}
	empty := &reference{}
	if r := check(t, empty.export(t, k), verify.LogCheck{Ledger: k.ledger}); !r.OK() {
		t.Fatal("empty log:", codes(r))
	}
}

type coversAll struct{}

func (coversAll) Covers(int64, verify.Entry, verify.Given) error { return nil }

func TestVerifyLogTakesFullTilesForPartialOnes(t *testing.T) {
	k := newKeys(t)
	log := busy(t, 300).log()
	grown, dir := log.export(t, k), fstest.MapFS{}
	short := &reference{entries: log.entries[:200], hashes: log.hashes}
	for name, f := range short.export(t, k) {
		if !strings.Contains(name, ".p/") {
			dir[name] = f
		}
	}
	dir["tile/0/000"], dir["tile/entries/000"] = grown["tile/0/000"], grown["tile/entries/000"]
	r := check(t, dir, verify.LogCheck{Ledger: k.ledger})
	if !r.OK() || r.Entries != 200 {
		t.Fatal(codes(r))
	}
}

// rebuild gives a log of other entries whose tiles fit them.
func rebuild(t testing.TB, k keys, entries [][]byte) fstest.MapFS {
	r := &reference{}
	for _, e := range entries {
		r.add(t, e)
	}
	return r.export(t, k)
}

func TestVerifyLogFindsEveryMutation(t *testing.T) {
	k := newKeys(t)
	const size = 700
	log := busy(t, size).log()
	good := log.export(t, k)
	const kept = 400
	earlier := k.sign(t, log.checkpoint(t, kept))
	names := slices.Sorted(maps.Keys(good))
	editEntry := func(i int) [][]byte {
		entries := slices.Clone(log.entries)
		entries[i] = bytes.Replace(entries[i], []byte(`"id":"id-`), []byte(`"id":"ix-`), 1)
		return entries
	}
	fails := func(t *rapid.T, dir fstest.MapFS, at int64, exact bool) {
		r, err := verify.VerifyLog(context.Background(), dir, verify.LogCheck{Ledger: k.ledger, Earlier: earlier})
		if err != nil {
			t.Fatal(err)
		}
		if r.OK() {
			t.Fatal("not found")
		}
		if p := r.Problems[0]; exact && p.Index != at || p.Index > at {
			t.Fatalf("found at %d (%s: %s), not at %d", p.Index, p.Code, p.Detail, at)
		}
	}

	rapid.Check(t, func(t *rapid.T) {
		dir := clone(good)
		at := rapid.IntRange(0, size-1).Draw(t, "at")
		bundle := func(entries [][]byte) { // entries changed, tiles not
			for name, f := range rebuild(log2tb(t), k, entries) {
				if strings.HasPrefix(name, "tile/entries/") {
					dir[name] = f
				}
			}
		}
		switch op := rapid.IntRange(0, 9).Draw(t, "op"); op {
		case 0: // an entry is edited
			bundle(editEntry(at))
			fails(t, dir, int64(at), true)
		case 1: // an entry is deleted, later ones move up
			entries := slices.Delete(slices.Clone(log.entries), at, at+1)
			bundle(append(entries, log.entries[0]))
			fails(t, dir, int64(at), true)
		case 2: // two entries are exchanged
			other := rapid.IntRange(0, size-1).Filter(func(o int) bool { return o != at }).Draw(t, "other")
			entries := slices.Clone(log.entries)
			entries[at], entries[other] = entries[other], entries[at]
			bundle(entries)
			fails(t, dir, int64(min(at, other)), true)
		case 3: // any byte of any file is changed
			name := rapid.SampledFrom(names).Draw(t, "file")
			data := dir[name].Data
			data[rapid.IntRange(0, len(data)-1).Draw(t, "byte")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
			fails(t, dir, size, false)
		case 4: // a file is cut short
			name := rapid.SampledFrom(names).Draw(t, "file")
			dir[name].Data = dir[name].Data[:rapid.IntRange(0, len(dir[name].Data)-1).Draw(t, "length")]
			fails(t, dir, size, false)
		case 5: // a file is missing
			delete(dir, rapid.SampledFrom(names).Draw(t, "file"))
			fails(t, dir, size, false)
		case 6: // the whole log is rewritten and signed again, by whoever holds the ledger key
			at = rapid.IntRange(0, kept-1).Draw(t, "before")
			fails(t, rebuild(log2tb(t), k, editEntry(at)), int64(kept), false)
		case 7: // the tail is cut off and what is left is signed again
			n := rapid.IntRange(0, kept-1).Draw(t, "left")
			fails(t, rebuild(log2tb(t), k, log.entries[:n]), int64(n), true)
		case 8: // the log is rewritten but the checkpoint is the old one
			dir = rebuild(log2tb(t), k, editEntry(at))
			dir[verify.CheckpointPath] = good[verify.CheckpointPath]
			fails(t, dir, int64(max(at, kept)), false)
		case 9: // a file has something added
			name := rapid.SampledFrom(names).Draw(t, "file")
			dir[name].Data = append(dir[name].Data, rapid.SliceOfN(rapid.Byte(), 1, 40).Draw(t, "more")...)
			fails(t, dir, size, false)
		}
	})
}

// log2tb lets helpers that want a testing.TB fail a rapid check.
func log2tb(t *rapid.T) testing.TB { return rapidTB{TB: nil, t: t} }

type rapidTB struct {
	testing.TB
	t *rapid.T
}

func (r rapidTB) Helper()           {}
func (r rapidTB) Fatal(args ...any) { r.t.Fatal(args...) }

func TestVerifyLogChecksTimes(t *testing.T) {
	k := newKeys(t)
	s := busy(t, 20)
	s.entries[12].Time = verify.FormatTime(epoch)
	if r := check(t, s.log().export(t, k), verify.LogCheck{Ledger: k.ledger}); codes(r) != "12:time " {
		t.Fatal(codes(r))
	}
	s = busy(t, 20)
	s.entries[12].Time = "yesterday"
	if r := check(t, s.log().export(t, k), verify.LogCheck{Ledger: k.ledger}); codes(r) != "12:entry " {
		t.Fatal(codes(r))
	}
}

func TestVerifyLogQuorum(t *testing.T) {
	k := newKeys(t)
	log := busy(t, 20).log()
	dir := log.export(t, k)
	c := verify.LogCheck{Ledger: k.ledger, Quorum: 1}
	c.Witnesses = append(c.Witnesses, k.witness)
	if r := check(t, dir, c); codes(r) != "-1:quorum " {
		t.Fatal(codes(r))
	}
	line, err := k.cosigner.Line(log.checkpoint(t, 20), epoch)
	must(t, err)
	dir[verify.CheckpointPath].Data = append(dir[verify.CheckpointPath].Data, line...)
	if r := check(t, dir, c); !r.OK() || len(r.Cosignatures) != 1 {
		t.Fatal(codes(r))
	}
	c.Ledger = newKeys(t).ledger
	if r := check(t, dir, c); codes(r) != "-1:checkpoint " {
		t.Fatal(codes(r))
	}
	c.Ledger = nil
	if _, err := verify.VerifyLog(t.Context(), dir, c); err == nil {
		t.Fatal("no key")
	}
	c.Ledger = k.ledger
	stop := errors.New("stop")
	c.Visit = func(i int64, _ []byte, _ verify.Entry) error {
		if i == 7 {
			return stop
		}
		return nil
	}
	_, err = verify.VerifyLog(t.Context(), dir, c)
	wantErr(t, err, stop)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = verify.VerifyLog(ctx, dir, verify.LogCheck{Ledger: k.ledger})
	wantErr(t, err, context.Canceled)
}

type coversFields []string

func (c coversFields) Covers(version int64, e verify.Entry, g verify.Given) error {
	if (e.Ground == verify.GroundConsent) != (g.Consent != nil) || g.Published != version-1 {
		return fmt.Errorf("given %+v", g)
	}
	for _, f := range e.Fields {
		if !slices.Contains(c, f) {
			return fmt.Errorf("field %q", f)
		}
	}
	return nil
}

func TestReplay(t *testing.T) {
	k := newKeys(t)
	consent := func(entry int64) verify.Evidence {
		return verify.Evidence{Type: verify.EvidenceConsent, ID: "c1", Entry: entry}
	}
	service := verify.Evidence{Type: verify.EvidencePurpose, ID: "order-fulfilment", Entry: 0}
	read := func(s *story, change func(*verify.Entry)) {
		e := accessEntry("ada", verify.GroundConsent, consent(1))
		change(&e)
		s.add(e)
	}
	index := func(i int64) *int64 { return &i }

	for name, c := range map[string]struct {
		tell func(*story) // after 0: policy 1; 1: consent c1 of ada
		want string
	}{
		"all is well": {func(s *story) {
			read(s, func(*verify.Entry) {})
			s.add(accessEntry("bob", verify.GroundService, service))
			s.add(verify.Entry{Kind: verify.KindAccess, Decision: verify.Deny, Reason: "no-ground"})
		}, ""},
		"consent of another": {func(s *story) { read(s, func(e *verify.Entry) { e.SubjectRef = ref("bob") }) }, "2:evidence "},
		"another consent":    {func(s *story) { read(s, func(e *verify.Entry) { e.Evidence.ID = "c2" }) }, "2:evidence "},
		"no consent":         {func(s *story) { read(s, func(e *verify.Entry) { e.Evidence.Entry = 0 }) }, "2:evidence "},
		"later consent":      {func(s *story) { read(s, func(e *verify.Entry) { e.Evidence.Entry = 2 }) }, "2:evidence "},
		"negative entry":     {func(s *story) { read(s, func(e *verify.Entry) { e.Evidence.Entry = -1 }) }, "2:evidence "},
		"no evidence":        {func(s *story) { read(s, func(e *verify.Entry) { e.Evidence = nil }) }, "2:evidence "},
		"other type":         {func(s *story) { read(s, func(e *verify.Entry) { e.Evidence.Type = "order" }) }, "2:evidence "},
		"other purpose":      {func(s *story) { read(s, func(e *verify.Entry) { e.Purpose = "sale" }) }, "2:consent "},
		"other field":        {func(s *story) { read(s, func(e *verify.Entry) { e.Fields = []string{"phone"} }) }, "2:consent "},
		"no fields":          {func(s *story) { read(s, func(e *verify.Entry) { e.Fields = nil }) }, "2:consent "},
		"other recipient":    {func(s *story) { read(s, func(e *verify.Entry) { e.Caller.ID = "shop" }) }, "2:consent "},
		"no caller":          {func(s *story) { read(s, func(e *verify.Entry) { e.Caller = nil }) }, "2:consent "},
		"withdrawn": {func(s *story) {
			s.add(consentEntry(verify.KindConsentWithdrawn, "ada", "c1"))
			read(s, func(*verify.Entry) {})
		}, "3:consent-withdrawn "},
		"withdrawn by another": {func(s *story) {
			s.add(consentEntry(verify.KindConsentWithdrawn, "bob", "c1"))
			read(s, func(*verify.Entry) {})
		}, ""},
		"withdrawn afterwards": {func(s *story) {
			read(s, func(*verify.Entry) {})
			s.add(consentEntry(verify.KindConsentWithdrawn, "ada", "c1"))
		}, ""},
		"given again": {func(s *story) {
			s.add(consentEntry(verify.KindConsentWithdrawn, "ada", "c1"))
			s.add(consentEntry(verify.KindConsentGiven, "ada", "c1"))
			read(s, func(e *verify.Entry) { e.Evidence = &verify.Evidence{Type: verify.EvidenceConsent, ID: "c1", Entry: 3} })
			read(s, func(*verify.Entry) {})
		}, "5:consent-withdrawn 5:consent-invalidated "},
		"renewed": {func(s *story) {
			again := consentEntry(verify.KindConsentGiven, "ada", "c2")
			again.Consent.State = "RenewedConsentGiven"
			at := s.add(again)
			read(s, func(e *verify.Entry) {
				e.Evidence = &verify.Evidence{Type: verify.EvidenceConsent, ID: "c2", Entry: at}
			})
			read(s, func(*verify.Entry) {})
		}, "4:consent-invalidated "},
		"given for another purpose, or by another": {func(s *story) {
			offers := consentEntry(verify.KindConsentGiven, "ada", "c2")
			offers.Consent.Purpose = "special-offers"
			s.add(offers)
			s.add(consentEntry(verify.KindConsentGiven, "bob", "c3"))
			read(s, func(*verify.Entry) {})
		}, ""},
		"the renewed one was withdrawn": {func(s *story) {
			s.add(consentEntry(verify.KindConsentGiven, "ada", "c2"))
			s.add(consentEntry(verify.KindConsentWithdrawn, "ada", "c2"))
			read(s, func(*verify.Entry) {})
		}, "4:consent-withdrawn 4:consent-invalidated "},
		"a withdrawal of the replaced one ends its successor": {func(s *story) {
			s.add(consentEntry(verify.KindConsentGiven, "ada", "c2"))
			s.add(consentEntry(verify.KindConsentWithdrawn, "ada", "c1"))
			read(s, func(*verify.Entry) {})
		}, "4:consent-withdrawn 4:consent-invalidated "},
		"a field of another collection": {func(s *story) {
			read(s, func(e *verify.Entry) { e.Collection = "passport" })
		}, "2:consent "},
		"a lookup that found nobody": {func(s *story) {
			e := accessEntry("ada", verify.GroundService, service)
			e.SubjectRef, e.Mode = "", verify.ModeLookup
			s.add(e)
		}, ""},
		"a read of nobody": {func(s *story) {
			e := accessEntry("ada", verify.GroundService, service)
			e.SubjectRef = ""
			s.add(e)
		}, "2:entry-members-absent "},
		"expired": {func(s *story) {
			e := consentEntry(verify.KindConsentGiven, "ada", "c2")
			end := s.now.Add(time.Second)
			e.Consent.NotAfter = verify.FormatTime(end)
			ev := &verify.Evidence{Type: verify.EvidenceConsent, ID: "c2", Entry: s.add(e)}
			s.now = end.Add(-2 * time.Millisecond) // add moves on by one
			read(s, func(e *verify.Entry) { e.Evidence = ev })
			read(s, func(e *verify.Entry) { e.Evidence = ev })
			read(s, func(e *verify.Entry) { e.Evidence = ev })
		}, "4:consent-expired 5:consent-expired "},
		"unreadable end": {func(s *story) {
			e := consentEntry(verify.KindConsentGiven, "ada", "c2")
			e.Consent.NotAfter = "some day"
			given := s.add(e)
			read(s, func(e *verify.Entry) {
				e.Evidence = &verify.Evidence{Type: verify.EvidenceConsent, ID: "c2", Entry: given}
			})
		}, "2:entry-members-absent 3:evidence "},
		"nobody named": {func(s *story) {
			e := consentEntry(verify.KindConsentGiven, "ada", "c2")
			e.Consent.Recipients = nil
			ev := &verify.Evidence{Type: verify.EvidenceConsent, ID: "c2", Entry: s.add(e)}
			read(s, func(e *verify.Entry) { e.Evidence = ev })
		}, "3:consent "},
		"not a separate document": {func(s *story) {
			e := consentEntry(verify.KindConsentGiven, "ada", "c2")
			e.Consent.SeparateDocument = false
			ev := &verify.Evidence{Type: verify.EvidenceConsent, ID: "c2", Entry: s.add(e)}
			read(s, func(e *verify.Entry) { e.Evidence = ev })
		}, "3:consent "},
		"not in force": {func(s *story) {
			s.add(policyEntry(2))
			read(s, func(*verify.Entry) {})
		}, "3:policy-version "},
		"service by an old policy": {func(s *story) {
			s.add(policyEntry(2))
			e := accessEntry("ada", verify.GroundService, service)
			e.Policy = 2
			s.add(e)
		}, "3:evidence "},
		"service by no policy": {func(s *story) {
			e := accessEntry("ada", verify.GroundService, service)
			e.Evidence.Entry = 1
			s.add(e)
		}, "2:evidence "},
		"not covered": {func(s *story) {
			e := accessEntry("ada", verify.GroundService, service)
			e.Fields = []string{"passport"}
			s.add(e)
		}, "2:policy-not-covered "},
		"policies out of order": {func(s *story) { s.add(policyEntry(1)) }, "2:policy-order "},
		"policy without bundle": {func(s *story) { s.add(verify.Entry{Kind: verify.KindPolicyPublished}) }, "2:entry-members-absent "},
		"consent without members": {func(s *story) {
			s.add(verify.Entry{Kind: verify.KindConsentGiven, SubjectRef: ref("ada")})
		}, "2:entry-members-absent "},
		"law without evidence": {func(s *story) { s.add(accessEntry("ada", verify.GroundLaw, service)) }, "2:evidence "},
		"law by a request": {func(s *story) {
			at := s.add(verify.Entry{Kind: "right.requested", SubjectRef: ref("ada")})
			ev := verify.Evidence{Type: "rights_request", ID: "r", Entry: at}
			s.add(accessEntry("ada", verify.GroundLaw, ev))
			s.add(accessEntry("bob", verify.GroundLaw, ev))
		}, "4:evidence "},
		"unknown ground":   {func(s *story) { s.add(accessEntry("ada", "interest", service)) }, "2:ground "},
		"unknown decision": {func(s *story) { s.add(verify.Entry{Kind: verify.KindAccess, Decision: "maybe"}) }, "2:decision "},
		"erased": {func(s *story) {
			s.add(erasedEntry("ada", "x"))
			s.add(accessEntry("ada", verify.GroundService, service))
			s.add(accessEntry("bob", verify.GroundService, service))
			s.add(verify.Entry{Kind: verify.KindRecordWritten, SubjectRef: ref("ada")})
			s.add(verify.Entry{Kind: verify.KindSubjectCreated, SubjectRef: ref("ada")})
			s.add(consentEntry(verify.KindConsentGiven, "ada", "c2"))
			s.add(verify.Entry{Kind: verify.KindRestrictionSet, SubjectRef: ref("ada")})
			s.add(verify.Entry{Kind: verify.KindRecordResealed, Resealed: []verify.Resealed{{SubjectRef: ref("bob")}, {SubjectRef: ref("ada")}}})
			s.add(verify.Entry{Kind: verify.KindAccess, SubjectRef: ref("ada"), Decision: verify.Deny})
		}, "3:subject-erased 5:subject-erased 6:subject-erased 7:subject-erased 8:subject-erased 9:subject-erased "},
		"erased and destroyed": {func(s *story) {
			s.add(accessEntry("ada", verify.GroundService, service))
			ada, bob := s.add(erasedEntry("ada", "x")), s.add(erasedEntry("bob", "y"))
			s.add(destroyedEntry("bob", "y", bob))
			s.add(destroyedEntry("ada", "x", ada))
			s.add(erasedEntry("eve", "z")) // pending, which is no problem
		}, ""},
		"erased twice": {func(s *story) {
			s.add(erasedEntry("ada", "x"))
			s.add(erasedEntry("ada", "y"))
		}, "3:erased-twice "},
		"erased without members": {func(s *story) {
			s.add(but(erasedEntry("a", "x"), func(e *verify.Entry) { e.SubjectRef = "" }))
			s.add(but(erasedEntry("b", "x"), func(e *verify.Entry) { e.Erasure = nil }))
			s.add(but(erasedEntry("c", "x"), func(e *verify.Entry) { e.Reason = "" }))
			s.add(erasedEntry("d", ""))
		}, "2:entry-members-absent 3:entry-members-absent 4:entry-members-absent 5:entry-members-absent "},
		"destroyed without erasure": {func(s *story) {
			s.add(destroyedEntry("ada", "x", 1))
			s.add(destroyedEntry("ada", "x", 4)) // which is yet to come
			at := s.add(erasedEntry("ada", "x"))
			s.add(destroyedEntry("bob", "x", at))
			s.add(destroyedEntry("ada", "y", at))
			s.add(destroyedEntry("ada", "x", -1))
		}, "2:destroyed-no-erasure 3:destroyed-no-erasure 5:destroyed-no-erasure 6:destroyed-no-erasure 7:destroyed-no-erasure "},
		"destroyed twice": {func(s *story) {
			at := s.add(erasedEntry("ada", "x"))
			s.add(destroyedEntry("ada", "x", at))
			s.add(destroyedEntry("ada", "x", at))
		}, "4:destroyed-twice "},
		"destroyed without members": {func(s *story) {
			at := s.add(erasedEntry("ada", "x"))
			s.add(but(destroyedEntry("ada", "x", at), func(e *verify.Entry) { e.Of = nil }))
			s.add(but(destroyedEntry("ada", "x", at), func(e *verify.Entry) { e.Erasure = nil }))
			s.add(but(destroyedEntry("ada", "x", at), func(e *verify.Entry) { e.SubjectRef = "" }))
			s.add(but(destroyedEntry("ada", "x", at), func(e *verify.Entry) { e.Erasure.DeadBy = "soon" }))
		}, "3:entry-members-absent 4:entry-members-absent 5:entry-members-absent 6:entry-members-absent "},
		"rotations": {func(s *story) {
			s.add(epochEntry("j1", 2))
			s.add(rotatedEntry("index", "j2", "backfill", 2))
			s.add(rotatedEntry("index", "j2", "switch", 2))
			s.add(rotatedEntry("index", "j2", "", 2))
			s.add(rotatedEntry("subject", "j3", "", 4))
			s.add(rotatedEntry("all-subjects", "j4", "", 5))
			s.add(rotatedEntry("subject", "j5", "", 6))
			s.add(rotatedEntry("ledger", "j6", "", 0))
			s.add(epochEntry("j7", 3))
			s.add(but(rotatedEntry("index", "j8", "backfill", 3), func(e *verify.Entry) { e.Keys.Left = 9 }))
		}, ""},
		"an epoch goes back": {func(s *story) {
			s.add(epochEntry("j1", 3))
			s.add(epochEntry("j2", 2))
			s.add(epochEntry("j3", 3))
		}, "3:keys-order 4:keys-order "},
		"an epoch leaves something": {func(s *story) {
			s.add(but(epochEntry("j1", 2), func(e *verify.Entry) { e.Keys.Left = 1 }))
		}, "2:keys-left "},
		"a rotation leaves something": {func(s *story) {
			s.add(but(rotatedEntry("index", "j1", "", 2), func(e *verify.Entry) { e.Keys.Left = 1 }))
		}, "2:keys-left "},
		"rotations without members": {func(s *story) {
			s.add(verify.Entry{Kind: verify.KindKeyEpoch})
			s.add(verify.Entry{Kind: verify.KindKeyRotated, Keys: &verify.KeyChange{Scope: "index"}})
			s.add(rotatedEntry("", "j", "", 2))
			s.add(but(epochEntry("j", 2), func(e *verify.Entry) { e.Keys.Scope = "index" }))
			s.add(epochEntry("j", 0))
			s.add(but(epochEntry("j", 2), func(e *verify.Entry) { e.Keys.Finished = "now" }))
			s.add(verify.Entry{Kind: verify.KindRecordResealed})
			s.add(verify.Entry{Kind: verify.KindRecordResealed, Resealed: []verify.Resealed{{SubjectRef: "ada"}}})
		}, "2:entry-members-absent 3:entry-members-absent 4:entry-members-absent 5:entry-members-absent 6:entry-members-absent 7:entry-members-absent 8:entry-members-absent 9:entry-members-absent "},
		"restored": {func(s *story) {
			s.add(verify.Entry{Kind: verify.KindLedgerRestored, Restored: &verify.Restored{Backup: "b", Size: 2, Lost: 9}})
			s.add(verify.Entry{Kind: verify.KindLedgerRestored, Restored: &verify.Restored{Backup: "b", Size: 2, Lost: 9}})
			s.add(verify.Entry{Kind: verify.KindLedgerRestored})
		}, "3:entry-members-absent 4:entry-members-absent "},
		"restricted": {func(s *story) {
			s.add(verify.Entry{Kind: verify.KindRestrictionSet, SubjectRef: ref("ada")})
			s.add(accessEntry("ada", verify.GroundService, service))
			s.add(verify.Entry{Kind: verify.KindRestrictionLift, SubjectRef: ref("ada")})
			s.add(accessEntry("ada", verify.GroundService, service))
		}, "3:subject-restricted "},
		"failed without a read": {func(s *story) {
			s.add(verify.Entry{Kind: verify.KindAccessFailed, Of: index(1)})
			s.add(verify.Entry{Kind: verify.KindAccessFailed})
			s.add(verify.Entry{Kind: verify.KindAccessFailed, Of: index(9)})
			s.add(verify.Entry{Kind: verify.KindAccessFailed, Of: index(-1)})
		}, "2:failed-without-read 3:failed-without-read 4:failed-without-read 5:failed-without-read "},
		"failed twice": {func(s *story) {
			read(s, func(*verify.Entry) {})
			s.add(verify.Entry{Kind: verify.KindAccessFailed, Of: index(2)})
			s.add(verify.Entry{Kind: verify.KindAccessFailed, Of: index(2)})
		}, "4:failed-twice "},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStory(t)
			s.add(policyEntry(1))
			s.add(consentEntry(verify.KindConsentGiven, "ada", "c1"))
			c.tell(s)
			r := check(t, s.log().export(t, k), verify.LogCheck{Ledger: k.ledger, Policies: coversFields{"email", "name"}})
			if codes(r) != c.want {
				t.Errorf("problems %q, want %q", codes(r), c.want)
			}
		})
	}
}

func TestReplayCountsErasuresAndRotations(t *testing.T) {
	k, s := newKeys(t), newStory(t)
	ada := s.add(erasedEntry("ada", "x"))
	s.add(erasedEntry("bob", "y"))
	s.add(destroyedEntry("ada", "x", ada))
	s.add(epochEntry("j1", 4))
	s.add(rotatedEntry("index", "j2", "backfill", 2))
	s.add(verify.Entry{Kind: verify.KindRecordResealed, Resealed: []verify.Resealed{{SubjectRef: ref("eve")}, {SubjectRef: ref("dan")}}})
	s.add(rotatedEntry("index", "j2", "", 2))
	r := check(t, s.log().export(t, k), verify.LogCheck{Ledger: k.ledger})
	erasures, keys := verify.ErasureCounts{Erased: 2, Destroyed: 1, Pending: 1}, verify.KeyCounts{Epochs: 1, Rotations: 1, Resealed: 2}
	if !r.OK() || r.Erasures != erasures || r.Keys != keys {
		t.Errorf("%s%+v %+v", codes(r), r.Erasures, r.Keys)
	}
}

func TestReplayWithoutPolicies(t *testing.T) {
	k := newKeys(t)
	dir := busy(t, 50).log().export(t, k)
	r := check(t, dir, verify.LogCheck{Ledger: k.ledger})
	if !r.OK() || r.Access.Partly == 0 || r.Access.Partly != r.Access.Allowed || !slices.Equal(r.Absent, []int64{1}) {
		t.Fatalf("%s %+v", codes(r), r.Access)
	}
	r = check(t, dir, verify.LogCheck{Ledger: k.ledger, Policies: coversNone{verify.ErrNoBundle}})
	if !r.OK() || r.Access.Partly != r.Access.Allowed {
		t.Fatalf("%s %+v", codes(r), r.Access)
	}
	// A bundle that is not the published one is not asked.
	dir[verify.BundlePath(1)] = &fstest.MapFile{Data: []byte("{}")}
	r = check(t, dir, verify.LogCheck{Ledger: k.ledger, Policies: coversNone{errors.New("asked")}})
	if codes(r) != "0:policy-bundle " || r.Access.Partly != r.Access.Allowed || r.Policies != 0 {
		t.Fatalf("%s %+v", codes(r), r.Access)
	}
}

type coversNone struct{ err error }

func (c coversNone) Covers(int64, verify.Entry, verify.Given) error { return c.err }

func TestReplayCounts(t *testing.T) {
	k := newKeys(t)
	s := busy(t, 20)
	s.add(verify.Entry{Kind: verify.KindAccess, Decision: verify.Deny, Ground: verify.GroundConsent, Reason: "consent-missing"})
	s.add(verify.Entry{Kind: verify.KindAccess, Decision: verify.Deny, Reason: "unknown-purpose"})
	s.add(accessEntry("ada", verify.GroundConsent, verify.Evidence{Type: verify.EvidenceConsent, ID: "c9", Entry: 1}))
	a := check(t, s.log().export(t, k), verify.LogCheck{Ledger: k.ledger, Policies: coversAll{}}).Access
	sum := verify.GroundCounts{}
	for _, g := range a.Grounds {
		sum.Allowed += g.Allowed
		sum.Denied += g.Denied
		sum.Rechecked += g.Rechecked
		sum.Refuted += g.Refuted
	}
	if a.Allowed != a.Rechecked+a.Partly+a.Refuted || a.Refuted != 1 || a.Denied != 2 || a.Failures["sealed"] != a.Failed ||
		sum != (verify.GroundCounts{Allowed: a.Allowed, Denied: 2, Rechecked: a.Rechecked, Refuted: 1}) ||
		a.Grounds[verify.GroundConsent].Refuted != 1 || a.Grounds[""].Denied != 1 || a.Denials["consent-missing"] != 1 {
		t.Fatalf("%+v", a)
	}
}

func BenchmarkVerifyLog(b *testing.B) {
	k := newKeys(b)
	const size = 20000
	dir := busy(b, size).log().export(b, k)
	b.ResetTimer()
	for b.Loop() {
		if r := check(b, dir, verify.LogCheck{Ledger: k.ledger}); !r.OK() {
			b.Fatal(codes(r))
		}
	}
	b.ReportMetric(float64(size)*float64(b.N)/b.Elapsed().Seconds(), "entries/s")
}

// What is known without a signature is compared like an earlier checkpoint, also when the log has been restored since.
func TestVerifyLogComparesWithWhatIsKnown(t *testing.T) {
	k := newKeys(t)
	log := busy(t, 300).log()
	dir := log.export(t, k)
	for _, size := range []int64{0, 1, 200, 300} {
		known := log.checkpoint(t, size)
		if r := check(t, dir, verify.LogCheck{Ledger: k.ledger, Known: &known}); !r.OK() {
			t.Errorf("size %d: %s", size, codes(r))
		}
		known.Root[0] ^= 1
		if r := check(t, dir, verify.LogCheck{Ledger: k.ledger, Known: &known}); codes(r) != "0:earlier " {
			t.Errorf("another root of size %d: %s", size, codes(r))
		}
	}
	beyond := verify.Checkpoint{Origin: k.ledger.Name(), Size: 301}
	if r := check(t, dir, verify.LogCheck{Ledger: k.ledger, Known: &beyond}); codes(r) != "300:earlier " {
		t.Errorf("more than the log has: %s", codes(r))
	}
}
