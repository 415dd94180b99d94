// Command bench starts the real programs and shows what they do per second, how long that takes, and what it costs in
// memory and on disk, beside baselines measured in the same run. Everything, the load generator included, runs on one
// machine.
//
// It must never measure a path that production does not take.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prototypster/pdvault/test/bench/report"
)

type bench struct {
	bin      string
	sizes    []int // subjects of the instances that are measured by size
	warm     int   // subjects of the instance that is measured by connections
	rotated  int   // subjects whose keys are rotated
	scopes   string
	rounds   int // rotations of each scope beside reads
	duration time.Duration
	conns    []int
	only     string
	full     bool

	dir     string
	results report.Results
}

// part is a thing to measure.
type part struct {
	name string
	run  func(*bench, context.Context) error
	full bool // left out unless -full is given or -only names it
}

// parts are all of them, in their order.
var parts = []part{
	{name: "http", run: (*bench).http},
	{name: "badger", run: (*bench).badger},
	{name: "postgres", run: (*bench).postgres},
	{name: "hashicorp-baselines", run: (*bench).hashicorpBaselines},
	{name: "local", run: (*bench).local},
	{name: "hashicorp", run: (*bench).hashicorp},
	{name: "sizes", run: (*bench).bySize},
	{name: "rotations", run: (*bench).rotations, full: true},
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run() error {
	b := &bench{}
	var names []string
	for _, p := range parts {
		names = append(names, p.name)
	}
	flag.StringVar(&b.bin, "bin", "bin", "directory of the programs")
	flag.IntVar(&b.warm, "warm", 10_000, "subjects of the store that is measured by connections")
	flag.DurationVar(&b.duration, "duration", 2*time.Second, "of each measurement")
	flag.IntVar(&b.rotated, "rotated", 100_000, "subjects whose keys are rotated")
	flag.StringVar(&b.scopes, "scopes", "kek,all-subjects,index", "comma-separated scopes of the rotations")
	flag.IntVar(&b.rounds, "rounds", 1, "rotations of each scope beside reads")
	flag.StringVar(&b.only, "only", "", "comma-separated parts: "+strings.Join(names, ",")+"; empty: all")
	flag.BoolVar(&b.full, "full", false, "everything, in more than half an hour: rotations too, 1,000,000 subjects, more connections, longer measurements")
	connections := flag.String("connections", "1,8,32,256", "comma-separated numbers of connections")
	subjects := flag.String("subjects", "10000,100000", "comma-separated numbers of subjects that are measured by size")
	jsonFile := flag.String("json", "", "write all results to this file")
	docs := flag.String("docs", "", "write the page with tables and plots to this directory")
	caveat := flag.String("caveat", "", "what the results are to say against themselves, such as that the machine was not quiet")
	from := flag.String("from", "", "measure nothing, show the results of this file")
	flag.Parse()

	if b.full {
		given := map[string]bool{}
		flag.Visit(func(f *flag.Flag) { given[f.Name] = true })
		for name, value := range map[string]string{"connections": "1,2,4,8,16,32,64,128,256", "subjects": "10000,100000,1000000", "duration": "5s"} {
			if given[name] {
				continue
			}
			if err := flag.Set(name, value); err != nil {
				return err
			}
		}
	}
	var err error
	if b.conns, err = numbers(*connections, 4096); err != nil {
		return fmt.Errorf("-connections: %w", err)
	}
	if b.sizes, err = numbers(*subjects, 5_000_000); err != nil {
		return fmt.Errorf("-subjects: %w", err)
	}
	for name := range strings.SplitSeq(b.only, ",") {
		if name != "" && !slices.Contains(names, name) {
			return fmt.Errorf("-only: no part %q", name)
		}
	}
	if *from != "" {
		text, err := os.ReadFile(*from)
		if err != nil {
			return err
		}
		results, err := report.Parse(text)
		if err != nil {
			return fmt.Errorf("%s: %w", *from, err)
		}
		b.results = *results
	} else if err := b.measureAll(*caveat); err != nil {
		return err
	}
	return b.show(*jsonFile, *docs)
}

// numbers are those of a list.
func numbers(list string, most int) (ns []int, err error) {
	for text := range strings.SplitSeq(list, ",") {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > most {
			return nil, fmt.Errorf("%q is not a number within 1 and %d", text, most)
		}
		ns = append(ns, n)
	}
	return ns, nil
}

func (b *bench) wants(p part) bool {
	if b.only == "" {
		return b.full || !p.full
	}
	return slices.Contains(strings.Split(b.only, ","), p.name)
}

func (b *bench) measureAll(caveat string) (err error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if b.bin, err = filepath.Abs(b.bin); err != nil {
		return err
	}
	if b.dir, err = os.MkdirTemp("", "pdvb"); err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	begin := time.Now()
	b.results = report.Results{Date: begin, Command: command(os.Args[1:]), Machine: machine(b.dir), Load: loadAverage(), Caveat: caveat}
	for _, p := range parts {
		if !b.wants(p) {
			continue
		}
		if err := p.run(b, ctx); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	b.results.Took = time.Since(begin).Seconds()
	return nil
}

// show writes the results to where they are wanted.
func (b *bench) show(jsonFile, docs string) error {
	if err := b.results.Text(os.Stdout); err != nil {
		return err
	}
	if jsonFile != "" {
		text, err := b.results.JSON()
		if err != nil {
			return err
		}
		if err := os.WriteFile(jsonFile, append(text, '\n'), 0o644); err != nil {
			return err
		}
	}
	if docs == "" {
		return nil
	}
	return b.results.WriteDocs(docs)
}

// note keeps what is no rate.
func (b *bench) note(what, format string, args ...any) {
	n := report.Note{What: what, Text: fmt.Sprintf(format, args...)}
	b.results.Notes = append(b.results.Notes, n)
	fmt.Fprintln(os.Stderr, n.What+":", n.Text)
}

// add keeps a row.
func (b *bench) add(r report.Row) {
	b.results.Rows = append(b.results.Rows, r)
	offered := ""
	if r.Offered > 0 {
		offered = fmt.Sprintf(" of %.0f due", r.Offered)
	}
	fmt.Fprintf(os.Stderr, "%s, %d connections: %.0f/s%s, p99 %.2f ms, %d failed\n", r.What, r.Connections, r.PerSecond, offered, r.P99, r.Failed)
}
