package wal

import (
	"errors"
	"fmt"

	"lockstep/wal/vfs"
)

// ReadAt reads payload blocks that were written at a position (Frame.DataPos) and lie in one frame. They are as the
// disk gives them: the caller verifies them against their sums. A position whose segment was reused gives
// ErrCompacted or other bytes; a caller that races with reuse must be able to tell (W3: what it looks for is in
// the image by then).
func (l *Log) ReadAt(dst []byte, at Pos) error {
	if err := l.readable(dst, at); err != nil {
		return err
	}
	return l.read(dst, at)
}

// ReadCached is ReadAt for payload that is in memory. It returns false, and what dst holds is undefined, when that would
// have to wait for the disk, and whenever ReadAt would fail.
func (l *Log) ReadCached(dst []byte, at Pos) bool {
	if l.readable(dst, at) != nil {
		return false
	}
	file, off := l.locate(at)
	c, ok := file.(vfs.CacheReader)
	return ok && c.ReadCachedAt(dst, off)
}

// ReadDirect is ReadAt from the device, past the page cache where that can be.
func (l *Log) ReadDirect(dst []byte, at Pos) error {
	if err := l.readable(dst, at); err != nil {
		return err
	}
	file, off := l.locate(at)
	if d, ok := file.(vfs.DirectReader); ok {
		return d.ReadDirectAt(dst, off)
	}
	return l.read(dst, at)
}

// readable tells whether a position can be read.
func (l *Log) readable(dst []byte, at Pos) error {
	blocks := Pos(len(dst) / BlockSize)
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.err == ErrClosed:
		return l.err
	case len(dst)%BlockSize != 0 || at+blocks > l.endPos || at%l.segBlocks+blocks > l.segBlocks:
		return fmt.Errorf("wal: read of %d bytes at %d: not payload of a frame in the log", len(dst), at)
	case at/l.segBlocks+Pos(len(l.files)) <= l.newest:
		return ErrCompacted
	}
	return nil
}

// ReadFrames copies whole frames into buf, from the one that holds the record from, in order, as many as are in
// the log and fit, and returns their total size: 0 when from is beyond the end. The frames need not be durable. They
// are as the disk gives them; the receiver runs ParseFrame on each. Errors: ErrCompacted, *ShortBufferError.
func (l *Log) ReadFrames(from LSN, buf []byte) (int, error) {
	n, next, rewinds := 0, from, l.rewindCount()
	for {
		r, err := l.nextRun(next, len(buf)-n)
		if err == nil && r.bytes > 0 {
			err = l.read(buf[n:n+r.bytes], r.at)
		}
		if err == nil {
			err = l.confirm(r, rewinds)
		}
		switch {
		case err == errRewound:
			n, next, rewinds = 0, from, l.rewindCount()
			continue
		case err != nil && n > 0:
			return n, nil // that much is good; the next call meets the error again
		case err != nil:
			return 0, err
		case r.bytes == 0 && r.need > 0 && n == 0:
			return 0, &ShortBufferError{r.need}
		case r.bytes == 0:
			return n, nil
		}
		n += r.bytes
		next = r.last + 1
	}
}

// run is a sequence of frames that lie side by side in one segment.
type run struct {
	first, last LSN // first record of the first frame, last record of the last
	at          Pos
	bytes       int
	need        int // bytes == 0: size of the frame that did not fit, 0 at the end of the log
}

// nextRun finds the longest run from the frame that holds an LSN that is not longer than limit.
func (l *Log) nextRun(from LSN, limit int) (run, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == ErrClosed {
		return run{}, l.err
	}
	if from > l.end {
		return run{}, nil
	}
	i := l.index.find(from)
	if i < 0 {
		return run{}, ErrCompacted
	}
	e := l.index.at(i)
	if e.bytes() > limit {
		return run{need: e.bytes()}, nil
	}
	r := run{first: e.first, at: e.pos(), last: l.end}
	for end := e.pos(); i < l.index.n; i++ {
		e = l.index.at(i)
		if e.pos() != end || r.bytes > 0 && e.pos()%l.segBlocks == 0 || r.bytes+e.bytes() > limit {
			r.last = e.first - 1
			break
		}
		end = e.end()
		r.bytes += e.bytes()
	}
	return r, nil
}

// errRewound tells ReadFrames that the log was cut or reset beside it.
var errRewound = errors.New("wal: rewound")

// confirm tells whether a run that was read is what the log held: reuse and cuts change the index before they touch
// the disk.
func (l *Log) confirm(r run, rewinds uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rewinds != rewinds {
		return errRewound
	}
	if r.bytes > 0 && (l.index.n == 0 || l.index.at(0).first > r.first) {
		return ErrCompacted
	}
	return nil
}

func (l *Log) rewindCount() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rewinds
}

// StartAfter tells where recovery is to begin behind a record, which must be the last of a frame, or End. Errors:
// ErrNotFrameEnd, ErrCompacted, *CorruptError.
func (l *Log) StartAfter(to LSN) (Start, error) {
	l.mu.Lock()
	if l.err == ErrClosed {
		defer l.mu.Unlock()
		return Start{}, l.err
	}
	if to == l.end {
		defer l.mu.Unlock()
		return Start{LSN: to, Pos: l.endPos, Chain: l.endSum}, nil
	}
	if to == l.checkpoint.LSN {
		defer l.mu.Unlock()
		return l.checkpoint, nil
	}
	e, err := l.frameAfterLocked(to)
	l.mu.Unlock()
	if err != nil {
		return Start{}, err
	}
	head, err := l.readHead(e, new([]byte))
	if err != nil {
		return Start{}, err
	}
	return Start{LSN: to, Pos: e.pos(), Chain: head.Header().Chain}, nil
}

// frameAfterLocked finds the frame that begins behind an LSN below the end.
func (l *Log) frameAfterLocked(to LSN) (frameEntry, error) {
	if to > l.end {
		return frameEntry{}, fmt.Errorf("%w: record %d is beyond the end %d", ErrNotFrameEnd, to, l.end)
	}
	i := l.index.find(to + 1)
	if i < 0 {
		return frameEntry{}, ErrCompacted
	}
	e := l.index.at(i)
	if e.first != to+1 {
		return frameEntry{}, fmt.Errorf("%w: record %d is inside the frame that begins with %d", ErrNotFrameEnd, to, e.first)
	}
	return e, nil
}

// Heads calls each for every frame from the one that holds from to the one that holds to, in order: what the log changes
// can be known without reading its payload. Of a Frame only Header, Sum, the LSNs and Change may be used, and only
// within the call. Errors: ErrCompacted, *CorruptError.
func (l *Log) Heads(from, to LSN, each func(Frame)) error {
	var buf []byte
	for from <= to {
		e, err := l.frameOf(from)
		if err != nil {
			return err
		}
		f, err := l.readHead(e, &buf)
		if err != nil {
			return err
		}
		each(f)
		from = f.Last() + 1
	}
	return nil
}

// frameOf finds the frame that holds an LSN.
func (l *Log) frameOf(x LSN) (frameEntry, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == ErrClosed {
		return frameEntry{}, l.err
	}
	i := l.index.find(x)
	if i < 0 || x > l.end {
		return frameEntry{}, ErrCompacted
	}
	return l.index.at(i), nil
}

// BytesBetween is how much of the log lies behind the frame that holds from and not behind the one that holds to, of what
// the log still has.
func (l *Log) BytesBetween(from, to LSN) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	behind := func(x LSN) Pos {
		if x >= l.end || l.index.n == 0 {
			return l.endPos
		}
		return l.index.at(max(0, l.index.find(x+1))).pos()
	}
	return int64(behind(to)-behind(from)) * BlockSize
}

// readHead reads and verifies a frame's header area, into a buffer that it lets grow. Only Header, Sum, the LSNs and Change
// of the result may be used.
func (l *Log) readHead(e frameEntry, buf *[]byte) (Frame, error) {
	for {
		if len(*buf) == 0 {
			*buf = make([]byte, BlockSize)
		}
		b := *buf
		if err := l.read(b, e.pos()); err != nil {
			return Frame{}, err
		}
		n, reason := frameSize(b)
		if reason == "" && n != e.bytes() {
			reason = "size differs from when it was written"
		}
		head := 0
		if reason == "" {
			head = headBytes(int(le.Uint32(b[offRecords:])), int(le.Uint32(b[offPayload:])))
			if len(b) < head {
				*buf = make([]byte, head)
				continue
			}
			if f := (Frame{b[:head]}); f.headIntact() && f.First() == e.first {
				return f, nil
			}
			reason = "header checksum does not match"
		}
		name, off := l.segmentAt(e.pos())
		return Frame{}, &CorruptError{Segment: name, Offset: off, LSN: e.first, Reason: reason}
	}
}

func (l *Log) read(dst []byte, at Pos) error {
	file, off := l.locate(at)
	if _, err := file.ReadAt(dst, off); err != nil {
		name, _ := l.segmentAt(at)
		return fmt.Errorf("wal: read %s at byte %d: %w", name, off, err)
	}
	return nil
}
