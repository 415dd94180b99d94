package access

import (
	"context"
	"encoding/binary"

	"github.com/google/uuid"

	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/vault"
	"github.com/prototypster/pdvault/vault/kv"
)

// detailPage is sealed details of one subject, found by consecutive rows of the index by subject.
type detailPage struct {
	subject *resealed
	last    []byte // the last of the rows
	more    bool   // there may be further rows
	keys    [][]byte
	items   []ResealItem // in the order of keys
}

// details seals the details again of the entries about subjects that lie after the row of the index by subject up to
// which each was looked at, and moves that on. Subjects of which something cannot be sealed again are marked.
//
// Those of all are read from one snapshot, sealed by one call and committed by one entry, as far as they fit.
func (s *resealing) details(ctx context.Context, subjects []resealed) error {
	left := make([]*resealed, len(subjects))
	for i := range subjects {
		left[i] = &subjects[i]
	}
	for tries := 0; len(left) > 0; {
		pages, err := s.detailPages(ctx, left)
		if err != nil {
			return err
		}
		stale, err := s.resealDetails(ctx, pages)
		if err != nil {
			return err
		}
		next := make([]*resealed, 0, len(left)-len(pages))
		for _, p := range pages {
			x := p.subject
			if _, ok := stale[x.id]; ok {
				next = append(next, x) // erased meanwhile, or sealed again by another; the rows tell
				continue
			}
			if x.last = p.last; p.more && !x.unsound {
				next = append(next, x)
			}
		}
		if len(stale) == 0 {
			tries = 0
		} else if tries++; tries > rekeyTries {
			return vault.ErrStale
		}
		left = append(next, left[len(pages):]...)
	}
	return nil
}

// detailPages reads from one snapshot the next details of the first of subjects, of as many as their size allows.
func (s *resealing) detailPages(ctx context.Context, subjects []*resealed) (pages []detailPage, err error) {
	err = s.broker.store.View(ctx, func(r kv.Reader) error {
		pages = make([]detailPage, 0, len(subjects))
		for size := 0; len(pages) < len(subjects) && size < rekeyBytes; {
			x := subjects[len(pages)]
			rows, err := s.broker.ledger.SubjectRowsIn(r, x.ref, x.last, rekeyDetails)
			if err != nil {
				return err
			}
			p := detailPage{subject: x, last: x.last, more: len(rows) == rekeyDetails}
			if len(rows) > 0 {
				p.last = rows[len(rows)-1]
			}
			keys := make([][]byte, len(rows))
			for i, row := range rows {
				keys[i] = detailKey(int64(binary.BigEndian.Uint64(row[len(row)-8:])))
			}
			values, err := r.Get(append(keys, pendingKey(x.id))...)
			if err != nil {
				return err
			}
			erased := values[len(keys)] != nil // what is left of its details is on its way out
			for i, v := range values[:len(keys)] {
				if v != nil && !erased {
					p.keys = append(p.keys, keys[i])
					p.items = append(p.items, ResealItem{Kind: itemDetail, Ciphertext: v})
					size += len(v)
				}
			}
			pages = append(pages, p)
		}
		return nil
	})
	return pages, err
}

// resealDetails seals the details of pages again and commits them. It marks the subjects of which something changed
// or cannot be sealed again, and returns those whose details had changed meanwhile.
func (s *resealing) resealDetails(ctx context.Context, pages []detailPage) (map[uuid.UUID]struct{}, error) {
	var asked []ResealSubject
	var of []*detailPage // each of asked
	for i := range pages {
		if p := &pages[i]; len(p.items) > 0 {
			asked, of = append(asked, ResealSubject{Subject: p.subject.id, Items: p.items}), append(of, p)
		}
	}
	if len(asked) == 0 {
		return nil, nil
	}
	outcomes, err := s.reseal(ctx, asked)
	if err != nil {
		return nil, err
	}
	var units []unit
	var changed []*resealed
	for i, p := range of {
		x := p.subject
		switch err := outcomes[i].Err; {
		case err != nil && s.Gone(err):
			continue
		case err != nil && s.Damaged(err):
			s.fail(err)
			x.unsound = true
			continue
		case err != nil:
			return nil, err
		}
		made := p.units(outcomes[i].Ciphertexts)
		if len(made) > 0 {
			units, changed = append(units, made...), append(changed, x)
		}
	}
	stale, err := s.commit(ctx, verify.KindRecordResealed, nil, units)
	if err != nil {
		return nil, err
	}
	for _, x := range changed {
		if _, ok := stale[x.id]; !ok && !x.changed {
			x.changed = true
			s.changed.Add(1)
		}
	}
	return stale, nil
}

// units are the changes that put sealed, nil where nothing is to be changed, in the place of the details.
func (p *detailPage) units(sealed [][]byte) []unit {
	var units []unit
	u := unit{id: p.subject.id, ref: p.subject.ref}
	size := 0
	for i, new := range sealed {
		if new == nil {
			continue
		}
		u.change.Expect(p.keys[i], p.items[i].Ciphertext, vault.ErrStale)
		u.change.Set(p.keys[i], new)
		if size += len(new); size > rekeyBytes/2 {
			u.close()
			units, u, size = append(units, u), unit{id: u.id, ref: u.ref}, 0
		}
	}
	if len(u.change.Sets) > 0 {
		u.close()
		units = append(units, u)
	}
	return units
}
