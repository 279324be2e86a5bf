package replication

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"lockstep/viewsvc"
)

// memNet is a network in memory between replicas. It keeps the order of bytes within a connection and takes a while to
// deliver them; what it can do besides is what networks do: cut a direction off (bytes wait, as in a sender that goes on
// retransmitting), and break a connection at one end while the other end is still given what was under way. Its time is
// the test's: within testing/synctest nothing here takes any.
type memNet struct {
	mu        sync.Mutex // guards everything below, and everything of the connections
	listeners map[viewsvc.ReplicaID]*memListener
	cut       map[[2]viewsvc.ReplicaID]bool // from, to
	conns     []*memConn                    // dialers' ends
	sent      map[[2]viewsvc.ReplicaID]int  // from, to: bytes
}

const memLatency = 50 * time.Microsecond

func newMemNet() *memNet {
	return &memNet{listeners: map[viewsvc.ReplicaID]*memListener{}, cut: map[[2]viewsvc.ReplicaID]bool{},
		sent: map[[2]viewsvc.ReplicaID]int{}}
}

// bytes is how much one replica has sent another so far.
func (n *memNet) bytes(from, to viewsvc.ReplicaID) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.sent[[2]viewsvc.ReplicaID{from, to}]
}

// setCut cuts a direction off, or heals it.
func (n *memNet) setCut(from, to viewsvc.ReplicaID, cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[[2]viewsvc.ReplicaID{from, to}] = cut
	for _, c := range n.conns {
		c.changed.Broadcast()
		c.peer.changed.Broadcast()
	}
}

// isolate cuts a replica off from others in both directions, or heals that.
func (n *memNet) isolate(id viewsvc.ReplicaID, cut bool) {
	for _, other := range groupIDs {
		n.setCut(id, other, cut)
		n.setCut(other, id, cut)
	}
}

// sever breaks the connections from one replica to another at the dialer's end only. What it had sent arrives as late as
// said.
func (n *memNet) sever(from, to viewsvc.ReplicaID, late time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range n.conns {
		if c.local != from || c.remote != to || c.broken != nil {
			continue
		}
		c.broken = syscall.ECONNRESET
		at := time.Now().Add(late)
		for i := range c.peer.in {
			c.peer.in[i].at = at
		}
		c.peer.push(nil, at) // the end comes behind it
		c.changed.Broadcast()
	}
}

func (n *memNet) listen(id viewsvc.ReplicaID) *memListener {
	l := &memListener{net: n, id: id, accepted: make(chan net.Conn, 64), closed: make(chan struct{})}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.listeners[id] = l
	return l
}

// dial reaches a replica by its name, which is its address.
func (n *memNet) dial(ctx context.Context, from viewsvc.ReplicaID, addr string) (net.Conn, error) {
	to := viewsvc.ReplicaID(addr)
	n.mu.Lock()
	cut := n.cut[[2]viewsvc.ReplicaID{from, to}] || n.cut[[2]viewsvc.ReplicaID{to, from}]
	l := n.listeners[to]
	n.mu.Unlock()
	if cut {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(dialTimeout):
			return nil, os.ErrDeadlineExceeded
		}
	}
	if l == nil || l.isClosed() {
		return nil, &net.OpError{Op: "dial", Net: "mem", Err: syscall.ECONNREFUSED}
	}
	a, b := &memConn{net: n, local: from, remote: to}, &memConn{net: n, local: to, remote: from}
	a.peer, b.peer = b, a
	a.changed, b.changed = sync.NewCond(&n.mu), sync.NewCond(&n.mu)
	n.mu.Lock()
	n.conns = append(n.conns, a)
	n.mu.Unlock()
	select {
	case l.accepted <- b:
		return a, nil
	case <-l.closed:
		return nil, syscall.ECONNREFUSED
	}
}

type memListener struct {
	net      *memNet
	id       viewsvc.ReplicaID
	accepted chan net.Conn
	closed   chan struct{}
	once     sync.Once
}

func (l *memListener) isClosed() bool {
	select {
	case <-l.closed:
		return true
	default:
		return false
	}
}

func (l *memListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.accepted:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *memListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *memListener) Addr() net.Addr { return memAddr(l.id) }

type memAddr viewsvc.ReplicaID

func (memAddr) Network() string  { return "mem" }
func (a memAddr) String() string { return string(a) }

// memSegment is what one write sent. nil data is the end of the stream.
type memSegment struct {
	data []byte
	at   time.Time
}

type memConn struct {
	net           *memNet
	local, remote viewsvc.ReplicaID
	peer          *memConn
	changed       *sync.Cond
	in            []memSegment
	broken        error // of this end
	ended         bool  // the end of the stream was read
	deadline      time.Time
}

func (c *memConn) push(data []byte, at time.Time) {
	c.in = append(c.in, memSegment{data, at})
	c.changed.Broadcast()
}

func (c *memConn) Read(b []byte) (int, error) {
	n := c.net
	n.mu.Lock()
	defer n.mu.Unlock()
	for {
		now := time.Now()
		switch {
		case c.broken != nil:
			return 0, c.broken
		case c.ended:
			return 0, io.EOF
		case !c.deadline.IsZero() && !now.Before(c.deadline):
			return 0, os.ErrDeadlineExceeded
		}
		wake := c.deadline
		if len(c.in) > 0 && !n.cut[[2]viewsvc.ReplicaID{c.remote, c.local}] {
			s := &c.in[0]
			switch {
			case now.Before(s.at):
				if wake.IsZero() || s.at.Before(wake) {
					wake = s.at
				}
			case s.data == nil:
				c.ended = true
				return 0, io.EOF
			default:
				k := copy(b, s.data)
				if s.data = s.data[k:]; len(s.data) == 0 {
					c.in = c.in[1:]
				}
				return k, nil
			}
		}
		var t *time.Timer
		if !wake.IsZero() {
			t = time.AfterFunc(wake.Sub(now), func() {
				n.mu.Lock()
				defer n.mu.Unlock()
				c.changed.Broadcast()
			})
		}
		c.changed.Wait()
		if t != nil {
			t.Stop()
		}
	}
}

func (c *memConn) Write(b []byte) (int, error) {
	n := c.net
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case c.broken != nil:
		return 0, c.broken
	case c.peer.broken != nil && !n.cut[[2]viewsvc.ReplicaID{c.remote, c.local}]:
		return 0, syscall.EPIPE
	case len(b) > 0:
		n.sent[[2]viewsvc.ReplicaID{c.local, c.remote}] += len(b)
		c.peer.push(append([]byte(nil), b...), time.Now().Add(memLatency))
	}
	return len(b), nil
}

func (c *memConn) Close() error {
	n := c.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if c.broken == nil {
		c.broken = net.ErrClosed
		c.peer.push(nil, time.Now().Add(memLatency))
		c.changed.Broadcast()
	}
	return nil
}

func (c *memConn) LocalAddr() net.Addr  { return memAddr(c.local) }
func (c *memConn) RemoteAddr() net.Addr { return memAddr(c.remote) }

func (c *memConn) SetReadDeadline(t time.Time) error {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	c.deadline = t
	c.changed.Broadcast()
	return nil
}

func (c *memConn) SetDeadline(t time.Time) error    { return c.SetReadDeadline(t) }
func (c *memConn) SetWriteDeadline(time.Time) error { return nil }

var (
	errNoAnswer = errors.New("view service: no answer")
	errDisk     = syscall.EIO
	errNoSpace  = syscall.ENOSPC
)
