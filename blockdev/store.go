package blockdev

import (
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"lockstep/wal"
	"lockstep/wal/vfs"
)

// Store is one replica's storage. doc.go has its rules.
//
// Appends, syncs and cuts come from one goroutine at a time, but that Sync may run beside Append. Everything else
// may be called from any goroutine.
type Store struct {
	o         StoreOptions
	salt      uint64
	segBlocks wal.Pos
	logBlocks int64
	clean     bool // was the last stop clean
	sameBoot  bool
	lock      io.Closer
	meta      *metaFile
	image     *pacedFile
	sums      *sumTable
	regions   *regionTable
	log       *wal.Log
	table     pageTable

	// mu guards what Append, Commit and Cut share. It is not held during I/O.
	mu      sync.Mutex
	pending pendingFrames
	epochs  EpochIndex
	carried wal.LSN // largest commit LSN in an appended frame
	cuts    uint64  // calls of Cut that changed the log

	sessions sessionTable

	growMu sync.Mutex    // held by Prepare and Grow; taken before applyMu
	room   atomic.Uint64 // what files and tables were made for in this run, if larger than the size

	// Watermarks, raised by the one who holds what is said; read by anybody.
	committed     atomic.Uint64 // under mu
	committedPos  atomic.Uint64 // under mu; where the committed part of the log ends
	endPos        atomic.Uint64 // under mu; where the log ends
	recorded      atomic.Uint64 // under mu (B1)
	applied       atomic.Uint64 // under applyMu
	appliedPos    atomic.Uint64 // under applyMu
	checkpointed  atomic.Uint64 // under applyMu
	checkpointPos atomic.Uint64 // under applyMu
	copyAsOf      atomic.Uint64 // newest asOf of a WriteRegion in this run

	// applyMu is held by whoever changes the image, the sums or the checkpoint (B6).
	applyMu    sync.Mutex
	appliedAt  checkpoint // of the last frame applied
	hurry      bool       // a checkpoint is due now
	batch      batch
	frames     []frameInfo // of the batch
	sessionsAt *sessionsFile

	repairer atomic.Pointer[Repairer]
	scrub    scrubber

	diskFull atomic.Bool   // the applier waits for space
	wantRoom atomic.Bool   // somebody found the log full
	kick     chan struct{} // wakes the driver
	stop     chan struct{}
	stopped  chan struct{}

	failMu sync.Mutex // guards err; taken last
	err    error
	failed chan struct{}
	closed atomic.Bool
}

// StoreOptions says how a store is opened.
type StoreOptions struct {
	FS  vfs.FS
	Dir string
	// BootID names the machine's boot; default: the kernel's.
	BootID string
	// Now is the clock that ages are told by (OldestIO, events); default: time.Now.
	Now func() time.Time
	// Manual leaves applying and checkpoints to the caller, who calls Step. Otherwise one goroutine does it.
	Manual bool
	// ScrubRate is how fast the replica is scrubbed in the background, in bytes a second: 0 is DefaultScrubRate, less
	// is not at all. ScrubEvery is the time between two passes; 0 is DefaultScrubEvery. Manual stores have no background.
	ScrubRate  int64
	ScrubEvery time.Duration
	// Learner tells, by its identity and protocol state, whether the replica was being brought up to date by others:
	// wal.Start has what that means (W7). nil: only while it was copied.
	Learner func(id Identity, protocol []byte) bool
	// OnEvent is told what happens; see Event.
	OnEvent func(Event)
	// OnRoom is called after a checkpoint that made room in the log for somebody who found it full. It must not
	// block, nor call anything but RoomFor and Marks.
	OnRoom func()

	broken mutation // tests only: rules not kept
}

// Marks are the watermarks of doc.go, all of them ends of frames but First.
type Marks struct {
	First      wal.LSN // oldest record that ReadFrames can give; End+1 if none
	Checkpoint wal.LSN
	Applied    wal.LSN
	Committed  wal.LSN
	Durable    wal.LSN
	End        wal.LSN
}

// Identity is what the replica was formatted as, with the size that it has now.
func (s *Store) Identity() Identity { return s.meta.get().ID }

// Size is what the replica has room for, in bytes: records beyond it are refused. It only grows (Grow).
func (s *Store) Size() uint64 { return s.meta.get().ID.Size }

// Blocks is Size in blocks.
func (s *Store) Blocks() uint64 { return s.Size() / BlockSize }

// Salt is what frames of this volume carry.
func (s *Store) Salt() uint64 { return s.salt }

// Incarnation grows by one each time the store is opened.
func (s *Store) Incarnation() uint64 { return s.meta.get().Incarnation }

// CleanStart tells that the store was closed, not crashed, before it was opened.
func (s *Store) CleanStart() bool { return s.clean }

// SameBoot tells that the machine did not restart between the last run and this one, in which no write or sync of the log
// failed: what was written then, synced or not, was not lost. A run counts from its first SaveProtocol on: until then it may
// not have noted what follows for it.
func (s *Store) SameBoot() bool { return s.sameBoot }

// Protocol is what SaveProtocol stored last; nil after Format. Not to be changed.
func (s *Store) Protocol() []byte { return s.meta.get().Protocol }

// SaveProtocol replaces the protocol state, of up to MaxProtocolBytes. It is stable on return; a crash before
// leaves the old or the new.
func (s *Store) SaveProtocol(b []byte) error {
	if len(b) > MaxProtocolBytes {
		return fmt.Errorf("blockdev: protocol state of %d bytes exceeds %d", len(b), MaxProtocolBytes)
	}
	b = slices.Clone(b)
	return s.saveMeta(func(m *meta) {
		m.Protocol = b
		if s.Err() == nil { // it may have failed while this waited
			m.BootID = s.o.BootID
		}
	})
}

// saveMeta saves and poisons the store if that fails.
func (s *Store) saveMeta(change func(*meta)) error {
	if err := s.Err(); err != nil {
		return err
	}
	if err := s.meta.save(change); err != nil {
		return s.poison(err)
	}
	return nil
}

// Marks gives all watermarks. They are read one after the other, from the lowest up: each was true at some moment.
func (s *Store) Marks() Marks {
	return Marks{
		First:      s.log.First(),
		Checkpoint: wal.LSN(s.checkpointed.Load()),
		Applied:    wal.LSN(s.applied.Load()),
		Committed:  wal.LSN(s.committed.Load()),
		Durable:    s.log.Durable(),
		End:        s.log.End(),
	}
}

// OldestIO is how long the log's disk has been at what it was given first and is not done with; 0 when it has
// nothing to do. A disk that hangs shows here before anything fails.
func (s *Store) OldestIO() time.Duration { return s.log.OldestIO() }

// EndSum is the chain that the next frame must have.
func (s *Store) EndSum() uint32 { return s.log.EndSum() }

// Epochs is the epoch index of the whole log.
func (s *Store) Epochs() EpochIndex {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.epochs)
}

// EpochAt is the epoch of a record; false for one beyond the end or too old.
func (s *Store) EpochAt(l wal.LSN) (wal.Epoch, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l > s.log.End() {
		return 0, false
	}
	return s.epochs.At(l)
}

// Copying tells that the image is not a prefix of history (B7).
func (s *Store) Copying() bool { return s.meta.get().Flags&flagCopying != 0 }

// Err is what poisoned the store (W5), ErrClosed after Close, or nil.
func (s *Store) Err() error {
	s.failMu.Lock()
	defer s.failMu.Unlock()
	return s.err
}

// Failed is closed when the store is poisoned.
func (s *Store) Failed() <-chan struct{} { return s.failed }

// poison makes the first storage error the answer to every later change (W5).
func (s *Store) poison(err error) error {
	s.failMu.Lock()
	first := s.err == nil
	if first {
		s.err = fmt.Errorf("blockdev: storage of replica in %s failed, it takes no more changes: %w", s.o.Dir, err)
		close(s.failed)
	}
	err = s.err
	s.failMu.Unlock()
	if first {
		s.emit(EventPoisoned{err})
	}
	return err
}

func (s *Store) emit(e Event) {
	if s.o.OnEvent != nil {
		s.o.OnEvent(e)
	}
}
