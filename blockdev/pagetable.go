package blockdev

import (
	"slices"
	"sync"
	"sync/atomic"

	"lockstep/wal"
)

// loc is where a block's newest committed version is while it is not yet in the image. The zero value says that
// it is in the image. Two versions of a block never have the same loc, except zeroes that are equal anyway.
type loc struct {
	pos wal.Pos // of the payload block, or zeroBit | LSN
	sum uint32  // as data.crc will have it
}

// zeroBit in a loc's pos says that the block is zero.
const zeroBit = wal.Pos(1) << 63

func zeroLoc(l wal.LSN, sum uint32) loc { return loc{zeroBit | wal.Pos(l), sum} }

func (l loc) inImage() bool { return l.pos == 0 }
func (l loc) isZero() bool  { return l.pos&zeroBit != 0 }

const (
	tableShards   = 64
	minShardSlots = 16
	// maxZeroEntries is the longest ZERO or TRIM, in blocks, that gets an entry per block. Longer ones are kept as
	// extents, so that trimming a whole disk costs no memory.
	maxZeroEntries = 256
)

// pageTable maps blocks to their newest committed version in the log (B2). It is a hash table with open
// addressing, so its size is bounded by what the log holds and not by the volume's, and it keeps no pointers.
//
// A region's blocks share a shard, so that a large read or write touches few locks. Locks are held for a few
// probes, never around I/O.
type pageTable struct {
	shards [tableShards]tableShard
	zeroes zeroExtents
}

type tableShard struct {
	mu    sync.Mutex
	slots []tableSlot // power of two, or nil
	used  int
	_     [24]byte // a cache line each
}

// tableSlot is free when loc is zero.
type tableSlot struct {
	block uint64
	loc   loc
}

const fibonacci = 0x9E3779B97F4A7C15

func (t *pageTable) shard(block uint64) *tableShard {
	return &t.shards[(block/RegionBlocks)*fibonacci>>(64-6)]
}

// home is where the probing for a block begins.
func (s *tableShard) home(block uint64) uint64 {
	return block * fibonacci >> 20 & uint64(len(s.slots)-1)
}

// find returns the block's slot, or the free one where it would be. slots is not empty and never full.
func (s *tableShard) find(block uint64) uint64 {
	mask := uint64(len(s.slots) - 1)
	i := s.home(block)
	for !s.slots[i].loc.inImage() && s.slots[i].block != block {
		i = (i + 1) & mask
	}
	return i
}

// set gives a block a new location.
func (t *pageTable) set(block uint64, l loc) {
	s := t.shard(block)
	s.mu.Lock()
	if s.used*4 >= len(s.slots)*3 {
		s.grow()
	}
	slot := &s.slots[s.find(block)]
	if slot.loc.inImage() {
		s.used++
	}
	*slot = tableSlot{block, l}
	s.mu.Unlock()
}

func (s *tableShard) grow() {
	old := s.slots
	s.slots = make([]tableSlot, max(minShardSlots, 2*len(old)))
	for _, e := range old {
		if !e.loc.inImage() {
			s.slots[s.find(e.block)] = e
		}
	}
}

// clear removes a block's entry if it still is l: the image has that version now.
func (t *pageTable) clear(block uint64, l loc) {
	s := t.shard(block)
	s.mu.Lock()
	if s.used > 0 && !l.inImage() {
		if i := s.find(block); s.slots[i].loc == l {
			s.remove(i)
		}
	}
	s.mu.Unlock()
}

// remove frees slot i and closes the gap in the probe sequences that run over it.
func (s *tableShard) remove(i uint64) {
	mask := uint64(len(s.slots) - 1)
	for j := i; ; {
		j = (j + 1) & mask
		e := s.slots[j]
		if e.loc.inImage() {
			break
		}
		// e may move to i unless its home lies behind i (cyclically).
		if (j-s.home(e.block))&mask >= (j-i)&mask {
			s.slots[i] = e
			i = j
		}
	}
	s.slots[i] = tableSlot{}
	s.used--
}

// shrink gives the memory of shards without entries back.
func (t *pageTable) shrink() {
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.Lock()
		if s.used == 0 {
			s.slots = nil
		}
		s.mu.Unlock()
	}
}

// lookup fills dst with the locations of the blocks from block on.
func (t *pageTable) lookup(block uint64, dst []loc) {
	for len(dst) > 0 {
		n := min(len(dst), int(RegionBlocks-block%RegionBlocks))
		s := t.shard(block)
		s.mu.Lock()
		if s.used == 0 {
			clear(dst[:n])
		} else {
			for i := range n {
				dst[i] = s.slots[s.find(block+uint64(i))].loc
			}
		}
		// Under the shard's lock: an extent that is not here yet leaves older entries in place, one that is gone
		// already is in the image.
		if t.zeroes.count.Load() > 0 {
			t.zeroes.lookup(block, dst[:n])
		}
		s.mu.Unlock()
		block += uint64(n)
		dst = dst[n:]
	}
}

// mayHave tells whether some block of a region may have an entry; extents of long zeroes do not count.
func (t *pageTable) mayHave(block uint64) bool {
	s := t.shard(block)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.used > 0
}

// setZero makes a range zero, of the sort that sum tells, by the record lsn.
func (t *pageTable) setZero(block, count uint64, lsn wal.LSN, sum uint32) {
	l := zeroLoc(lsn, sum)
	if count <= maxZeroEntries {
		for i := range count {
			t.set(block+i, l)
		}
		return
	}
	// First the extent, then the entries below it: a block goes from its old version to zero, never to the image.
	t.zeroes.add(zeroExtent{block, block + count, lsn, sum})
	for i := range t.shards {
		t.shards[i].removeRange(block, block+count)
	}
}

func (s *tableShard) removeRange(from, to uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old, kept := s.slots, 0
	for _, e := range old {
		if !e.loc.inImage() && (e.block < from || e.block >= to) {
			kept++
		}
	}
	if kept == s.used {
		return
	}
	s.slots, s.used = nil, kept
	if kept == 0 {
		return
	}
	s.slots = make([]tableSlot, len(old))
	for _, e := range old {
		if !e.loc.inImage() && (e.block < from || e.block >= to) {
			s.slots[s.find(e.block)] = e
		}
	}
}

// zeroExtent is a long ZERO or TRIM that the image does not have yet.
type zeroExtent struct {
	from, to uint64 // blocks, to exclusive
	lsn      wal.LSN
	sum      uint32 // of every block
}

// zeroExtents holds extents, sorted and without overlap: a newer one takes its range from the older. A table entry
// on top of an extent is newer than it, since setZero removes older entries.
type zeroExtents struct {
	count atomic.Int32
	mu    sync.RWMutex
	list  []zeroExtent
}

// firstEndingAfter is the index of the first extent with a block ≥ block in it or after it.
func (z *zeroExtents) firstEndingAfter(block uint64) int {
	i, _ := slices.BinarySearchFunc(z.list, block, func(e zeroExtent, b uint64) int {
		if e.to <= b {
			return -1
		}
		return 1
	})
	return i
}

func (z *zeroExtents) add(n zeroExtent) {
	z.mu.Lock()
	defer z.mu.Unlock()
	i := z.firstEndingAfter(n.from)
	j := i
	parts := make([]zeroExtent, 0, 3)
	if i < len(z.list) && z.list[i].from < n.from {
		head := z.list[i]
		head.to = n.from
		parts = append(parts, head)
	}
	parts = append(parts, n)
	for j < len(z.list) && z.list[j].from < n.to {
		if tail := z.list[j]; tail.to > n.to {
			tail.from = n.to
			parts = append(parts, tail)
		}
		j++
	}
	z.list = slices.Replace(z.list, i, j, parts...)
	z.count.Store(int32(len(z.list)))
}

// lookup fills in those of dst that have no entry of their own.
func (z *zeroExtents) lookup(block uint64, dst []loc) {
	z.mu.RLock()
	defer z.mu.RUnlock()
	for i := z.firstEndingAfter(block); i < len(z.list); i++ {
		e := z.list[i]
		if e.from >= block+uint64(len(dst)) {
			return
		}
		for b := max(e.from, block); b < min(e.to, block+uint64(len(dst))); b++ {
			if d := &dst[b-block]; d.inImage() {
				*d = zeroLoc(e.lsn, e.sum)
			}
		}
	}
}

// applied removes what is left of the record lsn.
func (z *zeroExtents) applied(lsn wal.LSN) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.list = slices.DeleteFunc(z.list, func(e zeroExtent) bool { return e.lsn == lsn })
	z.count.Store(int32(len(z.list)))
}
