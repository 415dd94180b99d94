// Package hcserver runs a real HashiCorp Vault for tests and benchmarks: one node with raft storage on
// loopback ports, set up for pdvault as deploy/hcvault does it, to be sealed, killed, stopped and started
// again at will.
//
// It does not know the testing package, so that programs can use it. It must never be linked into one that
// serves.
package hcserver

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// ErrNoBinary is returned when there is no HashiCorp Vault to run. Tests skip with its text.
var ErrNoBinary = errors.New("hcserver: no HashiCorp Vault binary: set HCVAULT_BIN, put vault on the PATH, or run test/hcvault/build.sh once")

const version = "1.21.2" // that test/hcvault builds

// Binary returns the path of a HashiCorp Vault binary, or ErrNoBinary. Unlike test/hcvault/build.sh it
// builds none.
func Binary() (string, error) {
	if path := os.Getenv("HCVAULT_BIN"); path != "" {
		return exec.LookPath(path)
	}
	if path, err := exec.LookPath("vault"); err == nil {
		return path, nil
	}
	cache := os.Getenv("XDG_CACHE_HOME")
	if cache == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", ErrNoBinary
		}
		cache = filepath.Join(home, ".cache")
	}
	path, err := exec.LookPath(filepath.Join(cache, "pdvault", "hcvault-"+version))
	if err != nil {
		return "", ErrNoBinary
	}
	return path, nil
}

// Server is a running, or stopped, HashiCorp Vault. Its methods must not overlap.
type Server struct {
	binary, dir   string
	addr, cluster string
	unsealKey     string
	root          string
	cmd           *exec.Cmd
	exited        chan struct{}
}

// Start makes a new HashiCorp Vault in dir, which must be empty or absent, and returns it unsealed.
func Start(ctx context.Context, dir string) (*Server, error) {
	binary, err := Binary()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(dir, "raft"), 0o700); err != nil {
		return nil, err
	}
	s := &Server{binary: binary, dir: dir}
	if s.addr, s.cluster, err = freePorts(); err != nil {
		return nil, err
	}
	config := fmt.Sprintf(`
storage "raft" {
  path                   = %q
  node_id                = "one"
  performance_multiplier = 1
}
listener "tcp" {
  address         = %q
  cluster_address = %q
  tls_disable     = true
}
api_addr      = "http://%s"
cluster_addr  = "https://%s"
disable_mlock = true
log_level     = "warn"
`, filepath.Join(dir, "raft"), s.addr, s.cluster, s.addr, s.cluster)
	if err := os.WriteFile(filepath.Join(dir, "config.hcl"), []byte(config), 0o600); err != nil {
		return nil, err
	}
	if err := s.Restart(ctx); err != nil {
		return nil, err
	}
	var keys struct {
		Keys []string `json:"keys_base64"`
		Root string   `json:"root_token"`
	}
	if err := s.call(ctx, "PUT", "sys/init", map[string]any{"secret_shares": 1, "secret_threshold": 1}, &keys); err != nil {
		_ = s.Close()
		return nil, fmt.Errorf("initialising: %w", err)
	}
	if len(keys.Keys) != 1 {
		_ = s.Close()
		return nil, errors.New("initialising gave no unseal key")
	}
	s.unsealKey, s.root = keys.Keys[0], keys.Root
	if err := s.Unseal(ctx); err != nil {
		_ = s.Close()
		return nil, err
	}
	return s, nil
}

func freePorts() (a, b string, err error) {
	var listeners [2]net.Listener
	for i := range listeners {
		if listeners[i], err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			return "", "", err
		}
		defer listeners[i].Close()
	}
	return listeners[0].Addr().String(), listeners[1].Addr().String(), nil
}

// Address is the URL of the API.
func (s *Server) Address() string { return "http://" + s.addr }

// RootToken may do everything. It is for setting up and for breaking things, never for the sidecar.
func (s *Server) RootToken() string { return s.root }

// Binary is the path of the program that runs, whose client commands scripts may use.
func (s *Server) Binary() string { return s.binary }

// Log is the path of the server's log.
func (s *Server) Log() string { return filepath.Join(s.dir, "server.log") }

// Restart starts the process if it does not run. It comes back sealed, as it does in production.
func (s *Server) Restart(ctx context.Context) error {
	if s.running() {
		return errors.New("hcserver: it runs")
	}
	log, err := os.OpenFile(s.Log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	s.cmd = exec.Command(s.binary, "server", "-config="+filepath.Join(s.dir, "config.hcl"))
	s.cmd.Stdout, s.cmd.Stderr = log, log
	s.cmd.Env = []string{"HOME=" + s.dir, "PATH=" + os.Getenv("PATH")}
	if err := s.cmd.Start(); err != nil {
		return err
	}
	exited := make(chan struct{})
	s.exited = exited
	go func(cmd *exec.Cmd) {
		_ = cmd.Wait()
		close(exited)
	}(s.cmd)
	err = s.until(ctx, "answers", func() bool { return s.call(ctx, "GET", "sys/seal-status", nil, nil) == nil })
	if err != nil {
		_ = s.Close()
	}
	return err
}

func (s *Server) running() bool {
	if s.cmd == nil {
		return false
	}
	select {
	case <-s.exited:
		return false
	default:
		return true
	}
}

// until polls for a condition.
func (s *Server) until(ctx context.Context, what string, ok func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for !ok() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("hcserver: waiting until it %s, see %s: %w", what, s.Log(), ctx.Err())
		case <-s.exited:
			return fmt.Errorf("hcserver: the process has ended, see %s", s.Log())
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}

// Seal seals it.
func (s *Server) Seal(ctx context.Context) error {
	return s.call(ctx, "PUT", "sys/seal", nil, nil)
}

// Unseal unseals it and waits until it is active.
func (s *Server) Unseal(ctx context.Context) error {
	if err := s.call(ctx, "PUT", "sys/unseal", map[string]any{"key": s.unsealKey}, nil); err != nil {
		return fmt.Errorf("unsealing: %w", err)
	}
	return s.until(ctx, "is active", func() bool { return s.call(ctx, "GET", "sys/health", nil, nil) == nil })
}

// Kill ends the process at once.
func (s *Server) Kill() error {
	if !s.running() {
		return nil
	}
	if err := s.cmd.Process.Kill(); err != nil {
		return err
	}
	<-s.exited
	return nil
}

// Stop makes the process hang: connections open, no answer comes.
func (s *Server) Stop() error {
	if err := s.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		return err
	}
	// The signal is on its way until the kernel says that the process is stopped.
	for range 200 {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.cmd.Process.Pid))
		if err != nil {
			return err
		}
		if i := bytes.LastIndexByte(b, ')'); i >= 0 && i+2 < len(b) && b[i+2] == 'T' {
			return nil
		}
		time.Sleep(5 * time.Millisecond)
	}
	return errors.New("hcserver: the process does not stop")
}

// Cont lets a stopped process go on.
func (s *Server) Cont() error { return s.cmd.Process.Signal(syscall.SIGCONT) }

// Close ends the process and leaves the directory.
func (s *Server) Close() error { return s.Kill() }

// Request makes a request with the root token and decodes the answer's "data", or "auth", into out.
func (s *Server) Request(ctx context.Context, method, path string, body map[string]any, out any) error {
	var answer struct {
		Data, Auth json.RawMessage
	}
	if err := s.call(ctx, method, path, body, &answer); err != nil || out == nil {
		return err
	}
	if len(answer.Auth) > 0 && string(answer.Auth) != "null" {
		return json.Unmarshal(answer.Auth, out)
	}
	return json.Unmarshal(answer.Data, out)
}

// call makes a request and decodes the whole answer into out.
func (s *Server) call(ctx context.Context, method, path string, body map[string]any, out any) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var reader io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return err
		}
		reader = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, s.Address()+"/v1/"+path, reader)
	if err != nil {
		return err
	}
	req.Header.Set("X-Vault-Request", "true")
	if s.root != "" {
		req.Header.Set("X-Vault-Token", s.root)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode >= 300 {
		return fmt.Errorf("%s %s: status %d: %s", method, path, resp.StatusCode, bytes.TrimSpace(text))
	}
	if out == nil || len(text) == 0 {
		return nil
	}
	return json.Unmarshal(text, out)
}

// Setup says how to set up transit and AppRole. The zero value does what deploy/hcvault/setup.sh does, but
// for a secret id that may be used any number of times.
type Setup struct {
	Key         string        // of transit; empty means "pdvault"
	TokenTTL    time.Duration // 0 means 20 min
	TokenMaxTTL time.Duration // 0 means 24 h
	SecretUses  int           // logins that a secret id is good for; 0 means any number
	Wrap        bool          // SecretIDFile holds a wrapping token
	NotDerived  bool          // a key that does not bind contexts, which the sidecar must refuse
}

// AppRole is what the sidecar logs in with.
type AppRole struct {
	Key          string
	Role         string
	RoleID       string
	SecretIDFile string
}

// SetupTransit makes the transit key, the policy and the AppRole, and puts a secret id into a file. It may
// be called again for another key.
func (s *Server) SetupTransit(ctx context.Context, set Setup) (*AppRole, error) {
	if set.Key == "" {
		set.Key = "pdvault"
	}
	if set.TokenTTL == 0 {
		set.TokenTTL = 20 * time.Minute
	}
	if set.TokenMaxTTL == 0 {
		set.TokenMaxTTL = 24 * time.Hour
	}
	role := &AppRole{Key: set.Key, Role: set.Key + "-sidecar", SecretIDFile: filepath.Join(s.dir, set.Key+"-secret-id")}
	for _, mount := range []string{"sys/mounts/transit", "sys/auth/approle"} {
		kind := filepath.Base(mount)
		err := s.call(ctx, "POST", mount, map[string]any{"type": kind}, nil)
		if err != nil && !strings.Contains(err.Error(), "path is already in use") {
			return nil, err
		}
	}
	policy, err := Policy(set.Key)
	if err != nil {
		return nil, err
	}
	for _, step := range []struct {
		path string
		body map[string]any
	}{
		{"transit/config/keys", map[string]any{"disable_upsert": true}},
		{"transit/keys/" + set.Key, map[string]any{"type": "aes256-gcm96", "derived": !set.NotDerived, "exportable": false,
			"allow_plaintext_backup": false, "auto_rotate_period": 0}},
		{"transit/keys/" + set.Key + "/config", map[string]any{"deletion_allowed": false}},
		{"sys/policies/acl/" + role.Role, map[string]any{"policy": policy}},
		{"auth/approle/role/" + role.Role, map[string]any{
			"token_policies": role.Role, "token_no_default_policy": true, "token_type": "service",
			"token_ttl": set.TokenTTL.String(), "token_max_ttl": set.TokenMaxTTL.String(),
			"secret_id_num_uses": set.SecretUses, "secret_id_ttl": "10m",
		}},
	} {
		if err := s.call(ctx, "POST", step.path, step.body, nil); err != nil {
			return nil, err
		}
	}
	var id struct {
		RoleID string `json:"role_id"`
	}
	if err := s.Request(ctx, "GET", "auth/approle/role/"+role.Role+"/role-id", nil, &id); err != nil {
		return nil, err
	}
	role.RoleID = id.RoleID
	return role, s.NewSecretID(ctx, role, set.Wrap)
}

// NewSecretID puts a new secret id, or a wrapping token for one, into the file of role.
func (s *Server) NewSecretID(ctx context.Context, role *AppRole, wrap bool) error {
	var answer struct {
		Data struct {
			SecretID string `json:"secret_id"`
		} `json:"data"`
		WrapInfo struct {
			Token string `json:"token"`
		} `json:"wrap_info"`
	}
	path := "auth/approle/role/" + role.Role + "/secret-id"
	if wrap {
		// Over sys/wrapping, since the header for wrapping is not set by call.
		if err := s.call(ctx, "POST", path, nil, &answer); err != nil {
			return err
		}
		if err := s.wrap(ctx, map[string]any{"secret_id": answer.Data.SecretID}, &answer); err != nil {
			return err
		}
		return os.WriteFile(role.SecretIDFile, []byte(answer.WrapInfo.Token+"\n"), 0o600)
	}
	if err := s.call(ctx, "POST", path, nil, &answer); err != nil {
		return err
	}
	return os.WriteFile(role.SecretIDFile, []byte(answer.Data.SecretID+"\n"), 0o600)
}

func (s *Server) wrap(ctx context.Context, data map[string]any, out any) error {
	b, err := json.Marshal(data)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, "POST", s.Address()+"/v1/sys/wrapping/wrap", bytes.NewReader(b))
	if err != nil {
		return err
	}
	req.Header.Set("X-Vault-Token", s.root)
	req.Header.Set("X-Vault-Wrap-TTL", "120s")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("wrapping: status %d", resp.StatusCode)
	}
	return json.NewDecoder(resp.Body).Decode(out)
}

// Policy returns the text of deploy/hcvault/sidecar.hcl for a key.
func Policy(key string) (string, error) {
	_, file, _, ok := runtime.Caller(0)
	if !ok {
		return "", errors.New("hcserver: the source tree is not known")
	}
	text, err := os.ReadFile(filepath.Join(filepath.Dir(file), "..", "..", "..", "deploy", "hcvault", "sidecar.hcl"))
	if err != nil {
		return "", err
	}
	return strings.ReplaceAll(string(text), "/pdvault\"", "/"+key+"\""), nil
}
