package blockdev

import (
	"fmt"

	"lockstep/wal"
)

// settle applies all that is committed, and checkpoints it together with a change to meta. On return the image is
// stable up to the commit point, as far as the log is durable: all of it, since settle syncs the log first.
func (s *Store) settle(change func(*meta)) error {
	if err := s.Sync(); err != nil {
		return err
	}
	s.applyMu.Lock()
	defer s.applyMu.Unlock()
	return s.settleLocked(change)
}

func (s *Store) settleLocked(change func(*meta)) error {
	if err := s.Err(); err != nil {
		return err
	}
	if err := s.recordCommit(); err != nil {
		return err
	}
	for {
		did, err := s.applyBatch()
		if err != nil {
			return s.applyError(err)
		}
		if !did {
			return s.checkpoint(change)
		}
	}
}

// recordCommit lets the applier go as far as W1 allows.
func (s *Store) recordCommit() error {
	l := min(s.committed.Load(), uint64(s.log.Durable()))
	if l <= s.recorded.Load() {
		return nil
	}
	return s.saveCommit(wal.LSN(l))
}

// checkpoint moves the point where recovery begins to what is applied (B3). applyMu is held. A crash before the
// meta save is stable leaves the old checkpoint, whose frames the log still has.
func (s *Store) checkpoint(change func(*meta)) error {
	began := s.o.Now()
	at := s.appliedAt
	if !s.o.broken.has(metaBeforeSync) {
		if err := s.syncImage(); err != nil {
			return s.applyError(err)
		}
	}
	if !s.o.broken.has(sessionsNotSaved) {
		if err := s.saveSessions(); err != nil {
			return s.applyError(err)
		}
	}
	s.mu.Lock()
	epochs := append(EpochIndex(nil), s.epochs.upTo(at.LSN)...)
	s.mu.Unlock()
	err := s.saveMeta(func(m *meta) {
		m.Checkpoint = at
		m.Commit = max(m.Commit, at.LSN)
		m.Epochs = epochs
		m.Sessions = s.sessionsAt.generation
		if change != nil {
			change(m)
		}
	})
	if err != nil {
		return err
	}
	s.log.Checkpointed(wal.Start{LSN: at.LSN, Pos: at.Pos, Chain: at.Chain})
	s.checkpointPos.Store(uint64(at.Pos))
	s.hurry = false
	s.diskFull.Store(false)
	s.checkpointed.Store(uint64(at.LSN))
	s.emit(EventCheckpoint{LSN: at.LSN, Took: s.o.Now().Sub(began)})
	if s.wantRoom.Swap(false) && s.o.OnRoom != nil {
		s.o.OnRoom()
	}
	return nil
}

// syncImage makes image, sums and regions stable.
func (s *Store) syncImage() error {
	if err := s.sums.write(); err != nil {
		return err
	}
	if err := s.regions.write(); err != nil {
		return err
	}
	if err := s.image.sync(); err != nil {
		return fmt.Errorf("sync image: %w", err)
	}
	if !s.o.broken.has(sumsUnsynced) {
		if err := s.sums.f.sync(); err != nil {
			return fmt.Errorf("sync checksums: %w", err)
		}
	}
	if !s.o.broken.has(regionsUnsynced) {
		if err := s.regions.f.sync(); err != nil {
			return fmt.Errorf("sync regions: %w", err)
		}
	}
	return nil
}

// Checkpoint applies and checkpoints everything committed now.
func (s *Store) Checkpoint() error { return s.settle(nil) }
