package client

import (
	"errors"
	"net/http"
	"testing"

	"github.com/prototypster/pdvault/access"
	"github.com/prototypster/pdvault/api"
)

// FuzzProblem: whatever a server answers is an error with a meaning; a wait is never negative, and nothing but a
// problem is taken for one.
func FuzzProblem(f *testing.F) {
	f.Add(503, "2", api.ProblemMediaType, []byte(`{"type":"`+api.ProblemBusy+`","title":"x","status":503}`))
	f.Add(403, "", api.ProblemMediaType, []byte(`{"type":"`+api.ProblemConsentMissing+`","status":403,"reason":"consent-missing","missing":[{"kind":"consent","name":"x"}],"access_record":7}`))
	f.Add(409, "", api.ProblemMediaType, []byte(`{"type":"`+api.ProblemRotationRunning+`","status":409,"rotation":"6f1c0a52-7f6b-4a3e-9d57-0d2f5a9b1c11"}`))
	f.Add(503, "9223372036854775807", api.ProblemMediaType, []byte(`{"type":"`+api.ProblemErasurePending+`","status":503,"erasure":"6f1c0a52-7f6b-4a3e-9d57-0d2f5a9b1c11","access_record":1}`))
	f.Add(500, "-1", "text/html", []byte(`<html>`))
	f.Add(422, "x", api.ProblemMediaType, []byte(`{"status":422,"violations":[{"pointer":"/a/b","rule":"x"}]}`))
	f.Fuzz(func(t *testing.T, status int, retry, media string, body []byte) {
		e := problemOf(&http.Response{StatusCode: status, Header: http.Header{"Retry-After": {retry}, "Content-Type": {media}}}, body)
		if e.Status != status || e.Error() == "" || e.RetryAfter < 0 || len(e.wraps) == 0 {
			t.Errorf("%+v", e)
		}
		for _, w := range e.wraps {
			if w == nil {
				t.Error("wraps nothing")
			}
		}
		var denied *access.DeniedError
		if errors.As(e, &denied) && e.Problem.Status != http.StatusForbidden {
			t.Errorf("a denial of status %d", e.Problem.Status)
		}
	})
}
