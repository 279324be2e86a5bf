package blockdev

import (
	"errors"
	"fmt"
	"syscall"
)

// A write that the file system refuses for want of space changed nothing and lost nothing, unlike a failed sync (W5): the
// applier does it again when there is space, and until then the log takes what clients write. When that, too, is nearly
// full, the replica is: it says so (Full), and the volume should be served elsewhere. What is left of the log is for the
// frames that a new view needs. Reads go on, and everything else when there is space again.

// DiskFull tells that the applier waits for space. Clients do not notice it while the log has room.
func (s *Store) DiskFull() bool { return s.diskFull.Load() }

// Full tells that the applier waits for space and the log is nearly full, too.
func (s *Store) Full() bool { return s.diskFull.Load() && s.pressure() == 1 }

// applyError is what an error of applying or checkpointing becomes: the one that poisons the store, or err itself if
// the same may be tried again later. applyMu is held.
func (s *Store) applyError(err error) error {
	if !isRefused(err) {
		return s.poison(err)
	}
	s.batch.ops = s.batch.ops[:0] // they are made again
	if !s.diskFull.Swap(true) {
		s.emit(EventDiskFull{err})
	}
	return err
}

func isRefused(err error) bool {
	var full *noSpaceError
	return errors.As(err, &full)
}

// noSpaceError is the refusal of a write to a data file.
type noSpaceError struct{ err error }

func (e *noSpaceError) Error() string {
	return fmt.Sprintf("%v: free some space; the log keeps what is written meanwhile, as long as it has room", e.err)
}

func (e *noSpaceError) Unwrap() error { return e.err }

// noSpace tells writes that were refused for want of space from those that failed.
func noSpace(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return &noSpaceError{err}
	}
	return err
}
