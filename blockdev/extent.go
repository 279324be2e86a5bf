package blockdev

import "fmt"

// Extent tells whether block reads as a hole (zeroes that take no space), and how many blocks from it on, up to max,
// are the same in this. The content is what it is at some moment of the call. Regions that were never written, and
// stretches for which there is not even a page of sums, cost next to nothing: a whole volume can be asked for.
func (s *Store) Extent(block uint64, max uint64) (n uint64, zero bool, err error) {
	if block >= s.Blocks() {
		return 0, false, fmt.Errorf("%w: block %d of %d", ErrOutOfRange, block, s.Blocks())
	}
	max = min(max, s.Blocks()-block)
	w := extentWalk{s: s, block: block, max: max,
		sums:  dataFinder{f: s.sums.f.File, size: sumsFileSize(s.id.Size)},
		image: dataFinder{f: s.image.File, size: int64(s.id.Size)}}
	drops := s.sums.dropCount()
	if err := w.run(); err != nil {
		return 0, false, err
	}
	if w.skipped && s.sums.dropCount() != drops {
		// A page that was empty in the file may have been filled, written and dropped meanwhile.
		w = extentWalk{s: s, block: block, max: max, slow: true}
		if err := w.run(); err != nil {
			return 0, false, err
		}
	}
	return w.n, w.zero, nil
}

// extentWalk goes over the blocks from block on until their kind changes, n blocks later.
type extentWalk struct {
	s          *Store
	block, max uint64
	n          uint64
	zero       bool // the kind, once n > 0

	slow        bool // look at every page of sums
	sums, image dataFinder
	skipped     bool // a page was taken as empty without a look at it
}

func (w *extentWalk) run() error {
	var locs [RegionBlocks]loc
	var sums [RegionBlocks]uint32
	for w.n < w.max {
		b := w.block + w.n
		if k := w.untouched(b); k > 0 {
			if w.n > 0 && !w.zero {
				return nil
			}
			w.n, w.zero = w.n+k, true
			continue
		}
		k := min(w.max-w.n, RegionBlocks-b%RegionBlocks)
		// The table first: what leaves it has its sum in a page that is in memory by then.
		some := w.s.table.mayHave(b)
		if some || w.s.table.zeroes.count.Load() > 0 {
			w.s.table.lookup(b, locs[:k])
		} else {
			clear(locs[:k])
		}
		if w.noSums(int(b / sumsPerPage)) {
			if !some && (w.n == 0 || w.zero) {
				w.n, w.zero = w.n+k, true
				continue
			}
			clear(sums[:k])
		} else if err := w.s.sums.get(b, sums[:k]); err != nil {
			return err
		}
		for i := range k {
			z := locs[i].isZero() || locs[i].inImage() && sums[i] == 0
			if w.n == 0 {
				w.zero = z
			} else if z != w.zero {
				return nil
			}
			w.n++
		}
	}
	return nil
}

// untouched is the number of blocks from b on that no record ever changed, as far as that is known for whole regions.
func (w *extentWalk) untouched(b uint64) uint64 {
	rest := w.max - w.n
	region, ok := w.s.regions.newer(0, int(b/RegionBlocks))
	if !ok {
		return rest
	}
	if at := uint64(region) * RegionBlocks; at > b {
		return min(rest, at-b)
	}
	return 0
}

// noSums tells whether all sums of a page are 0: it is not in memory, and a hole in the file, and so is what it is of in
// the image (B9).
func (w *extentWalk) noSums(page int) bool {
	if w.slow || w.s.sums.pages[page].Load() != nil || w.sums.dataIn(int64(page)*pageSize, int64(page+1)*pageSize) {
		return false
	}
	const span = sumsPerPage * BlockSize
	if w.image.dataIn(int64(page)*span, min(int64(page+1)*span, int64(w.s.id.Size))) {
		return false
	}
	w.skipped = true
	return true
}
