package wal

import (
	"fmt"

	"lockstep/wal/vfs"
)

// scanner reads the segments of a log that is being opened.
type scanner struct {
	l *Log

	buf  []byte
	from Pos // of buf
	n    int // valid bytes of buf

	// Why next stopped.
	mark     *endMark
	badAt    Pos
	reason   string
	evidence string
	rotten   bool // the frame at badAt is whole but for its payload
}

// scanBytes is how much is read at a time when nothing larger is asked for.
const scanBytes = 1 << 20

// prefetchBytes is how far the disk reads ahead: as far as the next read goes, in many requests at once, and no farther.
// Another log's sync on the same disk waits behind all of it: 60 ms beside 8 MiB of it, 0.3 ms beside 1 MiB, which is read at
// two thirds of the speed.
const prefetchBytes = scanBytes

// bytes gives n bytes at p, which must not reach past the segment. They live until the next call.
func (sc *scanner) bytes(p Pos, n int) ([]byte, error) {
	if off := int(p-sc.from) * BlockSize; p >= sc.from && p-sc.from < Pos(sc.n/BlockSize) && off+n <= sc.n {
		return sc.buf[off : off+n], nil
	}
	want := max(n, scanBytes)
	if rest := int(sc.l.segBlocks-p%sc.l.segBlocks) * BlockSize; want > rest {
		want = rest
	}
	if len(sc.buf) < want {
		sc.buf = AlignedBuffer(want)
	}
	sc.n = 0
	sc.prefetch(p)
	if err := sc.l.read(sc.buf[:want], p); err != nil {
		return nil, err
	}
	sc.from, sc.n = p, want
	return sc.buf[:n], nil
}

// prefetch lets the disk begin with all that is going to be read.
func (sc *scanner) prefetch(p Pos) {
	file, off := sc.l.locate(p)
	if f, ok := file.(vfs.Prefetcher); ok {
		f.Prefetch(off, min(prefetchBytes, sc.l.o.SegmentBytes-off))
	}
}

// next finds the frame that follows the log's end: there, or at the start of the next segment if it did not fit.
// At the end of the log the frame is empty, and mark, reason and evidence say why.
func (sc *scanner) next() (f Frame, at Pos, err error) {
	l := sc.l
	at = l.endPos
	sc.badAt, sc.reason, sc.rotten = at, notNext, false
	if !l.freeLocked(at / l.segBlocks) {
		return Frame{}, at, nil // the log is full to the last block
	}
	b, err := sc.bytes(at, BlockSize)
	if err != nil {
		return Frame{}, at, err
	}
	if m, ok := parseMark(b, l.o.Salt); ok && m.lsn == l.end && m.chain == l.endSum {
		mark := m // m itself would be allocated for every frame
		sc.mark = &mark
		return Frame{}, at, nil
	}
	f, sc.reason, err = sc.follower(at)
	if err != nil || len(f.b) > 0 || at%l.segBlocks == 0 || !l.freeLocked(at/l.segBlocks+1) {
		return f, at, err
	}
	first := sc.rotten
	sc.rotten = false
	at += l.segBlocks - at%l.segBlocks
	f, reason, err := sc.follower(at)
	if len(f.b) == 0 && reason != notNext {
		sc.badAt, sc.reason = at, reason
	} else {
		sc.rotten = first
	}
	return f, at, err
}

const notNext = "there is no frame that follows"

// follower parses the frame at a position if it is the next of this log.
func (sc *scanner) follower(at Pos) (f Frame, reason string, err error) {
	l := sc.l
	b, err := sc.bytes(at, BlockSize)
	if err != nil {
		return Frame{}, "", err
	}
	size, reason := frameSize(b)
	if reason != "" {
		return Frame{}, notNext, nil
	}
	if h := decodeHeader(b); h.Salt != l.o.Salt || h.First != l.end+1 || (h.Chain != l.endSum && !l.o.broken.has(ignoreChain)) {
		return Frame{}, notNext, nil
	}
	if Pos(size/BlockSize) > l.segBlocks-at%l.segBlocks {
		return Frame{}, "the frame reaches past its segment", nil
	}
	if b, err = sc.bytes(at, size); err != nil {
		return Frame{}, "", err
	}
	if f, reason = parseHead(b); reason != "" {
		return Frame{}, reason, nil
	}
	if v := le.Uint16(b[offVersion:]); v != formatVersion {
		return Frame{}, "", &VersionError{v}
	}
	if reason = f.check(); reason != "" {
		// Not a crash's work: the checksum is right.
		sc.evidence = "the frame was written so"
		return Frame{}, reason, nil
	}
	if reason = f.checkPayload(); reason != "" && !l.o.broken.has(ignorePayload) {
		sc.rotten = true
		return Frame{}, reason, nil
	}
	return f, "", nil
}

// rottenFrame is the frame at badAt, when its payload alone is bad.
func (sc *scanner) rottenFrame() (Frame, error) {
	b, err := sc.bytes(sc.badAt, BlockSize)
	if err != nil {
		return Frame{}, err
	}
	n, _ := frameSize(b) // it was in bounds
	if b, err = sc.bytes(sc.badAt, n); err != nil {
		return Frame{}, err
	}
	return Frame{b[:n:n]}, nil
}

// ghosts appends to list the positions in [from, to) of blocks that look like a header of this volume, intact or
// not, with records behind the end, or like a mark.
func (sc *scanner) ghosts(list []Pos, from, to Pos) ([]Pos, error) {
	for p := from; p < to; p++ {
		b, err := sc.bytes(p, BlockSize)
		if err != nil {
			return nil, err
		}
		if sc.ghost(b) {
			list = append(list, p)
		}
	}
	return list, nil
}

func (sc *scanner) ghost(b []byte) bool {
	switch le.Uint32(b[offMagic:]) {
	case frameMagic:
		return le.Uint64(b[offSalt:]) == sc.l.o.Salt && LSN(le.Uint64(b[offFirst:])) > sc.l.end
	case markMagic:
		return le.Uint64(b[8:]) == sc.l.o.Salt
	}
	return false
}

// laterFrames looks for proof that the record behind the end was durable (W7): a frame in the segments before full,
// with an intact header, that says so, if headers are to be believed; or one that begins a segment up to last, which is
// entered only when everything before it is durable (W8).
func (sc *scanner) laterFrames(full, last Pos, believe bool) (evidence string, err error) {
	l := sc.l
	lost := l.end + 1
	for p := l.endPos; believe && p < full*l.segBlocks; p++ {
		h, ok, err := sc.intactGhost(p)
		if err != nil {
			return "", err
		}
		if ok && h.Stable >= lost {
			return fmt.Sprintf("the frame of record %d says that everything up to %d was stable", h.First, h.Stable), nil
		}
	}
	for s := l.endPos/l.segBlocks + 1; s < last; s++ {
		h, ok, err := sc.intactGhost(s * l.segBlocks)
		if err != nil {
			return "", err
		}
		if ok && h.First > lost {
			name, _ := l.segmentAt(s * l.segBlocks)
			return fmt.Sprintf("%s, which is entered only when all before is durable, begins with record %d", name, h.First), nil
		}
	}
	return "", nil
}

// intactGhost gives the header of a later frame at p whose header area is as it was written; its payload need not be.
func (sc *scanner) intactGhost(p Pos) (h Header, ok bool, err error) {
	b, err := sc.bytes(p, BlockSize)
	if err != nil || le.Uint32(b[offMagic:]) != frameMagic || !sc.ghost(b) {
		return Header{}, false, err
	}
	if _, reason := frameSize(b); reason != "" {
		return Header{}, false, nil
	}
	h = decodeHeader(b)
	head := headBytes(int(h.Records), int(h.Payload))
	if Pos(head/BlockSize) > sc.l.segBlocks-p%sc.l.segBlocks {
		return Header{}, false, nil
	}
	if b, err = sc.bytes(p, head); err != nil {
		return Header{}, false, err
	}
	return h, Frame{b}.headIntact(), nil
}
