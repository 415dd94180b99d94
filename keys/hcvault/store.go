package hcvault

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tidwall/btree"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/vault/kv"
)

const (
	defaultLease     = 15 * time.Second
	minLease         = 500 * time.Millisecond
	defaultCacheRows = 10_000
	maxCacheBytes    = 64 << 20
	appliedTimeout   = 5 * time.Second // an Update waits this long until what it removed is gone from HashiCorp Vault
	drainTimeout     = 5 * time.Second // Close waits this long for what is not applied yet; it is in the log
)

var (
	// ErrNoStore is returned by OpenStore when there is no key store.
	ErrNoStore = errors.New("hcvault: there is no key store at this path")
	// ErrStoreExists is returned by CreateStore when there is a key store, or anything else.
	ErrStoreExists = errors.New("hcvault: path of the key store is not empty")
)

// StoreConfig says where a key store is. KEK, Path and Instance must be set.
type StoreConfig struct {
	KEK      *KEK   // whose connection and login are used; closed after the store
	Mount    string // of a KV engine of version 2 with max_versions 1; empty means "pdvault-keys"
	Path     string // of the store, below the mount
	Instance string // what the store belongs to; OpenStore refuses another's

	Lease     time.Duration // see lease; 0 means 15 s
	CacheRows int           // values kept in memory; 0 means 10,000
	Logger    *slog.Logger  // nil means none
}

func (cfg StoreConfig) verified() (StoreConfig, error) {
	if cfg.Mount == "" {
		cfg.Mount = "pdvault-keys"
	}
	if cfg.Lease == 0 {
		cfg.Lease = defaultLease
	}
	if cfg.CacheRows == 0 {
		cfg.CacheRows = defaultCacheRows
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.KEK == nil || cfg.Instance == "" || cfg.Lease < minLease || cfg.CacheRows < 0 ||
		!nameRE.MatchString(cfg.Mount) || !nameRE.MatchString(cfg.Path) {
		return cfg, fmt.Errorf("hcvault: config of the key store: KEK, mount, path, instance, lease or cache: %w", keys.ErrInvalid)
	}
	return cfg, nil
}

// Store is a key store in a KV engine of version 2 of HashiCorp Vault, the engine of vault/kv for those who
// want the wrapped bundles there as well. One process has it open at a time.
//
// All keys are in memory, in their order; values are fetched when they are asked for, and some are kept. A
// commit is one write with check-and-set, of a record that holds the whole transaction; a goroutine carries
// it over to the rows afterwards. DESIGN.md tells what a crash leaves at each step.
//
// It must never acknowledge a commit that HashiCorp Vault has not, never use the store when its lease may be
// another's, never create one when asked to open one, and never take a secret that is not there for a row
// that was not written: the number of rows is in every record.
type Store struct {
	cfg     StoreConfig
	secrets *secrets
	lease   *lease
	log     *slog.Logger

	ctx     context.Context // of all background requests
	cancel  context.CancelFunc
	keeper  sync.WaitGroup // renews the lease
	workers sync.WaitGroup // the committer and the applier
	flights sync.WaitGroup // fetches of values
	failed  atomic.Pointer[error]

	commits committer
	applies applier

	mu      sync.Mutex // guards the rest; never held during a request
	rows    *btree.BTreeG[item]
	seq     uint64 // the last commit that is in rows
	open    map[*reader]struct{}
	cache   rowCache
	pending []*commit     // in rows, not yet taken by the applier
	backlog int           // writes that are in rows and not yet applied
	applied uint64        // all commits up to this one are
	moved   chan struct{} // closed when applied changes or the store fails

	life      sync.RWMutex // guards closed, and running.Add against Close
	closed    bool
	running   sync.WaitGroup
	closeOnce sync.Once
}

var _ kv.Store = (*Store)(nil)

// CreateStore makes a new, empty key store and opens it. It never touches anything that is there.
func CreateStore(ctx context.Context, cfg StoreConfig) (*Store, error) {
	s, err := newStore(cfg)
	if err != nil {
		return nil, err
	}
	return s.start(ctx, func() error {
		names, err := s.secrets.list(ctx, "")
		if err != nil {
			return err
		}
		for _, name := range names {
			if name != nameOwner { // left by a CreateStore that did not get to its end
				return ErrStoreExists
			}
		}
		if err := s.lease.acquire(ctx, true); err != nil {
			return err
		}
		m := marker{F: storeFormat, Kind: storeKind, Instance: cfg.Instance, Store: newID(), Created: time.Now().UTC().Truncate(time.Second)}
		if _, err := s.secrets.write(ctx, nameMarker, 0, m); errors.Is(err, errMoved) {
			return ErrStoreExists
		} else if err != nil {
			return err
		}
		return nil
	})
}

// OpenStore opens a key store that CreateStore has made. It never creates one. If the last process that had
// it open did not close it, it waits until that one's lease has surely run out, and applies what is left in
// the log.
func OpenStore(ctx context.Context, cfg StoreConfig) (*Store, error) {
	s, err := newStore(cfg)
	if err != nil {
		return nil, err
	}
	return s.start(ctx, func() error {
		sec, err := s.secrets.read(ctx, nameMarker)
		if err != nil {
			return err
		}
		if sec == nil {
			return ErrNoStore
		}
		m, err := decodeMarker(sec)
		if err != nil {
			return err
		}
		if m.Kind != storeKind || m.Instance != cfg.Instance {
			return fmt.Errorf("the key store is that of another instance or kind: %w", kv.ErrIntegrity)
		}
		return s.lease.acquire(ctx, false)
	})
}

func newStore(cfg StoreConfig) (*Store, error) {
	cfg, err := cfg.verified()
	if err != nil {
		return nil, err
	}
	c, err := newSecrets(cfg.KEK, cfg.Mount, cfg.Path)
	if err != nil {
		return nil, err
	}
	s := &Store{
		cfg: cfg, secrets: c, log: cfg.Logger,
		lease: &lease{secrets: c, time: cfg.Lease},
		rows:  newRows(), open: map[*reader]struct{}{}, moved: make(chan struct{}),
		cache: rowCache{limit: cfg.CacheRows},
	}
	s.commits.wake, s.applies.wake = make(chan struct{}, 1), make(chan struct{}, 1)
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s, nil
}

// start acquires the store, recovers it and starts its goroutines.
func (s *Store) start(ctx context.Context, acquire func() error) (_ *Store, err error) {
	defer func() {
		if err != nil {
			s.cancel()
			s.keeper.Wait()
			if s.lease.check() == nil {
				_ = s.release()
			}
		}
	}()
	if err := acquire(); err != nil {
		return nil, fmt.Errorf("opening the key store in HashiCorp Vault: %w", err)
	}
	s.keeper.Go(func() {
		s.lease.keep(s.ctx, func(err error) { s.log.Warn("renewing the lease of the key store failed", "error", err) })
	})
	if err := s.recover(ctx); err != nil {
		return nil, fmt.Errorf("opening the key store in HashiCorp Vault: %w", err)
	}
	s.workers.Go(s.commitLoop)
	s.workers.Go(s.applyLoop)
	s.log.Info("key store in HashiCorp Vault is open", "count", s.rows.Len())
	return s, nil
}

func (s *Store) release() error {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	for range 2 { // the last renewal may have been cut off, then the first try finds out how it went
		if err := s.lease.release(ctx); err == nil || s.lease.check() != nil {
			return err
		}
	}
	return s.lease.release(ctx)
}

// View implements [kv.Store].
func (s *Store) View(ctx context.Context, fn func(kv.Reader) error) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.running.Done()
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := s.usable(); err != nil {
		return err
	}
	r := new(reader)
	r.begin(ctx, s)
	defer r.end()
	if err := fn(r); err != nil {
		return err
	}
	return r.failed
}

// Update implements [kv.Store]. One that removes rows returns when HashiCorp Vault holds them no more, in
// the log neither, or after 5 s: then they go as soon as it takes the requests.
func (s *Store) Update(ctx context.Context, fn func(kv.Writer) error) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.running.Done()
	return kv.Retry(ctx, "hcvault", 4*time.Millisecond, func() (bool, error) { return s.try(ctx, fn) })
}

// try runs fn once. It tells a conflict apart from an error of fn, which may itself wrap kv.ErrConflict.
func (s *Store) try(ctx context.Context, fn func(kv.Writer) error) (conflict bool, err error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	if err := s.usable(); err != nil {
		return false, err
	}
	w := &writer{writes: map[string]*cell{}}
	w.begin(ctx, s)
	w.base = w.rows
	ended := false
	end := func() {
		if !ended {
			ended = true
			w.end()
		}
	}
	defer end()
	if err := fn(w); err != nil {
		return false, err
	}
	if w.failed != nil {
		return false, w.failed // fn did not look at it, but what it decided rests on a failed read
	}
	if w.invalid != nil {
		return false, w.invalid
	}
	if len(w.writes) == 0 {
		return false, nil
	}
	end() // its own snapshot needs no old values any more: the commit compares versions only
	return s.commit(ctx, w)
}

// enter admits a transaction. It counts instead of holding the lock, so that a transaction inside another
// one cannot deadlock with Close.
func (s *Store) enter() error {
	s.life.RLock()
	defer s.life.RUnlock()
	if s.closed {
		return kv.ErrClosed
	}
	s.running.Add(1)
	return nil
}

// usable returns nil while the store may be read and written.
func (s *Store) usable() error {
	if err := s.failed.Load(); err != nil {
		return *err
	}
	return s.lease.check()
}

// fail ends the use of the store: what is in memory is no longer known to be what is there.
func (s *Store) fail(err error) error {
	err = fmt.Errorf("hcvault: key store must be opened again: %w", err)
	if s.failed.CompareAndSwap(nil, &err) {
		s.log.Error("key store cannot be used any more", "error", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.signal()
	return err
}

// signal wakes who waits for moved. The caller holds mu.
func (s *Store) signal() {
	close(s.moved)
	s.moved = make(chan struct{})
}

// Close implements [kv.Store]. What HashiCorp Vault does not take in 5 s stays in the log for the next
// opening.
func (s *Store) Close() error {
	s.closeOnce.Do(func() {
		s.life.Lock()
		s.closed = true
		s.life.Unlock()
		s.running.Wait()
		s.drain()
		s.cancel()
		s.workers.Wait()
		s.flights.Wait()
		s.keeper.Wait()
		if s.usable() == nil {
			if err := s.release(); err != nil {
				s.log.Warn("releasing the key store failed; the next opening waits until the lease has run out", "error", err)
			}
		}
	})
	return nil
}

// drain waits until everything is applied, or nothing can be.
func (s *Store) drain() {
	ctx, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	s.mu.Lock()
	seq := s.seq
	s.mu.Unlock()
	if !s.awaitApplied(ctx, seq) {
		s.log.Warn("not everything is applied; the log keeps it for the next opening")
	}
}

// awaitApplied waits until all commits up to seq are applied, and reports whether they are.
func (s *Store) awaitApplied(ctx context.Context, seq uint64) bool {
	for {
		s.mu.Lock()
		applied, moved := s.applied, s.moved
		s.mu.Unlock()
		if applied >= seq {
			return true
		}
		if s.failed.Load() != nil {
			return false
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return false
		}
	}
}

func newRows() *btree.BTreeG[item] {
	// NoLocks: a tree is either guarded by Store.mu or owned by one transaction.
	return btree.NewBTreeGOptions(func(a, b item) bool { return strings.Compare(a.key, b.key) < 0 }, btree.Options{NoLocks: true})
}
