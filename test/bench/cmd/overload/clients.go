package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// result counts the outcomes of requests.
type result struct {
	good, busy, other, cut, unsent int64
	took                           time.Duration
	p50, p99                       time.Duration // of those that were served
}

func (r result) rate(n int64) float64 { return float64(n) / r.took.Seconds() }

func (r result) String() string {
	return fmt.Sprintf("%.0f/s served (p50 %v, p99 %v), %d refused as busy, %d answered otherwise, %d lost with their connection, %d never sent",
		r.rate(r.good), r.p50.Round(10*time.Microsecond), r.p99.Round(10*time.Microsecond), r.busy, r.other, r.cut, r.unsent)
}

// offer lets requests come at a rate for a while, whether those before are answered or not; one that finds every client
// waiting is not sent. A rate of 0 is as fast as the clients are answered.
func offer(ctx context.Context, address string, requests [][]byte, clients int, rate float64, duration time.Duration) result {
	var good, busy, other, cut, unsent atomic.Int64
	var mu sync.Mutex
	var latencies []time.Duration
	next := make(chan int)
	var group sync.WaitGroup
	begin := time.Now()
	for range clients {
		group.Go(func() {
			c := client{address: address}
			defer c.close()
			var mine []time.Duration
			for n := range next {
				sent := time.Now()
				switch status, err := c.again(requests[n%len(requests)]); {
				case err != nil:
					cut.Add(1)
				case status == 200:
					good.Add(1)
					mine = append(mine, time.Since(sent))
				case status == 503 || status == 429:
					busy.Add(1)
				default:
					other.Add(1)
				}
			}
			mu.Lock()
			latencies = append(latencies, mine...)
			mu.Unlock()
		})
	}
	for n := 0; time.Since(begin) < duration && ctx.Err() == nil; {
		if rate == 0 {
			select {
			case next <- n:
				n++
			case <-time.After(time.Until(begin.Add(duration))):
			}
			continue
		}
		for due := int(time.Since(begin).Seconds() * rate); n < due; n++ {
			select {
			case next <- n:
			default:
				unsent.Add(1)
			}
		}
		time.Sleep(500 * time.Microsecond)
	}
	took := time.Since(begin)
	close(next)
	group.Wait()
	r := result{good: good.Load(), busy: busy.Load(), other: other.Load(), cut: cut.Load(), unsent: unsent.Load(), took: took}
	if len(latencies) > 0 {
		slices.Sort(latencies)
		r.p50, r.p99 = latencies[len(latencies)/2], latencies[len(latencies)*99/100]
	}
	return r
}

// single returns the median time of a few requests, one after the other; 0 when one was not served.
func single(ctx context.Context, address string, requests [][]byte, count int) time.Duration {
	c := client{address: address}
	defer c.close()
	var all []time.Duration
	for n := range count {
		begin := time.Now()
		if status, err := c.do(requests[n%len(requests)]); err != nil || status != 200 || ctx.Err() != nil {
			return 0
		}
		all = append(all, time.Since(begin))
	}
	slices.Sort(all)
	return all[len(all)/2]
}

// client is one connection, made anew when the server has closed it.
type client struct {
	address string
	conn    net.Conn
	r       *bufio.Reader
}

func (c *client) close() {
	if c.conn != nil {
		c.conn.Close()
		c.conn = nil
	}
}

// again is do, repeated on a new connection when the one that was kept has been closed meanwhile, as HTTP clients do
// with reads.
func (c *client) again(request []byte) (status int, err error) {
	kept := c.conn != nil
	if status, err = c.do(request); err != nil && kept {
		return c.do(request)
	}
	return status, err
}

func (c *client) do(request []byte) (status int, err error) {
	if c.conn == nil {
		if c.conn, err = net.Dial("tcp", c.address); err != nil {
			c.conn = nil
			return 0, err
		}
		c.r = bufio.NewReaderSize(c.conn, 2048)
	}
	keep := false
	defer func() {
		if !keep {
			c.close()
		}
	}()
	if err := c.conn.SetDeadline(time.Now().Add(15 * time.Second)); err != nil {
		return 0, err
	}
	if _, err := c.conn.Write(request); err != nil {
		return 0, err
	}
	line, err := c.r.ReadString('\n')
	if err != nil || len(line) < 12 {
		return 0, errors.Join(err, errors.New("no answer"))
	}
	if status, err = strconv.Atoi(line[9:12]); err != nil {
		return 0, err
	}
	length, end := 0, false
	for {
		line, err := c.r.ReadString('\n')
		if err != nil {
			return 0, err
		}
		name, value, ok := strings.Cut(strings.TrimSpace(line), ": ")
		if !ok {
			break
		}
		switch name {
		case "Content-Length":
			if length, err = strconv.Atoi(value); err != nil {
				return 0, err
			}
		case "Connection":
			end = value == "close"
		}
	}
	if _, err := io.CopyN(io.Discard, c.r, int64(length)); err != nil {
		return 0, err
	}
	keep = !end
	return status, nil
}
