// Package stack builds and runs the real programs, as production runs them: pdkeys on its socket, pdvault
// beside it, configured by files in one directory. Tests, fault harnesses and benchmarks share it.
//
// It must never take a path that production does not take, and never end a process that it did not start.
package stack

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Callers are the callers of the default policy.
var Callers = []string{"shop", "courier", "privacy", "legal", "security", "auditor"}

// Options say what to run.
type Options struct {
	Bin string // directory with pdvault, pdkeys and pdaudit; see Build. Required
	Dir string // where everything is kept; made when absent. Required; keep it short, it holds a socket
	// KEK is the kek member of the sidecar's configuration, as a YAML flow mapping. Empty: a root-key file.
	KEK string
	// KeyStore is the store member of the sidecar's configuration, likewise. Empty: the directory keys.
	KeyStore string
	// Store is the store member of pdvault's configuration, likewise. Empty: the directory data.
	Store string
	// VaultExtra and KeysExtra are appended to the configuration files.
	VaultExtra, KeysExtra string
	// Env is added to the programs' environment.
	Env []string
}

// Stack is one running instance.
type Stack struct {
	Options
	URL    string
	Keys   *Process // pdkeys
	Vault  *Process // pdvault
	tokens map[string]string
	HTTP   *http.Client
	// RunKeys and RunVault stand before the command line of a program that is started from now on: a tracer, a limit.
	// What they name must become the program in the same process.
	RunKeys, RunVault []string
}

// Build builds the programs into dir.
func Build(ctx context.Context, module, dir string, race bool) error {
	for name, pkg := range map[string]string{
		"pdvault": "./api/cmd/pdvault", "pdkeys": "./keys/cmd/pdkeys", "pdaudit": "./access/cmd/pdaudit",
	} {
		args := []string{"build", "-o", filepath.Join(dir, name)}
		if race {
			args = append(args, "-race")
		}
		cmd := exec.CommandContext(ctx, "go", append(args, pkg)...)
		cmd.Dir = module
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("building %s: %w\n%s", name, err, out)
		}
	}
	return nil
}

// Programs builds the programs, with the race detector if this process has it, into a directory of their own, has run
// use them, and removes them. It returns what run returns, an exit code; 1 when they cannot be built.
func Programs(module string, run func(bin string) int) int {
	dir, err := os.MkdirTemp("", "pdv-bin")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if err := Build(context.Background(), module, dir, Race); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return run(dir)
}

// Take takes up the instance in o.Dir without starting it, and gives it a port of its own: it may be a copy.
func Take(o Options) (*Stack, error) {
	s := newStack(o)
	config, err := os.ReadFile(s.path("pdvault.yaml"))
	if err != nil {
		return nil, err
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	config = listenLine.ReplaceAll(config, fmt.Appendf(nil, "listen: 127.0.0.1:%d", port))
	if err := os.WriteFile(s.path("pdvault.yaml"), config, 0o600); err != nil {
		return nil, err
	}
	return s, s.loadTokens()
}

var listenLine = regexp.MustCompile(`(?m)^listen: .*$`)

func newStack(o Options) *Stack {
	return &Stack{Options: o, tokens: map[string]string{}, HTTP: &http.Client{
		Timeout:   30 * time.Second,
		Transport: &http.Transport{MaxIdleConnsPerHost: 512, MaxConnsPerHost: 512},
	}}
}

// New initialises an instance in o.Dir, or takes up the one that is there, and starts it.
func New(ctx context.Context, o Options) (s *Stack, err error) {
	s = newStack(o)
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, err
	}
	fresh := false
	if _, err := os.Stat(s.path("pdvault.yaml")); errors.Is(err, os.ErrNotExist) {
		fresh = true
		if err := s.configure(); err != nil {
			return nil, err
		}
	}
	if err := s.loadTokens(); err != nil {
		return nil, err
	}
	if fresh {
		if err := s.run(ctx, "pdkeys", "init", "--config", s.path("pdkeys.yaml")); err != nil {
			return nil, err
		}
	}
	if err := s.StartKeys(ctx); err != nil {
		return nil, err
	}
	if fresh {
		if err := s.run(ctx, "pdvault", "init", "--config", s.path("pdvault.yaml")); err != nil {
			return nil, err
		}
	}
	return s, s.StartVault(ctx)
}

func (s *Stack) path(name string) string { return filepath.Join(s.Dir, name) }

// Path returns the path of a file of the instance: data, keys, pdvault.log, pdkeys.log, ...
func (s *Stack) Path(name string) string { return s.path(name) }

func (s *Stack) configure() error {
	port, err := freePort()
	if err != nil {
		return err
	}
	kek := s.KEK
	if kek == "" {
		kek = "{type: local, local: {path: root.key}}"
	}
	keyStore := s.KeyStore
	if keyStore == "" {
		keyStore = "{dir: keys}"
	}
	store := s.Store
	if store == "" {
		store = "{dir: data, read_only_below: 268435456, reserve_below: 134217728, ballast: 1048576}"
	}
	files := map[string]string{
		"pdvault.yaml": fmt.Sprintf(`instance: test
listen: 127.0.0.1:%d
store: %s
sidecar: {socket: pdkeys.sock}
tokens_file: tokens
log: {level: warn}
%s`, port, store, s.VaultExtra),
		"pdkeys.yaml": fmt.Sprintf(`instance: test
socket: {path: pdkeys.sock}
store: %s
kek: %s
log: {level: warn}
%s`, keyStore, kek, s.KeysExtra),
	}
	var hashes, clear strings.Builder
	for _, caller := range Callers {
		secret := make([]byte, 32)
		rand.Read(secret)
		token := "pdv_" + hex.EncodeToString(secret)
		sum := sha256.Sum256([]byte(token))
		fmt.Fprintf(&hashes, "{\"caller\":%q,\"sha256\":%q}\n", caller, hex.EncodeToString(sum[:]))
		fmt.Fprintf(&clear, "%s %s\n", caller, token)
	}
	files["tokens"], files["tokens.clear"] = hashes.String(), clear.String()
	for name, text := range files {
		if err := os.WriteFile(s.path(name), []byte(text), 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (s *Stack) loadTokens() error {
	b, err := os.ReadFile(s.path("tokens.clear"))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(b)) {
		caller, token, _ := strings.Cut(strings.TrimSpace(line), " ")
		s.tokens[caller] = token
	}
	config, err := os.ReadFile(s.path("pdvault.yaml"))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(config)) {
		if address, ok := strings.CutPrefix(line, "listen: "); ok {
			s.URL = "http://" + strings.TrimSpace(address)
		}
	}
	return nil
}

// Token returns the bearer token of a caller.
func (s *Stack) Token(caller string) string { return s.tokens[caller] }

// run runs one of the programs to its end.
func (s *Stack) run(ctx context.Context, program string, args ...string) error {
	_, err := s.Output(ctx, program, args...)
	return err
}

// Output runs one of the programs to its end and returns what it printed on standard output.
func (s *Stack) Output(ctx context.Context, program string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(s.Bin, program), args...)
	cmd.Env = append(os.Environ(), s.Env...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return out, fmt.Errorf("%s %s: %w: %s", program, args[0], err, errs.Bytes())
	}
	return out, nil
}

// start starts one of the programs, below what stands before it.
func (s *Stack) start(program string, before []string) (*Process, error) {
	line := append(slices.Clone(before), filepath.Join(s.Bin, program), "serve", "--config", s.path(program+".yaml"))
	return start(s.path(program+".log"), s.Env, line[0], line[1:]...)
}

// StartKeys starts pdkeys and waits for its socket.
func (s *Stack) StartKeys(ctx context.Context) error {
	p, err := s.start("pdkeys", s.RunKeys)
	if err != nil {
		return err
	}
	s.Keys = p
	return p.await(ctx, func() bool {
		c, err := net.Dial("unix", s.path("pdkeys.sock"))
		if err != nil {
			return false
		}
		c.Close()
		return true
	})
}

// StartVault starts pdvault and waits until it answers.
func (s *Stack) StartVault(ctx context.Context) error {
	p, err := s.start("pdvault", s.RunVault)
	if err != nil {
		return err
	}
	s.Vault = p
	return p.await(ctx, func() bool {
		resp, err := s.HTTP.Get(s.URL + "/livez")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
}

// Answer is an HTTP answer, read whole.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
}

// Do sends one request as caller; an empty caller sends no token. header holds pairs of names and values.
func (s *Stack) Do(ctx context.Context, caller, method, path string, body []byte, header ...string) (Answer, error) {
	req, err := http.NewRequestWithContext(ctx, method, s.URL+path, bytes.NewReader(body))
	if err != nil {
		return Answer{}, err
	}
	if caller != "" {
		req.Header.Set("Authorization", "Bearer "+s.tokens[caller])
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := s.HTTP.Do(req)
	if err != nil {
		return Answer{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return Answer{resp.StatusCode, resp.Header, b}, err
}

// Close stops what runs, pdvault first.
func (s *Stack) Close() error {
	s.HTTP.CloseIdleConnections()
	return errors.Join(s.Vault.Stop(), s.Keys.Stop())
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}
