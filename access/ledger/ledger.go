package ledger

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/mod/sumdb/note"

	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/vault/kv"
)

const (
	// DefaultMaxBatch is the number of entries that one transaction carries at most.
	DefaultMaxBatch = 512
	// maxBatchBytes bounds the keys and values of one transaction; a larger single entry goes alone.
	maxBatchBytes = 2 << 20
	// cachedTiles bounds the memory for full tiles that recent proofs used: 16 KiB each.
	cachedTiles = 256
	// recentNotes is how many checkpoints back a witness may lag and still have its cosignature kept.
	recentNotes = 1024
)

var (
	// ErrUnavailable is returned by Append when the store could not commit. Whether the entry is in the log
	// is unknown; nothing may be disclosed or acknowledged on the strength of it. It wraps the cause.
	ErrUnavailable = errors.New("ledger: cannot append")
	// ErrClosed is returned by Append after Close.
	ErrClosed = errors.New("ledger: is closed")
	// ErrNotFound is returned when an index, a size or a tile lies outside the log.
	ErrNotFound = errors.New("ledger: outside the log")
	// ErrEntryTooLarge is returned by Append for an entry above verify.MaxEntrySize.
	ErrEntryTooLarge = errors.New("ledger: entry too large")
	// ErrInvalidEntry is returned by Append for an entry that is not well-formed, or whose effects would
	// write into the ledger's own rows.
	ErrInvalidEntry = errors.New("ledger: invalid entry")
	// ErrExists is returned by Create when there is already a ledger, or a remainder of one.
	ErrExists = errors.New("ledger: exists already")
	// ErrNoLedger is returned by Open when none was created.
	ErrNoLedger = errors.New("ledger: does not exist")
	// ErrQuery is returned by Query and SubjectRows for arguments that select nothing by mistake.
	ErrQuery = errors.New("ledger: invalid query")
	// ErrCosignature is returned by AddCosignature for a line that no known key of a witness made over a recent
	// checkpoint of this log.
	ErrCosignature = errors.New("ledger: cosignature refused")
)

// Config says what a ledger works with.
type Config struct {
	Store    kv.Store      // required; stays open when the ledger is closed
	Prefix   []byte        // of all rows of the ledger; "l/" when empty
	Origin   string        // required; URL without scheme, as in checkpoints
	Signer   note.Signer   // required; its name is the origin
	Verifier note.Verifier // required; of the same key as Signer
	Older    []Key         // keys that go on signing beside Signer for a while, the newest first

	Witnesses []note.Verifier  // whose cosignatures AddCosignature takes; see SetWitnesses
	Now       func() time.Time // time.Now when nil
	Logger    *slog.Logger     // discards when nil
	MaxBatch  int              // entries in a transaction; DefaultMaxBatch when 0
	Observe   func(BatchStats) // called by the committer after each batch, so it must be quick; may be nil
}

// BatchStats is what the committer did with one batch.
type BatchStats struct {
	Committed int           // entries in the log
	Rejected  int           // entries refused alone, because a condition of theirs failed
	Failed    int           // entries that the store could not commit
	Bytes     int           // of keys and values
	Took      time.Duration // from picking the batch to the durable commit
}

func (c *Config) validate() error {
	switch {
	case c.Store == nil:
		return errors.New("ledger: config: no store")
	case c.Signer == nil:
		return errors.New("ledger: config: no signer")
	case c.Verifier == nil:
		return errors.New("ledger: config: no verifier")
	case c.MaxBatch < 0:
		return errors.New("ledger: config: negative batch size")
	case c.Signer.Name() != c.Origin:
		return errors.New("ledger: config: the ledger key must be named after the origin")
	}
	if len(c.Prefix) == 0 {
		c.Prefix = []byte(defaultPrefix)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.MaxBatch == 0 {
		c.MaxBatch = DefaultMaxBatch
	}
	if c.Observe == nil {
		c.Observe = func(BatchStats) {}
	}
	for _, k := range c.keys() {
		if err := k.validate(c.Origin); err != nil {
			return fmt.Errorf("ledger: config: %w", err)
		}
	}
	return nil
}

// keys are all that sign, the newest first.
func (c *Config) keys() []Key { return append([]Key{{c.Signer, c.Verifier}}, c.Older...) }

// Ledger is an open log. All methods may be called from any goroutine.
type Ledger struct {
	cfg   Config
	rows  rows
	tiles *lru.Cache[tileID, *tile] // full tiles; immutable once in it
	queue queue

	keys      atomic.Pointer[[]Key]           // that sign, the newest first; replaced by AddSigner and DropSigner, never empty
	witnesses atomic.Pointer[[]note.Verifier] // replaced by SetWitnesses, never nil

	// Replaced by the committer, and by nobody else, once what it describes is durable.
	state atomic.Pointer[state]

	// Owned by the committer.
	clockBehind bool // whether the clock was behind the log at the last batch; to warn once

	cosigs cosigs

	closeOnce sync.Once
	done      chan struct{} // closed when the committer has ended
}

// Create makes an empty ledger and opens it. It fails with ErrExists when there is any row of one.
func Create(ctx context.Context, cfg Config) (*Ledger, error) {
	l, err := newLedger(cfg)
	if err != nil {
		return nil, err
	}
	signed, err := sign(*l.keys.Load(), verify.EmptyCheckpoint(l.cfg.Origin))
	if err != nil {
		return nil, fmt.Errorf("ledger: creating: %w", err)
	}
	err = l.cfg.Store.Update(ctx, func(w kv.Writer) error {
		found, err := w.Scan(l.cfg.Prefix, nil, 1)
		if err != nil {
			return err
		}
		if len(found) > 0 {
			return ErrExists
		}
		w.Set(l.rows.checkpoint(), signed)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("creating the ledger: %w", err)
	}
	return l.start(ctx)
}

// Open opens a ledger that was created before. It verifies the stored checkpoint and recomputes the right
// edge of the tree from the stored rows; what does not fit gives an error that wraps kv.ErrIntegrity.
func Open(ctx context.Context, cfg Config) (*Ledger, error) {
	l, err := newLedger(cfg)
	if err != nil {
		return nil, err
	}
	return l.start(ctx)
}

func newLedger(cfg Config) (*Ledger, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	tiles, err := lru.New[tileID, *tile](cachedTiles)
	if err != nil {
		return nil, fmt.Errorf("ledger: %w", err)
	}
	l := &Ledger{cfg: cfg, rows: rows{cfg.Prefix}, tiles: tiles, done: make(chan struct{})}
	l.queue.wake = make(chan struct{}, 1)
	keys := cfg.keys()
	l.keys.Store(&keys)
	l.SetWitnesses(cfg.Witnesses...)
	return l, nil
}

func (l *Ledger) start(ctx context.Context) (*Ledger, error) {
	s, err := l.load(ctx, nil)
	if err != nil {
		return nil, fmt.Errorf("opening the ledger: %w", err)
	}
	l.publish(s)
	go l.run()
	return l, nil
}

// Close refuses further entries, commits the ones already queued, and ends the committer. Reads go on
// working for as long as the store is open. A second Close waits likewise and returns nil.
func (l *Ledger) Close() error {
	l.closeOnce.Do(l.queue.close)
	<-l.done
	return nil
}
