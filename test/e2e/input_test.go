package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/google/uuid"
)

func TestBadInputIsRefusedAndChangesNothing(t *testing.T) {
	i := start(t, stackOptions())
	subject := i.create(person(1))
	record := "/v1/subjects/" + subject + "/records/profile"
	deep := strings.Repeat(`{"a":`, 100) + "1" + strings.Repeat("}", 100)
	before := i.ledgerSize()
	for _, tt := range []struct {
		name, method, path, body string
		status                   int
		header                   []string
	}{
		{"not JSON", "POST", "/v1/subjects", `{`, 400, nil},
		{"two values", "POST", "/v1/subjects", `{} {}`, 400, nil},
		{"an array", "POST", "/v1/subjects", `[]`, 400, nil},
		{"unknown member", "POST", "/v1/subjects", `{"records":{"profile":{}},"x":1}`, 400, nil},
		{"member in another case", "POST", "/v1/subjects", `{"Records":{"profile":{}}}`, 400, nil},
		{"duplicate member", "POST", "/v1/subjects", `{"records":{},"records":{"profile":{}}}`, 400, nil},
		{"duplicate field", "POST", "/v1/subjects", `{"records":{"profile":{"email":"a@example.org","email":"b@example.org"}}}`, 400, nil},
		{"invalid UTF-8", "POST", "/v1/subjects", "{\"records\":{\"profile\":{\"displayName\":\"\xff\"}}}", 400, nil},
		{"too deep", "POST", "/v1/subjects", `{"records":{"profile":` + deep + `}}`, 400, nil},
		{"too large", "POST", "/v1/subjects", `{"records":{"profile":{"displayName":"` + strings.Repeat("x", 2<<20) + `"}}}`, 413, nil},
		{"wrong type", "POST", "/v1/subjects", `{"records":{"profile":{"email":7}}}`, 422, nil},
		{"schema violation", "POST", "/v1/subjects", `{"records":{"profile":{"email":"nobody"}}}`, 422, nil},
		{"no such field", "POST", "/v1/subjects", `{"records":{"profile":{"shoe":"42"}}}`, 422, nil},
		{"wrong content type", "POST", "/v1/subjects", `{"records":{}}`, 415, []string{"Content-Type", "text/plain"}},
		{"put without a version", "PUT", record, person(1), 428, nil},
		{"put with a stale version", "PUT", record, person(1), 412, []string{"If-Match", `"7"`}},
		{"weak version", "PUT", record, person(1), 400, []string{"If-Match", `W/"1"`}},
		{"no version at all", "PUT", record, person(1), 400, []string{"If-Match", `one`}},
		{"idempotency key without quotes", "POST", "/v1/subjects", `{"records":{"profile":{}}}`, 400, []string{"Idempotency-Key", "k"}},
		{"no such route", "GET", "/v1/nothing", "", 404, nil},
		{"method of another route", "DELETE", "/v1/policy", "", 405, nil},
		{"id that is none", "GET", "/v1/subjects/1", "", 400, nil},
		{"id in upper case", "GET", "/v1/subjects/" + strings.ToUpper(subject), "", 400, nil},
		{"read without a purpose", "GET", record, "", 400, nil},
		{"parameter twice", "GET", record + "?purpose=account&purpose=support", "", 400, nil},
		{"unknown parameter", "GET", record + "?purpose=account&email=x", "", 400, nil},
		{"unknown mode", "GET", record + "?purpose=account&mode=steal", "", 400, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			i := &instance{i.Stack, t}
			a := i.call("shop", tt.method, tt.path, tt.body, tt.header...)
			if a.Status != tt.status {
				t.Errorf("%d, want %d: %s", a.Status, tt.status, a.Body)
			}
			if got := a.Header.Get("Content-Type"); got != "application/problem+json" {
				t.Errorf("content type %q", got)
			}
		})
	}
	if after := i.ledgerSize(); after != before {
		t.Errorf("refused input left %d entries", after-before)
	}
	i.want(http.StatusOK, "shop", "GET", record+"?purpose=account", "")
}

func TestRequestsWithoutAKnownTokenAreUnauthenticated(t *testing.T) {
	i := start(t, stackOptions())
	subject := i.create(person(1))
	path := fmt.Sprintf(readPath, subject, "account", "email")
	for _, header := range [][]string{nil, {"Authorization", "Bearer nonsense"}, {"Authorization", "Basic c2hvcDp4"}, {"Authorization", "Bearer"}} {
		a := i.call("", "GET", path, "", header...)
		if a.Status != http.StatusUnauthorized || a.Header.Get("WWW-Authenticate") == "" {
			t.Errorf("%v: %d", header, a.Status)
		}
	}
}

func TestUnknownErasedAndForbiddenSubjectsAnswerAlike(t *testing.T) {
	i := start(t, stackOptions())
	known, unknown := i.create(person(1)), uuid.NewString()
	for _, tt := range []struct{ caller, purpose string }{{"auditor", "account"}, {"shop", "newsletter"}, {"courier", "account"}} {
		a := i.read(tt.caller, known, tt.purpose, "email")
		b := i.read(tt.caller, unknown, tt.purpose, "email")
		if a.Status != http.StatusForbidden || b.Status != a.Status || len(a.Body) != len(b.Body) {
			t.Errorf("%s, %s: %d with %d bytes and %d with %d bytes", tt.caller, tt.purpose, a.Status, len(a.Body), b.Status, len(b.Body))
		}
	}
}

func TestTheIdempotencyKeyMakesARepeatedCreateOne(t *testing.T) {
	i := start(t, stackOptions())
	body := `{"records":{"profile":` + person(1) + `}}`
	first := i.want(http.StatusCreated, "shop", "POST", "/v1/subjects", body, "Idempotency-Key", `"a"`)
	second := i.want(http.StatusCreated, "shop", "POST", "/v1/subjects", body, "Idempotency-Key", `"a"`)
	if first["id"] != second["id"] {
		t.Error("two subjects")
	}
	i.want(http.StatusUnprocessableEntity, "shop", "POST", "/v1/subjects", `{"records":{"profile":`+person(2)+`}}`, "Idempotency-Key", `"a"`)
}

func TestAThousandRacingCreatesWithOneEmailGiveOneSubject(t *testing.T) {
	i := start(t, stackOptions())
	created := make(chan string, 1000)
	parallel(1000, 64, func(n int) {
		a, err := i.Do(t.Context(), "shop", "POST", "/v1/subjects", fmt.Appendf(nil, `{"records":{"profile":{"email":"race@example.org","displayName":"%d"}}}`, n))
		switch {
		case err != nil:
			t.Error(err)
		case a.Status == http.StatusCreated:
			created <- string(a.Body)
		case a.Status != http.StatusConflict:
			t.Errorf("%d: %s", a.Status, a.Body)
		}
	})
	if len(created) != 1 {
		t.Errorf("%d subjects were created", len(created))
	}
	m := i.want(http.StatusOK, "shop", "POST", "/v1/lookups", `{"purpose":"order-fulfilment","collection":"profile","field":"email","value":"RACE@example.org"}`)
	if n := len(m["subjects"].([]any)); n != 1 {
		t.Errorf("the lookup finds %d", n)
	}
}
