package replication

import (
	"fmt"
	"slices"

	"lockstep/viewsvc"
)

// addCaughtUp puts a learner that lacks next to nothing into R. Under a steady load it would never be quite at the commit
// point; from here on the commit point waits for it, for as long as it takes to write those few records, of a few MiB.
func (c *Core) addCaughtUp() {
	if c.state != StateOpen || c.successor != "" || c.proposal != nil {
		return
	}
	if p := c.find(c.joining); p != nil {
		if p.silent > joinTicks {
			c.leaveR()
		}
		return
	}
	for _, p := range c.peers {
		if p.required || !p.up || !p.copied || p.written+joinLag < c.commit || p.lacks > joinLag || p.silent > heartbeatTicks+1 || c.onTrial(p.id) {
			continue
		}
		p.required, c.joining = true, p.id // first R, then the proposal (I8)
		c.proposeJoining()
		return
	}
}

// Joining tells whether commit waits for a learner, which should sync soon.
func (c *Core) Joining() bool { return c.joining != "" && c.proposal == nil }

// proposeJoining proposes the learner in R once it has all that is committed, as stable as it is with the members.
func (c *Core) proposeJoining() {
	p := c.find(c.joining)
	if p == nil || c.proposal != nil || c.state != StateOpen || p.durable < c.commit {
		return
	}
	c.propose(viewsvc.KindAdd, c.cfg.Self, append(slices.Clone(c.view.Backups), p.id), "recruited")
}

// leaveR takes a learner out of R again that was not proposed: no view can have it (I8).
func (c *Core) leaveR() {
	p := c.find(c.joining)
	if p == nil || c.proposal != nil {
		return
	}
	p.required, c.joining = false, ""
	c.dropPeers()
	c.emit(Effect{Kind: EffectTargets})
	c.progress()
}

// Handover begins to hand the volume over to a member: the driver orders nothing more (Draining), and when the
// successor has everything, and knows it, the view service is asked. CancelHandover ends it; so does any new view.
func (c *Core) Handover(to viewsvc.ReplicaID) error {
	switch {
	case c.state != StateOpen:
		return fmt.Errorf("replication: hand over: this replica is %v, not an open primary", c.state)
	case !c.view.Has(to) || to == c.cfg.Self:
		return fmt.Errorf("replication: hand over: %s is not a backup of view %d", to, c.view.Num)
	}
	if c.successor == "" && c.proposal == nil {
		c.successor = to
		c.progress()
	}
	return nil
}

// CancelHandover goes on serving, unless the view service may already have been asked.
func (c *Core) CancelHandover() {
	if c.proposal == nil {
		c.successor, c.lease.back = "", 0
	}
}

// settled forgets what was asked for: a newer view or a refusal has answered it.
func (c *Core) settled() {
	c.proposal, c.asked, c.successor, c.joining, c.lease.back = nil, false, "", "", 0
}

func (c *Core) handOver() {
	if c.successor == "" || c.proposal != nil || c.commit < c.written {
		return
	}
	p := c.find(c.successor)
	if p == nil || !p.up || p.durable < c.written || p.suspect || !c.returnLease(p) {
		return
	}
	others := []viewsvc.ReplicaID{c.cfg.Self}
	for _, r := range c.view.Backups {
		if r != c.successor {
			others = append(others, r)
		}
	}
	c.propose(viewsvc.KindHandover, c.successor, others, "handover")
}

func (c *Core) propose(k viewsvc.Kind, primary viewsvc.ReplicaID, backups []viewsvc.ReplicaID, reason string) {
	c.proposal = &viewsvc.Proposal{Volume: c.cfg.Volume, Expect: c.view.Num, Tenure: c.view.Tenure, From: c.cfg.Self,
		Kind: k, Primary: primary, Backups: backups, Reason: reason}
	c.ask()
}

// ask puts the question, with a number of its own each time: it is another proposal to the driver, and an answer to an
// earlier one counts for nothing.
func (c *Core) ask() {
	again := *c.proposal
	c.questions++
	again.Try = c.questions
	c.proposal, c.asked, c.retryIn = &again, true, retryTicks
	c.emit(Effect{Kind: EffectPropose, Proposal: c.proposal})
}

// ProposalLost tells that the answer to a proposal was lost: it may or may not have been accepted. It is asked
// again; a newer view settles it, or a refusal.
func (c *Core) ProposalLost(p *viewsvc.Proposal) {
	if p == c.proposal {
		c.asked = false
	}
}

// ProposalRefused tells that the view service, in the very view that was expected, will not have the proposal. That
// settles it, also when the answers to earlier tries were lost: had one of them been accepted, the view would be another,
// and one that is still on its way will be refused because of its number (viewsvc V10).
func (c *Core) ProposalRefused(p *viewsvc.Proposal) {
	if p != c.proposal {
		return
	}
	c.settled()
	c.require()
	c.emit(Effect{Kind: EffectTargets})
	c.progress()
}
