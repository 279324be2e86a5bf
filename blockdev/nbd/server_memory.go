package nbd

import (
	"fmt"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"golang.org/x/sys/unix"
)

// answerMemory takes a client's memory, for the data of its reads. What it holds is never believed: a read is checked in the
// server's own memory and then copied (N11).
func (c *conn) answerMemory(data []byte) error {
	const option = optMemory
	switch {
	case c.rights == nil:
		return c.reply(option, protocol.NEGOTIATION_TYPE_REPLY_ERR_UNSUPPORTED, "only on a unix socket, and without TLS")
	case !c.structured:
		return c.reply(option, repErrInvalid, "negotiate structured replies first")
	case c.memory.bytes != nil:
		return c.reply(option, repErrInvalid, "there is memory already")
	case len(data) != memoryOptionBytes:
		return c.reply(option, repErrInvalid, fmt.Sprintf("%d bytes, must be %d", len(data), memoryOptionBytes))
	}
	fd := c.rights.take()
	if fd < 0 {
		return c.reply(option, repErrInvalid, "no descriptor came with it")
	}
	defer unix.Close(fd) // the mapping stays
	m, err := mapSlots(fd, order.Uint32(data), order.Uint32(data[4:]))
	if err != nil {
		return c.reply(option, repErrInvalid, err.Error())
	}
	if size := int64(len(m.bytes)); c.srv.mapped.Add(size) > c.srv.opts.MaxBytes {
		c.srv.mapped.Add(-size)
		m.unmap()
		return c.reply(option, repErrPolicy, "too many clients share memory already")
	}
	c.memory = m
	return c.reply(option, protocol.NEGOTIATION_TYPE_REPLY_ACK, "")
}

// dropMemory ends the connection's use of its client's memory. No request has a place in it any more.
func (c *conn) dropMemory() {
	if c.rights != nil {
		c.rights.drop()
	}
	if c.memory.bytes != nil {
		c.srv.mapped.Add(-int64(len(c.memory.bytes)))
		c.memory.unmap()
	}
}

// place is where in the memory the n bytes of a read go whose slot was received; nil if it has none of that size.
func (c *conn) place(n uint32) []byte {
	slot := order.Uint32(c.slotField[:])
	if uint64(slot) >= uint64(c.memory.count()) || uint64(n) > uint64(c.memory.each) {
		return nil
	}
	return c.memory.at(slot, n)
}
