package nbd

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"lockstep/blockdev"
)

// How long, how many and how large replies are held back while the reader is in Session.Submit. A Submit that blocks, on
// back-pressure, must not keep the replies of others for long; and data is best sent while it is in the processor's cache.
const (
	holdTime    = 100 * time.Microsecond
	holdReplies = 8 // the client works on these while the next are made
	holdBytes   = 256 << 10
)

const (
	holeUnit  = blockdev.BlockSize // zeroes are looked for in units of this many bytes
	maxChunks = 64                 // of the reply to one read
)

// Complete sends the replies of finished requests. It implements blockdev.Client.
func (c *conn) Complete(done []*blockdev.Request) {
	var closed error
	now := clock()
	size := 0
	for _, r := range done {
		t := &c.tickets[r.Tag]
		if &t.req != r || !t.inDevice {
			panic(fmt.Sprintf("nbd: device completed a request that it does not have: %v at %d", r.Op, r.Offset))
		}
		t.inDevice = false
		c.meter.note(r, now-t.began)
		if r.Err != nil && errors.Is(r.Err, blockdev.ErrSessionClosed) {
			closed = r.Err // N4
		}
		c.prepare(t, r.Err)
		size += len(r.Data)
	}
	c.mu.Lock()
	if closed == nil {
		for _, r := range done {
			c.replyLocked(&c.tickets[r.Tag])
		}
	}
	switch {
	case closed != nil:
		c.dieLocked(closed) // nor do the others of the batch leave: the client retries them all alike
	case c.holding && c.stillHoldLocked(len(done), size):
	default:
		c.flushLocked()
	}
	c.mu.Unlock()
	if closed != nil {
		c.kill(closed)
	}
}

// stillHoldLocked counts n replies, to requests with so much data, against what is held back.
func (c *conn) stillHoldLocked(n, size int) bool {
	c.held, c.heldBytes = c.held+n, c.heldBytes+size
	if c.held >= holdReplies || c.heldBytes >= holdBytes || time.Since(c.heldAt) > holdTime {
		c.held, c.heldBytes = 0, 0
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

// prepare makes a request's reply. Whoever calls it has the ticket for himself: it is not queued yet.
func (c *conn) prepare(t *ticket, err error) {
	m := &t.message
	m.payload, t.parts = nil, t.parts[:0]
	switch errno := errnoOf(t.req.Op, err); {
	case errno != 0 && c.structured:
		m.payload = errnoText(errno)
		m.headerLen = encodeErrorChunk(m.header[:], t.cookie, errno, len(m.payload))
	case t.req.Op == blockdev.OpExtents && errno == 0:
		n := len(t.req.Extents)
		t.buf = c.srv.pool.get(n * descriptorBytes)
		encodeDescriptors(t.buf.bytes, t.req.Extents)
		m.payload = t.buf.bytes[:n*descriptorBytes]
		m.headerLen = encodeStatusChunk(m.header[:], t.cookie, n)
	case t.req.Op == blockdev.OpRead && c.structured:
		t.layOut()
	default:
		m.headerLen = encodeSimpleReply(m.header[:], t.cookie, errno)
		if t.req.Op == blockdev.OpRead && errno == 0 {
			m.payload = t.req.Data
		}
	}
}

// layOut cuts a read's data into chunks: what is zero is not sent. No device is asked for its holes, as that would
// have to be at the same moment as the read; looking costs less than sending.
func (t *ticket) layOut() {
	data, limit := t.req.Data, maxChunks
	if t.flags&cmdFlagDF != 0 {
		limit = 1
	}
	for from := 0; from < len(data); {
		to, zero := zeroRun(data, from, t.req.Offset)
		if to < len(data) && len(t.parts) == limit-1 {
			to, zero = len(data), false
		}
		m, flags := &t.message, replyFlagDone
		if to < len(data) {
			t.parts = append(t.parts, message{slot: t.slot})
			m, flags = &t.parts[len(t.parts)-1], 0
		}
		if offset, n := t.req.Offset+uint64(from), uint32(to-from); zero {
			m.headerLen = encodeHoleChunk(m.header[:], flags, t.cookie, offset, n)
		} else {
			m.headerLen = encodeDataChunk(m.header[:], flags, t.cookie, offset, n)
			m.payload = data[from:to]
		}
		from = to
	}
}

// zeroes is what a hole reads as.
var zeroes [holeUnit]byte

// zeroRun says how far from a place on data is the same in being zero or not, in units of the disk's.
func zeroRun(data []byte, from int, offset uint64) (to int, zero bool) {
	for to = from; to < len(data); {
		next := min(len(data), to+holeUnit-int((offset+uint64(to))%holeUnit))
		p := data[to:next]
		z := p[0] == 0 && p[len(p)-1] == 0 && bytes.Equal(p, zeroes[:len(p)])
		if to > from && z != zero {
			break
		}
		to, zero = next, z
	}
	return to, zero
}

// replyLocked queues a prepared reply.
func (c *conn) replyLocked(t *ticket) {
	for i := range t.parts {
		c.pushLocked(&t.parts[i])
	}
	c.pushLocked(&t.message)
}

// ticketSent frees a ticket whose reply is in the socket.
func (c *conn) ticketSent(m *message) {
	t := &c.tickets[m.slot]
	if m != &t.message { // the rest is still to come
		m.payload = nil
		return
	}
	t.letGo(&c.srv.pool)
	c.free = append(c.free, m.slot)
	c.released += t.bytes
	if t.bytes > 0 {
		c.srv.inFlight.Add(-t.bytes)
	}
	c.returned++
	if c.waiting {
		c.changed.Signal()
	}
}

// letGo gives the ticket's memory back.
func (t *ticket) letGo(pool *buffers) {
	if t.buf != nil {
		pool.put(t.buf)
		t.buf, t.req.Data, t.payload = nil, nil, nil
	}
	if t.extents != nil {
		pool.extents.Put(t.extents)
		t.extents, t.req.Extents = nil, nil
	}
}
