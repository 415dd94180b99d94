// Package keyring holds the keys of one instance: it makes, wraps, caches, uses and destroys them. It is
// the only package that sees a key in the clear, and it runs only in the sidecar.
//
// The hierarchy. A KEK outside this process (HashiCorp Vault transit, or a root-key file) wraps one bundle
// per subject and a few keysets of the instance. A bundle is a Tink AES256-GCM keyset, which seals the
// subject's fields, and a 32-byte secret, from which the subject's reference in the ledger is made. Each
// wrap is bound to instance and subject, each ciphertext to instance, subject, collection, field and
// record version, so that nothing opens where it was not put. The KEK is asked when a bundle is made or changed,
// when it is not in the cache, and for everything in an epoch; never for a single field.
//
// Wrapped bundles lie in the key store, a kv.Store of the sidecar's own. Destroying a bundle is erasing
// the person: a cached bundle serves only while the key store still holds that very row.
//
// The package must never check who may read: that is the sidecar's work, before it calls Open.
package keyring

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/vault/kv"
)

var (
	// ErrNotEmpty is returned by Create when the key store already holds something.
	ErrNotEmpty = errors.New("keyring: key store is not empty")
	// ErrNotCreated is returned by Open when the key store holds no instance.
	ErrNotCreated = errors.New("keyring: key store holds no instance")
	// ErrOtherInstance is returned by Open when the key store belongs to another instance or KEK.
	ErrOtherInstance = errors.New("keyring: key store belongs to another instance or KEK")
	// ErrNotBound is returned by Create and Open when the KEK unwraps under a context that it did not wrap
	// under, as HashiCorp Vault does when its key is not derived.
	ErrNotBound = errors.New("keyring: key-encryption key does not bind contexts")
	// ErrClosed is returned by every call after Close. It wraps keys.ErrUnavailable.
	ErrClosed = fmt.Errorf("keyring: closed: %w", keys.ErrUnavailable)
)

const (
	defaultCacheSize  = 10_000
	defaultCacheTTL   = 30 * time.Second
	maxCacheTTL       = 300 * time.Second
	defaultKEKTimeout = 3 * time.Second
)

// Config is what a Keyring needs. Instance, KEK and Store must be set.
type Config struct {
	Instance  string        // name of the instance, bound into every key and ciphertext; never changes
	KEK       KEK           // wraps and unwraps bundles
	Store     kv.Store      // the key store; the keyring is its only writer, the caller closes it
	CacheSize int           // bundles kept unwrapped; 0 means 10,000
	CacheTTL  time.Duration // how long one is kept at most; 0 means 30 s, more than 300 s is refused
	// KEKTimeout bounds one batch call to the KEK, whoever waits for it; 0 means 3 s.
	KEKTimeout time.Duration
	// Epochs begins and ends versions of the KEK; nil means that this keyring carries out no epochs. One that is under
	// way when the keyring is opened goes on.
	Epochs Epochs
	// EpochInterval is the time between the end of an epoch and the begin of the next; 0 means only on demand, more than
	// 30 days is refused. What was missed is made up for at the start.
	EpochInterval time.Duration
	// EpochPause is how many times as long as a batch took an epoch rests after it while others ask for keys; 0 means 6,
	// so that they keep six sevenths of the time.
	EpochPause int
	EpochBatch int // rows that an epoch takes at a time when it is alone; 0 means 1,000, which is the most
	// WitnessOverlap is how long a witness key goes on signing when a newer one has taken its place; 0 means 14 days.
	WitnessOverlap time.Duration
	Now            func() time.Time // nil means time.Now
	Logger         *slog.Logger     // nil means none
	Observe        Observer         // hooks for metrics, each may be nil
}

// Observer is a set of hooks for metrics. They are called from the goroutines that do the work and must
// return quickly.
type Observer struct {
	// Cache is told, for each call, how many bundles were served without the KEK and how many were not.
	Cache func(hits, misses int)
	// KEK is told of each batch call; op is "wrap", "unwrap" or "rewrap", err that of the whole call.
	KEK func(op string, items int, took time.Duration, err error)
	// Commit is told of each transaction on the key store, which may carry the changes of several calls.
	Commit func(changes int, took time.Duration, err error)
	// Epoch is told of the progress of an epoch; err is what holds it up, nil when it goes on.
	Epoch func(phase string, done, total int64, err error)
}

func (cfg Config) verified() (Config, error) {
	if cfg.Store == nil {
		return cfg, fmt.Errorf("keyring: config without store: %w", keys.ErrInvalid)
	}
	return cfg.withoutStore()
}

// withoutStore is verified for who has no store yet.
func (cfg Config) withoutStore() (Config, error) {
	if cfg.KEK == nil {
		return cfg, fmt.Errorf("keyring: config without KEK: %w", keys.ErrInvalid)
	}
	if err := checkName("instance", cfg.Instance); err != nil {
		return cfg, err
	}
	if n := len(cfg.KEK.Name()); n == 0 || n > 255 {
		return cfg, fmt.Errorf("keyring: name of the KEK: %w", keys.ErrInvalid)
	}
	if cfg.CacheSize == 0 {
		cfg.CacheSize = defaultCacheSize
	}
	if cfg.CacheTTL == 0 {
		cfg.CacheTTL = defaultCacheTTL
	}
	if cfg.KEKTimeout == 0 {
		cfg.KEKTimeout = defaultKEKTimeout
	}
	if cfg.WitnessOverlap == 0 {
		cfg.WitnessOverlap = defaultWitnessOverlap
	}
	if cfg.CacheSize < 0 || cfg.CacheTTL < 0 || cfg.CacheTTL > maxCacheTTL || cfg.KEKTimeout < 0 || cfg.WitnessOverlap < 0 {
		return cfg, fmt.Errorf("keyring: cache size, cache TTL, KEK timeout or witness overlap: %w", keys.ErrInvalid)
	}
	if cfg.EpochPause == 0 {
		cfg.EpochPause = defaultEpochPause
	}
	if cfg.EpochBatch == 0 {
		cfg.EpochBatch = scanPage
	}
	if cfg.EpochInterval < 0 || cfg.EpochInterval > maxEpochInterval || cfg.EpochPause < 0 ||
		cfg.EpochBatch < 0 || cfg.EpochBatch > scanPage {
		return cfg, fmt.Errorf("keyring: interval, pause or batch of epochs: %w", keys.ErrInvalid)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return cfg, nil
}

// Keyring is the keys of one instance. Its methods may be called from any goroutine.
type Keyring struct {
	cfg        Config
	store      kv.Store
	restoring  bool          // opened by a restore that is under way
	generation atomic.Uint64 // newest seen in the key store
	cache      *cache
	wraps      *batcher
	unwraps    *batcher
	writes     *committer
	rotation   atomic.Uint32 // newest rotation of subjects' keys that is known
	epochs     *epochs       // nil without Config.Epochs

	stop   context.CancelFunc // ends the sweeper and epochs
	swept  chan struct{}      // closed when it has ended
	closed atomic.Bool

	changing chan struct{} // of one place: held while a keyset of the instance is changed

	mu       sync.RWMutex // guards instance, which is nil after Close
	instance *instance
}

// Create makes a new instance in an empty key store: the keysets of the instance, the sidecar's id and its
// witness key, all wrapped by the KEK. It returns the keyring opened. When it fails, the key store is as
// it was, or, if only the answer of the last write was lost, holds a complete instance.
func Create(ctx context.Context, cfg Config) (*Keyring, error) {
	cfg, err := cfg.verified()
	if err != nil {
		return nil, err
	}
	empty := func(r kv.Reader) error {
		pairs, err := r.Scan(nil, nil, 1)
		if err != nil {
			return storeError("reading", err)
		}
		if len(pairs) > 0 {
			return ErrNotEmpty
		}
		return nil
	}
	if err := cfg.Store.View(ctx, empty); err != nil {
		return nil, fmt.Errorf("creating a keyring: %w", err)
	}
	if err := selfTest(ctx, cfg); err != nil {
		return nil, fmt.Errorf("creating a keyring: %w", err)
	}
	wrapped, err := newInstance(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("creating a keyring: %w", err)
	}
	err = cfg.Store.Update(ctx, func(w kv.Writer) error {
		if err := empty(w); err != nil {
			return err
		}
		w.Set(keyGeneration, binary.BigEndian.AppendUint64(nil, 1))
		w.Set(keyInstance, instanceRow(cfg.Instance, cfg.KEK.Name()))
		for name, b := range wrapped {
			w.Set(keyKeyset(name), row{generation: 1, keys: 1, kek: cfg.KEK.Name(), wrapped: b}.encode())
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("creating a keyring: %w", err)
	}
	return Open(ctx, cfg)
}

// Open opens the keyring of an existing instance. It never creates one. Before it returns it has seen that
// the KEK binds contexts and that it unwraps what this store holds.
func Open(ctx context.Context, cfg Config) (*Keyring, error) {
	cfg, err := cfg.verified()
	if err != nil {
		return nil, err
	}
	return open(ctx, cfg, false)
}

// open is Open with a verified cfg; restoring says that the store is one that a restore has not finished.
func open(ctx context.Context, cfg Config, restoring bool) (_ *Keyring, err error) {
	k := &Keyring{cfg: cfg, store: cfg.Store, restoring: restoring, swept: make(chan struct{}), changing: make(chan struct{}, 1)}
	if k.cache, err = newCache(cfg.CacheSize, cfg.CacheTTL, cfg.Now); err != nil {
		return nil, fmt.Errorf("opening a keyring: %w", err)
	}
	if err := selfTest(ctx, cfg); err != nil {
		return nil, fmt.Errorf("opening a keyring: %w", err)
	}
	if err := k.load(ctx); err != nil {
		return nil, fmt.Errorf("opening a keyring: %w", err)
	}
	newBatcher := func(op string, call func(context.Context, []KEKItem) ([]KEKResult, error)) *batcher {
		b := &batcher{op: op, call: call, timeout: cfg.KEKTimeout, observe: cfg.Observe.KEK, now: cfg.Now,
			pending: make(map[jobKey]*job)}
		b.ctx, b.cancel = context.WithCancel(context.Background())
		return b
	}
	k.wraps = newBatcher("wrap", cfg.KEK.Wrap)
	k.wraps.secret = true
	k.unwraps = newBatcher("unwrap", cfg.KEK.Unwrap)
	k.unwraps.finish = k.unwrapped
	k.writes = &committer{store: cfg.Store, observe: cfg.Observe.Commit, now: cfg.Now, seen: &k.generation}
	if err := errors.Join(k.canary(ctx), k.endInterrupted(ctx)); err != nil {
		k.wraps.close()
		k.unwraps.close()
		k.writes.close()
		return nil, fmt.Errorf("opening a keyring: %w", err)
	}
	if err := k.dropWitness(ctx); err != nil { // they do not sign any more in any case; the sweeper tries again
		cfg.Logger.Warn("a witness key whose time is over stays in the key store", "error", err)
	}
	running, stop := context.WithCancel(context.Background())
	k.stop = stop
	go k.sweep(running)
	if cfg.Epochs != nil {
		k.epochs = newEpochs(k)
		go k.epochs.run(running)
	}
	cfg.Logger.Info("keyring open", "instance", cfg.Instance, "sidecar", k.SidecarID(), "kek", cfg.KEK.Name(),
		"generation", k.generation.Load())
	return k, nil
}

// sweep drops expired bundles, and looks after the keysets of the instance, until ctx ends.
func (k *Keyring) sweep(ctx context.Context) {
	defer close(k.swept)
	tick := time.NewTicker(max(k.cfg.CacheTTL/8, 100*time.Millisecond))
	defer tick.Stop()
	refresh := time.NewTicker(max(k.cfg.CacheTTL, time.Second))
	defer refresh.Stop()
	failed := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			k.cache.sweep()
		case <-refresh.C:
			err := k.refresh(ctx)
			if err != nil && !failed && ctx.Err() == nil {
				k.cfg.Logger.Warn("keysets of the instance were not refreshed", "error", err)
			}
			failed = err != nil
		}
	}
}

// Close waits for writes under way, ends calls to the KEK and leaves an epoch where it is, and drops every key. What Go's and Tink's
// ciphers hold inside cannot be overwritten from here; it is left to the garbage collector.
// A second Close returns nil. The key store is left open.
func (k *Keyring) Close() error {
	if k.closed.Swap(true) {
		return nil
	}
	k.stop()
	<-k.swept
	if k.epochs != nil {
		<-k.epochs.ended
	}
	k.wraps.close()
	k.unwraps.close()
	k.writes.close()
	k.cache.purge()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.instance.identity.wipe()
	k.instance = nil
	return nil
}

// current returns the keys of the instance, or ErrClosed.
func (k *Keyring) current() (*instance, error) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if k.closed.Load() || k.instance == nil {
		return nil, ErrClosed
	}
	return k.instance, nil
}

// Generation is the newest generation of the key store that this keyring has seen. It rises with each
// change of a key and never falls.
func (k *Keyring) Generation() uint64 { return k.generation.Load() }

// KEKName is the name of the KEK.
func (k *Keyring) KEKName() string { return k.cfg.KEK.Name() }

// Instance is the name of the instance.
func (k *Keyring) Instance() string { return k.cfg.Instance }

// Ready does a real round trip through the KEK and a read of the key store, and reports what fails. The KEK must also
// unwrap what is there: a keyset of the instance, which only an epoch wraps again, and the bundle that was wrapped
// last. So a KEK that lost older versions is noticed, and one that was put back to an older state.
func (k *Keyring) Ready(ctx context.Context) error {
	if _, err := k.current(); err != nil {
		return err
	}
	if _, err := k.lookup(ctx, nil); err != nil {
		return err
	}
	// First what tells a deleted key from one that the sidecar may not use: HashiCorp Vault takes wrapping under a key
	// that does not exist for an attempt to make it, which is forbidden.
	if err := k.unwrapsStored(ctx); err != nil {
		return err
	}
	if err := k.cfg.KEK.Ready(ctx); err != nil {
		return kekError(err)
	}
	return nil
}

// LoadState returns the value saved under name, nil if there is none.
func (k *Keyring) LoadState(ctx context.Context, name string) ([]byte, error) {
	if _, err := k.current(); err != nil {
		return nil, err
	}
	if err := checkName("state", name); err != nil {
		return nil, err
	}
	var value []byte
	err := k.store.View(ctx, func(r kv.Reader) error {
		values, err := r.Get(keyState(name))
		if err == nil {
			value = values[0]
		}
		return err
	})
	if err != nil {
		return nil, storeError("reading", err)
	}
	return value, nil
}

// SaveState keeps a small value under name, in clear; nil removes it. It is durable when SaveState returns
// nil. After an error it is unknown whether it was saved. Saves of one name must not overlap.
func (k *Keyring) SaveState(ctx context.Context, name string, value []byte) error {
	if _, err := k.current(); err != nil {
		return err
	}
	if err := checkName("state", name); err != nil {
		return err
	}
	if len(value) > MaxState {
		return fmt.Errorf("state is too large: %w", keys.ErrInvalid)
	}
	value = bytes.Clone(value) // the write may outlive this call, when ctx ends
	return k.writes.do(ctx, &change{items: 1, bytes: len(value), reserve: true,
		apply: func(w kv.Writer, _ uint64) (bool, error) {
			if value == nil {
				w.Delete(keyState(name))
			} else {
				w.Set(keyState(name), value)
			}
			return false, nil
		}})
}

// selfTest shows that the KEK gives back what it wrapped, and only under the same context.
func selfTest(ctx context.Context, cfg Config) error {
	secret := make([]byte, 32)
	_, _ = rand.Read(secret) // never fails
	defer clear(secret)
	a, b := selfTestContext(cfg.Instance, 'a'), selfTestContext(cfg.Instance, 'b')
	wrapped, err := callKEK(ctx, cfg.KEK.Wrap, []KEKItem{{a, secret}})
	if err != nil {
		return fmt.Errorf("self-test of the KEK: %w", err)
	}
	if bytes.Contains(wrapped[0], secret) {
		return fmt.Errorf("self-test of the KEK: it does not encrypt: %w", ErrNotBound)
	}
	results, err := cfg.KEK.Unwrap(ctx, []KEKItem{{a, wrapped[0]}, {b, wrapped[0]}})
	if err != nil {
		return fmt.Errorf("self-test of the KEK: %w", kekError(err))
	}
	if len(results) != 2 {
		return fmt.Errorf("self-test of the KEK: wrong number of results: %w", keys.ErrUnavailable)
	}
	defer results[0].Data.Wipe()
	defer results[1].Data.Wipe()
	if err := results[0].Err; err != nil {
		return fmt.Errorf("self-test of the KEK: %w", kekError(err))
	}
	if !bytes.Equal(results[0].Data, secret) {
		return fmt.Errorf("self-test of the KEK: it gave back something else: %w", keys.ErrTampered)
	}
	switch err := results[1].Err; {
	case err == nil:
		return ErrNotBound
	case !isOf(err, keys.ErrTampered):
		return fmt.Errorf("self-test of the KEK: %w", kekError(err))
	}
	return nil
}

// callKEK makes one call in which every item must succeed.
func callKEK(ctx context.Context, call func(context.Context, []KEKItem) ([]KEKResult, error), items []KEKItem) ([]Secret, error) {
	results, err := call(ctx, items)
	if err != nil {
		return nil, kekError(err)
	}
	if len(results) != len(items) {
		return nil, fmt.Errorf("KEK gave %d results for %d items: %w", len(results), len(items), keys.ErrUnavailable)
	}
	out := make([]Secret, len(items))
	for i, r := range results {
		out[i] = r.Data
		if err == nil && r.Err != nil {
			err = kekError(r.Err)
		}
		if err == nil && len(r.Data) == 0 {
			err = fmt.Errorf("KEK gave an empty result: %w", keys.ErrUnavailable)
		}
	}
	if err != nil {
		wipeAll(out)
		return nil, err
	}
	return out, nil
}

func wipeAll(secrets []Secret) {
	for _, s := range secrets {
		s.Wipe()
	}
}

// checkName accepts what may name a collection, field, label, state or instance.
func checkName(what, name string) error {
	if name == "" || len(name) > MaxName {
		return fmt.Errorf("name of the %s is empty or too long: %w", what, keys.ErrInvalid)
	}
	return nil
}
