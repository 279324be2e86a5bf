package replication

import (
	"lockstep/viewsvc"
)

// Limits of a member's health, in ticks. A disk that is worn out, or a link that loses packets, does not fail: it is
// slow. The view is as slow as its slowest member, so such a one leaves it, and returns as a learner that has kept
// pace for a while. Each time it has to go that while is twice as long, so that a disk that hangs every minute does not hold
// up the volume every minute.
const (
	slowTicks     = 2 * TicksPerSecond // what this replica has stable for so long and the member lacks
	steadyTicks   = TicksPerSecond / 2 // a learner that lags no more than this keeps pace; in mode flush it syncs every flushInterval
	trialTicks    = 3 * TicksPerSecond // how long it has to, the first time
	maxTrialTicks = 300 * TicksPerSecond
	forgiveTicks  = 600 * TicksPerSecond // a member for so long is as good as new
)

// trial is what a replica that was removed for its health has to pass before it joins again.
type trial struct {
	removals int
	left     int // ticks for which it has to keep pace
	good     int // ticks for which it has been a member since
}

func (t *trial) length() int { return min(trialTicks<<min(t.removals-1, 16), maxTrialTicks) }

// pace notes how long a peer has lacked something that is stable here.
func (p *peer) pace(c *Core) {
	if p.durable >= p.owed {
		p.owed, p.behind = c.durable, 0
		return
	}
	p.behind++
}

// steady tells whether a peer keeps pace.
func (p *peer) steady() bool {
	return p.up && p.behind <= steadyTicks && p.silent <= heartbeatTicks+steadyTicks
}

// removeSick proposes the view without the members that do not answer, or are slow. Nothing is waited for less until
// that view is received. A slow member stays where writes would have to wait without it altogether.
func (c *Core) removeSick() {
	var stay, slow []viewsvc.ReplicaID
	reason := "member does not answer"
	for _, p := range c.peers {
		switch {
		case !c.view.Has(p.id): // a learner that is to join is no member to keep
		case p.silent > peerDeadTicks || p.refused:
			if p.up { // the connection is there, and its process may be: not a death, which a restart heals
				slow = append(slow, p.id)
			}
		case p.behind > slowTicks && len(c.view.Backups) >= c.minCopies:
			slow = append(slow, p.id)
			reason = "member is slow"
		default:
			stay = append(stay, p.id)
		}
	}
	if len(stay) == len(c.view.Backups) {
		return
	}
	for _, id := range slow {
		t := c.trials[id]
		if t == nil {
			t = &trial{}
			c.trials[id] = t
		}
		t.removals++
		t.left, t.good = t.length(), 0
	}
	c.propose(viewsvc.KindRemove, c.cfg.Self, stay, reason)
}

// try lets time pass for those who were removed for their health.
func (c *Core) try() {
	for id, t := range c.trials {
		p := c.find(id)
		switch {
		case p == nil:
		case c.view.Has(id):
			if t.good++; t.good > forgiveTicks {
				delete(c.trials, id)
			}
		case !p.steady():
			t.left = t.length()
		case t.left > 0:
			t.left--
		}
	}
}

// onTrial tells whether a learner may not join yet.
func (c *Core) onTrial(id viewsvc.ReplicaID) bool {
	t := c.trials[id]
	return t != nil && t.left > 0
}

// CalledDead hears from the view service which replicas are not in service: their node is dead, or their storage has
// failed. One that has a stream all the same is believed more than the service.
func (c *Core) CalledDead(r viewsvc.ReplicaID) {
	if p := c.find(r); p != nil && !p.up {
		p.refused = true
	}
}

// SetMinCopies tells below how many members writes wait.
func (c *Core) SetMinCopies(n int) { c.minCopies = n }
