package blockdev

import (
	"errors"
	"fmt"
	"syscall"

	"lockstep/wal/vfs"
)

// Room is how large the replica can become, in bytes, without asking the file system for anything: Size, or what Prepare
// has made.
func (s *Store) Room() uint64 { return max(s.Size(), s.room.Load()) }

// Prepare makes the files long enough for a volume of that size, and nothing else: it is what takes time in growing, and
// what can fail. What is new reads as zeroes and takes no space. Clients, the applier and everybody else go on
// meanwhile. If the file system refuses, nothing has changed and Prepare may be tried again.
func (s *Store) Prepare(size uint64) error {
	s.growMu.Lock()
	defer s.growMu.Unlock()
	return s.prepareLocked(size)
}

func (s *Store) prepareLocked(size uint64) error {
	if !validSize(size) {
		return fmt.Errorf("blockdev: grow: size %d is not a positive multiple of %d up to %d", size, BlockSize, int64(MaxVolumeBytes))
	}
	if size <= s.Room() {
		return nil
	}
	// First meta says why the files are going to be longer than the volume.
	if m := s.meta.get(); m.Growing < size && !s.o.broken.has(growUnannounced) {
		if err := s.saveMeta(func(m *meta) { m.Growing = size }); err != nil {
			return err
		}
	}
	if err := s.extendFiles(size); err != nil {
		return fmt.Errorf("blockdev: grow to %d bytes: %w", size, err)
	}
	s.growTables(size)
	s.room.Store(size)
	return nil
}

// Grow makes the replica's size that of a volume that has become larger; it never becomes smaller. It is Prepare, if that was
// not done, and one save of meta. On return it is stable; a crash before that leaves the old size or the new.
func (s *Store) Grow(size uint64) error {
	s.growMu.Lock()
	defer s.growMu.Unlock()
	if s.o.broken.has(growNotedFirst) {
		defer s.prepareLocked(size)
	} else if err := s.prepareLocked(size); err != nil {
		return err
	}
	from := s.Size()
	if size <= from {
		return nil
	}
	err := s.saveMeta(func(m *meta) {
		m.ID.Size = size
		if m.Growing <= size {
			m.Growing = 0
		}
	})
	if err == nil {
		s.emit(EventGrown{from, size})
	}
	return err
}

// extendFiles makes the files at least as long as a volume of that size needs, and their lengths stable.
func (s *Store) extendFiles(size uint64) error {
	for _, f := range []struct {
		vfs.File
		length int64
	}{
		{s.image.File, imageFileSize(size)},
		{s.sums.f.File, sumsFileSize(size)},
		{s.regions.f.File, regionsFileSize(size)},
	} {
		have, err := f.Size()
		if err == nil && have < f.length {
			err = f.Truncate(f.length)
		}
		if refusesLength(err) {
			return err // it has the file's name
		}
		if err == nil && !s.o.broken.has(growUnsynced) {
			err = f.Sync()
		}
		if err != nil {
			return s.poison(err)
		}
	}
	return nil
}

// refusesLength tells a file system that cannot have such a file from one that failed.
func refusesLength(err error) bool {
	return isRefused(noSpace(err)) || errors.Is(err, syscall.EFBIG)
}

// growTables makes room in memory, before anybody can ask for it. A checkpoint does not see one table in two states.
func (s *Store) growTables(size uint64) {
	s.applyMu.Lock()
	defer s.applyMu.Unlock()
	s.sums.grow(size)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.regions.grow(size)
}
