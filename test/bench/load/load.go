// Package load is an HTTP/1.1 load generator that is light enough not to be the limit: one goroutine and one
// connection per client, requests built once, answers read without a client library.
//
// It must never be pointed at anything but loopback, and every run is bounded in time and count.
package load

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Config is one run.
type Config struct {
	Address     string          // host:port on loopback
	Connections int             // clients, each with one request under way
	Duration    time.Duration   // at most
	Count       int64           // requests at most; 0: no bound but Duration
	Stop        <-chan struct{} // when closed, the run ends before its Duration; nil: it does not
	// Request returns the bytes of the n-th request, n from 0. It is called from many goroutines and may
	// return the same slice again; buf is the caller's to reuse.
	Request func(n int64, buf []byte) []byte
	// Answered, when set, is given each answer's status and body. The body is valid during the call.
	Answered func(n int64, status int, body []byte)
}

// Result is what a run measured.
type Result struct {
	Requests int64 // answered with the status 2xx
	Failed   int64 // answered otherwise, or not at all
	Took     time.Duration
	P50, P99 time.Duration
	Max      time.Duration
}

// Rate is the number of requests per second that were answered with 2xx.
func (r Result) Rate() float64 { return float64(r.Requests) / r.Took.Seconds() }

// Run runs c to its end.
func Run(c Config) (Result, error) {
	host, _, err := net.SplitHostPort(c.Address)
	if ip := net.ParseIP(host); err != nil || ip == nil || !ip.IsLoopback() {
		return Result{}, fmt.Errorf("load: %s is not a loopback address", c.Address)
	}
	if c.Duration <= 0 || c.Duration > time.Hour {
		return Result{}, errors.New("load: Duration must be within an hour")
	}
	var next, good, bad atomic.Int64
	histograms := make([]*hdrhistogram.Histogram, c.Connections)
	errs := make([]error, c.Connections)
	start := time.Now()
	deadline := start.Add(c.Duration)
	var wg sync.WaitGroup
	for i := range c.Connections {
		h := hdrhistogram.New(1, int64(time.Minute/time.Microsecond), 3)
		histograms[i] = h
		wg.Go(func() {
			cl := client{config: &c, deadline: deadline}
			defer cl.close()
			for time.Now().Before(deadline) && !stopped(c.Stop) {
				n := next.Add(1) - 1
				if c.Count > 0 && n >= c.Count {
					return
				}
				began := time.Now()
				status, err := cl.do(n)
				if err != nil || status/100 != 2 {
					bad.Add(1)
					if err != nil && errs[i] == nil {
						errs[i] = err
					}
					continue
				}
				good.Add(1)
				_ = h.RecordValue(int64(time.Since(began) / time.Microsecond)) // what is over a minute is over the deadline too
			}
		})
	}
	wg.Wait()
	all := hdrhistogram.New(1, int64(time.Minute/time.Microsecond), 3)
	for _, h := range histograms {
		all.Merge(h)
	}
	at := func(q float64) time.Duration { return time.Duration(all.ValueAtQuantile(q)) * time.Microsecond }
	return Result{
		Requests: good.Load(), Failed: bad.Load(), Took: time.Since(start),
		P50: at(50), P99: at(99), Max: time.Duration(all.Max()) * time.Microsecond,
	}, errors.Join(errs...)
}

func stopped(stop <-chan struct{}) bool {
	select {
	case <-stop:
		return true
	default:
		return false
	}
}

// client is one connection.
type client struct {
	config   *Config
	deadline time.Time
	conn     net.Conn
	r        *bufio.Reader
	out      []byte
	body     []byte
}

func (cl *client) close() {
	if cl.conn != nil {
		cl.conn.Close()
		cl.conn = nil
	}
}

func (cl *client) do(n int64) (int, error) {
	if cl.conn == nil {
		conn, err := net.Dial("tcp", cl.config.Address)
		if err != nil {
			return 0, err
		}
		conn.SetDeadline(cl.deadline.Add(10 * time.Second))
		cl.conn, cl.r = conn, bufio.NewReaderSize(conn, 16<<10)
	}
	cl.out = cl.config.Request(n, cl.out[:0])
	if _, err := cl.conn.Write(cl.out); err != nil {
		cl.close()
		return 0, err
	}
	status, err := cl.answer()
	if err != nil {
		cl.close()
		return 0, err
	}
	if cl.config.Answered != nil {
		cl.config.Answered(n, status, cl.body)
	}
	return status, nil
}

// answer reads one answer: a status line, headers, and a body by length or in chunks.
func (cl *client) answer() (status int, err error) {
	line, err := cl.r.ReadSlice('\n')
	if err != nil {
		return 0, err
	}
	if len(line) < 12 {
		return 0, errors.New("load: short status line")
	}
	if status, err = strconv.Atoi(string(line[9:12])); err != nil {
		return 0, err
	}
	length, chunked := 0, false
	for {
		line, err := cl.r.ReadSlice('\n')
		if err != nil {
			return 0, err
		}
		if len(line) <= 2 {
			break
		}
		if v, ok := header(line, "content-length:"); ok {
			if length, err = strconv.Atoi(string(v)); err != nil {
				return 0, err
			}
		} else if v, ok := header(line, "transfer-encoding:"); ok {
			chunked = bytes.EqualFold(v, []byte("chunked"))
		}
	}
	cl.body = cl.body[:0]
	if !chunked {
		return status, cl.take(length)
	}
	for {
		line, err := cl.r.ReadSlice('\n')
		if err != nil {
			return 0, err
		}
		size, err := strconv.ParseInt(string(bytes.TrimSpace(line)), 16, 32)
		if err != nil {
			return 0, err
		}
		if err := cl.take(int(size)); err != nil {
			return 0, err
		}
		if _, err := cl.r.Discard(2); err != nil {
			return 0, err
		}
		if size == 0 {
			return status, nil
		}
	}
}

// take appends n bytes to the body.
func (cl *client) take(n int) error {
	at := len(cl.body)
	if cap(cl.body) < at+n {
		cl.body = append(make([]byte, 0, 2*(at+n)), cl.body...)
	}
	cl.body = cl.body[:at+n]
	_, err := io.ReadFull(cl.r, cl.body[at:])
	return err
}

func header(line []byte, name string) ([]byte, bool) {
	if len(line) < len(name) || !bytes.EqualFold(line[:len(name)], []byte(name)) {
		return nil, false
	}
	return bytes.TrimSpace(line[len(name):]), true
}
