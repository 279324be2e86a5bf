package wal

import "hash/crc32"

// castagnoli is the polynomial of every checksum in the format; processors have an instruction for it.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// MinBlockSum is the lowest BlockSum. It is part of the format.
const MinBlockSum = 2

// BlockSum is the checksum of one block's content at its place on the disk: crc32c(le64(block) ‖ data). With the
// number in it, a block that is right but in the wrong place is found out. It is never below MinBlockSum: who keeps sums
// has the lower numbers for blocks without content. It is part of the format.
func BlockSum(block uint64, data []byte) uint32 {
	// The number goes through the table by hand: a slice of a local array would escape to the heap through
	// the standard library's function variable.
	c := ^uint32(0)
	for range 8 {
		c = castagnoli[byte(c)^byte(block)] ^ c>>8
		block >>= 8
	}
	return max(MinBlockSum, crc32.Update(^c, castagnoli, data))
}

func crc(b []byte) uint32 { return crc32.Update(0, castagnoli, b) }
