package verify_test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
	"pgregory.net/rapid"

	"github.com/prototypster/pdvault/access/ledger/verify"
)

func TestCheckpointFormat(t *testing.T) {
	root := tlog.RecordHash([]byte("a"))
	good := string(verify.Checkpoint{Origin: origin, Size: 7, Root: root}.Format())
	for name, body := range map[string]string{
		"empty":              "",
		"no final newline":   strings.TrimSuffix(good, "\n"),
		"extension line":     good + "more\n",
		"no origin":          strings.Replace(good, origin, "", 1),
		"space in origin":    strings.Replace(good, origin, "a b", 1),
		"plus in origin":     strings.Replace(good, origin, "a+b", 1),
		"leading zero":       strings.Replace(good, "\n7\n", "\n07\n", 1),
		"plus sign":          strings.Replace(good, "\n7\n", "\n+7\n", 1),
		"negative":           strings.Replace(good, "\n7\n", "\n-7\n", 1),
		"enormous":           strings.Replace(good, "\n7\n", "\n9223372036854775807\n", 1),
		"above the bound":    strings.Replace(good, "\n7\n", "\n281474976710657\n", 1),
		"short root":         strings.Replace(good, root.String(), root.String()[4:], 1),
		"carriage return":    strings.Replace(good, "=\n", "=\r\n", 1),
		"root of empty tree": strings.Replace(good, "\n7\n", "\n0\n", 1),
	} {
		if cp, err := verify.ParseCheckpoint([]byte(body)); err == nil || cp != (verify.Checkpoint{}) {
			t.Errorf("%s: accepted, or not zero: %v %v", name, cp, err)
		} else {
			wantErr(t, err, verify.ErrCheckpoint)
		}
	}
	empty := verify.EmptyCheckpoint(origin)
	if got, err := verify.ParseCheckpoint(empty.Format()); err != nil || got != empty {
		t.Errorf("empty log: %v %v", got, err)
	}
}

func TestOpenCheckpointDemandsTheLedgerKey(t *testing.T) {
	k, other := newKeys(t), newKeys(t)
	cp := verify.Checkpoint{Origin: origin, Size: 7, Root: tlog.RecordHash(nil)}
	signed := k.sign(t, cp)
	line, err := k.cosigner.Line(cp, epoch)
	must(t, err)
	cosigned := append(bytes.Clone(signed), line...)

	got, n, err := verify.OpenCheckpoint(cosigned, origin, k.ledger, k.witness)
	must(t, err)
	cosigs := verify.Cosignatures(n, k.witness, k.witness)
	if got != cp || len(cosigs) != 1 || !cosigs[0].Time.Equal(epoch) || cosigs[0].Name != k.cosigner.Name() {
		t.Fatalf("got %v, cosignatures %v", got, cosigs)
	}
	// A witness that is not asked about is neither verified nor counted.
	if _, n, err := verify.OpenCheckpoint(cosigned, origin, k.ledger); err != nil || len(verify.Cosignatures(n, k.witness)) != 0 {
		t.Fatal("unknown witness", err)
	}

	onlyWitness, err := note.Sign(&note.Note{Text: string(cp.Format())}, k.cosigner.At(epoch))
	must(t, err)
	_, _, err = verify.OpenCheckpoint(onlyWitness, origin, k.ledger, k.witness)
	wantErr(t, err, verify.ErrSignature)
	_, _, err = verify.OpenCheckpoint(signed, origin, other.ledger, k.witness)
	wantErr(t, err, verify.ErrSignature)
	_, _, err = verify.OpenCheckpoint(signed, "elsewhere.example.org", k.ledger)
	wantErr(t, err, verify.ErrCheckpoint)
	_, _, err = verify.OpenCheckpoint(signed, origin, nil)
	wantErr(t, err, verify.ErrSignature)
	_, _, err = verify.OpenCheckpoint([]byte("x"), origin, k.ledger)
	wantErr(t, err, verify.ErrCheckpoint)
	tampered := bytes.Replace(cosigned, []byte("\n7\n"), []byte("\n8\n"), 1)
	_, _, err = verify.OpenCheckpoint(tampered, origin, k.ledger, k.witness)
	wantErr(t, err, verify.ErrSignature)
}

func TestCosignature(t *testing.T) {
	k := newKeys(t)
	cp := verify.Checkpoint{Origin: origin, Size: 7, Root: tlog.RecordHash(nil)}
	line, err := k.cosigner.Line(cp, epoch)
	must(t, err)

	// The exact construction of C2SP tlog-cosignature, made by hand.
	key, err := base64.StdEncoding.DecodeString(strings.SplitN(k.cosigner.VerifierKey(), "+", 3)[2])
	must(t, err)
	raw, err := base64.StdEncoding.DecodeString(strings.Fields(string(line))[2])
	must(t, err)
	msg := "cosignature/v1\ntime 1795341600\n" + string(cp.Format())
	if key[0] != 4 || len(raw) != 4+8+64 || !ed25519.Verify(key[1:], []byte(msg), raw[12:]) {
		t.Fatal("not a v1 cosignature")
	}

	got, err := verify.VerifyCosignatureLine(line, cp, k.witness)
	must(t, err)
	if !got.Time.Equal(epoch) {
		t.Fatal(got)
	}
	later := cp
	later.Size++
	for name, try := range map[string]func() error{
		"other checkpoint": func() error { _, err := verify.VerifyCosignatureLine(line, later, k.witness); return err },
		"unknown witness":  func() error { _, err := verify.VerifyCosignatureLine(line, cp); return err },
		"other witness":    func() error { _, err := verify.VerifyCosignatureLine(line, cp, newKeys(t).witness); return err },
		"two lines": func() error {
			_, err := verify.VerifyCosignatureLine(slices.Concat(line, line), cp, k.witness)
			return err
		},
		"empty":           func() error { _, err := verify.VerifyCosignatureLine(nil, cp, k.witness); return err },
		"before 1970":     func() error { _, err := k.cosigner.Line(cp, time.Unix(-1, 0)); return err },
		"short seed":      func() error { _, err := verify.NewCosigner("a", make([]byte, 31)); return err },
		"bad name":        func() error { _, err := verify.NewCosigner("a b", make([]byte, 32)); return err },
		"not a key":       func() error { _, err := verify.NewCosignatureVerifier("x"); return err },
		"ledger key type": func() error { _, err := verify.NewCosignatureVerifier(ledgerVKey(t)); return err },
		"wrong hash": func() error {
			_, err := verify.NewCosignatureVerifier("x" + k.cosigner.VerifierKey())
			return err
		},
	} {
		if err := try(); err == nil {
			t.Errorf("%s: accepted", name)
		} else {
			wantErr(t, err, verify.ErrCosignature)
		}
	}
	sig := make([]byte, 8+64)
	for i := range 8 {
		sig[i] = 0xff
	}
	if k.witness.Verify(cp.Format(), sig) || k.witness.Verify(cp.Format(), sig[:3]) {
		t.Error("a time above 2^63-1 or a short signature verified")
	}
}

func ledgerVKey(t testing.TB) string {
	key, err := note.NewEd25519VerifierKey("x", make([]byte, 32))
	must(t, err)
	return key
}

func TestProofs(t *testing.T) {
	log := &reference{}
	const size = 70
	for i := range size {
		log.add(t, []byte{byte(i)})
	}
	for n := int64(1); n <= size; n++ {
		cp := log.checkpoint(t, n)
		for i := range n {
			p, err := tlog.ProveRecord(n, i, log)
			must(t, err)
			must(t, verify.CheckInclusion(log.entries[i], i, p, cp))
			wantErr(t, verify.CheckInclusion([]byte("other"), i, p, cp), verify.ErrInclusion)
			wantErr(t, verify.CheckInclusion(log.entries[i], i, append(slices.Clone(p), tlog.Hash{}), cp), verify.ErrInclusion)

			older := log.checkpoint(t, i)
			var cons []tlog.Hash
			if i > 0 {
				cons, err = tlog.ProveTree(n, i, log)
				must(t, err)
			}
			must(t, verify.CheckConsistency(older, cp, cons))
			wantErr(t, verify.CheckConsistency(cp, older, cons), verify.ErrConsistency)
			wantErr(t, verify.CheckConsistency(older, cp, append(slices.Clone(cons), tlog.Hash{})), verify.ErrConsistency)
			older.Root[0] ^= 1
			wantErr(t, verify.CheckConsistency(older, cp, cons), verify.ErrConsistency)
		}
		must(t, verify.CheckConsistency(cp, cp, nil))
	}
	cp := log.checkpoint(t, 5)
	foreign := cp
	foreign.Origin = "x"
	wantErr(t, verify.CheckConsistency(foreign, cp, nil), verify.ErrConsistency)
	wantErr(t, verify.CheckInclusion(nil, 5, nil, cp), verify.ErrInclusion)
	wantErr(t, verify.CheckInclusion(nil, -1, nil, cp), verify.ErrInclusion)
	// Sizes near the limit of int64 would keep the tree arithmetic busy for ever.
	cp.Size = math.MaxInt64
	wantErr(t, verify.CheckInclusion(nil, 5, []tlog.Hash{{}}, cp), verify.ErrInclusion)
	wantErr(t, verify.CheckConsistency(log.checkpoint(t, 5), cp, []tlog.Hash{{}}), verify.ErrConsistency)
}

func TestProofFile(t *testing.T) {
	k := newKeys(t)
	log := &reference{}
	for i := range 9 {
		log.add(t, []byte{byte(i)})
	}
	cp := log.checkpoint(t, 9)
	hashes, err := tlog.ProveRecord(9, 3, log)
	must(t, err)
	line, err := k.cosigner.Line(cp, epoch)
	must(t, err)
	p := verify.Proof{Index: 3, Hashes: hashes, Checkpoint: append(k.sign(t, cp), line...), Extra: []byte("note")}
	parsed, err := verify.ParseProof(p.Marshal())
	must(t, err)
	got, cosigs, err := parsed.Verify(log.entries[3], k.ledger, 1, k.witness)
	must(t, err)
	if got != cp || len(cosigs) != 1 || !bytes.Equal(parsed.Marshal(), p.Marshal()) {
		t.Fatal("proof changed on its way")
	}
	_, _, err = parsed.Verify(log.entries[3], k.ledger, 2, k.witness, k.witness)
	wantErr(t, err, verify.ErrQuorum)
	_, _, err = parsed.Verify(log.entries[4], k.ledger, 0)
	wantErr(t, err, verify.ErrInclusion)
	_, _, err = parsed.Verify(log.entries[3], newKeys(t).ledger, 0)
	wantErr(t, err, verify.ErrSignature)
	_, _, err = parsed.Verify(log.entries[3], nil, 0)
	wantErr(t, err, verify.ErrSignature)
}

func TestTilePaths(t *testing.T) {
	for path, want := range map[string]verify.Tile{
		"tile/0/000":                     {Level: 0, N: 0, Width: 256},
		"tile/0/x001/x234/067":           {Level: 0, N: 1234067, Width: 256},
		"tile/1/273.p/17":                {Level: 1, N: 273, Width: 17},
		"tile/entries/x001/000.p/255":    {Level: verify.EntriesLevel, N: 1000, Width: 255},
		"tile/63/x999/x999/x999/999.p/1": {Level: 63, N: 999999999999, Width: 1},
	} {
		if got, err := verify.ParseTilePath(path); err != nil || got != want || want.Path() != path {
			t.Errorf("%s: %v %v, path %s", path, got, err, want.Path())
		}
	}
	for _, path := range []string{
		"", "tile", "tile/0", "tile/0/", "tile/00/000", "tile/64/000", "tile/-1/000", "tile/0/0", "tile/0/x000/000",
		"tile/0/001/000", "tile/0/x001", "tile/0/000.p/0", "tile/0/000.p/256", "tile/0/000.p/01", "tile/0/000.p/",
		"tile/0/+01", "tile/8/0/000", "/tile/0/000", "tile/0/000/", "tile/entries/000.p/1.p/1", "tile/0/x0a1/000",
		"tile/0/x999/x999/x999/x999/x999/x999/999",
	} {
		if got, err := verify.ParseTilePath(path); err == nil || got != (verify.Tile{}) {
			t.Errorf("%q: accepted as %v", path, got)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		tile := verify.Tile{
			Level: rapid.IntRange(verify.EntriesLevel, 63).Draw(t, "level"),
			N:     rapid.Int64Range(0, 1<<40).Draw(t, "n"),
			Width: rapid.IntRange(1, 256).Draw(t, "width"),
		}
		if got, err := verify.ParseTilePath(tile.Path()); err != nil || got != tile {
			t.Fatalf("%v: %v %v", tile, got, err)
		}
	})
}

func TestTilesOf(t *testing.T) {
	paths := func(size int64) (out []string) {
		for tile := range verify.TilesOf(size) {
			out = append(out, tile.Path())
		}
		return out
	}
	if got := strings.Join(paths(257), " "); got != "tile/entries/000 tile/entries/001.p/1 tile/0/000 tile/0/001.p/1 tile/1/000.p/1" {
		t.Error(got)
	}
	// The example of C2SP tlog-tiles.
	got := paths(70000)
	if len(got) != 274+274+2+1 || !slices.Contains(got, "tile/0/273.p/112") || !slices.Contains(got, "tile/1/000") ||
		!slices.Contains(got, "tile/1/001.p/17") || !slices.Contains(got, "tile/2/000.p/1") {
		t.Error(len(got), got[len(got)-5:])
	}
	if len(paths(0)) != 0 {
		t.Error("an empty log has tiles")
	}
}

func TestAccessRequest(t *testing.T) {
	subject, err := verify.ParseRef(ref("ada"))
	must(t, err)
	base := accessEntry("ada", verify.GroundService, verify.Evidence{Type: verify.EvidencePurpose, ID: "order-fulfilment"})
	base.Time, base.Fields = verify.FormatTime(epoch), []string{"email", "name"}
	want := verify.AccessRequest{Now: epoch, Sidecar: "sidecar-1", SubjectRef: subject, Collection: "profile", Fields: []string{"name"}}
	must(t, want.Check(base))

	for _, c := range []struct {
		code  string
		err   error
		entry func(*verify.Entry)
		req   func(*verify.AccessRequest)
	}{
		{"", nil, func(e *verify.Entry) { e.Mode = verify.ModeMask }, nil},
		{"", nil, func(e *verify.Entry) { e.Mode = verify.ModeVerify }, func(r *verify.AccessRequest) { r.Compare = true }},
		{"", nil, nil, func(r *verify.AccessRequest) { r.Now = epoch.Add(verify.MaxAccessAge) }},
		{"", nil, nil, func(r *verify.AccessRequest) { r.Now = epoch.Add(-verify.MaxAccessSkew) }},
		{"not-access", verify.ErrNotAccess, func(e *verify.Entry) { e.Kind = verify.KindAccessFailed }, nil},
		{"not-allowed", verify.ErrNotAllowed, func(e *verify.Entry) { e.Decision = verify.Deny }, nil},
		{"not-allowed", verify.ErrNotAllowed, func(e *verify.Entry) { e.Decision = "" }, nil},
		{"no-ground", verify.ErrNoGround, func(e *verify.Entry) { e.Ground = "interest" }, nil},
		{"no-ground", verify.ErrNoGround, func(e *verify.Entry) { e.Evidence = nil }, nil},
		{"too-old", verify.ErrTooOld, nil, func(r *verify.AccessRequest) { r.Now = epoch.Add(verify.MaxAccessAge + 1) }},
		{"from-future", verify.ErrFromFuture, nil, func(r *verify.AccessRequest) { r.Now = epoch.Add(-verify.MaxAccessSkew - 1) }},
		{"", verify.ErrEntry, func(e *verify.Entry) { e.Time = "today" }, nil},
		{"other-sidecar", verify.ErrOtherSidecar, func(e *verify.Entry) { e.Sidecar = "sidecar-2" }, nil},
		{"other-sidecar", verify.ErrOtherSidecar, func(e *verify.Entry) { e.Sidecar = "" }, func(r *verify.AccessRequest) { r.Sidecar = "" }},
		{"other-subject", verify.ErrOtherSubject, func(e *verify.Entry) { e.SubjectRef = ref("bob") }, nil},
		{"other-subject", verify.ErrOtherSubject, func(e *verify.Entry) { e.SubjectRef = "" }, func(r *verify.AccessRequest) { r.SubjectRef = nil }},
		{"other-collection", verify.ErrOtherCollection, func(e *verify.Entry) { e.Collection = "passport" }, nil},
		{"other-collection", verify.ErrOtherCollection, func(e *verify.Entry) { e.Collection = "" }, func(r *verify.AccessRequest) { r.Collection = "" }},
		{"field-not-listed", verify.ErrFieldNotListed, nil, func(r *verify.AccessRequest) { r.Fields = []string{"name", "phone"} }},
		{"field-not-listed", verify.ErrFieldNotListed, nil, func(r *verify.AccessRequest) { r.Fields = nil }},
		{"not-openable", verify.ErrNotOpenable, func(e *verify.Entry) { e.Mode = verify.ModeLookup }, nil},
		{"not-openable", verify.ErrNotOpenable, func(e *verify.Entry) { e.Mode = "" }, nil},
		{"compare-only", verify.ErrCompareOnly, func(e *verify.Entry) { e.Mode = verify.ModeVerify }, nil},
	} {
		e, r := base, want
		if c.entry != nil {
			c.entry(&e)
		}
		if c.req != nil {
			c.req(&r)
		}
		err := r.Check(e)
		if c.err == nil {
			must(t, err)
			continue
		}
		wantErr(t, err, c.err)
		if got := verify.RefusalCode(err); got != c.code {
			t.Errorf("code %q, want %q", got, c.code)
		}
		if c.code != "" {
			wantErr(t, err, verify.ErrRefused)
		}
	}
	if _, err := verify.ParseRef(ref("ada") + "="); err == nil {
		t.Error("padding accepted")
	}
	// The last character of 43 carries two bits that must be zero.
	loose := ref("ada")[:42] + string("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"[1+strings.IndexByte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", ref("ada")[42])])
	if _, err := verify.ParseRef(loose); err == nil {
		t.Error("a second spelling of a reference accepted")
	}
}

func FuzzParseCheckpoint(f *testing.F) {
	f.Add([]byte("example.com/log\n0\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n"))
	f.Add(verify.Checkpoint{Origin: origin, Size: 7}.Format())
	f.Fuzz(func(t *testing.T, b []byte) {
		cp, err := verify.ParseCheckpoint(b)
		if err != nil && cp != (verify.Checkpoint{}) || err == nil && !bytes.Equal(cp.Format(), b) {
			t.Fatalf("%v %v", cp, err)
		}
	})
}

func FuzzParseProof(f *testing.F) {
	f.Add([]byte("c2sp.org/tlog-proof@v1\nextra AAAA\nindex 3\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n\nx\n"))
	f.Add([]byte("c2sp.org/tlog-proof@v1\nindex 0\n\n\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := verify.ParseProof(b)
		if err == nil && !bytes.Equal(p.Marshal(), b) {
			t.Fatalf("%q became %q", b, p.Marshal())
		}
		if err != nil && (p.Hashes != nil || p.Extra != nil || p.Checkpoint != nil || p.Index != 0) {
			t.Fatal("not zero on error")
		}
	})
}

func FuzzParseEntry(f *testing.F) {
	e := accessEntry("ada", verify.GroundService, verify.Evidence{Type: verify.EvidencePurpose, ID: "x", Entry: 3})
	e.ID, e.Time = "1", verify.FormatTime(epoch)
	b, err := verify.Encode(e)
	must(f, err)
	f.Add(b)
	f.Add([]byte(`{"t":"pdvault/entry/v1","id":"","time":"2026-11-22T10:00:00.000Z","kind":"x","of":0}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := verify.ParseEntry(b)
		if err != nil {
			if e.Type != "" || e.Kind != "" || e.Fields != nil {
				t.Fatal("not zero on error")
			}
			return
		}
		if again, err := verify.Encode(e); err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%s became %s", b, again)
		}
	})
}

func FuzzParseTilePath(f *testing.F) {
	f.Add("tile/entries/x001/234.p/7")
	f.Fuzz(func(t *testing.T, path string) {
		tile, err := verify.ParseTilePath(path)
		if err != nil && tile != (verify.Tile{}) || err == nil && tile.Path() != path {
			t.Fatalf("%v %v", tile, err)
		}
	})
}

func FuzzDecodeBundle(f *testing.F) {
	f.Add([]byte("\x00\x01a\x00\x00"), 2)
	f.Fuzz(func(t *testing.T, b []byte, width int) {
		entries, err := verify.DecodeBundle(b, width)
		if err != nil {
			if entries != nil {
				t.Fatal("not zero on error")
			}
			return
		}
		var again []byte
		for _, e := range entries {
			if again, err = verify.AppendBundle(again, e); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(again, b) {
			t.Fatal("not the same bytes")
		}
	})
}

func FuzzCosignatureKey(f *testing.F) {
	f.Add("w+00000000+BAAA")
	f.Fuzz(func(t *testing.T, vkey string) {
		if v, err := verify.NewCosignatureVerifier(vkey); err == nil && !strings.HasPrefix(vkey, v.Name()+"+") {
			t.Fatal(v.Name())
		}
	})
}
