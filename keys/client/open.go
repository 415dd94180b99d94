package client

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/keys/internal/coalesce"
	"github.com/prototypster/pdvault/keys/keyspb"
)

// maxStale bounds how often a batch is proved anew because the sidecar had witnessed another size.
const maxStale = 8

func newOpenItem(index int64, entry []byte, subject uuid.UUID, collection string, version uint64, fields []OpenField) (*keyspb.OpenItem, error) {
	if index < 0 || len(entry) == 0 || len(entry) > maxEntry || !isName(collection) || len(fields) == 0 || len(fields) > maxFields {
		return nil, keys.ErrInvalid
	}
	item := &keyspb.OpenItem{
		Index: index, Entry: entry, Subject: subject[:], Collection: collection, Version: version,
		Fields: make([]*keyspb.OpenField, len(fields)),
	}
	for i, f := range fields {
		if !isName(f.Field) || len(f.Ciphertext) == 0 || len(f.Ciphertext) > maxCiphertext || len(f.Expect) > maxPlaintext {
			return nil, fmt.Errorf("field %d: %w", i, keys.ErrInvalid)
		}
		item.Fields[i] = &keyspb.OpenField{Field: f.Field, Ciphertext: f.Ciphertext, Expect: f.Expect}
	}
	if n := openSize(item); n > maxCall {
		return nil, fmt.Errorf("call of %d bytes: %w", n, keys.ErrInvalid)
	}
	return item, nil
}

func openSize(item *keyspb.OpenItem) int {
	n := 1100 + len(item.Entry) + len(item.Collection) // with an inclusion proof of 30 hashes
	for _, f := range item.Fields {
		n += 16 + len(f.Field) + len(f.Ciphertext) + len(f.Expect)
	}
	return n
}

// step is one checkpoint to show, and the proof that joins it to the one shown before.
type step struct {
	note  []byte
	size  int64
	from  int64
	proof [][]byte
	acked int64 // the sidecar's memory must not be shorter than this
	chain int   // of steps that begin where the one before ends

	settled bool // the sidecar has witnessed it already
}

// advance takes the newest checkpoint of p and proves it from the one sent last. It supposes that what was
// sent will be witnessed, so that batches need not wait for each other's answers.
func (c *Client) advance(ctx context.Context, p Prover) (step, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	note, size := p.Checkpoint()
	s := step{note: note, size: size, from: min(c.sent, size), acked: c.acked, chain: c.chain}
	if s.from > 0 && s.from < size {
		hashes, err := p.ProveConsistency(ctx, s.from, size)
		if err != nil {
			return step{}, fmt.Errorf("proving consistency: %w: %w", err, keys.ErrUnavailable)
		}
		s.proof = hashBytes(hashes)
	}
	c.sent = size
	return s, nil
}

// restart begins a new chain at size, after s did not fit. When another batch of the same chain has done so
// already, its chain goes on: were each to begin one of its own, they would overtake each other for ever.
func (c *Client) restart(s step, size int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.chain == c.chain {
		c.chain++
		c.sent = size
	}
}

// lost begins a new chain at what the sidecar has certainly witnessed, after a step whose fate is not known.
func (c *Client) lost(s step) {
	c.mu.Lock()
	acked := c.acked
	c.mu.Unlock()
	c.restart(s, acked)
}

// witnessed notes that the sidecar has s, and hands the lines of its cosignature to p.
func (c *Client) witnessed(p Prover, s step, lines []byte) {
	c.mu.Lock()
	c.acked = max(c.acked, s.size)
	c.mu.Unlock()
	if len(lines) == 0 {
		return
	}
	c.toldMu.Lock()
	defer c.toldMu.Unlock()
	if s.size > c.told {
		c.told = s.size
		p.Cosigned(s.size, lines)
	}
}

// stale decides what an answer means that says that the sidecar has witnessed another size than s began at.
func (c *Client) stale(p Prover, s step, theirs int64, attempt int) error {
	if theirs < s.acked {
		return fmt.Errorf("sidecar has witnessed size %d, after %d: %w", theirs, s.acked, keys.ErrRolledBack)
	}
	if _, ours := p.Checkpoint(); theirs > ours {
		return fmt.Errorf("sidecar has witnessed size %d, the ledger has %d: %w", theirs, ours, keys.ErrRolledBack)
	}
	if attempt >= maxStale {
		return fmt.Errorf("sidecar's witnessed size keeps moving: %w", keys.ErrUnavailable)
	}
	c.restart(s, theirs)
	return nil
}

func (c *Client) sendOpen(ctx context.Context, batch []*keyspb.OpenItem) ([]coalesce.Outcome[[]OpenedField], error) {
	pp := c.prover.Load()
	if pp == nil {
		return nil, fmt.Errorf("client has no prover: %w", keys.ErrUnavailable)
	}
	p := *pp
	for attempt := 0; ; attempt++ {
		s, err := c.step(ctx, p, batch, attempt)
		if err != nil {
			return nil, err
		}
		out := make([]coalesce.Outcome[[]OpenedField], len(batch))
		req := &keyspb.OpenRequest{Checkpoint: s.note, From: s.from, Consistency: s.proof, Items: make([]*keyspb.OpenItem, 0, len(batch))}
		where := make([]int, 0, len(batch)) // position in batch of each item sent
		for i, item := range batch {
			if item.Index >= s.size {
				out[i].Err = fmt.Errorf("entry %d is not in the ledger of size %d: %w", item.Index, s.size, keys.ErrProofRefused)
				continue
			}
			hashes, err := p.ProveInclusion(ctx, item.Index, s.size)
			if err != nil {
				out[i].Err = fmt.Errorf("proving inclusion: %w: %w", err, keys.ErrUnavailable)
				continue
			}
			item.Inclusion = hashBytes(hashes)
			req.Items = append(req.Items, item)
			where = append(where, i)
		}
		if len(req.Items) == 0 {
			c.lost(s)
			return out, nil
		}
		mark := c.generation.Load()
		resp, err := c.rpc.Open(ctx, req)
		if err != nil {
			c.lost(s)
			return nil, sidecarError(err)
		}
		if err := c.checkGeneration(mark, resp.Generation); err != nil {
			return nil, err
		}
		if resp.Stale {
			if err := c.stale(p, s, resp.WitnessedSize, attempt); err != nil {
				return nil, err
			}
			continue
		}
		if len(resp.Items) != len(req.Items) {
			return nil, malformed("sidecar")
		}
		switch {
		case s.settled: // it was cosigned when it was settled
		case len(resp.Cosignature) == 0:
			c.lost(s) // the checkpoint itself was refused, or could not be kept; the items say why
		default:
			c.witnessed(p, s, resp.Cosignature)
		}
		for j, got := range resp.Items {
			out[where[j]].Value, out[where[j]].Err = openedOf(req.Items[j], got)
		}
		return out, nil
	}
}

// maxOptimistic is the size in bytes of a batch that is sent along with a checkpoint which is yet to be
// witnessed. A larger one takes so long on its way that others would overtake it.
const maxOptimistic = 64 << 10

// step chooses the checkpoint that a batch rests on. At first it is the newest one, proven from the one sent
// before, in the same message. When that was overtaken, and for a large batch, the checkpoint is settled with a
// small message of its own, which the batch then cannot lose a race for.
func (c *Client) step(ctx context.Context, p Prover, batch []*keyspb.OpenItem, attempt int) (step, error) {
	size := 0
	for _, item := range batch {
		size += openSize(item)
	}
	if attempt == 0 && size <= maxOptimistic {
		return c.advance(ctx, p)
	}
	s, _, err := c.settle(ctx, p)
	return s, err
}

// settle has the newest checkpoint witnessed and returns the step that shows it again.
func (c *Client) settle(ctx context.Context, p Prover) (step, []byte, error) {
	for attempt := 0; ; attempt++ {
		s, err := c.advance(ctx, p)
		if err != nil {
			return step{}, nil, err
		}
		resp, err := c.rpc.Witness(ctx, &keyspb.WitnessRequest{Checkpoint: s.note, From: s.from, Consistency: s.proof})
		if err != nil {
			c.lost(s)
			return step{}, nil, sidecarError(err)
		}
		if resp.Stale {
			if err := c.stale(p, s, resp.WitnessedSize, attempt); err != nil {
				return step{}, nil, err
			}
			continue
		}
		switch {
		case len(resp.Cosignature) > 0:
			c.witnessed(p, s, resp.Cosignature)
		case resp.WitnessedSize != s.size || s.size == 0: // without a line it must be one that was seen before
			return step{}, nil, malformed("witnessing")
		}
		s.from, s.proof, s.settled = s.size, nil, true
		return s, resp.Cosignature, nil
	}
}

func openedOf(asked *keyspb.OpenItem, got *keyspb.OpenedItem) ([]OpenedField, error) {
	if got.Code != keyspb.Code_OK {
		return nil, refusal(got.Code, got.Why)
	}
	if len(got.Fields) != len(asked.Fields) {
		return nil, malformed("sidecar")
	}
	fields := make([]OpenedField, len(got.Fields))
	for i, f := range got.Fields {
		if (len(f.Plaintext) == 0) != (len(asked.Fields[i].Expect) > 0) {
			return nil, malformed("sidecar")
		}
		fields[i] = OpenedField{Plaintext: f.Plaintext, Match: f.Match}
	}
	return fields, nil
}

// Witness shows the sidecar the ledger's current checkpoint and returns its cosignature, a line for each of its
// keys, or none when another call has taken the sidecar further meanwhile. It returns
// keys.ErrRolledBack when the sidecar has witnessed more than the ledger holds: the ledger was cut, or
// restored from an older copy.
func (c *Client) Witness(ctx context.Context) ([]byte, error) {
	const op = "witnessing"
	limited, cancel := context.WithTimeout(ctx, c.cfg.Timeout)
	defer cancel()
	pp := c.prover.Load()
	if pp == nil {
		return nil, fmt.Errorf("%s: client has no prover: %w", op, keys.ErrUnavailable)
	}
	p := *pp
	_, line, err := c.settle(limited, p)
	if err != nil {
		return nil, callError(ctx, op, err)
	}
	return line, nil
}

func hashBytes(hashes []tlog.Hash) [][]byte {
	if len(hashes) == 0 {
		return nil
	}
	flat := make([]byte, len(hashes)*tlog.HashSize)
	out := make([][]byte, len(hashes))
	for i := range hashes {
		b := flat[i*tlog.HashSize : (i+1)*tlog.HashSize : (i+1)*tlog.HashSize]
		copy(b, hashes[i][:])
		out[i] = b
	}
	return out
}
