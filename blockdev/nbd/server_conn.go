package nbd

import (
	"cmp"
	"context"
	"errors"
	"io"
	"time"

	"lockstep/blockdev"
)

const (
	handshakeBufferBytes = 4 << 10
	// readBufferBytes is how much one read takes at most, and so how long a burst gets.
	readBufferBytes = 256 << 10
	// directBytes is the payload from which on the missing part is read into its own buffer. Less is read through the
	// connection's buffer, which brings the requests behind it along.
	directBytes = 64 << 10
)

// Why a connection ends, beside what goes wrong.
var (
	errDisconnected = errors.New("nbd: client disconnected") // as it should: DISC
	errStopped      = errors.New("nbd: server is shutting down")
	errUnread       = errors.New("nbd: connection was not read for too long, what is in it may be stale; the client may reconnect")
)

// ticket is a request of a connection, from its header to its reply. It is its slot's for ever.
type ticket struct {
	message
	req      blockdev.Request
	cookie   uint64
	flags    uint16  // of the command
	buf      *buffer // payload of a read or a write, descriptors of a block status
	bytes    int64   // counted against MaxInFlightBytes
	inDevice bool    // between Submit and Complete
	began    time.Duration
	parts    []message // of a reply with holes: all but the last, which is the ticket's own
	extents  *extents  // room for the result of a block status
}

// conn is a server's connection to a client. Its goroutine does the handshake, then reads requests; a second one, the
// writer, sends what the socket does not take at once.
type conn struct {
	srv    *Server
	client string
	in     inbuf

	// Fixed when transmission begins.
	export     Export
	info       ExportInfo
	session    blockdev.Session
	meter      *meter
	structured bool
	extents    bool // base:allocation was negotiated

	// The reader's own.
	noZeroes  bool
	fixed     bool // the client knows of more options than EXPORT_NAME
	encrypted bool
	meta      *string             // the name that base:allocation was selected for; nil if it is not
	burst     []*blockdev.Request // parsed, not submitted
	replied   bool                // the reader has queued replies that submit is to send
	spare     []uint32            // slots that are free
	taken     uint64              // tickets ever taken
	admitted  int64               // bytes of all tickets ever taken
	seen      int64               // released, as the reader knows it
	counts    Event               // totals
	stale     bool                // what the client has sent since may be too old to be ordered (MaxUnread)

	burstRead, burstWritten uint64 // bytes of the burst

	// tickets never moves: its Requests are known to the device.
	tickets []ticket

	outbox
	// The outbox's mu guards these too.
	free      []uint32 // slots that spare gets next
	released  int64    // bytes of all tickets ever freed
	returned  uint64   // tickets ever freed
	waiting   bool     // the reader waits for changed
	holding   bool     // the reader is in Session.Submit
	held      int      // replies held back meanwhile
	heldBytes int      // data of the requests that they answer
	heldAt    time.Time
}

func newConn(s *Server, sock *socket, client string) *conn {
	c := &conn{srv: s, client: client}
	c.in = inbuf{src: sock.source(), buf: make([]byte, handshakeBufferBytes)}
	c.outbox.init(sock, c.ticketSent)
	return c
}

// serve is the connection's goroutine.
func (c *conn) serve() {
	defer c.srv.forget(c)
	c.setDeadline(time.Now().Add(c.srv.opts.HandshakeTimeout))
	if err := c.handshake(); err != nil {
		c.kill(err)
		c.srv.opts.OnEvent(Event{Kind: EventHandshakeFailed, Client: c.client, Export: c.export.Name, Err: err})
		return
	}
	if c.session == nil { // ABORT: the client only asked for information
		c.kill(errDisconnected)
		return
	}
	c.setDeadline(time.Time{})
	c.transmit()
}

// serveAttached is serve without a handshake.
func (c *conn) serveAttached(e Export) error {
	defer c.srv.forget(c)
	ctx, cancel := context.WithTimeout(c.srv.ctx, c.srv.opts.HandshakeTimeout)
	defer cancel()
	c.export, c.info = e, e.Info()
	if err := c.attach(ctx); err != nil {
		c.kill(err)
		return err
	}
	c.transmit()
	return nil
}

// attach begins the session: from here on, transmit must run, or abandon be called.
func (c *conn) attach(ctx context.Context) error {
	if err := c.srv.reserve(c.export.Name); err != nil {
		return err
	}
	c.meter = c.srv.meterOf(c.export.Name)
	n := c.srv.opts.MaxInFlight
	c.tickets = make([]ticket, n)
	c.spare = make([]uint32, 0, n)
	c.free = make([]uint32, 0, n)
	c.burst = make([]*blockdev.Request, 0, n)
	for i := range c.tickets {
		t := &c.tickets[i]
		t.slot, t.req.Tag = uint32(i), uint64(i)
		c.spare = append(c.spare, uint32(i))
	}
	session, err := c.export.Device.Attach(ctx, c.export.Session, c)
	if err != nil {
		c.srv.release(c.export.Name)
		return err
	}
	c.session = session
	return nil
}

// abandon ends a session whose client never heard of it.
func (c *conn) abandon(reason error) {
	c.kill(reason)
	c.session.Close()
	c.srv.release(c.export.Name)
}

// transmit serves requests until the end of the connection.
func (c *conn) transmit() {
	defer c.srv.release(c.export.Name)
	c.in.resize(readBufferBytes)
	c.srv.opts.OnEvent(Event{Kind: EventAttached, Client: c.client, Export: c.export.Name})

	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() { // ends by stop; kill ends its wait for the socket
		defer close(stopped)
		c.run(stop)
	}()
	err := c.read()
	switch {
	case err == nil, errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, errStopped):
		c.drain() // N5
		c.sock.lastWords(nil)
	}
	c.kill(cmp.Or(err, errDisconnected))
	c.session.Close()

	// N6: the session is fenced, so no Complete will come. One that has come may still be sending.
	c.mu.Lock()
	for c.writing {
		c.changed.Wait()
	}
	err = c.dead // whatever came first: the reader may have met the consequence only
	c.srv.inFlight.Add(c.released - c.admitted)
	c.mu.Unlock()
	close(stop)
	<-stopped
	for i := range c.tickets {
		c.tickets[i].letGo(&c.srv.pool)
	}
	if err == errDisconnected {
		err = nil
	}
	ended := c.counts
	ended.Kind, ended.Client, ended.Export, ended.Err = EventDetached, c.client, c.export.Name, err
	c.srv.opts.OnEvent(ended)
}

// setDeadline bounds reads and writes, and does not undo what Shutdown did.
func (c *conn) setDeadline(t time.Time) {
	c.sock.SetDeadline(t)
	if c.srv.isStopping() {
		c.stopReading()
	}
}

// stopReading makes the reader take no further request (Shutdown).
func (c *conn) stopReading() { c.sock.SetReadDeadline(time.Unix(1, 0)) }
