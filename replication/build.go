package replication

import (
	"lockstep/blockdev"
	"lockstep/wal"
)

// payloadBytes bounds what a request takes in a frame. A part of a block takes a whole one, with which it is merged: so
// hundreds of small requests can take much more than their lengths.
func payloadBytes(q *blockdev.Request) int {
	if q.Op == blockdev.OpWrite {
		first, end := blockSpan(q)
		return int(end-first) * blockdev.BlockSize
	}
	return 2 * blockdev.BlockSize // the edges of a trim or zeroing
}

// blockSpan is the range of blocks that a request touches, wholly or in part.
func blockSpan(q *blockdev.Request) (first, end uint64) {
	return q.Offset / blockdev.BlockSize, (q.Offset + uint64(q.Length) + blockdev.BlockSize - 1) / blockdev.BlockSize
}

// overlapsAny tells whether a request shares a block with one of the batch.
func overlapsAny(batch []queued, q *blockdev.Request) bool {
	first, end := blockSpan(q)
	for i := range batch {
		f, e := blockSpan(batch[i].req)
		if first < e && f < end {
			return true
		}
	}
	return false
}

// build puts the batch's records into the frame. Each request's last record is counted into ends, from 1. A request that
// has to be merged with a block that cannot be read goes to failed; what it has in the frame is harmless.
func (r *Replica) build(fb *frameBuf) {
	for _, q := range fb.batch {
		whole := true
		var err error
		q.s.announce(fb)
		fb.session, fb.number = 0, 0
		if q.s.numbered(q.req) {
			fb.session, fb.number = q.s.space.number, q.req.ID
		}
		switch q.req.Op {
		case blockdev.OpWrite:
			whole, err = r.addWrite(fb, q)
		case blockdev.OpTrim, blockdev.OpWriteZeroes:
			err = r.addZeroes(fb, q.req)
		}
		if err != nil {
			fb.failed = append(fb.failed, failedReq{pendingReq{req: q.req, s: q.s}, err})
		} else if whole {
			fb.ends = append(fb.ends, pendingReq{lsn: wal.LSN(fb.builder.Records()), req: q.req, s: q.s})
		}
	}
}

// addWrite adds a write, or the part of a huge one that this frame takes.
func (r *Replica) addWrite(fb *frameBuf, q queued) (whole bool, err error) {
	data, off := q.req.Data[q.done:], q.req.Offset+q.done
	whole = len(data) <= r.atomic
	if !whole {
		fb.session, fb.number = 0, 0 // it is not done before its last part is
		data = data[:r.atomic]
	}
	if sums := q.req.Scratch.Sums; len(sums) > 0 {
		sums = sums[q.done/blockdev.BlockSize:][:len(data)/blockdev.BlockSize]
		fb.add(wal.Record{Kind: wal.KindWrite, Block: off / blockdev.BlockSize, Count: uint32(len(sums))}, data, sums)
		return whole, nil
	}
	return whole, r.addMerged(fb, off, data)
}

// addMerged adds a write that does not cover whole blocks. It is merged with the newest content, also of records that
// are not committed yet: everything ordered before is in the log, as no frame holds two requests that would have to be
// merged with each other.
func (r *Replica) addMerged(fb *frameBuf, off uint64, data []byte) error {
	first, end := off/blockdev.BlockSize, (off+uint64(len(data))+blockdev.BlockSize-1)/blockdev.BlockSize
	n := int(end-first) * blockdev.BlockSize
	if cap(fb.edge) < n {
		fb.edge = make([]byte, n)
	}
	buf := fb.edge[:n]
	head, last := int(off-first*blockdev.BlockSize), n-blockdev.BlockSize
	if head != 0 {
		if err := r.readNewestRepaired(first, buf[:blockdev.BlockSize]); err != nil {
			return err
		}
	}
	if tail := head + len(data); tail < n && (last > 0 || head == 0) {
		if err := r.readNewestRepaired(end-1, buf[last:]); err != nil {
			return err
		}
	}
	copy(buf[head:], data)
	sums := make([]uint32, 0, end-first)
	for i := 0; i < n; i += blockdev.BlockSize {
		sums = append(sums, wal.BlockSum(first+uint64(i/blockdev.BlockSize), buf[i:i+blockdev.BlockSize]))
	}
	fb.add(wal.Record{Kind: wal.KindWrite, Block: first, Count: uint32(len(sums))}, buf, sums)
	return nil
}

// zeroBlock is what partly zeroed blocks are merged with.
var zeroBlock [blockdev.BlockSize]byte

// addZeroes adds a ZERO or TRIM record for the whole blocks and merged writes for the rest: a trimmed range reads as
// zeroes to its last byte.
func (r *Replica) addZeroes(fb *frameBuf, q *blockdev.Request) error {
	off, stop := q.Offset, q.Offset+uint64(q.Length)
	first, end := inner(off, uint64(q.Length))
	if first >= end { // within a block, or two
		for off < stop {
			n := min(stop, (off/blockdev.BlockSize+1)*blockdev.BlockSize) - off
			if err := r.addMerged(fb, off, zeroBlock[:n]); err != nil {
				return err
			}
			off += n
		}
		return nil
	}
	if head := first*blockdev.BlockSize - off; head > 0 {
		if err := r.addMerged(fb, off, zeroBlock[:head]); err != nil {
			return err
		}
	}
	kind, flags := wal.KindZero, uint8(0)
	switch {
	case q.Op == blockdev.OpTrim:
		kind = wal.KindTrim
	case q.Flags&blockdev.FlagNoHole != 0:
		flags = wal.RecordNoHole
	}
	fb.add(wal.Record{Kind: kind, Flags: flags, Block: first, Count: uint32(end - first)}, nil, nil)
	if tail := stop - end*blockdev.BlockSize; tail > 0 {
		return r.addMerged(fb, end*blockdev.BlockSize, zeroBlock[:tail])
	}
	return nil
}
