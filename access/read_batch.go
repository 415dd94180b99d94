package access

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/prototypster/pdvault/access/ledger"
	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/vault/kv"
)

const (
	// together is how many reads of a batch take each step at once: few enough that the next ones are decided while
	// these are committed and opened.
	together = 128
	// beside is how many such groups of one batch are under way.
	beside = 4
	// alone is how many reads of a group take a way of their own at once.
	alone = 64
)

// ReadBatch serves many reads, each decided and recorded on its own. The error is set only when the batch
// as a whole is refused.
func (b *Broker) ReadBatch(ctx context.Context, q BatchRequest) ([]BatchResult, error) {
	if len(q.Reads) == 0 || len(q.Reads) > MaxBatch {
		return nil, &FieldError{"/reads", "must have 1 to 1000 items"}
	}
	results := make([]BatchResult, len(q.Reads))
	var size atomic.Int64 // of the ciphertexts that were admitted
	var groups errgroup.Group
	groups.SetLimit(beside)
	at := 0
	for items := range slices.Chunk(q.Reads, together) {
		out := results[at : at+len(items)]
		at += len(items)
		groups.Go(func() error {
			b.readGroup(ctx, newGroup(b.current.Load(), q, items, out, &size))
			return nil
		})
	}
	groups.Wait() // each item keeps its own error
	return results, nil
}

// group are reads of a batch that take each step together.
type group struct {
	policy  *published
	reads   []ReadRequest
	results []BatchResult // of reads
}

func newGroup(p *published, q BatchRequest, items []BatchItem, results []BatchResult, size *atomic.Int64) *group {
	g := &group{policy: p, reads: make([]ReadRequest, len(items)), results: results}
	for i, item := range items {
		g.reads[i] = ReadRequest{
			Request: q.Request, Subject: item.Subject, Collection: item.Collection, Fields: item.Fields,
			Purpose: q.Purpose, Mode: q.Mode, Reference: q.Reference, Justification: q.Justification, batch: size,
		}
	}
	return g
}

func (g *group) finish(i int, r ReadResult, err error) {
	if err != nil {
		g.results[i].Err = err
		return
	}
	g.results[i].Read = &r
}

// readGroup does for each read of g what Read does, each step for all of them: they are looked up in one snapshot,
// their records go to the ledger at once, and so do their fields to the sidecar. A read that has to be decided again
// goes on by itself.
func (b *Broker) readGroup(ctx context.Context, g *group) {
	states, left := b.lookGroup(ctx, g)
	ready := b.draftGroup(ctx, g, states, left)
	granted := b.recordGroup(ctx, g, ready)
	b.serveGroup(ctx, g, granted)
}

// lookGroup reads what the decisions need, and returns it with the positions of the reads that go on.
func (b *Broker) lookGroup(ctx context.Context, g *group) (states []seen, left []int) {
	for i := range g.reads {
		q := &g.reads[i]
		if q.Mode == "" {
			q.Mode = verify.ModeReveal
		}
		b.load.Add(1)
		if err := b.budgets.read(g.policy, q.Caller.ID, b.now()); err != nil {
			g.finish(i, ReadResult{}, err)
			continue
		}
		q.Fields = g.policy.asked(*q)
		left = append(left, i)
	}
	states = make([]seen, len(g.reads))
	errs := make([]error, len(g.reads))
	err := b.store.View(ctx, func(r kv.Reader) error {
		for _, i := range left {
			states[i], errs[i] = g.policy.look(r, g.reads[i])
		}
		return nil
	})
	if err != nil {
		// Damage to one of them must not keep the others from being read.
		b.apart(g, left, func(i int) (ReadResult, error) { return b.readAlone(ctx, g.reads[i]) })
		return states, nil
	}
	return states, slices.DeleteFunc(left, func(i int) bool {
		if errs[i] != nil {
			g.finish(i, ReadResult{}, wrapf(errs[i], "reading the subject"))
		}
		return errs[i] != nil
	})
}

// draftGroup decides, records denials, and writes the records of what is allowed.
func (b *Broker) draftGroup(ctx context.Context, g *group, states []seen, left []int) (ready map[int]*allowed) {
	ready = make(map[int]*allowed, len(left))
	refused := make(map[int]*denial)
	var asking []int // the sidecar
	for _, i := range left {
		a, refusal := b.allow(g.reads[i], states[i])
		switch {
		case refusal != nil:
			refused[i] = refusal
			asking = append(asking, i)
		case a.detail != detail{} || !b.refs.Contains(a.q.Subject):
			ready[i] = a
			asking = append(asking, i)
		default:
			ready[i] = a
			if err := b.draft(ctx, a); err != nil {
				g.finish(i, ReadResult{}, err)
				delete(ready, i)
			}
		}
	}
	errs := make([]error, len(g.reads))
	b.each(asking, func(i int) {
		if refusal := refused[i]; refusal != nil {
			errs[i] = b.recordDenial(ctx, g.policy, g.reads[i].Request, *refusal)
			return
		}
		errs[i] = b.draft(ctx, ready[i])
	})
	for _, i := range asking {
		if errs[i] != nil {
			g.finish(i, ReadResult{}, errs[i])
			delete(ready, i)
		}
	}
	return ready
}

// recordGroup puts the records into the ledger. When it returns they are durable.
func (b *Broker) recordGroup(ctx context.Context, g *group, ready map[int]*allowed) (granted map[int]*grant) {
	order := make([]int, 0, len(ready))
	drafts := make([]ledger.Draft, 0, len(ready))
	for i := range g.reads {
		if a := ready[i]; a != nil {
			order = append(order, i)
			drafts = append(drafts, ledger.Draft{Entry: a.entry, Effects: b.effects(a.state, a.sealed)})
		}
	}
	granted = make(map[int]*grant, len(order))
	var again []int
	for n, o := range b.ledger.AppendAll(ctx, drafts) {
		i, err := order[n], o.Err
		if err != nil {
			err = b.mapAppend(ctx, err)
		}
		switch {
		case err == nil:
			granted[i] = ready[i].granted(o.Receipt)
		case errors.Is(err, errAgain):
			g.reads[i].batch.Add(-ready[i].row.Size(g.reads[i].Fields))
			again = append(again, i)
		default:
			g.finish(i, ReadResult{}, err)
		}
	}
	b.apart(g, again, func(i int) (ReadResult, error) { return b.readAlone(ctx, g.reads[i]) })
	return granted
}

// serveGroup has the fields opened, under the records.
func (b *Broker) serveGroup(ctx context.Context, g *group, granted map[int]*grant) {
	order := make([]int, 0, len(granted))
	calls := make([]OpenCall, 0, len(granted))
	for i := range g.reads {
		grant := granted[i]
		if grant == nil {
			continue
		}
		q := &g.reads[i]
		fields := stored(grant.row, q.Fields)
		if len(fields) == 0 {
			r, err := b.serve(ctx, *q, grant, nil)
			g.finish(i, r, err)
			continue
		}
		order = append(order, i)
		calls = append(calls, OpenCall{grant.index, grant.entry, q.Subject, q.Collection, grant.row.Version, fields})
	}
	if len(calls) == 0 {
		return
	}
	outcomes := b.opener.OpenAll(ctx, calls)
	var again []int
	tried := make(map[int]*OpenOutcome)
	for n, i := range order {
		o := &OpenOutcome{Err: wrapf(ErrIntegrity, "sidecar answered another number of records")}
		if len(outcomes) == len(calls) {
			o = &outcomes[n]
		}
		if o.Err != nil {
			tried[i] = o
			again = append(again, i)
			continue
		}
		r, err := b.serve(ctx, g.reads[i], granted[i], o)
		g.finish(i, r, err)
	}
	b.apart(g, again, func(i int) (ReadResult, error) {
		r, err := b.serve(ctx, g.reads[i], granted[i], tried[i])
		if errors.Is(err, errAgain) {
			return b.readAlone(ctx, g.reads[i])
		}
		return r, err
	})
}

// readAlone decides on q again, and serves it by itself.
func (b *Broker) readAlone(ctx context.Context, q ReadRequest) (ReadResult, error) {
	return again(func() (ReadResult, error) { return b.read(ctx, q) })
}

// apart finishes some reads of g, each by itself.
func (b *Broker) apart(g *group, which []int, finish func(int) (ReadResult, error)) {
	b.each(which, func(i int) {
		r, err := finish(i)
		g.finish(i, r, err)
	})
}

// each calls do for each position, several at a time.
func (b *Broker) each(which []int, do func(int)) {
	var calls errgroup.Group
	calls.SetLimit(alone)
	for _, i := range which {
		calls.Go(func() error {
			do(i)
			return nil
		})
	}
	calls.Wait()
}
