package contract_test

import (
	"net/http"
	"testing"

	"github.com/prototypster/pdvault/api/contract"
)

func TestExamples(t *testing.T) {
	d, err := contract.Load()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Examples(); err != nil {
		t.Error(err)
	}
}

// TestCheckRefuses shows that Check fails when it should.
func TestCheckRefuses(t *testing.T) {
	good := http.Header{
		"Cache-Control": {"no-store"}, "X-Content-Type-Options": {"nosniff"}, "Content-Type": {"application/json"},
		"Etag": {`"1"`}, "Access-Record": {"1"}, "Location": {"/v1/subjects/x"},
	}
	body := `{"id":"5f1d6e0a-8a0b-4f0e-9f0a-0c5b5a1f7f11","version":1,"record":1}`
	with := func(name, value string) http.Header {
		h := good.Clone()
		if h.Set(name, value); value == "" {
			h.Del(name)
		}
		return h
	}
	for name, c := range map[string]struct {
		path   string
		status int
		header http.Header
		body   string
		fails  bool
	}{
		"good":           {"/v1/subjects", 201, good, body, false},
		"path":           {"/v1/subject", 201, good, body, true},
		"status":         {"/v1/subjects", 200, good, body, true},
		"cacheable":      {"/v1/subjects", 201, with("Cache-Control", ""), body, true},
		"no header":      {"/v1/subjects", 201, with("Access-Record", ""), body, true},
		"weak tag":       {"/v1/subjects", 201, with("ETag", `W/"1"`), body, true},
		"media":          {"/v1/subjects", 201, with("Content-Type", "text/html"), body, true},
		"member missing": {"/v1/subjects", 201, good, `{"version":1,"record":1}`, true},
		"member unknown": {"/v1/subjects", 201, good, body[:len(body)-1] + `,"email":"x"}`, true},
	} {
		t.Run(name, func(t *testing.T) {
			err := contract.Check("POST", c.path, c.status, c.header, []byte(c.body))
			if (err != nil) != c.fails {
				t.Errorf("Check: %v", err)
			}
		})
	}
}
