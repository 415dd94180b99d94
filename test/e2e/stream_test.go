package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"
)

// Many requests in one piece are answered one by one and in their order, and after one that is malformed none is.
func TestRequestsInOnePieceAreAnsweredInOrder(t *testing.T) {
	i := start(t, stackOptions())
	subject := i.create(person(1))
	var sent strings.Builder
	var want []int
	for n := range 60 {
		switch n % 4 {
		case 0:
			sent.WriteString(i.authorised("shop", "GET "+fmt.Sprintf(readPath, subject, "order-fulfilment", "email"), ""))
			want = append(want, http.StatusOK)
		case 1:
			sent.WriteString("GET /v1/policy HTTP/1.1\r\nHost: pdvault\r\n\r\n")
			want = append(want, http.StatusUnauthorized)
		case 2:
			sent.WriteString(strings.Join(i.post("/v1/subjects", `{"records":{}`), ""))
			want = append(want, http.StatusBadRequest)
		case 3:
			sent.WriteString(i.authorised("shop", "GET /v1/subjects/"+uuid.NewString(), ""))
			want = append(want, http.StatusNotFound)
		}
	}
	x := i.exchange(len(want), sent.String())
	if len(x.answers) != len(want) {
		t.Fatalf("%d of %d were answered", len(x.answers), len(want))
	}
	for n, a := range x.answers {
		if a.Status != want[n] {
			t.Errorf("answer %d: %d, want %d", n, a.Status, want[n])
		}
	}
	bad := "GET /v1/policy HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"
	x = i.exchange(3, i.authorised("shop", "GET /v1/policy", "")+bad+i.authorised("shop", "DELETE /v1/subjects/"+subject+"/records/profile", "If-Match: \"1\"\r\n"))
	if len(x.answers) != 2 || x.answers[0].Status != http.StatusOK || x.answers[1].Status != http.StatusBadRequest || !x.closed {
		t.Errorf("after a malformed one: %d answers, closed %v", len(x.answers), x.closed)
	}
	i.servedRight(subject, 1)
	i.clean(t, marker)
}

// A request inside of the body of another one is never taken for a request, whatever is wrong with the one around it.
func TestABodyIsNeverTakenForARequest(t *testing.T) {
	i := start(t, stackOptions())
	subject := i.create(person(1))
	inner := i.authorised("shop", "DELETE /v1/subjects/"+subject+"/records/profile", "If-Match: \"1\"\r\n")
	length := fmt.Sprintf("Content-Length: %d\r\n", len(inner))
	for name, outer := range map[string]string{
		"no token":         "POST /v1/subjects HTTP/1.1\r\nHost: pdvault\r\n" + length + "\r\n",
		"no such path":     "POST /nothing HTTP/1.1\r\nHost: pdvault\r\n" + length + "\r\n",
		"no such method":   "PUT /v1/policy HTTP/1.1\r\nHost: pdvault\r\n" + length + "\r\n",
		"a probe":          "GET /livez HTTP/1.1\r\nHost: pdvault\r\n" + length + "\r\n",
		"wrong media type": i.authorised("shop", "POST /v1/subjects", length),
		"not JSON":         i.authorised("shop", "POST /v1/subjects", "Content-Type: application/json\r\n"+length),
		"no body wanted":   i.authorised("shop", "GET /v1/policy", length),
		"chunks and a length": i.authorised("shop", "POST /v1/subjects",
			"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n"+length) + "0\r\n\r\n",
		"expectation": i.authorised("shop", "POST /v1/subjects", "Content-Type: text/plain\r\nExpect: 100-continue\r\n"+length),
	} {
		t.Run(name, func(t *testing.T) {
			i := &instance{i.Stack, t}
			x := i.exchange(2, outer, inner, halfClose)
			if len(x.answers) > 1 || !x.closed {
				t.Errorf("%d answers, closed %v", len(x.answers), x.closed)
			}
		})
	}
	i.servedRight(subject, 1)
}

// Who says to come from elsewhere is neither believed nor written down.
func TestForwardingHeadersAreNotBelieved(t *testing.T) {
	i := start(t, stackOptions())
	subject := i.create(person(1))
	const elsewhere = "203.0.113.77"
	lines := "X-Forwarded-For: " + elsewhere + "\r\nX-Real-IP: " + elsewhere + "\r\nForwarded: for=" + elsewhere +
		"\r\nX-Forwarded-Host: " + elsewhere + "\r\nX-Forwarded-User: auditor\r\nX-Original-URL: /v1/keys\r\nX-Rewrite-URL: /v1/keys\r\n"
	before := i.ledgerSize()
	read := i.exchange(1, i.authorised("shop", "GET "+fmt.Sprintf(readPath, subject, "order-fulfilment", "email"), lines))
	denied := i.exchange(1, "GET /v1/policy HTTP/1.1\r\nHost: pdvault\r\nAuthorization: Bearer nonsense\r\n"+lines+"\r\n")
	other := i.exchange(1, i.authorised("shop", "GET /v1/policy/versions", lines))
	for n, x := range []exchange{read, denied, other} {
		if len(x.answers) != 1 || x.answers[0].Status != []int{200, 401, 200}[n] || bytes.Contains(x.raw, []byte(elsewhere)) {
			t.Errorf("request %d: %.300s", n, x.raw)
		}
	}
	if other.answers != nil && !bytes.Contains(other.answers[0].Body, []byte(`"versions"`)) {
		t.Errorf("another path was served: %.300s", other.raw)
	}
	page := i.call("auditor", "GET", fmt.Sprintf("/v1/access-records?cursor=%d", before), "")
	if page.Status != http.StatusOK || bytes.Contains(page.Body, []byte(elsewhere)) || !bytes.Contains(page.Body, []byte("login.denied")) {
		t.Errorf("the records: %d %s", page.Status, page.Body)
	}
	i.clean(t, elsewhere)
}

// Bodies of 100 MB, with their length or in chunks without end, with a token or without: the server takes a small part
// of each and no more memory than before.
func TestBodiesOfAHundredMegabytesAreCutOff(t *testing.T) {
	i := start(t, stackOptions())
	before, _ := i.Vault.Memory()
	const size, clients = 100 << 20, 5 // of each kind
	length := fmt.Sprintf("Content-Type: application/json\r\nContent-Length: %d\r\n", size)
	chunks := "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
	nobody := func(lines string) string { return "POST /v1/subjects HTTP/1.1\r\nHost: pdvault\r\n" + lines + "\r\n" }
	kinds := []struct {
		head   string
		status int
		chunks bool
	}{
		{i.authorised("shop", "POST /v1/subjects", length), http.StatusRequestEntityTooLarge, false},
		{i.authorised("shop", "POST /v1/subjects", chunks), http.StatusRequestEntityTooLarge, true},
		{i.authorised("shop", "POST /v1/lookups", chunks), http.StatusRequestEntityTooLarge, true},
		{nobody(length), http.StatusUnauthorized, false},
		{nobody(chunks), http.StatusUnauthorized, true},
	}
	piece := strings.Repeat(" ", 64<<10)
	framed := fmt.Sprintf("%x\r\n%s\r\n", len(piece), piece)
	var group sync.WaitGroup
	for n := range clients * len(kinds) {
		kind := kinds[n%len(kinds)]
		conn := i.dialRaw()
		taken := make(chan int, 1)
		group.Go(func() {
			sent := 0
			defer func() { taken <- sent }()
			if _, err := io.WriteString(conn, kind.head); err != nil {
				return
			}
			next := piece
			if kind.chunks {
				next = framed
			}
			for sent < size {
				n, err := io.WriteString(conn, next)
				if sent += n; err != nil {
					return
				}
			}
		})
		group.Go(func() {
			// The answer may be lost with the connection, which the server ends while bytes are still coming.
			said, _ := io.ReadAll(conn)
			conn.Close()
			if len(said) > 0 && !bytes.HasPrefix(said, fmt.Appendf(nil, "HTTP/1.1 %d ", kind.status)) {
				t.Errorf("%.100s, want %d", said, kind.status)
			}
			if sent := <-taken; sent >= size/2 {
				t.Errorf("the server took %d bytes", sent)
			}
		})
	}
	group.Wait()
	after, peak := i.Vault.Memory()
	if grown := after - before; grown > size {
		t.Errorf("pdvault has grown by %d MB", grown>>20)
	}
	t.Logf("pdvault's own memory: %d MB before, %d MB after, resident at most %d MB", before>>20, after>>20, peak>>20)
	i.create(person(1))
	i.clean(t, marker)
}
