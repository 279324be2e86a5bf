package replication

import (
	"errors"
	"time"

	"lockstep/viewsvc"
)

// Files that are removed while they are open go on to work, and are gone when the process ends: a copy that is counted
// among the safe ones, and survives no restart. So a node looks now and then whether its replicas' directories are there.

// lookEvery is how often it looks.
const lookEvery = 5 * time.Second

var errRemoved = errors.New("replication: the replica's directory was removed, or moved, while it was in use: what is left of it ends with the process; " +
	"start the node again, and it is given another copy")

// lookLoop looks until the node is closed. A disk that hangs keeps it from looking at others.
func (n *Node) lookLoop() {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-n.ctx.Done():
			return
		case <-tick.C:
			n.look()
		}
	}
}

// look has a replica whose directory is gone fail, as one whose storage failed does, if it can be missed: the only member goes
// on for as long as it can, and there may be another soon.
func (n *Node) look() {
	n.mu.Lock()
	replicas := make(map[viewsvc.VolumeID]*Replica, len(n.desks))
	for id, d := range n.desks {
		replicas[id] = d.r
	}
	n.mu.Unlock()
	for id, r := range replicas {
		if n.home.has(id) || n.replicaOf(id) != r { // the latter: it was taken out of service first
			continue
		}
		if r.missable() {
			r.fail(errRemoved)
			continue
		}
		n.opts.OnEvent(Event{Kind: EventStorage, Volume: r.Volume().Name, Replica: r.ID(), Err: errRemoved})
	}
}

// missable tells whether the volume can do without this replica.
func (r *Replica) missable() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	v := r.core.View()
	return !v.Has(r.id) || len(v.Backups) > 0
}
