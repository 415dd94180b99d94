package access

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/prototypster/pdvault/access/ledger"
	"github.com/prototypster/pdvault/vault/kv"
)

const (
	// together is how many reads of a batch take each step at once: few enough that the next ones are decided while
	// these are committed and opened.
	together = 128
	// beside is how many such groups of one batch are under way. Their records are in memory before it is known whether
	// they fit into the answer.
	beside = 2
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
	items   []BatchItem
	reads   []ReadRequest // of items, with the fields that they come to under policy
	results []BatchResult // of items
}

func newGroup(p *published, q BatchRequest, items []BatchItem, results []BatchResult, size *atomic.Int64) *group {
	g := &group{policy: p, items: items, reads: make([]ReadRequest, len(items)), results: results}
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
	granted, again := b.recordGroup(ctx, g, ready)
	b.serveGroup(ctx, g, granted) // first: what is on record must not wait for what is not
	b.readAgain(ctx, g, again)
}

// lookGroup reads what the decisions need, and returns it with the positions of the reads that go on.
func (b *Broker) lookGroup(ctx context.Context, g *group) (states []seen, left []int) {
	for i := range g.reads {
		q := &g.reads[i]
		if err := b.begin(g.policy, q); err != nil {
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
		b.readAgain(ctx, g, left)
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
	var again []int
	for _, i := range asking {
		switch {
		case errors.Is(errs[i], errAgain): // another policy was published before the denial was on record
			again = append(again, i)
		case errs[i] != nil:
			g.finish(i, ReadResult{}, errs[i])
			delete(ready, i)
		}
	}
	b.readAgain(ctx, g, again)
	return ready
}

// recordGroup puts the records into the ledger. When it returns those of granted are durable; again are to be decided
// anew.
func (b *Broker) recordGroup(ctx context.Context, g *group, ready map[int]*allowed) (granted map[int]*grant, again []int) {
	order := make([]int, 0, len(ready))
	drafts := make([]ledger.Draft, 0, len(ready))
	for i := range g.reads {
		if a := ready[i]; a != nil {
			order = append(order, i)
			drafts = append(drafts, ledger.Draft{Entry: a.entry, Effects: b.effects(a.state, a.sealed)})
		}
	}
	granted = make(map[int]*grant, len(order))
	for n, o := range b.ledger.AppendAll(ctx, drafts) {
		i, err := order[n], o.Err
		if err != nil {
			err = b.mapAppend(ctx, err)
		}
		if err == nil {
			granted[i] = ready[i].granted(o.Receipt)
			continue
		}
		g.reads[i].giveBack(ready[i].row)
		if errors.Is(err, errAgain) {
			again = append(again, i)
		} else {
			g.finish(i, ReadResult{}, err)
		}
	}
	return granted, again
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
	b.each(again, func(i int) {
		r, err := b.serve(ctx, g.reads[i], granted[i], tried[i])
		if errors.Is(err, errAgain) {
			r, err = b.readAlone(ctx, g, i)
		}
		g.finish(i, r, err)
	})
}

// readAgain decides on some reads anew and serves each by itself.
func (b *Broker) readAgain(ctx context.Context, g *group, which []int) {
	b.each(which, func(i int) {
		r, err := b.readAlone(ctx, g, i)
		g.finish(i, r, err)
	})
}

// readAlone makes a read as if it had not been begun: the policy may cover other fields by now.
func (b *Broker) readAlone(ctx context.Context, g *group, i int) (ReadResult, error) {
	q := g.reads[i]
	q.Fields = g.items[i].Fields
	return again(func() (ReadResult, error) { return b.read(ctx, q) })
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
