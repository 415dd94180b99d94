package traffic

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prototypster/pdvault/test/bench/load"
	"github.com/prototypster/pdvault/test/e2e/stack"
)

// TestEachKindIsServed sends every kind to the real programs: a benchmark of refusals would be fast.
func TestEachKindIsServed(t *testing.T) {
	if testing.Short() {
		t.Skip("builds and starts the programs")
	}
	bin := t.TempDir()
	if err := stack.Build(t.Context(), "../../..", bin, false); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "pdvt") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	s, err := stack.New(t.Context(), stack.Options{Bin: bin, Dir: filepath.Join(dir, "s")})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	target := &Target{Address: strings.TrimPrefix(s.URL, "http://"), Token: s.Token("shop"), First: 1000}
	if err := target.Fill(50, time.Minute); err != nil {
		t.Fatal(err)
	}
	if err := target.Ask(time.Minute); err != nil {
		t.Fatal(err)
	}
	for _, kind := range Kinds {
		t.Run(kind, func(t *testing.T) {
			c, err := target.Load(kind)
			if err != nil {
				t.Fatal(err)
			}
			var mu sync.Mutex
			var wrong []string
			answered := c.Answered
			c.Answered = func(n int64, status int, body []byte) {
				if answered != nil {
					answered(n, status, body)
				}
				mu.Lock()
				defer mu.Unlock()
				if !served(kind, body) {
					wrong = append(wrong, fmt.Sprintf("%d %s", status, body))
				}
			}
			before := len(target.People())
			c.Connections, c.Duration, c.Count = 4, time.Minute, 40
			r, err := load.Run(c)
			if err != nil || r.Requests != 40 || r.Failed != 0 {
				t.Errorf("%d served, %d failed, error %v", r.Requests, r.Failed, err)
			}
			if len(wrong) > 0 {
				t.Errorf("%d answers are not what was asked for, such as %s", len(wrong), wrong[0])
			}
			if made, want := len(target.People())-before, map[string]int{Write: 40, Mixed: 4}[kind]; made != want {
				t.Errorf("%d people were created, want %d", made, want)
			}
		})
	}
	t.Run("what is not served has failed", func(t *testing.T) {
		somebody := target.People()[0]
		stranger := Person{ID: "5f1d6e0a-8a0b-4f0e-9f0a-0c5b5a1f7f11", N: somebody.N}
		for kind, people := range map[string][]Person{
			Warm: {stranger}, Batch: {somebody, stranger}, Lookup: {{somebody.ID, 0}}, Verify: {{somebody.ID, 0}},
			Consent: {target.People()[51]}, // created later, and not asked
		} {
			c, err := (&Target{Address: target.Address, Token: target.Token, people: people, asked: len(people)}).Load(kind)
			if err != nil {
				t.Fatal(err)
			}
			c.Connections, c.Duration, c.Count = 1, time.Minute, 3
			r, err := load.Run(c)
			if err != nil || r.Requests != 0 || r.Failed != 3 {
				t.Errorf("%s: %d served, %d failed, error %v, want 0 and 3", kind, r.Requests, r.Failed, err)
			}
		}
	})
	if log := s.Vault.Log() + s.Keys.Log(); strings.Contains(log, `"level"`) { // they log warnings and worse
		t.Errorf("the programs complain: %s", log)
	}
}

// served says whether an answer gives what a request of kind asks for.
func served(kind string, body []byte) bool {
	var a struct {
		ID       string
		Fields   map[string]any
		Access   struct{ Ground string }
		Subjects []string
		Match    bool
		Results  []struct {
			Read struct{ Fields map[string]any }
		}
	}
	if json.Unmarshal(body, &a) != nil {
		return false
	}
	switch kind {
	case Write:
		return a.ID != ""
	case Mixed:
		return a.ID != "" || len(a.Fields) == 6
	case Lookup:
		return len(a.Subjects) == 1
	case Verify:
		return a.Match
	case Service, Consent:
		return len(a.Fields) == 2 && a.Access.Ground == kind
	case Batch:
		for _, r := range a.Results {
			if len(r.Read.Fields) != 6 {
				return false
			}
		}
		return len(a.Results) == BatchSize
	}
	return len(a.Fields) == 6
}

func TestRequestsAreWellFormed(t *testing.T) {
	target := &Target{Token: "token", people: []Person{{"a", 1}, {"b", 2}, {"c", 3}}, next: 3, asked: 3}
	for _, kind := range Kinds {
		c, err := target.Load(kind)
		if err != nil {
			t.Fatal(err)
		}
		seen := map[string]bool{}
		for n := range int64(30) {
			raw := c.Request(n, nil)
			seen[string(raw)] = true
			req, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(raw)))
			if err != nil {
				t.Fatalf("%s: %v", kind, err)
			}
			body, err := io.ReadAll(req.Body)
			if err != nil || int64(len(body)) != max(req.ContentLength, 0) {
				t.Errorf("%s: a body of %d bytes, announced are %d, error %v", kind, len(body), req.ContentLength, err)
			}
			if len(body) > 0 && !json.Valid(body) {
				t.Errorf("%s: not JSON: %s", kind, body)
			}
			if got := req.Header.Get("Authorization"); got != "Bearer token" {
				t.Errorf("%s: Authorization %q", kind, got)
			}
		}
		want := map[string]int{Write: 30, Mixed: 3 + 3, Batch: 1}[kind]
		if want == 0 {
			want = 3 // one for each person
		}
		if len(seen) != want {
			t.Errorf("%s: %d different requests, want %d", kind, len(seen), want)
		}
	}
	if _, err := target.Load("law"); err == nil {
		t.Error("a kind that there is not is accepted")
	}
	if _, err := new(Target).Load(Warm); err == nil {
		t.Error("reads of nobody are accepted")
	}
}

func TestPeopleThatAreNotCreatedAreAnError(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "full", http.StatusServiceUnavailable) }))
	defer s.Close()
	target := &Target{Address: strings.TrimPrefix(s.URL, "http://")}
	if err := target.Fill(10, time.Minute); err == nil {
		t.Error("no error")
	}
}
