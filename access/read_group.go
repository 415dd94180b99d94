package access

import (
	"context"
	"errors"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/prototypster/pdvault/access/ledger"
	"github.com/prototypster/pdvault/vault/kv"
)

const (
	// together is how many reads take each step at once.
	together = 128
	// alone is how many reads of a group take a way of their own at once.
	alone = 64
)

// group are reads that take each step together: they are looked up in one snapshot, their records go to the ledger at
// once, and so do their fields to the sidecar.
type group struct {
	policy *published
	asked  []ReadRequest
	// prompt lets go of each read that has to ask the sidecar before it is on record: the others must not wait for it.
	prompt bool

	reads    []ReadRequest // what was asked, with the fields that it comes to under policy
	outcomes []readOutcome
}

// readOutcome is what became of a read in its group: an answer, or what is left to do to get one.
type readOutcome struct {
	result ReadResult
	err    error
	left   func(context.Context) (ReadResult, error) // set when neither of the others is
}

func (g *group) finish(i int, r ReadResult, err error) {
	g.outcomes[i] = readOutcome{result: r, err: err}
}

// leave leaves reads to be made as if they had not been begun: the policy may cover other fields by now.
func (b *Broker) leave(g *group, which ...int) {
	for _, i := range which {
		g.outcomes[i] = readOutcome{left: func(ctx context.Context) (ReadResult, error) {
			return again(func() (ReadResult, error) { return b.read(ctx, g.asked[i]) })
		}}
	}
}

// readGroup does for each read of g what Read does, as far as they can go together. A read that has to be decided again,
// or was recorded and not opened, is left to go on by itself.
func (b *Broker) readGroup(ctx context.Context, g *group) []readOutcome {
	g.reads, g.outcomes = slices.Clone(g.asked), make([]readOutcome, len(g.asked))
	states, seen := b.lookGroup(ctx, g)
	ready := b.draftGroup(ctx, g, states, seen)
	granted := b.recordGroup(ctx, g, ready)
	b.serveGroup(ctx, g, granted)
	return g.outcomes
}

// lookGroup reads what the decisions need, and returns it with the positions of the reads that go on.
func (b *Broker) lookGroup(ctx context.Context, g *group) (states []seen, found []int) {
	states = make([]seen, len(g.reads))
	errs := make([]error, len(g.reads))
	err := b.store.View(ctx, func(r kv.Reader) error {
		for i := range g.reads {
			g.reads[i].Fields = g.policy.asked(g.reads[i])
			states[i], errs[i] = g.policy.look(r, g.reads[i])
		}
		return nil
	})
	for i := range g.reads {
		switch {
		case err != nil: // damage to one of them must not keep the others from being read
			b.leave(g, i)
		case errs[i] != nil:
			g.finish(i, ReadResult{}, wrapf(errs[i], "reading the subject"))
		default:
			found = append(found, i)
		}
	}
	return states, found
}

// draftGroup decides, records denials, and writes the records of what is allowed.
func (b *Broker) draftGroup(ctx context.Context, g *group, states []seen, found []int) (ready map[int]*allowed) {
	ready = make(map[int]*allowed, len(found))
	refused := make(map[int]*denial)
	var asking []int // the sidecar
	for _, i := range found {
		a, refusal := b.allow(g.reads[i], states[i])
		asks := refusal != nil || a.detail != detail{} || !b.refs.Contains(a.q.Subject)
		switch {
		case asks && g.prompt:
			b.leave(g, i)
		case asks:
			ready[i], refused[i] = a, refusal
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
	each(asking, func(i int) {
		if refusal := refused[i]; refusal != nil {
			errs[i] = b.recordDenial(ctx, g.policy, g.reads[i].Request, *refusal)
			return
		}
		errs[i] = b.draft(ctx, ready[i])
	})
	for _, i := range asking {
		switch {
		case errors.Is(errs[i], errAgain): // another policy was published before the denial was on record
			b.leave(g, i)
			delete(ready, i)
		case errs[i] != nil:
			g.finish(i, ReadResult{}, errs[i])
			delete(ready, i)
		}
	}
	return ready
}

// recordGroup puts the records into the ledger. When it returns those of granted are durable.
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
	if len(order) == 0 {
		return granted
	}
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
			b.leave(g, i)
		} else {
			g.finish(i, ReadResult{}, err)
		}
	}
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
	for n, i := range order {
		o := &OpenOutcome{Err: wrapf(ErrIntegrity, "sidecar answered another number of records")}
		if len(outcomes) == len(calls) {
			o = &outcomes[n]
		}
		if o.Err != nil {
			b.leaveTried(g, i, granted[i], o)
			continue
		}
		r, err := b.serve(ctx, g.reads[i], granted[i], o)
		g.finish(i, r, err)
	}
}

// leaveTried leaves a read that is on record and was not opened.
func (b *Broker) leaveTried(g *group, i int, on *grant, tried *OpenOutcome) {
	g.outcomes[i] = readOutcome{left: func(ctx context.Context) (ReadResult, error) {
		r, err := b.serve(ctx, g.reads[i], on, tried)
		if errors.Is(err, errAgain) {
			b.leave(g, i)
			return g.outcomes[i].left(ctx)
		}
		return r, err
	}}
}

// each calls do for each position, several at a time.
func each(which []int, do func(int)) {
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
