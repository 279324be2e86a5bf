package blockdev

import (
	"errors"

	"lockstep/wal"
)

// A frame that went bad in the log after it was committed, and before it was applied, costs what was lost of it, no more (B8).
// What it changed is known without it: the page table has place and sum of every block whose newest version is in it.
// Those that are still good there are applied as ever. Of the others the image gets the sum alone: such a block
// reads as corrupt, here and after any crash, until it is repaired with the content that the sum is of.
//
// Versions that newer frames replaced are left out. That is the one case in which the image does not get what was
// committed in order, so recovery has to know of the newer ones' commit: the commit point is recorded first (B1).

// readLog reads a run of frames. What the disk cannot read is left as zeroes, which no sum is of.
func (s *Store) readLog(buf []byte, at wal.Pos) error {
	err := s.log.ReadAt(buf, at)
	if err == nil || errors.Is(err, wal.ErrClosed) || errors.Is(err, wal.ErrCompacted) {
		return err
	}
	for i := 0; i < len(buf); i += BlockSize {
		if s.log.ReadAt(buf[i:i+BlockSize], at+wal.Pos(i/BlockSize)) != nil {
			clear(buf[i : i+BlockSize])
		}
	}
	return nil
}

// applyBroken applies a frame that cannot be read as one. at is where it is in buf. applyMu is held.
func (s *Store) applyBroken(info frameInfo, buf []byte, at int) error {
	before := info.first - 1
	if err := s.flushOps(buf, before); err != nil {
		return err
	}
	b := &s.batch
	entries, extents := s.table.ofFrame(info)
	// After the look at the table: what was replaced until then was so by what is committed now.
	if err := s.recordForBroken(); err != nil {
		return err
	}
	var lost []tableSlot
	for _, e := range entries {
		if e.loc.isZero() {
			b.ops = append(b.ops, applyOp{e.block, srcZero, e.loc})
			continue
		}
		src := at + int(e.loc.pos-info.at)*BlockSize
		if wal.BlockSum(e.block, buf[src:src+BlockSize]) == e.loc.sum {
			b.ops = append(b.ops, applyOp{e.block, src, e.loc})
		} else {
			lost = append(lost, e)
		}
		if len(b.ops) >= maxOps {
			if err := s.flushOps(buf, before); err != nil {
				return err
			}
		}
	}
	if err := s.flushOps(buf, before); err != nil {
		return err
	}
	for _, e := range extents {
		if err := s.applyZero(e); err != nil {
			return err
		}
	}
	for _, e := range lost {
		if err := s.sums.set(e.block, e.loc.sum); err != nil {
			return err
		}
		s.table.clear(e.block, e.loc)
	}
	b.done = info.last
	s.emit(EventBrokenFrame{First: info.first, Last: info.last, Blocks: len(entries), Lost: len(lost)})
	s.hurry = true // until the checkpoint is beyond the frame, recovery would stumble over it
	return nil
}

// recordForBroken makes everything that is committed known to recovery.
func (s *Store) recordForBroken() error {
	if wal.LSN(s.committed.Load()) > s.log.Durable() {
		if err := s.Sync(); err != nil {
			return err
		}
	}
	return s.recordCommit()
}

// ofFrame gives what the table has of a frame: entries, and extents of long zeroes.
func (t *pageTable) ofFrame(info frameInfo) (entries []tableSlot, extents []zeroExtent) {
	within := func(l wal.LSN) bool { return info.first <= l && l <= info.last }
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.Lock()
		for _, e := range s.slots {
			if l := e.loc; l.isZero() && within(wal.LSN(l.pos&^zeroBit)) ||
				!l.isZero() && !l.inImage() && info.at <= l.pos && l.pos < info.end {
				entries = append(entries, e)
			}
		}
		s.mu.Unlock()
	}
	t.zeroes.mu.RLock()
	defer t.zeroes.mu.RUnlock()
	for _, e := range t.zeroes.list {
		if within(e.lsn) {
			extents = append(extents, e)
		}
	}
	return entries, extents
}
