package e2e

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prototypster/pdvault/test/e2e/stack"
)

// slow is a client that keeps a connection as long as it can.
type slow struct {
	name  string
	count int
	head  string
	drip  string        // sent again and again
	pause time.Duration // between two of them
}

// hold runs clients of kind until the server has cut each of them, and counts those that it has not.
func (i *instance) hold(group *sync.WaitGroup, kind slow, left *atomic.Int64) {
	for range kind.count {
		conn := i.dialRaw()
		left.Add(1)
		group.Go(func() {
			defer conn.Close()
			if _, err := io.WriteString(conn, kind.head); err != nil {
				left.Add(-1)
				return
			}
			cut := make(chan struct{})
			go func() {
				defer close(cut)
				if _, err := io.Copy(io.Discard, conn); !isTimeout(err) {
					left.Add(-1)
				}
			}()
			for kind.drip != "" {
				select {
				case <-cut:
					return
				case <-time.After(kind.pause):
				}
				if _, err := io.WriteString(conn, kind.drip); err != nil {
					break
				}
			}
			<-cut
		})
	}
}

func isTimeout(err error) bool {
	e, ok := err.(net.Error)
	return ok && e.Timeout()
}

// Clients that send their heads or bodies a byte at a time, or nothing, are cut off one and all, without a token at once
// and with one at the end of the time that a request has. Everybody else is served meanwhile, on new connections as on
// old ones, and nothing of it is left.
func TestSlowClientsAreCutAndOthersAreServed(t *testing.T) {
	i := start(t, stackOptions())
	subject := i.create(person(1))
	goroutines, files := i.metric("go_goroutines"), i.metric("process_open_fds")
	length := "Content-Type: application/json\r\nContent-Length: 60000\r\n"
	chunks := "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n"
	var group sync.WaitGroup
	var left atomic.Int64
	for _, kind := range []slow{
		{"heads", 300, "GET /livez HTTP/1.1\r\nHost: pdvault\r\n", "X: 1\r\n", 500 * time.Millisecond},
		{"nothing", 100, "", "", 0},
		{"bodies without a token", 100, "POST /v1/subjects HTTP/1.1\r\nHost: pdvault\r\n" + length + "\r\n", " ", 500 * time.Millisecond},
		{"chunks without a token", 50, "POST /v1/subjects HTTP/1.1\r\nHost: pdvault\r\n" + chunks + "\r\n", "1\r\n \r\n", 500 * time.Millisecond},
		{"bodies", 100, i.authorised("shop", "POST /v1/subjects", length), " ", 500 * time.Millisecond},
		{"chunks", 50, i.authorised("shop", "POST /v1/subjects", chunks), "1\r\n \r\n", 500 * time.Millisecond},
	} {
		i.hold(&group, kind, &left)
	}
	done := make(chan struct{})
	go func() { group.Wait(); close(done) }()
	served := 0
	for open := true; open; {
		select {
		case <-done:
			open = false
		case <-time.After(50 * time.Millisecond):
		}
		i.servedRight(subject, 1)
		if x := i.exchange(1, i.authorised("shop", "GET "+fmt.Sprintf(readPath, subject, "order-fulfilment", "email"), "")); len(x.answers) != 1 || x.answers[0].Status != http.StatusOK {
			t.Errorf("on a new connection: %.200s", x.raw)
		}
		served += 2
	}
	if n := left.Load(); n != 0 {
		t.Errorf("%d slow clients were not cut", n)
	}
	t.Logf("%d reads were served meanwhile", served)
	i.settles(t, goroutines, files)
	i.clean(t, marker)
}

// More connections than there may be, without a request on them, shut nobody out.
func TestIdleConnectionsBeyondTheLimitShutNobodyOut(t *testing.T) {
	const limit = 32
	i := start(t, stack.Options{VaultExtra: fmt.Sprintf("limits: {connections: %d}\n", limit)})
	subject := i.create(person(1))
	goroutines, files := i.metric("go_goroutines"), i.metric("process_open_fds")
	var held []net.Conn
	for n := range 6 * limit {
		conn := i.dialRaw()
		held = append(held, conn)
		if n%3 == 0 { // one that has been served before
			if _, err := io.WriteString(conn, "GET /livez HTTP/1.1\r\nHost: pdvault\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
		}
		if n%16 == 0 {
			time.Sleep(1200 * time.Millisecond) // who has only just come, or was served, is left alone
			x := i.exchange(1, i.authorised("shop", "GET "+fmt.Sprintf(readPath, subject, "order-fulfilment", "email"), ""))
			if len(x.answers) != 1 || x.answers[0].Status != http.StatusOK {
				t.Errorf("beside %d held ones: %.200s", n, x.raw)
			}
		}
	}
	if n := i.metric("pdvault_http_connections"); n > 2*limit {
		t.Errorf("%v connections are open", n)
	}
	if n := i.metric("pdvault_http_connections_evicted_total"); n < 3*limit {
		t.Errorf("%v made room", n)
	}
	for _, conn := range held {
		conn.Close()
	}
	i.settles(t, goroutines, files)
	i.clean(t, marker)
}

// settles waits until pdvault has no more goroutines and descriptors than before, but for those of connections that are
// kept for the next request.
func (i *instance) settles(t *testing.T, goroutines, files float64) {
	t.Helper()
	const room = 12
	eventually(t, "goroutines and descriptors are given back", func() bool {
		i.HTTP.CloseIdleConnections()
		return i.metric("go_goroutines") <= goroutines+room && i.metric("process_open_fds") <= files+room
	})
}
