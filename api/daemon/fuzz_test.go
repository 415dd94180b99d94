package daemon

import (
	"bytes"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/prototypster/pdvault/vault/kv"
)

// FuzzConfig: no file makes it panic; one that is taken says what production must know, and no more than loopback is
// served without TLS.
func FuzzConfig(f *testing.F) {
	f.Add([]byte(valid))
	f.Add([]byte(valid + "limits: {connections: 10, in_flight: 5}\nlog: {level: debug}\nledger: {key_overlap: 1h}\n"))
	f.Add([]byte(valid + "tls: {cert_file: a, key_file: b}\n"))
	f.Add([]byte("instance: &a [*a]\n"))
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, text []byte) {
		path := filepath.Join(t.TempDir(), "pdvault.yaml")
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := LoadConfig(path)
		if err != nil {
			return
		}
		if c.Instance == "" || c.TokensFile == "" || !filepath.IsAbs(c.Store.Dir) || !filepath.IsAbs(c.Sidecar.Socket) {
			t.Errorf("taken: %+v", c)
		}
		if host, _, err := net.SplitHostPort(c.Listen); c.TLS.CertFile == "" && (err != nil || host != "localhost" && !net.ParseIP(host).IsLoopback()) {
			t.Errorf("serves %q without TLS", c.Listen)
		}
		if c.Limits.Connections < 0 || c.Limits.InFlight < 0 || c.Store.ReadOnlyBelow < 0 || c.Ledger.KeyOverlap < 0 {
			t.Errorf("taken: %+v", c)
		}
	})
}

// FuzzIdentity: the identity of a store is one, or a violation of integrity; and so is the generation of the key store.
func FuzzIdentity(f *testing.F) {
	id := identity{
		Instance: "main", Origin: "main.pdvault/ledger", Verifier: "v", Protected: []byte{1}, Made: time.Unix(1_700_000_000, 0).UTC(),
		Older: []ledgerKey{{Verifier: "w", Protected: []byte{2}, Retire: time.Unix(1_800_000_000, 0).UTC()}},
	}
	good, err := id.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{}`))
	f.Add([]byte(`null`))
	f.Add(make([]byte, 8))
	f.Fuzz(func(t *testing.T, row []byte) {
		if n, err := decodeGeneration(row); (err == nil) != (len(row) == 8) || err != nil && (n != 0 || !errors.Is(err, kv.ErrIntegrity)) {
			t.Errorf("generation %d, %v", n, err)
		}
		got, err := parseIdentity(row)
		if err != nil {
			if !errors.Is(err, kv.ErrIntegrity) || got.Instance != "" {
				t.Errorf("failed with %v and a result", err)
			}
			return
		}
		if got.Instance == "" || got.Verifier == "" || len(got.Protected) == 0 {
			t.Errorf("taken: %s", row)
		}
		encoded, err := got.encode()
		if err != nil {
			t.Fatal(err)
		}
		back, err := parseIdentity(encoded)
		if again, _ := back.encode(); err != nil || !bytes.Equal(again, encoded) {
			t.Errorf("what was taken does not come back: %v", err)
		}
	})
}
