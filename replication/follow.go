package replication

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"lockstep/blockdev"
	"lockstep/viewsvc"
	"lockstep/wal"
)

// Limits of following.
const (
	maxSyncBatch  = 4 << 20 // bytes of frames that are written before they are synced and acknowledged
	answerTimeout = 10 * time.Second
)

var (
	errSuperseded = errors.New("replication: a newer stream took over")
	errStaleView  = errors.New("replication: the sender is not the primary of this replica's view")
)

// follower is a replica's end of a stream: it takes what the primary sends. One goroutine, ServeStream's caller, owns
// everything but what the mutexes guard.
type follower struct {
	r    *Replica
	conn net.Conn
	rd   *reader
	from viewsvc.ReplicaID

	held    bool    // this goroutine has the right to write the log
	started bool    // Start or Copy was carried out: the log agrees with the primary's. Guarded by Replica.mu
	caught  wal.LSN // the primary's log end when the stream began
	dirty   bool    // something has to be synced before it is acknowledged
	bytes   int
	img     blockdev.RegionImage

	answer sync.Locker // held over writing to conn; taken before Replica.mu
	nonce  uint64      // newest seen, guarded by answer
	lease  uint64      // of the newest request that was granted, guarded by answer
	fresh  bool        // they were not answered yet, guarded by answer
	head   [headerSize]byte
}

// ServeStream follows a primary over a connection on which its Hello has been read. It returns when the stream ends.
func (r *Replica) ServeStream(conn net.Conn, rd *reader, h hello) error {
	f := &follower{r: r, conn: conn, rd: rd, from: h.From, answer: r.rt.Mutex()}
	w, err := f.accept(h)
	if err != nil {
		if errors.Is(err, errStaleView) {
			f.tellStale()
		}
		return err
	}
	defer f.leave()
	if err := f.send(msg{Type: msgWelcome, View: h.View.Num}.encodeJSON(w)); err != nil {
		return err
	}
	for {
		if err := f.next(); err != nil {
			if errors.Is(err, errStaleView) {
				f.tellStale()
			}
			return err
		}
	}
}

// accept makes this the replica's stream, unless its view forbids it, and describes the replica.
func (f *follower) accept(h hello) (welcome, error) {
	r := f.r
	var a after
	r.mu.Lock()
	defer func() { r.mu.Unlock(); r.finish(&a) }()
	if r.closed || r.failed != nil {
		return welcome{}, fmt.Errorf("replication: replica %s is not in service", r.id)
	}
	if r.store.Full() {
		return welcome{}, errFull
	}
	ok := r.core.Hello(h.From, h.View)
	r.settle(&a)
	if !ok {
		return welcome{}, errStaleView
	}
	if r.follower != nil {
		r.follower.conn.Close()
	}
	r.follower = f
	r.work.Broadcast() // the one before may wait for room in the log
	took := r.takeLog()
	if took { // whoever had it is done: the log stays as it is until this stream changes it
		defer r.releaseLog()
	}
	switch {
	case took && r.follower == f && r.core.Accepts(f.from, h.View.Num):
		r.running++ // until leave; r.closed is false
	case r.follower == f:
		r.follower = nil
		return welcome{}, errStaleView
	default:
		return welcome{}, errSuperseded
	}
	m := r.store.Marks()
	return welcome{End: m.End, Committed: m.Committed, Applied: m.Applied, Copying: r.store.Copying(),
		CopyBase: r.hard.CopyBase, Epochs: r.store.Epochs()}, nil
}

func (f *follower) leave() {
	r := f.r
	defer r.ended()
	r.mu.Lock()
	defer r.mu.Unlock()
	if f.held {
		f.held = false
		r.releaseLog()
	}
	if r.follower == f {
		r.follower = nil
	}
}

// tellStale sends the view that this replica is in; the sender's is older.
func (f *follower) tellStale() {
	f.r.mu.Lock()
	v := f.r.core.View()
	f.r.mu.Unlock()
	_ = f.send(msg{Type: msgStale, View: v.Num}.encodeJSON(v)) // the stream ends in any case
}

func (f *follower) send(b []byte) error {
	f.answer.Lock()
	defer f.answer.Unlock()
	return f.writeLocked(b)
}

func (f *follower) writeLocked(b []byte) error {
	if err := f.conn.SetWriteDeadline(f.r.rt.Now().Add(answerTimeout)); err != nil {
		return err
	}
	_, err := f.conn.Write(b)
	return err
}

// next takes one message. Messages that have arrived together are synced and acknowledged together.
func (f *follower) next() error {
	m, body, err := f.rd.next()
	if err != nil {
		return err
	}
	if m.Type == msgView {
		err = f.onView(body)
	} else if err = f.begin(m); err == nil {
		err = f.handle(m, body)
	}
	if err != nil {
		return err
	}
	if f.bytes >= maxSyncBatch || !f.rd.buffered() {
		return f.endBurst()
	}
	return nil
}

// begin checks that the message may be acted upon, and takes the log for the burst.
func (f *follower) begin(m msg) error {
	r := f.r
	r.mu.Lock()
	defer r.mu.Unlock()
	if !f.held {
		if !r.takeLog() {
			return errSuperseded
		}
		f.held = true
	}
	if r.follower != f {
		return errSuperseded
	}
	if !r.core.Accepts(f.from, m.View) {
		return errStaleView
	}
	switch m.Type {
	case msgStart, msgCopy, msgForeign:
		if f.started {
			return fmt.Errorf("%w: type %d in the middle of a stream", errWire, m.Type)
		}
	case msgRegion, msgSessions, msgCopyDone, msgAppend, msgConfirm, msgDigest, msgMend:
		if !f.started {
			return fmt.Errorf("%w: type %d before the start of a stream", errWire, m.Type)
		}
	case msgHello, msgWelcome, msgStale, msgView, msgAck, msgFetch, msgBlock, msgSums:
		return fmt.Errorf("%w: type %d from a primary", errWire, m.Type)
	}
	return nil
}

func (f *follower) onView(body []byte) error {
	v, err := decodeView(body)
	if err != nil {
		return err
	}
	r := f.r
	var a after
	r.mu.Lock()
	ok := r.core.Hello(f.from, v)
	r.settle(&a)
	r.mu.Unlock()
	r.finish(&a)
	if !ok {
		return errStaleView
	}
	return nil
}

// endBurst makes durable what has to be, answers, and gives the log up.
func (f *follower) endBurst() error {
	if !f.held {
		return nil // nothing but a view has come
	}
	if f.dirty {
		// A read at the primary may wait for this view to be confirmed; it need not wait for the disk.
		if err := f.confirmEarly(); err != nil {
			return err
		}
		if err := f.sync(); err != nil {
			return err
		}
	}
	f.bytes = 0
	if err := f.clear(); err != nil {
		return err
	}
	if err := f.ack(0); err != nil {
		return err
	}
	r := f.r
	r.mu.Lock()
	f.held = false
	r.releaseLog()
	r.mu.Unlock()
	return nil
}

// clear makes a suspect none once it has on its disk all that the primary had when the stream began. A primary that sends
// anything lacks nothing.
func (f *follower) clear() error {
	r := f.r
	var a after
	r.mu.Lock()
	defer func() { r.mu.Unlock(); r.finish(&a) }()
	if !r.core.Suspect() || r.store.Copying() || r.core.durable < f.caught {
		return nil
	}
	r.core.Caught()
	r.hard.Suspect = false
	err := r.saveHard()
	if err != nil {
		r.poison(&a, err)
	}
	return err
}

// sync makes the log durable.
func (f *follower) sync() error {
	r := f.r
	if err := f.storage(r.syncStore()); err != nil {
		return err
	}
	f.dirty = false
	r.mu.Lock()
	r.core.Durable(r.core.Written()) // the log is held: nothing was written since
	r.mu.Unlock()
	return nil
}

// ack says what is written, what is durable, and which nonce was seen last.
func (f *follower) ack(flags uint8) error {
	f.answer.Lock()
	defer f.answer.Unlock()
	return f.ackLocked(flags)
}

// ackLocked reads the marks with answer held, so that acks never go back.
func (f *follower) ackLocked(flags uint8) error {
	r := f.r
	r.mu.Lock()
	v := r.core.View()
	if r.core.Suspect() {
		flags |= flagSuspect
	}
	m := msg{Type: msgAck, Flags: flags, View: v.Num, A: uint64(r.core.written), B: uint64(r.core.durable),
		Commit: wal.LSN(v.Tenure), Nonce: f.nonce, Lease: f.lease}
	r.mu.Unlock()
	f.fresh = false
	m.put(f.head[:])
	return f.writeLocked(f.head[:])
}

// confirmEarly answers a nonce that came with frames that are not synced yet.
func (f *follower) confirmEarly() error {
	f.answer.Lock()
	defer f.answer.Unlock()
	if !f.fresh {
		return nil
	}
	return f.ackLocked(0)
}

// ackDurable tells the primary of a sync that it did not ask for. Before Start the log may hold what is not in the
// primary's history, and nothing is said of it.
func (f *follower) ackDurable() {
	f.answer.Lock()
	defer f.answer.Unlock()
	f.r.mu.Lock()
	ok := f.started && f.r.follower == f
	f.r.mu.Unlock()
	if ok {
		_ = f.ackLocked(0) // a broken stream is found by its reader
	}
}
