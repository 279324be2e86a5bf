package replication

import (
	"context"
	"fmt"
	"sync"

	"lockstep/blockdev"
	"lockstep/replication/exportname"
	"lockstep/wal"
)

// queued is a request that has no LSN yet.
type queued struct {
	req  *blockdev.Request
	s    *session
	done uint64 // bytes of it that are ordered: a write of more than Replica.atomic takes several frames
}

// session is a client's attachment to an open primary.
type session struct {
	r      *Replica
	id     blockdev.SessionID
	client blockdev.Client
	mem    *memory // of a named session: its generations
	space  *memory // of a numbered one: its requests. It is mem, unless the numbers have a name of their own

	// Guarded by Replica.mu.
	closed bool // nothing of this session is ordered any more (I11)
	parted bool // from mem and space
	busy   int  // bursts of it in the hands of the committer and of readers

	// Submit's own: one goroutine submits.
	a    after
	here []*blockdev.Request // reads that Submit answers itself, if they are in memory

	mu   sync.Mutex // held while the client is given requests back
	gone bool       // the client does not want any back
}

// Geometry implements blockdev.Device. A replica that does not serve yet tells what it will serve at least.
func (r *Replica) Geometry() blockdev.Geometry {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.core.State() != StateOpen {
		return blockdev.Geometry{Size: r.store.Size()}
	}
	return blockdev.Geometry{Size: r.growth.offered.Load()}
}

// Attach implements blockdev.Device. Older generations of the same session are fenced under the lock that orders
// requests, before Attach returns (hazard: a late original overtaking its replay).
func (r *Replica) Attach(ctx context.Context, id blockdev.SessionID, c blockdev.Client) (blockdev.Session, error) {
	s := &session{r: r, id: id, client: c}
	r.mu.Lock()
	r.awaitOpen(ctx)
	name := r.hard.Volume.Name // it is told after mu was given up
	if st := r.core.State(); st != StateOpen || r.closed || r.core.Draining() || !r.heardOrders() || r.shrunk() {
		why := r.notPrimary(id)
		r.mu.Unlock()
		return nil, fmt.Errorf("attach to %s: state %v: %w", name, st, why)
	}
	if err := r.mayAttach(id); err != nil {
		r.mu.Unlock()
		return nil, err
	}
	if id.Era == 0 {
		s.id.Era = r.hard.Volume.Claim.SessionEra()
	}
	var old *session
	if id.Name != "" {
		s.mem = r.remember(id.Name)
		if s.mem.generation >= id.Generation {
			r.mu.Unlock()
			return nil, fmt.Errorf("attach to %s: generation %d of a session that is at %d: %w",
				name, id.Generation, s.mem.generation, blockdev.ErrSessionClosed)
		}
		s.mem.generation = id.Generation
		old = r.named[id.Name]
		r.named[id.Name] = s
		s.mem.users++
		s.mem.attached++
		if id.Numbers != "" {
			s.space = r.remember(id.Numbers)
			s.space.users++
		}
	}
	r.sessions[s] = struct{}{}
	if old != nil {
		old.fenceLocked()
	}
	// One whose connection has ended is in no list any more, and what it sent last may still be in the committer's hands:
	// its numbers are known (R1) when it is over.
	for s.mem != nil && s.mem.attached > 1 && !s.closed {
		r.idle.Wait()
	}
	r.mu.Unlock()
	if old != nil {
		old.client.Abort(blockdev.ErrSessionClosed)
	}
	return s, nil
}

// notPrimary is what a client is refused with, with mu held: a gateway, which has a name, is told who serves. After a
// handover it may hear so from the old primary before the view service's word reaches it.
func (r *Replica) notPrimary(id blockdev.SessionID) error {
	v := r.core.View()
	addr := r.peers[v.Primary].NBD
	if id.Name == "" || v.Primary == r.id || addr == "" {
		return blockdev.ErrNotPrimary
	}
	return &blockdev.MovedError{To: exportname.FormatPrimary(exportname.Primary{View: uint64(v.Tenure), NBD: addr})}
}

// awaitOpen waits, with mu held, for a new primary to open, and to hear of who may attach: its clients are on their way
// already, and that is a matter of milliseconds.
func (r *Replica) awaitOpen(ctx context.Context) {
	waits := func() bool {
		st := r.core.State()
		return (st == StateOpening || st == StateOpen && !r.heardOrders()) && !r.closed && ctx.Err() == nil
	}
	if !waits() {
		return
	}
	stop := context.AfterFunc(ctx, func() {
		r.mu.Lock()
		r.idle.Broadcast()
		r.mu.Unlock()
	})
	defer stop()
	for waits() {
		r.idle.Wait()
	}
}

// fenceLocked ends the session. When it returns nothing more of it is ordered, and nobody but the list of pending
// requests, which looks at gone first, knows its requests.
func (s *session) fenceLocked() {
	r := s.r
	s.closed = true
	delete(r.sessions, s)
	if s.id.Name != "" && r.named[s.id.Name] == s {
		delete(r.named, s.id.Name)
	}
	keep := r.queue[:0]
	for _, q := range r.queue {
		if q.s == s {
			r.queueBytes -= payloadBytes(q.req)
			continue
		}
		keep = append(keep, q)
	}
	clear(r.queue[len(keep):])
	r.queue = keep
	r.readWait = dropReads(r.readWait, s)
	r.readQueue = dropReads(r.readQueue, s)
	for s.busy > 0 {
		r.idle.Wait()
	}
	s.letGo() // not before: what was in somebody's hands has noted its number now
}

// Close implements blockdev.Session.
func (s *session) Close() {
	s.r.mu.Lock()
	s.fenceLocked()
	s.r.mu.Unlock()
	s.mu.Lock()
	s.gone = true
	s.mu.Unlock()
}

// complete gives requests back, unless the client does not want them any more.
func (s *session) complete(done []*blockdev.Request) {
	if len(done) == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.gone {
		s.client.Complete(done)
	}
}

// Submit implements blockdev.Session.
func (s *session) Submit(burst []*blockdev.Request) {
	r := s.r
	size := r.growth.offered.Load()
	var now []*blockdev.Request // wrong or trivial; completed at the end. Rarely used.
	writes, reads, others := 0, 0, 0
	for _, q := range burst {
		q.Err = nil
		if q.Err = check(q, size); q.Err == blockdev.ErrOutOfRange {
			reads++ // what the size is only a primary knows that still is one
			continue
		} else if q.Err != nil || trivial(q) {
			now = append(now, q)
			continue
		}
		switch q.Op {
		case blockdev.OpWrite:
			sumAligned(q)
			writes++
		case blockdev.OpTrim, blockdev.OpWriteZeroes:
			writes++
		case blockdev.OpRead, blockdev.OpExtents:
			reads++
		case blockdev.OpFlush, blockdev.OpCache:
			others++
		}
	}
	if writes+reads+others > 0 {
		s.admit(burst, now, reads)
	}
	s.complete(now)
}

// admit puts a burst that was looked at into the queues.
func (s *session) admit(burst, skip []*blockdev.Request, reads int) {
	r, a := s.r, &s.a
	r.mu.Lock()
	if s.closed {
		r.mu.Unlock()
		return // the client was told
	}
	var ticket uint64
	var readNow bool
	if reads > 0 {
		ticket, readNow = r.core.ReadTicket(r.opts.Clock())
		if readNow {
			r.reads.atOnce += uint64(reads)
		} else {
			r.reads.confirmed += uint64(reads)
		}
	}
	for _, q := range burst {
		if len(skip) > 0 && skip[0] == q {
			skip = skip[1:]
			continue
		}
		switch {
		case q.Err != nil || q.Op == blockdev.OpRead || q.Op == blockdev.OpExtents:
			s.queueRead(q, ticket, readNow)
		case q.Op == blockdev.OpCache: // a hint: it waits for nothing that reads wait for
			r.readQueue = append(r.readQueue, readReq{req: q, s: s})
		case q.Op == blockdev.OpFlush:
			r.await(pendingReq{lsn: r.core.Commit(), req: q, s: s, stable: true}, a)
		default:
			s.queueWrite(q, a)
		}
	}
	inline := len(s.here) == 0 && r.inlinable()
	if len(s.here) > 0 {
		s.busy++
	}
	if len(r.queue) > 0 && !inline {
		r.work.Signal()
	}
	if len(r.readQueue) > 0 {
		r.readers.Signal()
	}
	r.settle(a)
	if inline {
		r.logBusy = true
		r.order(a)
		r.releaseLog()
	}
	r.mu.Unlock()
	r.finish(a)
	if len(s.here) > 0 {
		s.readHere()
	}
}

// queueRead lets a read wait for what it needs: for nothing, for a reader, or for the peers to confirm that this is the
// primary. So it goes with what is past the end, for only a primary that still is one knows where that is. mu is held.
func (s *session) queueRead(q *blockdev.Request, ticket uint64, readNow bool) {
	r := s.r
	switch {
	case !readNow:
		r.readWait = append(r.readWait, readReq{req: q, s: s, ticket: ticket})
	case q.Err == nil && s.readsHere(q):
		s.here = append(s.here, q)
	default:
		r.readQueue = append(r.readQueue, readReq{req: q, s: s})
	}
}

// queueWrite lets a request that changes the disk wait to be ordered, unless it was ordered already, or there is no room.
// mu is held.
func (s *session) queueWrite(q *blockdev.Request, a *after) {
	r := s.r
	switch {
	case s.space != nil && s.repeated(q, a):
	case r.refusesWrites():
		s.refuseFull(q, a)
	default:
		r.queue = append(r.queue, queued{req: q, s: s})
		r.queueBytes += payloadBytes(q)
	}
}

// check refuses what makes no sense.
func check(q *blockdev.Request, size uint64) error {
	switch q.Op {
	case blockdev.OpFlush:
		return nil
	case blockdev.OpRead, blockdev.OpWrite:
		if uint64(len(q.Data)) != uint64(q.Length) {
			return fmt.Errorf("replication: %v of %d bytes with a buffer of %d: %w", q.Op, q.Length, len(q.Data), blockdev.ErrInvalid)
		}
	case blockdev.OpTrim, blockdev.OpWriteZeroes, blockdev.OpCache, blockdev.OpExtents:
	default:
		return fmt.Errorf("replication: operation %d: %w", q.Op, blockdev.ErrInvalid)
	}
	if q.Offset > size || uint64(q.Length) > size-q.Offset {
		return blockdev.ErrOutOfRange
	}
	return nil
}

// trivial tells whether nothing has to be done: the range is empty.
func trivial(q *blockdev.Request) bool { return q.Op != blockdev.OpFlush && q.Length == 0 }

// inner is the range of whole blocks inside a range of bytes.
func inner(off, n uint64) (first, end uint64) {
	return (off + blockdev.BlockSize - 1) / blockdev.BlockSize, (off + n) / blockdev.BlockSize
}

// sumAligned computes the block checksums of a write that covers whole blocks: the only time in the blocks' lives that
// they are computed. Others get theirs when they are merged with what is around them, at ordering.
func sumAligned(q *blockdev.Request) {
	sums := q.Scratch.Sums[:0]
	if q.Offset%blockdev.BlockSize == 0 && q.Length%blockdev.BlockSize == 0 {
		block := q.Offset / blockdev.BlockSize
		for d := q.Data; len(d) > 0; d = d[blockdev.BlockSize:] {
			sums = append(sums, wal.BlockSum(block, d[:blockdev.BlockSize]))
			block++
		}
	}
	q.Scratch.Sums = sums
}

// writable tells whether writes may be ordered now.
func (r *Replica) writable() bool {
	return r.core.State() == StateOpen && !r.core.Draining() && !r.thin()
}

// thin tells whether the view has fewer members than the volume's writes are to be on. None is ordered then, and what
// was ordered before is answered when there are enough again: a member that joins has all that is committed.
func (r *Replica) thin() bool { return len(r.core.View().Members()) < r.hard.Volume.MinCopies }

// Interface checks.
var (
	_ blockdev.Device  = (*Replica)(nil)
	_ blockdev.Session = (*session)(nil)
)
