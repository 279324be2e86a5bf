package nbd

import (
	"errors"
	"fmt"
	"time"

	"lockstep/blockdev"
)

// How long and how many replies are held back while the reader is in Session.Submit. A Submit that blocks, on
// back-pressure, must not keep the replies of others for long.
const (
	holdTime    = 100 * time.Microsecond
	holdReplies = 64
)

// Complete sends the replies of finished requests. It implements blockdev.Client.
func (c *conn) Complete(done []*blockdev.Request) {
	var closed error
	c.mu.Lock()
	for _, r := range done {
		t := &c.tickets[r.Tag]
		if &t.req != r || !t.inDevice {
			panic(fmt.Sprintf("nbd: device completed a request that it does not have: %v at %d", r.Op, r.Offset))
		}
		t.inDevice = false
		if r.Err != nil && errors.Is(r.Err, blockdev.ErrSessionClosed) {
			closed = r.Err // N4
			break
		}
		c.replyLocked(t, errnoOf(r.Op, r.Err))
	}
	switch {
	case closed != nil:
		c.dieLocked(closed) // before the others of the batch leave: the client retries them all alike
	case c.holding && c.stillHoldLocked(len(done)):
	default:
		c.flushLocked()
	}
	c.mu.Unlock()
	if closed != nil {
		c.kill(closed)
	}
}

// stillHoldLocked counts n replies against what is held back.
func (c *conn) stillHoldLocked(n int) bool {
	c.held += n
	if c.held >= holdReplies || time.Since(c.heldAt) > holdTime {
		c.held = 0
		return false
	}
	return true
}

// Abort closes the connection without an answer to anything (N4). It implements blockdev.Client.
func (c *conn) Abort(reason error) {
	if reason == nil {
		reason = blockdev.ErrSessionClosed
	}
	c.kill(reason)
}

// replyLocked queues a request's reply.
func (c *conn) replyLocked(t *ticket, errno uint32) {
	m := &t.message
	m.payload = nil
	switch {
	case t.req.Op != blockdev.OpRead:
		m.headerLen = encodeSimpleReply(m.header[:], t.cookie, errno)
	case errno != 0 && c.structured:
		m.headerLen = encodeErrorChunk(m.header[:], t.cookie, errno)
	case errno != 0:
		m.headerLen = encodeSimpleReply(m.header[:], t.cookie, errno)
	default:
		if c.structured {
			m.headerLen = encodeDataChunk(m.header[:], t.cookie, t.req.Offset, t.req.Length)
		} else {
			m.headerLen = encodeSimpleReply(m.header[:], t.cookie, 0)
		}
		m.payload = t.req.Data
	}
	c.pushLocked(m)
}

// ticketSent frees a ticket whose reply is in the socket.
func (c *conn) ticketSent(m *message) {
	t := &c.tickets[m.slot]
	if t.buf != nil {
		c.srv.pool.put(t.buf)
		t.buf, t.req.Data, m.payload = nil, nil, nil
	}
	c.free = append(c.free, m.slot)
	c.released += t.bytes
	c.returned++
	if c.waiting {
		c.changed.Signal()
	}
}
