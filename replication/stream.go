package replication

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"

	"lockstep/blockdev"
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
	var v viewsvc.View
	if err := decodeJSON(body, &v); err != nil {
		return err
	}
	s.r.do(func(c *Core) { c.Observe(v) })
	return fmt.Errorf("replication: the peer is in view %d", v.Num)
}

// plan is how a peer is brought up to date.
type plan struct {
	next wal.LSN    // first LSN to ship
	cut  wal.LSN    // the peer's log is cut here
	copy *startCopy // nil: the log is enough
}

var errDiverged = errors.New("replication: the peer has committed records that are not in this volume's history; format it anew")

// makePlan finds the last common point of the two logs.
func (s *stream) makePlan(w welcome) (plan, error) {
	st := s.r.store
	m := st.Marks()
	common, ok := blockdev.CommonPoint(st.Epochs(), m.End, w.Epochs, w.End)
	if ok && common < w.Applied {
		return plan{}, errDiverged
	}
	reach := ok && (common == m.End || common+1 >= m.First)
	switch {
	case reach && !w.Copying:
		return plan{next: common + 1, cut: common}, nil
	case reach: // only regions are missing
		return plan{next: common + 1, cut: common, copy: &startCopy{Keep: true, To: common, Base: w.CopyBase}}, nil
	}
	base := w.Applied
	if w.Copying {
		base = w.CopyBase
	}
	to := m.Committed
	chain, err := s.chainAfter(to)
	if err != nil {
		return plan{}, err
	}
	return plan{next: to + 1, copy: &startCopy{To: to, Chain: chain, Base: base, Epochs: st.Epochs()}}, nil
}

// chainAfter is what the frame after l names as the sum of the one before it.
func (s *stream) chainAfter(l wal.LSN) (uint32, error) {
	st := s.r.store
	buf := make([]byte, shipBytes)
	for {
		if sum, end := st.EndSum(), st.Marks().End; end == l {
			if st.Marks().End == l {
				return sum, nil
			}
			continue
		}
		n, err := s.readFrames(l+1, &buf)
		if err != nil {
			return 0, err
		}
		f, err := wal.ParseFrame(buf[:n])
		if err != nil {
			return 0, err
		}
		return f.Header().Chain, nil
	}
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
	if p.copy != nil && r.core.View().Has(s.peer) {
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

// ship sends the log from the plan's point on, and between its frames the regions of a copy, until the peer takes the
// frames as they are made.
func (s *stream) ship(q *sendq, p plan) error {
	buf := make([]byte, shipBytes)
	next := p.next
	var regions *regionCopy
	if p.copy != nil {
		regions = &regionCopy{base: p.copy.Base}
	}
	for {
		shipped := 0
		for shipped < shipAhead {
			n, err := s.shipSome(q, &next, &buf)
			if err != nil {
				return err
			}
			if n == 0 {
				break
			}
			shipped += n
		}
		if regions != nil && !regions.sent {
			if err := s.shipRegion(q, regions); err != nil {
				return err
			}
			continue
		}
		if regions != nil && next > regions.asOf {
			s.copyDone(q)
			regions = nil
		}
		if shipped > 0 {
			continue
		}
		direct, err := s.goDirect(q, next)
		if direct || err != nil {
			return err
		}
		if err := s.pause(inflightPollTime); err != nil {
			return err
		}
	}
}

// pause waits for a frame that is being written to reach the log.
func (s *stream) pause(d time.Duration) error {
	select {
	case <-s.ctx.Done():
		return s.ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// readFrames reads whole frames from the log, growing the buffer to what one needs.
func (s *stream) readFrames(from wal.LSN, buf *[]byte) (int, error) {
	n, err := s.r.store.ReadFrames(from, *buf)
	var short *wal.ShortBufferError
	if errors.As(err, &short) {
		*buf = make([]byte, short.Need)
		n, err = s.r.store.ReadFrames(from, *buf)
	}
	return n, err
}

// shipSome sends frames that are in the log, one buffer full, and waits for the socket to take them.
func (s *stream) shipSome(q *sendq, next *wal.LSN, buf *[]byte) (int, error) {
	if *next > s.r.store.Marks().End {
		return 0, nil
	}
	n, err := s.readFrames(*next, buf)
	if err != nil {
		return 0, err
	}
	last := wal.LSN(0)
	sizes := make([]int, 0, 64)
	for rest := (*buf)[:n]; len(rest) > 0; rest = rest[sizes[len(sizes)-1]:] {
		size, err := wal.FrameSize(rest)
		if err != nil || size > len(rest) {
			return 0, fmt.Errorf("replication: read log for peer: %w", errors.Join(errWire, err))
		}
		f, err := wal.ParseFrame(rest[:size])
		if err != nil {
			return 0, err
		}
		last = f.Last()
		sizes = append(sizes, size)
	}
	s.r.mu.Lock()
	view, commit := s.r.core.View().Num, s.r.core.Commit()
	rest := *buf
	for _, size := range sizes {
		q.push(msg{Type: msgAppend, View: view, Commit: commit}, rest[:size], nil)
		rest = rest[size:]
	}
	s.r.mu.Unlock()
	q.flush()
	*next = last + 1
	return n, q.waitBelow(1) // the buffer is used again
}

// goDirect makes the peer take frames as they are made, if it lacks none. The frame that is on its way to the log is
// given to it here.
func (s *stream) goDirect(q *sendq, next wal.LSN) (bool, error) {
	r := s.r
	r.mu.Lock()
	if s.ctx.Err() != nil {
		r.mu.Unlock()
		return false, s.ctx.Err()
	}
	switch {
	case r.begun != s.tenure: // the VIEW record comes first, behind whatever the log holds by then
	case next == r.end+1:
		s.direct = true
	case r.inflight != nil && r.inflight.frame.First() == next:
		s.direct = true
		s.pushFrame(r.inflight)
	}
	direct := s.direct
	r.mu.Unlock()
	q.flush()
	return direct, nil
}

// pushFrame queues a frame; mu is held.
func (s *stream) pushFrame(fb *frameBuf) {
	r := s.r
	fb.refs.Add(1)
	s.q.push(msg{Type: msgAppend, View: r.core.View().Num, Commit: r.core.Commit()}, fb.frame.Bytes(), func() { r.putFrame(fb) })
}

// regionCopy is how far a copy by regions has come.
type regionCopy struct {
	base wal.LSN // regions changed after it are sent
	next int     // region to look at next
	sent bool    // all were
	asOf wal.LSN // the learner's log must reach beyond every region's as-of LSN before its image is whole
	img  blockdev.RegionImage
}

// shipRegion sends the next region that the learner lacks.
func (s *stream) shipRegion(q *sendq, c *regionCopy) error {
	r := s.r
	g, ok := r.store.NewerRegions(c.base, c.next)
	if !ok {
		c.sent = true
		return nil
	}
	asOf, err := r.store.ReadRegion(g, &c.img)
	if err != nil {
		return err
	}
	body := encodeRegion(&c.img)
	r.mu.Lock()
	q.pushEncoded(msg{Type: msgRegion, View: r.core.View().Num, A: uint64(g), B: uint64(asOf)}.encode(body))
	s.copyBytes += blockdev.RegionBytes
	r.mu.Unlock()
	q.flush()
	c.next, c.asOf = g+1, max(c.asOf, asOf)
	return q.waitBelow(maxUnsent)
}

// copyDone tells the learner that its image is whole with the log that it was sent.
func (s *stream) copyDone(q *sendq) {
	s.r.mu.Lock()
	q.push(msg{Type: msgCopyDone, View: s.r.core.View().Num}, nil, nil)
	s.r.mu.Unlock()
	q.flush()
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
