// Package vfs is the part of a file system that a replica's storage needs, as an interface: OS is the real one,
// tools have one that records, tears and fails.
//
// The contract is POSIX's, no stronger: what was written is on stable storage only after File.Sync returned nil,
// a directory entry only after FS.SyncDir. After a Sync that failed nothing is known of what was written since
// the last one that succeeded, and a second Sync that succeeds proves nothing.
package vfs

import (
	"errors"
	"io"
)

// ErrLocked is returned by FS.Lock when another process holds the lock.
var ErrLocked = errors.New("vfs: locked by another process")

// FS is a file system. Names are slash-separated paths. Errors wrap the operating system's, so that
// errors.Is(err, fs.ErrNotExist) and errors.Is(err, syscall.ENOSPC) hold.
type FS interface {
	// Create makes a new file for reading and writing; it fails if the name exists.
	Create(name string) (File, error)
	// Open opens an existing file for reading and writing.
	Open(name string) (File, error)
	// MkdirAll makes a directory and its parents.
	MkdirAll(dir string) error
	// List gives the names in a directory, sorted.
	List(dir string) ([]string, error)
	// Rename moves a file within a file system, replacing the target.
	Rename(from, to string) error
	// RemoveAll removes a file or a tree; a missing one is no error.
	RemoveAll(name string) error
	// SyncDir makes the entries of a directory stable.
	SyncDir(dir string) error
	// Lock takes an exclusive lock on a file, which it creates; it returns ErrLocked at once when another
	// holder has it. Closing releases it.
	Lock(name string) (io.Closer, error)
}

// File is an open file. Methods may be called from many goroutines at once.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	// Size is the file's length in bytes.
	Size() (int64, error)
	// Truncate sets the file's length; new bytes read as zeroes and take no space.
	Truncate(size int64) error
	// Sync makes all that was written to the file, and its length, stable (fdatasync).
	Sync() error
	// PunchHole gives the space of a range back; it reads as zeroes afterwards. The length stays. Where the
	// file system cannot do it, zeroes are written.
	PunchHole(off, n int64) error
	// StartWriteback asks that a range's dirty pages go to the device soon. It promises nothing.
	StartWriteback(off, n int64)
}

// Cleaner is a File that can write a range's dirty pages to the device and wait until the device has taken them. They
// are not stable before Sync. CleanStart begins and does not wait; CleanWait waits for what CleanStart began. An error may be
// reported by either, or by the next Sync, and only once: it counts as one of Sync.
type Cleaner interface {
	CleanStart(off, n int64) error
	CleanWait(off, n int64) error
}

// HolePuncher is a File that can tell beforehand whether its file system gives the space of holes back, or PunchHole
// has to write zeroes.
type HolePuncher interface {
	PunchesHoles() bool
}

// CacheDropper is a File that can forget its clean pages in memory, so that what is read next comes from the device.
// A page whose write-back failed is clean, holds what was written, and is not what is on the disk.
type CacheDropper interface {
	DropCache()
}

// CacheReader is a File that can read what is in memory without waiting for the device.
type CacheReader interface {
	// ReadCachedAt fills b if all of it is in memory; else it returns false, and what b holds is undefined.
	ReadCachedAt(b []byte, off int64) bool
}

// DirectReader is a File that can read what is on the device, past the page cache, which it leaves as it is. Buffer,
// offset and length are multiples of 4 KiB.
type DirectReader interface {
	// ReadDirectAt fills b. Where the file system cannot do it, it reads as ReadAt does.
	ReadDirectAt(b []byte, off int64) error
}

// Prefetcher is a File that can begin to bring a range into memory. It promises nothing.
type Prefetcher interface {
	Prefetch(off, n int64)
}
