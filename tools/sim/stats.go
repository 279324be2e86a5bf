package main

// sometimes names something that has to happen in some runs: a simulation in which it never does proves less than it
// seems to.
type sometimes int

const (
	tailCut sometimes = iota
	regionCopy
	blockCopy
	caughtUp
	poisoned
	staleHeard
	repaired
	tornTail
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
	grantWaited
	copySurvived
	logFull
	readsFenced
	leasedRead
	flushMode
	suspectWaited
	hungUp
	leftUnread
	ghostFenced
	resumedHeld
	forced
	outcast
	stopped
	badFound
	soundFound
	minWaited
	leftBehind
	foreignRelease
	refusedFull
	diskFull
	claimMade
	attachedAlone
	grown
	putBack
	sometimesCount
)

var sometimesNames = [sometimesCount]string{
	tailCut:        "tail cut on rejoin",
	regionCopy:     "region copy",
	blockCopy:      "copy of changed blocks alone",
	caughtUp:       "copy completed",
	poisoned:       "storage failed",
	staleHeard:     "newer view heard from a peer",
	repaired:       "block repaired from a peer",
	tornTail:       "torn tail at start",
	handedOver:     "handed over",
	proposalLost:   "answer to a proposal lost",
	proposalLate:   "proposal committed late",
	replayed:       "request that changes the disk sent again",
	fencedUnread:   "session ended with requests unread",
	powerFailure:   "total power failure",
	wiped:          "disk replaced",
	promoted:       "backup promoted",
	resumed:        "primary resumed",
	inheritedTail:  "tail inherited by a new primary",
	grantWaited:    "new primary waited for its grant to end",
	copySurvived:   "copy went on under another primary",
	logFull:        "log was full",
	readsFenced:    "session ended with reads unanswered",
	leasedRead:     "volumes with leases",
	flushMode:      "volumes in sync mode flush",
	suspectWaited:  "suspects waited for a member that lost nothing",
	hungUp:         "client hung up",
	resumedHeld:    "held volume resumed by an operator",
	forced:         "older copy forced to be primary",
	outcast:        "replica disowned and set aside",
	stopped:        "process stopped in good order",
	badFound:       "check found damage",
	soundFound:     "check found all sound",
	minWaited:      "writes waited for more members",
	leftBehind:     "view server left behind as leader",
	foreignRelease: "stream between two releases",
	refusedFull:    "write refused for want of space",
	diskFull:       "applier waited for space",
	claimMade:      "claims made",
	attachedAlone:  "client had the volume for itself",
	grown:          "volume grown",
	putBack:        "older disk put back",
	leftUnread:     "client hung up with requests unread",
	ghostFenced:    "requests of a client that is gone fenced",
}

// rare are those that take more seeds than are played every day.
var rare = map[sometimes]bool{proposalLate: true, copySurvived: true, suspectWaited: true}

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
