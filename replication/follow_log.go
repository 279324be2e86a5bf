package replication

import (
	"errors"
	"fmt"
	"time"

	"lockstep/viewsvc"
	"lockstep/wal"
)

// handle carries out a message. The log is held; a storage error poisons the replica.
func (f *follower) handle(m msg, body []byte) error {
	switch m.Type {
	case msgStart:
		return f.onStart(wal.LSN(m.A), wal.LSN(m.B))
	case msgCopy:
		return f.onCopy(body, wal.LSN(m.B))
	case msgRegion:
		if err := decodeRegion(body, &f.img); err != nil {
			return err
		}
		f.bytes += len(body)
		if err := f.grow(m.Nonce); err != nil {
			return err
		}
		err := f.storage(f.r.store.WriteRegion(int(m.A), &f.img, wal.LSN(m.B)))
		if err != nil && f.r.store.DiskFull() {
			sleep(f.r.ctx, f.r.rt, fullPause) // or else the copy would begin anew, and come this far, in no time
		}
		return err
	case msgSessions:
		if err := f.r.store.MergeSessions(body); err != nil {
			return fmt.Errorf("%w: %w", errWire, err)
		}
		return nil
	case msgCopyDone:
		return f.onCopyDone(m.Commit)
	case msgForeign:
		return f.r.outcast()
	case msgDigest:
		return f.onDigest(m)
	case msgMend:
		return f.onMend(m, body)
	case msgAppend:
		return f.onAppend(m, body)
	case msgConfirm:
		f.follow(m.Commit)
		granted := f.grant(m)
		f.answer.Lock()
		f.fresh = f.fresh || m.Nonce > f.nonce || granted
		f.nonce = max(f.nonce, m.Nonce)
		if granted {
			f.lease = m.Lease
		}
		f.answer.Unlock()
		f.dirty = f.dirty || m.Flags&flagSync != 0
		return nil
	}
	return nil
}

// grant gives what a Confirm asks for, and takes back what it returns.
func (f *follower) grant(m msg) bool {
	r := f.r
	r.mu.Lock()
	defer r.mu.Unlock()
	if m.Flags&flagReturn != 0 {
		r.core.GrantReturned(f.from, m.View)
	}
	return m.Lease != 0 && r.core.Grant(f.from, m.View, time.Duration(m.B), r.opts.Clock())
}

// storage looks at the result of an operation of the store. One that failed for good poisons the replica; what the
// store merely refused, a frame that does not fit or is damaged, ends the stream.
func (f *follower) storage(err error) error {
	if err != nil && f.r.store.Err() != nil {
		f.r.fail(err)
	}
	return err
}

// onStart cuts the log where it leaves the primary's.
func (f *follower) onStart(common, end wal.LSN) error {
	if err := f.cut(common); err != nil {
		return err
	}
	f.r.mu.Lock()
	f.started, f.caught, f.dirty = true, end, true
	f.r.mu.Unlock()
	return nil
}

func (f *follower) cut(to wal.LSN) error {
	r := f.r
	m := r.store.Marks()
	if to >= m.End {
		return nil
	}
	if to < m.Committed {
		return fmt.Errorf("replication: told to cut the log at %d, below the commit point %d: %w", to, m.Committed, r.outcast())
	}
	if err := f.storage(r.store.Cut(to)); err != nil {
		return err
	}
	var a after
	r.mu.Lock()
	r.cuts++
	r.core.CutTo(to)
	r.event(&a, Event{Kind: EventTailCut, Peer: f.from, Text: fmt.Sprintf("LSN %d to %d", to+1, m.End)})
	r.mu.Unlock()
	r.finish(&a)
	return nil
}

// onCopy begins the log anew, with an image that is going to be made whole by regions.
func (f *follower) onCopy(body []byte, end wal.LSN) error {
	var c startCopy
	if err := decodeJSON(body, &c); err != nil {
		return err
	}
	if err := f.grow(c.Size); err != nil {
		return err
	}
	var err error
	if c.Keep {
		err = f.cut(c.To)
	} else {
		err = f.beginAnew(c)
	}
	if err != nil {
		return err
	}
	f.r.mu.Lock()
	f.started, f.caught, f.dirty = true, end, true
	f.r.mu.Unlock()
	return nil
}

// beginAnew forgets the log, after its committed part is in the image.
func (f *follower) beginAnew(c startCopy) error {
	r := f.r
	was := r.store.Marks()
	r.mu.Lock()
	r.hard.CopyBase = c.Base
	err := r.saveHard() // first: unless the store is copying it says nothing
	r.mu.Unlock()
	if err == nil {
		err = r.store.BeginCopy(c.To, c.Chain, c.Epochs)
	}
	if err := f.storage(err); err != nil {
		return err
	}
	var a after
	r.mu.Lock()
	r.cuts++ // together with Restarted: a sync of the old log says nothing about the new one
	r.core.Restarted(c.To)
	if was.End > was.Committed {
		r.event(&a, Event{Kind: EventTailCut, Peer: f.from, Text: fmt.Sprintf("LSN %d to %d, with the log", was.Committed+1, was.End)})
	}
	r.mu.Unlock()
	r.finish(&a)
	return nil
}

// onCopyDone makes the copied image count.
func (f *follower) onCopyDone(commit wal.LSN) error {
	f.follow(commit)
	if err := f.sync(); err != nil {
		return err
	}
	if err := f.storage(f.r.store.EndCopy()); err != nil {
		return err
	}
	return f.ack(flagCopied)
}

// onAppend writes a frame to the log. The store checks that it follows what is there (I4).
func (f *follower) onAppend(m msg, body []byte) error {
	frame, err := wal.ParseFrame(body)
	if err != nil {
		return fmt.Errorf("replication: frame from the primary: %w", err)
	}
	if err := f.grow(sizeOf(frame)); err != nil {
		return err
	}
	r := f.r
	f.follow(m.Commit) // first: what is committed can be applied, and makes room
	if r.store.Full() {
		return errFull
	}
	for {
		err = r.store.Append(frame)
		if !errors.Is(err, wal.ErrFull) {
			break
		}
		if err := f.waitRoom(len(body)); err != nil {
			return err
		}
	}
	if err := f.storage(err); err != nil {
		return err
	}
	r.mu.Lock()
	r.core.Appended(frame.Last())
	f.dirty = f.dirty || r.hard.Volume.Sync != viewsvc.SyncFlush || frame.Header().Flags&wal.FlagSync != 0
	r.mu.Unlock()
	f.bytes += len(body)
	return nil
}

// errUnheard ends a stream that can go no further: the log is full, and what it is full of is not known to be committed. That
// it is, as likely as not, is said by messages behind the frame that does not fit; or by the first of the next stream.
var errUnheard = errors.New("replication: the log is full of records whose commit this replica has yet to hear of; beginning anew")

// waitRoom syncs what is there, so that it can be applied, and waits for the log to have room.
func (f *follower) waitRoom(n int) error {
	if err := f.sync(); err != nil {
		return err
	}
	if err := f.ack(0); err != nil {
		return err
	}
	r := f.r
	r.mu.Lock()
	defer r.mu.Unlock()
	for !r.closed && r.failed == nil && r.follower == f && !r.store.RoomFor(frameRoom(n)) {
		switch m := r.store.Marks(); {
		case r.store.Full():
			return errFull
		case m.Checkpoint >= m.Committed:
			return errUnheard
		}
		r.work.Wait()
	}
	if r.closed || r.failed != nil || r.follower != f {
		return errSuperseded
	}
	return nil
}

// follow moves the commit point after the primary's.
func (f *follower) follow(commit wal.LSN) {
	r := f.r
	var a after
	r.mu.Lock()
	r.core.Follow(commit)
	r.settle(&a)
	r.mu.Unlock()
	r.finish(&a)
}
