package replication

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
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
	retry  chan struct{} // something changed that may help a dial

	// Guarded by Replica.mu.
	id     uint64 // of the present connection
	q      *sendq
	up     bool // greetings were exchanged; messages may be queued
	direct bool // frames are queued as they are made; before that they are shipped from the log

	copyTotal, copyBytes uint64 // to be copied, and copied
	started              time.Time
}

// reconcileStreams opens and closes streams so that there is one to each of the core's targets, of this tenure. mu is
// held.
func (r *Replica) reconcileStreams() {
	tenure := r.core.View().Tenure
	want := map[viewsvc.ReplicaID]bool{}
	for _, id := range r.core.Targets() {
		want[id] = true
	}
	for id, s := range r.streams {
		if !want[id] || s.tenure != tenure {
			s.stop()
			delete(r.streams, id)
		}
	}
	if r.closed {
		return
	}
	for id := range want {
		if r.streams[id] == nil {
			s := &stream{r: r, peer: id, tenure: tenure, retry: make(chan struct{}, 1)}
			s.ctx, s.cancel = context.WithCancel(r.ctx)
			r.streams[id] = s
			r.start(s.loop)
		}
	}
}

// stop ends the stream for good, with mu held.
func (s *stream) stop() {
	s.cancel()
	s.up, s.direct = false, false
	if s.q != nil {
		s.q.close(context.Canceled)
	}
}

func (s *stream) retryNow() {
	select {
	case s.retry <- struct{}{}:
	default:
	}
}

// loop dials until the stream is stopped.
func (s *stream) loop() {
	wait := redialMin
	for s.ctx.Err() == nil {
		began := time.Now()
		err := s.connect()
		if s.ctx.Err() != nil {
			return
		}
		s.r.opts.OnEvent(Event{Kind: EventStreamDown, Volume: s.r.Volume().Name, Replica: s.r.id, Peer: s.peer, Err: err})
		refused := errors.Is(err, syscall.ECONNREFUSED)
		s.r.do(func(c *Core) {
			if s.ctx.Err() == nil { // else the peer may be another tenure's by now
				c.PeerDown(s.peer, s.id, refused)
			}
		})
		if time.Since(began) > time.Second {
			wait = redialMin // it had worked; a reset is worth an immediate second look
			continue
		}
		select {
		case <-s.ctx.Done():
			return
		case <-s.retry:
		case <-time.After(wait):
		}
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
	stop := context.AfterFunc(s.ctx, func() { conn.Close() })
	defer stop()

	if err := conn.SetDeadline(time.Now().Add(greetingTimeout)); err != nil {
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
	if err != nil {
		return err
	}
	q := newSendq(conn)
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
	s.id, s.q, s.up, s.direct, s.started = r.nextStream, q, true, false, time.Now()
	view := r.core.View()
	// The view may be newer than the one in the greeting; the peer has to be in it before anything counts.
	q.pushEncoded(msg{Type: msgView, View: view.Num}.encodeJSON(view))
	end := uint64(max(r.end, r.store.Marks().End))
	if p.copy != nil {
		q.pushEncoded(msg{Type: msgCopy, View: view.Num, B: end}.encodeJSON(p.copy))
		s.copyTotal, s.copyBytes = r.store.NewerBytes(p.copy.Base), 0
	} else {
		q.push(msg{Type: msgStart, View: view.Num, A: uint64(p.cut), B: end}, nil, nil)
	}
	r.core.PeerUp(s.peer, s.id, p.copy != nil)
	r.settle(&a)
	r.event(&a, Event{Kind: EventStreamUp, Peer: s.peer, Text: fmt.Sprintf("from LSN %d", p.next)})
	if p.copy != nil {
		r.event(&a, Event{Kind: EventCopy, Peer: s.peer,
			Text: fmt.Sprintf("regions changed after LSN %d, about %d bytes; log from %d", p.copy.Base, s.copyTotal, p.next)})
	}
	r.mu.Unlock()
	r.finish(&a)
	q.flush()

	done := make(chan struct{})
	go func() { // ends when the connection is closed
		defer close(done)
		q.close(s.readAcks(rd, s.id))
	}()
	sending := make(chan struct{})
	go func() { // ends with q.close
		defer close(sending)
		q.run()
	}()
	if err := s.ship(q, p); err != nil {
		q.close(err)
	}
	<-done
	<-sending
	r.mu.Lock()
	s.up, s.direct = false, false
	r.mu.Unlock()
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.err
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
		case msgAck:
		default:
			return fmt.Errorf("%w: type %d from a peer", errWire, m.Type)
		}
		if rd.buffered() && m.Flags&flagCopied == 0 {
			continue
		}
		r.mu.Lock()
		err = r.core.Acked(Ack{From: s.peer, Stream: id, View: m.View, Tenure: viewsvc.ViewNum(m.Commit), Written: wal.LSN(m.A), Durable: wal.LSN(m.B), Nonce: m.Nonce})
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
	if t := time.Since(s.started).Seconds(); t > 0 && s.up {
		rate = float64(s.copyBytes) / t
	}
	return s.copyBytes, left, rate
}
