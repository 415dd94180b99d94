package client

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/keyspb"
)

// The shapes of what concerns the keys themselves. Like those above they are aliases, so that another package
// may declare the same.
type (
	// ResealSubject is what to seal again for one subject.
	ResealSubject = struct {
		Subject uuid.UUID
		Items   []ResealItem
	}
	// ResealItem is one ciphertext of the subject. Kind is 0 for a field, 1 for an index value, 2 for a detail
	// or a capture.
	ResealItem = struct {
		Kind              int
		Collection, Field string
		Version           uint64
		Normaliser        uint32
		Ciphertext        []byte
	}
	// ResealedSubject is the outcome: Ref and Ciphertexts, nil where nothing changed, or Err.
	ResealedSubject = struct {
		Err         error
		Ref         []byte
		Ciphertexts [][]byte
	}
	// ReindexSubject is sealed index values of one subject.
	ReindexSubject = struct {
		Subject uuid.UUID
		Values  []ReindexValue
	}
	// ReindexValue is one sealed index value.
	ReindexValue = struct {
		Collection, Field string
		Normaliser        uint32
		Sealed            []byte
	}
	// ReindexedSubject is the outcome: Ref and the tokens of each value, or Err.
	ReindexedSubject = struct {
		Err    error
		Ref    []byte
		Tokens [][]IndexToken
	}
	// Destroyed is what became of a subject's bundle.
	Destroyed = struct {
		Generation uint64
		KEKVersion uint64
		DeadBy     time.Time // by which the epoch is due that kills older copies; zero: none is planned
		Already    bool      // it was destroyed before
	}
	// Job is a rotation.
	Job = struct {
		ID, Scope                  string
		Subject                    uuid.UUID // zero: none
		By, State, Phase           string
		Done, Total                int64
		Started, Updated, Finished time.Time
		Target                     uint64
		Failure                    string
		Evidence                   string
		Recorded                   int64
	}
	// JobProgress is what the driver of a job reports. Recorded is -1 when unchanged.
	JobProgress = struct {
		Phase       string
		Done, Total int64
		Finish      bool
		Failure     string
		Recorded    int64
	}
	// KeyVersion counts what is on one version of one kind of key.
	KeyVersion = struct {
		Kind    string
		Version uint64
		Newest  bool
		Count   int64
		Made    time.Time
	}
	// Inventory is every version in use.
	Inventory = struct {
		KEK                 string
		Generation          uint64
		Versions            []KeyVersion
		Subjects, Destroyed int64
		Counted             time.Time
		NextEpoch           time.Time
		EpochInterval       time.Duration
	}
)

// longTimeout bounds the calls that work through many subjects, or through the whole key store. It is longer than
// the sidecar's own bound of them.
const longTimeout = 12 * time.Second

// Limits of these calls, the same as the sidecar's.
const (
	maxSubjects    = 4096   // of a call
	maxResealItems = 10_000 // of all subjects of a call
)

// Reseal gives subjects keys of at least the rotation and seals what they have again. The outcomes are in the
// order of subjects. A call beyond the sidecar's limits, of 4,096 subjects, 10,000 items or 24 MiB, gives
// keys.ErrInvalid.
func (c *Client) Reseal(ctx context.Context, rotation uint32, subjects []ResealSubject) ([]ResealedSubject, error) {
	const op = "resealing"
	req := &keyspb.ResealRequest{Rotation: rotation, Subjects: make([]*keyspb.ResealSubject, len(subjects))}
	items, size := 0, 0
	for i, s := range subjects {
		p := &keyspb.ResealSubject{Subject: subjects[i].Subject[:], Items: make([]*keyspb.ResealItem, len(s.Items))}
		for n, item := range s.Items {
			p.Items[n] = &keyspb.ResealItem{
				Kind: keyspb.ResealItem_Kind(item.Kind), Collection: item.Collection, Field: item.Field,
				Version: item.Version, Normaliser: item.Normaliser, Ciphertext: item.Ciphertext,
			}
			size += 64 + len(item.Collection) + len(item.Field) + len(item.Ciphertext)
		}
		items += len(s.Items)
		req.Subjects[i] = p
	}
	if len(subjects) == 0 || len(subjects) > maxSubjects || items > maxResealItems || size > maxCall {
		return nil, fmt.Errorf("%s: %d subjects, %d items, %d bytes: %w", op, len(subjects), items, size, keys.ErrInvalid)
	}
	var resp *keyspb.ResealResponse
	err := c.long(ctx, op, func(ctx context.Context) (generation uint64, err error) {
		resp, err = c.rpc.Reseal(ctx, req)
		return resp.GetGeneration(), err
	})
	if err != nil {
		return nil, err
	}
	if len(resp.Subjects) != len(subjects) {
		return nil, malformed(op)
	}
	out := make([]ResealedSubject, len(subjects))
	for i, r := range resp.Subjects {
		switch {
		case r.GetCode() != keyspb.Code_OK:
			out[i].Err = keys.ErrorOf(r.Code)
		case len(r.GetRef()) != refSize || len(r.Ciphertexts) != len(subjects[i].Items):
			out[i].Err = malformed(op)
		default:
			out[i] = ResealedSubject{Ref: r.Ref, Ciphertexts: make([][]byte, len(r.Ciphertexts))}
			for n, b := range r.Ciphertexts {
				if len(b) > 0 {
					out[i].Ciphertexts[n] = b
				}
			}
		}
	}
	return out, nil
}

// Retire drops the keys of subjects that a rotation has replaced. The outcomes are in the order of subjects, of
// which there may be 4,096.
func (c *Client) Retire(ctx context.Context, rotation uint32, subjects []uuid.UUID) ([]error, error) {
	const op = "retiring keys"
	if len(subjects) == 0 || len(subjects) > maxSubjects {
		return nil, fmt.Errorf("%s of %d subjects: %w", op, len(subjects), keys.ErrInvalid)
	}
	req := &keyspb.RetireRequest{Rotation: rotation, Subjects: make([][]byte, len(subjects))}
	for i := range subjects {
		req.Subjects[i] = subjects[i][:]
	}
	var resp *keyspb.RetireResponse
	err := c.long(ctx, op, func(ctx context.Context) (generation uint64, err error) {
		resp, err = c.rpc.Retire(ctx, req)
		return resp.GetGeneration(), err
	})
	if err != nil {
		return nil, err
	}
	if len(resp.Codes) != len(subjects) {
		return nil, malformed(op)
	}
	out := make([]error, len(subjects))
	for i, code := range resp.Codes {
		out[i] = keys.ErrorOf(code)
	}
	return out, nil
}

// Reindex computes tokens of sealed index values, under each index key in use. The outcomes are in the order of
// subjects. The limits are those of Reseal.
func (c *Client) Reindex(ctx context.Context, subjects []ReindexSubject) ([]ReindexedSubject, error) {
	const op = "computing index tokens anew"
	req := &keyspb.ReindexRequest{Subjects: make([]*keyspb.ReindexSubject, len(subjects))}
	values, size := 0, 0
	for i, s := range subjects {
		p := &keyspb.ReindexSubject{Subject: subjects[i].Subject[:], Values: make([]*keyspb.IndexValue, len(s.Values))}
		for n, v := range s.Values {
			p.Values[n] = &keyspb.IndexValue{Collection: v.Collection, Field: v.Field, Normaliser: v.Normaliser, Sealed: v.Sealed}
			size += indexSize(p.Values[n])
		}
		values += len(s.Values)
		req.Subjects[i] = p
	}
	if len(subjects) == 0 || len(subjects) > maxSubjects || values > maxResealItems || size > maxCall {
		return nil, fmt.Errorf("%s: %d subjects, %d values, %d bytes: %w", op, len(subjects), values, size, keys.ErrInvalid)
	}
	var resp *keyspb.ReindexResponse
	err := c.long(ctx, op, func(ctx context.Context) (generation uint64, err error) {
		resp, err = c.rpc.Reindex(ctx, req)
		return resp.GetGeneration(), err
	})
	if err != nil {
		return nil, err
	}
	if len(resp.Subjects) != len(subjects) {
		return nil, malformed(op)
	}
	out := make([]ReindexedSubject, len(subjects))
	for i, r := range resp.Subjects {
		out[i] = reindexedOf(op, len(subjects[i].Values), r)
	}
	return out, nil
}

func reindexedOf(op string, values int, r *keyspb.ReindexedSubject) ReindexedSubject {
	if r.GetCode() != keyspb.Code_OK {
		return ReindexedSubject{Err: keys.ErrorOf(r.Code)}
	}
	if len(r.GetRef()) != refSize || len(r.Values) != values {
		return ReindexedSubject{Err: malformed(op)}
	}
	out := ReindexedSubject{Ref: r.Ref, Tokens: make([][]IndexToken, len(r.Values))}
	for n, v := range r.Values {
		var err error
		if out.Tokens[n], err = tokensOf(v.GetTokens()); err != nil {
			return ReindexedSubject{Err: err}
		}
	}
	return out
}

// Inventory counts every version in use.
func (c *Client) Inventory(ctx context.Context) (Inventory, error) {
	var resp *keyspb.InventoryResponse
	err := c.long(ctx, "counting keys", func(ctx context.Context) (generation uint64, err error) {
		resp, err = c.rpc.Inventory(ctx, &keyspb.InventoryRequest{})
		return resp.GetGeneration(), err
	})
	if err != nil {
		return Inventory{}, err
	}
	return inventoryOf(resp), nil
}

// StartJob begins a rotation for by, which is the id of a caller. The subject is for scope subject. It gives
// keys.ErrJobRunning while another one excludes it.
func (c *Client) StartJob(ctx context.Context, scope string, subject uuid.UUID, by string) (Job, error) {
	req := startRequest(scope, subject, by)
	return c.job(ctx, "starting a rotation", func(ctx context.Context) (*keyspb.JobResponse, error) { return c.rpc.StartJob(ctx, req) })
}

// Jobs lists rotations, the newest first.
func (c *Client) Jobs(ctx context.Context) ([]Job, error) {
	const op = "listing rotations"
	limited, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	resp, err := c.rpc.Jobs(limited, &keyspb.JobsRequest{})
	if err != nil {
		return nil, rpcError(ctx, op, err)
	}
	return jobsOf(op, resp)
}

// AdvanceJob reports what was done of a job that the caller drives. It gives keys.ErrNoJob for one that there is
// not, and keys.ErrInvalid when the job is to be finished and the sidecar finds something left.
func (c *Client) AdvanceJob(ctx context.Context, id string, p JobProgress) (Job, error) {
	req := &keyspb.AdvanceJobRequest{
		Id: id, Phase: p.Phase, Done: p.Done, Total: p.Total, Finish: p.Finish, Failure: p.Failure, Recorded: p.Recorded,
	}
	return c.job(ctx, "reporting a rotation", func(ctx context.Context) (*keyspb.JobResponse, error) { return c.rpc.AdvanceJob(ctx, req) })
}

func (c *Client) job(ctx context.Context, op string, call func(context.Context) (*keyspb.JobResponse, error)) (Job, error) {
	limited, cancel := context.WithTimeout(ctx, longTimeout)
	defer cancel()
	resp, err := call(limited)
	if err != nil {
		return Job{}, rpcError(ctx, op, err)
	}
	return jobOf(op, resp.GetJob())
}

// long makes a call that may take longTimeout, and checks the generation that its answer carries.
func (c *Client) long(ctx context.Context, op string, call func(context.Context) (generation uint64, err error)) error {
	limited, cancel := context.WithTimeout(ctx, longTimeout)
	defer cancel()
	mark := c.generation.Load()
	generation, err := call(limited)
	if err != nil {
		return rpcError(ctx, op, err)
	}
	if err := c.checkGeneration(mark, generation); err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	return nil
}

func startRequest(scope string, subject uuid.UUID, by string) *keyspb.StartJobRequest {
	req := &keyspb.StartJobRequest{Scope: scope, By: by}
	if subject != uuid.Nil {
		req.Subject = subject[:]
	}
	return req
}

func inventoryOf(r *keyspb.InventoryResponse) Inventory {
	in := Inventory{
		KEK: r.Kek, Generation: r.Generation, Subjects: r.Subjects, Destroyed: r.Destroyed, Counted: timeOf(r.Counted),
		NextEpoch: timeOf(r.NextEpoch), EpochInterval: time.Duration(r.EpochInterval) * time.Second,
	}
	for _, v := range r.Versions {
		in.Versions = append(in.Versions, KeyVersion{
			Kind: v.GetKind(), Version: v.GetVersion(), Newest: v.GetNewest(), Count: v.GetCount(), Made: timeOf(v.GetMade()),
		})
	}
	return in
}

func jobsOf(op string, r *keyspb.JobsResponse) ([]Job, error) {
	out := make([]Job, len(r.Jobs))
	for i, p := range r.Jobs {
		var err error
		if out[i], err = jobOf(op, p); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func jobOf(op string, p *keyspb.Job) (Job, error) {
	if p.GetId() == "" || p.Scope == "" || p.State == "" {
		return Job{}, malformed(op)
	}
	j := Job{
		ID: p.Id, Scope: p.Scope, By: p.By, State: p.State, Phase: p.Phase, Done: p.Done, Total: p.Total,
		Started: timeOf(p.Started), Updated: timeOf(p.Updated), Finished: timeOf(p.Finished),
		Target: p.Target, Failure: p.Failure, Evidence: p.Evidence, Recorded: p.Recorded,
	}
	if len(p.Subject) > 0 {
		id, err := uuid.FromBytes(p.Subject)
		if err != nil {
			return Job{}, malformed(op)
		}
		j.Subject = id
	}
	return j, nil
}

// timeOf is the zero time for 0.
func timeOf(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}
