package nbd

import (
	"errors"
	"fmt"
	"io"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"lockstep/blockdev"
)

// receive reads replies until the connection ends, and does what is left to do then.
func (c *Conn) receive(stop chan<- struct{}, stopped <-chan struct{}) {
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

// readReplies reads replies and completes their requests, as many at a time as a read brought.
func (c *Conn) readReplies() error {
	for {
		c.mu.Lock()
		missing, direct, err := c.parseLocked()
		c.assignLocked() // slots may have become free
		c.flushLocked()
		c.mu.Unlock()
		c.complete()
		switch {
		case err != nil:
			return err
		case direct != nil:
			err = c.in.readFull(direct.req.Data)
			if err == nil {
				direct.req.Err = nil
				c.mu.Lock()
				c.retireLocked(direct)
				c.mu.Unlock()
			}
		default:
			err = c.in.fill(missing)
			if err == io.EOF && len(c.in.buffered()) > 0 {
				err = io.ErrUnexpectedEOF
			}
		}
		if err != nil {
			return err
		}
	}
}

// parseLocked retires the requests whose replies are in the buffer as a whole. Of the reply after them it says how many
// bytes it has (missing), or that its header is off the stream and its data is to be read into the request directly.
func (c *Conn) parseLocked() (missing int, direct *clientSlot, err error) {
	for {
		p := c.in.buffered()
		if len(p) < simpleReplyBytes {
			return simpleReplyBytes, nil, nil
		}
		h := decodeReply(p)
		s, err := c.findLocked(h)
		if err != nil {
			return 0, nil, err
		}
		r := s.req
		r.Err = errorOf(h.Error)
		if r.Op != blockdev.OpRead || h.Error != 0 {
			c.in.skip(simpleReplyBytes)
			c.retireLocked(s)
			continue
		}
		whole := simpleReplyBytes + len(r.Data)
		if len(p) < whole {
			if len(r.Data) < directBytes {
				return whole, nil, nil
			}
			c.in.skip(simpleReplyBytes)
			return 0, s, nil
		}
		copy(r.Data, p[simpleReplyBytes:])
		c.in.skip(whole)
		c.retireLocked(s)
	}
}

// findLocked says which request a reply is to.
func (c *Conn) findLocked(h protocol.TransmissionReplyHeader) (*clientSlot, error) {
	if h.ReplyMagic != protocol.TRANSMISSION_MAGIC_REPLY {
		return nil, fmt.Errorf("%w: reply magic is %#08x", ErrProtocol, h.ReplyMagic)
	}
	if h.Error == eShutdown {
		// The specification: disconnect. It is a server that goes away, not a request that failed.
		return nil, fmt.Errorf("%w: it is shutting down", ErrHungUp)
	}
	index, generation := uint32(h.Handle), uint32(h.Handle>>32)
	if index >= uint32(len(c.slots)) || c.slots[index].generation != generation || c.slots[index].req == nil {
		return nil, fmt.Errorf("%w: reply with a cookie of no request under way: %#x", ErrProtocol, h.Handle)
	}
	s := &c.slots[index]
	if s.queued && !s.handed {
		return nil, errAnsweredUnsent
	}
	return s, nil
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
	c.free = append(c.free, s.slot)
}

// complete hands over what is done.
func (c *Conn) complete() {
	if len(c.done) > 0 {
		c.handler.Complete(c.done)
		c.done = c.done[:0]
	}
}
