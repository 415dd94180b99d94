package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/prototypster/pdvault/test/e2e/stack"
)

// TestCommands runs the commands as users type them, one script per group, against one running instance. Each
// script has tokens.json of all callers, the public keys in $LEDGER_KEY and $WITNESS_KEY, the sidecar's configuration
// in $PDKEYS_CONFIG, and these commands of its own:
//
//	exit CODE PROGRAM ARG...   runs a program that must end with CODE
//	keep FILE NAME VAR         sets VAR to the JSON string or number after "NAME": in FILE
//	alter GLOB OLD NEW         replaces OLD by NEW in the one file that matches
//	same FILE FILE...          the files are equal, byte for byte
func TestCommands(t *testing.T) {
	i := start(t, stackOptions())
	ledgerKey, witnessKey := i.publicKeys()
	t.Run("scripts", func(t *testing.T) { // they run at the same time, and all end before the instance does
		testscript.Run(t, testscript.Params{
			Dir:                 "testdata",
			RequireExplicitExec: true,
			RequireUniqueNames:  true,
			Setup: func(env *testscript.Env) error {
				env.Setenv("PATH", bin+string(os.PathListSeparator)+os.Getenv("PATH"))
				env.Setenv("PDVAULT_SERVER", i.URL)
				env.Setenv("LEDGER_KEY", ledgerKey)
				env.Setenv("WITNESS_KEY", witnessKey)
				env.Setenv("PDKEYS_CONFIG", i.Path("pdkeys.yaml"))
				return i.writeTokens(filepath.Join(env.WorkDir, "tokens.json"))
			},
			Cmds: map[string]func(*testscript.TestScript, bool, []string){
				"exit": exitsWith, "keep": keep, "alter": alter, "same": same,
			},
		})
	})
	i.verifyLedger()
}

func (i *instance) writeTokens(path string) error {
	tokens := map[string]string{}
	for _, caller := range stackCallers() {
		tokens[caller] = i.Token(caller)
	}
	raw, err := json.Marshal(tokens)
	if err != nil {
		return err
	}
	return os.WriteFile(path, raw, 0o600)
}

func exitsWith(ts *testscript.TestScript, neg bool, a []string) {
	if neg || len(a) < 2 {
		ts.Fatalf("usage: exit CODE PROGRAM ARG...")
	}
	want, err := strconv.Atoi(a[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(a[1], a[2:]...); err != nil {
		code, ok := err.(interface{ ExitCode() int })
		if !ok {
			ts.Fatalf("%v", err)
		}
		got = code.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

func keep(ts *testscript.TestScript, neg bool, a []string) {
	if neg || len(a) != 3 {
		ts.Fatalf("usage: keep FILE NAME VAR")
	}
	_, rest, ok := strings.Cut(ts.ReadFile(a[0]), `"`+a[1]+`": `)
	value, _, _ := strings.Cut(rest, "\n")
	value = strings.Trim(strings.TrimSuffix(value, ","), `"`)
	if !ok || value == "" {
		ts.Fatalf("%s has no %s", a[0], a[1])
	}
	ts.Setenv(a[2], value)
}

func alter(ts *testscript.TestScript, neg bool, a []string) {
	if neg || len(a) != 3 {
		ts.Fatalf("usage: alter GLOB OLD NEW")
	}
	files, err := filepath.Glob(ts.MkAbs(a[0]))
	ts.Check(err)
	if len(files) != 1 {
		ts.Fatalf("%d files match %s", len(files), a[0])
	}
	b, err := os.ReadFile(files[0])
	ts.Check(err)
	if !bytes.Contains(b, []byte(a[1])) {
		ts.Fatalf("%s does not hold %q", files[0], a[1])
	}
	ts.Check(os.WriteFile(files[0], bytes.Replace(b, []byte(a[1]), []byte(a[2]), 1), 0o600))
}

func same(ts *testscript.TestScript, neg bool, a []string) {
	if neg || len(a) < 2 {
		ts.Fatalf("usage: same FILE FILE...")
	}
	first := ts.ReadFile(a[0])
	for _, other := range a[1:] {
		if ts.ReadFile(other) != first {
			ts.Fatalf("%s and %s differ", a[0], other)
		}
	}
}

// However an import is interrupted, the same command goes on, and in the end each line made one person.
func TestCommandsImportGoesOnAfterAnInterruption(t *testing.T) {
	t.Parallel()
	lines := 3000
	if stack.Race {
		lines = 1000 // everything is slower
	}
	for n, tt := range []struct {
		name   string
		signal syscall.Signal
	}{
		{"killed", syscall.SIGKILL},
		{"interrupted", syscall.SIGINT},
	} {
		t.Run(tt.name, func(t *testing.T) {
			i := start(t, stackOptions())
			dir := t.TempDir()
			input, out, tokens := filepath.Join(dir, "people.ndjson"), filepath.Join(dir, "ids.ndjson"), filepath.Join(dir, "tokens.json")
			var people bytes.Buffer
			for k := range lines {
				fmt.Fprintf(&people, `{"records":{"profile":{"email":"import%d.%d@example.org","displayName":"Person %d"}}}`+"\n", n, k, k)
			}
			if err := os.WriteFile(input, people.Bytes(), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := i.writeTokens(tokens); err != nil {
				t.Fatal(err)
			}
			command := func() *exec.Cmd {
				cmd := exec.CommandContext(t.Context(), filepath.Join(bin, "pdvault"), "import", input, "--out", out, "--workers", "4",
					"--server", i.URL, "--tokens", tokens, "--as", "shop")
				cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
				return cmd
			}

			first := command()
			var said bytes.Buffer
			first.Stderr = &said
			if err := first.Start(); err != nil {
				t.Fatal(err)
			}
			// The state is saved every second or so; between two savings is where a kill hurts most.
			eventually(t, "the import is under way", func() bool { return i.ledgerSize() > int64(lines)/5 })
			if err := first.Process.Signal(tt.signal); err != nil {
				t.Fatal(err)
			}
			err := first.Wait()
			done := i.ledgerSize()
			if err == nil || done >= int64(lines) {
				t.Fatalf("the import was not interrupted midway: %v, %d entries", err, done)
			}
			if tt.signal == syscall.SIGINT && (first.ProcessState.ExitCode() != 1 || !strings.Contains(said.String(), "goes on from here")) {
				t.Errorf("exit code %d: %s", first.ProcessState.ExitCode(), said.Bytes())
			}
			t.Logf("%v after %d entries", tt.signal, done)

			answer, err := command().Output()
			if err != nil {
				t.Fatalf("going on: %v\n%s", err, answer)
			}
			if !strings.Contains(string(answer), fmt.Sprintf("\"lines\": %d,\n  \"created\": %d,\n  \"rejected\": 0\n", lines, lines)) {
				t.Errorf("summary: %s", answer)
			}
			i.importedOnce(out, lines)
			if err := command().Run(); err == nil {
				t.Error("a finished import is made again")
			}
			i.verifyLedger()
		})
	}
}

// importedOnce checks that the journal has each line once, in order, with a person of its own, and that nobody
// else was created.
func (i *instance) importedOnce(journal string, lines int) {
	t := i.t
	t.Helper()
	subjects := map[string]bool{}
	n := 0
	for text := range strings.Lines(readAll(t, journal)) {
		n++
		var l struct {
			Line    int
			Subject string
		}
		if err := json.Unmarshal([]byte(text), &l); err != nil || l.Line != n || subjects[l.Subject] {
			t.Fatalf("journal, line %d: %q", n, text)
		}
		subjects[l.Subject] = true
	}
	created := 0
	for _, e := range i.ledger(0) {
		if e.Kind == "subject.created" {
			created++
		}
	}
	if n != lines || created != lines {
		t.Errorf("%d lines, %d in the journal, %d people created", lines, n, created)
	}
	for subject := range subjects { // any few of them
		a, err := i.Do(t.Context(), "shop", "GET", fmt.Sprintf(readPath, subject, "account", "displayName"), nil)
		if err != nil || a.Status != http.StatusOK || !strings.Contains(string(a.Body), `"Person `) {
			t.Errorf("imported person: %v, %d", err, a.Status)
		}
		if n--; n < lines-20 {
			break
		}
	}
}
