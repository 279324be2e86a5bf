package replication

import (
	"lockstep/blockdev/nbd"
	"lockstep/viewsvc"
)

// ReplicaStats are a replica's numbers now.
type ReplicaStats struct {
	viewsvc.ReplicaReport
	Name    string // of the volume
	Members int    // of the view that it knows
	LogFill float64
}

// NodeStats are a node's numbers now.
type NodeStats struct {
	NBD      nbd.Stats
	Exports  []nbd.ExportStats
	Replicas []ReplicaStats
}

// Stats gives a node's numbers. It waits for nothing but locks.
func (n *Node) Stats() NodeStats {
	out := NodeStats{NBD: n.nbd.Stats(), Exports: n.nbd.ExportStats()}
	n.mu.Lock()
	list := make([]*Replica, 0, len(n.replicas))
	for _, r := range n.replicas {
		list = append(list, r)
	}
	n.mu.Unlock()
	for _, r := range list {
		out.Replicas = append(out.Replicas, ReplicaStats{
			ReplicaReport: r.Report(), Name: r.Volume().Name, Members: r.members(), LogFill: r.store.Fill(),
		})
	}
	return out
}

func (r *Replica) members() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.core.View().Members())
}
