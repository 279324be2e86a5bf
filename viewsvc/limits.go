package viewsvc

import "time"

// Limits of the protocol. A client and a server of different releases must agree on the holds only loosely:
// a server may answer sooner.
const (
	// WatchHold is how long a watch without news is held back.
	WatchHold = 10 * time.Second
	// HandoverTimeout is how long an order to hand over stands.
	HandoverTimeout = 10 * time.Second
	// MaxHistory is how many views of a volume are remembered.
	MaxHistory = 4096
	// MaxCopies is the largest number of members that a volume may ask for.
	MaxCopies = 5
	// MinVolumeSize and MaxVolumeSize bound a volume's size in bytes; BlockSize divides it.
	MinVolumeSize = 1 << 20
	MaxVolumeSize = 1 << 50
	// BlockSize is the unit of a volume's size. The storage has the same; never change it.
	BlockSize = 4096

	maxRequestBytes = 4 << 20  // a ping of some thousand replicas
	maxReplyBytes   = 64 << 20 // a status of the largest cluster
)
