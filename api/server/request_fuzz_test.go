package server_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prototypster/pdvault/api"
	"github.com/prototypster/pdvault/api/server"
	"github.com/prototypster/pdvault/api/server/servertest"
)

// FuzzRequest: whatever a caller sends, as bytes, is answered, by a problem when it is refused; nothing is an internal
// error; and the broker, which is a strict fake, is never asked what it must not be.
func FuzzRequest(f *testing.F) {
	b := servertest.NewBroker(f)
	id := b.MustCreate("profile", `{"email":"a@example.org"}`)
	handler := servertest.MustServer(f, b, server.Config{}).Handler()
	callers := []string{"shop", "privacy", "security", "auditor"}
	add := func(caller int, line, body string, lines ...string) {
		f.Add(uint8(caller), []byte(fmt.Sprintf("%s HTTP/1.1\r\nHost: x\r\n%sContent-Length: %d\r\n\r\n%s", line, strings.Join(lines, ""), len(body), body)))
	}
	const media = "Content-Type: application/json\r\n"
	subject := "/v1/subjects/" + id.String()
	add(0, "POST /v1/subjects", `{"records":{"profile":{"email":"b@example.org"}}}`, media, "Idempotency-Key: \"a\"\r\n")
	add(0, "GET "+subject+"/records/profile?purpose=account&fields=email&mode=mask", "", "Access-Reference: a\r\n")
	add(0, "PUT "+subject+"/records/profile", `{"email":"c@example.org"}`, media, "If-Match: \"1\"\r\n")
	add(0, "PATCH "+subject+"/records/profile", `{"email":null}`, "Content-Type: application/merge-patch+json\r\n", "If-Match: \"1\"\r\n")
	add(0, "POST /v1/reads", `{"purpose":"account","reads":[{"subject":"`+id.String()+`","collection":"profile"}]}`, media)
	add(0, "POST /v1/lookups", `{"purpose":"account","collection":"profile","field":"email","value":"a@example.org"}`, media)
	add(0, "POST /v1/verifications", `{"purpose":"account","subject":"`+id.String()+`","collection":"profile","field":"email","value":"x"}`, media)
	add(0, "POST /v1/access-checks", `{"purpose":"account","subject":"`+id.String()+`","collection":"profile"}`, media)
	add(0, "POST "+subject+"/consents", `{"purpose":"newsletter","policy_version":1}`, media)
	add(1, "PUT "+subject+"/restriction", `{"reason":"x"}`, media)
	add(1, "DELETE "+subject, `{"reason":"subject-request"}`, media)
	add(1, "POST /v1/policy", `{"operator":{}}`, media)
	add(2, "POST /v1/keys/rotations", `{"scope":"index"}`, media)
	add(3, "GET /v1/access-records?subject="+id.String()+"&from=2026-01-01T00:00:00Z&limit=10&cursor=1", "")
	add(3, "GET /log/tile/0/000", "")
	add(3, "GET /v1/access-records/0/proof", "")
	f.Fuzz(func(t *testing.T, caller uint8, raw []byte) {
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(raw)))
		if err != nil {
			return
		}
		r.RemoteAddr = "192.0.2.1:1"
		if _, given := r.Header["Authorization"]; !given {
			r.Header.Set("Authorization", "Bearer "+servertest.Token(callers[int(caller)%len(callers)]))
		}
		r = r.WithContext(t.Context())
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		a := w.Result()
		if a.StatusCode < 400 {
			return
		}
		var p api.Problem
		if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil || a.Header.Get("Content-Type") != api.ProblemMediaType || p.Status != a.StatusCode || !strings.HasPrefix(p.Type, api.ProblemPrefix) {
			t.Errorf("%d %s: %v: %.200s", a.StatusCode, a.Header.Get("Content-Type"), err, w.Body)
		}
		if a.StatusCode == http.StatusInternalServerError {
			t.Errorf("%s: %s", p.Type, p.Title)
		}
	})
}
