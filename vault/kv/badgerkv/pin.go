package badgerkv

import (
	"errors"
	"fmt"
	"time"

	"github.com/dgraph-io/badger/v4"

	"github.com/prototypster/pdvault/vault/kv"
)

// pin holds a reference to each table, and to the memtables with their logs.
type pin struct {
	txn *badger.Txn
	it  *badger.Iterator
}

func newPin(txn *badger.Txn) *pin {
	return &pin{txn: txn, it: txn.NewIterator(badger.IteratorOptions{AllVersions: true})}
}

// renew keeps the transaction that pins are made of young, and the pin too: an old one keeps the engine from dropping
// versions that nobody can see, and its list of commits long.
func (c *compactions) renew() {
	tick := time.NewTicker(renewInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-c.quit:
			return
		}
		txn := c.db.NewTransaction(false)
		c.mu.Lock()
		old := c.ready
		c.ready = txn
		if c.pin != nil {
			c.repin()
		}
		if c.pin == nil || c.pin.txn != old {
			old.Discard()
		}
		c.mu.Unlock()
	}
}

// repin takes a younger pin in the place of one. It must hold the input too, which it does if the MANIFEST, that is changed
// before the input is dropped, does not show the compaction after the younger pin was taken.
func (c *compactions) repin() {
	next := newPin(c.ready)
	s, _, err := c.base.look()
	if err == nil {
		if v, done := c.expect().judge(s); v == untouched && done == 0 {
			c.pin, next = next, c.pin
		}
	}
	c.release(next)
}

func (c *compactions) release(p *pin) {
	p.it.Close()
	if p.txn != c.ready {
		p.txn.Discard()
	}
}

// shut closes the engine, or leaves it as it is: when a compaction must not go on, and when it does not close in time. The
// process is about to end then, and the next start finds no marker and takes the way of an unclean stop.
func (c *compactions) shut() error {
	closed := make(chan error, 1)
	go func() { closed <- c.closeEngine() }()
	watchdog := time.NewTimer(closeTimeout)
	defer watchdog.Stop()
	select {
	case err := <-closed:
		return err
	case <-c.ended:
		return c.whyLeft()
	case <-watchdog.C:
		return fmt.Errorf("badgerkv: engine did not close within %s", closeTimeout)
	}
}

// closeEngine closes the engine. It still compacts, but takes no new references, so one is taken before: it holds all
// tables, and the logs of all that will be flushed. Whatever compactions lose from then on can be put back from these.
func (c *compactions) closeEngine() error {
	close(c.quit)
	c.running.Wait()
	if !c.insist("the engine cannot be closed", c.hold) {
		return c.whyLeft()
	}
	c.at("held")
	err := c.db.Close()
	c.verifier.forget()
	if c.hasEnded() {
		return errors.Join(c.whyLeft(), err)
	}
	if err == nil {
		c.mu.Lock()
		err = c.rebase()
		c.mu.Unlock()
	}
	return err
}

var (
	errLeftOpen   = fmt.Errorf("badgerkv: the engine is left as it is after a failed compaction: %w", kv.ErrIntegrity)
	errLeftNoRoom = fmt.Errorf("badgerkv: the engine is left as it is, since a compaction waits for room on the disk; nothing is lost: %w", kv.ErrStorageFull)
)

// whyLeft is called when ended is closed.
func (c *compactions) whyLeft() error {
	if c.noRoom {
		return errLeftNoRoom
	}
	return errLeftOpen
}

// hold is called with mu held.
func (c *compactions) hold() error {
	if c.closing {
		return nil
	}
	for c.under.Load() != nil {
		if c.turn.Wait(); c.hasEnded() {
			return errLeftOpen
		}
	}
	c.ready.Discard()
	c.ready = c.db.NewTransaction(false)
	for {
		if err := c.rebase(); err != nil {
			return err
		}
		held := newPin(c.ready)
		// What was flushed in between is a table that base does not list, and no log any more that could be held.
		now, err := stampOf(c.base.path)
		if err == nil && now == *c.seen.Load() {
			c.pin, c.closing = held, true
			c.turn.Broadcast()
			return nil
		}
		held.it.Close()
		if err != nil {
			return err
		}
	}
}

// compactorsStopped is called while the engine closes.
func (c *compactions) compactorsStopped() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closing || c.hasEnded() || c.pin == nil {
		return
	}
	c.pin.it.Close()
	c.pin.txn.Discard()
	c.pin = nil
}
