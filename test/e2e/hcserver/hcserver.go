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
	setups        map[string]string // by key, the token that set it up
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
	s := &Server{binary: binary, dir: dir, setups: make(map[string]string)}
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

// PID is the process id.
func (s *Server) PID() int { return s.cmd.Process.Pid }

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

// call makes a request with the root token and decodes the whole answer into out.
func (s *Server) call(ctx context.Context, method, path string, body map[string]any, out any) error {
	return s.callAs(ctx, s.root, "", method, path, body, out)
}

// RequestAs makes a request with a token.
func (s *Server) RequestAs(ctx context.Context, token, method, path string, body map[string]any) error {
	return s.callAs(ctx, token, "", method, path, body, nil)
}

// callAs is call with another token. With wrapTTL the answer comes wrapped.
func (s *Server) callAs(ctx context.Context, token, wrapTTL, method, path string, body map[string]any, out any) error {
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
	if token != "" {
		req.Header.Set("X-Vault-Token", token)
	}
	if wrapTTL != "" {
		req.Header.Set("X-Vault-Wrap-TTL", wrapTTL)
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

// AppRole is what the sidecar logs in with: all the time, and for epochs.
type AppRole struct {
	Key          string
	Role         string
	RoleID       string
	SecretIDFile string

	EpochRole         string
	EpochRoleID       string
	EpochSecretIDFile string
}

// SetupToken makes a token that may do what deploy/hcvault/setup.hcl says, for a key and its roles, and nothing
// else. It is what the root token is used for.
func (s *Server) SetupToken(ctx context.Context, key string) (string, error) {
	policy, err := PolicyFile("setup.hcl", key)
	if err != nil {
		return "", err
	}
	if err := s.call(ctx, "POST", "sys/policies/acl/"+key+"-setup", map[string]any{"policy": policy}, nil); err != nil {
		return "", err
	}
	var auth struct {
		Token string `json:"client_token"`
	}
	err = s.Request(ctx, "POST", "auth/token/create", map[string]any{"policies": []string{key + "-setup"}, "no_default_policy": true, "ttl": "1h"}, &auth)
	return auth.Token, err
}

// SetupTransit makes the transit key, and for the sidecar's role and the epoch's a policy, an AppRole, and a secret
// id in a file. All of it is done with a SetupToken. It may be called again for another key.
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
	role := &AppRole{Key: set.Key,
		Role: set.Key + "-sidecar", SecretIDFile: filepath.Join(s.dir, set.Key+"-secret-id"),
		EpochRole: set.Key + "-epoch", EpochSecretIDFile: filepath.Join(s.dir, set.Key+"-epoch-secret-id")}
	token, err := s.SetupToken(ctx, set.Key)
	if err != nil {
		return nil, err
	}
	s.setups[set.Key] = token
	for _, mount := range []string{"sys/mounts/transit", "sys/auth/approle"} {
		kind := filepath.Base(mount)
		err := s.callAs(ctx, token, "", "POST", mount, map[string]any{"type": kind}, nil)
		if err != nil && !strings.Contains(err.Error(), "path is already in use") {
			return nil, err
		}
	}
	sidecar, err := PolicyFile("sidecar.hcl", set.Key)
	if err != nil {
		return nil, err
	}
	epoch, err := PolicyFile("epoch.hcl", set.Key)
	if err != nil {
		return nil, err
	}
	approle := func(name, secretTTL string) map[string]any {
		return map[string]any{
			"token_policies": name, "token_no_default_policy": true, "token_type": "service",
			"token_ttl": set.TokenTTL.String(), "token_max_ttl": set.TokenMaxTTL.String(),
			"secret_id_num_uses": set.SecretUses, "secret_id_ttl": secretTTL,
		}
	}
	for _, step := range []struct {
		path string
		body map[string]any
	}{
		{"transit/config/keys", map[string]any{"disable_upsert": true}},
		{"transit/keys/" + set.Key, map[string]any{"type": "aes256-gcm96", "derived": !set.NotDerived, "exportable": false,
			"allow_plaintext_backup": false, "auto_rotate_period": 0}},
		{"transit/keys/" + set.Key + "/config", map[string]any{"deletion_allowed": false}},
		{"sys/policies/acl/" + role.Role, map[string]any{"policy": sidecar}},
		{"sys/policies/acl/" + role.EpochRole, map[string]any{"policy": epoch}},
		{"auth/approle/role/" + role.Role, approle(role.Role, "10m")},
		{"auth/approle/role/" + role.EpochRole, approle(role.EpochRole, "25h")},
	} {
		if err := s.callAs(ctx, token, "", "POST", step.path, step.body, nil); err != nil {
			return nil, err
		}
	}
	for name, id := range map[string]*string{role.Role: &role.RoleID, role.EpochRole: &role.EpochRoleID} {
		var answer struct {
			Data struct {
				RoleID string `json:"role_id"`
			}
		}
		if err := s.callAs(ctx, token, "", "GET", "auth/approle/role/"+name+"/role-id", nil, &answer); err != nil {
			return nil, err
		}
		*id = answer.Data.RoleID
	}
	if err := s.NewSecretID(ctx, role, set.Wrap); err != nil {
		return nil, err
	}
	return role, s.NewEpochSecretID(ctx, role, set.Wrap)
}

// NewSecretID puts a new secret id, or a wrapping token for one, into the file of role.
func (s *Server) NewSecretID(ctx context.Context, role *AppRole, wrap bool) error {
	return s.deliver(ctx, role.Key, role.Role, role.SecretIDFile, wrap)
}

// NewEpochSecretID is NewSecretID for the role of epochs.
func (s *Server) NewEpochSecretID(ctx context.Context, role *AppRole, wrap bool) error {
	return s.deliver(ctx, role.Key, role.EpochRole, role.EpochSecretIDFile, wrap)
}

// deliver gets a secret id, which comes out wrapped only.
func (s *Server) deliver(ctx context.Context, key, role, file string, wrap bool) error {
	token := s.setups[key]
	if token == "" { // somebody else has set it up
		token = s.root
	}
	var answer struct {
		WrapInfo struct {
			Token string `json:"token"`
		} `json:"wrap_info"`
	}
	if err := s.callAs(ctx, token, "120s", "POST", "auth/approle/role/"+role+"/secret-id", nil, &answer); err != nil {
		return err
	}
	text := answer.WrapInfo.Token
	if !wrap {
		var unwrapped struct {
			Data struct {
				SecretID string `json:"secret_id"`
			}
		}
		if err := s.callAs(ctx, text, "", "POST", "sys/wrapping/unwrap", nil, &unwrapped); err != nil {
			return err
		}
		text = unwrapped.Data.SecretID
	}
	return os.WriteFile(file, []byte(text+"\n"), 0o600)
}

// Policy returns the text of deploy/hcvault/sidecar.hcl for a key.
func Policy(key string) (string, error) { return PolicyFile("sidecar.hcl", key) }

// PolicyFile returns the text of a policy of deploy/hcvault for a key, and for roles named after it.
func PolicyFile(name, key string) (string, error) {
	_, file, _, ok := runtime.Caller(0)
	if !ok {
		return "", errors.New("hcserver: the source tree is not known")
	}
	text, err := os.ReadFile(filepath.Join(filepath.Dir(file), "..", "..", "..", "deploy", "hcvault", name))
	if err != nil {
		return "", err
	}
	return strings.NewReplacer(`/pdvault"`, "/"+key+`"`, "/pdvault/", "/"+key+"/", "/pdvault-", "/"+key+"-", `"pdvault-`, `"`+key+"-").Replace(string(text)), nil
}

// Snapshot is a copy of all that is stored, as an operator keeps it.
func (s *Server) Snapshot(ctx context.Context) ([]byte, error) {
	return s.raw(ctx, "GET", "sys/storage/raft/snapshot", nil)
}

// Restore puts a Snapshot back, and waits until the server is active again.
func (s *Server) Restore(ctx context.Context, snapshot []byte) error {
	if _, err := s.raw(ctx, "POST", "sys/storage/raft/snapshot-force", snapshot); err != nil {
		return err
	}
	return s.until(ctx, "is active", func() bool {
		return s.call(ctx, "GET", "sys/health", nil, nil) == nil && s.call(ctx, "GET", "sys/mounts", nil, nil) == nil
	})
}

func (s *Server) raw(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, s.Address()+"/v1/"+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("X-Vault-Token", s.root)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode >= 300 {
		err = fmt.Errorf("%s %s: status %d", method, path, resp.StatusCode)
	}
	return text, err
}

// Hangup makes the server open its audit files anew.
func (s *Server) Hangup() error { return s.cmd.Process.Signal(syscall.SIGHUP) }
