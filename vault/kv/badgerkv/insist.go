package badgerkv

import (
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/prototypster/pdvault/vault/kv"
)

func (c *compactions) hasEnded() bool {
	select {
	case <-c.ended:
		return true
	default:
		return false
	}
}

// insist calls fn with mu held until it succeeds. It ends the store if that does not happen in time: nothing has been lost
// until then, since the compaction waits. For room on the disk it waits without an end, unless a commit waits for it, and
// all readers for that: a start on the full disk is better.
func (c *compactions) insist(what string, fn func() error) bool {
	var until, remind time.Time
	hurried := false
	for {
		c.mu.Lock()
		stuck, err := c.hasEnded(), error(nil)
		if !stuck {
			err = fn()
		}
		c.mu.Unlock()
		if stuck {
			return false
		}
		if err == nil {
			return true
		}
		noRoom := errors.Is(err, syscall.ENOSPC) && !c.stalled()
		switch {
		case noRoom:
			until = time.Time{}
		case until.IsZero():
			until = time.Now().Add(c.limit)
		}
		late := !noRoom && time.Now().After(until) || errors.Is(err, kv.ErrIntegrity)
		if !late {
			if time.Now().After(remind) {
				remind = time.Now().Add(remindInterval)
				c.log.Warn(what+", trying again", "error", err)
			}
			select {
			case <-time.After(insistInterval):
			case <-c.hurry:
				if !hurried { // it may have become possible meanwhile
					hurried = true
					continue
				}
				if errors.Is(err, syscall.ENOSPC) {
					c.leave()
					return false
				}
				late = true
			}
		}
		if late {
			c.end(fmt.Errorf("badgerkv: %s: %w", what, err))
			return false
		}
	}
}

// stalled reports whether a commit may be waiting for a compaction: one is on its way, and level 0 is full.
func (c *compactions) stalled() bool {
	c.mu.Lock()
	commits := c.commits
	c.mu.Unlock()
	return commits != nil && commits() && c.db.Levels()[0].NumTables >= stallTables
}

// serve is called when the store can be written to.
func (c *compactions) serve(commits func() bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.commits = commits
}

// leave ends the store, which is being closed, since a compaction has no room to go on. Its input stays, as when the process
// is killed, and the next start goes on with it or undoes it.
func (c *compactions) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.turn.Broadcast()
	c.once.Do(func() {
		c.noRoom = true
		close(c.ended)
	})
}

// end ends the store. The engine must not compact any more, nor be closed, which would delete what is still held.
func (c *compactions) end(err error) error {
	c.mu.Lock()
	first := !c.hasEnded()
	if first && c.under.Load() != nil && !errors.Is(err, syscall.ENOSPC) {
		_ = c.record() // so that the next Open undoes it, or knows that it was right
	}
	c.turn.Broadcast()
	c.mu.Unlock()
	if first {
		err = c.fail(err)
		c.once.Do(func() { close(c.ended) })
	}
	return err
}

// park keeps a compaction from going on, until the process ends.
func (c *compactions) park() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		c.turn.Wait()
	}
}
