// Package sidecar serves a keyring on a Unix socket, and decides when it may open a ciphertext.
//
// What it protects: the keys of one instance, which exist in the clear only in this process, and through
// them the plaintext of everything that pdvault stores. It does not trust its client. A ciphertext is opened
// only when the client shows that a fresh access record which names this subject, these fields and this
// sidecar is in the ledger, that the ledger extends what this sidecar has witnessed before, and that the
// record was not served yet. A client that skips the record gets no plaintext.
//
// The sidecar is a witness too: it keeps the newest checkpoint that it has seen, durably, before it opens
// anything under it, and cosigns it. A ledger that was cut, forked or restored from an older copy cannot
// satisfy it any more.
//
// The package must never import package vault or anything that speaks HTTP.
package sidecar

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime/debug"
	"sync"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/keyring"
	"github.com/prototypster/pdvault/keys/keyspb"
)

// Keyring is what the sidecar needs of a keyring.Keyring, whose methods state the contracts.
type Keyring interface {
	Seal(ctx context.Context, subjects []keyring.SealSubject) ([]keyring.SealedSubject, error)
	Prepare(ctx context.Context, items []keyring.PrepareItem) ([]keyring.PreparedItem, error)
	Index(ctx context.Context, values []keyring.IndexValue) ([][]keyring.IndexToken, error)
	// Open must give keys.ErrProofRefused for a subject whose reference is not the Ref it is given.
	Open(ctx context.Context, subjects []keyring.OpenSubject) ([]keyring.OpenedSubject, error)
	Protect(ctx context.Context, label string, data []byte) ([]byte, error)
	Unprotect(ctx context.Context, label string, data []byte) ([]byte, error)

	Generation() uint64
	SidecarID() string
	KEKName() string
	Ready(ctx context.Context) error
	// WitnessKeys are the public keys that cosign now, the newest first; WitnessSignWith signs with the i-th.
	WitnessKeys() []ed25519.PublicKey
	WitnessSignWith(i int, message []byte) ([]byte, error)

	// DestroyRef must give keys.ErrProofRefused for a subject whose reference is not ref.
	DestroyRef(ctx context.Context, subject uuid.UUID, ref []byte, reason string) (keyring.Destroyed, error)
	Reseal(ctx context.Context, rotation uint32, subjects []keyring.ResealSubject) ([]keyring.ResealedSubject, error)
	Retire(ctx context.Context, rotation uint32, subjects []uuid.UUID) ([]error, error)
	Reindex(ctx context.Context, subjects []keyring.ReindexSubject) ([]keyring.ReindexedSubject, error)

	StartJob(ctx context.Context, scope string, subject uuid.UUID, by string) (keyring.Job, error)
	Jobs(ctx context.Context) ([]keyring.Job, error)
	AdvanceJob(ctx context.Context, id uuid.UUID, p keyring.Progress) (keyring.Job, error)
	Inventory(ctx context.Context) (keyring.Inventory, error)
	NextEpoch(ctx context.Context) (due time.Time, interval time.Duration, err error)

	// LoadState returns nil when nothing was saved under name. SaveState is durable when it returns nil.
	LoadState(ctx context.Context, name string) ([]byte, error)
	SaveState(ctx context.Context, name string, value []byte) error
}

var _ Keyring = (*keyring.Keyring)(nil)

// Observer is told what the sidecar does. It must not block. Reasons are from a fixed set.
type Observer interface {
	Opened(records, fields int)    // handed out, or compared
	Refused(why string, items int) // not opened, and why
	PeerRefused()                  // a connection of a user who may not connect
	// BudgetRefused is told whose budget did not allow an open: a caller's id, fit for a label, and the limit.
	BudgetRefused(caller, limit string)
}

// Config is what a Server needs. Instance and Keyring must be set.
type Config struct {
	Instance string
	Keyring  Keyring
	Now      func() time.Time // nil means time.Now
	Logger   *slog.Logger     // nil means none; never gets a value of a field, a key or a subject
	Observer Observer         // may be nil
	// Budget bounds what may be opened; the zero value means the defaults.
	Budget Budget
	// Backup writes an encrypted archive of the key store. Nil means that this sidecar makes none.
	Backup func(ctx context.Context, w io.Writer) error
	// TokenValid tells how long the sidecar's token at its KEK is valid yet. Nil means that there is none.
	TokenValid func() time.Duration
}

const (
	requestTimeout = 3 * time.Second       // of one call, whatever the client asks for
	longTimeout    = 10 * time.Second      // of a call that works through many subjects, or the whole key store
	probeTimeout   = time.Second           // of one check of the KEK
	probeEvery     = time.Second           // at most one check of the KEK in this time
	catchUp        = 50 * time.Millisecond // how long a proof waits for the one before it
	streams        = 256                   // calls at once on one connection
	window         = 4 << 20               // of HTTP/2 flow control
	buffer         = 64 << 10              // of reads and writes
	handshake      = 2 * time.Second       // of a new connection
	maxHeaders     = 16 << 10              // of a call
)

// Server is the sidecar. Its methods may be called from any goroutine.
type Server struct {
	keyspb.UnimplementedSidecarServer

	cfg     Config
	ring    Keyring
	id      string
	witness *witness
	served  *served
	budget  *budget
	alarm   alarm // of the budget
	count   inventory
	rewinds []Rewound // known at the start: none is made while a sidecar serves

	probe struct {
		sync.Mutex // held during a probe; guards the members below
		at         time.Time
		done       bool
		state      keyspb.Code
	}
}

// New returns a Server that goes on where the last one on the same key store stopped: bound to the same
// ledger, demanding consistency with the checkpoint witnessed last. Access records below that checkpoint
// are taken for served.
func New(ctx context.Context, cfg Config) (*Server, error) {
	if cfg.Instance == "" || cfg.Keyring == nil {
		return nil, errors.New("sidecar: Config lacks Instance or Keyring")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Observer == nil {
		cfg.Observer = discard{}
	}
	var err error
	if cfg.Budget, err = cfg.Budget.verified(); err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, ring: cfg.Keyring, id: cfg.Keyring.SidecarID(), budget: newBudget(cfg.Budget, cfg.Now)}
	s.count.turn = make(chan struct{}, 1)
	cosigner, err := newCosigner(witnessName(cfg.Instance, s.id), cfg.Keyring)
	if err != nil {
		return nil, fmt.Errorf("preparing witness key: %w", err)
	}
	if s.witness, err = loadWitness(ctx, cfg.Keyring, cosigner, cfg.Now); err != nil {
		return nil, err
	}
	if s.rewinds, err = Rewinds(ctx, cfg.Keyring); err != nil {
		return nil, err
	}
	s.served = newServed(s.witness.size(), cfg.Now)
	return s, nil
}

// Serve answers calls on l, which should come from Listen, until ctx ends. Then it refuses new calls,
// gives running ones up to drain, and returns nil. It closes l.
func (s *Server) Serve(ctx context.Context, l net.Listener, drain time.Duration) error {
	g := s.grpcServer()
	keyspb.RegisterSidecarServer(g, s)
	return serve(ctx, g, l, drain)
}

func serve(ctx context.Context, g *grpc.Server, l net.Listener, drain time.Duration) error {
	failed := make(chan error, 1)
	go func() { failed <- g.Serve(l) }()
	select {
	case err := <-failed:
		g.Stop()
		return fmt.Errorf("serving: %w", err)
	case <-ctx.Done():
	}
	stopped := make(chan struct{})
	go func() {
		g.GracefulStop()
		close(stopped)
	}()
	t := time.NewTimer(drain)
	defer t.Stop()
	select {
	case <-stopped:
	case <-t.C:
		g.Stop() // also ends GracefulStop
		<-stopped
	}
	<-failed
	return nil
}

func (s *Server) grpcServer() *grpc.Server {
	return grpc.NewServer(
		grpc.Creds(insecure.NewCredentials()), // the listener has asked the kernel who connects
		grpc.ForceServerCodecV2(wipingCodec{}),
		grpc.ConnectionTimeout(handshake),
		grpc.MaxConcurrentStreams(streams),
		grpc.MaxHeaderListSize(maxHeaders),
		grpc.MaxRecvMsgSize(MaxMessage),
		grpc.MaxSendMsgSize(MaxMessage),
		grpc.InitialWindowSize(window),
		grpc.InitialConnWindowSize(2*window),
		grpc.ReadBufferSize(buffer),
		grpc.WriteBufferSize(buffer),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 5 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.UnaryInterceptor(s.guard),
		grpc.StreamInterceptor(s.guardStream),
	)
}

// longCalls may take longTimeout.
var longCalls = map[string]bool{
	keyspb.Sidecar_Reseal_FullMethodName:     true,
	keyspb.Sidecar_Retire_FullMethodName:     true,
	keyspb.Sidecar_Reindex_FullMethodName:    true,
	keyspb.Sidecar_Inventory_FullMethodName:  true,
	keyspb.Sidecar_StartJob_FullMethodName:   true,
	keyspb.Sidecar_AdvanceJob_FullMethodName: true,
	keyspb.Admin_Inventory_FullMethodName:    true,
	keyspb.Admin_StartJob_FullMethodName:     true,
}

// guard bounds the time of each call and turns a panic into an answer that says nothing. The value of the
// panic is not logged, since it may hold data; the stack is.
func (s *Server) guard(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
	timeout := requestTimeout
	if longCalls[info.FullMethod] {
		timeout = longTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	defer func() {
		if r := recover(); r != nil {
			resp, err = nil, s.panicked(info.FullMethod)
		}
	}()
	return handler(ctx, req)
}

// guardStream is guard for calls whose answer is a stream, which take as long as they take.
func (s *Server) guardStream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = s.panicked(info.FullMethod)
		}
	}()
	return handler(srv, stream)
}

func (s *Server) panicked(call string) error {
	s.cfg.Logger.Error("call panicked", "call", call, "stack", string(debug.Stack()))
	return failure(keyspb.Code_UNAVAILABLE, whyInternal)
}

// Status implements the call of this name.
func (s *Server) Status(ctx context.Context, _ *keyspb.StatusRequest) (*keyspb.StatusResponse, error) {
	state := s.kekState(ctx)
	seen, bound := s.witness.status()
	r := &keyspb.StatusResponse{
		Instance:      s.cfg.Instance,
		Sidecar:       s.id,
		WitnessKeys:   s.witness.cosigner.vkeys(),
		Generation:    s.ring.Generation(),
		Origin:        bound.origin,
		LedgerKey:     bound.newest(),
		LedgerKeys:    bound.texts(),
		WitnessedSize: seen.Size,
		Kek:           s.ring.KEKName(),
		KekState:      state,
	}
	if len(r.WitnessKeys) > 0 {
		r.WitnessKey = r.WitnessKeys[0]
	}
	if bound.origin != "" {
		r.WitnessedRoot = seen.Root[:]
	}
	for _, w := range s.rewinds {
		r.Rewinds = append(r.Rewinds, &keyspb.Rewind{LostSize: w.Lost.Size, LostRoot: w.Lost.Root[:], Size: w.Size, At: w.At.UnixMilli()})
	}
	// A status that lacks the next epoch is of more use than none.
	if next, _, err := s.ring.NextEpoch(ctx); err == nil {
		r.NextEpoch = unixMilli(next)
	}
	return r, nil
}

// kekState tells whether the KEK can be used, from a check made at most probeEvery ago, so that no number
// of status calls can load it.
func (s *Server) kekState(ctx context.Context) keyspb.Code {
	s.probe.Lock()
	defer s.probe.Unlock()
	if s.probe.done && s.cfg.Now().Sub(s.probe.at) < probeEvery {
		return s.probe.state
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), probeTimeout)
	defer cancel()
	s.probe.state = keys.CodeOf(s.ring.Ready(ctx))
	s.probe.at, s.probe.done = s.cfg.Now(), true
	return s.probe.state
}

// Bind implements the call of this name.
func (s *Server) Bind(ctx context.Context, req *keyspb.BindRequest) (*keyspb.BindResponse, error) {
	if err := s.witness.bind(ctx, req.Origin, req.LedgerKey); err != nil {
		return nil, s.refuse("Bind", err)
	}
	return &keyspb.BindResponse{}, nil
}

// Protect implements the call of this name.
func (s *Server) Protect(ctx context.Context, req *keyspb.ProtectRequest) (*keyspb.ProtectResponse, error) {
	return s.protect(ctx, req, MaxProtected, s.ring.Protect)
}

// Unprotect implements the call of this name.
func (s *Server) Unprotect(ctx context.Context, req *keyspb.ProtectRequest) (*keyspb.ProtectResponse, error) {
	return s.protect(ctx, req, MaxCiphertext, s.ring.Unprotect)
}

func (s *Server) protect(ctx context.Context, req *keyspb.ProtectRequest, limit int,
	call func(context.Context, string, []byte) ([]byte, error),
) (*keyspb.ProtectResponse, error) {
	defer clear(req.Data)
	if !isName(req.Label) || len(req.Data) == 0 || len(req.Data) > limit {
		return nil, failure(keyspb.Code_INVALID, whyMessage)
	}
	data, err := call(ctx, req.Label, req.Data)
	if err != nil {
		return nil, failure(keys.CodeOf(err), "")
	}
	return &keyspb.ProtectResponse{Data: data}, nil
}

// Seal implements the call of this name.
func (s *Server) Seal(ctx context.Context, req *keyspb.SealRequest) (*keyspb.SealResponse, error) {
	if len(req.Subjects) == 0 || len(req.Subjects) > MaxItems {
		return nil, failure(keyspb.Code_INVALID, whyMessage)
	}
	resp := &keyspb.SealResponse{Subjects: make([]*keyspb.SealedSubject, len(req.Subjects))}
	batch := make([]keyring.SealSubject, 0, len(req.Subjects))
	where := make([]int, 0, len(req.Subjects))
	for i, subject := range req.Subjects {
		q, err := sealSubject(subject)
		if err != nil {
			resp.Subjects[i] = &keyspb.SealedSubject{Code: keys.CodeOf(err)}
			continue
		}
		batch, where = append(batch, q), append(where, i)
	}
	if len(batch) > 0 {
		out, err := s.ring.Seal(ctx, batch)
		for _, q := range batch {
			for _, f := range q.Fields {
				f.Plaintext.Wipe()
			}
		}
		if err == nil && len(out) != len(batch) {
			err = errShape
		}
		if err != nil {
			return nil, failure(keys.CodeOf(err), "")
		}
		for j, r := range out {
			resp.Subjects[where[j]] = sealedSubject(r)
		}
	}
	resp.Generation = s.ring.Generation()
	return resp, nil
}

func sealedSubject(r keyring.SealedSubject) *keyspb.SealedSubject {
	if r.Err != nil {
		return &keyspb.SealedSubject{Code: keys.CodeOf(r.Err)}
	}
	p := &keyspb.SealedSubject{Ref: r.Ref, Fields: make([]*keyspb.SealedField, len(r.Fields))}
	for i, f := range r.Fields {
		p.Fields[i] = &keyspb.SealedField{Ciphertext: f.Ciphertext}
		for _, x := range f.Index {
			p.Fields[i].Index = append(p.Fields[i].Index, &keyspb.IndexedValue{Sealed: x.Sealed, Tokens: indexTokens(x.Tokens)})
		}
	}
	return p
}

// Prepare implements the call of this name.
func (s *Server) Prepare(ctx context.Context, req *keyspb.PrepareRequest) (*keyspb.PrepareResponse, error) {
	if len(req.Items) == 0 || len(req.Items) > MaxItems {
		return nil, failure(keyspb.Code_INVALID, whyMessage)
	}
	resp := &keyspb.PrepareResponse{Items: make([]*keyspb.PreparedItem, len(req.Items))}
	batch := make([]keyring.PrepareItem, 0, len(req.Items))
	where := make([]int, 0, len(req.Items))
	for i, item := range req.Items {
		q, err := prepareItem(item)
		if err != nil {
			resp.Items[i] = &keyspb.PreparedItem{Code: keys.CodeOf(err)}
			continue
		}
		batch, where = append(batch, q), append(where, i)
	}
	if len(batch) > 0 {
		out, err := s.ring.Prepare(ctx, batch)
		for _, q := range batch {
			q.Detail.Wipe()
		}
		if err == nil && len(out) != len(batch) {
			err = errShape
		}
		if err != nil {
			return nil, failure(keys.CodeOf(err), "")
		}
		for j, r := range out {
			if r.Err != nil {
				resp.Items[where[j]] = &keyspb.PreparedItem{Code: keys.CodeOf(r.Err)}
				continue
			}
			resp.Items[where[j]] = &keyspb.PreparedItem{Ref: r.Ref, SealedDetail: r.SealedDetail}
		}
	}
	resp.Generation = s.ring.Generation()
	return resp, nil
}

// Index implements the call of this name.
func (s *Server) Index(ctx context.Context, req *keyspb.IndexRequest) (*keyspb.IndexResponse, error) {
	if len(req.Values) == 0 || len(req.Values) > MaxItems {
		return nil, failure(keyspb.Code_INVALID, whyMessage)
	}
	values := make([]keyring.IndexValue, len(req.Values))
	for i, v := range req.Values {
		q, err := indexValue(v)
		if err != nil {
			return nil, failure(keys.CodeOf(err), whyMessage)
		}
		values[i] = q
	}
	tokens, err := s.ring.Index(ctx, values)
	if err == nil && len(tokens) != len(values) {
		err = errShape
	}
	if err != nil {
		return nil, failure(keys.CodeOf(err), "")
	}
	resp := &keyspb.IndexResponse{Values: make([]*keyspb.IndexTokens, len(tokens)), Generation: s.ring.Generation()}
	for i, t := range tokens {
		resp.Values[i] = &keyspb.IndexTokens{Tokens: indexTokens(t)}
	}
	return resp, nil
}

func indexTokens(tokens []keyring.IndexToken) []*keyspb.IndexToken {
	out := make([]*keyspb.IndexToken, len(tokens))
	for i, t := range tokens {
		out[i] = &keyspb.IndexToken{Key: t.Key, Token: t.Token}
	}
	return out
}

// Witness implements the call of this name.
func (s *Server) Witness(ctx context.Context, req *keyspb.WitnessRequest) (*keyspb.WitnessResponse, error) {
	seen, err := s.witness.advance(ctx, req.Checkpoint, req.From, req.Consistency)
	if err != nil {
		return nil, s.refuse("Witness", err)
	}
	if seen.stale {
		return &keyspb.WitnessResponse{Stale: true, WitnessedSize: seen.size}, nil
	}
	return &keyspb.WitnessResponse{WitnessedSize: seen.size, Cosignature: seen.lines}, nil
}

// refuse logs and counts a refused call, and returns its error for the wire.
func (s *Server) refuse(call string, err error) error {
	code, why := keys.CodeOf(err), whyOf(err)
	s.cfg.Observer.Refused(why, 1)
	s.cfg.Logger.Warn("call refused", "call", call, "why", why)
	return failure(code, why)
}

type discard struct{}

func (discard) Opened(int, int)     {}
func (discard) Refused(string, int) {}
func (discard) PeerRefused()        {}

func (discard) BudgetRefused(string, string) {}
