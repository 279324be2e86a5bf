package replication

// checkCommit checks the core's commit point as soon as it has moved: the first message that carries it may be on its
// way before EffectCommit is carried out.
func (r *wReplica) checkCommit() {
	w, l := r.w, int(r.core.Commit())
	for k := r.seen; k < l; k++ {
		e := r.log[k]
		known := k < len(w.committed)
		switch {
		case w.mode == walkFlushCrash:
		case known && w.committed[k] != e:
			w.fail("C1 LSN %d: %v was committed, %s commits %v", k+1, w.committed[k], walkIDs[r.i], e)
		case !known && !r.core.State().Primary():
			w.fail("C1 LSN %d: %s is told that %v is committed, and no primary committed it", k+1, walkIDs[r.i], e)
		}
		if !known {
			w.committed = append(w.committed, e)
		}
		if w.dead&(1<<e.val) != 0 && e.val != 0 {
			w.fail("C5 %s commits the ghost write %d", walkIDs[r.i], e.val)
		}
	}
	if l > r.seen && r.core.State().Primary() {
		r.checkMembers("committed", l)
	}
	r.seen = max(r.seen, l)
}

// commit carries out EffectCommit.
func (r *wReplica) commit(l int) {
	w := r.w
	w.tr("%s commits %d", walkIDs[r.i], l)
	for len(r.pending) > 0 && r.pending[0].lsn <= l {
		w.acked |= 1 << r.pending[0].val
		w.nAcks++
		w.tr("%s acknowledges write %d", walkIDs[r.i], r.pending[0].val)
		r.pending = r.pending[1:]
	}
}

// checkMembers asserts I5.
func (r *wReplica) checkMembers(what string, l int) {
	w := r.w
	if w.mode == walkFlushCrash {
		return
	}
	for _, id := range r.core.View().Members() {
		q := w.rs[walkIndex(id)]
		has := q.durable
		if what == "committed" && w.mode == walkFlush {
			has = len(q.log)
		}
		if has < l || q.log[l-1] != r.log[l-1] {
			w.fail("I5 %s: %d is %s in view %d, %s has %v up to %d", walkIDs[r.i], l, what, r.core.View().Num, id, q.log, has)
		}
	}
}

func (r *wReplica) stable(l int) {
	r.w.nStable++
	r.checkMembers("stable", l)
}

// opened checks what a primary has that begins to serve.
func (r *wReplica) opened() {
	w := r.w
	w.nOpens++
	has := r.has(r.seen)
	w.tr("%s opens in view %d with %v, commit %d", walkIDs[r.i], r.core.View().Num, r.log, r.seen)
	if r.resumedIn == r.core.View().Tenure {
		w.acked &= has // the operator knows
	}
	for v := 1; v <= w.writes; v++ {
		if has&(1<<v) != 0 || w.wroteIn[v] >= r.core.View().Tenure {
			continue
		}
		if w.acked&(1<<v) != 0 {
			w.fail("C2 %s opens in view %d without write %d", walkIDs[r.i], r.core.View().Num, v)
		}
		if w.mode != walkFlushCrash && w.wroteIn[v] != 0 {
			w.dead |= 1 << v
		}
	}
}

// has is the set of writes in the log up to l.
func (r *wReplica) has(l int) uint64 {
	set := uint64(0)
	for _, e := range r.log[:l] {
		set |= 1 << e.val
	}
	return set
}

func (r *wReplica) read() {
	if r.core.State() != StateOpen {
		return
	}
	q := wRead{need: r.w.acked}
	var now bool
	at := r.time()
	if r.w.mutant == "cachedtime" && r.lastRead != 0 {
		at = r.lastRead
	}
	r.lastRead = at
	q.ticket, now = r.core.ReadTicket(at)
	if now && !r.core.alone() {
		r.checkAlone()
	}
	if now || r.w.mutant == "localread" {
		r.answer(q)
	} else {
		r.reads = append(r.reads, q)
	}
	r.settle()
}

// checkAlone asserts I9 for a primary that has a lease.
func (r *wReplica) checkAlone() {
	r.w.nLeased++
	for _, q := range r.w.rs {
		if q != r && q.up && q.core.State() == StateOpen && q.core.View().Tenure > r.core.View().Tenure {
			r.w.fail("I9 %s answers a read under a lease, %s is open in view %d", walkIDs[r.i], walkIDs[q.i], q.core.View().Num)
		}
	}
}

func (r *wReplica) answerReads(nonce uint64) {
	for len(r.reads) > 0 && r.reads[0].ticket <= nonce {
		r.answer(r.reads[0])
		r.reads = r.reads[1:]
	}
}

func (r *wReplica) answer(q wRead) {
	r.w.nReads++
	if miss := q.need & r.w.acked &^ r.has(r.seen); miss != 0 {
		r.w.fail("C3 stale read at %s in view %d: misses %b", walkIDs[r.i], r.core.View().Num, miss)
	}
}
