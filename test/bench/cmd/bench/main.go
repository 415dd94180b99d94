// Command bench starts the real programs and prints what they do per second: creates, warm reads, batch
// reads, and cold reads through the real HashiCorp Vault, beside a bare gin handler measured in the same run.
// Everything, the load generator included, runs on one machine.
//
// It must never measure a path that production does not take.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/prototypster/pdvault/test/bench/load"
	"github.com/prototypster/pdvault/test/e2e/hcserver"
	"github.com/prototypster/pdvault/test/e2e/stack"
)

type bench struct {
	bin      string
	subjects int
	rotated  int    // subjects whose keys are rotated
	scopes   string // of the rotations, comma-separated
	rounds   int    // rotations of each scope beside reads
	duration time.Duration
	conns    []int
	only     string

	dir   string
	rows  []row
	empty float64 // rate of the bare gin handler at 32 connections
}

type row struct {
	what     string
	conns    int
	r        load.Result
	per      int // reads in one request
	baseline float64
	note     string
	vault    time.Duration // processor time of pdvault
	keys     time.Duration // and of pdkeys
	stages   stages
}

// stages is where the time of requests went, as pdvault's own metrics tell.
type stages struct {
	commits, committed, commitTime float64 // transactions of the ledger, entries in them, seconds
	calls, items, callTime         float64 // calls to the sidecar, items in them, seconds
}

func (s stages) minus(t stages) stages {
	return stages{s.commits - t.commits, s.committed - t.committed, s.commitTime - t.commitTime,
		s.calls - t.calls, s.items - t.items, s.callTime - t.callTime}
}

// commit and call tell how many were done together, and how long that took.
func (s stages) commit() string { return together(s.committed, s.commits, s.commitTime) }
func (s stages) call() string   { return together(s.items, s.calls, s.callTime) }

func together(items, times, seconds float64) string {
	if times == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f in %.2f ms", items/times, 1000*seconds/times)
}

// stages reads pdvault's metrics.
func (in *instance) stages() stages {
	var s stages
	a, err := in.Do(context.Background(), "security", "GET", "/metrics", nil)
	if err != nil {
		return s
	}
	for line := range strings.Lines(string(a.Body)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			continue
		}
		switch kind := strings.Contains(name, `"witness"`); {
		case name == "pdvault_ledger_commit_seconds_count":
			s.commits += v
		case name == "pdvault_ledger_commit_seconds_sum":
			s.commitTime += v
		case name == `pdvault_ledger_entries_total{outcome="committed"}`:
			s.committed += v
		case strings.HasPrefix(name, "pdvault_sidecar_items_total{") && !kind:
			s.items += v
		case strings.HasPrefix(name, "pdvault_sidecar_call_seconds_count{") && !kind:
			s.calls += v
		case strings.HasPrefix(name, "pdvault_sidecar_call_seconds_sum{") && !kind:
			s.callTime += v
		}
	}
	return s
}

func main() {
	b := &bench{}
	flag.StringVar(&b.bin, "bin", "bin", "directory of the programs")
	flag.IntVar(&b.subjects, "subjects", 8000, "subjects of the warm store")
	flag.DurationVar(&b.duration, "duration", 5*time.Second, "of each measurement")
	flag.IntVar(&b.rotated, "rotated", 100_000, "subjects whose keys are rotated")
	flag.StringVar(&b.scopes, "scopes", "kek,all-subjects,index", "comma-separated scopes of the rotations")
	flag.IntVar(&b.rounds, "rounds", 1, "rotations of each scope beside reads")
	flag.StringVar(&b.only, "only", "", "comma-separated parts: http,local,hashicorp,rotations; empty: all")
	connections := flag.String("connections", "1,32,256", "comma-separated numbers of connections")
	flag.Parse()
	b.conns = nil
	for n := range strings.SplitSeq(*connections, ",") {
		conns, err := strconv.Atoi(n)
		if err != nil || conns < 1 {
			fmt.Fprintln(os.Stderr, "bench: -connections must be numbers")
			os.Exit(2)
		}
		b.conns = append(b.conns, conns)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := b.run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func (b *bench) wants(part string) bool {
	return b.only == "" || strings.Contains(","+b.only+",", ","+part+",")
}

func (b *bench) run(ctx context.Context) (err error) {
	if b.bin, err = filepath.Abs(b.bin); err != nil {
		return err
	}
	if b.dir, err = os.MkdirTemp("", "pdvb"); err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	for _, part := range []struct {
		name string
		run  func(context.Context) error
	}{{"http", b.http}, {"local", b.local}, {"hashicorp", b.hashicorp}, {"rotations", b.rotations}} {
		if !b.wants(part.name) {
			continue
		}
		if err := part.run(ctx); err != nil {
			return fmt.Errorf("%s: %w", part.name, err)
		}
	}
	return b.print()
}

// http measures the bare gin handler.
func (b *bench) http(ctx context.Context) error {
	program := filepath.Join(b.dir, "baseline")
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", program, "./test/bench/cmd/baseline").CombinedOutput(); err != nil {
		return fmt.Errorf("building: %w: %s", err, out)
	}
	address, err := freeAddress()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, program, address)
	if err := cmd.Start(); err != nil {
		return err
	}
	defer func() {
		_ = cmd.Process.Kill() // it is ours and holds nothing
		_ = cmd.Wait()
	}()
	for range 200 {
		if c, err := net.Dial("tcp", address); err == nil {
			c.Close()
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	request := []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	for _, conns := range b.conns {
		r, err := load.Run(load.Config{Address: address, Connections: conns, Duration: b.duration, Request: func(int64, []byte) []byte { return request }})
		if err != nil {
			return err
		}
		if conns == 32 {
			b.empty = r.Rate()
		}
		b.rows = append(b.rows, row{what: "bare gin handler", conns: conns, r: r, per: 1})
	}
	return nil
}

// local measures the embedded default.
func (b *bench) local(ctx context.Context) error {
	s, err := stack.New(ctx, stack.Options{Bin: b.bin, Dir: filepath.Join(b.dir, "l")})
	if err != nil {
		return err
	}
	defer s.Close()
	in := &instance{Stack: s, b: b}

	for _, conns := range b.conns {
		if err := in.creates(conns, "create"); err != nil {
			return err
		}
	}
	if err := in.fill(b.subjects); err != nil {
		return err
	}
	if err := in.once(); err != nil { // every key into the sidecar's cache
		return err
	}
	for _, conns := range b.conns {
		if err := in.reads(conns, "warm read", b.duration, 0); err != nil {
			return err
		}
	}
	for _, conns := range []int{1, 32} {
		if err := in.batches(conns, 100); err != nil {
			return err
		}
	}
	in.memory()
	return nil
}

// hashicorp measures reads whose keys have to be unwrapped by the real HashiCorp Vault.
func (b *bench) hashicorp(ctx context.Context) error {
	if _, err := hcserver.Binary(); err != nil {
		b.rows = append(b.rows, row{what: "cold read, HashiCorp Vault", note: "skipped: " + err.Error()})
		return nil
	}
	hc, err := hcserver.Start(ctx, filepath.Join(b.dir, "hc"))
	if err != nil {
		return err
	}
	defer hc.Close()
	kek, err := stack.HashiCorpKEK(ctx, hc, b.dir)
	if err != nil {
		return err
	}
	s, err := stack.New(ctx, stack.Options{Bin: b.bin, Dir: filepath.Join(b.dir, "h"), KEK: kek})
	if err != nil {
		return err
	}
	defer s.Close()
	in := &instance{Stack: s, b: b}
	if err := in.creates(32, "create, HashiCorp Vault"); err != nil {
		return err
	}
	if err := in.fill(20000); err != nil {
		return err
	}
	for _, conns := range b.conns {
		if err := s.Keys.Stop(); err != nil { // empties the cache
			return err
		}
		if err := s.StartKeys(ctx); err != nil {
			return err
		}
		if err := in.ready(ctx); err != nil {
			return err
		}
		if err := in.reads(conns, "cold read, HashiCorp Vault", b.duration, int64(len(in.ids))); err != nil {
			return err
		}
	}
	in.memory()
	return nil
}

// instance is a running stack with its subjects.
type instance struct {
	*stack.Stack
	b *bench

	mu   sync.Mutex // guards ids and next
	ids  []string
	next int64
}

func (in *instance) address() string { return strings.TrimPrefix(in.URL, "http://") }

func (in *instance) post(buf []byte, path string, body []byte) []byte {
	return fmt.Appendf(buf, "POST %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
		path, in.Token("shop"), len(body), body)
}

func (in *instance) createConfig(conns int) load.Config {
	base := in.next
	return load.Config{
		Address: in.address(), Connections: conns, Duration: in.b.duration,
		Request: func(n int64, buf []byte) []byte { return in.post(buf, "/v1/subjects", sixFields(base+n)) },
		Answered: func(n int64, status int, body []byte) {
			var created struct{ ID string }
			in.mu.Lock()
			defer in.mu.Unlock()
			in.next = max(in.next, base+n+1)
			if status == 201 && json.Unmarshal(body, &created) == nil {
				in.ids = append(in.ids, created.ID)
			}
		},
	}
}

func (in *instance) creates(conns int, what string) error {
	return in.measure(row{what: what, conns: conns, per: 1}, in.createConfig(conns))
}

// measure runs c and adds the row.
func (in *instance) measure(r row, c load.Config) (err error) {
	vault, keys, before := in.Vault.CPU(), in.Keys.CPU(), in.stages()
	if r.r, err = load.Run(c); err != nil {
		return err
	}
	r.vault, r.keys = in.Vault.CPU()-vault, in.Keys.CPU()-keys
	r.stages = in.stages().minus(before)
	r.baseline = in.b.empty
	in.b.rows = append(in.b.rows, r)
	fmt.Fprintf(os.Stderr, "%s, %d connections: %.0f/s\n", r.what, r.conns, r.r.Rate()*float64(r.per))
	return nil
}

// fill creates subjects until there are n.
func (in *instance) fill(n int) error {
	if len(in.ids) >= n {
		in.ids = in.ids[:n]
		return nil
	}
	c := in.createConfig(32)
	c.Count, c.Duration = int64(n-len(in.ids)), 5*time.Minute
	_, err := load.Run(c)
	return err
}

func (in *instance) readRequest(buf []byte, id string) []byte {
	buf = append(buf, "GET /v1/subjects/"...)
	buf = append(buf, id...)
	buf = append(buf, "/records/profile?purpose=account HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "...)
	buf = append(buf, in.Token("shop")...)
	return append(buf, "\r\n\r\n"...)
}

// once reads every subject once.
func (in *instance) once() error {
	_, err := load.Run(load.Config{
		Address: in.address(), Connections: 32, Duration: 5 * time.Minute, Count: int64(len(in.ids)),
		Request: func(n int64, buf []byte) []byte { return in.readRequest(buf, in.ids[n]) },
	})
	return err
}

func (in *instance) reads(conns int, what string, d time.Duration, count int64) error {
	return in.measure(row{what: what, conns: conns, per: 1}, load.Config{
		Address: in.address(), Connections: conns, Duration: d, Count: count,
		Request: func(n int64, buf []byte) []byte { return in.readRequest(buf, in.ids[int(n*7919)%len(in.ids)]) },
	})
}

func (in *instance) batches(conns, size int) error {
	type read struct {
		Subject    string `json:"subject"`
		Collection string `json:"collection"`
	}
	requests := make([][]byte, 64)
	for i := range requests {
		reads := make([]read, size)
		for j := range reads {
			reads[j] = read{in.ids[(i*size+j)*31%len(in.ids)], "profile"}
		}
		body, err := json.Marshal(map[string]any{"purpose": "account", "reads": reads})
		if err != nil {
			return err
		}
		requests[i] = in.post(nil, "/v1/reads", body)
	}
	return in.measure(row{what: fmt.Sprintf("batch of %d reads", size), conns: conns, per: size}, load.Config{
		Address: in.address(), Connections: conns, Duration: in.b.duration,
		Request: func(n int64, _ []byte) []byte { return requests[n%int64(len(requests))] },
	})
}

func (in *instance) ready(ctx context.Context) error {
	for range 300 {
		a, err := in.Do(ctx, "", "GET", "/readyz", nil)
		if err == nil && a.Status == 200 {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return fmt.Errorf("not ready: %s", in.Vault.Log())
}

// memory notes what the programs use.
func (in *instance) memory() {
	vault, vaultPeak := in.Vault.Memory()
	keys, keysPeak := in.Keys.Memory()
	in.b.rows = append(in.b.rows, row{what: "memory", note: fmt.Sprintf("%d subjects: pdvault %d MB (peak with mapped files %d), pdkeys %d MB (%d)",
		in.next, vault>>20, vaultPeak>>20, keys>>20, keysPeak>>20)})
}

func (b *bench) print() error {
	fmt.Printf("%s, %d cores, %s, %s; load generator on the same machine; records durable; 6-field record\n\n",
		runtime.GOOS+"/"+runtime.GOARCH, runtime.NumCPU(), cpu(), runtime.Version())
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "what\tconnections\tper second\tp50 ms\tp99 ms\tfailed\tof bare gin\tµs pdvault\tµs pdkeys\tledger commits\tsidecar calls\t")
	for _, r := range b.rows {
		if r.note != "" {
			fmt.Fprintf(w, "%s\t%s\t\t\t\t\t\t\t\t\t\n", r.what, r.note)
			continue
		}
		ratio := "-"
		if r.baseline > 0 {
			ratio = fmt.Sprintf("%.2f", r.r.Rate()*float64(r.per)/r.baseline)
		}
		each := func(d time.Duration) string {
			if d == 0 || r.r.Requests == 0 {
				return "-"
			}
			return fmt.Sprintf("%.0f", float64(d.Microseconds())/float64(r.r.Requests*int64(r.per)))
		}
		fmt.Fprintf(w, "%s\t%d\t%.0f\t%.2f\t%.2f\t%d\t%s\t%s\t%s\t%s\t%s\t\n", r.what, r.conns, r.r.Rate()*float64(r.per),
			float64(r.r.P50.Microseconds())/1000, float64(r.r.P99.Microseconds())/1000, r.r.Failed, ratio, each(r.vault), each(r.keys), r.stages.commit(), r.stages.call())
	}
	return w.Flush()
}

func cpu() string {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "unknown processor"
	}
	for line := range strings.Lines(string(b)) {
		if name, ok := strings.CutPrefix(line, "model name"); ok {
			return strings.TrimSpace(strings.TrimLeft(name, "\t: "))
		}
	}
	return "unknown processor"
}

// sixFields is the n-th record.
func sixFields(n int64) []byte {
	return fmt.Appendf(nil, `{"records":{"profile":{"email":"p%d@example.org","phone":"+1212%07d","name":{"givenName":"Given","familyName":"Family %d"},`+
		`"address":{"streetAddress":"%d Long Street","locality":"Town","postalCode":"10001","country":"US"},"birthdate":"1980-01-02","locale":"en-US"}}}`, n, 2000000+n, n, n)
}

func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}
