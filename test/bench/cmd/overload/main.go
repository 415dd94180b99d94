// Command overload measures what becomes of recorded reads when ten times more come than can be served: the rate that is
// served at its peak and under the load, what is refused and how, the memory of both programs meanwhile, and how soon
// a single read is answered as before when the load is gone. Everything, the clients included, runs on one machine.
//
// It must never be pointed at anything but an instance that it has started itself, and is bounded in time and clients.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/prototypster/pdvault/test/e2e/stack"
)

func main() {
	bin := flag.String("bin", "bin", "directory of the programs")
	duration := flag.Duration("duration", 5*time.Second, "of each measurement, at most a minute")
	clients := flag.Int("clients", 4096, "that the load comes from, at most 10,000")
	rate := flag.Float64("rate", 0, "requests per second of the load; 0: ten times the peak")
	extra := flag.String("config", "", "lines for pdvault's configuration, such as 'limits: {in_flight: 256}'")
	flag.Parse()
	if *duration <= 0 || *duration > time.Minute || *clients < 1 || *clients > 10_000 {
		fmt.Fprintln(os.Stderr, "overload: -duration and -clients are bounded")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *bin, *duration, *clients, *rate, *extra); err != nil {
		fmt.Fprintln(os.Stderr, "overload:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, bin string, duration time.Duration, clients int, rate float64, extra string) (err error) {
	if bin, err = filepath.Abs(bin); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "pdvo")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	s, err := stack.New(ctx, stack.Options{Bin: bin, Dir: filepath.Join(dir, "s"), VaultExtra: extra + "\n"})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	requests, err := reads(ctx, s, 2000)
	if err != nil {
		return err
	}
	address := strings.TrimPrefix(s.URL, "http://")
	peak := 0.0
	for _, n := range []int{32, 128, 512} { // the first warms up as well
		r := offer(ctx, address, requests, n, 0, duration)
		fmt.Printf("%4d clients, as fast as they are answered: %s\n", n, r)
		peak = max(peak, r.rate(r.good))
	}
	if peak == 0 {
		return errors.New("nothing was served")
	}
	alone := single(ctx, address, requests, 200)
	if rate == 0 {
		rate = 10 * peak
	}
	memory := s.WatchMemory()
	r := offer(ctx, address, requests, clients, rate, duration)
	vault, keys := memory()
	fmt.Printf("%4d clients, %.0f/s come: %s\n", clients, rate, r)
	fmt.Printf("goodput %.0f/s, %.0f %% of the peak of %.0f/s\n", r.rate(r.good), 100*r.rate(r.good)/peak, peak)
	if err := limits(ctx, s); err != nil {
		return err
	}
	fmt.Printf("own memory at most: pdvault %d MB, pdkeys %d MB\n", vault>>20, keys>>20)

	over := time.Now()
	for {
		if t := single(ctx, address, requests, 20); t > 0 && t <= 2*alone {
			fmt.Printf("a read alone took %v before; it does again %v after the load\n", alone, time.Since(over).Round(10*time.Millisecond))
			return nil
		}
		if time.Since(over) > 10*time.Second || ctx.Err() != nil {
			return errors.New("10 s after the load a single read is not answered as before")
		}
	}
}

// limits prints what pdvault counted of its limits.
func limits(ctx context.Context, s *stack.Stack) error {
	a, err := s.Do(ctx, "security", "GET", "/metrics", nil)
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(a.Body)) {
		if strings.HasPrefix(line, "pdvault_http_shed_total") || strings.HasPrefix(line, "pdvault_http_connections_evicted_total") {
			fmt.Print(line)
		}
	}
	return nil
}

// reads creates people and returns a request for each that reads a field of theirs.
func reads(ctx context.Context, s *stack.Stack, people int) ([][]byte, error) {
	var mu sync.Mutex
	var out [][]byte
	var failed error
	var group sync.WaitGroup
	next := make(chan int)
	for range 32 {
		group.Go(func() {
			for n := range next {
				a, err := s.Do(ctx, "shop", "POST", "/v1/subjects", fmt.Appendf(nil, `{"records":{"profile":{"email":"person%d@example.org"}}}`, n))
				var created struct{ ID string }
				if err == nil && (a.Status != http.StatusCreated || json.Unmarshal(a.Body, &created) != nil) {
					err = fmt.Errorf("creating: %d", a.Status)
				}
				mu.Lock()
				failed = errors.Join(failed, err)
				out = append(out, fmt.Appendf(nil, "GET /v1/subjects/%s/records/profile?purpose=order-fulfilment&fields=email HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n\r\n",
					created.ID, s.Token("shop")))
				mu.Unlock()
			}
		})
	}
	for n := range people {
		next <- n
	}
	close(next)
	group.Wait()
	return out, failed
}
