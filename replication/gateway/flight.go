package gateway

import "lockstep/blockdev"

// flight is the requests in flight on one volume: the pure core of the gateway. It decides which may go to the
// primary now (G3), in which order they are sent again (G2), and whose bytes stay taken after their client has gone
// (G5). It does no I/O and knows no time but what it is told. It is not safe for concurrent use.
//
// A request in flight has an entry, and its Scratch.LSN is the entry's index. The flight references a request from
// admit until complete, expire or abandon lets go of it.
type flight struct {
	entries []entry // entries[0] is none
	free    index   // list, by entry.next
	index   overlapIndex
	arrived uint64 // requests ever admitted

	waiting int     // entries in stateWaiting
	hits    []index // reused
	woken   []*lane // lanes of which requests can be sent since something happened, until nextWoken
}

// lane is one session's part of a flight.
type lane struct {
	first, last index // in order of arrival, by entry.next and prev
	ready, tail index // ready to be sent, by entry.queue
	count       int   // requests in flight, ghosts not counted
	ghosts      int
	woken       bool // is in flight.woken

	// Numbers of requests (blockdev.RequestID). A request gets one when it is first sent, and has it until it leaves.
	seqs []uint64 // by slot: the last one that was used
	free []int    // slots that no request has
}

// numberless tells whether all numbers are in use.
func (l *lane) numberless() bool { return len(l.free) == 0 && len(l.seqs) == maxInFlight }

// number gives a request a number that no other of the lane has or had.
func (l *lane) number() uint64 {
	if len(l.free) == 0 {
		l.seqs = append(l.seqs, 0)
		l.free = append(l.free, len(l.seqs)-1)
	}
	slot := l.free[len(l.free)-1]
	l.free = l.free[:len(l.free)-1]
	l.seqs[slot]++
	return blockdev.RequestID(slot, l.seqs[slot])
}

// entryState is where a request in flight is.
type entryState uint8

const (
	// stateWaiting: it overlaps an earlier entry. Next: stateReady, when the last of those leaves.
	stateWaiting entryState = iota + 1
	// stateReady: it may be sent and is in its lane's queue. Next: stateSent by take.
	stateReady
	// stateSent: a primary has it, or had it until its connection ended. Next: none, when answered; stateReady by rewind;
	// stateGhost by expire or abandon.
	stateSent
	// stateGhost: nobody waits for it any more, but it was sent and may change the disk (G5). Next: none, by bury.
	stateGhost
)

// entry is a request in flight. Whatever is not said to be in a list is reachable through its lane.
type entry struct {
	req        *blockdev.Request // nil for a ghost
	lane       *lane
	span       span   // what it changes; empty for a read or a flush
	arrival    uint64 // order
	since      int64  // when it arrived, ns on the caller's clock
	next, prev index
	queue      index
	blockers   int32 // earlier entries that it overlaps and has to wait for
	state      entryState
	sentBefore bool   // its outcome is unknown until it is answered
	id         uint64 // its number, since it was sent
}

// admit puts a request into flight. If it has to wait for others it gets ready later; see nextWoken.
func (f *flight) admit(l *lane, r *blockdev.Request, now int64) {
	i := f.alloc()
	f.arrived++
	e := &f.entries[i]
	e.req, e.lane, e.arrival, e.since = r, l, f.arrived, now
	r.Scratch.LSN = uint64(i)

	e.prev = l.last
	if l.last == 0 {
		l.first = i
	} else {
		f.entries[l.last].next = i
	}
	l.last = i
	l.count++

	if r.Op.Mutates() && r.Length > 0 { // G4: others neither wait nor are waited for
		e.span.setRange(r.Offset, r.Length)
		f.hits = f.index.find(f.entries, i, f.hits[:0]) // all are earlier
		e.blockers = int32(len(f.hits))
		f.index.insert(f.entries, i)
	}
	if e.blockers > 0 {
		e.state = stateWaiting
		f.waiting++
		return
	}
	f.enqueue(i)
}

// take moves up to limit requests from the lane's queue to dst. The caller sends them, in this order.
func (f *flight) take(l *lane, dst []*blockdev.Request, limit int) []*blockdev.Request {
	for ; l.ready != 0 && limit > 0; limit-- {
		e := &f.entries[l.ready]
		if !e.sentBefore && l.numberless() {
			return dst // the rest is sent when answers have come
		}
		l.ready = e.queue
		e.queue, e.state = 0, stateSent
		if !e.sentBefore {
			e.sentBefore, e.id = true, l.number()
		}
		e.req.ID = e.id
		dst = append(dst, e.req)
	}
	if l.ready == 0 {
		l.tail = 0
	}
	return dst
}

// complete takes a request that a primary answered out of its lane.
func (f *flight) complete(l *lane, r *blockdev.Request) {
	i := index(r.Scratch.LSN)
	if i <= 0 || int(i) >= len(f.entries) || f.entries[i].req != r || f.entries[i].lane != l {
		panic("gateway: G8: an answer to a request that is not in flight")
	}
	if f.entries[i].state != stateSent {
		panic("gateway: G8: an answer to a request that no primary has")
	}
	f.remove(i)
}

// rewind makes all requests of the lane ready again, in order of arrival, but for those that wait for others: the
// connection that had them is closed.
func (f *flight) rewind(l *lane) {
	l.ready, l.tail = 0, 0
	for i := l.first; i != 0; i = f.entries[i].next {
		if s := f.entries[i].state; s == stateSent || s == stateReady {
			f.enqueue(i)
		}
	}
}

// expire lets go of the lane's requests that arrived before a time, appends them to dst, and rewinds the rest. The
// lane has no connection now. Requests whose outcome is unknown leave a ghost.
func (f *flight) expire(l *lane, before int64, dst []*blockdev.Request) []*blockdev.Request {
	for i := l.first; i != 0; {
		e := &f.entries[i]
		if e.since >= before {
			break // in order of arrival: so are the others
		}
		next := e.next
		if e.state != stateGhost {
			dst = append(dst, e.req)
			f.letGo(i)
		}
		i = next
	}
	f.rewind(l)
	return dst
}

// abandon lets go of all requests of the lane, whose session ended, and returns how many ghosts they leave.
func (f *flight) abandon(l *lane) (ghosts int) {
	for i := l.first; i != 0; {
		next := f.entries[i].next
		if f.entries[i].state != stateGhost {
			f.letGo(i)
		}
		i = next
	}
	l.ready, l.tail = 0, 0 // some that waited for others of this lane became ready on the way
	return l.ghosts
}

// bury gives the bytes of the lane's ghosts free: the session has been fenced.
func (f *flight) bury(l *lane) {
	for i := l.first; i != 0 && l.ghosts > 0; {
		next := f.entries[i].next
		if f.entries[i].state == stateGhost {
			f.remove(i)
		}
		i = next
	}
}

// oldest is when the lane's oldest request arrived; false if there is none.
func (f *flight) oldest(l *lane) (since int64, ok bool) {
	for i := l.first; i != 0; i = f.entries[i].next {
		if f.entries[i].state != stateGhost {
			return f.entries[i].since, true
		}
	}
	return 0, false
}

// nextWoken returns a lane of which requests can be sent now, because of something that happened in another or in itself;
// nil when there is none left.
func (f *flight) nextWoken() *lane {
	last := len(f.woken) - 1
	if last < 0 {
		return nil
	}
	l := f.woken[last]
	f.woken = f.woken[:last]
	l.woken = false
	return l
}

// letGo ends the flight's hold on a request. Its range stays taken as a ghost's if it may still be carried out.
func (f *flight) letGo(i index) {
	e := &f.entries[i]
	if !e.sentBefore || e.span.lo == e.span.hi {
		f.remove(i)
		return
	}
	e.req.Scratch.LSN = 0
	e.req, e.state = nil, stateGhost
	e.lane.count--
	e.lane.ghosts++
}

// remove takes an entry out of everything but its lane's queue, which the caller sees to if it can be there. Entries
// that waited for it alone become ready.
func (f *flight) remove(i index) {
	e := &f.entries[i]
	l := e.lane
	if e.state == stateWaiting {
		f.waiting--
	}
	if e.prev == 0 {
		l.first = e.next
	} else {
		f.entries[e.prev].next = e.next
	}
	if e.next == 0 {
		l.last = e.prev
	} else {
		f.entries[e.next].prev = e.prev
	}
	if e.state == stateGhost {
		l.ghosts--
	} else {
		l.count--
		e.req.Scratch.LSN = 0
	}
	if e.span.lo != e.span.hi {
		f.index.remove(f.entries, i)
		f.unblock(i)
	}
	if e.sentBefore {
		l.free = append(l.free, blockdev.RequestSlot(e.id))
		if l.ready != 0 {
			f.wake(l)
		}
	}
	e.req, e.lane, e.next = nil, nil, f.free
	f.free = i
}

// unblock counts entry i off from the later ones that overlap it. Those waited for it, whatever state it is in.
func (f *flight) unblock(i index) {
	if f.waiting == 0 {
		return
	}
	f.hits = f.index.find(f.entries, i, f.hits[:0])
	for _, h := range f.hits {
		o := &f.entries[h]
		if o.arrival < f.entries[i].arrival {
			continue
		}
		if o.blockers--; o.blockers > 0 {
			continue
		}
		f.waiting--
		f.enqueue(h)
		f.wake(o.lane)
	}
}

// wake notes that requests of a lane can be sent.
func (f *flight) wake(l *lane) {
	if !l.woken {
		l.woken = true
		f.woken = append(f.woken, l)
	}
}

// enqueue makes an entry ready.
func (f *flight) enqueue(i index) {
	e := &f.entries[i]
	e.state, e.queue = stateReady, 0
	if l := e.lane; l.tail == 0 {
		l.ready, l.tail = i, i
	} else {
		f.entries[l.tail].queue = i
		l.tail = i
	}
}

// alloc returns an unused, zero entry. Memory grows to the most that was ever in flight.
func (f *flight) alloc() index {
	if i := f.free; i != 0 {
		f.free = f.entries[i].next
		f.entries[i] = entry{}
		return i
	}
	if len(f.entries) == 0 {
		f.entries = append(f.entries, entry{})
	}
	f.entries = append(f.entries, entry{})
	return index(len(f.entries) - 1)
}
