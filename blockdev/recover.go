package blockdev

import (
	"fmt"

	"lockstep/wal"
)

// openLog reads the log from the checkpoint on and commits as far as is known: the largest commit LSN in the log
// or in meta (B1).
func (s *Store) openLog(m meta) (wal.Recovery, error) {
	policy := wal.RefuseCorruption
	if s.o.CutAlways {
		policy = wal.CutAlways
	}
	start := wal.Start{
		LSN: m.Checkpoint.LSN, Pos: m.Checkpoint.Pos, Chain: m.Checkpoint.Chain,
		Blank:   m.Flags&flagBlank != 0,
		Durable: max(m.Commit, m.CleanEnd), // nothing up to there is ever cut
	}
	var rec wal.Recovery
	var err error
	s.log, rec, err = wal.Open(walOptions(s.o.FS, s.o.Dir, m), start, policy, s.visit)
	if err != nil {
		s.log = nil
		return rec, err
	}
	known := max(rec.Commit, m.Commit)
	if known > rec.End && rec.Corruption == nil {
		return rec, &DamagedError{walName, fmt.Sprintf("ends with record %d, but %d was committed", rec.End, known)}
	}
	known = min(known, rec.End)
	s.carried = known
	s.recorded.Store(uint64(known))
	s.Commit(known)
	return rec, nil
}

// visit takes in a frame that recovery found. The frame's memory is the log's again on return.
func (s *Store) visit(f wal.Frame, at wal.Pos) error {
	if err := s.check(f); err != nil {
		return &DamagedError{walName, fmt.Sprintf("does not fit the volume: %v", err)}
	}
	s.pending.add(f, at)
	s.epochs = s.epochs.with(f.Header().Epoch, f.First())
	return nil
}
