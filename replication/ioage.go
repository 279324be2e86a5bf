package replication

import (
	"sync/atomic"
	"time"

	"lockstep/wal"
)

// pendingIO is an operation on the log that may be under way: one at a time. A disk that neither works nor fails is
// known by its age alone.
type pendingIO struct{ began atomic.Int64 }

func (p *pendingIO) run(rt Runtime, op func() error) error {
	p.began.Store(rt.Now().UnixNano())
	defer p.began.Store(0)
	return op()
}

// age is 0 if nothing is under way.
func (p *pendingIO) age(now time.Time) time.Duration {
	began := p.began.Load()
	if began == 0 {
		return 0
	}
	return max(0, time.Duration(now.UnixNano()-began))
}

// oldestIO is the age of the oldest write or sync of the log that is under way.
func (r *Replica) oldestIO() time.Duration {
	now := r.rt.Now()
	return max(r.appending.age(now), r.syncing.age(now))
}

// appendLog writes a frame to the log; its caller has the right to.
func (r *Replica) appendLog(f wal.Frame) error {
	return r.appending.run(r.rt, func() error { return r.store.Append(f) })
}

// syncStore syncs the log. One sync is in flight at a time.
func (r *Replica) syncStore() error {
	r.syncMu.Lock()
	defer r.syncMu.Unlock()
	began := r.rt.Now()
	defer func() { r.noteSync(r.rt.Now().Sub(began)) }()
	return r.syncing.run(r.rt, r.store.Sync)
}
