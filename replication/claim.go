package replication

import (
	"fmt"

	"lockstep/blockdev"
)

// An exclusive attachment (viewsvc.Claim) is decided by the view service and enforced here, at the one place that every
// session comes through. What a primary knows is never too little: claims travel with the views, from one state, and
// a primary serves clients only after orders of its own tenure or later (heardOrders), which have every claim that was
// made before. A claim made later binds nobody before its primary has heard of it, its owner included.

// mayAttach tells why a session may not attach as far as exclusive attachments go, with mu held.
func (r *Replica) mayAttach(id blockdev.SessionID) error {
	name, claim := r.hard.Volume.Name, r.hard.Volume.Claim
	alive, free := claim.Admits(id.Name, id.Era)
	switch {
	case !alive:
		return fmt.Errorf("%w: this client of volume %s was ended for good, by a take-over or an operator (now attached: %v); connect anew",
			blockdev.ErrExclusive, name, claim)
	case id.Exclusive && claim.Owner != id.Name:
		// Its gateway had the claim from the view service before it came here, and whoever takes one away ends the session
		// for good: so it is this replica that is behind, also if it knows of another owner.
		return fmt.Errorf("attach to %s: nothing heard yet of the session's claim: %w", name, blockdev.ErrNotPrimary)
	case !free && !r.returns(id):
		return fmt.Errorf("%w: volume %s is attached by %v; detach it there, or take it over with --take-over", blockdev.ErrExclusive, name, claim)
	case id.Exclusive && !claim.Held:
		for s := range r.sessions {
			if s.id.Name != claim.Owner {
				return fmt.Errorf("%w: volume %s is in use by %d other clients, session %q for one; end them, or take it over with --take-over",
					blockdev.ErrExclusive, name, len(r.sessions), s.id.Name)
			}
		}
	}
	return nil
}

// returns tells whether a gateway's session may come back, with mu held, though another is asked to have the volume for
// itself: as long as the owner does not hold it and is not here. Its process may be dead, and they were here before; if it
// is not, it is refused while they are. An owner that was here and is about to hold the claim ends them with that.
func (r *Replica) returns(id blockdev.SessionID) bool {
	claim := r.hard.Volume.Claim
	return id.Era != 0 && !claim.Held && r.named[claim.Owner] == nil
}

// endEvicted fences the sessions that the present claim ended for good, and leaves them in a. mu is held, and given up
// meanwhile; nobody it ends can come back.
func (r *Replica) endEvicted(a *after) {
	var ended []*session
	for s := range r.sessions {
		if alive, _ := r.hard.Volume.Claim.Admits(s.id.Name, s.id.Era); !alive {
			ended = append(ended, s)
		}
	}
	for _, s := range ended {
		s.fenceLocked()
		a.aborts = append(a.aborts, aborted{s, blockdev.ErrExclusive})
	}
}

// heardOrders tells whether orders of the present tenure have come, with mu held.
func (r *Replica) heardOrders() bool { return r.ordersView >= r.core.View().Tenure }
