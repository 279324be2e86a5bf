package blockdev

import "fmt"

// Extent tells how block is kept, and how many blocks from it on, up to most, are the same in this: data, a hole, or zeroes
// whose space was to stay allocated. Zeroes that were written as data are data. The content is what it is at some moment
// of the call. Regions that were never written, and stretches for which there is not even a page of sums, cost next to
// nothing: a whole volume can be asked for.
func (s *Store) Extent(block, most uint64) (n uint64, state ExtentState, err error) {
	if block >= s.Blocks() {
		return 0, 0, fmt.Errorf("%w: block %d of %d", ErrOutOfRange, block, s.Blocks())
	}
	most = min(most, s.Blocks()-block)
	w := extentWalk{s: s, block: block, max: most,
		sums:  dataFinder{f: s.sums.f.File, size: sumsFileSize(s.Size())},
		image: dataFinder{f: s.image.File, size: int64(s.Size())}}
	drops := s.sums.dropCount()
	if err := w.run(); err != nil {
		return 0, 0, err
	}
	if w.skipped && s.sums.dropCount() != drops {
		// A page that was empty in the file may have been filled, written and dropped meanwhile.
		w = extentWalk{s: s, block: block, max: most, slow: true}
		if err := w.run(); err != nil {
			return 0, 0, err
		}
	}
	return w.n, w.state, nil
}

// stateOf is how a block is kept that has a sum.
func stateOf(sum uint32) ExtentState {
	switch sum {
	case sumHole:
		return ExtentHole | ExtentZero
	case sumKept:
		return ExtentZero
	}
	return 0
}

// extentWalk goes over the blocks from block on until their state changes, n blocks later.
type extentWalk struct {
	s          *Store
	block, max uint64
	n          uint64
	state      ExtentState // once n > 0

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
			if !w.add(k, sumHole) {
				return nil
			}
			continue
		}
		k := min(w.max-w.n, RegionBlocks-b%RegionBlocks)
		// The table first: what leaves it has its sum in a page that is in memory by then.
		some := w.s.table.mayHave(b) || w.s.table.zeroes.count.Load() > 0
		if some {
			w.s.table.lookup(b, locs[:k])
		} else {
			clear(locs[:k])
		}
		if w.noSums(int(b / sumsPerPage)) {
			if !some && w.add(k, sumHole) {
				continue
			}
			clear(sums[:k])
		} else if err := w.s.sums.get(b, sums[:k]); err != nil {
			return err
		}
		for i := range k {
			if !locs[i].inImage() {
				sums[i] = locs[i].sum
			}
			if !w.add(1, sums[i]) {
				return nil
			}
		}
	}
	return nil
}

// add takes k more blocks in, and returns false if they are kept otherwise than those before.
func (w *extentWalk) add(k uint64, sum uint32) bool {
	state := stateOf(sum)
	if w.n > 0 && state != w.state {
		return false
	}
	w.n, w.state = w.n+k, state
	return true
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
	if w.slow || w.s.sums.pages.at(page) != nil || w.sums.dataIn(int64(page)*pageSize, int64(page+1)*pageSize) {
		return false
	}
	const span = sumsPerPage * BlockSize
	if w.image.dataIn(int64(page)*span, min(int64(page+1)*span, int64(w.s.Size()))) {
		return false
	}
	w.skipped = true
	return true
}
