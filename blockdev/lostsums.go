package blockdev

import (
	"bytes"
	"fmt"

	"lockstep/wal"
)

// Sums that are lost, or stale, or that another page's took the place of, so that they say that there is no data, would turn
// their blocks into zeroes. But a block without data is a hole or zero in the image too (B9). So where the image is not
// zero, blocks have lost their sums. This is looked at when a page of sums is read, and costs one question to the file
// system for a stretch without data in a region that was written once; the image is read only where it has data there, or
// zeroes that keep their space.

// lostStretch is how many blocks are looked at together: within a region.
const lostStretch = 128

// markLost gives the blocks whose sums are lost a sum that they do not have: they are corrupt until they are repaired.
//
// No block is marked in vain: between its data and its sum coming into the image, and after a crash in between, its
// entry is in the page table (B2). It is looked up after the image was read. While an image is copied neither holds (B7).
func (s *Store) markLost(page int, p *sumPage) error {
	if s.Copying() || s.o.broken.has(trustHoles) {
		return nil
	}
	finder := dataFinder{f: s.image.File, size: int64(s.Size())}
	var data []byte
	for at, n := uint64(0), uint64(0); at < sumsPerPage; at += n {
		first := uint64(page)*sumsPerPage + at
		if first >= s.Blocks() {
			break
		}
		n = min(lostStretch-at%lostStretch, s.Blocks()-first)
		var some bool
		if n, some = p.stretch(at, n); some || s.regions.get(int(first/RegionBlocks)) == 0 ||
			!finder.dataIn(int64(first)*BlockSize, int64(first+n)*BlockSize) {
			continue
		}
		if data == nil {
			data = wal.AlignedBuffer(lostStretch * BlockSize)
		}
		if _, err := s.image.ReadAt(data[:n*BlockSize], int64(first)*BlockSize); err != nil {
			return fmt.Errorf("read image at block %d: %w", first, err)
		}
		var locs [lostStretch]loc
		s.table.lookup(first, locs[:n])
		for i := range n {
			d := data[i*BlockSize : (i+1)*BlockSize]
			if locs[i].inImage() && !bytes.Equal(d, zeroPage[:]) {
				p.set(at+i, max(wal.MinBlockSum, ^wal.BlockSum(first+i, d)))
			}
		}
	}
	return nil
}

// stretch counts the sums from at on, up to most, that are all of blocks with data, or all not.
func (p *sumPage) stretch(at, most uint64) (n uint64, some bool) {
	some = HasData(p.get(at))
	for n = 1; n < most && HasData(p.get(at+n)) == some; n++ {
	}
	return n, some
}
