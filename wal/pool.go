package wal

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"time"

	"lockstep/wal/vfs"
)

// Limits of a log's shape.
const (
	DefaultSegmentBytes = 64 << 20
	MinSegmentBytes     = 4 * BlockSize // tests; a useful log holds a frame of MaxFrameBytes in a segment
	MaxSegmentBytes     = 1 << 30
	MinSegments         = 3 // the one being filled, the one before with the checkpoint, and one to go on in
	MaxSegments         = 1 << 16
)

// Options say where a log is and what shape it has. Shape and salt are fixed by Create; whoever opens the log keeps
// them with its own metadata.
type Options struct {
	FS           vfs.FS
	Dir          string // holds the segments and nothing else
	SegmentBytes int64  // a multiple of BlockSize; 0 is DefaultSegmentBytes
	Segments     int
	Salt         uint64           // random, one per volume, not 0
	Now          func() time.Time // for OldestIO; default time.Now

	broken mutation // tests only: rules not kept
}

// Bytes is the size of the pool.
func (o Options) Bytes() int64 { return o.SegmentBytes * int64(o.Segments) }

func (o *Options) validate() error {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.SegmentBytes == 0 {
		o.SegmentBytes = DefaultSegmentBytes
	}
	switch {
	case o.FS == nil || o.Dir == "":
		return errors.New("wal: options name no file system or directory")
	case o.SegmentBytes%BlockSize != 0 || o.SegmentBytes < MinSegmentBytes || o.SegmentBytes > MaxSegmentBytes:
		return fmt.Errorf("wal: segment size %d is not a multiple of %d from %d to %d",
			o.SegmentBytes, BlockSize, MinSegmentBytes, MaxSegmentBytes)
	case o.Segments < MinSegments || o.Segments > MaxSegments:
		return fmt.Errorf("wal: %d segments, not %d to %d", o.Segments, MinSegments, MaxSegments)
	case o.Salt == 0:
		return errors.New("wal: salt is 0")
	}
	return nil
}

func segmentName(i int) string { return fmt.Sprintf("%02d.seg", i) }

// Create makes the pool of segments: Dir must not exist, or be empty. Every byte is written once, so that later
// writes need no allocation and fdatasync no journal commit. The pool is built under another name and moved into
// place when it is stable: Dir either holds a whole log or none, and a build that a crash left is started over.
func Create(o Options) (err error) {
	if err := o.validate(); err != nil {
		return err
	}
	dir := path.Clean(o.Dir)
	if names, err := o.FS.List(dir); err == nil && len(names) > 0 {
		return fmt.Errorf("wal: create %s: %w", dir, fs.ErrExist)
	}
	tmp := dir + ".new"
	if err := o.FS.RemoveAll(tmp); err != nil {
		return fmt.Errorf("wal: create: %w", err)
	}
	if err := o.FS.MkdirAll(tmp); err != nil {
		return fmt.Errorf("wal: create: %w", err)
	}
	defer func() {
		if err != nil {
			o.FS.RemoveAll(tmp) // the space is given back where it can be; the first error is the one to report
		}
	}()
	zeroes := AlignedBuffer(int(min(o.SegmentBytes, 1<<20)))
	for i := range o.Segments {
		if err := createSegment(o.FS, path.Join(tmp, segmentName(i)), o.SegmentBytes, zeroes); err != nil {
			return fmt.Errorf("wal: create segment: %w", err)
		}
	}
	if err := o.FS.SyncDir(tmp); err != nil {
		return fmt.Errorf("wal: create: %w", err)
	}
	if err := o.FS.Rename(tmp, dir); err != nil {
		return fmt.Errorf("wal: create: %w", err)
	}
	if err := o.FS.SyncDir(path.Dir(dir)); err != nil {
		return fmt.Errorf("wal: create: %w", err)
	}
	return nil
}

func createSegment(fsys vfs.FS, name string, size int64, zeroes []byte) (err error) {
	f, err := fsys.Create(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	// The disk may be serving another log: it is never given more than two pieces at a time, or a whole segment would be in
	// front of that log's next write.
	cleaner, _ := f.(vfs.Cleaner)
	for off, piece := int64(0), int64(len(zeroes)); off < size; off += piece {
		n := min(piece, size-off)
		if _, err := f.WriteAt(zeroes[:n], off); err != nil {
			return err
		}
		if cleaner == nil {
			continue
		}
		if err := cleaner.CleanStart(off, n); err != nil {
			return err
		}
		if off > 0 {
			if err := cleaner.CleanWait(off-piece, piece); err != nil {
				return err
			}
		}
	}
	return f.Sync()
}

// openPool opens every segment, checks that the pool has the shape it was created with, and makes all of it stable
// (W6): what a dead process wrote without a sync would else be read from the page cache, acknowledged to others as
// durable, and lost with the power.
func openPool(o Options) (files []vfs.File, err error) {
	defer func() {
		if err != nil {
			closeAll(files)
			files = nil
		}
	}()
	names, err := o.FS.List(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("wal: open: %w", err)
	}
	if len(names) > o.Segments {
		return nil, &SegmentError{names[o.Segments], fmt.Errorf("%d files in %s, expected %d", len(names), o.Dir, o.Segments)}
	}
	for i := range o.Segments {
		name := path.Join(o.Dir, segmentName(i))
		f, err := o.FS.Open(name)
		if err != nil {
			return files, &SegmentError{name, err}
		}
		files = append(files, f)
		size, err := f.Size()
		if err != nil {
			return files, &SegmentError{name, err}
		}
		if size != o.SegmentBytes {
			return files, &SegmentError{name, errLength{size, o.SegmentBytes}}
		}
	}
	if o.broken.has(skipOpenSync) {
		return files, nil
	}
	for i, f := range files {
		if err := f.Sync(); err != nil {
			return files, &SegmentError{path.Join(o.Dir, segmentName(i)), err}
		}
		if c, ok := f.(vfs.CacheDropper); ok {
			c.DropCache()
		}
	}
	return files, nil
}

func closeAll(files []vfs.File) error {
	var errs []error
	for _, f := range files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}
