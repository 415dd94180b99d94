// People writes a population of people who do not exist, one on each line, as bodies of POST /v1/subjects.
//
//	people -n 1000 -seed 1 > people.ndjson
//
// It must never write a person who exists: names, addresses and numbers are made up.
package main

import (
	"flag"
	"fmt"
	"io"
	"os"

	"github.com/prototypster/pdvault/test/people"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "people:", err)
		os.Exit(1)
	}
}

func run(args []string, w io.Writer) error {
	flags := flag.NewFlagSet("people", flag.ContinueOnError)
	n := flags.Int("n", 10, "how many people")
	seed := flags.Uint64("seed", 1, "which population")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument")
	}
	return people.Write(w, *seed, *n)
}
