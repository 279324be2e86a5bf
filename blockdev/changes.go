package blockdev

import (
	"errors"

	"lockstep/wal"
)

// BlockMask is a set of blocks of one region.
type BlockMask [RegionBlocks / 64]uint64

// WholeRegion has every block.
var WholeRegion = BlockMask{^uint64(0), ^uint64(0), ^uint64(0), ^uint64(0)}

// Has tells whether block i of the region is in the set.
func (m *BlockMask) Has(i int) bool { return m[i/64]>>(i%64)&1 != 0 }

// Add puts block i of the region into the set.
func (m *BlockMask) Add(i int) { m[i/64] |= 1 << (i % 64) }

func (m *BlockMask) remove(i int) { m[i/64] &^= 1 << (i % 64) }

// Empty tells whether no block is in the set.
func (m *BlockMask) Empty() bool { return *m == BlockMask{} }

// maxChangedRegions bounds what Changes remembers: 128 GiB of a volume, and some 20 MiB of memory.
const maxChangedRegions = 1 << 17

// ErrTooMuchChanged is returned by ChangesIn for a stretch of the log that changes more than is kept track of.
var ErrTooMuchChanged = errors.New("blockdev: too much was changed to tell the blocks")

// Changes are the blocks that a stretch of the log changes, each of them once, however often it was written.
type Changes struct {
	regions map[int]*regionChange
	data    int // blocks that were written last, not zeroed
	zeroes  int
}

// regionChange is what happened to a region. Invariant: a block in zero is in changed.
type regionChange struct{ changed, zero BlockMask }

// ChangesIn finds the blocks that the records after one, up to another that is committed, change. Only the headers of the
// log's frames are read. Errors are those of wal.Log.Heads, and ErrTooMuchChanged.
func (s *Store) ChangesIn(after, to wal.LSN) (*Changes, error) {
	c := &Changes{regions: map[int]*regionChange{}}
	fits := true
	err := s.log.Heads(after+1, to, func(f wal.Frame) {
		for i := range f.Records() {
			switch r := f.Change(i); r.Kind {
			case wal.KindWrite, wal.KindZero, wal.KindTrim:
				fits = fits && c.add(r.Block, uint64(r.Count), r.Kind != wal.KindWrite)
			case wal.KindView, wal.KindAttach:
			}
		}
	})
	if err == nil && !fits {
		err = ErrTooMuchChanged
	}
	return c, err
}

// add takes in one record. It is false when there are too many regions.
func (c *Changes) add(block, count uint64, zero bool) bool {
	for count > 0 {
		r := c.regions[int(block/RegionBlocks)]
		if r == nil {
			if len(c.regions) == maxChangedRegions {
				return false
			}
			r = &regionChange{}
			c.regions[int(block/RegionBlocks)] = r
		}
		for i := int(block % RegionBlocks); i < RegionBlocks && count > 0; i++ {
			c.note(r, i, zero)
			block, count = block+1, count-1
		}
	}
	return true
}

func (c *Changes) note(r *regionChange, i int, zero bool) {
	switch {
	case !r.changed.Has(i):
	case r.zero.Has(i):
		c.zeroes--
	default:
		c.data--
	}
	r.changed.Add(i)
	if zero {
		r.zero.Add(i)
		c.zeroes++
	} else {
		r.zero.remove(i)
		c.data++
	}
}

// Of are the blocks of a region that were changed.
func (c *Changes) Of(region int) BlockMask {
	if r := c.regions[region]; r != nil {
		return r.changed
	}
	return BlockMask{}
}

// Bytes bounds what it takes to send the content of all blocks, with their sums.
func (c *Changes) Bytes() int64 {
	const entry = 8 // in a RegionImage on the wire
	return int64(c.data)*(BlockSize+entry) + int64(c.zeroes)*entry + int64(len(c.regions))*128
}

// LogBytes is what the frames behind a record take, up to another, both in the log.
func (s *Store) LogBytes(after, to wal.LSN) int64 { return s.log.BytesBetween(after, to) }
