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

// RegionImage is the content of a region. A user keeps and reuses one.
type RegionImage struct {
	// Sums has one entry per block of the region, as data.crc has it.
	Sums []uint32
	// Data holds the blocks that have data by their sums (HasData), in order, without gaps.
	Data []byte
	// Lost are the blocks, counted in the region, of which there is no good copy: their entry in Sums is that of the
	// content that they should have, and fits nothing in Data. Whoever has the region has them bad.
	Lost []uint32

	buf []byte // RegionBytes; Data lies in it
}

// Validate checks an image that came from elsewhere against its own sums.
func (img *RegionImage) Validate(region int) error {
	used := 0
	for i, sum := range img.Sums {
		if !HasData(sum) {
			continue
		}
		if len(img.Data)-used < BlockSize {
			return fmt.Errorf("blockdev: image of region %d ends at block %d of %d", region, i, len(img.Sums))
		}
		block := uint64(region)*RegionBlocks + uint64(i)
		if wal.BlockSum(block, img.Data[used:used+BlockSize]) != sum && !slices.Contains(img.Lost, uint32(i)) {
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

// ReadRegion fills dst with a region's committed content. Nothing in it is newer than asOf, and everything committed
// before the call is in it. Blocks that are bad make it fail, but for those that the caller knows to be lost.
func (s *Store) ReadRegion(region int, dst *RegionImage, lost ...uint64) (asOf wal.LSN, err error) {
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
	dst.Sums = slices.Grow(dst.Sums[:0], RegionBlocks)[:n]
	if dst.Lost = dst.Lost[:0]; len(lost) == 0 {
		err = s.read(uint64(region)*RegionBlocks, dst.buf[:n*BlockSize], dst.Sums, false)
	} else {
		err = s.readAround(region, dst, lost)
	}
	if err != nil {
		return 0, err
	}
	used := 0
	for i, sum := range dst.Sums {
		if !HasData(sum) {
			continue
		}
		if used != i*BlockSize {
			copy(dst.buf[used:used+BlockSize], dst.buf[i*BlockSize:(i+1)*BlockSize])
		}
		used += BlockSize
	}
	dst.Data = dst.buf[:used]
	return wal.LSN(s.committed.Load()), nil
}

// readAround reads a region block by block. What is lost is as zeroes.
func (s *Store) readAround(region int, dst *RegionImage, lost []uint64) error {
	want, err := s.RegionSums(region, nil)
	if err != nil {
		return err
	}
	for i := range dst.Sums {
		block, data := uint64(region)*RegionBlocks+uint64(i), dst.buf[i*BlockSize:(i+1)*BlockSize]
		err := s.read(block, data, dst.Sums[i:i+1], false)
		var bad *CorruptBlockError
		switch {
		case errors.As(err, &bad) && slices.Contains(lost, block):
			clear(data)
			if dst.Sums[i] = want[i]; HasData(want[i]) {
				dst.Lost = append(dst.Lost, uint32(i))
			}
		case err != nil:
			return err
		}
	}
	return nil
}

// BeginCopy makes this replica a copy in the making: its own log is forgotten, the next frame is the one after the
// record to, whose frame's sum is chain, and the image takes regions. A crash leaves it as it was or so.
//
// What was committed is in the image before that: it is then what it was at Marks().Committed, and only regions that
// changed since, here or at the source, need be copied. Copying() stays true, over restarts, until EndCopy.
func (s *Store) BeginCopy(to wal.LSN, chain uint32, epochs EpochIndex, protocol []byte) error {
	epochs = slices.Clone(epochs.upTo(to))
	protocol = slices.Clone(protocol)
	if !epochs.valid() || len(protocol) > MaxProtocolBytes {
		return fmt.Errorf("blockdev: begin copy: bad epoch index or protocol state of %d bytes", len(protocol))
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
		m.Checkpoint, m.Commit, m.Epochs, m.Protocol = begin, to, epochs, protocol
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

// WriteRegion puts a copied region into the image. It is stable when EndCopy returns; after a restart before that,
// every region written in that run must be copied again.
func (s *Store) WriteRegion(region int, img *RegionImage, asOf wal.LSN) error {
	if n := s.regionBlocks(region); n == 0 || len(img.Sums) != n {
		return fmt.Errorf("%w: region %d of %d, with %d blocks", ErrOutOfRange, region, s.Regions(), len(img.Sums))
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
	if err := s.writeRegion(uint64(region)*RegionBlocks, img); err != nil {
		return s.poison(err)
	}
	s.copyAsOf.Store(max(s.copyAsOf.Load(), uint64(asOf)))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.regions.raise(uint64(region)*RegionBlocks, 1, asOf)
	return nil
}

func (s *Store) writeRegion(block uint64, img *RegionImage) error {
	data := img.Data
	for i := 0; i < len(img.Sums); {
		j := i + 1
		some := HasData(img.Sums[i])
		for j < len(img.Sums) && (img.Sums[j] == img.Sums[i] || some && HasData(img.Sums[j])) {
			j++
		}
		if n := (j - i) * BlockSize; !some {
			if err := s.zeroImage(block+uint64(i), uint64(j-i), img.Sums[i]); err != nil {
				return err
			}
		} else {
			if err := s.writeImage(block+uint64(i), data[:n]); err != nil {
				return err
			}
			data = data[n:]
		}
		i = j
	}
	for i, sum := range img.Sums {
		if err := s.sums.set(block+uint64(i), sum); err != nil {
			return err
		}
	}
	return nil
}

// EndCopy makes the replica whole: everything copied, and the log, applied beyond the newest copied region, is
// stable, and only then Copying() becomes false, together with the new protocol state. ErrCopyBehind if the log
// has not got that far.
func (s *Store) EndCopy(protocol []byte) error {
	protocol = slices.Clone(protocol)
	if len(protocol) > MaxProtocolBytes {
		return fmt.Errorf("blockdev: protocol state of %d bytes exceeds %d", len(protocol), MaxProtocolBytes)
	}
	if !s.Copying() {
		return ErrNotCopying
	}
	if have, need := s.committed.Load(), s.copyAsOf.Load(); have < need {
		return fmt.Errorf("%w: regions up to %d, committed %d", ErrCopyBehind, need, have)
	}
	if s.o.broken.has(copyDoneEarly) {
		if err := s.saveMeta(func(m *meta) { m.Flags &^= flagCopying; m.Protocol = protocol }); err != nil {
			return err
		}
	}
	return s.settle(func(m *meta) {
		m.Flags &^= flagCopying
		m.Protocol = protocol
	})
}
