package nbd

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"lockstep/blockdev"
)

// read takes requests from the socket until the client disconnects (nil) or something breaks.
func (c *conn) read() error {
	for {
		p := c.in.buffered()
		if len(p) < requestHeaderBytes {
			if err := c.fill(requestHeaderBytes); err != nil {
				return err
			}
			continue
		}
		h := decodeRequest(p)
		if h.RequestMagic != protocol.TRANSMISSION_MAGIC_REQUEST {
			return fmt.Errorf("nbd: protocol error: request magic is %#08x", h.RequestMagic)
		}
		c.in.skip(requestHeaderBytes)
		if h.Type == protocol.TRANSMISSION_TYPE_REQUEST_DISC {
			return nil
		}
		if err := c.take(h); err != nil {
			return err
		}
	}
}

// take receives one request, whose header is off the stream, and puts it into the burst; or answers it at once.
func (c *conn) take(h protocol.TransmissionRequestHeader) error {
	op, flags, refusal := c.check(h)
	var payload, room int
	switch {
	case refusal != nil:
	case op == blockdev.OpRead, op == blockdev.OpWrite:
		payload = int(h.Length)
	case op == blockdev.OpExtents && h.CommandFlags&cmdFlagReqOne != 0:
		payload, room = 2*descriptorBytes, 1
	case op == blockdev.OpExtents:
		payload, room = 2*maxExtents*descriptorBytes, maxExtents // extents, and their encoding
	}
	t, err := c.ticket(int64(payload))
	if err != nil {
		return err
	}
	t.cookie, t.flags = h.Handle, h.CommandFlags
	t.req.Op, t.req.Flags, t.req.Offset, t.req.Length, t.req.Err, t.req.Data = op, flags, h.Offset, h.Length, nil, nil
	if c.export.Session.Numbers != "" {
		t.req.ID = h.Handle
	}
	if refusal != nil {
		return c.refuse(t, h, refusal)
	}
	switch op {
	case blockdev.OpRead:
		t.buf = c.srv.pool.get(payload)
		t.req.Data = t.buf.bytes[:payload]
		c.burstRead += uint64(payload)
	case blockdev.OpExtents:
		t.extents = c.srv.pool.getExtents()
		t.req.Extents = t.extents[:0:room]
	case blockdev.OpWrite:
		t.buf = c.srv.pool.get(payload)
		t.req.Data = t.buf.bytes[:payload]
		if err := c.receive(t.req.Data); err != nil {
			c.taken-- // drain must not wait for its reply; the slot is not needed any more
			return err
		}
		c.burstWritten += uint64(payload)
	}
	t.inDevice = true
	c.burst = append(c.burst, &t.req)
	return nil
}

// receive fills data from the stream.
func (c *conn) receive(data []byte) error {
	if len(data) > len(c.in.buffered()) {
		if len(data) >= directBytes {
			if err := c.handOver(); err != nil {
				return err
			}
			return c.readError(c.in.readFull(data))
		}
		for len(data) > len(c.in.buffered()) {
			if err := c.fill(len(data)); err != nil {
				return err
			}
		}
	}
	copy(data, c.in.buffered())
	c.in.skip(len(data))
	return nil
}

// refuse answers a request without the device. The payload, if there is one, is dropped first, so that the stream stays
// in step (N1); a client is not prepared to get an answer to what it is still sending.
func (c *conn) refuse(t *ticket, h protocol.TransmissionRequestHeader, refusal error) error {
	if h.Type == protocol.TRANSMISSION_TYPE_REQUEST_WRITE {
		if err := c.drop(uint64(h.Length)); err != nil {
			c.taken--
			return err
		}
	}
	c.prepare(t, refusal)
	c.mu.Lock()
	c.replyLocked(t)
	c.mu.Unlock()
	c.replied = true
	return nil
}

// drop reads n bytes of the stream for nothing.
func (c *conn) drop(n uint64) error {
	if n > uint64(len(c.in.buffered())) {
		if err := c.handOver(); err != nil {
			return err
		}
	}
	return c.readError(c.in.discard(n))
}

// fill waits for more from the client, after it has handed over what there is.
func (c *conn) fill(want int) error {
	if err := c.handOver(); err != nil {
		return err
	}
	err := c.readError(c.in.fill(want))
	if err == io.EOF && len(c.in.buffered()) > 0 {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// handOver comes before every wait for the client: nothing that was parsed may wait with it.
func (c *conn) handOver() error {
	c.submit()
	if c.stale {
		return errUnread
	}
	return nil
}

// readError tells a failed read that Shutdown caused from others.
func (c *conn) readError(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return errStopped
	}
	return err
}

// ticket takes a slot, and n bytes of the connection's share; it waits for both if need be (N2).
func (c *conn) ticket(n int64) (*ticket, error) {
	if len(c.spare) == 0 || !c.fits(n) {
		if err := c.waitForShare(n); err != nil {
			return nil, err
		}
		if c.stale {
			return nil, errUnread
		}
	}
	last := len(c.spare) - 1
	t := &c.tickets[c.spare[last]]
	c.spare = c.spare[:last]
	c.taken++
	c.admitted += n
	t.bytes = n
	if n > 0 {
		c.srv.inFlight.Add(n)
	}
	return t, nil
}

// fits tells whether n more bytes are within the limits. One request fits always: no other connection can stop this one,
// and it has something of its own under way whose end wakes it.
func (c *conn) fits(n int64) bool {
	held, opts := c.admitted-c.seen, &c.srv.opts
	return held == 0 || held+n <= opts.MaxInFlightBytes && c.srv.inFlight.Load()+n <= opts.MaxBytes
}

// waitForShare fetches what was freed since the last time, and waits until that suffices. The burst is handed over
// before, as it may be what everybody waits for.
func (c *conn) waitForShare(n int64) error {
	defer c.noteAbsence(time.Now())
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		c.spare = append(c.spare, c.free...)
		c.free = c.free[:0]
		c.seen = c.released
		if c.dead != nil {
			return c.dead
		}
		if len(c.spare) > 0 && c.fits(n) {
			return nil
		}
		if len(c.burst) > 0 || c.replied {
			c.mu.Unlock()
			c.submit()
			c.mu.Lock()
			continue
		}
		c.waiting = true
		c.changed.Wait()
		c.waiting = false
	}
}

// submit hands the burst to the device, and sends the replies that came meanwhile.
func (c *conn) submit() {
	if len(c.burst) == 0 && !c.replied {
		return
	}
	if len(c.burst) > 0 {
		began := time.Now()
		c.mu.Lock()
		dead := c.dead
		c.holding, c.held, c.heldBytes, c.heldAt = true, 0, 0, began
		c.mu.Unlock()
		if dead == nil {
			c.count()
			c.session.Submit(c.burst)
		}
		c.burst = c.burst[:0]
		c.noteAbsence(began)
	}
	c.replied = false
	c.mu.Lock()
	c.holding = false
	c.flushLocked()
	c.mu.Unlock()
}

// count adds the burst to the totals, and stops the time.
func (c *conn) count() {
	now := clock()
	for _, r := range c.burst {
		c.tickets[r.Tag].began = now
	}
	n := uint64(len(c.burst))
	c.counts.Requests += n
	c.counts.BytesRead += c.burstRead
	c.counts.BytesWritten += c.burstWritten
	c.srv.requests.Add(n)
	c.srv.bytesRead.Add(c.burstRead)
	c.srv.bytesWritten.Add(c.burstWritten)
	c.burstRead, c.burstWritten = 0, 0
}

// noteAbsence marks the connection as stale when the reader was away from the socket for too long.
func (c *conn) noteAbsence(began time.Time) {
	if limit := c.srv.opts.MaxUnread; limit > 0 && c.export.Session.Name == "" && time.Since(began) > limit {
		c.stale = true
	}
}

// drain hands the rest over and waits until every request is answered and the answer sent.
func (c *conn) drain() {
	c.submit()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiting = true
	for c.dead == nil && c.returned != c.taken {
		c.changed.Wait()
	}
}
