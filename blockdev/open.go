package blockdev

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"lockstep/wal"
	"lockstep/wal/vfs"
)

// OpenStore opens a replica and recovers it: afterwards everything is committed that was known to be, and what lies
// behind in the log waits for Commit or Cut. Errors name the directory and wrap ErrNotReplica, ErrInUse,
// *VersionError, *DamagedError, wal's errors, or the file system's.
func OpenStore(o StoreOptions) (*Store, error) {
	if o.BootID == "" {
		o.BootID = kernelBootID()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	s := &Store{
		o: o, kick: make(chan struct{}, 1), stop: make(chan struct{}), stopped: make(chan struct{}),
		failed: make(chan struct{}),
	}
	if err := s.open(); err != nil {
		s.closeFiles()
		return nil, fmt.Errorf("blockdev: open %s: %w", o.Dir, err)
	}
	if o.Manual {
		close(s.stopped)
	} else {
		go s.drive() // until Close; blocks on storage only
		s.startScrub()
	}
	return s, nil
}

func kernelBootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	id := strings.TrimSpace(string(b))
	return id[:min(len(id), MaxTextBytes)]
}

func (s *Store) open() error {
	began := s.o.Now()
	if err := s.openFiles(); err != nil {
		return err
	}
	m := s.meta.get()
	s.salt = m.Salt
	s.segBlocks = wal.Pos(m.Segment / BlockSize)
	s.logBlocks = int64(s.segBlocks) * int64(m.Segments)
	s.clean = m.Flags&flagClean != 0
	s.sameBoot = m.BootID != "" && m.BootID == s.o.BootID
	s.setMarks(m.Checkpoint)
	s.epochs = slices.Clone(m.Epochs)
	rec, err := s.openLog(*m)
	if err != nil {
		return err
	}
	err = s.meta.save(func(m *meta) {
		m.Incarnation++
		m.Flags &^= flagClean | flagBlank // wal.Open finished the blanking
		m.CleanEnd = 0
		if rec.Rotten != nil { // B8; and from now on the meta slot proves that it was durable
			m.Commit = max(m.Commit, wal.LSN(s.committed.Load()))
		}
	})
	if err != nil {
		return err
	}
	if p, ok := s.image.File.(vfs.HolePuncher); ok && !p.PunchesHoles() {
		s.emit(EventNoHoles{s.o.Dir})
	}
	s.emit(EventRecovered{
		Checkpoint: m.Checkpoint.LSN, Committed: wal.LSN(s.committed.Load()), End: s.log.End(),
		Clean: s.clean, Torn: rec.Torn, Took: s.o.Now().Sub(began),
	})
	return nil
}

// setMarks makes c the point up to which everything is applied and committed.
func (s *Store) setMarks(c checkpoint) {
	s.appliedAt = c
	s.batch.done = c.LSN
	s.checkpointPos.Store(uint64(c.Pos))
	for _, mark := range []*atomic.Uint64{&s.committed, &s.recorded, &s.applied, &s.checkpointed} {
		mark.Store(uint64(c.LSN))
	}
	s.carried = c.LSN
	s.committedPos.Store(uint64(c.Pos))
	s.endPos.Store(uint64(c.Pos))
	s.appliedPos.Store(uint64(c.Pos))
}

func (s *Store) openFiles() error {
	names, err := s.o.FS.List(s.o.Dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return ErrNotReplica
	case err != nil:
		return err
	case halfFormatted(names):
		return ErrHalfFormatted
	case !slices.Contains(names, metaName):
		if slices.Contains(names, imageName) || slices.Contains(names, walName) {
			return &DamagedError{metaName, "is missing"}
		}
		return ErrNotReplica
	case !slices.Contains(names, walName):
		return &DamagedError{walName, "is missing"}
	}
	s.lock, err = s.o.FS.Lock(path.Join(s.o.Dir, lockName))
	if errors.Is(err, vfs.ErrLocked) {
		return ErrInUse
	} else if err != nil {
		return err
	}
	// W6, for names: a Format that was killed may have come as far as the last rename, and no further.
	if !s.o.broken.has(namesUnsynced) {
		if err := s.o.FS.SyncDir(s.o.Dir); err != nil {
			return err
		}
		if err := syncAncestors(s.o.FS, s.o.Dir); err != nil {
			return err
		}
	}
	f, err := s.o.FS.Open(path.Join(s.o.Dir, metaName))
	if err != nil {
		return err
	}
	if s.meta, err = openMeta(f); err != nil {
		f.Close()
		return err
	}
	s.meta.broken = s.o.broken
	if err := s.openTables(); err != nil {
		return err
	}
	if s.sessionsAt, err = openSessions(s.o.FS, s.o.Dir); err != nil {
		return err
	}
	return s.sessionsAt.load(&s.sessions, s.meta.get().Sessions)
}

// openTables opens the files whose lengths follow from the volume's size.
func (s *Store) openTables() error {
	m := s.meta.get()
	open := func(name string, length func(uint64) int64) (vfs.File, error) {
		// A Prepare that was interrupted has made some of them longer. What is there more was never written.
		return openFile(s.o.FS, s.o.Dir, name, length(m.ID.Size), length(m.Growing))
	}
	f, err := open(imageName, imageFileSize)
	if err != nil {
		return err
	}
	s.image = newPacedFile(f)
	if f, err = open(sumsName, sumsFileSize); err != nil {
		return err
	}
	s.sums = newSumTable(f, m.ID.Size)
	s.sums.check = s.markLost
	if f, err = open(regionsName, regionsFileSize); err != nil {
		return err
	}
	if s.regions, err = openRegions(f, m.ID.Size, m.Checkpoint.LSN); err != nil {
		f.Close()
	}
	return err
}

// openLog reads the log from the checkpoint on and commits as far as is known: the largest commit LSN in the log
// or in meta (B1).
func (s *Store) openLog(m meta) (wal.Recovery, error) {
	start := wal.Start{
		LSN: m.Checkpoint.LSN, Pos: m.Checkpoint.Pos, Chain: m.Checkpoint.Chain,
		Blank:   m.Flags&flagBlank != 0,
		Learner: m.Flags&flagCopying != 0 || s.o.Learner != nil && s.o.Learner(m.ID, m.Protocol),
		Durable: max(m.Commit, m.CleanEnd), // nothing up to there is ever cut
	}
	var rec wal.Recovery
	var err error
	o := walOptions(s.o.FS, s.o.Dir, m)
	o.Now = s.o.Now
	s.log, rec, err = wal.Open(o, start, s.visit)
	if err != nil {
		s.log = nil
		return rec, err
	}
	known := max(rec.Commit, m.Commit)
	if known > rec.End {
		return rec, &DamagedError{walName, fmt.Sprintf("ends with record %d, but %d was committed", rec.End, known)}
	}
	if rec.Rotten != nil && rec.Rotten.LSN > known {
		// It was stable here, and is not known to be committed: it may have to be cut, and what proves it with it.
		return rec, rec.Rotten
	}
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
	s.endPos.Store(uint64(at) + uint64(len(f.Bytes())/BlockSize))
	s.epochs = s.epochs.with(f.Header().Epoch, f.First())
	return nil
}
