package badgerkv

import (
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/table"

	"github.com/prototypster/pdvault/vault/kv"
)

const (
	renewInterval  = 200 * time.Millisecond // how far compactions lag in dropping what nobody can see any more
	insistTime     = 30 * time.Second       // a compaction can wait so long; then writers would have to
	insistInterval = 100 * time.Millisecond
	remindInterval = time.Minute // between the messages of one that waits for room
	attachTime     = time.Minute // that the engine may take to open while a compaction waits
)

// compactions watches the engine's compactions. Badger v4.9.6 drops the error of a table that a compaction could not write
// (levels.go, subcompact: defer evaluates the error before there is one), lists what it has made, and deletes what it has
// read: what was in it is "not found", or an older value. So, for each compaction:
//
//  1. Before it writes its first table, all tables get a reference: an iterator over everything. The engine deletes a table
//     with its last reference, so that the input stays. (A hard link does not help: the engine empties the file first.)
//  2. Before it changes the MANIFEST, how many tables it makes is written to unfinishedFile.
//  3. Once it has changed the MANIFEST, and before anybody gets what was read since, the two are compared. Less was
//     listed than announced: the process ends, and the next Open undoes the compaction.
//  4. When it is over, its input is verified: the engine has read it without that, and has given new checksums to what it
//     read. If it was damaged, the process ends, and the next Open refuses. What it has made is read back and verified too;
//     if that is damaged, the next Open undoes it. Reads are compared with the input until then.
//  5. When all is right, the record and the references go.
//
// Badger tells of these moments only in its log, which it calls within the compaction; see [engineLog]. Compactions run
// one at a time, since not all of these messages say whose they are.
type compactions struct {
	dir   string
	log   *slog.Logger
	room  func() error  // whether there is room for another compaction
	limit time.Duration // of what compactions wait for, but for room
	fail  func(error) error
	hooks hooks

	verifier *verifier

	under atomic.Pointer[compaction] // the one that is not known to be right; read by each Get
	seen  atomic.Pointer[stamp]      // of the MANIFEST that was last found to be right

	mu       sync.Mutex // guards everything below
	turn     *sync.Cond // under, attached, ended or closing has changed
	attached bool       // db can be used
	closing  bool
	db       *badger.DB
	commits  func() bool   // whether one is on its way; nil: none can be yet
	ready    *badger.Txn   // for pins: beginning one may have to wait for a commit, which may wait for a compaction
	pin      *pin          // while a compaction is under way, and from the beginning of closing
	base     *manifestView // as at the beginning of the pin
	before   []int         // while closing: what the compactions before this one announced
	recorded []int         // is on the disk

	quit, hurry chan struct{}
	running     sync.WaitGroup // until quit is closed
	ended       chan struct{}  // closed when no compaction may go on and the engine must be left as it is
	once        sync.Once      // closes ended
	noRoom      bool           // is why it was closed
}

// compaction is one that is under way.
type compaction struct {
	id      int  // of the compactor
	outputs int  // announced so far
	right   bool // guarded by mu
}

func newCompactions(o Options, fail func(error) error) *compactions {
	c := &compactions{
		dir: o.Dir, log: o.Logger, room: o.room, limit: insistTime, fail: fail, hooks: o.hooks,
		quit: make(chan struct{}), hurry: make(chan struct{}), ended: make(chan struct{}),
	}
	if o.hooks.impatient {
		c.limit = 0
	}
	c.turn = sync.NewCond(&c.mu)
	c.verifier = newVerifier(o.Dir, c.sound)
	return c
}

// attach gives it the engine. Compactions may have begun before; they wait for it.
func (c *compactions) attach(db *badger.DB) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var err error
	if c.base, err = viewManifest(c.dir); err != nil {
		return err
	}
	c.db, c.ready, c.attached = db, db.NewTransaction(false), true
	c.turn.Broadcast()
	c.running.Go(c.renew)
	c.running.Go(c.keepUp)
	return nil
}

// hasten makes compactions that wait for the disk give up, so that the store can close.
func (c *compactions) hasten() { close(c.hurry) }

// announce is called before each table of a compaction is written, and with no keys when none will be.
func (c *compactions) announce(id int, keys uint64) {
	late := time.AfterFunc(attachTime, c.giveUpAttaching)
	defer late.Stop()
	first := false
	ok := c.insist("a compaction cannot be prepared", func() error {
		for c.hasEnded() || !c.attached || c.under.Load() != nil && c.under.Load().id != id {
			c.turn.Wait()
		}
		if c.under.Load() == nil {
			if err := c.begin(id); err != nil {
				return err
			}
			first = true
		}
		if keys > 0 {
			c.under.Load().outputs++
		}
		return nil
	})
	if !ok {
		c.park()
	}
	// Answers are compared with its input until it is known to be right.
	if first && !c.insist("tables cannot be read", c.refresh) {
		c.park()
	}
	c.at("announced")
}

// sound lists the tables that are flushed, or made by compactions that are right. While one is under way, the tables that it
// reads are listed.
func (c *compactions) sound() (map[uint64]listed, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, _, err := c.base.look()
	if err != nil {
		return nil, err
	}
	if x := c.under.Load(); x == nil || x.right {
		return s.tables, nil
	}
	tables := maps.Clone(c.base.tables)
	for _, set := range s.sets {
		if len(set.deleted) == 0 {
			set.apply(tables)
		}
	}
	return tables, nil
}

// refresh is called with mu held, and lets go of it meanwhile.
func (c *compactions) refresh() error {
	if c.closing { // nobody reads any more
		return nil
	}
	c.mu.Unlock()
	defer c.mu.Lock()
	set, err := c.verifier.refresh()
	if err == nil && set.damaged {
		return fmt.Errorf("badgerkv: the index of a table is damaged: %w", kv.ErrIntegrity)
	}
	select {
	case <-c.hurry: // nobody reads for much longer, and whoever does looks for the set of then
		return nil
	default:
		return err
	}
}

// keepUp has answers compared with new tables too.
func (c *compactions) keepUp() {
	tick := time.NewTicker(renewInterval)
	defer tick.Stop()
	var seen stamp
	var remind time.Time
	for {
		select {
		case <-tick.C:
		case <-c.quit:
			return
		}
		now, err := stampOf(c.base.path)
		if err == nil && now == seen && c.under.Load() == nil {
			continue
		}
		if err == nil {
			_, err = c.verifier.refresh()
		}
		if err == nil {
			seen = now
		} else if time.Now().After(remind) {
			remind = time.Now().Add(remindInterval)
			c.log.Warn("new tables cannot be compared with what the engine answers", "error", err)
		}
	}
}

// input are the tables that the MANIFEST has lost since compactions began, as far as they are held. It is called with mu
// held.
func (c *compactions) input() (ids []uint64, err error) {
	s, _, err := c.base.look()
	if err != nil {
		return nil, err
	}
	for id := range c.base.tables {
		if _, ok := s.tables[id]; ok {
			continue
		}
		if c.closing && id == c.base.flushed { // it was just being flushed when the references were taken
			if size, err := fileSize(filepath.Join(c.dir, table.IDToFilename(id))); err != nil || size == 0 {
				continue
			}
		}
		ids = append(ids, id)
	}
	return ids, nil
}

// output are the tables that compactions have made since they began. It is called with mu held.
func (c *compactions) output() ([]uint64, error) {
	s, _, err := c.base.look()
	if err != nil {
		return nil, err
	}
	return slices.Collect(maps.Keys(c.expect().made(s))), nil
}

func (c *compactions) giveUpAttaching() {
	c.mu.Lock()
	late := !c.attached
	c.mu.Unlock()
	if late {
		c.end(errors.New("badgerkv: the engine waits for a compaction while it opens"))
	}
}

// begin is called with mu held.
func (c *compactions) begin(id int) error {
	if err := c.room(); err != nil {
		return err
	}
	if err := c.rebase(); err != nil {
		return err
	}
	if !c.closing {
		c.pin = newPin(c.ready)
	}
	c.recorded = nil
	c.under.Store(&compaction{id: id})
	return nil
}

// rebase makes base what the MANIFEST is now, but while closing, and looks for compactions that were not announced.
func (c *compactions) rebase() error {
	s, raw, err := c.base.look()
	if err != nil {
		return err
	}
	u := unfinished{Tables: c.base.tables, Announced: c.before}
	if v, done := u.judge(s); done != len(c.before) || v == short {
		return errUnannounced
	}
	if !c.closing {
		c.base.follow(s, raw)
	}
	c.seen.Store(&s.stamp)
	return nil
}

var errUnannounced = fmt.Errorf("badgerkv: a compaction was not announced: its input is damaged, or the engine is another one: %w", kv.ErrIntegrity)

// expect is called with mu held: what is to be found in the MANIFEST since base.
func (c *compactions) expect() unfinished {
	announced := slices.Clone(c.before)
	if x := c.under.Load(); x != nil {
		announced = append(announced, x.outputs)
	}
	return unfinished{
		Tables: c.base.tables, Size: c.base.size, Sum: hex.EncodeToString(c.base.sum.Sum(nil)),
		Announced: announced, Closing: c.closing, Flushed: c.base.flushed,
	}
}

// count is called at the end of each sub-compaction, when all its tables were announced. Not before the last one of a
// compaction has returned from here is the MANIFEST changed.
func (c *compactions) count() {
	if !c.insist("a compaction cannot be recorded", c.record) {
		c.park()
	}
	c.at("counted")
}

func (c *compactions) record() error {
	if c.under.Load() == nil {
		return errUnannounced // the engine announces what it can read: nothing of this one's input
	}
	u := c.expect()
	if slices.Equal(u.Announced, c.recorded) {
		return nil
	}
	// What the record calls the MANIFEST must be on the disk before it.
	if err := syncFile(c.base.path); err != nil {
		return err
	}
	data, err := encodeUnfinished(u)
	if err != nil {
		return err
	}
	if err := replaceDurably(c.dir, unfinishedFile, data, nil); err != nil {
		return err
	}
	c.recorded = u.Announced
	return nil
}

// done is called when the compaction is over.
func (c *compactions) done(id int) {
	c.at("done")
	ok := c.insist("the input of a compaction cannot be verified", func() error { return c.verify(c.input, auditInput) })
	ok = ok && c.insist("what a compaction has made cannot be verified", func() error { return c.verify(c.output, auditOutput) })
	ok = ok && c.insist("a compaction cannot be checked", func() error {
		x := c.under.Load()
		if x == nil || x.id != id {
			return errUnannounced
		}
		done, err := c.check()
		if err == nil && done != len(c.before)+1 {
			err = fmt.Errorf("badgerkv: a compaction is not in %s: %w", badger.ManifestFilename, kv.ErrIntegrity)
		}
		x.right = err == nil
		return err
	})
	// Answers are compared with what it has made before its input goes.
	ok = ok && c.insist("tables cannot be read", c.refresh)
	if !ok || !c.insist("a compaction cannot be ended", c.finish) {
		c.park() // or the engine could be closed while its directory is looked at
	}
}

// verify is called with mu held, and lets go of it meanwhile: it reads all of the tables that are listed.
func (c *compactions) verify(list func() ([]uint64, error), audit func(dir string, ids []uint64) error) error {
	ids, err := list()
	if err != nil {
		return err
	}
	c.mu.Unlock()
	defer c.mu.Lock()
	return audit(c.dir, ids)
}

// finish is called with mu held, for a compaction that is right.
func (c *compactions) finish() error {
	if c.closing {
		c.before = append(c.before, c.under.Load().outputs)
	} else {
		s, raw, err := c.base.look()
		if err != nil {
			return err
		}
		c.base.follow(s, raw)
	}
	// If the record stays, the next Open finds that all is right.
	if err := os.Remove(filepath.Join(c.dir, unfinishedFile)); err != nil {
		c.log.Warn("record of a compaction cannot be removed", "error", err)
	}
	c.under.Store(nil)
	c.turn.Broadcast()
	if !c.closing {
		c.release(c.pin)
		c.pin = nil
	}
	return nil
}

// failed is called when the engine has given up a compaction, in memory and on the disk to different extents.
func (c *compactions) failed(id int, cause error) {
	if x := c.under.Load(); x != nil && x.id == id {
		c.end(fmt.Errorf("badgerkv: compaction failed: %w", cause))
		c.park()
	}
}

var errShort = fmt.Errorf("badgerkv: a compaction has not written all that it had read; the next start undoes it: %w", kv.ErrIntegrity)

// check is called with mu held, while a compaction is under way. It returns how many the MANIFEST shows.
func (c *compactions) check() (done int, err error) {
	s, _, err := c.base.look()
	if err != nil {
		return 0, err
	}
	v, done := c.expect().judge(s)
	if v == short {
		return done, errShort
	}
	c.seen.Store(&s.stamp)
	return done, nil
}

// gate is called with what was read in hand. It is an error if that may rest on a compaction that is not right: the engine
// reads from its output as soon as the MANIFEST shows it.
func (c *compactions) gate() error {
	if c.under.Load() == nil {
		return nil
	}
	now, err := stampOf(filepath.Join(c.dir, badger.ManifestFilename))
	if err != nil {
		return err
	}
	// Without the lock, which is held while the disk is waited for.
	if seen := c.seen.Load(); seen != nil && now == *seen && !c.hasEnded() {
		return nil
	}
	c.mu.Lock()
	if c.under.Load() == nil && !c.hasEnded() {
		c.mu.Unlock()
		return nil
	}
	_, err = c.check()
	stuck := c.hasEnded()
	c.mu.Unlock()
	switch {
	case errors.Is(err, errShort):
		return c.end(err)
	case err == nil && stuck:
		return fmt.Errorf("badgerkv: stopped after a failed compaction: %w", kv.ErrIntegrity)
	}
	return err
}

func (c *compactions) at(point string) {
	if c.hooks.compacting != nil {
		c.hooks.compacting(point)
	}
}
