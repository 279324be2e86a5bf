package replication

import (
	"errors"
	"slices"

	"lockstep/viewsvc"
	"lockstep/wal"
)

// start opens a replica on what is on its disk. commit is how much recovery knows to be committed.
func (r *wReplica) start(commit int) {
	disk := wReplica{w: r.w, i: r.i, log: r.log, durable: len(r.log), applied: r.applied, view: r.view,
		suspect: r.suspect, copying: r.copying, nextID: r.nextID, clock: r.clock, cutOff: r.cutOff}
	*r = disk
	r.up, r.seen = true, commit
	r.core = NewCore(Config{Self: walkIDs[r.i], Volume: "v", Leases: r.w.leases},
		Start{View: r.view, End: wal.LSN(len(r.log)), Commit: wal.LSN(commit), Suspect: r.suspect, Now: r.time()})
	if r.w.mutant == "forgetgrant" || !r.w.leases { // without leases nothing was ever promised
		r.core.given = given{}
	}
	if !r.w.always() {
		r.core.SetSync(viewsvc.SyncFlush)
	}
	if r.w.mutant == "resumesame" && r.view.Primary == walkIDs[r.i] && r.view.Num != 0 {
		r.core.state = StateOpen
		r.core.require()
		r.core.emit(Effect{Kind: EffectTargets})
	}
	r.w.tr("%s starts as %v, view %d, log %v, commit %d", walkIDs[r.i], r.core.State(), r.view.Num, r.log, commit)
	r.settle()
}

// crash ends the process. What was not synced may be lost, if the machine goes down with it.
func (r *wReplica) crash() {
	w := r.w
	if w.always() || w.mode == walkFlushCrash && (w.power || w.one(2)) {
		if keep := r.durable + w.rng.IntN(len(r.log)-r.durable+1); w.always() || w.one(2) {
			r.log = r.log[:keep]
		} else {
			r.log = r.log[:r.durable]
		}
		r.suspect = r.suspect || w.mode == walkFlushCrash && w.mutant != "nosuspect" && len(r.view.Backups) > 0 && r.view.Has(walkIDs[r.i])
	}
	if w.mutant == "forgetview" {
		r.view = viewsvc.View{}
	}
	if w.mutant == "blank" {
		r.log, r.durable, r.applied, r.seen, r.copying = nil, 0, 0, 0, false
	}
	r.log = slices.Clone(r.log)
	r.applied = min(r.applied, len(r.log))
	r.known = max(r.applied, min(r.seen, len(r.log)))
	r.up, r.core, r.follow, r.streams = false, nil, nil, [walkReplicas]*wStream{}
	for _, c := range w.conns {
		if c.from == r.i || c.to == r.i {
			w.breakConn(c)
		}
	}
	w.tr("%s crashes, keeps %v, view %d", walkIDs[r.i], r.log, r.view.Num)
}

func (r *wReplica) observe(v viewsvc.View) {
	r.core.Observe(v)
	r.settle()
}

// settle carries out the core's effects, as Replica.settle does. A crash may come between two of them.
func (r *wReplica) settle() {
	w := r.w
	r.checkCommit()
	for _, e := range slices.Clone(r.core.Effects()) {
		switch e.Kind {
		case EffectSaveView:
			if e.View.Primary == walkIDs[r.i] && len(e.View.Backups) == 0 {
				r.durable = len(r.log) // Replica.settleAlone
			}
			if w.mutant != "forgetview" {
				r.view, r.suspect = e.View, r.core.Suspect()
			}
			w.tr("%s in view %d.%d %s %v as %v", walkIDs[r.i], e.View.Num, e.View.Tenure, e.View.Primary, e.View.Backups, r.core.State())
		case EffectStepDown:
			r.queue, r.pending, r.reads, r.begin = nil, nil, nil, viewsvc.View{}
		case EffectBeginTenure:
			r.begin = e.View
			if r.copying {
				w.fail("C6 %s becomes primary of view %d with an incomplete copy", walkIDs[r.i], e.View.Num)
			}
			if r.follow != nil && w.mutant != "confirmany" {
				w.breakConn(r.follow.conn)
			}
			if w.mutant == "openearly" {
				r.core.setState(StateOpen)
				r.opened()
			}
		case EffectTargets:
			r.reconcile()
		case EffectAnnounce:
			r.broadcast(wMsg{typ: msgView, view: e.View})
		case EffectCommit:
			r.commit(int(e.LSN))
		case EffectStable:
			r.stable(int(e.LSN))
		case EffectServe:
			r.opened()
		case EffectConfirm:
			m := wMsg{typ: msgConfirm, view: r.core.View(), commit: r.core.Commit(), nonce: e.Nonce,
				sync: r.core.Joining(), lease: e.Until, grant: e.Grant, returned: r.core.LeaseReturned()}
			r.broadcast(m)
		case EffectReads:
			r.answerReads(e.Nonce)
		case EffectSync:
			// the sync loop may run at any time
		case EffectPropose:
			r.propose(e.Proposal)
		case EffectWake:
			// pass wakes it
		}
		if w.bad != "" {
			return
		}
		if w.crashes > 0 && w.one(2000) {
			w.crashes--
			r.crash()
			panic(errWalkCrash)
		}
	}
}

// errWalkCrash ends a step whose replica has crashed in the middle of it.
var errWalkCrash = errors.New("crashed")

func (r *wReplica) broadcast(m wMsg) {
	for _, s := range r.streams {
		if s != nil && s.up {
			s.conn.send(&s.conn.toPeer, m)
		}
	}
}

func (c *wConn) send(q *[]wMsg, m wMsg) {
	if !c.broken {
		*q = append(*q, m)
	}
}

// breakConn ends a connection: some of what is under way still arrives.
func (w *walk) breakConn(c *wConn) {
	if c.broken {
		return
	}
	c.broken = true
	c.toPeer = c.toPeer[:w.rng.IntN(len(c.toPeer)+1)]
	c.toPrim = c.toPrim[:w.rng.IntN(len(c.toPrim)+1)]
}

// forget drops connections that are broken and whose messages have all arrived.
func (w *walk) forget() {
	w.conns = slices.DeleteFunc(w.conns, func(c *wConn) bool {
		p, f := w.rs[c.from], w.rs[c.to]
		done := c.broken && (len(c.toPeer) == 0 || !f.up) && (len(c.toPrim) == 0 || !p.up)
		if !done {
			return false
		}
		for _, s := range p.streams {
			if s != nil && s.conn == c {
				s.conn, s.up, s.direct = nil, false, false
				p.core.PeerDown(walkIDs[c.to], s.id, false)
				crashes := w.crashes
				w.crashes = 0 // not in the middle of somebody else's step
				p.settle()
				w.crashes = crashes
			}
		}
		if f.follow != nil && f.follow.conn == c && !f.follow.held {
			f.follow = nil
		}
		return true
	})
}

// committer is one step of the goroutine that orders writes.
func (r *wReplica) committer() {
	w, view := r.w, r.core.View()
	switch {
	case r.busy == logCommitter && r.sealed:
		r.sealed = false
		r.log = append(r.log, r.entry)
		r.core.Appended(wal.LSN(len(r.log)))
		r.settle()
		if r.entry.val != 0 && r.core.CommitsWritten() {
			r.busy = logFree
		}
	case r.busy == logCommitter:
		r.busy, r.durable = logFree, len(r.log)
		r.core.Durable(wal.LSN(r.durable))
		r.settle()
	case r.busy != logFree:
	case r.begin.Num != 0:
		v := r.begin
		r.begin = viewsvc.View{}
		if w.mutant == "noviewrec" && len(r.log) > 0 {
			r.core.TenureBegun(v.Tenure, wal.LSN(len(r.log)))
			r.settle()
			return
		}
		r.seal(wEntry{epoch: int(v.Tenure)})
		r.core.TenureBegun(v.Tenure, wal.LSN(len(r.log)+1))
		r.settle()
	case len(r.queue) > 0 && r.core.State() == StateOpen && !r.core.Draining():
		val := r.queue[0]
		r.queue = r.queue[1:]
		w.wroteIn[val] = view.Tenure
		r.pending = append(r.pending, wPending{len(r.log) + 1, val})
		r.seal(wEntry{epoch: int(view.Tenure), val: val})
	}
}

// seal sends an entry to every peer that takes frames as they are made. The own log gets it in a later step.
func (r *wReplica) seal(e wEntry) {
	r.busy, r.sealed, r.entry = logCommitter, true, e
	r.w.tr("%s orders %v at %d", walkIDs[r.i], e, len(r.log)+1)
	for _, s := range r.streams {
		if s != nil && s.direct {
			s.push(r, len(r.log)+1, e)
		}
	}
}

func (s *wStream) push(r *wReplica, at int, e wEntry) {
	s.conn.send(&s.conn.toPeer, wMsg{typ: msgAppend, view: r.core.View(), commit: r.core.Commit(), a: at, entry: e})
	s.next = at + 1
}

// syncNow is the sync loop: it may run at any time, beside everything.
func (r *wReplica) syncNow() {
	r.durable = len(r.log)
	r.core.Durable(wal.LSN(r.durable))
	r.settle()
	if f := r.follow; f != nil && f.started {
		r.ack(f, false)
	}
}

// reconcile is Replica.reconcileStreams.
func (r *wReplica) reconcile() {
	for j, s := range r.streams {
		stale := s != nil && s.tenure != r.core.View().Tenure
		if s != nil && (stale || !slices.Contains(r.core.Targets(), walkIDs[j])) {
			if s.conn != nil {
				s.conn.toPrim = nil // nobody reads it any more
				r.w.breakConn(s.conn)
			}
			r.streams[j] = nil
		}
	}
	for _, id := range r.core.Targets() {
		if j := walkIndex(id); r.streams[j] == nil {
			r.streams[j] = &wStream{tenure: r.core.View().Tenure}
		}
	}
}

// some is one of the streams for which ok holds, -1 if there is none.
func (r *wReplica) some(ok func(j int, s *wStream) bool) int {
	first := r.w.rng.IntN(walkReplicas)
	for k := range walkReplicas {
		if j := (first + k) % walkReplicas; r.streams[j] != nil && ok(j, r.streams[j]) {
			return j
		}
	}
	return -1
}

func (r *wReplica) dial() {
	j := r.some(func(j int, s *wStream) bool { return s.conn == nil && r.w.rs[j].up && !r.cutOff && !r.w.rs[j].cutOff })
	if j < 0 {
		return
	}
	s := r.streams[j]
	s.conn = &wConn{from: r.i, to: j}
	r.w.conns = append(r.w.conns, s.conn)
	s.conn.send(&s.conn.toPeer, wMsg{typ: msgHello, view: r.core.View()})
}

// ship is a step of a stream that is not direct yet.
func (r *wReplica) ship() {
	j := r.some(func(_ int, s *wStream) bool { return s.up && !s.direct })
	if j < 0 {
		return
	}
	switch s := r.streams[j]; {
	case s.next <= len(r.log):
		s.push(r, s.next, r.log[s.next-1])
	case s.copy:
		s.copy = false
		s.conn.send(&s.conn.toPeer, wMsg{typ: msgCopyDone, view: r.core.View()})
	case r.begin.Num != 0: // the own log may still grow by what the former primary sent
	case r.sealed:
		s.direct = true
		s.push(r, s.next, r.entry)
	default:
		s.direct = true
	}
}
