package wal

// mutation names rules that a log does not keep, so that tests can show that they would notice. Nothing outside
// this package's tests can set one.
type mutation uint16

const (
	skipOpenSync     mutation = 1 << iota // W6
	ignoreChain                           // frames need not chain
	ignorePayload                         // recovery does not verify payloads
	ignoreCheckpoint                      // W3
	keepGhosts                            // W4: nothing is erased behind a cut
	noEndMark                             // W4: a cut is not atomic
	retrySync                             // W5
	callItTorn                            // W7: corruption is taken for a torn tail
	lazySegments                          // W8
	noSync                                // what Sync calls durable is not
	unsyncedErase                         // W4: what is behind a cut is erased in memory only
)

func (m mutation) has(x mutation) bool { return m&x != 0 }
