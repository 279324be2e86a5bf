package replication

import (
	"errors"
	"fmt"
	"time"

	"lockstep/blockdev"
)

// A replica whose disk is full is no member any more as soon as there is another way (blockdev.Store.Full: the data files
// find no space, and the log is nearly full of what they cannot take). A backup ends its stream and says why in its
// report: the primary goes on without it. A primary is replaced by a member that has room. When there is none, clients get
// ENOSPC for what they write, and read on. Whoever has space again is recruited, or takes writes, at once.

// fullTicks is how long writes wait at a full primary for a member that has room to take over.
const fullTicks = TicksPerSecond

// fullPause is how long a learner without space for a region waits before it has the copy begin anew.
const fullPause = 5 * time.Second

// fullText is what a full replica says of itself.
const fullText = "its disk is full; free some space, and it goes on by itself"

var errFull = errors.New("replication: this replica takes no frames: " + fullText)

// refusesWrites tells whether a write need not be queued, with mu held. While there is another member this replica may have
// been replaced without having heard of it, by one with room: a client is not to be told of an end that is none. A member
// that is full as well leaves the view.
func (r *Replica) refusesWrites() bool { return r.full >= fullTicks && r.core.alone() }

func (s *session) refuseFull(q *blockdev.Request, a *after) {
	q.Err = fmt.Errorf("volume %s: %w", s.r.hard.Volume.Name, blockdev.ErrNoSpace)
	a.completed = append(a.completed, pendingReq{req: q, s: s})
}

// tickFull looks for room, with mu held, and refuses the writes that have waited for it in vain.
func (r *Replica) tickFull(a *after) {
	if r.core.State() != StateOpen || !r.store.Full() {
		r.full = 0
		return
	}
	if r.full++; !r.refusesWrites() {
		return
	}
	for _, q := range r.queue {
		q.s.refuseFull(q.req, a)
	}
	clear(r.queue)
	r.queue, r.queueBytes = r.queue[:0], 0
}
