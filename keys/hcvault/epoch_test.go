package hcvault_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/hcvault"
	"github.com/prototypster/pdvault/keys/keyring"
	"github.com/prototypster/pdvault/test/e2e/hcserver"
	"github.com/prototypster/pdvault/vault/kv/memkv"
)

// epochEnds runs an epoch to its end.
func epochEnds(t testing.TB, ring *keyring.Keyring) keyring.Job {
	t.Helper()
	j, err := ring.StartJob(context.Background(), keyring.ScopeKEK, uuid.Nil, "test")
	if err != nil {
		t.Fatal(err)
	}
	return awaitEpoch(t, ring, j.ID)
}

func awaitEpoch(t testing.TB, ring *keyring.Keyring, id uuid.UUID) keyring.Job {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		jobs, err := ring.Jobs(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if j := jobs[0]; j.ID == id && j.State != keyring.JobRunning {
			if j.State != keyring.JobDone {
				t.Fatalf("the epoch failed: %+v", j)
			}
			return j
		}
	}
	t.Fatal("the epoch does not end")
	return keyring.Job{}
}

// epochRing is a keyring on the real HashiCorp Vault with some subjects.
type epochRing struct {
	*keyring.Keyring
	t      testing.TB
	role   *hcserver.AppRole
	cfg    keyring.Config
	sealed map[uuid.UUID][]byte
}

func newEpochRing(t testing.TB, n int, set hcserver.Setup) *epochRing {
	t.Helper()
	role, cfg := setup(t, set)
	k := mustOpen(t, cfg)
	r := &epochRing{t: t, role: role, sealed: make(map[uuid.UUID][]byte),
		cfg: keyring.Config{Instance: "test", KEK: k, Epochs: k.Epochs(), Store: memkv.New()}}
	var err error
	if r.Keyring, err = keyring.Create(context.Background(), r.cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	var subjects []keyring.SealSubject
	for range n {
		subjects = append(subjects, keyring.SealSubject{Subject: uuid.New(), Create: true,
			Fields: []keyring.SealField{{Collection: "a", Field: "b", Version: 1, Plaintext: []byte(`"value"`)}}})
	}
	out, err := r.Seal(context.Background(), subjects)
	if err != nil {
		t.Fatal(err)
	}
	for i, s := range out {
		if s.Err != nil {
			t.Fatal(s.Err)
		}
		r.sealed[subjects[i].Subject] = s.Fields[0].Ciphertext
	}
	return r
}

func (r *epochRing) reopen() error {
	_ = r.Close()
	k, err := keyring.Open(context.Background(), r.cfg)
	if err == nil {
		r.Keyring = k
		r.t.Cleanup(func() { _ = k.Close() })
	}
	return err
}

// wantAll opens everything from an empty cache.
func (r *epochRing) wantAll() {
	r.t.Helper()
	if err := r.reopen(); err != nil {
		r.t.Fatal(err)
	}
	var asked []keyring.OpenSubject
	for s, c := range r.sealed {
		asked = append(asked, keyring.OpenSubject{Subject: s, Collection: "a", Version: 1, Fields: []keyring.OpenField{{Field: "b", Ciphertext: c}}})
	}
	out, err := r.Open(context.Background(), asked)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, o := range out {
		if o.Err != nil {
			r.t.Error(o.Err)
		}
	}
}

type transitKey struct {
	Latest       uint64 `json:"latest_version"`
	MinDecrypt   uint64 `json:"min_decryption_version"`
	MinEncrypt   uint64 `json:"min_encryption_version"`
	MinAvailable uint64 `json:"min_available_version"`
}

func (r *epochRing) wantKey(want transitKey) {
	r.t.Helper()
	var got transitKey
	admin(r.t, "GET", "transit/keys/"+r.role.Key, nil, &got)
	if got != want {
		r.t.Errorf("the key is %+v, want %+v", got, want)
	}
}

// tokensOf counts the tokens that have a policy.
func tokensOf(t testing.TB, policy string) (n int) {
	t.Helper()
	var list struct {
		Keys []string `json:"keys"`
	}
	admin(t, "LIST", "auth/token/accessors", nil, &list)
	for _, a := range list.Keys {
		var info struct {
			Policies []string `json:"policies"`
		}
		err := server.Request(context.Background(), "POST", "auth/token/lookup-accessor", map[string]any{"accessor": a}, &info)
		if err == nil && len(info.Policies) == 1 && info.Policies[0] == policy {
			n++
		}
	}
	return n
}

func TestEpoch(t *testing.T) {
	r := newEpochRing(t, 1500, hcserver.Setup{})
	if n := tokensOf(t, r.role.EpochRole); n != 0 {
		t.Errorf("%d tokens of the epoch's role before it", n)
	}
	for v := uint64(2); v <= 3; v++ {
		j := epochEnds(t, r.Keyring)
		if j.Target != v || j.Total != 1504 {
			t.Errorf("job is %+v", j)
		}
		r.wantKey(transitKey{v, v, v, v})
	}
	n := 1
	for end := time.Now().Add(5 * time.Second); n > 0 && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		n = tokensOf(t, r.role.EpochRole)
	}
	if n != 0 {
		t.Errorf("%d tokens of the epoch's role after it", n)
	}
	r.wantAll()
}

// A wrapping token is unwrapped once, and what it gave is remembered from one epoch to the next.
func TestEpochsWithOneWrappedSecretID(t *testing.T) {
	r := newEpochRing(t, 3, hcserver.Setup{Wrap: true})
	epochEnds(t, r.Keyring)
	epochEnds(t, r.Keyring)
	r.wantKey(transitKey{3, 3, 3, 3})
}

// kill -9 of HashiCorp Vault during an epoch, and a seal: it waits, and goes on after the unseal by itself.
func TestEpochWhileHashiCorpVaultDies(t *testing.T) {
	ctx := context.Background()
	for name, breakIt := range map[string]func() error{
		"killed": func() error {
			if err := server.Kill(); err != nil {
				return err
			}
			time.Sleep(300 * time.Millisecond)
			return server.Restart(ctx)
		},
		"sealed": func() error { return server.Seal(ctx) },
	} {
		t.Run(name, func(t *testing.T) {
			phases := make(chan string, 10_000)
			r := newEpochRing(t, 3000, hcserver.Setup{})
			_ = r.Close()
			r.cfg.EpochBatch = 100
			r.cfg.Observe.Epoch = func(phase string, done, _ int64, _ error) { phases <- phase }
			if err := r.reopen(); err != nil {
				t.Fatal(err)
			}
			j, err := r.StartJob(ctx, keyring.ScopeKEK, uuid.Nil, "test")
			if err != nil {
				t.Fatal(err)
			}
			for p := range phases {
				if p == "rewrap" {
					break
				}
			}
			if err := breakIt(); err != nil {
				t.Fatal(err)
			}
			if jobs, err := r.Jobs(ctx); err != nil || jobs[0].State != keyring.JobRunning {
				t.Errorf("jobs are %+v, %v", jobs, err)
			}
			if err := server.Unseal(ctx); err != nil {
				t.Fatal(err)
			}
			awaitEpoch(t, r.Keyring, j.ID)
			r.wantKey(transitKey{2, 2, 2, 2})
			r.wantAll()
		})
	}
}

// Without rights, or without a valid secret id, an epoch waits: nothing is rotated, and reads go on.
func TestEpochForbidden(t *testing.T) {
	ctx := context.Background()
	for name, c := range map[string]struct{ deny, mend func(r *epochRing) }{
		"policy": {
			func(r *epochRing) {
				admin(t, "POST", "sys/policies/acl/"+r.role.EpochRole, map[string]any{"policy": `path "auth/token/renew-self" { capabilities = ["update"] }`}, nil)
			},
			func(r *epochRing) {
				policy, err := hcserver.PolicyFile("epoch.hcl", r.role.Key)
				if err != nil {
					t.Fatal(err)
				}
				admin(t, "POST", "sys/policies/acl/"+r.role.EpochRole, map[string]any{"policy": policy}, nil)
			},
		},
		"secret id": {
			func(r *epochRing) {
				if err := os.WriteFile(r.role.EpochSecretIDFile, []byte("used up\n"), 0o600); err != nil {
					t.Fatal(err)
				}
			},
			func(r *epochRing) {
				if err := server.NewEpochSecretID(ctx, r.role, false); err != nil {
					t.Fatal(err)
				}
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newEpochRing(t, 3, hcserver.Setup{})
			held := make(chan error, 1000)
			_ = r.Close()
			r.cfg.Observe.Epoch = func(_ string, _, _ int64, err error) {
				if err != nil {
					held <- err
				}
			}
			if err := r.reopen(); err != nil {
				t.Fatal(err)
			}
			c.deny(r)
			j, err := r.StartJob(ctx, keyring.ScopeKEK, uuid.Nil, "test")
			if err != nil {
				t.Fatal(err)
			}
			wantErr(t, <-held, keys.ErrForbidden)
			r.wantKey(transitKey{1, 1, 0, 0})
			c.mend(r)
			awaitEpoch(t, r.Keyring, j.ID)
			r.wantAll()
		})
	}
}

// F27: the key is deleted while an epoch runs. It fails, and says why.
func TestEpochOfADeletedKey(t *testing.T) {
	r := newEpochRing(t, 3, hcserver.Setup{})
	k := r.cfg.Epochs.(*hcvault.Epochs)
	admin(t, "POST", "transit/keys/"+r.role.Key+"/config", map[string]any{"deletion_allowed": true}, nil)
	admin(t, "DELETE", "transit/keys/"+r.role.Key, nil, nil)
	_, err := k.Versions(context.Background())
	wantErr(t, err, keys.ErrKEKMissing)
	_, err = k.Rotate(context.Background(), 1)
	wantErr(t, err, keys.ErrKEKMissing)
	wantErr(t, k.Retire(context.Background(), 1), keys.ErrKEKMissing)
	k.End(context.Background())
}

// F30: HashiCorp Vault comes back from a snapshot that is older than an epoch.
func TestRestoredFromAnOlderSnapshot(t *testing.T) {
	ctx := context.Background()
	r := newEpochRing(t, 3, hcserver.Setup{})
	before, err := server.Snapshot(ctx)
	if err != nil {
		t.Fatal(err)
	}
	epochEnds(t, r.Keyring)
	after, err := server.Snapshot(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Restore(ctx, before); err != nil {
		t.Fatal(err)
	}
	r.wantKey(transitKey{1, 1, 0, 0})
	// A sidecar that runs notices with the next bundle that it has to ask for, and makes none.
	kek := r.cfg.KEK.(*hcvault.KEK)
	for end := time.Now().Add(10 * time.Second); kek.Ready(ctx) != nil && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
	}
	if _, err = kek.Rewrap(ctx, nil); err != nil {
		t.Error(err)
	}
	out, err := r.Seal(ctx, []keyring.SealSubject{{Subject: uuid.New(), Create: true}})
	if err == nil {
		err = out[0].Err
	}
	wantErr(t, err, keys.ErrUnavailable)
	// It does not start.
	err = r.reopen()
	wantErr(t, err, keys.ErrKEKMissing)
	t.Log(err)
	if err := server.Restore(ctx, after); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(10 * time.Second); kek.Ready(ctx) != nil && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
	}
	r.wantAll()
}

// F29: the disk of the audit device is full. Everything is refused, and goes on when there is space again.
func TestAuditDeviceFull(t *testing.T) {
	ctx := context.Background()
	r := newEpochRing(t, 3, hcserver.Setup{})
	dir := t.TempDir()
	path, file := filepath.Join(dir, "audit"), filepath.Join(dir, "audit.log")
	link := func(target string) {
		t.Helper()
		next := filepath.Join(dir, "next")
		if err := errors.Join(os.Symlink(target, next), os.Rename(next, path)); err != nil {
			t.Fatal(err)
		}
		if err := server.Hangup(); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(file, path); err != nil {
		t.Fatal(err)
	}
	// Mode 0000 means that the mode is left as it is.
	if err := server.Request(ctx, "PUT", "sys/audit/full", map[string]any{"type": "file", "options": map[string]any{"file_path": path, "mode": "0000"}}, nil); err != nil {
		t.Skipf("no audit device: %v", err)
	}
	removed := false
	defer func() {
		if !removed {
			link(file)
			time.Sleep(500 * time.Millisecond)
			_ = server.Request(ctx, "DELETE", "sys/audit/full", nil, nil)
		}
	}()
	link("/dev/full")
	kek := r.cfg.KEK.(*hcvault.KEK)
	var err error
	for end := time.Now().Add(5 * time.Second); err == nil && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		err = kek.Ready(ctx)
	}
	wantErr(t, err, keys.ErrUnavailable)
	if errors.Is(err, keys.ErrSealed) || errors.Is(err, keys.ErrForbidden) {
		t.Errorf("error is %v", err)
	}
	_, err = r.cfg.Epochs.Rotate(ctx, 1)
	wantErr(t, err, keys.ErrUnavailable)
	link(file)
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if err = kek.Ready(ctx); err == nil {
			break
		}
	}
	if err != nil {
		t.Fatalf("no recovery: %v", err)
	}
	epochEnds(t, r.Keyring)
	r.wantKey(transitKey{2, 2, 2, 2})
	r.wantAll()
	if err := server.Request(ctx, "DELETE", "sys/audit/full", nil, nil); err != nil {
		t.Error(err)
	}
	removed = true
}

// fakeKey answers like transit on a key's path, and fails as told.
type fakeKey struct {
	mu       sync.Mutex
	key      transitKey
	fail     string // the path whose next request fails
	applied  bool   // after it had its effect
	requests map[string]int
}

func (f *fakeKey) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	what := strings.TrimPrefix(r.URL.Path, "/v1/transit/keys/pdvault")
	f.requests[r.Method+what]++
	failed := f.fail != "" && f.fail == what && r.Method != http.MethodGet
	if !failed || f.applied {
		var body map[string]uint64
		_ = json.NewDecoder(r.Body).Decode(&body)
		switch what {
		case "/rotate":
			f.key.Latest++
		case "/config":
			f.key.MinDecrypt, f.key.MinEncrypt = body["min_decryption_version"], body["min_encryption_version"]
		case "/trim":
			f.key.MinAvailable = body["min_available_version"]
		}
	}
	if failed {
		f.fail = ""
		w.WriteHeader(http.StatusInternalServerError)
		fmt.Fprint(w, `{"errors":["1 error occurred: * failed to audit response"]}`)
		return
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"data": f.key})
}

// 500 does not mean that it was not done: what came of it is read back, and nothing is repeated by itself.
func TestAnsweredWith500(t *testing.T) {
	ctx := context.Background()
	for _, what := range []string{"/rotate", "/config", "/trim"} {
		for _, applied := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s applied=%v", what, applied), func(t *testing.T) {
				f := &fakeKey{key: transitKey{1, 1, 0, 0}, requests: make(map[string]int), fail: what, applied: applied}
				e := fakeEpochs(t, f)
				defer e.End(ctx)
				newest, err := e.Rotate(ctx, 1)
				failed := what == "/rotate" && !applied
				if failed {
					wantErr(t, err, keys.ErrUnavailable)
					newest, err = e.Rotate(ctx, 1)
				}
				if err != nil || newest != 2 {
					t.Fatalf("rotating gave %d, %v", newest, err)
				}
				err = e.Retire(ctx, 2)
				if what != "/rotate" && !applied {
					wantErr(t, err, keys.ErrUnavailable)
					err = e.Retire(ctx, 2)
				}
				if err != nil {
					t.Fatalf("retiring: %v", err)
				}
				if f.key != (transitKey{2, 2, 2, 2}) {
					t.Errorf("the key is %+v", f.key)
				}
				for request, n := range f.requests {
					want := 1
					if !applied && strings.HasSuffix(request, what) {
						want = 2
					}
					if n != want && !strings.HasPrefix(request, "GET") {
						t.Errorf("%d requests %s, want %d", n, request, want)
					}
				}
			})
		}
	}
}

func fakeEpochs(t *testing.T, key http.Handler) *hcvault.Epochs {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/v1/transit/keys/") {
			key.ServeHTTP(w, r)
			return
		}
		_, _ = w.Write([]byte(`{"auth":{"client_token":"hvs.x","lease_duration":1200,"renewable":true}}`))
	}))
	t.Cleanup(server.Close)
	secret := filepath.Join(t.TempDir(), "secret-id")
	for _, path := range []string{secret, secret + "2"} {
		if err := os.WriteFile(path, []byte("secret"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return mustOpen(t, hcvault.Config{Address: server.URL, AllowHTTP: true, Key: "pdvault", RoleID: "role", SecretIDFile: secret,
		Epoch: hcvault.Role{RoleID: "epoch", SecretIDFile: secret + "2"}}).Epochs()
}
