package nbd

import (
	"cmp"
	"fmt"
	"slices"

	"lockstep/blockdev"
)

// maxSpans is how scattered the parts of a read may come in.
const maxSpans = 1 << 10

var errScattered = fmt.Errorf("%w: a read came in too many scattered parts", ErrProtocol)

// byteSpan is a part of a read, [lo, hi) from the request's offset.
type byteSpan struct{ lo, hi uint32 }

// coverage is what has come of a read: sorted, neighbours joined. Joining keeps the sum of the lengths, so if all is one
// span in the end, no byte came twice.
type coverage []byteSpan

// add takes a part in. It returns false if too much is scattered.
func (c *coverage) add(lo, hi uint32) bool {
	list := *c
	i, _ := slices.BinarySearchFunc(list, lo, func(s byteSpan, lo uint32) int { return cmp.Compare(s.lo, lo) })
	switch before, behind := i > 0 && list[i-1].hi == lo, i < len(list) && list[i].lo == hi; {
	case before && behind:
		list[i-1].hi = list[i].hi
		*c = slices.Delete(list, i, i+1)
	case before:
		list[i-1].hi = hi
	case behind:
		list[i].lo = lo
	case len(list) == maxSpans:
		return false
	default:
		*c = slices.Insert(list, i, byteSpan{lo, hi})
	}
	return true
}

// whole tells whether each of n bytes has come once (N10).
func (c coverage) whole(n uint32) bool { return len(c) == 1 && c[0] == byteSpan{0, n} }

// chunkLocked takes one chunk of a structured reply.
func (c *Conn) chunkLocked(p []byte) (missing int, rest remainder, err error) {
	if len(p) < structuredReplyBytes {
		return structuredReplyBytes, rest, nil
	}
	h := decodeChunk(p)
	s, err := c.findLocked(h.cookie)
	if err != nil {
		return 0, rest, err
	}
	last := h.flags&replyFlagDone != 0
	r := s.req
	switch {
	case h.kind == replyTypeNone && h.length == 0 && last:
		c.in.skip(structuredReplyBytes)
		return 0, rest, c.finishLocked(s)
	case h.kind == replyTypeOffsetData && h.length > dataChunkBytes && r.Op == blockdev.OpRead:
		const header = structuredReplyBytes + dataChunkBytes
		if len(p) < header {
			return header, rest, nil
		}
		lo, n, err := within(r, order.Uint64(p[structuredReplyBytes:]), h.length-dataChunkBytes)
		if err != nil {
			return 0, rest, err
		}
		return c.dataLocked(s, header, lo, n, last)
	case h.kind == replyTypeOffsetHole && h.length == holeChunkBytes && r.Op == blockdev.OpRead:
		missing, err = c.holeLocked(s, p, last)
		return missing, rest, err
	case h.kind == replyTypeBlockStatus && r.Op == blockdev.OpExtents:
		return c.statusLocked(s, h, last)
	case h.kind&replyTypeErrorBit != 0 && h.length >= errorChunkBytes && h.length <= maxErrorBytes:
		missing, err = c.errorLocked(s, h, p, last)
		return missing, rest, err
	}
	return 0, rest, fmt.Errorf("%w: chunk of type %d with %d bytes to a %v", ErrProtocol, h.kind, h.length, r.Op)
}

// holeLocked takes a part of a read that is zero.
func (c *Conn) holeLocked(s *clientSlot, p []byte, last bool) (missing int, err error) {
	const whole = structuredReplyBytes + holeChunkBytes
	if len(p) < whole {
		return whole, nil
	}
	lo, n, err := within(s.req, order.Uint64(p[structuredReplyBytes:]), order.Uint32(p[structuredReplyBytes+8:]))
	if err == nil && !s.got.add(lo, lo+n) {
		err = errScattered
	}
	if err != nil {
		return 0, err
	}
	clear(s.req.Data[lo : lo+n])
	c.in.skip(whole)
	return 0, c.arrivedLocked(remainder{s, nil, last})
}

// errorLocked takes a server's word that the request failed, or a part of it. The first counts.
func (c *Conn) errorLocked(s *clientSlot, h chunk, p []byte, last bool) (missing int, err error) {
	whole := structuredReplyBytes + int(h.length)
	if len(p) < whole {
		return whole, nil
	}
	errno := order.Uint32(p[structuredReplyBytes:])
	if text := order.Uint16(p[structuredReplyBytes+4:]); errno == 0 || uint32(text) > h.length-errorChunkBytes {
		return 0, fmt.Errorf("%w: error %d with a text of %d bytes in %d", ErrProtocol, errno, text, h.length)
	}
	s.errno = cmp.Or(s.errno, errno)
	c.in.skip(whole)
	if last {
		return 0, c.finishLocked(s)
	}
	return 0, nil
}

// within checks that a chunk is a part of a read.
func within(r *blockdev.Request, offset uint64, n uint32) (lo, length uint32, err error) {
	if at := offset - r.Offset; n > 0 && offset >= r.Offset && at <= uint64(r.Length) && uint64(n) <= uint64(r.Length)-at {
		return uint32(at), n, nil
	}
	return 0, 0, fmt.Errorf("%w: a chunk of %d bytes at %d to a read of %d at %d", ErrProtocol, n, offset, r.Length, r.Offset)
}

// statusLocked takes the descriptors of a block status. Those that are too many for the buffer are read into memory of
// their own.
func (c *Conn) statusLocked(s *clientSlot, h chunk, last bool) (missing int, rest remainder, err error) {
	const header = structuredReplyBytes + statusChunkBytes
	n := int64(h.length) - statusChunkBytes
	if n <= 0 || n%descriptorBytes != 0 || n > maxStatusBytes || len(s.req.Extents) > 0 {
		return 0, rest, fmt.Errorf("%w: block status of %d bytes, behind %d extents", ErrProtocol, h.length, len(s.req.Extents))
	}
	p, whole := c.in.buffered(), header+int(n)
	if len(p) < whole && whole <= len(c.in.buf) {
		return whole, rest, nil
	}
	if len(p) < header {
		return header, rest, nil
	}
	if id := order.Uint32(p[structuredReplyBytes:]); id != c.context {
		return 0, rest, fmt.Errorf("%w: block status for context %d, asked for was %d", ErrProtocol, id, c.context)
	}
	if len(p) < whole {
		c.in.skip(header)
		return 0, remainder{s, make([]byte, n), last}, nil
	}
	err = c.arrivedLocked(remainder{s, p[header:whole], last})
	c.in.skip(whole)
	return 0, rest, err
}

// takeDescriptors puts extents into the request: as many as it has room for, and not past its end.
func takeDescriptors(r *blockdev.Request, p []byte) error {
	left := r.Length
	for full := false; len(p) > 0 && left > 0 && !full; p = p[descriptorBytes:] {
		n := min(order.Uint32(p), left)
		if n == 0 {
			return fmt.Errorf("%w: a block status with an extent of nothing", ErrProtocol)
		}
		left -= n
		full = !r.AddExtent(n, blockdev.ExtentState(order.Uint32(p[4:]))&(blockdev.ExtentHole|blockdev.ExtentZero))
	}
	return nil
}
