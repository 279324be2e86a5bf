package wal

import (
	"fmt"
	"path"
	"sync"
	"sync/atomic"
	"time"

	"lockstep/wal/vfs"
)

// Pos is a position in the log, in units of BlockSize since the log was created. Segment Pos / blocks-per-segment
// lies in file segment % segments. It grows for the life of the log; only a cut sets it back.
type Pos uint64

// Start is where a log goes on: behind the record LSN. The owner keeps the one of its last checkpoint.
type Start struct {
	LSN   LSN    // last record before
	Pos   Pos    // where the next frame is, or else behind the frame that ends with LSN
	Chain uint32 // sum of the frame that ends with LSN
	// Blank says that the log holds nothing behind LSN by decree, whatever is found there (Reset).
	Blank bool
	// Learner says that frames may have come here long after others had them on stable storage: what they say of that
	// is true, and proves nothing of this log (W7).
	Learner bool
	// Durable is the last record that the owner knows to have been durable, at a clean stop: a bad frame up to
	// there is corruption, no torn tail. The owner must have made it 0, durably, before it changes the log. 0 if unknown.
	Durable LSN
}

// Log is an open log. One goroutine at a time appends, cuts or resets; one at a time syncs, beside the first; any
// number reads.
//
// Locks are taken in the order writeMu, syncMu, mu.
type Log struct {
	o         Options
	segBlocks Pos
	files     []vfs.File // by slot: segment % len(files)

	writeMu sync.Mutex // held by Append, Cut and Reset
	syncMu  sync.Mutex // held while files are synced, and by whoever wants no sync beside

	opened  time.Time
	writing atomic.Int64 // ns after opened when the write that is under way began, 0 if none is; changed under writeMu
	syncing atomic.Int64 // likewise for the sync, under syncMu

	mu sync.Mutex // guards everything below; never held during I/O

	index frameIndex
	// Invariant: checkpoint.LSN ≤ durable ≤ end, and all frames behind durable lie in one segment, the last (W8).
	checkpoint Start
	durable    LSN
	end        LSN
	endPos     Pos    // behind the last frame
	endSum     uint32 // of the last frame

	hinted Pos // behind what was durable or given to StartWriteback

	newest  Pos    // highest segment entered: what it replaced cannot be read any more
	rewinds uint64 // cuts and resets so far; a reader that sees it change starts over
	err     error  // W5: the first write or sync error, for ever; or ErrClosed
}

// Append writes a frame at the end of the log and tells where. It is readable at once, and durable after the next
// Sync. The frame's memory is the caller's again on return. Errors: ErrNotNext, ErrFull, *FrameTooLargeError leave the
// log as it was; any other poisons it (W5).
func (l *Log) Append(f Frame) (Pos, error) {
	l.writeMu.Lock()
	defer l.writeMu.Unlock()
	at, err := l.place(f)
	if err != nil {
		return 0, err
	}
	if at%l.segBlocks == 0 {
		if err := l.enter(at / l.segBlocks); err != nil {
			return 0, err
		}
	}
	if err := l.writeFrame(f.b, at); err != nil {
		return 0, err
	}
	blocks := Pos(len(f.b) / BlockSize)
	l.mu.Lock()
	l.index.push(f.First(), at, int(blocks))
	l.end, l.endSum, l.endPos = f.Last(), f.Sum(), at+blocks
	from := max(l.hinted, at/l.segBlocks*l.segBlocks)
	hint := l.endPos-from >= hintBlocks
	if hint {
		l.hinted = l.endPos
	}
	l.mu.Unlock()
	if hint {
		l.startWriteback(from, at+blocks-from)
	}
	return at, nil
}

// pieceBytes is how much of a large frame is written at a time: the disk works on one piece while the next is copied.
const pieceBytes = 256 << 10

func (l *Log) writeFrame(b []byte, at Pos) error {
	for ; len(b) > pieceBytes; b, at = b[pieceBytes:], at+pieceBytes/BlockSize {
		if err := l.write(b[:pieceBytes], at); err != nil {
			return err
		}
		l.startWriteback(at, pieceBytes/BlockSize)
	}
	return l.write(b, at)
}

// startWriteback hands what was written to the disk. That can wait for room in the disk's queue, and as long as a write would if
// the disk hangs.
func (l *Log) startWriteback(at, blocks Pos) {
	file, off := l.locate(at)
	l.writing.Store(l.now())
	file.StartWriteback(off, int64(blocks)*BlockSize)
	l.writing.Store(0)
}

// hintBlocks is how much is appended without a Sync before the disk is asked to begin: the Sync at the end of a
// segment is then not a long one.
const hintBlocks = 4 << 20 / BlockSize

// place checks that a frame is the next and finds its position: at the end, or at the start of the next segment
// where the rest of this one is too short.
func (l *Log) place(f Frame) (Pos, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return 0, l.err
	}
	if len(f.b) == 0 {
		return 0, fmt.Errorf("%w: it is empty", ErrNotNext)
	}
	h := f.Header()
	if h.Salt != l.o.Salt {
		return 0, fmt.Errorf("%w: it belongs to another volume (salt %x, not %x)", ErrNotNext, h.Salt, l.o.Salt)
	}
	if h.First != l.end+1 || (h.Chain != l.endSum && !l.o.broken.has(ignoreChain)) {
		return 0, fmt.Errorf("%w: record %d on %08x, the log ends with record %d, %08x",
			ErrNotNext, h.First, h.Chain, l.end, l.endSum)
	}
	if len(f.b) > l.MaxFrame() {
		return 0, &FrameTooLargeError{len(f.b), l.MaxFrame()}
	}
	at := l.fit(l.endPos, Pos(len(f.b)/BlockSize))
	if at%l.segBlocks == 0 && !l.freeLocked(at/l.segBlocks) {
		return 0, ErrFull
	}
	return at, nil
}

// fit is where a frame of so many blocks goes when the log ends at p.
func (l *Log) fit(p, blocks Pos) Pos {
	if rest := l.segBlocks - p%l.segBlocks; blocks > rest {
		return p + rest
	}
	return p
}

// freeLocked tells whether segment s may be entered: the one whose file it takes lies wholly before the
// checkpoint (W3).
func (l *Log) freeLocked(s Pos) bool {
	return s < l.checkpoint.Pos/l.segBlocks+Pos(len(l.files)) || l.o.broken.has(ignoreCheckpoint)
}

// enter prepares segment s for its first frame. Everything before it is made durable (W8), so that a crash leaves
// pieces of unfinished frames in one segment only, and Sync has one file to sync. The frames of the segment that it
// replaces are in the log no longer.
func (l *Log) enter(s Pos) error {
	if !l.o.broken.has(lazySegments) {
		if _, err := l.Sync(); err != nil {
			return err
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := Pos(len(l.files)); s >= n {
		l.index.dropFront(l.index.before((s - n + 1) * l.segBlocks))
	}
	l.newest = max(l.newest, s)
	return nil
}

// write puts bytes at a position. They must not span segments.
func (l *Log) write(b []byte, at Pos) error {
	file, off := l.locate(at)
	l.writing.Store(l.now())
	_, err := file.WriteAt(b, off)
	l.writing.Store(0)
	if err != nil {
		return l.poison("write", at, err)
	}
	return nil
}

func (l *Log) now() int64 { return 1 + int64(l.o.Now().Sub(l.opened)) }

// OldestIO is how long the disk has been at the write or the sync that it was given first and is not done with; 0 when
// it has nothing to do. A disk that hangs shows here.
func (l *Log) OldestIO() time.Duration {
	oldest := time.Duration(0)
	for _, began := range []int64{l.writing.Load(), l.syncing.Load()} {
		if began != 0 {
			oldest = max(oldest, time.Duration(l.now()-began))
		}
	}
	return oldest
}

// Sync makes every frame durable that was appended before the call, and returns the last one's LSN. It may run
// beside Append. An error poisons the log (W5).
func (l *Log) Sync() (LSN, error) {
	l.syncMu.Lock()
	defer l.syncMu.Unlock()
	l.mu.Lock()
	target, pos := l.end, l.endPos
	if l.err != nil || target == l.durable {
		defer l.mu.Unlock()
		return target, l.err
	}
	l.mu.Unlock()
	// By W8 one file has all that is not durable. The frames appended from here on are left to the next Sync.
	if err := l.syncSegment((pos - 1) / l.segBlocks); err != nil {
		return 0, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.durable = max(l.durable, target)
	l.hinted = max(l.hinted, pos)
	return target, nil
}

func (l *Log) syncSegment(s Pos) error {
	file := l.files[s%Pos(len(l.files))]
	if l.o.broken.has(noSync) {
		return nil
	}
	l.syncing.Store(l.now())
	err := file.Sync()
	l.syncing.Store(0)
	if err != nil && l.o.broken.has(retrySync) {
		err = file.Sync()
	}
	if err != nil {
		return l.poison("sync", s*l.segBlocks, err)
	}
	return nil
}

// poison makes the first write or sync error the answer to everything from now on (W5): after it nobody knows
// what is on the disk, and a sync that succeeds later proves nothing.
func (l *Log) poison(op string, at Pos, err error) error {
	name, off := l.segmentAt(at)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		l.err = fmt.Errorf("wal: %s %s at byte %d: %w (the log takes no more records: check the disk, then restart the node)",
			op, name, off, err)
	}
	return l.err
}

// Restore puts payload back, durably, that was appended at a position and went bad there. The owner knows from their
// sums that the blocks are what was there, and that the position is not reused or cut meanwhile.
func (l *Log) Restore(data []byte, at Pos) error {
	if err := l.readable(data, at); err != nil {
		return err
	}
	l.writeMu.Lock()
	defer l.writeMu.Unlock()
	l.syncMu.Lock()
	defer l.syncMu.Unlock()
	if err := l.Err(); err != nil {
		return err
	}
	return l.writeStable(data, at)
}

// locate gives the file that holds a position, and the offset in it.
func (l *Log) locate(p Pos) (vfs.File, int64) {
	return l.files[l.slot(p)], int64(p%l.segBlocks) * BlockSize
}

func (l *Log) slot(p Pos) int { return int(p / l.segBlocks % Pos(len(l.files))) }

func (l *Log) segmentAt(p Pos) (name string, off int64) {
	return path.Join(l.o.Dir, segmentName(l.slot(p))), int64(p%l.segBlocks) * BlockSize
}

// Checkpointed tells the log that everything up to s.LSN is in the image and that recovery begins at s, which
// the owner has stored durably: segments wholly before s.Pos may be reused (W3). Their frames stay
// readable until they are.
func (l *Log) Checkpointed(s Start) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s.LSN > l.durable {
		panic(fmt.Sprintf("wal: checkpoint at record %d, but only %d is durable", s.LSN, l.durable))
	}
	if s.LSN > l.checkpoint.LSN {
		l.checkpoint = Start{LSN: s.LSN, Pos: s.Pos, Chain: s.Chain}
	}
}

// Close closes the files without a sync. Nothing may be under way.
func (l *Log) Close() error {
	l.writeMu.Lock()
	defer l.writeMu.Unlock()
	l.syncMu.Lock()
	defer l.syncMu.Unlock()
	l.mu.Lock()
	if l.err == ErrClosed {
		defer l.mu.Unlock()
		return nil
	}
	l.err = ErrClosed
	l.mu.Unlock()
	if err := closeAll(l.files); err != nil {
		return fmt.Errorf("wal: close: %w", err)
	}
	return nil
}
