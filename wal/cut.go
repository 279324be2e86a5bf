package wal

import (
	"fmt"
	"slices"
)

// The end mark makes a cut atomic. It is one sector, written where the next frame would go, and says: the log ends
// here by decree. Once it is stable the frames behind it ("ghosts") are erased in any order, and then the mark
// itself. A crash in between leaves the log as it was or cut; recovery finishes an erasure that was begun. Without
// it a crash could leave a later ghost, but not the first one: a hole, which W7 would have to call corruption.
//
// Field          offset  size
// magic "LKSE"        0     4
// crc32c of 8..511    4     4
// salt                8     8
// last LSN           16     8
// sum of last frame  24     4   (4 bytes unused)
// ghosts end before  32     8   Pos
// zero               40   472
const (
	markBytes = 512 // the unit that a disk writes whole
	markMagic = 0x45534b4c

	markLSN   = 16
	markChain = 24
	markUntil = 32
)

type endMark struct {
	lsn   LSN
	chain uint32
	until Pos
}

func (m endMark) encode(b []byte, salt uint64) {
	clear(b[:markBytes])
	le.PutUint32(b[offMagic:], markMagic)
	le.PutUint64(b[8:], salt)
	le.PutUint64(b[markLSN:], uint64(m.lsn))
	le.PutUint32(b[markChain:], m.chain)
	le.PutUint64(b[markUntil:], uint64(m.until))
	le.PutUint32(b[offSum:], crc(b[8:markBytes]))
}

func parseMark(b []byte, salt uint64) (m endMark, ok bool) {
	if len(b) < markBytes || le.Uint32(b[offMagic:]) != markMagic || le.Uint64(b[8:]) != salt ||
		le.Uint32(b[offSum:]) != crc(b[8:markBytes]) {
		return endMark{}, false
	}
	return endMark{LSN(le.Uint64(b[markLSN:])), le.Uint32(b[markChain:]), Pos(le.Uint64(b[markUntil:]))}, true
}

// Cut forgets every record behind to, the last record of a frame, durably (W4). No reader sees a cut frame after
// Cut began; after it returned none comes back, whatever crashes. It must not run beside Append. Errors:
// ErrNotFrameEnd, ErrCheckpointed, *CorruptError change nothing; any other poisons the log.
func (l *Log) Cut(to LSN) error {
	l.writeMu.Lock()
	defer l.writeMu.Unlock()
	l.syncMu.Lock()
	defer l.syncMu.Unlock()

	l.mu.Lock()
	if l.err != nil || to == l.end {
		defer l.mu.Unlock()
		return l.err
	}
	if to < l.checkpoint.LSN {
		defer l.mu.Unlock()
		return fmt.Errorf("%w: record %d, checkpoint at %d", ErrCheckpointed, to, l.checkpoint.LSN)
	}
	if _, err := l.frameAfterLocked(to); err != nil {
		defer l.mu.Unlock()
		return err
	}
	first := l.index.find(to + 1)
	// At the checkpoint the log ends where recovery begins, though there may be room before that.
	end, sum := l.checkpoint.Pos, l.checkpoint.Chain
	var last frameEntry
	if to > l.checkpoint.LSN {
		last = l.index.at(first - 1)
		end = last.end()
	}
	l.mu.Unlock()
	if to > l.checkpoint.LSN {
		f, err := l.readHead(last, new([]byte))
		if err != nil {
			return err
		}
		sum = f.Sum()
	}

	l.mu.Lock()
	ghosts := make([]Pos, 0, l.index.n-first)
	for i := first; i < l.index.n; i++ {
		ghosts = append(ghosts, l.index.at(i).pos())
	}
	until := l.endPos
	l.index.dropBack(first)
	l.rewinds++
	l.end, l.endPos, l.endSum = to, end, sum
	l.durable = min(l.durable, to)
	l.hinted = min(l.hinted, end)
	l.mu.Unlock()
	return l.erase(ghosts, until)
}

// erase makes the log end at endPos on the disk too: ghosts are the positions of all frames behind it, all before
// until. writeMu and syncMu are held, or nobody else has the log yet.
func (l *Log) erase(ghosts []Pos, until Pos) error {
	at := l.endPos
	if l.o.broken.has(keepGhosts) {
		ghosts = nil
	}
	block := AlignedBuffer(BlockSize)
	marked := !l.o.broken.has(noEndMark) && l.freeLocked(at/l.segBlocks)
	if marked {
		endMark{l.end, l.endSum, until}.encode(block, l.o.Salt)
		if err := l.writeStable(block[:markBytes], at); err != nil {
			return err
		}
		clear(block)
	}
	if err := l.zero(ghosts, at, marked); err != nil {
		return err
	}
	if !marked {
		return nil
	}
	// The mark goes last, and before anything is appended: where the next frame does not fit here, the mark
	// would stand for ever between it and the frames before.
	return l.writeStable(block, at)
}

// zero erases the first block of every frame in ghosts, durably; not the one at except, if that is a mark.
func (l *Log) zero(ghosts []Pos, except Pos, marked bool) error {
	block := AlignedBuffer(BlockSize)
	var segs []Pos
	for _, p := range ghosts {
		if marked && p == except {
			continue
		}
		if err := l.write(block, p); err != nil {
			return err
		}
		if s := p / l.segBlocks; !slices.Contains(segs, s) {
			segs = append(segs, s)
		}
	}
	if l.o.broken.has(unsyncedErase) {
		return nil
	}
	for _, s := range segs {
		if err := l.syncSegment(s); err != nil {
			return err
		}
	}
	return nil
}

func (l *Log) writeStable(b []byte, at Pos) error {
	if err := l.write(b, at); err != nil {
		return err
	}
	return l.syncSegment(at / l.segBlocks)
}

// BlankAfter gives the Start for a log that is to hold nothing, and to go on behind the record to, whose frame's
// sum is chain. The owner makes it durable, and then calls Reset; from that moment a crash leads to the blank log,
// because Open does what Reset did not finish.
func (l *Log) BlankAfter(to LSN, chain uint32) Start {
	l.mu.Lock()
	defer l.mu.Unlock()
	// A fresh segment, beyond every position used so far.
	s := max(l.newest, (l.endPos+l.segBlocks-1)/l.segBlocks) + 1
	return Start{LSN: to, Pos: s * l.segBlocks, Chain: chain, Blank: true}
}

// Reset forgets everything: the log goes on at s, a value of BlankAfter that the owner has made durable. When it
// returns, no frame behind s.LSN is left on the disk, and the owner drops Blank from the Start that it keeps, before
// it appends. It must not run beside Append.
func (l *Log) Reset(s Start) error {
	l.writeMu.Lock()
	defer l.writeMu.Unlock()
	l.syncMu.Lock()
	defer l.syncMu.Unlock()
	l.mu.Lock()
	if l.err != nil {
		defer l.mu.Unlock()
		return l.err
	}
	if !s.Blank || s.Pos < l.endPos || s.Pos%l.segBlocks != 0 {
		defer l.mu.Unlock()
		return fmt.Errorf("wal: reset to position %d, the log ends at %d: not a value of BlankAfter", s.Pos, l.endPos)
	}
	l.rewinds++
	l.index = frameIndex{}
	l.blankLocked(s)
	l.mu.Unlock()
	return l.eraseAll()
}

// blankLocked makes the log end where it starts. Nothing of earlier positions can be read any more.
func (l *Log) blankLocked(s Start) {
	l.checkpoint = Start{LSN: s.LSN, Pos: s.Pos, Chain: s.Chain}
	l.end, l.durable, l.endPos, l.endSum = s.LSN, s.LSN, s.Pos, s.Chain
	l.newest = max(l.newest, s.Pos/l.segBlocks+Pos(len(l.files))-1)
}

// eraseAll erases every frame behind the end and every mark, wherever they are in the pool.
func (l *Log) eraseAll() error {
	sc := scanner{l: l}
	var ghosts []Pos
	first := l.endPos / l.segBlocks
	for s := first; s < first+Pos(len(l.files)); s++ {
		var err error
		if ghosts, err = sc.ghosts(ghosts, s*l.segBlocks, (s+1)*l.segBlocks); err != nil {
			return err
		}
	}
	return l.zero(ghosts, 0, false)
}
