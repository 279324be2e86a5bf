package blockdev

import (
	"errors"
	"fmt"

	"lockstep/wal"
)

// Errors of formatting and opening a replica's directory.
var (
	// ErrNotReplica is returned for a directory that holds no replica.
	ErrNotReplica = errors.New("not a replica's directory")
	// ErrHalfFormatted is the ErrNotReplica for what a Format that did not finish left: nothing that anybody relied
	// on, and nothing in the way of another Format.
	ErrHalfFormatted = fmt.Errorf("formatting did not finish: %w", ErrNotReplica)
	// ErrExists is returned by Format for a directory that holds a replica already.
	ErrExists = errors.New("directory holds a replica already; remove it by hand if its data is not needed")
	// ErrNotEmpty is returned by Format for a directory with foreign files, or a replica that lost its meta file.
	ErrNotEmpty = errors.New("directory is not empty and not half-formatted; choose an empty one")
	// ErrInUse is returned when another process, or another Store of this one, has the replica open.
	ErrInUse = errors.New("replica is in use by another process; stop that first")
)

// Errors of an open store's methods. None of them poisons it.
var (
	// ErrClosed is returned after Close.
	ErrClosed = errors.New("blockdev: store is closed")
	// ErrDiskHangs is returned by Close when the disk does not come back from an operation.
	ErrDiskHangs = errors.New("blockdev: the disk does not answer, and the files stay open until it does: end the process, and check the disk")
	// ErrBelowCommit refuses to cut committed records (I6).
	ErrBelowCommit = errors.New("blockdev: refusing to cut below the commit point")
	// ErrNotFrameEnd refuses an LSN that is not the last one of a frame.
	ErrNotFrameEnd = errors.New("blockdev: lsn is not the end of a frame")
	// ErrOldEpoch refuses a frame of an epoch below the log's last one.
	ErrOldEpoch = errors.New("blockdev: epoch of the frame is older than the log's")
	// ErrCopying refuses what makes no sense while, or unless, the image is being copied.
	ErrCopying = errors.New("blockdev: image is being copied")
	// ErrNotCopying refuses region writes into an image that is a prefix of history.
	ErrNotCopying = errors.New("blockdev: image is not being copied")
	// ErrCopyBehind refuses to end a copy whose regions are newer than what is committed and stable here.
	ErrCopyBehind = errors.New("blockdev: log is not yet beyond the copied regions")
	// ErrRegionOld refuses a region that is older than what is applied already.
	ErrRegionOld = errors.New("blockdev: image of a region is older than what is applied here")
	// ErrStale refuses a repair with data that may be older than the block is.
	ErrStale = errors.New("blockdev: block changed since the repair data was read; read it again")
)

// VersionError tells of a meta file that a newer program wrote.
type VersionError struct{ Found, Known uint32 }

func (e *VersionError) Error() string {
	return fmt.Sprintf("meta has format version %d, this program knows up to %d; use a newer one", e.Found, e.Known)
}

// DamagedError tells of a replica whose files do not fit together. Its data cannot be trusted; it can be
// formatted again and recruited from another member.
type DamagedError struct {
	File string // within the replica's directory
	What string
}

func (e *DamagedError) Error() string {
	return fmt.Sprintf("%s: %s; restore the file, or move the replica's directory away and let it be copied from another member", e.File, e.What)
}

// Damaged tells whether an error of OpenStore says that the replica's files are not what was written to them. It will not
// pass, as an error of the disk may, and a replica that is in use, or of a newer version, is whole.
func Damaged(err error) bool {
	_, damaged := errors.AsType[*DamagedError](err)
	return damaged || wal.Damaged(err)
}

// CorruptBlockError tells that a block's content does not match its checksum (P6), or that the disk does not give it. Other
// blocks are fine.
type CorruptBlockError struct {
	Block uint64
	InLog bool    // else in the image
	Pos   wal.Pos // where in the log
	Err   error   // the disk's, or nil
}

func (e *CorruptBlockError) Error() string {
	where := "image"
	if e.InLog {
		where = fmt.Sprintf("log position %d", e.Pos)
	}
	if e.Err != nil {
		return fmt.Sprintf("blockdev: block %d cannot be read (%s): %v", e.Block, where, e.Err)
	}
	return fmt.Sprintf("blockdev: block %d is corrupt (%s)", e.Block, where)
}

func (e *CorruptBlockError) Unwrap() error { return e.Err }
