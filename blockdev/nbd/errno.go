package nbd

import (
	"errors"
	"fmt"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"lockstep/blockdev"
)

// NBD error numbers. They are the protocol's own, whatever the system's errno are.
const (
	ePerm     = protocol.TRANSMISSION_ERROR_EPERM
	eIO       = uint32(5)
	eNoMem    = uint32(12)
	eInval    = protocol.TRANSMISSION_ERROR_EINVAL
	eNoSpc    = uint32(28)
	eOverflow = uint32(75)
	eNotSup   = uint32(95)
	eShutdown = uint32(108)
)

// ErrNotSupported is what a server answers to a fast zero request that would not be fast (NBD_ENOTSUP).
var ErrNotSupported = errors.New("nbd: not supported")

// errnoOf gives the NBD error for a request that failed with err. blockdev.ErrSessionClosed must not get here: it has
// no NBD error (N4). What is not known is an I/O error, which makes no client believe that it did something wrong.
func errnoOf(op blockdev.Op, err error) uint32 {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, blockdev.ErrOutOfRange):
		if op == blockdev.OpWrite || op == blockdev.OpWriteZeroes {
			return eNoSpc
		}
		return eInval
	case errors.Is(err, blockdev.ErrInvalid):
		return eInval
	case errors.Is(err, blockdev.ErrReadOnly):
		return ePerm
	case errors.Is(err, blockdev.ErrNoSpace):
		return eNoSpc
	case errors.Is(err, ErrNotSupported):
		return eNotSup
	}
	return eIO
}

// errorOf is the inverse, in the client. eShutdown must not get here: it ends the connection.
func errorOf(errno uint32) error {
	switch errno {
	case 0:
		return nil
	case ePerm:
		return errPerm
	case eIO:
		return errIO
	case eNoMem:
		return errNoMem
	case eNoSpc:
		return errNoSpc
	case eOverflow:
		return errOverflow
	case eNotSup:
		return ErrNotSupported
	}
	// The specification: treat an unexpected error value as EINVAL.
	return errInval
}

// Made once: an error reply allocates nothing.
var (
	errPerm     = fmt.Errorf("nbd: server answered EPERM: %w", blockdev.ErrReadOnly)
	errIO       = fmt.Errorf("nbd: server answered EIO: %w", blockdev.ErrIO)
	errNoMem    = fmt.Errorf("nbd: server answered ENOMEM: %w", blockdev.ErrIO)
	errNoSpc    = fmt.Errorf("nbd: server answered ENOSPC: %w", blockdev.ErrNoSpace)
	errOverflow = fmt.Errorf("nbd: server answered EOVERFLOW: %w", blockdev.ErrInvalid)
	errInval    = fmt.Errorf("nbd: server answered EINVAL: %w", blockdev.ErrInvalid)
)

// errnoText is what a structured reply says of an error, for people.
func errnoText(errno uint32) []byte { return errnoTexts[errno] }

var errnoTexts = map[uint32][]byte{
	ePerm:   []byte("the export is read-only"),
	eIO:     []byte("input/output error on the server"),
	eInval:  []byte("unknown command or flag, no or too much data, or past the end of the export"),
	eNoSpc:  []byte("past the end of the export, or no space left on the server"),
	eNotSup: []byte("this would not be faster than writing data"),
}
