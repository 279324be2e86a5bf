package replication

import (
	"sync/atomic"
	"time"

	"lockstep/blockdev"
	"lockstep/viewsvc"
	"lockstep/wal"
)

// A volume grows while clients use it, in three steps:
//
//  1. Room. A replica that hears from its orders of a larger size (Volume.Wanted) makes its files long enough, beside all
//     else, and reports that it has. This is what takes time, and what can fail.
//  2. Order. When every member has room, the primary orders a VIEW record with the new size, in its tenure. The first record
//     of each tenure, which is one too, has the primary's size. A replica takes on the size before it appends such a
//     record, or a region of a larger disk: one save of its meta.
//  3. Offer. When the record is committed, clients that come are told the size and may use it.
//
// Whoever has a record beyond the old size has that VIEW record before it, or was copied from who did; so no log has a
// record that its replica has no place for (B11 of blockdev). And a size that was offered is every member's, on stable storage:
// whoever is primary next offers no less. A record that is cut leaves a replica that is larger than what was offered. When it
// becomes primary its tenure begins with that size. A copy that an operator makes primary by force may be smaller than what
// was offered once: it grows before its tenure begins.

// growRetry is the pause after the file system had no room for the size that is wanted.
const growRetry = 5 * time.Second

// growth is what a replica knows of its volume's size. Replica.mu guards all but offered.
type growth struct {
	offered atomic.Uint64 // bytes that clients may use, when this replica is an open primary
	at      wal.LSN       // of this tenure's newest VIEW record
	size    uint64        // that it has; 0: there is none yet
	busy    bool          // room is being made
	err     error         // why there is none for tried bytes
	tried   uint64
	retry   time.Time // not to be tried again before
}

// wantedSize is how large the volume is to be, with mu held: what clients were told already, or more.
func (r *Replica) wantedSize() uint64 { return max(r.hard.Volume.Size, r.hard.Volume.Wanted) }

// makeRoom begins to make room for the size that the volume is to have, with mu held.
func (r *Replica) makeRoom() {
	want := r.wantedSize()
	if want <= r.store.Room() {
		r.growth.err = nil
		return
	}
	if r.growth.busy || want == r.growth.tried && r.rt.Now().Before(r.growth.retry) {
		return
	}
	r.growth.busy, r.growth.tried = true, want
	r.start(func() { // ends when the file system has answered
		err := r.store.Prepare(want)
		var a after
		r.mu.Lock()
		news := err != nil && (r.growth.err == nil || r.growth.err.Error() != err.Error())
		r.growth.busy, r.growth.err, r.growth.retry = false, err, r.rt.Now().Add(growRetry)
		if news {
			r.event(&a, Event{Kind: EventNoRoom, Err: err})
		}
		r.work.Broadcast() // the primary may have waited for its own
		r.mu.Unlock()
		r.finish(&a)
	})
}

// outgrown tells whether the volume is to be made larger now, with mu held.
func (r *Replica) outgrown() bool {
	want := r.wantedSize()
	if want <= r.growth.size || r.core.State() != StateOpen || r.core.Draining() || r.store.Room() < want {
		return false
	}
	for _, b := range r.core.View().Backups {
		// It would make room before it takes the record; until then nothing would be committed.
		if r.peers[b].Room < want {
			return false
		}
	}
	return true
}

// grow makes the volume larger. mu is held, and given up during I/O.
func (r *Replica) grow(a *after) {
	want, tenure := r.wantedSize(), r.core.View().Tenure
	r.mu.Unlock()
	err := r.store.Grow(want)
	r.mu.Lock()
	if err != nil { // there was room: it is the disk
		r.poison(a, err)
		return
	}
	if r.core.State() != StateOpen || r.core.View().Tenure != tenure {
		return // the next tenure begins with this size
	}
	r.write(r.sealView(r.core.View().Num, a), a, true)
}

// catchUpSize is for a copy that was made primary by force, and is of a time before the volume grew: clients count on the
// size that they were told. If it has no room it does not let them in (shrunk). mu is held, and given up during I/O.
func (r *Replica) catchUpSize() {
	want := r.hard.Volume.Size
	if want <= r.store.Size() {
		return
	}
	r.mu.Unlock()
	err := r.store.Grow(want) // a failed disk is the next write's to find
	r.mu.Lock()
	r.growth.err = err
}

// shrunk tells that this replica has less than clients were told, with mu held.
func (r *Replica) shrunk() bool { return r.growth.offered.Load() < r.hard.Volume.Size }

// sealView orders a VIEW record with this replica's size. mu is held.
func (r *Replica) sealView(num viewsvc.ViewNum, a *after) *frameBuf {
	size := r.store.Size()
	fb := r.getFrame()
	fb.number = size / blockdev.BlockSize
	fb.add(wal.Record{Kind: wal.KindView, Block: uint64(num)}, nil, nil)
	r.seal(fb, a, true)
	r.growth.at, r.growth.size = r.end, size
	return fb
}

// offerSize lets clients use what the VIEW record has, if that is committed. mu is held.
func (r *Replica) offerSize(commit wal.LSN) {
	if r.growth.at <= commit && r.growth.size > r.growth.offered.Load() {
		r.growth.offered.Store(r.growth.size)
	}
}

// reportSize is for reports; mu is held.
func (r *Replica) reportSize(rep *viewsvc.ReplicaReport) {
	rep.Room = r.store.Room()
	if r.core.State() == StateOpen {
		rep.Serves = r.growth.offered.Load()
	}
	if r.growth.err != nil {
		rep.GrowError = r.growth.err.Error()
	}
}

// grow takes on the size of the primary's disk, before anything is taken that lies beyond this replica's. The log is held.
func (f *follower) grow(size uint64) error {
	if size <= f.r.store.Size() {
		return nil
	}
	return f.storage(f.r.store.Grow(size))
}

// sizeOf is the size in a frame's VIEW record, in bytes; 0 if it has none. Such a record is alone in its frame: one that
// is not would be refused by the store.
func sizeOf(f wal.Frame) uint64 {
	if r, _, _ := f.Record(0); r.Kind == wal.KindView && r.Seq <= blockdev.MaxVolumeBytes/blockdev.BlockSize {
		return r.Seq * blockdev.BlockSize
	}
	return 0
}
