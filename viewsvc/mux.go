package viewsvc

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// Limits of the listening address.
const (
	maxConnections   = 4096             // more are closed at once
	greetingTimeout  = 10 * time.Second // by then a connection has sent its first byte
	acceptRetryDelay = 20 * time.Millisecond
)

// raftGreeting begins a connection between view servers. No HTTP request begins with its first byte. Part of the
// protocol; never change it.
const raftGreeting = "\xc5LS-RAFT1"

// mux lets Raft and HTTP share one listening address: a view server is one HOST:PORT to everybody.
type mux struct {
	ln   net.Listener
	done chan struct{}
	http *lane
	raft *lane
	wg   sync.WaitGroup

	mu    sync.Mutex
	conns map[*muxConn]struct{}
}

func newMux(ln net.Listener) *mux {
	m := &mux{ln: ln, done: make(chan struct{}), conns: map[*muxConn]struct{}{}}
	m.http = newLane(m)
	m.raft = newLane(m)
	m.wg.Go(m.accept) // ends by Close
	return m
}

// Close closes the address and every connection, and waits for the mux's goroutines.
func (m *mux) Close() {
	m.mu.Lock()
	select {
	case <-m.done:
		m.mu.Unlock()
		return
	default:
	}
	close(m.done)
	m.http.Close()
	m.raft.Close()
	open := make([]*muxConn, 0, len(m.conns))
	for c := range m.conns {
		open = append(open, c)
	}
	m.mu.Unlock()
	m.ln.Close()
	for _, c := range open {
		c.Close()
	}
	m.wg.Wait()
}

func (m *mux) accept() {
	for {
		conn, err := m.ln.Accept()
		if err != nil {
			select {
			case <-m.done:
				return
			case <-time.After(acceptRetryDelay): // out of descriptors, most likely
				continue
			}
		}
		c := &muxConn{Conn: conn, mux: m}
		if !m.admit(c) {
			conn.Close()
			continue
		}
		m.wg.Go(func() { m.greet(c) }) // ends by the connection, greetingTimeout or Close
	}
}

func (m *mux) admit(c *muxConn) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	select {
	case <-m.done:
		return false
	default:
	}
	if len(m.conns) >= maxConnections {
		return false
	}
	m.conns[c] = struct{}{}
	return true
}

// greet reads as little as tells whose connection it is.
func (m *mux) greet(c *muxConn) {
	greeting := make([]byte, len(raftGreeting))
	c.SetReadDeadline(time.Now().Add(greetingTimeout))
	if _, err := io.ReadFull(c, greeting[:1]); err != nil {
		c.Close()
		return
	}
	l := m.http
	if greeting[0] == raftGreeting[0] {
		if _, err := io.ReadFull(c, greeting[1:]); err != nil || string(greeting) != raftGreeting {
			c.Close()
			return
		}
		l = m.raft
	} else {
		c.first, c.hasFirst = greeting[0], true
	}
	c.SetReadDeadline(time.Time{})
	select {
	case l.conns <- c:
	case <-l.done:
		c.Close()
	}
}

// muxConn is an accepted connection. It knows which node pings over it.
type muxConn struct {
	net.Conn
	mux      *mux
	first    byte // was read to tell the lane; only the reader touches it
	hasFirst bool
	pinger   atomic.Pointer[pinger]
	closed   atomic.Bool
}

// pinger is the process that pings over a connection.
type pinger struct {
	node        NodeID
	incarnation string
}

func (c *muxConn) Read(p []byte) (int, error) {
	if c.hasFirst && len(p) > 0 {
		p[0], c.hasFirst = c.first, false
		return 1, nil
	}
	return c.Conn.Read(p)
}

func (c *muxConn) Close() error {
	if c.closed.Swap(true) {
		return nil
	}
	c.mux.mu.Lock()
	delete(c.mux.conns, c)
	c.mux.mu.Unlock()
	return c.Conn.Close()
}

// lane is one protocol's share of the address: the net.Listener of the HTTP server, and Raft's StreamLayer.
type lane struct {
	mux   *mux
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newLane(m *mux) *lane {
	return &lane{mux: m, conns: make(chan net.Conn), done: make(chan struct{})}
}

func (l *lane) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, errLaneClosed
	}
}

var errLaneClosed = fmt.Errorf("viewsvc: listener: %w", net.ErrClosed)

// Close ends Accept. It leaves the address to the mux: the other lane may still need it.
func (l *lane) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *lane) Addr() net.Addr { return l.mux.ln.Addr() }

// Dial connects to another view server's Raft.
func (l *lane) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	conn, err := net.DialTimeout("tcp", string(address), timeout)
	if err != nil {
		return nil, err
	}
	conn.SetWriteDeadline(time.Now().Add(timeout))
	_, err = io.WriteString(conn, raftGreeting)
	if err = errors.Join(err, conn.SetWriteDeadline(time.Time{})); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}
