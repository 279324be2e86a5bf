package gateway

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"time"

	"lockstep/blockdev"
	"lockstep/blockdev/nbd"
	"lockstep/replication/exportname"
)

// How long a session waits between attempts to connect: longer each time, each time by chance somewhat less, so that
// the sessions of a dead primary do not come in step. The growth is slow: a primary that opens while a session waits is
// found after about half as long again as it took to open, at worst.
const (
	backoffMin    = 2 * time.Millisecond
	backoffMax    = 500 * time.Millisecond
	backoffGrowth = 3 // halves
	// steadyAfter is how long a connection must last, or answer something, so that its end is no failed attempt.
	steadyAfter = time.Second
)

// replayBatch is how many requests a replay hands over at a time.
const replayBatch = 64

var (
	errTimeout   = fmt.Errorf("gateway: no primary answered within the gateway's timeout: %w", blockdev.ErrIO)
	errNoPrimary = errors.New("gateway: the volume has no primary now")
	errMoved     = errors.New("gateway: the volume has another primary")
	errOverdue   = errors.New("gateway: a request waited for longer than the timeout")
)

// backoff makes waits. The zero value begins with the shortest.
type backoff struct{ last time.Duration }

func (b *backoff) reset() { b.last = 0 }

func (b *backoff) next() time.Duration {
	b.last = min(max(b.last*backoffGrowth/2, backoffMin), backoffMax)
	return b.last - rand.N(b.last/4)
}

// upstream is one connection of a session to a primary. It implements nbd.Handler.
type upstream struct {
	s      *session
	conn   *nbd.Conn
	route  *route
	spare  []*blockdev.Request // Complete's own
	closed chan struct{}
	err    error // why; valid when closed is closed

	// v.mu guards everything below.
	answered bool // it has answered something
}

// send hands requests over that were taken from the flight. If the connection has ended it refuses them, and they go
// with the replay on the next one.
func (u *upstream) send(burst []*blockdev.Request) {
	if len(burst) > 0 {
		_ = u.conn.Submit(burst)
	}
}

// Complete passes a primary's answers on, errors too (G1). It implements nbd.Handler.
func (u *upstream) Complete(done []*blockdev.Request) {
	s, v := u.s, u.s.v
	v.mu.Lock()
	if s.current != u {
		v.mu.Unlock()
		panic("gateway: G8: an answer from a connection that was closed")
	}
	u.answered = true
	for _, r := range done {
		v.flight.complete(&s.lane, r)
	}
	woken := len(v.flight.woken) > 0
	v.mu.Unlock()
	s.client.Complete(done)
	if woken {
		u.spare = v.sendWoken(u.spare)
	}
}

// Closed is the end of the connection; what was not answered is for the next one (begin). It implements nbd.Handler.
func (u *upstream) Closed(err error) {
	s, v := u.s, u.s.v
	v.mu.Lock()
	if s.current != u {
		v.mu.Unlock()
		panic("gateway: G8: two connections of a session at a time")
	}
	s.current, s.live = nil, nil
	v.mu.Unlock()
	u.err = err
	close(u.closed)
}

// run keeps the session connected until it is closed. It is the session's goroutine, started by Attach, which may have
// made the first connection.
func (s *session) run(conn *nbd.Conn, r *route) {
	defer close(s.done)
	s.downSince = time.Now()
	for {
		if conn == nil {
			var err error
			if conn, r, err = s.reach(s.ctx); err != nil {
				<-s.ctx.Done() // the volume is gone, and its clients are being told
				return
			}
		}
		up := s.begin(conn, r)
		conn = nil
		since := time.Now()
		why := s.hold(up)
		s.downSince = time.Now()
		if s.ctx.Err() != nil {
			return
		}
		v := s.v
		v.mu.Lock()
		if up.answered || s.downSince.Sub(since) > steadyAfter {
			s.retry.reset()
		}
		kept := s.lane.count
		v.mu.Unlock()
		v.g.emit(Event{Kind: EventDown, Volume: v.name, Session: s.name, Generation: s.generation, Addr: r.addr, Requests: kept, Err: why})
		if why != errMoved {
			_, news, _ := v.look()
			// A primary that takes connections and drops them must not make this loop spin; one that lasted has waited.
			s.pause(s.ctx, news, s.downSince.Sub(since))
		}
	}
}

// reach connects to the primary, whoever that is by then, for as long as it takes. It fails when ctx ends or the
// volume is gone. All former generations of the session are fenced when it has succeeded (G6).
func (s *session) reach(ctx context.Context) (*nbd.Conn, *route, error) {
	for {
		r, news, gone := s.v.look()
		if gone {
			return nil, nil, errGone
		}
		if r != s.tried {
			s.tried = r
			s.retry.reset()
		}
		s.expire()
		conn, err := s.dial(ctx, r)
		if err != nil {
			conn, r, err = s.second(ctx, r, err)
		}
		if err == nil {
			s.told = nil
			return conn, r, nil
		}
		if ctx.Err() != nil {
			return nil, nil, ctx.Err()
		}
		if r.over.Err() != nil {
			continue // there is another route already
		}
		if errors.Is(err, nbd.ErrRefused) && s.refusalCounts() {
			return nil, nil, err
		}
		if s.told != r {
			s.told = r
			s.v.g.emit(Event{Kind: EventRetry, Volume: s.v.name, Session: s.name, Generation: s.generation, Addr: r.addr, Err: err})
		}
		s.pause(ctx, news, 0)
	}
}

// refusalCounts tells whether a primary's refusal is the end of trying: of the first attachment of an exclusive client,
// which is told, and of a session that a claim has ended. A primary that refuses the latter has fenced it.
func (s *session) refusalCounts() bool {
	return s.alone != nil && s.downSince.IsZero() || s.isEvicted()
}

// pause waits before the next attempt, which news bring forward. waited is what has passed already since the last one.
func (s *session) pause(ctx context.Context, news <-chan struct{}, waited time.Duration) {
	t := time.NewTimer(s.retry.next() - waited)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-news:
	case <-t.C:
	}
}

// dial connects once.
func (s *session) dial(ctx context.Context, r *route) (*nbd.Conn, error) {
	if r.addr == "" {
		return nil, errNoPrimary
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(r.over, cancel)()
	s.generation = s.v.g.nextGeneration(s)
	id := blockdev.SessionID{Name: s.name, Generation: s.generation, Era: s.era, Exclusive: s.opts.Exclusive, Numbers: s.numbers}
	opts := nbd.ClientOptions{Export: exportname.Format(s.v.name, id), MaxInFlight: maxInFlight, Numbered: true, TLS: s.v.g.tls}
	if t := s.v.g.opts.Timeout; t > 0 {
		opts.DialTimeout = min(nbd.DefaultDialTimeout, t/timeoutParts)
		opts.HandshakeTimeout = min(nbd.DefaultHandshakeTimeout, t/timeoutParts)
	}
	conn, err := connect(ctx, r.addr, opts)
	if err != nil {
		return nil, err
	}
	if have, want := conn.Info().Size, s.v.g.sizeOf(s.of); have < want {
		conn.Close()
		return nil, fmt.Errorf("gateway: the primary's disk has %d bytes, the volume %d", have, want)
	}
	if !conn.Info().Extents {
		conn.Close()
		return nil, errors.New("gateway: the primary does not tell of holes; it is of an older version")
	}
	return conn, nil
}

// connect goes to a node by the socket that it has for those on its host, if this is it, and else by TCP.
func connect(ctx context.Context, addr string, opts nbd.ClientOptions) (*nbd.Conn, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nbd.Dial(ctx, addr, opts) // it is a socket already
	}
	d := net.Dialer{Timeout: opts.DialTimeout}
	nc, err := d.DialContext(ctx, "unix", exportname.LocalSocket(addr))
	if err != nil {
		return nbd.Dial(ctx, addr, opts)
	}
	opts.ServerName = host
	return nbd.NewConn(ctx, nc, opts)
}

// begin starts transmission: what is in flight is sent again (G2), and then the connection takes new requests.
func (s *session) begin(conn *nbd.Conn, r *route) *upstream {
	u := &upstream{s: s, conn: conn, route: r, closed: make(chan struct{})}
	v := s.v
	v.mu.Lock()
	s.current = u
	v.flight.bury(&s.lane) // G5: fenced by the handshake
	v.flight.rewind(&s.lane)
	v.mu.Unlock()
	conn.Start(u)
	sent := 0
	for replaying := true; replaying; {
		v.mu.Lock()
		s.batch = s.batch[:0]
		if s.current == u { // it has not ended yet
			s.batch = v.flight.take(&s.lane, s.batch, replayBatch)
			if len(s.batch) == 0 {
				s.live = u
			}
		}
		v.mu.Unlock()
		u.send(s.batch)
		sent += len(s.batch)
		replaying = len(s.batch) > 0
	}
	s.batch = v.sendWoken(s.batch)
	v.g.emit(Event{
		Kind: EventUp, Volume: v.name, Session: s.name, Generation: s.generation, Addr: r.addr, Requests: sent,
		After: time.Since(s.downSince),
	})
	return u
}

// hold waits for the end of a connection, or ends it for a reason of the gateway's own. It returns why.
func (s *session) hold(u *upstream) error {
	var tick <-chan time.Time
	if t := s.v.g.opts.Timeout; t > 0 {
		ticker := time.NewTicker(t / timeoutParts)
		defer ticker.Stop()
		tick = ticker.C
	}
	var why error
	for why == nil {
		select {
		case <-u.closed:
			return u.err
		case <-u.route.over.Done(): // G7
			why = errMoved
		case <-s.ctx.Done():
			why = s.ctx.Err()
		case <-tick:
			if s.overdue() {
				why = errOverdue
			}
		}
	}
	u.conn.Close()
	<-u.closed // G8
	return why
}

// fence makes sure that no request of a session that has ended is carried out any more (G5), by attaching it once
// more. It is the session's goroutine after Close.
func (s *session) fence() {
	since := time.Now()
	conn, _, err := s.reach(s.v.g.ctx)
	if err == nil || errors.Is(err, nbd.ErrRefused) {
		if err == nil {
			conn.Close()
		}
		s.v.g.emit(Event{Kind: EventFenced, Volume: s.v.name, Session: s.name, Generation: s.generation, After: time.Since(since)})
	}
	s.leave()
}
