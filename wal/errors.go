package wal

import (
	"errors"
	"fmt"
	"io/fs"
)

// Errors of a log that is in good health: the caller can do something about each, and nothing was changed.
var (
	// ErrFull means that the next segment still holds records above the checkpoint (W3). Apply, call
	// Checkpointed, and append again.
	ErrFull = errors.New("wal: log is full: checkpoint before appending more")
	// ErrCompacted means that the record asked for is not in the log any more: its segment was reused, or it
	// lies before the point where the log was opened or reset. Copy the volume's regions instead.
	ErrCompacted = errors.New("wal: record is no longer in the log")
	// ErrNotNext refuses a frame that does not follow the log's last one: another first LSN, chain or salt.
	ErrNotNext = errors.New("wal: frame does not follow the end of the log")
	// ErrNotFrameEnd refuses an LSN that is not the last record of a frame of this log.
	ErrNotFrameEnd = errors.New("wal: not the last record of a frame in the log")
	// ErrCheckpointed refuses to cut records below the checkpoint: the image may hold them already.
	ErrCheckpointed = errors.New("wal: cannot cut below the checkpoint")
	// ErrClosed is returned after Close.
	ErrClosed = errors.New("wal: log is closed")
)

// FrameTooLargeError refuses a frame that no segment of this log can hold.
type FrameTooLargeError struct {
	Bytes, Limit int
}

func (e *FrameTooLargeError) Error() string {
	return fmt.Sprintf("wal: frame of %d bytes exceeds the segment size %d: format the log with larger segments",
		e.Bytes, e.Limit)
}

// ShortBufferError is returned by ReadFrames when not even one frame fits into the buffer.
type ShortBufferError struct {
	Need int // bytes
}

func (e *ShortBufferError) Error() string {
	return fmt.Sprintf("wal: the frame needs a buffer of %d bytes", e.Need)
}

// CorruptError reports bytes that are not what was once written. Segment is empty when they did not come
// from the log's files (a frame from the wire).
type CorruptError struct {
	Segment string // file name
	Offset  int64  // bytes into the segment
	LSN     LSN    // first record that is lost
	Reason  string
	// Evidence says why the bad frame cannot be the torn tail of a crash (W7).
	Evidence string
}

func (e *CorruptError) Error() string {
	if e.Segment == "" {
		return "wal: corrupt frame: " + e.Reason
	}
	s := fmt.Sprintf("wal: %s is corrupt at byte %d (record %d): %s", e.Segment, e.Offset, e.LSN, e.Reason)
	if e.Evidence != "" {
		s += "; " + e.Evidence + ": copy the records from another member, do not cut them"
	}
	return s
}

// SegmentError reports a segment file that is missing, too many, or not of the size that the log was created
// with. The log cannot be opened; restore the file, or format the replica again and let it be recruited.
type SegmentError struct {
	Name string
	Err  error
}

func (e *SegmentError) Error() string {
	what := e.Err.Error()
	switch path := new(fs.PathError); {
	case errors.Is(e.Err, fs.ErrNotExist):
		what = "is missing"
	case errors.As(e.Err, &path): // it would say the name again
		what = fmt.Sprintf("%s: %v", path.Op, path.Err)
	}
	return fmt.Sprintf("wal: segment %s: %s: restore the file, or move the replica's directory away and let it be copied from another member", e.Name, what)
}

func (e *SegmentError) Unwrap() error { return e.Err }

// errLength is the SegmentError of a file that became shorter or longer.
type errLength struct{ have, want int64 }

func (e errLength) Error() string { return fmt.Sprintf("%d bytes long, expected %d", e.have, e.want) }

// Damaged tells whether an error of Open says that the log is not what was written: records are lost, or a segment is
// missing, or was cut.
func Damaged(err error) bool {
	_, corrupt := errors.AsType[*CorruptError](err)
	segment, shape := errors.AsType[*SegmentError](err)
	_, length := errors.AsType[errLength](err)
	return corrupt || length || shape && errors.Is(segment.Err, fs.ErrNotExist)
}

// VersionError reports a frame in a format that this build does not know. It is never cut: an older build
// must not destroy what a newer one wrote.
type VersionError struct {
	Version uint16
}

func (e *VersionError) Error() string {
	return fmt.Sprintf("wal: frame format %d is newer than this build's %d: run the newer build", e.Version, formatVersion)
}
