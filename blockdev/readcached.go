package blockdev

import (
	"slices"

	"lockstep/wal"
	"lockstep/wal/vfs"
)

// MaxCachedRead is the longest read, in bytes, that ReadCached tries: longer ones take so long to copy that they are
// better left to another core.
const MaxCachedRead = 64 << 10

// ReadCached is Read for content that is in memory: it never waits for the disk, so that whoever has a request in hand
// can answer it without passing it to another goroutine. It returns false when only Read can tell: something is not in
// memory, or is not as it should be. What dst holds then is undefined.
func (s *Store) ReadCached(block uint64, dst []byte) bool {
	n := uint64(len(dst)) / BlockSize
	if len(dst)%BlockSize != 0 || len(dst) > MaxCachedRead || block > s.Blocks() || n > s.Blocks()-block {
		return false
	}
	var locs [MaxCachedRead / BlockSize]loc
	s.table.lookup(block, locs[:n])
	for i := uint64(0); i < n; {
		run := runLength(locs[i:n])
		part := dst[i*BlockSize : (i+run)*BlockSize]
		var ok bool
		switch {
		case locs[i].isZero():
			clear(part)
			ok = true
		case locs[i].inImage():
			ok = s.imageCached(block+i, part)
		default:
			ok = s.log.ReadCached(part, locs[i].pos) && sumsMatch(block+i, part, locs[i:i+run])
		}
		if !ok {
			return false
		}
		i += run
	}
	return true
}

// maxPrefetch is how much of a range Prefetch asks for: it is a hint, and memory is everybody's.
const maxPrefetch = 64 << 20

// Prefetch begins to bring a range of bytes of the image into memory, for reads that come soon. What is in the log was
// written not long ago, and most likely is there.
func (s *Store) Prefetch(off, n uint64) {
	if f, ok := s.image.File.(vfs.Prefetcher); ok {
		f.Prefetch(int64(off), int64(min(n, maxPrefetch)))
	}
}

// imageCached reads blocks from the image. A block without data is zero, whatever the image holds.
func (s *Store) imageCached(block uint64, dst []byte) bool {
	image, ok := s.image.File.(vfs.CacheReader)
	var known [MaxCachedRead / BlockSize]uint32
	sums := known[:len(dst)/BlockSize]
	if !ok || !s.sums.cached(block, sums) {
		return false
	}
	if !slices.ContainsFunc(sums, HasData) {
		clear(dst)
		return true
	}
	if !image.ReadCachedAt(dst, int64(block)*BlockSize) {
		return false
	}
	for i, sum := range sums {
		b := dst[i*BlockSize : (i+1)*BlockSize]
		if !HasData(sum) {
			clear(b)
		} else if wal.BlockSum(block+uint64(i), b) != sum {
			return false
		}
	}
	return true
}

func sumsMatch(block uint64, data []byte, locs []loc) bool {
	for i, l := range locs {
		if wal.BlockSum(block+uint64(i), data[i*BlockSize:(i+1)*BlockSize]) != l.sum {
			return false
		}
	}
	return true
}
