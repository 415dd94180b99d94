package hcvault

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/prototypster/pdvault/keys"
	"github.com/prototypster/pdvault/vault/kv"
)

// recover brings the store from whatever its last process left to a state in which everything is applied,
// and loads the keys. Its first write is an empty commit: from then on a commit of an earlier process fails,
// since its place is taken. That one's commits up to there are carried over like those of our own.
func (s *Store) recover(ctx context.Context) error {
	ring, err := s.barrier(ctx)
	if err != nil {
		return err
	}
	commits, err := s.unapplied(ctx, ring)
	if err != nil {
		return err
	}
	head := commits[len(commits)-1]
	s.seq = head.Seq
	changes, err := s.carryOver(ctx, commits)
	if err != nil {
		return err
	}
	parts, err := s.secrets.list(ctx, "parts/")
	if err != nil {
		return err
	}
	for _, name := range parts { // of commits that never came to be
		if err := s.secrets.destroy(ctx, "parts/"+name); err != nil {
			return err
		}
	}
	if err := s.loadKeys(ctx); err != nil {
		return err
	}
	for _, ch := range changes {
		it, there := s.rows.Get(item{key: ch.key})
		if there != (ch.is != nil) {
			return fmt.Errorf("the rows are not what the log says: %w", kv.ErrIntegrity)
		}
		if there {
			it.cell.seq, it.cell.version = ch.is.seq, ch.is.version
		}
	}
	if s.rows.Len() != head.Rows {
		return fmt.Errorf("the key store has %d rows and should have %d: %w", s.rows.Len(), head.Rows, kv.ErrIntegrity)
	}
	return nil
}

// barrier writes the empty commit and returns the ring, by sequence numbers, with it.
func (s *Store) barrier(ctx context.Context) ([]placed, error) {
	for range commitTries {
		ring, err := s.readRing(ctx)
		if err != nil {
			return nil, err
		}
		head := record{}
		if len(ring) > 0 {
			head = ring[len(ring)-1].record
		}
		if head.Fence > s.lease.content.Fence {
			return nil, fmt.Errorf("the log is that of a later owner: %w", kv.ErrIntegrity)
		}
		r := record{F: storeFormat, Seq: head.Seq + 1, Fence: s.lease.content.Fence, ID: newID(), Rows: head.Rows, Sum: sumOf(nil)}
		i := r.Seq % ringSize
		if head.Seq >= ringSize {
			// The place must have been given free.
			first := slices.IndexFunc(ring, func(p placed) bool { return p.Seq == r.Seq-ringSize })
			if first < 0 || !ring[first].Done {
				if err := s.makeRoom(ctx, ring); err != nil {
					return nil, err
				}
				continue
			}
		}
		version, err := s.secrets.write(ctx, slotName(r.Seq), s.commits.versions[i], r)
		if err == nil {
			s.commits.versions[i] = version
			return append(ring, placed{r, version}), nil
		}
		if errors.Is(err, errNotSent) {
			return nil, err
		}
		// It is there, or another commit came before it: the ring is read again, and says which.
	}
	return nil, fmt.Errorf("the log of the key store keeps changing: %w", keys.ErrUnavailable)
}

// makeRoom carries over what fills the whole ring, so that the empty commit has a place. The lease is ours,
// so that nobody else commits but a process that is about to find out; its commit would have no place either.
func (s *Store) makeRoom(ctx context.Context, ring []placed) error {
	commits, err := s.unapplied(ctx, ring)
	if err != nil {
		return err
	}
	_, err = s.carryOver(ctx, commits)
	return err
}

// carryOver applies what an earlier process has committed.
func (s *Store) carryOver(ctx context.Context, commits []*commit) ([]*change, error) {
	changes := merge(commits)
	for _, ch := range changes {
		ch.seq = 0 // nothing is known of what the rows hold
	}
	for _, c := range commits {
		s.backlog += len(c.writes)
	}
	for try := 0; ; try++ {
		err := s.apply(commits, changes)
		if err == nil {
			return changes, nil
		}
		if try == commitTries || !errors.Is(err, keys.ErrUnavailable) || ctx.Err() != nil {
			return nil, err
		}
	}
}

// readRing returns the records of the ring by their sequence numbers, and remembers their versions.
func (s *Store) readRing(ctx context.Context) ([]placed, error) {
	names, err := s.secrets.list(ctx, "log/")
	if err != nil {
		return nil, err
	}
	ring := make([]placed, len(names))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(maxAtOnce)
	for i, name := range names {
		n, err := strconv.ParseUint(name, 10, 8)
		if err != nil || n >= ringSize || "log/"+name != slotName(n) {
			return nil, fmt.Errorf("the log holds something else: %w", kv.ErrIntegrity)
		}
		g.Go(func() error {
			sec, err := s.secrets.read(ctx, "log/"+name)
			if err != nil {
				return err
			}
			if sec == nil {
				return fmt.Errorf("a commit is listed but not there: %w", kv.ErrIntegrity)
			}
			r, err := decodeRecord(sec)
			if err == nil && (r.Seq == 0 || r.Seq%ringSize != n) {
				err = fmt.Errorf("a commit lies in another's place: %w", kv.ErrIntegrity)
			}
			ring[i] = placed{r, sec.version}
			s.commits.versions[n] = sec.version
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	slices.SortFunc(ring, func(a, b placed) int { return int(a.Seq) - int(b.Seq) })
	for i := range ring {
		// The ring is filled in turn, so it holds the newest commits without a gap, or all there ever were.
		if i > 0 && (ring[i].Seq != ring[i-1].Seq+1 || ring[i].Fence < ring[i-1].Fence) || i == 0 && len(ring) < ringSize && ring[i].Seq != 1 {
			return nil, fmt.Errorf("the log has a gap: %w", kv.ErrIntegrity)
		}
	}
	return ring, nil
}

// unapplied returns the commits that are still to be carried over, and those whose writes are still to be
// taken out of the log.
func (s *Store) unapplied(ctx context.Context, ring []placed) ([]*commit, error) {
	applied := uint64(0) // a record that is done says that all before it are applied
	for _, p := range ring {
		if p.Done {
			applied = p.Seq
		}
	}
	var commits []*commit
	for _, p := range ring {
		if p.Done {
			continue
		}
		c := &commit{record: p.record}
		if p.Seq > applied {
			tx := p.Tx
			for n := range p.Parts {
				sec, err := s.secrets.read(ctx, partName(p.ID, n))
				if err != nil {
					return nil, err
				}
				if sec == nil {
					return nil, errBadCommit
				}
				var piece part
				if err := decodeSecret(sec, &piece, func() int { return piece.F }); err != nil {
					return nil, err
				}
				tx = append(tx, piece.Tx...)
			}
			if sumOf(tx) != p.Sum {
				return nil, errBadCommit
			}
			err := decodeWrites(tx,
				func(key string, value []byte) {
					c.writes = append(c.writes, write{key: key, is: &cell{value: value, seq: c.Seq}})
				},
				func(key string) { c.writes = append(c.writes, write{key: key}) })
			if err != nil {
				return nil, err
			}
		}
		c.Tx = nil
		commits = append(commits, c)
	}
	return commits, nil
}

// loadKeys lists all rows. Their values come when they are asked for.
func (s *Store) loadKeys(ctx context.Context) error {
	shards, err := s.secrets.list(ctx, "rows/")
	if err != nil {
		return err
	}
	listed := make([][]string, len(shards))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(maxAtOnce)
	for i, shard := range shards {
		if !strings.HasSuffix(shard, "/") {
			return fmt.Errorf("a row's name is not one of ours: %w", kv.ErrIntegrity)
		}
		g.Go(func() (err error) {
			listed[i], err = s.secrets.list(gctx, "rows/"+shard)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for i, names := range listed {
		for _, name := range names {
			key, err := keyOf(strings.TrimSuffix(shards[i], "/"), name)
			if err != nil {
				return err
			}
			s.rows.Set(item{key, new(cell)})
		}
	}
	return nil
}
