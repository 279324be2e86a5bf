package replication

import (
	"lockstep/blockdev"
)

// Limits of reading.
const (
	readerCount   = 4  // goroutines per replica: a read that misses the page cache waits in one
	maxReadBurst  = 16 // requests that one of them takes at a time
	maxReadsHere  = 64 // of a burst that Submit answers itself
	readsPerReply = 8  // of those, how many are given back at a time: the client works on them while the next are read
)

// readReq is a read on its way. ticket is the core's: it may be answered when that is confirmed.
type readReq struct {
	req    *blockdev.Request
	s      *session
	ticket uint64
}

// ask sends every peer a Confirm, with mu held. It is also the heartbeat.
func (r *Replica) ask(a *after, m msg) {
	m.Type, m.View, m.Commit = msgConfirm, r.core.View().Num, r.core.Commit()
	if r.askSync || r.core.Joining() {
		m.Flags |= flagSync
	}
	if r.core.LeaseReturned() {
		m.Flags |= flagReturn
	}
	for _, s := range r.streams {
		if s.up {
			m := m
			if s.copying {
				m.Commit = 0
			}
			s.q.push(m, nil, nil)
			a.queues = append(a.queues, s.q)
		}
	}
}

// popReads hands confirmed reads to the readers.
func (r *Replica) popReads(nonce uint64) {
	n := 0
	for n < len(r.readWait) && r.readWait[n].ticket <= nonce {
		n++
	}
	r.readQueue = append(r.readQueue, r.readWait[:n]...)
	r.readWait = shift(r.readWait, n)
	if len(r.readQueue) > maxReadBurst {
		r.readers.Broadcast()
	} else {
		r.readers.Signal()
	}
}

// dropReads takes a session's reads off a list.
func dropReads(list []readReq, s *session) []readReq {
	keep := list[:0]
	for _, q := range list {
		if q.s != s {
			keep = append(keep, q)
		}
	}
	clear(list[len(keep):])
	return keep
}

// readsHere tells whether Submit should try to answer a read itself: one that is short and in memory is done sooner than
// a reader has woken up. The rest of a long burst is left to the readers, which work beside.
func (s *session) readsHere(q *blockdev.Request) bool {
	return q.Op == blockdev.OpRead && len(s.here) < maxReadsHere && q.Length <= blockdev.MaxCachedRead &&
		q.Offset%blockdev.BlockSize == 0 && q.Length%blockdev.BlockSize == 0
}

// readHere answers the reads in s.here, and leaves those that have to wait for the disk to the readers. s.busy counts it.
func (s *session) readHere() {
	r := s.r
	done := s.a.batch[:0]
	missed := s.here[:0]
	for _, q := range s.here {
		if r.store.ReadCached(q.Offset/blockdev.BlockSize, q.Data) {
			done = append(done, q)
			if len(done) == readsPerReply {
				s.complete(done)
				done = done[:0]
			}
		} else {
			missed = append(missed, q)
		}
	}
	s.complete(done)
	clear(done)
	s.a.batch = done[:0]

	r.mu.Lock()
	defer r.mu.Unlock()
	if !s.closed {
		for _, q := range missed {
			r.readQueue = append(r.readQueue, readReq{req: q, s: s})
		}
		if len(missed) > 0 {
			r.readers.Signal()
		}
	}
	clear(s.here)
	s.here = s.here[:0]
	if s.busy--; s.busy == 0 {
		r.idle.Broadcast()
	}
}

// readLoop is one of the readers. It takes a few reads of one session at a time and gives them back together.
func (r *Replica) readLoop() {
	var burst []*blockdev.Request
	var scratch []byte
	for {
		r.mu.Lock()
		for len(r.readQueue) == 0 && !r.closed {
			r.readers.Wait()
		}
		if r.closed {
			r.mu.Unlock()
			return
		}
		s := r.readQueue[0].s
		n := 0
		for n < len(r.readQueue) && n < maxReadBurst && r.readQueue[n].s == s {
			burst = append(burst, r.readQueue[n].req)
			n++
		}
		r.readQueue = shift(r.readQueue, n)
		if len(r.readQueue) > 0 {
			r.readers.Signal()
		}
		s.busy++
		r.mu.Unlock()

		for _, q := range burst {
			if q.Err != nil {
				continue // past the end
			}
			switch q.Op {
			case blockdev.OpExtents:
				q.Err = r.extents(q)
			case blockdev.OpCache:
				r.store.Prefetch(q.Offset, uint64(q.Length))
			default:
				scratch, q.Err = r.read(q, scratch)
			}
		}
		s.complete(burst)
		clear(burst)
		burst = burst[:0]

		r.mu.Lock()
		s.busy--
		if s.busy == 0 {
			r.idle.Broadcast()
		}
		r.mu.Unlock()
	}
}

// maxKeptScratch is how much room for unaligned reads a reader keeps.
const maxKeptScratch = 1 << 20

// read fills a request from committed data. scratch is room that is kept from one call to the next.
func (r *Replica) read(q *blockdev.Request, scratch []byte) ([]byte, error) {
	first, end := blockSpan(q)
	if q.Offset%blockdev.BlockSize == 0 && q.Length%blockdev.BlockSize == 0 {
		return scratch, readError(r.readRepaired(first, q.Data))
	}
	n := int(end-first) * blockdev.BlockSize
	if cap(scratch) < n {
		scratch = make([]byte, n)
	}
	if err := r.readRepaired(first, scratch[:n]); err != nil {
		return scratch, readError(err)
	}
	copy(q.Data, scratch[q.Offset-first*blockdev.BlockSize:n])
	if cap(scratch) > maxKeptScratch {
		scratch = nil
	}
	return scratch, nil
}

// extents says how the parts of a range are kept. As with a read, it is the committed content.
func (r *Replica) extents(q *blockdev.Request) error {
	end := q.Offset + uint64(q.Length)
	for off := q.Offset; off < end; {
		block := off / blockdev.BlockSize
		n, state, err := r.store.Extent(block, (end-1)/blockdev.BlockSize+1-block)
		if err != nil {
			return readError(err)
		}
		next := min(end, (block+n)*blockdev.BlockSize)
		if !q.AddExtent(uint32(next-off), state) {
			break
		}
		off = next
	}
	return nil
}

func readError(err error) error {
	if err == nil {
		return nil
	}
	return ioError(err)
}
