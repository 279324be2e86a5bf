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

	// Reads that clients sent since the start: those that the primary could answer as it was, under a lease or because it
	// has no peers, and those for which it asked its peers.
	ReadsAtOnce, ReadsConfirmed uint64
}

// NodeStats are a node's numbers now.
type NodeStats struct {
	NBD      nbd.Stats
	Exports  []nbd.ExportStats
	Replicas []ReplicaStats
	Unusable []error // why replicas that are to be here are not in service
}

// Stats gives a node's numbers. It waits for no disk.
func (n *Node) Stats() NodeStats {
	s := NodeStats{NBD: n.nbd.Stats(), Exports: n.nbd.ExportStats(), Replicas: n.replicaStats()}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, a := range n.absent {
		if a.err != nil {
			s.Unusable = append(s.Unusable, a.err)
		}
	}
	return s
}

// stats gives a replica's numbers. It waits for whoever has mu, which may wait for the disk.
func (r *Replica) stats() ReplicaStats {
	s := ReplicaStats{ReplicaReport: r.Report(), LogFill: r.store.Fill()}
	r.mu.Lock()
	defer r.mu.Unlock()
	s.Name, s.Members = r.hard.Volume.Name, len(r.core.View().Members())
	s.ReadsAtOnce, s.ReadsConfirmed = r.reads.atOnce, r.reads.confirmed
	return s
}
