package wal

import (
	"fmt"
)

// RecoverPolicy says what Open does about corruption (W7).
type RecoverPolicy uint8

// The recovery policies.
const (
	// RefuseCorruption opens a log only if nothing durable is missing: the policy of a member.
	RefuseCorruption RecoverPolicy = iota
	// CutAlways cuts at the first bad frame, whatever follows: for a learner, which gets it all again.
	CutAlways
)

// Recovery is what Open found.
type Recovery struct {
	End    LSN // last good record
	Commit LSN // last record known to be committed, ≤ End
	Frames int // visited
	// Torn tells that pieces of unfinished or cut frames were behind the end, at TornAt and further on, and that
	// Erased of them were erased.
	Torn   bool
	TornAt Pos
	Erased int
	// Corruption is what CutAlways cut, nil if it was but a torn tail.
	Corruption *CorruptError
}

// Open recovers a log from start, the owner's last checkpoint. It first makes everything stable (W6), then calls visit
// for each good frame in order; the frame lives until visit returns. The torn tail of a crash is cut (W4). With
// RefuseCorruption a bad frame that cannot be a torn tail (W7) gives a *CorruptError, and nothing is changed on disk.
// Other errors: *SegmentError, *VersionError, and visit's.
func Open(o Options, start Start, policy RecoverPolicy, visit func(f Frame, at Pos) error) (*Log, Recovery, error) {
	if err := o.validate(); err != nil {
		return nil, Recovery{}, err
	}
	if start.Pos > maxPos/2 {
		return nil, Recovery{}, fmt.Errorf("wal: start position %d is out of bounds: the replica's metadata is damaged", start.Pos)
	}
	files, err := openPool(o)
	if err != nil {
		return nil, Recovery{}, err
	}
	l := &Log{o: o, segBlocks: Pos(o.SegmentBytes / BlockSize), files: files}
	l.checkpoint = Start{LSN: start.LSN, Pos: start.Pos, Chain: start.Chain}
	l.end, l.endPos, l.endSum = start.LSN, start.Pos, start.Chain
	l.newest = start.Pos / l.segBlocks
	var r Recovery
	if start.Blank {
		l.blankLocked(start)
		err = l.eraseAll()
	} else {
		r, err = l.recover(start, policy, visit)
	}
	if err != nil {
		closeAll(files)
		return nil, Recovery{}, err
	}
	l.durable = l.end // W6
	r.End = l.end
	r.Commit = min(max(r.Commit, start.LSN), l.end)
	return l, r, nil
}

// recover reads the log up to its end and cuts what is behind. Nobody else has the log yet: no locks.
func (l *Log) recover(start Start, policy RecoverPolicy, visit func(f Frame, at Pos) error) (Recovery, error) {
	var r Recovery
	sc := scanner{l: l}
	for {
		f, at, err := sc.next()
		if err != nil {
			return r, err
		}
		if len(f.b) == 0 {
			break
		}
		if err := visit(f, at); err != nil {
			return r, err
		}
		r.Frames++
		r.Commit = max(r.Commit, f.Header().Commit)
		l.index.push(f.First(), at, len(f.b)/BlockSize)
		l.end, l.endSum, l.endPos = f.Last(), f.Sum(), at+Pos(len(f.b)/BlockSize)
		l.newest = max(l.newest, at/l.segBlocks)
	}
	return r, l.settle(&sc, &r, start, policy)
}

// settle decides what the end of the good frames is, a torn tail or corruption, and erases what lies behind.
//
// By W8 unfinished frames are in one segment: that of the end, or the next. These two are read whole; of the others
// the first block, where every segment in use has a frame.
func (l *Log) settle(sc *scanner, r *Recovery, start Start, policy RecoverPolicy) error {
	seg := l.endPos / l.segBlocks
	last := l.checkpoint.Pos/l.segBlocks + Pos(len(l.files)) // segments from here on would overlap live ones
	full := min(seg+2, last)
	if sc.mark != nil {
		full = min(max(full, (sc.mark.until+l.segBlocks-1)/l.segBlocks), last)
	}
	evidence := sc.evidence
	if evidence == "" && start.Durable > l.end {
		evidence = fmt.Sprintf("record %d was durable when the replica was last stopped", start.Durable)
	}
	if evidence == "" && sc.mark == nil {
		var err error
		if evidence, err = sc.laterFrames(full, last); err != nil {
			return err
		}
	}
	if sc.mark == nil && evidence != "" && !l.o.broken.has(callItTorn) {
		name, off := l.segmentAt(sc.badAt)
		c := &CorruptError{Segment: name, Offset: off, LSN: l.end + 1, Reason: sc.reason, Evidence: evidence}
		if policy == RefuseCorruption {
			return c
		}
		r.Corruption = c
		full = last
	}
	ghosts, err := sc.ghosts(nil, l.endPos, full*l.segBlocks)
	if err != nil {
		return err
	}
	if len(ghosts) == 0 && sc.mark == nil {
		return nil
	}
	r.Torn, r.TornAt, r.Erased = true, l.endPos, len(ghosts)
	return l.erase(ghosts, full*l.segBlocks)
}

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
}

// scanBytes is how much is read at a time when nothing larger is asked for.
const scanBytes = 1 << 20

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
	if err := sc.l.read(sc.buf[:want], p); err != nil {
		return nil, err
	}
	sc.from, sc.n = p, want
	return sc.buf[:n], nil
}

// next finds the frame that follows the log's end: there, or at the start of the next segment if it did not fit.
// At the end of the log the frame is empty, and mark, reason and evidence say why.
func (sc *scanner) next() (f Frame, at Pos, err error) {
	l := sc.l
	at = l.endPos
	sc.badAt, sc.reason = at, notNext
	if !l.freeLocked(at / l.segBlocks) {
		return Frame{}, at, nil // the log is full to the last block
	}
	b, err := sc.bytes(at, BlockSize)
	if err != nil {
		return Frame{}, at, err
	}
	if m, ok := parseMark(b, l.o.Salt); ok && m.lsn == l.end && m.chain == l.endSum {
		sc.mark = &m
		return Frame{}, at, nil
	}
	f, sc.reason, err = sc.follower(at)
	if err != nil || len(f.b) > 0 || at%l.segBlocks == 0 || !l.freeLocked(at/l.segBlocks+1) {
		return f, at, err
	}
	at += l.segBlocks - at%l.segBlocks
	f, reason, err := sc.follower(at)
	if len(f.b) == 0 && reason != notNext {
		sc.badAt, sc.reason = at, reason
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
		return Frame{}, reason, nil
	}
	return f, "", nil
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
// with an intact header, that says so; or one that begins a segment up to last, which is entered only when
// everything before it is durable (W8).
func (sc *scanner) laterFrames(full, last Pos) (evidence string, err error) {
	l := sc.l
	lost := l.end + 1
	for p := l.endPos; p < full*l.segBlocks; p++ {
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
