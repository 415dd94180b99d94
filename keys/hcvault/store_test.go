package hcvault_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/hcvault"
	"github.com/prototypster/pdvault/keys/keyring"
	"github.com/prototypster/pdvault/test/conformance"
	"github.com/prototypster/pdvault/test/e2e/hcserver"
	"github.com/prototypster/pdvault/vault/kv"
)

// storeEngine gives each store a path of its own. They share a login, whose policy is that of
// deploy/hcvault/store.hcl.
func storeEngine(t testing.TB) conformance.KVEngine {
	t.Helper()
	base := storeSetup(t)
	base.Lease, base.Logger, base.CacheRows = 0, nil, 100
	n := 0
	configs := map[kv.Store]hcvault.StoreConfig{}
	return conformance.KVEngine{
		New: func(t testing.TB) kv.Store {
			t.Helper()
			n++
			cfg := base
			cfg.Path = fmt.Sprintf("%s%d", base.Path, n)
			s, err := hcvault.CreateStore(context.Background(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			configs[s] = cfg
			return s
		},
		Reopen: func(t testing.TB, s kv.Store) kv.Store {
			t.Helper()
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			again, err := hcvault.OpenStore(context.Background(), configs[s])
			if err != nil {
				t.Fatal(err)
			}
			configs[again] = configs[s]
			return again
		},
	}
}

func TestKV(t *testing.T) { conformance.KV(t, storeEngine(t)) }

func TestStoreCreateAndOpen(t *testing.T) {
	cfg := storeSetup(t)
	ctx := context.Background()
	_, err := hcvault.OpenStore(ctx, cfg)
	wantErr(t, err, hcvault.ErrNoStore)
	s := mustStore(t, hcvault.CreateStore, cfg)
	_, err = hcvault.CreateStore(ctx, cfg)
	wantErr(t, err, hcvault.ErrStoreExists)
	mustPut(t, s, map[string]string{"k": "v"})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = hcvault.CreateStore(ctx, cfg)
	wantErr(t, err, hcvault.ErrStoreExists)
	other := cfg
	other.Instance = "another"
	_, err = hcvault.OpenStore(ctx, other)
	wantErr(t, err, kv.ErrIntegrity)

	// Something else lies there.
	cfg.Path += "2"
	admin(t, "POST", cfg.Mount+"/data/"+cfg.Path+"/mine", map[string]any{"data": map[string]any{"a": "b"}}, nil)
	_, err = hcvault.CreateStore(ctx, cfg)
	wantErr(t, err, hcvault.ErrStoreExists)
	if found := dump(t, cfg); len(found) != 1 {
		t.Errorf("what was refused was changed: %v", found)
	}
}

func TestStoreConfigRefused(t *testing.T) {
	good := storeSetup(t)
	for name, change := range map[string]func(*hcvault.StoreConfig){
		"no KEK":            func(c *hcvault.StoreConfig) { c.KEK = nil },
		"no path":           func(c *hcvault.StoreConfig) { c.Path = "" },
		"path that leaves":  func(c *hcvault.StoreConfig) { c.Path = "main/../other" },
		"mount that leaves": func(c *hcvault.StoreConfig) { c.Mount = "../sys" },
		"no instance":       func(c *hcvault.StoreConfig) { c.Instance = "" },
		"lease too short":   func(c *hcvault.StoreConfig) { c.Lease = time.Millisecond },
	} {
		cfg := good
		change(&cfg)
		if _, err := hcvault.CreateStore(context.Background(), cfg); !errors.Is(err, keys.ErrInvalid) {
			t.Errorf("%s: error is %v", name, err)
		}
	}
}

// An engine that keeps older versions would keep what was erased.
func TestStoreNeedsOneVersion(t *testing.T) {
	cfg := storeSetup(t)
	ctx := context.Background()
	set := func(versions int, after string) {
		admin(t, "POST", cfg.Mount+"/config", map[string]any{"max_versions": versions, "delete_version_after": after}, nil)
	}
	defer set(1, "0s")
	set(0, "0s") // ten
	_, err := hcvault.CreateStore(ctx, cfg)
	wantErr(t, err, keys.ErrInvalid)
	set(1, "24h")
	_, err = hcvault.CreateStore(ctx, cfg)
	wantErr(t, err, keys.ErrInvalid)
	set(1, "0s")
	mustStore(t, hcvault.CreateStore, cfg)
}

// What the policy must not allow would break what the store rests on.
func TestStorePolicy(t *testing.T) {
	login, cfg := storeRole(t)
	cfg.KEK = mustOpen(t, login)
	s := mustStore(t, hcvault.CreateStore, cfg)
	mustPut(t, s, map[string]string{"k": "v"})
	secretID, err := os.ReadFile(login.SecretIDFile)
	if err != nil {
		t.Fatal(err)
	}
	var auth struct {
		Token string `json:"client_token"`
	}
	admin(t, "POST", "auth/approle/login", map[string]any{"role_id": login.RoleID, "secret_id": strings.TrimSpace(string(secretID))}, &auth)
	for _, c := range []struct {
		method, path string
		want         bool
	}{
		{"GET", "data/" + cfg.Path + "/owner", true},
		{"GET", "metadata/" + cfg.Path + "/rows/?list=true", true},
		{"GET", "metadata/" + cfg.Path + "/?list=true", true},
		{"DELETE", "metadata/" + cfg.Path + "/rows/00/00", true},
		{"DELETE", "metadata/" + cfg.Path + "/owner", false},
		{"DELETE", "metadata/" + cfg.Path + "/marker", false},
		{"DELETE", "metadata/" + cfg.Path + "/log/01", false},
		{"POST", "metadata/" + cfg.Path + "/rows/00/00", false},
		{"DELETE", "data/" + cfg.Path + "/owner", false},
		{"POST", "destroy/" + cfg.Path + "/owner", false},
		{"GET", "config", false},
		{"POST", "config", false},
		{"GET", "metadata/?list=true", false},
		{"GET", "data/elsewhere/main/owner", false},
	} {
		req, err := http.NewRequest(c.method, server.Address()+"/v1/"+cfg.Mount+"/"+c.path, strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Vault-Token", auth.Token)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if got := resp.StatusCode != http.StatusForbidden; got != c.want {
			t.Errorf("%s %s: status %d, want it allowed: %t", c.method, c.path, resp.StatusCode, c.want)
		}
	}
}

// The role of a sidecar whose key store is elsewhere may not use this one.
func TestStoreForbidden(t *testing.T) {
	_, login := setup(t, hcserver.Setup{})
	store := hcvault.StoreConfig{KEK: mustOpen(t, login), Mount: storeMount, Path: "main", Instance: "test"}
	_, err := hcvault.OpenStore(context.Background(), store)
	wantErr(t, err, keys.ErrForbidden)
	_, err = hcvault.CreateStore(context.Background(), store)
	wantErr(t, err, keys.ErrForbidden)
}

// What was removed or replaced is nowhere in HashiCorp Vault when Update returns.
func TestStoreErasureLeavesNothing(t *testing.T) {
	cfg := storeSetup(t)
	s := mustStore(t, hcvault.CreateStore, cfg)
	gone, large := strings.Repeat("gone", 50), strings.Repeat("much", 300<<10/4)
	mustPut(t, s, map[string]string{"victim": gone, "other": "stays", "l1": large, "l2": large, "l3": large})
	mustPut(t, s, map[string]string{"victim": "", "l1": "", "l2": "", "l3": ""})
	found := dump(t, cfg)
	wantSettled(t, "after an erasure", found)
	for name, text := range found {
		for what, secret := range map[string]string{"value": gone, "large value": large[:300]} {
			for offset := range 3 { // base64 has three ways to write what lies within something
				b64 := base64.RawStdEncoding.EncodeToString([]byte(strings.Repeat("x", offset) + secret))
				if strings.Contains(text, b64[4:len(b64)-4]) {
					t.Errorf("%s still holds the %s", name, what)
				}
			}
		}
		if strings.Contains(name, hex.EncodeToString([]byte("victim"))) {
			t.Errorf("%s is still there", name)
		}
	}
	got, err := all(s)
	if err != nil || len(got) != 1 || got["other"] != "stays" {
		t.Errorf("store holds %d rows, error %v", len(got), err)
	}
}

// A snapshot shows values that were dropped from memory before they were replaced.
func TestStoreOldSnapshot(t *testing.T) {
	cfg := storeSetup(t)
	cfg.CacheRows = 1
	s := mustStore(t, hcvault.CreateStore, cfg)
	for i := range 5 {
		mustPut(t, s, map[string]string{fmt.Sprint("k", i): "old"})
	}
	err := s.View(context.Background(), func(r kv.Reader) error {
		mustPut(t, s, map[string]string{"k0": "new", "k1": "new"})
		mustPut(t, s, map[string]string{"k0": "newer", "k2": ""}) // returns when applied
		pairs, err := r.Scan(nil, nil, 10)
		if err != nil || len(pairs) != 5 {
			t.Errorf("the snapshot has %d rows, error %v", len(pairs), err)
		}
		for _, p := range pairs {
			if string(p.Value) != "old" {
				t.Errorf("%s is %q", p.Key, p.Value)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	got, err := all(s)
	if want := (worlds{{"k0": "newer", "k1": "new", "k3": "old", "k4": "old"}}); err != nil || want.check(got) != nil {
		t.Errorf("store holds %v, error %v", got, err)
	}
}

// faultOps are operations that take every kind of request.
var faultOps = []map[string]string{
	{"a": "2", "b": "", "c": "new"},
	{"d1": strings.Repeat("x", 300<<10), "d2": strings.Repeat("y", 300<<10)}, // two pieces
	{"d1": "", "a": "3"},
}

// maxFaultRequests is more than faultOps make, and few enough to try each.
const maxFaultRequests = 20

// eachFault runs try for each request and each way in which it may fail, several at a time.
func eachFault(t *testing.T, atOnce int, try func(n int, mode fate) error) {
	var group errgroup.Group
	group.SetLimit(atOnce)
	for _, mode := range []fate{drop, lose} {
		for n := range maxFaultRequests {
			group.Go(func() error {
				if err := try(n, mode); err != nil {
					t.Errorf("request %d, applied: %t: %v", n, mode == lose, err)
				}
				return nil
			})
		}
	}
	_ = group.Wait()
}

// patiently repeats what fails because HashiCorp Vault, on a busy machine, did not answer in time.
func patiently(try func() error) error {
	var err error
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if err = try(); !errors.Is(err, keys.ErrUnavailable) {
			return err
		}
	}
	return err
}

// reopened opens a store, and fails unless it holds one of the states and nothing besides.
func reopened(t *testing.T, cfg hcvault.StoreConfig, may worlds, what string) (s *hcvault.Store, err error) {
	err = patiently(func() (err error) {
		s, err = hcvault.OpenStore(context.Background(), cfg)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("opening: %w", err)
	}
	wantSettled(t, what, dump(t, cfg))
	err = patiently(func() error {
		got, err := all(s)
		if err != nil {
			return err
		}
		return may.check(got)
	})
	return s, err
}

// Each request for the store fails once, with and without effect. Whatever an operation that met it said,
// the store goes on, what was acknowledged is there, and nothing is half done.
func TestStoreFaults(t *testing.T) {
	login, cfg := storeRole(t)
	cfg.Logger, login.Logger, cfg.Lease = nil, nil, time.Minute // no renewals in between
	eachFault(t, 4, func(n int, mode fate) error { return oneFault(t, login, cfg, n, mode) })
}

func oneFault(t *testing.T, login hcvault.Config, cfg hcvault.StoreConfig, n int, mode fate) error {
	ctx := context.Background()
	w := newWire(t)
	login.Address = w.URL
	kek, err := hcvault.Open(ctx, login)
	if err != nil {
		return err
	}
	defer kek.Close()
	cfg.KEK, cfg.Path = kek, fmt.Sprintf("%s-fault-%d-%d", cfg.Path, n, mode)
	s, err := hcvault.CreateStore(ctx, cfg)
	if err != nil {
		return err
	}
	before := map[string]string{"a": "1", "b": "1"}
	if err := put(s, before); err != nil {
		return err
	}
	may := worlds{before}
	w.set(func(i int, _ *http.Request) fate {
		if i == n {
			return mode
		}
		return pass
	})
	for _, op := range faultOps {
		may = may.after(op, put(s, op))
	}
	last := map[string]string{"z": "end"}
	err = patiently(func() error {
		err := put(s, last)
		may = may.after(last, err)
		return err
	})
	if err != nil {
		return fmt.Errorf("the store does not go on: %w", err)
	}
	got, err := all(s)
	if err != nil {
		return err
	}
	if err := may.check(got); err != nil {
		return err
	}
	if err := s.Close(); err != nil {
		return err
	}
	if s, err = reopened(t, cfg, may, fmt.Sprint("fault of request ", n)); err != nil {
		return err
	}
	return s.Close()
}

// The process dies at each request, with and without effect of that one. The next opening finds what was
// acknowledged and nothing half done, and the one that died, should it live, can do nothing any more.
func TestStoreCrashes(t *testing.T) {
	login, cfg := storeRole(t)
	cfg.Logger, login.Logger = nil, nil
	eachFault(t, 8, func(n int, mode fate) error { return oneCrash(t, login, cfg, n, mode) })
}

func oneCrash(t *testing.T, login hcvault.Config, cfg hcvault.StoreConfig, n int, mode fate) error {
	ctx := context.Background()
	w := newWire(t)
	direct := login
	login.Address = w.URL
	kek, err := hcvault.Open(ctx, login)
	if err != nil {
		return err
	}
	defer kek.Close()
	cfg.Path = fmt.Sprintf("%s-crash-%d-%d", cfg.Path, n, mode)
	dying := cfg
	dying.KEK = kek
	s, err := hcvault.CreateStore(ctx, dying)
	if err != nil {
		return err
	}
	defer s.Close()
	before := map[string]string{"a": "1", "b": "1"}
	if err := put(s, before); err != nil {
		return err
	}
	may := worlds{before}
	w.set(func(i int, r *http.Request) fate {
		if i == n {
			return mode
		}
		if i > n {
			return drop
		}
		return pass
	})
	for _, op := range faultOps {
		// A removal that is committed is not waited for long: it cannot be carried out.
		short, cancel := context.WithTimeout(ctx, time.Second)
		err := putBy(short, s, op)
		cancel()
		if may = may.after(op, err); err != nil {
			break
		}
	}
	if w.seen() <= n {
		return nil // there are no more requests than that
	}

	cfg.KEK, err = hcvault.Open(ctx, direct)
	if err != nil {
		return err
	}
	defer cfg.KEK.Close()
	next, err := reopened(t, cfg, may, fmt.Sprint("crash at request ", n))
	if err != nil {
		return err
	}
	defer next.Close()

	// The dead come back.
	w.set(nil)
	if err := put(s, map[string]string{"late": "x"}); err == nil {
		return errors.New("a store that was taken over has committed")
	}
	if err := patiently(func() error { return put(next, map[string]string{"a": "next"}) }); err != nil {
		return err
	}
	if _, err := all(s); err == nil {
		return errors.New("a store that was taken over can be read")
	}
	return patiently(func() error {
		got, err := all(next)
		if err == nil && (got["a"] != "next" || got["late"] != "") {
			err = fmt.Errorf("after the dead came back a is %q", got["a"])
		}
		return err
	})
}

func TestStoreTwoOpeners(t *testing.T) {
	cfg := storeSetup(t)
	s := mustStore(t, hcvault.CreateStore, cfg)
	start := time.Now()
	_, err := hcvault.OpenStore(context.Background(), cfg)
	wantErr(t, err, hcvault.ErrStoreInUse)
	if took := time.Since(start); took > cfg.Lease {
		t.Errorf("being refused took %v", took)
	}
	mustPut(t, s, map[string]string{"k": "v"})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	start = time.Now()
	again := mustStore(t, hcvault.OpenStore, cfg)
	if took := time.Since(start); took > cfg.Lease/2 {
		t.Errorf("opening after a Close took %v", took)
	}
	if got, err := all(again); err != nil || got["k"] != "v" {
		t.Errorf("store holds %v, error %v", got, err)
	}
}

// A commit that is on its way while another process takes the store over comes too late.
func TestStoreLateCommit(t *testing.T) {
	login, cfg := storeRole(t)
	w := newWire(t)
	slow := login
	slow.Address = w.URL
	old := cfg
	old.KEK = mustOpen(t, slow)
	s := mustStore(t, hcvault.CreateStore, old)
	mustPut(t, s, map[string]string{"k": "1"})
	if err := s.Close(); err != nil { // so that nothing is left to apply
		t.Fatal(err)
	}
	s = mustStore(t, hcvault.OpenStore, old)

	// The commit of the old owner is caught, sent on by us when the new one is there, and everything else of
	// the old owner is cut off.
	caught := make(chan *http.Request, 1)
	w.set(func(_ int, r *http.Request) fate {
		if strings.Contains(r.URL.Path, "/log/") && r.Method != http.MethodGet {
			var body bytes.Buffer
			_, _ = body.ReadFrom(r.Body)
			again, err := http.NewRequest(r.Method, server.Address()+r.URL.Path, &body)
			if err == nil {
				again.Header = r.Header.Clone()
				select {
				case caught <- again:
				default:
				}
			}
		}
		return drop
	})
	if err := put(s, map[string]string{"k": "old owner's"}); err == nil {
		t.Fatal("a commit without an answer was acknowledged")
	}
	cfg.KEK = mustOpen(t, login)
	next := mustStore(t, hcvault.OpenStore, cfg)
	mustPut(t, next, map[string]string{"k": "new owner's"})
	resp, err := http.DefaultClient.Do(<-caught)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusBadRequest {
		t.Errorf("HashiCorp Vault answered %d to the late commit", resp.StatusCode)
	}
	w.set(nil)
	wantErr(t, waitFor(func() error { return put(s, map[string]string{"k": "again"}) }, hcvault.ErrStoreInUse), hcvault.ErrStoreInUse)
	_, err = all(s)
	wantErr(t, err, hcvault.ErrStoreInUse)
	if err := next.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := all(mustStore(t, hcvault.OpenStore, cfg)); err != nil || got["k"] != "new owner's" {
		t.Errorf("k is %q, error %v", got["k"], err)
	}
}

// waitFor repeats try until its error is want, and returns the last one.
func waitFor(try func() error, want error) error {
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if err := try(); errors.Is(err, want) || time.Now().After(end) {
			return err
		}
	}
}

// Sealed, killed, hanging: typed errors, and the store goes on by itself afterwards.
func TestStoreOutage(t *testing.T) {
	cfg := storeSetup(t)
	s := mustStore(t, hcvault.CreateStore, cfg)
	mustPut(t, s, map[string]string{"k": "1"})
	ctx := context.Background()
	recovered := func(value string) {
		t.Helper()
		err := waitFor(func() error {
			if err := put(s, map[string]string{"k": value}); err != nil {
				return err
			}
			got, err := all(s)
			if err == nil && got["k"] != value {
				t.Errorf("k is %q, want %q", got["k"], value)
			}
			return cmp.Or(err, errTestDone)
		}, errTestDone)
		wantErr(t, err, errTestDone)
	}

	if err := server.Seal(ctx); err != nil {
		t.Fatal(err)
	}
	wantErr(t, put(s, map[string]string{"k": "sealed"}), keys.ErrUnavailable)
	wantErr(t, waitFor(func() error { _, err := all(s); return err }, keys.ErrUnavailable), keys.ErrUnavailable)
	_, err := hcvault.OpenStore(ctx, cfg)
	wantErr(t, err, keys.ErrUnavailable)
	if err := server.Unseal(ctx); err != nil {
		t.Fatal(err)
	}
	recovered("2")

	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	wantErr(t, put(s, map[string]string{"k": "killed"}), keys.ErrUnavailable)
	if err := server.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	if err := server.Unseal(ctx); err != nil {
		t.Fatal(err)
	}
	recovered("3")

	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	wantErr(t, put(s, map[string]string{"k": "hanging"}), keys.ErrUnavailable)
	if took := time.Since(start); took > 15*time.Second {
		t.Errorf("a hang held an Update for %v", took)
	}
	if err := server.Cont(); err != nil {
		t.Fatal(err)
	}
	recovered("4")
}

var errTestDone = errors.New("done")

// Damage is never "not found".
func TestStoreDamage(t *testing.T) {
	cfg := storeSetup(t)
	row := func(key string) string {
		for name := range dump(t, cfg) {
			if strings.HasSuffix(name, "/"+hex.EncodeToString([]byte(key))) {
				return name
			}
		}
		t.Fatal("no row")
		return ""
	}
	base := cfg.Path
	for name, damage := range map[string]func(){
		"row removed": func() { admin(t, "DELETE", cfg.Mount+"/metadata/"+cfg.Path+"/"+row("k1"), nil, nil) },
		"row added": func() {
			admin(t, "POST", cfg.Mount+"/data/"+cfg.Path+"/rows/ca/61", map[string]any{"data": map[string]any{"f": 1, "seq": 1, "v": ""}}, nil)
		},
		"row of another shard": func() {
			admin(t, "POST", cfg.Mount+"/data/"+cfg.Path+"/rows/00/61", map[string]any{"data": map[string]any{"f": 1, "seq": 1, "v": ""}}, nil)
		},
		"log removed": func() { admin(t, "DELETE", cfg.Mount+"/metadata/"+cfg.Path+"/log/02", nil, nil) },
		"log foreign": func() {
			admin(t, "POST", cfg.Mount+"/data/"+cfg.Path+"/log/02", map[string]any{"data": map[string]any{"a": 1}}, nil)
		},
		"no owner": func() { admin(t, "DELETE", cfg.Mount+"/metadata/"+cfg.Path+"/owner", nil, nil) },
		"marker edits": func() {
			admin(t, "POST", cfg.Mount+"/data/"+cfg.Path+"/marker", map[string]any{"data": map[string]any{"f": 2}}, nil)
		},
	} {
		t.Run(name, func(t *testing.T) {
			cfg.Path = base + strings.ReplaceAll(name, " ", "-")
			s := mustStore(t, hcvault.CreateStore, cfg)
			mustPut(t, s, map[string]string{"k1": "1", "k2": "2"})
			mustPut(t, s, map[string]string{"k3": "3"})
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			damage()
			_, err := hcvault.OpenStore(context.Background(), cfg)
			wantErr(t, err, kv.ErrIntegrity)
		})
	}

	// While the store is open.
	for name, damage := range map[string]func(row string){
		"removed": func(row string) { admin(t, "DELETE", cfg.Mount+"/metadata/"+cfg.Path+"/"+row, nil, nil) },
		"deleted": func(row string) { admin(t, "DELETE", cfg.Mount+"/data/"+cfg.Path+"/"+row, nil, nil) },
		"foreign": func(row string) {
			admin(t, "POST", cfg.Mount+"/data/"+cfg.Path+"/"+row, map[string]any{"data": map[string]any{"a": "b"}}, nil)
		},
		"older": func(row string) {
			admin(t, "POST", cfg.Mount+"/data/"+cfg.Path+"/"+row, map[string]any{"data": map[string]any{"f": 1, "seq": 1, "v": ""}}, nil)
		},
	} {
		t.Run("open, "+name, func(t *testing.T) {
			cfg.Path, cfg.CacheRows = base+"open"+name, 1
			s := mustStore(t, hcvault.CreateStore, cfg)
			mustPut(t, s, map[string]string{"k1": "1"})
			mustPut(t, s, map[string]string{"k2": "2", "gone": "x"})
			mustPut(t, s, map[string]string{"gone": ""})
			damage(row("k1"))
			err := s.View(context.Background(), func(r kv.Reader) error {
				_, _ = r.Get([]byte("k1")) // ignored
				return nil
			})
			wantErr(t, err, kv.ErrIntegrity)
		})
	}
}

// Close leaves no goroutine behind.
func TestStoreCloseEndsEverything(t *testing.T) {
	login, cfg := storeRole(t)
	before := goleak.IgnoreCurrent()
	k, err := hcvault.Open(context.Background(), login)
	if err != nil {
		t.Fatal(err)
	}
	cfg.KEK = k
	s, err := hcvault.CreateStore(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	mustPut(t, s, map[string]string{"k": "v"})
	if err := errors.Join(s.Close(), k.Close()); err != nil {
		t.Error(err)
	}
	goleak.VerifyNone(t, before, goleak.IgnoreAnyFunction("net/http.(*persistConn).readLoop"), goleak.IgnoreAnyFunction("net/http.(*persistConn).writeLoop"))
}

// A keyring on it, with the KEK and the login that it has anyway.
func TestStoreUnderKeyring(t *testing.T) {
	cfg := storeSetup(t)
	ctx := context.Background()
	s := mustStore(t, hcvault.CreateStore, cfg)
	ring, err := keyring.Create(ctx, keyring.Config{Instance: "test", KEK: cfg.KEK, Store: s})
	if err != nil {
		t.Fatal(err)
	}
	subject, gone := uuid.New(), uuid.New()
	fields := []keyring.SealField{{Collection: "profile", Field: "email", Version: 1, Plaintext: []byte("value")}}
	sealed, err := ring.Seal(ctx, []keyring.SealSubject{{Subject: subject, Create: true, Fields: fields}, {Subject: gone, Create: true, Fields: fields}})
	if err != nil || sealed[0].Err != nil || sealed[1].Err != nil {
		t.Fatal(err)
	}
	if err := ring.Destroy(ctx, gone, "test"); err != nil {
		t.Fatal(err)
	}
	for name := range dump(t, cfg) {
		if strings.Contains(name, hex.EncodeToString(append([]byte("b/"), gone[:]...))) {
			t.Error("the bundle of a destroyed subject is still there")
		}
	}
	if err := errors.Join(ring.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}

	s = mustStore(t, hcvault.OpenStore, cfg)
	if ring, err = keyring.Open(ctx, keyring.Config{Instance: "test", KEK: cfg.KEK, Store: s}); err != nil {
		t.Fatal(err)
	}
	defer ring.Close()
	open := func(subject uuid.UUID, ciphertext []byte) (string, error) {
		out, err := ring.Open(ctx, []keyring.OpenSubject{{Subject: subject, Collection: "profile", Version: 1,
			Fields: []keyring.OpenField{{Field: "email", Ciphertext: ciphertext}}}})
		if err != nil {
			return "", err
		}
		if out[0].Err != nil {
			return "", out[0].Err
		}
		return string(out[0].Fields[0].Plaintext), nil
	}
	if got, err := open(subject, sealed[0].Fields[0].Ciphertext); err != nil || got != "value" {
		t.Errorf("opening gave %q, error %v", got, err)
	}
	_, err = open(gone, sealed[1].Fields[0].Ciphertext)
	wantErr(t, err, keys.ErrDestroyed)
}
