package replication

import (
	"context"
	"errors"
	"fmt"
	"time"

	"lockstep/viewsvc"
)

// proposeTimeout bounds one try.
const proposeTimeout = 3 * time.Second

// propose asks the view service for a view and tells the core what became of it.
func (r *Replica) propose(p *viewsvc.Proposal) {
	r.opts.OnEvent(Event{Kind: EventPropose, Volume: r.hard.Volume.Name, Replica: r.id, View: p.Expect + 1,
		Text: fmt.Sprintf("%s: primary %s, backups %v: %s", p.Kind, p.Primary, p.Backups, p.Reason)})
	ctx, cancel := context.WithTimeout(r.ctx, proposeTimeout)
	defer cancel()
	q := *p
	q.Cluster = r.opts.Cluster
	v, err := r.opts.Propose(ctx, q)
	var conflict *viewsvc.ConflictError
	var rule *viewsvc.RuleError
	r.do(func(c *Core) {
		switch {
		case err == nil:
			c.Observe(v)
		case errors.As(err, &conflict):
			c.Observe(conflict.Current)
			c.ProposalLost(p) // if that view was not newer: the service is behind us, ask again
		case errors.As(err, &rule):
			c.ProposalRefused(p)
		default:
			c.ProposalLost(p)
		}
	})
}

// Orders is what the view service says about the volume, from each of its replies.
func (r *Replica) Orders(o viewsvc.VolumeOrders) {
	var a after
	r.mu.Lock()
	defer func() { r.mu.Unlock(); r.finish(&a) }()
	if r.closed || r.failed != nil {
		return
	}
	if known := r.hard.Volume.Claim; o.Volume.Claim.Num < known.Num {
		o.Volume.Claim = known // a view server that was left behind may still talk
	}
	if o.Volume != r.hard.Volume {
		r.hard.Volume = o.Volume
		if err := r.saveHard(); err != nil {
			r.poison(&a, err)
			return
		}
		r.core.SetSync(o.Volume.Sync)
		r.core.SetMinCopies(o.Volume.MinCopies)
		r.endEvicted(&a)
		if r.closed || r.failed != nil {
			return
		}
	}
	r.ordersView = max(r.ordersView, o.View.Num)
	r.idle.Broadcast() // to clients that wait in Attach
	r.makeRoom()
	moved := false
	for _, p := range o.Peers {
		moved = moved || r.peers[p.Replica].Addr != p.Addr
		r.peers[p.Replica] = p
	}
	if moved {
		for _, s := range r.streams {
			s.retry.Ring()
		}
	}
	r.core.SetFloor(o.Floor)
	r.core.Observe(o.View)
	r.core.Recruits(o.Recruit)
	for _, p := range o.Peers {
		if !p.Alive || p.Full {
			r.core.CalledDead(p.Replica)
		}
	}
	if o.Resume {
		r.core.Resume()
	}
	if o.Handover != "" {
		_ = r.core.Handover(o.Handover) // the service repeats the order until it is carried out or given up
	} else {
		r.core.CancelHandover()
	}
	r.checkOrdered(o.Check)
	r.settle(&a)
	r.work.Broadcast()
}

// Report is what the replica says of itself in a ping.
func (r *Replica) Report() viewsvc.ReplicaReport {
	r.mu.Lock()
	defer r.mu.Unlock()
	v, m := r.core.View(), r.store.Marks() // of one moment: a member's log is not the one that it had as a learner
	rep := viewsvc.ReplicaReport{
		Volume: r.hard.Volume.ID, Replica: r.id, View: v.Num, Tenure: v.Tenure,
		LogEnd: uint64(m.End), Commit: uint64(m.Committed), Applied: uint64(m.Applied),
		Suspect: r.core.Suspect(), OldestIO: r.store.OldestIO().Milliseconds(), Copying: r.store.Copying(),
	}
	switch r.core.State() {
	case StateLearner:
		rep.Role = viewsvc.RoleLearner
		if v.Num == 0 && m.End == 0 {
			rep.Role = viewsvc.RoleBlank
		}
	case StateBackup:
		rep.Role = viewsvc.RoleBackup
	case StateOpening:
		rep.Role = viewsvc.RoleOpening
	case StateHeld:
		rep.Role = viewsvc.RoleHeld
	case StateOpen:
		rep.Role = viewsvc.RolePrimary
	case StateRecovering:
		rep.Role = viewsvc.RoleRecovering
	case StatePoisoned:
		rep.Role = viewsvc.RolePoisoned
	}
	if r.checked.ID != 0 {
		c := r.checked
		rep.Check = &c
	}
	r.reportSize(&rep)
	switch {
	case r.failed != nil:
		rep.Error = r.failed.Error()
	case r.store.DiskFull():
		rep.Full, rep.Error = r.store.Full(), fullText
	}
	for _, p := range r.core.peers {
		pr := viewsvc.Progress{Replica: p.id, Match: uint64(p.durable)}
		if s := r.streamTo(p.id); s != nil {
			pr.BytesDone, pr.BytesLeft, pr.Rate = s.progress()
		}
		if p.required {
			rep.Lag = append(rep.Lag, pr)
		} else {
			rep.Learners = append(rep.Learners, pr)
		}
		if p.refused {
			rep.Dead = append(rep.Dead, p.id)
		}
	}
	return rep
}

// Volume is what the replica knows of its volume.
func (r *Replica) Volume() viewsvc.Volume {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.hard.Volume
}
