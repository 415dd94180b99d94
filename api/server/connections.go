package server

import (
	"container/list"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// connections bounds how many are open. When all are taken a new one takes the place of the one that has sent no
// whole head for the longest: a client that only holds connections shuts nobody out. When every connection has a
// request under way, as many again are taken, spare ones, whose requests are told that the server is busy. What comes
// beyond is closed.
type connections struct {
	net.Listener
	limit   int // and that of spare ones
	open    prometheus.Gauge
	evicted prometheus.Counter
	closed  prometheus.Counter // those that were closed unanswered

	mu     sync.Mutex
	all    map[net.Conn]*connection
	spares int        // of all
	quiet  *list.List // of *connection without a request, the one that became so first at the front
	waits  *list.List // the same of spare ones
}

func newConnections(l net.Listener, limit int, m *Metrics) *connections {
	return &connections{
		Listener: l, limit: limit, open: m.connections, evicted: m.evicted, closed: m.shed.WithLabelValues("connections"),
		all: make(map[net.Conn]*connection), quiet: list.New(), waits: list.New(),
	}
}

// connection is one of connections.
type connection struct {
	net.Conn
	owner *connections
	spare bool          // beyond the limit; guarded by owner.mu
	quiet *list.Element // in a list of the owner; nil while a request is under way; guarded by owner.mu
}

// Accept returns the next connection that is to be served.
func (c *connections) Accept() (net.Conn, error) {
	for {
		conn, err := c.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if admitted := c.admit(conn); admitted != nil {
			return admitted, nil
		}
		c.closed.Inc()
		_ = conn.Close() // nothing was said on it
	}
}

// admit returns conn as one of ours, or nil when there is no room for it.
func (c *connections) admit(conn net.Conn) net.Conn {
	n := &connection{Conn: conn, owner: c}
	c.mu.Lock()
	var evict *connection
	if full := len(c.all)-c.spares >= c.limit; full {
		if evict = first(c.quiet); evict == nil {
			n.spare = true
			if c.spares >= c.limit {
				evict = first(c.waits)
			}
		}
	}
	if evict != nil {
		c.removeLocked(evict)
	}
	if n.spare && c.spares >= c.limit {
		c.mu.Unlock()
		return nil
	}
	c.all[n] = n
	if n.spare {
		c.spares++
	}
	c.quietenLocked(n)
	c.open.Set(float64(len(c.all)))
	c.mu.Unlock()
	if evict != nil {
		c.evicted.Inc()
		_ = evict.Conn.Close() // its goroutine sees the error and ends
	}
	return n
}

func first(l *list.List) *connection {
	if front := l.Front(); front != nil {
		return front.Value.(*connection)
	}
	return nil
}

func (c *connections) listOf(n *connection) *list.List {
	if n.spare {
		return c.waits
	}
	return c.quiet
}

func (c *connections) quietenLocked(n *connection) {
	if n.quiet == nil {
		n.quiet = c.listOf(n).PushBack(n)
	}
}

func (c *connections) rouseLocked(n *connection) {
	if n.quiet != nil {
		c.listOf(n).Remove(n.quiet)
		n.quiet = nil
	}
}

func (c *connections) removeLocked(n *connection) {
	if c.all[n] == nil {
		return
	}
	c.rouseLocked(n)
	delete(c.all, n)
	if n.spare {
		c.spares--
	}
	c.open.Set(float64(len(c.all)))
}

// state is the ConnState of net/http, which calls a connection active once it has read a whole head.
func (c *connections) state(conn net.Conn, s http.ConnState) {
	n := connectionOf(conn)
	if n == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all[n] == nil {
		return // closed already
	}
	switch s {
	case http.StateActive:
		c.rouseLocked(n)
		if n.spare && len(c.all)-c.spares < c.limit { // there is room meanwhile
			n.spare = false
			c.spares--
		}
	case http.StateIdle:
		c.quietenLocked(n)
	}
}

// Close gives the place of the connection to another.
func (n *connection) Close() error {
	n.owner.mu.Lock()
	n.owner.removeLocked(n)
	n.owner.mu.Unlock()
	return n.Conn.Close()
}

// CloseWrite is for net/http, which says goodbye before it closes.
func (n *connection) CloseWrite() error {
	if half, ok := n.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return errors.ErrUnsupported
}

// connectionOf finds ours below TLS; nil when there is none.
func connectionOf(conn net.Conn) *connection {
	if t, ok := conn.(*tls.Conn); ok {
		conn = t.NetConn()
	}
	n, _ := conn.(*connection)
	return n
}

type spareKey struct{}

// context lets requests over a connection that was spare find it.
func (c *connections) context(ctx context.Context, conn net.Conn) context.Context {
	n := connectionOf(conn)
	if n == nil {
		return ctx
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !n.spare {
		return ctx
	}
	return context.WithValue(ctx, spareKey{}, n)
}

// onSpare reports whether a request came over a spare connection.
func onSpare(ctx context.Context) bool {
	n, ok := ctx.Value(spareKey{}).(*connection)
	if !ok {
		return false
	}
	n.owner.mu.Lock()
	defer n.owner.mu.Unlock()
	return n.spare
}
