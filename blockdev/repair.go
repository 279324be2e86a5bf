package blockdev

import (
	"bytes"
	"fmt"

	"lockstep/wal"
)

// Repair replaces a block that went bad, in the image, or in the log if its newest version is there. The data must be
// the block's content at a member whose commit point was asOf before it was read. It is refused with ErrStale if the
// block may have changed since. On return the block is stable.
func (s *Store) Repair(block uint64, data []byte, asOf wal.LSN) error {
	if block >= s.Blocks() || len(data) != BlockSize {
		return fmt.Errorf("%w: block %d of %d", ErrOutOfRange, block, s.Blocks())
	}
	s.applyMu.Lock()
	defer s.applyMu.Unlock()
	if err := s.Err(); err != nil {
		return err
	}
	var l [1]loc
	s.table.lookup(block, l[:])
	return s.repairLocked(block, data, l[0], asOf)
}

// repairLocked repairs a block that the page table has at l. applyMu is held.
func (s *Store) repairLocked(block uint64, data []byte, l loc, asOf wal.LSN) error {
	sum := wal.BlockSum(block, data)
	switch {
	case l.isZero(), !l.inImage() && l.sum != sum:
		return fmt.Errorf("%w: block %d as of %d", ErrStale, block, asOf)
	case !l.inImage():
		// The same bytes as were there, so that the frame is whole again. Neither reuse nor a cut can be in between:
		// the entry is of a committed frame, and it goes only when the block is applied (W3, applyMu).
		if err := s.log.Restore(data, l.pos); err != nil {
			return s.poison(err)
		}
	default:
		if err := s.repairImage(block, data, sum, asOf); err != nil {
			return err
		}
	}
	s.emit(EventRepaired{block})
	return nil
}

func (s *Store) repairImage(block uint64, data []byte, sum uint32, asOf wal.LSN) error {
	var stored [1]uint32
	if err := s.sums.get(block, stored[:]); err != nil {
		return err
	}
	// The content that the stored sum belongs to is right however old it is. Otherwise the sum may be what is
	// bad, and the region must not have changed.
	if stored[0] != sum && s.regions.get(int(block/RegionBlocks)) > asOf {
		return fmt.Errorf("%w: block %d as of %d", ErrStale, block, asOf)
	}
	var err error
	if bytes.Equal(data, zeroes[:]) {
		sum = sumHole
		err = s.zeroImage(block, 1, sum)
	} else {
		err = s.writeImage(block, data)
	}
	if err == nil {
		err = s.sums.set(block, sum)
	}
	if err == nil {
		err = s.syncImage()
	}
	if err != nil && !isRefused(err) { // for want of space the block stays as bad as it was
		return s.poison(err)
	}
	return err
}
