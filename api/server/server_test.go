package server_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/prototypster/pdvault/access"
	"github.com/prototypster/pdvault/access/erasure"
	"github.com/prototypster/pdvault/access/policy"
	"github.com/prototypster/pdvault/api"
	"github.com/prototypster/pdvault/api/contract"
	"github.com/prototypster/pdvault/api/server"
	"github.com/prototypster/pdvault/api/server/servertest"
	"github.com/prototypster/pdvault/keys"
)

// call is one request of a test.
type call struct {
	as           string // caller; empty: shop; "-": nobody
	method, path string
	route        string // template; empty: path
	body         string
	header       http.Header
}

// do sends c to s and checks the answer against the contract.
func do(t *testing.T, s http.Handler, c call) *httptest.ResponseRecorder {
	t.Helper()
	var body io.Reader
	if c.body != "" {
		body = strings.NewReader(c.body)
	}
	r := httptest.NewRequestWithContext(t.Context(), c.method, c.path, body)
	for name, values := range c.header {
		r.Header[http.CanonicalHeaderKey(name)] = values
	}
	if c.body != "" && r.Header.Get("Content-Type") == "" {
		r.Header.Set("Content-Type", "application/json")
	}
	switch c.as {
	case "-":
	case "":
		r.Header.Set("Authorization", "Bearer "+servertest.Token("shop"))
	default:
		r.Header.Set("Authorization", "Bearer "+servertest.Token(c.as))
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	if c.route != "-" {
		route := c.route
		if route == "" {
			route, _, _ = strings.Cut(c.path, "?")
		}
		if err := contract.Check(c.method, route, w.Code, w.Header(), w.Body.Bytes()); err != nil {
			t.Errorf("%v\n%s", err, w.Body)
		}
	}
	return w
}

func problem(t *testing.T, w *httptest.ResponseRecorder) api.Problem {
	t.Helper()
	var p api.Problem
	if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil {
		t.Fatalf("%d %s: %v", w.Code, w.Body, err)
	}
	if got := w.Header().Get("Content-Type"); got != api.ProblemMediaType {
		t.Errorf("Content-Type %q", got)
	}
	return p
}

const (
	recordRoute = "/v1/subjects/{id}/records/{collection}"
	profile     = `{"email":"ada@example.org","name":"Ada Example"}`
)

func recordPath(id uuid.UUID) string { return "/v1/subjects/" + id.String() + "/records/profile" }

// TestContract walks through every call once, the way a client would, and holds each answer to the contract.
func TestContract(t *testing.T) {
	b := servertest.NewBroker(t)
	s := servertest.MustServer(t, b, server.Config{Checks: []server.Check{{Name: "store", Run: func(context.Context) error { return nil }}}})
	h := s.Handler()

	created := do(t, h, call{method: "POST", path: "/v1/subjects", body: `{"records":{"profile":` + profile + `}}`})
	var subject api.SubjectCreated
	if err := json.Unmarshal(created.Body.Bytes(), &subject); err != nil || created.Code != 201 {
		t.Fatalf("create: %d %s", created.Code, created.Body)
	}
	if want := "/v1/subjects/" + subject.ID; created.Header().Get("Location") != want || created.Header().Get("ETag") != `"1"` {
		t.Errorf("create: Location %q, ETag %q", created.Header().Get("Location"), created.Header().Get("ETag"))
	}
	id := uuid.MustParse(subject.ID)
	root := "/v1/subjects/" + subject.ID

	read := do(t, h, call{method: "GET", path: recordPath(id) + "?purpose=order-fulfilment&fields=name", route: recordRoute})
	want := fmt.Sprintf(`{"subject":"%s","collection":"profile","version":1,"fields":{"name":"Ada Example"},"access":{"record":1,"ground":"service"}}`, id)
	if read.Code != 200 || read.Body.String() != want {
		t.Errorf("read: %d %s", read.Code, read.Body)
	}
	if read.Header().Get("Access-Record") != "1" || read.Header().Get("ETag") != `"1"` {
		t.Errorf("read: headers %v", read.Header())
	}

	version := http.Header{"If-Match": {`"1"`}}
	for _, step := range []struct {
		name string
		call
		status int
	}{
		{"describe", call{method: "GET", path: root, route: "/v1/subjects/{id}"}, 200},
		{"batch", call{method: "POST", path: "/v1/reads", body: `{"purpose":"support","reads":[{"subject":"` + subject.ID + `","collection":"profile"},{"subject":"` + uuid.NewString() + `","collection":"profile","fields":["name"]}]}`}, 200},
		{"lookup", call{method: "POST", path: "/v1/lookups", body: `{"purpose":"support","collection":"profile","field":"email","value":"ada@example.org"}`}, 200},
		{"lookup miss", call{method: "POST", path: "/v1/lookups", body: `{"purpose":"support","collection":"profile","field":"email","value":"nobody"}`}, 200},
		{"verify", call{method: "POST", path: "/v1/verifications", body: `{"purpose":"support","subject":"` + subject.ID + `","collection":"profile","field":"name","value":"Ada Example"}`}, 200},
		{"check", call{method: "POST", path: "/v1/access-checks", body: `{"purpose":"support","subject":"` + subject.ID + `","collection":"profile","fields":["name"]}`}, 200},
		{"check denied", call{method: "POST", path: "/v1/access-checks", body: `{"purpose":"newsletter","subject":"` + subject.ID + `","collection":"profile"}`}, 200},
		{"put without version", call{method: "PUT", path: recordPath(id), route: recordRoute, body: profile}, 428},
		{"put", call{method: "PUT", path: recordPath(id), route: recordRoute, body: profile, header: version}, 200},
		{"put stale", call{method: "PUT", path: recordPath(id), route: recordRoute, body: profile, header: version}, 412},
		{"put new", call{method: "PUT", path: root + "/records/passport", route: recordRoute, body: `{"number":"x"}`, header: http.Header{"If-None-Match": {"*"}}}, 201},
		{"patch", call{method: "PATCH", path: recordPath(id), route: recordRoute, body: `{"name":null}`, header: http.Header{"If-Match": {`"2"`}, "Content-Type": {"application/merge-patch+json"}}}, 200},
		{"delete", call{method: "DELETE", path: recordPath(id), route: recordRoute, header: http.Header{"If-Match": {`"3"`}}}, 204},
		{"read deleted", call{method: "GET", path: recordPath(id) + "?purpose=support", route: recordRoute}, 404},
		{"restrict", call{as: "privacy", method: "PUT", path: root + "/restriction", route: "/v1/subjects/{id}/restriction", body: `{"reason":"contested"}`}, 200},
		{"unrestrict", call{as: "privacy", method: "DELETE", path: root + "/restriction", route: "/v1/subjects/{id}/restriction"}, 200},
		{"unrestrict with reason", call{as: "privacy", method: "DELETE", path: root + "/restriction", route: "/v1/subjects/{id}/restriction", body: `{"reason":"settled"}`}, 200},
		{"consent", call{method: "POST", path: root + "/consents", route: "/v1/subjects/{id}/consents", body: `{"purpose":"newsletter","separate_document":true,"language":"en","not_after":"2027-01-01T00:00:00Z","notice_sha256":"` + strings.Repeat("ab", 32) + `","capture":{"ui_action":"checkbox"}}`}, 201},
		{"consents", call{method: "GET", path: root + "/consents", route: "/v1/subjects/{id}/consents"}, 200},
		{"describe again", call{method: "GET", path: root, route: "/v1/subjects/{id}"}, 200},
		{"withdraw unknown", call{method: "POST", path: "/v1/consents/" + uuid.NewString() + "/withdrawal", route: "/v1/consents/{id}/withdrawal"}, 404},
		{"policy", call{as: "auditor", method: "GET", path: "/v1/policy"}, 200},
		{"publish", call{as: "privacy", method: "POST", path: "/v1/policy", body: `{"operator":{}}`}, 201},
		{"publish nonsense", call{as: "privacy", method: "POST", path: "/v1/policy", body: `{`}, 422},
		{"versions", call{as: "auditor", method: "GET", path: "/v1/policy/versions"}, 200},
		{"version", call{as: "auditor", method: "GET", path: "/v1/policy/versions/2", route: "/v1/policy/versions/{version}"}, 200},
		{"version unknown", call{as: "auditor", method: "GET", path: "/v1/policy/versions/9", route: "/v1/policy/versions/{version}"}, 404},
		{"records", call{as: "auditor", method: "GET", path: "/v1/access-records?limit=2&ground=service&from=2026-01-01T00:00:00Z"}, 200},
		{"record", call{as: "auditor", method: "GET", path: "/v1/access-records/0", route: "/v1/access-records/{index}"}, 200},
		{"record unknown", call{as: "auditor", method: "GET", path: "/v1/access-records/9999", route: "/v1/access-records/{index}"}, 404},
		{"proof", call{as: "auditor", method: "GET", path: "/v1/access-records/0/proof", route: "/v1/access-records/{index}/proof"}, 200},
		{"checkpoint", call{as: "auditor", method: "GET", path: "/log/checkpoint"}, 200},
		{"tile", call{as: "auditor", method: "GET", path: "/log/tile/0/000.p/7", route: "/log/tile/{path}"}, 200},
		{"entries", call{as: "auditor", method: "GET", path: "/log/tile/entries/x001/234", route: "/log/tile/{path}"}, 200},
		{"no tile", call{as: "auditor", method: "GET", path: "/log/tile/../../etc/passwd", route: "/log/tile/{path}"}, 404},
		{"keys", call{as: "security", method: "GET", path: "/v1/keys"}, 200},
		{"no rotations", call{as: "security", method: "GET", path: "/v1/keys/rotations"}, 200},
		{"rotate one key", call{as: "security", method: "POST", path: "/v1/keys/rotations", body: `{"scope":"subject","subject":"` + subject.ID + `"}`}, 202},
		{"rotate meanwhile", call{as: "security", method: "POST", path: "/v1/keys/rotations", body: `{"scope":"kek"}`}, 409},
		{"keys meanwhile", call{as: "security", method: "GET", path: "/v1/keys"}, 200},
		{"rotations", call{as: "security", method: "GET", path: "/v1/keys/rotations"}, 200},
		{"rotation unknown", call{as: "security", method: "GET", path: "/v1/keys/rotations/" + uuid.NewString(), route: "/v1/keys/rotations/{id}"}, 404},
		{"erase", call{as: "privacy", method: "DELETE", path: root, route: "/v1/subjects/{id}", body: `{"reason":"subject-request"}`}, 200},
		{"describe erased", call{method: "GET", path: root, route: "/v1/subjects/{id}"}, 404},
		{"erase absent", call{as: "privacy", method: "DELETE", path: "/v1/subjects/" + uuid.NewString(), route: "/v1/subjects/{id}", body: `{"reason":"unlawful"}`}, 404},
		{"erasure unknown", call{as: "privacy", method: "GET", path: "/v1/erasures/" + uuid.NewString(), route: "/v1/erasures/{id}"}, 404},
		{"live", call{as: "-", method: "GET", path: "/livez"}, 200},
		{"ready", call{as: "-", method: "GET", path: "/readyz"}, 200},
		{"metrics", call{as: "security", method: "GET", path: "/metrics"}, 200},
		{"metrics for others", call{method: "GET", path: "/metrics"}, 403},
		{"metrics for nobody", call{as: "-", method: "GET", path: "/metrics"}, 401},
		{"no route", call{method: "GET", path: "/v2/subjects", route: "-"}, 404},
		{"no method", call{method: "DELETE", path: "/v1/subjects", route: "-"}, 405},
		{"trailing slash", call{method: "POST", path: "/v1/subjects/", route: "-", body: "{}"}, 404},
	} {
		t.Run(step.name, func(t *testing.T) {
			if w := do(t, h, step.call); w.Code != step.status {
				t.Errorf("status %d, want %d\n%s", w.Code, step.status, w.Body)
			}
		})
	}
}

// TestContractComplete compares the routes of the server with the operations of the document.
func TestContractComplete(t *testing.T) {
	d, err := contract.Load()
	if err != nil {
		t.Fatal(err)
	}
	var routes []string
	for _, r := range servertest.MustServer(t, servertest.NewBroker(t), server.Config{}).Routes() {
		routes = append(routes, r.Method+" "+contract.Path(r.Path))
	}
	slices.Sort(routes)
	if diff := cmp.Diff(d.Operations(), routes); diff != "" {
		t.Errorf("openapi.yaml and the server differ (-document +server):\n%s", diff)
	}
}

// TestRefused sends what must not be taken. Nothing of it may reach the broker or come back.
func TestRefused(t *testing.T) {
	b := servertest.NewBroker(t)
	h := servertest.MustServer(t, b, server.Config{}).Handler()
	id := uuid.NewString()
	read := "/v1/subjects/" + id + "/records/profile"
	lookup := func(body string) call { return call{method: "POST", path: "/v1/lookups", body: body} }
	deep := strings.Repeat(`{"a":`, 40) + "1" + strings.Repeat("}", 40)
	create := func(body string) call { return call{method: "POST", path: "/v1/subjects", body: body} }
	rotate := func(body string) call { return call{method: "POST", path: "/v1/keys/rotations", body: body} }
	get := func(path string) call { return call{method: "GET", path: path, route: recordRoute} }
	put := func(h http.Header) call {
		return call{method: "PUT", path: read, route: recordRoute, body: `{"canary":1}`, header: h}
	}
	for name, c := range map[string]struct {
		call
		status int
	}{
		"unknown member":        {lookup(`{"purpose":"p","collection":"c","field":"f","value":"canary","canary":1}`), 400},
		"other case":            {lookup(`{"purpose":"p","collection":"c","field":"f","value":"canary","PURPOSE":"canary"}`), 400},
		"repeated member":       {lookup(`{"purpose":"p","collection":"c","field":"f","value":"canary","purpose":"canary"}`), 400},
		"trailing data":         {lookup(`{"purpose":"p","collection":"c","field":"f","value":"v"} canary`), 400},
		"second object":         {lookup(`{"purpose":"p","collection":"c","field":"f","value":"v"}{"canary":1}`), 400},
		"invalid UTF-8":         {lookup("{\"purpose\":\"p\",\"collection\":\"c\",\"field\":\"f\",\"value\":\"\xffcanary\"}"), 400},
		"lone surrogate":        {lookup(`{"purpose":"p","collection":"c","field":"f","value":"\ud800canary"}`), 400},
		"wrong type":            {lookup(`{"purpose":7,"collection":"c","field":"f","value":"canary"}`), 400},
		"array":                 {lookup(`["canary"]`), 400},
		"null":                  {lookup(`null`), 400},
		"empty object":          {lookup(`{}`), 400},
		"no body":               {lookup(""), 415},
		"comment":               {lookup(`{"purpose":"p"/*canary*/}`), 400},
		"deep":                  {create(`{"records":{"profile":` + deep + `}}`), 400},
		"repeated in record":    {create(`{"records":{"profile":{"canary":1,"canary":2}}}`), 400},
		"number too large":      {create(`{"records":{"profile":{"canary":9007199254740993}}}`), 400},
		"number overflows":      {create(`{"records":{"profile":{"canary":1e400}}}`), 400},
		"number with exponent":  {create(`{"records":{"profile":{"canary":1e17}}}`), 400},
		"long string":           {create(`{"records":{"profile":{"canary":"` + strings.Repeat("x", api.MaxString+1) + `"}}}`), 400},
		"many members":          {create(`{"records":{"profile":{` + members(api.MaxMembers+1) + `}}}`), 400},
		"record is no object":   {create(`{"records":{"profile":"canary"}}`), 400},
		"collection is no name": {create(`{"records":{"can ary":{}}}`), 400},
		"no records":            {create(`{"records":{}}`), 400},
		"too large":             {create(`{"records":{"profile":{"canary":"` + strings.Repeat("x", api.MaxRecordBody) + `"}}}`), 413},
		"control too large":     {lookup(`{"value":"` + strings.Repeat("x", api.MaxBody) + `"}`), 413},
		"media type":            {call{method: "POST", path: "/v1/lookups", body: `{}`, header: http.Header{"Content-Type": {"text/json"}}}, 415},
		"two media types":       {call{method: "POST", path: "/v1/lookups", body: `{}`, header: http.Header{"Content-Type": {"application/json", "application/json"}}}, 415},
		"other charset":         {call{method: "POST", path: "/v1/lookups", body: `{}`, header: http.Header{"Content-Type": {"application/json; charset=utf-16"}}}, 415},
		"encoded":               {call{method: "POST", path: "/v1/lookups", body: `{}`, header: http.Header{"Content-Encoding": {"gzip"}}}, 415},
		"patch as JSON":         {call{method: "PATCH", path: read, route: recordRoute, body: `{}`}, 415},
		"body on GET":           {call{method: "GET", path: "/log/checkpoint", body: `canary`}, 400},
		"id in upper case":      {get("/v1/subjects/" + strings.ToUpper("5f1d6e0a-8a0b-4f0e-9f0a-0c5b5a1f7f11") + "/records/profile?purpose=p"), 400},
		"id as URN":             {get("/v1/subjects/urn:uuid:" + id + "/records/profile?purpose=p"), 400},
		"id with braces":        {get("/v1/subjects/%7B" + id + "%7D/records/profile?purpose=p"), 400},
		"id is no id":           {get("/v1/subjects/canary/records/profile?purpose=p"), 400},
		"escaped collection":    {get("/v1/subjects/" + id + "/records/..%2fcanary?purpose=p"), 400},
		"NUL":                   {get("/v1/subjects/" + id + "/records/a%00canary?purpose=p"), 400},
		"line break":            {get("/v1/subjects/" + id + "/records/a%0d%0acanary?purpose=p"), 400},
		"no purpose":            {get(read), 400},
		"empty purpose":         {get(read + "?purpose="), 400},
		"unknown parameter":     {get(read + "?purpose=p&canary=1"), 400},
		"escaped parameter":     {get(read + "?purpose=p&%6dode=mask"), 400},
		"repeated parameter":    {get(read + "?purpose=p&purpose=canary"), 400},
		"parameter in case":     {get(read + "?Purpose=p"), 400},
		"semicolon":             {get(read + "?purpose=p;fields=canary"), 400},
		"bad escape":            {get(read + "?purpose=%zz"), 400},
		"mode":                  {get(read + "?purpose=p&mode=canary"), 400},
		"empty field":           {get(read + "?purpose=p&fields=a,,b"), 400},
		"field with space":      {get(read + "?purpose=p&fields=a,%20b"), 400},
		"long reference":        {call{method: "GET", path: read + "?purpose=p", route: recordRoute, header: http.Header{"Access-Reference": {strings.Repeat("x", 257)}}}, 400},
		"two references":        {call{method: "GET", path: read + "?purpose=p", route: recordRoute, header: http.Header{"Access-Reference": {"a", "b"}}}, 400},
		"bad UTF-8 in header":   {call{method: "GET", path: read + "?purpose=p", route: recordRoute, header: http.Header{"Access-Justification": {"\xff"}}}, 400},
		"weak tag":              {put(http.Header{"If-Match": {`W/"1"`}}), 400},
		"any tag":               {put(http.Header{"If-Match": {`*`}}), 400},
		"list of tags":          {put(http.Header{"If-Match": {`"1", "2"`}}), 400},
		"two tags":              {put(http.Header{"If-Match": {`"1"`, `"2"`}}), 400},
		"bare tag":              {put(http.Header{"If-Match": {`1`}}), 400},
		"tag with zero":         {put(http.Header{"If-Match": {`"01"`}}), 400},
		"none match a tag":      {put(http.Header{"If-None-Match": {`"1"`}}), 400},
		"both conditions":       {put(http.Header{"If-Match": {`"1"`}, "If-None-Match": {"*"}}), 400},
		"bare key":              {call{method: "POST", path: "/v1/subjects", body: `{"records":{"profile":{}}}`, header: http.Header{"Idempotency-Key": {"canary"}}}, 400},
		"long key":              {call{method: "POST", path: "/v1/subjects", body: `{"records":{"profile":{}}}`, header: http.Header{"Idempotency-Key": {`"` + strings.Repeat("x", 256) + `"`}}}, 400},
		"cursor":                {call{method: "GET", path: "/v1/access-records?cursor=-1"}, 400},
		"limit":                 {call{method: "GET", path: "/v1/access-records?limit=1001"}, 400},
		"time":                  {call{method: "GET", path: "/v1/access-records?from=yesterday"}, 400},
		"ground":                {call{method: "GET", path: "/v1/access-records?ground=canary"}, 400},
		"index":                 {call{method: "GET", path: "/v1/access-records/01", route: "/v1/access-records/{index}"}, 400},
		"version":               {call{method: "GET", path: "/v1/policy/versions/0", route: "/v1/policy/versions/{version}"}, 400},
		"restriction unsaid":    {call{method: "PUT", path: "/v1/subjects/" + id + "/restriction", route: "/v1/subjects/{id}/restriction", body: `{}`}, 400},
		"capture is no object":  {call{method: "POST", path: "/v1/subjects/" + id + "/consents", route: "/v1/subjects/{id}/consents", body: `{"purpose":"p","capture":"canary"}`}, 400},
		"notice is no hash":     {call{method: "POST", path: "/v1/subjects/" + id + "/consents", route: "/v1/subjects/{id}/consents", body: `{"purpose":"p","notice_sha256":"canary"}`}, 400},
		"erasure unsaid":        {call{method: "DELETE", path: "/v1/subjects/" + id, route: "/v1/subjects/{id}"}, 400},
		"reason absent":         {call{method: "DELETE", path: "/v1/subjects/" + id, route: "/v1/subjects/{id}", body: `{}`}, 400},
		"reason in words":       {call{method: "DELETE", path: "/v1/subjects/" + id, route: "/v1/subjects/{id}", body: `{"reason":"canary asked"}`}, 400},
		"reason in case":        {call{method: "DELETE", path: "/v1/subjects/" + id, route: "/v1/subjects/{id}", body: `{"reason":"Unlawful"}`}, 400},
		"reason and more":       {call{method: "DELETE", path: "/v1/subjects/" + id, route: "/v1/subjects/{id}", body: `{"reason":"unlawful","canary":1}`}, 400},
		"erase nobody":          {call{method: "DELETE", path: "/v1/subjects/canary", route: "/v1/subjects/{id}", body: `{"reason":"unlawful"}`}, 400},
		"erase with purpose":    {call{method: "DELETE", path: "/v1/subjects/" + id + "?purpose=canary", route: "/v1/subjects/{id}", body: `{"reason":"unlawful"}`}, 400},
		"certificate is no id":  {call{method: "GET", path: "/v1/erasures/canary", route: "/v1/erasures/{id}"}, 400},
		"certificate in case":   {call{method: "GET", path: "/v1/erasures/" + strings.ToUpper("5f1d6e0a-8a0b-4f0e-9f0a-0c5b5a1f7f11"), route: "/v1/erasures/{id}"}, 400},
		"keys with query":       {call{method: "GET", path: "/v1/keys?kind=canary"}, 400},
		"rotation unsaid":       {rotate(""), 415},
		"no scope":              {rotate(`{}`), 400},
		"unknown scope":         {rotate(`{"scope":"canary"}`), 400},
		"scope in case":         {rotate(`{"scope":"KEK"}`), 400},
		"scopes":                {rotate(`{"scope":["kek","index"]}`), 400},
		"subject unsaid":        {rotate(`{"scope":"subject"}`), 400},
		"subject is no id":      {rotate(`{"scope":"subject","subject":"canary"}`), 400},
		"subject is nobody":     {rotate(`{"scope":"subject","subject":"00000000-0000-0000-0000-000000000000"}`), 400},
		"subject of a KEK":      {rotate(`{"scope":"kek","subject":"` + id + `"}`), 400},
		"subject of all":        {rotate(`{"scope":"all-subjects","subject":"` + id + `"}`), 400},
		"rotation is no id":     {call{method: "GET", path: "/v1/keys/rotations/canary", route: "/v1/keys/rotations/{id}"}, 400},
		"empty batch":           {call{method: "POST", path: "/v1/reads", body: `{"purpose":"p","reads":[]}`}, 400},
		"large batch":           {call{method: "POST", path: "/v1/reads", body: `{"purpose":"p","reads":[` + strings.TrimSuffix(strings.Repeat(`{},`, 1001), ",") + `]}`}, 400},
		"null value":            {call{method: "POST", path: "/v1/verifications", body: `{"purpose":"p","subject":"` + id + `","collection":"c","field":"f","value":null}`}, 400},
	} {
		t.Run(name, func(t *testing.T) {
			w := do(t, h, c.call)
			if w.Code != c.status {
				t.Errorf("status %d, want %d\n%s", w.Code, c.status, w.Body)
			}
			if strings.Contains(w.Body.String(), "canary") {
				t.Errorf("the answer repeats the request: %s", w.Body)
			}
		})
	}
	if n := b.Calls(); n != 0 {
		t.Errorf("%d calls reached the broker", n)
	}
}

func members(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `"m%d":1,`, i)
	}
	return strings.TrimSuffix(b.String(), ",")
}

func TestTaken(t *testing.T) {
	b := servertest.NewBroker(t)
	h := servertest.MustServer(t, b, server.Config{}).Handler()
	for name, body := range map[string]string{
		"largest number": `{"records":{"profile":{"n":9007199254740992,"m":-9007199254740992,"f":0.1,"z":1.5e3}}}`,
		"longest string": `{"records":{"profile":{"s":"` + strings.Repeat("x", api.MaxString) + `"}}}`,
		"deepest":        `{"records":{"profile":{"d":` + strings.Repeat("[", api.MaxDepth-3) + strings.Repeat("]", api.MaxDepth-3) + `}}}`,
		"most members":   `{"records":{"profile":{` + members(api.MaxMembers) + `}}}`,
		"escapes":        `{"records":{"profile":{"s":"\"}{,\\"}}}`,
		"space":          " {\n\"records\" :\t{\"profile\": {} } }\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			if w := do(t, h, call{method: "POST", path: "/v1/subjects", body: body}); w.Code != 201 {
				t.Errorf("%d %s", w.Code, w.Body)
			}
		})
	}
}

func TestIdempotency(t *testing.T) {
	b := servertest.NewBroker(t)
	h := servertest.MustServer(t, b, server.Config{}).Handler()
	create := func(key, body string) *httptest.ResponseRecorder {
		return do(t, h, call{method: "POST", path: "/v1/subjects", body: body, header: http.Header{"Idempotency-Key": {key}}})
	}
	first := create(`"a \"b\" \\"`, `{"records":{"profile":{}}}`)
	again := create(`"a \"b\" \\"`, `{"records":{"profile":{}}}`)
	if first.Code != 201 || again.Code != 201 || first.Body.String() != again.Body.String() {
		t.Errorf("repeated: %d %s, then %d %s", first.Code, first.Body, again.Code, again.Body)
	}
	if other := create(`"a \"b\" \\"`, `{"records":{"profile":{"x":1}}}`); other.Code != 422 || problem(t, other).Type != api.ProblemIdempotencyMismatch {
		t.Errorf("other body: %d %s", other.Code, other.Body)
	}
}

func TestAuthentication(t *testing.T) {
	b := servertest.NewBroker(t)
	h := servertest.MustServer(t, b, server.Config{}).Handler()
	for name, c := range map[string]struct {
		header   []string
		recorded bool
	}{
		"none":         {nil, false},
		"unknown":      {[]string{"Bearer wrong"}, true},
		"prefix":       {[]string{"Bearer " + servertest.Token("shop")[:8]}, true},
		"other scheme": {[]string{"Basic " + servertest.Token("shop")}, true},
		"empty":        {[]string{"Bearer "}, true},
		"two":          {[]string{"Bearer " + servertest.Token("shop"), "Bearer " + servertest.Token("shop")}, true},
		"long":         {[]string{"Bearer " + strings.Repeat("x", 513)}, true},
	} {
		t.Run(name, func(t *testing.T) {
			before := len(b.LoginsDenied())
			w := do(t, h, call{as: "-", method: "GET", path: "/log/checkpoint", header: http.Header{"Authorization": c.header}})
			if w.Code != 401 || w.Header().Get("WWW-Authenticate") == "" || problem(t, w).Type != api.ProblemUnauthenticated {
				t.Errorf("%d %v %s", w.Code, w.Header(), w.Body)
			}
			if got := len(b.LoginsDenied()) > before; got != c.recorded {
				t.Errorf("recorded: %v", got)
			}
		})
	}
	if b.Calls() != 0 {
		t.Error("an unauthenticated request reached the broker")
	}
}

// TestDenied checks that a denial says what is missing, and that its length says nothing.
func TestDenied(t *testing.T) {
	b := servertest.NewBroker(t)
	h := servertest.MustServer(t, b, server.Config{}).Handler()
	id := b.MustCreate("profile", profile)
	path := recordPath(id) + "?purpose=newsletter"
	lengths := map[int]bool{}
	for _, err := range []error{
		access.ErrNotFound,
		&access.DeniedError{Reason: policy.ReasonConsentMissing, Record: 41, Missing: []policy.Missing{{Kind: policy.MissingConsent, Name: "newsletter"}}},
		&access.DeniedError{Reason: policy.ReasonFieldNotInPurpose, Record: 123456, Missing: []policy.Missing{{Kind: policy.MissingField, Name: "3"}, {Kind: policy.MissingField, Name: "4"}}},
		&access.DeniedError{Reason: policy.ReasonRoleNotAllowed, Record: -1},
	} {
		b.Fail(err)
		w := do(t, h, call{method: "GET", path: path, route: recordRoute})
		lengths[w.Body.Len()] = true
		p := problem(t, w)
		var denied *access.DeniedError
		if !errors.As(err, &denied) {
			continue
		}
		if w.Code != 403 || p.Reason != denied.Reason || len(p.Missing) != len(denied.Missing) || (p.AccessRecord == nil) != (denied.Record < 0) {
			t.Errorf("%d %s", w.Code, w.Body)
		}
	}
	if !cmp.Equal(lengths, map[int]bool{512: true}) {
		t.Errorf("lengths of denials and not found: %v", lengths)
	}
}

// TestAbsentErasedAndForbiddenAreOneSize checks that the length of a refused erasure says nothing.
func TestAbsentErasedAndForbiddenAreOneSize(t *testing.T) {
	b := servertest.NewBroker(t)
	h := servertest.MustServer(t, b, server.Config{}).Handler()
	for _, route := range []string{"/v1/subjects/{id}", "/v1/erasures/{id}"} {
		c := call{method: "GET", path: strings.Replace(route, "{id}", uuid.NewString(), 1), route: route}
		if route == "/v1/subjects/{id}" {
			c.method, c.body = "DELETE", `{"reason":"unlawful"}`
		}
		for status, err := range map[int]error{
			403: &access.DeniedError{Reason: policy.ReasonRoleNotAllowed, Record: 12345, Missing: []policy.Missing{{Kind: policy.MissingRole, Name: policy.ActionErase}}},
			404: access.ErrNotFound,
		} {
			b.Fail(err)
			if w := do(t, h, c); w.Code != status || w.Body.Len() != api.PadProblems {
				t.Errorf("%s: %d with %d bytes", route, w.Code, w.Body.Len())
			}
		}
	}
}

// TestErasurePending checks that an erasure that is on record says so, whatever kept it from being finished.
func TestErasurePending(t *testing.T) {
	b := servertest.NewBroker(t)
	h := servertest.MustServer(t, b, server.Config{}).Handler()
	c := call{as: "privacy", method: "DELETE", path: "/v1/subjects/" + uuid.NewString(), route: "/v1/subjects/{id}", body: `{"reason":"unlawful"}`}
	salt, _ := erasure.Commit("x")
	pending := &access.PendingErasureError{ID: uuid.New(), Entry: 61, Salt: salt}
	for _, cause := range []error{nil, keys.ErrSealed, keys.ErrUnavailable, keys.ErrKEKMissing, keys.ErrKEKRetired, keys.ErrTampered, keys.ErrDamaged, context.DeadlineExceeded} {
		pending.Cause = cause
		b.Fail(fmt.Errorf("erasing: %w", pending))
		w := do(t, h, c)
		p := problem(t, w)
		if w.Code != 503 || p.Type != api.ProblemErasurePending || p.Erasure != pending.ID.String() || p.ErasureSalt != salt || p.AccessRecord == nil ||
			w.Header().Get("Access-Record") != "61" || w.Header().Get("Retry-After") != "2" {
			t.Errorf("%v: %d %v %s", cause, w.Code, w.Header(), w.Body)
		}
	}
	b.Fail(fmt.Errorf("destroying: %w", access.ErrErasurePending))
	if p := problem(t, do(t, h, c)); p.Type != api.ProblemErasurePending || p.Erasure != "" || p.AccessRecord != nil {
		t.Errorf("unnamed: %+v", p)
	}
	pending.Cause = access.ErrIntegrity
	b.Fail(pending)
	if p := problem(t, do(t, h, c)); p.Type != api.ProblemIntegrity {
		t.Errorf("a violation of integrity: %+v", p)
	}
}

// TestErasureIsServedAsItIsAskedFor checks certificate and act, and who gets which.
func TestErasureIsServedAsItIsAskedFor(t *testing.T) {
	b := servertest.NewBroker(t)
	h := servertest.MustServer(t, b, server.Config{}).Handler()
	id := b.MustCreate("profile", profile)
	first := do(t, h, call{as: "privacy", method: "DELETE", path: "/v1/subjects/" + id.String(), route: "/v1/subjects/{id}", body: `{"reason":"account-closed"}`})
	path := first.Header().Get("Location")
	if c, err := erasure.Parse(first.Body.Bytes()); err != nil || c.Subject != id.String() || c.Salt == "" {
		t.Errorf("the first certificate: %v, %s", err, first.Body)
	}
	if first.Code != 200 || !strings.HasPrefix(path, "/v1/erasures/") || first.Header().Get("Access-Record") != "1" {
		t.Fatalf("%d %v %s", first.Code, first.Header(), first.Body)
	}
	for name, c := range map[string]struct {
		accept []string
		page   bool
	}{
		"nothing":             {nil, false},
		"anything":            {[]string{"*/*"}, false},
		"JSON":                {[]string{"application/json"}, false},
		"page":                {[]string{"text/html"}, true},
		"browser":             {[]string{"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}, true},
		"page in two":         {[]string{"application/xml", "TEXT/HTML; charset=utf-8"}, true},
		"both alike":          {[]string{"text/html, application/json"}, false},
		"page rather":         {[]string{"application/json;q=0.5, text/html"}, true},
		"JSON rather":         {[]string{"application/json, text/html;q=0.9"}, false},
		"anything rather":     {[]string{"text/html;q=0.1, */*"}, false},
		"no page":             {[]string{"text/html;q=0"}, false},
		"any text":            {[]string{"text/*"}, false},
		"nonsense":            {[]string{"text/html;q=canary", ";;,/"}, false},
		"weight out of range": {[]string{"text/html;q=2", "text/html;q=NaN"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := do(t, h, call{as: "privacy", method: "GET", path: path, route: "/v1/erasures/{id}", header: http.Header{"Accept": c.accept}})
			page := w.Header().Get("Content-Type") == "text/html; charset=utf-8"
			if w.Code != 200 || page != c.page || w.Header().Get("Access-Record") != "1" {
				t.Fatalf("%d %v %s", w.Code, w.Header(), w.Body)
			}
			csp := w.Header().Get("Content-Security-Policy")
			if !strings.Contains(csp, "default-src 'none'") || strings.Contains(csp, "unsafe-inline") != page {
				t.Errorf("policy %q", csp)
			}
			if page {
				if !strings.Contains(w.Body.String(), strings.TrimPrefix(path, "/v1/erasures/")) || strings.Contains(w.Body.String(), id.String()) {
					t.Errorf("the act: %s", w.Body)
				}
				return
			}
			if c, err := erasure.Parse(w.Body.Bytes()); err != nil || c.Subject != "" || c.Salt != "" || path != "/v1/erasures/"+c.ID {
				t.Errorf("the certificate: %v, %s", err, w.Body)
			}
		})
	}
}

// TestClosedSetsAreOne compares the codes of package api with those of the document, and with what the problem
// says that is answered to another code.
func TestClosedSetsAreOne(t *testing.T) {
	b := servertest.NewBroker(t)
	h := servertest.MustServer(t, b, server.Config{}).Handler()
	var known []string
	for _, r := range erasure.Reasons() {
		known = append(known, r.Code)
	}
	if diff := cmp.Diff(known, api.ErasureReasons); diff != "" {
		t.Errorf("the reasons of certificates and of the API differ (-certificates +API):\n%s", diff)
	}
	d, err := contract.Load()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		codes []string
		body  func(code string) string
		call
	}{
		{api.ErasureReasons, func(code string) string { return fmt.Sprintf(`{"reason":%q}`, code) },
			call{method: "DELETE", path: "/v1/subjects/" + uuid.NewString(), route: "/v1/subjects/{id}"}},
		{api.RotationScopes, func(code string) string { return fmt.Sprintf(`{"scope":%q}`, code) },
			call{method: "POST", path: "/v1/keys/rotations", route: "/v1/keys/rotations"}},
	} {
		for _, code := range c.codes {
			if err := d.CheckRequest(c.method, c.route, "application/json", []byte(c.body(code))); err != nil {
				t.Errorf("%s is not in the document: %v", code, err)
			}
		}
		if err := d.CheckRequest(c.method, c.route, "application/json", []byte(c.body("other"))); err == nil {
			t.Errorf("%s %s: the document takes any code", c.method, c.route)
		}
		q := c.call
		q.body = c.body("other")
		p := problem(t, do(t, h, q))
		if len(p.Violations) != 1 || !strings.HasSuffix(p.Violations[0].Rule, strings.Join(c.codes, ", ")) {
			t.Errorf("the problem does not name the codes: %+v", p)
		}
	}
}

// TestRotationRunning checks that a second rotation is told which is the first, and does not begin.
func TestRotationRunning(t *testing.T) {
	b := servertest.NewBroker(t)
	h := servertest.MustServer(t, b, server.Config{}).Handler()
	rotate := call{as: "security", method: "POST", path: "/v1/keys/rotations", body: `{"scope":"index"}`}
	first := do(t, h, rotate)
	var started api.Rotation
	if err := json.Unmarshal(first.Body.Bytes(), &started); err != nil || first.Code != 202 || first.Header().Get("Location") != "/v1/keys/rotations/"+started.ID {
		t.Fatalf("%d %v %s", first.Code, first.Header(), first.Body)
	}
	w := do(t, h, rotate)
	if p := problem(t, w); w.Code != 409 || p.Type != api.ProblemRotationRunning || p.Rotation != started.ID {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if n := b.RotationsStarted(); n != 1 {
		t.Errorf("%d rotations", n)
	}
	b.Fail(keys.ErrJobRunning) // whose id is not known
	if p := problem(t, do(t, h, rotate)); p.Type != api.ProblemRotationRunning || p.Rotation != "" {
		t.Errorf("unnamed: %+v", p)
	}
	b.Fail(keys.ErrTooManyKeys)
	if w := do(t, h, rotate); w.Code != 409 || problem(t, w).Type != api.ProblemLimitReached {
		t.Errorf("too many keys: %d %s", w.Code, w.Body)
	}
	b.Fail(&access.RotationError{Running: uuid.New(), Err: keys.ErrSealed})
	if p := problem(t, do(t, h, rotate)); p.Type != api.ProblemKeyService || p.Rotation != "" {
		t.Errorf("an outage meanwhile: %+v", p)
	}
}

// TestBatchProblems checks that what is wrong with one read is said in its place.
func TestBatchProblems(t *testing.T) {
	b := servertest.NewBroker(t)
	h := servertest.MustServer(t, b, server.Config{}).Handler()
	id := b.MustCreate("profile", profile)
	broken := b.MustCreate("profile", `{"name":"x"}`)
	b.Spoil(broken, "profile", "name")
	w := do(t, h, call{method: "POST", path: "/v1/reads", body: fmt.Sprintf(
		`{"purpose":"support","reads":[{"subject":%q,"collection":"profile"},{"subject":%q,"collection":"profile"},{"subject":%q,"collection":"profile","fields":["name"]}]}`, broken, id, uuid.New())})
	var got api.ReadResults
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || len(got.Results) != 3 {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	if p := got.Results[0].Problem; p == nil || p.Type != api.ProblemIntegrity {
		t.Errorf("a lost value: %s", w.Body)
	}
	if r := got.Results[1].Read; r == nil || string(r.Fields["name"]) != `"Ada Example"` {
		t.Errorf("a good read: %s", w.Body)
	}
	if p := got.Results[2].Problem; p == nil || p.Type != api.ProblemNotFound {
		t.Errorf("an absent record: %s", w.Body)
	}
	if w := do(t, h, call{method: "GET", path: recordPath(broken) + "?purpose=support", route: recordRoute}); w.Code != 500 || problem(t, w).Type != api.ProblemIntegrity {
		t.Errorf("a lost value: %d %s", w.Code, w.Body)
	}
}

func TestTrace(t *testing.T) {
	b := servertest.NewBroker(t)
	h := servertest.MustServer(t, b, server.Config{}).Handler()
	const id = "4bf92f3577b34da6a3ce929d0e0e4736"
	for _, c := range []struct{ header, want string }{
		{"00-" + id + "-00f067aa0ba902b7-01", id},
		{"00-00000000000000000000000000000000-00f067aa0ba902b7-01", ""},
		{"canary", ""},
	} {
		b.Fail(access.ErrNotFound)
		w := do(t, h, call{method: "GET", path: "/log/checkpoint", header: http.Header{"Traceparent": {c.header}}})
		if got := problem(t, w).TraceID; got != c.want {
			t.Errorf("trace_id %q, want %q", got, c.want)
		}
	}
}

func TestDeadline(t *testing.T) {
	b := servertest.NewBroker(t)
	h := servertest.MustServer(t, b, server.Config{RequestTimeout: 20 * time.Millisecond}).Handler()
	defer b.Block()()
	w := do(t, h, call{method: "GET", path: "/log/checkpoint"})
	if w.Code != 504 || problem(t, w).Type != api.ProblemTimeout {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// TestClientGone checks that a request whose client went away is not counted as a failure of ours.
func TestClientGone(t *testing.T) {
	b := servertest.NewBroker(t)
	var log bytes.Buffer
	h := servertest.MustServer(t, b, server.Config{
		AccessLog: slog.New(slog.NewJSONHandler(&log, nil)), Logger: slog.New(slog.NewTextHandler(&log, nil)),
	}).Handler()
	defer b.Block()()
	ctx, cancel := context.WithCancel(t.Context())
	r := httptest.NewRequestWithContext(ctx, "GET", "/log/checkpoint", nil)
	r.Header.Set("Authorization", "Bearer "+servertest.Token("auditor"))
	time.AfterFunc(20*time.Millisecond, cancel)
	h.ServeHTTP(httptest.NewRecorder(), r)
	if !strings.Contains(log.String(), `"status":499`) || strings.Contains(log.String(), "request failed") {
		t.Errorf("log: %s", log.String())
	}
}

// TestLogsSayNothing runs requests with canaries in every place that a client controls, and a panic with
// one, and looks for them in the logs.
func TestLogsSayNothing(t *testing.T) {
	b := servertest.NewBroker(t)
	var log bytes.Buffer
	handler := slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})
	h := servertest.MustServer(t, b, server.Config{AccessLog: slog.New(handler), Logger: slog.New(handler)}).Handler()
	send := func() {
		do(t, h, call{method: "PUT", path: "/v1/subjects/5f1d6e0a-8a0b-4f0e-9f0a-0c5b5a1f7f11/records/canary?canary=canary", route: recordRoute, body: `{"canary":"canary"}`,
			header: http.Header{"Access-Reference": {"canary"}, "X-Forwarded-For": {"canary"}, "User-Agent": {"canary"}, "Idempotency-Key": {"canary"}}})
		do(t, h, call{method: "PUT", path: "/v1/subjects/5f1d6e0a-8a0b-4f0e-9f0a-0c5b5a1f7f11/records/canary", route: recordRoute, body: `{"canary":"canary"}`})
		do(t, h, call{as: "-", method: "GET", path: "/canary", route: "-", header: http.Header{"Authorization": {"Bearer canary"}}})
		do(t, h, call{as: "-", method: "GET", path: "/log/checkpoint", header: http.Header{"Authorization": {"Bearer canary"}}})
	}
	send()
	b.Fail(errors.New("canary"))
	send()
	b.Fail(fmt.Errorf("reading subject: %w", access.ErrIntegrity))
	send()
	b.Panic("canary")
	send()
	if strings.Contains(log.String(), "canary") {
		t.Errorf("log: %s", log.String())
	}
	for _, want := range []string{"handler panicked", "reading subject", `"route":"/v1/subjects/:id/records/:collection"`, "servertest.(*Broker).begin"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log lacks %q: %s", want, log.String())
		}
	}
}

func TestReadiness(t *testing.T) {
	b := servertest.NewBroker(t)
	runs := 0
	now := servertest.Start
	failing := errors.New("canary")
	h := servertest.MustServer(t, b, server.Config{
		Now: func() time.Time { return now },
		Checks: []server.Check{
			{Name: "store", Run: func(context.Context) error { return nil }},
			{Name: "sidecar", Run: func(context.Context) error { runs++; return failing }},
		},
	}).Handler()
	for range 3 {
		w := do(t, h, call{as: "-", method: "GET", path: "/readyz"})
		if w.Code != 503 || strings.Contains(w.Body.String(), "canary") || !strings.Contains(w.Body.String(), `"failing":["sidecar"]`) {
			t.Errorf("%d %s", w.Code, w.Body)
		}
	}
	if runs != 1 {
		t.Errorf("checks ran %d times within a second", runs)
	}
	failing, now = nil, now.Add(2*time.Second)
	if w := do(t, h, call{as: "-", method: "GET", path: "/readyz"}); w.Code != 200 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func TestMetrics(t *testing.T) {
	b := servertest.NewBroker(t)
	s := servertest.MustServer(t, b, server.Config{})
	id := b.MustCreate("profile", profile)
	for range 3 {
		do(t, s.Handler(), call{method: "GET", path: recordPath(id) + "?purpose=support", route: recordRoute})
	}
	w := do(t, s.Handler(), call{as: "auditor", method: "GET", path: "/metrics"})
	want := `pdvault_http_requests_total{method="GET",role="service",route="/v1/subjects/:id/records/:collection",status="200"} 3`
	if !strings.Contains(w.Body.String(), want) {
		t.Errorf("metrics lack %s:\n%s", want, w.Body)
	}
	if strings.Contains(w.Body.String(), id.String()) {
		t.Error("metrics name a subject")
	}
}

func TestConfig(t *testing.T) {
	b := servertest.NewBroker(t)
	if _, err := server.New(server.Config{Authenticator: servertest.MustTokens(t)}); err == nil {
		t.Error("New without a Broker")
	}
	if _, err := server.New(server.Config{Broker: b}); err == nil {
		t.Error("New without an Authenticator")
	}
	s := servertest.MustServer(t, b, server.Config{Listen: "0.0.0.0:0"})
	if err := s.Open(); err == nil {
		t.Error("Open of a public address without TLS")
	}
	if err := s.Serve(t.Context()); err == nil {
		t.Error("Serve before Open")
	}
}
