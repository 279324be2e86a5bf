package replication

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"syscall"
	"time"

	"lockstep/viewsvc"
	"lockstep/wal"
)

// Limits of a stream.
const (
	dialTimeout      = time.Second
	greetingTimeout  = 5 * time.Second
	redialMin        = 20 * time.Millisecond
	redialMax        = 500 * time.Millisecond
	shipBytes        = 1 << 20 // read from the log at a time
	shipAhead        = 8 << 20 // bytes of frames between two regions of a copy
	maxUnsent        = 4 << 20 // waiting for the socket while shipping
	inflightPollTime = time.Millisecond
	shipPollTime     = 5 * time.Millisecond // between two looks at the log while regions have to wait
)

func dialTCP(ctx context.Context, addr string) (net.Conn, error) {
	d := net.Dialer{Timeout: dialTimeout}
	return d.DialContext(ctx, "tcp", addr)
}

// stream brings one peer the history of one tenure. Its goroutine dials again until the stream is stopped.
type stream struct {
	r      *Replica
	peer   viewsvc.ReplicaID
	tenure viewsvc.ViewNum
	ctx    context.Context
	cancel context.CancelFunc
	retry  Alarm // something changed that may help a dial

	// Guarded by Replica.mu.
	conn   net.Conn // the present connection, also while it is greeted
	tasks  int      // goroutines that serve it
	over   Cond     // tasks fell
	id     uint64   // of the present connection, once it was greeted
	q      *sendq
	up     bool // greetings were exchanged; messages may be queued
	direct bool // frames are queued as they are made; before that they are shipped from the log

	// copying: regions are being sent. The peer then hears of the commit point with frames and at the end alone, and not
	// with a Confirm that overtakes a region which was read before that commit: it could apply what the region undoes.
	copying bool

	next wal.LSN // to be shipped from the log
	// unreadable is the first record of the newest frame that went bad in the log: who needs it is copied past it. The
	// stream's goroutine's own.
	unreadable wal.LSN
	reached    wal.LSN  // what the peer has had stable over any connection
	near       approach // how it comes along
	pace       *pacer   // the stream's goroutine's own

	copyTotal, copyBytes uint64 // to be copied, and copied
	started              time.Time
}

// reconcileStreams opens and closes streams so that there is one to each of the core's targets, of this tenure. mu is
// held.
func (r *Replica) reconcileStreams() {
	tenure := r.core.View().Tenure
	want := r.core.Targets()
	r.streams = slices.DeleteFunc(r.streams, func(s *stream) bool {
		stale := s.tenure != tenure || !slices.Contains(want, s.peer) || s.up && !r.core.Streams(s.peer, s.id)
		if stale {
			s.stop()
		}
		return stale
	})
	if r.closed {
		return
	}
	for _, id := range want {
		if r.streamTo(id) == nil {
			s := &stream{r: r, peer: id, tenure: tenure, retry: r.rt.Alarm(), over: r.rt.Cond(r.mu)}
			s.ctx, s.cancel = context.WithCancel(r.ctx)
			r.streams = append(r.streams, s)
			r.start(s.loop)
		}
	}
}

// streamTo finds the stream to a peer, nil if there is none. mu is held.
func (r *Replica) streamTo(peer viewsvc.ReplicaID) *stream {
	for _, s := range r.streams {
		if s.peer == peer {
			return s
		}
	}
	return nil
}

// stop ends the stream for good, with mu held.
func (s *stream) stop() {
	s.cancel()
	s.up, s.direct, s.copying = false, false, false
	if s.q != nil {
		s.q.close(context.Canceled)
	}
	if s.conn != nil {
		s.conn.Close()
	}
}

// loop dials until the stream is stopped.
func (s *stream) loop() {
	wait := redialMin
	for s.ctx.Err() == nil {
		began := s.r.rt.Now()
		err := s.connect()
		if s.ctx.Err() != nil {
			return
		}
		s.r.opts.OnEvent(Event{Kind: EventStreamDown, Volume: s.r.Volume().Name, Replica: s.r.id, Peer: s.peer, Err: err})
		refused := errors.Is(err, syscall.ECONNREFUSED)
		worked := s.r.rt.Now().Sub(began) > time.Second
		s.r.do(func(c *Core) {
			if s.ctx.Err() != nil {
				return // the peer may be another tenure's by now
			}
			if p := c.find(s.peer); p != nil && p.durable > s.reached {
				s.reached, worked = p.durable, true
			}
			c.PeerDown(s.peer, s.id, refused)
		})
		if worked {
			wait = redialMin // a reset is worth an immediate second look
			continue
		}
		s.retry.Wait(s.ctx, wait)
		wait = min(2*wait, redialMax)
	}
}

// connect dials, greets and serves one connection until it breaks.
func (s *stream) connect() error {
	r := s.r
	r.mu.Lock()
	addr := r.peers[s.peer].Addr
	h := hello{Cluster: r.opts.Cluster, Volume: r.hard.Volume, From: r.id, To: s.peer, View: r.core.View()}
	r.mu.Unlock()
	if addr == "" {
		return errors.New("replication: the peer's address is not known yet")
	}
	conn, err := r.opts.Dial(s.ctx, addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	r.mu.Lock()
	s.conn = conn // stop closes it
	r.mu.Unlock()
	if s.ctx.Err() != nil {
		return s.ctx.Err()
	}
	if err := conn.SetDeadline(r.rt.Now().Add(greetingTimeout)); err != nil {
		return err
	}
	if _, err := conn.Write(msg{Type: msgHello, View: h.View.Num}.encodeJSON(h)); err != nil {
		return err
	}
	rd := newReader(conn)
	m, body, err := rd.next()
	if err != nil {
		return fmt.Errorf("greeting: %w", err)
	}
	var w welcome
	switch m.Type {
	case msgStale:
		return s.stale(body)
	case msgWelcome:
		if err := decodeJSON(body, &w); err != nil {
			return err
		}
		if err := w.check(); err != nil {
			return err
		}
	default:
		return fmt.Errorf("%w: type %d in answer to a greeting", errWire, m.Type)
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return err
	}
	return s.serve(conn, rd, w)
}

// stale hears of a newer view from the peer: this replica may be primary no more.
func (s *stream) stale(body []byte) error {
	v, err := decodeView(body)
	if err != nil {
		return err
	}
	s.r.do(func(c *Core) { c.Observe(v) })
	return fmt.Errorf("replication: the peer is in view %d", v.Num)
}

// serve brings the peer up to date over a greeted connection, and keeps it so.
func (s *stream) serve(conn net.Conn, rd *reader, w welcome) error {
	r := s.r
	p, err := s.makePlan(w)
	if errors.Is(err, errDiverged) {
		s.disown(conn)
	}
	if err != nil {
		return err
	}
	q := newSendq(r.rt, conn)
	var a after
	r.mu.Lock()
	if s.ctx.Err() != nil || r.core.View().Tenure != s.tenure || !r.core.State().Primary() {
		r.mu.Unlock()
		return context.Canceled
	}
	if p.copy != nil && r.core.Required(s.peer) {
		r.mu.Unlock()
		return errors.New("replication: a member's log does not reach back to the primary's") // I5 would not hold
	}
	r.nextStream++
	s.id, s.q, s.up, s.direct, s.started = r.nextStream, q, true, false, r.rt.Now()
	s.next, s.near, s.pace = p.next, approach{}, newPacer(r.opts.RecruitRate, r.rt.Now())
	view := r.core.View()
	// The view may be newer than the one in the greeting; the peer has to be in it before anything counts.
	q.pushEncoded(msg{Type: msgView, View: view.Num}.encodeJSON(view))
	end := uint64(max(r.end, r.store.Marks().End))
	if s.copying = p.copy != nil; s.copying {
		q.pushEncoded(msg{Type: msgCopy, View: view.Num, B: end}.encodeJSON(p.how))
		s.copyTotal, s.copyBytes = p.copy.bytes(r.store), 0
	} else {
		q.push(msg{Type: msgStart, View: view.Num, A: uint64(p.next - 1), B: end}, nil, nil)
	}
	r.core.PeerUp(s.peer, s.id, p.copy != nil)
	r.settle(&a)
	r.event(&a, Event{Kind: EventStreamUp, Peer: s.peer, Text: fmt.Sprintf("from LSN %d", p.next)})
	if p.copy != nil {
		r.event(&a, Event{Kind: EventCopy, Peer: s.peer,
			Text: fmt.Sprintf("%s changed after LSN %d, about %d bytes; log from %d", p.copy.unit(), p.copy.base, s.copyTotal, p.next)})
	}
	r.mu.Unlock()
	r.finish(&a)
	q.flush()

	s.task(func() { q.close(s.readAcks(rd, s.id)) }) // ends when the connection is closed
	s.task(q.run)                                    // ends with q.close
	if err := s.ship(q, p); err != nil {
		q.close(err)
	}
	r.mu.Lock()
	for s.tasks > 0 {
		s.over.Wait()
	}
	s.up, s.direct = false, false
	r.mu.Unlock()
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.err
}

// task starts a goroutine that serves the connection beside this one.
func (s *stream) task(f func()) {
	r := s.r
	r.mu.Lock()
	s.tasks++
	r.mu.Unlock()
	r.rt.Go(func() {
		defer func() {
			r.mu.Lock()
			s.tasks--
			s.over.Broadcast()
			r.mu.Unlock()
		}()
		f()
	})
}

// readAcks takes the peer's answers until the connection ends. Of those that arrived together the last one says it all.
func (s *stream) readAcks(rd *reader, id uint64) error {
	r := s.r
	var a after
	for {
		m, body, err := rd.next()
		if err != nil {
			if err == io.EOF {
				err = errors.New("replication: the peer closed the stream")
			}
			return err
		}
		switch m.Type {
		case msgStale:
			return s.stale(body)
		case msgSums:
			if err := r.digestAnswered(s.peer, m, body); err != nil {
				return err
			}
			continue
		case msgAck:
		default:
			return fmt.Errorf("%w: type %d from a peer", errWire, m.Type)
		}
		if rd.buffered() && m.Flags&flagCopied == 0 {
			continue
		}
		at := Instant(0)
		if m.Lease != 0 {
			at = r.opts.Clock()
		}
		r.mu.Lock()
		err = r.core.Acked(Ack{From: s.peer, Stream: id, View: m.View, Tenure: viewsvc.ViewNum(m.Commit), Written: wal.LSN(m.A), Durable: wal.LSN(m.B), Nonce: m.Nonce,
			Suspect: m.Flags&flagSuspect != 0, Lease: Instant(m.Lease), At: at})
		if m.Flags&flagCopied != 0 {
			r.core.Copied(s.peer, id)
			r.event(&a, Event{Kind: EventCaughtUp, Peer: s.peer})
		}
		r.settle(&a)
		r.mu.Unlock()
		r.finish(&a)
		if err != nil {
			return err
		}
	}
}

// progress is for reports; mu is held.
func (s *stream) progress() (done, left uint64, rate float64) {
	if s.copyTotal > s.copyBytes {
		left = s.copyTotal - s.copyBytes
	}
	if t := s.r.rt.Now().Sub(s.started).Seconds(); t > 0 && s.up {
		rate = float64(s.copyBytes) / t
	}
	return s.copyBytes, left, rate
}
