package replication

import (
	"encoding/json"
	"fmt"
	"time"

	"lockstep/blockdev"
	"lockstep/viewsvc"
)

// after is what is to be done once mu is released. Its slices are reused by the goroutine that owns it.
type after struct {
	completed []pendingReq
	batch     []*blockdev.Request
	aborts    []aborted
	queues    []*sendq // to be flushed
	events    []Event
	sync      bool
}

// aborted is a session that was ended, and why.
type aborted struct {
	s   *session
	why error
}

// settle carries out the core's effects, with mu held; what must not be done under it is left in a.
func (r *Replica) settle(a *after) {
	for _, e := range r.core.Effects() {
		switch e.Kind {
		case EffectSaveView:
			err := r.settleAlone(e.View)
			if err == nil {
				r.hard.View, r.hard.Suspect = e.View, r.core.Suspect()
				err = r.saveHard()
			}
			if err != nil {
				r.poison(a, err)
				return
			}
			r.event(a, Event{Kind: EventState})
			r.popCommitted(a, r.store.Marks().Committed) // what waited for members
			r.popStable(a)
		case EffectStepDown:
			r.stepDown(a)
		case EffectBeginTenure:
			r.beginView = e.View
			if r.follower != nil {
				r.follower.conn.Close()
			}
			r.work.Broadcast()
		case EffectTargets:
			r.reconcileStreams()
		case EffectAnnounce:
			for _, s := range r.streams {
				if s.up {
					s.q.pushEncoded(msg{Type: msgView, View: e.View.Num}.encodeJSON(e.View))
					a.queues = append(a.queues, s.q)
				}
			}
		case EffectCommit:
			r.store.Commit(e.LSN)
			r.offerSize(e.LSN)
			r.popCommitted(a, e.LSN)
		case EffectStable:
			r.popStable(a)
		case EffectServe:
			r.event(a, Event{Kind: EventState})
			r.work.Broadcast()
			r.idle.Broadcast() // to clients that wait in Attach
		case EffectConfirm:
			r.ask(a, msg{Nonce: e.Nonce, Lease: uint64(e.Until), B: uint64(e.Grant)})
		case EffectReads:
			r.popReads(e.Nonce)
		case EffectSync:
			a.sync = true
		case EffectPropose:
			r.start(func() { r.propose(e.Proposal) })
		case EffectWake:
			r.start(func() { r.wakeAt(e.Until) })
		}
	}
}

// settleAlone syncs what was acknowledged from page caches before a view is stored in which this replica is alone: from
// then on a crash of its machine is taken to lose nothing.
func (r *Replica) settleAlone(v viewsvc.View) error {
	if v.Primary != r.id || len(v.Backups) > 0 || r.core.durable == r.core.written {
		return nil
	}
	return r.syncStore()
}

// finish does what settle left, without mu.
func (r *Replica) finish(a *after) {
	for len(a.completed) > 0 {
		r.completeFirst(a)
	}
	for _, q := range a.queues {
		q.flush()
	}
	clear(a.queues)
	a.queues = a.queues[:0]
	for _, e := range a.aborts {
		e.s.client.Abort(e.why)
	}
	clear(a.aborts)
	a.aborts = a.aborts[:0]
	for _, e := range a.events {
		r.opts.OnEvent(e)
	}
	a.events = a.events[:0]
	if a.sync {
		a.sync = false
		r.syncWanted.Ring()
	}
}

// do gives the core an event that is rare, and carries out what follows from it.
func (r *Replica) do(event func(*Core)) {
	var a after
	r.mu.Lock()
	event(r.core)
	r.settle(&a)
	r.mu.Unlock()
	r.finish(&a)
}

func (r *Replica) event(a *after, e Event) {
	e.Volume, e.Replica = r.hard.Volume.Name, r.id
	e.View, e.State = r.core.View().Num, r.core.State().String()
	a.events = append(a.events, e)
}

// saveHard puts the protocol state on stable storage (I1).
func (r *Replica) saveHard() error {
	b, err := json.Marshal(r.hard)
	if err != nil {
		return fmt.Errorf("replication: save protocol state: %w", err)
	}
	return r.store.SaveProtocol(b)
}

// wakeAt tells the core when a moment has come. It ends by then, or with Close.
func (r *Replica) wakeAt(at Instant) {
	for r.ctx.Err() == nil {
		now := r.opts.Clock()
		if now >= at {
			r.do(func(c *Core) { c.Wake(now) })
			return
		}
		sleep(r.ctx, r.rt, time.Duration(at-now))
	}
}

// poison ends the replica's part in the volume after a storage error.
func (r *Replica) poison(a *after, err error) {
	if r.failed != nil {
		return
	}
	r.failed = err
	r.core.Poison()
	r.settle(a)
	if r.follower != nil {
		r.follower.conn.Close()
	}
	r.event(a, Event{Kind: EventPoisoned, Err: err})
}

// fail is poison for those who do not hold mu.
func (r *Replica) fail(err error) {
	var a after
	r.mu.Lock()
	r.poison(&a, err)
	r.mu.Unlock()
	r.finish(&a)
}

// stepDown ends all sessions and forgets their requests, with mu held.
func (r *Replica) stepDown(a *after) {
	for s := range r.sessions {
		s.closed = true
		a.aborts = append(a.aborts, aborted{s, blockdev.ErrNotPrimary})
	}
	clear(r.sessions)
	clear(r.named)
	clear(r.memories)
	r.queue, r.queueBytes = nil, 0
	r.pending, r.stableWait, r.readWait = nil, nil, nil
	r.readQueue = nil
	r.beginView = viewsvc.View{}
	r.growth.at, r.growth.size = 0, 0
	r.askSync = false
	r.idle.Broadcast() // to clients that wait in Attach
}
