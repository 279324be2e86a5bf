package nbd

import (
	"fmt"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"lockstep/blockdev"
)

// check says what a request header asks of the device, or why it is refused.
func (c *conn) check(h protocol.TransmissionRequestHeader) (op blockdev.Op, flags blockdev.Flags, refusal error) {
	allowed := cmdFlagFUA
	switch h.Type {
	case protocol.TRANSMISSION_TYPE_REQUEST_READ:
		op = blockdev.OpRead
		if c.structured {
			allowed |= cmdFlagDF
		}
	case protocol.TRANSMISSION_TYPE_REQUEST_WRITE:
		op = blockdev.OpWrite
	case cmdFlush:
		op = blockdev.OpFlush
	case cmdTrim:
		op = blockdev.OpTrim
	case cmdCache:
		op = blockdev.OpCache
	case cmdWriteZeroes:
		op = blockdev.OpWriteZeroes
		allowed |= cmdFlagNoHole | cmdFlagFastZero
	case cmdBlockStatus:
		op = blockdev.OpExtents
		allowed |= cmdFlagReqOne
		if !c.extents {
			return op, 0, blockdev.ErrInvalid
		}
	default:
		return 0, 0, blockdev.ErrInvalid
	}
	if h.CommandFlags&^allowed != 0 {
		return op, 0, blockdev.ErrInvalid
	}
	if op == blockdev.OpFlush {
		if h.Offset != 0 || h.Length != 0 {
			return op, 0, blockdev.ErrInvalid
		}
		return op, 0, nil
	}
	if op.Mutates() && c.info.ReadOnly() {
		return op, 0, blockdev.ErrReadOnly
	}
	if h.Length == 0 || (op == blockdev.OpRead || op == blockdev.OpWrite) && h.Length > maxPayloadBytes {
		return op, 0, blockdev.ErrInvalid
	}
	if !c.within(h) {
		return op, 0, blockdev.ErrOutOfRange
	}
	// No hole means that zeroes are really written, which is not fast.
	fast := c.export.FastZero && h.CommandFlags&cmdFlagNoHole == 0
	if h.CommandFlags&cmdFlagFastZero != 0 && !fast {
		return op, 0, ErrNotSupported
	}
	if op.Mutates() && h.CommandFlags&cmdFlagFUA != 0 {
		flags |= blockdev.FlagFUA
	}
	if h.CommandFlags&cmdFlagNoHole != 0 {
		flags |= blockdev.FlagNoHole
	}
	return op, flags, nil
}

// within tells whether a request is within the disk. It may have grown since the client was told its size; who hears of that
// in another way (the owner of a kernel's device) may use all of it.
func (c *conn) within(h protocol.TransmissionRequestHeader) bool {
	end := h.Offset + uint64(h.Length)
	if end < h.Offset {
		return false
	}
	if end > c.info.Size {
		c.info.Size = max(c.info.Size, c.export.Device.Geometry().Size)
	}
	return end <= c.info.Size
}

// command says how a request looks on the wire.
func command(r *blockdev.Request) (kind, flags uint16) {
	if r.Flags&blockdev.FlagFUA != 0 {
		flags |= cmdFlagFUA
	}
	switch r.Op {
	case blockdev.OpRead:
		return protocol.TRANSMISSION_TYPE_REQUEST_READ, 0
	case blockdev.OpWrite:
		return protocol.TRANSMISSION_TYPE_REQUEST_WRITE, flags
	case blockdev.OpFlush:
		return cmdFlush, 0
	case blockdev.OpTrim:
		return cmdTrim, flags
	case blockdev.OpCache:
		return cmdCache, 0
	case blockdev.OpWriteZeroes:
		if r.Flags&blockdev.FlagNoHole != 0 {
			flags |= cmdFlagNoHole
		}
		return cmdWriteZeroes, flags
	case blockdev.OpExtents:
		if cap(r.Extents) == 1 {
			return cmdBlockStatus, cmdFlagReqOne
		}
		return cmdBlockStatus, 0
	}
	panic(fmt.Sprintf("nbd: submit of an operation that does not exist: %d", r.Op))
}
