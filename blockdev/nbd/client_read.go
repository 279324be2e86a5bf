package nbd

import (
	"errors"
	"fmt"
	"io"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"lockstep/blockdev"
)

// receive reads replies until the connection ends, and does what is left to do then. It keeps c.reading for good, so that
// no Poll completes anything after Closed (N9).
func (c *Conn) receive(stop chan<- struct{}, stopped <-chan struct{}) {
	c.reading.Lock()
	err := c.readReplies()
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = fmt.Errorf("%w: %w", ErrHungUp, err)
	}
	c.kill(err)
	c.mu.Lock()
	for c.writing {
		c.changed.Wait()
	}
	err = c.dead // the first reason
	c.mu.Unlock()
	close(stop)
	<-stopped
	// Nobody reads from or writes to the requests' memory any more.
	c.handler.Closed(err)
}

// readReplies reads replies and completes their requests, as many at a time as a read brought. c.reading is held.
func (c *Conn) readReplies() error {
	for {
		if c.rest.slot == nil { // else a Poll has left it
			if err := c.takeReplies(); err != nil {
				return err
			}
		}
		var err error
		if c.rest.slot != nil {
			err = c.readRest()
		} else {
			err = c.awaitMore()
		}
		if err != nil {
			return err
		}
	}
}

// readRest waits for the rest of a reply that is read to where it belongs directly.
func (c *Conn) readRest() error {
	if err := c.in.readFull(c.rest.dst); err != nil {
		return err
	}
	rest := c.rest
	c.rest = remainder{}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.arrivedLocked(rest)
}

// takeReplies completes the requests whose replies are in the buffer.
func (c *Conn) takeReplies() (err error) {
	c.mu.Lock()
	c.missing, c.rest, err = c.parseLocked()
	c.assignLocked() // slots may have become free
	c.flushLocked()
	c.mu.Unlock()
	c.complete()
	return err
}

// remainder is the rest of a reply whose header is off the stream: it is read to where it belongs directly.
type remainder struct {
	slot *clientSlot
	dst  []byte
	last bool // it ends the reply
}

// arrivedLocked goes on with a reply whose remainder is there.
func (c *Conn) arrivedLocked(rest remainder) error {
	s := rest.slot
	if s.req.Op == blockdev.OpExtents {
		if err := takeDescriptors(s.req, rest.dst); err != nil {
			return err
		}
	}
	if rest.last {
		return c.finishLocked(s)
	}
	return nil
}

// parseLocked takes replies off the buffer, and retires the requests that they end. Of what is not there as a whole it
// says how many bytes it has (missing), or what is to be read directly.
func (c *Conn) parseLocked() (missing int, rest remainder, err error) {
	for {
		p := c.in.buffered()
		if len(p) < simpleReplyBytes {
			return simpleReplyBytes, rest, nil
		}
		switch magic := order.Uint32(p); {
		case magic == protocol.TRANSMISSION_MAGIC_REPLY:
			missing, rest, err = c.simpleLocked(p)
		case magic == structuredReplyMagic && c.structured:
			missing, rest, err = c.chunkLocked(p)
		default:
			err = fmt.Errorf("%w: reply magic is %#08x", ErrProtocol, magic)
		}
		if missing > 0 || rest.slot != nil || err != nil {
			return missing, rest, err
		}
	}
}

// simpleLocked takes a simple reply.
func (c *Conn) simpleLocked(p []byte) (missing int, rest remainder, err error) {
	h := decodeReply(p)
	s, err := c.findLocked(h.Handle)
	if err != nil {
		return 0, rest, err
	}
	r := s.req
	if c.structured && (r.Op == blockdev.OpRead || r.Op == blockdev.OpExtents) {
		return 0, rest, fmt.Errorf("%w: simple reply to a %v", ErrProtocol, r.Op)
	}
	if h.Error != 0 {
		s.errno = h.Error
	}
	if r.Op != blockdev.OpRead || h.Error != 0 {
		c.in.skip(simpleReplyBytes)
		return 0, rest, c.finishLocked(s)
	}
	return c.dataLocked(s, simpleReplyBytes, 0, r.Length, true)
}

// dataLocked takes n bytes of a read from lo on, which are behind a header of so many bytes.
func (c *Conn) dataLocked(s *clientSlot, header int, lo, n uint32, last bool) (missing int, rest remainder, err error) {
	p := c.in.buffered()
	whole := header + int(n)
	if len(p) < whole && n < directBytes {
		return whole, rest, nil
	}
	if !s.got.add(lo, lo+n) {
		return 0, rest, errScattered
	}
	dst := s.req.Data[lo : lo+n]
	if len(p) < whole {
		c.in.skip(header)
		return 0, remainder{s, dst, last}, nil
	}
	copy(dst, p[header:])
	c.in.skip(whole)
	return 0, rest, c.arrivedLocked(remainder{s, dst, last})
}

// findLocked says which request a reply is to (N8).
func (c *Conn) findLocked(cookie uint64) (*clientSlot, error) {
	index := blockdev.RequestSlot(cookie)
	if index >= len(c.slots) || c.slots[index].cookie != cookie || c.slots[index].req == nil {
		return nil, fmt.Errorf("%w: reply with a cookie of no request under way: %#x", ErrProtocol, cookie)
	}
	s := &c.slots[index]
	if s.queued && !s.handed {
		return nil, errAnsweredUnsent
	}
	return s, nil
}

// finishLocked ends a request whose reply is complete.
func (c *Conn) finishLocked(s *clientSlot) error {
	r := s.req
	switch {
	case s.errno == eShutdown:
		// The specification: disconnect. It is a server that goes away, not a request that failed.
		return fmt.Errorf("%w: it is shutting down", ErrHungUp)
	case s.errno == 0 && r.Op == blockdev.OpRead && !s.got.whole(r.Length):
		return fmt.Errorf("%w: a read was answered with a part missing, or twice", ErrProtocol)
	case s.errno == 0 && r.Op == blockdev.OpExtents && len(r.Extents) == 0:
		return fmt.Errorf("%w: a block status was answered with nothing", ErrProtocol)
	}
	r.Err = errorOf(s.errno)
	c.retireLocked(s)
	return nil
}

// retireLocked puts an answered request among the done ones. On a fast network the answer can come before writev has
// returned to the sender, who then still has the message: messageSent frees the slot in this case.
func (c *Conn) retireLocked(s *clientSlot) {
	c.done = append(c.done, s.req)
	s.req = nil
	if s.queued {
		s.answered = true
		return
	}
	c.freeLocked(s.slot)
}

// complete hands over what is done.
func (c *Conn) complete() {
	if len(c.done) > 0 {
		c.handler.Complete(c.done)
		c.done = c.done[:0]
	}
}
