package main

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/prototypster/pdvault/access/erasure"
	"github.com/prototypster/pdvault/api"
	"github.com/prototypster/pdvault/api/server"
	"github.com/prototypster/pdvault/api/server/servertest"
)

// An erasure that is on record and not finished is waited for, and its certificate names the subject, though the
// server no longer knows it.
func TestAnErasureThatIsPendingIsWaitedFor(t *testing.T) {
	b := servertest.NewBroker(t)
	b.LeaveErasures(true)
	handler := servertest.MustServer(t, b, server.Config{}).Handler()
	var requests atomic.Int64
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		handler.ServeHTTP(w, r)
		if requests.Add(1) == 1 {
			b.LeaveErasures(false)
		}
	}))
	defer s.Close()
	id := b.MustCreate("profile", `{"name":"x"}`)
	out := filepath.Join(t.TempDir(), "cert.json")
	t.Setenv(tokenVariable, servertest.Token("privacy"))
	var stdout, stderr bytes.Buffer
	args := []string{"erase", id.String(), "--reason", api.ReasonPurposeReached, "--out", out, "--server", s.URL}
	if code := run(t.Context(), args, nil, &stdout, &stderr); code != exitOK {
		t.Fatalf("exit code %d\n%s", code, &stderr)
	}
	raw, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	if c, err := erasure.Parse(raw); err != nil || c.Subject != id.String() || c.Salt == "" {
		t.Errorf("%v, %s", err, raw)
	}
	if info, err := os.Stat(out); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if requests.Load() < 3 {
		t.Errorf("%d requests: nothing was waited for", requests.Load())
	}
}
