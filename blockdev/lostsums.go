package blockdev

import (
	"bytes"
	"fmt"

	"lockstep/wal"
)

// Sums that are lost, so that they read as zeroes, would turn their blocks into holes. But a block without a sum is a hole
// or zero in the image too (B9). So where a stretch of data.crc is all zero and the image is not, blocks have lost their
// sums. This is looked at when a page of sums is read, and costs one question to the file system for a stretch
// that was written once; the image is read only where it has data there.

// sumsPerSector is how many sums share the smallest unit that a disk loses: sums of half a region.
const sumsPerSector = 512 / 4

// markLost gives the blocks whose sums are lost a sum that they do not have: they are corrupt until they are repaired.
//
// No block is marked in vain: between its data and its sum coming into the image, and after a crash in between, its
// entry is in the page table (B2). It is looked up after the image was read. While an image is copied neither holds (B7).
func (s *Store) markLost(page int, p *sumPage) error {
	if s.Copying() {
		return nil
	}
	finder := dataFinder{f: s.image.File, size: int64(s.id.Size)}
	var data []byte
	for at := uint64(0); at < sumsPerPage; at += sumsPerSector {
		first := uint64(page)*sumsPerPage + at
		if first >= s.Blocks() {
			break
		}
		n := min(sumsPerSector, s.Blocks()-first)
		if !p.zero(at, n) || s.regions.get(int(first/RegionBlocks)) == 0 ||
			!finder.dataIn(int64(first)*BlockSize, int64(first+n)*BlockSize) {
			continue
		}
		if data == nil {
			data = wal.AlignedBuffer(sumsPerSector * BlockSize)
		}
		if _, err := s.image.ReadAt(data[:n*BlockSize], int64(first)*BlockSize); err != nil {
			return fmt.Errorf("read image at block %d: %w", first, err)
		}
		var locs [sumsPerSector]loc
		s.table.lookup(first, locs[:n])
		for i := range n {
			d := data[i*BlockSize : (i+1)*BlockSize]
			if locs[i].inImage() && !bytes.Equal(d, zeroPage[:]) {
				p.set(at+i, max(1, ^wal.BlockSum(first+i, d)))
			}
		}
	}
	return nil
}

// zero tells whether n sums from at on are all 0.
func (p *sumPage) zero(at, n uint64) bool {
	for i := at; i < at+n; i += 2 {
		if p.words[i/2].Load() != 0 {
			return false
		}
	}
	return true
}
