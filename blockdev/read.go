package blockdev

import (
	"errors"
	"fmt"
	"syscall"

	"lockstep/wal"
)

const (
	// readChunk is how many blocks of a read are looked up at a time; a run within it is one read of a file.
	readChunk = RegionBlocks
	// maxRereads bounds how often a read starts over because applier or committer came in between.
	maxRereads = 100
)

// Read fills dst, a multiple of BlockSize, with committed content from block on. Every block is verified (B4); the
// error for a bad one is a *CorruptBlockError, and what dst holds then is undefined. It works on a poisoned store.
func (s *Store) Read(block uint64, dst []byte) error {
	return s.read(block, dst, nil, false)
}

// ReadNewest is Read as it will be when everything appended is committed. It is meant for the one who appends.
func (s *Store) ReadNewest(block uint64, dst []byte) error {
	return s.read(block, dst, nil, true)
}

// read also gives the sums, if sums is not nil.
func (s *Store) read(block uint64, dst []byte, sums []uint32, newest bool) error {
	n := uint64(len(dst)) / BlockSize
	if len(dst)%BlockSize != 0 || block > s.Blocks() || n > s.Blocks()-block {
		return fmt.Errorf("%w: %d bytes at block %d of %d", ErrOutOfRange, len(dst), block, s.Blocks())
	}
	var locs [readChunk]loc
	var known [readChunk]uint32
	for n > 0 {
		k := min(n, readChunk)
		s.lookup(block, locs[:k], newest)
		for i := uint64(0); i < k; {
			run := runLength(locs[i:k])
			if err := s.readRun(block+i, dst[i*BlockSize:(i+run)*BlockSize], locs[i:i+run], known[i:i+run], newest); err != nil {
				return err
			}
			i += run
		}
		if sums != nil {
			copy(sums, known[:k])
			sums = sums[k:]
		}
		block, dst, n = block+k, dst[k*BlockSize:], n-k
	}
	return nil
}

func (s *Store) lookup(block uint64, dst []loc, newest bool) {
	if !newest {
		s.table.lookup(block, dst)
		return
	}
	s.mu.Lock() // no commit may move a change from pending to table in between
	defer s.mu.Unlock()
	s.table.lookup(block, dst)
	s.pending.newest(block, dst)
}

// runLength counts the blocks that lie side by side with the first: in the image, in the log, or nowhere.
func runLength(locs []loc) uint64 {
	n := 1
	for first := locs[0]; n < len(locs); n++ {
		switch l := locs[n]; {
		case first.isZero():
			if !l.isZero() {
				return uint64(n)
			}
		case first.inImage():
			if !l.inImage() {
				return uint64(n)
			}
		case l.pos != first.pos+wal.Pos(n):
			return uint64(n)
		}
	}
	return uint64(n)
}

// readRun reads blocks that lie side by side, and sets their sums. A block that is not as it should be is looked
// at again by itself.
func (s *Store) readRun(block uint64, dst []byte, locs []loc, sums []uint32, newest bool) error {
	if locs[0].isZero() {
		clear(dst)
		for i, l := range locs {
			sums[i] = l.sum
		}
		return nil
	}
	if locs[0].inImage() {
		return s.readImage(block, dst, sums, newest)
	}
	err := s.log.ReadAt(dst, locs[0].pos)
	for i := range locs {
		b, d := block+uint64(i), dst[i*BlockSize:(i+1)*BlockSize]
		sums[i] = locs[i].sum
		if err != nil || wal.BlockSum(b, d) != sums[i] {
			if sums[i], err = s.reread(b, d, newest); err != nil {
				return err
			}
		}
	}
	return nil
}

// readImage reads blocks from the image, and skips over zero ones.
func (s *Store) readImage(block uint64, dst []byte, sums []uint32, newest bool) error {
	if err := s.sums.get(block, sums); err != nil {
		return err
	}
	for i := 0; i < len(sums); {
		j := i + 1
		for j < len(sums) && HasData(sums[j]) == HasData(sums[i]) {
			j++
		}
		part := dst[i*BlockSize : j*BlockSize]
		if !HasData(sums[i]) {
			clear(part)
			i = j
			continue
		}
		_, err := s.image.ReadAt(part, int64(block+uint64(i))*BlockSize)
		for ; i < j; i++ {
			b, d := block+uint64(i), dst[i*BlockSize:(i+1)*BlockSize]
			if err != nil || wal.BlockSum(b, d) != sums[i] {
				if sums[i], err = s.reread(b, d, newest); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// reread reads one block that did not match, until it does or until nothing changed between two attempts.
func (s *Store) reread(block uint64, dst []byte, newest bool) (uint32, error) {
	var before loc
	var err error
	for try := range maxRereads {
		var now [1]loc
		s.lookup(block, now[:], newest)
		l := now[0]
		if l.inImage() {
			var sum [1]uint32
			if err := s.sums.get(block, sum[:]); err != nil {
				return 0, err
			}
			l.sum = sum[0]
		}
		if try > 0 && l == before {
			break
		}
		before = l
		switch {
		case !HasData(l.sum):
			clear(dst)
			return l.sum, nil
		case l.inImage():
			_, err = s.image.ReadAt(dst, int64(block)*BlockSize)
		default:
			err = s.log.ReadAt(dst, l.pos)
		}
		if err == nil && wal.BlockSum(block, dst) == l.sum {
			return l.sum, nil
		}
	}
	if err != nil && !errors.Is(err, syscall.EIO) {
		return 0, fmt.Errorf("blockdev: read block %d: %w", block, err)
	}
	corrupt := &CorruptBlockError{Block: block, InLog: !before.inImage(), Pos: before.pos, Err: err}
	s.emit(EventCorruptBlock{corrupt})
	return 0, corrupt
}
