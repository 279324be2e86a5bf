package cluster

import (
	"io"
	"net"
	"sync"
)

// Relay passes connections on to an address, and can be cut: then it is a network that loses everything, to whoever
// comes by it and to nobody else.
type Relay struct {
	to   string
	l    net.Listener
	done sync.WaitGroup

	// mu guards everything below.
	mu    sync.Mutex
	cut   bool
	conns map[net.Conn]struct{} // both ends of each connection
}

// NewRelay listens on the loopback interface. Close ends it.
func NewRelay(to string) (*Relay, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &Relay{to: to, l: l, conns: make(map[net.Conn]struct{})}
	r.done.Go(func() { // ends by Close
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			r.done.Go(func() { r.serve(c) })
		}
	})
	return r, nil
}

// Addr is where the relay listens.
func (r *Relay) Addr() string { return r.l.Addr().String() }

// serve passes one connection on. It ends when either side does, or by Cut, Mend or Close.
func (r *Relay) serve(c net.Conn) {
	defer r.drop(c)
	if !r.keep(c) {
		_, _ = io.Copy(io.Discard, c) // it is cut: nobody answers
		return
	}
	there, err := net.Dial("tcp", r.to)
	if err != nil {
		return
	}
	defer r.drop(there)
	if !r.keep(there) {
		return
	}
	r.done.Go(func() {
		_, _ = io.Copy(there, c)
		r.drop(there)
	})
	_, _ = io.Copy(c, there)
}

// keep notes a connection, to be closed when the relay's state changes. It is false while the relay is cut.
func (r *Relay) keep(c net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.conns[c] = struct{}{}
	return !r.cut
}

func (r *Relay) drop(c net.Conn) {
	c.Close()
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.conns, c)
}

// Cut makes the relay lose everything; Mend makes it a relay again. What was connected is not any more.
func (r *Relay) Cut()  { r.set(true) }
func (r *Relay) Mend() { r.set(false) }

func (r *Relay) set(cut bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cut = cut
	for c := range r.conns {
		c.Close()
	}
}

// Close ends the relay and its connections.
func (r *Relay) Close() {
	r.l.Close()
	r.set(true)
	r.done.Wait()
}
