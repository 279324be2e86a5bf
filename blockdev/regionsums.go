package blockdev

import (
	"fmt"
	"slices"

	"lockstep/wal"
)

// RegionSums gives the checksums of a region's committed blocks, 0 for a block that is zero, without reading the blocks.
// dst is reused. They are all as of one commit point if nothing is committed meanwhile.
func (s *Store) RegionSums(region int, dst []uint32) ([]uint32, error) {
	n := s.regionBlocks(region)
	if n == 0 {
		return nil, fmt.Errorf("%w: region %d of %d", ErrOutOfRange, region, s.regions.n)
	}
	dst = slices.Grow(dst[:0], RegionBlocks)[:n]
	first := uint64(region) * RegionBlocks
	var locs [RegionBlocks]loc
	s.lookup(first, locs[:n], false)
	if err := s.sums.get(first, dst); err != nil {
		return nil, err
	}
	for i, l := range locs[:n] { // a block that is in the log alone has its sum in the page table
		switch {
		case l.isZero():
			dst[i] = 0
		case !l.inImage():
			dst[i] = l.sum
		}
	}
	return dst, nil
}

// SameContent tells whether two sums of a block say that its content is the same: zeroes may or may not have one.
func SameContent(block uint64, a, b uint32) bool {
	if a == b {
		return true
	}
	if a != 0 && b != 0 {
		return false
	}
	return a|b == wal.BlockSum(block, zeroes[:])
}

var zeroes [BlockSize]byte
