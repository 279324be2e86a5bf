package blockdev

import (
	"sort"

	"lockstep/wal"
)

// frameInfo is a frame of the log that is not applied yet.
type frameInfo struct {
	first, last wal.LSN
	at, end     wal.Pos // end is right behind it
	sum         uint32  // the next frame's chain
	recs, sums  uint32  // how many it has in pendingFrames; all 0 once it is committed
	marks       uint32
}

// change is one record of an uncommitted frame, as Commit will need it.
type change struct {
	block uint64
	count uint64
	lsn   wal.LSN
	pos   wal.Pos // of the first payload block; 0 for a ZERO or TRIM
	sum   uint32  // of a ZERO's or TRIM's blocks
}

// pendingFrames holds what is known of the frames between applied and the log's end: all of them in frames, and
// the changes of those that are not committed yet. Its size is bounded by the log's. Guarded by Store.mu.
type pendingFrames struct {
	frames    ring[frameInfo]
	committed int // frames[:committed] are committed
	changes   ring[change]
	sums      ring[uint32]
	marks     ring[mark]
}

// add takes a frame in that was appended at a position.
func (p *pendingFrames) add(f wal.Frame, at wal.Pos) {
	info := frameInfo{
		first: f.First(), last: f.Last(), at: at,
		end: at + wal.Pos(len(f.Bytes())/BlockSize), sum: f.Sum(),
	}
	for i := range f.Records() {
		r, _, sums := f.Record(i)
		if m := (mark{r.Session, r.Seq, r.Kind == wal.KindAttach}); m.session != 0 {
			// A request can have several records, all in this frame.
			if info.marks == 0 || *p.marks.at(p.marks.len() - 1) != m {
				p.marks.push(m)
				info.marks++
			}
		}
		c := change{block: r.Block, count: uint64(r.Count), lsn: info.first + wal.LSN(i)}
		switch r.Kind {
		case wal.KindView, wal.KindAttach:
			continue
		case wal.KindWrite:
			c.pos = f.DataPos(at, i)
			for j := range sums.Len() {
				p.sums.push(sums.At(j))
			}
			info.sums += uint32(sums.Len())
		case wal.KindZero, wal.KindTrim:
			c.sum = zeroSum(r)
		}
		p.changes.push(c)
		info.recs++
	}
	p.frames.push(info)
}

// cut forgets the uncommitted frames behind l.
func (p *pendingFrames) cut(l wal.LSN) {
	for p.frames.len() > p.committed {
		f := p.frames.at(p.frames.len() - 1)
		if f.last <= l {
			return
		}
		p.changes.dropBack(int(f.recs))
		p.sums.dropBack(int(f.sums))
		p.marks.dropBack(int(f.marks))
		p.frames.dropBack(1)
	}
}

// reset forgets all.
func (p *pendingFrames) reset() {
	p.frames.dropBack(p.frames.len())
	p.changes.dropBack(p.changes.len())
	p.sums.dropBack(p.sums.len())
	p.marks.dropBack(p.marks.len())
	p.committed = 0
}

// applied forgets the committed frames up to l.
func (p *pendingFrames) applied(l wal.LSN) {
	n := 0
	for n < p.committed && p.frames.at(n).last <= l {
		n++
	}
	p.frames.dropFront(n)
	p.committed -= n
}

// frameAt finds the frame that holds l.
func (p *pendingFrames) frameAt(l wal.LSN) (frameInfo, bool) {
	i := sort.Search(p.frames.len(), func(i int) bool { return p.frames.at(i).last >= l })
	if i == p.frames.len() || p.frames.at(i).first > l {
		return frameInfo{}, false
	}
	return *p.frames.at(i), true
}

// newest finds where uncommitted frames have put the blocks from block on, and leaves the others of dst alone.
func (p *pendingFrames) newest(block uint64, dst []loc) {
	sums := 0
	for i := range p.changes.len() {
		c := p.changes.at(i)
		for b := max(c.block, block); b < min(c.block+c.count, block+uint64(len(dst))); b++ {
			if c.pos == 0 {
				dst[b-block] = zeroLoc(c.lsn, c.sum)
			} else {
				k := b - c.block
				dst[b-block] = loc{c.pos + wal.Pos(k), *p.sums.at(sums + int(k))}
			}
		}
		if c.pos != 0 {
			sums += int(c.count)
		}
	}
}
