package replication

import (
	"time"

	"lockstep/blockdev"
	"lockstep/wal"
)

// A learner has arrived when it lacks so little that commit can wait for it (joinLag). Nothing sees to it but this: the
// disk and the processor that it needs are the clients', or are slower than theirs. approach looks once a second at how much the
// learner lacks. Each look that finds no progress raises the effort: first pacing ends, then writes are held back, by
// ever more milliseconds a frame. Writes are also held back for a learner that is about to lose its place: the part
// of the log that it needs next is going to be used again, or what waits for its socket is more than is kept.
//
// Both are smooth, there is never a pause beyond holdMax; and both end, when a learner has made no progress for holdAll.
const (
	holdMin    = 2 * time.Millisecond // for one frame
	holdMax    = 20 * time.Millisecond
	holdAll    = 20 * time.Second // without progress; then the learner has to begin again
	holdQueued = 4 << 20          // bytes that wait for a learner's socket: it is slower than the clients are
	holdShare  = 4                // the learner's place is within this part of the log's oldest end

	lookTicks = TicksPerSecond // between two looks
	lookGain  = 8              // progress is an eighth less, or more of the image
	maxEffort = 5              // holdMin << (maxEffort-2) is holdMax, nearly
)

// approach is how a learner comes along. The stream's connection begins with a zero one.
type approach struct {
	effort int // 0: at the pacer's pace. 1: as fast as can be. More: writes are held back
	ticks  int
	gap    uint64 // records that it lacked at the last look, or blocks of the log if these were more
	copied uint64 // bytes of the image that it had been sent
	idle   time.Duration
}

func (a *approach) hurries() bool { return a.effort > 0 }

// tick takes what a learner lacks: so many records or blocks of the log, and the image or not, of which it was sent so
// many bytes. It returns by how much each frame is to be held back that it may arrive.
func (a *approach) tick(gap uint64, whole bool, copied uint64) time.Duration {
	if a.ticks++; a.ticks >= lookTicks {
		a.look(gap, whole, copied)
	}
	if gap <= joinLag || a.effort < 2 {
		return 0
	}
	return min(holdMin<<(a.effort-2), holdMax)
}

func (a *approach) look(gap uint64, whole bool, copied uint64) {
	forward := gap <= joinLag || gap < a.gap-a.gap/lookGain
	switch {
	case !whole: // what it lacks of the log may stay as it is
		forward = forward || copied > a.copied
		a.effort = 0
	case gap <= joinLag:
		a.effort = 0
	case a.gap != 0 && !forward:
		a.effort = min(a.effort+1, maxEffort)
	}
	if forward {
		a.idle = 0
	}
	a.ticks, a.gap, a.copied = 0, gap, copied
}

// tickLearners looks at the learners once a tick, with mu held, and finds by how much frames are held back that they may
// arrive.
func (r *Replica) tickLearners() {
	r.holding = 0
	for _, s := range r.streams {
		if !s.follows() {
			continue
		}
		d := s.lack()
		if d > 0 || s.peril() > 0 {
			s.near.idle += time.Second / TicksPerSecond
		}
		if s.near.idle < holdAll {
			r.holding = max(r.holding, d)
		}
	}
}

// hold is for how long the frame that was just made is held back, with mu held: as the last tick found, or for a learner
// that is about to lose its place. That is looked at with each frame: a small log is used up within a tick.
func (r *Replica) hold() time.Duration {
	most := r.holding
	for _, s := range r.streams {
		if s.follows() && s.near.idle < holdAll {
			most = max(most, s.peril())
		}
	}
	return most
}

// follows tells whether writes may be held back for the stream's peer, with mu held: it is a learner that would join.
func (s *stream) follows() bool {
	return s.up && !s.r.core.Required(s.peer) && !s.r.core.onTrial(s.peer)
}

// lack is by how much a learner would have frames held back that it may arrive; mu is held. It is called once a tick.
func (s *stream) lack() time.Duration {
	r := s.r
	p := r.core.find(s.peer)
	if p == nil || p.written == 0 {
		return 0
	}
	r.core.Lacks(p.id, uint64(r.store.LogBytes(p.written, r.end))/blockdev.BlockSize)
	if r.end <= p.written {
		return 0
	}
	return s.near.tick(max(uint64(r.end-p.written), p.lacks), p.copied, s.copyBytes)
}

// peril is by how much a learner would have frames held back that it may not lose its place; mu is held.
func (s *stream) peril() time.Duration {
	danger := 0.0
	if s.direct {
		danger = min(1, float64(s.q.queued())/holdQueued-1)
	} else {
		danger = s.r.danger(s.next)
	}
	if danger <= 0 {
		return 0
	}
	return holdMin + time.Duration(danger*float64(holdMax-holdMin))
}

// danger tells how far a record is on its way, 0 to 1, from the log's oldest part to its end, where it is used again.
func (r *Replica) danger(l wal.LSN) float64 {
	m := r.store.Marks()
	oldest := (m.End - m.First) / holdShare
	if m.First <= 1 || oldest == 0 || l >= m.First+oldest {
		return 0
	}
	if l <= m.First {
		return 1
	}
	return 1 - float64(l-m.First)/float64(oldest)
}

// queued is how many bytes wait for the socket.
func (q *sendq) queued() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.bytes
}
