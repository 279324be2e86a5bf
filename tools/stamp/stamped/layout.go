package stamped

import (
	"errors"
	"fmt"
)

const (
	blockBytes = 4096
	oddCells   = 3 // cells in a block of the odd part
	oddGap     = 7 // bytes in front of them
	oddBytes   = (blockBytes - oddGap) / oddCells
)

// Layout says where on a disk the cells are. Cells are numbered from 0: first one for each of the Whole blocks,
// then three for each of the Odd blocks.
type Layout struct {
	Base  uint64 `json:"base"`  // byte offset of the first block, a multiple of 4096
	Whole int    `json:"whole"` // blocks that are one cell
	Odd   int    `json:"odd"`   // blocks that are three cells, which follow
}

// LayoutFor spreads a layout over the first span bytes of a disk, a quarter of it odd.
func LayoutFor(span uint64) Layout {
	blocks := int(span / blockBytes)
	odd := blocks / 4
	return Layout{Whole: blocks - odd, Odd: odd}
}

// Validate tells what is wrong with a layout for a disk of size bytes.
func (l Layout) Validate(size uint64) error {
	if l.Base%blockBytes != 0 {
		return fmt.Errorf("stamped: base %d is no multiple of %d", l.Base, blockBytes)
	}
	if l.Whole < 0 || l.Odd < 0 || l.Whole+l.Odd == 0 {
		return errors.New("stamped: the layout has no blocks")
	}
	if end := l.Base + uint64(l.Whole+l.Odd)*blockBytes; end > size {
		return fmt.Errorf("stamped: the layout ends at byte %d, the disk at %d; take a smaller span", end, size)
	}
	return nil
}

// Cells is how many there are.
func (l Layout) Cells() int { return l.Whole + oddCells*l.Odd }

// Bytes is the length of the area that the layout covers, gaps included.
func (l Layout) Bytes() uint64 { return uint64(l.Whole+l.Odd) * blockBytes }

// clip shortens a run of n cells from first on so that it ends within the disk part it began in.
func (l Layout) clip(first, n int) int {
	if first < l.Whole {
		return min(n, l.Whole-first)
	}
	return min(n, l.Cells()-first)
}

// cellSize is the length of a cell in bytes.
func (l Layout) cellSize(cell int) int {
	if cell < l.Whole {
		return blockBytes
	}
	return oddBytes
}

// offset is where on the disk a cell begins.
func (l Layout) offset(cell int) uint64 {
	if cell < l.Whole {
		return l.Base + uint64(cell)*blockBytes
	}
	odd := cell - l.Whole
	return l.Base + uint64(l.Whole+odd/oddCells)*blockBytes + oddGap + uint64(odd%oddCells)*oddBytes
}

// extent is the byte range of a clipped run of cells, with the gaps inside it.
func (l Layout) extent(first, n int) (off uint64, length int) {
	last := first + n - 1
	off = l.offset(first)
	return off, int(l.offset(last)-off) + l.cellSize(last)
}
