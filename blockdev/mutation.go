package blockdev

// mutation names rules that a test can break, to see that the tests notice.
type mutation uint

const (
	metaBeforeSync   mutation = 1 << iota // B3: the checkpoint is noted before the image is stable
	applyUnrecorded                       // B1: the image goes beyond the commit point that recovery knows
	clearChanged                          // B2: page-table entries are dropped though they changed
	releaseEarly                          // W3: segments are released when they are applied
	ackUnsynced                           // Sync does not sync
	metaUnsynced                          // a slot of meta is written and not synced
	cutUnrecorded                         // B1: the commit point is cut with the frames that carry it
	sumsUnsynced                          // B3: the checksums are left out of a checkpoint's syncs
	regionsUnsynced                       // B3, B5: likewise the region table
	namesUnsynced                         // W6: the directory is not synced at open
	copyDoneEarly                         // B7: the copying flag goes before all that was copied is stable
	resetFirst                            // a copy begins with the log, and notes it afterwards
	sessionsNotSaved                      // B10: a checkpoint goes without the session table
	growUnsynced                          // B11: the files' new lengths are noted before they are stable
	growNotedFirst                        // B11: likewise before they are there
	growUnannounced                       // the files are extended before that is noted
	trustHoles                            // B9: a stretch of lost sums is taken for a hole
	keptAsHole                            // space that is to stay allocated is noted as a hole
)

func (m mutation) has(x mutation) bool { return m&x != 0 }
