package blockdev

import (
	"time"

	"lockstep/wal"
)

// Event is something that an operator or a metric may want to know of. Events are given to
// StoreOptions.OnEvent, from any goroutine; the callback must not block and not call the store.
type Event interface{ event() }

// EventRecovered is emitted once by OpenStore.
type EventRecovered struct {
	Checkpoint, Committed, End wal.LSN
	Clean                      bool // the last stop was one
	Torn                       bool // pieces of unfinished frames were cut
	Took                       time.Duration
}

// EventCheckpoint follows each checkpoint.
type EventCheckpoint struct {
	LSN  wal.LSN
	Took time.Duration
}

// EventPoisoned is emitted at most once: the store takes no more changes (W5).
type EventPoisoned struct{ Err error }

// EventCorruptBlock is emitted for each read that met a bad block.
type EventCorruptBlock struct{ Err *CorruptBlockError }

// EventRepaired follows a successful Repair.
type EventRepaired struct{ Block uint64 }

// EventNoHoles is emitted once by OpenStore where the file system of the image cannot punch holes: trims and zeroes are
// written out, and give no space back.
type EventNoHoles struct{ Dir string }

// EventBrokenFrame tells of a committed frame that went bad in the log before it was applied: of the blocks whose
// content it had, so many are lost here, and read as corrupt until they are repaired.
type EventBrokenFrame struct {
	First, Last  wal.LSN
	Blocks, Lost int
}

// EventScrubbed follows each whole pass of a scrub.
type EventScrubbed struct{ Scrubbed }

// EventGrown follows a Grow that made the replica larger: bytes.
type EventGrown struct{ From, To uint64 }

// EventDiskFull tells that the applier found no space and will try again.
type EventDiskFull struct{ Err error }

func (EventGrown) event()        {}
func (EventDiskFull) event()     {}
func (EventScrubbed) event()     {}
func (EventBrokenFrame) event()  {}
func (EventNoHoles) event()      {}
func (EventRecovered) event()    {}
func (EventCheckpoint) event()   {}
func (EventPoisoned) event()     {}
func (EventCorruptBlock) event() {}
func (EventRepaired) event()     {}
