package nbd

import (
	"math/bits"
	"sync"

	"lockstep/blockdev"
)

// Payload buffers come in powers of two from minBufferBytes to maxPayloadBytes.
const (
	minBufferShift = 12
	maxBufferShift = 26
	bufferClasses  = maxBufferShift - minBufferShift + 1
)

// buffer is a payload buffer. It is pooled by pointer, so that getting and putting one allocates nothing.
type buffer struct {
	bytes []byte
	class int
}

// buffers pools payload buffers by size class. Contents are whatever the last user left.
type buffers struct {
	classes [bufferClasses]sync.Pool
	extents sync.Pool
}

// extents is room for what a device says to an OpExtents.
type extents [maxExtents]blockdev.Extent

func (p *buffers) getExtents() *extents {
	if e, ok := p.extents.Get().(*extents); ok {
		return e
	}
	return new(extents)
}

// get returns a buffer of at least n bytes; n is at most maxPayloadBytes.
func (p *buffers) get(n int) *buffer {
	class := 0
	if n > 1<<minBufferShift {
		class = bits.Len(uint(n-1)) - minBufferShift
	}
	if b, ok := p.classes[class].Get().(*buffer); ok {
		return b
	}
	return &buffer{bytes: make([]byte, 1<<(class+minBufferShift)), class: class}
}

// put gives a buffer back. Nobody may use it any more.
func (p *buffers) put(b *buffer) { p.classes[b.class].Put(b) }
