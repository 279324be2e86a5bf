package blockdev

import (
	"errors"
	"fmt"
	"slices"

	"lockstep/wal"
)

// Copying regions to a learner, while writes go on, needs no filter by record: records are physical, so a region read
// while it changes becomes right once every record that may have been in it is applied over it. ReadRegion tells up
// to which LSN that may be; the learner's log begins at or before the source's commit point when the first region was
// read, and EndCopy waits until it has gone beyond all of them.

// RegionBlock is a block of a RegionImage.
type RegionBlock struct {
	Index uint16 // in the region
	// Lost is a block whose content cannot be read at the source, nor anywhere else: the image has its sum alone. Where the
	// copy goes the block reads as corrupt, too, and as nothing else, unless its content is there already.
	Lost bool
	Sum  uint32 // as data.crc has it
}

// HasData tells whether the image has content of the block, not only its sum.
func (b RegionBlock) HasData() bool { return !b.Lost && HasData(b.Sum) }

// RegionImage is the content of some blocks of a region, or of all. A user keeps and reuses one.
type RegionImage struct {
	// Blocks are in ascending order.
	Blocks []RegionBlock
	// Data holds the content of those that have any, in order, without gaps.
	Data []byte

	buf  []byte // RegionBytes; Data lies in it
	sums [RegionBlocks]uint32
}

// Validate checks an image that came from elsewhere against its own sums.
func (img *RegionImage) Validate(region int) error {
	used := 0
	for i, b := range img.Blocks {
		block := uint64(region)*RegionBlocks + uint64(b.Index)
		if b.Index >= RegionBlocks || i > 0 && b.Index <= img.Blocks[i-1].Index {
			return fmt.Errorf("blockdev: image of region %d has block %d out of order", region, b.Index)
		}
		if !b.HasData() {
			continue
		}
		if len(img.Data)-used < BlockSize {
			return fmt.Errorf("blockdev: image of region %d ends at block %d", region, b.Index)
		}
		if wal.BlockSum(block, img.Data[used:used+BlockSize]) != b.Sum {
			return &CorruptBlockError{Block: block}
		}
		used += BlockSize
	}
	if used != len(img.Data) {
		return fmt.Errorf("blockdev: image of region %d has %d bytes, its blocks need %d", region, len(img.Data), used)
	}
	return nil
}

// Regions is how many regions the volume has.
func (s *Store) Regions() int { return regionCount(s.Size()) }

// regionBlocks is the number of blocks in a region, 0 if there is no such region.
func (s *Store) regionBlocks(region int) int {
	blocks, first := s.Blocks(), uint64(region)*RegionBlocks
	if region < 0 || first >= blocks {
		return 0
	}
	return int(min(RegionBlocks, blocks-first))
}

// NewerRegions finds the first region from the given one on that has a committed change newer than l (B5).
func (s *Store) NewerRegions(than wal.LSN, from int) (region int, ok bool) {
	return s.regions.newer(than, from)
}

// NewerBytes is how much NewerRegions would find.
func (s *Store) NewerBytes(than wal.LSN) uint64 {
	n := uint64(0)
	for r, ok := s.regions.newer(than, 0); ok; r, ok = s.regions.newer(than, r+1) {
		n += uint64(s.regionBlocks(r)) * BlockSize
	}
	return n
}

// ReadRegion fills dst with the committed content of the blocks of a region that are wanted. Nothing in it is newer than
// asOf, and everything committed before the call is in it. Of a block that is lost, whose content could not be read, it
// has the sum alone.
func (s *Store) ReadRegion(region int, want, lost BlockMask, dst *RegionImage) (asOf wal.LSN, err error) {
	n := s.regionBlocks(region)
	if n == 0 {
		return 0, fmt.Errorf("%w: region %d of %d", ErrOutOfRange, region, s.Regions())
	}
	if s.Copying() {
		return 0, fmt.Errorf("%w: it cannot be copied from", ErrCopying)
	}
	if dst.buf == nil {
		dst.buf = wal.AlignedBuffer(RegionBytes)
	}
	dst.Blocks, dst.Data = dst.Blocks[:0], dst.buf[:0]
	for i := 0; i < n; {
		j := i + 1
		switch {
		case !want.Has(i):
		case lost.Has(i):
			err = s.readLost(region, i, dst)
		default:
			for j < n && want.Has(j) && !lost.Has(j) {
				j++
			}
			err = s.readBlocks(region, i, j, dst)
		}
		if err != nil {
			return 0, err
		}
		i = j
	}
	return wal.LSN(s.committed.Load()), nil
}

// readBlocks adds blocks i to j of a region.
func (s *Store) readBlocks(region, i, j int, dst *RegionImage) error {
	used := len(dst.Data)
	buf, sums := dst.buf[used:used+(j-i)*BlockSize], dst.sums[:j-i]
	if err := s.read(uint64(region)*RegionBlocks+uint64(i), buf, sums, false); err != nil {
		return err
	}
	for k, sum := range sums {
		if HasData(sum) {
			if used != len(dst.Data)+k*BlockSize {
				copy(dst.buf[used:used+BlockSize], buf[k*BlockSize:])
			}
			used += BlockSize
		}
		dst.Blocks = append(dst.Blocks, RegionBlock{Index: uint16(i + k), Sum: sum})
	}
	dst.Data = dst.buf[:used]
	return nil
}

// readLost adds a block of which only the sum is to be had.
func (s *Store) readLost(region, i int, dst *RegionImage) error {
	block := uint64(region)*RegionBlocks + uint64(i)
	var now [1]loc
	s.table.lookup(block, now[:])
	sum := []uint32{now[0].sum}
	if now[0].inImage() {
		if err := s.sums.get(block, sum); err != nil {
			return err
		}
	}
	// One that was zeroed meanwhile is not lost any more.
	dst.Blocks = append(dst.Blocks, RegionBlock{Index: uint16(i), Lost: HasData(sum[0]), Sum: sum[0]})
	return nil
}

// BeginCopy makes this replica a copy in the making: its own log is forgotten, the next frame is the one after the
// record to, whose frame's sum is chain, and the image takes regions. A crash leaves it as it was or so.
//
// What was committed is in the image before that: it is then what it was at Marks().Committed, and only regions that
// changed since, here or at the source, need be copied. Copying() stays true, over restarts, until EndCopy.
func (s *Store) BeginCopy(to wal.LSN, chain uint32, epochs EpochIndex) error {
	epochs = slices.Clone(epochs.upTo(to))
	if !epochs.valid() {
		return errors.New("blockdev: begin copy: bad epoch index")
	}
	if err := s.Sync(); err != nil {
		return err
	}
	s.applyMu.Lock()
	defer s.applyMu.Unlock()
	if err := s.settleLocked(nil); err != nil {
		return err
	}
	start := s.log.BlankAfter(to, chain)
	begin := checkpoint{LSN: start.LSN, Pos: start.Pos, Chain: start.Chain}
	if s.o.broken.has(resetFirst) {
		if err := s.log.Reset(start); err != nil {
			return s.poison(err)
		}
		start = s.log.BlankAfter(to, chain)
		begin.Pos = start.Pos
	}
	err := s.saveMeta(func(m *meta) {
		m.Flags |= flagCopying | flagBlank
		m.Checkpoint, m.Commit, m.Epochs = begin, to, epochs
	})
	if err != nil {
		return err
	}
	// From here on a crash leads to the new state: open finishes the reset.
	if err := s.log.Reset(start); err != nil {
		return s.poison(err)
	}
	if err := s.saveMeta(func(m *meta) { m.Flags &^= flagBlank }); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending.reset()
	s.epochs = slices.Clone(epochs)
	s.setMarks(begin)
	s.copyAsOf.Store(0)
	return nil
}

// WriteRegion puts a copied region, or the part of it that the image has, into the image. It is stable when EndCopy
// returns; after a restart before that, every block written in that run must be copied again. The image must not be older
// than what is applied here: a record that is in the image already would be undone for ever (ErrRegionOld).
func (s *Store) WriteRegion(region int, img *RegionImage, asOf wal.LSN) error {
	n := s.regionBlocks(region)
	if k := len(img.Blocks); n == 0 || k > 0 && int(img.Blocks[k-1].Index) >= n {
		return fmt.Errorf("%w: region %d of %d, with %d blocks", ErrOutOfRange, region, s.Regions(), n)
	}
	if err := img.Validate(region); err != nil {
		return err
	}
	s.applyMu.Lock()
	defer s.applyMu.Unlock()
	if err := s.Err(); err != nil {
		return err
	}
	if !s.Copying() {
		return ErrNotCopying
	}
	if applied := wal.LSN(s.applied.Load()); asOf < applied {
		return fmt.Errorf("%w: region %d as of %d, applied %d", ErrRegionOld, region, asOf, applied)
	}
	if err := s.writeRegion(uint64(region)*RegionBlocks, img); err != nil {
		return s.applyError(err) // for want of space: the region is copied again
	}
	s.diskFull.Store(false)
	s.copyAsOf.Store(max(s.copyAsOf.Load(), uint64(asOf)))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.regions.raise(uint64(region)*RegionBlocks, 1, asOf)
	return nil
}

func (s *Store) writeRegion(first uint64, img *RegionImage) error {
	data := img.Data
	for rest := img.Blocks; len(rest) > 0; {
		b, n := rest[0], 1
		for n < len(rest) && rest[n].Index == b.Index+uint16(n) && rest[n].Lost == b.Lost &&
			(rest[n].Sum == b.Sum || HasData(rest[n].Sum) && HasData(b.Sum)) {
			n++
		}
		block := first + uint64(b.Index)
		switch {
		case b.Lost: // the sum does it
		case HasData(b.Sum):
			if err := s.writeImage(block, data[:n*BlockSize]); err != nil {
				return err
			}
			data = data[n*BlockSize:]
		default:
			if err := s.zeroImage(block, uint64(n), b.Sum); err != nil {
				return err
			}
		}
		rest = rest[n:]
	}
	for _, b := range img.Blocks {
		if err := s.sums.set(first+uint64(b.Index), b.Sum); err != nil {
			return err
		}
	}
	return nil
}

// EndCopy makes the replica whole: everything copied, and the log, applied beyond the newest copied region, is
// stable, and only then Copying() becomes false. ErrCopyBehind if the log has not got that far.
func (s *Store) EndCopy() error {
	if !s.Copying() {
		return ErrNotCopying
	}
	if have, need := s.committed.Load(), s.copyAsOf.Load(); have < need {
		return fmt.Errorf("%w: regions up to %d, committed %d", ErrCopyBehind, need, have)
	}
	if s.o.broken.has(copyDoneEarly) {
		if err := s.saveMeta(func(m *meta) { m.Flags &^= flagCopying }); err != nil {
			return err
		}
	}
	return s.settle(func(m *meta) { m.Flags &^= flagCopying })
}
