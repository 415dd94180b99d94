package main

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/prototypster/pdvault/access"
	"github.com/prototypster/pdvault/api/server"
	"github.com/prototypster/pdvault/api/server/servertest"
)

// A rotation is followed through an outage of the server, and its end is not taken from a failure to answer.
func TestARotationIsFollowedThroughAnOutage(t *testing.T) {
	b := servertest.NewBroker(t)
	b.StepRotations(10)
	handler := servertest.MustServer(t, b, server.Config{}).Handler()
	var requests atomic.Int64
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch requests.Add(1) {
		case 2:
			b.Fail(access.ErrUnavailable)
		case 3:
			b.Fail(nil)
		}
		handler.ServeHTTP(w, r)
	}))
	defer s.Close()
	t.Setenv(tokenVariable, servertest.Token("security"))
	var stdout, stderr bytes.Buffer
	if code := run(t.Context(), []string{"keys", "rotate", "all-subjects", "--wait", "--server", s.URL}, nil, &stdout, &stderr); code != exitOK {
		t.Fatalf("exit code %d\n%s", code, &stderr)
	}
	if !strings.Contains(stdout.String(), `"state": "done"`) || requests.Load() < 3 {
		t.Errorf("%d requests\n%s", requests.Load(), &stdout)
	}
}

// A rotation that is done is waited for until its evidence is in the log, which is what makes a certificate final.
func TestARotationIsFollowedUntilItIsOnRecord(t *testing.T) {
	b := servertest.NewBroker(t)
	b.StepRotations(10)
	handler := servertest.MustServer(t, b, server.Config{}).Handler()
	record := regexp.MustCompile(`,"record":\d+`)
	unrecorded := 0
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer := httptest.NewRecorder()
		handler.ServeHTTP(answer, r)
		body := answer.Body.Bytes()
		if unrecorded == 0 && record.Match(body) {
			unrecorded, body = 1, record.ReplaceAll(body, nil)
		}
		w.Header().Set("Content-Type", answer.Header().Get("Content-Type"))
		w.WriteHeader(answer.Code)
		_, _ = w.Write(body) // the client finds out
	}))
	defer s.Close()
	t.Setenv(tokenVariable, servertest.Token("security"))
	var stdout, stderr bytes.Buffer
	if code := run(t.Context(), []string{"keys", "rotate", "kek", "--wait", "--server", s.URL}, nil, &stdout, &stderr); code != exitOK {
		t.Fatalf("exit code %d\n%s", code, &stderr)
	}
	if unrecorded == 0 || !strings.Contains(stdout.String(), `"record": `) {
		t.Errorf("not waited for:\n%s", &stdout)
	}
}

// One who does not want to wait any longer is told that the rotation goes on.
func TestGivingUpOnARotationDoesNotEndIt(t *testing.T) {
	b := servertest.NewBroker(t)
	handler := servertest.MustServer(t, b, server.Config{}).Handler()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		handler.ServeHTTP(w, r)
		b.Fail(access.ErrUnavailable)
	}))
	defer s.Close()
	t.Setenv(tokenVariable, servertest.Token("security"))
	args := []string{"keys", "rotate", "kek", "--wait", "--patience", "1ms", "--timeout", "100ms", "--server", s.URL}
	var stdout, stderr bytes.Buffer
	if code := run(t.Context(), args, nil, &stdout, &stderr); code != exitUnavailable || !strings.Contains(stderr.String(), "which goes on") {
		t.Errorf("exit code %d\n%s", code, &stderr)
	}
}
