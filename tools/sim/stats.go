package main

// sometimes names something that has to happen in some runs: a simulation in which it never does proves less than it
// seems to.
type sometimes int

const (
	tailCut sometimes = iota
	regionCopy
	caughtUp
	poisoned
	staleHeard
	repaired
	tornTail
	logHole
	replicaRefused
	handedOver
	proposalLost
	proposalLate
	replayed
	fencedUnread
	powerFailure
	wiped
	promoted
	resumed
	inheritedTail
	sometimesCount
)

var sometimesNames = [sometimesCount]string{
	tailCut: "tail cut on rejoin", regionCopy: "region copy", caughtUp: "copy completed", poisoned: "storage failed",
	staleHeard: "newer view heard from a peer", repaired: "block repaired from a peer", tornTail: "torn tail at start",
	logHole: "hole in the log at start", replicaRefused: "damaged replica refused", handedOver: "handed over",
	proposalLost: "answer to a proposal lost", proposalLate: "proposal committed late", replayed: "requests sent again",
	fencedUnread: "session ended with requests unread", powerFailure: "total power failure", wiped: "disk replaced",
	promoted: "backup promoted", resumed: "primary resumed", inheritedTail: "tail inherited by a new primary",
}

// stats counts what happened.
type stats struct {
	seen [sometimesCount]int
	acks int
}

func (s *stats) note(x sometimes) { s.seen[x]++ }

func (s *stats) add(o *stats) {
	for i, n := range o.seen {
		s.seen[i] += n
	}
	s.acks += o.acks
}
