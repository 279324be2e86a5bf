package gateway

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/google/uuid"

	"lockstep/blockdev"
	"lockstep/viewsvc"
)

// maxBurst is no limit: what one session has in flight is bounded by the NBD server.
const maxBurst = math.MaxInt

// device is a volume as the NBD server sees it: a name that was resolved.
type device struct {
	g  *Gateway
	st viewsvc.VolumeStatus // as of Open

	opts AttachOptions
}

// Geometry is that of the volume by now: a size that the view service tells of is the primary's, and every later one's.
func (d *device) Geometry() blockdev.Geometry {
	return blockdev.Geometry{Size: d.g.sizeOf(d.st.Volume)}
}

// Attach begins a session. It does not wait for a primary: the client is connected, and its requests wait. Only an
// exclusive one waits.
func (d *device) Attach(ctx context.Context, _ blockdev.SessionID, c blockdev.Client) (blockdev.Session, error) {
	if d.opts.Exclusive {
		return d.attachAlone(ctx, c)
	}
	claim := d.st.Volume.Claim
	if claim.Owner != "" {
		return nil, fmt.Errorf("gateway: %w: volume %s is attached by %v; detach it there, or `lockstep volume detach-all %s`",
			blockdev.ErrExclusive, d.st.Volume.Name, claim, d.st.Volume.Name)
	}
	name := d.opts.Session
	if name == "" {
		name = uuid.NewString()
	}
	s, err := d.begin(c, name, claim.SessionEra())
	if err != nil {
		return nil, err
	}
	go s.run(nil, nil) // ends by Close
	return s, nil
}

// begin makes a session of the volume, which has no goroutine yet.
func (d *device) begin(c blockdev.Client, name string, era uint64) (*session, error) {
	v, err := d.g.acquire(d.st)
	if err != nil {
		return nil, err
	}
	s := &session{
		v: v, client: c, of: d.st.Volume, name: name, era: era, opts: d.opts, done: make(chan struct{}),
		generation: firstGeneration(d.opts, d.st.Volume.Claim.Num), numbers: name,
	}
	if d.opts.Session != "" {
		s.numbers = uuid.NewString() // G12
	}
	s.ctx, s.cancel = context.WithCancel(d.g.ctx)
	v.mu.Lock()
	if v.gone {
		err = errGone
	} else if alive, _ := v.claim.Admits(name, era); !alive {
		err = fmt.Errorf("gateway: %w: volume %s was claimed meanwhile, by %v", blockdev.ErrExclusive, v.name, v.claim)
	} else {
		v.sessions[&s.lane] = s
	}
	v.mu.Unlock()
	if err != nil {
		s.cancel()
		d.g.put(v)
		return nil, err
	}
	return s, nil
}

// session is one client connection, which has an upstream connection of its own to the primary. It implements
// blockdev.Session.
type session struct {
	v      *volume
	client blockdev.Client
	of     viewsvc.Volume // as of its beginning
	name   string         // its identity at the nodes
	era    uint64         // in which it began (viewsvc.Claim.SessionEra)
	opts   AttachOptions
	alone  *hold  // of an exclusive client
	start  uint64 // its claim's (viewsvc.Claim.Start)

	numbers string // the space that its requests' numbers are in (G12)

	ctx    context.Context // ends by Close, or with the gateway
	cancel context.CancelFunc
	done   chan struct{} // run has returned: there is no connection

	burst []*blockdev.Request // Submit's own

	// The goroutine's own (run, and fence after it).
	generation uint64 // of the newest connection
	retry      backoff
	tried      *route    // the last route that was tried
	told       *route    // the one to which failing to connect was told
	downSince  time.Time // when the last connection was lost, or the session began
	batch      []*blockdev.Request

	// v.mu guards everything below.
	lane    lane
	current *upstream // the connection that may answer (G8)
	live    *upstream // current, once what was in flight has been sent again: new requests go there
	ended   bool      // no request is taken any more
	evicted error     // a claim ended it for good: why
}

// Submit takes a burst into flight, and sends what may be sent. It implements blockdev.Session.
func (s *session) Submit(burst []*blockdev.Request) {
	now := s.v.g.clock()
	v := s.v
	v.mu.Lock()
	if s.ended {
		v.mu.Unlock()
		return
	}
	for _, r := range burst {
		v.flight.admit(&s.lane, r, now)
	}
	up := s.live
	if up != nil {
		s.burst = v.flight.take(&s.lane, s.burst[:0], maxBurst)
	}
	v.mu.Unlock()
	if up != nil {
		up.send(s.burst)
		up.conn.Poll()
	}
}

// Close ends the session (G9). What it sent and was not answered keeps its range until the session is fenced (G5),
// which goes on after Close has returned. It implements blockdev.Session.
func (s *session) Close() {
	s.cancel()
	if s.alone != nil {
		s.v.g.mu.Lock()
		s.alone.ending = true
		s.v.g.mu.Unlock()
	}
	<-s.done
	v := s.v
	v.mu.Lock()
	s.ended = true
	ghosts := v.flight.abandon(&s.lane)
	v.mu.Unlock()
	s.batch = v.sendWoken(s.batch)
	if ghosts == 0 {
		s.leave()
		return
	}
	v.g.emit(Event{Kind: EventFencing, Volume: v.name, Session: s.name, Requests: ghosts})
	go s.fence() // ends when a primary has answered, the volume is gone, or with the gateway
}

// leave is the end of a session: it gives back all it has taken.
func (s *session) leave() {
	v := s.v
	v.mu.Lock()
	v.flight.bury(&s.lane)
	delete(v.sessions, &s.lane)
	v.mu.Unlock()
	s.batch = v.sendWoken(s.batch)
	s.endHold()
	v.g.put(v)
}

// expire answers requests that have waited for longer than Timeout with an I/O error. There is no connection now.
func (s *session) expire() {
	g, v := s.v.g, s.v
	if g.opts.Timeout == 0 {
		return
	}
	v.mu.Lock()
	s.batch = v.flight.expire(&s.lane, g.clock()-int64(g.opts.Timeout), s.batch[:0])
	v.mu.Unlock()
	if n := len(s.batch); n > 0 {
		for _, r := range s.batch {
			r.Err = errTimeout
		}
		s.client.Complete(s.batch)
		g.emit(Event{Kind: EventExpired, Volume: v.name, Session: s.name, Requests: n})
	}
	s.batch = v.sendWoken(s.batch)
}

// overdue tells whether a request has waited for longer than Timeout.
func (s *session) overdue() bool {
	g := s.v.g
	s.v.mu.Lock()
	defer s.v.mu.Unlock()
	since, ok := s.v.flight.oldest(&s.lane)
	return ok && since < g.clock()-int64(g.opts.Timeout)
}
