package stamped

import "errors"

// ErrLost is wrapped by a Disk's error when the connection broke, so that nobody knows what became of the
// request. Any other error is an answer of the disk, and the end of a run: a client must never see one.
var ErrLost = errors.New("stamped: connection lost")

// Disk is one connection to the disk under test. Many goroutines call it at once. A method returns when the disk
// has acknowledged the request. Disks are comparable.
type Disk interface {
	ReadAt(p []byte, off uint64) error
	WriteAt(p []byte, off uint64, fua bool) error
	ZeroAt(off uint64, n int, fua bool) error
	TrimAt(off uint64, n int, fua bool) error
	Flush() error
	// Close ends the connection and every request on it, with ErrLost. It may be called twice.
	Close() error
}
