package blockdev

import (
	"errors"
	"fmt"
	"slices"

	"lockstep/wal"
)

// Append puts a frame at the end of the log: written, not durable, not visible. The frame's memory is the caller's
// again on return. wal.ErrFull, wal.ErrNotNext, *wal.FrameTooLargeError, ErrOutOfRange and ErrOldEpoch change
// nothing; any other error poisons the store.
func (s *Store) Append(f wal.Frame) error {
	if err := s.Err(); err != nil {
		return err
	}
	if err := s.check(f); err != nil {
		return err
	}
	at, err := s.log.Append(f)
	if err != nil {
		return s.appendError(err)
	}
	h := f.Header()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending.add(f, at)
	s.endPos.Store(uint64(at) + uint64(len(f.Bytes())/BlockSize))
	if n := len(s.epochs); n == 0 || s.epochs[n-1].Epoch != h.Epoch {
		s.epochs = s.epochs.with(h.Epoch, h.First)
	}
	s.carried = max(s.carried, h.Commit)
	return nil
}

// appendError tells refusals, which the caller can do something about, from failures.
func (s *Store) appendError(err error) error {
	var large *wal.FrameTooLargeError
	switch {
	case errors.Is(err, wal.ErrFull):
		s.needRoom()
		return err
	case errors.Is(err, wal.ErrNotNext), errors.As(err, &large):
		return err
	}
	return s.logFailed(err)
}

// logFailed poisons the store after an error of its log. A sync that failed may have taken along what was written and not
// synced, and no later one says so: that the machine still runs proves nothing to the next process then (SameBoot). If the
// meta file cannot be written either, that stays unsaid.
func (s *Store) logFailed(err error) error {
	first := s.Err() == nil
	err = s.poison(err)
	if first {
		_ = s.meta.save(func(m *meta) { m.BootID = "" })
	}
	return err
}

// check refuses a frame that a broken writer made: epochs that go back, records past the volume's end.
func (s *Store) check(f wal.Frame) error {
	// Only the appender changes epochs.
	if n := len(s.epochs); n > 0 && f.Header().Epoch < s.epochs[n-1].Epoch {
		return fmt.Errorf("%w: %d after %d", ErrOldEpoch, f.Header().Epoch, s.epochs[n-1].Epoch)
	}
	for i := range f.Records() {
		r, _, _ := f.Record(i)
		switch r.Kind {
		case wal.KindWrite, wal.KindZero, wal.KindTrim:
			if n := s.Blocks(); r.Block >= n || uint64(r.Count) > n-r.Block {
				return fmt.Errorf("%w: record %d", ErrOutOfRange, f.First()+wal.LSN(i))
			}
		case wal.KindView:
			if n := s.Blocks(); r.Seq > n { // B11
				return fmt.Errorf("%w: record %d begins a volume of %d blocks, this replica has %d", ErrOutOfRange, f.First()+wal.LSN(i), r.Seq, n)
			}
		case wal.KindAttach:
		}
	}
	return nil
}

// Sync makes everything durable that was appended before the call.
func (s *Store) Sync() error {
	if err := s.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	carried, cuts := s.carried, s.cuts // carried by frames that the log's Sync covers
	s.mu.Unlock()
	if s.o.broken.has(ackUnsynced) {
		return nil
	}
	if _, err := s.log.Sync(); err != nil {
		return s.logFailed(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if cuts == s.cuts { // else the frames may be gone
		s.recorded.Store(max(s.recorded.Load(), uint64(carried)))
	}
	return nil
}

// Commit makes everything up to l visible to Read (W2), by whole frames: up to the last frame that ends at or before l.
// It never goes back, and l may lie beyond the end of the log. It may lie beyond what is durable, too: what the
// image gets waits for Sync (W1).
func (s *Store) Commit(l wal.LSN) {
	if uint64(l) <= s.committed.Load() {
		return
	}
	s.mu.Lock()
	p := &s.pending
	for p.committed < p.frames.len() {
		f := p.frames.at(p.committed)
		if f.last > l {
			break
		}
		s.commitFrame(f)
		p.committed++
		s.committedPos.Store(uint64(f.end))
		s.committed.Store(uint64(f.last))
	}
	s.mu.Unlock()
	if s.pressed() {
		s.wake()
	}
}

// commitFrame brings a frame's changes into the page table (B2) and the region table (B5). mu is held.
func (s *Store) commitFrame(f *frameInfo) {
	p := &s.pending
	for i := range int(f.recs) {
		c := p.changes.at(i)
		s.regions.raise(c.block, c.count, c.lsn)
		if c.pos == 0 {
			s.table.setZero(c.block, c.count, c.lsn, c.sum)
			continue
		}
		for k := range c.count {
			s.table.set(c.block+k, loc{c.pos + wal.Pos(k), *p.sums.at(int(k))})
		}
		p.sums.dropFront(int(c.count))
	}
	p.changes.dropFront(int(f.recs))
	for i := range int(f.marks) {
		s.sessions.fold(*p.marks.at(i), f.last)
	}
	p.marks.dropFront(int(f.marks))
	f.recs, f.sums, f.marks = 0, 0, 0
}

// Cut forgets everything behind l, which is the end of a frame and not below the commit point. No Append or Sync
// may be under way. On return the cut is stable.
func (s *Store) Cut(l wal.LSN) error {
	if err := s.Err(); err != nil {
		return err
	}
	if l == s.log.End() {
		return nil
	}
	s.mu.Lock()
	if committed := wal.LSN(s.committed.Load()); l < committed { // I6
		s.mu.Unlock()
		return fmt.Errorf("%w: cut to %d, committed %d", ErrBelowCommit, l, committed)
	}
	if l != wal.LSN(s.applied.Load()) {
		if f, ok := s.pending.frameAt(l); !ok || f.last != l {
			s.mu.Unlock()
			return fmt.Errorf("%w: cut to %d", ErrNotFrameEnd, l)
		}
	}
	// The frames to be cut may be the ones that carry the commit point, so meta must have it first, and nothing
	// beyond it may be applied meanwhile (B1).
	known := min(s.committed.Load(), uint64(s.log.Durable()))
	s.recorded.Store(min(s.recorded.Load(), known))
	s.carried = min(s.carried, wal.LSN(known))
	s.cuts++
	s.mu.Unlock()
	if s.meta.get().Commit < wal.LSN(known) && !s.o.broken.has(cutUnrecorded) {
		if err := s.saveCommit(wal.LSN(known)); err != nil {
			return err
		}
	}
	s.mu.Lock()
	s.pending.cut(l)
	s.epochs = slices.Clone(s.epochs.upTo(l))
	s.mu.Unlock()
	if err := s.log.Cut(l); err != nil {
		return s.logFailed(err)
	}
	s.endPos.Store(uint64(s.log.EndPos()))
	return nil
}

// saveCommit makes a commit point that is stable here known to recovery (B1).
func (s *Store) saveCommit(l wal.LSN) error {
	if err := s.saveMeta(func(m *meta) { m.Commit = max(m.Commit, l) }); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.recorded.Store(max(s.recorded.Load(), uint64(l)))
	return nil
}

// MaxFrame is the size in bytes of the largest frame that Append takes.
func (s *Store) MaxFrame() int { return s.log.MaxFrame() }

// Fill is the part of the log, 0 to 1, that a checkpoint at the end would free.
func (s *Store) Fill() float64 { return s.log.Fill() }

// RoomFor tells whether a frame of so many bytes would fit now. If not, room is made as far as what is committed
// allows, and OnRoom is called then. A log full of uncommitted frames stays full until they are committed or cut.
func (s *Store) RoomFor(bytes int) bool {
	if s.log.Fits(bytes) {
		return true
	}
	s.needRoom()
	return s.log.Fits(bytes) // a checkpoint may have come before needRoom
}

func (s *Store) needRoom() {
	s.wantRoom.Store(true)
	s.wake()
}

// ReadFrames copies whole frames out of the log, from the one that holds from, as many as fit into buf. Errors:
// wal.ErrCompacted, *wal.ShortBufferError. At the end of the log it gives 0.
func (s *Store) ReadFrames(from wal.LSN, buf []byte) (int, error) { return s.log.ReadFrames(from, buf) }
