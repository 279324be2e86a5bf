package replication

import (
	"slices"

	"lockstep/blockdev"
	"lockstep/wal"
)

// pendingReq is a request that waits for the commit point. req belongs to the client again once s is closed, so s is
// looked at first.
type pendingReq struct {
	lsn    wal.LSN
	req    *blockdev.Request
	s      *session
	stable bool // FUA: wait until stable, not only until committed
}

// await completes a request that is not ordered any more once its record is committed, and stable if it wants that. mu is
// held.
func (r *Replica) await(p pendingReq, a *after) {
	byLSN := func(p pendingReq, l wal.LSN) int {
		if p.lsn <= l {
			return -1
		}
		return 1
	}
	switch {
	case p.lsn > r.core.Commit() || r.thin():
		i, _ := slices.BinarySearchFunc(r.pending, p.lsn, byLSN)
		r.pending = slices.Insert(r.pending, i, p)
	case p.stable && p.lsn > r.core.Stable():
		i, _ := slices.BinarySearchFunc(r.stableWait, p.lsn, byLSN)
		r.stableWait = slices.Insert(r.stableWait, i, p)
		r.wantSync(a)
	default:
		a.completed = append(a.completed, p)
	}
}

// popCommitted takes the requests up to l off the list of pending ones.
func (r *Replica) popCommitted(a *after, l wal.LSN) {
	if r.thin() {
		return
	}
	n := 0
	for ; n < len(r.pending) && r.pending[n].lsn <= l; n++ {
		p := r.pending[n]
		if p.stable && p.lsn > r.core.Stable() {
			r.stableWait = append(r.stableWait, p)
			r.askSync = true // its frame asked for a sync already; this is for a peer that has lost it
			continue
		}
		a.completed = append(a.completed, p)
	}
	r.pending = shift(r.pending, n)
}

// popStable completes what waited for stability.
func (r *Replica) popStable(a *after) {
	if r.thin() {
		return
	}
	n := 0
	for n < len(r.stableWait) && r.stableWait[n].lsn <= r.core.Stable() {
		n++
	}
	a.completed = append(a.completed, r.stableWait[:n]...)
	r.stableWait = shift(r.stableWait, n)
	r.askSync = len(r.stableWait) > 0
}

// wantSync asks this replica and its peers to sync: with a Confirm, which is sent at once and repeated by the core's
// heartbeat while somebody waits.
func (r *Replica) wantSync(a *after) {
	r.askSync = true
	a.sync = true
	r.ask(a, msg{Nonce: r.core.nonce})
}

// completeFirst gives back all requests of the first session in a.completed.
func (r *Replica) completeFirst(a *after) {
	s := a.completed[0].s
	rest, batch := a.completed[:0], a.batch[:0]
	s.mu.Lock()
	for _, p := range a.completed {
		if p.s == s {
			batch = append(batch, p.req)
		} else {
			rest = append(rest, p)
		}
	}
	if !s.gone {
		s.client.Complete(batch)
	}
	s.mu.Unlock()
	clear(a.completed[len(rest):])
	clear(batch)
	a.completed, a.batch = rest, batch[:0]
}

// shift drops the first n elements in place, so that the list's memory is reused.
func shift[T any](list []T, n int) []T {
	if n == 0 {
		return list
	}
	rest := copy(list, list[n:])
	clear(list[rest:])
	return list[:rest]
}
