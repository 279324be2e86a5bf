package replication

import (
	"errors"
	"fmt"
	"sync/atomic"

	"lockstep/blockdev"
	"lockstep/viewsvc"
	"lockstep/wal"
)

// Limits of one frame. A frame is closed when it holds this much; a single larger write makes a larger frame.
const (
	maxBatchBytes    = 1 << 20
	maxBatchRequests = 512 // each takes up to three records
	maxInlineBytes   = 64 << 10
	maxHeaderBytes   = 64 << 10 // of a frame with so many requests, without its sums
	minFrameBytes    = 2 * maxHeaderBytes
)

// frameBuf is a frame on its way to the log and to the peers. It is used again when all of them are done with it.
type frameBuf struct {
	builder wal.Builder
	frame   wal.Frame
	refs    atomic.Int32
	batch   []queued     // what is in it
	ends    []pendingReq // the requests that it completes
	failed  []failedReq  // the requests that it could not take
	session uint64       // whose request the records are that are being added: 0 is nobody's
	number  uint64
	edge    []byte // room for a request that has to be merged with its surroundings
}

// failedReq is a request that could not be ordered.
type failedReq struct {
	pendingReq
	err error
}

// add puts a record into the frame. The limits of a batch are such that there is room.
func (fb *frameBuf) add(rec wal.Record, data []byte, sums []uint32) {
	rec.Session, rec.Seq = fb.session, fb.number
	if !fb.builder.Add(rec, data, sums) {
		panic("replication: a batch is larger than a frame")
	}
}

func (r *Replica) getFrame() *frameBuf {
	fb := r.pool.Get().(*frameBuf)
	fb.builder.Reset()
	fb.builder.MaxBytes = r.store.MaxFrame()
	fb.refs.Store(1)
	fb.session, fb.number = 0, 0
	return fb
}

func (r *Replica) putFrame(fb *frameBuf) {
	if fb.refs.Add(-1) == 0 {
		clear(fb.batch)
		clear(fb.ends)
		clear(fb.failed)
		fb.batch, fb.ends, fb.failed = fb.batch[:0], fb.ends[:0], fb.failed[:0]
		r.pool.Put(fb)
	}
}

// commitLoop is the committer: it orders requests, in frames, for as long as the replica is open.
func (r *Replica) commitLoop() {
	var a after
	for {
		r.mu.Lock()
		for !r.closed && (r.logBusy || !(r.beginnable() || r.orderable())) {
			r.work.Wait()
		}
		if r.closed {
			r.mu.Unlock()
			return
		}
		r.logBusy = true
		switch {
		case r.beginView.Num != 0:
			r.beginTenure(&a)
		case r.outgrown():
			r.grow(&a)
		default:
			r.order(&a)
		}
		r.releaseLog()
		hold := r.hold()
		r.mu.Unlock()
		r.finish(&a)
		if hold > 0 {
			sleep(r.ctx, r.rt, hold)
		}
	}
}

// RoomMade lets the committer look again whether the log has room. It is for the store's OnRoom: it does not block.
func (r *Replica) RoomMade() {
	r.room.Ring()
}

// begins tells whether a VIEW record is due, with mu held.
func (r *Replica) begins() bool { return r.beginView.Num != 0 || r.outgrown() }

// beginnable tells whether there is room in the log for a VIEW record that is due, with mu held.
func (r *Replica) beginnable() bool {
	return r.begins() && r.store.RoomFor(2*blockdev.BlockSize)
}

// orderable tells whether there are writes, and room for them, with mu held. store.OnRoom wakes the committer when the
// log has room again.
func (r *Replica) orderable() bool {
	return len(r.queue) > 0 && r.writable() && !r.store.Full() && r.store.RoomFor(frameRoom(min(r.queueBytes, maxBatchBytes+r.atomic)))
}

// inlinable tells whether the goroutine that brought the queued writes should order them itself, with mu held: nothing
// else is in flight, so that nobody's work is held up, and the committer need not wake up for it. What the client sends
// meanwhile makes the next frame, which could not begin before this one's sync in any case. Larger writes are left to
// the committer, so that the next one is received and summed while this one is synced.
func (r *Replica) inlinable() bool {
	return len(r.queue) > 0 && len(r.pending) == 0 && !r.logBusy && r.beginView.Num == 0 &&
		r.queueBytes <= maxInlineBytes && r.hold() == 0 && r.orderable()
}

// frameRoom bounds the size of a frame with so much payload.
func frameRoom(payload int) int { return payload + payload/16 + maxHeaderBytes }

// atomicBytes is how much of a write goes into one frame of a log, and is atomic: all that is promised, but for a log with
// segments that are smaller than a node makes them.
func atomicBytes(st *blockdev.Store) (int, error) {
	frame := st.MaxFrame()
	switch {
	case frame >= wal.MaxFrameBytes:
		return blockdev.MaxRequestBytes, nil
	case frame < minFrameBytes:
		return 0, fmt.Errorf("replication: the log's segments have %d bytes, they need %d; format the replica anew with a larger log", frame, minFrameBytes)
	}
	return (frame - maxHeaderBytes) / 17 * 16 / blockdev.BlockSize * blockdev.BlockSize, nil // frameRoom of it is no more than frame
}

// errHalfCopy is of a replica that an operator made primary (I10): a copy began, by a message that had been on its way for
// long, after the view service had heard of it last.
var errHalfCopy = errors.New("replication: this copy is unfinished, and cannot be primary: force the volume to another node, then start this one again")

// beginTenure appends the VIEW record after the whole log: with it every record of earlier epochs that the log holds
// becomes part of this tenure's history. mu is held, and given up during I/O.
func (r *Replica) beginTenure(a *after) {
	v := r.beginView
	r.beginView = viewsvc.View{}
	if r.store.Copying() {
		r.poison(a, errHalfCopy)
		return
	}
	r.catchUpSize()
	if r.core.State() != StateOpening || r.core.View().Tenure != v.Tenure {
		return
	}
	r.end, r.begun = r.store.Marks().End, v.Tenure
	fb := r.sealView(v.Num, a)
	r.core.TenureBegun(v.Tenure, r.end)
	r.write(fb, a, true)
}

// order takes queued requests, makes a frame of them and writes it. mu is held, and given up during work on the
// payload and during I/O.
func (r *Replica) order(a *after) {
	fb := r.getFrame()
	tenure := r.core.View().Tenure
	r.takeBatch(fb)
	r.mu.Unlock()
	r.build(fb)
	if d := r.store.Delay(fb.builder.Size()); d > 0 {
		sleep(r.ctx, r.rt, d)
	}
	r.mu.Lock()
	for i := range fb.batch {
		fb.batch[i].s.busy--
	}
	r.idle.Broadcast()
	// Here the requests become real, or not (I11). A session that was closed meanwhile waited for busy to fall; it
	// could not return before its requests were ordered.
	if r.core.State() != StateOpen || r.core.View().Tenure != tenure {
		r.putFrame(fb)
		return
	}
	r.failUnbuilt(fb, a)
	if fb.builder.Records() == 0 {
		r.putFrame(fb)
		return
	}
	sync := false
	for i := range fb.ends {
		e := &fb.ends[i]
		e.lsn += r.end // so far counted from the frame's first record
		e.s.note(e.req, e.lsn)
		e.stable = e.req.Flags&blockdev.FlagFUA != 0
		sync = sync || e.stable
	}
	r.pending = append(r.pending, fb.ends...)
	r.seal(fb, a, sync)
	r.write(fb, a, sync)
}

// takeBatch moves requests from the queue into the frame's batch.
func (r *Replica) takeBatch(fb *frameBuf) {
	n, bytes, edges := 0, 0, false
	for ; n < len(r.queue) && n < maxBatchRequests && bytes < maxBatchBytes; n++ {
		q := r.queue[n]
		aligned := q.req.Offset%blockdev.BlockSize == 0 && q.req.Length%blockdev.BlockSize == 0
		if (edges || !aligned) && overlapsAny(fb.batch, q.req) {
			break // it has to be merged with what comes before it, which is not in the log yet
		}
		edges = edges || !aligned
		payload := payloadBytes(q.req) - int(q.done)
		if n > 0 && bytes+payload > r.atomic {
			break
		}
		q.s.busy++
		fb.batch = append(fb.batch, q)
		if q.req.Op == blockdev.OpWrite && uint64(q.req.Length)-q.done > uint64(r.atomic) {
			// Larger than what can be atomic: this frame takes a part, the next ones the rest.
			r.queue[n].done += uint64(r.atomic)
			break
		}
		r.queueBytes -= payloadBytes(q.req)
		bytes += payload
	}
	r.queue = shift(r.queue, n)
}

// failUnbuilt completes the requests that could not be built with their errors. What is left of a huge one is dropped.
func (r *Replica) failUnbuilt(fb *frameBuf, a *after) {
	for _, f := range fb.failed {
		if len(r.queue) > 0 && r.queue[0].req == f.req {
			r.queueBytes -= payloadBytes(f.req)
			r.queue = shift(r.queue, 1)
		}
		f.req.Err = ioError(f.err)
		a.completed = append(a.completed, f.pendingReq)
	}
}

// seal gives the frame its LSNs and sends it to every peer that takes frames as they are made. mu is held.
func (r *Replica) seal(fb *frameBuf, a *after, sync bool) {
	var flags uint16
	if sync {
		flags = wal.FlagSync
	}
	fb.frame = fb.builder.Seal(wal.Header{
		Salt: r.store.Salt(), Epoch: wal.Epoch(r.core.View().Tenure), Incarnation: r.store.Incarnation(),
		First: r.end + 1, Commit: r.core.Commit(), Stable: r.core.Stable(),
		Chain: r.store.EndSum(), Flags: flags, Time: r.rt.Now().UnixNano()})
	r.end = fb.frame.Last()
	r.logged += uint64(len(fb.frame.Bytes()))
	r.inflight = fb
	for _, s := range r.streams {
		if s.direct {
			s.pushFrame(fb)
			a.queues = append(a.queues, s.q)
		}
	}
}

// write sends the frame, writes it to the own log, and syncs it if that is needed. mu is held, and given up meanwhile.
// Sending comes first: the peers write while we do.
func (r *Replica) write(fb *frameBuf, a *after, sync bool) {
	last := fb.frame.Last()
	r.mu.Unlock()
	r.finish(a)
	err := r.store.Append(fb.frame)
	r.mu.Lock()
	r.inflight = nil
	r.putFrame(fb)
	if err != nil {
		r.poison(a, err)
		return
	}
	r.core.Appended(last)
	r.settle(a)
	// Decided only now: a view that leaves this replica alone may have arrived meanwhile. If it arrives later, the
	// core asks for a sync by itself.
	if !sync && r.core.CommitsWritten() {
		return
	}
	r.mu.Unlock()
	r.finish(a)
	err = r.syncStore()
	r.mu.Lock()
	if err != nil {
		r.poison(a, err)
		return
	}
	r.core.Durable(last)
	r.settle(a)
}

// ioError makes a storage error one that a client is given.
func ioError(err error) error {
	if errors.Is(err, blockdev.ErrIO) {
		return err
	}
	return errors.Join(blockdev.ErrIO, err)
}
