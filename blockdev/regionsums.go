package blockdev

import (
	"fmt"
	"slices"

	"lockstep/wal"
)

// RegionSums gives the checksums of a region's committed blocks, as data.crc has them, without reading the blocks.
// dst is reused. They are all as of one commit point if nothing is committed meanwhile.
func (s *Store) RegionSums(region int, dst []uint32) ([]uint32, error) {
	n := s.regionBlocks(region)
	if n == 0 {
		return nil, fmt.Errorf("%w: region %d of %d", ErrOutOfRange, region, s.Regions())
	}
	dst = slices.Grow(dst[:0], RegionBlocks)[:n]
	first := uint64(region) * RegionBlocks
	var locs [RegionBlocks]loc
	s.lookup(first, locs[:n], false)
	if err := s.sums.get(first, dst); err != nil {
		return nil, err
	}
	for i, l := range locs[:n] { // a block that is in the log alone has its sum in the page table
		if !l.inImage() {
			dst[i] = l.sum
		}
	}
	return dst, nil
}

// SameContent tells whether two sums of a block say that its content is the same: zeroes can be a hole, take space, or have been
// written.
func SameContent(block uint64, a, b uint32) bool {
	switch {
	case HasData(a) == HasData(b):
		return a == b || !HasData(a)
	default:
		return max(a, b) == wal.BlockSum(block, zeroes[:])
	}
}

var zeroes [BlockSize]byte
