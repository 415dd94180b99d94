// Package load is a load generator that is light enough not to be the limit: one goroutine and one connection
// per client, requests built once, answers read without a client library.
//
// A run is closed or open. In a closed one each connection sends its next request when it has the answer to the
// last: it shows the most that a server does. In an open one requests have times at which they are due, whatever
// the server does, and latency counts from then, so that a server that stalls cannot hide who had to wait.
//
// It must never be pointed at anything but loopback, and every run is bounded in time and count.
package load

import (
	"errors"
	"fmt"
	"net"
	"time"
)

// Config is one run over HTTP/1.1.
type Config struct {
	Address     string          // host:port on loopback
	Connections int             // clients, each with one request under way
	Duration    time.Duration   // at most
	Count       int64           // requests at most; 0: no bound but Duration
	Rate        float64         // requests due per second, over all connections; 0: a closed run
	Grace       time.Duration   // how long answers are waited for after Duration; 0: 10 s
	Stop        <-chan struct{} // when closed, the run ends before its Duration; nil: it does not
	// Request returns the bytes of the n-th request, n from 0. It is called from many goroutines and may
	// return the same slice again; buf is the caller's to reuse.
	Request func(n int64, buf []byte) []byte
	// Answered, when set, is given each answer's status and body. The body is valid during the call.
	Answered func(n int64, status int, body []byte)
	// Good, when set, says whether a body is what was asked for. It is given those of answers with a status of
	// 2xx; all others have failed.
	Good func(body []byte) bool
}

// Run runs c to its end.
func Run(c Config) (Result, error) {
	host, _, err := net.SplitHostPort(c.Address)
	if ip := net.ParseIP(host); err != nil || ip == nil || !ip.IsLoopback() {
		return Result{}, fmt.Errorf("load: %s is not a loopback address", c.Address)
	}
	if c.Request == nil {
		return Result{}, errors.New("load: Request is required")
	}
	if c.Grace == 0 {
		c.Grace = 10 * time.Second
	}
	last := time.Now().Add(c.Duration + c.Grace)
	return Do(Plan{Connections: c.Connections, Duration: c.Duration, Count: c.Count, Rate: c.Rate, Stop: c.Stop},
		func(int) (Worker, error) { return &client{config: &c, last: last}, nil })
}

// Do of a client is one request and its answer.
func (cl *client) Do(n int64) error {
	status, err := cl.exchange(n)
	if err == nil && (status/100 != 2 || cl.config.Good != nil && !cl.config.Good(cl.body)) {
		return errRefused
	}
	return err
}

// errRefused is an answer, so that it is counted and is no reason to complain.
var errRefused = errors.New("load: refused")
