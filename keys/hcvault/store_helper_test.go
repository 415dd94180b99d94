package hcvault_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prototypster/pdvault/keys/hcvault"
	"github.com/prototypster/pdvault/test/e2e/hcserver"
	"github.com/prototypster/pdvault/vault/kv"
)

const storeMount = "teststore"

// shortLease makes takeovers quick. It must still survive a busy machine.
const shortLease = 2 * time.Second

// storeRole makes a role that may keep stores at paths of its own, and returns the configuration of its login
// and of one store.
func storeRole(t testing.TB) (hcvault.Config, hcvault.StoreConfig) {
	t.Helper()
	role, cfg := setup(t, hcserver.Setup{})
	if err := server.SetupStore(context.Background(), role, storeMount, role.Key+"/+"); err != nil {
		t.Fatal(err)
	}
	return cfg, hcvault.StoreConfig{Mount: storeMount, Path: role.Key + "/main", Instance: "test", Lease: shortLease, Logger: cfg.Logger}
}

// storeSetup is storeRole with a login.
func storeSetup(t testing.TB) hcvault.StoreConfig {
	t.Helper()
	cfg, store := storeRole(t)
	store.KEK = mustOpen(t, cfg)
	return store
}

type storeOpener func(context.Context, hcvault.StoreConfig) (*hcvault.Store, error)

// mustStore opens or creates a store, to be closed at the end of the test.
func mustStore(t testing.TB, open storeOpener, cfg hcvault.StoreConfig) *hcvault.Store {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	s, err := open(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// put sets the keys of pairs to its values; "" removes a key.
func put(s kv.Store, pairs map[string]string) error { return putBy(context.Background(), s, pairs) }

func putBy(ctx context.Context, s kv.Store, pairs map[string]string) error {
	return s.Update(ctx, func(w kv.Writer) error {
		for k, v := range pairs {
			if v == "" {
				w.Delete([]byte(k))
			} else {
				w.Set([]byte(k), []byte(v))
			}
		}
		return nil
	})
}

func mustPut(t testing.TB, s kv.Store, pairs map[string]string) {
	t.Helper()
	if err := put(s, pairs); err != nil {
		t.Fatal(err)
	}
}

// all returns everything in the store.
func all(s kv.Store) (map[string]string, error) {
	got := map[string]string{}
	err := s.View(context.Background(), func(r kv.Reader) error {
		pairs, err := r.Scan(nil, nil, 10_000)
		for _, p := range pairs {
			got[string(p.Key)] = string(p.Value)
		}
		return err
	})
	return got, err
}

// dump reads all that HashiCorp Vault holds below the path of a store, as root: data and metadata by name.
func dump(t testing.TB, cfg hcvault.StoreConfig) map[string]string {
	t.Helper()
	found := map[string]string{}
	var walk func(folder string)
	walk = func(folder string) {
		var list struct{ Keys []string }
		err := server.Request(context.Background(), "GET", cfg.Mount+"/metadata/"+cfg.Path+"/"+folder+"?list=true", nil, &list)
		if err != nil && !strings.Contains(err.Error(), "status 404") {
			t.Fatal(err)
		}
		for _, name := range list.Keys {
			if strings.HasSuffix(name, "/") {
				walk(folder + name)
				continue
			}
			var data, meta json.RawMessage
			admin(t, "GET", cfg.Mount+"/data/"+cfg.Path+"/"+folder+name, nil, &data)
			admin(t, "GET", cfg.Mount+"/metadata/"+cfg.Path+"/"+folder+name, nil, &meta)
			var versions struct{ Versions map[string]any }
			if err := json.Unmarshal(meta, &versions); err != nil || len(versions.Versions) != 1 {
				t.Errorf("%s%s has %d versions, error %v", folder, name, len(versions.Versions), err)
			}
			found[folder+name] = string(data) + string(meta)
		}
	}
	walk("")
	return found
}

// wantSettled fails unless the log holds no writes and no piece of a commit is left.
func wantSettled(t testing.TB, what string, found map[string]string) {
	t.Helper()
	for name, text := range found {
		switch {
		case strings.HasPrefix(name, "parts/"):
			t.Errorf("%s: %s is left", what, name)
		case strings.HasPrefix(name, "log/") && (!strings.Contains(text, `"done":true`) || strings.Contains(text, `"tx"`)):
			t.Errorf("%s: %s is not done: %.200s", what, name, text)
		}
	}
}

// wire stands between a login and HashiCorp Vault, and does to requests for the store's secrets what a
// network and a dying machine do.
type wire struct {
	*httptest.Server

	mu     sync.Mutex
	decide func(n int, r *http.Request) fate // nil: pass
	n      int                               // requests for the store since decide was set
}

type fate int

const (
	pass fate = iota
	drop      // not applied, no answer
	lose      // applied, no answer
)

func newWire(t testing.TB) *wire {
	t.Helper()
	target, err := url.Parse(server.Address())
	if err != nil {
		t.Fatal(err)
	}
	w := new(wire)
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.ErrorHandler = func(rw http.ResponseWriter, _ *http.Request, _ error) { hangUp(rw) }
	w.Server = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		f := pass
		if strings.HasPrefix(r.URL.Path, "/v1/"+storeMount+"/") {
			w.mu.Lock()
			decide, n := w.decide, w.n
			w.n++
			w.mu.Unlock()
			if decide != nil {
				f = decide(n, r)
			}
		}
		switch f {
		case pass:
			proxy.ServeHTTP(rw, r)
		case drop:
			_, _ = io.Copy(io.Discard, r.Body)
			hangUp(rw)
		case lose:
			proxy.ServeHTTP(httptest.NewRecorder(), r)
			hangUp(rw)
		}
	}))
	w.Config.SetKeepAlivesEnabled(true)
	t.Cleanup(w.Close)
	return w
}

func hangUp(rw http.ResponseWriter) {
	if conn, _, err := rw.(http.Hijacker).Hijack(); err == nil {
		_ = conn.Close()
	}
}

// set replaces what decides, and begins to count anew.
func (w *wire) set(decide func(n int, r *http.Request) fate) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.decide, w.n = decide, 0
}

func (w *wire) seen() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.n
}

// worlds is what may be in a store after operations of which some failed without saying whether they
// happened.
type worlds []map[string]string

func (ws worlds) after(op map[string]string, err error) worlds {
	var next worlds
	for _, w := range ws {
		did := map[string]string{}
		for k, v := range w {
			did[k] = v
		}
		for k, v := range op {
			if delete(did, k); v != "" {
				did[k] = v
			}
		}
		next = append(next, did)
		if err != nil {
			next = append(next, w)
		}
	}
	return next
}

func (ws worlds) check(got map[string]string) error {
	for _, w := range ws {
		if len(w) != len(got) {
			continue
		}
		same := true
		for k, v := range w {
			same = same && got[k] == v
		}
		if same {
			return nil
		}
	}
	sizes := map[string]int{}
	for k, v := range got {
		sizes[k] = len(v)
	}
	return fmt.Errorf("store holds %v (sizes of values), which is none of %d possible states", sizes, len(ws))
}
