package nbd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Defaults of ServerOptions.
const (
	DefaultMaxClients       = 1024
	DefaultHandshakeTimeout = 10 * time.Second
	DefaultMaxInFlight      = 256
	DefaultMaxInFlightBytes = 128 << 20
	DefaultMaxBytes         = 1 << 30
)

// acceptRetry is the pause after a listener failed for want of something (descriptors, most often).
const acceptRetry = 50 * time.Millisecond

// ErrServerClosed is returned by Serve after Close or Shutdown.
var ErrServerClosed = errors.New("nbd: server closed")

// ServerOptions say what a Server does. Zero values of numbers mean the defaults.
type ServerOptions struct {
	Exporter Exporter

	MaxClients          int           // connections in all, handshakes included; further ones are closed at once
	MaxClientsPerExport int           // attached connections of one export name; 0 is no limit of its own
	HandshakeTimeout    time.Duration // from accept to the end of the handshake
	MaxInFlight         int           // requests of one connection, at least 128
	MaxInFlightBytes    int64         // payload of one connection's requests, at least 64 MiB
	// MaxBytes is the payload of all connections' requests together. When it is used up, by clients that do not read
	// their replies for instance, every connection goes on with one request at a time.
	MaxBytes int64

	TLS TLSOptions

	// MaxUnread closes a connection when its reader comes back from back-pressure (a Submit that took long, or a wait
	// for replies to leave) after more than this. What the client sent meanwhile may be old: a client that gave up and
	// repeated it on another connection must not have the original ordered after the repetition. Sessions that have a name
	// are spared: their next attachment fences the one before. 0 turns it off.
	MaxUnread time.Duration

	// OnEvent is told what happens; it must not block. nil is allowed.
	OnEvent func(Event)
}

// Validate fills in defaults and checks the rest.
func (o *ServerOptions) Validate() error {
	if o.Exporter == nil {
		return errors.New("nbd: ServerOptions.Exporter is missing")
	}
	if o.MaxClients == 0 {
		o.MaxClients = DefaultMaxClients
	}
	if o.HandshakeTimeout == 0 {
		o.HandshakeTimeout = DefaultHandshakeTimeout
	}
	if o.MaxInFlight == 0 {
		o.MaxInFlight = DefaultMaxInFlight
	}
	if o.MaxInFlightBytes == 0 {
		o.MaxInFlightBytes = DefaultMaxInFlightBytes
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = max(DefaultMaxBytes, o.MaxInFlightBytes)
	}
	if o.OnEvent == nil {
		o.OnEvent = func(Event) {}
	}
	switch {
	case o.MaxClients < 1:
		return fmt.Errorf("nbd: MaxClients is %d, must be at least 1", o.MaxClients)
	case o.MaxClientsPerExport < 0:
		return fmt.Errorf("nbd: MaxClientsPerExport is %d, must not be negative", o.MaxClientsPerExport)
	case o.HandshakeTimeout < 0 || o.MaxUnread < 0:
		return fmt.Errorf("nbd: HandshakeTimeout is %v and MaxUnread %v, must not be negative", o.HandshakeTimeout, o.MaxUnread)
	case o.MaxInFlight < 128:
		return fmt.Errorf("nbd: MaxInFlight is %d, must be at least 128", o.MaxInFlight)
	case o.MaxInFlightBytes < maxPayloadBytes:
		return fmt.Errorf("nbd: MaxInFlightBytes is %d, must be at least %d, the largest request", o.MaxInFlightBytes, maxPayloadBytes)
	case o.MaxBytes < o.MaxInFlightBytes:
		return fmt.Errorf("nbd: MaxBytes is %d, must be at least MaxInFlightBytes, %d", o.MaxBytes, o.MaxInFlightBytes)
	}
	return nil
}

// Stats are totals since the server was made. A connection adds to them once per burst.
type Stats struct {
	Clients      int    // now
	InFlight     int64  // payload of requests, in bytes, now
	Requests     uint64 // given to devices
	BytesRead    uint64
	BytesWritten uint64
}

// Server serves exports to NBD clients.
type Server struct {
	opts         ServerOptions
	certificates *certificates // nil: no TLS
	pool         buffers

	requests, bytesRead, bytesWritten atomic.Uint64

	inFlight atomic.Int64 // bytes admitted and not released, of all connections

	// ctx ends when Close is called; it is given to the Exporter and to Device.Attach.
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup // one for each connection

	// mu guards everything below.
	mu        sync.Mutex
	stopping  bool // no new connections
	listeners map[net.Listener]struct{}
	conns     map[*conn]struct{}
	attached  map[string]int // connections in transmission, by export name
	meters    map[string]*meter
}

// NewServer makes a server that listens nowhere yet.
func NewServer(opts ServerOptions) (*Server, error) {
	if err := opts.Validate(); err != nil {
		return nil, err
	}
	certificates, err := newCertificates(opts.TLS, true)
	if err != nil {
		return nil, err
	}
	s := &Server{
		opts: opts, certificates: certificates,
		listeners: make(map[net.Listener]struct{}),
		conns:     make(map[*conn]struct{}),
		attached:  make(map[string]int),
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s, nil
}

// Serve accepts clients until the server is closed, and closes the listener then. It returns ErrServerClosed, or why
// the listener does not work any more.
func (s *Server) Serve(l net.Listener) error {
	defer l.Close()
	s.mu.Lock()
	if s.stopping {
		s.mu.Unlock()
		return ErrServerClosed
	}
	s.listeners[l] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.listeners, l)
		s.mu.Unlock()
	}()
	for {
		nc, err := l.Accept()
		if err == nil {
			s.start(nc)
			continue
		}
		if s.isStopping() {
			return ErrServerClosed
		}
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("nbd: accept: %w", err)
		}
		s.opts.OnEvent(Event{Kind: EventAcceptFailed, Client: l.Addr().String(), Err: err})
		select {
		case <-time.After(acceptRetry):
		case <-s.ctx.Done():
			return ErrServerClosed
		}
	}
}

// ServeConn serves one client on a connection that was made elsewhere (a socket pair, say), handshake and all, and
// returns when it is gone.
func (s *Server) ServeConn(nc net.Conn) {
	if c, err := s.admit(nc); err == nil {
		c.serve()
	}
}

// ServeTransmission serves one client on a connection whose handshake is taken as done: the kernel's end of a socket
// pair. Structured replies are off; Export.Info has what the client must know. It returns when the client is gone.
func (s *Server) ServeTransmission(nc net.Conn, e Export) error {
	c, err := s.admit(nc)
	if err != nil {
		return err
	}
	return c.serveAttached(e)
}

// Stats gives the totals.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	clients := len(s.conns)
	s.mu.Unlock()
	return Stats{
		Clients: clients, InFlight: s.inFlight.Load(), Requests: s.requests.Load(),
		BytesRead: s.bytesRead.Load(), BytesWritten: s.bytesWritten.Load(),
	}
}

// start serves a client in a goroutine, which ends with the connection: Close and Shutdown see to that.
func (s *Server) start(nc net.Conn) {
	if c, err := s.admit(nc); err == nil {
		go c.serve()
	}
}

// admit takes a connection on, or closes it, tells OnEvent and returns why.
func (s *Server) admit(nc net.Conn) (*conn, error) {
	client := peerName(nc)
	c, err := s.register(nc, client)
	if err != nil {
		nc.Close()
		s.opts.OnEvent(Event{Kind: EventRefused, Client: client, Err: err})
	}
	return c, err
}

func (s *Server) register(nc net.Conn, client string) (*conn, error) {
	sock, err := newSocket(nc)
	if err != nil {
		return nil, fmt.Errorf("nbd: client %s: %w", client, err)
	}
	c := newConn(s, sock, client)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping {
		return nil, ErrServerClosed
	}
	if len(s.conns) >= s.opts.MaxClients {
		return nil, fmt.Errorf("nbd: there are %d clients already; raise MaxClients or look for clients that leak connections", len(s.conns))
	}
	s.conns[c] = struct{}{}
	s.wg.Add(1)
	return c, nil
}

// forget is the last that a connection does.
func (s *Server) forget(c *conn) {
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
	s.wg.Done()
}

// reserve counts a connection to its export, if the limit allows it.
func (s *Server) reserve(export string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := s.attached[export]; s.opts.MaxClientsPerExport > 0 && n >= s.opts.MaxClientsPerExport {
		return fmt.Errorf("export %q has %d clients already", export, n)
	}
	s.attached[export]++
	return nil
}

func (s *Server) release(export string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.attached[export]--; s.attached[export] == 0 {
		delete(s.attached, export)
	}
}

func (s *Server) isStopping() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stopping
}

// Shutdown takes no new clients and no new requests, waits until the requests that it has are answered, and closes the
// connections. When ctx ends first, it goes on as Close and returns the context's error.
func (s *Server) Shutdown(ctx context.Context) error {
	s.stop(func(c *conn) { c.stopReading() })
	done := make(chan struct{})
	go func() { // ends when the last connection does, which Close below makes sure of
		s.wg.Wait()
		close(done)
	}()
	select {
	case <-done:
		s.cancel()
		return nil
	case <-ctx.Done():
		s.Close()
		<-done
		return fmt.Errorf("nbd: shutdown: %w", ctx.Err())
	}
}

// Close ends the server at once: connections are cut, their sessions closed. It returns when all is over.
func (s *Server) Close() error {
	s.cancel()
	s.stop(func(c *conn) { c.kill(ErrServerClosed) })
	s.wg.Wait()
	return nil
}

// stop closes the listeners and does something to each connection.
func (s *Server) stop(each func(*conn)) {
	s.mu.Lock()
	s.stopping = true
	for l := range s.listeners {
		l.Close()
	}
	conns := make([]*conn, 0, len(s.conns))
	for c := range s.conns {
		conns = append(conns, c)
	}
	s.mu.Unlock()
	for _, c := range conns {
		each(c)
	}
}

// peerName is who is at the other end, for people. A unix socket's peer has no name.
func peerName(nc net.Conn) string {
	if a := nc.RemoteAddr(); a != nil && a.String() != "" {
		return a.String()
	}
	return "local"
}
