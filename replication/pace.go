package replication

import (
	"time"

	"lockstep/wal"
)

// Bringing a replica up to date takes a share of the disk and of the network that clients would have, and a client that
// writes as fast as it can runs away from the replica that is to follow it. Both are matters of pace:
//
//   - pacer limits what is sent. It looks at the effect on clients alone: how long the log's syncs take, held against
//     what they take when nothing is sent. While they are not much longer it sends ever more, else ever less.
//   - holdBack slows writes down, by a few milliseconds a frame and for a bounded time, when a learner is about to lose
//     its place: the part of the log that it needs next is going to be used again, or what waits for its socket is more
//     than is kept.
const (
	paceInterval = 50 * time.Millisecond // between two looks at the clients
	paceMin      = 4 << 20               // bytes per second: a learner arrives some day
	paceStart    = 64 << 20
	paceMax      = 16 << 30 // as good as no limit
	paceUp       = 1.25
	paceDown     = 0.6
	paceSlack    = 500 * time.Microsecond // a sync that takes so much longer than it should harms nobody
	paceBurst    = 20 * time.Millisecond  // of sending that may be made up for by one pause

	holdPause  = 5 * time.Millisecond // for one frame
	holdAll    = 20 * time.Second     // for one connection; then the learner has to begin again
	holdQueued = 4 << 20              // bytes that wait for a learner's socket: it is slower than the clients are
	holdShare  = 4                    // the learner's place is within this part of the log's oldest end
)

// syncTimes is how long the log's syncs take: now, and when nobody is brought up to date.
type syncTimes struct {
	count        uint64
	recent, calm time.Duration
}

// add takes the length of one sync. The averages forget quickly, and slowly.
func (t *syncTimes) add(d time.Duration, recruiting bool) {
	t.count++
	t.recent += (d - t.recent) / 8
	switch {
	case t.calm == 0:
		t.calm = d
	case !recruiting:
		t.calm += (d - t.calm) / 64
	case d < t.calm: // the disk has become faster
		t.calm += (d - t.calm) / 16
	}
}

// pacer says when the next bytes may go to a learner.
type pacer struct {
	fixed  float64 // bytes per second, by order of the operator; 0: none
	rate   float64
	debt   time.Duration // sending time that the bytes sent are ahead of the rate
	last   time.Time
	looked time.Time
	syncs  uint64
}

func newPacer(fixed int64, now time.Time) *pacer {
	return &pacer{fixed: float64(fixed), rate: paceStart, last: now, looked: now}
}

// sent tells of bytes that were sent, and returns how long to wait before the next.
func (p *pacer) sent(n int, now time.Time, clients syncTimes) time.Duration {
	p.look(now, clients)
	rate := p.rate
	if p.fixed > 0 {
		rate = p.fixed
	}
	p.debt = max(0, p.debt-now.Sub(p.last)) + time.Duration(float64(n)/rate*float64(time.Second))
	p.last = now
	if p.debt < paceBurst {
		return 0
	}
	return p.debt
}

// look adapts the rate to what clients feel.
func (p *pacer) look(now time.Time, clients syncTimes) {
	if now.Sub(p.looked) < paceInterval {
		return
	}
	busy := clients.count != p.syncs
	p.looked, p.syncs = now, clients.count
	switch {
	case !busy:
		p.rate = paceMax // nobody is there to be disturbed
	case clients.recent > clients.calm+clients.calm/2+paceSlack:
		p.rate = max(paceMin, min(p.rate, paceStart)*paceDown)
	default:
		p.rate = min(paceMax, min(p.rate, paceStart*8)*paceUp)
	}
}

// noteSync takes the length of a sync of the log.
func (r *Replica) noteSync(d time.Duration) {
	r.syncsMu.Lock()
	defer r.syncsMu.Unlock()
	r.syncs.add(d, r.shipping.Load() > 0)
}

// pacing makes a stream wait after it has sent something to a learner. A member has everybody waiting for it, and a
// learner that is about to lose its place has no time.
func (s *stream) pacing(n int) error {
	r := s.r
	r.mu.Lock()
	hurry := r.core.Required(s.peer) || r.nearFirst(s.next)
	r.mu.Unlock()
	if hurry {
		return nil
	}
	r.syncsMu.Lock()
	clients := r.syncs
	r.syncsMu.Unlock()
	if wait := s.pace.sent(n, r.rt.Now(), clients); wait > 0 {
		return s.pause(wait)
	}
	return nil
}

// behind tells whether some learner is about to lose its place and is still to be waited for, with mu held. It is looked
// at once a tick.
func (r *Replica) behind() bool {
	for _, s := range r.streams {
		if !s.up || s.held >= holdAll || r.core.Required(s.peer) || r.core.onTrial(s.peer) {
			continue
		}
		if s.direct && s.q.queued() > holdQueued || !s.direct && r.nearFirst(s.next) {
			s.held += time.Second / TicksPerSecond
			return true
		}
	}
	return false
}

// nearFirst tells whether a record is among the log's oldest.
func (r *Replica) nearFirst(l wal.LSN) bool {
	m := r.store.Marks()
	return m.First > 1 && l < m.First+(m.End-m.First)/holdShare
}

// queued is how many bytes wait for the socket.
func (q *sendq) queued() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.bytes
}
