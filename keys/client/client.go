// Package client reaches the sidecar over its Unix socket. It gathers concurrent calls into batches, shows
// the sidecar the proofs that it demands before it opens anything, and turns what comes back into the
// sentinels of package keys.
//
// The process that uses it holds no key: what it gets is ciphertext, references, tokens, and the plaintext
// of reads that are already on record. It must never import a package that decrypts, nor package vault.
//
// A sidecar that is down, hangs or answers nonsense gives [keys.ErrUnavailable] within the deadline; one
// whose key store or memory of the ledger is older than what was seen before gives [keys.ErrRolledBack],
// and so does a ledger of ours that is shorter than what the sidecar has witnessed.
package client

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"golang.org/x/mod/sumdb/tlog"
	"google.golang.org/grpc"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/internal/coalesce"
	"github.com/prototypster/pdvault/keys/keyspb"
)

// The shapes of what is sealed and opened. They are aliases of unnamed types, so that the same shapes
// declared in another package are the same types, and neither package needs the other.
type (
	// SealField is one field to seal: Plaintext, or Carry, which is a ciphertext of the same field sealed
	// at CarryVersion, to be sealed anew at Version. Tokens are computed of the values in Index.
	SealField = struct {
		Collection, Field string
		Version           uint64
		Plaintext, Carry  []byte
		CarryVersion      uint64
		Index             []IndexValue
	}
	// IndexValue is a value to make tokens of: the normalised Value, or Sealed as an IndexedValue holds it.
	IndexValue = struct {
		Normaliser uint32
		Value      string
		Sealed     []byte
	}
	// SealedField is the ciphertext of a SealField, and what its index values came to, in their order.
	SealedField = struct {
		Ciphertext []byte
		Index      []IndexedValue
	}
	// IndexedValue is an index value sealed under the subject's key, and its tokens.
	IndexedValue = struct {
		Sealed []byte
		Tokens []IndexToken
	}
	// IndexToken is a token of 16 bytes and the version of the index key that it was made with.
	IndexToken = struct {
		Key   uint32
		Token []byte
	}
	// OpenField is one field to open. With Expect, nothing is disclosed but whether the plaintext equals it.
	OpenField = struct {
		Field              string
		Ciphertext, Expect []byte
	}
	// OpenCall is one record to open, as Open has it.
	OpenCall = struct {
		Index      int64
		Entry      []byte
		Subject    uuid.UUID
		Collection string
		Version    uint64
		Fields     []OpenField
	}
	// OpenOutcome is what became of an OpenCall.
	OpenOutcome = struct {
		Fields []OpenedField
		Err    error
	}
	// OpenedField is the plaintext of an OpenField, or the outcome of the comparison.
	OpenedField = struct {
		Plaintext []byte
		Match     bool
	}
)

// Prover shows what the ledger holds. Its methods are called from several goroutines; Checkpoint must
// never give a smaller size than before.
type Prover interface {
	// Checkpoint returns the newest signed checkpoint and its size, whose entries are durable.
	Checkpoint() (note []byte, size int64)
	// ProveInclusion proves the entry at index in the tree of the given size.
	ProveInclusion(ctx context.Context, index, size int64) ([]tlog.Hash, error)
	// ProveConsistency proves that the tree of size from, above 0, is a prefix of the tree of size to.
	ProveConsistency(ctx context.Context, from, to int64) ([]tlog.Hash, error)
	// Cosigned is told the sidecar's cosignature of the checkpoint of the given size, for growing sizes, from one
	// goroutine at a time: a signature line, or while the sidecar's key is being changed one of each key, that of
	// the newest first.
	Cosigned(size int64, lines []byte)
}

// Observer is told about each batch: what kind of call, how many items, how long it took on the wire and
// with which error. It must not block.
type Observer interface {
	Batch(kind string, items int, took time.Duration, err error)
}

// Config says where the sidecar is and how to treat it.
type Config struct {
	// Socket is the path of the sidecar's Unix socket. Required.
	Socket string
	// ServerUID must own the socket and be the user of the process behind it; nil means this process's own.
	ServerUID *uint32
	// Timeout bounds each call in all, from the queue to the answer: 3 s when zero, which is also the most.
	Timeout time.Duration
	// MinGeneration is the newest generation of the key store that was seen before, as kept by the caller
	// from Generation. A sidecar below it is refused with keys.ErrRolledBack.
	MinGeneration uint64
	// Prover may also be given later with SetProver. Without it Open and Witness are refused.
	Prover Prover
	// MaxQueue bounds the calls of each kind that wait to be sent: 4,096 when zero.
	MaxQueue int
	// Observer may be nil.
	Observer Observer
}

// MaxTimeout bounds Config.Timeout.
const MaxTimeout = 3 * time.Second

// Status is what the sidecar says about itself.
type Status struct {
	Instance      string
	Sidecar       string // id that access entries name
	WitnessKey    string // note verifier key of the cosignature
	Generation    uint64
	Origin        string // of the bound ledger, empty before Bind
	LedgerKey     string
	WitnessedSize int64
	WitnessedRoot []byte
	KEK           string    // kind
	KEKState      error     // nil, or why the KEK cannot be used now
	WitnessKeys   []string  // all that cosign now, the newest, WitnessKey, first
	LedgerKeys    []string  // all that are bound, the newest, LedgerKey, first
	NextEpoch     time.Time // by which the next epoch is due; zero: none is planned, or it is not known now
	Rewinds       []Rewind  // the oldest first
}

// Rewind is what the witness was made to forget when the ledger was restored from a backup.
type Rewind struct {
	LostSize int64 // that had been witnessed
	LostRoot []byte
	Size     int64 // of the checkpoint that took its place
	At       time.Time
}

// Client calls the sidecar. Its methods may be called from any goroutine. Byte slices given to it must not
// be changed afterwards, even when a call returned early because its context ended.
type Client struct {
	cfg  Config
	conn *grpc.ClientConn
	rpc  keyspb.SidecarClient

	sealing   *coalesce.Coalescer[sealCall, sealed]
	preparing *coalesce.Coalescer[prepareCall, prepared]
	indexing  *coalesce.Coalescer[*keyspb.IndexValue, []IndexToken]
	opening   *coalesce.Coalescer[*keyspb.OpenItem, []OpenedField]

	prover     atomic.Pointer[Prover]
	generation atomic.Uint64 // highest seen; an answer below what was known when it was asked is refused

	mu    sync.Mutex // guards chain, sent and acked, and orders the proofs of batches
	chain int        // rises when the proofs on their way turn out not to join, see restart
	sent  int64      // size of the last checkpoint sent: where the next consistency proof begins
	acked int64      // size of the largest checkpoint that the sidecar is known to have witnessed

	toldMu sync.Mutex // held while the Prover is told a cosignature; guards told
	told   int64
}

// Dial checks the socket, connects to the sidecar and asks its status. It returns keys.ErrUnavailable when
// the sidecar cannot be reached or the socket is not as it must be. Later the connection is restored as
// needed: a restarted sidecar is found again without a new Dial.
func Dial(ctx context.Context, cfg Config) (*Client, error) {
	if cfg.Socket == "" {
		return nil, errors.New("client: Config.Socket is empty")
	}
	if cfg.Timeout < 0 || cfg.Timeout > MaxTimeout {
		return nil, fmt.Errorf("client: Config.Timeout is not within %v", MaxTimeout)
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = MaxTimeout
	}
	if cfg.MaxQueue == 0 {
		cfg.MaxQueue = 4096
	}
	if err := checkSocket(cfg.Socket, cfg.serverUID()); err != nil {
		return nil, fmt.Errorf("checking socket: %w: %w", err, keys.ErrUnavailable)
	}
	conn, err := connect(cfg)
	if err != nil {
		return nil, fmt.Errorf("connecting to sidecar: %w: %w", err, keys.ErrUnavailable)
	}
	c := &Client{cfg: cfg, conn: conn, rpc: keyspb.NewSidecarClient(conn)}
	c.generation.Store(cfg.MinGeneration)
	if cfg.Prover != nil {
		c.SetProver(cfg.Prover)
	}
	c.sealing = newCoalescer(c, "seal", sealCall.size, c.sendSeal)
	c.preparing = newCoalescer(c, "prepare", prepareCall.size, c.sendPrepare)
	c.indexing = newCoalescer(c, "index", indexSize, c.sendIndex)
	c.opening = newCoalescer(c, "open", openSize, c.sendOpen)
	if _, err := c.Status(ctx); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// young is how long a batch in flight holds back what has queued since: long enough that batches grow under
// load, since each costs both sides a durable commit and signatures, and short enough that one batch which
// waits for HashiCorp Vault does not hold up those whose keys are in the cache for long.
const young = 5 * time.Millisecond

// newCoalescer returns the coalescer of one kind of call.
func newCoalescer[Q, R any](c *Client, kind string, size func(Q) int, send func(context.Context, []Q) ([]coalesce.Outcome[R], error)) *coalesce.Coalescer[Q, R] {
	return coalesce.New(coalesce.Config[Q, R]{
		Send: func(ctx context.Context, batch []Q) ([]coalesce.Outcome[R], error) {
			if c.cfg.Observer == nil {
				return send(ctx, batch)
			}
			begin := time.Now()
			out, err := send(ctx, batch)
			c.cfg.Observer.Batch(kind, len(batch), time.Since(begin), err)
			return out, err
		},
		Size:        size,
		MaxItems:    512,
		MaxBytes:    4 << 20,
		MaxInFlight: 32,
		MaxQueue:    c.cfg.MaxQueue,
		Young:       young,
		Timeout:     c.cfg.Timeout,
	})
}

// do runs one coalesced call under the caller's context and the deadline of the configuration.
func do[Q, R any](ctx context.Context, c *Client, co *coalesce.Coalescer[Q, R], op string, q Q) (R, error) {
	limited, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	r, err := co.Do(limited, q)
	return r, outcomeError(ctx, op, err)
}

// outcomeError is the error of a coalesced call as its caller, whose context is ctx, is told.
func outcomeError(ctx context.Context, op string, err error) error {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil && errors.Is(err, ctx.Err()):
		return fmt.Errorf("%s: %w", op, err)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled),
		errors.Is(err, coalesce.ErrFull), errors.Is(err, coalesce.ErrClosed):
		// Our own deadline, not the caller's: to the caller it is a service that does not answer.
		return fmt.Errorf("%s: %v: %w", op, err, keys.ErrUnavailable)
	}
	return fmt.Errorf("%s: %w", op, err)
}

// SetProver gives the client the ledger, which itself needs the client to unwrap its key.
func (c *Client) SetProver(p Prover) { c.prover.Store(&p) }

// Generation returns the newest generation of the key store seen so far. Keep it durably, and give it to
// the next Dial as MinGeneration.
func (c *Client) Generation() uint64 { return c.generation.Load() }

// Close refuses new calls, waits for those on their way (at most Config.Timeout) and disconnects.
func (c *Client) Close() error {
	c.sealing.Close()
	c.preparing.Close()
	c.indexing.Close()
	c.opening.Close()
	return c.conn.Close()
}

// Seal seals fields of one subject. With create its bundle is made, and must not have existed:
// keys.ErrKeyExists. Without, keys.ErrNoKey and keys.ErrDestroyed say that there is none.
// All fields are sealed or none.
func (c *Client) Seal(ctx context.Context, subject uuid.UUID, create bool, fields []SealField) (ref []byte, out []SealedField, err error) {
	q, err := newSealCall(subject, create, fields)
	if err != nil {
		return nil, nil, fmt.Errorf("sealing: %w", err)
	}
	r, err := do(ctx, c, c.sealing, "sealing", q)
	return r.ref, r.fields, err
}

// Prepare returns the reference of subject for the ledger, and detail sealed under the subject's key, nil
// when detail is empty.
func (c *Client) Prepare(ctx context.Context, subject uuid.UUID, detail []byte) (ref, sealedDetail []byte, err error) {
	if len(detail) > maxDetail {
		return nil, nil, fmt.Errorf("preparing: detail of %d bytes: %w", len(detail), keys.ErrInvalid)
	}
	r, err := do(ctx, c, c.preparing, "preparing", prepareCall{subject: subject, detail: detail})
	return r.ref, r.detail, err
}

// IndexTokens returns the blind-index tokens of a normalised value, one under each index key in use, ascending.
func (c *Client) IndexTokens(ctx context.Context, collection, field string, normaliser uint32, value string) ([]IndexToken, error) {
	q := &keyspb.IndexValue{Collection: collection, Field: field, Normaliser: normaliser, Value: value}
	if err := checkIndex(q); err != nil {
		return nil, fmt.Errorf("computing index tokens: %w", err)
	}
	return do(ctx, c, c.indexing, "computing index tokens", q)
}

// Open opens fields of one record under the access entry at index, whose bytes are entry. A sidecar that is
// not satisfied gives keys.ErrProofRefused, one that has served this entry before keys.ErrReplayed.
// All fields are opened or none.
func (c *Client) Open(ctx context.Context, index int64, entry []byte, subject uuid.UUID, collection string, version uint64, fields []OpenField) ([]OpenedField, error) {
	q, err := newOpenItem(index, entry, subject, collection, version, fields)
	if err != nil {
		return nil, fmt.Errorf("opening: %w", err)
	}
	return do(ctx, c, c.opening, "opening", q)
}

// OpenAll is Open for several records, each with an outcome of its own, in the order of the calls.
func (c *Client) OpenAll(ctx context.Context, calls []OpenCall) []OpenOutcome {
	const op = "opening"
	out := make([]OpenOutcome, len(calls))
	items := make([]*keyspb.OpenItem, 0, len(calls))
	where := make([]int, 0, len(calls))
	for i, q := range calls {
		item, err := newOpenItem(q.Index, q.Entry, q.Subject, q.Collection, q.Version, q.Fields)
		if err != nil {
			out[i].Err = fmt.Errorf("%s: %w", op, err)
			continue
		}
		items, where = append(items, item), append(where, i)
	}
	limited, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	for n, o := range c.opening.DoAll(limited, items) {
		out[where[n]] = OpenOutcome{o.Value, outcomeError(ctx, op, o.Err)}
	}
	return out
}

// Protect wraps a small secret of the caller's for its rest on disk, bound to label.
func (c *Client) Protect(ctx context.Context, label string, data []byte) ([]byte, error) {
	return c.protect(ctx, "protecting", label, data, maxProtected, c.rpc.Protect)
}

// Unprotect is the inverse of Protect. It returns keys.ErrTampered for another label or changed data.
func (c *Client) Unprotect(ctx context.Context, label string, data []byte) ([]byte, error) {
	return c.protect(ctx, "unprotecting", label, data, maxCiphertext, c.rpc.Unprotect)
}

func (c *Client) protect(ctx context.Context, op, label string, data []byte, limit int,
	call func(context.Context, *keyspb.ProtectRequest, ...grpc.CallOption) (*keyspb.ProtectResponse, error),
) ([]byte, error) {
	if label == "" || len(label) > maxName || len(data) == 0 || len(data) > limit {
		return nil, fmt.Errorf("%s: %w", op, keys.ErrInvalid)
	}
	limited, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	resp, err := call(limited, &keyspb.ProtectRequest{Label: label, Data: data})
	if err != nil {
		return nil, rpcError(ctx, op, err)
	}
	if len(resp.Data) == 0 {
		return nil, malformed(op)
	}
	return resp.Data, nil
}

// Bind tells the sidecar which ledger it witnesses. The first call binds for good; one with other values
// gives keys.ErrProofRefused.
func (c *Client) Bind(ctx context.Context, origin, ledgerKey string) error {
	limited, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	if _, err := c.rpc.Bind(limited, &keyspb.BindRequest{Origin: origin, LedgerKey: ledgerKey}); err != nil {
		return rpcError(ctx, "binding ledger", err)
	}
	return nil
}

// Status asks the sidecar who it is and how its KEK does.
func (c *Client) Status(ctx context.Context) (Status, error) {
	const op = "asking status"
	limited, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	mark := c.generation.Load()
	r, err := c.rpc.Status(limited, &keyspb.StatusRequest{})
	if err != nil {
		return Status{}, rpcError(ctx, op, err)
	}
	if err := c.checkGeneration(mark, r.Generation); err != nil {
		return Status{}, fmt.Errorf("%s: %w", op, err)
	}
	var rewinds []Rewind
	for _, w := range r.Rewinds {
		rewinds = append(rewinds, Rewind{w.GetLostSize(), w.GetLostRoot(), w.GetSize(), timeOf(w.GetAt())})
	}
	return Status{
		Instance: r.Instance, Sidecar: r.Sidecar, WitnessKey: r.WitnessKey, Generation: r.Generation,
		Origin: r.Origin, LedgerKey: r.LedgerKey, WitnessedSize: r.WitnessedSize, WitnessedRoot: r.WitnessedRoot,
		KEK: r.Kek, KEKState: keys.ErrorOf(r.KekState),
		WitnessKeys: r.WitnessKeys, LedgerKeys: r.LedgerKeys, NextEpoch: timeOf(r.NextEpoch),
		Rewinds: rewinds,
	}, nil
}

// checkGeneration compares the generation in an answer with mark, the newest known when it was asked, and
// remembers it.
func (c *Client) checkGeneration(mark, got uint64) error {
	if got < mark {
		return fmt.Errorf("key store is at generation %d, after %d: %w", got, mark, keys.ErrRolledBack)
	}
	for {
		seen := c.generation.Load()
		if got <= seen || c.generation.CompareAndSwap(seen, got) {
			return nil
		}
	}
}
