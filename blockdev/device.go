package blockdev

import (
	"context"
	"errors"
	"fmt"

	"lockstep/wal"
)

// BlockSize is the unit, in bytes, of checksums, of the log and of the image.
// It is part of the storage format; never change it.
const BlockSize = wal.BlockSize

// MaxRequestBytes is the largest payload of one request that is atomic over a crash.
const MaxRequestBytes = 32 << 20

// Errors that a Device gives a Session's requests. blockdev/nbd maps them to NBD errnos.
var (
	// ErrOutOfRange is given to a request that reaches past the end of the disk.
	ErrOutOfRange = errors.New("blockdev: request reaches past the end of the disk")
	// ErrInvalid is given to a request that makes no sense (unknown operation or flag).
	ErrInvalid = errors.New("blockdev: invalid request")
	// ErrReadOnly is given to a request that would change a read-only session's disk.
	ErrReadOnly = errors.New("blockdev: the export is read-only")
	// ErrNoSpace is given to a write when no member of the view has room for it.
	ErrNoSpace = errors.New("blockdev: no space left on any replica")
	// ErrIO is given to a request whose block is corrupt and cannot be repaired, or whose storage failed.
	ErrIO = errors.New("blockdev: input/output error")
)

// ErrSessionClosed tells that a session is over: by its own Close, by a newer attach generation, or because
// the device can no longer serve (a change of role). It is never sent to an NBD client: Linux would turn it
// into an I/O error. The connection is closed instead, and the client (or the gateway) tries again.
var ErrSessionClosed = errors.New("blockdev: session closed")

// ErrExclusive refuses an Attach: another client has the disk for itself, or wants it for itself and is not alone, or
// the session was ended by a take-over. The text says who and what to do; it is for the client's user.
var ErrExclusive = errors.New("blockdev: the disk is attached exclusively")

// ErrNotPrimary refuses an Attach: this replica does not serve clients now. The connection is closed hard.
var ErrNotPrimary = errors.New("blockdev: this replica is not the volume's primary")

// MovedError is the ErrNotPrimary of a replica that knows who is. To is for the client's program, which knows how to read
// it: it is told before the connection is closed.
type MovedError struct{ To string }

func (e *MovedError) Error() string { return fmt.Sprintf("%v; try %s", ErrNotPrimary, e.To) }

// Unwrap makes it an ErrNotPrimary.
func (e *MovedError) Unwrap() error { return ErrNotPrimary }

// Op is what a Request asks for.
type Op uint8

// The operations of a Device.
const (
	OpRead        Op = iota + 1 // fill Data from the disk
	OpWrite                     // put Data on the disk
	OpFlush                     // make every write that was completed on any session stable; no range
	OpTrim                      // the range is not needed any more; it reads as zeroes afterwards
	OpWriteZeroes               // the range reads as zeroes afterwards
	OpCache                     // a hint that the range will be read soon
	OpExtents                   // say how the parts of the range are kept
)

func (o Op) String() string {
	switch o {
	case OpRead:
		return "read"
	case OpWrite:
		return "write"
	case OpFlush:
		return "flush"
	case OpTrim:
		return "trim"
	case OpWriteZeroes:
		return "write_zeroes"
	case OpCache:
		return "cache"
	case OpExtents:
		return "extents"
	}
	return "unknown"
}

// Mutates tells whether the operation changes the disk's content.
func (o Op) Mutates() bool { return o == OpWrite || o == OpTrim || o == OpWriteZeroes }

// Flags modify a Request.
type Flags uint8

// The flags of a Request.
const (
	FlagFUA    Flags = 1 << iota // complete only when stable on every member of the view
	FlagNoHole                   // WriteZeroes: keep the space allocated
)

// Request is one operation on its way through a Device. The client that submits it owns it again when the
// device has completed it; in between, the device owns every field but Tag.
type Request struct {
	Op     Op
	Flags  Flags
	Offset uint64 // bytes
	Length uint32 // bytes
	Data   []byte // OpWrite: the payload, OpRead: the destination; len(Data) == Length, else nil
	Tag    uint64 // the client's own; devices do not look at it

	// ID is the request's number in a session that numbers them (SessionID.Numbers): RequestID. A request that is sent
	// again, on a later attachment, keeps it, and is answered without being carried out a second time.
	ID uint64

	// Extents is the result of an OpExtents: from Offset on, without gaps, at least one and never past the request's
	// end; it may end before that. The device appends to it (AddExtent) and never beyond the capacity, which is the
	// client's to choose.
	Extents []Extent

	// Err is the result: nil, or an error that wraps one of this package's.
	Err error

	// Scratch belongs to the device while it holds the request. The client leaves it alone and reuses
	// requests, so that a device allocates nothing per request in steady state.
	Scratch Scratch
}

// ExtentState says how a part of a disk is kept. The bits are those of NBD's context base:allocation.
type ExtentState uint32

// The bits of an ExtentState.
const (
	ExtentHole ExtentState = 1 << iota // takes no space, as far as the device knows
	ExtentZero                         // reads as zeroes
)

// Extent is a part of a disk, of which all is kept in the same way. It begins where the one before it ends.
type Extent struct {
	Length uint32 // bytes, not 0
	State  ExtentState
}

// AddExtent appends to r.Extents n more bytes, more than 0, as part of the last extent if they are kept like it. It
// returns false, and appends nothing, when there is no room.
func (r *Request) AddExtent(n uint32, state ExtentState) bool {
	if last := len(r.Extents) - 1; last >= 0 && r.Extents[last].State == state {
		r.Extents[last].Length += n
		return true
	}
	if len(r.Extents) == cap(r.Extents) {
		return false
	}
	r.Extents = append(r.Extents, Extent{n, state})
	return true
}

// Scratch is room for a device's own bookkeeping inside a Request.
type Scratch struct {
	Sums    []uint32 // block checksums of Data, computed before the request is ordered
	LSN     uint64   // the last record of this request
	Session Session  // whom to complete it to
	Seq     uint64   // order of arrival
	Link    *Request // intrusive list
}

// Geometry is what a client needs to know of a disk before it attaches.
type Geometry struct {
	Size     uint64 // bytes, a multiple of BlockSize
	ReadOnly bool
}

// SessionID names a client's attachment over reconnects. The zero value is an anonymous session: it is never
// fenced by another and never fences one.
type SessionID struct {
	Name       string // chosen by the client, unique to it; at most 64 bytes
	Generation uint64 // grows by each reconnect of the same Name

	// Era is when the client first attached, counted in events that end all clients for good (a take-over): one of
	// an earlier era is refused. 0: the client begins now.
	Era uint64
	// Exclusive asks for the disk alone: refused unless the device knows of the session's right to that.
	Exclusive bool
	// Numbers names the space that the requests' numbers (Request.ID) are in; "": they have none. It is Name's own, or
	// one of its own where a Name outlives the memory of the numbers that were given; of at most 64 bytes, and used by
	// the attachments of one Name only.
	Numbers string
}

// Client is the receiving end of a Session: an NBD connection, most often.
type Client interface {
	// Complete hands finished requests back, each exactly once, in no particular order. It must not block for
	// long: it is called by whoever moved the commit point. The slice is the caller's again on return.
	Complete(done []*Request)
	// Abort ends the session from the device's side, because of a role change or a newer generation. Requests
	// not completed before are not completed any more. It may be called from any goroutine and must not block.
	Abort(reason error)
}

// Session is one client's attachment to a Device.
type Session interface {
	// Submit hands over a burst of requests in the client's order. A bad request is completed with an error, and does
	// not end the session. Requests may be completed before it returns. Only one goroutine submits to a session. The
	// slice is the caller's again on return.
	Submit(burst []*Request)
	// Close fences the session. When it returns, no request of the session will be ordered any more, and the
	// device has let go of all of them: nothing is completed afterwards.
	Close()
}

// Device is a disk that serves many sessions at once. Single-copy consistency is the device's business: the
// history that all sessions see together is linearizable for each block.
type Device interface {
	// Geometry is what a client is told that attaches now. A disk can grow, never shrink, and requests of all sessions may
	// use what it has.
	Geometry() Geometry
	// Attach begins a session. A session with the same Name and a lower Generation is fenced before Attach
	// returns; one with a higher Generation makes Attach fail with ErrSessionClosed. Errors wrap
	// ErrNotPrimary when this device cannot serve now.
	Attach(ctx context.Context, id SessionID, c Client) (Session, error)
}
