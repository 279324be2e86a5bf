package replication

import (
	"encoding/binary"
	"fmt"

	"lockstep/blockdev"
)

// A region on the wire, little-endian: the blocks that it has in ascending order, then the data of those that have any:
// flag 1 is not set, and the sum is not below wal.MinBlockSum.
//
//	offset  size  field
//	0       4     n, number of blocks
//	4       8n    of each block: index in the region, 2 bytes; flags, 2 bytes (1: lost, see blockdev.RegionBlock); sum, 4 bytes
//	4+8n    ...   data, 4 KiB a block
const (
	regionEntry = 8
	regionLost  = 1
)

func encodeRegion(img *blockdev.RegionImage) []byte {
	b := make([]byte, 0, 4+regionEntry*len(img.Blocks)+len(img.Data))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(img.Blocks)))
	for _, e := range img.Blocks {
		b = binary.LittleEndian.AppendUint16(b, e.Index)
		flags := uint16(0)
		if e.Lost {
			flags = regionLost
		}
		b = binary.LittleEndian.AppendUint16(b, flags)
		b = binary.LittleEndian.AppendUint32(b, e.Sum)
	}
	return append(b, img.Data...)
}

// decodeRegion fills img, which then aliases body's data. What is wrong with the blocks themselves is for the store to
// find.
func decodeRegion(body []byte, img *blockdev.RegionImage) error {
	if len(body) < 4 {
		return fmt.Errorf("%w: region of %d bytes", errWire, len(body))
	}
	n := binary.LittleEndian.Uint32(body)
	if n > blockdev.RegionBlocks || len(body) < 4+regionEntry*int(n) {
		return fmt.Errorf("%w: region of %d blocks in %d bytes", errWire, n, len(body))
	}
	img.Blocks = img.Blocks[:0]
	data := body[4+regionEntry*n:]
	used := 0
	for i := range int(n) {
		e := body[4+regionEntry*i:]
		flags := binary.LittleEndian.Uint16(e[2:])
		b := blockdev.RegionBlock{Index: binary.LittleEndian.Uint16(e), Lost: flags == regionLost, Sum: binary.LittleEndian.Uint32(e[4:])}
		if flags&^regionLost != 0 {
			return fmt.Errorf("%w: region with unknown flags %x", errWire, flags)
		}
		if b.HasData() {
			used += blockdev.BlockSize
		}
		img.Blocks = append(img.Blocks, b)
	}
	if used != len(data) {
		return fmt.Errorf("%w: region with %d bytes of data where its blocks want %d", errWire, len(data), used)
	}
	img.Data = data
	return nil
}
