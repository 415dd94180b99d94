package main

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/prototypster/pdvault/access"
	"github.com/prototypster/pdvault/api/server"
	"github.com/prototypster/pdvault/api/server/servertest"
)

func TestMain(m *testing.M) { testscript.Main(m, map[string]func(){"pdvault": main}) }

// TestScripts runs the commands against the real server over a fake broker, one file per group of commands.
// Each script has $SERVER and a tokens.json; "newsubject VAR" makes a subject and keeps its id.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			b := servertest.NewBroker(t)
			s := httptest.NewServer(servertest.MustServer(t, b, server.Config{}).Handler())
			env.Defer(s.Close)
			env.Setenv("SERVER", s.URL)
			env.Values["broker"] = b
			tokens := map[string]string{}
			for id := range servertest.Callers {
				tokens[id] = servertest.Token(id)
			}
			raw, err := json.Marshal(tokens)
			if err != nil {
				return err
			}
			env.Setenv("AS", "--server="+s.URL)
			return os.WriteFile(filepath.Join(env.WorkDir, "tokens.json"), raw, 0o600)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"newsubject": func(ts *testscript.TestScript, _ bool, a []string) {
				b := ts.Value("broker").(*servertest.Broker)
				ts.Setenv(a[0], b.MustCreate("profile", `{"email":"ada@example.org","name":"Ada Example"}`).String())
			},
			"fail": func(ts *testscript.TestScript, _ bool, a []string) {
				b := ts.Value("broker").(*servertest.Broker)
				b.Fail(map[string]error{"none": nil, "denied": &access.DeniedError{Reason: "consent-missing", Record: 7}, "busy": access.ErrBusy}[a[0]])
			},
			// erasures {pending|finished} says whether keys are destroyed.
			"erasures": func(ts *testscript.TestScript, _ bool, a []string) {
				ts.Value("broker").(*servertest.Broker).LeaveErasures(a[0] == "pending")
			},
			// rotations STEP [CODE] sets how much of ten a look at a rotation does, and the code that it fails with.
			"rotations": func(ts *testscript.TestScript, _ bool, a []string) {
				b := ts.Value("broker").(*servertest.Broker)
				step, err := strconv.ParseInt(a[0], 10, 64)
				ts.Check(err)
				b.StepRotations(step)
				b.FailRotations(strings.Join(a[1:], ""))
			},
			// keep FILE PATTERN VAR sets VAR to the JSON string that follows "PATTERN": in FILE.
			"keep": func(ts *testscript.TestScript, _ bool, a []string) {
				_, rest, ok := strings.Cut(ts.ReadFile(a[0]), `"`+a[1]+`": "`)
				value, _, _ := strings.Cut(rest, `"`)
				if !ok {
					ts.Fatalf("%s has no %s", a[0], a[1])
				}
				ts.Setenv(a[2], value)
			},
			"exit": func(ts *testscript.TestScript, _ bool, a []string) {
				want, err := strconv.Atoi(a[0])
				ts.Check(err)
				err = ts.Exec(a[1], a[2:]...)
				if got := exitOf(err); got != want {
					ts.Fatalf("exit code %d, want %d", got, want)
				}
			},
		},
	})
}

func exitOf(err error) int {
	if err == nil {
		return 0
	}
	var code interface{ ExitCode() int }
	if e, ok := err.(interface{ ExitCode() int }); ok {
		code = e
		return code.ExitCode()
	}
	return -1
}

// importer sets up an import of n lines; every tenth line from the fifth is wrong.
func importInput(t *testing.T, n int) (path string) {
	t.Helper()
	var b bytes.Buffer
	for i := 1; i <= n; i++ {
		if i%10 == 5 {
			fmt.Fprintf(&b, `{"records":{"profile":{"unknown":"canary%d"}}}`+"\n", i)
			continue
		}
		fmt.Fprintf(&b, `{"records":{"profile":{"email":"p%d@example.org"}}}`+"\n", i)
	}
	path = filepath.Join(t.TempDir(), "people.ndjson")
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestImportResumes interrupts an import after every number of requests, goes on, and checks that each line
// made one subject and that the journals are whole and in order.
func TestImportResumes(t *testing.T) {
	const lines = 60
	for stopAfter := int64(0); stopAfter <= lines+1; stopAfter += 7 {
		t.Run(fmt.Sprint(stopAfter), func(t *testing.T) {
			b := servertest.NewBroker(t)
			handler := servertest.MustServer(t, b, server.Config{}).Handler()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var requests atomic.Int64
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				handler.ServeHTTP(w, r)
				if requests.Add(1) == stopAfter {
					cancel() // the answer of this one may or may not arrive
				}
			}))
			defer s.Close()
			path := importInput(t, lines)
			dir := filepath.Dir(path)
			out, rejects := filepath.Join(dir, "out"), filepath.Join(dir, "rejects")
			t.Setenv(tokenVariable, servertest.Token("shop"))
			args := []string{"import", path, "--server", s.URL, "--workers", "4", "--out", out, "--rejects", rejects}
			var stdout, stderr bytes.Buffer
			code := run(ctx, args, nil, &stdout, &stderr)
			interrupted := code == exitFailed
			if interrupted {
				if info, err := os.Stat(path + ".pdvault-import"); err != nil || info.Mode().Perm() != 0o600 {
					t.Fatalf("state file: %v, %v\n%s", info, err, &stderr)
				}
				stdout.Reset()
				code = run(t.Context(), args, nil, &stdout, &stderr)
			}
			if code != exitRejected {
				t.Fatalf("exit code %d\n%s%s", code, &stdout, &stderr)
			}
			var sum summary
			if err := json.Unmarshal(stdout.Bytes(), &sum); err != nil || sum != (summary{Lines: lines, Created: lines - 6, Rejected: 6}) {
				t.Errorf("summary %+v, %v", sum, err)
			}
			subjects := map[string]bool{}
			checkJournal(t, out, func(line int64, fields map[string]any) {
				if line%10 == 5 {
					t.Errorf("line %d was created", line)
				}
				subjects[fmt.Sprint(fields["subject"])] = true
			})
			if len(subjects) != lines-6 || b.Subjects() != lines-6 {
				t.Errorf("%d ids, %d subjects", len(subjects), b.Subjects())
			}
			checkJournal(t, rejects, func(line int64, fields map[string]any) {
				if line%10 != 5 || strings.Contains(fmt.Sprint(fields["reason"]), "canary") {
					t.Errorf("rejected: %d %v", line, fields)
				}
			})
			for _, name := range []string{path + ".pdvault-import", rejects, out} {
				if raw, err := os.ReadFile(name); err != nil || bytes.Contains(raw, []byte("canary")) || bytes.Contains(raw, []byte("example.org")) {
					t.Errorf("%s holds data of a line: %v", name, err)
				}
			}
			if strings.Contains(stderr.String(), "canary") {
				t.Errorf("stderr: %s", &stderr)
			}
			// A finished import is not made again by mistake.
			if code := run(t.Context(), args, nil, &stdout, &stderr); code != exitFailed || b.Subjects() != lines-6 {
				t.Errorf("again: exit code %d, %d subjects", code, b.Subjects())
			}
		})
	}
}

func checkJournal(t *testing.T, path string, check func(line int64, fields map[string]any)) {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	last := int64(0)
	for text := range bytes.Lines(raw) {
		var fields map[string]any
		if err := json.Unmarshal(text, &fields); err != nil {
			t.Fatalf("%s: %q: %v", path, text, err)
		}
		line := int64(fields["line"].(float64))
		if line <= last {
			t.Errorf("%s: line %d after %d", path, line, last)
		}
		last = line
		check(line, fields)
	}
}

// TestImportOutage checks that an import waits for a server that cannot answer, and gives up in the end
// without losing its place.
func TestImportOutage(t *testing.T) {
	b := servertest.NewBroker(t)
	s := httptest.NewServer(servertest.MustServer(t, b, server.Config{}).Handler())
	defer s.Close()
	path := importInput(t, 4)
	t.Setenv(tokenVariable, servertest.Token("shop"))
	args := []string{"import", path, "--server", s.URL, "--patience", "1ms", "--timeout", "100ms"}
	b.Fail(access.ErrUnavailable)
	var stdout, stderr bytes.Buffer
	if code := run(t.Context(), args, nil, &stdout, &stderr); code != exitUnavailable {
		t.Fatalf("exit code %d\n%s", code, &stderr)
	}
	b.Fail(nil)
	if code := run(t.Context(), args, nil, &stdout, &stderr); code != exitOK || b.Subjects() != 4 {
		t.Errorf("exit code %d, %d subjects\n%s", code, b.Subjects(), &stderr)
	}
}

// TestImportChanged checks that a state file is not used for another input.
func TestImportChanged(t *testing.T) {
	b := servertest.NewBroker(t)
	s := httptest.NewServer(servertest.MustServer(t, b, server.Config{}).Handler())
	defer s.Close()
	path := importInput(t, 4)
	t.Setenv(tokenVariable, servertest.Token("shop"))
	args := []string{"import", path, "--server", s.URL}
	if code := run(t.Context(), args, nil, &bytes.Buffer{}, &bytes.Buffer{}); code != exitOK {
		t.Fatal(code)
	}
	if err := os.WriteFile(path, []byte(`{"records":{"profile":{}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if code := run(t.Context(), args, nil, &bytes.Buffer{}, &bytes.Buffer{}); code != exitFailed || b.Subjects() != 4 {
		t.Errorf("exit code %d, %d subjects", code, b.Subjects())
	}
	if code := run(t.Context(), append(args, "--restart"), nil, &bytes.Buffer{}, &bytes.Buffer{}); code != exitOK || b.Subjects() != 5 {
		t.Errorf("exit code %d, %d subjects", code, b.Subjects())
	}
}
