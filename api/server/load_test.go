package server_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/prototypster/pdvault/api"
	"github.com/prototypster/pdvault/api/server"
	"github.com/prototypster/pdvault/api/server/servertest"
)

// patience bounds what a test waits for; nothing in the promises is as long.
const patience = 20 * time.Second

func dial(t *testing.T, s *server.Server) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(patience))
	return conn
}

// send writes a request and returns the answer to it.
func send(conn net.Conn, request string) (*http.Response, error) {
	if _, err := io.WriteString(conn, request); err != nil {
		return nil, err
	}
	return http.ReadResponse(bufio.NewReader(conn), nil)
}

func authorised(line, rest string) string { return authorisedAs("shop", line, rest) }

func authorisedAs(caller, line, rest string) string {
	return line + " HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + servertest.Token(caller) + "\r\n" + rest + "\r\n"
}

// busy fails the test unless r is the answer to a request that was refused since too much is under way.
func busy(t *testing.T, r *http.Response) {
	t.Helper()
	var p api.Problem
	if err := json.NewDecoder(r.Body).Decode(&p); err != nil {
		t.Errorf("%d: %v", r.StatusCode, err)
		return
	}
	if r.StatusCode != http.StatusServiceUnavailable || p.Type != api.ProblemBusy || r.Header.Get("Retry-After") == "" {
		t.Errorf("%d %s, Retry-After %q", r.StatusCode, p.Type, r.Header.Get("Retry-After"))
	}
}

// value returns the sum of a metric over its labels, or over those that have a value.
func value(t *testing.T, r *prometheus.Registry, name string, label ...string) float64 {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	sum := 0.0
	for _, f := range families {
		if f.GetName() == name {
			for _, m := range f.Metric {
				if len(label) > 0 && !strings.Contains(m.String(), strconv.Quote(label[0])) {
					continue
				}
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v", what, patience)
		}
	}
}

// More requests than are worked on at once are refused as busy, after a short wait and undone; probes and metrics are
// answered; and when the load is gone, so is every trace of it.
func TestMoreThanIsWorkedOnAtOnceIsRefusedAsBusy(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	const limit, clients = 4, 20 // of two callers, each of which has a share of 3
	registry := prometheus.NewRegistry()
	b := servertest.NewBroker(t)
	id := b.MustCreate("profile", `{"email":"a@example.org"}`)
	s := servertest.MustServer(t, b, server.Config{Listen: "127.0.0.1:0", MaxInFlight: limit, Registry: registry})
	t.Run("load", func(t *testing.T) {
		serve(t, s)
		line := "GET /v1/subjects/" + id.String() + "/records/profile?purpose=account"
		read := authorised(line, "Connection: close\r\n")
		before, unblock := b.Calls(), b.Block()
		defer unblock()
		var served, refused atomic.Int64
		var group sync.WaitGroup
		for n := range clients {
			conn, request := dial(t, s), read
			if n%2 == 1 {
				request = authorisedAs("privacy", line, "Connection: close\r\n")
			}
			group.Go(func() {
				r, err := send(conn, request)
				switch {
				case err != nil:
					t.Error(err)
				case r.StatusCode == http.StatusOK:
					served.Add(1)
				default:
					refused.Add(1)
					busy(t, r)
				}
			})
		}
		await(t, "the rest is refused", func() bool { return refused.Load() == clients-limit })
		for _, probe := range []string{"/livez", "/readyz"} {
			if r, err := send(dial(t, s), "GET "+probe+" HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil || r.StatusCode != http.StatusOK {
				t.Errorf("%s meanwhile: %v, %v", probe, r, err)
			}
		}
		if n := value(t, registry, "pdvault_http_in_flight"); n != limit {
			t.Errorf("%v in flight", n)
		}
		unblock()
		group.Wait()
		if served.Load() != limit || b.Calls() != before+limit {
			t.Errorf("%d were served and %d reached the broker, %d may be at once", served.Load(), b.Calls()-before, limit)
		}
		if r, err := send(dial(t, s), read); err != nil || r.StatusCode != http.StatusOK {
			t.Errorf("after the load: %v, %v", r, err)
		}
		if n := value(t, registry, "pdvault_http_shed_total"); n != clients-limit {
			t.Errorf("%v were counted as refused", n)
		}
		for _, limit := range []string{"in-flight", "caller"} {
			if n := value(t, registry, "pdvault_http_shed_total", limit); n == 0 {
				t.Errorf("none was refused for %s", limit)
			}
		}
	})
	if n := value(t, registry, "pdvault_http_in_flight") + value(t, registry, "pdvault_http_connections"); n != 0 {
		t.Errorf("%v requests and connections are left", n)
	}
}

// A caller that asks for more than is worked on at once, in single reads and in batches, does not keep others from being served,
// nor have them wait behind all that it asks.
func TestOneCallerLeavesPlacesToTheOthers(t *testing.T) {
	for name, tt := range map[string]struct {
		limit, share, asked int
		request             func(caller, id string) string
	}{
		"reads": {8, 6, 40, func(caller, id string) string {
			return authorisedAs(caller, "GET /v1/subjects/"+id+"/records/profile?purpose=account", "")
		}},
		"batches": {64, 24, 60, func(caller, id string) string { // of 32 that are in memory
			body := `{"purpose":"account","reads":[{"subject":"` + id + `","collection":"profile"}]}`
			return authorisedAs(caller, "POST /v1/reads", fmt.Sprintf("Content-Type: application/json\r\nContent-Length: %d\r\n", len(body))) + body
		}},
	} {
		t.Run(name, func(t *testing.T) {
			b := servertest.NewBroker(t)
			id := b.MustCreate("profile", `{"email":"a@example.org"}`).String()
			registry := prometheus.NewRegistry()
			s := servertest.MustServer(t, b, server.Config{Listen: "127.0.0.1:0", MaxInFlight: tt.limit, Registry: registry})
			serve(t, s)
			unblock := b.Block()
			defer unblock()
			ask := func(caller string) net.Conn {
				conn := dial(t, s)
				if _, err := io.WriteString(conn, tt.request(caller, id)); err != nil {
					t.Fatal(err)
				}
				return conn
			}
			for range tt.asked {
				ask("shop")
			}
			await(t, "one caller has its share", func() bool { return value(t, registry, "pdvault_http_in_flight") == float64(tt.share) })
			other := ask("courier")
			await(t, "the other has a place", func() bool { return value(t, registry, "pdvault_http_in_flight") == float64(tt.share+1) })
			unblock()
			if r, err := http.ReadResponse(bufio.NewReader(other), nil); err != nil || r.StatusCode == http.StatusServiceUnavailable {
				t.Errorf("the other: %v, %v", r, err)
			}
		})
	}
}

// A large body counts more than once, so few of them fill the server, and a small one still waits for its turn.
func TestLargeBodiesCountMoreThanOnce(t *testing.T) {
	b := servertest.NewBroker(t)
	registry := prometheus.NewRegistry()
	s := servertest.MustServer(t, b, server.Config{Listen: "127.0.0.1:0", MaxInFlight: 100, Registry: registry})
	serve(t, s)
	unblock := b.Block()
	defer unblock()
	body := `{"records":{"profile":{"x":"` + strings.Repeat("x", 60<<10) + `"}}}`
	conn := dial(t, s)
	if _, err := io.WriteString(conn, authorised("POST /v1/subjects", fmt.Sprintf("Content-Type: application/json\r\nContent-Length: %d\r\n", len(body)))+body); err != nil {
		t.Fatal(err)
	}
	await(t, "it counts", func() bool { return value(t, registry, "pdvault_http_in_flight") == 61 })
	r, err := send(dial(t, s), authorised("POST /v1/subjects", fmt.Sprintf("Content-Type: application/json\r\nContent-Length: %d\r\n", len(body)))+body)
	if err != nil {
		t.Fatal(err)
	}
	busy(t, r)
}

// Who holds connections without a request shuts nobody out, and keeps none of them when others need the place.
func TestConnectionsWithoutARequestMakeRoom(t *testing.T) {
	const limit = 8
	registry := prometheus.NewRegistry()
	b := servertest.NewBroker(t)
	s := servertest.MustServer(t, b, server.Config{Listen: "127.0.0.1:0", MaxConnections: limit, Registry: registry})
	serve(t, s)
	var held []net.Conn
	for n := range 4 * limit {
		if n%limit == 0 {
			time.Sleep(600 * time.Millisecond) // who has only just come is left alone
		}
		conn := dial(t, s)
		held = append(held, conn)
		if n%2 == 0 { // half of a head
			if _, err := io.WriteString(conn, "GET /livez HTTP/1.1\r\nHost: x\r\n"); err != nil {
				t.Fatal(err)
			}
		}
	}
	time.Sleep(600 * time.Millisecond)
	for range limit {
		r, err := send(dial(t, s), authorised("GET /v1/policy", ""))
		if err != nil || r.StatusCode != http.StatusOK {
			t.Fatalf("a request among them: %v, %v", r, err)
		}
	}
	if n := value(t, registry, "pdvault_http_connections"); n > 2*limit {
		t.Errorf("%v connections are open", n)
	}
	if n := value(t, registry, "pdvault_http_connections_evicted_total"); n < 3*limit {
		t.Errorf("%v were closed to make room", n)
	}
	for _, conn := range held {
		if n, err := io.Copy(io.Discard, conn); n != 0 && err == nil {
			t.Errorf("%d bytes were said on a connection that made room", n)
		}
	}
}

// When every connection has a request under way, the next is told that the server is busy, and probes are answered.
func TestAConnectionTooManyIsToldSo(t *testing.T) {
	const limit = 4
	b := servertest.NewBroker(t)
	registry := prometheus.NewRegistry()
	s := servertest.MustServer(t, b, server.Config{Listen: "127.0.0.1:0", MaxConnections: limit, Registry: registry})
	serve(t, s)
	unblock := b.Block()
	var under []net.Conn
	for n := range limit { // of two callers, each of which has a share
		conn := dial(t, s)
		under = append(under, conn)
		request := authorisedAs([]string{"shop", "privacy"}[n%2], "GET /v1/policy", "")
		if _, err := io.WriteString(conn, request); err != nil {
			t.Fatal(err)
		}
	}
	await(t, "all are under way", func() bool { return value(t, registry, "pdvault_http_in_flight") == limit })
	for range 3 {
		r, err := send(dial(t, s), authorised("GET /v1/policy", ""))
		if err != nil {
			t.Fatal(err)
		}
		if !r.Close {
			t.Error("the connection stays open")
		}
		busy(t, r)
		if r, err := send(dial(t, s), "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil || r.StatusCode != http.StatusOK || !r.Close {
			t.Errorf("a probe: %v, %v", r, err)
		}
		if r, err := send(dial(t, s), "GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil || r.StatusCode != http.StatusNotFound || !r.Close {
			t.Errorf("no such path: %v, %v", r, err)
		}
	}
	// There is an end to that too: some are told, the others closed, and none is kept.
	var many sync.WaitGroup
	for range 6 * limit {
		conn := dial(t, s)
		many.Go(func() {
			if r, err := send(conn, authorised("POST /v1/subjects", "Content-Length: 1000\r\n")+"{"); err == nil {
				busy(t, r)
			}
		})
	}
	many.Wait()
	await(t, "they are gone", func() bool { return value(t, registry, "pdvault_http_connections") == limit })
	unblock()
	for _, conn := range under {
		if r, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil || r.StatusCode != http.StatusOK {
			t.Errorf("one that was under way: %v, %v", r, err)
		}
	}
}

// A body that nobody wants is not waited for: who is refused before it gets the answer, and loses the connection.
func TestABodyThatIsNotWantedIsNotWaitedFor(t *testing.T) {
	s := servertest.MustServer(t, servertest.NewBroker(t), server.Config{Listen: "127.0.0.1:0"})
	serve(t, s)
	length := "Content-Type: application/json\r\nContent-Length: 1000\r\n"
	for name, tt := range map[string]struct {
		request string
		status  int
	}{
		"no token":     {"POST /v1/subjects HTTP/1.1\r\nHost: x\r\n" + length + "\r\n{", 401},
		"wrong token":  {"POST /v1/subjects HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer x\r\n" + length + "\r\n{", 401},
		"no such path": {"POST /v1/nothing HTTP/1.1\r\nHost: x\r\n" + length + "\r\n{", 404},
		"chunks":       {"POST /v1/subjects HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{", 401},
		"wrong type":   {authorised("POST /v1/subjects", "Content-Type: text/plain\r\nContent-Length: 1000\r\n") + "{", 415},
		"takes none":   {authorised("GET /v1/policy", length) + "{", 400},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn := dial(t, s)
			// Less than a request may take, which is what net/http alone would wait for.
			_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
			r, err := send(conn, tt.request)
			if err != nil {
				t.Fatal(err)
			}
			if r.StatusCode != tt.status {
				t.Errorf("%d, want %d", r.StatusCode, tt.status)
			}
			if _, err := io.Copy(io.Discard, conn); err != nil {
				t.Errorf("the connection is held: %v", err)
			}
		})
	}
}

// A body in chunks that ends before its last chunk is no body, however long it is.
func TestABodyThatIsCutOffIsNotTaken(t *testing.T) {
	b := servertest.NewBroker(t)
	s := servertest.MustServer(t, b, server.Config{Listen: "127.0.0.1:0"})
	serve(t, s)
	for _, size := range []int{0, 100, 64 << 10, 70 << 10} {
		object := `{"records":{"profile":{"x":"` + strings.Repeat("x", size/2) + `","y":"` + strings.Repeat("y", size/2) + `"}}}`
		request := authorised("POST /v1/subjects", "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n") +
			fmt.Sprintf("%x\r\n%s\r\n", len(object), object)
		before := b.Calls()
		conn := dial(t, s).(*net.TCPConn)
		if _, err := io.WriteString(conn, request); err != nil {
			t.Fatal(err)
		}
		_ = conn.CloseWrite()
		r, err := http.ReadResponse(bufio.NewReader(conn), nil)
		// The end of what the client sends may also be taken for that of the client.
		if err != nil || r.StatusCode != http.StatusBadRequest && r.StatusCode != 499 || b.Calls() != before {
			t.Errorf("%d bytes without an end: %v, %v, %d calls", len(object), r, err, b.Calls()-before)
		}
		r, err = send(dial(t, s), request+"0\r\n\r\n")
		if err != nil || r.StatusCode != http.StatusCreated {
			t.Errorf("%d bytes and the end: %v, %v", len(object), r, err)
		}
	}
}

// A request with a length and chunks is read by its chunks, and nothing behind them is taken for another request:
// somebody in front may have taken it for a part of the body.
func TestNothingBehindChunksIsTakenForARequest(t *testing.T) {
	b := servertest.NewBroker(t)
	s := servertest.MustServer(t, b, server.Config{Listen: "127.0.0.1:0"})
	serve(t, s)
	behind := authorised("GET /v1/policy", "")
	for name, request := range map[string]string{
		"length and chunks": authorised("POST /v1/subjects", fmt.Sprintf("Content-Type: application/json\r\nContent-Length: %d\r\nTransfer-Encoding: chunked\r\n", 5+len(behind))) + "0\r\n\r\n",
		"chunks":            authorised("POST /v1/subjects", "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n") + "2\r\n{}\r\n0\r\n\r\n",
		"no such path":      authorised("POST /nothing", "Transfer-Encoding: chunked\r\n") + "0\r\n\r\n",
		"a probe":           "GET /livez HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	} {
		before := b.Calls()
		conn := dial(t, s)
		if _, err := io.WriteString(conn, request+behind); err != nil {
			t.Fatal(err)
		}
		said, err := io.ReadAll(conn)
		if n := strings.Count(string(said), "HTTP/1.1 "); err != nil || n != 1 || b.Calls() != before {
			t.Errorf("%s: %d answers, %v", name, n, err)
		}
	}
}
