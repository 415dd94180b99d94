// Command load drives a pdvault on loopback with requests of one kind, at a given rate or as fast as it answers, and
// prints what it did. People to read are created first, and stay.
//
// It must never be pointed at an instance that holds people who exist.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prototypster/pdvault/test/bench/load"
	"github.com/prototypster/pdvault/test/bench/traffic"
)

// fillTimeout bounds the creation of people.
const fillTimeout = 10 * time.Minute

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}

func run() error {
	address := flag.String("address", "127.0.0.1:8080", "host:port of pdvault on loopback")
	tokens := flag.String("tokens", "data/tokens.json", "file with the token alone, or with a JSON object of tokens by caller")
	as := flag.String("as", "shop", "caller whose token is taken")
	kind := flag.String("kind", traffic.Warm, strings.Join(traffic.Kinds, ", ")+"; lookups have a budget in the policy, and are refused beyond it")
	rate := flag.Float64("rate", 0, "requests due per second, whose latency counts from then; 0: each connection sends when it has its answer")
	connections := flag.Int("connections", 32, "connections, each with one request under way")
	duration := flag.Duration("duration", 10*time.Second, "of the run, at most an hour")
	count := flag.Int64("count", 0, "requests at most; 0: no bound but the duration")
	people := flag.Int("people", 1000, "people to create before, who are then read")
	first := flag.Int64("first", -1, "number of the first of them; their values must be new to the vault; -1: by chance")
	flag.Parse()
	switch {
	case flag.NArg() > 0:
		return fmt.Errorf("unexpected argument %q", flag.Arg(0))
	case !slices.Contains(traffic.Kinds, *kind):
		return fmt.Errorf("-kind %q is not one of %s; the ground law is not served yet", *kind, strings.Join(traffic.Kinds, ", "))
	case *people < 0 || *people > traffic.MaxPeople/2:
		return fmt.Errorf("-people must be within 0 and %d", traffic.MaxPeople/2)
	case *first >= traffic.MaxPeople:
		return fmt.Errorf("-first must be less than %d", traffic.MaxPeople)
	}
	if *first < 0 {
		*first = rand.Int64N(traffic.MaxPeople / 2)
	}
	token, err := readToken(*tokens, *as)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	target := &traffic.Target{Address: *address, Token: token, First: *first}
	if *kind != traffic.Write {
		begin := time.Now()
		if err := target.Fill(*people, fillTimeout); err != nil {
			return err
		}
		fmt.Printf("created %d people from number %d on in %.1f s\n", *people, *first, time.Since(begin).Seconds())
	}
	if *kind == traffic.Consent {
		if err := target.Ask(fillTimeout); err != nil {
			return err
		}
	}
	c, err := target.Load(*kind)
	if err != nil {
		return err
	}
	var statuses [600]atomic.Int64
	answered := c.Answered
	c.Answered = func(n int64, status int, body []byte) {
		statuses[min(max(status, 0), len(statuses)-1)].Add(1)
		if answered != nil {
			answered(n, status, body)
		}
	}
	c.Connections, c.Duration, c.Count, c.Rate, c.Stop = *connections, *duration, *count, *rate, ctx.Done()
	r, err := load.Run(c)
	if r.Took == 0 { // it was refused
		return err
	}
	print(r, traffic.Records(*kind), *rate)
	for status := range statuses {
		if n := statuses[status].Load(); n > 0 {
			fmt.Printf("status %d    %d\n", status, n)
		}
	}
	return err
}

func print(r load.Result, records int, rate float64) {
	fmt.Printf("requests      %d in %.1f s, %d failed", r.Requests, r.Took.Seconds(), r.Failed)
	if rate > 0 {
		fmt.Printf(", %d unsent; %.0f/s were due", r.Unsent, rate)
	}
	fmt.Printf("\nper second    %.0f", r.Rate())
	if records > 1 {
		fmt.Printf(" of %d records each, %.0f records", records, r.Rate()*float64(records))
	}
	fmt.Printf("\nlatency       p50 %v, p99 %v, p99.9 %v, longest %v\n", r.P50, r.P99, r.P999, r.Max)
}

// readToken takes the token of a caller from a file.
func readToken(file, caller string) (string, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	text := strings.TrimSpace(string(b))
	if !strings.HasPrefix(text, "{") {
		if text == "" || strings.ContainsAny(text, " \t\r\n") {
			return "", fmt.Errorf("%s holds no token", file)
		}
		return text, nil
	}
	var tokens map[string]string
	if err := json.Unmarshal(b, &tokens); err != nil {
		return "", fmt.Errorf("%s is no object of tokens by caller", file)
	}
	token, ok := tokens[caller]
	if !ok {
		var callers []string
		for c := range tokens {
			callers = append(callers, c)
		}
		slices.Sort(callers)
		return "", fmt.Errorf("%s has no token of %q, only of %s", file, caller, strings.Join(callers, ", "))
	}
	return token, nil
}
