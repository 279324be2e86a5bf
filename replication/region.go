package replication

import (
	"encoding/binary"
	"fmt"

	"lockstep/blockdev"
)

// A region on the wire is its block sums, 4 bytes each, little-endian, as data.crc has them; then the data of the
// blocks that have any by their sums. The number of sums is the number of blocks: the body's length must agree with both.
//
//	offset  size  field
//	0       4     n, number of blocks
//	4       4n    sums
//	4+4n    ...   data of the blocks whose sum is not below wal.MinBlockSum
//	...     4     each: the number of a block that is lost (blockdev.RegionImage). The header's nonce is how many there are

func encodeRegion(img *blockdev.RegionImage) []byte {
	b := make([]byte, 0, 4+4*len(img.Sums)+len(img.Data)+4*len(img.Lost))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(img.Sums)))
	for _, s := range img.Sums {
		b = binary.LittleEndian.AppendUint32(b, s)
	}
	b = append(b, img.Data...)
	for _, l := range img.Lost {
		b = binary.LittleEndian.AppendUint32(b, l)
	}
	return b
}

// decodeRegion fills img, which then aliases body's data. What is wrong with the data itself is for the store to find.
func decodeRegion(body []byte, lost uint64, img *blockdev.RegionImage) error {
	const maxBlocks = blockdev.RegionBytes / blockdev.BlockSize
	if len(body) < 4 {
		return fmt.Errorf("%w: region of %d bytes", errWire, len(body))
	}
	n := binary.LittleEndian.Uint32(body)
	if n > maxBlocks || lost > uint64(n) || len(body) < 4+4*int(n)+4*int(lost) {
		return fmt.Errorf("%w: region of %d blocks, %d of them lost, in %d bytes", errWire, n, lost, len(body))
	}
	img.Sums, img.Lost = img.Sums[:0], img.Lost[:0]
	data, tail := body[4+4*n:len(body)-4*int(lost)], body[len(body)-4*int(lost):]
	for ; len(tail) > 0; tail = tail[4:] {
		img.Lost = append(img.Lost, binary.LittleEndian.Uint32(tail))
	}
	used := 0
	for i := range int(n) {
		s := binary.LittleEndian.Uint32(body[4+4*i:])
		img.Sums = append(img.Sums, s)
		if blockdev.HasData(s) {
			used += blockdev.BlockSize
		}
	}
	if used != len(data) {
		return fmt.Errorf("%w: region with %d bytes of data where its sums want %d", errWire, len(data), used)
	}
	img.Data = data
	return nil
}
