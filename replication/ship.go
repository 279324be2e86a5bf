package replication

import (
	"errors"
	"fmt"
	"time"

	"lockstep/blockdev"
	"lockstep/wal"
)

// plan is how a peer is brought up to date.
type plan struct {
	next wal.LSN    // first LSN to ship
	cut  wal.LSN    // the peer's log is cut here
	copy *startCopy // nil: the log is enough
}

var errDiverged = errors.New("replication: the peer has committed records that are not in this volume's history")

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
	buf := make([]byte, min(shipBytes, st.MaxFrame()))
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

// ship sends the log from the plan's point on, and between its frames the regions of a copy, until the peer takes the
// frames as they are made.
func (s *stream) ship(q *sendq, p plan) error {
	s.r.shipping.Add(1)
	defer s.r.shipping.Add(-1)
	buf := make([]byte, min(shipBytes, s.r.store.MaxFrame()))
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
			if regions == nil { // else the log has to keep up with the clients, and the regions wait
				if err := s.pacing(n); err != nil {
					return err
				}
			}
		}
		if regions != nil && !regions.sent {
			if err := s.shipRegionInTime(q, regions, shipped > 0); err != nil {
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
	sleep(s.ctx, s.r.rt, d)
	return s.ctx.Err()
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
	s.next = last + 1
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

// shipRegionInTime sends a region, unless it is too early for that: then the log goes on.
func (s *stream) shipRegionInTime(q *sendq, c *regionCopy, busy bool) error {
	switch wait := s.regionWait(); {
	case wait <= 0:
		return s.shipRegion(q, c)
	case busy:
		return s.ctx.Err()
	default:
		return s.pause(min(wait, shipPollTime))
	}
}

// shipRegion sends the next region that the learner lacks.
func (s *stream) shipRegion(q *sendq, c *regionCopy) error {
	r := s.r
	g, ok := r.store.NewerRegions(c.base, c.next)
	if !ok {
		c.sent = true
		return nil
	}
	asOf, err := r.readRegionRepaired(g, &c.img)
	if err != nil {
		return err
	}
	body := encodeRegion(&c.img)
	r.mu.Lock()
	q.pushEncoded(msg{Type: msgRegion, View: r.core.View().Num, A: uint64(g), B: uint64(asOf), Nonce: uint64(len(c.img.Lost))}.encode(body))
	s.copyBytes += blockdev.RegionBytes
	r.mu.Unlock()
	q.flush()
	c.next, c.asOf = g+1, max(c.asOf, asOf)
	s.pace.sentRegion(len(body), r.rt.Now(), r.clientLoad())
	return q.waitBelow(maxUnsent)
}

// copyDone tells the learner that its image is whole with the log that it was sent.
func (s *stream) copyDone(q *sendq) {
	sessions := s.r.store.Sessions()
	s.r.mu.Lock()
	q.pushEncoded(msg{Type: msgSessions, View: s.r.core.View().Num}.encode(sessions))
	q.push(msg{Type: msgCopyDone, View: s.r.core.View().Num, Commit: s.r.core.Commit()}, nil, nil)
	s.r.mu.Unlock()
	q.flush()
}
