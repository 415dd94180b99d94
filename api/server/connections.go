package server

import (
	"container/list"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"
)

const (
	// silentFor is how long a connection is left alone that has never had a request, since a handshake over a distance
	// takes its time; and quietFor one that has: who uses one all the time has none for a moment between two, and to
	// close it then would make a new one of every request.
	silentFor = 500 * time.Millisecond
	quietFor  = time.Second
	// sparePace is the time between two spare connections. What is refused must not take the processor from what is
	// served; who comes faster waits in the kernel's queue.
	sparePace = time.Millisecond
)

// connections bounds how many are open. When all are taken a new one takes the place of the one that has sent no
// whole head for the longest: a client that only holds connections shuts nobody out. When every connection is in use,
// as many again are taken, spare ones, whose requests are told that the server is busy unless there is room by then.
// What comes beyond is closed.
type connections struct {
	net.Listener
	limit   int // and that of spare ones
	open    prometheus.Gauge
	evicted prometheus.Counter
	closed  prometheus.Counter // those that were closed unanswered

	mu     sync.Mutex
	all    map[net.Conn]*connection
	spares int // of all
	// Lists of *connection without a request, the one that became so first at the front: that have never had one,
	// that have, and of the spare ones.
	silent, quiet, waits *list.List
}

func newConnections(l net.Listener, limit int, m *Metrics) *connections {
	return &connections{
		Listener: l, limit: limit, open: m.connections, evicted: m.evicted, closed: m.shed.WithLabelValues("connections"),
		all: make(map[net.Conn]*connection), silent: list.New(), quiet: list.New(), waits: list.New(),
	}
}

// connection is one of connections.
type connection struct {
	net.Conn
	owner *connections
	spare bool          // beyond the limit; guarded by owner.mu
	used  bool          // has had a request; guarded by owner.mu
	since time.Time     // when it became quiet; guarded by owner.mu
	quiet *list.Element // in a list of the owner; nil while a request is under way; guarded by owner.mu
}

// Accept returns the next connection that is to be served.
func (c *connections) Accept() (net.Conn, error) {
	for {
		conn, err := c.Listener.Accept()
		if err != nil {
			return nil, err
		}
		n := c.admit(conn)
		switch {
		case n == nil:
			c.closed.Inc()
			_ = conn.Close() // nothing was said on it
		case !n.spare:
			return n, nil
		}
		time.Sleep(sparePace)
		if n != nil {
			return n, nil
		}
	}
}

// admit returns conn as one of ours, or nil when there is no room for it.
func (c *connections) admit(conn net.Conn) *connection {
	n := &connection{Conn: conn, owner: c}
	c.mu.Lock()
	var evicted *connection
	if !c.roomLocked() {
		if evicted = c.makeRoomLocked(); evicted == nil {
			n.spare = true
		}
	}
	if n.spare && c.spares >= c.limit {
		if evicted = evictable(c.waits, silentFor); evicted == nil {
			c.mu.Unlock()
			return nil
		}
		c.removeLocked(evicted)
	}
	c.all[n] = n
	if n.spare {
		c.spares++
	}
	c.quietenLocked(n)
	c.open.Set(float64(len(c.all)))
	c.mu.Unlock()
	c.shut(evicted)
	return n
}

func (c *connections) roomLocked() bool { return len(c.all)-c.spares < c.limit }

// makeRoomLocked takes out a connection that is not in use; nil when all are.
func (c *connections) makeRoomLocked() *connection {
	n := evictable(c.silent, silentFor)
	if n == nil {
		n = evictable(c.quiet, quietFor)
	}
	if n != nil {
		c.removeLocked(n)
	}
	return n
}

// evictable finds the connection that has been in the list for the longest; nil when none has been for long enough. One
// that has sent something which is not read yet is not quiet, but waits for the processor.
func evictable(from *list.List, since time.Duration) *connection {
	const looks = 16 // a system call each
	e := from.Front()
	for range looks {
		if e == nil || time.Since(e.Value.(*connection).since) < since {
			return nil
		}
		if n := e.Value.(*connection); n.unread() == 0 {
			return n
		}
		e = e.Next()
	}
	return nil
}

// unread returns how many bytes have come that nobody has read; 0 when the kernel does not tell.
func (n *connection) unread() (bytes int) {
	s, ok := n.Conn.(syscall.Conn)
	if !ok {
		return 0
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return 0
	}
	if e := raw.Control(func(fd uintptr) { bytes, err = unix.IoctlGetInt(int(fd), unix.TIOCINQ) }); e != nil || err != nil {
		return 0
	}
	return bytes
}

// shut closes a connection that was taken out, if there is one.
func (c *connections) shut(n *connection) {
	if n != nil {
		c.evicted.Inc()
		_ = n.Conn.Close() // its goroutine sees the error and ends
	}
}

func (c *connections) listOf(n *connection) *list.List {
	switch {
	case n.spare:
		return c.waits
	case n.used:
		return c.quiet
	}
	return c.silent
}

func (c *connections) quietenLocked(n *connection) {
	if n.quiet == nil {
		n.since, n.quiet = time.Now(), c.listOf(n).PushBack(n)
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
	var evicted *connection
	switch {
	case c.all[n] == nil: // closed already
	case s == http.StateActive:
		c.rouseLocked(n)
		n.used = true
		if !n.spare {
			break
		}
		if !c.roomLocked() {
			evicted = c.makeRoomLocked()
		}
		if c.roomLocked() {
			n.spare = false
			c.spares--
		}
	case s == http.StateIdle:
		c.quietenLocked(n)
	}
	c.mu.Unlock()
	c.shut(evicted)
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
