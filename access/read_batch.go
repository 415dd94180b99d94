package access

import (
	"context"
	"slices"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
)

// groupsOfBatch is how many groups of one batch are under way. Their records are in memory before it is known whether
// they fit into the answer.
const groupsOfBatch = 2

// ReadBatch serves many reads, each decided and recorded on its own. The error is set only when the batch
// as a whole is refused.
func (b *Broker) ReadBatch(ctx context.Context, q BatchRequest) ([]BatchResult, error) {
	if len(q.Reads) == 0 || len(q.Reads) > MaxBatch {
		return nil, &FieldError{"/reads", "must have 1 to 1000 items"}
	}
	results := make([]BatchResult, len(q.Reads))
	var size atomic.Int64 // of the ciphertexts that were admitted
	var groups errgroup.Group
	groups.SetLimit(groupsOfBatch)
	at := 0
	for items := range slices.Chunk(q.Reads, together) {
		out := results[at : at+len(items)]
		at += len(items)
		groups.Go(func() error {
			b.readItems(ctx, q, items, &size, out)
			return nil
		})
	}
	groups.Wait() // each item keeps its own error
	return results, nil
}

// readItems serves some reads of a batch, together as far as that goes.
func (b *Broker) readItems(ctx context.Context, q BatchRequest, items []BatchItem, size *atomic.Int64, results []BatchResult) {
	p := b.current.Load()
	var asked []ReadRequest
	var where []int
	for i, item := range items {
		read := ReadRequest{
			Request: q.Request, Subject: item.Subject, Collection: item.Collection, Fields: item.Fields,
			Purpose: q.Purpose, Mode: q.Mode, Reference: q.Reference, Justification: q.Justification, batch: size,
		}
		if err := b.begin(p, &read); err != nil {
			results[i].Err = err
			continue
		}
		asked, where = append(asked, read), append(where, i)
	}
	outcomes := b.readGroup(ctx, &group{policy: p, asked: asked})
	var left []int
	for n, o := range outcomes {
		if o.left != nil {
			left = append(left, n)
			continue
		}
		results[where[n]] = o.item()
	}
	each(left, func(n int) {
		r, err := outcomes[n].left(ctx)
		results[where[n]] = readOutcome{result: r, err: err}.item()
	})
}

func (o readOutcome) item() BatchResult {
	if o.err != nil {
		return BatchResult{Err: o.err}
	}
	return BatchResult{Read: &o.result}
}
