package wal

import (
	"fmt"
	"math"
)

// LSN numbers records, densely, from 1. 0 is "before the first".
type LSN uint64

// Epoch is the number of the view in which a record was ordered.
type Epoch uint64

// Kind says what a record does. Part of the format; never renumber.
type Kind uint8

// The kinds of records.
const (
	KindWrite  Kind = 1 // Count blocks of payload at Block
	KindZero   Kind = 2 // Count blocks at Block read as zeroes
	KindTrim   Kind = 3 // as KindZero; the space may be given back
	KindView   Kind = 4 // a new primary takes office; Block is the view's number, Seq the volume's size in blocks, 0 if it does not say
	KindAttach Kind = 5 // a session begins; likewise
)

func (k Kind) String() string {
	switch k {
	case KindWrite:
		return "write"
	case KindZero:
		return "zero"
	case KindTrim:
		return "trim"
	case KindView:
		return "view"
	case KindAttach:
		return "attach"
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// Flags of a frame. Part of the format.
const (
	// FlagSync asks every member to have the frame on stable storage before it acknowledges, in sync mode
	// flush too.
	FlagSync uint16 = 1 << iota

	knownFlags = FlagSync
)

// Flags of a record. Part of the format.
const (
	// RecordNoHole asks that a KindZero keep the image's space allocated.
	RecordNoHole uint8 = 1 << iota

	knownRecordFlags = RecordNoHole
)

// Record is one entry of a frame. Session and Seq name the client's request, so that a replay of it is
// recognised; 0 is none.
type Record struct {
	Kind    Kind
	Flags   uint8
	Block   uint64
	Count   uint32 // blocks
	Session uint64
	Seq     uint64
}

// Header is what a frame says of itself.
type Header struct {
	Salt        uint64 // the volume's; a frame of another volume is not taken for this one's
	Epoch       Epoch
	Incarnation uint64 // of the primary that made it
	First       LSN    // of its first record
	Records     uint32
	Payload     uint32 // blocks
	Commit      LSN    // committed when it was made
	Stable      LSN    // on stable storage, when it was made, on every replica that had to have it (W7)
	Chain       uint32 // Sum of the frame before it
	Flags       uint16
	Time        int64 // ns since 1970, by the primary's clock
}

// Frame is a batch of records, verified or freshly sealed. The bytes on the wire are the bytes on disk. A Frame
// is a view of a buffer and lives as long as the buffer's owner says; the zero Frame holds nothing.
type Frame struct {
	b []byte // exactly the frame
}

// Bytes are the whole frame, a multiple of BlockSize. Not to be changed.
func (f Frame) Bytes() []byte { return f.b }

// Sum is the crc32c over the header area and, through the block sums, over the payload: the next frame's Chain.
func (f Frame) Sum() uint32 { return le.Uint32(f.b[offSum:]) }

// First is the LSN of the first record.
func (f Frame) First() LSN { return LSN(le.Uint64(f.b[offFirst:])) }

// Last is the LSN of the last record.
func (f Frame) Last() LSN { return f.First() + LSN(f.Records()) - 1 }

// Records is the number of records.
func (f Frame) Records() int { return int(le.Uint32(f.b[offRecords:])) }

// Payload is the number of payload blocks.
func (f Frame) Payload() int { return int(le.Uint32(f.b[offPayload:])) }

// Header decodes the fixed header.
func (f Frame) Header() Header { return decodeHeader(f.b) }

// Record gives record i (its LSN is First()+i), and for a KindWrite its payload and one BlockSum for each block
// of it. They alias the frame.
func (f Frame) Record(i int) (r Record, data []byte, sums Sums) {
	n := f.Records()
	r, at := decodeRecord(f.b[fixedBytes+i*recordBytes:])
	if r.Kind != KindWrite {
		return r, nil, nil
	}
	count := int(r.Count)
	s := fixedBytes + n*recordBytes + at*sumBytes
	d := headBytes(n, f.Payload()) + at*BlockSize
	return r, f.b[d : d+count*BlockSize : d+count*BlockSize], Sums(f.b[s : s+count*sumBytes : s+count*sumBytes])
}

// Change gives record i without its payload, also of a frame of which there is only the header area.
func (f Frame) Change(i int) Record {
	r, _ := decodeRecord(f.b[fixedBytes+i*recordBytes:])
	return r
}

// DataPos is where the payload of record i begins in the log, when the frame is at the given position.
func (f Frame) DataPos(at Pos, i int) Pos {
	_, skip := decodeRecord(f.b[fixedBytes+i*recordBytes:])
	return at + Pos(headBytes(f.Records(), f.Payload())/BlockSize+skip)
}

// Sums are the BlockSums of a record's payload, as they lie in the frame.
type Sums []byte

// Len is the number of sums.
func (s Sums) Len() int { return len(s) / sumBytes }

// At is the sum of the record's i-th block.
func (s Sums) At(i int) uint32 { return le.Uint32(s[i*sumBytes:]) }

// ParseFrame verifies the frame at the beginning of b, payload and all, without copying or allocating. The Frame
// aliases b. The error is a *CorruptError or a *VersionError.
func ParseFrame(b []byte) (Frame, error) {
	f, reason := parseHead(b)
	if reason == "" {
		if v := le.Uint16(b[offVersion:]); v != formatVersion {
			return Frame{}, &VersionError{v}
		}
		if reason = f.check(); reason == "" {
			reason = f.checkPayload()
		}
	}
	if reason != "" {
		return Frame{}, &CorruptError{Reason: reason}
	}
	return f, nil
}

// parseHead finds a frame whose header area is whole. In every version of the format the magic, the checksum,
// the version and the two counts are where they are now, so that a newer frame is told from a broken one.
func parseHead(b []byte) (Frame, string) {
	n, reason := frameSize(b)
	if reason != "" {
		return Frame{}, reason
	}
	if len(b) < n {
		return Frame{}, "cut short"
	}
	f := Frame{b[:n:n]}
	if !f.headIntact() {
		return Frame{}, "header checksum does not match"
	}
	return f, ""
}

func (f Frame) headIntact() bool {
	return crc(f.b[offVersion:headBytes(f.Records(), f.Payload())]) == f.Sum()
}

// check tells what is wrong with the content of a header area whose checksum is right: it was made by a broken
// or hostile writer.
func (f Frame) check() string {
	n := f.Records()
	if f.First() == 0 || f.First() > math.MaxUint64-MaxRecords {
		return "first LSN out of bounds"
	}
	if le.Uint16(f.b[offFlags:])&^knownFlags != 0 {
		return "unknown frame flag"
	}
	if !allZero(f.b[offReserved:fixedBytes]) {
		return "reserved bytes are used"
	}
	payload := 0
	for i := range n {
		r, at := decodeRecord(f.b[fixedBytes+i*recordBytes:])
		if at != payload {
			return "payload of a record is out of place"
		}
		if r.Flags&^knownRecordFlags != 0 {
			return "unknown record flag"
		}
		switch r.Kind {
		case KindWrite:
			if int64(r.Count) > int64(f.Payload()-payload) {
				return "record reaches past the payload"
			}
			payload += int(r.Count)
			fallthrough
		case KindZero, KindTrim:
			if r.Count == 0 || r.Block > math.MaxUint64/BlockSize-uint64(r.Count) {
				return "range of a record out of bounds"
			}
		case KindView, KindAttach:
		default:
			return "unknown kind of record"
		}
	}
	if payload != f.Payload() {
		return "payload that no record owns"
	}
	if !allZero(f.b[fixedBytes+n*recordBytes+payload*sumBytes : headBytes(n, payload)]) {
		return "padding is used"
	}
	return ""
}

// checkPayload verifies every block against its sum. check must have passed.
func (f Frame) checkPayload() string {
	for i := range f.Records() {
		r, data, sums := f.Record(i)
		for j := range sums.Len() {
			if BlockSum(r.Block+uint64(j), data[j*BlockSize:(j+1)*BlockSize]) != sums.At(j) {
				return "payload checksum does not match"
			}
		}
	}
	return ""
}
