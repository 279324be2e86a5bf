package replication

import "time"

// Bringing a replica up to date takes a share of the disk and of the network that clients would have, and a client that
// writes as fast as it can runs away from the replica that is to follow it. Both are matters of pace:
//
//   - pacer limits what is sent. It looks at the effect on clients alone: how long the log's syncs take, held against
//     what they take when nothing is sent. While they are not much longer it sends ever more, else ever less; but never
//     less of the log than clients write, and some more: a learner that is sent less never arrives.
//   - approach.go looks at whether a learner arrives all the same, and slows writes down if it does not.
const (
	paceInterval = 50 * time.Millisecond // between two looks at the clients
	paceMin      = 8 << 20               // bytes per second: a learner arrives some day
	paceStart    = 64 << 20
	paceMax      = 16 << 30 // as good as no limit
	paceUp       = 1.25
	paceDown     = 0.6
	paceSlack    = 500 * time.Microsecond // a sync that takes so much longer than it should harms nobody
	paceBurst    = 20 * time.Millisecond  // of sending that may be made up for by one pause
	paceGain     = 1.5                    // of what clients write is sent of the log at least
	paceRegions  = 0.5                    // of what clients write is sent of the image at least
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
	logged uint64    // bytes of frames made until then
	ingest float64   // bytes of frames made per second
	region time.Time // when the next region may go
}

func newPacer(fixed int64, now time.Time) *pacer {
	return &pacer{fixed: float64(fixed), rate: paceStart, last: now, looked: now}
}

// sent tells of bytes of the log that were sent, and returns how long to wait before the next.
func (p *pacer) sent(n int, now time.Time, clients clientLoad) time.Duration {
	p.look(now, clients)
	rate := max(p.rate, paceGain*p.ingest)
	if p.fixed > 0 {
		rate = p.fixed + p.ingest
	}
	p.debt = max(0, p.debt-now.Sub(p.last)) + time.Duration(float64(n)/rate*float64(time.Second))
	p.last = now
	if p.debt < paceBurst {
		return 0
	}
	return p.debt
}

// sentRegion tells of bytes of the image that were sent: the next ones have to wait. The log does not.
func (p *pacer) sentRegion(n int, now time.Time, clients clientLoad) {
	p.look(now, clients)
	rate := max(p.rate, paceRegions*p.ingest)
	if p.fixed > 0 {
		rate = p.fixed
	}
	if early := now.Add(-paceBurst); p.region.Before(early) {
		p.region = early
	}
	p.region = p.region.Add(time.Duration(float64(n) / rate * float64(time.Second)))
}

// look adapts the rate to what clients feel.
func (p *pacer) look(now time.Time, clients clientLoad) {
	d := now.Sub(p.looked)
	if d < paceInterval {
		return
	}
	if p.logged > 0 {
		p.ingest += (float64(clients.logged-p.logged)/d.Seconds() - p.ingest) / 4
	}
	busy := clients.syncs.count != p.syncs
	p.looked, p.syncs, p.logged = now, clients.syncs.count, clients.logged
	switch {
	case !busy:
		p.rate = paceMax // nobody is there to be disturbed
	case clients.syncs.recent > clients.syncs.calm+clients.syncs.calm/2+paceSlack:
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

// clientLoad is what a pacer knows of clients.
type clientLoad struct {
	syncs  syncTimes
	logged uint64 // bytes of frames that were made
}

func (r *Replica) clientLoad() clientLoad {
	r.mu.Lock()
	l := clientLoad{logged: r.logged}
	r.mu.Unlock()
	r.syncsMu.Lock()
	defer r.syncsMu.Unlock()
	l.syncs = r.syncs
	return l
}

// pacing makes a stream wait after it has sent a piece of the log. A member has everybody waiting for it, and a learner
// that hurries has no time.
func (s *stream) pacing(n int) error {
	r := s.r
	r.mu.Lock()
	hurry := r.core.Required(s.peer) || s.near.hurries() || r.danger(s.next) > 0
	r.mu.Unlock()
	if hurry {
		return nil
	}
	if wait := s.pace.sent(n, r.rt.Now(), r.clientLoad()); wait > 0 {
		return s.pause(wait)
	}
	return nil
}

// regionWait is how long the image has to wait until more of it may be sent. While the learner is about to lose its place in the
// log all of the stream is the log's.
func (s *stream) regionWait() time.Duration {
	r := s.r
	r.mu.Lock()
	danger := r.danger(s.next)
	r.mu.Unlock()
	if danger > 0 {
		return shipPollTime
	}
	return s.pace.region.Sub(r.rt.Now())
}
