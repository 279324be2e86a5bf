package blockdev

import (
	"time"

	"lockstep/wal"
)

const (
	// lazyShare: while clients write, this part of the log may be committed and not applied. Writing a block to its
	// place costs as much as logging it; a burst that fits is taken at the speed of the log, blocks that are written
	// again meanwhile go to their place once, and what is left is done when the clients pause.
	lazyShare = 4
	// applyInterval is how long committed frames wait for more to come with them.
	applyInterval = 100 * time.Millisecond
	// quietIntervals without a commit make the store bring everything into the image and checkpoint, so that the
	// next start has nothing to recover.
	quietIntervals = 20
	// checkpointShare: a checkpoint is due when this part of the log was applied since the last; under pressure, when
	// a segment was.
	checkpointShare = 8
)

// drive is the thin driver of applier and checkpoints: it decides when, step does the work. It ends by Close, or
// when the store is poisoned.
func (s *Store) drive() {
	defer close(s.stopped)
	ticker := time.NewTicker(applyInterval)
	defer ticker.Stop()
	last, quiet := s.committed.Load(), 0
	for {
		select {
		case <-s.stop:
			return
		case <-s.kick:
			quiet = 0
		case <-ticker.C:
			quiet++
			if now := s.committed.Load(); now != last {
				last, quiet = now, 0
			}
		}
		for did := true; did && (quiet > 0 || s.pressed()); {
			select {
			case <-s.stop:
				return
			default:
			}
			var err error
			if did, err = s.step(quiet >= quietIntervals); err != nil {
				return
			}
		}
	}
}

// pressed tells whether the applier has to work beside the clients.
func (s *Store) pressed() bool {
	return s.wantRoom.Load() || s.backlog() >= s.logBlocks/lazyShare || s.pressure() > 0 || s.checkpointDue()
}

// wake makes the driver look for work now.
func (s *Store) wake() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// Step does the next piece of background work of a store opened with Manual, and tells whether there was any: a batch
// applied, a commit point recorded, or a checkpoint. It does all that can be done, as if the store were idle for
// long.
func (s *Store) Step() (did bool, err error) { return s.step(true) }

// step does one piece of work, see work. What is refused for want of space is left for another time.
func (s *Store) step(idle bool) (bool, error) {
	did, err := s.work(idle)
	if isRefused(err) && s.Err() == nil {
		return false, nil
	}
	return did, err
}

// work does one piece of work. Unless it is urgent (there is no room, or the store is idle) it leaves what would
// cost a sync now and less later. An idle store without work gives the applier's memory back: a node has many.
func (s *Store) work(idle bool) (bool, error) {
	urgent := idle || s.wantRoom.Load()
	if urgent && wal.LSN(s.committed.Load()) > s.log.Durable() {
		// Sync mode flush: nobody else may sync for long.
		return true, s.Sync()
	}
	s.applyMu.Lock()
	defer s.applyMu.Unlock()
	if err := s.Err(); err != nil {
		return false, err
	}
	if s.hurry || s.checkpointDue() {
		return true, s.checkpoint(nil)
	}
	if did, err := s.applyBatch(); err != nil {
		return false, s.applyError(err)
	} else if did {
		return true, nil
	}
	if urgent && min(s.committed.Load(), uint64(s.log.Durable())) > s.recorded.Load() {
		return true, s.recordCommit()
	}
	if urgent && s.applied.Load() > s.checkpointed.Load() {
		return true, s.checkpoint(nil)
	}
	if idle {
		s.batch, s.frames = batch{}, nil
		s.table.shrink()
	}
	return false, nil
}

// checkpointDue tells whether enough was applied since the last checkpoint: what is only applied takes room in the log.
func (s *Store) checkpointDue() bool {
	due := s.logBlocks / checkpointShare
	if s.pressure() > 0 {
		due = min(due, int64(s.segBlocks))
	}
	since := int64(s.appliedPos.Load()) - int64(s.checkpointPos.Load())
	return since >= due && !s.o.broken.has(releaseEarly)
}
