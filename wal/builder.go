package wal

import (
	"fmt"
	"unsafe"
)

// Builder collects records into a frame, in a buffer that it reuses. The zero Builder is ready.
//
// How large the header area becomes is known only at Seal, and the payload comes before that. So the payload
// grows behind room for a maximal header area, and the frame begins as late in that room as it can:
//
//	buf  |......... room .........|header area|payload.........|....|
//	     0                        ^frame      maxHeadBytes
type Builder struct {
	// MaxBytes bounds the frame, for a log with small segments (Log.MaxFrame); 0 is MaxFrameBytes. It is not to
	// be changed between Add and Reset.
	MaxBytes int

	buf     []byte // block-aligned
	recs    []byte // encoded records; they and the sums are moved before the payload by Seal
	sums    []byte
	payload int // blocks
	small   int // frames since the last one that needed more than keepBytes
}

// A builder whose buffer grew beyond keepBytes for a rare large frame gives it back after shrinkAfter small ones.
const (
	keepBytes   = 4 << 20
	shrinkAfter = 1024
	firstBytes  = maxHeadBytes + 1<<20
)

// Reset empties the builder. The last frame's memory is reused.
func (b *Builder) Reset() {
	if len(b.buf) > keepBytes {
		if maxHeadBytes+b.payload*BlockSize > keepBytes {
			b.small = 0
		} else if b.small++; b.small >= shrinkAfter {
			b.buf = nil
		}
	}
	b.recs, b.sums, b.payload = b.recs[:0], b.sums[:0], 0
}

// Records is the number of records added.
func (b *Builder) Records() int { return len(b.recs) / recordBytes }

// Size is the size in bytes that the frame would have if sealed now.
func (b *Builder) Size() int {
	return headBytes(b.Records(), b.payload) + b.payload*BlockSize
}

// Add takes one record more, and copies its payload: Count blocks for a KindWrite, with one BlockSum each; nil for
// the others. It returns false, and changes nothing, when the frame is full; an empty builder takes any record that
// fits into MaxBytes.
func (b *Builder) Add(r Record, data []byte, sums []uint32) bool {
	blocks := 0
	if r.Kind == KindWrite {
		blocks = len(sums)
	}
	if len(data) != blocks*BlockSize || (r.Kind == KindWrite && (blocks != int(r.Count) || blocks == 0)) {
		panic(fmt.Sprintf("wal: %v record of %d blocks with %d bytes and %d sums", r.Kind, r.Count, len(data), len(sums)))
	}
	limit := b.MaxBytes
	if limit == 0 {
		limit = MaxFrameBytes
	}
	n, p := b.Records()+1, b.payload+blocks
	if n > MaxRecords || p > MaxFrameBlocks || headBytes(n, p)+p*BlockSize > limit {
		return false
	}
	b.grow(maxHeadBytes + p*BlockSize)
	b.recs = append(b.recs, make([]byte, recordBytes)...)
	encodeRecord(b.recs[len(b.recs)-recordBytes:], r, b.payload)
	for _, s := range sums {
		b.sums = le.AppendUint32(b.sums, s)
	}
	copy(b.buf[maxHeadBytes+b.payload*BlockSize:], data)
	b.payload = p
	return true
}

// Seal makes the frame: h with Records and Payload filled in. The Frame aliases the builder until Reset. At
// least one record must have been added.
func (b *Builder) Seal(h Header) Frame {
	if len(b.recs) == 0 {
		panic("wal: seal of a frame without records")
	}
	h.Records, h.Payload = uint32(b.Records()), uint32(b.payload)
	b.grow(maxHeadBytes)
	head := headBytes(b.Records(), b.payload)
	end := maxHeadBytes + b.payload*BlockSize
	f := Frame{b.buf[maxHeadBytes-head : end : end]}
	encodeHeader(f.b, h)
	n := fixedBytes
	n += copy(f.b[n:], b.recs)
	n += copy(f.b[n:], b.sums)
	clear(f.b[n:head])
	le.PutUint32(f.b[offSum:], crc(f.b[offVersion:head]))
	return f
}

// grow makes the buffer at least n bytes long and keeps what it holds.
func (b *Builder) grow(n int) {
	if n <= len(b.buf) {
		return
	}
	buf := AlignedBuffer(min(max(n, 2*len(b.buf), firstBytes), MaxFrameBytes))
	if b.payload > 0 {
		copy(buf[maxHeadBytes:], b.buf[maxHeadBytes:maxHeadBytes+b.payload*BlockSize])
	}
	b.buf = buf
	b.small = 0
}

// AlignedBuffer makes a buffer of n bytes that begins at a multiple of BlockSize, so that the kernel copies whole
// pages.
func AlignedBuffer(n int) []byte {
	b := make([]byte, n+BlockSize-1)
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) & (BlockSize - 1)
	return b[skip : skip+n : skip+n]
}
