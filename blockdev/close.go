package blockdev

import (
	"errors"
	"fmt"
	"io"
	"time"
)

// closePatience is how long Close and Abandon wait for a disk that finishes nothing.
const closePatience = time.Minute

// Close applies and checkpoints what is committed, notes a clean stop, and closes. No other call may be under way.
// A poisoned store is closed as it is, and Close returns what poisoned it. Calling Close again does nothing.
//
// A disk that hangs is not waited for for ever: then the error wraps ErrDiskHangs, and the replica stays in use (its files
// cannot be closed under an operation) until the disk comes back, or the process ends.
func (s *Store) Close() error {
	return s.end(func() error {
		err := s.Err()
		if err == nil {
			err = s.settle(func(m *meta) {
				m.Flags |= flagClean
				m.CleanEnd = s.log.End()
			})
		}
		return errors.Join(err, s.closeFiles())
	})
}

// Abandon closes the files as they are, as if the process died: nothing is synced, applied or noted. ErrDiskHangs as with
// Close.
func (s *Store) Abandon() error { return s.end(s.closeFiles) }

// end stops what goes on in the background and then does the last thing.
func (s *Store) end(last func() error) error {
	if s.closed.Swap(true) {
		return nil
	}
	if s.o.Manual {
		return last()
	}
	close(s.stop)
	done := make(chan error, 1)
	go func() { // waits for the disk alone
		<-s.stopped
		s.stopScrub()
		done <- last()
	}()
	ticker := time.NewTicker(closePatience / 60)
	defer ticker.Stop()
	for still, seen := time.Duration(0), s.progress(); still < closePatience; still += closePatience / 60 {
		select {
		case err := <-done:
			return err
		case <-ticker.C:
		}
		if now := s.progress(); now != seen {
			still, seen = 0, now
		}
	}
	return fmt.Errorf("%w: replica in %s", ErrDiskHangs, s.o.Dir)
}

// progress is a number that changes while the disk gets anything done for Close.
func (s *Store) progress() uint64 {
	return s.applied.Load() + s.checkpointed.Load() + uint64(s.log.Durable())
}

// closeFiles closes what is open, without a sync.
func (s *Store) closeFiles() error {
	s.failMu.Lock()
	if s.err == nil {
		s.err = ErrClosed
	}
	s.failMu.Unlock()
	var open []io.Closer
	if s.log != nil {
		open = append(open, s.log)
	}
	if s.sessionsAt != nil {
		open = append(open, s.sessionsAt.f)
	}
	if s.regions != nil {
		open = append(open, s.regions.f)
	}
	if s.sums != nil {
		open = append(open, s.sums.f)
	}
	if s.image != nil {
		open = append(open, s.image)
	}
	if s.meta != nil {
		open = append(open, s.meta.f)
	}
	if s.scrub.f != nil {
		open = append(open, s.scrub.f)
	}
	if s.lock != nil {
		open = append(open, s.lock) // last: nobody else may have the replica before
	}
	var errs []error
	for _, f := range open {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}
