package wal

import (
	"errors"
	"fmt"
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
	// Corruption is what Open would refuse the log for. Inspect's alone.
	Corruption *CorruptError
	// Rotten is the last frame of which the payload is bad, though it was durable. It was visited like any other.
	Rotten *CorruptError
}

// Open recovers a log from start, the owner's last checkpoint. It first makes everything stable (W6), then calls visit
// for each good frame in order; the frame lives until visit returns. The torn tail of a crash is cut (W4). A bad frame that
// cannot be a torn tail (W7) gives a *CorruptError, and nothing is changed on disk; but if its header area is whole, it is
// visited, and the owner knows from its sums which of its blocks are lost.
// Other errors: *SegmentError, *VersionError, and visit's.
func Open(o Options, start Start, visit func(f Frame, at Pos) error) (*Log, Recovery, error) {
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
	l := &Log{o: o, segBlocks: Pos(o.SegmentBytes / BlockSize), files: files, opened: o.Now()}
	l.checkpoint = Start{LSN: start.LSN, Pos: start.Pos, Chain: start.Chain}
	l.end, l.endPos, l.endSum = start.LSN, start.Pos, start.Chain
	l.newest = start.Pos / l.segBlocks
	var r Recovery
	if start.Blank {
		l.blankLocked(start)
		err = l.eraseAll()
	} else {
		r, err = l.recover(start, visit)
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
func (l *Log) recover(start Start, visit func(f Frame, at Pos) error) (Recovery, error) {
	var r Recovery
	sc := scanner{l: l}
	for {
		f, at, err := sc.next()
		if err != nil {
			return r, err
		}
		if len(f.b) == 0 {
			ghosts, until, err := l.judge(&sc, &r, start)
			if errors.As(err, &r.Rotten) && sc.rotten {
				at = sc.badAt
				f, err = sc.rottenFrame()
			} else if err == nil && until != 0 {
				return r, l.erase(ghosts, until)
			} else if err == nil {
				return r, nil
			}
			if err != nil {
				return r, err
			}
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
}

// judge decides what the end of the good frames is, a torn tail or corruption, and gives what lies behind and is to be
// erased: ghosts, all before until, which is 0 when there is nothing to do. It changes nothing, so that Inspect can
// foretell what Open would do.
//
// By W8 unfinished frames are in one segment: that of the end, or the next. These two are read whole; of the others
// the first block, where every segment in use has a frame.
func (l *Log) judge(sc *scanner, r *Recovery, start Start) (ghosts []Pos, until Pos, err error) {
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
		if evidence, err = sc.laterFrames(full, last, !start.Learner); err != nil {
			return nil, 0, err
		}
	}
	if sc.mark == nil && evidence != "" && !l.o.broken.has(callItTorn) {
		name, off := l.segmentAt(sc.badAt)
		return nil, 0, &CorruptError{Segment: name, Offset: off, LSN: l.end + 1, Reason: sc.reason, Evidence: evidence}
	}
	ghosts, err = sc.ghosts(nil, l.endPos, full*l.segBlocks)
	if err != nil || len(ghosts) == 0 && sc.mark == nil {
		return nil, 0, err
	}
	r.Torn, r.TornAt, r.Erased = true, l.endPos, len(ghosts)
	return ghosts, full * l.segBlocks, nil
}
