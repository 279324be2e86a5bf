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
	next wal.LSN     // first LSN to ship: the peer's log is cut before it
	copy *regionCopy // nil: the log is enough
	how  startCopy   // of a copy
}

var errDiverged = errors.New("replication: the peer has committed records that are not in this volume's history")

// Limits of copying single blocks instead of shipping the log that wrote them.
const (
	copyGain  = 1.05    // the log that a learner lacks takes so much more than the blocks that it changed
	copyWorth = 1 << 20 // and so many bytes more, or a frame's worth: for less, a learner's log is not begun anew
)

// makePlan finds the last common point of the two logs, and the cheapest way on from there.
func (s *stream) makePlan(w welcome) (plan, error) {
	st := s.r.store
	m := st.Marks()
	common, ok := blockdev.CommonPoint(st.Epochs(), m.End, w.Epochs, w.End)
	// What it has committed is in its image, or will be when a copy begins. Where an index does not reach back far enough
	// to tell, only an operator's act can have made that another history's.
	if ok && common < w.Committed || !ok && s.forced() {
		return plan{}, errDiverged
	}
	reach := ok && (common == m.End || common+1 >= m.First) && common >= s.unreadable
	base := w.Committed
	if w.Copying {
		base = w.CopyBase
	}
	if reach && w.Copying { // only the image has to be completed
		c := &regionCopy{base: base, changes: s.changes(base, common), floor: w.Committed}
		return plan{next: common + 1, copy: c, how: startCopy{Size: st.Size(), Keep: true, To: common, Base: base}}, nil
	}
	var changes *blockdev.Changes
	if reach {
		if changes = s.cheaper(base, common, m.Committed); changes == nil {
			return plan{next: common + 1}, nil
		}
	}
	to := m.Committed
	chain, err := s.chainAfter(to)
	if err != nil {
		return plan{}, err
	}
	c := &regionCopy{base: base, changes: changes}
	return plan{next: to + 1, copy: c, how: startCopy{Size: st.Size(), To: to, Chain: chain, Base: base, Epochs: st.Epochs()}}, nil
}

// forced tells whether an operator ever forced a promotion.
func (s *stream) forced() bool {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	return s.r.core.View().DataLossGen > 0
}

// cheaper are the blocks that the log changed from where a learner's image is to where everything is committed, if sending
// these is much cheaper than sending the log that the learner lacks. It is nil for a member: that needs the log.
func (s *stream) cheaper(base, common, to wal.LSN) *blockdev.Changes {
	r := s.r
	r.mu.Lock()
	member := r.core.Required(s.peer)
	r.mu.Unlock()
	if member || to <= common {
		return nil
	}
	logged, worth := r.store.LogBytes(common, to), int64(min(copyWorth, r.store.MaxFrame()))
	if logged < worth {
		return nil
	}
	c := s.changes(base, to)
	if c == nil || float64(logged) < copyGain*float64(c.Bytes()) || logged-c.Bytes() < worth {
		return nil
	}
	return c
}

// changes are the blocks that records after one, up to another, have changed; nil if the log does not tell, for whatever
// reason: then whole regions are copied, or the log is shipped, which will tell the reason.
func (s *stream) changes(after, to wal.LSN) *blockdev.Changes {
	st := s.r.store
	if after+1 < st.Marks().First {
		return nil
	}
	c, err := st.ChangesIn(after, to)
	if err != nil {
		return nil
	}
	return c
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
	regions := p.copy
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
		if err := q.waitBelow(1); err != nil { // it is the connection's end, too
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
		if !errors.Is(err, wal.ErrCompacted) && !errors.Is(err, wal.ErrClosed) {
			s.unreadable = *next
		}
		return 0, err
	}
	last := *next - 1
	sizes := make([]int, 0, 64)
	for rest := (*buf)[:n]; len(rest) > 0; rest = rest[sizes[len(sizes)-1]:] {
		f, err := wal.ParseFrame(rest)
		if err != nil {
			s.unreadable = last + 1
			return 0, fmt.Errorf("replication: read record %d of the log for a peer: %w", last+1, err)
		}
		size := len(f.Bytes())
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
	case !r.core.Whole(s.peer): // it makes its copy whole, and takes nothing meanwhile: what is made is in the log
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
	base    wal.LSN           // regions changed after it are sent
	changes *blockdev.Changes // of those, these blocks; nil: all
	floor   wal.LSN           // what the learner may have applied: no region as of before may be sent (I13)
	next    int               // region to look at next
	sent    bool              // all were
	asOf    wal.LSN           // the learner's log must reach beyond every region's as-of LSN before its image is whole
	img     blockdev.RegionImage
}

// want finds the next region to be sent, and which of its blocks.
func (c *regionCopy) want(st *blockdev.Store) (region int, blocks blockdev.BlockMask, ok bool) {
	for {
		if region, ok = st.NewerRegions(c.base, c.next); !ok {
			return 0, blocks, false
		}
		if c.changes == nil {
			return region, blockdev.WholeRegion, true
		}
		if blocks = c.changes.Of(region); !blocks.Empty() {
			return region, blocks, true
		}
		c.next = region + 1 // changed since the copy began: the log has it
	}
}

func (c *regionCopy) unit() string {
	if c.changes != nil {
		return "blocks"
	}
	return "regions"
}

// bytes is about how much there is to be sent.
func (c *regionCopy) bytes(st *blockdev.Store) uint64 {
	if c.changes != nil {
		return uint64(c.changes.Bytes())
	}
	return st.NewerBytes(c.base)
}

// shipRegionInTime sends a region, unless it is too early for that: then the log goes on.
func (s *stream) shipRegionInTime(q *sendq, c *regionCopy, busy bool) error {
	wait := s.regionWait()
	if s.r.store.Marks().Committed < c.floor {
		wait = shipPollTime // this primary has yet to commit what the one before it had
	}
	switch {
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
	g, want, ok := c.want(r.store)
	if !ok {
		c.sent = true
		return nil
	}
	asOf, err := s.readRegion(g, want, &c.img)
	if err != nil {
		return err
	}
	size := r.store.Size() // of the region, or larger: it may have grown since
	body := encodeRegion(&c.img)
	r.mu.Lock()
	q.pushEncoded(msg{Type: msgRegion, View: r.core.View().Num, A: uint64(g), B: uint64(asOf), Nonce: size}.encode(body))
	s.copyBytes += uint64(len(body))
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
	s.copying = false
	s.r.mu.Unlock()
	q.flush()
}
