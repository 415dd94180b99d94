package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prototypster/pdvault/test/e2e/stack"
)

// rush is more clients than the vault may serve at once: requests come at a rate, whether those before are answered or
// not, and each waits for a free client.
type rush struct {
	i        *instance
	subjects []string
	person   atomic.Int64 // number of the next one to create

	good, shed, cut, unsent atomic.Int64

	mu    sync.Mutex
	wrong map[string]int // by what is wrong
}

// request is the n-th: of ten, eight reads, a batch and a create.
func (c *rush) request(n int64) string {
	subject := c.subjects[n%int64(len(c.subjects))]
	switch n % 10 {
	case 0:
		body := `{"purpose":"order-fulfilment","reads":[`
		for k, id := range c.subjects[:20] {
			if k > 0 {
				body += ","
			}
			body += `{"subject":"` + id + `","collection":"profile","fields":["email"]}`
		}
		return strings.Join(c.i.post("/v1/reads", body+"]}"), "")
	case 1:
		return strings.Join(c.i.post("/v1/subjects", `{"records":{"profile":`+person(int(c.person.Add(1)))+`}}`), "")
	}
	return c.i.authorised("shop", "GET "+fmt.Sprintf(readPath, subject, "order-fulfilment", "email"), "")
}

func (c *rush) fault(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wrong[fmt.Sprintf(format, args...)]++
}

// sheds reports whether a status says that there is too much to do.
func sheds(status int) bool {
	return status == http.StatusServiceUnavailable || status == http.StatusTooManyRequests
}

// judge counts an answer, which is right or one that says that there is too much to do.
func (c *rush) judge(status int, h http.Header, body []byte) {
	switch {
	case status == http.StatusOK || status == http.StatusCreated:
		c.good.Add(1)
		var batch struct {
			Results []struct {
				Problem *struct {
					Type   string
					Status int
				}
			}
		}
		_ = json.Unmarshal(body, &batch) // what is no batch has no results
		for _, r := range batch.Results {
			if r.Problem != nil && !sheds(r.Problem.Status) {
				c.fault("in a batch: %d %s", r.Problem.Status, r.Problem.Type)
			}
		}
	case sheds(status):
		c.shed.Add(1)
		if h.Get("Retry-After") == "" || h.Get("Content-Type") != "application/problem+json" || !strings.HasPrefix(problemType(body), "urn:pdvault:problem:") {
			c.fault("a refusal without Retry-After, or that is no problem")
		}
	default:
		c.fault("%d %s", status, problemType(body))
	}
}

// client sends what next yields over a connection that it keeps for as long as the server does.
func (c *rush) client(next <-chan int64) {
	var conn net.Conn
	var r *bufio.Reader
	drop := func() {
		if conn != nil {
			conn.Close()
			conn = nil
		}
	}
	defer drop()
	for n := range next {
		if conn == nil {
			var err error
			if conn, err = net.Dial("tcp", strings.TrimPrefix(c.i.URL, "http://")); err != nil {
				conn = nil
				c.fault("no connection")
				continue
			}
			r = bufio.NewReader(conn)
		}
		_ = conn.SetDeadline(time.Now().Add(onTheWire))
		if _, err := io.WriteString(conn, c.request(n)); err != nil {
			c.cut.Add(1)
			drop()
			continue
		}
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			if isTimeout(err) {
				c.fault("no answer")
			}
			c.cut.Add(1)
			drop()
			continue
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			c.fault("half an answer")
		}
		c.judge(resp.StatusCode, resp.Header, body)
		if resp.Close {
			drop()
		}
	}
}

// run lets rate requests a second come for a while, to clients, and waits until all are done.
func (c *rush) run(clients int, rate float64, duration time.Duration) {
	next := make(chan int64)
	var group sync.WaitGroup
	for range clients {
		group.Go(func() { c.client(next) })
	}
	begin := time.Now()
	for n := int64(0); ; {
		passed := time.Since(begin)
		if passed > duration {
			break
		}
		for due := int64(passed.Seconds() * rate); n < due; n++ {
			select {
			case next <- n:
			default:
				c.unsent.Add(1) // every client waits for an answer
			}
		}
		time.Sleep(time.Millisecond)
	}
	close(next)
	group.Wait()
}

// Ten times more than the vault can serve: it serves some and tells the others, in time and well-formed, that it is
// busy; both programs keep to their memory; and when the load is gone everything is as it was before.
func TestTenfoldOverloadIsShedAndPasses(t *testing.T) {
	const connections, inFlight = 96, 24
	i := start(t, stack.Options{VaultExtra: fmt.Sprintf("limits: {connections: %d, in_flight: %d}\n", connections, inFlight)})
	c := &rush{i: i, wrong: map[string]int{}}
	for range 100 {
		c.subjects = append(c.subjects, i.create(person(int(c.person.Add(1)))))
	}
	i.call("shop", "GET", fmt.Sprintf(readPath, c.subjects[0], "order-fulfilment", "email"), "")
	before := i.ledgerSize()
	goroutines, files := i.metric("go_goroutines"), i.metric("process_open_fds")
	keyFiles, known := descriptors(i.Keys)

	const measured = 2 * time.Second
	c.run(inFlight, 1e6, measured) // as fast as so many can
	capacity := float64(c.good.Load()) / measured.Seconds()
	if capacity == 0 {
		t.Fatalf("it serves nothing: %d refused, %d cut, %v", c.shed.Load(), c.cut.Load(), c.wrong)
	}
	for _, n := range []*atomic.Int64{&c.good, &c.shed, &c.cut, &c.unsent} {
		n.Store(0)
	}
	memory := i.WatchMemory()
	const load = 6 * time.Second
	c.run(10*connections, 10*capacity, load)
	vaultMemory, keysMemory := memory()
	t.Logf("%.0f/s is what it can serve; at %.0f/s by %d clients it served %.0f/s, told %d that it is busy, closed %d connections, "+
		"and %d were never sent; memory of pdvault %d MB, of pdkeys %d MB", capacity, 10*capacity, 10*connections,
		float64(c.good.Load())/load.Seconds(), c.shed.Load(), c.cut.Load(), c.unsent.Load(), vaultMemory>>20, keysMemory>>20)
	if c.good.Load() == 0 || i.metric(`pdvault_http_shed_total{limit="connections"}`) == 0 {
		t.Errorf("%d were served and %d refused, none for the number of connections", c.good.Load(), c.shed.Load())
	}
	for what, n := range c.wrong {
		t.Errorf("%d times: %s", n, what)
	}
	// The race detector takes a multiple.
	limit := int64(512 << 20)
	if stack.Race {
		limit *= 4
	}
	if vaultMemory > limit || keysMemory > limit/2 {
		t.Errorf("pdvault held %d MB, pdkeys %d MB", vaultMemory>>20, keysMemory>>20)
	}

	eventually(t, "a single request is served", func() bool {
		return i.call("shop", "GET", fmt.Sprintf(readPath, c.subjects[0], "order-fulfilment", "email"), "").Status == http.StatusOK
	})
	i.ready()
	i.settles(t, goroutines, files)
	if known {
		eventually(t, "descriptors of pdkeys are given back", func() bool { n, _ := descriptors(i.Keys); return n <= keyFiles+12 })
	}
	if n := i.metric("pdvault_http_in_flight"); n != 0 {
		t.Errorf("%v are still in flight", n)
	}
	i.everyAllowedReadIsServedOrFailed(before)
	i.clean(t, marker)
	i.verifyLedger()
}
