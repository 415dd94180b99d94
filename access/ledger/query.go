package ledger

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/prototypster/pdvault/access/ledger/verify"
	"github.com/prototypster/pdvault/vault/kv"
)

const (
	// MaxPage is the largest number of entries on a page, and what a Limit of 0 means.
	MaxPage = 1000
	// maxScanned bounds how many rows one call of Query looks at.
	maxScanned = 4096
	// scanChunk is how many rows are read from the store at once.
	scanChunk = 256
)

// Filter selects entries. Members left zero select all; all members given must match.
type Filter struct {
	SubjectRef []byte // 32 bytes
	Caller     string // id
	Purpose    string
	Ground     string
	Decision   string
	Kinds      []string
	From       time.Time // inclusive
	To         time.Time // exclusive

	Cursor int64 // the first index to look at: 0, or Next of the page before
	Limit  int   // of entries on the page; MaxPage when 0
}

// Record is an entry and where it is.
type Record struct {
	Index int64
	Entry []byte       // as stored and hashed
	Value verify.Entry // decoded
}

// Page is a part of the answer to a query, oldest entry first.
type Page struct {
	Records []Record
	Next    int64 // Cursor to go on with
	More    bool  // the end of the log, or of the time range, has not been reached. A page may be empty and have more
}

// Query returns the next page of entries that match f. It looks at a bounded number of rows, so that a rare
// match in a long log costs several calls and never one long one.
func (l *Ledger) Query(ctx context.Context, f Filter) (Page, error) {
	s := l.state.Load()
	if f.Cursor < 0 || f.Limit < 0 || (f.SubjectRef != nil && len(f.SubjectRef) != verify.RefSize) {
		return Page{}, fmt.Errorf("%w: negative number or bad subject reference", ErrQuery)
	}
	if f.Limit == 0 || f.Limit > MaxPage {
		f.Limit = MaxPage
	}
	page := Page{Next: f.Cursor}
	err := l.cfg.Store.View(ctx, func(r kv.Reader) error {
		q := query{rows: l.rows, r: r, size: s.Size, filter: f}
		var err error
		page, err = q.page()
		return err
	})
	if err != nil {
		return Page{}, fmt.Errorf("querying the ledger: %w", err)
	}
	return page, nil
}

// SubjectRows returns up to limit keys of the index by subject, after the given key (nil: from the first).
// They are what the effects of an erasure delete, so that nothing leads from the person's reference to the
// entries any more.
func (l *Ledger) SubjectRows(ctx context.Context, ref, after []byte, limit int) (keys [][]byte, err error) {
	err = l.cfg.Store.View(ctx, func(r kv.Reader) error {
		keys, err = l.SubjectRowsIn(r, ref, after, limit)
		return err
	})
	return keys, err
}

// SubjectRowsIn is SubjectRows in the snapshot of r, which must be one of the ledger's store.
func (l *Ledger) SubjectRowsIn(r kv.Reader, ref, after []byte, limit int) ([][]byte, error) {
	if len(ref) != verify.RefSize || limit < 1 {
		return nil, fmt.Errorf("%w: bad subject reference or limit", ErrQuery)
	}
	found, err := r.Scan(l.rows.subject(ref), after, limit)
	if err != nil {
		return nil, fmt.Errorf("reading the index by subject: %w", err)
	}
	keys := make([][]byte, len(found))
	for i, p := range found {
		keys[i] = p.Key
	}
	return keys, nil
}

type query struct {
	rows   rows
	r      kv.Reader
	size   int64 // of the log as published; rows beyond it are not shown
	filter Filter
}

func (q *query) page() (Page, error) {
	p := Page{Next: q.filter.Cursor}
	if !q.filter.From.IsZero() {
		first, err := q.firstSince(q.filter.From)
		if err != nil {
			return Page{}, err
		}
		p.Next = max(p.Next, first)
	}
	for scanned := 0; ; {
		found, err := q.chunk(p.Next)
		if err != nil {
			return Page{}, err
		}
		for _, rec := range found {
			if !q.filter.To.IsZero() && !timeOf(rec.Value).Before(q.filter.To) {
				return p, nil
			}
			p.Next = rec.Index + 1
			if q.matches(rec.Value) {
				p.Records = append(p.Records, rec)
			}
			if scanned++; scanned == maxScanned || len(p.Records) == q.filter.Limit {
				p.More = p.Next < q.size
				return p, nil
			}
		}
		if len(found) < scanChunk {
			p.Next = max(p.Next, q.size)
			return p, nil
		}
	}
}

// chunk returns the next candidates from index on; fewer than scanChunk only at the end of the log.
func (q *query) chunk(index int64) ([]Record, error) {
	if q.filter.SubjectRef != nil {
		return q.subjectChunk(index)
	}
	found, err := q.r.Scan(q.rows.entries(), before(q.rows.entry, index), scanChunk)
	if err != nil {
		return nil, err
	}
	var records []Record
	for i, p := range found {
		at, err := indexOf(p.Key)
		if err != nil || at != index+int64(i) {
			return nil, damaged("entry %d is missing", index+int64(i))
		}
		if at >= q.size {
			break
		}
		rec, err := decodeRecord(at, p.Value)
		if err != nil {
			return nil, err
		}
		records = append(records, rec)
	}
	return records, nil
}

func (q *query) subjectChunk(index int64) ([]Record, error) {
	key := func(i int64) []byte { return q.rows.subjectEntry(q.filter.SubjectRef, i) }
	found, err := q.r.Scan(q.rows.subject(q.filter.SubjectRef), before(key, index), scanChunk)
	if err != nil {
		return nil, err
	}
	var indexes []int64
	var keys [][]byte
	for _, p := range found {
		at, err := indexOf(p.Key)
		if err != nil {
			return nil, damaged("bad row in the index by subject")
		}
		if at >= q.size {
			break
		}
		indexes, keys = append(indexes, at), append(keys, q.rows.entry(at))
	}
	if len(keys) == 0 {
		return nil, nil
	}
	values, err := q.r.Get(keys...)
	if err != nil {
		return nil, err
	}
	var records []Record
	for i, at := range indexes {
		rec, err := decodeRecord(at, values[i])
		if err != nil {
			return nil, err
		}
		records = append(records, rec)
	}
	return records, nil
}

// firstSince returns the index of the first entry not before t. Times never decrease along the log.
func (q *query) firstSince(t time.Time) (int64, error) {
	lo, hi := int64(0), q.size
	for lo < hi {
		mid := lo + (hi-lo)/2
		got, err := q.r.Get(q.rows.entry(mid))
		if err != nil {
			return 0, err
		}
		rec, err := decodeRecord(mid, got[0])
		if err != nil {
			return 0, err
		}
		if timeOf(rec.Value).Before(t) {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo, nil
}

func (q *query) matches(e verify.Entry) bool {
	f := &q.filter
	switch {
	case f.Caller != "" && (e.Caller == nil || e.Caller.ID != f.Caller):
		return false
	case f.Purpose != "" && e.Purpose != f.Purpose:
		return false
	case f.Ground != "" && e.Ground != f.Ground:
		return false
	case f.Decision != "" && e.Decision != f.Decision:
		return false
	case len(f.Kinds) > 0 && !slices.Contains(f.Kinds, e.Kind):
		return false
	}
	return f.SubjectRef == nil || e.SubjectRef == verify.FormatRef(f.SubjectRef)
}

func decodeRecord(index int64, entry []byte) (Record, error) {
	e, err := verify.ParseEntry(entry)
	if err != nil {
		return Record{}, damaged("entry %d is missing or malformed", index)
	}
	return Record{Index: index, Entry: entry, Value: e}, nil
}

// timeOf returns the time of a parsed entry, which ParseEntry has checked.
func timeOf(e verify.Entry) time.Time {
	t, err := time.Parse(verify.TimeLayout, e.Time)
	if err != nil {
		panic("ledger: a parsed entry has no time: " + err.Error())
	}
	return t
}
