package keyring

import (
	"bytes"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// cache keeps unwrapped bundles: at most size of them, each for at most ttl since it was unwrapped. An
// entry is found only by who shows the very row that it was unwrapped from, just read from the key store;
// so erasing or changing the row ends the entry at once, on every node, whatever the ttl.
type cache struct {
	ttl  time.Duration
	now  func() time.Time
	used atomic.Uint64 // counts who asked or put something in, so that an epoch sees that it is not alone

	mu  sync.Mutex // guards lru
	lru *simplelru.LRU[uuid.UUID, cached]
}

type cached struct {
	row     []byte
	next    []byte // the same bundle, wrapped again; nil: it was not, since it is here
	bundle  *bundle
	expires time.Time
}

func newCache(size int, ttl time.Duration, now func() time.Time) (*cache, error) {
	lru, err := simplelru.NewLRU[uuid.UUID, cached](size, nil)
	if err != nil {
		return nil, err
	}
	return &cache{ttl: ttl, now: now, lru: lru}, nil
}

// get returns the bundle of subject if it was unwrapped from row, else nil.
func (c *cache) get(subject uuid.UUID, row []byte, now time.Time) *bundle {
	c.used.Add(1)
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.lru.Get(subject)
	if !ok {
		return nil
	}
	if !now.Before(e.expires) || !bytes.Equal(e.row, row) && (e.next == nil || !bytes.Equal(e.next, row)) {
		c.lru.Remove(subject)
		return nil
	}
	return e.bundle
}

// put keeps b. It keeps row as well.
func (c *cache) put(subject uuid.UUID, row []byte, b *bundle) {
	c.used.Add(1)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lru.Add(subject, cached{row: row, bundle: b, expires: c.now().Add(c.ttl)})
}

// move lets a bundle that was unwrapped from row serve who shows next as well: the same bundle wrapped again, which
// is about to take row's place. Until then nobody can show it. It keeps next, and does not prolong the entry.
func (c *cache) move(subject uuid.UUID, row, next []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.lru.Peek(subject)
	switch {
	case !ok:
		return
	case e.next != nil && bytes.Equal(e.next, row):
		e.row = row
	case !bytes.Equal(e.row, row):
		return
	}
	e.next = next
	c.lru.Add(subject, e)
}

// replace is put for a subject that the cache holds; of others it keeps nothing, so that a rotation of everybody
// does not drive out those who are asked for. It keeps row as well.
func (c *cache) replace(subject uuid.UUID, row []byte, b *bundle) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lru.Contains(subject) {
		c.lru.Add(subject, cached{row: row, bundle: b, expires: c.now().Add(c.ttl)})
	}
}

// shed lets a bundle that was unwrapped from row serve who shows next, without its older keys: next has taken row's
// place. It keeps next, and does not prolong the entry.
func (c *cache) shed(subject uuid.UUID, row, next []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.lru.Peek(subject)
	if !ok || !bytes.Equal(e.row, row) && (e.next == nil || !bytes.Equal(e.next, row)) {
		return
	}
	c.lru.Add(subject, cached{row: next, bundle: e.bundle.newestOnly(), expires: e.expires})
}

func (c *cache) drop(subject uuid.UUID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lru.Remove(subject)
}

// sweep drops what has expired, so that a key which nobody asks for does not stay in memory.
func (c *cache) sweep() {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	for _, subject := range c.lru.Keys() {
		if e, ok := c.lru.Peek(subject); ok && !now.Before(e.expires) {
			c.lru.Remove(subject)
		}
	}
}

func (c *cache) purge() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lru.Purge()
}

func (c *cache) len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lru.Len()
}
