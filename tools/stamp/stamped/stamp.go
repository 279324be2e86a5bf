package stamped

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
)

// The layout of a stamp; doc.go has the table.
const (
	magic     = "stamped1"
	runAt     = 8
	cellAt    = 16
	seqAt     = 24
	writerAt  = 32
	sumAt     = 36
	stampSize = 40
)

var (
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
	zeroCell   [blockBytes]byte
)

// stamp is what identifies one version of one cell.
type stamp struct {
	run    uint64
	cell   uint64
	seq    uint64
	writer uint32
}

// put fills dst, one cell, with the stamp.
func (s stamp) put(dst []byte) {
	copy(dst, magic)
	binary.LittleEndian.PutUint64(dst[runAt:], s.run)
	binary.LittleEndian.PutUint64(dst[cellAt:], s.cell)
	binary.LittleEndian.PutUint64(dst[seqAt:], s.seq)
	binary.LittleEndian.PutUint32(dst[writerAt:], s.writer)
	fill(dst[stampSize:], s.run^s.seq*0x9e3779b97f4a7c15^s.cell<<40)
	binary.LittleEndian.PutUint32(dst[sumAt:], sum(dst))
}

// fill makes two versions differ all over, so that a mixture of them never passes for either.
func fill(dst []byte, x uint64) {
	for len(dst) >= 8 {
		x = x*6364136223846793005 + 1442695040888963407
		binary.LittleEndian.PutUint64(dst, x)
		dst = dst[8:]
	}
	for i := range dst {
		dst[i] = byte(x >> (8 * i))
	}
}

func sum(cell []byte) uint32 {
	c := crc32.Update(0, castagnoli, cell[:sumAt])
	c = crc32.Update(c, castagnoli, zeroCell[:4])
	return crc32.Update(c, castagnoli, cell[stampSize:])
}

// verdict is what a cell's bytes are by themselves, before anybody asks whether they may be there.
type verdict uint8

const (
	isStamp   verdict = iota // a whole stamp
	isZero                   // all zeroes
	isTorn                   // begins as a stamp, but the checksum is wrong
	isGarbage                // nothing that this tool ever writes
)

// parse reads a cell. The stamp is meaningful for isStamp and, as a hint, for isTorn.
func parse(cell []byte) (stamp, verdict) {
	if len(cell) < stampSize {
		return stamp{}, isGarbage
	}
	if string(cell[:len(magic)]) != magic {
		if bytes.Equal(cell, zeroCell[:len(cell)]) {
			return stamp{}, isZero
		}
		return stamp{}, isGarbage
	}
	s := stamp{
		run:    binary.LittleEndian.Uint64(cell[runAt:]),
		cell:   binary.LittleEndian.Uint64(cell[cellAt:]),
		seq:    binary.LittleEndian.Uint64(cell[seqAt:]),
		writer: binary.LittleEndian.Uint32(cell[writerAt:]),
	}
	if binary.LittleEndian.Uint32(cell[sumAt:]) != sum(cell) {
		return s, isTorn
	}
	return s, isStamp
}
