package blockdev

import (
	"fmt"
	"slices"

	"lockstep/wal"
)

// The applier brings committed frames from the log into the image: a run of frames is read at once, of several
// versions of a block only the newest is written, in order of blocks, neighbours together.
//
// A version is not left out because a newer one waits beyond the batch: recovery may know of the batch and not of
// the newer one's commit.

const (
	// applyBatchBytes bounds what is read from the log at once, unless a single frame is larger.
	applyBatchBytes = 8 << 20
	// maxOps bounds the blocks of a batch that are sorted at once; zeroes make more blocks than bytes.
	maxOps = 1 << 14
	// gatherBytes is the largest run of scattered neighbours that is copied together for one write.
	gatherBytes = 512 << 10
)

// batch is the applier's memory, guarded by applyMu.
type batch struct {
	buf    []byte // frames as they are in the log
	ops    []applyOp
	keys   []uint64 // block << opBits | index into ops
	gather []byte

	// done: records up to this one are in the image. A batch that was refused (full.go) goes on behind it: blocks that it
	// has brought their newest version have no entry any more that would hide an older one.
	done wal.LSN
}

// applyOp is one block's new version. Invariant: len(ops) ≤ maxOps + MaxFrameBlocks < 1<<opBits.
type applyOp struct {
	block uint64
	src   int // of the data in buf; srcZero for a zero, of the sort that loc.sum tells
	loc   loc
}

const (
	opBits  = 20
	srcZero = -1
)

// bound is how far the image may go (W1, B1).
func (s *Store) bound() wal.LSN {
	l := min(s.committed.Load(), uint64(s.log.Durable()))
	if s.o.broken.has(applyUnrecorded) {
		return wal.LSN(l)
	}
	return wal.LSN(min(l, s.recorded.Load()))
}

// backlog is the committed part of the log, in blocks, that the image does not have.
func (s *Store) backlog() int64 {
	return int64(s.committedPos.Load()) - int64(s.appliedPos.Load())
}

// applyBatch applies a run of frames up to the bound and tells whether there was any. applyMu is held. A crash
// during it leaves blocks of either version, all of them behind the checkpoint in the log.
func (s *Store) applyBatch() (bool, error) {
	frames := s.nextFrames(s.bound())
	if len(frames) == 0 {
		return false, nil
	}
	first, last := frames[0], frames[len(frames)-1]
	if known := min(s.committed.Load(), uint64(s.log.Durable())); uint64(last.last) > known {
		panic(fmt.Sprintf("blockdev: W1: about to apply %d, but only %d is committed and durable", last.last, known))
	}
	b := &s.batch
	if n := int(last.end-first.at) * BlockSize; n > len(b.buf) {
		b.buf = wal.AlignedBuffer(max(n, min(2*len(b.buf), applyBatchBytes)))
	}
	buf := b.buf[:int(last.end-first.at)*BlockSize]
	if err := s.readLog(buf, first.at); err != nil {
		return false, err
	}
	for _, info := range frames {
		if info.last <= b.done {
			continue
		}
		at := int(info.at-first.at) * BlockSize
		f, err := wal.ParseFrame(buf[at : int(info.end-first.at)*BlockSize])
		if err != nil || f.First() != info.first || f.Sum() != info.sum {
			err = s.applyBroken(info, buf, at)
		} else {
			err = s.applyFrame(f, info, buf, at)
		}
		if err != nil {
			return false, err
		}
	}
	if err := s.flushOps(buf, last.last); err != nil {
		return false, err
	}
	if len(b.buf) > applyBatchBytes {
		b.buf = nil // a rare large frame
	}
	s.diskFull.Store(false)
	s.appliedAt = checkpoint{last.last, last.end, last.sum}
	if s.o.broken.has(releaseEarly) {
		s.log.Checkpointed(wal.Start{LSN: last.last, Pos: last.end, Chain: last.sum})
	}
	s.mu.Lock()
	s.pending.applied(last.last)
	s.mu.Unlock()
	s.applied.Store(uint64(last.last))
	s.appliedPos.Store(uint64(last.end))
	return true, nil
}

// nextFrames gives the oldest unapplied frames up to bound that lie side by side in the log, one batch at most.
func (s *Store) nextFrames(bound wal.LSN) []frameInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := &s.pending
	s.frames = s.frames[:0]
	for i := range p.committed {
		f := p.frames.at(i)
		if f.last > bound {
			break
		}
		if n := len(s.frames); n > 0 &&
			(f.at != s.frames[n-1].end || f.end-s.frames[0].at > applyBatchBytes/BlockSize || f.at%s.segBlocks == 0) {
			break
		}
		s.frames = append(s.frames, *f)
	}
	return s.frames
}

// applyFrame adds a frame's blocks to the batch. at is where the frame is in buf.
func (s *Store) applyFrame(f wal.Frame, info frameInfo, buf []byte, at int) error {
	b := &s.batch
	for i := range f.Records() {
		r, _, sums := f.Record(i)
		lsn := info.first + wal.LSN(i)
		if lsn <= b.done {
			continue
		}
		switch r.Kind {
		case wal.KindView, wal.KindAttach:
			continue
		case wal.KindWrite:
			pos := f.DataPos(info.at, i)
			for k := range int(r.Count) {
				p := pos + wal.Pos(k)
				b.ops = append(b.ops, applyOp{
					block: r.Block + uint64(k),
					src:   at + int(p-info.at)*BlockSize,
					loc:   loc{p, sums.At(k)},
				})
			}
		case wal.KindZero, wal.KindTrim:
			sum := zeroSum(r)
			if r.Count > maxZeroEntries {
				if err := s.flushOps(buf, lsn-1); err != nil {
					return err
				}
				if err := s.applyZero(zeroExtent{r.Block, r.Block + uint64(r.Count), lsn, sum}); err != nil {
					return err
				}
				continue
			}
			for k := range uint64(r.Count) {
				b.ops = append(b.ops, applyOp{r.Block + k, srcZero, zeroLoc(lsn, sum)})
			}
		}
		if len(b.ops) >= maxOps {
			if err := s.flushOps(buf, lsn); err != nil {
				return err
			}
		}
	}
	return nil
}

// applyZero brings one long ZERO or TRIM into the image.
func (s *Store) applyZero(e zeroExtent) error {
	if err := s.zeroImage(e.from, e.to-e.from, e.sum); err != nil {
		return err
	}
	if err := s.sums.fill(e.from, e.to-e.from, e.sum); err != nil {
		return err
	}
	s.table.zeroes.applied(e.lsn)
	return nil
}

// zeroImage makes a range zero, of the sort that sum tells.
func (s *Store) zeroImage(block, count uint64, sum uint32) error {
	if sum == sumHole {
		if err := s.image.PunchHole(int64(block)*BlockSize, int64(count)*BlockSize); err != nil {
			return fmt.Errorf("punch image: %w", noSpace(err))
		}
		return nil
	}
	zeroes := s.batch.gatherBuffer()[:min(count, gatherBytes/BlockSize)*BlockSize]
	clear(zeroes)
	for count > 0 {
		n := min(count, uint64(len(zeroes))/BlockSize)
		if err := s.writeImage(block, zeroes[:n*BlockSize]); err != nil {
			return err
		}
		block, count = block+n, count-n
	}
	return nil
}

// flushOps writes the collected blocks, all that the records up to upTo leave to be done: data, then sums, then the page
// table lets go of them (B2).
func (s *Store) flushOps(buf []byte, upTo wal.LSN) error {
	b := &s.batch
	b.keys = b.keys[:0]
	for i, op := range b.ops {
		b.keys = append(b.keys, op.block<<opBits|uint64(i))
	}
	slices.Sort(b.keys)
	// Keep the last, newest, of each block's.
	n := 0
	for i, k := range b.keys {
		if i+1 == len(b.keys) || b.keys[i+1]>>opBits != k>>opBits {
			b.keys[n] = k
			n++
		}
	}
	keys := b.keys[:n]
	for len(keys) > 0 {
		n, err := s.writeRun(keys, buf)
		if err != nil {
			return err
		}
		keys = keys[n:]
	}
	for _, k := range b.keys[:n] {
		op := b.op(k)
		sum := op.loc.sum
		if s.o.broken.has(keptAsHole) && !HasData(sum) {
			sum = sumHole
		}
		if err := s.sums.set(op.block, sum); err != nil {
			return err
		}
	}
	for _, k := range b.keys[:n] {
		op := b.op(k)
		if s.o.broken.has(clearChanged) {
			var now [1]loc
			s.table.lookup(op.block, now[:])
			op.loc = now[0]
		}
		s.table.clear(op.block, op.loc)
	}
	b.ops = b.ops[:0]
	b.done = max(b.done, upTo)
	return nil
}

func (b *batch) op(key uint64) *applyOp { return &b.ops[key&(1<<opBits-1)] }

// writeRun writes the longest run of neighbours of one sort at the head of keys and returns its length.
func (s *Store) writeRun(keys []uint64, buf []byte) (int, error) {
	b := &s.batch
	first := b.op(keys[0])
	n, together := 1, true
	for ; n < len(keys); n++ {
		op := b.op(keys[n])
		if op.block != first.block+uint64(n) || (op.src < 0 || first.src < 0) && (op.src != first.src || op.loc.sum != first.loc.sum) {
			break
		}
		if first.src >= 0 && op.src != first.src+n*BlockSize {
			if (n+1)*BlockSize > gatherBytes {
				break
			}
			together = false
		}
	}
	switch {
	case first.src < 0:
		return n, s.zeroImage(first.block, uint64(n), first.loc.sum)
	case together:
		return n, s.writeImage(first.block, buf[first.src:first.src+n*BlockSize])
	}
	// Only so many as fit, if the run became scattered late.
	n = min(n, gatherBytes/BlockSize)
	out := b.gatherBuffer()[:n*BlockSize]
	for i := range n {
		src := b.op(keys[i]).src
		copy(out[i*BlockSize:], buf[src:src+BlockSize])
	}
	return n, s.writeImage(first.block, out)
}

func (b *batch) gatherBuffer() []byte {
	if b.gather == nil {
		b.gather = wal.AlignedBuffer(gatherBytes)
	}
	return b.gather
}

// writeImage writes blocks.
func (s *Store) writeImage(block uint64, data []byte) error {
	if err := s.image.write(data, int64(block)*BlockSize); err != nil {
		return fmt.Errorf("write image at block %d: %w", block, err)
	}
	return nil
}
