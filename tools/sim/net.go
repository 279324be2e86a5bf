package main

import (
	"context"
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

// hostPair is a direction between two machines.
type hostPair struct{ from, to string }

// network connects machines by connections as TCP has them: bytes arrive in order or not at all, and a broken
// connection takes along what was under way. Where packets are lost, bytes wait until the loss ends.
type network struct {
	w       *world
	blocked map[hostPair]int           // how many faults block this direction
	slow    map[hostPair]time.Duration // added to each delay
	conns   []*endpoint                // one end of each
	reach   time.Duration              // the longest delay of a packet that nothing slows down
	accept  func(to, port string, e *endpoint) acceptance
}

// acceptance is what becomes of a connection attempt.
type acceptance int

const (
	accepted acceptance = iota
	refused             // the machine is there, and nobody listens
	vanished            // there is no machine
)

const dialTimeout = time.Second

// magicVersion is the byte of a message in which the version of the protocol is (wire.go of package replication).
const magicVersion = 3

// hop is how long a packet takes.
func (n *network) hop() time.Duration { return n.w.between(n.reach/10, n.reach) }

func (n *network) delay(from, to string) time.Duration { return n.hop() + n.slow[hostPair{from, to}] }

func (n *network) open(from, to string) bool { return n.blocked[hostPair{from, to}] == 0 }

// packet is bytes or a message; an error ends the connection.
type packet struct {
	data []byte
	msg  any
	err  error
}

// endpoint is one end of a connection.
type endpoint struct {
	n        *network
	p        *proc
	host     string
	peer     *endpoint
	in       []packet
	end      error // nothing comes any more
	closed   bool
	gone     bool // its machine has lost power: it answers nothing
	reader   *coro
	deadline time.Duration // on the world's clock; 0: none
	last     time.Duration // when the last packet to the peer arrives
	stalled  []packet      // to the peer, lost so far
	coming   int           // messages that are on their way here
	foreign  bool          // the processes at the two ends are of different releases
}

// Dial connects to "host:port".
func (n *network) Dial(_ context.Context, p *proc, from, addr string) (*endpoint, error) {
	to, port, _ := net.SplitHostPort(addr)
	p.sleep(n.hop())
	if !n.open(from, to) || !n.open(to, from) {
		p.sleep(dialTimeout)
		return nil, os.ErrDeadlineExceeded
	}
	near, far := &endpoint{n: n, p: p, host: from}, &endpoint{n: n, host: to}
	near.peer, far.peer = far, near
	switch n.accept(to, port, far) {
	case refused:
		p.sleep(n.delay(to, from))
		return nil, syscall.ECONNREFUSED
	case vanished:
		p.sleep(dialTimeout)
		return nil, os.ErrDeadlineExceeded
	case accepted:
	}
	n.conns = append(n.conns, near)
	p.sleep(n.delay(to, from))
	return near, nil
}

// send puts a packet on its way to the peer.
func (e *endpoint) send(p packet) {
	if !e.n.open(e.host, e.peer.host) {
		e.stalled = append(e.stalled, p)
		return
	}
	if len(e.stalled) > 0 { // behind what was lost before
		e.stalled = append(e.stalled, p)
		return
	}
	w := e.n.w
	e.last = max(e.last, w.now+e.n.delay(e.host, e.peer.host))
	if p.msg != nil {
		e.peer.coming++
	}
	w.after(e.last-w.now, func() { e.peer.arrive(p) })
}

func (e *endpoint) arrive(p packet) {
	if p.msg != nil {
		e.coming--
	}
	switch {
	case e.gone:
		return
	case e.closed:
		if p.err == nil { // nobody takes it: the sender is told
			e.n.w.after(e.n.delay(e.host, e.peer.host), func() { e.peer.finish(syscall.ECONNRESET) })
		}
		return
	case e.end != nil:
		return
	case p.err != nil:
		e.finish(p.err)
		return
	}
	e.in = append(e.in, p)
	e.n.w.wake(e.reader)
}

// finish makes reads fail once what has arrived was read, and writes at once.
func (e *endpoint) finish(err error) {
	if e.end == nil && !e.closed {
		e.end = err
		e.n.w.wake(e.reader)
	}
}

// reset breaks a connection: some of what is under way still arrives.
func (e *endpoint) reset() {
	for _, x := range []*endpoint{e, e.peer} {
		x.n.w.after(x.n.w.between(0, 2*x.n.reach), func() { x.finish(syscall.ECONNRESET) })
	}
}

// vanish is the end of the machine that has this end.
func (e *endpoint) vanish() { e.closed, e.gone, e.in, e.stalled = true, true, nil, nil }

// await waits until something has arrived.
func (e *endpoint) await() error {
	w := e.n.w
	for len(e.in) == 0 {
		switch {
		case e.p.dead:
			panic(errKilled)
		case e.closed:
			return net.ErrClosed
		case e.end != nil:
			return e.end
		case e.deadline != 0 && w.now >= e.deadline:
			return os.ErrDeadlineExceeded
		}
		e.reader = w.cur
		var timer *event
		if e.deadline != 0 {
			timer = w.plan(e.deadline-w.now, &event{co: w.cur})
		}
		w.block()
		e.reader = nil
		if timer != nil {
			timer.cancel()
		}
	}
	return nil
}

// Read implements net.Conn.
func (e *endpoint) Read(b []byte) (int, error) {
	if err := e.await(); err != nil {
		return 0, err
	}
	n := copy(b, e.in[0].data)
	if e.in[0].data = e.in[0].data[n:]; len(e.in[0].data) == 0 {
		e.in[0] = packet{}
		e.in = e.in[1:]
	}
	return n, nil
}

// recv takes a message.
func (e *endpoint) recv() (any, error) {
	if err := e.await(); err != nil {
		return nil, err
	}
	m := e.in[0].msg
	e.in = e.in[1:]
	return m, nil
}

// Write implements net.Conn. It never waits: the socket's buffer is as large as it takes.
func (e *endpoint) Write(b []byte) (int, error) {
	switch {
	case e.closed || e.p != nil && e.p.dead:
		return 0, net.ErrClosed
	case e.end != nil && e.end != io.EOF:
		return 0, e.end
	}
	data := append([]byte(nil), b...)
	if e.foreign {
		data[magicVersion]++
	}
	e.send(packet{data: data})
	return len(b), nil
}

// post sends a message.
func (e *endpoint) post(m any) {
	if !e.closed && e.end == nil && !e.p.dead {
		e.send(packet{msg: m})
	}
}

// Close implements net.Conn.
func (e *endpoint) Close() error {
	if e.closed || e.p.dead {
		return nil
	}
	e.closed = true
	e.in = nil
	e.send(packet{err: io.EOF})
	e.n.w.wake(e.reader)
	return nil
}

// SetDeadline implements net.Conn.
func (e *endpoint) SetDeadline(t time.Time) error { return e.SetReadDeadline(t) }

// SetReadDeadline implements net.Conn.
func (e *endpoint) SetReadDeadline(t time.Time) error {
	if e.deadline = 0; !t.IsZero() {
		e.deadline = e.n.w.now + e.p.real(t.Sub(e.p.Now()))
	}
	return nil
}

// SetWriteDeadline implements net.Conn. Writes do not wait.
func (e *endpoint) SetWriteDeadline(time.Time) error { return nil }

// LocalAddr implements net.Conn.
func (e *endpoint) LocalAddr() net.Addr { return simAddr(e.host) }

// RemoteAddr implements net.Conn.
func (e *endpoint) RemoteAddr() net.Addr { return simAddr(e.peer.host) }

type simAddr string

func (a simAddr) Network() string { return "sim" }
func (a simAddr) String() string  { return string(a) }

// block begins to lose what goes in one direction; unblock ends that.
func (n *network) block(from, to string) { n.blocked[hostPair{from, to}]++ }

func (n *network) unblock(from, to string) {
	if n.blocked[hostPair{from, to}]--; n.blocked[hostPair{from, to}] > 0 {
		return
	}
	for _, e := range n.live() {
		for _, x := range []*endpoint{e, e.peer} {
			if x.host != from || x.peer.host != to || len(x.stalled) == 0 {
				continue
			}
			if n.w.one(3) { // it was lost for too long
				x.stalled = nil
				x.reset()
				continue
			}
			late := x.stalled
			x.stalled = nil
			for _, p := range late {
				x.send(p)
			}
		}
	}
}

// live lists the connections that are not closed at both ends.
func (n *network) live() []*endpoint {
	open := n.conns[:0]
	for _, e := range n.conns {
		if !(e.closed || e.end != nil) || !(e.peer.closed || e.peer.end != nil) {
			open = append(open, e)
		}
	}
	clear(n.conns[len(open):])
	n.conns = open
	return open
}

// drop ends all connections of a process: its kernel resets them, or its machine is gone.
func (n *network) drop(p *proc, power bool) {
	for _, e := range n.live() {
		for _, x := range []*endpoint{e, e.peer} {
			if x.p != p || x.closed {
				continue
			}
			if power {
				x.vanish()
				continue
			}
			x.send(packet{err: syscall.ECONNRESET})
			x.closed = true
		}
	}
}

// back makes the machine answer again: connections that it does not know are reset.
func (n *network) back(host string) {
	for _, e := range n.live() {
		for _, x := range []*endpoint{e, e.peer} {
			if x.host == host && x.gone {
				x.gone = false
			}
		}
	}
}
