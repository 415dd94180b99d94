package load

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

var get = []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n")

// serve starts a real server and returns its address.
func serve(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

func TestAnswersAreReadWhole(t *testing.T) {
	for name, tt := range map[string]struct {
		answer http.HandlerFunc
		want   string
		failed bool
	}{
		"by length":  {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "hello") }, "hello", false},
		"no content": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }, "", false},
		"in chunks": {func(w http.ResponseWriter, _ *http.Request) {
			for range 100 {
				fmt.Fprint(w, strings.Repeat("x", 1000))
				w.(http.Flusher).Flush()
			}
		}, strings.Repeat("x", 100_000), false},
		"refused": {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusTooManyRequests) }, "no\n", true},
		"closes": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Connection", "close")
			fmt.Fprint(w, "bye")
		}, "bye", false},
	} {
		t.Run(name, func(t *testing.T) {
			var answers, wrong atomic.Int64
			r, err := Run(Config{
				Address: serve(t, tt.answer), Connections: 2, Duration: time.Minute, Count: 20,
				Request: func(int64, []byte) []byte { return get },
				Answered: func(_ int64, _ int, body []byte) {
					answers.Add(1)
					if string(body) != tt.want {
						wrong.Add(1)
					}
				},
			})
			if err != nil || answers.Load() != 20 || wrong.Load() != 0 {
				t.Errorf("%d answers, %d of them wrong, error %v", answers.Load(), wrong.Load(), err)
			}
			if (r.Failed == 20) != tt.failed || r.Requests+r.Failed != 20 {
				t.Errorf("%d good, %d failed", r.Requests, r.Failed)
			}
		})
	}
}

func TestAnswersThatAreNotGoodHaveFailed(t *testing.T) {
	var n atomic.Int64
	r, err := Run(Config{
		Address:     serve(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, n.Add(1)%4 == 0) }),
		Connections: 2, Duration: time.Minute, Count: 20,
		Request: func(int64, []byte) []byte { return get },
		Good:    func(body []byte) bool { return string(body) == "true" },
	})
	if err != nil || r.Requests != 5 || r.Failed != 15 {
		t.Errorf("%d good, %d failed, error %v, want 5 and 15", r.Requests, r.Failed, err)
	}
}

func TestAServerThatStallsShowsInP99(t *testing.T) {
	const stall = 300 * time.Millisecond
	var n atomic.Int64
	address := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		if n.Add(1) == 100 {
			time.Sleep(stall)
		}
	})
	r, err := Run(Config{
		Address: address, Connections: 1, Duration: 30 * time.Second, Rate: 1000, Count: 1000,
		Request: func(int64, []byte) []byte { return get },
	})
	if err != nil || r.Requests != 1000 {
		t.Fatalf("%d requests, error %v", r.Requests, err)
	}
	// 300 of the 1000 fall due in the stall; only 10 may be left out of p99. A slower machine makes it longer only.
	if r.P99 < stall-20*time.Millisecond {
		t.Errorf("p99 is %v after a stall of %v", r.P99, stall)
	}
}

func TestAServerThatNeverAnswersEndsTheRun(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() // connections stay in its queue
	r, err := Run(Config{
		Address: l.Addr().String(), Connections: 3, Duration: 500 * time.Millisecond, Grace: 50 * time.Millisecond, Rate: 100,
		Request: func(int64, []byte) []byte { return get },
	})
	if err == nil || r.Requests != 0 || r.Failed != 3 || r.Unsent != 47 {
		t.Errorf("%d requests, %d failed, %d unsent, error %v; want 0, 3, 47 and an error", r.Requests, r.Failed, r.Unsent, err)
	}
}

func TestOnlyLoopbackIsLoaded(t *testing.T) {
	for _, address := range []string{"192.0.2.1:80", "[2001:db8::1]:80", "example.org:80", "localhost:80", "127.0.0.1", ""} {
		_, err := Run(Config{Address: address, Connections: 1, Duration: time.Second, Request: func(int64, []byte) []byte {
			t.Errorf("%s: a request is made", address)
			return get
		}})
		if err == nil {
			t.Errorf("%q is accepted", address)
		}
	}
}

func FuzzAnswer(f *testing.F) {
	for _, s := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
		"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok",
		"HTTP/1.1 200 OK\r\nContent-Length: 9223372036854775807\r\n\r\nok",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-2\r\nok\r\n0\r\n\r\n",
		"HTTP/1.1\r\n\r\n", "",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		cl := client{r: bufio.NewReader(strings.NewReader(s))}
		if _, err := cl.answer(); err == nil && len(cl.body) > len(s) {
			t.Errorf("a body of %d bytes out of %d", len(cl.body), len(s))
		}
	})
}
