// Command summary reads the output of go test -json and prints what failed, what was skipped and why, and
// one closing line: N passed, N failed, N skipped. It exits with 1 when anything failed, when nothing passed,
// or when more was skipped than allowed. A test that never ended, because it hung or its process died, is one
// that failed, with what it printed until then.
//
// It must never count a test that did not run.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
)

type event struct {
	Action  string
	Package string
	Test    string
	Output  string
	Elapsed float64
}

func main() {
	allowed := flag.Int("allowed", 0, "number of skipped tests that is accepted")
	flag.Parse()

	output := map[string][]string{}
	results := map[string][]string{}
	running := map[string]bool{}
	var slow []event
	scanner := bufio.NewScanner(os.Stdin)
	scanner.Buffer(nil, 1<<24)
	for scanner.Scan() {
		var e event
		if err := json.Unmarshal(scanner.Bytes(), &e); err != nil {
			fmt.Println(scanner.Text()) // a build failure or a panic of the go tool
			continue
		}
		name := e.Package
		if e.Test != "" {
			name += " " + e.Test
		}
		switch e.Action {
		case "run":
			running[name] = true
		case "output", "build-output":
			output[name] = append(output[name], e.Output)
		case "build-fail":
			results["fail"] = append(results["fail"], name)
		case "pass", "fail", "skip":
			delete(running, name)
			if e.Test == "" && e.Action != "fail" {
				continue // a package, not a test
			}
			results[e.Action] = append(results[e.Action], name)
			if e.Elapsed > 20 && e.Test != "" {
				slow = append(slow, e)
			}
		}
	}
	if err := scanner.Err(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for name := range running {
		results["fail"] = append(results["fail"], name)
		output[name] = append(output[name], "it has not ended\n")
	}
	slices.Sort(results["fail"])
	for _, name := range results["fail"] {
		fmt.Printf("--- FAIL %s\n%s\n", name, strings.Join(output[name], ""))
	}
	for _, e := range slow {
		fmt.Printf("slow: %.0f s %s %s\n", e.Elapsed, e.Package, e.Test)
	}
	slices.Sort(results["skip"])
	for _, name := range results["skip"] {
		fmt.Printf("skipped: %s: %s\n", name, reason(output[name]))
	}
	passed, failed, skipped := len(results["pass"]), len(results["fail"]), len(results["skip"])
	if skipped > *allowed {
		fmt.Printf("%d tests were skipped, %d are allowed\n", skipped, *allowed)
	}
	fmt.Printf("%d passed, %d failed, %d skipped\n", passed, failed, skipped)
	if failed > 0 || passed == 0 || skipped > *allowed {
		os.Exit(1)
	}
}

// reason finds what a skipped test said.
func reason(lines []string) string {
	for _, line := range lines {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "===") && !strings.HasPrefix(line, "---") {
			return line
		}
	}
	return "no reason given"
}
