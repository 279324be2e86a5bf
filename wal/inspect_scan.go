package wal

import (
	"errors"
	"io"
)

// scanPool visits every frame that lies in the pool, in the order of the log: the segments from the one that will be
// reused next to the newest.
//
// It is done twice. The first time finds the frames that lead to the checkpoint, for which all headers have to be known:
// the chain can be followed only backwards. The second time visits.
func (x *inspector) scanPool() error {
	if x.o.Start != nil {
		headers := map[frameName]Found{}
		x.eachFrame(false, func(f Found) error {
			if f.HeaderOK && !x.leftBehind(f) {
				headers[frameName{f.last(), f.Sum}] = f
			}
			return nil
		})
		x.link(headers)
	}
	return x.eachFrame(true, func(f Found) error {
		f.State = x.state(f)
		x.judgeFrame(f)
		if f.Reason == "" {
			x.out.Frames++
		}
		return x.visit(f)
	})
}

func (f *Found) last() LSN { return f.Header.First + LSN(f.Header.Records) - 1 }

// leftBehind tells whether a frame lies in the newest segment behind the end. If it is of the lap before, it is the true
// predecessor of the oldest frame in the log, but not in the log itself: it is about to be overwritten.
func (x *inspector) leftBehind(f Found) bool {
	return f.Pos/x.l.segBlocks >= x.l.newest && f.Pos >= x.l.endPos
}

// link follows the chain from the checkpoint back to the oldest frame. Segments are reused whole, so that in the
// checkpoint's own segment the chain cannot end but at the start: else it was broken by damage. Segments before that one
// prove nothing, as they may have been entered, and what was written then cut again.
func (x *inspector) link(headers map[frameName]Found) {
	l := x.l
	at, pos := frameName{l.checkpoint.LSN, l.checkpoint.Chain}, l.checkpoint.Pos
	for at.last > 0 {
		f, ok := headers[at]
		if !ok || x.linked[at] {
			break
		}
		x.linked[at] = true
		at, pos = frameName{f.Header.First - 1, f.Header.Chain}, f.Pos
	}
	if at.last > 0 && pos%l.segBlocks != 0 && pos/l.segBlocks == l.checkpoint.Pos/l.segBlocks {
		name, off := l.segmentAt(pos)
		x.mended(place(name, off), "the frame before, which ends with record %d, is damaged; a peer that lacks it is copied instead", at.last)
	}
}

func (x *inspector) state(f Found) FrameState {
	switch {
	case x.o.Start == nil:
		return FrameFound
	case x.live[f.Pos]:
		return FrameLive
	case f.HeaderOK && x.linked[frameName{f.last(), f.Sum}]:
		return FrameApplied
	case f.Header.First > x.l.end:
		return FrameBehind
	}
	return FrameLeft
}

// judgeFrame says what is wrong with a frame that should be whole. What lies behind the end was judged by followLog.
func (x *inspector) judgeFrame(f Found) {
	switch {
	case f.Reason == "":
	case f.State == FrameApplied:
		x.mended(place(f.Segment, f.Offset), "records %d to %d, which are in the image, are damaged in the log: %s; a peer that lacks them is copied instead",
			f.Header.First, f.last(), f.Reason)
	case f.State == FrameFound:
		x.problem(false, place(f.Segment, f.Offset), "frame of record %d: %s", f.Header.First, f.Reason)
	case f.State == FrameLeft && !f.HeaderOK && f.Pos < x.l.checkpoint.Pos:
		x.mended(place(f.Segment, f.Offset), "a frame before the checkpoint is damaged: %s; a peer that lacks it is copied instead", f.Reason)
	}
}

// eachFrame visits the frames of all segments. Without payload it does not read what is behind the headers.
func (x *inspector) eachFrame(payload bool, visit func(Found) error) error {
	n := Pos(len(x.l.files))
	first := Pos(0)
	if x.l.newest >= n {
		first = x.l.newest - n + 1
	}
	for s := first; s < first+n; s++ {
		if err := x.segmentFrames(s, payload, visit); err != nil {
			return err
		}
	}
	return nil
}

// segmentFrames visits the frames of one segment. Where there is none it looks at the next block: an intact header is
// believed about its frame's length, as all that is behind it was written after it or with it.
func (x *inspector) segmentFrames(s Pos, payload bool, visit func(Found) error) error {
	l := x.l
	if r, ok := l.files[l.slot(s*l.segBlocks)].(readOnly); ok && r.err != nil {
		return nil // that it is missing was said
	}
	sc := scanner{l: l}
	unreadable := false
	for p := s * l.segBlocks; p < (s+1)*l.segBlocks; {
		b, err := x.bytes(&sc, p, BlockSize)
		if err != nil {
			if payload && !unreadable && !errors.Is(err, io.EOF) { // a short file was said to be short
				name, off := l.segmentAt(p)
				x.problem(false, place(name, off), "cannot be read: %v", err)
			}
			unreadable = true
			p++
			continue
		}
		unreadable = false
		if le.Uint32(b[offMagic:]) != frameMagic || le.Uint64(b[offSalt:]) != l.o.Salt {
			p++
			continue
		}
		f := x.frameAt(&sc, p, b, payload)
		if err := visit(f); err != nil {
			return err
		}
		if f.HeaderOK {
			p += Pos(f.Bytes / BlockSize)
		} else {
			p++
		}
	}
	return nil
}

// bytes reads no more than is asked for when the scanner, which reads ahead, fails: one bad sector hides no frame
// before it.
func (x *inspector) bytes(sc *scanner, p Pos, n int) ([]byte, error) {
	if b, err := sc.bytes(p, n); err == nil {
		return b, nil
	}
	b := AlignedBuffer(n)
	return b, x.l.read(b, p)
}

// frameAt looks at what begins like a frame.
func (x *inspector) frameAt(sc *scanner, p Pos, b []byte, payload bool) Found {
	name, off := x.l.segmentAt(p)
	f := Found{Segment: name, Offset: off, Pos: p, Header: decodeHeader(b)}
	size, reason := frameSize(b)
	if reason != "" {
		f.Reason = reason
		return f
	}
	f.Bytes, f.Sum = size, le.Uint32(b[offSum:])
	rest := int(x.l.segBlocks-p%x.l.segBlocks) * BlockSize
	if size > rest {
		f.Reason = "the frame reaches past its segment"
		return f
	}
	want := headBytes(int(f.Header.Records), int(f.Header.Payload))
	if payload {
		want = size
	}
	b, err := x.bytes(sc, p, want)
	if err != nil {
		f.Reason = err.Error()
		return f
	}
	frame := Frame{b}
	if !frame.headIntact() {
		f.Reason = "header checksum does not match"
		return f
	}
	f.HeaderOK = true
	if !payload {
		return f
	}
	if v := le.Uint16(b[offVersion:]); v != formatVersion {
		f.Reason = (&VersionError{v}).Error()
		return f
	}
	if f.Reason = frame.check(); f.Reason == "" {
		f.Reason = frame.checkPayload()
	}
	if f.Reason == "" {
		f.Frame = frame
	}
	return f
}
