package nbd

import (
	"fmt"
	"net"
	"slices"
	"sync"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"lockstep/blockdev"
)

// Handler gets what comes back on a Conn. Its methods are called by one goroutine at a time, the Conn's own or one that
// is in Poll; they may call the Conn's, and must not block for long, as no reply is read meanwhile.
type Handler interface {
	// Complete hands finished requests back, in no particular order; Err has the result. The slice is the Conn's
	// again on return.
	Complete(done []*blockdev.Request)
	// Closed is called once, last. Requests that were not completed are the submitter's again; whether the server has
	// done them is not known. err is ErrClosed after Close.
	Closed(err error)
}

// Conn is a client's connection in transmission. Methods may be called from many goroutines at once.
type Conn struct {
	info ExportInfo
	in   inbuf
	tls  *clientTLS // nil: not encrypted

	// Fixed when transmission begins.
	structured bool
	context    uint32 // base:allocation, if info.Extents

	handler Handler

	// reading guards the replyReader, in, and done. It comes before mu, and is held while the Handler is called.
	reading sync.Mutex
	replyReader
	done []*blockdev.Request

	slots    []clientSlot
	numbered bool // requests bring their slots (ClientOptions.Numbered)

	outbox
	// The outbox's mu guards these too.
	free    []uint32          // slots without a request
	waiting *blockdev.Request // submitted and without a slot, in order, linked by Scratch.Link
	last    *blockdev.Request
	started bool
}

// clientSlot is room for a request that the server has, or is about to get.
type clientSlot struct {
	message
	req    *blockdev.Request // nil: no answer is due
	cookie uint64            // slot and generation: an answer to an earlier user of the slot is found out

	errno uint32   // of the parts of the answer that came
	got   coverage // of a read
}

func newClientConn(nc net.Conn, opts ClientOptions) (*Conn, error) {
	sock, err := newSocket(nc)
	if err != nil {
		return nil, err
	}
	c := &Conn{
		info: ExportInfo{Name: opts.Export},
		tls:  opts.tls, numbered: opts.Numbered,
		in:    inbuf{src: sock.source(), buf: make([]byte, handshakeBufferBytes)},
		slots: make([]clientSlot, opts.MaxInFlight),
		free:  make([]uint32, opts.MaxInFlight),
		done:  make([]*blockdev.Request, 0, opts.MaxInFlight),
	}
	for i := range c.slots {
		c.slots[i].slot = uint32(i)
		c.free[i] = uint32(len(c.slots) - 1 - i)
	}
	c.outbox.init(sock, c.messageSent)
	return c, nil
}

// shake does the handshake.
func (c *Conn) shake() (err error) {
	h := &clientHandshake{sock: c.sock, in: c.in, tls: c.tls}
	c.info, err = h.enter(c.info.Name)
	c.in, c.structured, c.context = h.in, h.structured, h.context
	return err
}

// Info is what the server said of the export.
func (c *Conn) Info() ExportInfo { return c.info }

// Start begins transmission; it is called once, before Submit.
func (c *Conn) Start(h Handler) {
	c.mu.Lock()
	c.handler, c.started = h, true
	c.initReader()
	c.mu.Unlock()
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() { // ends by stop; kill ends its wait for the socket
		defer close(stopped)
		c.run(stop)
	}()
	go c.receive(stop, stopped) // ends when the connection does
}

// Submit sends requests. It does not block: what the socket does not take now is sent later, and a request that finds
// no slot waits for one; how many are under way in all is for the callers to bound. It returns nil and owns the
// requests, Scratch.Link included, until they are completed or Closed is called; or it returns an error and owns
// nothing. The slice is the caller's again on return.
//
// An OpExtents, in a burst to a server that cannot answer it (ExportInfo.Extents), makes Submit fail with
// ErrNotSupported.
//
// A read's Data is filled, a write's Data is sent from where it is. Ranges are not checked here; the server does that.
func (c *Conn) Submit(burst []*blockdev.Request) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dead != nil || !c.started {
		return ErrClosed
	}
	if !c.info.Extents && slices.ContainsFunc(burst, func(r *blockdev.Request) bool { return r.Op == blockdev.OpExtents }) {
		return fmt.Errorf("nbd: the server has no %s: %w", allocationName, ErrNotSupported)
	}
	for _, r := range burst {
		r.Scratch.Link = nil
		if c.last == nil {
			c.waiting = r
		} else {
			c.last.Scratch.Link = r
		}
		c.last = r
	}
	c.assignLocked()
	c.flushLocked()
	if c.dead != nil {
		// Found out just now. The requests are taken; the reader will come to the same end and say Closed.
		c.sock.Close()
	}
	return nil
}

// Close ends the connection. Handler.Closed is called soon after, if Start was; requests under way are not waited for.
func (c *Conn) Close() error {
	c.mu.Lock()
	polite := c.dead == nil && !c.writing && c.head == nil
	c.dieLocked(ErrClosed)
	c.mu.Unlock()
	if polite {
		// Nobody else writes any more. A server that does not hear it sees the end of the connection.
		var bye [requestHeaderBytes]byte
		encodeRequest(bye[:], protocol.TransmissionRequestHeader{Type: protocol.TRANSMISSION_TYPE_REQUEST_DISC})
		c.sock.lastWords(bye[:])
	}
	c.sock.Close()
	return nil
}

// assignLocked gives waiting requests slots and queues them.
func (c *Conn) assignLocked() {
	for c.waiting != nil {
		r := c.waiting
		s := c.slotLocked(r)
		if s == nil {
			return
		}
		if c.waiting = r.Scratch.Link; c.waiting == nil {
			c.last = nil
		}
		r.Scratch.Link = nil
		s.req = r
		s.errno, s.got = 0, s.got[:0]
		r.Extents = r.Extents[:0] // what an earlier connection said
		kind, flags := command(r)
		encodeRequest(s.header[:], protocol.TransmissionRequestHeader{
			CommandFlags: flags, Type: kind, Handle: s.cookie,
			Offset: r.Offset, Length: r.Length,
		})
		s.headerLen, s.payload = requestHeaderBytes, nil
		if r.Op == blockdev.OpWrite {
			s.payload = r.Data
		}
		c.pushLocked(&s.message)
	}
}

// slotLocked takes a slot for a request, and gives it a cookie that it never had. nil: there is none now.
func (c *Conn) slotLocked(r *blockdev.Request) *clientSlot {
	if c.numbered {
		s := &c.slots[blockdev.RequestSlot(r.ID)]
		switch {
		case s.req != nil || r.ID <= s.cookie:
			panic("nbd: two requests have a number at a time")
		case s.queued: // answered, and its sender does not know yet that it was sent
			return nil
		}
		s.cookie = r.ID
		return s
	}
	if len(c.free) == 0 {
		return nil
	}
	s := &c.slots[c.free[len(c.free)-1]]
	c.free = c.free[:len(c.free)-1]
	s.cookie = blockdev.RequestID(int(s.slot), blockdev.RequestSeq(s.cookie)+1)
	return s
}

// freeLocked gives a slot back.
func (c *Conn) freeLocked(slot uint32) {
	if !c.numbered {
		c.free = append(c.free, slot)
	}
}

// messageSent is called when a request is in the socket. Its answer may have come already.
func (c *Conn) messageSent(m *message) {
	m.payload = nil
	if m.answered {
		// The reader is past this answer: if it was the last one due, nobody else lets the next request in.
		c.freeLocked(m.slot)
		c.assignLocked()
	}
}
