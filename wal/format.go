package wal

import (
	"bytes"
	"encoding/binary"
)

// The format's sizes. Part of the format; never change them.
const (
	BlockSize = 4096 // unit of placement and of checksums, bytes

	// MaxFrameBlocks is the payload of a frame at most: 32 MiB that begin and end inside a block.
	MaxFrameBlocks = 8193
	// MaxRecords is how many records a frame holds at most.
	MaxRecords = 4096
	// MaxFrameBytes is the size of a frame at most.
	MaxFrameBytes = maxHeadBytes + MaxFrameBlocks*BlockSize

	fixedBytes   = 96
	recordBytes  = 32
	sumBytes     = 4
	maxHeadBytes = (fixedBytes + MaxRecords*recordBytes + MaxFrameBlocks*sumBytes + BlockSize - 1) / BlockSize * BlockSize

	frameMagic    = 0x31534b4c // "LKS1"
	formatVersion = 1
)

// Offsets of the fixed header's fields; doc.go has the table. Part of the format; never renumber.
const (
	offMagic       = 0
	offSum         = 4 // crc32c of the header area behind it
	offVersion     = 8
	offFlags       = 10
	offChain       = 12
	offSalt        = 16
	offEpoch       = 24
	offIncarnation = 32
	offFirst       = 40
	offRecords     = 48
	offPayload     = 52
	offCommit      = 56
	offStable      = 64
	offTime        = 72
	offReserved    = 80
)

var le = binary.LittleEndian

// headBytes is the size of the header area.
func headBytes(records, payload int) int {
	return (fixedBytes + records*recordBytes + payload*sumBytes + BlockSize - 1) &^ (BlockSize - 1)
}

// frameSize tells from a frame's fixed header how long the whole is. The bytes are not verified yet, but the size is in bounds:
// a multiple of BlockSize, at most MaxFrameBytes. What is wrong is a constant text, as in all checks here, and no error:
// recovery meets many blocks that are no frames, and each error would be an allocation.
func frameSize(head []byte) (n int, reason string) {
	if len(head) < fixedBytes {
		return 0, "shorter than a frame header"
	}
	if le.Uint32(head[offMagic:]) != frameMagic {
		return 0, "not a frame"
	}
	records, payload := le.Uint32(head[offRecords:]), le.Uint32(head[offPayload:])
	if records == 0 || records > MaxRecords {
		return 0, "number of records out of bounds"
	}
	if payload > MaxFrameBlocks {
		return 0, "payload out of bounds"
	}
	return headBytes(int(records), int(payload)) + int(payload)*BlockSize, ""
}

func decodeHeader(b []byte) Header {
	return Header{
		Salt:        le.Uint64(b[offSalt:]),
		Epoch:       Epoch(le.Uint64(b[offEpoch:])),
		Incarnation: le.Uint64(b[offIncarnation:]),
		First:       LSN(le.Uint64(b[offFirst:])),
		Records:     le.Uint32(b[offRecords:]),
		Payload:     le.Uint32(b[offPayload:]),
		Commit:      LSN(le.Uint64(b[offCommit:])),
		Stable:      LSN(le.Uint64(b[offStable:])),
		Chain:       le.Uint32(b[offChain:]),
		Flags:       le.Uint16(b[offFlags:]),
		Time:        int64(le.Uint64(b[offTime:])),
	}
}

// encodeHeader fills the fixed header but for the checksum.
func encodeHeader(b []byte, h Header) {
	le.PutUint32(b[offMagic:], frameMagic)
	le.PutUint16(b[offVersion:], formatVersion)
	le.PutUint16(b[offFlags:], h.Flags)
	le.PutUint32(b[offChain:], h.Chain)
	le.PutUint64(b[offSalt:], h.Salt)
	le.PutUint64(b[offEpoch:], uint64(h.Epoch))
	le.PutUint64(b[offIncarnation:], h.Incarnation)
	le.PutUint64(b[offFirst:], uint64(h.First))
	le.PutUint32(b[offRecords:], h.Records)
	le.PutUint32(b[offPayload:], h.Payload)
	le.PutUint64(b[offCommit:], uint64(h.Commit))
	le.PutUint64(b[offStable:], uint64(h.Stable))
	le.PutUint64(b[offTime:], uint64(h.Time))
	clear(b[offReserved:fixedBytes])
}

// decodeRecord gives a record and where its payload begins, in blocks of the frame's payload.
func decodeRecord(b []byte) (r Record, at int) {
	_ = b[recordBytes-1]
	return Record{
		Block:   le.Uint64(b[0:]),
		Session: le.Uint64(b[8:]),
		Seq:     le.Uint64(b[16:]),
		Count:   le.Uint32(b[24:]),
		Kind:    Kind(b[30]),
		Flags:   b[31],
	}, int(le.Uint16(b[28:]))
}

func encodeRecord(b []byte, r Record, at int) {
	_ = b[recordBytes-1]
	le.PutUint64(b[0:], r.Block)
	le.PutUint64(b[8:], r.Session)
	le.PutUint64(b[16:], r.Seq)
	le.PutUint32(b[24:], r.Count)
	le.PutUint16(b[28:], uint16(at))
	b[30] = byte(r.Kind)
	b[31] = r.Flags
}

// allZero tells whether b, at most a block, holds nothing. A comparison is many times faster than a loop.
func allZero(b []byte) bool { return bytes.Equal(b, zeroBlock[:len(b)]) }

var zeroBlock [BlockSize]byte
