package vfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// OS is the real file system. Files are the owner's to read and write, nobody else's.
type OS struct{}

var _ FS = OS{}

const (
	filePerm = 0o600
	dirPerm  = 0o700

	prefetchBytes = 128 << 10 // for each call: Linux reads no more than the device's read-ahead window, silently
)

// Create implements FS.
func (OS) Create(name string) (File, error) {
	return newFile(os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, filePerm))
}

// Open implements FS.
func (OS) Open(name string) (File, error) {
	return newFile(os.OpenFile(name, os.O_RDWR, 0))
}

// MkdirAll implements FS.
func (OS) MkdirAll(dir string) error { return os.MkdirAll(dir, dirPerm) }

// List implements FS.
func (OS) List(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, nil
}

// Rename implements FS.
func (OS) Rename(from, to string) error { return os.Rename(from, to) }

// RemoveAll implements FS.
func (OS) RemoveAll(name string) error { return os.RemoveAll(name) }

// SyncDir implements FS.
func (OS) SyncDir(dir string) (err error) {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	return d.Sync()
}

// Lock implements FS. The lock belongs to the open file: a child process that inherits nothing does not hold it,
// and a process that dies lets go of it.
func (OS) Lock(name string) (io.Closer, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, filePerm)
	if err != nil {
		return nil, err
	}
	return flock(f, unix.LOCK_EX)
}

// LockShared keeps holders of Lock out of a real directory while somebody looks at it, and changes nothing: a lock file
// that does not exist is not made, and locks nothing. It returns ErrLocked at once when Lock is held.
func LockShared(name string) (io.Closer, error) {
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return io.NopCloser(nil), nil
	}
	if err != nil {
		return nil, err
	}
	return flock(f, unix.LOCK_SH)
}

// flock takes a lock on an open file, which is closed if somebody else has it.
func flock(f *os.File, how int) (io.Closer, error) {
	err := retry(func() error { return unix.Flock(int(f.Fd()), how|unix.LOCK_NB) })
	if err == nil {
		return f, nil
	}
	f.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fmt.Errorf("lock %s: %w", f.Name(), ErrLocked)
	}
	return nil, &fs.PathError{Op: "flock", Path: f.Name(), Err: err}
}

// osFile adds to os.File the calls that it lacks. Those use the descriptor's number, which must not be closed, and
// given to another file, under them: they hold closing for reading, Close for writing.
type osFile struct {
	*os.File
	fd int

	closing sync.RWMutex
	closed  bool // guarded by closing

	directOnce sync.Once
	direct     *os.File // the same file past the page cache; nil if it cannot be had
}

func newFile(f *os.File, err error) (File, error) {
	if err != nil {
		return nil, err
	}
	return &osFile{File: f, fd: int(f.Fd())}, nil
}

// Close implements File.
func (f *osFile) Close() error {
	f.closing.Lock()
	defer f.closing.Unlock()
	f.closed = true
	f.directOnce.Do(func() {})
	if f.direct != nil {
		f.direct.Close()
	}
	return f.File.Close()
}

// maxWriteBytes is how much one system call writes. The kernel caches what a call writes in folios of up to its size,
// and ext4 looks at every block of a folio for each small write into it later, and for each writeback of a part of it:
// after writes of 1 MiB a random write of 4 KiB cost 1.5 times the CPU of the whole way of a request, with folios of up
// to 32 KiB it is lost in the noise. Smaller ones make large writes dearer.
const maxWriteBytes = 32 << 10

// WriteAt implements File.
func (f *osFile) WriteAt(b []byte, off int64) (n int, err error) {
	for err == nil && n < len(b) {
		var k int
		k, err = f.File.WriteAt(b[n:n+min(len(b)-n, maxWriteBytes)], off+int64(n))
		n += k
	}
	return n, err
}

// Size implements File.
func (f *osFile) Size() (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// Sync implements File, with fdatasync: of the metadata only what is needed to read the data back, which is nothing
// when blocks are overwritten that were written before.
func (f *osFile) Sync() error {
	if err := f.enter("fdatasync"); err != nil {
		return err
	}
	defer f.closing.RUnlock()
	for {
		if err := unix.Fdatasync(f.fd); err != unix.EINTR {
			return f.wrap("fdatasync", err)
		}
	}
}

// PunchHole implements File.
func (f *osFile) PunchHole(off, n int64) error {
	size, err := f.Size()
	if err != nil {
		return err
	}
	if n = min(n, size-off); n <= 0 {
		return nil
	}
	err = f.punch(off, n)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		return f.writeZeroes(off, n)
	}
	return err
}

// PunchesHoles implements HolePuncher: a hole behind the end of the file changes nothing, and is refused all the same
// where there are none.
func (f *osFile) PunchesHoles() bool {
	size, err := f.Size()
	if err == nil {
		err = f.punch(size, 4096)
	}
	return !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENOSYS)
}

func (f *osFile) punch(off, n int64) error {
	if err := f.enter("fallocate"); err != nil {
		return err
	}
	defer f.closing.RUnlock()
	return f.wrap("fallocate", retry(func() error {
		return unix.Fallocate(f.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	}))
}

func (f *osFile) writeZeroes(off, n int64) error {
	zeroes := make([]byte, min(n, 1<<20))
	for end := off + n; off < end; {
		k, err := f.WriteAt(zeroes[:min(int64(len(zeroes)), end-off)], off)
		if err != nil {
			return err
		}
		off += int64(k)
	}
	return nil
}

// StartWriteback implements File. It never waits for the device's answer, but may for room in its queue.
func (f *osFile) StartWriteback(off, n int64) {
	if f.enter("") != nil {
		return
	}
	defer f.closing.RUnlock()
	unix.SyncFileRange(f.fd, off, n, unix.SYNC_FILE_RANGE_WRITE) // a hint; a write error shows up at Sync
}

// CleanStart implements Cleaner.
func (f *osFile) CleanStart(off, n int64) error {
	return f.syncRange(off, n, unix.SYNC_FILE_RANGE_WRITE)
}

// CleanWait implements Cleaner. The kernel tells of a write-back error here and then not again at fdatasync.
func (f *osFile) CleanWait(off, n int64) error {
	return f.syncRange(off, n, unix.SYNC_FILE_RANGE_WAIT_BEFORE)
}

func (f *osFile) syncRange(off, n int64, how int) error {
	if err := f.enter("sync_file_range"); err != nil {
		return err
	}
	defer f.closing.RUnlock()
	for {
		switch err := unix.SyncFileRange(f.fd, off, n, how); err {
		case unix.EINTR:
		case unix.ENOSYS, unix.EOPNOTSUPP, unix.ESPIPE:
			return nil // Sync does it all
		default:
			return f.wrap("sync_file_range", err)
		}
	}
}

// DropCache implements CacheDropper. Dirty pages stay.
func (f *osFile) DropCache() {
	if f.enter("") != nil {
		return
	}
	defer f.closing.RUnlock()
	unix.Fadvise(f.fd, 0, 0, unix.FADV_DONTNEED)
}

// Prefetch implements Prefetcher.
func (f *osFile) Prefetch(off, n int64) {
	if f.enter("") != nil {
		return
	}
	defer f.closing.RUnlock()
	for ; n > 0; off, n = off+prefetchBytes, n-prefetchBytes {
		// What fails here fails again, and is reported, when it is read.
		unix.Fadvise(f.fd, off, min(n, prefetchBytes), unix.FADV_WILLNEED)
	}
}

// ReadCachedAt implements CacheReader. An error, also that of a file system that cannot tell, counts as "not in memory":
// the read that follows meets it again, and may wait.
func (f *osFile) ReadCachedAt(b []byte, off int64) bool {
	if f.enter("") != nil {
		return false
	}
	defer f.closing.RUnlock()
	// Raw: it does not wait for the disk, and there is one for each read; telling the scheduler would cost as much again.
	iov := unix.Iovec{Base: unsafe.SliceData(b)}
	iov.SetLen(len(b))
	n, _, errno := unix.RawSyscall6(unix.SYS_PREADV2, uintptr(f.fd), uintptr(unsafe.Pointer(&iov)), 1, uintptr(off), 0, unix.RWF_NOWAIT)
	return errno == 0 && int(n) == len(b)
}

// ReadDirectAt implements DirectReader.
func (f *osFile) ReadDirectAt(b []byte, off int64) error {
	if err := f.enter("read"); err != nil {
		return err
	}
	defer f.closing.RUnlock()
	f.directOnce.Do(func() {
		// By the descriptor: the name may be another file's by now.
		d, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.fd), os.O_RDONLY|unix.O_DIRECT, 0)
		if err == nil {
			f.direct = d
		}
	})
	if f.direct != nil {
		_, err := f.direct.ReadAt(b, off)
		if !errors.Is(err, unix.EINVAL) { // what a file system says that opens it and cannot
			return err
		}
	}
	_, err := f.File.ReadAt(b, off)
	return err
}

// enter keeps the descriptor open until closing.RUnlock.
func (f *osFile) enter(op string) error {
	f.closing.RLock()
	if f.closed {
		f.closing.RUnlock()
		return &fs.PathError{Op: op, Path: f.Name(), Err: fs.ErrClosed}
	}
	return nil
}

func (f *osFile) wrap(op string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: f.Name(), Err: err}
}

// retry repeats a system call that a signal interrupted.
func retry(call func() error) error {
	for {
		if err := call(); err != unix.EINTR {
			return err
		}
	}
}
